"""What to install when an import fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["extra"]


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra to install when a module imported in the block is missing.

    Args:
        name: the extra of aiosmrt that installs what the block imports.

    Raises:
        ModuleNotFoundError: a third-party module is missing; the message has the command that installs it.

    >>> with extra("fastapi"):
    ...     import no_such_module
    Traceback (most recent call last):
        ...
    ModuleNotFoundError: no_such_module is not installed; run: pip install 'aiosmrt[fastapi]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "aiosmrt", *sys.stdlib_module_names):
            raise
        message = f"{package} is not installed; run: pip install 'aiosmrt[{name}]'"
        raise ModuleNotFoundError(message, name=error.name, path=error.path) from error
