"""Types and small helpers of tests that make clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from aiosmrt import Client

MakeClient: TypeAlias = Callable[..., Client]


async def no_sleep(seconds: float) -> None:
    """A back-off that takes one turn of the event loop."""
    await asyncio.sleep(0)
