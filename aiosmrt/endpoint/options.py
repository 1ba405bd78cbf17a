"""The options of a call: members of the operation under Python names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict

from aiosmrt._wire.operations import (
    INVOKE_ENDPOINT_ASYNC,
    INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM,
    INVOKE_ENDPOINT_WITH_RESPONSE_STREAM,
    Operation,
)
from aiosmrt.config import shown
from aiosmrt.errors import ParameterNameError, ParamValidationError

__all__ = ["CallOptions", "check_accepted", "merged"]


class CallOptions(TypedDict, total=False):
    """Options of a call besides its data: the operation's members under Python names.

    An `Endpoint` takes them as defaults for all calls, and each call takes them for itself. None drops a default.
    """

    content_type: str | None
    accept: str | None
    custom_attributes: str | None
    inference_id: str | None
    inference_component: str | None
    target_variant: str | None
    target_model: str | None
    target_container_hostname: str | None
    enable_explanations: str | None
    prefix_aware_id: str | None
    session_id: str | None


_MEMBERS: Final = {
    "content_type": "ContentType",
    "accept": "Accept",
    "custom_attributes": "CustomAttributes",
    "inference_id": "InferenceId",
    "inference_component": "InferenceComponentName",
    "target_variant": "TargetVariant",
    "target_model": "TargetModel",
    "target_container_hostname": "TargetContainerHostname",
    "enable_explanations": "EnableExplanations",
    "prefix_aware_id": "PrefixAwareId",
    "session_id": "SessionId",
}

# For each operation, the options that it does not accept, by their members.
_NOT_ACCEPTED: Final = {
    operation.name: {
        member: name for name, member in _MEMBERS.items() if member not in {known.name for known in operation.members}
    }
    for operation in (
        INVOKE_ENDPOINT_ASYNC,
        INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM,
        INVOKE_ENDPOINT_WITH_RESPONSE_STREAM,
    )
}


def merged(params: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Merge options into parameters under AWS's names, and drop those that are None.

    Raises:
        ParameterNameError: there is no such option; it is a TypeError, too.

    >>> merged({"EndpointName": "churn", "Accept": "text/csv"}, {"accept": None, "inference_id": "1"})
    {'EndpointName': 'churn', 'InferenceId': '1'}
    """
    unknown = [name for name in options if name not in _MEMBERS]
    if unknown:
        accepted = ", ".join(_MEMBERS)
        raise ParameterNameError(
            [f"unexpected keyword argument {shown(name)}; expected one of {accepted}" for name in unknown]
        )
    members = {**params, **{_MEMBERS[name]: value for name, value in options.items()}}
    return {name: value for name, value in members.items() if value is not None}


def check_accepted(operation: Operation, params: Mapping[str, Any]) -> None:
    """Refuse parameters that an operation does not accept, under the names that the caller knows.

    Raises:
        ParamValidationError: there are such parameters.
    """
    faults = [
        f"{operation.name} does not accept {name} ({member}); pass {name}=None to drop the endpoint's default"
        for member, name in _NOT_ACCEPTED[operation.name].items()
        if member in params
    ]
    if faults:
        raise ParamValidationError(faults)
