"""The signer against botocore's, against the published vectors, and read back by its own parsers."""

import doctest
import importlib
import json
import re
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import quote

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiosmrt._wire.sigv4 import canonical, verify
from aiosmrt._wire.sigv4.canonical import SignatureFormatError
from aiosmrt._wire.sigv4.signer import Credentials, SignedRequest, Signer

SUITE = json.loads(Path(__file__).with_name("sigv4_suite.json").read_text(encoding="utf-8"))

WHEN = 1440938160.0
KEYS = Credentials("AKIDEXAMPLE", "not-a-real-secret")
SESSION = Credentials("AKIDEXAMPLE", "not-a-real-secret", "not-a-real-token")
INVOCATION = {
    "method": "POST",
    "host": "runtime.sagemaker.eu-central-1.amazonaws.com",
    "path": "/endpoints/churn/invocations",
    "query": "",
    "headers": [("Content-Type", "text/csv")],
    "payload_sha256": canonical.EMPTY_SHA256,
}


def request(**changes: Any) -> dict[str, Any]:
    return {**INVOCATION, **changes}


def sign(
    signer: Signer, keys: Credentials, when: float, *, payload_sha256: str, headers: Any, **parts: str
) -> list[tuple[str, str]]:
    return signer.sign(keys, when, SignedRequest(headers=tuple(headers), **parts), payload_sha256)


def presign(
    signer: Signer, keys: Credentials, when: float, *, payload_sha256: str, headers: Any, expires_in: int, **parts: str
) -> str:
    sent = SignedRequest(headers=tuple(headers), **parts)
    return signer.presign(keys, when, sent, payload_sha256, expires_in=expires_in)


# -- botocore as the oracle -------------------------------------------------------------------------------------------


def frozen(moment: datetime) -> AbstractContextManager[Any]:
    """botocore's clock, stopped: through ``get_current_datetime`` where the release has it, else ``utcnow``."""
    if hasattr(botocore.auth, "get_current_datetime"):
        return mock.patch.object(botocore.auth, "get_current_datetime", return_value=moment)

    class Stopped(datetime):
        @classmethod
        def utcnow(cls) -> datetime:
            return moment

    return mock.patch.object(botocore.auth, "datetime", SimpleNamespace(datetime=Stopped))


def oracle(
    auth: type[botocore.auth.SigV4Auth],
    credentials: Credentials,
    moment: datetime,
    *,
    region: str,
    method: str,
    host: str,
    path: str,
    query: str,
    headers: list[tuple[str, str]],
    body: bytes,
    **options: Any,
) -> Any:
    sent = botocore.awsrequest.AWSRequest(method, f"https://{host}{path}{'?' if query else ''}{query}", data=body)
    for name, value in headers:
        sent.headers[name] = value
    keys = botocore.credentials.Credentials(credentials.access_key, credentials.secret_key, credentials.token)
    with frozen(moment):
        auth(keys, "sagemaker", region, **options).add_auth(sent)
    return sent


# A release leaves out what it knew of; where ours is wider or narrower, that name proves nothing.
DIFFERING = canonical.UNSIGNED_HEADERS ^ set(botocore.auth.SIGNED_HEADERS_BLACKLIST)
SET_BY_SIGNING = {"authorization", "date", "host", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256"}

visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
credentials = st.builds(
    Credentials,
    access_key=visible,
    secret_key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
    token=st.none() | visible,
)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(lambda naive: naive.replace(tzinfo=UTC))
methods = st.sampled_from(["GET", "POST", "post", "PUT", "DELETE"]) | st.from_regex(r"[A-Za-z]{1,8}", fullmatch=True)
hosts = st.sampled_from([INVOCATION["host"], "localhost:8080", "127.0.0.1:1", "[::1]:8443", "example.com"])
printable = {"exclude_categories": ["Cc", "Cs", "Zs", "Zl", "Zp"]}
segments = (
    st.sampled_from(["", ".", "..", "endpoints", "churn", "invocations", "%20", "%2F", "a~b", "$x:y@z,;=!'()*&+"])
    | st.text(st.characters(**printable, exclude_characters="?#/"), max_size=8)
    | st.text(st.characters(**printable), max_size=8).map(quote)
)
paths = st.lists(segments, min_size=1, max_size=6).map(lambda parts: "/" + "/".join(parts))
queries = st.lists(
    st.sampled_from(["a=1", "a=2", "a", "=", "", "b=%20", "A=1", "a==", "%61=3"])
    | st.text(st.characters(**printable, exclude_characters="#"), max_size=8),
    max_size=6,
).map("&".join)
names = (
    st.sampled_from(
        ["Content-Type", "content-type", "Accept", "X-Amzn-SageMaker-Custom-Attributes", "X-AMZ-Meta", "zz"]
    )
    | st.sampled_from(sorted(canonical.UNSIGNED_HEADERS))
    | st.from_regex(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,12}", fullmatch=True)
).filter(lambda name: name.lower() not in DIFFERING | SET_BY_SIGNING)
values = st.sampled_from(
    ["", " ", "text/csv", "  two   words ", "a\tb", "x\r\n y", "%s%%", "ünïcode\xa0", "a,b", "\x1c"]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
header_names = st.lists(names, max_size=8)
regions = st.sampled_from(["us-east-1", "eu-central-1", "cn-north-1"])

# One signer per region for all examples, so that its caches are hit, missed, and replaced.
SIGNERS = {region: Signer(region=region) for region in ("us-east-1", "eu-central-1", "cn-north-1")}


@given(
    credentials,
    st.lists(moments, min_size=2, max_size=2),
    regions,
    methods,
    hosts,
    paths,
    queries,
    header_names,
    st.data(),
)
def test_signatures_equal_botocores(keys, when, region, method, host, path, query, header_names, data):
    # Twice the same shape: the second call fills the template that the first one made.
    for moment in when:
        headers = [(name, data.draw(values)) for name in header_names]
        body = data.draw(st.binary(max_size=64))
        shape = {"method": method, "host": host, "path": path, "query": query, "headers": headers}
        theirs = oracle(botocore.auth.SigV4Auth, keys, moment, region=region, body=body, **shape).headers
        ours = sign(SIGNERS[region], keys, moment.timestamp(), **shape, payload_sha256=sha256(body).hexdigest())
        expected = ["X-Amz-Date", *(["X-Amz-Security-Token"] if keys.token else []), "Authorization"]
        assert ours == [(name, theirs[name]) for name in expected]


@given(
    credentials,
    moments,
    regions,
    methods,
    hosts,
    paths,
    st.dictionaries(st.text(st.characters(**printable), min_size=1, max_size=8), st.text(max_size=8), max_size=4),
    st.lists(st.tuples(names, values), max_size=4),
    st.integers(1, canonical.MAX_EXPIRES_IN),
)
@example(
    SESSION,
    datetime(2015, 8, 30, 12, 36, tzinfo=UTC),
    "us-east-1",
    "POST",
    "example.com",
    "/ping",
    {"a b": "+/~", "c": ""},
    [("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"), ("Accept", "text/csv")],
    3600,
)
def test_presigned_queries_equal_botocores(keys, moment, region, method, host, path, parameters, headers, expires_in):
    query = "&".join(f"{quote(name)}={quote(value, errors='replace')}" for name, value in parameters.items())
    shape = {"method": method, "host": host, "path": path, "query": query, "headers": headers}
    theirs = oracle(
        botocore.auth.SigV4QueryAuth, keys, moment, region=region, body=b"", expires=expires_in, **shape
    ).url
    ours = presign(
        SIGNERS[region], keys, moment.timestamp(), **shape, payload_sha256=canonical.EMPTY_SHA256, expires_in=expires_in
    )
    assert ours == theirs.partition("?")[2]


def test_an_unsigned_payload_is_signed_as_botocore_signs_it():
    headers = [("X-Amz-Content-SHA256", canonical.UNSIGNED_PAYLOAD), ("Accept", "text/csv")]
    shape = {key: INVOCATION[key] for key in ("method", "host", "path", "query")} | {"headers": headers}
    moment = datetime.fromtimestamp(WHEN, UTC)
    theirs = oracle(botocore.auth.SigV4Auth, KEYS, moment, region="us-east-1", body=b"x", **shape).headers
    ours = sign(Signer(region="us-east-1"), KEYS, WHEN, **shape, payload_sha256=canonical.UNSIGNED_PAYLOAD)
    assert dict(ours)["Authorization"] == theirs["Authorization"]


# -- The published vectors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SUITE["cases"], ids=lambda case: case["name"])
def test_published_vector(case):
    keys = Credentials(SUITE["access_key"], SUITE["secret_key"], case["token"])
    payload = sha256(case["body"].encode()).hexdigest()
    date = canonical.amz_date(SUITE["timestamp"])
    headers = [("Host", SUITE["host"]), ("X-Amz-Date", date), *map(tuple, case["headers"])]
    if case["token"]:
        headers.append(("X-Amz-Security-Token", case["token"]))

    text = canonical.canonical_request(case["method"], case["path"], case["query"], headers, payload)
    assert text == case["canonical_request"]
    scope = canonical.credential_scope(date[:8], SUITE["region"], SUITE["service"])
    text = canonical.string_to_sign(date, scope, text)
    assert text == case["string_to_sign"]
    key = canonical.signing_key(keys.secret_key, date[:8], SUITE["region"], SUITE["service"])
    assert canonical.signature(key, text) == verify.parse_authorization(case["authorization"]).signature

    added = sign(
        Signer(region=SUITE["region"], service=SUITE["service"]),
        keys,
        SUITE["timestamp"],
        method=case["method"],
        host=SUITE["host"],
        path=case["path"],
        query=case["query"],
        headers=list(map(tuple, case["headers"])),
        payload_sha256=payload,
    )
    assert dict(added)["Authorization"] == case["authorization"]


# -- Reading a signature back, as a verifying server does --------------------------------------------------------------


def recomputed(
    claim: verify.Authorization, date: str, query: str, received: list[tuple[str, str]], sent: dict[str, Any]
):
    signed = [(name, value) for name, value in received if name.lower() in claim.signed_headers]
    text = canonical.canonical_request(sent["method"], sent["path"], query, signed, sent["payload_sha256"])
    key = canonical.signing_key(KEYS.secret_key, claim.day, claim.region, claim.service)
    return canonical.signature(key, canonical.string_to_sign(date, claim.scope, text))


@given(st.lists(st.tuples(names, values), max_size=6), paths, queries, st.sampled_from([KEYS, SESSION]))
def test_a_server_recomputes_what_the_signer_signed(headers, path, query, keys):
    sent = request(headers=headers, path=path, query=query)
    added = dict(sign(SIGNERS["eu-central-1"], keys, WHEN, **sent))
    claim = verify.parse_authorization(added.pop("Authorization"))
    received = [("Host", sent["host"]), ("User-Agent", "proxy/1.0"), *headers, *added.items()]
    assert (claim.access_key, claim.region, claim.service) == ("AKIDEXAMPLE", "eu-central-1", "sagemaker")
    assert recomputed(claim, added["X-Amz-Date"], query, received, sent) == claim.signature

    tampered = [*received, (claim.signed_headers[0], "more")]
    assert recomputed(claim, added["X-Amz-Date"], query, tampered, sent) != claim.signature


@pytest.mark.parametrize("keys", [KEYS, SESSION])
def test_a_server_recomputes_a_presigned_query(keys):
    sent = request(query="a=1&b=%20&a=2")
    query = presign(Signer(region="eu-central-1"), keys, WHEN, **sent, expires_in=900)
    claim = verify.parse_presigned(query)
    assert (claim.date, claim.expires_in, claim.token) == ("20150830T123600Z", 900, keys.token)
    assert claim.authorization.signed_headers == ("content-type", "host")
    assert claim.query.startswith("a=1&b=%20&a=2&X-Amz-Algorithm=")
    received = [("host", sent["host"]), *sent["headers"]]
    assert recomputed(claim.authorization, claim.date, claim.query, received, sent) == claim.authorization.signature
    other = claim.query.replace("b=%20", "b=%21")
    assert recomputed(claim.authorization, claim.date, other, received, sent) != claim.authorization.signature


@pytest.mark.parametrize("spelling", [", ", ",", " ,  "])
def test_parts_of_an_authorization_come_in_any_order_and_spacing(spelling):
    added = dict(sign(Signer(region="eu-central-1"), KEYS, WHEN, **INVOCATION))
    scheme, _, rest = added["Authorization"].partition(" ")
    shuffled = f"{scheme} {spelling.join(reversed(rest.split(', ')))}"
    assert verify.parse_authorization(shuffled) == verify.parse_authorization(added["Authorization"])


SIGNATURE = "0123456789abcdef" * 4
CREDENTIAL = "Credential=AKIDEXAMPLE/20150830/eu-central-1/sagemaker/aws4_request"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("", "scheme"),
        ("Bearer abc", "scheme"),
        ("AWS4-HMAC-SHA256", "unknown part"),
        (f"AWS4-HMAC-SHA512 {CREDENTIAL}, SignedHeaders=host, Signature={SIGNATURE}", "scheme"),
        (f"AWS4-HMAC-SHA256 {CREDENTIAL}, SignedHeaders=host", "Signature is missing"),
        (f"AWS4-HMAC-SHA256 {CREDENTIAL}, Signature={SIGNATURE}", "SignedHeaders is missing"),
        (f"AWS4-HMAC-SHA256 SignedHeaders=host, Signature={SIGNATURE}", "Credential is missing"),
        (f"AWS4-HMAC-SHA256 {CREDENTIAL}, SignedHeaders=, Signature={SIGNATURE}", "SignedHeaders is missing or empty"),
        (f"AWS4-HMAC-SHA256 {CREDENTIAL}, {CREDENTIAL}, SignedHeaders=a, Signature={SIGNATURE}", "Credential twice"),
        (f"AWS4-HMAC-SHA256 {CREDENTIAL}, SignedHeaders=a;;b, Signature={SIGNATURE}", "empty or a repeated name"),
        (f"AWS4-HMAC-SHA256 {CREDENTIAL}, SignedHeaders=a;A, Signature={SIGNATURE}", "empty or a repeated name"),
        (f"AWS4-HMAC-SHA256 {CREDENTIAL}, SignedHeaders=a, Signature={SIGNATURE[1:]}", "64 lower-case"),
        (f"AWS4-HMAC-SHA256 {CREDENTIAL}, SignedHeaders=a, Signature={SIGNATURE.upper()}", "64 lower-case"),
        (f"AWS4-HMAC-SHA256 {CREDENTIAL}/, SignedHeaders=a, Signature={SIGNATURE}", "Credential is not of the form"),
        (f"AWS4-HMAC-SHA256 {CREDENTIAL[:-1]}, SignedHeaders=a, Signature={SIGNATURE}", "not of the form"),
        (
            f"AWS4-HMAC-SHA256 Credential=A/1/r/s/aws4_request, SignedHeaders=a, Signature={SIGNATURE}",
            "not of the form",
        ),
        (f"AWS4-HMAC-SHA256 Credential=/20150830/r/s/aws4_request, SignedHeaders=a, Signature={SIGNATURE}", "the form"),
    ],
)
def test_a_malformed_authorization_is_named(value, fault):
    with pytest.raises(SignatureFormatError, match=fault) as caught:
        verify.parse_authorization(value)
    assert SIGNATURE not in str(caught.value)
    assert "AKIDEXAMPLE" not in str(caught.value)


PRESIGNED = presign(Signer(region="eu-central-1"), SESSION, WHEN, **INVOCATION, expires_in=900)


@pytest.mark.parametrize(
    ("pattern", "replacement", "fault"),
    [
        ("X-Amz-Algorithm=[^&]*&", "", "X-Amz-Algorithm"),
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA512", "X-Amz-Algorithm"),
        ("X-Amz-Credential=[^&]*&", "", "X-Amz-Credential is missing"),
        ("aws4_request", "aws5_request", "X-Amz-Credential is not of the form"),
        ("X-Amz-Date=[^&]*&", "", "X-Amz-Date"),
        ("X-Amz-Date=[^&]*&", "X-Amz-Date=20151330T123600Z&", "X-Amz-Date"),
        ("X-Amz-Expires=900&", "", "X-Amz-Expires"),
        ("X-Amz-Expires=900", "X-Amz-Expires=0", "X-Amz-Expires"),
        ("X-Amz-Expires=900", "X-Amz-Expires=604801", "X-Amz-Expires"),
        ("X-Amz-Expires=900", "X-Amz-Expires=-1", "X-Amz-Expires"),
        ("X-Amz-Expires=900", "X-Amz-Expires=9" + "9" * 5000, "X-Amz-Expires"),
        ("X-Amz-SignedHeaders=[^&]*&", "", "X-Amz-SignedHeaders"),
        ("&X-Amz-Signature=.*", "", "X-Amz-Signature is missing"),
        ("X-Amz-Signature=", "X-Amz-Signature=0", "64 lower-case"),
        ("X-Amz-Expires=900", "X-Amz-Expires=900&X-Amz%2DExpires=900", "X-Amz-Expires twice"),
    ],
)
def test_a_malformed_presigned_query_is_named(pattern, replacement, fault):
    broken = re.sub(pattern, replacement, PRESIGNED)
    assert broken != PRESIGNED
    with pytest.raises(SignatureFormatError, match=fault) as caught:
        verify.parse_presigned(broken)
    assert "not-a-real-token" not in str(caught.value)


@given(st.text() | st.text().map("AWS4-HMAC-SHA256 {}".format) | st.text(alphabet="CredntialSgHsu=,;/ 0aw4_q"))
def test_any_text_is_read_or_refused(text):
    for parse in (verify.parse_authorization, verify.parse_presigned, canonical.parse_amz_date):
        with pytest.raises(SignatureFormatError):
            parse(text)


@given(st.integers(0, 253402300799))
def test_dates_survive_a_round_trip(second):
    assert canonical.parse_amz_date(canonical.amz_date(second)) == second


# -- Edges of the signer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Authorization", "date", "HOST", "X-Amz-Date", "x-amz-security-token"])
def test_headers_that_signing_sets_are_refused(name):
    signer = Signer(region="eu-central-1")
    with pytest.raises(ValueError, match=f"those that signing sets; got {name.lower()}"):
        sign(signer, KEYS, WHEN, **request(headers=[(name, "not-a-real-value")]))
    with pytest.raises(ValueError, match=f"those that signing sets; got {name.lower()}"):
        presign(signer, KEYS, WHEN, **request(headers=[(name, "not-a-real-value")]), expires_in=1)


@pytest.mark.parametrize("part", ["method", "host", "path", "query"])
@pytest.mark.parametrize("control", ["\0", "\n", "\r", "\x7f"])
def test_control_characters_are_refused(part, control):
    signer = Signer(region="eu-central-1")
    broken = request(**{part: INVOCATION[part] + control})
    with pytest.raises(ValueError, match="control characters"):
        sign(signer, KEYS, WHEN, **broken)
    with pytest.raises(ValueError, match="control characters"):
        presign(signer, KEYS, WHEN, **broken, expires_in=1)


def test_a_control_character_in_a_headers_name_is_refused():
    with pytest.raises(ValueError, match="control characters"):
        sign(Signer(region="eu-central-1"), KEYS, WHEN, **request(headers=[("A\0", "b")]))


@pytest.mark.parametrize("expires_in", [0, -1, 604_801])
def test_an_impossible_validity_is_refused(expires_in):
    with pytest.raises(ValueError, match="from 1 to 604800"):
        presign(Signer(region="eu-central-1"), KEYS, WHEN, **INVOCATION, expires_in=expires_in)


def test_a_presigned_query_is_not_presigned_again():
    with pytest.raises(ValueError, match="already contains"):
        presign(Signer(region="eu-central-1"), KEYS, WHEN, **request(query=PRESIGNED), expires_in=1)


def test_a_repeated_parameter_survives_presigning():
    query = presign(Signer(region="eu-central-1"), KEYS, WHEN, **request(query="a=1&a=2"), expires_in=1)
    assert query.startswith("a=1&a=2&X-Amz-Algorithm=")


def test_without_headers_only_the_signers_own_are_signed():
    added = dict(sign(Signer(region="eu-central-1"), SESSION, WHEN, **request(headers=[])))
    claim = verify.parse_authorization(added["Authorization"])
    assert claim.signed_headers == ("host", "x-amz-date", "x-amz-security-token")


def test_changed_credentials_are_used_at_once():
    signer = Signer(region="eu-central-1")
    rotated = Credentials("AKIDEXAMPLE", "another-fake-secret")
    first, second, third = (sign(signer, keys, WHEN, **INVOCATION) for keys in (KEYS, rotated, KEYS))
    assert first == third
    assert second != first
    assert second == sign(Signer(region="eu-central-1"), rotated, WHEN, **INVOCATION)


def test_caches_are_bounded():
    signer = Signer(region="eu-central-1")
    for number in range(2000):
        sign(
            signer,
            Credentials("AKIDEXAMPLE", f"fake-{number}"),
            WHEN + number,
            **request(path=f"/endpoints/{number}/invocations"),
        )
    assert len(signer._templates) <= 512
    assert len(signer._keys) <= 16
    late = sign(signer, KEYS, WHEN, **INVOCATION)
    assert late == sign(Signer(region="eu-central-1"), KEYS, WHEN, **INVOCATION)


def test_calls_of_one_second_share_what_they_have_in_common_and_nothing_else():
    signer = Signer(region="eu-central-1")
    calls = [
        request(headers=[("Content-Type", kind), ("X-Amzn-SageMaker-Inference-Id", f"{row}")], payload_sha256=digest)
        for row in range(100)
        for kind in ("text/csv", "application/json")
        for digest in (canonical.EMPTY_SHA256, sha256(b"1,2").hexdigest(), canonical.UNSIGNED_PAYLOAD)
    ]
    for call in (*calls, *reversed(calls)):
        assert sign(signer, KEYS, WHEN + 0.5, **call) == sign(Signer(region="eu-central-1"), KEYS, WHEN, **call)
    assert signer._now is not None
    assert 0 < len(signer._now.prefixes) <= 64


# -- Secrets ----------------------------------------------------------------------------------------------------------


def test_secrets_stay_out_of_every_repr():
    signer = Signer(region="eu-central-1")
    sign(signer, SESSION, WHEN, **INVOCATION)
    claim = verify.parse_presigned(PRESIGNED)
    shown = " ".join(map(repr, (SESSION, signer, signer._now, claim, *signer._templates.values())))
    assert "AKIDEXAMPLE" in shown
    for secret in (SESSION.secret_key, SESSION.token, claim.authorization.signature):
        assert secret not in shown


def causes(error: BaseException | None) -> list[str]:
    return [] if error is None else [repr(error), *causes(error.__cause__), *causes(error.__context__)]


def test_secrets_stay_out_of_errors():
    signer = Signer(region="eu-central-1")
    for attempt in (
        lambda: Credentials("AKID EXAMPLE", "not-a-real-secret"),
        lambda: Credentials("AKIDEXAMPLE", "not-a-real-secret", "not-a-real-token\n"),
        lambda: Credentials("AKIDEXAMPLE", "not-a-real-secret", "not-a-real-tökén"),
        lambda: Credentials("AKIDEXAMPLE", "not-a-real-secret\ud800"),
        lambda: sign(signer, SESSION, WHEN, **request(headers=[("A", "not-a-real-value\ud800")])),
        lambda: presign(signer, SESSION, WHEN, **request(headers=[("A", "not-a-real-value\ud800")]), expires_in=1),
    ):
        with pytest.raises(ValueError) as caught:
            attempt()
        assert "not-a-real" not in " ".join(causes(caught.value))


@pytest.mark.parametrize(("access_key", "secret_key"), [("", "fake"), ("AKIDEXAMPLE", "")])
def test_empty_credentials_are_refused(access_key, secret_key):
    with pytest.raises(ValueError, match="is empty"):
        Credentials(access_key, secret_key)


@pytest.mark.parametrize("part", ["access_key", "secret_key", "token"])
@pytest.mark.parametrize("value", [b"not-a-real-part", 7, ["not-a-real-part"]])
def test_a_part_that_is_no_str_is_refused(part, value):
    parts = {"access_key": "AKIDEXAMPLE", "secret_key": "fake", part: value}
    with pytest.raises(ValueError, match=f"{part} must be a str; got {type(value).__name__}") as caught:
        Credentials(**parts)
    assert "not-a-real" not in str(caught.value)


@pytest.mark.parametrize("expires_at", [float("nan"), 10**400, "1800000000", datetime(2026, 1, 1, tzinfo=UTC)])
def test_an_expiry_that_is_not_a_number_is_refused(expires_at):
    with pytest.raises(ValueError, match="expires_at must be a number of seconds since 1970 or None"):
        Credentials("AKIDEXAMPLE", "fake", expires_at=expires_at)


def test_an_empty_token_is_none():
    signed = [
        sign(Signer(region="eu-central-1"), Credentials("AKIDEXAMPLE", "fake", token), WHEN, **INVOCATION)
        for token in ("", None)
    ]
    assert signed[0] == signed[1]


@pytest.mark.parametrize(("module", "examples"), [("canonical", 10), ("signer", 3), ("verify", 2)])
def test_the_examples_run(module, examples):
    # By its name: a test runner that imports this file by path may hold two copies of a module otherwise.
    results = doctest.testmod(importlib.import_module(f"aiosmrt._wire.sigv4.{module}"))
    assert results.attempted >= examples
    assert results.failed == 0
