"""Retry settings with their defaults and the reasons for them, and checks of numbers in settings."""

import math
import sys
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeAlias

from aiosmrt.errors import Cause, InvalidRetryModeError, ParamValidationError, RetriesError

__all__ = [
    "DEFAULT_PATIENCE",
    "JOB_PATIENCE",
    "RETRY_MODES",
    "UNSET",
    "RetryMode",
    "RetryPolicy",
    "Unset",
    "check_retry_mode",
    "faulty_limits",
    "is_seconds",
    "is_whole",
    "shown",
]

RetryMode: TypeAlias = Literal["legacy", "standard", "adaptive"]

RETRY_MODES: Final[tuple[RetryMode, ...]] = ("legacy", "standard", "adaptive")
"""botocore's retry modes, which bound a call's attempts and not its time."""

DEFAULT_PATIENCE: Final = 20.0
"""Seconds for which a call is repeated after its first failure."""

JOB_PATIENCE: Final = 600.0
"""The same for the calls of `aiosmrt.Endpoint.map`."""

# Requests per call including the first, and delays, of each mode (botocore.retries.standard, data/_retry.json).
_MODE_ATTEMPTS: Final[dict[RetryMode, int]] = {"legacy": 5, "standard": 3, "adaptive": 3}
_BASE_DELAY: Final = 0.05
_THROTTLING_BASE_DELAY: Final = 1.0
_THROTTLING_DELAY: Final = 0.25
_MAX_DELAY: Final = 20.0
_LEGACY_BASE_DELAY: Final = 1.0


class Unset:
    """Stands for an argument that was not given, where None is a value."""

    def __repr__(self) -> str:
        return "<not given>"


UNSET: Final = Unset()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed attempt is repeated, and after how long.

    By default time is the bound: a call is repeated until its client's ``patience`` or its deadline is over. A ``mode``
    is botocore's of that name, with its number of attempts and its delays. A change is
    ``dataclasses.replace(policy, …)``.

    Args:
        max_attempts: requests per call including the first. Defaults to ``AWS_MAX_ATTEMPTS``, then the profile's
            ``max_attempts``, then the mode's (``legacy`` 5, the others 3); without a mode, only time bounds them.
        base_delay: back-off base in seconds for transient errors: a retry waits up to ``base_delay * 2**n``. Defaults
            to 0.05; 1 in mode ``legacy``.
        throttling_base_delay: the same after throttling and while a model is loading. Defaults to 1; where no mode
            counts the attempts, a throttled call waits up to 0.25 however often it was.
        max_delay: the longest back-off in seconds. Defaults to 20, in mode ``legacy`` to ``math.inf``.
        mode: ``"standard"``, ``"adaptive"`` or ``"legacy"``. Defaults to ``AWS_RETRY_MODE``, then the profile's
            ``retry_mode``, unless the client is given a ``patience``.
        retry_read_timeouts: whether a call that timed out while reading is sent again. Off, because the model may
            still be running: a second request doubles its load.
        retry_stale_connections: whether a request is sent again, on a fresh connection and without counting as an
            attempt, when a pooled connection turns out to have been closed by the service before a byte of the
            response came. Off, it is an ordinary connection error, which the other rules then judge.
        retry_model_statuses: the container's own statuses (ModelError's OriginalStatusCode) that are retried, such as
            ``{429, 503}``; 0 stands for a container that timed out. None are by default.

    Raises:
        ParamValidationError: a number is out of its range, or a switch is neither True nor False.
        InvalidRetryModeError: an unknown mode.

    >>> RetryPolicy(max_attempts=1).max_attempts
    1
    >>> RetryPolicy(mode="legacy").delays("transient")
    (1.0, inf)
    """

    max_attempts: int | None = None
    base_delay: float | None = None
    throttling_base_delay: float | None = None
    max_delay: float | None = None
    mode: RetryMode | None = None
    retry_read_timeouts: bool = False
    retry_stale_connections: bool = True
    retry_model_statuses: Set[int] = frozenset()

    def __post_init__(self) -> None:
        check_retry_mode(self.mode)
        faults = []
        if self.max_attempts is not None and not is_whole(self.max_attempts, 1):
            faults.append(f"retry.max_attempts must be an integer >= 1, or None; got {shown(self.max_attempts)}")
        faults += [
            f"retry.{name} must be a non-negative number of seconds; got {shown(value)}"
            for name in ("base_delay", "throttling_base_delay", "max_delay")
            if not is_seconds(value := getattr(self, name))
            and not (name == "max_delay" and value == math.inf)
            and value is not None
        ]
        faults += [
            f"retry.{name} must be True or False; got {shown(value)}"
            for name in ("retry_read_timeouts", "retry_stale_connections")
            if not isinstance(value := getattr(self, name), bool)
        ]
        statuses: object = self.retry_model_statuses
        if not isinstance(statuses, Set) or not all(is_whole(status, 0) for status in statuses):
            faults.append(f"retry.retry_model_statuses must be a set of statuses; got {shown(statuses)}")
        else:
            object.__setattr__(self, "retry_model_statuses", frozenset(statuses))
        if faults:
            raise ParamValidationError(faults)

    def delays(self, cause: Cause) -> tuple[float, float]:
        """The back-off base and the longest back-off, in seconds.

        Args:
            cause: why the attempt failed.

        >>> RetryPolicy().delays("transient"), RetryPolicy().delays("model_not_ready")
        ((0.05, 20.0), (1.0, 20.0))
        """
        legacy = self.mode == "legacy"
        if cause in ("throttling", "model_not_ready", "model"):
            base = self.throttling_base_delay
            if base is None and cause == "throttling" and self.mode is None:
                # How hard a service that throttles is hit is up to its admission, so that delays need not grow.
                most = _MAX_DELAY if self.max_delay is None else self.max_delay
                return _THROTTLING_DELAY, min(_THROTTLING_DELAY, most)
            if base is None:
                base = _THROTTLING_BASE_DELAY
        else:
            base = self.base_delay
            if base is None:
                base = _LEGACY_BASE_DELAY if legacy else _BASE_DELAY
        longest = self.max_delay
        if longest is None:
            longest = math.inf if legacy else _MAX_DELAY
        return base, longest

    def attempts(self, configured: int | None) -> int | None:
        """Requests per call including the first; if None, only time bounds them.

        Args:
            configured: what environment and profile ask for, if anything.

        >>> RetryPolicy().attempts(None), RetryPolicy(mode="legacy").attempts(None), RetryPolicy().attempts(2)
        (None, 5, 2)
        """
        if self.max_attempts is not None:
            return self.max_attempts
        if configured is not None or self.mode is None:
            return configured
        return _MODE_ATTEMPTS[self.mode]

    @classmethod
    def from_retries(cls, retries: Mapping[str, Any]) -> Self:
        """Read the ``retries`` dictionary of ``botocore.config.Config``.

        Args:
            retries: ``total_max_attempts`` counts the first request, ``max_attempts`` does not, and the first wins over
                the second; ``mode`` is ``"standard"``, ``"legacy"`` or ``"adaptive"``.

        Raises:
            RetriesError: an unknown key or a value out of range, by botocore's own rules.
            InvalidRetryModeError: an unknown mode.

        >>> RetryPolicy.from_retries({"max_attempts": 4, "mode": "standard"}).max_attempts
        5
        """
        faults = [
            f'Unknown parameter in retries: "{key}", must be one of: max_attempts, mode, total_max_attempts'
            for key in retries
            if key not in ("max_attempts", "mode", "total_max_attempts")
        ]
        for key, least in (("max_attempts", 0), ("total_max_attempts", 1)):
            value = retries.get(key)
            if value is not None and not is_whole(value, least):
                faults.append(f"retries.{key} must be an integer >= {least}; got {shown(value)}")
        if faults:
            raise RetriesError(faults)
        mode = check_retry_mode(retries.get("mode"))
        if (total := retries.get("total_max_attempts")) is not None:
            return cls(max_attempts=total, mode=mode)
        if (again := retries.get("max_attempts")) is not None:
            return cls(max_attempts=again + 1, mode=mode)
        return cls(mode=mode)


def check_retry_mode(mode: object) -> RetryMode | None:
    """The mode, if it is one.

    Raises:
        InvalidRetryModeError: it is not one of `RETRY_MODES`.
    """
    if mode is None:
        return None
    for known in RETRY_MODES:
        if mode == known:
            return known
    invalid = InvalidRetryModeError(f'Invalid value provided to "mode": "{mode!s:.80}" must be one of: {RETRY_MODES}')
    invalid.kwargs = {"provided_retry_mode": mode, "valid_modes": RETRY_MODES}
    raise invalid


def shown(value: object) -> str:
    """A value for a message, cut to 80 characters.

    >>> shown("60"), shown(10**5000)
    ("'60'", 'an int')
    """
    try:
        return f"{value!r:.80}"
    except ValueError:  # an integer with more digits than Python prints
        return f"an {type(value).__name__}"


def faulty_limits(**limits: object) -> list[str]:
    """The faults of time limits, each of which may be None.

    >>> faulty_limits(deadline=2.5, read_timeout=None, part_timeout=0)
    ['part_timeout must be a positive number of seconds, or None; got 0']
    """
    return [
        f"{name} must be a positive number of seconds, or None; got {shown(value)}"
        for name, value in limits.items()
        if value is not None and not (is_seconds(value) and value)
    ]


def is_seconds(value: object) -> bool:
    """Whether this is a finite, non-negative number.

    >>> is_seconds(0.5), is_seconds(0), is_seconds(-1), is_seconds(float("nan")), is_seconds(True)
    (True, True, False, False, False)
    """
    # An integer beyond all floats cannot be waited for.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def is_whole(value: object, least: int) -> bool:
    """Whether this is an integer >= ``least``.

    >>> is_whole(3, 1), is_whole(0, 1), is_whole(1.0, 1), is_whole(True, 1)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
