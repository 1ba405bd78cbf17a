"""AWS's configuration files, as a test writes them."""

from __future__ import annotations

from typing import Protocol


class ConfigFiles(Protocol):
    """Writes ``~/.aws/config`` and ``~/.aws/credentials``."""

    def __call__(self, config: str | None = None, credentials: str | None = None) -> None: ...
