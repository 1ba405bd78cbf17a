"""Modules that an extra installs."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from aiosmrt.errors import MissingExtraError

__all__ = ["installed", "unusable"]


def installed(module: str, extra: str) -> Any:
    """Import a module that an extra installs.

    Args:
        module: its full name.
        extra: the extra of aiosmrt that installs it.

    Raises:
        MissingExtraError: it is missing or cannot be imported; the message has the command that installs it.

    >>> installed("no_such_module.part", "numpy")
    Traceback (most recent call last):
        ...
    aiosmrt.errors.MissingExtraError: no_such_module is not installed; run: pip install 'aiosmrt[numpy]'
    """
    try:
        return importlib.import_module(module)
    except (ImportError, AttributeError) as error:
        package = module.partition(".")[0]
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == package
        what = f"{package} is not installed" if is_missing else f"{module} cannot be imported"
        name = error.name if isinstance(error, ImportError) else module
        raise MissingExtraError(f"{what}; run: pip install 'aiosmrt[{extra}]'", name=name) from error


def unusable(error: ImportError | AttributeError, extra: str) -> str | None:
    """What to install after an import has failed, because another package is missing or only half there.

    Args:
        error: what the import raised. An AttributeError is that of a package of which no more is left than its folder.
        extra: the extra of aiosmrt that installs what was imported.

    Returns:
        The message; None for a fault of aiosmrt or of Python.

    >>> unusable(ModuleNotFoundError("No module named 'fastapi'", name="fastapi"), "fastapi")
    "fastapi is not installed; run: pip install 'aiosmrt[fastapi]'"
    >>> unusable(ImportError("cannot import name 'Depends' from 'fastapi'", name="fastapi"), "fastapi")
    "fastapi cannot be imported (cannot import name 'Depends' from 'fastapi'); run: pip install 'aiosmrt[fastapi]'"
    """
    name = error.name
    if isinstance(error, AttributeError):
        if not isinstance(error.obj, ModuleType):
            return None
        name = error.obj.__name__
    package = (name or extra).partition(".")[0]
    if package == "aiosmrt" or package in sys.stdlib_module_names:
        return None
    is_missing = isinstance(error, ModuleNotFoundError) and name == package
    what = "is not installed" if is_missing else f"cannot be imported ({error})"
    return f"{package} {what}; run: pip install 'aiosmrt[{extra}]'"
