"""Which rule finds the number of calls that a service can take? A seeded simulation in virtual time.

    python benchmarks/limiter_simulation.py [--rules adaptive,aimd,...] [--services ...] [--variants 4] [--seed 1]
                                            [--json FILE] [--plot FILE] [--bounds]

Nothing is sent and no clock is read: a `Loop` is a heap of events, a `Station` a service with workers and a queue, a
`SimulatedClient` calls that keep as many requests in flight as their rule allows. The client's other decisions (when a
target is ill, what a refusal counts) are the package's own `AdmissionState`, for all rules alike, so that the rules
differ in nothing else. A refused call keeps its slot for up to 0.25 s, unless the limit was lowered.

Every service is run with the all-knowing limit too: it is told the capacity at each moment. Figures are shares of its
figures in the same variant with the same seed, from `WARM_UP` seconds on. Variant 0 has the services as they are listed
in `SERVICES`; in the others every number is moved by up to 30 %.

Columns: ``goodput`` (successes), ``p95`` (round trips of successes), ``refused`` (refusals per success more than
`SETTLED` seconds after the last change), ``dropped`` (the same in the 10 s after an eightfold drop of capacity),
``up`` (seconds after which 90 % of a step up are in use), ``back`` (the same after an outage), ``Jain`` (the fairness
index of four clients in the last third of the run), ``start`` (seconds until 90 % of the capacity are in use).
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from aiosmrt._policy.adaptive import AdaptiveLimit
from aiosmrt._policy.limit import ConcurrencyLimit, WorkingLimit
from aiosmrt._policy.send_rate import SendRate
from aiosmrt._policy.target_health import AdmissionState
from aiosmrt.local.capacity import service_seconds

WARM_UP: Final = 5.0
SETTLED: Final = 10.0
BACK_OFF: Final = 0.25
CEILING: Final = 1000
FORMERLY: Final = 3
"""Refusals of one call after which they are no accident; as in `aiosmrt._core.call`."""


class Loop:
    """Events in virtual time, in order of time and then of arrival."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = 0

    def at(self, time: float, function: Callable[..., None], *arguments: object) -> None:
        """Call a function at a time in seconds."""
        self._number = number = self._number + 1
        heapq.heappush(self._events, (time, number, function, arguments))

    def run(self, until: float) -> None:
        """Go on to a time in seconds."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, function, arguments = heapq.heappop(events)
            function(*arguments)
        self.now = until


@dataclass(frozen=True)
class Service:
    """A kind of service.

    Args:
        name: what the tables call it.
        workers: requests that are carried out at the same time, as steps of (from second, workers).
        queue: requests that wait for a worker; further ones are refused.
        mean: seconds of an inference, without waiting.
        sigma: of the logarithm of that time.
        times: which distribution: ``lognormal``, ``exponential``, ``bimodal``, ``pareto`` or ``floor`` (a constant and
            an exponential part). All have the same mean; only the first uses ``sigma``.
        batch: requests in service that double each one's time, as in a server that batches; 0 for none.
        quota: requests per second, and how many may come at once; others are refused. None without.
        at_random: the share of requests that are refused whatever their number.
        outages: pairs of seconds between which everything is refused.
        clients: the seconds at which clients start.
        callers: of each client, as steps of (from second, number).
        network: seconds of a way.
        seconds: how long the run lasts.
        eightfold_drop, step_up: when that happens, in seconds; None without.
    """

    name: str
    workers: tuple[tuple[float, int], ...] = ((0.0, 32),)
    queue: float = 0
    mean: float = 0.1
    sigma: float = 0.3
    times: str = "lognormal"
    batch: float = 0.0
    quota: tuple[float, float] | None = None
    at_random: float = 0.0
    outages: tuple[tuple[float, float], ...] = ()
    clients: tuple[float, ...] = (0.0,)
    callers: tuple[tuple[float, int], ...] = ((0.0, CEILING),)
    network: float = 0.001
    seconds: float = 40.0
    eightfold_drop: float | None = None
    step_up: float | None = None

    @property
    def is_silent(self) -> bool:
        """Whether it never refuses for load."""
        return math.isinf(self.queue) and self.quota is None

    @property
    def changes(self) -> list[float]:
        """The seconds at which something changes."""
        ends = [second for outage in self.outages for second in outage]
        steps = [second for second, _ in (*self.workers, *self.callers)]
        return sorted({*steps, *ends, *self.clients})

    def ideal(self, now: float) -> float:
        """The requests in flight, of all clients together, that use its capacity and make none wait."""
        if any(start <= now < end for start, end in self.outages):
            return 0.0
        workers = at_step(self.workers, now)
        if self.quota is not None:
            return self.quota[0] * (self.mean + 2 * self.network)
        if self.queue == 0:
            return workers
        seconds = self.mean * (1 + (workers / self.batch if self.batch else 0))
        return workers * (1 + 2 * self.network / seconds)


def at_step(steps: Iterable[tuple[float, int]], now: float) -> int:
    """The value that steps have at a time."""
    return [value for second, value in steps if second <= now][-1]


_SILENT: Final = math.inf
_DROP: Final = ((0.0, 64), (15.0, 8), (30.0, 64))

SERVICES: Final = (
    Service("bounded queue", queue=32),
    Service("no queue"),
    Service("silent queue", queue=_SILENT),
    Service("wide, no queue", sigma=1.0),
    Service("wide, silent", queue=_SILENT, sigma=1.0),
    Service("batching", ((0.0, 128),), _SILENT, mean=0.2, batch=32.0),
    Service("steps, refusing", _DROP, 8, eightfold_drop=15.0, seconds=45.0),
    Service("steps, silent", _DROP, _SILENT, seconds=45.0),
    Service("autoscaling", ((0.0, 8), (15.0, 32)), 8, step_up=15.0),
    Service("quota", ((0.0, CEILING),), quota=(300.0, 30.0)),
    Service("outage", queue=16, outages=((15.0, 20.0),)),
    Service("four clients", ((0.0, 64),), 16, clients=(0.0, 5.0, 10.0, 15.0), seconds=60.0),
    Service("idle, burst", queue=16, callers=((0.0, CEILING), (10.0, 2), (20.0, CEILING))),
)
"""The thirteen kinds."""

REGULAR: Final = tuple(
    replace(service, name=f"regular, {service.name}", sigma=0.02)
    for service in SERVICES
    if service.name in ("no queue", "silent queue", "batching", "steps, silent")
)
"""Services whose times hardly vary."""

RANDOM: Final = (Service("refused at random", queue=32, at_random=0.05),)
"""A service that refuses one request in twenty, whatever their number."""

OTHER_TIMES: Final = tuple(
    replace(service, name=f"{times}, {service.name}", times=times)
    for times in ("exponential", "bimodal", "pareto", "floor")
    for service in SERVICES
    if service.name in ("silent queue", "batching", "steps, silent")
)
"""Other distributions, where nothing is refused."""


def moved(service: Service, rand: random.Random) -> Service:
    """The same kind of service with every number moved by up to 30 %."""

    def by(value: float) -> float:
        return value * rand.uniform(0.7, 1.3)

    size, time, later = by(1.0), by(1.0), by(1.0)

    def step(steps: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
        return tuple((later * second, max(1, round(size * value))) for second, value in steps)

    def when(second: float | None) -> float | None:
        return None if second is None else later * second

    return replace(
        service,
        workers=step(service.workers),
        queue=service.queue if service.queue in (0, math.inf) else max(1, round(by(service.queue))),
        mean=time * service.mean,
        sigma=by(service.sigma),
        batch=by(service.batch),
        quota=None if service.quota is None else (by(service.quota[0]), by(service.quota[1])),
        outages=tuple((later * start, later * start + by(end - start)) for start, end in service.outages),
        clients=tuple(later * second for second in service.clients),
        callers=tuple((later * second, callers) for second, callers in service.callers),
        network=by(service.network),
        seconds=max(later, 1.0) * service.seconds,
        eightfold_drop=when(service.eightfold_drop),
        step_up=when(service.step_up),
    )


class Station:
    """The service at work: workers, a queue, and what it refuses."""

    def __init__(self, loop: Loop, service: Service, rand: random.Random) -> None:
        self._loop = loop
        self._service = service
        self._rand = rand
        self._busy = 0
        self._queue: deque[Callable[[bool], None]] = deque()
        self._workers = service.workers[0][1]
        self._tokens = 0.0 if service.quota is None else service.quota[1]
        self._filled_at = 0.0
        for second, _ in service.workers[1:]:
            loop.at(second, self._step)

    def arrive(self, reply: Callable[[bool], None]) -> None:
        """Take a request, or refuse it.

        Args:
            reply: called with whether the request was carried out, when it was.
        """
        service = self._service
        if self._refuses(self._loop.now):
            reply(False)
        elif self._busy < self._workers:
            self._begin(reply)
        elif len(self._queue) < service.queue:
            self._queue.append(reply)
        else:
            reply(False)

    def _refuses(self, now: float) -> bool:
        service = self._service
        if service.at_random and self._rand.random() < service.at_random:
            return True
        return any(start <= now < end for start, end in service.outages) or not self._within_quota(now)

    def _within_quota(self, now: float) -> bool:
        quota = self._service.quota
        if quota is None:
            return True
        self._tokens = min(quota[1], self._tokens + (now - self._filled_at) * quota[0])
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _begin(self, reply: Callable[[bool], None]) -> None:
        self._busy += 1
        service = self._service
        seconds = service_seconds(service.times, service.mean, service.sigma, self._rand)
        if service.batch:
            seconds *= 1 + self._busy / service.batch
        self._loop.at(self._loop.now + seconds, self._end, reply)

    def _end(self, reply: Callable[[bool], None]) -> None:
        self._busy -= 1
        self._go_on()
        reply(True)

    def _go_on(self) -> None:
        while self._queue and self._busy < self._workers:
            self._begin(self._queue.popleft())

    def _step(self) -> None:
        self._workers = at_step(self._service.workers, self._loop.now)
        self._go_on()


class AllKnowing:
    """A limit that is set from outside."""

    learns = True
    reason = None
    round_trip = None

    def __init__(self) -> None:
        self.limit = 1

    def on_success(self, started_at: float, now: float, in_flight: int, sent_among: int = 0) -> None:
        """Know it already."""

    def on_throttle(
        self, started_at: float, now: float, in_flight: int, *, sent_among: int = 0, strict: bool = True
    ) -> None:
        """Know it already."""

    def on_timeout(self, started_at: float, now: float, in_flight: int) -> None:
        """Know it already."""

    def on_answer(self, started_at: float, now: float, in_flight: int) -> None:
        """Know it already."""

    def on_recovery(self, now: float) -> None:
        """Know it already."""


class Fixed(AllKnowing):
    """A number that stays."""

    def __init__(self, limit: int) -> None:
        self.limit = limit


class Aimd(AllKnowing):
    """One more per round trip, and 0.7 of it after a refusal, once per round trip."""

    def __init__(self, decrease: float = 0.7) -> None:
        self._exact = 4.0
        self._decrease = decrease
        self._cut_at = -math.inf
        self.limit = 4

    def on_success(self, started_at: float, now: float, in_flight: int, sent_among: int = 0) -> None:
        """Grow, if it is in use."""
        if 2 * in_flight >= self.limit:
            self._set(self._exact + 1 / self._exact)

    def on_throttle(
        self, started_at: float, now: float, in_flight: int, *, sent_among: int = 0, strict: bool = True
    ) -> None:
        """Shrink."""
        if started_at > self._cut_at:
            self._cut_at = now
            self._set(self._exact * self._decrease)

    def _set(self, exact: float) -> None:
        self._exact = min(max(exact, 1.0), CEILING)
        self.limit = int(self._exact)


class Gradient2(Aimd):
    """Netflix's: the ratio of a long to a short average round trip; here a refusal shrinks it too, by a tenth."""

    def __init__(self) -> None:
        super().__init__(0.9)
        self._long = 0.0
        self._samples = 0
        self._set(20.0)

    def on_success(self, started_at: float, now: float, in_flight: int, sent_among: int = 0) -> None:
        """Follow the gradient."""
        short = now - started_at
        self._samples += 1
        weight = 1 / self._samples if self._samples <= 10 else 2 / 601
        self._long += weight * (short - self._long)
        if self._long > 2 * short:
            self._long *= 0.95
        if 2 * in_flight >= self._exact:
            gradient = max(0.5, min(1.0, 1.5 * self._long / short))
            self._set(0.8 * self._exact + 0.2 * (gradient * self._exact + 4))


class VectorArc(Aimd):
    """Vector's adaptive request concurrency: once per round trip, against an average and its deviation."""

    def __init__(self) -> None:
        super().__init__(0.9)
        self._mean: float | None = None
        self._variance = 0.0
        self._next = 0.0
        self._sum = 0.0
        self._count = 0
        self._reached = self._refused = False
        self._set(1.0)

    def on_success(self, started_at: float, now: float, in_flight: int, sent_among: int = 0) -> None:
        """Measure, and decide at the end of the round trip."""
        self._sum += now - started_at
        self._count += 1
        self._reached = self._reached or in_flight >= self.limit
        self._decide(now)

    def on_throttle(
        self, started_at: float, now: float, in_flight: int, *, sent_among: int = 0, strict: bool = True
    ) -> None:
        """Shrink at the end of the round trip."""
        self._refused = True
        self._decide(now)

    def _decide(self, now: float) -> None:
        if now < self._next:
            return
        current = self._sum / self._count if self._count else None
        if current is not None:
            if self._mean is None:
                self._mean = current
            threshold = self._mean + 2.5 * math.sqrt(self._variance)
            if not self._refused and current <= threshold and self._reached:
                self._set(self.limit + 1)
            elif self._refused or current > threshold:
                self._set(self.limit * self._decrease)
            difference = current - self._mean
            self._mean += 0.4 * difference
            self._variance = 0.6 * (self._variance + 0.4 * difference**2)
        elif self._refused:
            self._set(self.limit * self._decrease)
        self._next = now + (self._mean or 0.0)
        self._sum, self._count, self._reached, self._refused = 0.0, 0, False, False


class Ramp(Fixed):
    """The best start of a rule that multiplies its number by at most ``factor`` in a round trip: it knows the end."""

    def __init__(self, factor: float, end: int) -> None:
        super().__init__(4)
        self._exact, self._factor, self._end = 4.0, factor, end

    def on_success(self, started_at: float, now: float, in_flight: int, sent_among: int = 0) -> None:
        """Grow."""
        self._exact = min(self._end, self._exact * self._factor ** (1 / self._exact))
        self.limit = int(self._exact)


class AwsAdaptive(Fixed):
    """AWS's retry mode: no limit, but a send rate after the first refusal."""

    def __init__(self) -> None:
        super().__init__(CEILING)
        self.rate = SendRate(0.0)


class Outcome(NamedTuple):
    """An answer: when, whether it was a success, and its round trip in seconds."""

    time: float
    success: bool
    seconds: float


@dataclass
class Call:
    """A call of a simulated client."""

    holds_slot: bool = False
    refusals: int = 0
    started_at: float = 0.0
    sent_among: int = 0


@dataclass
class SimulatedClient:
    """Calls that never end, under one rule."""

    loop: Loop
    station: Station
    service: Service
    rule: ConcurrencyLimit
    rand: random.Random
    outcomes: list[Outcome] = field(default_factory=list)
    usage: list[tuple[float, int]] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = AdmissionState(self.rule, CEILING)
        self.in_use = self.outstanding = self.callers = 0
        self.returning: deque[Call] = deque()
        self.prober: Call | None = None
        self._wake_at = math.inf

    def has(self, callers: int) -> None:
        """Have so many callers from now on."""
        self.callers = callers
        self.attend()

    def attend(self) -> None:
        """Send what may be sent."""
        loop, rule = self.loop, self.rule
        if self.state.illness is None or (isinstance(rule, AllKnowing) and type(rule) is AllKnowing):
            while self.in_use < min(rule.limit, self.callers):
                if isinstance(rule, AwsAdaptive) and (wait := rule.rate.wait(loop.now)) > 0:
                    self._wake(loop.now + wait)
                    return
                self._send(self.returning.popleft() if self.returning else Call())
        elif self.prober is None:
            due = self.state.next_probe(math.inf)
            assert due is not None
            if due > loop.now + 1e-9:
                self._wake(due)
                return
            self.prober = self.returning.popleft() if self.returning else Call()
            self._send(self.prober)

    def _wake(self, at: float) -> None:
        if not self.loop.now < self._wake_at <= at:
            self._wake_at = at
            self.loop.at(at, self.attend)

    def _send(self, call: Call) -> None:
        if not call.holds_slot:
            call.holds_slot = True
            self.in_use += 1
        self.outstanding += 1
        now = self.loop.now
        self.usage.append((now, self.outstanding))
        call.started_at, call.sent_among = now, self.outstanding
        self.loop.at(now + self.service.network, self.station.arrive, lambda done: self._replied(call, done))

    def _replied(self, call: Call, done: bool) -> None:
        self.loop.at(self.loop.now + self.service.network, self._answered, call, done)

    def _answered(self, call: Call, done: bool) -> None:
        now, state, rule = self.loop.now, self.state, self.rule
        self.outcomes.append(Outcome(now, done, now - call.started_at))
        probe = call is self.prober
        if probe:
            self.prober = None
        if isinstance(rule, AwsAdaptive):
            rule.rate.on_response(now, throttled=not done)
        if done:
            state.on_success(call.started_at, now, self.in_use, sent_among=call.sent_among, probe=probe)
        else:
            call.refusals += 1
            before = rule.limit
            state.on_throttle(
                call.started_at,
                now,
                self.outstanding,
                self.rand.random(),
                sent_among=call.sent_among,
                probe=probe,
                strict=call.refusals >= FORMERLY,
            )
        self.limits.append((now, rule.limit))
        self.outstanding -= 1
        if done:
            self._release(call)
        elif state.illness is not None or rule.limit < before:
            self._release(call)
            self.returning.append(call)
        else:
            self.loop.at(now + BACK_OFF * self.rand.random(), self._back, call)
        self.attend()

    def _back(self, call: Call) -> None:
        if self.in_use > (self.rule.limit if self.state.illness is None else 0):
            self._release(call)
            self.returning.append(call)
            self.attend()
        else:
            self._send(call)

    def _release(self, call: Call) -> None:
        call.holds_slot = False
        self.in_use -= 1


class Run(NamedTuple):
    """What came of a rule at a service."""

    service: Service
    clients: list[SimulatedClient]

    def answers(self, begin: float, end: float) -> list[Outcome]:
        """What came back between two seconds."""
        return [outcome for client in self.clients for outcome in client.outcomes if begin <= outcome.time < end]

    def goodput(self, begin: float, end: float) -> float:
        """Successes per second."""
        return sum(outcome.success for outcome in self.answers(begin, end)) / (end - begin)

    def p95(self, begin: float, end: float) -> float:
        """The 95th percentile of the round trips of successes, in seconds."""
        return percentile([outcome.seconds for outcome in self.answers(begin, end) if outcome.success], 0.95)

    def refusals(self, begin: float, end: float) -> tuple[int, int]:
        """Refusals and successes."""
        answers = self.answers(begin, end)
        refused = sum(not outcome.success for outcome in answers)
        return refused, len(answers) - refused

    def in_use_after(self, begin: float) -> float:
        """Seconds after which 90 % of what can be used is in use."""
        wanted = math.floor(0.9 * self.service.ideal(begin))
        for time, outstanding in sorted(itertools.chain(*(client.usage for client in self.clients))):
            if time >= begin and outstanding >= wanted:
                return time - begin
        return math.inf

    def jain(self, begin: float, end: float) -> float:
        """The fairness index of the clients' goodput."""
        rates = [
            sum(outcome.success for outcome in client.outcomes if begin <= outcome.time < end)
            for client in self.clients
        ]
        return sum(rates) ** 2 / (len(rates) * sum(rate**2 for rate in rates)) if any(rates) else 0.0


def percentile(values: list[float], share: float) -> float:
    """The value that this share of all is at most; NaN without values."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else math.nan


def simulate(service: Service, new_rule: Callable[[], ConcurrencyLimit], seed: int) -> Run:
    """Run a rule at a service."""
    loop = Loop()
    station = Station(loop, service, random.Random(seed))
    clients: list[SimulatedClient] = []
    randomness = random.Random(seed + 1)

    def share_out() -> None:
        knowing = [client for client in clients if type(client.rule) is AllKnowing]
        total = round(service.ideal(loop.now))
        for number, client in enumerate(knowing):
            client.rule.limit = total // len(knowing) + (number < total % len(knowing))  # type: ignore[misc]
            client.attend()

    def start() -> None:
        client = SimulatedClient(loop, station, service, new_rule(), randomness)
        clients.append(client)
        for second, callers in service.callers:
            loop.at(max(loop.now, second), client.has, callers)

    for second in service.clients:
        loop.at(second, start)
    for second in service.changes:
        loop.at(second, share_out)
    loop.run(service.seconds)
    return Run(service, clients)


class Cell(NamedTuple):
    """A rule's figures at one service; None where a figure does not apply."""

    goodput: float
    p95: float
    refused: float
    dropped: float | None
    up: float | None
    back: float | None
    jain: float | None
    start: float


def measure(run: Run, knowing: Run) -> Cell:
    """Compare a run with the all-knowing limit's."""
    service = run.service
    end = service.seconds
    refused = good = 0
    for before, after in itertools.pairwise([*service.changes, end]):
        some, others = run.refusals(before + SETTLED, after)
        refused, good = refused + some, good + others
    dropped = None
    if (at := service.eightfold_drop) is not None:
        in_vain, let_in = run.refusals(at, at + 10.0)
        dropped = in_vain / max(let_in, 1)
    return Cell(
        run.goodput(WARM_UP, end) / knowing.goodput(WARM_UP, end),
        run.p95(WARM_UP, end) / knowing.p95(WARM_UP, end),
        refused / max(good, 1),
        dropped,
        None if service.step_up is None else run.in_use_after(service.step_up),
        run.in_use_after(service.outages[0][1]) if service.outages else None,
        run.jain(end * 2 / 3, end) if len(service.clients) > 1 else None,
        run.in_use_after(0.0),
    )


def rules() -> dict[str, Callable[[], ConcurrencyLimit]]:
    """The rules by name; ``fixed-N`` and ``working`` are not adaptive above the number they are given."""
    return {
        "adaptive": AdaptiveLimit(maximum=CEILING).new,
        "aimd": Aimd,
        "gradient2": Gradient2,
        "arc": VectorArc,
        "aws": AwsAdaptive,
        "fixed-8": lambda: Fixed(8),
        "fixed-64": lambda: Fixed(64),
        "fixed-256": lambda: Fixed(256),
        "working-256": lambda: WorkingLimit(256),
    }


def variants(services: Sequence[Service], number: int, seed: int) -> list[list[Service]]:
    """Each service as it is, and so many less one moved by up to 30 %."""
    return [
        [service, *(moved(service, random.Random(f"{seed} {service.name} {index}")) for index in range(1, number))]
        for service in services
    ]


def grid(names: Sequence[str], services: Sequence[Service], number: int, seed: int) -> dict[str, dict[str, list[Cell]]]:
    """Every rule at every variant of every service.

    Returns:
        The cells by rule and service, one for each variant.
    """
    chosen = {name: rules()[name] for name in names}
    cells: dict[str, dict[str, list[Cell]]] = {name: {} for name in names}
    for kind in variants(services, number, seed):
        for index, service in enumerate(kind):
            knowing = simulate(service, AllKnowing, seed + index)
            for name, new_rule in chosen.items():
                cell = measure(simulate(service, new_rule, seed + index), knowing)
                cells[name].setdefault(kind[0].name, []).append(cell)
    return cells


def worst(cells: Iterable[Cell]) -> Cell:
    """The worst of each figure."""
    columns = [[value for value in column if value is not None] for column in zip(*cells, strict=True)]
    least = {"goodput", "jain"}
    return Cell(
        *(
            ((min if name in least else max)(column) if column else None)
            for name, column in zip(Cell._fields, columns, strict=True)
        )  # type: ignore[arg-type]
    )


def table(cells: dict[str, dict[str, list[Cell]]]) -> str:
    """The worst variant of each cell, as a table in Markdown."""
    lines = [f"| rule | service | {' | '.join(Cell._fields)} |", "|---|---|" + "--:|" * len(Cell._fields)]
    for rule, by_service in cells.items():
        rows = [(name, worst(found)) for name, found in by_service.items()]
        rows.append(("**worst**", worst(cell for found in by_service.values() for cell in found)))
        for name, cell in rows:
            shown = ["" if value is None else f"{value:.2f}" for value in cell]
            lines.append(f"| {rule} | {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def starts(service: Service, factors: Sequence[float], ends: Sequence[float], seed: int) -> list[list[float]]:
    """What a rule carries out from the start to some seconds, as shares of what the right fixed number does.

    Args:
        service: where the right number does not change.
        factors: by which the rule multiplies its number in a round trip, to the right one and no further.
        ends: the seconds.
        seed: of all runs.

    Returns:
        The shares by factor.
    """
    right = round(service.ideal(0.0))
    knowing = simulate(service, lambda: Fixed(right), seed)
    runs = [simulate(service, partial(Ramp, factor, right), seed) for factor in factors]
    return [[run.goodput(0.0, end) / knowing.goodput(0.0, end) for end in ends] for run in runs]


def bounds(seed: int) -> str:
    """What no rule can do that sees only what a client sees, as tables in Markdown."""
    factors, ends = (1.3, 1.5, 2.0, 3.0, 4.0), (5.0, 10.0, 20.0, 60.0)
    lines = ["| service | factor | first 5 s | 10 s | 20 s | 60 s |", "|---|--:|--:|--:|--:|--:|"]
    for service in (
        Service("silent queue, 64 workers", ((0.0, 64),), _SILENT, seconds=60.0),
        replace(next(service for service in SERVICES if service.batch), name="batching, 128 slots", seconds=60.0),
    ):
        for factor, shares in zip(factors, starts(service, factors, ends, seed), strict=True):
            lines.append(f"| {service.name} | {factor} | {' | '.join(f'{share:.3f}' for share in shares)} |")
    lines += ["", "| calls of the one client | refused of four's | refused at random | calls to tell | seconds |"]
    lines.append("|---|--:|--:|--:|--:|")
    shared = replace(
        next(service for service in SERVICES if service.clients != (0.0,)), clients=4 * (0.0,), seconds=120.0
    )
    others, usual = 22, None
    for calls in (22, 24, 26, 29, 33):
        limits = iter([calls, others, others, others])
        run = simulate(shared, lambda limits=limits: Fixed(next(limits)), seed)  # type: ignore[misc]
        outcomes = [outcome for outcome in run.clients[0].outcomes if outcome.time >= WARM_UP]
        share = sum(not outcome.success for outcome in outcomes) / len(outcomes)
        if usual is None:
            usual = share
            lines.append(f"| {calls} | {share:.3f} | {usual:.3f} | | |")
            continue
        # Wald's bound on the mean number of observations, for one in twenty wrong decisions of either kind.
        divergence = share * math.log(share / usual) + (1 - share) * math.log((1 - share) / (1 - usual))
        needed = 0.9 * math.log(19) / divergence
        seconds = needed * (shared.seconds - WARM_UP) / len(outcomes)
        lines.append(f"| {calls} | {share:.3f} | {usual:.3f} | {needed:.0f} | {seconds:.1f} |")
    return "\n".join(lines)


def picture(service: Service, names: Sequence[str], seed: int) -> str:
    """The limits over time, beside what the service can take, as SVG."""
    # Beside this file where it is run, and not where tests import it.
    from plot import Line, Panel, drawing

    seconds = [0.1 * number for number in range(int(10 * service.seconds))]
    lines = [Line("can take", [(second, service.ideal(second)) for second in seconds])]
    for name in names:
        later = iter(simulate(service, rules()[name], seed).clients[0].limits)
        time, limit = next(later)
        points = []
        for second in seconds:
            while time < second and (following := next(later, None)) is not None:
                time, limit = following
            points.append((second, float(limit)))
        lines.append(Line(name, points))
    ticks = {float(second): f"{second} s" for second in range(0, int(service.seconds) + 1, 5)}
    return drawing(f"The limit over time: {service.name}", "simulated", [Panel("calls in flight", lines, ticks, True)])


def main(arguments: Sequence[str]) -> None:
    """Run the grid and print its table."""
    parser = argparse.ArgumentParser(description="Rules for the number of calls in flight, simulated.")
    parser.add_argument("--rules", default=",".join(rules()))
    parser.add_argument("--services", default="grid", help="grid, regular, random, other, or names with ; between them")
    parser.add_argument("--variants", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="write a picture of one service's limits, and nothing else")
    parser.add_argument("--bounds", action="store_true", help="print what no rule can do, and nothing else")
    options = parser.parse_args(arguments)
    if options.bounds:
        print(bounds(options.seed))
        return
    groups = {"grid": SERVICES, "regular": REGULAR, "other": OTHER_TIMES, "random": RANDOM}
    everything = [*SERVICES, *REGULAR, *RANDOM, *OTHER_TIMES]
    named = options.services.split(";")
    services = groups.get(options.services) or [service for service in everything if service.name in named]
    if options.plot is not None:
        options.plot.write_text(picture(services[0], options.rules.split(","), options.seed))
        return
    cells = grid(options.rules.split(","), services, options.variants, options.seed)
    print(table(cells))
    if options.json is not None:
        by_name = {
            rule: {name: [cell._asdict() for cell in found] for name, found in by_service.items()}
            for rule, by_service in cells.items()
        }
        options.json.write_text(json.dumps(by_name, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
