"""Where a response's body goes: a file, standard output, or whatever else a path names.

A whole body replaces the file at once (a new file beside it, then a rename), so that nobody reads half of it and an old
one survives a failure. The parts of a stream are to be seen as they come, so they go into the file itself; it is opened
before the call, emptied when the response has begun, and on a failure it keeps the parts that came. Both open what
they write to before the call: a path that cannot be written should not cost an inference.
"""

from __future__ import annotations

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
    """A context manager around one response body's destination.

    Args:
        path: the file; ``-`` for standard output. Devices, pipes and the like are written to as they are.
        whole: whether the body is written at once.

    Raises:
        OSError: on entering, when it cannot be written.
    """

    def __init__(self, path: str, *, whole: bool) -> None:
        self._path = path
        self._whole = whole
        self._target = Path(os.path.realpath(path))
        self._temporary: Path | None = None
        self._created = False
        self._begun = False
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
        elif self._whole and (temporary := self._open_beside(mode)) is not None:
            self._file = temporary
        else:
            self._file = self._target.open("ab", buffering=0)
        return self

    def _open_beside(self, mode: int | None) -> BinaryIO | None:
        """A new file in the same folder; None where the folder allows none but the file itself can be written."""
        path = self._target.with_name(f".{self._target.name}.{secrets.token_hex(4)}")
        if mode is not None and not os.access(self._target, os.W_OK):
            raise PermissionError(f"[Errno 13] Permission denied: '{self._path}'")
        try:
            file = path.open("xb", buffering=0)
        except PermissionError:
            if mode is None:
                raise
            return None
        self._temporary = path
        if mode is not None:
            os.fchmod(file.fileno(), stat.S_IMODE(mode))
        return file

    def begin(self) -> None:
        """The response is there: what the file held before gives way."""
        if not self._begun and self._path != STANDARD_OUTPUT and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.truncate(0)
        self._begun = True

    def write(self, data: bytes) -> None:
        """Write all of it, to be seen at once."""
        self.begin()
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
        elif error is not None and self._created and not self._begun:
            self._target.unlink()
