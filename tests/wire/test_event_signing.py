"""The signatures of an event stream's messages, with AWS's own signer as the oracle."""

import asyncio
import hmac
import struct
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosmrt._wire.eventheaders import EventHeaders, encode_header, encode_timestamp, parse_headers
from aiosmrt._wire.eventstream import Decoder, encode_payload_part
from aiosmrt._wire.sigv4.canonical import SignatureFormatError, signing_key
from aiosmrt._wire.sigv4.events import EventSigner, EventVerifier
from aiosmrt._wire.sigv4.signer import Credentials, Signer
from aiosmrt.errors import HeaderFormatError

SECRET = "fake-secret-key-for-tests"
SEED = "ab" * 32
NOW = 1_440_938_160.0
SECONDS = st.floats(0, 4_000_000_000)
MESSAGES = st.lists(st.tuples(SECONDS, st.binary(max_size=200)), min_size=1, max_size=5)


def key_of(day: str) -> bytes:
    return signing_key(SECRET, day, "eu-central-1", "sagemaker")


def signer() -> EventSigner:
    return Signer(region="eu-central-1").event_signer(lambda: Credentials("AKIDEXAMPLE", SECRET), SEED)


def verifier(seed: str = SEED) -> EventVerifier:
    return EventVerifier(key_of, "eu-central-1", "sagemaker", seed)


def unwrapped(frame: bytes) -> tuple[EventHeaders, bytes]:
    ((headers, message),) = Decoder().feed(frame)
    return headers, message


def test_a_signature_is_the_one_of_the_specification() -> None:
    """Computed here from the specification's text, step by step."""
    headers, message = unwrapped(signer().sign(NOW, b"hello"))
    date = b"\x05:date\x08" + struct.pack(">q", 1_440_938_160_000)
    text = "\n".join(
        (
            "AWS4-HMAC-SHA256-PAYLOAD",
            "20150830T123600Z",
            "20150830/eu-central-1/sagemaker/aws4_request",
            SEED,
            sha256(date).hexdigest(),
            sha256(b"hello").hexdigest(),
        )
    )
    assert message == b"hello"
    assert headers == {
        ":date": 1_440_938_160_000,
        ":chunk-signature": hmac.digest(key_of("20150830"), text.encode(), "sha256"),
    }


@given(MESSAGES)
def test_what_is_signed_is_verified(messages: list[tuple[float, bytes]]) -> None:
    ours, theirs = signer(), verifier()
    for timestamp, message in messages:
        headers, payload = unwrapped(ours.sign(timestamp, message))
        assert payload == message
        assert abs(theirs.verify(headers, payload) - timestamp) <= 0.001


@given(MESSAGES, st.data())
def test_another_order_another_message_or_another_time_is_refused(
    messages: list[tuple[float, bytes]], data: st.DataObject
) -> None:
    ours, theirs = signer(), verifier()
    frames = [unwrapped(ours.sign(timestamp, message)) for timestamp, message in messages]
    at = data.draw(st.integers(0, len(frames) - 1))
    for headers, message in frames[:at]:
        theirs.verify(headers, message)
    headers, message = frames[at]
    change = data.draw(st.sampled_from(["message", "date", "signature", "skipped"]))
    if change == "message":
        message += b"x"
    elif change == "date":
        headers = EventHeaders({**headers, ":date": int(headers[":date"]) + 1})
    elif change == "signature":
        headers = EventHeaders({**headers, ":chunk-signature": bytes(32)})
    else:
        theirs = verifier("cd" * 32)
    with pytest.raises(SignatureFormatError, match="does not match"):
        theirs.verify(headers, message)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {":date": 1},
        {":chunk-signature": bytes(32)},
        {":date": "now", ":chunk-signature": bytes(32)},
        {":date": True, ":chunk-signature": bytes(32)},
        {":date": 1, ":chunk-signature": "text"},
        {":date": -1, ":chunk-signature": bytes(32)},
        {":date": 2**62, ":chunk-signature": bytes(32)},
        {":date": 1, ":chunk-signature": bytes(32), "x": 1},
    ],
)
def test_malformed_signatures_are_refused(headers: dict[str, Any]) -> None:
    with pytest.raises(SignatureFormatError):
        verifier().verify(EventHeaders(headers), b"")


def test_a_day_has_its_own_key() -> None:
    midnight = 1_440_979_200.0
    ours, theirs = signer(), verifier()
    for timestamp in (midnight - 0.5, midnight + 0.5):
        headers, message = unwrapped(ours.sign(timestamp, b"x"))
        assert theirs.verify(headers, message) == timestamp


def test_neither_key_nor_signature_is_shown() -> None:
    assert repr(signer()) == "<EventSigner eu-central-1/sagemaker>"
    assert SECRET not in repr(verifier())
    assert SEED not in repr(verifier())


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.sampled_from([None, "UTF8", "BINARY"]))
def test_aws_signs_the_same(parts: list[bytes], data_type: str | None) -> None:
    """AWS's signer takes the time from the clock, and ours the time that it took."""
    aws: Any = pytest.importorskip("aws_sdk_signers", reason="AWS's signer needs Python 3.12")
    events: Any = pytest.importorskip("smithy_aws_event_stream.events")
    theirs = aws.AsyncEventSigner(initial_signature=SEED.encode(), event_encoder_cls=events.EventHeaderEncoder)
    identity = aws.AWSCredentialIdentity(access_key_id="AKIDEXAMPLE", secret_access_key=SECRET)
    properties = {"region": "eu-central-1", "service": "sagemaker"}
    ours = signer()

    async def compare() -> None:
        for part in parts:
            headers = {":message-type": "event", ":event-type": "PayloadPart"}
            if data_type is not None:
                headers["DataType"] = data_type
            message = events.EventMessage(headers=dict(headers), payload=part)
            inner = message.encode()
            signed = await theirs.sign(event=message, identity=identity, properties=dict(properties))
            await same(signed, inner)
        last = await theirs.sign_empty(
            event=events.EventMessage(headers={}, payload=b""), identity=identity, properties=dict(properties)
        )
        await same(last, b"")

    async def same(signed: Any, inner: bytes) -> None:
        wire = unwrapped(signed.encode())
        date = int(wire[0][":date"])
        assert unwrapped(ours.sign((date + 0.5) / 1000, inner)) == wire

    asyncio.run(compare())


# Headers


@given(st.text(min_size=1, max_size=60), st.text(max_size=100) | st.binary(max_size=300))
def test_an_encoded_header_is_read_back(name: str, value: str | bytes) -> None:
    assert dict(parse_headers(encode_header(name, value))) == {name: value}


@pytest.mark.parametrize(("name", "value"), [("", "x"), ("n" * 256, "x"), ("n", "x" * 65_536), ("n", bytes(65_536))])
def test_a_header_that_does_not_fit_is_refused(name: str, value: str | bytes) -> None:
    with pytest.raises(HeaderFormatError):
        encode_header(name, value)


def test_a_time_before_1970_is_encoded() -> None:
    assert parse_headers(encode_timestamp("then", -1))["then"] == -1


@given(
    st.binary(max_size=100),
    st.sampled_from([None, "UTF8", "BINARY"]),
    st.sampled_from([None, "PARTIAL", "COMPLETE"]),
)
def test_a_part_says_what_it_is(payload: bytes, data_type: str | None, completion_state: str | None) -> None:
    headers, found = unwrapped(encode_payload_part(payload, data_type, completion_state))
    assert found == payload
    assert headers.event_type == "PayloadPart"
    assert headers.get("DataType") == data_type
    assert headers.get("CompletionState") == completion_state
