"""The pytest plugin: the fixture ``sagemaker_runtime``. Installing aiosmrt makes it known to pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from aiosmrt.local import LocalRuntime

__all__ = ["sagemaker_runtime"]


@pytest.fixture
def sagemaker_runtime() -> Iterator[Callable[..., LocalRuntime]]:
    """Start `aiosmrt.local.LocalRuntime`s that stop with the test; their arguments are the fixture's.

    Each runs in its own thread, so synchronous tests can use it as well as those of any asyncio plugin.
    """
    # loaded for tests that use it
    from aiosmrt.local import Credentials, LocalRuntime

    with ExitStack() as stack:

        def start(endpoints: Mapping[str, Any], **arguments: Any) -> LocalRuntime:
            defaults = {"credentials": Credentials("AKIDEXAMPLE", "not-a-real-secret"), "drain_timeout": 1.0}
            return stack.enter_context(LocalRuntime(endpoints, **{**defaults, **arguments}))

        yield start
