"""From flags to request members: names, help, and the AWS CLI's ways of saying a value."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiosmrt._wire.operations import Member, Operation

__all__ = ["HELP", "ParameterError", "flag_name", "request_parameters", "skeleton"]


class ParameterError(Exception):
    """The value of a flag cannot be read; the AWS CLI's ParamError."""

    def __init__(self, flag: str, problem: str) -> None:
        super().__init__(f"Error parsing parameter '{flag}': {problem}")


HELP: Mapping[str, str] = {
    "EndpointName": "Endpoint to call.",
    "Body": "What the model gets: text, fileb://PATH, file://PATH, or - for standard input.",
    "ContentType": "Media type of the body.",
    "Accept": "Media type wanted back.",
    "CustomAttributes": "Value that is handed to the container as it is.",
    "TargetModel": "Model to use, of a multi-model endpoint.",
    "TargetVariant": "Production variant to use.",
    "TargetContainerHostname": "Container to use, of a multi-container endpoint.",
    "InferenceId": "Id under which captured data is stored.",
    "EnableExplanations": "JMESPath condition for explanations of an online explainer.",
    "InferenceComponentName": "Inference component to use.",
    "SessionId": "Stateful session to go on with; NEW_SESSION asks for one.",
    "PrefixAwareId": "Key by which requests that share a prefix reach the same instance.",
    "InputLocation": "S3 URI of the body.",
    "S3OutputPathExtension": "Path below the endpoint's S3 output path.",
    "Filename": "Name of the result's object in S3.",
    "RequestTTLSeconds": "How long the request may wait in the queue.",
    "InvocationTimeoutSeconds": "How long the model may take.",
}


def flag_name(member: str) -> str:
    """The AWS CLI's flag for a member.

    >>> [flag_name(name) for name in ("EndpointName", "RequestTTLSeconds", "S3OutputPathExtension")]
    ['--endpoint-name', '--request-ttl-seconds', '--s3-output-path-extension']
    """
    return "--" + re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", member).lower()


def request_parameters(
    operation: Operation, given: Mapping[str, str], *, input_json: str | None = None, text_is_base64: bool = False
) -> dict[str, Any]:
    """What the client is to be called with.

    Args:
        operation: whose members they are.
        given: the flags' values, by member.
        input_json: a JSON object of members that the flags add to, or ``file://`` and its file; None for none.
        text_is_base64: whether text for a blob is base64; ``fileb://`` and standard input are bytes in any case.

    Raises:
        ParameterError: a file cannot be read, or a value does not have its member's type.
    """
    parameters: dict[str, Any] = {}
    if input_json is not None:
        parameters.update(_members_in_json(operation, input_json, text_is_base64))
    for member in operation.members:
        if member.name in given:
            parameters[member.name] = _value(member, given[member.name], text_is_base64)
    return parameters


def skeleton(operation: Operation) -> dict[str, Any]:
    """Every member of the request with an empty value, to be filled in for ``--cli-input-json``."""
    empty = {"integer": 0, "blob": None}
    return {member.name: empty.get(member.rule.type, "") for member in operation.members}


def _value(member: Member, text: str, text_is_base64: bool) -> Any:
    flag = flag_name(member.name)
    if member.rule.type == "blob":
        if text == "-":
            return sys.stdin.buffer.read()
        if text.startswith("fileb://"):
            return _read(flag, text, "fileb://")
        return _blob(flag, _from_file(flag, text), text_is_base64)
    text = _from_file(flag, text)
    if member.rule.type == "integer":
        try:
            return int(text)
        except ValueError as error:
            raise ParameterError(flag, f"{text!r} is not a whole number") from error
    return text


def _blob(flag: str, text: str, text_is_base64: bool) -> bytes:
    if not text_is_base64:
        # An argument that is not valid UTF-8 arrives with surrogates, which stand for its own bytes.
        return text.encode(errors="surrogateescape")
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ParameterError(
            flag, "Invalid base64: give raw text with --cli-binary-format raw-in-base64-out"
        ) from error


def _from_file(flag: str, text: str) -> str:
    if not text.startswith("file://"):
        return text
    try:
        # Text mode, as in the AWS CLI: line ends become \n.
        return re.sub("\r\n?", "\n", _read(flag, text, "file://").decode())
    except UnicodeDecodeError as error:
        raise ParameterError(
            flag, f"Unable to load paramfile ({text}), its text is not UTF-8. For binary files, use fileb://"
        ) from error


def _read(flag: str, text: str, prefix: str) -> bytes:
    path = Path(os.path.expandvars(text.removeprefix(prefix))).expanduser()
    try:
        return path.read_bytes()
    except OSError as error:
        raise ParameterError(flag, f"Unable to load paramfile {text}: {error}") from error


def _members_in_json(operation: Operation, text: str, text_is_base64: bool) -> dict[str, Any]:
    flag = "--cli-input-json"
    try:
        document = json.loads(_from_file(flag, text))
    except ValueError as error:
        raise ParameterError(flag, f"Invalid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ParameterError(flag, "Invalid JSON: an object is needed")
    known = {member.name: member for member in operation.members}
    if unknown := [name for name in document if name not in known]:
        raise ParameterError(flag, f"Unknown members: {', '.join(unknown)}")
    return {
        name: _blob(flag, value, text_is_base64)
        if known[name].rule.type == "blob" and isinstance(value, str)
        else value
        for name, value in document.items()
    }
