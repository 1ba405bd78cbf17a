"""`Inference`: an answer with what the service reports about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from aiosmrt.types import InvokeEndpointOutput

__all__ = ["Inference", "inference_of"]

Out = TypeVar("Out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference(Generic[Out]):
    """A model's answer and what the service reports about it.

    Attributes:
        value: the deserialized answer.
        content_type: the answer's media type, if the model named one.
        variant: the production variant that answered, if the service named it.
        custom_attributes: the CustomAttributes that the model set, if any.
        new_session_id: ``id; Expires=…`` if the call opened a session.
        closed_session_id: the session that the model closed with this answer, if any.
        request_id: the service's request id, if it sent one.
        attempts: how many requests were sent.
        latency: seconds from the call to its value, including waiting, attempts, back-off, and (de)serialization.
    """

    value: Out = field(repr=False)
    content_type: str | None
    variant: str | None
    custom_attributes: str | None = field(repr=False)
    new_session_id: str | None
    closed_session_id: str | None
    request_id: str | None
    attempts: int
    latency: float


def inference_of(value: Out, response: InvokeEndpointOutput, latency: float) -> Inference[Out]:
    """Combine an answer's value with the response that it came with.

    Args:
        value: the deserialized answer.
        response: the response.
        latency: seconds that the call took.
    """
    metadata = response["ResponseMetadata"]
    return Inference(
        value=value,
        content_type=response.get("ContentType"),
        variant=response.get("InvokedProductionVariant"),
        custom_attributes=response.get("CustomAttributes"),
        new_session_id=response.get("NewSessionId"),
        closed_session_id=response.get("ClosedSessionId"),
        request_id=metadata.get("RequestId"),
        attempts=metadata["RetryAttempts"] + 1,
        latency=latency,
    )
