"""Signatures of the messages of an event stream, each of which covers the one before it.

A request that sends an event stream is signed with `EVENTS_PAYLOAD` in place of its payload's hash. Its signature is
the seed of a chain: a message is the payload of another, whose headers are ``:date`` and ``:chunk-signature``. What is
signed is ::

    AWS4-HMAC-SHA256-PAYLOAD
    20150830T123600Z
    20150830/eu-central-1/sagemaker/aws4_request
    the signature before, in hexadecimal
    SHA-256 of the encoded :date header
    SHA-256 of the inner message

The last message has an empty payload and no message inside it. Source: "Event stream signing" in the Smithy
specification for AWS's protocols; the tests compare with AWS's own signer.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from aiosmrt._wire.eventheaders import EventHeaders, encode_header, encode_timestamp
from aiosmrt._wire.eventstream import encode_frame
from aiosmrt._wire.sigv4.canonical import SignatureFormatError, amz_date, credential_scope, keyed_hashes

__all__ = ["EVENTS_PAYLOAD", "EventSigner", "EventVerifier"]

EVENTS_PAYLOAD: Final = "STREAMING-AWS4-HMAC-SHA256-EVENTS"
"""What stands in for the payload's hash where each message of the payload has its own signature."""

_ALGORITHM: Final = "AWS4-HMAC-SHA256-PAYLOAD"


class _Chain:
    """The signatures so far.

    Args:
        key_of: the signing key of a day, ``YYYYMMDD``.
        region: the signing region.
        service: the signing name.
        seed: the signature of the request, in hexadecimal.
    """

    __slots__ = ("_inner", "_key_of", "_outer", "_prior", "_region", "_second", "_service")

    def __init__(self, key_of: Callable[[str], bytes], region: str, service: str, seed: str) -> None:
        self._key_of = key_of
        self._region = region
        self._service = service
        self._prior = seed
        # What the messages of one second share: the HMAC of the lines before the first that is a message's own.
        self._second = -1
        self._inner = self._outer = sha256()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._region}/{self._service}>"

    def _signature(self, milliseconds: int, date_header: bytes, message: bytes | bytearray | memoryview) -> bytes:
        second = milliseconds // 1000
        if second != self._second:
            date = amz_date(second)
            self._inner, self._outer = keyed_hashes(self._key_of(date[:8]))
            lines = f"{_ALGORITHM}\n{date}\n{credential_scope(date[:8], self._region, self._service)}\n"
            self._inner.update(lines.encode())
            self._second = second
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(f"{self._prior}\n{sha256(date_header).hexdigest()}\n{sha256(message).hexdigest()}".encode())
        outer.update(inner.digest())
        return outer.digest()


# The headers of a signed message up to their values.
_DATE: Final = encode_timestamp(":date", 0)[:-8]
_CHUNK_SIGNATURE: Final = encode_header(":chunk-signature", bytes(sha256().digest_size))[: -sha256().digest_size]


class EventSigner(_Chain):
    """Signs the messages of one stream, in their order; see `aiosmrt._wire.sigv4.signer.Signer.event_signer`."""

    __slots__ = ()

    def sign(self, timestamp: float, message: bytes | bytearray | memoryview) -> bytes:
        """The signed message that goes on the wire.

        Args:
            timestamp: the time of signing, in seconds since 1970.
            message: the encoded message to sign; empty for the last one.

        Raises:
            FrameLengthError: the message exceeds the specification's limit.
        """
        milliseconds = int(timestamp * 1000)
        date_header = _DATE + milliseconds.to_bytes(8)
        signed = self._signature(milliseconds, date_header, message)
        frame = encode_frame(date_header + _CHUNK_SIGNATURE + signed, message)
        self._prior = signed.hex()
        return frame


class EventVerifier(_Chain):
    """Verifies the messages of one stream, in their order; the arguments are those of the signer's chain."""

    __slots__ = ()

    def verify(self, headers: EventHeaders, message: bytes) -> float:
        """Verify a signed message, and return the time of its signature in seconds since 1970.

        Args:
            headers: the headers of the signed message.
            message: its payload: the inner message, still encoded.

        Raises:
            SignatureFormatError: a header is missing, malformed or added, or the signature is not the right one.
        """
        date, signed = headers.get(":date"), headers.get(":chunk-signature")
        if set(headers) != {":date", ":chunk-signature"}:
            raise SignatureFormatError(
                "a signed message must have the headers :date and :chunk-signature and no others"
            )
        if not isinstance(date, int) or isinstance(date, bool) or not isinstance(signed, bytes):
            raise SignatureFormatError("a signed message has a :date or a :chunk-signature of another type")
        if not 0 <= date < _MAX_MILLISECONDS:
            raise SignatureFormatError("a signed message has a :date out of range")
        if not hmac.compare_digest(self._signature(date, encode_timestamp(":date", date), message), signed):
            raise SignatureFormatError("the signature of a message does not match")
        self._prior = signed.hex()
        return date / 1000


# the year 9999, the last that a date can have
_MAX_MILLISECONDS: Final = 253_402_300_800_000
