"""Verify a received request's signature by computing it again with botocore's own signer."""

import hmac
import re
from dataclasses import dataclass

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.support.recording_server import RecordedRequest

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 "
    r"Credential=(?P<access_key>[^/]+)/(?P<day>\d{8})/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request, ?"
    r"SignedHeaders=(?P<names>[a-z0-9;-]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)


@dataclass(frozen=True, slots=True)
class VerifiedSignature:
    """What a valid Authorization header claims."""

    access_key: str
    region: str
    service: str
    signed_headers: frozenset[str]
    timestamp: str


def verify_signature(request: RecordedRequest, secret_key: str) -> VerifiedSignature:
    """Check the Authorization header of `request`; AssertionError when it is not what botocore computes."""
    authorization = request.header("Authorization")
    assert authorization is not None, "the request is not signed"
    match = _AUTHORIZATION.fullmatch(authorization)
    assert match is not None, f"malformed Authorization header {authorization!r}"
    timestamp = request.header("X-Amz-Date")
    assert timestamp is not None
    assert timestamp[:8] == match["day"]
    names = match["names"].split(";")
    assert names == sorted(names)
    assert {"host", "x-amz-date"} <= set(names)

    again = AWSRequest(method=request.method, url=f"http://{request.header('host')}{request.target}", data=request.body)
    for name in names:
        value = request.header(name)
        assert value is not None, f"{name} is signed but was not sent"
        again.headers[name] = value
    again.context["timestamp"] = timestamp
    token = request.header("X-Amz-Security-Token")
    signer = SigV4Auth(Credentials(match["access_key"], secret_key, token), match["service"], match["region"])
    expected = signer.signature(signer.string_to_sign(again, signer.canonical_request(again)), again)
    assert hmac.compare_digest(expected, match["signature"]), f"wrong signature over {names}"
    return VerifiedSignature(match["access_key"], match["region"], match["service"], frozenset(names), timestamp)
