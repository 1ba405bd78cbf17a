"""A machine without any AWS configuration, files to configure it, and the services that issue credentials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.aws.fake_services import CredentialServices
from tests.support.config_files import ConfigFiles
from tests.support.peers import isolate_aws


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS setting of the machine reaches a test."""
    isolate_aws(monkeypatch, tmp_path)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    # botocore expands this one at import.
    from botocore.credentials import SSOProvider

    monkeypatch.setattr(SSOProvider, "_SSO_TOKEN_CACHE_DIR", str(tmp_path / "sso"))


@pytest.fixture
def config_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ConfigFiles:
    def write(config: str | None = None, credentials: str | None = None) -> None:
        for variable, text in (("AWS_CONFIG_FILE", config), ("AWS_SHARED_CREDENTIALS_FILE", credentials)):
            if text is not None:
                path = tmp_path / variable.lower()
                path.write_text(text)
                monkeypatch.setenv(variable, str(path))

    return write


@pytest.fixture
def services() -> Iterator[CredentialServices]:
    with CredentialServices() as services:
        yield services


@pytest.fixture
def open_descriptors() -> Callable[[], set[str]]:
    """What this process has open: sockets, pipes and files; to be compared before and after."""

    def look() -> set[str]:
        directory = Path("/proc/self/fd")
        if not directory.is_dir():
            pytest.skip("this platform does not list open descriptors")
        found = set()
        for entry in directory.iterdir():
            try:
                found.add(str(entry.readlink()))
            except OSError:  # the descriptor of the listing itself
                continue
        return found

    return look
