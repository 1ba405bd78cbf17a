"""Parses a request's path and headers to the operation's members, with the service's validation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from urllib.parse import unquote

from aiosmrt._wire.operations import OPERATIONS, Member, Operation
from aiosmrt._wire.params import full_pattern
from aiosmrt.local.error_responses import ErrorReply, unknown_operation, validation_error

__all__ = ["read_parameters", "route_of"]


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
