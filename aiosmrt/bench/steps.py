"""What the steps of a load test come to: their figures, the knee, and when to stop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from aiosmrt._report.histogram import Histogram
from aiosmrt._report.timeline import Timeline

__all__ = ["PERCENTS", "UNFINISHED", "LoadReport", "Model", "Step", "knee", "lateness_note", "over_saturation"]

Model: TypeAlias = Literal["closed", "open"]

PERCENTS: Final = (50.0, 90.0, 95.0, 99.0, 99.9)

UNFINISHED: Final = "Unfinished"
"""The cause of calls that had no answer when their step had long ended, and were cancelled."""

# A step has to bring so much more than the best one before, or it is one beyond the service's capacity.
_BRINGS_MORE: Final = 1.05
_STEPS_BEYOND: Final = 2
# Of an open model: calls in flight grow by this share of the rate.
_GROWTH: Final = 0.1
# So many standard deviations of their number are chance.
_CHANCE: Final = 3.0
_MOST_FAILURES: Final = 0.5

# Lateness that shows in the figures: more than a timer's, and than a share of the median latency.
_LATE_SECONDS: Final = 0.005
_LATE_SHARE: Final = 0.1


@dataclass(kw_only=True)
class Step:
    """What was measured under one load.

    Attributes:
        model: whether the load is a number of callers, or a rate.
        load: the number of callers, or calls per second.
        seconds: how long calls were made.
        sent: calls made.
        succeeded: calls that succeeded, those that ended after the step among them.
        within_slo: successes that were as fast as wanted; all of them if nothing was said.
        completed: successes that ended within the step.
        good: those of them that were as fast as wanted.
        failures: failed calls by cause.
        latency: seconds of successes; in an open model from the time at which a call was meant to begin.
        first_part: seconds to the first part of a stream.
        gaps: seconds between the parts of a stream.
        lateness: seconds by which the load test itself began calls late; an open model's only.
        in_flight_midway: calls in flight after half of the step.
        in_flight_at_end: calls in flight at its end.
        overflowed: whether it ended early because too many calls were in flight.
    """

    model: Model
    load: float
    seconds: float = 0.0
    sent: int = 0
    succeeded: int = 0
    within_slo: int = 0
    completed: int = 0
    good: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    first_part: Histogram = field(default_factory=Histogram)
    gaps: Histogram = field(default_factory=Histogram)
    lateness: Histogram = field(default_factory=Histogram)
    in_flight_midway: int = 0
    in_flight_at_end: int = 0
    overflowed: bool = False

    @property
    def failed(self) -> int:
        """Failed calls."""
        return self.failures.total()

    @property
    def throughput(self) -> float:
        """Successes per second."""
        return self.completed / self.seconds if self.seconds else 0.0

    @property
    def goodput(self) -> float:
        """Successes per second that were as fast as wanted."""
        return self.good / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Its figures as JSON has them; seconds, and None for what was not measured."""
        return {
            "model": self.model,
            "load": self.load,
            "seconds": self.seconds,
            "sent": self.sent,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "failures": dict(self.failures.most_common()),
            "within_slo": self.within_slo,
            "throughput": self.throughput,
            "goodput": self.goodput,
            "latency": self.latency.as_dict(),
            "first_part": self.first_part.as_dict() if self.first_part.count else None,
            "gaps": self.gaps.as_dict() if self.gaps.count else None,
            "lateness": self.lateness.as_dict() if self.lateness.count else None,
            "in_flight_at_end": self.in_flight_at_end,
            "overflowed": self.overflowed,
        }


def knee(steps: Sequence[Step]) -> Step | None:
    """The step beyond which more load brings waiting rather than answers; None if nothing succeeded under a load that
    the service could keep up with.

    It is the one with the most throughput for its mean latency (the power of Kleinrock, "Power and deterministic rules
    of thumb for probabilistic problems in computer communications", ICC 1979): while a service has something free, load
    brings throughput at the same latency, and once it is full, latency at the same throughput.

    Args:
        steps: all steps.
    """

    def power(step: Step) -> float:
        return step.throughput / step.latency.mean if step.latency.count and step.latency.mean > 0 else 0.0

    # Where calls come faster than they are answered, latency depends on when the step ends.
    best = max((step for step in steps if not _falls_behind(step)), key=power, default=None)
    return best if best is not None and power(best) > 0 else None


def _falls_behind(step: Step) -> bool:
    """Whether calls of an open model came faster than they were answered."""
    if step.overflowed or step.model == "closed" or not step.seconds:
        return step.overflowed
    growth = step.in_flight_at_end - step.in_flight_midway
    is_chance = growth <= _CHANCE * math.sqrt(step.in_flight_at_end)
    return not is_chance and growth > _GROWTH * step.load * step.seconds / 2


def over_saturation(steps: Sequence[Step]) -> str | None:
    """Why no step should follow; None if one may.

    Args:
        steps: those that were made, in the order of their loads.
    """
    last = steps[-1]
    if last.overflowed:
        return f"too many calls were in flight at once: {last.in_flight_at_end:,}"
    if last.sent and last.failed > _MOST_FAILURES * last.sent:
        return f"{last.failed / last.sent:.0%} of the calls failed"
    if last.model == "open":
        if _falls_behind(last):
            return (
                f"calls came faster than they were answered: {last.in_flight_midway:,} were in flight after half of "
                f"the step, {last.in_flight_at_end:,} at its end"
            )
        return None
    before, beyond = steps[:-_STEPS_BEYOND], steps[-_STEPS_BEYOND:]
    best = max((step.throughput for step in before), default=0.0)
    if before and all(step.throughput < _BRINGS_MORE * best for step in beyond):
        return f"more callers brought no more answers: {best:,.4g} a second before, {last.throughput:,.4g} now"
    return None


def lateness_note(step: Step) -> str | None:
    """What to say if the load test itself was late; None if it was in time.

    Args:
        step: one of an open model.
    """
    late = step.lateness.percentile(99)
    if late >= _LATE_SECONDS and late >= _LATE_SHARE * step.latency.percentile(50):
        return (
            f"at {step.load:g} calls/s, 1 % of the calls began {late * 1000:,.3g} ms late or more, because the machine "
            "of the test was busy; latencies include that"
        )
    return None


@dataclass(kw_only=True)
class LoadReport:
    """What a load test came to.

    Attributes:
        steps: what was measured under each load.
        knee: the step beyond which more load brings waiting rather than answers; None if there is none.
        stopped: why it ended before all steps were made; None if it did not.
        finished: False if it was interrupted.
        seconds: how long it took.
        timeline: the same over time.
    """

    steps: list[Step] = field(default_factory=list)
    knee: Step | None = None
    stopped: str | None = None
    finished: bool = True
    seconds: float = 0.0
    timeline: Timeline = field(default_factory=Timeline)

    def as_dict(self) -> dict[str, Any]:
        """Its figures as JSON has them."""
        return {
            "steps": [step.as_dict() for step in self.steps],
            "knee": None if self.knee is None else self.knee.load,
            "stopped": self.stopped,
            "finished": self.finished,
            "seconds": self.seconds,
        }
