"""The ``aiosmrt`` script.

Outside the package, whose import takes a third of a second: Ctrl-C during that ends the command without a traceback
only if something handles it before the import. So this module imports next to nothing itself.
"""

# The module signal is made of this one and of enum, which takes longer than everything else here.
import _signal  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]
import os

__all__ = ["main"]

# As for all commands: see `aiosmrt.cli.app`.
_INTERRUPTED = 130


def main() -> int:
    """Run the command, and return its exit code."""
    try:
        # A caller may have it ignored, as shells do for what they run in the background.
        handles = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
        if handles:
            _signal.signal(_signal.SIGINT, _end)
        from aiosmrt.cli import main as command

        try:  # noqa: SIM105 (contextlib is one more import)
            import aiosmrt.cli.app  # noqa: F401 (imported here, as long as a signal ends it all)
        except ImportError:
            # The command says what is missing.
            pass
        if handles:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        code = command()
        if handles:
            # What is left is the interpreter's end, which would print a traceback as well.
            _signal.signal(_signal.SIGINT, _end)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _end(number: int, frame: object) -> None:
    """End the process at once: nothing has begun, or all is done. An exception may be lost in an import."""
    os._exit(_INTERRUPTED)
