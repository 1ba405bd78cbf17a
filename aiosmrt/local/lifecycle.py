"""What runs from a start to a stop."""

from __future__ import annotations

from typing import Self

__all__ = ["Startable"]


class Startable:
    """Runs from `start` to `stop`, or as long as an ``async with`` block."""

    async def start(self) -> None:
        """Start it, and return when it is ready."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop it, and return when it has ended."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()
