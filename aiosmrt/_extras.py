"""Modules that an extra installs."""

from __future__ import annotations

import importlib
from typing import Any

from aiosmrt.errors import ConfigurationError

__all__ = ["installed"]


def installed(module: str, extra: str) -> Any:
    """Import a module that an extra installs.

    Args:
        module: its full name.
        extra: the extra of aiosmrt that installs it.

    Raises:
        ConfigurationError: it is missing or cannot be imported; the message has the command that installs it.

    >>> installed("no_such_module.part", "numpy")
    Traceback (most recent call last):
        ...
    aiosmrt.errors.ConfigurationError: no_such_module is not installed; run: pip install 'aiosmrt[numpy]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == package
        what = f"{package} is not installed" if is_missing else f"{module} cannot be imported"
        raise ConfigurationError(f"{what}; run: pip install 'aiosmrt[{extra}]'") from error
