"""Whether a failed attempt is repeated, and after how long: time by default, AWS's retry modes for those who ask.

Theory of operation
-------------------
`classify` turns a service's answer into a *cause*; errors of the transport carry theirs already. At the first failure
of a call its caller makes a `RetryState`, asks `RetryState.decide` after every failed attempt, and waits for as long as
it says or gives up.

The default is a matter of time: a call is repeated for ``patience`` seconds after its first failure, or until its
deadline. Before retry number i (from 0) it waits t = ``rand * min(b * 2**i, max_delay)``, where b is 50 ms, or 1 s
while a model is loading, and up to 250 ms after throttling; a hint h from ``x-amz-retry-after`` (milliseconds) makes
it ``max(t, min(h, t + 5 s))``. How many calls may send, and whether any of them should, is decided per target
(`aiosmrt._policy.target_health`).

AWS's modes count attempts:

- ``standard``, revision 2.1 of the AWS SDKs: 3 attempts with the delays above, b being 1 s after throttling. A bucket
  of 500 tokens per client bounds retries while the service is ill: a retry takes 14, one after throttling 5, and
  without tokens the call fails. The success of a call returns what its last retry took, or 1 when it took nothing.
- ``adaptive``: the same, and `aiosmrt._policy.send_rate` delays requests.
- ``legacy``, botocore's oldest: 5 attempts, before retry number i a wait of ``rand * 2**i``, no bucket, no hints.

In all of them:

- ``model_not_ready`` (a multi-model endpoint is loading the model) is a matter of time and no sign of load: it takes no
  tokens, and *with a deadline* it is repeated until the deadline, whatever ``max_attempts`` is; those attempts do not
  count against the other causes either. Where ``max_attempts`` is 1 nothing is ever repeated.
- ``clock_skew`` is repeated once, at once and for nothing: the caller has corrected its clock in between.
- ``read_timeout`` is repeated only if the policy allows it, ``model`` only for the container statuses that it names.
- A stream is repeated only while no part of it was returned.
- Nothing is repeated when the wait would end at or past the call's deadline; no tokens are taken then. Without a mode
  the wait is cut to half of the time that is left instead, unless that is less than b, or the hint.

Everything is a function of its arguments: the clock and the random numbers are the caller's.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Final, Literal, NamedTuple, TypeAlias

from aiosmrt._policy.clockskew import MAX_SKEW, SIGNATURE_ERROR_CODES
from aiosmrt.config import RetryPolicy
from aiosmrt.errors import ERROR_CODES, Cause

MAX_HINT_EXTRA: Final = 5.0
"""Seconds by which ``x-amz-retry-after`` can lengthen a wait."""

TRANSIENT_STATUSES: Final = frozenset({408, 421, 500, 502, 503, 504, 530})
"""Statuses that say nothing about the request. 530 is SageMaker's InternalDependencyException; 408 and 421 come from
what is in between, for a request that went no further (RFC 9110, 15.5.9 and 15.5.20)."""

RETRY_COST: Final = 14
THROTTLING_RETRY_COST: Final = 5
"""Tokens of a `RetryBucket` that a retry takes, the second after throttling."""

_RETRYABLE: Final = frozenset(
    {"throttling", "model_not_ready", "transient", "connection", "truncated", "clock_skew"},
)
_FREE: Final = frozenset({"model_not_ready", "clock_skew"})

# Seconds since 1970 from which a year has five digits, which the ttl field cannot express.
_YEAR_10000: Final = 253_402_300_800

_NO_CAPACITY: Final = "Inference Component has no capacity to process this request."

# A UUID's version nibble and variant bits (RFC 9562, section 5.4); all others are random.
_UUID_VERSION_4: Final = (0x4 << 76) | (0x2 << 62)
_UUID_RANDOM: Final = (1 << 128) - 1 ^ ((0xF << 76) | (0x3 << 62))

StopReason: TypeAlias = Literal[
    "not_retryable",  # the cause, under this policy
    "stream_started",  # a part was returned already
    "clock_skew",  # the clock was corrected once, and the signature is refused still
    "max_attempts",
    "deadline",  # the wait would end past it
    "patience",  # it is over
    "retry_bucket",  # the client's retries are used up; successes refill it
]


def classify(status: int, code: str, *, skew: float | None = None) -> Cause:
    """Name the cause of a service's error, which is what retry decisions rest on.

    Args:
        status: the HTTP status, also that of the response in whose stream the error came.
        code: the error's code; empty without one (a proxy's page, an empty body).
        skew: for a refused signature, by how many seconds its time was off the service's clock; None when unknown.

    Returns:
        The cause; ``"none"`` when trying again would not help.

    >>> classify(400, "ThrottlingException"), classify(502, ""), classify(424, "ModelError")
    ('throttling', 'transient', 'model')
    >>> classify(403, "InvalidSignatureException", skew=-900.0)
    'clock_skew'
    """
    known = ERROR_CODES.get(code)
    if known is not None:
        return known.cause
    if code in SIGNATURE_ERROR_CODES:
        return "clock_skew" if skew is not None and abs(skew) > MAX_SKEW else "none"
    if status == 429:
        return "throttling"
    return "transient" if status in TRANSIENT_STATUSES else "none"


def is_no_capacity(code: str, message: str) -> bool:
    """Tell whether an inference component is scaled to zero and scaling out now.

    Only the start of the message counts, because further on it may quote what a client sent.

    >>> is_no_capacity("ValidationError", "Inference Component has no capacity to process this request. Wait.")
    True
    """
    return code == "ValidationError" and message.startswith(_NO_CAPACITY)


def is_endpoint_not_found(code: str, message: str) -> bool:
    """Tell whether the endpoint does not exist: ``Endpoint X of account Y not found.``

    Only the start of the message counts, because further on it may quote what a client sent.

    >>> is_endpoint_not_found("ValidationError", "Endpoint churn of account 123456789012 not found.")
    True
    """
    if code != "ValidationError" or not message.startswith("Endpoint "):
        return False
    words = message.split(" ", 7)[2:]
    return len(words) >= 5 and words[:2] == ["of", "account"] and words[3] == "not" and words[4].startswith("found.")


def parse_retry_after(header: str | None) -> float | None:
    """Read ``x-amz-retry-after``, the service's hint in whole milliseconds.

    Args:
        header: the header's value; None when it is absent.

    Returns:
        Seconds, or None when the header is absent, negative or no number; AWS's SDKs ignore it then.

    >>> parse_retry_after("1500"), parse_retry_after("-1"), parse_retry_after("soon")
    (1.5, None, None)
    """
    if header is None:
        return None
    digits = header.strip(" \t")
    # Longer than any wait could be, and far below the limits of int() and float().
    if len(digits) > 18 or not (digits.isascii() and digits.isdigit()):
        return None
    return int(digits) / 1000


def backoff(base: float, retries: int, max_delay: float, rand: float, retry_after: float | None = None) -> float:
    """Compute the wait before a retry.

    Args:
        base: the longest first wait in seconds; it doubles with every retry.
        retries: how many retries there were before this one.
        max_delay: the longest wait in seconds before the service's hint is considered.
        rand: a random number in [0, 1).
        retry_after: the service's hint in seconds; None when it gave none.

    Returns:
        Seconds; the hint can lengthen the wait by at most 5 s, and never shortens it.

    >>> backoff(0.05, 1, 20.0, 0.5)
    0.05
    >>> backoff(1.0, 0, 20.0, 0.5, retry_after=60.0)
    5.5
    """
    # A call that waits for its model may retry without end, and a float overflows at 2**1024.
    delay = rand * min(base * 2.0 ** min(retries, 64), max_delay)
    return delay if retry_after is None else max(delay, min(retry_after, delay + MAX_HINT_EXTRA))


class RetryBucketStatistics(NamedTuple):
    """A retry bucket's state at one moment.

    Args:
        tokens: what is left.
        max_tokens: what it holds when full.
        granted: retries that it let pass for tokens.
        refused: retries that it stopped.
    """

    tokens: int
    max_tokens: int
    granted: int
    refused: int


class RetryBucket:
    """An allowance of retries, which bounds their share among requests.

    Args:
        max_tokens: what it holds when full, as at the beginning; with 0 nothing is ever retried for tokens.

    >>> bucket = RetryBucket(20)
    >>> bucket.withdraw(14), bucket.withdraw(14)
    (True, False)
    >>> bucket.on_success()
    >>> bucket.statistics()
    RetryBucketStatistics(tokens=7, max_tokens=20, granted=1, refused=1)
    """

    __slots__ = ("_granted", "_max_tokens", "_refused", "_tokens", "is_full")

    def __init__(self, max_tokens: int = 500) -> None:
        self._max_tokens = max_tokens
        self._tokens = max_tokens
        self._granted = 0
        self._refused = 0
        # Whether it holds all that it can: read for every success, so an attribute and not a computation.
        self.is_full = True

    def withdraw(self, cost: int) -> bool:
        """Take ``cost`` tokens for a retry, all or none, and return whether they were there."""
        if cost > self._tokens:
            self._refused += 1
            return False
        self._tokens = tokens = self._tokens - cost
        self.is_full = tokens == self._max_tokens
        self._granted += 1
        return True

    def on_success(self, refund: int = 1) -> None:
        """Give tokens back after a call's success: what its last retry took, or 1 when it took nothing."""
        if not self.is_full:
            self._tokens = tokens = min(self._tokens + refund, self._max_tokens)
            self.is_full = tokens == self._max_tokens

    def statistics(self) -> RetryBucketStatistics:
        """Count tokens and retries."""
        return RetryBucketStatistics(self._tokens, self._max_tokens, self._granted, self._refused)

    def __repr__(self) -> str:
        return f"<RetryBucket tokens={self._tokens} max_tokens={self._max_tokens}>"


class RetryState:
    """One call's way through its attempts, from its first failure on.

    Args:
        policy: the rules.
        max_attempts: requests per call including the first. If None, only time bounds them.
        bucket: the allowance of retries that AWS's modes have. If None, retries are not counted.
        deadline: when the call must be over, in seconds of the clock that `decide` is given. If None, no limit.
        patience: seconds after the first failure during which the call is repeated. If None, no limit. It may be
            changed between two decisions.

    >>> state = RetryState(RetryPolicy(), deadline=10.0)
    >>> state.decide("transient", now=0.0, rand=0.5)
    0.025
    >>> state.decide("none", now=0.1, rand=0.5)
    'not_retryable'
    >>> state.attempt
    2
    """

    __slots__ = (
        "_bucket",
        "_corrected",
        "_deadline",
        "_loading_waits",
        "_policy",
        "_refund",
        "_retries",
        "failed_at",
        "max_attempts",
        "patience",
    )

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        max_attempts: int | None = None,
        bucket: RetryBucket | None = None,
        deadline: float | None = None,
        patience: float | None = None,
    ) -> None:
        self._policy = policy
        self.max_attempts = max_attempts
        self._bucket = bucket
        self._deadline = deadline
        self.patience = patience
        # when the first attempt failed; None before
        self.failed_at: float | None = None
        self._retries = 0
        self._loading_waits = 0
        self._refund = 1
        self._corrected = False

    @property
    def attempt(self) -> int:
        """The number of the attempt that is under way, or that was the last; the first is 1."""
        return 1 + self._retries + self._loading_waits

    def decide(
        self,
        cause: Cause,
        *,
        now: float,
        rand: float,
        retry_after: float | None = None,
        original_status: int | None = None,
        stream_started: bool = False,
        at_target: bool = False,
    ) -> float | StopReason:
        """Decide after a failed attempt; a wait as the answer begins the next attempt and takes its tokens.

        Args:
            cause: why the attempt failed.
            now: the time in seconds, of the deadline's clock.
            rand: a random number in [0, 1).
            retry_after: the service's hint in seconds (`parse_retry_after`); None when it gave none.
            original_status: the container's status where the cause is ``"model"``, 0 when it timed out.
            stream_started: whether a part of a response stream was returned.
            at_target: whether the call waits for its target next, which decides when it is sent; its own delay is 0.

        Returns:
            Seconds to wait before the next attempt, or why the failed one was the last.
        """
        policy = self._policy
        if not (
            cause in _RETRYABLE
            or (cause == "read_timeout" and policy.retry_read_timeouts)
            or (cause == "model" and original_status in policy.retry_model_statuses)
        ):
            return "not_retryable"
        if stream_started:
            return "stream_started"
        if cause == "clock_skew" and self._corrected:
            return "clock_skew"
        is_loading = cause == "model_not_ready" and self._deadline is not None and self.max_attempts != 1
        if not is_loading and self.max_attempts is not None and self._retries + 1 >= self.max_attempts:
            return "max_attempts"
        if self.failed_at is None:
            self.failed_at = now
        shortest = 0.0
        if cause == "clock_skew" or at_target:
            delay = 0.0
        else:
            base, longest = policy.delays(cause)
            hint = None if policy.mode == "legacy" else retry_after
            delay = backoff(base, self._loading_waits if is_loading else self._retries, longest, rand, hint)
            shortest = max(base, hint or 0.0)
        if self.patience is not None and cause != "clock_skew":
            left = self.failed_at + self.patience - now
            if left <= 0:
                return "patience"
            # one last attempt at its end
            delay = min(delay, left)
        if self._deadline is not None and now + delay >= self._deadline:
            # Where time is all that bounds a call, it tries once more with half of what is left for the answer.
            delay = (self._deadline - now) / 2
            if policy.mode is not None or delay < shortest or delay <= 0:
                return "deadline"
        if self._bucket is not None and cause not in _FREE:
            cost = THROTTLING_RETRY_COST if cause == "throttling" else RETRY_COST
            if not self._bucket.withdraw(cost):
                return "retry_bucket"
            self._refund = cost
        self._corrected = self._corrected or cause == "clock_skew"
        if is_loading:
            self._loading_waits += 1
        else:
            self._retries += 1
        return delay

    def on_success(self) -> None:
        """Return the last retry's tokens; call it once, when the call has succeeded."""
        if self._bucket is not None:
            self._bucket.on_success(self._refund)

    def __repr__(self) -> str:
        return f"<RetryState attempt={self.attempt} max_attempts={self.max_attempts}>"


def invocation_id(random_bits: int) -> str:
    """Form a call's ``amz-sdk-invocation-id``, a version 4 UUID that all its attempts share.

    Args:
        random_bits: 128 random bits, of which 122 are used.

    >>> invocation_id(0)
    '00000000-0000-4000-8000-000000000000'
    """
    # bytes.hex() is the fastest way from an integer to padded hexadecimal.
    text = (random_bits & _UUID_RANDOM | _UUID_VERSION_4).to_bytes(16, "big").hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def invocation_ids(random_bits: Callable[[], int]) -> Iterator[str]:
    """The ids of a client's calls, without end.

    They differ in their last 12 digits, which are counted: forming each from random bits takes six times as long.

    Args:
        random_bits: gives 128 random bits, where they begin. Asked for the first id, which in a client that was made
            before a fork is after it.

    >>> ids = invocation_ids(lambda: 0)
    >>> next(ids), next(ids)
    ('00000000-0000-4000-8000-000000000000', '00000000-0000-4000-8000-000000000001')
    """
    first = invocation_id(random_bits())
    last_digits = [f"{number:02x}" for number in range(256)]
    for block in count(int(first[24:34], 16)):
        start = f"{first[:24]}{block % 16**10:010x}"
        for digits in last_digits:
            yield start + digits


def sdk_request(attempt: int, max_attempts: int | None, expires_at: float | None = None) -> str:
    """Form the value of ``amz-sdk-request``, by which the service sees retries.

    Args:
        attempt: the attempt's number, from 1.
        max_attempts: how many the policy allows; an attempt beyond it (`RetryState.attempt`) is its own maximum. None
            where only time bounds them, which leaves the maximum out.
        expires_at: when the caller stops waiting for the answer, in seconds since 1970 by the service's clock; None
            when unknown.

    >>> sdk_request(1, 3)
    'attempt=1; max=3'
    >>> sdk_request(2, 3, 1_700_000_000.5)
    'ttl=20231114T221320Z; attempt=2; max=3'
    """
    count = f"attempt={attempt}"
    if max_attempts is not None:
        count = f"{count}; max={max(attempt, max_attempts)}"
    if expires_at is None or expires_at >= _YEAR_10000:
        return count
    # Fields and not strftime(), which is slower: this is made for every attempt of a call with a deadline.
    t = datetime.fromtimestamp(expires_at, UTC)
    return f"ttl={t.year}{t.month:02}{t.day:02}T{t.hour:02}{t.minute:02}{t.second:02}Z; {count}"
