"""What the conformance tests share: fake credentials, a clean AWS environment, and the peers' programs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support import availability
from tests.support.javascript_sdk import JAVASCRIPT_DIRECTORY
from tests.support.peers import CREDENTIALS, isolate_aws


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS setting of the machine reaches a test."""
    isolate_aws(monkeypatch, tmp_path)


@pytest.fixture
def unavailable() -> Callable[[str], NoReturn]:
    """Skips for want of a program, or fails; see `tests.support.availability`."""
    return availability.unavailable


@pytest.fixture
def node(unavailable: Callable[[str], NoReturn]) -> str:
    """The path of node, beside the installed JavaScript client."""
    found = shutil.which("node")
    if found is None:
        unavailable("node is not installed")
    packages = json.loads((JAVASCRIPT_DIRECTORY / "package.json").read_text())["dependencies"]
    if not all((JAVASCRIPT_DIRECTORY / "node_modules" / package).is_dir() for package in packages):
        unavailable("the JavaScript client is not installed: run `npm ci` in tests/conformance/js")
    return found


@pytest.fixture
def aws_cli(unavailable: Callable[[str], NoReturn]) -> str:
    """The path of the AWS CLI: AIOSMRT_TEST_AWS, or the one on PATH."""
    found = os.environ.get("AIOSMRT_TEST_AWS") or shutil.which("aws")
    if found is None or shutil.which(found) is None:
        unavailable("the AWS CLI is not installed: put its path into AIOSMRT_TEST_AWS")
    return found


@pytest.fixture
def aws_variables(tmp_path: Path) -> dict[str, str]:
    """The environment of a peer's process."""
    return {
        "AWS_ACCESS_KEY_ID": CREDENTIALS.access_key,
        "AWS_SECRET_ACCESS_KEY": CREDENTIALS.secret_key,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "HOME": str(tmp_path),
    }
