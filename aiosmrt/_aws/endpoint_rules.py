"""A small evaluator for the endpoint rule sets that AWS publishes with its service models.

A rule set is a tree. Each rule has conditions, which are function calls that must all return something other than None
or False, and then further rules, an endpoint, or an error. The first endpoint or error reached is the result. A
condition may assign a name to its result; strings refer to names in braces, as in ``{PartitionResult#dnsSuffix}``.

botocore's evaluator imports urllib3 and most of botocore: 60 ms of CPU time and 4 MiB before the first call of every
process (``benchmarks/startup.py``). The rule set of SageMaker Runtime uses five functions, which are implemented here.
Anything else in a newer rule set raises ``UnsupportedRuleError``, and the caller uses botocore.

Source: "Endpoint rule set" in the Smithy specification; ``botocore.endpoint_provider``, with which the tests compare.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from aiosmrt.errors import EndpointResolutionError

__all__ = ["RuleEndpoint", "UnsupportedRuleError", "evaluate_rules"]

_REFERENCE = re.compile(r"\{(\w+)(?:#(\w+))?\}")


class UnsupportedRuleError(Exception):
    """The rule set uses a feature that this evaluator does not support."""


class RuleEndpoint(NamedTuple):
    """The result: the URL and its properties, such as how to sign."""

    url: str
    properties: Mapping[str, Any]


def evaluate_rules(
    rule_set: Mapping[str, Any], partitions: Mapping[str, Any], parameters: Mapping[str, Any]
) -> RuleEndpoint:
    """Find the endpoint for the given parameters.

    Args:
        rule_set: a service's ``endpoint-rule-set-1``.
        partitions: AWS's partitions and their regions.
        parameters: values by the rule set's names. If None or absent, the rule set's default.

    Raises:
        EndpointResolutionError: the rules end in an error, or without a result.
        UnsupportedRuleError: the rule set uses a feature that this evaluator does not support.

    >>> rules = {"parameters": {}, "rules": [{"type": "endpoint", "conditions": [], "endpoint": {"url": "https://a.b"}}]}
    >>> evaluate_rules(rules, {"partitions": []}, {}).url
    'https://a.b'
    """
    try:
        scope = {name: declared.get("default") for name, declared in rule_set["parameters"].items()}
        scope |= {name: value for name, value in parameters.items() if value is not None}
        answer = _first_answer(rule_set["rules"], scope, partitions["partitions"])
    except EndpointResolutionError:
        raise  # the rules' own answer
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UnsupportedRuleError(f"{type(error).__name__}: {error}") from error
    if answer is None:
        raise EndpointResolutionError("No endpoint found for these parameters")
    return answer


def _first_answer(
    rules: Iterable[Mapping[str, Any]], scope: Mapping[str, Any], partitions: list[Any]
) -> RuleEndpoint | None:
    for rule in rules:
        inner = dict(scope)
        if not all(_holds(condition, inner, partitions) for condition in rule["conditions"]):
            continue
        if rule["type"] == "tree":
            answer = _first_answer(rule["rules"], inner, partitions)
            if answer is not None:
                return answer
        elif rule["type"] == "endpoint":
            endpoint = rule["endpoint"]
            if endpoint.get("headers"):
                raise UnsupportedRuleError("an endpoint with headers")
            url = _value(endpoint["url"], inner, partitions)
            return RuleEndpoint(url, _filled_in(endpoint.get("properties", {}), inner))
        elif rule["type"] == "error":
            raise EndpointResolutionError(_value(rule["error"], inner, partitions))
        else:
            raise UnsupportedRuleError(f"a rule of type {rule['type']}")
    return None


def _holds(condition: Mapping[str, Any], scope: dict[str, Any], partitions: list[Any]) -> bool:
    result = _value(condition, scope, partitions)
    if "assign" in condition:
        scope[condition["assign"]] = result
    return result is not None and result is not False


def _value(expression: Any, scope: Mapping[str, Any], partitions: list[Any]) -> Any:
    if isinstance(expression, str):
        return _template(expression, scope)
    if not isinstance(expression, Mapping):
        return expression
    if "ref" in expression:
        return scope.get(expression["ref"])
    arguments = [_value(argument, scope, partitions) for argument in expression["argv"]]
    match expression["fn"], arguments:
        case "isSet", [value]:
            return value is not None
        case "not", [value]:
            return not value
        case "booleanEquals" | "stringEquals", [left, right]:
            return left == right
        case "getAttr", [value, str(path)] if "." not in path and "[" not in path:
            return value[path]
        case "aws.partition", [region]:
            return _partition(region, partitions)
        case name, _:
            raise UnsupportedRuleError(f"the function {name}")


def partition_name(region: str | None, partitions: list[Any]) -> str:
    """The name of a region's partition.

    Args:
        region: the region; None belongs to the first partition.
        partitions: AWS's partitions and their regions.

    >>> partition_name("x-1", [{"id": "aws", "regions": {}, "regionRegex": "^us", "outputs": {}}])
    'aws'
    """
    return str(_partition(region, partitions)["name"])


def _partition(region: str | None, partitions: list[Any]) -> dict[str, Any]:
    # A region that no pattern matches belongs to the first partition, which is "aws".
    found = partitions[0]
    for partition in partitions:
        if region is not None and (region in partition["regions"] or re.match(partition["regionRegex"], region)):
            found = partition
            break
    return {**found["outputs"], "name": found["id"]}


def _template(text: str, scope: Mapping[str, Any]) -> str:
    def look_up(match: re.Match[str]) -> str:
        name, attribute = match.groups()
        value = scope[name] if attribute is None else scope[name][attribute]
        return str(value)

    filled = _REFERENCE.sub(look_up, text)
    if "{" in _REFERENCE.sub("", text):
        raise UnsupportedRuleError("a template of another form")
    return filled


def _filled_in(properties: Any, scope: Mapping[str, Any]) -> Any:
    if isinstance(properties, str):
        return _template(properties, scope)
    if isinstance(properties, Mapping):
        return {name: _filled_in(value, scope) for name, value in properties.items()}
    if isinstance(properties, list):
        return [_filled_in(value, scope) for value in properties]
    return properties
