"""Parses a request's path and headers to the operation's members, with the service's validation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from urllib.parse import unquote

from aiosmrt._wire.operations import CHAT_COMPLETIONS, CHAT_COMPLETIONS_STREAM, OPERATIONS, Member, Operation
from aiosmrt._wire.params import full_pattern
from aiosmrt.local.error_responses import ErrorReply, unknown_operation, validation_error

__all__ = ["is_openai_path", "openai_route_of", "read_parameters", "route_of"]

_OPENAI_PATH = re.compile(
    rf"/endpoints/(?P<name>[^/]+)(?:/inference-components/(?P<component>[^/]+))?{re.escape(CHAT_COMPLETIONS.path_suffix)}"
)
_COMPONENT_HEADER = "x-amzn-sagemaker-inference-component"


def route_of(method: str, path: str, operations: Sequence[Operation] = OPERATIONS) -> tuple[Operation, str]:
    """Return the operation and the endpoint's name of a request line.

    Args:
        method: the HTTP method.
        path: the path as on the request line, percent-encoded.
        operations: those that there are. Defaults to those over HTTP/1.1.

    Raises:
        ErrorReply: they match no operation.

    >>> operation, name = route_of("POST", "/endpoints/churn/invocations")
    >>> operation.name, name
    ('InvokeEndpoint', 'churn')
    """
    start, _, rest = path.removeprefix("/").partition("/")
    name, slash, suffix = rest.partition("/")
    operation = next((one for one in operations if one.path_suffix == slash + suffix), None)
    if method != "POST" or start != "endpoints" or not name or operation is None or not path.startswith("/"):
        raise ErrorReply(unknown_operation())
    return operation, unquote(name)


def is_openai_path(path: str) -> bool:
    """Return whether a path is one of the OpenAI route.

    >>> is_openai_path("/endpoints/llm/openai/v1/chat/completions"), is_openai_path("/endpoints/llm/invocations")
    (True, False)
    """
    return _OPENAI_PATH.fullmatch(path) is not None


def openai_route_of(
    method: str, path: str, headers: Mapping[str, str], body: bytes
) -> tuple[Operation, dict[str, str]]:
    """Return the operation of a request to the OpenAI route, and its members except the body.

    Args:
        method: the HTTP method.
        path: the path as on the request line, percent-encoded.
        headers: the request's headers, with names in lower case.
        body: the body, which says whether the answer is a stream.

    Raises:
        ErrorReply: another method, the header of an inference component, which this route has in its path, or an
            invalid name.
    """
    match = _OPENAI_PATH.fullmatch(path)
    if method != "POST" or match is None:
        raise ErrorReply(unknown_operation())
    if _COMPONENT_HEADER in headers:
        raise ErrorReply(
            validation_error("The OpenAI route takes the inference component from the path; its header is not allowed.")
        )
    given = {"EndpointName": match["name"], "InferenceComponentName": match["component"]}
    values = {name: unquote(value) for name, value in given.items() if value is not None}
    members = [member for member in CHAT_COMPLETIONS.members if member.name in values]
    faults = [
        _sentence(member, values[member.name], constraint)
        for member in members
        for constraint in _broken_constraints(member, values[member.name])
    ]
    if faults:
        raise ErrorReply(validation_error("; ".join(faults)))
    for name, header in (("ContentType", "content-type"), ("Accept", "accept")):
        if header in headers:
            values[name] = headers[header]
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None  # which the container refuses
    streams = isinstance(document, dict) and document.get("stream") is True
    return CHAT_COMPLETIONS_STREAM if streams else CHAT_COMPLETIONS, values


def read_parameters(operation: Operation, endpoint: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Return the members of a request except the body.

    Args:
        operation: the operation.
        endpoint: the endpoint's name from the path.
        headers: the request's headers, with names in lower case.

    Raises:
        ErrorReply: a ValidationError that lists every invalid member, in the service's words.

    >>> from aiosmrt._wire.operations import INVOKE_ENDPOINT
    >>> read_parameters(INVOKE_ENDPOINT, "churn", {"accept": "text/csv", "x-other": "1"})
    {'EndpointName': 'churn', 'Accept': 'text/csv'}
    """
    values: dict[str, str] = {}
    faults: list[str] = []
    for member in operation.members:
        if member.location == "uri":
            value: str | None = endpoint
        else:
            value = None if member.header is None else headers.get(member.header.lower())
        if value is not None:
            values[member.name] = value
            faults += [_sentence(member, value, constraint) for constraint in _broken_constraints(member, value)]
    if faults:
        count = f"{len(faults)} validation error{'s' if len(faults) > 1 else ''} detected: "
        raise ErrorReply(validation_error(count + "; ".join(faults)))
    return values


def _broken_constraints(member: Member, value: str) -> list[str]:
    rule = member.rule
    broken = []
    if rule.type == "integer":
        if not re.fullmatch(r"-?\d{1,18}", value):
            return ["Member must be an integer"]
        if rule.max is not None and int(value) > rule.max:
            broken.append(f"Member must have value less than or equal to {rule.max}")
        if rule.min is not None and int(value) < rule.min:
            broken.append(f"Member must have value greater than or equal to {rule.min}")
        return broken
    if rule.max is not None and len(value) > rule.max:
        broken.append(f"Member must have length less than or equal to {rule.max}")
    if rule.min is not None and len(value) < rule.min:
        broken.append(f"Member must have length greater than or equal to {rule.min}")
    if rule.pattern is not None and not _compiled(rule.pattern).fullmatch(value):
        broken.append(f"Member must satisfy regular expression pattern: {rule.pattern}")
    return broken


def _sentence(member: Member, value: str, constraint: str) -> str:
    name = member.name[0].lower() + member.name[1:]
    # the service omits the value of a sensitive member
    shown = "Value" if member.rule.sensitive else f"Value '{value}'"
    return f"{shown} at '{name}' failed to satisfy constraint: {constraint}"


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return full_pattern(pattern)
