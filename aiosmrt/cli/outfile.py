"""Where a response body is written: a file, standard output, or a device or pipe.

A complete body replaces the file atomically (a temporary file in the same directory, then a rename), so that readers
never see half of it and a failure keeps the old content. The parts of a stream are written as they arrive, so they go
into the file itself: it is opened before the call and truncated when the response starts, and a failure keeps the parts
written so far. Both open the file before the call, because a path that cannot be written must not cost an inference.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

__all__ = ["STANDARD_OUTPUT", "Outfile"]

STANDARD_OUTPUT = "-"


class Outfile:
    """A context manager for the destination of one response body.

    Args:
        path: the file; ``-`` for standard output. Devices and pipes are opened for writing.
        atomic: whether the body replaces the file atomically when the block ends without an exception.

    Raises (when entered):
        OSError: the file cannot be written.
    """

    def __init__(self, path: str, *, atomic: bool) -> None:
        self._path = path
        self._atomic = atomic
        self._target = Path(os.path.realpath(path))
        self._temporary: Path | None = None
        self._created = False
        self._started = False
        self._file: BinaryIO

    def __enter__(self) -> Self:
        if self._path == STANDARD_OUTPUT:
            self._file = sys.stdout.buffer
            return self
        try:
            mode = self._target.stat().st_mode
        except FileNotFoundError:
            mode = None
            self._created = True
        if mode is not None and not stat.S_ISREG(mode):
            self._file = Path(self._path).open("wb", buffering=0)
        elif self._atomic and (temporary := self._open_temporary(mode)) is not None:
            self._file = temporary
        else:
            self._file = self._target.open("ab", buffering=0)
        return self

    def _open_temporary(self, mode: int | None) -> BinaryIO | None:
        """Open a new file in the same directory, or return None if only the file itself can be written."""
        path = self._target.with_name(f".{self._target.name}.{secrets.token_hex(4)}")
        if mode is not None and not os.access(self._target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self._path)
        try:
            file = path.open("xb", buffering=0)
        except OSError as error:
            if mode is not None and isinstance(error, PermissionError):
                return None
            # The user knows the file, and not this one.
            error.filename = self._path
            raise
        self._temporary = path
        if mode is not None:
            os.fchmod(file.fileno(), stat.S_IMODE(mode))
        return file

    def start(self) -> None:
        """Truncate the file, as the response has started."""
        if not self._started and self._path != STANDARD_OUTPUT and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.truncate(0)
        self._started = True

    def write(self, data: bytes) -> None:
        """Write and flush data."""
        self.start()
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path == STANDARD_OUTPUT:
            return
        self._file.close()
        if self._temporary is not None:
            if error is None:
                self._temporary.replace(self._target)
            else:
                self._temporary.unlink()
        elif error is not None and self._created and not self._started:
            self._target.unlink()
