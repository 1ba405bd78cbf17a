"""Schedules of scripted faults, and the script of an endpoint.

>>> from aiosmrt.local.faults import ResetBeforeHeaders, throttling
>>> script = FaultScript([throttling().next(1), ResetBeforeHeaders().every(3)], random.Random(7))
>>> [tuple(effect.name for effect in script.effects("InvokeEndpoint").values()) for _ in range(4)]
[('throttling',), (), ('reset_before_headers',), ()]
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from aiosmrt._wire.operations import BY_NAME, INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM, OPENAI_OPERATIONS
from aiosmrt.errors import ConfigurationError

__all__ = ["Effect", "Fault", "FaultScript", "Faults", "Schedule", "Stage", "as_faults"]


Stage = Literal["clock", "answer", "body", "connection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A set of calls of an endpoint.

    Args:
        next: this many calls, starting with the next one. If None, no limit.
        every: each n-th call. If None, each.
        probability: the chance of each call, from 0 to 1. If None, 1.
        operation: only calls of the operation with this name, and only these are counted. If None, all.

    Raises:
        ConfigurationError: a number out of range, or an unknown operation.
    """

    next: int | None = None
    every: int | None = None
    probability: float | None = None
    operation: str | None = None

    def __post_init__(self) -> None:
        if self.next is not None and self.next < 1:
            raise ConfigurationError(f"next must be an integer >= 1; got {self.next}")
        if self.every is not None and self.every < 1:
            raise ConfigurationError(f"every must be an integer >= 1; got {self.every}")
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise ConfigurationError(f"probability must be a number from 0 to 1; got {self.probability}")
        if self.operation is not None and self.operation not in _OPERATIONS:
            raise ConfigurationError(f"operation must be one of {', '.join(_OPERATIONS)}; got {self.operation!r}")


@dataclass(frozen=True, slots=True)
class Fault:
    """An effect on scheduled calls.

    Args:
        effect: the effect.
        schedule: the calls.
    """

    effect: Effect
    schedule: Schedule


_OPERATIONS = (
    *BY_NAME,
    INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM.name,
    *(operation.name for operation in OPENAI_OPERATIONS),
)


class Effect:
    """A failure in an exchange; its methods schedule it."""

    __slots__ = ()
    stage: ClassVar[Stage]

    @property
    def name(self) -> str:
        """The effect's name in the request log and in TOML."""
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__).lstrip("_")

    def next(self, calls: int = 1, *, operation: str | None = None) -> Fault:
        """Schedule it for this many calls, starting with the next one. Defaults to one."""
        return Fault(self, Schedule(next=calls, operation=operation))

    def every(self, calls: int, *, operation: str | None = None) -> Fault:
        """Schedule it for each n-th call."""
        return Fault(self, Schedule(every=calls, operation=operation))

    def with_probability(self, probability: float, *, operation: str | None = None) -> Fault:
        """Schedule it for each call with this chance, drawn from the runtime's random source."""
        return Fault(self, Schedule(probability=probability, operation=operation))

    def always(self, *, operation: str | None = None) -> Fault:
        """Schedule it for every call."""
        return Fault(self, Schedule(operation=operation))


Faults = Effect | Fault | Iterable[Effect | Fault]


@dataclass(slots=True)
class _Entry:
    fault: Fault
    calls: int = 0
    applied: int = 0


class FaultScript:
    """The faults of one endpoint, and how often each has been applied.

    Args:
        faults: in order of precedence; a bare effect applies to every call.
        chance: the source of random numbers.
    """

    def __init__(self, faults: Iterable[Effect | Fault], chance: random.Random) -> None:
        self._chance = chance
        self._entries: list[_Entry] = []
        self.extend(faults)

    def extend(self, faults: Iterable[Effect | Fault]) -> Self:
        """Add faults at the end."""
        self._entries += [_Entry(fault if isinstance(fault, Fault) else fault.always()) for fault in faults]
        return self

    def clear(self) -> None:
        """Remove all faults."""
        self._entries.clear()

    def effects(self, operation: str) -> dict[Stage, Effect]:
        """Count a call, and return the effects that apply to it, by stage."""
        effects: dict[Stage, Effect] = {}
        for entry in self._entries:
            schedule, effect = entry.fault.schedule, entry.fault.effect
            if schedule.operation is not None and schedule.operation != operation:
                continue
            entry.calls += 1
            due = (
                (schedule.next is None or entry.applied < schedule.next)
                and (schedule.every is None or entry.calls % schedule.every == 0)
                and (schedule.probability is None or self._chance.random() < schedule.probability)
            )
            if due and effect.stage not in effects:
                entry.applied += 1
                effects[effect.stage] = effect
        return effects


def as_faults(faults: Faults) -> list[Effect | Fault]:
    """Return one fault or several as a list.

    Raises:
        ConfigurationError: something other than a fault is among them.
    """
    items = [faults] if isinstance(faults, (Effect, Fault)) else list(faults)
    for fault in items:
        if not isinstance(fault, (Effect, Fault)):
            raise ConfigurationError(f"a fault must be an effect or a Fault; got {type(fault).__name__}")
    return items
