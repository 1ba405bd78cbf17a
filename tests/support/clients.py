"""What the fixtures that make clients are, for annotations, and small helpers of their tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from aiosmrt import Client

MakeClient: TypeAlias = Callable[..., Client]
# Starts a local runtime with the models given by keyword and returns a client for it.
Serve: TypeAlias = Callable[..., Awaitable[Client]]


async def no_sleep(seconds: float) -> None:
    """A back-off that takes one turn of the event loop."""
    await asyncio.sleep(0)
