"""What belongs to one process: connections, tasks, secrets."""

from __future__ import annotations

from typing import ClassVar, NoReturn

__all__ = ["OneProcess"]


class OneProcess:
    """The base of objects that can be neither pickled nor copied.

    Pickled, some would carry secrets; the others fail at the first member that cannot be pickled, with an error
    that does not help.
    """

    __slots__ = ()

    _instead: ClassVar[str] = "make a client in each process"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} objects cannot be pickled or copied: {self._instead}")
