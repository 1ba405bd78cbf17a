"""Request members as options: their names, their help, and the parsing of their values as in the AWS CLI."""

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

from aiosmrt._extras import installed
from aiosmrt._wire.operations import Member, Operation

__all__ = ["HELP", "ParameterError", "option_name", "request_parameters", "skeleton"]


class ParameterError(Exception):
    """The value of an option is invalid; corresponds to the AWS CLI's ParamError."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"Error parsing parameter '{option}': {problem}")


HELP: Mapping[str, str] = {
    "EndpointName": "Endpoint to call.",
    "Body": "Input of the model: text, fileb://PATH, file://PATH, or - for standard input.",
    "ContentType": "Media type of the body.",
    "Accept": "Media type of the response.",
    "CustomAttributes": "Value that is passed to the container unchanged.",
    "TargetModel": "Model of a multi-model endpoint.",
    "TargetVariant": "Production variant.",
    "TargetContainerHostname": "Container of a multi-container endpoint.",
    "InferenceId": "Id of the inference in captured data.",
    "EnableExplanations": "JMESPath condition for an explanation by an online explainer.",
    "InferenceComponentName": "Inference component.",
    "SessionId": "Id of a stateful session; NEW_SESSION starts one.",
    "PrefixAwareId": "Key that routes requests with the same prefix to the same instance.",
    "ModelInvocationPath": "Path of the container's WebSocket, without a leading slash.",
    "ModelQueryString": "Query of the container's WebSocket, without ?.",
    "InputLocation": "S3 URI of the input.",
    "S3OutputPathExtension": "Path appended to the endpoint's S3 output path.",
    "Filename": "Name of the S3 object for the result.",
    "RequestTTLSeconds": "Maximum time in the queue, in seconds.",
    "InvocationTimeoutSeconds": "Maximum time of the inference, in seconds.",
}


def option_name(member: str) -> str:
    """Return the AWS CLI's option for a member.

    >>> [option_name(name) for name in ("EndpointName", "RequestTTLSeconds", "S3OutputPathExtension")]
    ['--endpoint-name', '--request-ttl-seconds', '--s3-output-path-extension']
    """
    return "--" + re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", member).lower()


def request_parameters(
    operation: Operation,
    given: Mapping[str, str],
    *,
    input_json: str | None = None,
    input_yaml: str | None = None,
    text_is_base64: bool = False,
) -> dict[str, Any]:
    """Parse the parameters of a call.

    Args:
        operation: the operation.
        given: the values of options, by member.
        input_json: a JSON object of members, or the ``file://`` URL of one. Options override its members.
        input_yaml: the same in YAML, where ``!!binary`` marks bytes. Only one of the two may be given.
        text_is_base64: whether text for a blob is base64; ``fileb://`` and standard input are always raw bytes.

    Raises:
        ParameterError: a file cannot be read, or a value does not have its member's type.
        ConfigurationError: PyYAML is not installed.
    """
    parameters: dict[str, Any] = {}
    if input_json is not None and input_yaml is not None:
        raise ParameterError("--cli-input-yaml", "only one of --cli-input-json and --cli-input-yaml may be given")
    if input_json is not None:
        document = _parse_json("--cli-input-json", input_json)
        parameters.update(_checked("--cli-input-json", operation, document, text_is_base64))
    if input_yaml is not None:
        document = _parse_yaml("--cli-input-yaml", input_yaml)
        parameters.update(_checked("--cli-input-yaml", operation, document, text_is_base64))
    for member in operation.members:
        if member.name in given:
            parameters[member.name] = _value(member, given[member.name], text_is_base64)
    return parameters


def skeleton(operation: Operation) -> dict[str, Any]:
    """Return all members with empty values, as a template for ``--cli-input-json`` or ``--cli-input-yaml``."""
    empty = {"integer": 0, "blob": None}
    return {member.name: empty.get(member.rule.type, "") for member in operation.members}


def _value(member: Member, text: str, text_is_base64: bool) -> Any:
    option = option_name(member.name)
    if member.rule.type == "blob":
        if text == "-":
            return sys.stdin.buffer.read()
        if text.startswith("fileb://"):
            return _read(option, text, "fileb://")
        return _blob(option, _expand(option, text), text_is_base64)
    text = _expand(option, text)
    if member.rule.type == "integer":
        try:
            return int(text)
        except ValueError as error:
            raise ParameterError(option, f"{text!r} is not an integer") from error
    return text


def _blob(option: str, text: str, text_is_base64: bool) -> bytes:
    if not text_is_base64:
        # In an argument that is not valid UTF-8, surrogates stand for the original bytes.
        try:
            return text.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            problem = "the text contains lone surrogates and cannot be encoded as UTF-8"
            raise ParameterError(option, problem) from None
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ParameterError(
            option, "Invalid base64; for raw text, use --cli-binary-format raw-in-base64-out"
        ) from error


def _expand(option: str, text: str) -> str:
    if not text.startswith("file://"):
        return text
    try:
        # As in the AWS CLI, which reads in text mode.
        return re.sub("\r\n?", "\n", _read(option, text, "file://").decode())
    except UnicodeDecodeError as error:
        raise ParameterError(
            option, f"Unable to load paramfile ({text}), its text is not UTF-8. For binary files, use fileb://"
        ) from error


def _read(option: str, text: str, prefix: str) -> bytes:
    path = Path(os.path.expandvars(text.removeprefix(prefix))).expanduser()
    try:
        return path.read_bytes()
    except OSError as error:
        raise ParameterError(option, f"Unable to load paramfile {text}: {error}") from error


def _parse_json(option: str, text: str) -> Any:
    try:
        return json.loads(_expand(option, text))
    except RecursionError:
        raise ParameterError(option, "Invalid JSON: nested too deeply") from None
    except ValueError as error:
        raise ParameterError(option, f"Invalid JSON: {error}") from error


def _parse_yaml(option: str, text: str) -> Any:
    yaml = installed("yaml", "cli")
    try:
        return yaml.safe_load(_expand(option, text))
    except RecursionError:
        raise ParameterError(option, "Invalid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        # PyYAML's message quotes the document.
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        problem = f"Invalid YAML{where}"
    raise ParameterError(option, problem)


def _checked(option: str, operation: Operation, document: Any, text_is_base64: bool) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise ParameterError(option, "must be an object of members")
    known = {member.name: member for member in operation.members}
    if unknown := [str(name) for name in document if name not in known]:
        raise ParameterError(option, f"Unknown members: {', '.join(unknown)}")
    return {
        name: _blob(option, value, text_is_base64)
        if known[name].rule.type == "blob" and isinstance(value, str)
        else value
        for name, value in document.items()
    }
