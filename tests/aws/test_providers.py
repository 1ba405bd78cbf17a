"""Each source of credentials gives what botocore gives, and its errors are ours and botocore's at once."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import re
import shlex
import socket
import string
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiobotocore.session
import boto3
import botocore.exceptions
import botocore.parsers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosmrt import errors
from aiosmrt._aws.credentials import CredentialsCache
from aiosmrt._aws.providers import environment_credentials, profile_keys, provider_for
from aiosmrt._wire.sigv4.signer import Credentials
from tests.aws import oracle
from tests.aws.fake_services import ROLE_ARN, CredentialServices
from tests.support.config_files import ConfigFiles

SECRET = "fake-secret-key-sesame"
BOTO_ERRORS = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)


async def resolved(profile_name: str | None = None, region_name: str | None = None) -> oracle.Frozen:
    events: list[Any] = []
    cache = CredentialsCache(provider_for(profile_name=profile_name, region_name=region_name), observer=events.append)
    try:
        got = await cache.get()
    finally:
        await cache.close()
    (event,) = events
    return oracle.Frozen(got.access_key, got.secret_key, got.token, got.expires_at, event.source)


def outcome(function: Callable[..., oracle.Frozen | None], *arguments: Any) -> oracle.Frozen | Exception | None:
    """What botocore answers, or the error that it raises."""
    try:
        return function(*arguments)
    except botocore.exceptions.BotoCoreError as error:
        return error


async def same_as_botocore(profile_name: str | None = None, region_name: str | None = "eu-west-1") -> oracle.Frozen:
    expected = oracle.credentials(profile_name, region_name)
    assert expected is not None
    assert await resolved(profile_name, region_name) == expected
    return expected


# Arguments


async def test_keys_as_arguments_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    cache = CredentialsCache(
        provider_for(access_key="AKIDEXAMPLE", secret_key=SECRET, session_token="fake-token", profile_name="missing")
    )
    assert await cache.get() == Credentials("AKIDEXAMPLE", SECRET, "fake-token")


@pytest.mark.parametrize(
    ("access_key", "secret_key", "missing"),
    [
        ("AKIDEXAMPLE", None, "aws_secret_access_key"),
        (None, SECRET, "aws_access_key_id"),
        ("AKIDEXAMPLE", "", "aws_secret_access_key"),
        ("", SECRET, "aws_access_key_id"),
        ("", "", "aws_access_key_id"),
    ],
)
def test_one_key_without_the_other_is_refused(access_key: str | None, secret_key: str | None, missing: str) -> None:
    with pytest.raises(errors.PartialCredentialsError) as caught:
        CredentialsCache(provider_for(access_key=access_key, secret_key=secret_key))
    assert caught.value.kwargs == {"provider": "explicit", "cred_var": missing}
    theirs = botocore.exceptions.PartialCredentialsError(**caught.value.kwargs)
    assert isinstance(caught.value, type(theirs))
    assert str(caught.value) == str(theirs)
    assert SECRET not in repr(caught.value)


def test_a_token_alone_is_ignored_as_in_botocore() -> None:
    assert provider_for(session_token="fake-token").peek() is None


def test_keys_and_a_credentials_object_exclude_each_other() -> None:
    with pytest.raises(errors.ParamValidationError, match="cannot both be given"):
        CredentialsCache(provider_for(access_key="a", secret_key="b", credentials=Credentials("c", "d")))


def test_an_argument_of_another_type_is_refused_and_not_quoted() -> None:
    with pytest.raises(errors.ParamValidationError, match="got tuple") as caught:
        CredentialsCache(provider_for(credentials=("AKIDEXAMPLE", SECRET)))  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("bad", ["AKID\r\nX-Evil: 1", "AKID EXAMPLE", "AKIDÉ"])
def test_keys_that_no_header_can_carry_are_refused_and_not_quoted(bad: str) -> None:
    with pytest.raises(errors.CredentialRetrievalError) as caught:
        CredentialsCache(provider_for(access_key=bad, secret_key=SECRET))
    assert bad not in str(caught.value)


# Given objects and functions


async def test_a_function_is_awaited() -> None:
    async def obtain() -> Credentials:
        return Credentials("AKIDEXAMPLE", SECRET)

    cache = CredentialsCache(provider_for(credentials=obtain))
    assert (await cache.get()).access_key == "AKIDEXAMPLE"


async def test_a_function_may_return_what_botocore_returns() -> None:
    async def obtain() -> Any:
        return boto3.Session("AKIDEXAMPLE", SECRET, "fake-token").get_credentials().get_frozen_credentials()

    assert await CredentialsCache(provider_for(credentials=obtain)).get() == Credentials(
        "AKIDEXAMPLE", SECRET, "fake-token"
    )


async def test_a_function_that_is_not_async_is_refused() -> None:
    def obtain() -> Credentials:
        return Credentials("AKIDEXAMPLE", SECRET)

    with pytest.raises(errors.CredentialRetrievalError, match="must be async; it returned Credentials"):
        await CredentialsCache(provider_for(credentials=obtain)).get()  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [None, 7, ("AKIDEXAMPLE", SECRET)])
async def test_a_function_that_returns_no_credentials_is_an_error(answer: object) -> None:
    async def obtain() -> Any:
        return answer

    with pytest.raises(errors.CredentialRetrievalError, match=type(answer).__name__) as caught:
        await CredentialsCache(provider_for(credentials=obtain)).get()
    assert SECRET not in str(caught.value)


async def test_a_function_that_fails_is_the_cause_and_is_not_quoted() -> None:
    async def obtain() -> Credentials:
        raise ValueError(SECRET)

    with pytest.raises(errors.CredentialRetrievalError) as caught:
        await CredentialsCache(provider_for(credentials=obtain)).get()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value.__cause__, ValueError)
    assert SECRET not in str(caught.value)


async def test_a_function_may_raise_our_errors() -> None:
    async def obtain() -> Credentials:
        raise errors.NoCredentialsError("none today")

    with pytest.raises(errors.NoCredentialsError, match="none today"):
        await CredentialsCache(provider_for(credentials=obtain)).get()


@pytest.mark.parametrize("is_object", [False, True], ids=["function", "object"])
async def test_an_error_of_another_client_is_not_taken_for_the_calls(is_object: bool) -> None:
    refusal = errors.ThrottlingError({"Error": {"Code": "Throttling", "Message": "slower"}}, "InvokeEndpoint")

    async def obtain() -> Credentials:
        raise refusal

    class Failing:
        get_frozen_credentials = staticmethod(obtain)

    with pytest.raises(errors.CredentialRetrievalError, match="ThrottlingError") as caught:
        await CredentialsCache(provider_for(credentials=Failing() if is_object else obtain)).get()
    assert not isinstance(caught.value, errors.ServiceError)
    assert not caught.value.retry_safe
    assert isinstance(caught.value, botocore.exceptions.ClientError)
    assert caught.value.__cause__ is refusal


async def test_boto3s_static_credentials_are_taken() -> None:
    given = boto3.Session("AKIDEXAMPLE", SECRET, "fake-token").get_credentials()
    cache = CredentialsCache(provider_for(credentials=given))
    assert await cache.get() == Credentials("AKIDEXAMPLE", SECRET, "fake-token")
    await cache.close()


async def test_aiobotocores_static_credentials_are_taken() -> None:
    session = aiobotocore.session.get_session()
    session.set_credentials("AKIDEXAMPLE", SECRET, "fake-token")
    cache = CredentialsCache(provider_for(credentials=await session.get_credentials()))
    assert await cache.get() == Credentials("AKIDEXAMPLE", SECRET, "fake-token")
    await cache.close()


async def test_boto3s_refreshable_credentials_are_taken_with_their_expiry(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.url}/container")
    given = boto3.Session().get_credentials()
    cache = CredentialsCache(provider_for(credentials=given))
    got = await cache.get()
    assert (got.access_key, got.expires_at) == ("AKIDCONTAINER0", given._expiry_time.timestamp())
    await cache.close()


async def test_aiobotocores_refreshable_credentials_are_taken_with_their_expiry(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.url}/container")
    given = await aiobotocore.session.get_session().get_credentials()
    cache = CredentialsCache(provider_for(credentials=given))
    got = await cache.get()
    assert (got.access_key, got.expires_at) == ("AKIDCONTAINER0", given._expiry_time.timestamp())
    await cache.close()


async def test_a_given_object_without_keys_is_an_error() -> None:
    class Empty:
        def get_frozen_credentials(self) -> None:
            return None

    with pytest.raises(errors.CredentialRetrievalError, match="Empty"):
        await CredentialsCache(provider_for(credentials=Empty())).get()


async def test_a_given_object_that_fails_is_translated() -> None:
    class Failing:
        method = "sso"

        def get_frozen_credentials(self) -> None:
            raise botocore.exceptions.UnauthorizedSSOTokenError

    with pytest.raises(errors.CredentialRetrievalError, match="UnauthorizedSSOTokenError") as caught:
        await CredentialsCache(provider_for(credentials=Failing())).get()
    assert caught.value.kwargs["provider"] == "sso"


# Environment


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"]),
        st.text(string.ascii_letters + "/+=", max_size=8),
    ),
    st.sampled_from(
        [
            None,
            "",
            "2999-01-01T00:00:00Z",
            "2999-01-01T00:00:00+02:00",
            "29990101T000000Z",
            "2999-01-01 00:00:00 UTC",
            "Tue, 01 Jan 2999 00:00:00 GMT",
            "9999-12-31T23:59:59-14:00",
        ]
    ),
)
def test_environment_variables_are_read_as_by_botocore(variables: dict[str, str], expiration: str | None) -> None:
    if expiration is not None:
        variables["AWS_CREDENTIAL_EXPIRATION"] = expiration
    with patch.dict(os.environ, variables):
        expected = outcome(oracle.credentials)
        if isinstance(expected, Exception):
            with pytest.raises(type(expected), match=re.escape(str(expected))) as caught:
                environment_credentials(os.environ)
            assert isinstance(caught.value, errors.PartialCredentialsError)
            return
        found = environment_credentials(os.environ)
    if expected is None:
        assert found is None
        return
    assert found is not None
    got = found.credentials
    assert (got.access_key, got.secret_key, got.token, got.expires_at, found.source) == expected


def test_an_expiry_without_zone_is_in_utc() -> None:
    variables = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_CREDENTIAL_EXPIRATION": "2999-01-01T00:00",
    }
    found = environment_credentials(variables)
    assert found is not None
    assert found.credentials.expires_at == datetime(2999, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("expiry", ["tomorrow", "NaN", "inf", "32503680000", "2999-13-01T00:00:00Z"])
def test_an_invalid_expiry_is_refused(expiry: str) -> None:
    variables = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_CREDENTIAL_EXPIRATION": expiry}
    with pytest.raises(errors.CredentialRetrievalError, match="AWS_CREDENTIAL_EXPIRATION"):
        environment_credentials(variables)


async def test_an_explicit_profile_skips_the_environment(
    monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")
    config_files(credentials="[prod]\naws_access_key_id = AKIDPROD\naws_secret_access_key = prod-secret\n")
    assert (await same_as_botocore("prod")).access_key == "AKIDPROD"
    monkeypatch.setenv("AWS_PROFILE", "prod")
    assert (await same_as_botocore()).access_key == "AKIDENV"


# Profiles with static keys


@st.composite
def profiles(draw: st.DrawFn) -> tuple[str, str]:
    """A config and a credentials file with keys here, there or nowhere."""

    def section(head: str) -> str:
        keys = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_security_token", "region")
        values = st.sampled_from(["AKIDONE", "AKIDTWO"])
        return "\n".join([head, *(f"{key} = {draw(values)}" for key in keys if draw(st.booleans()))]) + "\n"

    config = "".join(section(head) for head in ("[default]", "[profile prod]") if draw(st.booleans()))
    credentials = "".join(section(head) for head in ("[default]", "[prod]") if draw(st.booleans()))
    return config, credentials


@settings(max_examples=60, deadline=None)
@given(profiles(), st.sampled_from([None, "default", "prod"]), st.sampled_from([None, "prod"]))
def test_static_keys_of_profiles_are_found_as_by_botocore(
    tmp_path_factory: pytest.TempPathFactory, files: tuple[str, str], profile_name: str | None, environment: str | None
) -> None:
    directory = tmp_path_factory.mktemp("aws")
    (directory / "config").write_text(files[0])
    (directory / "credentials").write_text(files[1])
    variables = {
        "AWS_CONFIG_FILE": str(directory / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(directory / "credentials"),
    }
    if environment is not None:
        variables["AWS_PROFILE"] = environment
    with patch.dict(os.environ, variables):
        expected = outcome(oracle.credentials, profile_name)
        if isinstance(expected, Exception):
            with pytest.raises(type(expected), match=re.escape(str(expected))) as caught:
                profile_keys(profile_name)
            assert isinstance(caught.value, errors.AiosmrtError)
            return
        found = profile_keys(profile_name)
    if expected is None:
        assert found is None
        return
    assert found is not None
    got = found.credentials
    assert (got.access_key, got.secret_key, got.token, None, found.source) == expected


@pytest.mark.parametrize(
    "setting",
    [
        f"role_arn = {ROLE_ARN}",
        "source_profile = other",
        "credential_source = Environment",
        "web_identity_token_file = /token",
        "sso_start_url = https://example.com",
        "sso_session = mine",
    ],
)
def test_static_keys_without_certain_precedence_are_left_to_the_chain(config_files: ConfigFiles, setting: str) -> None:
    config_files(f"[default]\n{setting}\n", "[default]\naws_access_key_id = AKIDONE\naws_secret_access_key = x\n")
    assert profile_keys(None) is None


# The chain


async def test_the_container_endpoint(services: CredentialServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.url}/container")
    assert (await same_as_botocore()).method == "container-role"


async def test_instance_metadata(services: CredentialServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", services.url)
    assert (await same_as_botocore()).method == "iam-role"


@pytest.fixture
def credential_process(tmp_path: Path, config_files: ConfigFiles) -> Any:
    def install(source: str) -> Path:
        program = tmp_path / "credential process.py"
        program.write_text(source)
        command = f"{shlex.quote(sys.executable)} {shlex.quote(str(program))}"
        config_files(f"[default]\ncredential_process = {command}\n")
        return program

    return install


def prints(**members: Any) -> str:
    answer = {"Version": 1, "AccessKeyId": "AKIDPROCESS", "SecretAccessKey": SECRET} | members
    return f"print({json.dumps(answer)!r})"


@pytest.mark.parametrize("lifetime", [None, 3600])
async def test_a_credential_process(credential_process: Any, lifetime: int | None) -> None:
    members: dict[str, Any] = {"SessionToken": "fake-token"}
    if lifetime is not None:
        members["Expiration"] = (datetime.now(UTC) + timedelta(seconds=lifetime)).isoformat()
    credential_process(prints(**members))
    expected = await same_as_botocore()
    assert (expected.method, expected.expires_at is None) == ("custom-process", lifetime is None)


async def test_an_assumed_role(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", services.url)
    config_files(
        f"[profile role]\nrole_arn = {ROLE_ARN}\nsource_profile = base\nrole_session_name = fake\n",
        "[base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = base-secret\n",
    )
    assert (await same_as_botocore("role")).method == "assume-role"
    ours, theirs = services.requests[1:], services.requests[:1]
    assert ours == theirs
    assert ours[0][2]["RoleArn"] == ROLE_ARN


async def test_a_role_assumed_from_the_environment_in_the_region_of_aws_region(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", services.url)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")
    config_files(f"[profile role]\nrole_arn = {ROLE_ARN}\ncredential_source = Environment\n")
    expected = oracle.credentials("role", "eu-west-1")
    assert await resolved("role") == expected


async def test_a_web_identity(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config_files: ConfigFiles
) -> None:
    (tmp_path / "token").write_text("fake-web-identity-token")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", services.url)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE_ARN)
    # Static keys in the default profile come later in the chain.
    config_files(credentials="[default]\naws_access_key_id = AKIDONE\naws_secret_access_key = x\n")
    assert (await same_as_botocore()).method == "assume-role-with-web-identity"
    assert services.requests[-1][2]["WebIdentityToken"] == "fake-web-identity-token"


async def test_single_sign_on(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config_files: ConfigFiles
) -> None:
    start_url = "https://example.com/start"
    monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", services.url)
    (tmp_path / "sso").mkdir()
    (tmp_path / "sso" / f"{hashlib.sha1(start_url.encode()).hexdigest()}.json").write_text(
        json.dumps({"accessToken": "fake-sso-token", "expiresAt": "2999-01-01T00:00:00Z"})
    )
    config_files(
        f"[profile login]\nsso_start_url = {start_url}\nsso_region = eu-west-1\n"
        "sso_account_id = 123456789012\nsso_role_name = fake\n"
    )
    assert (await same_as_botocore("login")).method == "sso"
    assert services.requests[-1][2] == {"role_name": "fake", "account_id": "123456789012"}


async def test_an_expired_single_sign_on_token_is_an_error(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config_files: ConfigFiles
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", services.url)
    config_files(
        "[profile login]\nsso_start_url = https://example.com\nsso_region = eu-west-1\n"
        "sso_account_id = 123456789012\nsso_role_name = fake\n"
    )
    with pytest.raises(BOTO_ERRORS):
        oracle.credentials("login")
    with pytest.raises(errors.CredentialRetrievalError, match="sso"):
        await resolved("login")


# Errors of the chain


def boto_errors() -> list[Exception]:
    """An instance of each of botocore's errors that can be made of texts."""
    made: list[Exception] = []
    for cls in vars(botocore.exceptions).values():
        if not isinstance(cls, type) or not issubclass(cls, botocore.exceptions.BotoCoreError):
            continue
        fields = {name for _, name, _, _ in string.Formatter().parse(cls.fmt) if name}
        try:
            made.append(cls(**dict.fromkeys(fields, "something")))
        except (KeyError, TypeError):
            continue
    assert len(made) > 80
    refusal = {"Error": {"Code": "ExpiredToken", "Message": "expired"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    return [*made, botocore.exceptions.ClientError(refusal, "AssumeRole")]


@pytest.mark.parametrize("theirs", boto_errors(), ids=lambda error: type(error).__name__)
async def test_an_except_clause_for_botocores_error_catches_ours(theirs: Exception) -> None:
    class Failing:
        method = "sso"

        def get_frozen_credentials(self) -> None:
            raise theirs

    cache = CredentialsCache(provider_for(credentials=Failing()))
    with pytest.raises(type(theirs)) as caught:
        await cache.get()
    # The second time, it is remembered.
    with pytest.raises(type(theirs)) as again:
        await cache.get()
    for ours in (caught.value, again.value, pickle.loads(pickle.dumps(caught.value)), copy.deepcopy(caught.value)):
        assert isinstance(ours, errors.ConfigurationError)
        assert isinstance(ours, type(theirs))
        assert str(theirs) in str(ours)
        assert repr(ours)
        if isinstance(theirs, botocore.exceptions.ClientError):
            assert ours.response == theirs.response
            assert ours.operation_name == "AssumeRole"
            assert type(ours).__name__ == "CredentialRetrievalError"
        if isinstance(theirs, botocore.exceptions.HTTPClientError):
            assert ours.request is ours.response is None


STATIC = "[profile base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = base-secret\n"
ROLE = f"[profile p]\nregion = eu-west-1\nrole_arn = {ROLE_ARN}\n"
BROKEN_CHAINS = {
    "a role without a source": ROLE,
    "a role with two sources": f"{ROLE}source_profile = base\ncredential_source = Environment\n{STATIC}",
    "a source that does not exist": f"{ROLE}source_profile = gone\n",
    "a source without keys": f"{ROLE}source_profile = base\n[profile base]\nregion = eu-west-1\n",
    "a source with half a pair": f"{ROLE}source_profile = base\n[profile base]\naws_access_key_id = AKIDBASE\n",
    "sources in a circle": f"{ROLE}source_profile = q\n{ROLE.replace('profile p', 'profile q')}source_profile = p\n",
    "an unknown kind of source": f"{ROLE}credential_source = Elsewhere\n",
    "no container": f"{ROLE}credential_source = EcsContainer\n",
    "a role for a web identity without its token": f"{ROLE}web_identity_token_file = /nonexistent/token\n",
    "a web identity without a role": "[profile p]\nweb_identity_token_file = /nonexistent/token\n",
    "single sign-on that is not complete": "[profile p]\nsso_start_url = https://example.com\n",
    "single sign-on without a login": "[profile p]\nsso_start_url = https://example.com\nsso_region = eu-west-1\n"
    "sso_account_id = 123456789012\nsso_role_name = fake\n",
    "an sso-session without a login": "[profile p]\nsso_session = s\nsso_account_id = 1\nsso_role_name = fake\n"
    "[sso-session s]\nsso_region = eu-west-1\nsso_start_url = https://example.com\n",
    "an sso-session that does not exist": "[profile p]\nsso_session = s\nsso_account_id = 1\nsso_role_name = fake\n",
    "a login without a token": "[profile p]\nregion = eu-west-1\nlogin_session = arn:aws:iam::1:user/someone\n",
    "a program that does not exist": "[profile p]\ncredential_process = /nonexistent/program\n",
    "a program that may not be run": "[profile p]\ncredential_process = /etc/passwd\n",
    "a program that says nothing": f"[profile p]\ncredential_process = {sys.executable} -c pass\n",
    "a program that prints a list": f"[profile p]\ncredential_process = {sys.executable} -c 'print([])'\n",
    "a program whose credentials are expired": "[profile p]\ncredential_process = echo '"
    '{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "S", "Expiration": "2001-01-01T00:00:00Z"}\'\n',
    "a program that fails": f"[profile p]\ncredential_process = {sys.executable} -c 'raise SystemExit(3)'\n",
    "half a pair": "[profile p]\naws_access_key_id = AKIDONE\n",
    "nothing": "[profile p]\nregion = eu-west-1\n",
    "no such profile": "[profile q]\nregion = eu-west-1\n",
    "STS that does not answer": f"{ROLE}source_profile = base\n{STATIC}",
}


@pytest.mark.parametrize("config", BROKEN_CHAINS.values(), ids=BROKEN_CHAINS)
async def test_a_broken_chain_fails_as_with_botocore(
    config: str, config_files: ConfigFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:  # bound, and not listening
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        config_files(config)
        theirs: Exception | None = None
        try:
            if oracle.credentials("p") is None:
                theirs = botocore.exceptions.NoCredentialsError()
        except Exception as error:
            theirs = error
        assert theirs is not None
        with pytest.raises(errors.ConfigurationError) as caught:
            await resolved("p")
    if isinstance(theirs, BOTO_ERRORS):
        assert isinstance(caught.value, type(theirs))
        assert str(theirs) in str(caught.value)
    else:
        # of Python, such as json.JSONDecodeError's ValueError
        assert isinstance(caught.value, next(cls for cls in type(theirs).__mro__ if cls.__module__ == "builtins"))
        assert isinstance(caught.value, errors.CredentialRetrievalError)
    if isinstance(theirs, OSError):
        for ours in (caught.value, pickle.loads(pickle.dumps(caught.value)), copy.deepcopy(caught.value)):
            assert isinstance(ours, OSError)
            assert (ours.errno, ours.strerror, ours.filename) == (theirs.errno, theirs.strerror, theirs.filename)


@pytest.mark.parametrize("body", ["", "no XML", "<a/>", f"{SECRET}{{"])
async def test_a_service_that_answers_nonsense_fails_as_with_botocore(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles, body: str
) -> None:
    services.answer = lambda *_: (200, "text/xml", body)  # type: ignore[method-assign]
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", services.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    config_files(f"{ROLE}source_profile = base\n{STATIC}")
    with pytest.raises((botocore.parsers.ResponseParserError, KeyError)) as theirs:
        oracle.credentials("p")
    with pytest.raises(theirs.type) as ours:
        await resolved("p")
    for error in (ours.value, pickle.loads(pickle.dumps(ours.value))):
        assert isinstance(error, errors.CredentialRetrievalError)
        assert isinstance(error, theirs.type)
        assert SECRET not in f"{error} {error!r} {vars(error)}"


@pytest.mark.parametrize(
    "theirs", [StopIteration("end"), StopAsyncIteration("end"), ExceptionGroup("several", [KeyError()])], ids=repr
)
async def test_an_error_whose_class_cannot_be_added_is_an_ordinary_failure(theirs: Exception) -> None:
    class Failing:
        def get_frozen_credentials(self) -> None:
            raise theirs

    with pytest.raises(errors.CredentialRetrievalError, match=type(theirs).__name__):
        await CredentialsCache(provider_for(credentials=Failing())).get()


async def test_a_clients_own_exception_class_is_a_client_error() -> None:
    """botocore makes such classes with each client."""
    kind = type("ExpiredTokenException", (botocore.exceptions.ClientError,), {})

    class Failing:
        def get_frozen_credentials(self) -> None:
            raise kind({"Error": {"Code": "ExpiredTokenException", "Message": "m"}}, "AssumeRole")

    with pytest.raises(botocore.exceptions.ClientError) as caught:
        await CredentialsCache(provider_for(credentials=Failing())).get()
    restored = pickle.loads(pickle.dumps(caught.value))
    assert restored.response["Error"]["Code"] == "ExpiredTokenException"
    assert isinstance(restored, errors.CredentialRetrievalError)


async def test_a_functions_botocore_error_is_caught_as_such() -> None:
    async def obtain() -> Credentials:
        raise botocore.exceptions.UnauthorizedSSOTokenError

    with pytest.raises(botocore.exceptions.UnauthorizedSSOTokenError) as caught:
        await CredentialsCache(provider_for(credentials=obtain)).get()
    assert isinstance(caught.value, errors.CredentialRetrievalError)


async def test_a_function_may_not_return_an_expiry_that_is_not_a_number() -> None:
    async def obtain() -> Credentials:
        return Credentials("AKIDEXAMPLE", SECRET, None, float("nan"))

    with pytest.raises(errors.CredentialRetrievalError, match="ValueError"):
        await CredentialsCache(provider_for(credentials=obtain)).get()


async def test_no_credentials_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert oracle.credentials() is None
    with pytest.raises(errors.NoCredentialsError) as caught:
        await resolved()
    assert isinstance(caught.value, botocore.exceptions.NoCredentialsError)
    assert str(caught.value) == str(botocore.exceptions.NoCredentialsError())


async def test_a_missing_profile() -> None:
    with pytest.raises(errors.ProfileNotFoundError):
        await resolved("missing")


async def test_a_role_that_may_not_be_assumed(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles
) -> None:
    services.answer = lambda *_: (  # type: ignore[method-assign]
        403,
        "text/xml",
        "<ErrorResponse><Error><Code>AccessDenied</Code><Message>not you</Message></Error></ErrorResponse>",
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", services.url)
    config_files(
        f"[profile role]\nrole_arn = {ROLE_ARN}\nsource_profile = base\n",
        f"[base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = {SECRET}\n",
    )
    with pytest.raises(errors.CredentialRetrievalError, match=r"assume-role.*AccessDenied.*not you") as caught:
        await resolved("role", "eu-west-1")
    assert isinstance(caught.value, botocore.exceptions.CredentialRetrievalError)
    assert isinstance(caught.value.__cause__, botocore.exceptions.ClientError)
    report = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert SECRET not in "".join(report.format())


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("import sys; sys.exit('please log in')", "please log in"),
        (f"print('{SECRET}')", "JSONDecodeError"),
        (f'print(\'{{"Version": 1, "SecretAccessKey": "{SECRET}"}}\')', "AccessKeyId"),
        (f"import sys; sys.stdout.buffer.write(b'\\xff{SECRET}')", "UnicodeDecodeError"),
        (prints(Version=2), "version"),
        (prints(AccessKeyId="AKID\r\nX: 1"), "access_key"),
        (prints(Expiration="2001-01-01T00:00:00Z"), "expired"),
    ],
)
async def test_a_credential_process_that_fails(credential_process: Any, source: str, shown: str) -> None:
    credential_process(source)
    with pytest.raises(errors.CredentialRetrievalError, match=shown) as caught:
        await resolved()
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error!r} {vars(error)!r}"
        error = error.__cause__ or error.__context__


async def test_a_credential_process_that_does_not_exist(config_files: ConfigFiles) -> None:
    config_files("[default]\ncredential_process = /nonexistent/program\n")
    with pytest.raises(errors.CredentialRetrievalError, match=r"No such file.*/nonexistent/program"):
        await resolved()


async def test_a_container_endpoint_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://192.0.2.1/container")
    with pytest.raises(errors.CredentialRetrievalError, match="default chain"):
        await resolved()
