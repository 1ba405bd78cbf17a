"""Signatures: which are accepted, and the errors of those that are not."""

import json
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from time import time

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt._wire.sigv4.canonical import amz_date
from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.errors import ConfigurationError
from aiosmrt.local import LocalRuntime
from aiosmrt.local.authentication import SignatureVerifier
from aiosmrt.local.error_responses import ErrorReply
from tests.support.peers import REGION
from tests.support.runtime import ACCEPTED, Draft, RawConnection, echo, local_runtime

OTHER = Credentials("AKIDOTHEREXAMPLE", "another-fake-secret")
TEMPORARY = Credentials("ASIDEXAMPLE", "temporary-fake-secret", token="fake/session+token==")

Change = Callable[[Draft], object]


@pytest.fixture
async def runtime() -> AsyncIterator[LocalRuntime]:
    async with local_runtime({"echo": echo}, credentials=[ACCEPTED, TEMPORARY]) as runtime:
        yield runtime


async def attempt(runtime: LocalRuntime, draft: Draft) -> tuple[int, str | None, str | None]:
    async with RawConnection.to(runtime.url) as connection:
        answer = await connection.exchange(draft.encode())
    if answer.status == 200:
        assert answer.body == draft.body
        return 200, None, None
    return answer.status, answer.headers["x-amzn-errortype"], json.loads(answer.body)["message"]


async def test_signed_request_is_accepted(runtime: LocalRuntime) -> None:
    assert (await attempt(runtime, Draft(runtime.url).sign()))[0] == 200
    assert runtime.requests[0].access_key_id == ACCEPTED.access_key
    assert runtime.requests[0].presigned is False


async def test_session_token_is_accepted(runtime: LocalRuntime) -> None:
    assert (await attempt(runtime, Draft(runtime.url).sign(TEMPORARY)))[0] == 200
    assert runtime.requests[0].access_key_id == TEMPORARY.access_key


async def test_presigned_url_is_accepted(runtime: LocalRuntime) -> None:
    assert (await attempt(runtime, Draft(runtime.url, body=b"").presign()))[0] == 200
    assert (await attempt(runtime, Draft(runtime.url, body=b"").presign(TEMPORARY)))[0] == 200
    assert (await attempt(runtime, Draft(runtime.url, body=b"7").presign(body=b"7")))[0] == 200
    assert [record.presigned for record in runtime.requests] == [True, True, True]
    assert runtime.requests[0].path == "/endpoints/echo/invocations"


async def test_unsigned_extra_headers_are_accepted(runtime: LocalRuntime) -> None:
    draft = Draft(runtime.url).sign()
    draft.headers += [("X-Forwarded-For", "192.0.2.1"), ("X-Amzn-Trace-Id", "Root=1-fake"), ("Accept", "text/csv")]
    assert (await attempt(runtime, draft))[0] == 200


MISMATCH = "The request signature we calculated does not match the signature you provided."


def tampered_signature(draft: Draft) -> None:
    draft.replace_header("Authorization", lambda value: value[:-1] + ("0" if value[-1] != "0" else "1"))


def tampered_body(draft: Draft) -> None:
    draft.body = b"9,9,9"


def tampered_path(draft: Draft) -> None:
    draft.path = draft.path.replace("echo", "gain")


def added_query(draft: Draft) -> None:
    draft.query = "a=b"


def removed_header(draft: Draft) -> None:
    draft.headers = [(name, value) for name, value in draft.headers if name != "Content-Type"]


def other_host(draft: Draft) -> None:
    draft.host = "runtime.sagemaker.eu-central-1.amazonaws.com"


def repeated_header(draft: Draft) -> None:
    draft.headers.append(("X-Amzn-SageMaker-Custom-Attributes", "admin=1"))


@pytest.mark.parametrize(
    "attack",
    [
        tampered_signature,
        tampered_body,
        added_query,
        removed_header,
        other_host,
        repeated_header,
        lambda draft: draft.replace_header("Content-Type", lambda value: "application/json"),
        lambda draft: draft.replace_header("X-Amzn-SageMaker-Custom-Attributes", lambda value: "admin=1"),
        lambda draft: draft.without_header("X-Amzn-SageMaker-Custom-Attributes"),
        # one second earlier, same day
        lambda draft: draft.replace_header("X-Amz-Date", lambda value: amz_date(time() - 1)),
    ],
)
async def test_changed_request_is_rejected(runtime: LocalRuntime, attack: Change) -> None:
    headers = [("Content-Type", "text/csv"), ("X-Amzn-SageMaker-Custom-Attributes", "admin=0")]
    draft = Draft(runtime.url, headers=headers).sign(at=time() + 30)
    attack(draft)
    status, code, message = await attempt(runtime, draft)
    assert (status, code) == (403, "InvalidSignatureException")
    assert message is not None
    assert message.startswith(MISMATCH)
    assert runtime.requests[0].variant is None
    assert runtime.requests[0].access_key_id is None


async def test_signature_for_another_endpoint_is_rejected(runtime: LocalRuntime) -> None:
    draft = Draft(runtime.url).sign()
    tampered_path(draft)
    assert (await attempt(runtime, draft))[:2] == (403, "InvalidSignatureException")


async def test_wrong_secret_is_rejected(runtime: LocalRuntime) -> None:
    status, code, message = await attempt(runtime, Draft(runtime.url).sign(Credentials("AKIDEXAMPLE", "wrong-fake")))
    assert (status, code) == (403, "InvalidSignatureException")
    assert message is not None
    assert message.startswith(MISMATCH)


@pytest.mark.parametrize(
    ("credentials", "change"),
    [
        (OTHER, lambda draft: None),
        (Credentials(TEMPORARY.access_key, TEMPORARY.secret_key), lambda draft: None),
        (Credentials(TEMPORARY.access_key, TEMPORARY.secret_key, token="other"), lambda draft: None),
        (Credentials(ACCEPTED.access_key, ACCEPTED.secret_key, token="surplus"), lambda draft: None),
        (TEMPORARY, lambda draft: draft.without_header("X-Amz-Security-Token")),
        (TEMPORARY, lambda draft: draft.replace_header("X-Amz-Security-Token", str.swapcase)),
    ],
)
async def test_unknown_credentials_are_rejected(
    runtime: LocalRuntime, credentials: Credentials, change: Change
) -> None:
    draft = Draft(runtime.url).sign(credentials)
    change(draft)
    assert await attempt(runtime, draft) == (
        403,
        "UnrecognizedClientException",
        "The security token included in the request is invalid.",
    )


async def test_missing_signature(runtime: LocalRuntime) -> None:
    expected = (403, "MissingAuthenticationTokenException", "Missing Authentication Token")
    assert await attempt(runtime, Draft(runtime.url)) == expected
    assert await attempt(runtime, Draft(runtime.url, query="a=b")) == expected


PARTS = ("Credential", "Signature", "SignedHeaders")
NO_DATE = "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda draft: draft.without_header("X-Amz-Date"), NO_DATE),
        (
            lambda draft: draft.replace_header("X-Amz-Date", lambda value: "yesterday"),
            "Date must be in ISO-8601 'basic format'. Got 'yesterday'. See http://en.wikipedia.org/wiki/ISO_8601",
        ),
        (
            lambda draft: draft.replace_header("Authorization", lambda value: value.partition(", Signature=")[0]),
            "Authorization header requires 'Signature' parameter.",
        ),
        (
            lambda draft: draft.replace_header("Authorization", lambda value: "AWS4-HMAC-SHA256 Credential="),
            " ".join(f"Authorization header requires '{name}' parameter." for name in PARTS),
        ),
        (
            lambda draft: draft.replace_header("Authorization", lambda value: value.replace("/sagemaker/", "/")),
            "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got 4.",
        ),
        (
            lambda draft: draft.headers.append(draft.headers[-1]),
            "The request contains more than one Authorization header.",
        ),
        (
            lambda draft: draft.headers.append(("X-Amz-Date", amz_date(0))),
            "The request contains X-Amz-Date or X-Amz-Security-Token more than once.",
        ),
    ],
)
async def test_incomplete_signature(runtime: LocalRuntime, change: Change, message: str) -> None:
    draft = Draft(runtime.url).sign()
    change(draft)
    assert await attempt(runtime, draft) == (400, "IncompleteSignatureException", message)


async def test_another_scheme(runtime: LocalRuntime) -> None:
    draft = Draft(runtime.url, headers=[("Authorization", "Bearer fake")])
    assert (await attempt(runtime, draft))[:2] == (400, "IncompleteSignatureException")


async def test_scope_of_another_region_service_or_terminator(runtime: LocalRuntime) -> None:
    region = await attempt(runtime, Draft(runtime.url).sign(region="us-west-2"))
    service = await attempt(runtime, Draft(runtime.url).sign(service="s3"))
    both = await attempt(runtime, Draft(runtime.url).sign(region="us-west-2", service="s3"))
    of_region = "Credential should be scoped to a valid region, not 'us-west-2'."
    of_service = "Credential should be scoped to correct service: 'sagemaker'."
    assert region == (403, "InvalidSignatureException", of_region)
    assert service == (403, "InvalidSignatureException", of_service)
    assert both == (403, "InvalidSignatureException", f"{of_region} {of_service}")
    draft = Draft(runtime.url).sign()
    draft.replace_header("Authorization", lambda value: value.replace("aws4_request", "aws5_request"))
    assert await attempt(runtime, draft) == (
        403,
        "InvalidSignatureException",
        "Credential should be scoped with a valid terminator: 'aws4_request', not 'aws5_request'.",
    )


async def test_scope_of_another_day(runtime: LocalRuntime) -> None:
    draft = Draft(runtime.url).sign()
    today = amz_date(time())[:8]
    draft.replace_header("Authorization", lambda value: value.replace(f"/{today}/", "/20150830/"))
    status, code, message = await attempt(runtime, draft)
    assert (status, code) == (403, "InvalidSignatureException")
    assert message is not None
    assert message.startswith(
        "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '20150830' != "
    )


@pytest.mark.parametrize(("name", "shown"), [("host", "Host"), ("x-amz-date", "X-Amz-Date")])
async def test_required_signed_headers(runtime: LocalRuntime, name: str, shown: str) -> None:
    draft = Draft(runtime.url).sign()
    both = "host;x-amz-date"
    draft.replace_header("Authorization", lambda value: value.replace(both, both.replace(name, "").strip(";")))
    assert await attempt(runtime, draft) == (
        403,
        "InvalidSignatureException",
        f"'{shown}' must be a 'SignedHeader' in the AWS Authorization.",
    )


NOW = 1440938160.0  # 20150830T123600Z


class TestTime:
    @pytest.fixture
    async def runtime(self) -> AsyncIterator[LocalRuntime]:
        async with local_runtime({"echo": echo}, clock=lambda: NOW) as runtime:
            yield runtime

    @pytest.mark.parametrize("offset", [-300, -299, 0, 299, 300])
    async def test_within_the_window(self, runtime: LocalRuntime, offset: int) -> None:
        assert (await attempt(runtime, Draft(runtime.url).sign(at=NOW + offset)))[0] == 200

    async def test_too_old(self, runtime: LocalRuntime) -> None:
        assert await attempt(runtime, Draft(runtime.url).sign(at=NOW - 301)) == (
            403,
            "InvalidSignatureException",
            "Signature expired: 20150830T123059Z is now earlier than 20150830T123100Z (20150830T123600Z - 5 min.)",
        )

    async def test_too_new(self, runtime: LocalRuntime) -> None:
        later = "20150830T124101Z is still later than 20150830T124100Z (20150830T123600Z + 5 min.)"
        assert await attempt(runtime, Draft(runtime.url).sign(at=NOW + 301)) == (
            403,
            "InvalidSignatureException",
            f"Signature not yet current: {later}",
        )

    async def test_date_header_is_the_runtimes_clock(self, runtime: LocalRuntime) -> None:
        async with RawConnection.to(runtime.url) as connection:
            answer = await connection.exchange(Draft(runtime.url).sign(at=NOW).encode())
        assert answer.headers["date"] == "Sun, 30 Aug 2015 12:36:00 GMT"

    @pytest.mark.parametrize(
        ("age", "expires_in", "status"),
        [(3600, 3600, 200), (3601, 3600, 403), (604_800, 604_800, 200), (-301, 60, 403)],
    )
    async def test_presigned_url_expiry(self, runtime: LocalRuntime, age: int, expires_in: int, status: int) -> None:
        draft = Draft(runtime.url, body=b"").presign(at=NOW - age, expires_in=expires_in)
        assert (await attempt(runtime, draft))[0] == status

    async def test_presigned_url_over_a_week(self, runtime: LocalRuntime) -> None:
        draft = Draft(runtime.url, body=b"").presign(at=NOW)
        draft.query = draft.query.replace("X-Amz-Expires=60", "X-Amz-Expires=604801")
        assert (await attempt(runtime, draft))[:2] == (400, "IncompleteSignatureException")

    async def test_presigned_url_with_a_changed_expiry(self, runtime: LocalRuntime) -> None:
        draft = Draft(runtime.url, body=b"").presign(at=NOW - 100)
        draft.query = draft.query.replace("X-Amz-Expires=60", "X-Amz-Expires=600")
        status, code, message = await attempt(runtime, draft)
        assert (status, code) == (403, "InvalidSignatureException")
        assert message is not None
        assert message.startswith(MISMATCH)

    async def test_presigned_url_with_a_body_that_was_not_signed(self, runtime: LocalRuntime) -> None:
        draft = Draft(runtime.url, body=b"").presign(at=NOW)
        draft.body = b"smuggled"
        assert (await attempt(runtime, draft))[:2] == (403, "InvalidSignatureException")

    async def test_presigned_url_without_its_host_signed(self, runtime: LocalRuntime) -> None:
        draft = Draft(runtime.url, body=b"").presign(at=NOW)
        draft.query = draft.query.replace("SignedHeaders=host", "SignedHeaders=accept")
        assert (await attempt(runtime, draft))[:2] == (403, "InvalidSignatureException")

    async def test_expired_temporary_credentials(self) -> None:
        expired = Credentials("ASIDEXAMPLE", "fake", token="fake", expires_at=NOW)
        async with local_runtime({"echo": echo}, clock=lambda: NOW, credentials=expired) as runtime:
            assert await attempt(runtime, Draft(runtime.url).sign(expired, at=NOW)) == (
                403,
                "ExpiredTokenException",
                "The security token included in the request is expired",
            )


async def test_credentials_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", TEMPORARY.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", TEMPORARY.secret_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", str(TEMPORARY.token))
    async with LocalRuntime({"echo": echo}, region=REGION) as runtime:
        assert (await attempt(runtime, Draft(runtime.url).sign(TEMPORARY)))[0] == 200
        assert (await attempt(runtime, Draft(runtime.url).sign()))[0] == 403


def test_missing_credentials() -> None:
    with pytest.raises(ConfigurationError, match="AWS_ACCESS_KEY_ID"):
        LocalRuntime({"echo": echo})
    with pytest.raises(ConfigurationError, match="must not be an empty sequence"):
        LocalRuntime({"echo": echo}, credentials=[])


async def test_verification_disabled() -> None:
    async with LocalRuntime({"echo": echo}, verify_signatures=False) as runtime:
        assert (await attempt(runtime, Draft(runtime.url)))[0] == 200
        assert (await attempt(runtime, Draft(runtime.url).sign(OTHER)))[0] == 200
        assert [record.access_key_id for record in runtime.requests] == [None, None]


async def test_large_body(runtime: LocalRuntime) -> None:
    draft = Draft(runtime.url, body=b"x" * 3_000_000).sign()
    assert (await attempt(runtime, draft))[0] == 200
    draft.body = b"x" * 2_999_999 + b"y"
    assert (await attempt(runtime, draft))[:2] == (403, "InvalidSignatureException")


def test_repr_omits_secrets() -> None:
    shown = repr(SignatureVerifier([TEMPORARY], region=REGION))
    assert TEMPORARY.access_key in shown
    assert TEMPORARY.secret_key not in shown
    assert str(TEMPORARY.token) not in shown


# -- against botocore's signers, on generated requests

token = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
value = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40).map(str.strip)
header = st.sampled_from(
    ["X-Amzn-SageMaker-Custom-Attributes", "Content-Type", "Accept", "X-Amzn-SageMaker-Session-Id"]
)


@given(
    secret=token,
    session_token=st.none() | token,
    name=st.from_regex(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,20}", fullmatch=True),
    headers=st.dictionaries(header, value),
    body=st.binary(max_size=100),
    presigned=st.booleans(),
)
def test_only_botocores_signature_is_accepted(
    secret: str, session_token: str | None, name: str, headers: dict[str, str], body: bytes, presigned: bool
) -> None:
    url = f"http://localhost:8080/endpoints/{name}/invocations"
    request = AWSRequest("POST", url, headers=dict(headers), data=b"" if presigned else body)
    credentials = ReadOnlyCredentials("AKIDEXAMPLE", secret, session_token)
    auth = SigV4QueryAuth if presigned else SigV4Auth
    auth(credentials, "sagemaker", REGION).add_auth(request)
    path, _, query = request.url.removeprefix("http://localhost:8080").partition("?")
    received = [("Host", "localhost:8080"), *request.headers.items()]
    verifier = SignatureVerifier([Credentials("AKIDEXAMPLE", secret, session_token)], region=REGION)

    def verify(payload: bytes) -> bool:
        verified = verifier.verify(
            method="POST",
            path=path,
            query=query,
            headers=received,
            payload_sha256=sha256(payload).hexdigest(),
            now=time(),
        )
        return verified.presigned

    assert verify(b"" if presigned else body) is presigned
    with pytest.raises(ErrorReply):
        verify(body + b"!")
