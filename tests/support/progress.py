"""When something that could go on and on stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Looks in a row without any progress; nothing in the tests needs as many steps to go on.
LOOKS = 20


async def stands_still(progress: Callable[[], int]) -> int:
    """Wait until something makes no more progress, however slow it is.

    Each look goes to a thread and back, so that the loop has asked the system for news of all its sockets before it.

    Args:
        progress: returns how far it has come.

    Returns:
        How far it came.
    """
    seen, looks = progress(), 0
    while looks < LOOKS:
        await asyncio.to_thread(_nothing)
        before, seen = seen, progress()
        looks = looks + 1 if seen == before else 0
    return seen


def _nothing() -> None:
    pass
