"""`LoadTest`: makes the calls of a load test, and measures them.

A step is over when its time is. Calls that are still in flight then are waited for, because those are the slow ones:
figures without them would look better than the service is. The time for that is limited, and what is cancelled at its
end counts as a failure.
"""

from __future__ import annotations

import asyncio
import math
import random as random_numbers
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from aiosmrt._core.outcome import concerns_every_call
from aiosmrt.bench.arrivals import Arrivals, arrivals
from aiosmrt.bench.steps import UNFINISHED, LoadReport, Model, Step, knee, over_saturation
from aiosmrt.config import RetryPolicy, is_whole, shown
from aiosmrt.errors import AiosmrtError, ParamValidationError, ServiceError

if TYPE_CHECKING:
    from aiosmrt.client import Client

__all__ = ["LoadTest", "Plan", "Send", "cause_of", "sender", "unaided"]

Send: TypeAlias = Callable[[bytes, Callable[[], None]], Awaitable[None]]
"""Makes a call with a body, and calls a function for each part of its stream."""

# An arrival that is late lets the tasks of others run after so many.
_BURST: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a load test does.

    Args:
        model: ``"closed"``: a number of callers, each of which calls again when it has an answer. ``"open"``: calls
            come at a rate, whatever the service does.
        loads: the steps: numbers of callers, or calls per second; in ascending order.
        seconds: how long each step takes.
        warm_up: seconds under each load, before its step, that do not count: they open connections.
        slo: the seconds within which a call is good; None if all are.
        kind: when calls come in an open model.
        max_in_flight: calls in flight that end an open model's step.
        grace: seconds for which calls in flight at the end of a step are waited for.
        stops: whether to stop when the service is over-saturated.

    Raises:
        ParamValidationError: a value is out of its range.
    """

    model: Model
    loads: Sequence[float]
    seconds: float = 10.0
    warm_up: float = 2.0
    slo: float | None = None
    kind: Arrivals = "poisson"
    max_in_flight: int = 10_000
    grace: float = 70.0
    stops: bool = True

    def __post_init__(self) -> None:
        faults = []
        if self.model not in ("closed", "open"):
            faults.append(f"model must be 'closed' or 'open'; got {shown(self.model)}")
        if not self.loads or any(later <= earlier for earlier, later in zip(self.loads, self.loads[1:], strict=False)):
            faults.append("loads must be numbers in ascending order, at least one")
        if self.model == "closed" and not all(is_whole(load, 1) for load in self.loads):
            faults.append("loads of a closed model must be integers >= 1")
        if self.model == "open" and not all(0 < load < math.inf for load in self.loads):
            faults.append("loads of an open model must be numbers > 0")
        for name, least in (("seconds", 1e-3), ("warm_up", 0.0), ("grace", 0.0)):
            if not least <= getattr(self, name) < math.inf:
                faults.append(f"{name} must be at least {least:g} seconds; got {shown(getattr(self, name))}")
        if self.slo is not None and not 0 < self.slo < math.inf:
            faults.append(f"slo must be a positive number of seconds, or None; got {shown(self.slo)}")
        if self.kind not in ("poisson", "constant"):
            faults.append(f"kind must be 'poisson' or 'constant'; got {shown(self.kind)}")
        if not is_whole(self.max_in_flight, 1):
            faults.append(f"max_in_flight must be an integer >= 1; got {shown(self.max_in_flight)}")
        if faults:
            raise ParamValidationError(faults)

    @property
    def concurrency(self) -> int:
        """Most calls in flight."""
        return self.max_in_flight if self.model == "open" else int(max(self.loads))


def unaided(client: Client, plan: Plan) -> Client:
    """A view on a client with which every call is one request, sent at once.

    The client's retries would hide failures, its patience outages, and its limit throttling.

    Args:
        client: the client.
        plan: how many calls will be in flight.
    """
    return client.with_options(
        # In a mode that counts attempts, nothing lowers the limit and no call waits for others.
        retry=RetryPolicy(mode="standard", max_attempts=1),
        max_concurrency=plan.concurrency,
        wait_for_capacity=None,
        max_waiting=None,
    )


def sender(client: Client, params: Mapping[str, Any], *, stream: bool = False) -> Send:
    """A function that makes a call and drops its answer.

    Args:
        client: makes the calls.
        params: their parameters under AWS's names, without the body.
        stream: whether they are response streams.
    """

    async def send(body: bytes, on_part: Callable[[], None]) -> None:
        await client.invoke_endpoint(**params, Body=body)

    async def send_streaming(body: bytes, on_part: Callable[[], None]) -> None:
        response = await client.invoke_endpoint_with_response_stream(**params, Body=body)
        async with response["Body"] as parts:
            async for _ in parts:
                on_part()

    return send_streaming if stream else send


def cause_of(error: AiosmrtError) -> str:
    """An error's class, with the status of a model's own error.

    >>> cause_of(AiosmrtError("a secret"))
    'AiosmrtError'
    """
    status = getattr(error, "original_status_code", None)
    if isinstance(error, ServiceError) and status:
        return f"{type(error).__name__} {status}"
    return type(error).__name__


class LoadTest:
    """One load test.

    Args:
        send: makes a call.
        bodies: the bodies of the calls, in turn.
        plan: what to do.
        on_step: called with each step that is over.
        random: random numbers in [0, 1), for the arrivals.

    Raises:
        ParamValidationError: ``bodies`` is empty.
    """

    def __init__(
        self,
        send: Send,
        bodies: Sequence[bytes],
        plan: Plan,
        *,
        on_step: Callable[[Step], object] | None = None,
        random: Callable[[], float] = random_numbers.random,
    ) -> None:
        if not bodies:
            raise ParamValidationError(["bodies must contain at least one body"])
        self._send = send
        self._bodies: Iterator[bytes] = cycle(bodies)
        self._plan = plan
        self._on_step = on_step
        self._random = random
        self.report: LoadReport = LoadReport()
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._in_flight = 0
        # An error that every further call would meet, or a fault of `send`; either ends the test.
        self._fatal: BaseException | None = None

    async def run(self) -> LoadReport:
        """Make all steps.

        Returns:
            What they came to. `report` has it after a cancellation as well, without the step that was cancelled.

        Raises:
            AiosmrtError: an error that every further call would meet, such as an endpoint that does not exist.
        """
        plan, report = self._plan, self.report
        report.finished = False
        try:
            for load in plan.loads:
                if plan.warm_up:
                    await self._step(load, plan.warm_up)
                step = await self._step(load, plan.seconds)
                report.steps.append(step)
                if self._on_step is not None:
                    self._on_step(step)
                if plan.stops and (reason := over_saturation(report.steps)) is not None:
                    report.stopped = reason
                    break
            report.finished = True
        finally:
            report.seconds = self._clock() - self._began
            report.knee = knee(report.steps)
        return report

    async def _step(self, load: float, seconds: float) -> Step:
        step = Step(model=self._plan.model, load=load)
        began = self._clock()
        tasks: set[asyncio.Task[None]] = set()
        midway = asyncio.get_running_loop().call_later(seconds / 2, self._note_midway, step)
        try:
            if self._plan.model == "closed":
                for _ in range(int(load)):
                    self._start(self._caller(step, began + seconds), tasks)
                await asyncio.wait([*tasks], timeout=seconds)
            else:
                await self._let_arrive(step, began, seconds, tasks)
            step.seconds = min(self._clock() - began, seconds)
            # Of an open model each is a call, some of them just about to begin.
            step.in_flight_at_end = len(tasks) if self._plan.model == "open" else self._in_flight
            if tasks and self._fatal is None:
                await asyncio.wait([*tasks], timeout=self._plan.grace)
        finally:
            midway.cancel()
            await _ended(tasks)
        if self._fatal is not None:
            failure, self._fatal = self._fatal, None
            raise failure
        return step

    def _start(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(partial(self._task_ended, tasks))

    def _task_ended(self, tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None and self._fatal is None:
            self._fatal = failure

    def _note_midway(self, step: Step) -> None:
        step.in_flight_midway = self._in_flight

    async def _caller(self, step: Step, end: float) -> None:
        while (now := self._clock()) < end and self._fatal is None:
            await self._call(step, now, end)

    async def _let_arrive(self, step: Step, began: float, seconds: float, tasks: set[asyncio.Task[None]]) -> None:
        plan, clock = self._plan, self._clock
        late = 0
        for offset in arrivals(plan.kind, step.load, seconds, self._random):
            meant = began + offset
            if (delay := meant - clock()) > 0:
                late = 0
                await asyncio.sleep(delay)
            elif (late := late + 1) % _BURST == 0:
                await asyncio.sleep(0)
            if self._fatal is not None:
                return
            if len(tasks) >= plan.max_in_flight:
                step.overflowed = True
                return
            step.lateness.add(clock() - meant)
            self._start(self._call(step, meant, began + seconds), tasks)
        if (left := began + seconds - clock()) > 0:
            await asyncio.sleep(left)

    async def _call(self, step: Step, meant: float, end: float) -> None:
        """Make one call.

        Args:
            step: takes its outcome.
            meant: when it was meant to begin.
            end: when the step ends.
        """
        clock = self._clock
        last: float | None = None

        def on_part() -> None:
            nonlocal last
            now = clock()
            if last is None:
                step.first_part.add(now - meant)
            else:
                step.gaps.add(now - last)
            last = now

        timeline = self.report.timeline
        step.sent += 1
        self._in_flight += 1
        timeline.see(clock() - self._began, in_flight=self._in_flight)
        cause: str | None = None
        try:
            await self._send(next(self._bodies), on_part)
        except AiosmrtError as error:
            cause = cause_of(error)
            if concerns_every_call(error):
                raise
            return
        except asyncio.CancelledError:
            cause = UNFINISHED
            raise
        finally:
            self._in_flight -= 1
            if cause is not None:
                step.failures[cause] += 1
                timeline.failed(clock() - self._began, cause)
        now = clock()
        seconds = now - meant
        is_good = self._plan.slo is None or seconds <= self._plan.slo
        step.succeeded += 1
        step.within_slo += is_good
        if now <= end:
            step.completed += 1
            step.good += is_good
        step.latency.add(seconds)
        timeline.succeeded(now - self._began, seconds)


async def _ended(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait for their ends whatever happens; a cancellation is passed on afterwards."""
    cancelled: asyncio.CancelledError | None = None
    for task in tasks:
        task.cancel()
    while tasks:
        try:
            await asyncio.wait([*tasks])
        except asyncio.CancelledError as again:
            cancelled = again
        # Their callbacks take them out.
        await asyncio.sleep(0)
    if cancelled is not None:
        raise cancelled
