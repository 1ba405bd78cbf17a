"""Isolates the tests from the machine's AWS settings."""

from pathlib import Path

import pytest

from tests.support.peers import isolate_aws


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove AWS variables, and use configuration files that do not exist."""
    isolate_aws(monkeypatch, tmp_path)
