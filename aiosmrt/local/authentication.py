"""Server-side verification of Signature Version 4: from a request to its access key, or to AWS's error.

The order of the checks is AWS's as far as it can be observed: a signature exists, it is complete, the access key is
known (and its session token is right), the scope is this region and service, the date is current, and the signature
covers what was received. The last one takes the same four steps as the signer over what arrived, and compares in
constant time. The messages are AWS's, because some programs match on them.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

from aiosmrt._wire.operations import SIGNING_NAME
from aiosmrt._wire.sigv4.bearer import MAX_TOKEN_SECONDS, SIGNED_HOST, SIGNED_METHOD, SIGNED_PATH, signed_query_of
from aiosmrt._wire.sigv4.canonical import (
    EMPTY_SHA256,
    SignatureFormatError,
    amz_date,
    canonical_request,
    parse_amz_date,
    signature,
    signing_key,
    string_to_sign,
)
from aiosmrt._wire.sigv4.events import EventVerifier
from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt._wire.sigv4.verify import Authorization, parse_authorization, parse_presigned
from aiosmrt.local.error_responses import ErrorAnswer, ErrorReply, access_denied

__all__ = ["SIGNATURE_WINDOW", "SignatureVerifier", "Verified", "signature_expired"]

SIGNATURE_WINDOW = 300.0  # seconds by which a signature's date may differ from the server's clock
MAX_SIGNING_KEYS = 64
TERMINATOR = "aws4_request"

_MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details."
)


@dataclass(frozen=True, slots=True)
class Verified:
    """The access key of a request, and whether its signature was in the query."""

    access_key: str
    presigned: bool


@dataclass(frozen=True, slots=True)
class _Claim:
    authorization: Authorization
    date: str
    signed_at: float
    valid_seconds: float
    token: str | None
    query: str
    presigned: bool


class SignatureVerifier:
    """Verifies requests against a set of credentials.

    Args:
        credentials: the accepted credentials.
        region: the only accepted region of a signature's scope.
        service: the only accepted service of a signature's scope. Defaults to SageMaker's signing name.

    >>> from aiosmrt._wire.sigv4.canonical import EMPTY_SHA256
    >>> from aiosmrt._wire.sigv4.signer import SignedRequest, Signer
    >>> signer = Signer(region="us-east-1")
    >>> credentials = Credentials("AKIDEXAMPLE", "not-a-real-secret")
    >>> request = SignedRequest("POST", "localhost", "/ping", "", ())
    >>> added = signer.sign(credentials, 1440938160.0, request, EMPTY_SHA256)
    >>> verifier = SignatureVerifier([credentials], region="us-east-1")
    >>> verifier.verify(method="POST", path="/ping", query="", headers=[("Host", "localhost"), *added],
    ...     payload_sha256=EMPTY_SHA256, now=1440938161.0)
    Verified(access_key='AKIDEXAMPLE', presigned=False)
    """

    def __init__(self, credentials: Iterable[Credentials], *, region: str, service: str = SIGNING_NAME) -> None:
        self._credentials = {one.access_key: one for one in credentials}
        self._region = region
        self._service = service
        self._keys: dict[tuple[str, str], bytes] = {}  # by access key and day

    def __repr__(self) -> str:
        return f"<SignatureVerifier {self._region}/{self._service} access_keys={list(self._credentials)}>"

    def verify(
        self,
        *,
        method: str,
        path: str,
        query: str,
        headers: Sequence[tuple[str, str]],
        payload_sha256: str,
        now: float,
    ) -> Verified:
        """Verify one request.

        Args:
            method: the HTTP method.
            path: the path as on the request line.
            query: the query as on the request line, without the ``?``.
            headers: every header received, in order.
            payload_sha256: the hash of the body received.
            now: the server's time in epoch seconds.

        Raises:
            ErrorReply: AWS's error for an invalid signature.
        """
        claim = _claim(_requoted(query), headers)
        credentials = self._known(claim, now)
        self._check_scope(claim)
        _check_time(claim, now)
        self._check_signature(claim, credentials, method, path, headers, payload_sha256)
        return Verified(credentials.access_key, claim.presigned)

    def event_verifier(self, authorization: str) -> EventVerifier:
        """What verifies the messages of a request that was verified.

        Args:
            authorization: its ``Authorization`` header.
        """
        claim = parse_authorization(authorization)
        credentials = self._credentials[claim.access_key]
        return EventVerifier(
            lambda day: self._signing_key(credentials, day), self._region, self._service, claim.signature
        )

    def verify_bearer(self, headers: Sequence[tuple[str, str]], now: float) -> Verified:
        """Verify a request that has a bearer token.

        What AWS answers to a faulty one is unknown; these are its answers to a faulty signature.

        Args:
            headers: every header received, in order.
            now: the server's time in epoch seconds.

        Raises:
            ErrorReply: the token is missing or not valid.
        """
        given = [value.strip() for name, value in headers if name.lower() == "authorization"]
        if not given:
            raise ErrorReply(access_denied(403, "MissingAuthenticationTokenException", "Missing Authentication Token"))
        scheme, _, token = given[0].partition(" ")
        if len(given) > 1 or scheme.lower() != "bearer":
            raise ErrorReply(_incomplete("This route requires exactly one bearer token in the Authorization header."))
        try:
            query = signed_query_of(token.strip())
            valid_seconds = parse_presigned(query).expires_in
        except SignatureFormatError as error:
            raise ErrorReply(_incomplete(f"{error}.")) from error
        if valid_seconds > MAX_TOKEN_SECONDS:
            raise ErrorReply(_invalid(f"A bearer token is valid for at most {MAX_TOKEN_SECONDS} seconds."))
        return self.verify(
            method=SIGNED_METHOD,
            path=SIGNED_PATH,
            query=query,
            headers=[("host", SIGNED_HOST)],
            payload_sha256=EMPTY_SHA256,
            now=now,
        )

    def _known(self, claim: _Claim, now: float) -> Credentials:
        credentials = self._credentials.get(claim.authorization.access_key)
        if credentials is None or not hmac.compare_digest(
            (claim.token or "").encode("utf-8", "surrogateescape"), (credentials.token or "").encode()
        ):
            raise ErrorReply(
                access_denied(
                    403, "UnrecognizedClientException", "The security token included in the request is invalid."
                )
            )
        if credentials.expires_at is not None and credentials.expires_at <= now:
            raise ErrorReply(
                access_denied(403, "ExpiredTokenException", "The security token included in the request is expired")
            )
        return credentials

    def _check_scope(self, claim: _Claim) -> None:
        authorization = claim.authorization
        faults = []
        if authorization.day != claim.date[:8]:
            faults.append(
                f"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "
                f"'{authorization.day}' != '{claim.date[:8]}', from '{claim.date}'."
            )
        if authorization.region != self._region:
            faults.append(f"Credential should be scoped to a valid region, not '{authorization.region}'.")
        if authorization.service != self._service:
            faults.append(f"Credential should be scoped to correct service: '{self._service}'.")
        if faults:
            raise ErrorReply(_invalid(" ".join(faults)))

    def _check_signature(
        self,
        claim: _Claim,
        credentials: Credentials,
        method: str,
        path: str,
        headers: Sequence[tuple[str, str]],
        payload_sha256: str,
    ) -> None:
        authorization = claim.authorization
        required = ("host",) if claim.presigned else ("host", "x-amz-date")
        for name in required:
            if name not in authorization.signed_headers and not (
                # HTTP/2's name for it, under which AWS's JavaScript client signs it
                name == "host" and ":authority" in authorization.signed_headers
            ):
                shown = {"host": "Host", "x-amz-date": "X-Amz-Date"}[name]
                raise ErrorReply(_invalid(f"'{shown}' must be a 'SignedHeader' in the AWS Authorization."))
        covered = [(name, value) for name, value in headers if name.lower() in authorization.signed_headers]
        if {name.lower() for name, _ in covered} != set(authorization.signed_headers):
            raise ErrorReply(_invalid(_MISMATCH))
        try:
            canonical = canonical_request(method, path, claim.query, covered, payload_sha256)
            text = string_to_sign(claim.date, authorization.scope, canonical)
        except ValueError as error:  # not UTF-8, which no signer can have signed
            raise ErrorReply(_invalid(_MISMATCH)) from error
        key = self._signing_key(credentials, authorization.day)
        if not hmac.compare_digest(signature(key, text), authorization.signature):
            raise ErrorReply(_invalid(_MISMATCH))

    def _signing_key(self, credentials: Credentials, day: str) -> bytes:
        key = self._keys.get((credentials.access_key, day))
        if key is None:
            if len(self._keys) >= MAX_SIGNING_KEYS:
                self._keys.clear()
            key = signing_key(credentials.secret_key, day, self._region, self._service)
            self._keys[credentials.access_key, day] = key
        return key


def signature_expired(date: str, now: float, valid_seconds: float = SIGNATURE_WINDOW) -> ErrorAnswer:
    """Reject a signature that is too old, as AWS does.

    >>> signature_expired("20150830T123600Z", 1440939060.0).message
    'Signature expired: 20150830T123600Z is now earlier than 20150830T124600Z (20150830T125100Z - 5 min.)'
    """
    earliest, current = amz_date(now - valid_seconds), amz_date(now)
    return _invalid(
        f"Signature expired: {date} is now earlier than {earliest} ({current} - {valid_seconds / 60:g} min.)"
    )


def _check_time(claim: _Claim, now: float) -> None:
    if claim.signed_at < now - claim.valid_seconds:
        raise ErrorReply(signature_expired(claim.date, now, claim.valid_seconds))
    if claim.signed_at > now + SIGNATURE_WINDOW:
        latest, current = amz_date(now + SIGNATURE_WINDOW), amz_date(now)
        raise ErrorReply(
            _invalid(
                f"Signature not yet current: {claim.date} is still later than {latest} "
                f"({current} + {SIGNATURE_WINDOW / 60:g} min.)"
            )
        )


def _requoted(query: str) -> str:
    """Percent-encode exactly the characters of a query that a signature requires.

    Clients differ in what they encode (aiohttp sends ``/`` in a query as is, curl whatever it is given), and AWS
    decodes before it signs.

    >>> _requoted("X-Amz-Credential=a/b%2Fc&flag")
    'X-Amz-Credential=a%2Fb%2Fc&flag'
    """
    return "&".join(
        "=".join(quote_from_bytes(unquote_to_bytes(part), safe="-_.~") for part in parameter.split("=", 1))
        for parameter in query.split("&")
    )


def _claim(query: str, headers: Sequence[tuple[str, str]]) -> _Claim:
    """Parse the request's signature.

    Raises:
        ErrorReply: the signature is missing or incomplete.
    """
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value)
    authorizations = values.get("authorization", [])
    if authorizations:
        if len(authorizations) > 1:
            raise ErrorReply(_incomplete("The request contains more than one Authorization header."))
        authorization = _authorization(authorizations[0])
        dates, tokens = values.get("x-amz-date", []), values.get("x-amz-security-token", [None])
        if len(dates) != 1 or len(tokens) != 1:
            raise ErrorReply(
                _incomplete(
                    "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."
                    if not dates
                    else "The request contains X-Amz-Date or X-Amz-Security-Token more than once."
                )
            )
        date = dates[0].strip()
        try:
            signed_at = parse_amz_date(date)
        except SignatureFormatError as error:
            raise ErrorReply(
                _incomplete(
                    f"Date must be in ISO-8601 'basic format'. Got '{date}'. See http://en.wikipedia.org/wiki/ISO_8601"
                )
            ) from error
        return _Claim(authorization, date, signed_at, SIGNATURE_WINDOW, tokens[0], query, presigned=False)
    if "X-Amz-Algorithm=" not in query and "X-Amz-Signature=" not in query:
        raise ErrorReply(access_denied(403, "MissingAuthenticationTokenException", "Missing Authentication Token"))
    try:
        presigned = parse_presigned(query)
    except SignatureFormatError as error:
        raise ErrorReply(_incomplete(f"{error}.")) from error
    return _Claim(
        presigned.authorization,
        presigned.date,
        parse_amz_date(presigned.date),
        float(presigned.expires_in),
        presigned.token,
        presigned.query,
        presigned=True,
    )


def _authorization(value: str) -> Authorization:
    try:
        return parse_authorization(value)
    except SignatureFormatError as error:
        raise ErrorReply(_malformed(value, str(error))) from error


def _malformed(value: str, reason: str) -> ErrorAnswer:
    """AWS's message for an invalid Authorization header, or ours where AWS's is unknown."""
    parts = dict(re.findall(r"(Credential|SignedHeaders|Signature)=([^,\s]*)", value))
    missing = [name for name in ("Credential", "Signature", "SignedHeaders") if not parts.get(name)]
    if missing:
        return _incomplete(" ".join(f"Authorization header requires '{name}' parameter." for name in missing))
    elements = parts["Credential"].split("/")
    if len(elements) != 5:
        return _incomplete(
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, "
            f"got {len(elements)}."
        )
    if elements[-1] != TERMINATOR:
        return _invalid(f"Credential should be scoped with a valid terminator: '{TERMINATOR}', not '{elements[-1]}'.")
    return _incomplete(f"{reason[0].upper()}{reason[1:]}.")


def _incomplete(message: str) -> ErrorAnswer:
    return access_denied(400, "IncompleteSignatureException", message)


def _invalid(message: str) -> ErrorAnswer:
    return access_denied(403, "InvalidSignatureException", message)
