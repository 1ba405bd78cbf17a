"""A client takes region, endpoint and credentials from where a user has put them."""

from __future__ import annotations

import pytest

import aiosmrt
from aiosmrt import errors
from aiosmrt.events import CredentialsRefreshed, Event
from tests.aws.fake_services import ROLE_ARN, CredentialServices
from tests.support.config_files import ConfigFiles
from tests.support.recording_server import RecordingServer
from tests.support.signatures import verify_signature


async def test_everything_from_a_profile_that_assumes_a_role(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", services.url)
    events: list[Event] = []
    async with RecordingServer() as server:
        config_files(
            f"[profile prod]\nregion = eu-north-1\nendpoint_url = {server.url}/prefix\nrole_arn = {ROLE_ARN}\n"
            "source_profile = base\nmax_attempts = 1\n",
            "[base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = base-secret\n",
        )
        monkeypatch.setenv("AWS_PROFILE", "prod")
        async with aiosmrt.Client(observers=[events.append]) as client:
            for _ in range(2):
                await client.invoke_endpoint(EndpointName="e", Body=b"x")
        assert [request.path for request in server.requests] == ["/prefix/endpoints/e/invocations"] * 2
        for request in server.requests:
            claim = verify_signature(request, "fake-secret-STS-0")
            assert (claim.access_key, claim.region, claim.service) == ("AKIDSTS0", "eu-north-1", "sagemaker")
            assert request.header("X-Amz-Security-Token") == "fake-token-STS-0"
            assert (request.header("amz-sdk-request") or "").endswith("max=1")
    assert [type(event) for event in events].count(CredentialsRefreshed) == 1
    assert len(services.requests) == 1


async def test_no_credentials_stop_a_call_before_anything_is_sent() -> None:
    async with (
        RecordingServer() as server,
        aiosmrt.Client("eu-north-1", endpoint_url=server.url) as client,
    ):
        with pytest.raises(errors.NoCredentialsError):
            await client.invoke_endpoint(EndpointName="e", Body=b"x")
        assert server.requests == []


async def test_a_wrong_profile_stops_a_call_before_anything_is_sent() -> None:
    async with (
        RecordingServer() as server,
        aiosmrt.Client("eu-north-1", endpoint_url=server.url, profile_name="missing") as client,
    ):
        with pytest.raises(errors.ProfileNotFoundError):
            await client.invoke_endpoint(EndpointName="e", Body=b"x")
        assert server.requests == []


async def test_unsigned_calls_need_neither_region_nor_credentials() -> None:
    async with RecordingServer() as server, aiosmrt.Client(endpoint_url=server.url, sign=False) as client:
        await client.invoke_endpoint(EndpointName="e", Body=b"x")
        assert server.last.header("Authorization") is None
