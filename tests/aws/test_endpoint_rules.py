"""The small evaluator of endpoint rules agrees with botocore's, or reports that it cannot decide."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from botocore.endpoint_provider import EndpointProvider
from botocore.exceptions import EndpointProviderError
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosmrt._aws import endpoint_rules, hosts
from aiosmrt._aws.endpoint_rules import UnsupportedRuleError, evaluate_rules
from aiosmrt._wire.operations import API_VERSION
from aiosmrt.errors import EndpointResolutionError
from tests.aws import oracle
from tests.aws.test_hosts import REGIONS

LOADER = oracle.shared_loader()
PARTITIONS = LOADER.load_data("partitions")
RULES = LOADER.load_service_model("sagemaker-runtime", "endpoint-rule-set-1")
REGION_LIKE = st.one_of(st.sampled_from(REGIONS), st.text(string.ascii_lowercase + string.digits + "-", max_size=16))


def as_botocore(provider: EndpointProvider, parameters: dict[str, Any]) -> tuple[str, Any] | str:
    try:
        endpoint = provider.resolve_endpoint(**{k: v for k, v in parameters.items() if v is not None})
    except EndpointProviderError as error:
        return str(error)
    return endpoint.url, endpoint.properties


def as_aiosmrt(rules: dict[str, Any], parameters: dict[str, Any]) -> tuple[str, Any] | str:
    try:
        endpoint = evaluate_rules(rules, PARTITIONS, parameters)
    except EndpointResolutionError as error:
        return str(error)
    return endpoint.url, endpoint.properties


@settings(max_examples=400, deadline=None)
@given(
    st.fixed_dictionaries(
        {"Region": st.none() | REGION_LIKE, "UseFIPS": st.booleans(), "UseDualStack": st.booleans()},
        optional={"Endpoint": st.sampled_from([None, "https://a.example", "http://b.example:1/{x}"])},
    )
)
def test_sagemaker_runtimes_rules(parameters: dict[str, Any]) -> None:
    assert as_aiosmrt(RULES, parameters) == as_botocore(EndpointProvider(RULES, PARTITIONS), parameters)


def test_supported_rules_of_other_services() -> None:
    same = 0
    for service in LOADER.list_available_services("endpoint-rule-set-1")[::5]:
        rules = LOADER.load_service_model(service, "endpoint-rule-set-1")
        if any(declared.get("required") and "default" not in declared for declared in rules["parameters"].values()):
            continue
        provider = EndpointProvider(rules, PARTITIONS)
        for region in ("eu-central-1", "us-gov-west-1", "cn-north-1", "aws-global", "us-iso-east-1"):
            for use_fips, use_dualstack in ((False, False), (True, False), (True, True)):
                parameters = {"Region": region, "UseFIPS": use_fips, "UseDualStack": use_dualstack}
                parameters = {name: parameters[name] for name in parameters if name in rules["parameters"]}
                try:
                    ours = as_aiosmrt(rules, parameters)
                except UnsupportedRuleError:
                    continue
                assert ours == as_botocore(provider, parameters), service
                same += 1
    assert same > 500


def rule_set(**rule: Any) -> dict[str, Any]:
    return {"parameters": {"Region": {"type": "string"}}, "rules": [{"conditions": [], "type": "endpoint"} | rule]}


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"parameters": {}},
        {"parameters": {}, "bdd": "AAAA"},
        rule_set(type="graph"),
        rule_set(endpoint={"url": "https://{Unknown}"}),
        rule_set(endpoint={"url": "https://{Region#a#b}"}),
        rule_set(endpoint={"url": "https://a", "headers": {"x": ["y"]}}),
        rule_set(conditions=[{"fn": "aws.parseArn", "argv": ["arn"]}], endpoint={"url": "https://a"}),
        rule_set(conditions=[{"fn": "isSet", "argv": ["a", "b"]}], endpoint={"url": "https://a"}),
        rule_set(conditions=[{"fn": "getAttr", "argv": [{"ref": "Region"}, "a[0]"]}], endpoint={"url": "https://a"}),
        rule_set(conditions=[{"fn": "getAttr", "argv": [{"ref": "Region"}, "a"]}], endpoint={"url": "https://a"}),
    ],
)
def test_unsupported_rules_are_reported(rules: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedRuleError):
        evaluate_rules(rules, PARTITIONS, {"Region": "eu-central-1"})


def test_no_matching_rule_is_an_error() -> None:
    rules = rule_set(conditions=[{"fn": "isSet", "argv": [{"ref": "Region"}]}], endpoint={"url": "https://a"})
    with pytest.raises(EndpointResolutionError, match="No endpoint"):
        evaluate_rules(rules, PARTITIONS, {})


def test_unsupported_rules_are_left_to_botocore(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hosts.resolve_endpoint("cn-north-1", use_dualstack=True)

    def beyond(*_: object) -> None:
        raise UnsupportedRuleError("for the test")

    monkeypatch.setattr(endpoint_rules, "evaluate_rules", beyond)
    assert hosts.resolve_endpoint("cn-north-1", use_dualstack=True) == expected
    with pytest.raises(EndpointResolutionError, match="Missing Region"):
        hosts.resolve_endpoint(None)


def test_missing_data_files_are_left_to_botocore(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hosts, "_bundled", lambda name: None)
    assert hosts.resolve_endpoint("eu-central-1").host == "runtime.sagemaker.eu-central-1.amazonaws.com"


def test_a_users_own_data_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = tmp_path / "sagemaker-runtime" / API_VERSION
    directory.mkdir(parents=True)
    properties = {"authSchemes": [{"name": "sigv4", "signingRegion": "eu-west-3", "signingName": "other"}]}
    rules = rule_set(endpoint={"url": "https://own.example/{Region}", "properties": properties, "headers": {}})
    for name in ("UseFIPS", "UseDualStack"):
        rules["parameters"][name] = {"type": "boolean"}
    rules["version"] = "1.0"
    (directory / "endpoint-rule-set-1.json").write_text(json.dumps(rules))
    (directory / "service-2.json").write_text("{}")
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    assert hosts.resolve_endpoint("eu-central-1") == hosts.ResolvedEndpoint(
        "https://own.example/eu-central-1", "own.example", "eu-west-3", "other"
    )
