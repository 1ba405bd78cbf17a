"""The ``aiosmrt`` script.

Outside the package, whose import takes a third of a second: Ctrl-C during that ends the command without a traceback
only if something handles it before the import. So this module imports little.
"""

import os
import signal

__all__ = ["main"]

# As for all commands: see `aiosmrt.cli.app`.
_INTERRUPTED = 130


def main() -> int:
    """Run the command, and return its exit code."""
    try:
        # A caller may have it ignored, as shells do for what they run in the background.
        handles = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if handles:
            signal.signal(signal.SIGINT, _end)
        from aiosmrt.cli import main as command

        try:  # noqa: SIM105 (contextlib is one more import)
            import aiosmrt.cli.app  # noqa: F401 (imported here, as long as a signal ends it all)
        except (ImportError, AttributeError):
            # The command reports the missing extra.
            pass
        if handles:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = command()
        if handles:
            # What is left is the interpreter's end, which would print a traceback as well.
            signal.signal(signal.SIGINT, _end)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _end(number: int, frame: object) -> None:
    """End the process at once: nothing has begun, or all is done. An exception may be lost in an import."""
    os._exit(_INTERRUPTED)
