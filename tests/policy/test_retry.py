"""The retry rules: the cases that AWS's SDKs share, SageMaker's table, and bounds that hold for every input."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import get_args

import pytest
from botocore.retries.standard import ThrottledRetryableChecker
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiosmrt.config import RetryPolicy
from aiosmrt.errors import Cause
from aiosmrt.policy.clockskew import SIGNATURE_ERROR_CODES
from aiosmrt.policy.retry import (
    THROTTLING_CODES,
    RetryBucket,
    RetryState,
    backoff,
    classify,
    invocation_id,
    is_endpoint_not_found,
    is_no_capacity,
    parse_retry_after,
    sdk_request,
)

# (status, code, x-amz-retry-after) of an answer, then what follows: a wait in seconds or a reason, and the tokens left.
# Facts from the standard-mode cases of the AWS SDKs' retry specification, revision 2.1, with no jitter.
Step = tuple[tuple[int, str, str | None], float | str, int]


def answer(status: int, code: str = "", retry_after: str | None = None) -> tuple[int, str, str | None]:
    return status, code, retry_after


SDK_CASES: dict[str, tuple[RetryPolicy, list[Step]]] = {
    "succeeds in the end": (
        RetryPolicy(),
        [(answer(500), 0.05, 486), (answer(500), 0.1, 472), (answer(200), "success", 486)],
    ),
    "attempts used up": (
        RetryPolicy(),
        [(answer(502), 0.05, 486), (answer(502), 0.1, 472), (answer(502), "max_attempts", 472)],
    ),
    "tokens for a single retry": (
        RetryPolicy(bucket_tokens=14),
        [(answer(500), 0.05, 0), (answer(500), "retry_bucket", 0)],
    ),
    "no tokens, no retry": (RetryPolicy(bucket_tokens=0), [(answer(500), "retry_bucket", 0)]),
    "waits double": (
        RetryPolicy(max_attempts=5),
        [
            (answer(500), 0.05, 486),
            (answer(500), 0.1, 472),
            (answer(500), 0.2, 458),
            (answer(500), 0.4, 444),
            (answer(500), "max_attempts", 444),
        ],
    ),
    "waits are capped": (
        RetryPolicy(max_attempts=5, max_delay=0.2),
        [
            (answer(500), 0.05, 486),
            (answer(500), 0.1, 472),
            (answer(500), 0.2, 458),
            (answer(500), 0.2, 444),
            (answer(500), "max_attempts", 444),
        ],
    ),
    "too few tokens left": (
        RetryPolicy(max_attempts=5, bucket_tokens=20),
        [(answer(500), 0.05, 6), (answer(502), "retry_bucket", 6)],
    ),
    "throttling": (RetryPolicy(), [(answer(400, "Throttling"), 1.0, 495), (answer(200), "success", 500)]),
    "another base": (
        RetryPolicy(max_attempts=4, base_delay=0.025),
        [
            (answer(500), 0.025, 486),
            (answer(500), 0.05, 472),
            (answer(500), 0.1, 458),
            (answer(500), "max_attempts", 458),
        ],
    ),
    "hint": (RetryPolicy(), [(answer(500, retry_after="1500"), 1.5, 486), (answer(200), "success", 500)]),
    "hint below the back-off": (
        RetryPolicy(),
        [(answer(500, retry_after="0"), 0.05, 486), (answer(200), "success", 500)],
    ),
    "hint far above the back-off": (
        RetryPolicy(),
        [(answer(500, retry_after="10000"), 5.05, 486), (answer(200), "success", 500)],
    ),
    "hint that is no number": (
        RetryPolicy(),
        [(answer(500, retry_after="invalid"), 0.05, 486), (answer(200), "success", 500)],
    ),
    "tokens come back over several calls": (
        RetryPolicy(max_attempts=5, bucket_tokens=30),
        [
            (answer(500), 0.05, 16),
            (answer(502), 0.1, 2),
            (answer(200), "success", 16),
            (answer(500), 0.05, 2),
            (answer(200), "success", 16),
        ],
    ),
    "not retryable": (RetryPolicy(), [(answer(404), "not_retryable", 500)]),
}


@pytest.mark.parametrize(("policy", "steps"), SDK_CASES.values(), ids=SDK_CASES)
def test_cases_of_the_sdk_specification(policy: RetryPolicy, steps: list[Step]) -> None:
    bucket = RetryBucket(policy.bucket_tokens)
    state = RetryState(policy, bucket)
    for (status, code, retry_after), outcome, tokens in steps:
        if outcome == "success":
            state.on_success()
            state = RetryState(policy, bucket)
        else:
            decision = state.decide(
                classify(status, code), now=0.0, rand=1.0, retry_after=parse_retry_after(retry_after)
            )
            assert decision == outcome if isinstance(outcome, str) else decision == pytest.approx(outcome)
        assert bucket.statistics().tokens == tokens


def test_calls_share_one_bucket() -> None:
    """The specification's concurrent case: two calls draw on the client's tokens."""
    bucket = RetryBucket()
    first, second = (RetryState(RetryPolicy(max_attempts=5), bucket) for _ in range(2))
    tokens = []
    for state in (first, first, second):
        assert isinstance(state.decide("transient", now=0.0, rand=1.0), float)
        tokens.append(bucket.statistics().tokens)
    first.on_success()
    tokens.append(bucket.statistics().tokens)
    second.on_success()
    tokens.append(bucket.statistics().tokens)
    assert tokens == [486, 472, 458, 472, 486]


def test_throttling_codes_are_those_of_botocore() -> None:
    theirs: list[str] = ThrottledRetryableChecker._THROTTLED_ERROR_CODES  # type: ignore[attr-defined]
    assert sorted(theirs) == sorted(THROTTLING_CODES)
    assert len(THROTTLING_CODES) == 14


@pytest.mark.parametrize(
    ("status", "code", "cause"),
    [
        (400, "ThrottlingException", "throttling"),
        (429, "", "throttling"),
        (429, "SomethingNew", "throttling"),
        (503, "SlowDown", "throttling"),
        (429, "ModelNotReadyException", "model_not_ready"),
        (500, "InternalFailure", "transient"),
        (500, "", "transient"),
        (502, "", "transient"),
        (503, "ServiceUnavailable", "transient"),
        (504, "", "transient"),
        (530, "InternalDependencyException", "transient"),
        (530, "", "transient"),
        (424, "ModelError", "model"),
        # The type decides where it is known: a container's status must not make the service look ill.
        (500, "ModelError", "model"),
        (500, "ValidationError", "none"),
        (400, "ValidationError", "none"),
        (200, "ModelStreamError", "transient"),
        (200, "InternalStreamFailure", "transient"),
        (200, "SomethingNew", "none"),
        (403, "AccessDeniedException", "none"),
        (404, "", "none"),
        (501, "", "none"),
        (424, "", "none"),
    ],
)
def test_classify(status: int, code: str, cause: Cause) -> None:
    assert classify(status, code) == cause


@pytest.mark.parametrize("code", sorted(SIGNATURE_ERROR_CODES))
def test_signature_errors_are_the_clocks_fault_only_above_four_minutes(code: str) -> None:
    assert classify(403, code) == "none"
    assert classify(403, code, skew=240.0) == "none"
    assert classify(403, code, skew=240.1) == "clock_skew"
    assert classify(403, code, skew=-3600.0) == "clock_skew"


NO_CAPACITY = (
    "Inference Component has no capacity to process this request. ApplicationAutoScaling may be in-progress "
    "(if configured) or try to increase the capacity by invoking UpdateInferenceComponentRuntimeConfig API."
)
NOT_FOUND = "Endpoint churn-2 of account 123456789012 not found."


def test_no_capacity_is_told_by_the_start_of_the_message() -> None:
    assert is_no_capacity("ValidationError", NO_CAPACITY)
    assert not is_no_capacity("ModelError", NO_CAPACITY)
    assert not is_no_capacity("ValidationError", f'1 validation error detected: Value "{NO_CAPACITY}"')
    assert not is_no_capacity("ValidationError", "")


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (NOT_FOUND, True),
        (NOT_FOUND + " Check the region.", True),
        (f'Value "{NOT_FOUND}" at inferenceId', False),
        ("Endpoint churn of account 123456789012 not ready.", False),
        ("Endpoint churn of account", False),
        ("Endpoint ", False),
        ("Endpoint of of account 1 not found.", True),
        ("", False),
    ],
)
def test_endpoint_not_found_is_told_by_the_start_of_the_message(message: str, found: bool) -> None:
    assert is_endpoint_not_found("ValidationError", message) is found
    assert not is_endpoint_not_found("ModelError", message)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("1500", 1.5),
        (" 20 ", 0.02),
        ("-1", None),
        ("+1", None),
        ("1_000", None),
        ("1.5", None),
        ("soon", None),
        ("\u0661\u0662", None),
        ("\u00b2", None),
        ("9" * 18, 10**18 / 1000),
        ("9" * 5000, None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header) == (seconds if seconds is None else pytest.approx(seconds))


@given(st.text())
def test_retry_after_never_raises_and_is_never_negative(header: str) -> None:
    seconds = parse_retry_after(header)
    assert seconds is None or seconds >= 0


unit = st.floats(0, 1, exclude_max=True)


@given(
    base=st.floats(0, 100),
    retries=st.integers(0, 10_000),
    max_delay=st.floats(0, 100),
    rand=unit,
    retry_after=st.none() | st.floats(0, 1e15),
)
def test_backoff_bounds(base: float, retries: int, max_delay: float, rand: float, retry_after: float | None) -> None:
    plain = backoff(base, retries, max_delay, rand)
    assert 0 <= plain <= max_delay
    assert plain <= base * 2.0 ** min(retries, 1000)
    assert plain <= backoff(base, retries + 1, max_delay, rand)
    hinted = backoff(base, retries, max_delay, rand, retry_after)
    assert plain <= hinted <= plain + 5
    if retry_after is not None and plain <= retry_after <= plain + 5:
        assert hinted == retry_after


def test_model_not_ready_goes_on_until_the_deadline_for_nothing() -> None:
    bucket = RetryBucket(0)
    state = RetryState(RetryPolicy(), bucket, deadline=60.0)
    delays = []
    now = 0.0
    while isinstance(delay := state.decide("model_not_ready", now=now, rand=0.9), float):
        delays.append(delay)
        now += delay
    assert delay == "deadline"
    assert delays[:5] == pytest.approx([0.9, 1.8, 3.6, 7.2, 14.4])
    assert max(delays) == pytest.approx(18.0)
    assert now + 18.0 >= 60.0 > now
    assert state.attempt == len(delays) + 1 > state.max_attempts


def test_one_attempt_is_one_attempt_for_a_model_that_is_not_ready_too() -> None:
    for deadline in (None, 60.0):
        state = RetryState(RetryPolicy(max_attempts=1), RetryBucket(), deadline=deadline)
        assert state.decide("model_not_ready", now=0.0, rand=0.5) == "max_attempts"
        assert state.attempt == 1


def test_model_not_ready_is_bound_by_max_attempts_without_a_deadline() -> None:
    state = RetryState(RetryPolicy(), RetryBucket(0))
    decisions = [state.decide("model_not_ready", now=0.0, rand=0.5) for _ in range(3)]
    assert decisions == [0.5, 1.0, "max_attempts"]


def test_waiting_for_the_model_leaves_the_other_causes_their_attempts() -> None:
    state = RetryState(RetryPolicy(), RetryBucket(), deadline=1000.0)
    decisions = [state.decide("model_not_ready", now=0.0, rand=0.5) for _ in range(6)]
    decisions += [state.decide("transient", now=0.0, rand=0.5) for _ in range(3)]
    assert decisions == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 0.025, 0.05, "max_attempts"]
    assert state.attempt == 9


def test_clock_skew_is_repeated_once_at_once_and_for_nothing() -> None:
    bucket = RetryBucket(0)
    state = RetryState(RetryPolicy(max_attempts=5), bucket)
    assert state.decide("clock_skew", now=0.0, rand=0.9) == 0.0
    assert state.decide("clock_skew", now=0.0, rand=0.9) == "clock_skew"
    assert RetryState(RetryPolicy(max_attempts=1), bucket).decide("clock_skew", now=0.0, rand=0.9) == "max_attempts"


def test_read_timeouts_are_repeated_only_when_asked_for() -> None:
    assert RetryState(RetryPolicy(), RetryBucket()).decide("read_timeout", now=0.0, rand=0.5) == "not_retryable"
    policy = RetryPolicy(retry_read_timeouts=True)
    assert RetryState(policy, RetryBucket()).decide("read_timeout", now=0.0, rand=0.5) == 0.025


@pytest.mark.parametrize("status", [0, 429, 503, 504])
def test_model_errors_are_repeated_only_for_the_named_statuses(status: int) -> None:
    def decide(policy: RetryPolicy, original_status: int | None) -> float | str:
        state = RetryState(policy, RetryBucket())
        return state.decide("model", now=0.0, rand=0.5, original_status=original_status)

    policy = RetryPolicy(retry_model_statuses=frozenset({status}))
    assert decide(RetryPolicy(), status) == "not_retryable"
    assert decide(policy, status) == 0.5
    assert decide(policy, 500) == "not_retryable"
    assert decide(policy, None) == "not_retryable"


@pytest.mark.parametrize("cause", ["throttling", "transient", "connection", "truncated", "model_not_ready"])
def test_a_stream_that_has_begun_is_never_repeated(cause: Cause) -> None:
    state = RetryState(RetryPolicy(), RetryBucket(), deadline=100.0)
    assert state.decide(cause, now=0.0, rand=0.5, stream_started=True) == "stream_started"
    assert state.attempt == 1
    assert isinstance(state.decide(cause, now=0.0, rand=0.5), float)


def test_a_wait_past_the_deadline_takes_no_tokens() -> None:
    bucket = RetryBucket()
    state = RetryState(RetryPolicy(), bucket, deadline=10.0)
    assert state.decide("throttling", now=9.5, rand=0.5) == "deadline"
    assert state.decide("throttling", now=9.4, rand=0.1, retry_after=0.6) == "deadline"
    assert bucket.statistics().tokens == 500
    assert state.decide("throttling", now=9.4, rand=0.5) == 0.5


def test_max_attempts_of_none_is_three() -> None:
    assert RetryState(RetryPolicy(), RetryBucket()).max_attempts == 3
    assert RetryState(RetryPolicy(max_attempts=7), RetryBucket()).max_attempts == 7


causes = st.sampled_from([cause for cause in get_args(Cause) if cause != "none"])


@given(
    data=st.data(),
    max_attempts=st.integers(1, 6),
    deadline=st.none() | st.floats(0, 200),
    tokens=st.integers(0, 60),
)
def test_every_call_ends_and_stays_inside_its_bounds(
    data: st.DataObject, max_attempts: int, deadline: float | None, tokens: int
) -> None:
    policy = RetryPolicy(
        max_attempts=max_attempts, retry_read_timeouts=True, retry_model_statuses=frozenset({0}), bucket_tokens=tokens
    )
    bucket = RetryBucket(tokens)
    state = RetryState(policy, bucket, deadline=deadline)
    now = 0.0
    counted = 1
    for attempt in range(1, 300):
        assert state.attempt == attempt
        cause: Cause = data.draw(causes)
        # Above 0.05, so that waiting for a model comes to its deadline in a bounded number of steps.
        decision = state.decide(cause, now=now, rand=data.draw(st.floats(0.05, 0.99)), original_status=0)
        if isinstance(decision, str):
            assert state.attempt == attempt
            break
        counted += not (cause == "model_not_ready" and deadline is not None)
        assert 0 <= decision <= policy.max_delay
        now += decision
        assert deadline is None or now < deadline
    else:
        pytest.fail("the call never ended")
    assert counted <= max_attempts
    assert 0 <= bucket.statistics().tokens <= tokens


class BucketMachine(RuleBasedStateMachine):
    """The bucket against arithmetic on an unbounded integer, clamped where the rules say so."""

    def __init__(self) -> None:
        super().__init__()
        self.bucket = RetryBucket(50)
        self.tokens = 50
        self.granted = self.refused = 0
        self.charged: list[int] = []

    @rule(cost=st.sampled_from([5, 14]))
    def retry(self, cost: int) -> None:
        allowed = self.bucket.withdraw(cost)
        assert allowed == (self.tokens >= cost)
        if allowed:
            self.tokens -= cost
            self.granted += 1
            self.charged.append(cost)
        else:
            self.refused += 1

    @precondition(lambda self: self.charged)
    @rule()
    def succeed_after_retries(self) -> None:
        refund = self.charged.pop()
        self.bucket.on_success(refund)
        self.tokens = min(50, self.tokens + refund)

    @rule()
    def succeed_at_once(self) -> None:
        self.bucket.on_success()
        self.tokens = min(50, self.tokens + 1)

    @invariant()
    def agrees(self) -> None:
        statistics = self.bucket.statistics()
        assert statistics.tokens == self.tokens
        assert 0 <= statistics.tokens <= statistics.max_tokens == 50
        assert (statistics.granted, statistics.refused) == (self.granted, self.refused)


TestBucketMachine = BucketMachine.TestCase


def test_reprs_name_the_state() -> None:
    bucket = RetryBucket(20)
    state = RetryState(replace(RetryPolicy(), max_attempts=4), bucket)
    state.decide("throttling", now=0.0, rand=0.5)
    assert repr(bucket) == "<RetryBucket tokens=15 max_tokens=20>"
    assert repr(state) == "<RetryState attempt=2 max_attempts=4>"


@given(st.integers(0, 2**128 - 1))
def test_invocation_ids_are_version_4_uuids(bits: int) -> None:
    parsed = uuid.UUID(invocation_id(bits))
    assert str(parsed) == invocation_id(bits)
    assert parsed == uuid.UUID(int=bits, version=4)


@given(st.integers(0, 253_402_300_799), unit)
def test_ttl_is_the_basic_format_cut_to_the_second(second: int, fraction: float) -> None:
    ttl, count = sdk_request(1, 3, second + fraction / 2).split("; ", 1)
    assert count == "attempt=1; max=3"
    parsed = datetime.strptime(ttl, "ttl=%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert parsed.timestamp() == second


def test_an_attempt_beyond_the_maximum_is_its_own_maximum() -> None:
    assert sdk_request(7, 3) == "attempt=7; max=7"
