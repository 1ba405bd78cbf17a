"""Bearer tokens of SageMaker: a presigned request as text, which stands for the identity that signed it.

The request is ``POST https://sagemaker.amazonaws.com/?Action=CallWithBearerToken``; it is signed and never sent. The
form is that of ``sagemaker.core.token_generator`` in AWS's package ``sagemaker-core``.
"""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import Final

from aiosmrt._wire.sigv4.canonical import EMPTY_SHA256, SignatureFormatError
from aiosmrt._wire.sigv4.signer import Credentials, SignedRequest, Signer

__all__ = ["MAX_TOKEN_SECONDS", "SIGNED_HOST", "SIGNED_METHOD", "SIGNED_PATH", "make_token", "signed_query_of"]

MAX_TOKEN_SECONDS: Final = 43_200
"""The longest life of a token: 12 hours."""

SIGNED_METHOD: Final = "POST"
SIGNED_HOST: Final = "sagemaker.amazonaws.com"
SIGNED_PATH: Final = "/"

_PREFIX: Final = "sagemaker-api-key-"
_ACTION: Final = "Action=CallWithBearerToken"
_VERSION: Final = "&Version=1"


def make_token(signer: Signer, credentials: Credentials, timestamp: float, expires_in: int) -> str:
    """Make a token.

    Args:
        signer: signs for the token's region.
        credentials: those of the identity that the token stands for.
        timestamp: the time of signing, in seconds since 1970.
        expires_in: seconds for which the token is valid, 1 to `MAX_TOKEN_SECONDS`. It ends with its credentials if
            that is earlier.

    >>> make_token(Signer(region="eu-central-1"), Credentials("AKIDEXAMPLE", "not-a-real-secret"), 0.0, 900)[:40]
    'sagemaker-api-key-c2FnZW1ha2VyLmFtYXpvbm'
    """
    request = SignedRequest(SIGNED_METHOD, SIGNED_HOST, SIGNED_PATH, _ACTION, ())
    query = signer.presign(credentials, timestamp, request, EMPTY_SHA256, expires_in=expires_in)
    return _PREFIX + b64encode(f"{SIGNED_HOST}{SIGNED_PATH}?{query}{_VERSION}".encode()).decode()


def signed_query_of(token: str) -> str:
    """The presigned query inside a token, for a server to verify.

    Args:
        token: the token.

    Raises:
        SignatureFormatError: it is not one.

    >>> signed_query_of("sagemaker-api-key-AAAA")
    Traceback (most recent call last):
        ...
    aiosmrt._wire.sigv4.canonical.SignatureFormatError: the bearer token is not one of SageMaker's
    """
    before = f"{SIGNED_HOST}{SIGNED_PATH}?"
    try:
        text = b64decode(token.removeprefix(_PREFIX), validate=True).decode()
    except (Base64Error, ValueError):
        text = ""
    query = text[len(before) : -len(_VERSION)]
    if not (
        token.startswith(_PREFIX)
        and text.startswith(before)
        and text.endswith(_VERSION)
        and query.split("&")[0] == _ACTION
    ):
        raise SignatureFormatError("the bearer token is not one of SageMaker's")
    return query
