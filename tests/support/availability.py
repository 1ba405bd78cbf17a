"""What a test needs of the machine and does not find."""

import os
from typing import NoReturn

import pytest


def unavailable(reason: str) -> NoReturn:
    """Skip for want of a program; fail where the whole suite is required (AIOSMRT_REQUIRE_CONFORMANCE=1)."""
    if os.environ.get("AIOSMRT_REQUIRE_CONFORMANCE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
