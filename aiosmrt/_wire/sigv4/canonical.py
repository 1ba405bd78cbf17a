"""The steps of a Signature Version 4, which a client takes to sign and a server to verify.

1. `canonical_request` writes the request in one fixed form: method, path, query, signed headers, their names, and the
   hash of the payload.
2. `string_to_sign` ties the hash of that text to a second and to a scope (day, region, service).
3. `signing_key` derives from the secret key a key that is valid for a single scope.
4. `signature` is the HMAC of 2 under 3.

Source: "Create a signed AWS API request" in the AWS IAM User Guide, for services other than Amazon S3, which neither
normalizes paths nor quotes them twice.
"""

import hmac
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = [
    "ALGORITHM",
    "EMPTY_SHA256",
    "MAX_EXPIRES_IN",
    "PRESIGNED_PARAMETERS",
    "UNSIGNED_HEADERS",
    "UNSIGNED_PAYLOAD",
    "SignatureFormatError",
    "amz_date",
    "canonical_headers",
    "canonical_path",
    "canonical_query",
    "canonical_request",
    "credential_scope",
    "keyed_hashes",
    "parse_amz_date",
    "signature",
    "signing_key",
    "string_to_sign",
]

ALGORITHM: Final = "AWS4-HMAC-SHA256"
EMPTY_SHA256: Final = sha256(b"").hexdigest()
UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"

MAX_EXPIRES_IN: Final = 604_800
"""Seconds in a week: the longest validity that the services accept in ``X-Amz-Expires``."""

UNSIGNED_HEADERS: Final = frozenset(
    {
        "baggage",
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-amzn-trace-id",
    }
)
"""Headers that stay out of a signature, because proxies and HTTP libraries add, change or drop them on the way."""

PRESIGNED_PARAMETERS: Final = frozenset(
    {
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-Security-Token",
        "X-Amz-Signature",
        "X-Amz-SignedHeaders",
    }
)
"""Query parameters in which a presigned URL carries its signature."""


class SignatureFormatError(ValueError):
    """A Signature Version 4 is malformed; the message never repeats the input."""


def amz_date(timestamp: float) -> str:
    """Format a time as ``X-Amz-Date``, to the second.

    Args:
        timestamp: seconds since 1970, not negative.

    >>> amz_date(1440938160.9)
    '20150830T123600Z'
    """
    return f"{datetime.fromtimestamp(int(timestamp), UTC):%Y%m%dT%H%M%SZ}"


def parse_amz_date(text: str) -> float:
    """Read an ``X-Amz-Date`` value as seconds since 1970.

    Raises:
        SignatureFormatError: it is not of the form ``YYYYMMDDThhmmssZ``, or there is no such date.

    >>> parse_amz_date("20150830T123600Z")
    1440938160.0
    """
    if re.fullmatch("[0-9]{8}T[0-9]{6}Z", text):
        try:
            return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        except ValueError:
            pass
    raise SignatureFormatError("X-Amz-Date is not a valid date of the form YYYYMMDDThhmmssZ")


def credential_scope(day: str, region: str, service: str) -> str:
    """The scope of a signing key.

    Args:
        day: ``YYYYMMDD``.
        region: the signing region.
        service: the signing name.

    >>> credential_scope("20150830", "eu-central-1", "sagemaker")
    '20150830/eu-central-1/sagemaker/aws4_request'
    """
    return f"{day}/{region}/{service}/aws4_request"


def canonical_path(path: str) -> str:
    """The path of a request line in canonical form: dot and empty segments resolved, then quoted once more.

    A path is percent-encoded on the wire already; the signature covers that text encoded again.

    >>> canonical_path("/endpoints//./my%20model/../churn/")
    '/endpoints/churn/'
    >>> canonical_path("/endpoints/my%20model")
    '/endpoints/my%2520model'
    """
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    if not kept:
        return "/"
    return quote(f"/{'/'.join(kept)}{'/' if path.endswith('/') else ''}")


def canonical_query(query: str) -> str:
    """The query of a request line with its parameters sorted.

    Args:
        query: percent-encoded, without the ``?``.

    >>> canonical_query("b=2&a&b=1")
    'a=&b=1&b=2'
    """
    if not query:
        return ""
    pairs = sorted(parameter.partition("=")[::2] for parameter in query.split("&"))
    return "&".join(f"{name}={value}" for name, value in pairs)


def canonical_headers(headers: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The lines of the headers to be signed, and the list of their names.

    Values are trimmed, and runs of white space in them become one space. The values of a repeated name are joined by
    commas, in the given order.

    >>> canonical_headers([("X-Two", " a   b "), ("Host", "example.com"), ("x-two", "c")])
    ('host:example.com\\nx-two:a b,c\\n', 'host;x-two')
    """
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(" ".join(value.split()))
    names = sorted(values)
    return "".join(f"{name}:{','.join(values[name])}\n" for name in names), ";".join(names)


def canonical_request(
    method: str, path: str, query: str, headers: Iterable[tuple[str, str]], payload_sha256: str
) -> str:
    """A request in the one form that both sides hash.

    Args:
        method: the HTTP method.
        path: the path as on the request line, percent-encoded.
        query: the query as on the request line, percent-encoded, without the ``?``.
        headers: the signed headers and no others; ``host`` and ``x-amz-date`` are among them.
        payload_sha256: the hash of the payload in hexadecimal, or `UNSIGNED_PAYLOAD`.

    >>> print(canonical_request("POST", "/ping", "", [("Host", "example.com")], UNSIGNED_PAYLOAD))
    POST
    /ping
    <BLANKLINE>
    host:example.com
    <BLANKLINE>
    host
    UNSIGNED-PAYLOAD
    """
    lines, names = canonical_headers(headers)
    return f"{method.upper()}\n{canonical_path(path)}\n{canonical_query(query)}\n{lines}\n{names}\n{payload_sha256}"


def string_to_sign(date: str, scope: str, canonical: str) -> str:
    """The text to sign: a canonical request tied to a second and a credential scope.

    Args:
        date: the second, as `amz_date` formats it.
        scope: as from `credential_scope`.
        canonical: as from `canonical_request`.

    Raises:
        ValueError: the request contains lone surrogates.

    >>> print(string_to_sign("20150830T123600Z", "20150830/eu-central-1/sagemaker/aws4_request", ""))
    AWS4-HMAC-SHA256
    20150830T123600Z
    20150830/eu-central-1/sagemaker/aws4_request
    e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    """
    return f"{preamble(date, scope)}{sha256(encoded(canonical, 'the request')).hexdigest()}"


def preamble(date: str, scope: str) -> str:
    """The first lines of the string to sign, which do not depend on the request."""
    return f"{ALGORITHM}\n{date}\n{scope}\n"


def signing_key(secret_key: str, day: str, region: str, service: str) -> bytes:
    """The key that signs for one scope; as secret as the key that it is derived from.

    Args:
        secret_key: the secret access key.
        day: ``YYYYMMDD``.
        region: the signing region.
        service: the signing name.

    >>> len(signing_key("not-a-real-secret", "20150830", "eu-central-1", "sagemaker"))
    32
    """
    key = encoded(f"AWS4{secret_key}", "secret_key")
    for step in (day, region, service, "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    return key


def signature(key: bytes, text: str) -> str:
    """The signature of a string to sign under a signing key, in hexadecimal.

    >>> signature(bytes(32), "")
    'b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad'
    """
    return hmac.digest(key, text.encode(), "sha256").hex()


def keyed_hashes(key: bytes) -> "tuple[_Hash, _Hash]":
    """What an HMAC-SHA256 begins with (RFC 2104), to be copied for each message: work that is done once for a key.

    Args:
        key: up to 64 bytes, the hash's block.

    Returns:
        The hash that the message goes into, and the one that this hash's digest goes into.

    >>> inner, outer = keyed_hashes(bytes(32))
    >>> outer.update(inner.digest())
    >>> outer.hexdigest() == signature(bytes(32), "")
    True
    """
    padded = key.ljust(64, b"\0")
    return sha256(bytes(byte ^ 0x36 for byte in padded)), sha256(bytes(byte ^ 0x5C for byte in padded))


def encoded(text: str, name: str) -> bytes:
    """Encode as UTF-8.

    Args:
        text: the text; no error message repeats it.
        name: what to call it in the error message.

    Raises:
        ValueError: it contains lone surrogates.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass
    # Raised out here: the error above carries the text, which may contain a token, and must not be the context.
    raise ValueError(f"{name} contains lone surrogates and cannot be encoded as UTF-8")
