"""Signing request after request: the steps of `aiosmrt._wire.sigv4.canonical`, with what repeats computed once.

Consecutive calls differ in little:

- By day: the signing key, four chained HMACs.
- By second: the date, the scope, and both halves of the final HMAC. HMAC (RFC 2104) is
  ``H(outer pad + H(inner pad + message))``. Both pads and the first lines of the string to sign are known before the
  request is, so two hash objects that have taken them in are copied for each call.
- By shape (method, host, path, query and header names): the canonical request with a gap for each value. Sorting and
  quoting happen once per shape; a call fills the gaps.
- By second and request head: the canonical request ends with the payload's hash, so one hash object that has taken in
  the rest serves every call with the same head in that second.

``benchmarks/signing.py`` measures it against botocore's signer; ``tests/wire/test_sigv4.py`` compares the results.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import inf, isnan
from numbers import Real
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qsl, quote

from aiosmrt._wire.sigv4.canonical import (
    ALGORITHM,
    MAX_EXPIRES_IN,
    PRESIGNED_PARAMETERS,
    UNSIGNED_HEADERS,
    amz_date,
    canonical_headers,
    canonical_request,
    credential_scope,
    encoded,
    keyed_hashes,
    preamble,
    signature,
    signing_key,
    string_to_sign,
)

if TYPE_CHECKING:
    from hashlib import _Hash

    from aiosmrt._wire.sigv4.events import EventSigner

__all__ = ["Credentials", "SignedRequest", "Signer"]

_SIGNING_HEADERS: Final = frozenset({"authorization", "date", "host", "x-amz-date", "x-amz-security-token"})

# The caches are emptied when they reach these sizes, which is rare.
_MAX_TEMPLATES: Final = 512
_MAX_KEYS: Final = 16
_MAX_PREFIXES: Final = 64

# A time since 1970 that is larger is no number of seconds: in milliseconds it is in 2001, in seconds in the year 33658.
_MILLISECONDS: Final = 10**12

# A value's stand-in while a template is made. Control characters are refused, so no request contains it.
_GAP: Final = "\0"

# Method, host, path, query, number of headers that signing adds, names of the others.
_Shape = tuple[str, str, str, str, int, tuple[str, ...]]


@dataclass(frozen=True, slots=True, init=False)
class Credentials:
    """AWS credentials to sign requests with.

    Args:
        access_key: the access key id; shown in the repr, as in every signed request.
        secret_key: the secret access key, never shown.
        token: the session token of temporary credentials, never shown. Defaults to None, for long-lived ones.
        expires_at: when they expire, in seconds since 1970. Defaults to None, for never.

    Raises:
        ValueError: a part is not a str, is empty, or contains characters that a header cannot carry (a space or line
            break from copying, a non-ASCII character) or UTF-8 cannot express, or ``expires_at`` is not a number, or in
            milliseconds. The message names the part and not its value.

    >>> Credentials("AKIDEXAMPLE", "not-a-real-secret", token="not-a-real-token")
    Credentials(access_key='AKIDEXAMPLE', expires_at=None)
    """

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    expires_at: float | None = None

    # Not dataclasses' own: error trackers report locals, and those of its frame are the keys.
    def __init__(
        self, access_key: str, secret_key: str, token: str | None = None, expires_at: float | None = None
    ) -> None:
        fault = _faulty_part(access_key, secret_key, token, expires_at)
        if fault is not None:
            del self, access_key, secret_key, token
            raise ValueError(fault)
        object.__setattr__(self, "access_key", access_key)
        object.__setattr__(self, "secret_key", secret_key)
        object.__setattr__(self, "token", token)
        object.__setattr__(self, "expires_at", expires_at)


def _faulty_part(access_key: object, secret_key: object, token: object, expires_at: object) -> str | None:
    """What is wrong with a part of credentials; it does not quote the part."""
    for name, part in (("secret_key", secret_key), ("access_key", access_key), ("token", token)):
        if not isinstance(part, str) and not (name == "token" and part is None):
            return f"{name} must be a str; got {type(part).__name__}"
        if not part and name != "token":
            return f"{name} is empty"
        if name == "secret_key":
            if part and not _is_encodable(part):
                return "secret_key contains lone surrogates and cannot be encoded as UTF-8"
        elif part and not _is_visible_ascii(part):
            return f"{name} contains white space, a control character or a non-ASCII character"
    if expires_at is not None and not _is_number(expires_at):
        return "expires_at must be a number of seconds since 1970 or None"
    if isinstance(expires_at, Real) and _MILLISECONDS <= float(expires_at) < inf:
        return "expires_at must be in seconds since 1970; it looks like milliseconds"
    return None


def _is_visible_ascii(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: object) -> bool:
    # NaN compares false with every time: credentials would be neither valid nor expired.
    try:
        return isinstance(value, Real) and not isnan(value)
    except OverflowError:
        return False


class SignedRequest(NamedTuple):
    """The signed parts of a request other than its payload.

    Attributes:
        method: the HTTP method.
        host: the value of the ``Host`` header, as on the wire.
        path: the path as on the request line, percent-encoded.
        query: the query as on the request line, percent-encoded, without the ``?``.
        headers: the request's other headers. Those in `UNSIGNED_HEADERS` stay out of the signature.
    """

    method: str
    host: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        # Without the headers: custom attributes may be among them.
        return f"<{self.method} {self.path} to {self.host}>"


# With slots, as each signature reads most of their attributes: those of a tuple with names take three times as long.
@dataclass(slots=True, repr=False)
class _Prefix:
    """A canonical request up to its payload's hash, and the lines that signing adds up to the signature."""

    request: SignedRequest
    canonical: "_Hash"
    lines: str

    def __repr__(self) -> str:
        # The session token is among the headers.
        return "<prefix of a canonical request>"


@dataclass(slots=True, repr=False)
class _Second:
    """What all signatures of one second with the same credentials share."""

    credentials: Credentials
    second: int
    added_headers: tuple[tuple[str, str], ...]
    added_values: tuple[str, ...]
    credential: str
    inner: "_Hash"
    outer: "_Hash"
    # By the requests' ids, which is faster than by value. Each prefix keeps its request alive, so that no id recurs.
    prefixes: dict[int, _Prefix]

    def __repr__(self) -> str:
        # Without the headers: the session token is among them.
        return f"<second {self.second} as {self.credentials!r}>"


class _Template(NamedTuple):
    """A canonical request in pieces, with a gap at every odd index, and the function that picks the values for them."""

    text: list[str]
    pick: Callable[[tuple[str, ...]], tuple[str, ...]]
    signed_headers: str


class Signer:
    """Signs requests to one service in one region.

    Args:
        region: the signing region, such as ``eu-central-1``.
        service: the signing name. Defaults to ``"sagemaker"``, as SageMaker Runtime has it.

    >>> signer = Signer(region="eu-central-1")
    >>> credentials = Credentials("AKIDEXAMPLE", "not-a-real-secret")
    >>> request = SignedRequest(
    ...     "POST", "example.com", "/endpoints/churn/invocations", "", (("Content-Type", "text/csv"),)
    ... )
    >>> for name, value in signer.sign(credentials, 1440938160.0, request, sha256(b"").hexdigest()):
    ...     print(name, value[:78])
    X-Amz-Date 20150830T123600Z
    Authorization AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/eu-central-1/sagemaker/aws4_r
    """

    __slots__ = ("_keys", "_now", "_region", "_service", "_templates")

    def __init__(self, *, region: str, service: str = "sagemaker") -> None:
        self._region = region
        self._service = service
        self._keys: dict[tuple[str, str], bytes] = {}
        self._templates: dict[_Shape, _Template] = {}
        self._now: _Second | None = None

    def __repr__(self) -> str:
        return f"Signer(region={self._region!r}, service={self._service!r})"

    def sign(
        self, credentials: Credentials, timestamp: float, request: SignedRequest, payload_sha256: str
    ) -> list[tuple[str, str]]:
        """Compute the headers that sign a request.

        Args:
            credentials: the credentials to sign with.
            timestamp: the time of signing, in seconds since 1970; services accept it within 5 minutes of theirs.
            request: the request without its payload.
            payload_sha256: the hash of the payload in hexadecimal, or ``UNSIGNED-PAYLOAD``.

        Returns:
            ``X-Amz-Date``, ``X-Amz-Security-Token`` for temporary credentials, ``Authorization``.

        Raises:
            ValueError: a given header is one that signing sets; there is a control character in method, host, path or
                query; or the text contains lone surrogates.
        """
        encoded(payload_sha256, "the payload's hash")
        lines = self.sign_lines(credentials, timestamp, request, payload_sha256).split("\r\n")
        return [(name, value) for name, _, value in (line.partition(": ") for line in lines[:-1])]

    def sign_lines(
        self, credentials: Credentials, timestamp: float, request: SignedRequest, payload_sha256: str
    ) -> str:
        """Like `sign`, for a request that is signed repeatedly: returns the headers as lines of HTTP/1.1.

        Pass the same `SignedRequest` object each time: what is computed once per second is looked up by its identity.
        """
        second = int(timestamp)
        now = self._now
        if now is None or now.second != second or now.credentials is not credentials:
            now = self._now = self._at(second, credentials)
        prefix = now.prefixes.get(id(request))
        if prefix is None or prefix.request is not request:
            prefix = self._add_prefix(now, request)
        canonical = prefix.canonical.copy()
        canonical.update(payload_sha256.encode())
        inner = now.inner.copy()
        inner.update(canonical.hexdigest().encode())
        outer = now.outer.copy()
        outer.update(inner.digest())
        return f"{prefix.lines}{outer.hexdigest()}\r\n"

    def presign(
        self,
        credentials: Credentials,
        timestamp: float,
        request: SignedRequest,
        payload_sha256: str,
        *,
        expires_in: int,
    ) -> str:
        """Compute the query of a presigned URL, with which anyone can send this request until it expires.

        The other arguments are those of `sign`; the request must be sent with exactly its headers.

        Args:
            expires_in: validity of the URL in seconds, from 1 to 604,800 (a week).

        Returns:
            The whole query, percent-encoded: the given parameters, then those of the signature.

        Raises:
            ValueError: as in `sign`; also if ``expires_in`` is out of range, or the query is already presigned.
        """
        if not 1 <= expires_in <= MAX_EXPIRES_IN:
            raise ValueError(f"expires_in must be a number of seconds from 1 to {MAX_EXPIRES_IN}; got {expires_in}")
        method, host, path, query, headers = request
        parameters = parse_qsl(query, keep_blank_values=True)
        if any(name in PRESIGNED_PARAMETERS for name, _ in parameters):
            raise ValueError("the query already contains parameters of a signature")
        _check(method, host, path, query, [name for name, _ in headers])
        # botocore's HTTP layer sets this type on a body without one, so botocore leaves it out of presigned URLs, and
        # the same request has to result in the same URL here.
        form = "application/x-www-form-urlencoded; charset=utf-8"
        signed = [("host", host)]
        signed += [
            (name, value)
            for name, value in headers
            if name.lower() not in UNSIGNED_HEADERS and (name.lower(), value) != ("content-type", form)
        ]
        now = self._at(int(timestamp), credentials)
        date = now.added_headers[0][1]
        scope = credential_scope(date[:8], self._region, self._service)
        parameters += [
            ("X-Amz-Algorithm", ALGORITHM),
            ("X-Amz-Credential", f"{credentials.access_key}/{scope}"),
            ("X-Amz-Date", date),
            ("X-Amz-Expires", str(expires_in)),
            ("X-Amz-SignedHeaders", canonical_headers(signed)[1]),
        ]
        if credentials.token:
            parameters.append(("X-Amz-Security-Token", credentials.token))
        whole = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in parameters)
        text = string_to_sign(date, scope, canonical_request(method, path, whole, signed, payload_sha256))
        return f"{whole}&X-Amz-Signature={signature(self._key(credentials, date[:8]), text)}"

    def event_signer(self, credentials: Callable[[], Credentials], seed: str) -> "EventSigner":
        """What signs the messages of a stream.

        Args:
            credentials: returns the credentials to sign with; asked once a second.
            seed: the request's signature, in hexadecimal.
        """
        # loaded with the first bidirectional stream
        from aiosmrt._wire.sigv4.events import EventSigner

        return EventSigner(lambda day: self._key(credentials(), day), self._region, self._service, seed)

    def _key(self, credentials: Credentials, day: str) -> bytes:
        key = self._keys.get((credentials.secret_key, day))
        if key is None:
            if len(self._keys) >= _MAX_KEYS:
                self._keys.clear()
            key = signing_key(credentials.secret_key, day, self._region, self._service)
            self._keys[credentials.secret_key, day] = key
        return key

    def _at(self, second: int, credentials: Credentials) -> _Second:
        date = amz_date(second)
        scope = credential_scope(date[:8], self._region, self._service)
        added_headers = [("X-Amz-Date", date)]
        if credentials.token:
            added_headers.append(("X-Amz-Security-Token", credentials.token))
        inner, outer = keyed_hashes(self._key(credentials, date[:8]))
        inner.update(preamble(date, scope).encode())
        return _Second(
            credentials,
            second,
            tuple(added_headers),
            tuple(value for _, value in added_headers),
            f"{ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders=",
            inner,
            outer,
            {},
        )

    def _add_prefix(self, now: _Second, request: SignedRequest) -> _Prefix:
        method, host, path, query, headers = request
        names, values = zip(*headers) if headers else ((), ())  # noqa: B905 - pairs; the keyword costs 4 %
        words = " ".join(values)
        if words != " ".join(words.split()):
            values = tuple(" ".join(value.split()) for value in values)
        shape = (method, host, path, query, len(now.added_headers), names)
        template = self._templates.get(shape) or self._add_template(shape)
        text = template.text.copy()
        text[1::2] = template.pick((*values, *now.added_values, ""))
        lines = "".join([f"{name}: {value}\r\n" for name, value in now.added_headers])
        prefix = _Prefix(
            request,
            sha256(encoded("".join(text), "the request")),
            f"{lines}Authorization: {now.credential}{template.signed_headers}",
        )
        if len(now.prefixes) >= _MAX_PREFIXES:
            now.prefixes.clear()
        now.prefixes[id(request)] = prefix
        return prefix

    def _add_template(self, shape: _Shape) -> _Template:
        method, host, path, query, added, given = shape
        _check(method, host, path, query, given)
        names = [*given, "x-amz-date", "x-amz-security-token"][: len(given) + added]
        signed = sorted(
            (name.lower(), index) for index, name in enumerate(names) if name.lower() not in UNSIGNED_HEADERS
        )
        gaps = [("host", host), *((name, _GAP) for name, _ in signed)]
        text = canonical_request(method, path, query, gaps, _GAP)
        template = _Template(
            re.split(f"({_GAP})", text),
            itemgetter(*(index for _, index in signed), len(names)),
            f"{canonical_headers(gaps)[1]}, Signature=",
        )
        if len(self._templates) >= _MAX_TEMPLATES:
            self._templates.clear()
        self._templates[shape] = template
        return template


def _check(method: str, host: str, path: str, query: str, names: Sequence[str]) -> None:
    if re.search(r"[\x00-\x1f\x7f]", "".join((method, host, path, query, *names))):
        raise ValueError("method, host, path, query and header names must not contain control characters")
    reserved = sorted({name.lower() for name in names} & _SIGNING_HEADERS)
    if reserved:
        raise ValueError(f"headers must not contain those that signing sets; got {', '.join(reserved)}")
