"""What runs from a start to a stop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from aiosmrt._one_process import OneProcess

__all__ = ["Startable"]


class Startable(OneProcess, ABC):
    """Runs from `start` to `stop`, or as long as an ``async with`` block."""

    _instead = "start one in each process, or pass its URL on"

    @abstractmethod
    async def start(self) -> None:
        """Start it, and return when it is ready."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop it, and return when it has ended."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()
