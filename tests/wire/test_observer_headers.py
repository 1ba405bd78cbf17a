"""Headers that others add to a request."""

import doctest

import pytest

from aiosmrt._wire import observer_headers
from aiosmrt._wire.observer_headers import extend
from aiosmrt._wire.params import Head

HEAD = Head("churn", "/endpoints/churn/invocations", (("Content-Type", "text/csv"), ("Accept", "text/csv")))


def test_examples() -> None:
    failed, tried = doctest.testmod(observer_headers)
    assert (failed, tried) == (0, 1)


def test_nothing_added_leaves_the_head_and_what_is_kept_by_it() -> None:
    assert extend(HEAD, {}) is HEAD


def test_added_headers_follow_and_are_not_kept_for_other_calls() -> None:
    extended = extend(HEAD, {"traceparent": "00-1-2-01", "baggage": ""})
    assert extended.headers == (*HEAD.headers, ("traceparent", "00-1-2-01"), ("baggage", ""))
    assert (extended.endpoint_name, extended.path, extended.lasting) == (HEAD.endpoint_name, HEAD.path, False)


@pytest.mark.parametrize("name", ["Accept", "accept", "ACCEPT"])
def test_a_header_of_the_same_name_is_replaced(name: str) -> None:
    assert extend(HEAD, {name: "text/plain"}).headers == (("Content-Type", "text/csv"), (name, "text/plain"))


@pytest.mark.parametrize("name", ["", "two words", "colon:", "line\n", "ümlaut", "null\0", "(comment)", "a" * 99 + " "])
def test_names_that_http_cannot_carry(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        extend(HEAD, {name: "1"})


@pytest.mark.parametrize(
    "value", ["secret\r\nX-Evil: 1", "secret\n", "secret\0", "secret\x7f", "sécret", " secret", "secret "]
)
def test_values_that_http_cannot_carry_are_not_quoted(value: str) -> None:
    with pytest.raises(ValueError, match="'baggage' cannot be sent") as caught:
        extend(HEAD, {"baggage": value})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "Authorization", "X-Amz-Date", "x-amz-security-token", "Content-Length", "Transfer-Encoding"),
        *("User-Agent", "Accept-Encoding", "Connection", "amz-sdk-invocation-id", "Amz-Sdk-Request"),
    ],
)
def test_headers_that_are_not_for_others_to_set(name: str) -> None:
    with pytest.raises(ValueError, match=name.lower()):
        extend(HEAD, {"traceparent": "00-1-2-01", name: "1"})


def test_every_header_of_a_parameter_may_be_replaced() -> None:
    name = "X-Amzn-SageMaker-Custom-Attributes"
    assert extend(HEAD, {name: "a=1"}).headers[-1] == (name, "a=1")
