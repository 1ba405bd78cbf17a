"""How many calls to one target may be in flight, found without being told: the rule behind ``AdaptiveLimit``.

Theory of operation
-------------------
What a client sees of a service is round trips and refusals. Refusals are plain: the service takes one call less than
were in flight. Round trips are not: they grow both where calls wait in a silent queue, which more calls only lengthen,
and in a server that batches, which more calls make productive. No threshold on latency tells the two apart.

- *Spread.* Waiting adds the same time to every round trip, so it squeezes the spread of their logarithms; batching
  multiplies them, and leaves that spread alone. The rule compares the present spread (the standard deviation of the
  logarithms of a batch of round trips) with the one when nothing waited. Where it is squeezed, the limit is cut in
  proportion; where it is not, the limit grows. The order of the round trips says nothing: calls that were sent
  together come back in the order of their times, so that each is like the one before. But where a batch is far from
  the level, a queue grows or shrinks within it, and only neighbours show the spread.
- *Rate.* Service times that hardly vary leave little spread to be squeezed, but little noise either. There the rule
  measures: calls in flight divided by their round trip are the rate at which calls complete (Little's law). While the
  rate grows with their number the limit goes up, where it does not the limit goes back and stays, and tries a
  little more from time to time. Round trips that become longer without more calls lower it at once, to what gives the
  rate that is left; if fewer calls do not shorten them, the service itself has become slower, and it goes up again.
- *Refusals.* A refusal takes one off the limit, and a round trip of successes adds a fraction of a call, more and more
  the longer nothing is refused. At a hard capacity there is no sawtooth, a drop is followed by exactly the
  excess, and clients that share a service tend to the same limit, because what they add and lose is the same. A
  refusal that the number of calls does not explain, because as many got through lately, takes off
  little more than a quarter.
- *Outages* are `aiosmrt._policy.target_health`'s; afterwards the largest limit of the last round trips before is
  approached by one for each success.
- *Others in the queue.* Where cuts do not shorten the round trips, other clients fill the queue, and leaving it to them
  does not shorten it. The limit goes back to what it was before the cuts, and there are none for a while. Refusals at
  ever changing numbers of calls in flight show other clients too.

A limit that is not in use is not tested, and does not move. Round trips are looked at in batches, with functions that
loop in C: that keeps the cost of a success at a fraction of a microsecond.

Times are seconds of whichever monotonic clock the caller uses throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, dist, exp, inf, log, log2, pi, sqrt
from operator import sub
from typing import Final, Literal

from aiosmrt._policy.limit import FIRST_WINDOW, REMEMBERED, Reason, is_accident
from aiosmrt.config import is_whole, shown
from aiosmrt.errors import ParamValidationError

__all__ = ["AdaptiveLimit", "AdaptiveRule"]

_INITIAL: Final = 4

# Successes that are looked at together: so much of a round trip's, within these bounds.
_ROUND_TRIPS_OF_BATCH: Final = 0.7
_SMALLEST_BATCH: Final = 8
_SMALL_BATCH: Final = 24
_LARGEST_BATCH: Final = 64
# By how much more, where that completes a measurement.
_STRETCHED: Final = 1.5
# What a round trip that a coarse clock reads as 0 counts for, in seconds.
_SHORTEST: Final = 1e-6
# Logarithms of round trips are taken to the base of 2: math.log2 has one argument, and costs half of math.log or less.
_LN_2: Final = log(2)
# A limit of which less is in use is not being tested.
_TESTED: Final = 0.7

# Successes over which averages reach: of the spread, a fast and a slow one, and of the logarithm of the round trip.
_FAST: Final = 48
_SLOW: Final = 128
_LEVEL: Final = 32
# The share of a batch of so many in each of the three.
_SHARES: Final = tuple(
    tuple(1 - (1 - 1 / reach) ** count for reach in (_FAST, _SLOW, _LEVEL))
    for count in range(int(_STRETCHED * _LARGEST_BATCH) + 1)
)
# The spread of a batch of so many for the distance of its logarithms from their mean: the standard deviation, without
# the bias of a small sample, times the mean difference between two normal numbers of standard deviation 1.
_SPREADS: Final = (
    0.0,
    0.0,
    *(
        _LN_2 * (1 + 0.25 / (count - 1)) / sqrt(count - 1) * 2 / sqrt(pi)
        for count in range(2, int(_STRETCHED * _LARGEST_BATCH) + 1)
    ),
)
# Successes that tell spread and level without waiting at the start, and at most so many while the level stays.
_FIRST: Final = 48
_WAITLESS: Final = 128
# By then, batches have the size of later ones.
_SETTLED: Final = _WAITLESS + int(_STRETCHED * _LARGEST_BATCH)
# Successes over which the spread without waiting follows a larger one.
_CREEP: Final = 240
_REGULAR_CREEP: Final = 4000
# Successes over which the level without waiting follows a slightly higher one.
_DRIFT: Final = 512

# The share of its spread without waiting below which calls wait; less where the spread is wide, because a little
# waiting squeezes that more.
_SQUEEZED: Final = 0.92
_SQUEEZED_BY_SPREAD: Final = 0.19

# What the difference of two levels scatters by, in spreads, and at least; how many times that is a difference; the
# elasticity below which nothing waits whatever was measured; and the successes that the spread without waiting is known
# from.
_DOUBT: Final = 0.6
_LEAST_DOUBT: Final = 0.25
_DOUBTLESS: Final = 1.4
_NO_QUEUE: Final = 0.8
_KNOWN: Final = 64.0
# By how much less the spread may be in the meantime, in what a mean of so many scatters by, if it is chance: for growth
# that nothing holds back, as far as this (the difference of logarithms); and to correct the one without waiting, if
# round trips rose by less than this share of the growth.
_CHANCE: Final = 2.0
_FREELY: Final = 0.3
_LITTLE_CHANCE: Final = 1.7
_CLEARLY_NO_QUEUE: Final = 0.65

# How far the mean of a batch is from the level if it is a trend, in spreads.
_TREND: Final = 1.3

# What the spread exceeds that share by where growth is not held back.
_FULL_PUSH: Final = 0.2

# Growth: calls per success while nothing was ever refused, at first and later; calls per round trip otherwise, at most
# and relative to a small limit; and the round trips after which that has doubled.
_FIRST_GROWTH: Final = 0.2
_GROWTH: Final = 0.3
_STEP: Final = 0.5
_STEP_SHARE: Final = 0.15
_LARGE: Final = 28.0
_ROUND_TRIPS_TO_DOUBLE: Final = 6.0

# What a refusal takes off that the number of calls does not explain. Nothing would have clients that share a service
# refused all the time, one would make a few refusals at random costly.
_ACCIDENT: Final = 0.27

# By how much shorter round trips (the difference of logarithms; times the spread, where that is wide) show more
# capacity than there was at the last refusal.
_SHORTER: Final = 0.3
_SHORTER_BY_SPREAD: Final = 0.5

# Round trips for which a finding about other clients holds, and the share of its spread without waiting below which
# calls wait for whomever.
_SHARED_FOR: Final = 100.0
_BLIND_FOR: Final = 300.0
_CLEARLY_SQUEEZED: Final = 0.55
# Cuts that are put to the test together (the difference of logarithms), the share of it by which round trips must have
# become shorter, and how much longer ones make the test void.
_TRIAL: Final = 0.5
_IN_VAIN: Final = 0.2
_RISING: Final = 0.15
_REVERSALS: Final = 0.2
# The share of the limit in flight at a refusal from which on it is the limit that decides how many are. Below, calls
# hold their slots in back-off, and the number is chance.
_GOVERNED: Final = 0.85
_FEWER: Final = 0.7
# Round trips in which a limit that falls so far shows less capacity, and not others; and the calls below the largest at
# which it begins to fall.
_SUDDEN: Final = 10.0
_CLOSE: Final = 1.0
_ROUND_TRIPS_TO_FORGET: Final = 50.0

# Round trips of which the largest limit is remembered for an outage; so many before them, too.
_STRETCH: Final = 2.0
# Answers that are kept for a refusal, of which `REMEMBERED` are looked at.
_TOO_MANY: Final = 8 * REMEMBERED

# Spreads below this have nothing to be squeezed, and need other means: they are looked at once in so many successes, to
# see whether they still are. The round trips without a refusal before that.
_REGULAR: Final = 0.08
_STILL_REGULAR: Final = 192
_UNREFUSED: Final = 16.0
# Successes that make a measurement, if they are whole round trips; the elasticity of the round trip that shows a queue;
# and how many times longer round trips are that show less capacity, in a batch and in a measurement.
_ENOUGH: Final = 24
_WAITS: Final = 0.93
_GAIN: Final = 0.04
_SLOWER: Final = 1.35
_LONGER: Final = 1.1
# Steps up: to find out whether there is room for more, where there is, and where round trips do not grow.
_SMALL_STEP: Final = 0.08
_LARGE_STEP: Final = 0.3
_LARGEST_STEP: Final = 1.0
# Round trips between such steps, how many more for each one that failed, and at most.
_HOLD: Final = 4.0
_HOLD_LONGER: Final = 2.0
_LONGEST_HOLD: Final = 8.0
# The share of the largest rate at which some calls may wait, if round trips are so much longer than the shortest.
_FULL: Final = 0.985
_NEAR: Final = 1.03
_SMALLEST_BACK: Final = 0.025
_LARGEST_BACK: Final = 0.3


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
        "_anchor_level",
        "_anchor_samples",
        "_anchor_size",
        "_base",
        "_batch",
        "_below",
        "_blind_until",
        "_climb",
        "_cut_at",
        "_cut_from",
        "_direction",
        "_exact",
        "_fast",
        "_former_peak",
        "_free",
        "_high",
        "_highest",
        "_is_trial",
        "_last",
        "_last_refused_at",
        "_left",
        "_level",
        "_peak",
        "_peak_until",
        "_recent",
        "_ref",
        "_refused",
        "_refused_level",
        "_refused_trips",
        "_restoring",
        "_reversals",
        "_samples",
        "_sent",
        "_shared_until",
        "_size",
        "_slow",
        "_spread_since",
        "_times",
        "_trial",
        "_trips",
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
        # The batch: round trips in seconds, among how many calls each was sent, how many are to come, and how many a
        # batch of this limit has.
        self._times: list[float] = []
        self._sent: list[int] = []
        self._left = self._batch = 1
        # Round trips so far.
        self._trips = 0.0
        # Averages of the spread and the level, and both without waiting; the spread as the mean difference between the
        # logarithms of two round trips.
        self._samples = 0
        self._last = 0.0
        self._fast = self._slow = self._ref = 0.0
        self._level = self._base = 0.0
        # The samples after which the limit may be cut again.
        self._cut_from = 0
        # The logarithm of the number of calls, averaged as the level is; both at an earlier time, the samples by then,
        # and the sum of the spread since.
        self._size = 0.0
        self._anchor_size = self._anchor_level = 0.0
        self._anchor_samples, self._spread_since = 0, 0.0
        # The logarithm of the number up to which round trips have shown that nothing waits.
        self._free = 0.0
        # Refusals: whether there was any, from which round trip growth counts, and what tells of other clients.
        self._refused = False
        self._refused_level = 0.0
        self._refused_trips = 0.0
        self._last_refused_at = 0
        self._direction = 0
        self._reversals = 0.0
        self._shared_until = 0.0
        # The largest limit lately, slowly forgotten, and the round trips for which it was clearly lower.
        self._high = float(initial)
        self._below = 0.0
        # The level and the limit before the cuts that are on trial, the highest level since, and the round trip from
        # which the limit may be cut again.
        self._trial = (0.0, 0.0)
        self._is_trial = False
        self._highest = 0.0
        self._blind_until = 0.0
        self._cut_at = -inf
        # The largest limits of this and the former stretch of round trips, and what is restored after an outage.
        self._peak = self._former_peak = initial
        self._peak_until = _STRETCH
        self._restoring = 0
        # What was sent among how many, the newest last, with a minus if it was refused; no more of it is read than
        # `REMEMBERED`.
        self._recent: list[int] = []
        self._climb = _Climb(maximum)
        self._set(self._exact)

    @property
    def learns(self) -> bool:
        """True: every success counts, at the maximum too."""
        return True

    @property
    def round_trip(self) -> float | None:
        """The present round trip in seconds, as a geometric mean; None before the first success."""
        return exp(self._level) if self._samples else None

    def on_success(self, started_at: float, now: float, in_flight: int, sent_among: int = 0) -> None:
        """Take note of a success; see `ConcurrencyLimit.on_success`."""
        self._times.append(now - started_at)
        self._sent.append(sent_among or in_flight)
        self._left = left = self._left - 1
        if not left:
            self._look()

    def on_throttle(
        self, started_at: float, now: float, in_flight: int, *, sent_among: int = 0, strict: bool = True
    ) -> None:
        """Lower the limit by one, less for an accident, unless calls that still hold their slots explain it."""
        recent = self._recent
        del recent[:-REMEMBERED]
        says_little = not strict and is_accident((*recent, *self._sent), sent_among)
        if sent_among:
            recent.append(-sent_among)
        if says_little:
            if in_flight <= self.limit + 1:
                self._refused_trips += _ACCIDENT * (self._trips - self._refused_trips)
                self._move(self._exact - _ACCIDENT, "refusal")
            return
        self._refused = True
        self._refused_level = self._level
        self._free = 0.0
        self._restoring = 0
        direction = 0
        # At a hard capacity, one more or less is refused in turn.
        if abs(in_flight - self._last_refused_at) >= (2 if in_flight >= 8 else 1):
            direction = 1 if in_flight > self._last_refused_at else -1
            self._last_refused_at = in_flight
        if in_flight < max(2.0, _FEWER * self._high):
            # Not long ago it took more: others have their share, unless it is capacity that was lost at a stroke.
            if self._below < _SUDDEN:
                self._high = in_flight / _FEWER
            else:
                self._shared_until = self._trips + _SHARED_FOR
        elif direction and in_flight >= _GOVERNED * self.limit:
            self._reversals += 0.1 * ((direction == -self._direction) - self._reversals)
            self._direction = direction
            if self._reversals > _REVERSALS:
                self._shared_until = self._trips + _SHARED_FOR
        if in_flight <= self.limit + 1:
            self._refused_trips = self._trips
            self._climb.reset()
            self._move(self._exact - 1, "refusal")

    def on_timeout(self, started_at: float, now: float, in_flight: int) -> None:
        """Lower the limit by three tenths, once per round trip."""
        if started_at > self._cut_at:
            self._cut_at = now
            self._climb.reset()
            self._move(0.7 * self._exact, "timeout")

    def on_answer(self, started_at: float, now: float, in_flight: int) -> None:
        """Do nothing: that a model failed, or is not ready yet, says nothing about load."""

    def on_recovery(self, now: float) -> None:
        """Begin a slow start to the largest limit of the last round trips before the outage."""
        self._restoring = max(self._peak, self._former_peak, self.limit)
        self._shared_until = self._high = 0.0
        self._climb.reset()
        self._recent += self._sent
        self._times, self._sent = [], []
        self._move(max(self.minimum, min(FIRST_WINDOW, self._restoring)), "recovery")

    def _move(self, exact: float, reason: Reason | None) -> None:
        before = self.limit
        self._set(exact)
        if self.limit != before:
            self.reason = reason

    def _set(self, exact: float) -> None:
        if exact < self.minimum:
            exact = float(self.minimum)
        elif exact > self.maximum:
            exact = float(self.maximum)
        self._exact = exact
        limit = int(exact)
        if limit != self.limit or self._samples <= _SETTLED:
            self.limit = limit
            least = _SMALL_BATCH if self._samples > _WAITLESS else _SMALLEST_BATCH
            self._batch = max(least, min(int(limit * _ROUND_TRIPS_OF_BATCH), _LARGEST_BATCH))
        if not self._times:
            self._left = left = self._batch
            if self._restoring:
                self._left = 1
            elif self._ref < _REGULAR and 0 < self._climb.left <= _STRETCHED * left:
                self._left = self._climb.left

    def _look(self) -> None:
        """Judge a batch of successes."""
        # Here and below, what is used twice is a local name: this is most of what a success costs.
        times, sent, limit = self._times, self._sent, self._exact
        self._times, self._sent = [], []
        recent = self._recent
        recent += sent
        if len(recent) > _TOO_MANY:
            del recent[:-REMEMBERED]
        count, calls = len(times), sum(sent)
        trips = count / limit
        self._trips = passed = self._trips + trips
        if self.limit > self._peak:
            self._peak = self.limit
        if passed >= self._peak_until:
            self._former_peak, self._peak = self._peak, self.limit
            self._peak_until = passed + _STRETCH
        above = self._high - limit
        if above:
            self._high = self._high - min(1.0, trips / _ROUND_TRIPS_TO_FORGET) * above if above > 0 else limit
            # The largest limit is never quite forgotten: one that stands still close to it is not falling.
            self._below = self._below + trips if above > _CLOSE else 0.0
        seconds = 0.0
        if self._ref < _REGULAR:
            # A clock may stand still between two events.
            seconds = max(sum(times), _SHORTEST * count)
        if seconds and self._samples > _WAITLESS:
            self._average_regular(times, seconds, calls)
        else:
            self._average(times, calls)
        if self._restoring:
            exact = limit + count
            if exact >= self._restoring:
                exact, self._restoring = max(limit, float(self._restoring)), 0
            self._move(exact, "recovery")
        elif calls >= _TESTED * self.limit * count:
            self._decide(times, seconds, calls)
        else:
            self._set(limit)

    def _average(self, times: list[float], calls: int) -> None:
        """Take a batch, sent among so many in sum, into the averages."""
        try:
            logs = [*map(log2, times)]
        except ValueError:
            logs = [log2(max(seconds, _SHORTEST)) for seconds in times]
        count, ref = len(times), self._ref
        mean = sum(logs) / count
        if count == 1 or ref < _REGULAR or abs(_LN_2 * mean - self._level) > _TREND * ref:
            # From each to the next, and from the one before them to the first: of regular round trips a few that are
            # far longer would make all of the standard deviation, and so would a queue that grows or shrinks.
            before = self._last if self._samples else logs[0]
            spread = _LN_2 * (sum(map(abs, map(sub, logs, logs[1:]))) + abs(logs[0] - before)) / count
        else:
            spread = _SPREADS[count] * dist(logs, [mean] * count)
        self._last = logs[-1]
        mean *= _LN_2
        size = log(calls / count)
        self._samples = samples = self._samples + count
        if samples <= _WAITLESS and (samples <= _FIRST or self._is_waitless()):
            share = count / samples
            self._fast += share * (spread - self._fast)
            self._slow = self._ref = self._fast
            share_of_level = max(share, min(1.0, count / _LEVEL))
            self._level += share_of_level * (mean - self._level)
            self._size += share_of_level * (size - self._size)
            self._base += share * (mean - self._base)
            self._mark()
            return
        of_fast, of_slow, share = _SHARES[count]
        self._fast += of_fast * (spread - self._fast)
        self._slow = slow = self._slow + of_slow * (spread - self._slow)
        self._level = level = self._level + share * (mean - self._level)
        self._size = size = self._size + share * (size - self._size)
        self._spread_since += spread * count
        if level > self._highest:
            self._highest = level
        moved = size - self._anchor_size
        if moved < 0:
            self._mark()
        elif moved > _DOUBTLESS * _DOUBT * _LEAST_DOUBT:
            self._compare(moved)
            ref = self._ref
        above = level - self._base
        if above < 0.1 * ref:
            self._base += (count / _SLOW if above < 0 else count / _DRIFT) * above
            self._ref = ref + count / _CREEP * (slow - ref)
        elif slow > ref:
            # A queue that comes and goes scatters regular round trips, too.
            self._ref = ref + count / (_CREEP if ref >= _REGULAR else _REGULAR_CREEP) * (slow - ref)

    def _average_regular(self, times: list[float], seconds: float, calls: int) -> None:
        """The same of regular round trips, so many seconds in sum, whose spread is looked at now and then."""
        count, ref = len(times), self._ref
        share = _SHARES[count][2]
        self._samples += count
        self._level = level = self._level + share * (log(seconds / count) - self._level)
        above = level - self._base
        if above < 0.1 * ref:
            self._base += (count / _SLOW if above < 0 else count / _DRIFT) * above
        since = self._samples - self._anchor_samples
        if since >= _STILL_REGULAR and count >= _SMALLEST_BATCH:
            spread = sum(map(abs, map(sub, times, times[1:]))) / seconds * count / (count - 1)
            of_fast, of_slow, _ = _SHARES[count]
            self._fast += of_fast * (spread - self._fast)
            self._slow += of_slow * (spread - self._slow)
            self._size = log(calls / count)
            if above < 0.1 * ref or self._slow > ref:
                reach = _CREEP if above < 0.1 * ref else _REGULAR_CREEP
                self._ref = ref + min(1.0, since / reach) * (self._slow - ref)
            self._mark()

    def _mark(self) -> None:
        self._anchor_size, self._anchor_level = self._size, self._level
        self._anchor_samples, self._spread_since = self._samples, 0.0

    def _compare(self, moved: float) -> None:
        """Correct the spread without waiting where more calls were sent and round trips show that no queue grew.

        Args:
            moved: by how much, as a difference of logarithms.
        """
        ref, risen = self._ref, self._level - self._anchor_level
        # What the averages scatter by.
        doubt = _DOUBT * max(ref, _LEAST_DOUBT)
        if moved > _DOUBTLESS * doubt:
            if -0.2 < risen < min(moved - doubt, _NO_QUEUE * moved):
                since = self._samples - self._anchor_samples
                spread = self._spread_since / since
                less, scatter = ref - spread, ref * sqrt(1 / _WAITLESS + 1 / since)
                # Even less is squeezed: a queue began within this growth.
                if less < _CHANCE * scatter:
                    self._free = self._size + _FREELY
                if 0 < less < _LITTLE_CHANCE * scatter and risen < _CLEARLY_NO_QUEUE * moved:
                    self._ref = ref + since / (since + _KNOWN) * (spread - ref)
            elif moved < 3 * doubt:
                return
            self._mark()

    def _is_waitless(self) -> bool:
        return self._samples <= _WAITLESS and self._level - self._base < 0.05 + 0.2 * self._ref

    def _decide(self, times: list[float], seconds: float, calls: int) -> None:
        """Move the limit after a batch, so many seconds in sum, sent among so many in sum."""
        limit, ref, trips, count = self._exact, self._ref, self._trips, len(times)
        push = 1.0
        if self._samples <= _WAITLESS and self._is_waitless():
            pass
        elif ref < _REGULAR:
            if not self._refused or trips - self._refused_trips > _UNREFUSED:
                # It may be this batch that has made them regular.
                climb = self._climb
                wanted = climb.judge(count, seconds or max(sum(times), _SHORTEST * count), calls, limit)
                if wanted != limit or self._samples <= _SETTLED:
                    self._move(wanted, "growth" if wanted > limit else "waiting")
                else:
                    left, usual = climb.left, self._batch
                    self._left = left if 0 < left <= _STRETCHED * usual else usual
                return
        else:
            ratio = self._fast / ref
            if ratio > 1.0:
                ratio = 1.0
            theta = _SQUEEZED - _SQUEEZED_BY_SPREAD * ref
            if ratio < theta and (ratio < theta - 0.1 or self._slow < theta * ref):
                shared = trips < self._shared_until
                if (
                    self._samples >= self._cut_from
                    and trips >= self._blind_until
                    and (not shared or ratio < _CLEARLY_SQUEEZED)
                ):
                    self._move(self._cut(max(0.5, (ratio / theta) ** 0.7)), "waiting")
                    return
                if not shared:
                    self._set(limit)
                    return
            if self._size >= self._free and ratio < theta + _FULL_PUSH:
                push = (ratio - theta) / _FULL_PUSH if ratio > theta else 0.0
        if limit < self.maximum or self._samples <= _SETTLED:
            self._move(self._grown(count, push), "growth")
        else:
            self._left = self._batch

    def _cut(self, factor: float) -> float:
        """Return the limit after a cut, or the one before a few of them, if round trips have not followed."""
        level, limit = self._trial
        if not self._is_trial or limit < self._exact or self._highest > level + _RISING:
            # Where round trips became longer at the same time, the queue was only becoming visible.
            self._trial, self._is_trial, self._highest = (self._level, self._exact), True, self._level
        elif (size := log(limit / self._exact)) >= _TRIAL:
            self._is_trial = False
            if level - self._level < _IN_VAIN * size:
                # It is not this client's calls that wait for each other.
                self._blind_until = self._trips + _BLIND_FOR
                return limit
        self._free = 0.0
        self._cut_from = self._samples + self.limit + _FAST
        return self._exact * factor

    def _grown(self, count: int, push: float) -> float:
        limit, shared = self._exact, self._trips < self._shared_until
        step = _STEP if shared or limit <= _LARGE else _STEP * (limit / _LARGE) ** 0.8
        if step > _STEP_SHARE * limit:
            step = _STEP_SHARE * limit
        if not self._refused or self._level < self._refused_level - max(_SHORTER, _SHORTER_BY_SPREAD * self._ref):
            gain = (_FIRST_GROWTH if self._samples <= _WAITLESS else _GROWTH) * push * count
        else:
            faster = 1 + ((self._trips - self._refused_trips) / _ROUND_TRIPS_TO_DOUBLE) ** 2
            gain = min(_GROWTH * limit, step * max(1.0 if push else 0.0, faster * push)) * count / limit
        if shared:
            gain = max(gain, step * count / limit)
        return limit + gain

    def __repr__(self) -> str:
        return f"<AdaptiveRule limit={self.limit} minimum={self.minimum} maximum={self.maximum} reason={self.reason}>"


class _Climb:
    """The search for the number at which calls begin to wait, where service times hardly vary.

    By Little's law, calls in flight divided by their mean round trip are the rate at which calls complete. While the
    rate grows with their number, nothing waits; where it does not, all that was added waits. Means are arithmetic and
    over whole round trips, because regular calls move in lockstep: of one call too many, a round trip takes twice as
    long, all others as long as before.
    """

    __slots__ = (
        "_back",
        "_calls",
        "_clear",
        "_count",
        "_failures",
        "_full",
        "_lowest",
        "_maximum",
        "_mode",
        "_needed",
        "_seconds",
        "_skip",
        "_slow",
        "_step",
        "_trips",
        "_usual",
        "left",
    )

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        # The shortest round trip, and the largest rate at which calls complete.
        self._lowest = inf
        self.reset()

    def reset(self) -> None:
        """Begin anew: the limit was moved by something else."""
        # Calls in flight and their mean round trip where nothing is known to wait; no calls before a measurement.
        self._usual = (0.0, 0.0)
        # The same where calls may wait, and the rate there; 0 where that is not known.
        self._slow = (1.0, 1.0)
        self._full = 0.0
        self._mode: Literal["up", "down", "hold"] = "up"
        self._step = _LARGE_STEP
        self._back = _SMALLEST_BACK
        # The largest number at which clearly nothing waits.
        self._clear = 0.0
        self._failures = 0
        self._trips = 0.0
        self._skip = 0.0
        # The measurement: successes, the sum of their round trips and that of the calls among which they were sent, and
        # the successes that it needs; 0 where that is not known.
        self._count, self._seconds, self._calls, self._needed = 0, 0.0, 0, 0
        # Successes to its end, or to its begin; 0 where that is not known.
        self.left = 0

    def _begin(self, skip: float, limit: float) -> None:
        """Begin a measurement, without so many calls that were sent before."""
        self._skip = skip
        self._count, self._seconds, self._calls = 0, 0.0, 0
        whole = max(int(limit), 1)
        trips = -(-_ENOUGH // whole)
        if trips == 1 and self._mode == "up" and self._step < 0.1:
            trips = 2
        self._needed = whole * trips
        self.left = ceil(skip) if skip > 0 else self._needed

    def judge(self, count: int, seconds: float, calls: int, limit: float) -> float:
        """Take in a batch.

        Args:
            count: the successes.
            seconds: the sum of their round trips.
            calls: the sum of the calls among which each was sent.
            limit: the limit.

        Returns:
            The limit that should be; the same while measuring.
        """
        mode = self._mode
        usual = self._usual[1]
        if seconds > _SLOWER * usual * count and usual and (mode != "down" or calls > 1.2 * limit * count):
            among = calls / count
            wanted = self._at_the_rate_of(among, seconds / count, 2.0 if mode == "up" else _SLOWER)
            if wanted < 0.8 * limit:
                self._slow = (among, seconds / count)
                self._mode = "down"
                self._begin(max(self._skip, among), limit)
                self.left = 0
                return max(wanted, 0.25 * limit)
        if self._skip > 0:
            skip = self._skip - count
            self._skip = skip
            if skip > 0:
                self.left = ceil(skip)
            else:
                self._begin(skip, limit)
            return limit
        if not self._needed:
            self._begin(0.0, limit)
        self._count = count = self._count + count
        self._seconds = seconds = self._seconds + seconds
        self._calls = calls = self._calls + calls
        left = self._needed - count
        if left > 0:
            self.left = left
            return limit
        seconds /= count
        self._trips += count / limit
        if seconds < self._lowest:
            self._lowest = seconds
        if mode == "hold":
            wanted = self._held(calls / count, seconds, limit)
            if wanted == limit and self._mode == mode:
                # The next one is like this one.
                self._count, self._seconds, self._calls, self.left = 0, 0.0, 0, self._needed
                return limit
        else:
            wanted = self._measured(calls / count, seconds, limit)
        self._begin(max(limit, wanted) if int(wanted) != int(limit) else 0.0, wanted)
        return wanted

    def _at_the_rate_of(self, number: float, seconds: float, times: float) -> float:
        """The calls that complete as fast with the usual round trip, if they take so many times longer; else inf."""
        size, usual = self._usual
        # Even if all that was added waits, they should take no longer.
        return number * usual / seconds if seconds > times * usual * max(1.0, number / size) else inf

    def _measured(self, number: float, seconds: float, limit: float) -> float:
        if not self._usual[0]:
            self._usual, self._clear = (number, seconds), number
            return self._up(limit)
        size, usual = self._usual
        moved, risen = log(number / size), log(seconds / usual)
        if self._mode == "up":
            if risen > _WAITS * moved or (moved > 0.1 and moved - risen < _GAIN):
                # Too far, by what the rate did not grow.
                self._full = number / seconds
                self._failures += 1
                self._mode, self._trips, self._back = "hold", 0.0, _SMALLEST_BACK
                good = sqrt(size * self._clear)
                return max(min(self._full * usual, limit) if good == size else good, min(good, limit))
            was_clear, is_clear = self._clear == size, risen < 0.4 * moved
            # A knee may lie within this step.
            self._clear = size if was_clear and not is_clear else number
            self._usual, self._full = (number, seconds), 0.0
            self._failures = 0
            self._step = _LARGEST_STEP if is_clear and self._step >= _LARGE_STEP else _LARGE_STEP
            return self._up(limit)
        return self._lowered(number, seconds, limit)

    def _lowered(self, number: float, seconds: float, limit: float) -> float:
        before, slow = self._slow
        moved, risen = log(number / before), log(seconds / slow)
        if seconds <= 1.08 * self._lowest:
            pass
        elif risen <= _WAITS * moved or seconds > _LONGER * slow:
            # There is still a queue, or it is only becoming visible.
            self._slow = (number, seconds)
            return limit * max(0.25, self._usual[1] / seconds)
        elif risen > 0.5 * moved:
            # Fewer calls did not help: the service itself has become slower.
            self._usual, self._lowest, self._step = (number, seconds), seconds, _LARGE_STEP
            self._clear = number
            return self._up(limit)
        self._usual, self._full = (number, seconds), 0.0
        self._mode, self._trips, self._failures = "hold", 0.0, 0
        return limit

    def _held(self, number: float, seconds: float, limit: float) -> float:
        size, usual = self._usual
        if seconds > _LONGER * usual:
            wanted = self._at_the_rate_of(number, seconds, _LONGER)
            if wanted < limit:
                self._slow = (number, seconds)
                self._mode = "down"
                return wanted
        elif usual > _LONGER * seconds:
            self._failures = 0
            self._trips = inf
        # Not of another number of calls.
        self._usual = (number, usual + (0.3 if size == number else 1.0) * (seconds - usual))
        if number / seconds > _FULL * self._full > 0 and seconds > _NEAR * self._lowest:
            # As fast as with more calls: some of these wait as well.
            self._back = min(2 * self._back, _LARGEST_BACK)
            return max(min(limit * (1 - self._back), limit - 1), 1.0)
        if self._back > _SMALLEST_BACK:
            before, self._back = limit / (1 - self._back), _SMALLEST_BACK
            return max(min(self._full * seconds * (1.0 if seconds < _NEAR * self._lowest else 0.98), before), limit)
        if self._trips >= min(_HOLD + _HOLD_LONGER * self._failures, _LONGEST_HOLD):
            self._step, self._clear = _SMALL_STEP, number
            return self._up(limit)
        return limit

    def _up(self, limit: float) -> float:
        if limit >= self._maximum:
            self._mode, self._trips = "hold", 0.0
            return limit
        self._mode = "up"
        return min(max(limit * (1 + self._step), limit + 1), self._maximum)
