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
        ConfigurationError: it cannot be imported; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"{module} cannot be imported; \"pip install 'aiosmrt[{extra}]'\" installs it"
        ) from error
