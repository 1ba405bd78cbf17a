"""Settings that a view can override, checked when it is made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from aiosmrt._policy.retry import RetryBucket
from aiosmrt.config import (
    DEFAULT_PATIENCE,
    UNSET,
    RetryMode,
    RetryPolicy,
    Unset,
    faulty_limits,
    is_seconds,
    is_whole,
    shown,
)
from aiosmrt.errors import ParamValidationError
from aiosmrt.events import Observer

if TYPE_CHECKING:
    from aiosmrt._core.admission import Admissions
    from aiosmrt._core.template import RequestTemplate
    from aiosmrt._policy.send_rate import SendRate

__all__ = ["Quota", "View"]


class Quota:
    """What calls share in AWS's retry modes: an allowance of retries, and in mode ``adaptive`` a rate of requests."""

    __slots__ = ("bucket", "send_rate")

    def __init__(self) -> None:
        self.bucket = RetryBucket()
        self.send_rate: SendRate | None = None


class View:
    """The settings of a client, or of a view on it; see `aiosmrt.Client` for each argument.

    A view is not changed, but for what it finds out in its first call (`settle`) and the caches that it holds.

    Raises:
        ParamValidationError: a value is out of its range.
    """

    __slots__ = (
        "admissions",
        "connect_timeout",
        "deadline",
        "is_patient",
        "job_patience",
        "max_attempts",
        "max_response_bytes",
        "max_waiting",
        "observers",
        "patience",
        "patience_seconds",
        "patience_until_reached",
        "quota",
        "read_timeout",
        "retry",
        "rules",
        "settled",
        "sign",
        "templates",
        "user_agent",
        "wait_for_capacity",
    )

    def __init__(
        self,
        *,
        connect_timeout: float | None,
        read_timeout: float | None,
        deadline: float | None,
        patience: float | Unset | None,
        wait_for_capacity: float | None,
        max_waiting: int | None,
        max_response_bytes: int | None,
        retry: RetryPolicy,
        sign: bool,
        user_agent: str,
        observers: tuple[Observer, ...],
        admissions: Admissions,
        quota: Quota | None = None,
        patience_until_reached: float | None = None,
        job_patience: float | None = None,
    ) -> None:
        faults = faulty_limits(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            deadline=deadline,
            wait_for_capacity=wait_for_capacity,
        )
        if not (patience is None or isinstance(patience, Unset) or is_seconds(patience)):
            faults.append(f"patience must be a non-negative number of seconds, or None; got {shown(patience)}")
        elif retry.mode is not None and not isinstance(patience, Unset) and patience is not None:
            faults.append(f"patience cannot be given with retry mode {retry.mode!r}, which counts attempts; pass None")
        if max_waiting is not None and not is_whole(max_waiting, 0):
            faults.append(f"max_waiting must be an integer >= 0, or None; got {shown(max_waiting)}")
        if max_response_bytes is not None and not is_whole(max_response_bytes, 0):
            faults.append(f"max_response_bytes must be an integer >= 0, or None; got {shown(max_response_bytes)}")
        if not isinstance(sign, bool):
            faults.append(f"sign must be True or False; got {shown(sign)}")
        faults += [
            f"observers must be callables; got {type(observer)}" for observer in observers if not callable(observer)
        ]
        if faults:
            raise ParamValidationError(faults)
        self.connect_timeout = connect_timeout
        self.read_timeout = read_timeout
        self.deadline = deadline
        self.patience = patience
        self.wait_for_capacity = wait_for_capacity
        self.max_waiting = max_waiting
        self.max_response_bytes = max_response_bytes
        self.retry = retry
        self.sign = sign
        self.user_agent = user_agent
        self.observers = observers
        self.admissions = admissions
        self.quota = Quota() if quota is None else quota
        # seconds after which a call gives up while the service was never reached, where that is sooner
        self.patience_until_reached = patience_until_reached
        # the patience of the calls of a job, unless the caller chose one
        self.job_patience = job_patience
        # by the identities of request heads
        self.templates: dict[int, RequestTemplate] = {}
        # What environment and files have a say in, known from the first call on.
        self.settled = False
        self.rules = retry
        self.max_attempts: int | None = retry.max_attempts
        self.is_patient = True
        self.patience_seconds: float | None = None

    def settle(self, configured_mode: RetryMode | None, configured_attempts: int | None, now: float) -> None:
        """Take in what environment and profile say about retries.

        Args:
            configured_mode: the retry mode; None if none is configured.
            configured_attempts: requests per call; None if not configured.
            now: the client's time in seconds.
        """
        rules = self.retry
        if rules.mode is None and configured_mode is not None and isinstance(self.patience, Unset):
            rules = replace(rules, mode=configured_mode)
        self.rules = rules
        self.max_attempts = rules.attempts(configured_attempts)
        self.is_patient = rules.mode is None
        if rules.mode is not None:
            self.patience_seconds = None
        elif isinstance(self.patience, Unset):
            # A deadline bounds the call; without one it has to end as well.
            patience = DEFAULT_PATIENCE if self.job_patience is None else self.job_patience
            self.patience_seconds = patience if self.deadline is None else None
        else:
            self.patience_seconds = self.patience
        if rules.mode == "adaptive" and self.quota.send_rate is None:
            from aiosmrt._policy.send_rate import SendRate

            self.quota.send_rate = SendRate(now)
        self.settled = True

    def replace(self, **changes: Any) -> Self:
        """Another view with some settings changed; its quota of retries is its own where its ``retry`` is."""
        settings: dict[str, Any] = {
            "connect_timeout": self.connect_timeout,
            "read_timeout": self.read_timeout,
            "deadline": self.deadline,
            "patience": self.patience,
            "wait_for_capacity": self.wait_for_capacity,
            "max_waiting": self.max_waiting,
            "max_response_bytes": self.max_response_bytes,
            "retry": self.retry,
            "sign": self.sign,
            "user_agent": self.user_agent,
            "observers": self.observers,
            "admissions": self.admissions,
            "quota": self.quota,
            "patience_until_reached": self.patience_until_reached,
            "job_patience": self.job_patience,
        }
        if "retry" in changes:
            settings["quota"] = None
            if changes["retry"].mode is not None and "patience" not in changes:
                # The patience was the other policy's.
                settings["patience"] = UNSET
        return type(self)(**{**settings, **changes})
