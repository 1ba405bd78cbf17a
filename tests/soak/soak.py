"""Many calls, a few of which go wrong: each gets its own answer, none hangs, and in the end nothing is left.

    python -X dev -m tests.soak.soak --calls 200000

Calls are made by as many tasks as may be in flight, against a server in another process. Of every hundred, one
goes wrong: a reset or the connection's end in place of a response, a response that is cut off, silence that a short
read timeout ends, a caller that cancels, a stream that is left unread, a connection that the server closes after its
answer, while it is idle or just being used again. The call itself names which, so its outcome is known.

At the end, with the client closed, file descriptors and tasks are counted and memory is measured as they were before,
after a tenth of the calls with another client had filled the caches. Memory may have grown by `SLACK_BYTES`:
the allocator keeps what it had at the worst moment, whichever that was. Over 200,000 calls that is 20 bytes per call,
less than the smallest object. Over few calls it means nothing; the objects that the collector knows do, of which
`SLACK_OBJECTS` may be new.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import random
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiosmrt
from tests.soak.server import PARTS
from tests.support.peers import CLIENT_ARGUMENTS

SLACK_BYTES = 4 * 2**20
SLACK_OBJECTS = 500
# Looks in a row at what a process holds, all with the same result, after which it has settled.
SAME_LOOKS = 10

READ_TIMEOUT = 0.2
# A call that takes longer hangs: the longest proper one lasts for a read timeout and some turns of the loop.
HANGS_AFTER = 60.0

FAULTS = ("reset", "fin", "truncate", "stall", "cancel", "leave", "close-idle")
WELL = ("plain", "chunks", "stream")

# How each kind of call may end. A call that is cancelled may have its answer by then.
OUTCOMES: dict[str, set[str]] = {
    "plain": {"answer"},
    "chunks": {"answer"},
    "stream": {"answer"},
    "close-idle": {"answer"},
    "leave": {"answer"},
    "cancel": {"answer", "CancelledError"},
    "reset": {"ConnectionClosedError"},
    "fin": {"ConnectionClosedError"},
    "truncate": {"ConnectionClosedError", "ResponseStreamingError"},
    "stall": {"ReadTimeoutError"},
}


class State(NamedTuple):
    """What a process holds."""

    descriptors: int
    tasks: int
    objects: int
    memory: int

    @classmethod
    async def now(cls) -> State:
        """What is held now, garbage aside."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        return cls(descriptors, len(asyncio.all_tasks()), len(gc.get_objects()), pages * os.sysconf("SC_PAGE_SIZE"))

    @classmethod
    async def settled(cls) -> State:
        """What is held when it has stopped falling: what is being closed needs some turns of the loop for it."""
        least, same = await cls.now(), 0
        while same < SAME_LOOKS:
            await asyncio.sleep(0.01)
            state = await cls.now()
            fallen = state.descriptors < least.descriptors or state.tasks < least.tasks or state.objects < least.objects
            least, same = state, 0 if fallen else same + 1
        return least


class Soak:
    """A run of calls.

    Args:
        url: the server's.
        transport: what carries the calls.
        faults: the share of calls that go wrong.
        seed: of the choice which.
    """

    def __init__(self, url: str, transport: Literal["pooled", "session"], faults: float, seed: int) -> None:
        self._url = url
        self._transport = transport
        self._faults = faults
        self._chance = random.Random(seed)
        self.ended: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self.connections = 0

    async def run(self, calls: int, in_flight: int) -> None:
        """Make calls with a client that is closed in the end."""
        async with aiosmrt.Client(
            endpoint_url=self._url,
            max_concurrency=in_flight,
            retry=aiosmrt.RetryPolicy(max_attempts=1),
            transport=self._transport,
            **CLIENT_ARGUMENTS,
        ) as client:
            impatient = client.with_options(read_timeout=READ_TIMEOUT)
            numbers = iter(range(calls))

            async def work() -> None:
                for number in numbers:
                    verb = self._chance.choice(FAULTS if self._chance.random() < self._faults else WELL)
                    await self._call(impatient if verb == "stall" else client, number, verb)

            await asyncio.gather(*(work() for _ in range(in_flight)))
            counted = await client.invoke_endpoint(EndpointName="soak", Body=b"0 count")
            self.connections = int(await counted["Body"].read())

    async def _call(self, client: aiosmrt.Client, number: int, verb: str) -> None:
        task = asyncio.ensure_future(self._answer(client, b"%d" % number, verb))
        if verb == "cancel":
            for _ in range(self._chance.randrange(8)):
                await asyncio.sleep(0)
            task.cancel()
        done, _ = await asyncio.wait([task], timeout=HANGS_AFTER)
        if not done:
            self.wrong.append(f"call {number} ({verb}) hangs: {task.get_stack()}")
            task.cancel()
            return
        if task.cancelled():
            ended = "CancelledError"
        elif (error := task.exception()) is not None:
            ended = type(error).__name__
        else:
            ended = "answer" if task.result().rstrip() == b"%d" % number else "another's answer"
        self.ended[verb, ended] += 1
        if ended in OUTCOMES[verb]:
            return
        if self._transport == "session" and ended == "ConnectionClosedError":
            # aiohttp never resends a POST: a call on a connection that was just being closed ends like this.
            return
        self.wrong.append(f"call {number} ({verb}) ended with {ended}: {task!r:.500}")

    async def _answer(self, client: aiosmrt.Client, number: bytes, verb: str) -> bytes:
        body = b"%b %b" % (number, verb.encode())
        if verb not in ("stream", "leave"):
            result = await client.invoke_endpoint(EndpointName="soak", Body=body)
            received: bytes = await result["Body"].read()
            return received
        response = await client.invoke_endpoint_with_response_stream(EndpointName="soak", Body=body)
        parts: list[Any] = []
        async with response["Body"] as events:
            async for event in events:
                parts.append(event["PayloadPart"]["Bytes"])
                if verb == "leave":
                    return parts[0]  # type: ignore[no-any-return]
        return number if parts == [number] * PARTS else b"".join(parts)


@contextmanager
def serving() -> Iterator[str]:
    """Run the server in another process; yield its URL."""
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(
        [sys.executable, "-m", "tests.soak.server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.stdin.close()


async def soak(arguments: argparse.Namespace, url: str) -> list[str]:
    """Make the calls, print their outcomes, and return what is wrong."""
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(f"asyncio complains: {context}"))
    sys.unraisablehook = lambda raised: complaints.append(f"unraisable: {raised.exc_value!r} in {raised.object!r}")

    warming = Soak(url, arguments.transport, arguments.faults, seed=1)
    await warming.run(max(arguments.calls // 10, 1000), arguments.in_flight)
    before = await State.settled()
    began = time.perf_counter()
    measured = Soak(url, arguments.transport, arguments.faults, seed=2)
    await measured.run(arguments.calls, arguments.in_flight)
    seconds = time.perf_counter() - began
    after = await State.settled()

    print(f"{'call':<12} {'ended with':<24} {'calls':>8}")
    for (verb, ended), count in sorted(measured.ended.items()):
        print(f"{verb:<12} {ended:<24} {count:>8}")
    made = measured.connections - warming.connections
    print(f"\n{arguments.calls} calls in {seconds:.1f} s over {made} connections\n")
    print(f"{'':<12} {'before':>12} {'after':>12} {'allowed':>12}")
    wrong = warming.wrong + measured.wrong + complaints
    allowed = State(before.descriptors, before.tasks, before.objects + SLACK_OBJECTS, before.memory + SLACK_BYTES)
    for name, first, last, most in zip(State._fields, before, after, allowed, strict=True):
        print(f"{name:<12} {first:>12} {last:>12} {most:>12}")
        if last > most:
            wrong.append(f"{name}: {first} before and {last} after")
    if sum(measured.ended.values()) != arguments.calls:
        wrong.append("some calls did not end")
    return wrong


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--faults", type=float, default=0.01, help="share of the calls that go wrong")
    parser.add_argument("--transport", choices=["pooled", "session"], default="pooled")
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    # Slow callbacks are expected under -X dev.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with serving() as url:
        wrong = asyncio.run(soak(arguments, url))
    for what in wrong[:20]:
        print(f"WRONG: {what}")
    print("ok" if not wrong else f"{len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
