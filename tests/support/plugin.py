"""The package's pytest plugin, in a checkout that may have been installed before it had one."""

from __future__ import annotations

import importlib.metadata

__all__ = ["plugin_options"]


def plugin_options() -> list[str]:
    """Options of pytest that load the plugin, unless installing the package has made it known."""
    known = importlib.metadata.entry_points(group="pytest11", name="aiosmrt")
    return [] if known else ["-p", "aiosmrt.testing.plugin"]
