"""How many calls to one target may be in flight, found without being told: the rule behind ``AdaptiveLimit``.

Theory of operation
-------------------
What a client sees of a service is round trips and refusals. Refusals are plain: the service takes one call less than
were in flight. Round trips are not: they grow both where calls wait in a silent queue, which more calls only lengthen,
and in a server that batches, which more calls make productive. No threshold on latency tells the two apart.

- *Spread.* Waiting adds the same time to every round trip, so it squeezes the spread of their logarithms; batching
  multiplies them, and leaves that spread alone. The rule compares the present spread (the mean difference between the
  logarithms of successive round trips) with the one when nothing waited. Where it is squeezed, the limit is cut in
  proportion; where it is not, the limit grows.
- *Elasticity.* Service times that hardly vary leave little spread to be squeezed, but little noise either. There the
  limit moves up and down in small steps, and the rule looks at what follows: in a queue, round trips change in
  proportion to the number of calls, and the limit goes down; otherwise by less, and it goes up.
- *Refusals.* A refusal takes one off the limit, and a round trip of successes adds a fraction of a call, more and more
  the longer nothing is refused. At a hard capacity there is no sawtooth, a drop is followed by exactly the
  excess, and clients that share a service tend to the same limit, because what they add and lose is the same. A
  refusal that the number of calls does not explain, because as many got through lately, takes off a quarter.
- *Outages* are `aiosmrt._policy.target_health`'s; afterwards the largest limit of the last round trips before is
  approached by one for each success.
- *Others in the queue.* Where cuts do not shorten the round trips, other clients fill the queue, and leaving it to them
  does not shorten it. The rule is *blind* for a while then, and grows slowly whatever the spread. Refusals at ever
  changing numbers of calls in flight show other clients too.

A limit that is not in use is not tested, and does not move. Round trips are looked at in batches, with functions that
loop in C: that keeps the cost of a success at a fraction of a microsecond.

Times are seconds of whichever monotonic clock the caller uses throughout.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import exp, inf, log
from operator import sub
from typing import Final

from aiosmrt._policy.limit import FIRST_WINDOW, REMEMBERED, Reason, is_accident
from aiosmrt.config import is_whole, shown
from aiosmrt.errors import ParamValidationError

__all__ = ["AdaptiveLimit", "AdaptiveRule"]

_INITIAL: Final = 4

# Successes that are looked at together: half of a round trip's, within these bounds.
_SMALLEST_BATCH: Final = 8
_LARGEST_BATCH: Final = 32
# The shortest round trip in seconds, for logarithms.
_SHORTEST: Final = 1e-6
# A limit of which less is in use is not being tested.
_TESTED: Final = 0.7

# Successes over which averages reach: of the spread, a fast and a slow one, and of the logarithm of the round trip.
_FAST: Final = 48
_SLOW: Final = 128
_LEVEL: Final = 32
# Successes that tell spread and level without waiting at the start, and at most so many while the level stays.
_FIRST: Final = 48
_WAITLESS: Final = 128
# Successes over which the spread without waiting follows a larger one.
_CREEP: Final = 240
_REGULAR_CREEP: Final = 2000
# Successes over which the level without waiting follows a slightly higher one.
_DRIFT: Final = 512

# The share of its spread without waiting below which calls wait; less where the spread is wide, because a little
# waiting squeezes that more.
_SQUEEZED: Final = 0.92
_SQUEEZED_BY_SPREAD: Final = 0.19

# Changes of the limit (differences of logarithms; times the spread, where that is wide) that show whether there is a
# queue, and the elasticities below which nothing waits.
_NEAR: Final = 0.4
_FAR: Final = 0.55
_FAR_BY_SPREAD: Final = 1.35
_CLEARLY_NO_QUEUE: Final = 0.55
_NO_QUEUE: Final = 0.7

# Growth: calls per success while nothing was ever refused, at first and later; calls per round trip otherwise, at most
# and relative to a small limit; and the round trips after which that has doubled.
_FIRST_GROWTH: Final = 0.15
_GROWTH: Final = 0.3
_STEP: Final = 0.5
_STEP_SHARE: Final = 0.15
_ROUND_TRIPS_TO_DOUBLE: Final = 6.0

# What a refusal takes off that the number of calls does not explain. Nothing would have clients that share a service
# refused all the time, one would make a few refusals at random costly.
_ACCIDENT: Final = 0.25

# By how much shorter round trips (the difference of logarithms; times the spread, where that is wide) show more
# capacity than there was at the last refusal.
_SHORTER: Final = 0.3
_SHORTER_BY_SPREAD: Final = 0.5

# Round trips for which a finding about other clients holds.
_SHARED_FOR: Final = 100.0
_BLIND_FOR: Final = 300.0
_REVERSALS: Final = 0.2
_FEWER: Final = 0.7
_ROUND_TRIPS_TO_FORGET: Final = 50.0

# Spreads below this have nothing to be squeezed. Steps by which the limit moves then, doubled as long as it goes on the
# same way; the elasticity that shows a queue; and the round trips without a refusal before that.
_REGULAR: Final = 0.08
_SMALLEST_MOVE: Final = 0.15
_LARGE_MOVE: Final = 0.25
_LARGEST_MOVE: Final = 0.5
_SLOWER: Final = 0.35
# Successes that measure a small and a large move, if they are a round trip's.
_ENOUGH: Final = 40
_FEW: Final = 16
_QUEUE: Final = 0.9
_UNREFUSED: Final = 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveLimit:
    """Settings of a limit of calls in flight that finds out by itself what the service can take.

    Args:
        initial: the calls with which it begins. Defaults to 4, within the two others. A low one is best: the limit
            learns first how long calls take that do not wait for each other.
        minimum: the calls that are always allowed, at least 1.
        maximum: the most calls.

    Raises:
        ParamValidationError: one is not an integer, or not 1 <= minimum <= initial <= maximum.

    Example:
        >>> AdaptiveLimit(maximum=200).new()
        <AdaptiveRule limit=4 minimum=1 maximum=200 reason=start>
    """

    initial: int | None = None
    minimum: int = 1
    maximum: int = 1000

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be an integer >= 1; got {shown(value)}"
            for name, value in (("minimum", self.minimum), ("maximum", self.maximum), ("initial", self.initial))
            if not is_whole(value, 1) and not (name == "initial" and value is None)
        ]
        if not faults and self.minimum > self.maximum:
            faults.append(f"minimum must be <= maximum {self.maximum}; got {self.minimum}")
        elif not faults and self.initial is not None and not self.minimum <= self.initial <= self.maximum:
            faults.append(f"initial must be from {self.minimum} to {self.maximum}; got {self.initial}")
        if faults:
            raise ParamValidationError(faults)

    def new(self) -> AdaptiveRule:
        """Make the limit of one target."""
        initial = min(max(_INITIAL, self.minimum), self.maximum) if self.initial is None else self.initial
        return AdaptiveRule(initial=initial, minimum=self.minimum, maximum=self.maximum)


class AdaptiveRule:
    """A limit that follows what the service can take; see `aiosmrt._policy.limit.ConcurrencyLimit`.

    Args:
        initial: where it begins, in calls.
        minimum: its floor, at least 1.
        maximum: its ceiling.

    Raises:
        ValueError: not 1 <= minimum <= initial <= maximum.

    Example:
        >>> rule = AdaptiveRule(initial=8, minimum=1, maximum=100)
        >>> rule.on_throttle(started_at=0.0, now=0.001, in_flight=8)
        >>> rule.limit, rule.reason
        (7, 'refusal')
    """

    __slots__ = (
        "_anchor",
        "_base",
        "_blind",
        "_cut_at",
        "_cut_from",
        "_direction",
        "_elastic",
        "_exact",
        "_failed_cuts",
        "_fast",
        "_former_peak",
        "_high",
        "_lagging",
        "_last",
        "_last_refused_at",
        "_left",
        "_level",
        "_peak",
        "_peak_left",
        "_recent",
        "_ref",
        "_refused",
        "_refused_level",
        "_restoring",
        "_reversals",
        "_round_trips",
        "_samples",
        "_shared",
        "_slow",
        "_tested",
        "_tested_from",
        "_times",
        "_until_cut",
        "limit",
        "maximum",
        "minimum",
        "reason",
    )

    def __init__(self, *, initial: int, minimum: int, maximum: int) -> None:
        if not 1 <= minimum <= initial <= maximum:
            raise ValueError(
                f"a limit needs 1 <= minimum <= initial <= maximum; got {minimum}, {initial} and {maximum}"
            )
        self.minimum: int = minimum
        self.maximum: int = maximum
        self.limit: int = initial
        self.reason: Reason | None = "start"
        self._exact = float(initial)
        # The batch: round trips in seconds, how many are to come, and how many of them tested the limit.
        self._times: list[float] = []
        self._left = 1
        self._tested = 0
        self._tested_from = 0.0
        # Averages of the spread and the level, and both without waiting.
        self._samples = 0
        self._last = 0.0
        self._fast = self._slow = self._ref = 0.0
        self._level = self._base = 0.0
        self._until_cut = 0
        # The logarithm of the limit as it is behind the averages, and that and the level at an earlier time.
        self._lagging = log(initial)
        self._anchor = (self._lagging, 0.0)
        # Refusals: whether there was any, the round trips since, and what tells of other clients.
        self._refused = False
        self._refused_level = 0.0
        self._round_trips = 0.0
        self._last_refused_at = 0
        self._direction = 0
        self._reversals = 0.0
        self._shared = 0.0
        self._high = float(initial)
        # The level and the limit before the cut that is on trial, cuts without effect, round trips still to go blind.
        self._cut_from: tuple[float, float] | None = None
        self._failed_cuts = 0
        self._blind = 0.0
        self._cut_at = -inf
        # The largest limits of this and the former stretch of round trips, and what is restored after an outage.
        self._peak = self._former_peak = initial
        self._peak_left = 2.0
        self._restoring = 0
        self._recent: deque[int] = deque(maxlen=REMEMBERED)
        self._elastic = _Elasticity()
        self._set(self._exact)

    @property
    def learns(self) -> bool:
        """True: every success counts, at the maximum too."""
        return True

    @property
    def round_trip(self) -> float | None:
        """The present round trip in seconds, as a geometric mean; None before the first success."""
        return exp(self._level) if self._samples else None

    def on_success(self, started_at: float, now: float, in_flight: int, *, sent_among: int = 0) -> None:
        """Take note of a success; see `ConcurrencyLimit.on_success`."""
        self._times.append(now - started_at)
        if sent_among:
            self._recent.append(sent_among)
        if in_flight >= self._tested_from:
            self._tested += 1
        self._left = left = self._left - 1
        if not left:
            self._look()

    def on_throttle(
        self, started_at: float, now: float, in_flight: int, *, sent_among: int = 0, strict: bool = True
    ) -> None:
        """Lower the limit by one, less for an accident, unless calls that still hold their slots explain it."""
        says_little = not strict and is_accident(self._recent, sent_among)
        if sent_among:
            self._recent.append(-sent_among)
        if says_little:
            if in_flight <= self.limit + 1:
                self._round_trips *= 1 - _ACCIDENT
                self._move(self._exact - _ACCIDENT, "refusal")
            return
        self._refused = True
        self._refused_level = self._level
        self._restoring = 0
        direction = (in_flight > self._last_refused_at) - (in_flight < self._last_refused_at)
        self._last_refused_at = in_flight
        if in_flight < max(2.0, _FEWER * self._high):
            # Not long ago it took more.
            self._shared = _SHARED_FOR
        elif direction:
            self._reversals += 0.1 * ((direction == -self._direction) - self._reversals)
            self._direction = direction
            if self._reversals > _REVERSALS:
                self._shared = _SHARED_FOR
        if in_flight <= self.limit + 1:
            self._round_trips = 0.0
            self._elastic.reset()
            self._move(self._exact - 1, "refusal")

    def on_timeout(self, started_at: float, now: float, in_flight: int) -> None:
        """Lower the limit by three tenths, once per round trip."""
        if started_at > self._cut_at:
            self._cut_at = now
            self._elastic.reset()
            self._move(0.7 * self._exact, "timeout")

    def on_answer(self, started_at: float, now: float, in_flight: int) -> None:
        """Do nothing: that a model failed, or is not ready yet, says nothing about load."""

    def on_recovery(self, now: float) -> None:
        """Begin a slow start to the largest limit of the last round trips before the outage."""
        self._restoring = max(self._peak, self._former_peak, self.limit)
        self._shared = 0.0
        self._high = 0.0
        self._elastic.reset()
        self._forget_batch()
        self._move(max(self.minimum, min(FIRST_WINDOW, self._restoring)), "recovery")

    def _move(self, exact: float, reason: Reason) -> None:
        before = self.limit
        self._set(exact)
        if self.limit != before:
            self.reason = reason

    def _set(self, exact: float) -> None:
        self._exact = exact = min(max(exact, self.minimum), self.maximum)
        self.limit = limit = int(exact)
        self._tested_from = _TESTED * limit
        if not self._times:
            self._left = 1 if self._restoring else min(max(limit // 2, _SMALLEST_BATCH), _LARGEST_BATCH)

    def _forget_batch(self) -> None:
        self._times.clear()
        self._tested = 0

    def _look(self) -> None:
        """Judge a batch of successes."""
        count, tested = len(self._times), 2 * self._tested >= len(self._times)
        mean = self._average(count)
        self._forget_batch()
        limit = self._exact
        trips = count / limit
        self._round_trips += trips
        self._shared = max(0.0, self._shared - trips)
        self._blind = max(0.0, self._blind - trips)
        self._until_cut -= count
        self._remember(trips)
        if self._restoring:
            exact = limit + count
            if exact >= self._restoring:
                exact, self._restoring = max(limit, float(self._restoring)), 0
            self._move(exact, "recovery")
        elif tested:
            self._decide(count, mean)
        # so that the next batch is as long as it should be
        self._set(self._exact)

    def _remember(self, trips: float) -> None:
        self._peak = max(self._peak, self.limit)
        self._high = max(
            self._exact, self._high - min(1.0, trips / _ROUND_TRIPS_TO_FORGET) * (self._high - self._exact)
        )
        self._peak_left -= trips
        if self._peak_left <= 0:
            self._former_peak, self._peak = self._peak, self.limit
            self._peak_left = 2.0

    def _average(self, count: int) -> float:
        """Take a batch into the averages.

        Returns:
            Its mean level.
        """
        times = self._times
        if min(times) < _SHORTEST:
            # A clock may stand still between two events.
            times = [max(seconds, _SHORTEST) for seconds in times]
        logs = [*map(log, times)]
        if not self._samples:
            self._last = logs[0]
        spread = (abs(logs[0] - self._last) + sum(map(abs, map(sub, logs, logs[1:])))) / count
        mean = sum(logs) / count
        self._last = logs[-1]
        self._samples = samples = self._samples + count
        if samples <= _FIRST or self._is_waitless(samples, mean):
            share = count / samples
            self._fast += share * (spread - self._fast)
            self._slow = self._ref = self._fast
            self._level += max(share, min(1.0, count / _LEVEL)) * (mean - self._level)
            self._base += share * (mean - self._base)
            self._lagging = log(self._exact)
            self._anchor = (self._lagging, self._level)
            return mean
        self._fast += (1 - (1 - 1 / _FAST) ** count) * (spread - self._fast)
        self._slow += (1 - (1 - 1 / _SLOW) ** count) * (spread - self._slow)
        self._level += (1 - (1 - 1 / _LEVEL) ** count) * (mean - self._level)
        self._compare(count)
        above = self._level - self._base
        if above < 0.1 * self._ref:
            self._base += (count / _SLOW if above < 0 else count / _DRIFT) * above
            self._ref += count / _CREEP * (self._slow - self._ref)
        elif self._slow > self._ref:
            # A queue that comes and goes scatters regular round trips, too.
            reach = _CREEP if self._ref >= _REGULAR else _REGULAR_CREEP
            self._ref += count / reach * (self._slow - self._ref)
        return mean

    def _compare(self, count: int) -> None:
        """Correct the spread without waiting where the limit grew and round trips show that no queue did."""
        # Averages lag behind the limit by a round trip and their own reach.
        self._lagging += min(1.0, count / (self._exact + _LEVEL)) * (log(self._exact) - self._lagging)
        size, level = self._anchor
        moved, risen = self._lagging - size, self._level - level
        if moved < 0:
            self._anchor = (self._lagging, self._level)
        elif moved >= max(_NEAR, _FAR_BY_SPREAD * self._ref):
            is_far = moved >= _FAR
            if -0.2 < risen < (_NO_QUEUE if is_far else _CLEARLY_NO_QUEUE) * moved:
                self._ref += 0.7 * min(0.0, self._slow - self._ref)
            elif not is_far:
                return
            self._anchor = (self._lagging, self._level)

    def _is_waitless(self, samples: int, mean: float) -> bool:
        return samples <= _WAITLESS and self._level - self._base < 0.05 + 0.2 * self._ref

    def _decide(self, count: int, mean: float) -> None:
        limit, ref = self._exact, self._ref
        waitless = self._is_waitless(self._samples, mean)
        if not waitless and ref < _REGULAR and (not self._refused or self._round_trips > _UNREFUSED):
            factor = self._elastic.judge(count, mean, limit)
            if factor != 1.0:
                self._move(limit * factor, "growth" if factor > 1 else "waiting")
            return
        push = 1.0
        if not waitless and ref >= _REGULAR:
            ratio = min(1.0, self._fast / ref)
            theta = _SQUEEZED - _SQUEEZED_BY_SPREAD * ref
            if ratio < theta and (ratio < theta - 0.1 or self._slow < theta * ref):
                if self._until_cut <= 0 and not self._blind and (not self._shared or ratio < 0.55):
                    self._cut(max(0.5, (ratio / theta) ** 0.7))
                    return
                if not (self._shared or self._blind):
                    return
            push = min(max((ratio - theta) / 0.2, 0.0), 1.0)
        self._grow(count, push)

    def _cut(self, factor: float) -> None:
        """Lower the limit because calls wait, after having looked at what the last such cut has done."""
        if self._cut_from is not None:
            level, size = self._cut_from
            # Others fill the queue if the round trips did not follow.
            if level - self._level < 0.2 * size:
                self._failed_cuts += 1
                if self._failed_cuts >= 2:
                    self._failed_cuts, self._blind = 0, _BLIND_FOR
            else:
                self._failed_cuts = 0
        size = -log(factor)
        self._cut_from = (self._level, size) if factor <= 0.78 else None
        self._until_cut = self.limit + _FAST
        self._move(self._exact * factor, "waiting")

    def _grow(self, count: int, push: float) -> None:
        limit = self._exact
        step = min(_STEP, _STEP_SHARE * limit)
        if not self._refused or self._level < self._refused_level - max(_SHORTER, _SHORTER_BY_SPREAD * self._ref):
            gain = (_FIRST_GROWTH if self._samples <= _WAITLESS else _GROWTH) * push * count
        else:
            faster = 1 + (self._round_trips / _ROUND_TRIPS_TO_DOUBLE) ** 2
            gain = min(_GROWTH * limit, step * faster) * push * count / limit
        if self._shared or self._blind:
            gain = max(gain, step * count / limit)
        if gain:
            self._move(limit + gain, "growth")

    def __repr__(self) -> str:
        return f"<AdaptiveRule limit={self.limit} minimum={self.minimum} maximum={self.maximum} reason={self.reason}>"


class _Elasticity:
    """By how much round trips change where the number of calls does: steps up and down, for regular service times."""

    __slots__ = ("_before", "_collected", "_move", "_skip", "_sum", "_up")

    def __init__(self) -> None:
        self._up = True
        self._move = _SMALLEST_MOVE
        self.reset()

    def reset(self) -> None:
        """Begin anew: the limit was moved by something else."""
        # The logarithm of the limit and the level of the last measurement.
        self._before: tuple[float, float] | None = None
        self._skip = 0.0
        self._collected = 0
        self._sum = 0.0

    def judge(self, count: int, mean: float, limit: float) -> float:
        """Take in a batch.

        Returns:
            What to multiply the limit by; 1.0 while measuring.
        """
        # Calls that were sent under the former limit say nothing about this one.
        if self._skip > 0:
            self._skip -= count
            return 1.0
        self._collected += count
        self._sum += count * mean
        if self._collected < max(_FEW if self._move > _LARGE_MOVE else _ENOUGH, limit):
            return 1.0
        level, size = self._sum / self._collected, log(limit)
        if self._before is not None:
            size_before, level_before = self._before
            moved, risen = size - size_before, level - level_before
            if (unexplained := risen - max(moved, 0.0)) > _SLOWER:
                # The service has become slower. If that is a queue, so many fewer calls do as well.
                self._before = (size, level)
                self._up, self._move = False, _SMALLEST_MOVE
                return self._moved_by(max(0.3, exp(-unexplained)), limit)
            up = risen < _QUEUE * moved if moved > 0 else risen > _QUEUE * moved
            if up != self._up:
                # Too far: back, and on from there in small steps.
                self._before = (size, level)
                self._up, self._move = up, _SMALLEST_MOVE
                return self._moved_by(min(max(exp(-moved), 0.6), 1 + _LARGE_MOVE), limit)
            self._move = min(2 * self._move, _LARGEST_MOVE if risen < 0.5 * moved else _LARGE_MOVE)
        self._before = (size, level)
        return self._moved_by(1 + self._move if self._up else 1 / (1 + self._move), limit)

    def _moved_by(self, factor: float, limit: float) -> float:
        self._collected, self._sum = 0, 0.0
        self._skip = limit * max(1.0, factor)
        return factor
