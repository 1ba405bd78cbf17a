"""AWS's retry modes against botocore's own handlers: the same number of attempts, the same delays, the same tokens.

botocore's ``standard`` here is revision 2.1, which ``AWS_NEW_RETRIES_2026`` switches on; ``legacy`` is its table
``data/_retry.json``. These differ on purpose:

=============================================== ========= ======== =================================================
answer                                          standard  legacy   aiosmrt, in both
=============================================== ========= ======== =================================================
no answer in time (read timeout)                repeats   repeats  gives up: the model may still be running
a certificate that is not valid (SSLError)      repeats   repeats  gives up: it does not get better
429 ModelNotReadyException                      gives up  repeats  repeats without tokens; until the deadline, if any
408, 421, 530 InternalDependencyException       gives up  gives up repeats: they say nothing about the request
429 without a known code                        gives up  repeats  repeats as throttling
400 with a code of botocore.retries.standard's  repeats   gives up repeats as throttling; legacy knows five of them
500 with ModelError or ValidationError          repeats   repeats  gives up: the code is the better witness
400 RequestTimeout                              repeats   gives up repeats
509                                             gives up  repeats  gives up: SageMaker has no such status
a hint with a sign, or digits of other scripts  obeyed    ignored  ignored, as by AWS's other SDKs
=============================================== ========= ======== =================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import pytest
from botocore import retryhandler
from botocore.awsrequest import AWSResponse, HeadersDict
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.retries import quota, standard
from botocore.session import get_session
from botocore.translate import build_retry_config
from hypothesis import event, example, given
from hypothesis import strategies as st

from aiosmrt import errors
from aiosmrt._policy.retry import RetryBucket, RetryState, classify, parse_retry_after
from aiosmrt.config import RetryMode, RetryPolicy
from aiosmrt.errors import THROTTLING_CODES, Cause

SERVICE = "sagemaker-runtime"


class Outcome(NamedTuple):
    """How one attempt ended.

    Args:
        status: the answer's HTTP status; 0 without an answer.
        code: the answer's error code, or the name of botocore's exception.
        hint: the answer's ``x-amz-retry-after``; None when it is absent.
    """

    status: int
    code: str = ""
    hint: str | None = None


SUCCESS = Outcome(200)
EXCEPTIONS: dict[str, Exception] = {
    kind.__name__: kind(endpoint_url="https://runtime.example", proxy_url="http://proxy.example", error="broken")
    for kind in (
        ConnectionClosedError,
        ConnectTimeoutError,
        EndpointConnectionError,
        ProxyConnectionError,
        ReadTimeoutError,
        SSLError,
    )
}
CONNECTION_ERRORS = [
    Outcome(0, name)
    for name in (
        "ConnectionClosedError",
        "ConnectTimeoutError",
        "EndpointConnectionError",
        "ProxyConnectionError",
        "SSLError",  # not of a certificate
    )
]
READ_TIMEOUT = Outcome(0, "ReadTimeoutError")


class Call(NamedTuple):
    """What one call did.

    Args:
        delays: seconds before each attempt but the first.
        succeeded: whether the last attempt did.
    """

    delays: list[float]
    succeeded: bool


class Client(Protocol):
    """Something that makes calls by a retry mode."""

    def call(self, outcomes: list[Outcome]) -> Call:
        """Make a call whose attempts end like this; the last outcome is also that of all further ones."""
        ...

    @property
    def tokens(self) -> int | None:
        """The tokens left in the bucket; None without a bucket."""
        ...


def endless(outcomes: list[Outcome]) -> Iterator[Outcome]:
    yield from outcomes
    while True:
        yield outcomes[-1]


class Ours:
    """Our rules.

    Args:
        mode: the retry mode.
        rand: the random number of every delay.
        max_attempts: requests per call including the first; None for the mode's.
        tokens: what the bucket holds.
    """

    def __init__(self, mode: RetryMode, rand: float, max_attempts: int | None = None, tokens: int = 500) -> None:
        self.rand = rand
        self.policy = RetryPolicy(mode=mode, max_attempts=max_attempts)
        self.bucket = None if mode == "legacy" else RetryBucket(tokens)

    def call(self, outcomes: list[Outcome]) -> Call:
        state = RetryState(self.policy, max_attempts=self.policy.attempts(None), bucket=self.bucket)
        delays: list[float] = []
        for outcome in endless(outcomes):
            if outcome == SUCCESS:
                state.on_success()
                return Call(delays, succeeded=True)
            cause: Cause
            if outcome.status:
                cause = classify(outcome.status, outcome.code)
            else:
                # Ours have the names of theirs.
                cause = getattr(errors, outcome.code).default_cause
            decision = state.decide(cause, now=0.0, rand=self.rand, retry_after=parse_retry_after(outcome.hint))
            if isinstance(decision, str):
                break
            delays.append(decision)
        return Call(delays, succeeded=False)

    @property
    def tokens(self) -> int | None:
        return None if self.bucket is None else self.bucket.statistics().tokens


@cache
def operation() -> Any:
    return get_session().get_service_model(SERVICE).operation_model("InvokeEndpoint")


class Theirs:
    """One of botocore's handlers for its event ``needs-retry``, called as its endpoint does."""

    handler: Any
    checker: Any = None
    quota: Any = None

    def call(self, outcomes: list[Outcome]) -> Call:
        context: dict[str, Any] = {"retries": {}}
        delays: list[float] = []
        for number, outcome in enumerate(endless(outcomes), 1):
            http, response = self.response(outcome)
            delay = None
            try:
                delay = self.handler(
                    response=response,
                    endpoint=None,
                    operation=operation(),
                    attempts=number,
                    caught_exception=None if http else EXCEPTIONS[outcome.code],
                    request_dict={"context": context},
                )
            except tuple(map(type, EXCEPTIONS.values())):
                # The handler of "legacy" raises the last connection error itself.
                assert not http
            if delay is None:
                if self.checker is not None:
                    self.checker.release_retry_quota(context, http)
                return Call(delays, succeeded=outcome == SUCCESS)
            delays.append(delay)
        raise AssertionError("unreachable")

    def response(self, outcome: Outcome) -> tuple[Any, tuple[Any, dict[str, Any]] | None]:
        if not outcome.status:
            return None, None
        headers: Any = HeadersDict()
        if outcome.hint is not None:
            headers["x-amz-retry-after"] = outcome.hint
        http: Any = AWSResponse("https://runtime.example", outcome.status, headers, None)
        parsed: dict[str, Any] = {"ResponseMetadata": {"HTTPStatusCode": outcome.status}}
        if outcome.status >= 300:
            # As its parser has it: without a code, the status is the code.
            parsed["Error"] = {"Code": outcome.code or str(outcome.status), "Message": ""}
        return http, (http, parsed)

    @property
    def tokens(self) -> int | None:
        return None if self.quota is None else self.quota.available_capacity


class TheirStandard(Theirs):
    """The mode "standard" of botocore, put together as its ``register_retry_handler`` does; arguments as `Ours`."""

    def __init__(self, rand: float, max_attempts: int | None = None, tokens: int = 500) -> None:
        modules: Any = standard
        adapter = modules.RetryEventAdapter()
        detector = modules.ThrottlingErrorDetector(adapter)
        self.quota = quota.RetryQuota(tokens)
        self.checker = modules.RetryQuotaChecker(self.quota, detector)
        self.handler = modules.RetryHandler(
            retry_policy=modules.RetryPolicy(
                retry_checker=modules.StandardRetryConditions(
                    max_attempts=modules.DEFAULT_MAX_ATTEMPTS if max_attempts is None else max_attempts
                ),
                retry_backoff=modules.ExponentialBackoff(
                    random=lambda: rand, service_name=SERVICE, throttling_detector=detector
                ),
            ),
            retry_event_adapter=adapter,
            retry_quota=self.checker,
            service_name=SERVICE,
        ).needs_retry


class TheirLegacy(Theirs):
    """The mode "legacy" of botocore, put together as its ``ClientCreator`` does; arguments as `Ours`."""

    def __init__(self, rand: float, max_attempts: int | None = None) -> None:
        model = get_session().get_component("data_loader").load_data("_retry")
        retries = {} if max_attempts is None else {"max_attempts": max_attempts - 1}
        config = build_retry_config("runtime.sagemaker", model["retry"], model["definitions"], retries)
        self.rand = rand
        self.retry = retryhandler.create_retry_handler(config, "InvokeEndpoint")
        self.handler = self.handle

    def handle(self, **event: Any) -> Any:
        module: Any = retryhandler
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "random", SimpleNamespace(random=lambda: self.rand))
            return self.retry(**event)


@pytest.fixture(autouse=True)
def revision_2_1() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standard, "NEW_RETRIES_ENABLED", True)
        yield


def assert_same(ours: Client, theirs: Client, calls: list[list[Outcome]]) -> None:
    """Let both make the same calls, one after the other."""
    for outcomes in calls:
        mine, reference = ours.call(outcomes), theirs.call(outcomes)
        assert mine == reference
        assert ours.tokens == theirs.tokens
        event("succeeds" if mine.succeeded else f"fails at attempt {len(mine.delays) + 1}")


hints = st.none() | st.integers(-10, 20_000).map(str) | st.sampled_from(["0", "1500", "soon", "", "1.5", str(10**17)])
rand = st.floats(0, 1, exclude_max=True)
limits = st.none() | st.integers(1, 8)


def answers(known: list[Outcome]) -> st.SearchStrategy[list[list[Outcome]]]:
    """Calls whose attempts end in one of these ways, in success, or in an error that is never repeated."""
    others = [
        SUCCESS,
        Outcome(400, "ValidationError"),
        Outcome(424, "ModelError"),
        Outcome(403, "AccessDeniedException"),
    ]
    hinted = st.builds(lambda outcome, hint: outcome._replace(hint=hint), st.sampled_from(known), hints)
    failures = hinted | st.sampled_from(CONNECTION_ERRORS)
    outcomes = st.lists(failures, max_size=8).flatmap(
        lambda some: st.sampled_from(others).map(lambda last: [*some, last]) | st.just(some or [SUCCESS])
    )
    return st.lists(outcomes, min_size=1, max_size=30)


SERVER_ERRORS = [
    Outcome(500),
    Outcome(500, "InternalFailure"),
    Outcome(502),
    Outcome(503),
    Outcome(503, "ServiceUnavailable"),
    Outcome(504),
]


@pytest.mark.parametrize("mode", ["standard", "adaptive"])
@given(
    calls=answers(
        [*SERVER_ERRORS, Outcome(400, "RequestTimeout"), *(Outcome(400, code) for code in sorted(THROTTLING_CODES))]
    ),
    rand=rand,
    max_attempts=limits,
    tokens=st.sampled_from([500, 500, 100, 30, 14, 13, 5, 0]),
)
@example(calls=[[Outcome(503)]] * 30, rand=0.5, max_attempts=None, tokens=500)
@example(calls=[[Outcome(400, "ThrottlingException")], [SUCCESS]] * 60, rand=0.5, max_attempts=None, tokens=500)
@example(calls=[[Outcome(503), Outcome(400, "SlowDown"), SUCCESS], [SUCCESS]], rand=0.9, max_attempts=None, tokens=30)
def test_standard_is_botocores(
    mode: RetryMode, calls: list[list[Outcome]], rand: float, max_attempts: int | None, tokens: int
) -> None:
    assert_same(Ours(mode, rand, max_attempts, tokens), TheirStandard(rand, max_attempts, tokens), calls)


LEGACY_CODES = [
    "ProvisionedThroughputExceededException",
    "RequestThrottledException",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
]


@pytest.mark.long
@given(
    calls=answers(
        [*SERVER_ERRORS, Outcome(429), Outcome(429, "Unheard"), *(Outcome(400, code) for code in LEGACY_CODES)]
    ),
    rand=rand,
    max_attempts=limits,
)
@example(calls=[[Outcome(503)]], rand=0.5, max_attempts=None)
@example(calls=[[Outcome(429, hint="1500")], [CONNECTION_ERRORS[0]]], rand=0.5, max_attempts=8)
def test_legacy_is_botocores(calls: list[list[Outcome]], rand: float, max_attempts: int | None) -> None:
    assert_same(Ours("legacy", rand, max_attempts), TheirLegacy(rand, max_attempts), calls)


def test_500_tokens_are_used_up_by_the_same_call() -> None:
    """Seventeen calls with two retries each, then one retry, then none."""
    ours, theirs = Ours("standard", 0.5), TheirStandard(0.5)
    found = [(len(ours.call([Outcome(503)]).delays), len(theirs.call([Outcome(503)]).delays)) for _ in range(20)]
    assert found == [(2, 2)] * 17 + [(1, 1)] + [(0, 0)] * 2
    assert ours.tokens == theirs.tokens == 10


GIVES_UP: list[float] = []
TRANSIENT = [0.025, 0.05]
THROTTLED = [0.5, 1.0]
LEGACY = [0.5, 1.0, 2.0, 4.0]


# What is done, then what botocore's "standard" and "legacy" do; delays with a random number of 0.5.
@pytest.mark.parametrize(
    ("outcome", "ours_standard", "ours_legacy", "standard_delays", "legacy_delays"),
    [
        (READ_TIMEOUT, GIVES_UP, GIVES_UP, TRANSIENT, LEGACY),
        (Outcome(429, "ModelNotReadyException"), THROTTLED, LEGACY, GIVES_UP, LEGACY),
        (Outcome(530, "InternalDependencyException"), TRANSIENT, LEGACY, GIVES_UP, GIVES_UP),
        (Outcome(408), TRANSIENT, LEGACY, GIVES_UP, GIVES_UP),
        (Outcome(421), TRANSIENT, LEGACY, GIVES_UP, GIVES_UP),
        (Outcome(429), THROTTLED, LEGACY, GIVES_UP, LEGACY),
        (Outcome(429, "Unheard"), THROTTLED, LEGACY, GIVES_UP, LEGACY),
        (Outcome(500, "ModelError"), GIVES_UP, GIVES_UP, TRANSIENT, LEGACY),
        (Outcome(500, "ValidationError"), GIVES_UP, GIVES_UP, TRANSIENT, LEGACY),
        (Outcome(400, "RequestTimeout"), TRANSIENT, LEGACY, TRANSIENT, GIVES_UP),
        (Outcome(509), GIVES_UP, GIVES_UP, GIVES_UP, LEGACY),
        *(
            (Outcome(400, code), THROTTLED, LEGACY, THROTTLED, GIVES_UP)
            for code in sorted(THROTTLING_CODES - {*LEGACY_CODES})
        ),
        (Outcome(500, hint="+1500"), TRANSIENT, LEGACY, [1.5, 1.5], LEGACY),
        (Outcome(500, hint="1_500"), TRANSIENT, LEGACY, [1.5, 1.5], LEGACY),
        (Outcome(500, hint="\u0661\u0665\u0660\u0660"), TRANSIENT, LEGACY, [1.5, 1.5], LEGACY),
    ],
)
def test_what_differs_on_purpose(
    outcome: Outcome,
    ours_standard: list[float],
    ours_legacy: list[float],
    standard_delays: list[float],
    legacy_delays: list[float],
) -> None:
    assert Ours("standard", 0.5).call([outcome]) == Call(ours_standard, succeeded=False)
    assert Ours("legacy", 0.5).call([outcome]) == Call(ours_legacy, succeeded=False)
    assert TheirStandard(0.5).call([outcome]) == Call(standard_delays, succeeded=False)
    assert TheirLegacy(0.5).call([outcome]) == Call(legacy_delays, succeeded=False)


def test_a_model_that_is_not_ready_takes_no_tokens() -> None:
    ours = Ours("standard", 0.5, tokens=0)
    assert ours.call([Outcome(429, "ModelNotReadyException")]).delays == THROTTLED
    assert ours.call([Outcome(429)]).delays == GIVES_UP


def test_read_timeouts_are_repeated_as_in_botocore_when_asked_for() -> None:
    for mode, delays in (("standard", TRANSIENT), ("legacy", LEGACY)):
        ours = Ours("standard" if mode == "standard" else "legacy", 0.5)
        ours.policy = RetryPolicy(mode=ours.policy.mode, retry_read_timeouts=True)
        assert ours.call([READ_TIMEOUT]).delays == delays
