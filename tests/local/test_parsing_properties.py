"""Random requests and files lead to an error response or a typed error, never to a crash."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt._wire.operations import OPERATIONS
from aiosmrt._wire.sigv4.canonical import EMPTY_SHA256
from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.errors import ConfigurationError
from aiosmrt.local.authentication import SignatureVerifier
from aiosmrt.local.configuration import EFFECTS, parse_settings
from aiosmrt.local.error_responses import ErrorReply
from aiosmrt.local.faults import Truncate
from aiosmrt.local.parameters import read_parameters, route_of
from aiosmrt.local.requestlog import RequestRecord
from aiosmrt.local.response_body import shaped
from aiosmrt.local.sessions import announced_session, parse_announcement
from tests.support.peers import REGION

text = st.text(max_size=60)
header_names = sorted({member.header.lower() for one in OPERATIONS for member in one.members if member.header})
operations = st.sampled_from(OPERATIONS)

VERIFIER = SignatureVerifier([Credentials("AKIDEXAMPLE", "not-a-real-secret")], region=REGION)

credential = st.one_of(
    text,
    st.just(f"AKIDEXAMPLE/20150830/{REGION}/sagemaker/aws4_request"),
    st.lists(text, max_size=6).map("/".join),
)
authorization = st.one_of(
    text,
    st.builds(
        "AWS4-HMAC-SHA256 Credential={}, SignedHeaders={}, Signature={}".format,
        credential,
        st.sampled_from(["host;x-amz-date", "host", "", "Host;X-Amz-Date", ";", "host;host"]),
        st.one_of(text, st.just("0" * 64)),
    ),
)
date = st.one_of(text, st.sampled_from(["20150830T123600Z", "20150830T246061Z", "20151330T000000Z", "0001"]))


def attempted(call: Callable[[], Any], expected: type[Exception]) -> Any:
    """The result of a call, or the one type of exception that it may raise."""
    try:
        return call()
    except expected as error:
        return error


@given(
    authorizations=st.lists(authorization, max_size=2),
    dates=st.lists(date, max_size=2),
    tokens=st.lists(text, max_size=2),
    hosts=st.lists(text, max_size=2),
    query=text,
)
def test_random_signatures_are_rejected(
    authorizations: list[str], dates: list[str], tokens: list[str], hosts: list[str], query: str
) -> None:
    headers = [
        *(("Authorization", value) for value in authorizations),
        *(("X-Amz-Date", value) for value in dates),
        *(("X-Amz-Security-Token", value) for value in tokens),
        *(("Host", value) for value in hosts),
    ]
    with pytest.raises(ErrorReply) as caught:
        VERIFIER.verify(
            method="POST", path="/", query=query, headers=headers, payload_sha256=EMPTY_SHA256, now=1440938160.0
        )
    assert caught.value.answer.status in (400, 403)
    caught.value.answer.encoded()


@given(query=st.lists(st.tuples(st.sampled_from(["X-Amz-Algorithm", "X-Amz-Signature", "X-Amz-Date", "a"]), text)))
def test_random_presigned_queries_are_rejected(query: list[tuple[str, str]]) -> None:
    with pytest.raises(ErrorReply):
        VERIFIER.verify(
            method="POST",
            path="/",
            query="&".join(f"{name}={value}" for name, value in query),
            headers=[("Host", "localhost")],
            payload_sha256=EMPTY_SHA256,
            now=1440938160.0,
        )


@given(method=st.sampled_from(["POST", "GET", ""]), path=st.one_of(text, text.map("/endpoints/{}/invocations".format)))
def test_random_paths(method: str, path: str) -> None:
    result = attempted(lambda: route_of(method, path), ErrorReply)
    if isinstance(result, ErrorReply):
        assert result.answer.status == 404
    else:
        assert result[0] in OPERATIONS
        assert result[1]


@given(operation=operations, endpoint=text, headers=st.dictionaries(st.sampled_from(header_names), text))
def test_random_members(operation: Any, endpoint: str, headers: dict[str, str]) -> None:
    result = attempted(lambda: read_parameters(operation, endpoint, headers), ErrorReply)
    if isinstance(result, ErrorReply):
        assert result.answer.code == "ValidationError"
        result.answer.encoded()
    else:
        assert result.pop("EndpointName") == endpoint
        by_name = {member.name: member.header for member in operation.members}
        assert all(headers[str(by_name[name]).lower()] == value for name, value in result.items())


@given(st.one_of(text, st.builds("{}; Expires={}".format, text, text), st.from_regex(r"\w+; Expires=[0-9T:Z-]{20}")))
def test_random_session_announcements(value: str) -> None:
    announced = parse_announcement(value)
    assert announced == announced_session({"x-amzn-sagemaker-session-id": value})
    if announced is not None:
        assert value.startswith(f"{announced[0]};")
        assert announced[1] == int(announced[1])


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text)
keys = st.sampled_from(
    [
        "region",
        "port",
        "endpoints",
        "faults",
        "credentials",
        "variants",
        "container",
        "url",
        "handler",
        "name",
        "weight",
        "effect",
        "instances",
        "command",
        "environment",
        "next",
        "every",
        "inference_components",
        "seconds",
        "a",
    ]
)
values = st.recursive(
    scalars | st.sampled_from(["http://127.0.0.1:1", *EFFECTS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(keys, values, max_size=4))
def test_random_documents(document: dict[str, Any]) -> None:
    result = attempted(lambda: parse_settings(document, Path()), ConfigurationError)
    if isinstance(result, ConfigurationError):
        assert str(result)
    else:
        assert set(result) >= {"endpoints", "faults"}


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=20), max_size=6),
    after_parts=st.integers(0, 8),
    after_bytes=st.integers(0, 60),
)
async def test_body_is_cut_at_the_exact_byte(pieces: list[bytes], after_parts: int, after_bytes: int) -> None:
    async def body() -> Any:
        for piece in pieces:
            yield piece

    async def stall(seconds: float | None) -> None:
        raise AssertionError

    effect = Truncate(after_parts=after_parts, after_bytes=after_bytes, clean_ending=True)
    record = RequestRecord(request_id="", method="POST", path="/")
    cut = b"".join([chunk async for chunk in shaped(body(), effect, stall, record, None)])
    whole, rest = b"".join(pieces[:after_parts]), b"".join(pieces[after_parts:])
    assert cut == whole + rest[:after_bytes]


def test_non_utf8_signature() -> None:
    # Bytes that are not UTF-8 reach the verifier as surrogates.
    junk = bytes(random.Random(1).randrange(128, 256) for _ in range(40)).decode(errors="surrogateescape")
    signed = (
        f"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/{REGION}/sagemaker/aws4_request, "
        f"SignedHeaders=host;x-amz-date, Signature={'0' * 64}"
    )
    headers = [("Authorization", signed), ("X-Amz-Date", "20150830T123600Z"), ("Host", junk)]
    with pytest.raises(ErrorReply) as caught:
        VERIFIER.verify(
            method="POST", path="/", query="", headers=headers, payload_sha256=EMPTY_SHA256, now=1440938160.0
        )
    assert caught.value.answer.code == "InvalidSignatureException"
