"""What to install when an import fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiosmrt._extras import unusable

__all__ = ["extra"]


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra to install when a module imported in the block is missing, or only half there.

    Args:
        name: the extra of aiosmrt that installs what the block imports.

    Raises:
        ModuleNotFoundError: a third-party module is missing; the message has the command that installs it.
        ImportError: a third-party module cannot be imported; likewise.

    >>> with extra("fastapi"):
    ...     import no_such_module
    Traceback (most recent call last):
        ...
    ModuleNotFoundError: no_such_module is not installed; run: pip install 'aiosmrt[fastapi]'
    """
    try:
        yield
    except (ImportError, AttributeError) as error:
        message = unusable(error, name)
        if message is None:
            raise
        kind = ModuleNotFoundError if isinstance(error, ModuleNotFoundError) else ImportError
        # The name of an AttributeError is the attribute's.
        module = error.name if isinstance(error, ImportError) else getattr(error.obj, "__name__", None)
        raise kind(message, name=module, path=getattr(error, "path", None)) from error
