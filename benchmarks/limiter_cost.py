"""What does a success cost under the adaptive limit?

    python benchmarks/limiter_cost.py [--quick] [--sizes 8,16,64,128] [--sigma 0.3,0.02] [--rounds 15]
                                      [--successes 20000] [--json FILE]

Nothing is sent: a limit is told of successes whose round trips were drawn beforehand, with all of its calls in flight.
Figures are CPU time per success in µs, without the loop around it, as medians over rounds in which all take turns:

- ``rule``: `AdaptiveRule.on_success`, the rule by itself; ``working``: the same of the fixed limit's `WorkingLimit`;
- ``report``: `Admission.on_success` with the adaptive rule, which is all that a success costs under it;
- ``fixed``: the same under a fixed limit, which is told of successes after a failure, until it has recovered from that.
  One in good health, at its ceiling, is told of none and costs nothing;
- ``more``: the median of the rounds' differences between the two.

Limits stay at their size, which is their ceiling, as at a service that takes all of it.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from reporting import environment, print_table, write_json

from aiosmrt._core.admission import Admission, CallLater, Timer
from aiosmrt._policy.adaptive import AdaptiveLimit
from aiosmrt._policy.limit import ConcurrencyLimit, WorkingLimit
from aiosmrt.local.capacity import service_seconds

COLUMNS = ("rule", "working", "report", "fixed", "more")


def no_timer(delay: float, callback: Callable[..., None], *arguments: object) -> Timer:
    """A success sets none."""
    raise AssertionError


class Clockwork:
    """A client's clock that tells the end of one call after the other; all began at 0."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = lambda: 0.0
        self.random: Callable[[], float] = random.Random(0).random
        self.call_later: CallLater = no_timer


class Caller:
    """A call, of which an admission asks nothing when it succeeds."""

    def waits_out(self, illness: object) -> bool:
        raise AssertionError

    def waits_until(self, illness: object, since: float) -> float | None:
        raise AssertionError


def told_directly(limit: ConcurrencyLimit, in_flight: int) -> Callable[[Sequence[float]], None]:
    """What tells a limit of successes with these round trips."""

    def tell(round_trips: Sequence[float]) -> None:
        on_success = limit.on_success
        for seconds in round_trips:
            on_success(0.0, seconds, in_flight, in_flight)

    return tell


def told_through_admission(limit: ConcurrencyLimit, in_flight: int) -> Callable[[Sequence[float]], None]:
    """The same by way of an admission."""
    clockwork, caller = Clockwork(), Caller()
    admission = Admission(clockwork, in_flight, limit=limit)
    while admission.try_acquire():
        pass

    def tell(round_trips: Sequence[float]) -> None:
        clockwork.clock = iter(round_trips).__next__
        on_success = admission.on_success
        for _ in round_trips:
            on_success(caller, 0.0, in_flight)

    return tell


def nothing(round_trips: Sequence[float]) -> None:
    """The loop alone."""
    for _ in round_trips:
        pass


def costs(in_flight: int, sigma: float, rounds: int, successes: int) -> dict[str, float]:
    """CPU seconds per success, by column.

    Args:
        in_flight: the limit, all of which is in use.
        sigma: of the logarithm of the round trip, 0.1 s on average.
        rounds: in each of which all columns take a turn.
        successes: in a turn.
    """

    def adaptive() -> ConcurrencyLimit:
        return AdaptiveLimit(initial=in_flight, minimum=in_flight, maximum=in_flight).new()

    tellers = {
        "nothing": nothing,
        "rule": told_directly(adaptive(), in_flight),
        "working": told_directly(WorkingLimit(in_flight), in_flight),
        "report": told_through_admission(adaptive(), in_flight),
        "fixed": told_through_admission(WorkingLimit(in_flight), in_flight),
    }
    rand = random.Random(f"{in_flight} {sigma}")
    taken: dict[str, list[float]] = {name: [] for name in tellers}
    names = list(tellers)
    for number in range(rounds + 1):
        round_trips = [service_seconds("lognormal", 0.1, sigma, rand) for _ in range(successes)]
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            gc.collect()
            began = time.process_time()
            tellers[name](round_trips)
            taken[name].append((time.process_time() - began) / successes)
    # What was learned in the first round is not paid again.
    own = {
        name: [mine - loop for mine, loop in zip(samples[1:], taken["nothing"][1:], strict=True)]
        for name, samples in taken.items()
    }
    own["more"] = [mine - theirs for mine, theirs in zip(own["report"], own["fixed"], strict=True)]
    return {name: median(own[name]) for name in COLUMNS}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a success costs under the adaptive limit.")
    parser.add_argument("--quick", action="store_true", help="a few rounds")
    parser.add_argument("--sizes", default="8,16,64,128", help="calls in flight")
    parser.add_argument("--sigma", default="0.3,0.02", help="of the logarithm of the round trip")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--successes", type=int, default=20_000, help="in a turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args()
    rounds, successes = (3, 5_000) if arguments.quick else (arguments.rounds, arguments.successes)
    results = []
    for sigma in map(float, arguments.sigma.split(",")):
        rows = []
        for size in map(int, arguments.sizes.split(",")):
            found = costs(size, sigma, rounds, successes)
            results.append({"in_flight": size, "sigma": sigma, "cpu_seconds_per_success": found})
            rows.append([str(size), *(f"{found[name] * 1e6:.2f}" for name in COLUMNS)])
        print_table(f"µs per success, service times with sigma = {sigma}", ["in flight", *COLUMNS], rows)
    write_json(arguments.json, {"environment": environment(), "rounds": rounds, "results": results})


if __name__ == "__main__":
    main()
