"""Runs a script on an interpreter that lacks what Windows lacks:  without_unix.py SCRIPT [ARGUMENT...]"""

import asyncio
import os
import runpy
import select
import sys
from collections.abc import Sequence
from types import ModuleType

MISSING = frozenset({"fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"})


class Missing:
    """Finds no module that Windows lacks."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def refuse(*arguments: object) -> None:
    raise NotImplementedError


for name in MISSING:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
for name in ("fork", "register_at_fork", "getuid", "geteuid", "setsid", "getpgid", "killpg", "sched_getaffinity"):
    delattr(os, name)
del select.poll
asyncio.SelectorEventLoop.add_signal_handler = refuse  # type: ignore[assignment]

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
