"""When a target without capacity is asked again, and which answers end the wait for it.

An inference component that is scaled to zero refuses every call at once while it scales out, which takes minutes. One
call per target, its prober, sends its request again after pauses that double from about 1 s to about 15 s; the others
wait for what it finds out (`aiosmrt.capacitygate`). So capacity is noticed within 15 s of being there, however many
calls wait for it, and the service gets one of them at a time.

Everything is a function of its arguments: the clock and the random numbers are the caller's.
"""

from typing import Final

from aiosmrt.errors import Cause
from aiosmrt.policy.retry import backoff

__all__ = ["FIRST_PAUSE", "LET_IN_AFTER", "MAX_PAUSE", "ProbeSchedule", "ends_the_wait"]

FIRST_PAUSE: Final = 1.0
"""Seconds of the longest first pause, and the shortest time between a refusal and a call's last probe."""

MAX_PAUSE: Final = 15.0
"""Seconds of the longest pause."""

LET_IN_AFTER: Final = 10.0
"""Seconds after which an unanswered probe counts as let in: a refusal comes at once, a new copy's first inference may
take a minute, and the others had better not wait for its end."""

# They come from in front of the target (throttling, load balancers, the network, the signature's check).
_SILENT: Final = frozenset({"throttling", "transient", "connection", "clock_skew"})


def ends_the_wait(cause: Cause) -> bool:
    """Tell whether a probe that failed otherwise than for want of capacity lets the others go on.

    It does where the request got to a model (it failed, is loading, took too long, broke off: there is capacity), and
    where waiting makes no sense (parameters or credentials are refused, there is no such component). What says nothing
    about the target does not: the prober tries again as its retry policy has it, then the next one probes.

    Args:
        cause: the error's.

    Example:
        >>> ends_the_wait("model"), ends_the_wait("none"), ends_the_wait("throttling")
        (True, True, False)
    """
    return cause not in _SILENT


class ProbeSchedule:
    """When a target may be asked again; it outlives the prober, so that the next one goes on with its pause.

    Example:
        >>> schedule = ProbeSchedule()
        >>> schedule.refused(now=100.0, rand=0.5)
        >>> schedule.next_probe(until=130.0)
        100.75
    """

    __slots__ = ("_due", "_earliest", "_refusals")

    def __init__(self) -> None:
        self._refusals = 0
        self._due = 0.0
        self._earliest = 0.0

    def refused(self, now: float, rand: float, retry_after: float | None = None) -> None:
        """Plan the next probe after a refusal.

        Args:
            now: the time in seconds.
            rand: a random number in [0, 1); a pause is between half and all of what it may be, so that processes that
                began together do not ask together.
            retry_after: the service's hint in seconds, which lengthens the pause by at most 5 s; None when it gave
                none.
        """
        self._due = now + backoff(FIRST_PAUSE, self._refusals, MAX_PAUSE, (1 + rand) / 2, retry_after)
        self._earliest = now + backoff(FIRST_PAUSE, 0, FIRST_PAUSE, 1.0, retry_after)
        self._refusals += 1

    def next_probe(self, until: float) -> float | None:
        """When a prober whose time is limited sends its next request.

        Where the pause would outlast its time, it asks once more at the end of it, unless the last refusal was less
        than a first pause (or the service's hint) ago: many whose time ends together do not all ask.

        Args:
            until: the end of its time, in seconds of the clock that `refused` was given.

        Returns:
            Seconds of that clock, which may be past; None when there is no time for another probe.
        """
        if self._due <= until:
            return self._due
        return until if self._earliest <= until else None

    def __repr__(self) -> str:
        return f"<ProbeSchedule refusals={self._refusals}>"
