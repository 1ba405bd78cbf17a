"""The retry rules: the cases that AWS's SDKs share, SageMaker's table, and bounds that hold for every input."""

from __future__ import annotations

import math
import pickle
import sys
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, get_args

import botocore.exceptions
import pytest
from botocore.config import Config
from botocore.retries.standard import ThrottledRetryableChecker
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiosmrt._policy.clockskew import SIGNATURE_ERROR_CODES
from aiosmrt._policy.retry import (
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
from aiosmrt.config import RETRY_MODES, RetryMode, RetryPolicy
from aiosmrt.errors import THROTTLING_CODES, AiosmrtError, Cause, InvalidRetryModeError, ParamValidationError

# (status, code, x-amz-retry-after) of an answer, then what follows: a wait in seconds or a reason, and the tokens left.
# Facts from the standard-mode cases of the AWS SDKs' retry specification, revision 2.1, with no jitter.
Step = tuple[tuple[int, str, str | None], float | str, int]

STANDARD = RetryPolicy(mode="standard")
FULL = 500


def answer(status: int, code: str = "", retry_after: str | None = None) -> tuple[int, str, str | None]:
    return status, code, retry_after


# The policy, the tokens at the beginning, and what happens.
SDK_CASES: dict[str, tuple[RetryPolicy, int, list[Step]]] = {
    "succeeds in the end": (
        STANDARD,
        FULL,
        [(answer(500), 0.05, 486), (answer(500), 0.1, 472), (answer(200), "success", 486)],
    ),
    "attempts used up": (
        STANDARD,
        FULL,
        [(answer(502), 0.05, 486), (answer(502), 0.1, 472), (answer(502), "max_attempts", 472)],
    ),
    "tokens for a single retry": (
        STANDARD,
        14,
        [(answer(500), 0.05, 0), (answer(500), "retry_bucket", 0)],
    ),
    "no tokens, no retry": (STANDARD, 0, [(answer(500), "retry_bucket", 0)]),
    "waits double": (
        replace(STANDARD, max_attempts=5),
        FULL,
        [
            (answer(500), 0.05, 486),
            (answer(500), 0.1, 472),
            (answer(500), 0.2, 458),
            (answer(500), 0.4, 444),
            (answer(500), "max_attempts", 444),
        ],
    ),
    "waits are capped": (
        replace(STANDARD, max_attempts=5, max_delay=0.2),
        FULL,
        [
            (answer(500), 0.05, 486),
            (answer(500), 0.1, 472),
            (answer(500), 0.2, 458),
            (answer(500), 0.2, 444),
            (answer(500), "max_attempts", 444),
        ],
    ),
    "too few tokens left": (
        replace(STANDARD, max_attempts=5),
        20,
        [(answer(500), 0.05, 6), (answer(502), "retry_bucket", 6)],
    ),
    "throttling": (STANDARD, FULL, [(answer(400, "Throttling"), 1.0, 495), (answer(200), "success", 500)]),
    "another base": (
        replace(STANDARD, max_attempts=4, base_delay=0.025),
        FULL,
        [
            (answer(500), 0.025, 486),
            (answer(500), 0.05, 472),
            (answer(500), 0.1, 458),
            (answer(500), "max_attempts", 458),
        ],
    ),
    "hint": (STANDARD, FULL, [(answer(500, retry_after="1500"), 1.5, 486), (answer(200), "success", 500)]),
    "hint below the back-off": (
        STANDARD,
        FULL,
        [(answer(500, retry_after="0"), 0.05, 486), (answer(200), "success", 500)],
    ),
    "hint far above the back-off": (
        STANDARD,
        FULL,
        [(answer(500, retry_after="10000"), 5.05, 486), (answer(200), "success", 500)],
    ),
    "hint that is not a number": (
        STANDARD,
        FULL,
        [(answer(500, retry_after="invalid"), 0.05, 486), (answer(200), "success", 500)],
    ),
    "tokens come back over several calls": (
        replace(STANDARD, max_attempts=5),
        30,
        [
            (answer(500), 0.05, 16),
            (answer(502), 0.1, 2),
            (answer(200), "success", 16),
            (answer(500), 0.05, 2),
            (answer(200), "success", 16),
        ],
    ),
    "not retryable": (STANDARD, FULL, [(answer(404), "not_retryable", 500)]),
}


def start(policy: RetryPolicy, bucket: RetryBucket | None = None, *, deadline: float | None = None) -> RetryState:
    """A call's state with as many attempts as its policy allows."""
    return RetryState(policy, max_attempts=policy.attempts(None), bucket=bucket, deadline=deadline)


@pytest.mark.parametrize(("policy", "tokens_at_first", "steps"), SDK_CASES.values(), ids=SDK_CASES)
@pytest.mark.parametrize("mode", ["standard", "adaptive"])
def test_cases_of_the_sdk_specification(
    policy: RetryPolicy, tokens_at_first: int, steps: list[Step], mode: RetryMode
) -> None:
    policy = replace(policy, mode=mode)
    bucket = RetryBucket(tokens_at_first)
    state = start(policy, bucket)
    for (status, code, retry_after), outcome, tokens in steps:
        if outcome == "success":
            state.on_success()
            state = start(policy, bucket)
        else:
            decision = state.decide(
                classify(status, code), now=0.0, rand=1.0, retry_after=parse_retry_after(retry_after)
            )
            assert decision == outcome if isinstance(outcome, str) else decision == pytest.approx(outcome)
        assert bucket.statistics().tokens == tokens


def test_calls_share_one_bucket() -> None:
    """The specification's concurrent case: two calls draw on the client's tokens."""
    bucket = RetryBucket()
    first, second = (start(replace(STANDARD, max_attempts=5), bucket) for _ in range(2))
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
        (408, "", "transient"),
        (421, "", "transient"),
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


def decisions(state: RetryState, cause: Cause, count: int, rand: float = 0.5) -> list[float | str]:
    """What is decided about so many failures at one instant."""
    return [state.decide(cause, now=0.0, rand=rand) for _ in range(count)]


# Without a mode


@pytest.mark.parametrize("cause", ["throttling", "transient", "connection", "truncated", "model_not_ready"])
def test_nothing_but_time_bounds_attempts_by_default(cause: Cause) -> None:
    state = start(RetryPolicy())
    assert state.max_attempts is None
    assert all(isinstance(decision, float) for decision in decisions(state, cause, 500))
    assert state.attempt == 501


def test_delays_double_up_to_max_delay_by_default() -> None:
    assert decisions(start(RetryPolicy()), "transient", 12, rand=1.0)[:10] == pytest.approx(
        [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0]
    )
    delays = [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert decisions(start(RetryPolicy()), "model_not_ready", 7, rand=0.5) == delays
    assert decisions(start(RetryPolicy(throttling_base_delay=1.0)), "throttling", 7, rand=0.5) == delays


def test_delays_after_throttling_do_not_grow_by_default() -> None:
    assert decisions(start(RetryPolicy()), "throttling", 20, rand=0.5) == [0.125] * 20


def test_a_number_of_attempts_bounds_them_without_a_mode_too() -> None:
    state = start(RetryPolicy(max_attempts=3))
    assert decisions(state, "transient", 3) == [0.025, 0.05, "max_attempts"]
    assert state.attempt == 3


def test_success_without_a_bucket_changes_nothing() -> None:
    state = start(RetryPolicy())
    decisions(state, "transient", 2)
    state.on_success()
    assert state.attempt == 3


# Patience


@pytest.mark.parametrize("cause", ["throttling", "transient", "connection", "truncated", "model_not_ready"])
def test_no_patience_fails_at_once(cause: Cause) -> None:
    state = RetryState(RetryPolicy(), patience=0.0)
    assert state.decide(cause, now=7.0, rand=0.0) == "patience"
    assert state.decide(cause, now=7.0, rand=0.5, at_target=True) == "patience"
    assert state.attempt == 1


def test_no_patience_still_allows_the_correction_of_a_clock() -> None:
    state = RetryState(RetryPolicy(), patience=0.0)
    assert state.decide("clock_skew", now=7.0, rand=0.5) == 0.0
    assert state.decide("transient", now=7.1, rand=0.5) == "patience"


def test_a_delay_is_cut_to_the_end_of_the_patience_and_one_last_attempt_is_made_there() -> None:
    state = RetryState(RetryPolicy(throttling_base_delay=1.0), patience=10.0)
    now, delays = 100.0, []
    while isinstance(decision := state.decide("throttling", now=now, rand=0.5), float):
        delays.append(decision)
        now += decision
    assert delays == [0.5, 1.0, 2.0, 4.0, 2.5]
    assert decision == "patience"
    assert now == 110.0


def test_a_hint_is_cut_to_the_end_of_the_patience() -> None:
    state = RetryState(RetryPolicy(), patience=2.0)
    assert state.decide("throttling", now=0.0, rand=0.5, retry_after=4.0) == 2.0


def test_patience_counts_from_the_first_failure() -> None:
    state = RetryState(RetryPolicy(), patience=10.0)
    assert state.failed_at is None
    # The first attempt may have taken minutes.
    assert state.decide("transient", now=300.0, rand=0.5) == 0.025
    assert state.failed_at == 300.0
    assert state.decide("transient", now=309.99, rand=0.5) == pytest.approx(0.01)
    assert state.failed_at == 300.0
    assert state.decide("transient", now=310.0, rand=0.5) == "patience"


def test_the_correction_of_a_clock_is_a_first_failure() -> None:
    state = RetryState(RetryPolicy(), patience=10.0)
    assert state.decide("clock_skew", now=0.0, rand=0.5) == 0.0
    assert state.decide("transient", now=10.0, rand=0.5) == "patience"


def test_patience_can_change_between_two_decisions() -> None:
    state = RetryState(RetryPolicy(throttling_base_delay=1.0), patience=10.0)
    assert state.decide("throttling", now=0.0, rand=0.5) == 0.5
    state.patience = 1.5
    assert state.decide("throttling", now=1.0, rand=0.9) == 0.5
    assert state.decide("throttling", now=1.5, rand=0.5) == "patience"
    state.patience = None
    assert state.decide("throttling", now=1000.0, rand=0.5) == 2.0
    state.patience = 600.0
    assert state.decide("throttling", now=1000.0, rand=0.5) == "patience"
    state.patience = 1200.0
    assert state.decide("throttling", now=1000.0, rand=0.5) == 4.0


@pytest.mark.parametrize(
    ("patience", "deadline", "decision"),
    [
        (10.0, None, 0.5),
        (10.0, 30.0, 0.5),
        # Only the delay that is left counts, and not the 4 s that it would have been.
        (10.0, 10.01, 0.5),
        (10.0, 10.0, "deadline"),
        (30.0, 10.0, "deadline"),
        (None, 10.0, "deadline"),
        (9.5, 9.6, "patience"),
        (9.5, 9.5, "patience"),
        (30.0, 13.49, pytest.approx(1.995)),
        (30.0, 13.51, 4.0),
    ],
)
def test_a_delay_is_cut_to_the_patience_before_it_is_compared_with_the_deadline(
    patience: float | None, deadline: float | None, decision: float | str
) -> None:
    bucket = RetryBucket()
    policy = RetryPolicy(throttling_base_delay=1.0)
    state = RetryState(policy, bucket=bucket, patience=patience, deadline=deadline)
    state.failed_at = 0.0
    decisions_before = [state.decide("throttling", now=0.0, rand=0.0) for _ in range(3)]
    assert decisions_before == [0.0] * 3
    assert state.decide("throttling", now=9.5, rand=0.5) == decision
    # who is not repeated takes no tokens
    taken = 3 if isinstance(decision, str) else 4
    assert (bucket.statistics().tokens, state.attempt) == (500 - 5 * taken, 1 + taken)


def test_a_back_off_that_would_pass_the_deadline_takes_half_of_what_is_left() -> None:
    """A model that is loaded within the deadline is called again before it, however late that is."""
    state = RetryState(RetryPolicy(), deadline=10.0)
    now, waits = 0.0, []
    while isinstance(wait := state.decide("model_not_ready", now=now, rand=0.99), float):
        waits.append(wait)
        now += wait
    assert wait == "deadline"
    assert waits[-1] == pytest.approx((10.0 - now + waits[-1]) / 2)
    # Less than a first pause is left for the answer, or the wait would be shorter than one.
    assert 1.0 <= 10.0 - now < 2.0


def test_a_wait_is_not_cut_below_its_base_or_the_services_hint() -> None:
    state = RetryState(RetryPolicy(base_delay=10.0), deadline=5.0)
    assert state.decide("transient", now=0.0, rand=0.9) == "deadline"
    state = RetryState(RetryPolicy(), deadline=5.0)
    assert state.decide("transient", now=0.0, rand=0.9, retry_after=6.0) == "deadline"
    assert state.decide("transient", now=0.0, rand=0.0, retry_after=2.0) == 2.0


@pytest.mark.parametrize("mode", ["standard", "legacy", "adaptive"])
def test_in_awss_modes_a_wait_is_not_cut_to_the_deadline(mode: RetryMode) -> None:
    state = RetryState(RetryPolicy(mode=mode), max_attempts=3, bucket=RetryBucket(), deadline=0.4)
    assert state.decide("throttling", now=0.0, rand=0.9) == "deadline"


def test_the_correction_of_a_clock_is_bound_by_the_deadline_and_not_by_patience() -> None:
    for deadline, decision in ((None, 0.0), (7.1, 0.0), (7.0, "deadline")):
        state = RetryState(RetryPolicy(), patience=0.0, deadline=deadline)
        assert state.decide("clock_skew", now=7.0, rand=0.5) == decision


def test_a_call_whose_patience_is_over_takes_no_tokens() -> None:
    bucket = RetryBucket()
    state = RetryState(RetryPolicy(), bucket=bucket, patience=0.0)
    assert state.decide("transient", now=0.0, rand=0.5) == "patience"
    assert bucket.is_full


# A call that waits for its target


def test_a_call_that_waits_for_its_target_is_not_delayed_as_well() -> None:
    state = RetryState(RetryPolicy(throttling_base_delay=1.0))
    assert [
        state.decide("throttling", now=0.0, rand=0.9, retry_after=3.0, at_target=at_target)
        for at_target in (True, True, False, True)
    ] == [0.0, 0.0, pytest.approx(3.6), 0.0]
    assert state.attempt == 5


def test_waiting_for_the_target_lifts_no_other_bound() -> None:
    def decide(cause: Cause = "transient", now: float = 0.0, *, stream_started: bool = False, **bounds: Any) -> Any:
        state = RetryState(RetryPolicy(), **bounds)
        return state.decide(cause, now=now, rand=0.5, stream_started=stream_started, at_target=True)

    assert decide("none") == "not_retryable"
    assert decide(stream_started=True) == "stream_started"
    assert decide(max_attempts=1) == "max_attempts"
    assert decide(now=10.0, deadline=10.0) == "deadline"
    assert decide(now=9.99, deadline=10.0) == 0.0
    assert decide(patience=0.0) == "patience"
    assert decide(bucket=RetryBucket(13)) == "retry_bucket"


# AWS's modes


def test_legacy_delays_double_without_a_cap_and_without_hints() -> None:
    state = start(RetryPolicy(mode="legacy", max_attempts=12))
    found = [state.decide("transient", now=0.0, rand=0.75, retry_after=30.0) for _ in range(12)]
    assert found == [0.75 * 2.0**number for number in range(11)] + ["max_attempts"]


@pytest.mark.parametrize("cause", ["throttling", "transient", "connection", "model_not_ready"])
def test_legacy_delays_are_the_same_for_every_cause(cause: Cause) -> None:
    assert decisions(start(RetryPolicy(mode="legacy")), cause, 5) == [0.5, 1.0, 2.0, 4.0, "max_attempts"]


def test_modes_have_botocores_number_of_attempts() -> None:
    assert [RetryPolicy(mode=mode).attempts(None) for mode in ("legacy", "standard", "adaptive", None)] == [
        5,
        3,
        3,
        None,
    ]


@pytest.mark.parametrize("mode", [None, *RETRY_MODES])
def test_the_policys_number_of_attempts_comes_before_what_is_configured(mode: RetryMode | None) -> None:
    assert RetryPolicy(mode=mode).attempts(7) == 7
    assert RetryPolicy(mode=mode, max_attempts=2).attempts(7) == 2
    assert RetryPolicy(mode=mode, max_attempts=2).attempts(None) == 2


# Causes after which the next attempt had better not come too soon.
SLOW_STARTS: set[Cause] = {"throttling", "model_not_ready", "model"}


@pytest.mark.parametrize(
    ("mode", "plain", "throttled", "slow_start"),
    [
        (None, (0.05, 20.0), (0.25, 0.25), (1.0, 20.0)),
        ("standard", (0.05, 20.0), (1.0, 20.0), (1.0, 20.0)),
        ("adaptive", (0.05, 20.0), (1.0, 20.0), (1.0, 20.0)),
        ("legacy", (1.0, math.inf), (1.0, math.inf), (1.0, math.inf)),
    ],
)
@pytest.mark.parametrize("cause", get_args(Cause))
def test_delays_are_the_modes_where_none_are_given(
    mode: RetryMode | None,
    plain: tuple[float, float],
    throttled: tuple[float, float],
    slow_start: tuple[float, float],
    cause: Cause,
) -> None:
    expected = throttled if cause == "throttling" else slow_start if cause in SLOW_STARTS else plain
    # What was not chosen is the mode's own, also if the mode is chosen later.
    for policy in (RetryPolicy(mode=mode), replace(RetryPolicy(), mode=mode), replace(STANDARD, mode=mode)):
        assert (policy.base_delay, policy.throttling_base_delay, policy.max_delay) == (None, None, None)
        assert policy.delays(cause) == expected


def test_a_number_of_attempts_is_no_mode() -> None:
    assert RetryPolicy(max_attempts=3).delays("throttling") == (0.25, 0.25)


@pytest.mark.parametrize("cause", get_args(Cause))
@pytest.mark.parametrize("mode", [None, *RETRY_MODES])
def test_a_mode_keeps_what_was_chosen(mode: RetryMode | None, cause: Cause) -> None:
    chosen = replace(RetryPolicy(max_attempts=4, base_delay=0.3, throttling_base_delay=0.4, max_delay=7.0), mode=mode)
    assert chosen.delays(cause) == (0.4 if cause in SLOW_STARTS else 0.3, 7.0)
    assert chosen.attempts(7) == 4
    # Nothing is what 0 says, and not the mode's.
    assert RetryPolicy(mode=mode, base_delay=0, throttling_base_delay=0, max_delay=0).delays(cause) == (0, 0)


@pytest.mark.parametrize("cause", get_args(Cause))
@pytest.mark.parametrize("mode", [None, *RETRY_MODES])
def test_a_call_waits_by_the_delays_of_its_policy(cause: Cause, mode: RetryMode | None) -> None:
    policy = RetryPolicy(
        mode=mode,
        max_attempts=99,
        base_delay=0.25,
        throttling_base_delay=0.5,
        max_delay=2.0,
        retry_read_timeouts=True,
        retry_model_statuses={503},
    )
    delay = start(policy).decide(cause, now=0.0, rand=0.5, original_status=503)
    if cause in SLOW_STARTS:
        assert delay == 0.25
    else:
        assert delay == {"none": "not_retryable", "clock_skew": 0.0}.get(cause, 0.125)


@pytest.mark.parametrize("mode", ["Standard", "", "none", 1, b"legacy"])
def test_an_unknown_mode_is_refused(mode: Any) -> None:
    with pytest.raises(InvalidRetryModeError, match='Invalid value provided to "mode"'):
        RetryPolicy(mode=mode)


@pytest.mark.parametrize(
    "retries",
    [
        {"max_attempts": -1},
        {"total_max_attempts": 0},
        {"attempts": 3},
        {"mode": "Standard"},
        {"mode": ""},
        {"mode": "standard", "max_attempts": -5},
    ],
)
def test_wrong_retries_are_refused_as_by_botocore(retries: dict[str, Any]) -> None:
    with pytest.raises(botocore.exceptions.BotoCoreError) as theirs:
        Config(retries=retries)
    with pytest.raises(theirs.type) as ours:
        RetryPolicy.from_retries(retries)
    assert isinstance(ours.value, AiosmrtError)
    assert isinstance(pickle.loads(pickle.dumps(ours.value)), theirs.type)


@pytest.mark.parametrize("name", ["base_delay", "throttling_base_delay", "max_delay"])
@pytest.mark.parametrize("value", [math.nan, -1, -1e-9, -math.inf, "1", True, 10**400, -(10**400)])
def test_a_delay_is_a_number_of_seconds(name: str, value: Any) -> None:
    with pytest.raises(ParamValidationError, match=rf"retry\.{name} must be a non-negative number of seconds"):
        RetryPolicy(**{name: value})


def test_an_integer_is_a_number_of_seconds_if_it_is_one_of_the_floats() -> None:
    longest = int(sys.float_info.max)
    assert RetryPolicy(base_delay=3, max_delay=longest).delays("transient") == (3, longest)
    with pytest.raises(ParamValidationError, match="max_delay"):
        RetryPolicy(max_delay=longest + 1)
    # It can be computed with, however often the call is repeated.
    state = start(RetryPolicy(base_delay=longest, max_delay=longest))
    assert decisions(state, "transient", 70)[-1] == longest / 2


def test_a_delay_that_is_none_is_one_that_was_not_chosen() -> None:
    assert RetryPolicy(base_delay=None, throttling_base_delay=None, max_delay=None) == RetryPolicy()
    chosen = RetryPolicy(base_delay=0.3, throttling_base_delay=0.4, max_delay=7.0)
    assert replace(chosen, base_delay=None, throttling_base_delay=None, max_delay=None) == RetryPolicy()


def test_only_the_longest_delay_may_be_infinite() -> None:
    assert RetryPolicy(max_delay=math.inf).max_delay == math.inf
    assert RetryPolicy(base_delay=0, throttling_base_delay=0, max_delay=0).max_delay == 0
    for name in ("base_delay", "throttling_base_delay"):
        with pytest.raises(ParamValidationError, match=name):
            RetryPolicy(**{name: math.inf})


def test_an_infinite_longest_delay_is_none() -> None:
    state = start(RetryPolicy(max_delay=math.inf))
    assert decisions(state, "transient", 12, rand=1.0)[-1] == pytest.approx(0.05 * 2**11)


# Causes with special rules


def test_model_not_ready_goes_on_until_the_deadline_for_nothing() -> None:
    bucket = RetryBucket(0)
    state = start(STANDARD, bucket, deadline=60.0)
    delays = []
    now = 0.0
    while isinstance(delay := state.decide("model_not_ready", now=now, rand=0.9), float):
        delays.append(delay)
        now += delay
    assert delay == "deadline"
    assert delays[:5] == pytest.approx([0.9, 1.8, 3.6, 7.2, 14.4])
    assert max(delays) == pytest.approx(18.0)
    assert now + 18.0 >= 60.0 > now
    assert state.max_attempts is not None
    assert state.attempt == len(delays) + 1 > state.max_attempts


def test_one_attempt_is_one_attempt_for_a_model_that_is_not_ready_too() -> None:
    for deadline in (None, 60.0):
        state = start(RetryPolicy(max_attempts=1), deadline=deadline)
        assert state.decide("model_not_ready", now=0.0, rand=0.5) == "max_attempts"
        assert state.attempt == 1


def test_model_not_ready_is_bound_by_max_attempts_without_a_deadline() -> None:
    state = start(STANDARD, RetryBucket(0))
    assert decisions(state, "model_not_ready", 3) == [0.5, 1.0, "max_attempts"]


def test_model_not_ready_is_bound_by_patience_too() -> None:
    state = RetryState(RetryPolicy(), deadline=600.0, patience=3.0)
    assert state.decide("model_not_ready", now=0.0, rand=0.9) == pytest.approx(0.9)
    assert state.decide("model_not_ready", now=1.0, rand=0.9) == pytest.approx(1.8)
    assert state.decide("model_not_ready", now=2.8, rand=0.9) == pytest.approx(0.2)
    assert state.decide("model_not_ready", now=3.0, rand=0.9) == "patience"


def test_waiting_for_the_model_leaves_the_other_causes_their_attempts() -> None:
    state = start(STANDARD, RetryBucket(), deadline=1000.0)
    found = decisions(state, "model_not_ready", 6) + decisions(state, "transient", 3)
    assert found == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 0.025, 0.05, "max_attempts"]
    assert state.attempt == 9


@pytest.mark.parametrize("mode", [None, *RETRY_MODES])
def test_clock_skew_is_repeated_once_at_once_and_for_nothing(mode: RetryMode | None) -> None:
    bucket = RetryBucket(0)
    policy = RetryPolicy(mode=mode, max_attempts=5)
    assert decisions(start(policy, bucket), "clock_skew", 2) == [0.0, "clock_skew"]
    once = replace(policy, max_attempts=1)
    assert decisions(start(once, bucket), "clock_skew", 1) == ["max_attempts"]


def test_read_timeouts_are_repeated_only_when_asked_for() -> None:
    assert decisions(start(RetryPolicy()), "read_timeout", 1) == ["not_retryable"]
    assert decisions(start(RetryPolicy(retry_read_timeouts=True)), "read_timeout", 1) == [0.025]


@pytest.mark.parametrize("status", [0, 429, 503, 504])
def test_model_errors_are_repeated_only_for_the_named_statuses(status: int) -> None:
    def decide(policy: RetryPolicy, original_status: int | None) -> float | str:
        return start(policy).decide("model", now=0.0, rand=0.5, original_status=original_status)

    policy = RetryPolicy(retry_model_statuses=frozenset({status}))
    assert decide(RetryPolicy(), status) == "not_retryable"
    assert decide(policy, status) == 0.5
    assert decide(policy, 500) == "not_retryable"
    assert decide(policy, None) == "not_retryable"


@pytest.mark.parametrize("cause", ["throttling", "transient", "connection", "truncated", "model_not_ready"])
def test_a_stream_that_has_begun_is_never_repeated(cause: Cause) -> None:
    state = start(RetryPolicy(), deadline=100.0)
    assert state.decide(cause, now=0.0, rand=0.5, stream_started=True) == "stream_started"
    assert state.attempt == 1
    assert isinstance(state.decide(cause, now=0.0, rand=0.5), float)


def test_a_wait_past_the_deadline_takes_no_tokens() -> None:
    bucket = RetryBucket()
    state = start(STANDARD, bucket, deadline=10.0)
    assert state.decide("throttling", now=9.5, rand=0.5) == "deadline"
    assert state.decide("throttling", now=9.4, rand=0.1, retry_after=0.6) == "deadline"
    assert bucket.statistics().tokens == 500
    assert state.decide("throttling", now=9.4, rand=0.5) == 0.5


causes = st.sampled_from([cause for cause in get_args(Cause) if cause != "none"])
# Above 0.05, so that a call comes to its end in a bounded number of steps.
jitter = st.floats(0.05, 0.99)


@given(
    data=st.data(),
    max_attempts=st.integers(1, 6),
    deadline=st.none() | st.floats(0, 200),
    tokens=st.none() | st.integers(0, 60),
    mode=st.sampled_from([None, *RETRY_MODES]),
)
def test_every_call_ends_and_stays_inside_its_bounds(
    data: st.DataObject, max_attempts: int, deadline: float | None, tokens: int | None, mode: RetryMode | None
) -> None:
    policy = RetryPolicy(
        max_attempts=max_attempts, retry_read_timeouts=True, retry_model_statuses=frozenset({0}), mode=mode
    )
    bucket = None if tokens is None else RetryBucket(tokens)
    state = start(policy, bucket, deadline=deadline)
    now = 0.0
    counted = 1
    for attempt in range(1, 300):
        assert state.attempt == attempt
        cause: Cause = data.draw(causes)
        decision = state.decide(cause, now=now, rand=data.draw(jitter), original_status=0)
        if isinstance(decision, str):
            assert state.attempt == attempt
            break
        counted += not (cause == "model_not_ready" and deadline is not None)
        assert 0 <= decision <= policy.delays(cause)[1]
        now += decision
        assert deadline is None or now < deadline
    else:
        pytest.fail("the call never ended")
    assert counted <= max_attempts
    if bucket is not None and tokens is not None:
        assert 0 <= bucket.statistics().tokens <= tokens


@given(
    data=st.data(),
    first_failure=st.floats(0, 1e6),
    patience=st.floats(0, 60),
    took=st.floats(0, 5),
    mode=st.sampled_from([None, "legacy"]),
    deadline_after=st.none() | st.floats(0, 60),
)
def test_every_call_without_a_bound_on_attempts_ends_with_its_patience_or_at_its_deadline(
    data: st.DataObject,
    first_failure: float,
    patience: float,
    took: float,
    mode: RetryMode | None,
    deadline_after: float | None,
) -> None:
    deadline = None if deadline_after is None else first_failure + deadline_after
    state = RetryState(RetryPolicy(mode=mode), patience=patience, deadline=deadline)
    now = first_failure
    for _ in range(200):
        cause = data.draw(st.sampled_from(["throttling", "transient", "connection", "model_not_ready"]))
        decision = state.decide(cause, now=now, rand=data.draw(jitter))
        if isinstance(decision, str):
            break
        assert decision >= 0
        # Every attempt begins before the end, but for the last one, which begins there.
        assert now + decision <= first_failure + patience + 1e-9
        assert deadline is None or now + decision < deadline
        now += decision + took
    else:
        # So many short waits have not used up its time.
        now = max(now, first_failure + patience if deadline is None else min(first_failure + patience, deadline))
        decision = state.decide("transient", now=now, rand=data.draw(jitter))
    if decision == "patience":
        assert now >= first_failure + patience
    else:
        assert decision == "deadline"
        assert deadline is not None
        # Its patience alone did not end it.
        assert now < first_failure + patience


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
    state = start(replace(STANDARD, max_attempts=4), bucket)
    state.decide("throttling", now=0.0, rand=0.5)
    assert repr(bucket) == "<RetryBucket tokens=15 max_tokens=20>"
    assert repr(state) == "<RetryState attempt=2 max_attempts=4>"
    assert repr(RetryState(RetryPolicy())) == "<RetryState attempt=1 max_attempts=None>"


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


def test_attempts_that_only_time_bounds_have_no_maximum() -> None:
    assert sdk_request(7, None) == "attempt=7"
    assert sdk_request(7, None, 0.0) == "ttl=19700101T000000Z; attempt=7"
