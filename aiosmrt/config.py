"""Settings as frozen dataclasses, with the defaults and why, and what a number in a setting may be."""

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Final, Self

from aiosmrt.errors import ParamValidationError

__all__ = ["DEFAULT_MAX_ATTEMPTS", "UNSET", "RetryPolicy", "Unset", "faulty_limits", "is_seconds", "is_whole"]

# AWS standard mode: one call and two retries.
DEFAULT_MAX_ATTEMPTS = 3


class Unset:
    """Stands for an argument that was not given, where None is a value."""

    def __repr__(self) -> str:
        return "<not given>"


UNSET: Final = Unset()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed attempt is repeated, and after how long.

    The defaults are the AWS SDKs' standard mode, revision 2.1, plus what SageMaker Runtime's own errors need.
    A change is ``dataclasses.replace(policy, …)``.

    Args:
        max_attempts: requests per call including the first; None takes ``AWS_MAX_ATTEMPTS``, then the profile's
            ``max_attempts``, then 3.
        base_delay: back-off base in seconds for transient errors: a retry waits up to ``base_delay * 2**n``.
        throttling_base_delay: the same for throttling and for a model that is still loading.
        max_delay: the longest back-off in seconds.
        retry_read_timeouts: whether a call that timed out while reading is sent again. Off, because the model may
            still be running: a second request doubles its load.
        retry_stale_connections: whether a request is sent again, on a fresh connection and without counting as an
            attempt, when a pooled connection turns out to have been closed by the service before a byte of the
            response came. Off, it is an ordinary connection error, which the other rules then judge.
        retry_model_statuses: the container's own statuses (ModelError's OriginalStatusCode) that are retried, such as
            ``{429, 503}``; 0 stands for a container that timed out. None are by default.
        bucket_tokens: size of the client's retry bucket; it bounds the share of retries while the service is ill.
        retry_cost: tokens that a retry takes.
        throttling_retry_cost: tokens that a retry after throttling takes.

    Raises:
        ParamValidationError: a number is out of its range, or a switch is neither True nor False.

    >>> RetryPolicy(max_attempts=1).max_attempts
    1
    """

    max_attempts: int | None = None
    base_delay: float = 0.05
    throttling_base_delay: float = 1.0
    max_delay: float = 20.0
    retry_read_timeouts: bool = False
    retry_stale_connections: bool = True
    retry_model_statuses: Set[int] = frozenset()
    bucket_tokens: int = 500
    retry_cost: int = 14
    throttling_retry_cost: int = 5

    def __post_init__(self) -> None:
        faults = []
        if self.max_attempts is not None and not is_whole(self.max_attempts, 1):
            faults.append(f"retry.max_attempts must be a whole number from 1, or None; got {self.max_attempts!r}")
        faults += [
            f"retry.{name} must be seconds from 0; got {value!r}"
            for name in ("base_delay", "throttling_base_delay", "max_delay")
            if not is_seconds(value := getattr(self, name))
        ]
        faults += [
            f"retry.{name} must be a whole number from 0; got {value!r}"
            for name in ("bucket_tokens", "retry_cost", "throttling_retry_cost")
            if not is_whole(value := getattr(self, name), 0)
        ]
        faults += [
            f"retry.{name} must be True or False; got {value!r:.80}"
            for name in ("retry_read_timeouts", "retry_stale_connections")
            if not isinstance(value := getattr(self, name), bool)
        ]
        statuses: object = self.retry_model_statuses
        if not isinstance(statuses, Set) or not all(is_whole(status, 0) for status in statuses):
            faults.append(f"retry.retry_model_statuses must be a set of statuses; got {statuses!r:.80}")
        else:
            object.__setattr__(self, "retry_model_statuses", frozenset(statuses))
        if faults:
            raise ParamValidationError(faults)

    @classmethod
    def from_retries(cls, retries: Mapping[str, Any]) -> Self:
        """Read the ``retries`` dictionary of ``botocore.config.Config``.

        Args:
            retries: ``total_max_attempts`` counts the first request, ``max_attempts`` does not, and the first wins over
                the second; ``mode`` may be ``"standard"``, ``"legacy"`` or ``"adaptive"``, which all mean this policy.

        Raises:
            ParamValidationError: an unknown key or a value out of range, by botocore's own rules.

        >>> RetryPolicy.from_retries({"max_attempts": 4, "mode": "standard"}).max_attempts
        5
        """
        faults = [
            f'Unknown parameter in retries: "{key}", must be one of: max_attempts, mode, total_max_attempts'
            for key in retries
            if key not in ("max_attempts", "mode", "total_max_attempts")
        ]
        mode = retries.get("mode")
        if mode not in (None, "legacy", "standard", "adaptive"):
            faults.append(f"retries.mode must be legacy, standard or adaptive; got {mode!r}")
        for key, least in (("max_attempts", 0), ("total_max_attempts", 1)):
            value = retries.get(key)
            if value is not None and not is_whole(value, least):
                faults.append(f"retries.{key} must be a whole number from {least}; got {value!r}")
        if faults:
            raise ParamValidationError(faults)
        if (total := retries.get("total_max_attempts")) is not None:
            return cls(max_attempts=total)
        if (again := retries.get("max_attempts")) is not None:
            return cls(max_attempts=again + 1)
        return cls()


def faulty_limits(**limits: object) -> list[str]:
    """What is wrong with time limits, each of which may be None.

    >>> faulty_limits(deadline=2.5, read_timeout=None, part_timeout=0)
    ['part_timeout must be a positive number of seconds, or None; got 0']
    """
    return [
        f"{name} must be a positive number of seconds, or None; got {value!r:.80}"
        for name, value in limits.items()
        if value is not None and not (is_seconds(value) and value)
    ]


def is_seconds(value: object) -> bool:
    """Whether this is a finite number from 0.

    >>> is_seconds(0.5), is_seconds(0), is_seconds(-1), is_seconds(float("nan")), is_seconds(True)
    (True, True, False, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def is_whole(value: object, least: int) -> bool:
    """Whether this is a whole number from ``least`` on.

    >>> is_whole(3, 1), is_whole(0, 1), is_whole(1.0, 1), is_whole(True, 1)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
