"""What botocore itself makes of the same arguments, environment and files."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import botocore.session
from botocore import UNSIGNED
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.loaders import create_loader


class Frozen(NamedTuple):
    """Credentials as botocore gives them."""

    access_key: str
    secret_key: str
    token: str | None
    expires_at: float | None
    method: str


class Sent(NamedTuple):
    """A request of botocore's client, caught before it is sent."""

    url: str
    region: str
    service: str


@cache
def shared_loader() -> Any:
    """Reading botocore's data for every session would take most of a test's time."""
    return create_loader()


def session(profile: str | None = None) -> Any:
    made = botocore.session.Session(profile=profile)
    made.register_component("data_loader", shared_loader())
    return made


def credentials(profile: str | None = None, region: str | None = None) -> Frozen | None:
    made = session(profile)
    if region is not None:
        made.set_config_variable("region", region)
    found = made.get_credentials()
    if found is None:
        return None
    frozen = found.get_frozen_credentials()
    expiry = getattr(found, "_expiry_time", None)
    expires_at = None if expiry is None else expiry.timestamp()
    return Frozen(frozen.access_key, frozen.secret_key, frozen.token, expires_at, found.method)


def client(
    profile: str | None = None,
    region: str | None = None,
    endpoint_url: str | None = None,
    use_fips: bool | None = None,
    use_dualstack: bool | None = None,
    *,
    sign: bool = True,
) -> Any:
    return session(profile).create_client(
        "sagemaker-runtime",
        region_name=region,
        endpoint_url=endpoint_url,
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="fake-secret-key-for-tests",
        config=Config(
            use_fips_endpoint=use_fips,
            use_dualstack_endpoint=use_dualstack,
            signature_version=None if sign else UNSIGNED,
        ),
    )


def request_of(made: Any) -> Sent:
    caught: list[Any] = []

    def catch(request: Any, **_: Any) -> AWSResponse:
        caught.append(request)
        return AWSResponse(request.url, 200, {}, _Nothing())

    made.meta.events.register("before-send.sagemaker-runtime", catch)
    made.invoke_endpoint(EndpointName="e", Body=b"")
    (request,) = caught
    credential = request.headers["Authorization"].decode().split("Credential=")[1].split(",")[0]
    _, _, region, service, _ = credential.split("/")
    return Sent(request.url, region, service)


class _Nothing:
    """An empty raw response."""

    def read(self, amt: int | None = None) -> bytes:
        return b""

    def stream(self, **_: Any) -> list[bytes]:
        return []
