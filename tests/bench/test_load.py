"""Load tests in virtual time: a service of known capacity, and what is measured of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from aiosmrt.bench.load import LoadTest, Plan
from aiosmrt.bench.steps import UNFINISHED, LoadReport, Step
from aiosmrt.errors import AiosmrtError, ClientStateError, ParamValidationError
from tests.support.virtual_time import VirtualTime


class Service:
    """Works on a number of calls at a time; the others queue."""

    def __init__(self, capacity: int, seconds: float) -> None:
        self._slots = asyncio.Semaphore(capacity)
        self._seconds = seconds
        self.bodies: list[bytes] = []
        self.error: Exception | None = None
        self.parts = 0
        self.hangs = False

    async def __call__(self, body: bytes, on_part: Callable[[], None]) -> None:
        self.bodies.append(body)
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        async with self._slots:
            for _ in range(self.parts):
                await asyncio.sleep(self._seconds)
                on_part()
            if not self.parts:
                await asyncio.sleep(self._seconds)
        if self.error is not None:
            raise self.error


async def measured(time: VirtualTime, service: Service, **plan: Any) -> LoadReport:
    numbers = random.Random(13)
    test = LoadTest(service, [b"1", b"2", b"3"], Plan(**plan), random=numbers.random)
    return await time.run(asyncio.ensure_future(test.run()), lambda: False)


async def test_a_closed_model_finds_the_capacity(virtual_time: VirtualTime) -> None:
    report = await measured(virtual_time, Service(8, 0.1), model="closed", loads=[1, 2, 4, 8, 16, 32, 64])
    assert [step.load for step in report.steps] == [1, 2, 4, 8, 16, 32]
    # The last call of a caller may end a hair after the step.
    assert [step.throughput for step in report.steps] == pytest.approx([10, 20, 40, 80, 80, 80], rel=0.02)
    assert [round(step.latency.percentile(50), 2) for step in report.steps] == [0.1, 0.1, 0.1, 0.1, 0.2, 0.4]
    assert report.knee is report.steps[3]
    assert report.stopped is not None
    assert report.finished


async def test_an_open_model_sees_the_queue_that_a_closed_one_hides(virtual_time: VirtualTime) -> None:
    """Coordinated omission: a service that answers in 0.1 s, but stands still for 2 s of 10."""

    class Pausing(Service):
        async def __call__(self, body: bytes, on_part: Callable[[], None]) -> None:
            into = (virtual_time.now - 1000.0) % 10
            if into < 2:
                await asyncio.sleep(2 - into)
            await super().__call__(body, on_part)

    plan = {"warm_up": 0.0, "seconds": 10.0, "stops": False}
    closed = await measured(virtual_time, Pausing(1000, 0.1), model="closed", loads=[1], **plan)
    assert closed.steps[0].latency.percentile(95) == pytest.approx(0.1, rel=0.01)
    virtual_time.now = 2000.0
    opened = await measured(virtual_time, Pausing(1000, 0.1), model="open", loads=[10.0], kind="constant", **plan)
    # A fifth of the calls came while it stood still.
    assert opened.steps[0].latency.percentile(95) == pytest.approx(1.6, abs=0.15)


async def test_latency_counts_from_the_intended_start_even_if_the_test_itself_is_late(
    virtual_time: VirtualTime,
) -> None:
    class Blocking(Service):
        """Blocks the loop for a second, as a busy machine does."""

        async def __call__(self, body: bytes, on_part: Callable[[], None]) -> None:
            if not self.bodies:
                virtual_time.now += 1.0
            await super().__call__(body, on_part)

    plan = {"model": "open", "loads": [10.0], "kind": "constant", "warm_up": 0.0, "seconds": 3.0}
    (step,) = (await measured(virtual_time, Blocking(1000, 0.1), **plan)).steps
    assert step.sent == 30
    assert step.lateness.maximum == pytest.approx(0.9, abs=0.01)
    assert step.latency.maximum == pytest.approx(1.1, abs=0.01)


async def test_an_open_model_ends_when_it_is_over_saturated(virtual_time: VirtualTime) -> None:
    report = await measured(
        virtual_time, Service(10, 0.1), model="open", loads=[20.0, 50.0, 200.0, 400.0], seconds=20.0
    )
    assert [step.load for step in report.steps] == [20.0, 50.0, 200.0]
    assert report.stopped is not None
    assert "faster than they were answered" in report.stopped
    # Those that queued are waited for, and counted.
    last = report.steps[-1]
    assert (last.failed, last.succeeded) == (0, last.sent)
    assert last.throughput == pytest.approx(100, rel=0.02)
    assert last.latency.maximum > 10


async def test_calls_in_flight_are_bounded(virtual_time: VirtualTime) -> None:
    plan = {"model": "open", "loads": [100.0], "max_in_flight": 50, "warm_up": 0.0, "kind": "constant"}
    report = await measured(virtual_time, Service(1, 1.0), **plan)
    (step,) = report.steps
    assert (step.overflowed, step.in_flight_at_end) == (True, 50)
    assert report.knee is None
    assert step.seconds < 1
    assert report.stopped == "too many calls were in flight at once: 50"


async def test_calls_that_come_in_a_burst_are_all_in_flight(virtual_time: VirtualTime) -> None:
    plan = {"model": "open", "loads": [1e9], "max_in_flight": 50, "warm_up": 0.0, "kind": "constant"}
    report = await measured(virtual_time, Service(1, 1.0), **plan)
    assert report.stopped == "too many calls were in flight at once: 50"


async def test_goodput_counts_what_is_fast_enough(virtual_time: VirtualTime) -> None:
    plan = {"model": "closed", "warm_up": 0.0, "slo": 0.15}
    report = await measured(virtual_time, Service(4, 0.1), loads=[4, 8], **plan)
    four, eight = report.steps
    assert (round(four.throughput), round(four.goodput)) == (40, 40)
    # Only the first of them did not queue.
    assert (round(eight.throughput), eight.within_slo) == (40, 4)


async def test_what_never_ends_is_cancelled_and_counted(virtual_time: VirtualTime) -> None:
    service = Service(1, 0.1)
    service.hangs = True
    before = asyncio.all_tasks()
    report = await measured(virtual_time, service, model="closed", loads=[3], warm_up=0.0, grace=5.0)
    (step,) = report.steps
    assert (step.sent, step.succeeded, step.failures) == (3, 0, {UNFINISHED: 3})
    assert report.knee is None
    assert asyncio.all_tasks() == before


async def test_failures_by_cause(virtual_time: VirtualTime) -> None:
    service = Service(1, 0.5)
    service.error = AiosmrtError("not to be seen")
    (step,) = (await measured(virtual_time, service, model="closed", loads=[1], warm_up=0.0)).steps
    assert step.failures == {"AiosmrtError": 20}
    assert step.latency.count == 0


@pytest.mark.parametrize("plan", [{"model": "closed", "loads": [4]}, {"model": "open", "loads": [50.0]}])
@pytest.mark.parametrize("error", [ClientStateError("closed"), ValueError("a fault of ours")])
async def test_an_error_that_every_call_would_meet_ends_the_test(
    virtual_time: VirtualTime, plan: dict[str, Any], error: Exception
) -> None:
    service = Service(10, 0.1)
    service.error = error
    before = asyncio.all_tasks()
    with pytest.raises(type(error)):
        await measured(virtual_time, service, **plan)
    assert len(service.bodies) <= 10
    assert asyncio.all_tasks() == before


async def test_streams(virtual_time: VirtualTime) -> None:
    service = Service(2, 0.1)
    service.parts = 5
    (step,) = (await measured(virtual_time, service, model="closed", loads=[2], warm_up=0.0)).steps
    assert step.first_part.count == step.succeeded == 40
    assert step.gaps.count == 4 * 40
    assert step.first_part.percentile(99) == pytest.approx(0.1, rel=0.01)
    assert step.latency.percentile(99) == pytest.approx(0.5, rel=0.01)


async def test_a_warm_up_does_not_count_and_bodies_take_turns(virtual_time: VirtualTime) -> None:
    service = Service(1, 0.1)
    steps: list[Step] = []
    test = LoadTest(service, [b"1", b"2"], Plan(model="closed", loads=[1], warm_up=1.0), on_step=steps.append)
    report = await virtual_time.run(asyncio.ensure_future(test.run()), lambda: False)
    assert report.steps == steps
    assert (report.steps[0].sent, len(service.bodies)) == (100, 110)
    assert service.bodies[:3] == [b"1", b"2", b"1"]


async def test_a_cancelled_test_holds_nothing_and_keeps_the_steps_that_are_over(virtual_time: VirtualTime) -> None:
    before = asyncio.all_tasks()
    test = LoadTest(Service(2, 0.1), [b""], Plan(model="closed", loads=[1, 2, 4], warm_up=0.0))
    running = asyncio.ensure_future(test.run())
    await asyncio.sleep(0)
    await virtual_time.advance(15.0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [step.load for step in test.report.steps] == [1]
    assert not test.report.finished
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(
    ("plan", "fault"),
    [
        ({"loads": []}, "loads must be numbers in ascending order"),
        ({"loads": [2, 1]}, "loads must be numbers in ascending order"),
        ({"loads": [1.5]}, "loads of a closed model must be integers"),
        ({"loads": [1], "seconds": 0.0}, "seconds must be at least"),
        ({"loads": [1], "slo": 0.0}, "slo must be a positive number"),
        ({"loads": [1], "max_in_flight": 0}, "max_in_flight must be an integer"),
        ({"loads": [0.0], "model": "open"}, "loads of an open model must be numbers > 0"),
        ({"loads": [1], "kind": "even"}, "kind must be"),
        ({"loads": [1], "model": "half-open"}, "model must be"),
    ],
)
def test_a_plan_that_cannot_be_carried_out(plan: dict[str, Any], fault: str) -> None:
    with pytest.raises(ParamValidationError, match=fault):
        Plan(**{"model": "closed", **plan})


async def test_no_bodies() -> None:
    with pytest.raises(ParamValidationError, match="at least one body"):
        LoadTest(Service(1, 0.1), [], Plan(model="closed", loads=[1]))
