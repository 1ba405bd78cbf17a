"""The endpoint is the one that botocore's own client calls, for every partition and every combination of options."""

from __future__ import annotations

import re
import string
from itertools import product
from typing import Any

import pytest
from botocore.auth import _host_from_url
from botocore.endpoint_provider import EndpointProvider
from botocore.exceptions import EndpointProviderError, EndpointVariantError
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosmrt._aws.hosts import API_VERSION, ResolvedEndpoint, resolve_endpoint
from aiosmrt.errors import AiosmrtError, EndpointResolutionError
from tests.aws import oracle

FLAGS = list(product((False, True), repeat=2))
PARTITIONS: list[dict[str, Any]] = oracle.shared_loader().load_data("partitions")["partitions"]
KNOWN_REGIONS = [region for partition in PARTITIONS for region in partition["regions"]]


def made_up(partition: dict[str, Any]) -> str:
    """A region that does not exist and that the partition's pattern matches."""
    prefix = re.match(r"\^\(?([a-z]+)", partition["regionRegex"])
    assert prefix is not None
    pattern = partition["regionRegex"]
    for middle in ("", "iso-", "isob-", "isoe-", "isof-", "gov-", "de-"):
        candidate = f"{prefix[1]}-{middle}nowhere-7"
        if re.match(pattern, candidate):
            return candidate
    raise AssertionError(pattern)


REGIONS = [*KNOWN_REGIONS, *map(made_up, PARTITIONS), "us-east-1-fips", "fips-us-gov-west-1", "nowhere", "eu-7"]
# A client of botocore takes 15 ms to make: with options, two known regions of each partition and all others.
WITH_OPTIONS = [*{region for p in PARTITIONS for region in [*p["regions"]][:: max(1, len(p["regions"]) - 1)]}]
WITH_OPTIONS += REGIONS[len(KNOWN_REGIONS) :]


def rules_alone(region: str, use_fips: bool, use_dualstack: bool) -> tuple[str, str, str] | str:
    loader = oracle.shared_loader()
    rules = loader.load_service_model("sagemaker-runtime", "endpoint-rule-set-1")
    provider = EndpointProvider(rules, loader.load_data("partitions"))
    try:
        endpoint = provider.resolve_endpoint(Region=region, UseFIPS=use_fips, UseDualStack=use_dualstack)
    except EndpointProviderError as error:
        return str(error)
    return str(endpoint.url), region, "sagemaker"


def as_botocore(region: str, use_fips: bool, use_dualstack: bool) -> tuple[str, str, str] | str:
    """What the client of botocore calls: URL, region and service of the signature, or the rules' error."""
    try:
        sent = oracle.request_of(oracle.client(None, region, None, use_fips, use_dualstack))
    except EndpointVariantError:
        # An older table, which botocore consults as well, lacks the isolated partitions' dual-stack hosts.
        return rules_alone(region, use_fips, use_dualstack)
    except EndpointProviderError as error:
        return str(error)
    return sent.url.removesuffix("/endpoints/e/invocations"), sent.region, sent.service


def as_aiosmrt(region: str, use_fips: bool, use_dualstack: bool) -> tuple[str, str | None, str] | str:
    try:
        endpoint = resolve_endpoint(region, use_fips=use_fips, use_dualstack=use_dualstack)
    except EndpointResolutionError as error:
        return str(error)
    assert endpoint.url == f"https://{endpoint.host}"
    return endpoint.url, endpoint.signing_region, endpoint.signing_name


@pytest.mark.parametrize(("use_fips", "use_dualstack"), FLAGS)
def test_every_region_resolves_as_in_botocores_client(use_fips: bool, use_dualstack: bool) -> None:
    assert len(REGIONS) > 40
    assert len(WITH_OPTIONS) > 15
    for region in WITH_OPTIONS if use_fips or use_dualstack else REGIONS:
        assert as_aiosmrt(region, use_fips, use_dualstack) == as_botocore(region, use_fips, use_dualstack), region


@pytest.mark.parametrize(("use_fips", "use_dualstack"), FLAGS)
def test_every_region_resolves_by_the_rules(use_fips: bool, use_dualstack: bool) -> None:
    for region in KNOWN_REGIONS:
        assert as_aiosmrt(region, use_fips, use_dualstack) == rules_alone(region, use_fips, use_dualstack), region


@settings(max_examples=25, deadline=None)
@given(st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=20), *[st.booleans()] * 2)
def test_any_valid_region_name_resolves_as_in_botocores_client(
    region: str, use_fips: bool, use_dualstack: bool
) -> None:
    region = region.strip("-") or "x"
    if region.isdigit():
        region += "x"
    assert as_aiosmrt(region, use_fips, use_dualstack) == as_botocore(region, use_fips, use_dualstack)


@pytest.mark.parametrize("region", ["eu-central-1", "us-gov-west-1", "fips-us-east-1"])
@pytest.mark.parametrize(("use_fips", "use_dualstack"), FLAGS)
def test_options_do_not_change_a_custom_endpoint(region: str, use_fips: bool, use_dualstack: bool) -> None:
    url = "http://127.0.0.1:8080/prefix"
    sent = oracle.request_of(oracle.client(None, region, url, use_fips, use_dualstack))
    endpoint = resolve_endpoint(region, use_fips=use_fips, use_dualstack=use_dualstack, endpoint_url=url)
    assert f"{endpoint.url}/endpoints/e/invocations" == sent.url
    assert (endpoint.signing_region, endpoint.signing_name) == (sent.region, sent.service)


@pytest.mark.parametrize(
    ("url", "normal", "path"),
    [
        ("https://Example.COM", "https://example.com", ""),
        ("https://example.com:443/", "https://example.com", ""),
        ("http://example.com:80", "http://example.com", ""),
        ("http://example.com:443", "http://example.com:443", ""),
        ("https://example.com:8443/a/b/", "https://example.com:8443/a/b", "/a/b"),
        ("http://10.0.0.1:80/%20x", "http://10.0.0.1/%20x", "/%20x"),
        ("http://[::1]:8080", "http://[::1]:8080", ""),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]", ""),
        ("http://model_server:8080", "http://model_server:8080", ""),
    ],
)
def test_a_custom_endpoint_is_normalized(url: str, normal: str, path: str) -> None:
    endpoint = resolve_endpoint("eu-central-1", endpoint_url=url)
    host = normal.split("//")[1].split("/")[0]
    assert endpoint == ResolvedEndpoint(normal, host, "eu-central-1", "sagemaker")
    assert endpoint.path == path
    assert _host_from_url(normal) == endpoint.host or "_" in url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "localhost:8080",
        "//example.com",
        "ftp://example.com",
        "unix:///run/x",
        "http://",
        "http://:8080",
        "http://a..b",
        "http://-a",
        "http://" + "a." * 130 + "b",
        "http://exämple.com",
        "http://example.com:99999",
        "http://example.com:sesame",
        "http://[::1",
        "http://[fe80::zz]",
        "http://user:sesame@example.com",
        "http://user:ses/ame@example.com",
        "http://example.com/?sesame",
        "http://example.com/#sesame",
        "http://example.com/\r\nsesame",
        "http://example.com/a b",
    ],
)
def test_an_unusable_endpoint_url_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(EndpointResolutionError) as caught:
        resolve_endpoint("eu-central-1", endpoint_url=url)
    assert isinstance(caught.value, AiosmrtError)
    assert isinstance(caught.value, ValueError)  # as botocore's
    assert "ses" not in repr(caught.value)
    assert caught.value.__context__ is None


def test_an_unsigned_custom_endpoint_needs_no_region() -> None:
    assert resolve_endpoint(None, endpoint_url="http://localhost:1").signing_region is None


def test_a_missing_region_is_the_error_of_the_rules() -> None:
    with pytest.raises(EndpointResolutionError, match="Missing Region"):
        resolve_endpoint(None)


def test_the_rule_set_is_that_of_our_api_version() -> None:
    assert oracle.shared_loader().determine_latest_version("sagemaker-runtime", "endpoint-rule-set-1") == API_VERSION
