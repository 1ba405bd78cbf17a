"""AWS Signature Version 4: what a client signs with and what a verifying server recomputes.

A signature says *who* sends *which* request *when*. It is made in four steps, each a function here:

1. ``canonical_request`` writes the request in one fixed form: method, path, query, the headers that are
   signed, their names, and the hash of the payload.
2. ``string_to_sign`` ties the hash of that text to a second and to a scope (day, region, service).
3. ``signing_key`` stretches the secret key into one that is good for a single scope.
4. ``signature`` is the HMAC of 2 under 3.

A server reads the claim back with ``parse_authorization`` (or ``parse_presigned`` for a URL that carries its
signature), walks the same steps over the headers named in it, and compares.

``Signer`` gives the same answer faster, because consecutive calls differ in little:

- By day: the signing key, four chained HMACs.
- By second: the date, the scope, and both halves of the final HMAC. HMAC (RFC 2104) is
  ``H(outer pad + H(inner pad + message))``, and the pads as well as the first lines of the string to sign
  are known before the request is; two hash objects that have already taken them in are copied for each call.
- By shape (method, host, path, query and header names): the canonical request with a gap for every value.
  Sorting and quoting happen once per shape; a call fills the gaps.
- By second and request head: the canonical request ends with its payload's hash, so a hash object that has taken in
  all before it serves every call of the same head in that second.

``benchmarks/signing.py`` measures it against botocore's signer, ``tests/wire/test_sigv4.py`` proves the two equal.

Source: "Create a signed AWS API request" in the AWS IAM User Guide, for services other than Amazon S3
(S3 neither normalises paths nor quotes them twice).

The file is long because both sides of the algorithm and the shortcut past it are best read, and changed, together.
"""

import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, quote, unquote

if TYPE_CHECKING:
    from hashlib import _Hash

ALGORITHM = "AWS4-HMAC-SHA256"
EMPTY_SHA256 = sha256(b"").hexdigest()
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"

# One week: the longest validity that the services accept in X-Amz-Expires.
MAX_EXPIRES_IN = 604_800

# Proxies and HTTP libraries add, change or drop these on the way, so a signature over them would not hold.
UNSIGNED_HEADERS = frozenset(
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

_OWN_HEADERS = frozenset({"authorization", "date", "host", "x-amz-date", "x-amz-security-token"})
_OWN_PARAMETERS = frozenset(
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


class SignatureFormatError(ValueError):
    """What should carry a Signature Version 4 signature is not in its form; the message never repeats the input."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """AWS credentials: whom a request is signed as.

    Args:
        access_key: The access key id; shown in the repr, as it is in every signed request.
        secret_key: The secret access key, never shown.
        token: The session token of temporary credentials, never shown; None (or empty) for long-lived ones.
        expires_at: When they end, in epoch seconds; None means never.

    Raises:
        ValueError: A part is empty, or holds what cannot travel in a header (a blank or a line end, as left by
            careless copying). The message names the part and not its value.

    >>> Credentials("AKIDEXAMPLE", "not-a-real-secret", token="not-a-real-token")
    Credentials(access_key='AKIDEXAMPLE', expires_at=None)
    """

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    expires_at: float | None = None

    def __post_init__(self) -> None:
        if not self.secret_key:
            raise ValueError("secret_key is empty")
        if not self.access_key:
            raise ValueError("access_key is empty")
        if not _is_visible_ascii(self.access_key):
            raise ValueError("access_key holds a blank, a control character or a non-ASCII one")
        if self.token and not _is_visible_ascii(self.token):
            raise ValueError("token holds a blank, a control character or a non-ASCII one")


def _is_visible_ascii(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass
    # Raised out here: the error above carries the whole text, which may hold a token, and must not be its context.
    raise ValueError(f"{what} holds a lone surrogate, which UTF-8 cannot express")


# -- The four steps ---------------------------------------------------------------------------------------------------


def amz_date(timestamp: float) -> str:
    """The second of *timestamp* (epoch seconds, not before 1970) as ``X-Amz-Date`` writes it.

    >>> amz_date(1440938160.9)
    '20150830T123600Z'
    """
    return f"{datetime.fromtimestamp(int(timestamp), UTC):%Y%m%dT%H%M%SZ}"


def parse_amz_date(text: str) -> float:
    """The epoch seconds that an ``X-Amz-Date`` value stands for.

    Raises:
        SignatureFormatError: It is not of the form ``YYYYMMDDThhmmssZ``, or no such moment exists.

    >>> parse_amz_date("20150830T123600Z")
    1440938160.0
    """
    if re.fullmatch("[0-9]{8}T[0-9]{6}Z", text):
        try:
            return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        except ValueError:
            pass
    raise SignatureFormatError("X-Amz-Date is not a moment of the form YYYYMMDDThhmmssZ")


def credential_scope(day: str, region: str, service: str) -> str:
    """What a signing key is good for; *day* is ``YYYYMMDD``.

    >>> credential_scope("20150830", "eu-central-1", "sagemaker")
    '20150830/eu-central-1/sagemaker/aws4_request'
    """
    return f"{day}/{region}/{service}/aws4_request"


def canonical_path(path: str) -> str:
    """The path of a request line in canonical form: dot segments and empty ones resolved, then quoted once more.

    A path is already percent-encoded on the wire; its signature covers that text encoded again.

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
    """The query of a request line (percent-encoded, without the ``?``) with its parameters sorted.

    >>> canonical_query("b=2&a&b=1")
    'a=&b=1&b=2'
    """
    if not query:
        return ""
    pairs = sorted(parameter.partition("=")[::2] for parameter in query.split("&"))
    return "&".join(f"{name}={value}" for name, value in pairs)


def canonical_headers(headers: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The lines of the headers to be signed, and the list of their names.

    Values are trimmed and runs of white space inside them become one blank; the values of a repeated name are
    joined by commas in the order in which they were given.

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
        method: The HTTP method.
        path: The path as on the request line, percent-encoded.
        query: The query as on the request line, percent-encoded, without the ``?``.
        headers: All headers that are signed, ``host`` and ``x-amz-date`` among them, and no others.
        payload_sha256: The hash of the payload in hexadecimal, or ``UNSIGNED_PAYLOAD``.

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
    """What is signed: a canonical request tied to a second (as ``amz_date`` writes it) and a credential scope.

    >>> print(string_to_sign("20150830T123600Z", "20150830/eu-central-1/sagemaker/aws4_request", ""))
    AWS4-HMAC-SHA256
    20150830T123600Z
    20150830/eu-central-1/sagemaker/aws4_request
    e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
    """
    return f"{_preamble(date, scope)}{sha256(_utf8(canonical, 'the request')).hexdigest()}"


def _preamble(date: str, scope: str) -> str:
    return f"{ALGORITHM}\n{date}\n{scope}\n"


def signing_key(secret_key: str, day: str, region: str, service: str) -> bytes:
    """The key that signs for one day (``YYYYMMDD``), region and service; as secret as what it is made from.

    >>> len(signing_key("not-a-real-secret", "20150830", "eu-central-1", "sagemaker"))
    32
    """
    key = _utf8(f"AWS4{secret_key}", "secret_key")
    for step in (day, region, service, "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    return key


def signature(key: bytes, text: str) -> str:
    """The signature of a string to sign under a signing key, in hexadecimal.

    >>> signature(bytes(32), "")
    'b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad'
    """
    return hmac.digest(key, text.encode(), "sha256").hex()


# -- Reading a signature back -----------------------------------------------------------------------------------------


class Authorization(NamedTuple):
    """Who claims to have signed a request, for which scope, over which headers (lower case, as listed)."""

    access_key: str
    day: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str

    @property
    def scope(self) -> str:
        """The credential scope that the string to sign names."""
        return credential_scope(self.day, self.region, self.service)

    def __repr__(self) -> str:
        # Without the signature: a presigned URL's is as good as a password until it expires.
        return f"Authorization({self.access_key!r}, {self.scope!r}, signed_headers={self.signed_headers!r})"


class PresignedQuery(NamedTuple):
    """The claim of a presigned URL: the authorization, and what a header would say otherwise.

    ``date`` is as in ``X-Amz-Date``, ``expires_in`` the validity in seconds from it, ``token`` the session token
    or None; ``query`` is what was signed: the query as it came, less its signature.
    """

    authorization: Authorization
    date: str
    expires_in: int
    token: str | None
    query: str

    def __repr__(self) -> str:
        return f"PresignedQuery({self.authorization!r}, date={self.date!r}, expires_in={self.expires_in})"


def parse_authorization(value: str) -> Authorization:
    """Read the value of an ``Authorization`` header.

    Raises:
        SignatureFormatError: Another scheme, or a part that is missing, repeated, unknown or malformed.

    >>> parse_authorization(
    ...     "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/eu-central-1/sagemaker/aws4_request, "
    ...     "SignedHeaders=host;x-amz-date, Signature=" + 64 * "0"
    ... ).signed_headers
    ('host', 'x-amz-date')
    """
    scheme, _, rest = value.strip().partition(" ")
    if scheme != ALGORITHM:
        raise SignatureFormatError(f"the authorization scheme is not {ALGORITHM}")
    parts: dict[str, str] = {}
    for part in rest.split(","):
        name, _, content = part.strip().partition("=")
        if name not in ("Credential", "SignedHeaders", "Signature"):
            raise SignatureFormatError("the Authorization header holds an unknown part")
        if name in parts:
            raise SignatureFormatError(f"the Authorization header holds {name} twice")
        parts[name] = content
    return _authorization(parts, "Credential", "SignedHeaders", "Signature")


def parse_presigned(query: str) -> PresignedQuery:
    """Read the query of a presigned URL (percent-encoded, without the ``?``).

    Raises:
        SignatureFormatError: A parameter of the signature is missing, repeated or malformed.

    >>> signer = Signer(region="eu-central-1")
    >>> query = signer.presign(
    ...     Credentials("AKIDEXAMPLE", "not-a-real-secret"), 1440938160.0, method="POST", host="example.com",
    ...     path="/endpoints/churn/invocations", query="", headers=[], payload_sha256=EMPTY_SHA256, expires_in=900,
    ... )
    >>> parse_presigned(query).expires_in
    900
    """
    parts: dict[str, str] = {}
    signed: list[str] = []
    for parameter in query.split("&"):
        raw_name, _, raw_content = parameter.partition("=")
        name = unquote(raw_name)
        if name != "X-Amz-Signature":
            signed.append(parameter)
        if name in _OWN_PARAMETERS:
            if name in parts:
                raise SignatureFormatError(f"the query holds {name} twice")
            parts[name] = unquote(raw_content)
    if parts.get("X-Amz-Algorithm") != ALGORITHM:
        raise SignatureFormatError(f"X-Amz-Algorithm is not {ALGORITHM}")
    authorization = _authorization(parts, "X-Amz-Credential", "X-Amz-SignedHeaders", "X-Amz-Signature")
    date = parts.get("X-Amz-Date", "")
    parse_amz_date(date)
    expires_in = parts.get("X-Amz-Expires", "")
    if not (re.fullmatch("[0-9]{1,6}", expires_in) and 1 <= int(expires_in) <= MAX_EXPIRES_IN):
        raise SignatureFormatError(f"X-Amz-Expires is not a number of seconds from 1 to {MAX_EXPIRES_IN}")
    return PresignedQuery(authorization, date, int(expires_in), parts.get("X-Amz-Security-Token"), "&".join(signed))


def _authorization(parts: dict[str, str], credential: str, signed_headers: str, signed: str) -> Authorization:
    for name in (credential, signed_headers, signed):
        if not parts.get(name):
            raise SignatureFormatError(f"{name} is missing or empty")
    match = re.fullmatch("(.+)/([0-9]{8})/([^/]+)/([^/]+)/aws4_request", parts[credential])
    if match is None:
        raise SignatureFormatError(f"{credential} is not of the form access-key/YYYYMMDD/region/service/aws4_request")
    if not re.fullmatch("[0-9a-f]{64}", parts[signed]):
        raise SignatureFormatError(f"{signed} is not 64 lower-case hexadecimal digits")
    names = tuple(parts[signed_headers].lower().split(";"))
    if "" in names or len(set(names)) != len(names):
        raise SignatureFormatError(f"{signed_headers} holds an empty or a repeated name")
    access_key, day, region, service = match.groups()
    return Authorization(access_key, day, region, service, names, parts[signed])


# -- Signing, call after call -----------------------------------------------------------------------------------------

# More shapes or keys than these in use at once are unusual; past them the caches start anew rather than grow.
_MAX_TEMPLATES = 512
_MAX_KEYS = 16
_MAX_BEGINNINGS = 64

# Stands for a value while a template is made. Control characters are refused, so no request brings one along.
_GAP = "\0"

# Method, host, path, query, how many headers signing adds, names of the others.
_Shape = tuple[str, str, str, str, int, tuple[str, ...]]


class SignedRequest(NamedTuple):
    """What of a request is signed besides its payload.

    Args:
        method: The HTTP method.
        host: The value of the ``Host`` header as it goes on the wire.
        path: The path as on the request line, percent-encoded.
        query: The query as on the request line, percent-encoded, without the ``?``; empty for none.
        headers: The request's other headers. Those in ``UNSIGNED_HEADERS`` stay out of the signature.
    """

    method: str
    host: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        # Without the headers: custom attributes may be among them.
        return f"<{self.method} {self.path} to {self.host}>"


class _Beginning(NamedTuple):
    """A canonical request up to its payload's hash, and the headers to add up to the signature."""

    request: SignedRequest
    canonical: "_Hash"
    lines: str

    def __repr__(self) -> str:
        # The session token is among the headers.
        return "<a canonical request>"


class _Second(NamedTuple):
    """What all signatures of one second with the same credentials have in common; alike requests share a beginning."""

    credentials: Credentials
    second: int
    added_headers: tuple[tuple[str, str], ...]
    added_values: tuple[str, ...]
    credential: str
    inner: "_Hash"
    outer: "_Hash"
    # by the identity of requests, which is faster than their value; each is kept, so that it stays its own
    beginnings: dict[int, _Beginning]

    def __repr__(self) -> str:
        # Without the headers: the session token is among them.
        return f"<second {self.second} as {self.credentials!r}>"


class _Template(NamedTuple):
    """A canonical request in pieces, with a gap at every odd place, and which of a call's values go there."""

    text: list[str]
    pick: Callable[[tuple[str, ...]], tuple[str, ...]]
    signed_headers: str


class Signer:
    """Signs requests to one service in one region.

    Args:
        region: The signing region, e.g. ``eu-central-1``.
        service: The signing name; SageMaker Runtime signs as ``sagemaker``.

    >>> signer = Signer(region="eu-central-1")
    >>> for name, value in signer.sign(
    ...     Credentials("AKIDEXAMPLE", "not-a-real-secret"), 1440938160.0, method="POST", host="example.com",
    ...     path="/endpoints/churn/invocations", query="", headers=[("Content-Type", "text/csv")],
    ...     payload_sha256=EMPTY_SHA256,
    ... ):
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
        self,
        credentials: Credentials,
        timestamp: float,
        *,
        method: str,
        host: str,
        path: str,
        query: str,
        headers: Sequence[tuple[str, str]],
        payload_sha256: str,
    ) -> list[tuple[str, str]]:
        """The headers to add to a request so that it is signed.

        Args:
            credentials: Whom to sign as.
            timestamp: The moment of signing, in epoch seconds; services refuse it when it is 5 minutes off.
            method: The HTTP method.
            host: The value of the ``Host`` header as it goes on the wire.
            path: The path as on the request line, percent-encoded.
            query: The query as on the request line, percent-encoded, without the ``?``; empty for none.
            headers: The request's other headers. Those in ``UNSIGNED_HEADERS`` stay out of the signature.
            payload_sha256: The hash of the payload in hexadecimal, or ``UNSIGNED_PAYLOAD``.

        Returns:
            ``X-Amz-Date``, ``X-Amz-Security-Token`` for temporary credentials, ``Authorization``.

        Raises:
            ValueError: A header that signing itself sets, a control character in method, host, path or query, or
                text that UTF-8 cannot express.
        """
        request = SignedRequest(method, host, path, query, tuple(headers))
        _utf8(payload_sha256, "the payload's hash")
        lines = self.sign_lines(credentials, timestamp, request, payload_sha256).split("\r\n")
        return [(name, value) for name, _, value in (line.partition(": ") for line in lines[:-1])]

    def sign_lines(
        self, credentials: Credentials, timestamp: float, request: SignedRequest, payload_sha256: str
    ) -> str:
        """The same as `sign` for a request that is signed again and again: the headers as lines of HTTP/1.1.

        It has to be the same object for what was computed once in a second to be found again.
        """
        second = int(timestamp)
        now = self._now
        if now is None or now.second != second or now.credentials is not credentials:
            now = self._now = self._at(second, credentials)
        beginning = now.beginnings.get(id(request))
        if beginning is None or beginning.request is not request:
            beginning = self._begin(now, request)
        canonical = beginning.canonical.copy()
        canonical.update(payload_sha256.encode())
        inner = now.inner.copy()
        inner.update(canonical.hexdigest().encode())
        outer = now.outer.copy()
        outer.update(inner.digest())
        return f"{beginning.lines}{outer.hexdigest()}\r\n"

    def presign(
        self,
        credentials: Credentials,
        timestamp: float,
        *,
        method: str,
        host: str,
        path: str,
        query: str,
        headers: Sequence[tuple[str, str]],
        payload_sha256: str,
        expires_in: int,
    ) -> str:
        """The query of a URL that anybody may use to send this very request, until it expires.

        Takes what ``sign`` takes; whoever uses the URL has to send *headers* exactly so.

        Args:
            expires_in: For how long the URL is good, in seconds, from 1 to 604,800 (a week).

        Returns:
            The whole query, percent-encoded: the given parameters, then those of the signature.

        Raises:
            ValueError: As ``sign``; also when *expires_in* is out of range, or the query is already presigned.
        """
        if not 1 <= expires_in <= MAX_EXPIRES_IN:
            raise ValueError(f"expires_in must be from 1 to {MAX_EXPIRES_IN} seconds, not {expires_in}")
        parameters = parse_qsl(query, keep_blank_values=True)
        if any(name in _OWN_PARAMETERS for name, _ in parameters):
            raise ValueError("the query already holds parameters of a signature")
        _check(method, host, path, query, [name for name, _ in headers])
        # botocore's HTTP layer puts this type on a body without one, so botocore leaves it out of presigned
        # URLs, and the same request has to give the same URL here.
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
        # RFC 2104: a key shorter than the hash's 64-byte block is padded with zeros, then taken xor 36 and xor 5c.
        padded = self._key(credentials, date[:8]).ljust(64, b"\0")
        return _Second(
            credentials,
            second,
            tuple(added_headers),
            tuple(value for _, value in added_headers),
            f"{ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders=",
            sha256(bytes(byte ^ 0x36 for byte in padded) + _preamble(date, scope).encode()),
            sha256(bytes(byte ^ 0x5C for byte in padded)),
            {},
        )

    def _begin(self, now: _Second, request: SignedRequest) -> _Beginning:
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
        beginning = _Beginning(
            request,
            sha256(_utf8("".join(text), "the request")),
            f"{lines}Authorization: {now.credential}{template.signed_headers}",
        )
        if len(now.beginnings) >= _MAX_BEGINNINGS:
            now.beginnings.clear()
        now.beginnings[id(request)] = beginning
        return beginning

    def _add_template(self, shape: _Shape) -> _Template:
        method, host, path, query, added, given = shape
        _check(method, host, path, query, given)
        names = [*given, "x-amz-date", "x-amz-security-token"][: len(given) + added]
        places = sorted(
            (name.lower(), place) for place, name in enumerate(names) if name.lower() not in UNSIGNED_HEADERS
        )
        gaps = [("host", host), *((name, _GAP) for name, _ in places)]
        text = canonical_request(method, path, query, gaps, _GAP)
        template = _Template(
            re.split(f"({_GAP})", text),
            itemgetter(*(place for _, place in places), len(names)),
            f"{canonical_headers(gaps)[1]}, Signature=",
        )
        if len(self._templates) >= _MAX_TEMPLATES:
            self._templates.clear()
        self._templates[shape] = template
        return template


def _check(method: str, host: str, path: str, query: str, names: Sequence[str]) -> None:
    if re.search(r"[\x00-\x1f\x7f]", "".join((method, host, path, query, *names))):
        raise ValueError("a control character in the method, host, path, query or a header's name")
    own = sorted({name.lower() for name in names} & _OWN_HEADERS)
    if own:
        raise ValueError(f"signing sets these headers itself: {', '.join(own)}")
