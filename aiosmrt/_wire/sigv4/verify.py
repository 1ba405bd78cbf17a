"""What a server reads back from a signed request: who claims to have signed it, for which scope, over which headers.

A server reads the claim with `parse_authorization`, or with `parse_presigned` for a URL that carries its signature,
computes the signature over the headers named there by the steps of `aiosmrt._wire.sigv4.canonical`, and compares.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote

from aiosmrt._wire.sigv4.canonical import (
    ALGORITHM,
    MAX_EXPIRES_IN,
    PRESIGNED_PARAMETERS,
    SignatureFormatError,
    credential_scope,
    parse_amz_date,
)

__all__ = ["Authorization", "PresignedQuery", "parse_authorization", "parse_presigned"]


class Authorization(NamedTuple):
    """A claim to have signed a request.

    Attributes:
        access_key: the access key id of the signer.
        day: ``YYYYMMDD``.
        region: the signing region.
        service: the signing name.
        signed_headers: names of the signed headers, in lower case, as listed.
        signature: the signature in hexadecimal.
    """

    access_key: str
    day: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str

    @property
    def scope(self) -> str:
        """The credential scope in the string to sign."""
        return credential_scope(self.day, self.region, self.service)

    def __repr__(self) -> str:
        # Without the signature: until it expires, that of a presigned URL is as good as a password.
        return f"Authorization({self.access_key!r}, {self.scope!r}, signed_headers={self.signed_headers!r})"


class PresignedQuery(NamedTuple):
    """The claim of a presigned URL.

    Attributes:
        authorization: the claim.
        date: the time of signing, as in ``X-Amz-Date``.
        expires_in: validity in seconds from then.
        token: the session token, if any.
        query: the signed query: as received, less the signature.
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
        SignatureFormatError: another scheme, or a part that is missing, repeated, unknown or malformed.

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
            raise SignatureFormatError("the Authorization header contains an unknown part")
        if name in parts:
            raise SignatureFormatError(f"the Authorization header contains {name} twice")
        parts[name] = content
    return _authorization(parts, "Credential", "SignedHeaders", "Signature")


def parse_presigned(query: str) -> PresignedQuery:
    """Read the query of a presigned URL.

    Args:
        query: percent-encoded, without the ``?``.

    Raises:
        SignatureFormatError: a parameter of the signature is missing, repeated or malformed.

    >>> parse_presigned(
    ...     "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Feu-central-1%2Fsagemaker"
    ...     "%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature="
    ...     + 64 * "0"
    ... ).expires_in
    900
    """
    parts: dict[str, str] = {}
    signed: list[str] = []
    for parameter in query.split("&"):
        raw_name, _, raw_content = parameter.partition("=")
        name = unquote(raw_name)
        if name != "X-Amz-Signature":
            signed.append(parameter)
        if name in PRESIGNED_PARAMETERS:
            if name in parts:
                raise SignatureFormatError(f"the query contains {name} twice")
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
        raise SignatureFormatError(f"{signed_headers} contains an empty or a repeated name")
    access_key, day, region, service = match.groups()
    return Authorization(access_key, day, region, service, names, parts[signed])
