"""How often to look for a result that is not announced."""

from typing import Final

__all__ = ["FIRST_PAUSE", "MAX_PAUSE", "next_pause"]

# Seconds. Small models answer within the first looks; an hour's wait costs 360 more.
FIRST_PAUSE: Final = 0.2
MAX_PAUSE: Final = 10.0

_GROWTH: Final = 1.5


def next_pause(pause: float) -> float:
    """The pause after the next look.

    Args:
        pause: the one before it, in seconds; 0 for the first.

    >>> next_pause(0)
    0.2
    >>> round(next_pause(0.2), 2), next_pause(9.0), next_pause(10.0)
    (0.3, 10.0, 10.0)
    """
    return min(max(FIRST_PAUSE, pause * _GROWTH), MAX_PAUSE)
