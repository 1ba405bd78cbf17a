"""What a call has left behind."""

from __future__ import annotations

import asyncio

import aiosmrt
from tests.support import seams
from tests.support.raw_server import RawServer
from tests.support.seams import connections_idle, connections_in_use


async def nothing_is_held(client: aiosmrt.Client, server: RawServer) -> None:
    """After a call of any outcome, no slot, connection or task is held, and no call is held back."""
    statistics = client.statistics()
    assert (statistics.in_use, statistics.waiting) == (0, 0)
    assert not any(endpoint.held_back for endpoint in statistics.endpoints.values())
    if (transport := seams.transport_of(client)) is not None:
        assert connections_in_use(transport) == 0
        # What the client has given up, the server sees end; and no late request of it comes in after this.
        await server.until(lambda: server.connections_open <= connections_idle(transport))
    ours = {asyncio.current_task(), *server.tasks}
    # A task that is being cancelled needs the loop's turns to end; one that is at work would need more than these.
    for _ in range(20):
        left = [task for task in asyncio.all_tasks() if task not in ours]
        if not left:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"tasks were left: {left}")
