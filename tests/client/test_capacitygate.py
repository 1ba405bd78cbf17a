"""The gate: who probes and who waits, cancellation at every moment, and a model of the whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiosmrt.capacitygate import CapacityGate, Target, Turn
from tests.support.virtual_time import VirtualTime

TARGET: Target = ("llm", "adapter", None)


async def settle() -> None:
    """Let every task run as far as it can: a turn that is given wakes its task in the next one of the loop."""
    for _ in range(4):
        await asyncio.sleep(0)


async def line_up(gate: CapacityGate, count: int, time: VirtualTime, seconds: float = 60.0) -> list[asyncio.Task[Turn]]:
    """Start ``count`` waiters, in order."""
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(gate.wait(object(), seconds, time.call_later)))
        await settle()
    return tasks


@pytest.fixture
def gates() -> dict[Target, CapacityGate]:
    return {}


@pytest.fixture
def gate(gates: dict[Target, CapacityGate]) -> CapacityGate:
    gate = CapacityGate(gates, TARGET)
    gate.refused({"Error": {}}, 100.0, 1.0)
    return gate


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


async def test_opening_wakes_all_and_removes_the_gate(
    gates: dict[Target, CapacityGate], gate: CapacityGate, time: VirtualTime
) -> None:
    assert gates == {TARGET: gate}
    assert gate.closed
    waiters = await line_up(gate, 3, time)
    assert repr(gate) == "<CapacityGate closed waiting=3>"
    gate.open()
    assert not gate.closed
    assert gates == {}
    assert await asyncio.gather(*waiters) == ["go"] * 3
    assert time.pending == []
    assert repr(gate) == "<CapacityGate open waiting=0>"


async def test_an_open_gate_leaves_its_successor_alone(gates: dict[Target, CapacityGate], gate: CapacityGate) -> None:
    gate.open()
    successor = CapacityGate(gates, TARGET)
    gate.open()
    gate.pass_on()
    assert not gate.closed
    assert successor.closed
    assert gates == {TARGET: successor}


async def test_the_probers_part_goes_down_the_line(
    gates: dict[Target, CapacityGate], gate: CapacityGate, time: VirtualTime
) -> None:
    first, second = await line_up(gate, 2, time)
    gate.pass_on()
    assert await first == "probe"
    assert not second.done()
    gate.pass_on()
    assert await second == "probe"
    assert gate.closed
    gate.pass_on()
    assert gates == {}, "with nobody to probe there is no gate"


async def test_the_next_prober_goes_on_with_the_pause(gate: CapacityGate, time: VirtualTime) -> None:
    gate.refused({}, 110.0, 1.0)
    (waiter,) = await line_up(gate, 1, time)
    assert gate.next_probe(200.0) == 112.0
    gate.pass_on()
    assert await waiter == "probe"
    assert gate.next_probe(200.0) == 112.0


async def test_time_runs_out_for_each(gate: CapacityGate, time: VirtualTime) -> None:
    (patient,) = await line_up(gate, 1, time, 60.0)
    (hurried,) = await line_up(gate, 1, time, 2.0)
    assert time.pending == [2.0, 60.0]
    await time.pass_by(2.0)
    assert await hurried == "late"
    assert not patient.done()
    gate.pass_on()
    assert await patient == "probe"
    assert time.pending == []


async def test_a_visitor_can_be_dismissed(gate: CapacityGate, time: VirtualTime) -> None:
    visitor = object()
    gate.dismiss(visitor)
    waiter = asyncio.create_task(gate.wait(visitor, 60.0, time.call_later))
    await settle()
    gate.dismiss(visitor)
    gate.dismiss(visitor)
    assert await waiter == "late"
    assert time.pending == []


async def test_a_cancelled_waiter_leaves_the_line(gate: CapacityGate, time: VirtualTime) -> None:
    first, second, third = await line_up(gate, 3, time)
    second.cancel()
    await settle()
    assert second.cancelled()
    assert repr(gate) == "<CapacityGate closed waiting=2>"
    gate.pass_on()
    assert await first == "probe"
    gate.pass_on()
    assert await third == "probe"
    assert time.pending == []


@pytest.mark.parametrize("cancel_first", [False, True], ids=["given then cancelled", "cancelled then given"])
async def test_a_part_that_meets_a_cancellation_is_passed_on(
    gate: CapacityGate, time: VirtualTime, cancel_first: bool
) -> None:
    first, second = await line_up(gate, 2, time)
    steps: list[Callable[[], object]] = [gate.pass_on, first.cancel]
    if cancel_first:
        steps.reverse()
    for step in steps:
        step()
    await settle()
    assert first.cancelled()
    assert await second == "probe"


@pytest.mark.parametrize("turn", ["go", "late"])
async def test_a_cancellation_that_meets_another_turn_hands_nothing_on(
    gate: CapacityGate, time: VirtualTime, turn: str
) -> None:
    visitor = object()
    waiter = asyncio.create_task(gate.wait(visitor, 60.0, time.call_later))
    await settle()
    (other,) = await line_up(gate, 1, time)
    gate.open() if turn == "go" else gate.dismiss(visitor)
    waiter.cancel()
    await settle()
    assert waiter.cancelled()
    assert (await other == "go") if turn == "go" else not other.done()
    gate.open()
    await settle()


async def test_the_gate_goes_when_everybody_is_cancelled_together(
    gates: dict[Target, CapacityGate], gate: CapacityGate, time: VirtualTime
) -> None:
    waiters = await line_up(gate, 3, time)
    gate.pass_on()
    for waiter in waiters:
        waiter.cancel()
    await asyncio.wait(waiters)
    assert gates == {}
    assert time.pending == []


async def test_a_wait_that_is_thrown_away_passes_its_part_on(gate: CapacityGate, time: VirtualTime) -> None:
    """As by a loop that is closed over pending tasks."""
    abandoned = gate.wait(object(), 60.0, time.call_later)
    given = gate.wait(object(), 60.0, time.call_later)
    for wait in (abandoned, given):
        wait.send(None)
    (other,) = await line_up(gate, 1, time)
    abandoned.close()
    gate.pass_on()
    given.close()
    assert await other == "probe"
    assert time.pending == []


class GateMachine(RuleBasedStateMachine):
    """Any interleaving of arrivals, cancellations, late ones, refusals and openings against a list.

    ``turn`` lets the loop run; without it several events meet in one turn, which is where parts get lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.gates: dict[Target, CapacityGate] = {}
        self.timers = self.loop.run_until_complete(self._timers())
        self.line: list[tuple[object, asyncio.Task[None]]] = []
        self.probers: list[object] = []

    async def _timers(self) -> VirtualTime:
        return VirtualTime()

    async def _call(self, visitor: object) -> None:
        gate = self.gates.get(TARGET)
        if gate is None:
            CapacityGate(self.gates, TARGET).refused({}, 0.0, 0.0)
            self.probers.append(visitor)
        elif await gate.wait(visitor, 60.0, self.timers.call_later) == "probe":
            self.probers.append(visitor)

    def _run(self) -> None:
        self.loop.run_until_complete(settle())
        self.line = [(visitor, task) for visitor, task in self.line if not task.done()]

    @rule()
    def arrive(self) -> None:
        visitor = object()
        self.line.append((visitor, self.loop.create_task(self._call(visitor))))

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.line))[1].cancel()

    @precondition(lambda self: self.line and self.gates)
    @rule(data=st.data())
    def run_out_of_time(self, data: st.DataObject) -> None:
        self.gates[TARGET].dismiss(data.draw(st.sampled_from(self.line))[0])

    @precondition(lambda self: self.probers)
    @rule()
    def prober_leaves(self) -> None:
        self.probers.pop()
        self.gates[TARGET].pass_on()

    @precondition(lambda self: self.probers)
    @rule()
    def prober_succeeds(self) -> None:
        self.probers.pop()
        self.gates[TARGET].open()

    @rule()
    def turn(self) -> None:
        self._run()
        assert len(self.probers) == len(self.gates), "a closed gate has a prober, an open one none"
        assert self.gates or not self.line, "nobody waits at an open gate"
        assert len(self.timers.pending) == len(self.line)

    @invariant()
    def one_prober(self) -> None:
        assert len(self.probers) <= 1

    def teardown(self) -> None:
        self._run()
        while self.probers:
            self.prober_leaves()
            self._run()
        assert (self.line, self.gates, self.timers.pending) == ([], {}, [])
        self.loop.close()


TestGateMachine = GateMachine.TestCase
