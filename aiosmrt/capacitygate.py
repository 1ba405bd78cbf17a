"""Who asks a target without capacity, and who waits for the answer: asyncio's side of `aiosmrt.policy.scaleout`.

A gate stands before one target, for as long as that has no capacity.  One call probes there: it sends its own request
again and again.  All others wait, in the order they came, and send nothing.  The invariants, at every suspension point:

1. A closed gate has exactly one prober.  Whoever closes it is the first one; when a prober leaves, the next in line
   takes its part in the same step, and where nobody is in line the gate is gone.
2. Nobody waits at an open gate: opening it wakes all.
3. A cancelled waiter leaves the line.  If it had been given the prober's part already (both met in one turn of the
   loop), the part is handed on.

All state changes are synchronous; the one ``await`` is on the waiter's own future.  A gate belongs to one event loop.

A `Visit` is a call's side of it: gates come and go, the visit knows the call's part and its time.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from aiosmrt.events import WaitOutcome
from aiosmrt.policy.scaleout import LET_IN_AFTER, ProbeSchedule

__all__ = ["CallLater", "CapacityGate", "Surroundings", "Target", "Timer", "Turn", "Visit"]

T = TypeVar("T")

Target: TypeAlias = tuple[str, str | None, str | None]
"""An endpoint's name, an inference component's and a variant's; None where a call names none."""

Turn: TypeAlias = Literal["go", "probe", "late"]
"""Why a wait is over: there is capacity, it is this call's turn to find out, its time is up."""


class Timer(Protocol):
    """What a `CallLater` gives."""

    def cancel(self) -> None:
        """Call nothing any more."""
        ...


CallLater: TypeAlias = Callable[..., Timer]
"""Calls a function with arguments after so many seconds, as ``loop.call_later``."""


class CapacityGate:
    """Hold the calls to one target back while it has no capacity.

    Whoever makes a gate is its prober, and calls `refused` at once.

    Args:
        gates: the closed gates by their targets; this one puts itself there and takes itself out when it opens.
        target: what it stands before.

    Example:
        >>> async def call(gates, name):
        ...     if (gate := gates.get(name)) is None:
        ...         gate = CapacityGate(gates, name)
        ...         gate.refused({}, now=0.0, rand=0.5)
        ...         await asyncio.sleep(0)  # in place of probes
        ...         gate.open()
        ...     else:
        ...         print(await gate.wait(object(), 60.0, asyncio.get_running_loop().call_later))
        >>> async def main():
        ...     gates = {}
        ...     await asyncio.gather(call(gates, ("llm", None, None)), call(gates, ("llm", None, None)))
        >>> asyncio.run(main())
        go
    """

    __slots__ = ("_gates", "_schedule", "_target", "_waiters", "refusal")

    def __init__(self, gates: dict[Target, "CapacityGate"], target: Target) -> None:
        self._gates = gates
        self._target = target
        self._schedule = ProbeSchedule()
        self._waiters: OrderedDict[object, asyncio.Future[Turn]] = OrderedDict()
        # the last one, as an error's response dictionary
        self.refusal: dict[str, Any] = {}
        gates[target] = self

    @property
    def closed(self) -> bool:
        """Whether it still stands."""
        return self._gates.get(self._target) is self

    def refused(self, response: dict[str, Any], now: float, rand: float, retry_after: float | None = None) -> None:
        """Note that the prober was refused; the times are those of `ProbeSchedule.refused`."""
        self.refusal = response
        self._schedule.refused(now, rand, retry_after)

    def next_probe(self, until: float) -> float | None:
        """When the prober sends its next request; see `ProbeSchedule.next_probe`."""
        return self._schedule.next_probe(until)

    def open(self) -> None:
        """Let everybody go on; may be called more than once."""
        if self.closed:
            del self._gates[self._target]
        while self._waiters:
            self._next("go")

    def pass_on(self) -> None:
        """Hand the prober's part to the next in line; without one, the gate is gone. An open one stays open."""
        while self._waiters:
            if self._next("probe"):
                return
        self.open()

    async def wait(self, visitor: object, seconds: float, call_later: CallLater) -> Turn:
        """Wait in line until the gate opens, or until it is the visitor's turn to probe.

        When the wait is cancelled, the visitor has neither a part nor a place in line.

        Args:
            visitor: who waits, by identity.
            seconds: for how long at most.
            call_later: the loop's.
        """
        waiter: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self._waiters[visitor] = waiter
        timer = call_later(seconds, self.dismiss, visitor)
        try:
            return await waiter
        except BaseException:
            in_line = self._waiters.pop(visitor, None) is not None
            if not in_line and not waiter.cancelled() and waiter.result() == "probe":
                self.pass_on()
            raise
        finally:
            timer.cancel()

    def dismiss(self, visitor: object) -> None:
        """End a visitor's wait, if it waits."""
        waiter = self._waiters.pop(visitor, None)
        if waiter is not None and not waiter.done():
            waiter.set_result("late")

    def _next(self, turn: Turn) -> bool:
        _, waiter = self._waiters.popitem(last=False)
        # A cancelled waiter stays in line until its task has run once more.
        if waiter.done():
            return False
        waiter.set_result(turn)
        return True

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<CapacityGate {state} waiting={sum(not waiter.done() for waiter in self._waiters.values())}>"


class Surroundings(Protocol):
    """What a `Visit` needs of the client."""

    gates: dict[Target, CapacityGate]
    closed: bool
    clock: Callable[[], float]
    random: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    call_later: CallLater


class Visit:
    """One call's waits for capacity: at which gate, in which part, and how much of its time is left.

    Args:
        client: closed gates, clock and timers.
        target: what the call is for.
        seconds: how long it may wait in all.
        on_end: is told how long each wait was, in seconds, and how it ended.
    """

    __slots__ = ("_client", "_gate", "_left", "_on_end", "_probes", "_since", "_target")

    def __init__(
        self, client: Surroundings, target: Target, seconds: float, on_end: Callable[[float, WaitOutcome], object]
    ) -> None:
        self._client = client
        self._target = target
        self._left = seconds
        self._on_end = on_end
        self._gate: CapacityGate | None = None
        self._probes = False
        # when the wait began that is under way; it goes on through probes
        self._since: float | None = None

    @property
    def gate(self) -> CapacityGate | None:
        """Where it waits or probes; None while it does not."""
        return self._gate

    def gate_ahead(self) -> CapacityGate | None:
        """The closed gate at which the call has to wait; a prober passes its own."""
        gate = self._client.gates.get(self._target)
        return None if self._probes and gate is self._gate else gate

    def refused(self, response: dict[str, Any], retry_after: float | None) -> CapacityGate:
        """Find or make the gate for a call that was refused.

        Args:
            response: the error's dictionary.
            retry_after: the service's hint in seconds; None when it gave none.
        """
        client = self._client
        gate = self._gate if self._probes else None
        if gate is None or not gate.closed:
            self._probes = False
            gate = client.gates.get(self._target)
            if gate is not None:
                return gate
            self._gate = gate = CapacityGate(client.gates, self._target)
            self._probes = True
        gate.refused(response, client.clock(), client.random(), retry_after)
        return gate

    async def wait(self, gate: CapacityGate) -> bool:
        """Wait until the gate opens, or until the next probe is due where it is this call's part to probe.

        Returns:
            False when the call's time is up, or when it was dismissed.
        """
        client = self._client
        if self._since is None:
            self._since = client.clock()
        until = self._since + self._left
        if not (self._probes and gate is self._gate):
            self._gate = gate
            self._probes = False
            turn = await gate.wait(self, until - client.clock(), client.call_later)
            self._probes = turn == "probe"
            if turn == "late":
                self._stop("timeout")
                return False
            if turn == "go":
                self.end()
                return True
        probe_at = gate.next_probe(until)
        pause = (until if probe_at is None else probe_at) - client.clock()
        if pause > 0:
            await client.sleep(pause)
        if probe_at is not None or client.closed:
            return True
        self._stop("timeout")
        return False

    async def answer(self, answer: Awaitable[T]) -> T:
        """Await the answer to the call's request; if it is a probe, the others go on once it must have been let in."""
        if self._gate is None:
            return await answer
        timer = self._client.call_later(LET_IN_AFTER, self._gate.open)
        try:
            return await answer
        finally:
            timer.cancel()

    def end(self) -> None:
        """Go on, as there is capacity or no sense in waiting for it, and let the others go on if this is the prober."""
        gate, self._gate = self._gate, None
        if gate is not None and self._probes:
            gate.open()
        self._probes = False
        self._stop("abandoned" if self._client.closed else "capacity")

    def leave(self) -> None:
        """Wait no more, and hand the prober's part on; may be called more than once."""
        self._stop("abandoned")
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.dismiss(self)
            if self._probes:
                gate.pass_on()
        self._probes = False

    def _stop(self, outcome: WaitOutcome) -> None:
        if self._since is not None:
            duration = self._client.clock() - self._since
            self._since = None
            self._left -= duration
            self._on_end(duration, outcome)
