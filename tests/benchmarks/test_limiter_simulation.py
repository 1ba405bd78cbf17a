"""The simulator of limits against queueing theory, and its all-knowing limit against what is possible."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from benchmarks.limiter_simulation import (
    REGULAR,
    SERVICES,
    AllKnowing,
    Cell,
    Fixed,
    Loop,
    Service,
    Station,
    measure,
    moved,
    rules,
    simulate,
    starts,
    table,
)

EXPONENTIAL = Service("theory", ((0.0, 4),), math.inf, mean=0.1, times="exponential", network=0.0)


def erlang_c(workers: int, load: float) -> float:
    """The probability that a request waits (M/M/c), at this many Erlangs."""
    waits = load**workers / math.factorial(workers) * workers / (workers - load)
    return waits / (sum(load**n / math.factorial(n) for n in range(workers)) + waits)


@pytest.mark.parametrize("workers", [1, 4, 16])
@pytest.mark.parametrize("utilization", [0.5, 0.8])
def test_requests_of_an_open_system_wait_as_long_as_theory_says(workers: int, utilization: float) -> None:
    """M/M/c: the mean wait is C(c, a) s / (c - a)."""
    service = replace(EXPONENTIAL, workers=((0.0, workers),))
    loop, randomness = Loop(), random.Random(workers)
    station = Station(loop, service, random.Random(0))
    rate = utilization * workers / service.mean
    seconds: list[float] = []

    def arrive() -> None:
        begun = loop.now
        station.arrive(lambda done: seconds.append(loop.now - begun))
        loop.at(begun + randomness.expovariate(rate), arrive)

    arrive()
    loop.run(40_000 / rate)
    load = utilization * workers
    expected = service.mean + erlang_c(workers, load) * service.mean / (workers - load)
    assert sum(seconds) / len(seconds) == pytest.approx(expected, rel=0.06)
    assert len(seconds) == pytest.approx(40_000, rel=0.03)


@pytest.mark.parametrize("callers", [1, 3, 6, 12])
def test_a_closed_system_reaches_the_rate_that_theory_says(callers: int) -> None:
    """The network delays without a queue, the workers are M/M/4: the product form is exact."""
    service = replace(EXPONENTIAL, network=0.05, seconds=400.0)
    delay, workers = 2 * service.network, 4

    def weight(at_station: int) -> float:
        away = callers - at_station
        busy = math.prod(min(n, workers) for n in range(1, at_station + 1))
        return delay**away / math.factorial(away) * service.mean**at_station / busy

    weights = [weight(n) for n in range(callers + 1)]
    expected = sum(w * min(n, workers) for n, w in enumerate(weights)) / sum(weights) / service.mean
    run = simulate(service, lambda: Fixed(callers), seed=callers)
    assert run.goodput(10.0, 400.0) == pytest.approx(expected, rel=0.03)
    # Little's law: the calls in flight are the rate times the round trip.
    successes = [outcome.seconds for outcome in run.answers(10.0, 400.0) if outcome.success]
    assert run.goodput(10.0, 400.0) * sum(successes) / len(successes) == pytest.approx(callers, rel=0.01)


def test_a_full_queue_refuses_what_theory_says() -> None:
    """M/M/1/3: of Poisson arrivals, (1 - r) r^3 / (1 - r^4) find the system full."""
    loop, randomness = Loop(), random.Random(1)
    station = Station(loop, replace(EXPONENTIAL, workers=((0.0, 1),), queue=2), random.Random(0))
    answers: list[bool] = []

    def arrive() -> None:
        station.arrive(answers.append)
        loop.at(loop.now + randomness.expovariate(8.0), arrive)

    arrive()
    loop.run(5_000.0)
    expected = (1 - 0.8) * 0.8**3 / (1 - 0.8**4)
    assert answers.count(False) / len(answers) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("service", [*SERVICES, *REGULAR], ids=lambda service: service.name)
def test_the_all_knowing_limit_uses_the_capacity_and_is_not_refused(service: Service) -> None:
    run = simulate(service, AllKnowing, seed=1)
    refused, good = run.refusals(0.0, service.seconds)
    # what is under way when something changes, and what a quota's arrivals do at random
    assert refused <= (0 if len(service.changes) == 1 and service.quota is None else 0.05 * good)
    if len(service.changes) == 1 and service.quota is None:
        workers = service.workers[0][1]
        at_work = service.mean * (1 + (workers / service.batch if service.batch else 0))
        assert run.goodput(5.0, service.seconds) == pytest.approx(workers / at_work, rel=0.07)


def test_a_seed_gives_the_same_run_again() -> None:
    runs = [simulate(SERVICES[0], rules()["aimd"], seed) for seed in (1, 1, 2)]
    first, again, other = ([client.outcomes for client in run.clients] for run in runs)
    assert first == again
    assert first != other


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_a_variant_is_of_the_same_kind(service: Service) -> None:
    variant = moved(service, random.Random(1))
    assert variant.is_silent == service.is_silent
    assert len(variant.changes) == len(service.changes)
    assert 0.7 * service.mean <= variant.mean <= 1.3 * service.mean
    assert variant.seconds > max(variant.changes)


def test_the_all_knowing_limit_compares_with_itself_as_one() -> None:
    run = simulate(SERVICES[2], AllKnowing, seed=1)
    cell = measure(run, run)
    assert cell == Cell(1.0, 1.0, 0.0, None, None, None, None, cell.start)
    assert "| AllKnowing | silent queue | 1.00 | 1.00 | 0.00 |" in table({"AllKnowing": {"silent queue": [cell]}})


def test_the_best_start_loses_what_its_round_trips_to_the_right_number_cost() -> None:
    """A success multiplies the number n by f^(1/n), and those of a moment were sent a round trip before: n grows by a
    factor of e^x in a round trip, with x e^x = log f, from 4 to all 64 workers.
    """
    service = replace(SERVICES[2], name="start", workers=((0.0, 64),), sigma=0.05, network=0.0, seconds=8.0)
    factors, ends = (1.5, 2.0, 4.0), (4.0, 8.0)
    for factor, shares in zip(factors, starts(service, factors, ends, seed=1), strict=True):
        x = 0.5
        for _ in range(20):
            x -= (x * math.exp(x) - math.log(factor)) / ((1 + x) * math.exp(x))
        # In round trips of all workers: the climb, without what is at work in it.
        lost = (math.log(64 / 4) - (1 - 4 / 64)) / x
        for end, share in zip(ends, shares, strict=True):
            assert 1 - share == pytest.approx(lost * service.mean / end, rel=0.15)
    assert starts(service, (1.0,), ends, seed=1)[0] == pytest.approx([4 / 64, 4 / 64], rel=0.05)
