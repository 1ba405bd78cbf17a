"""The script ``aiosmrt``: Ctrl-C ends it without a traceback, also while the package is imported.

Outside the package, because whatever is in it begins with its import, which takes most of a command's start.
"""

import signal

__all__ = ["main"]


def main() -> int:
    """Run the ``aiosmrt`` command, and return its exit code; see `aiosmrt.cli.main`."""
    # Where the caller ignores Ctrl-C, as shells do for jobs in the background, it stays ignored.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from aiosmrt.cli import main as command

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return command()
