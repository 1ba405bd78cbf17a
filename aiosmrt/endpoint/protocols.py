"""What an endpoint needs of its client.

The client makes endpoints, so an endpoint cannot import it, not even for its type; it is passed an object with these
methods.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from aiosmrt._aws.s3 import ObjectStore
from aiosmrt._core.body import DeferredBody
from aiosmrt.config import Unset
from aiosmrt.errors import Waited
from aiosmrt.events import Observer

if TYPE_CHECKING:
    from aiosmrt._core.admission import MaxConcurrency
    from aiosmrt._core.call import Call
    from aiosmrt._core.duplex import BidirectionalStream
    from aiosmrt._wire.params import Head
    from aiosmrt.client import ClientStatistics
    from aiosmrt.types import Body, InvokeEndpointOutput

T = TypeVar("T")

__all__ = ["EndpointClient", "Requester", "StorageClient"]


class Requester(Protocol):
    """Calls operations by AWS's names."""

    async def make_request(self, operation_name: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """See `aiosmrt.Client.make_request`."""
        ...


class StorageClient(Requester, Protocol):
    """Also gives access to S3."""

    @property
    def _has_deadline(self) -> bool: ...

    @property
    def _max_response_bytes(self) -> int | None: ...

    async def _object_store(self) -> ObjectStore: ...

    def _now(self) -> float: ...

    async def _before_deadline(
        self, began: float, operation_name: str, endpoint_name: str, work: Awaitable[T], reason: str = ...
    ) -> T: ...

    async def _request_since(self, began: float, operation_name: str, params: Mapping[str, Any]) -> dict[str, Any]: ...


class EndpointClient(StorageClient, Protocol):
    """The client of an `Endpoint`."""

    @property
    def max_concurrency(self) -> int:
        """See `aiosmrt.Client.max_concurrency`."""
        ...

    def with_options(
        self,
        *,
        read_timeout: float | Unset | None = ...,
        deadline: float | Unset | None = ...,
        patience: float | Unset | None = ...,
        wait_for_capacity: float | Unset | None = ...,
        max_concurrency: MaxConcurrency | Unset = ...,
    ) -> Self:
        """See `aiosmrt.Client.with_options`."""
        ...

    def statistics(self) -> ClientStatistics:
        """See `aiosmrt.Client.statistics`."""
        ...

    def invoke_endpoint_with_bidirectional_stream(
        self,
        *,
        EndpointName: str,
        TargetVariant: str | None = ...,
        ModelInvocationPath: str | None = ...,
        ModelQueryString: str | None = ...,
        max_resend_bytes: int = ...,
        pin_credentials: bool = ...,
    ) -> BidirectionalStream:
        """See `aiosmrt.Client.invoke_endpoint_with_bidirectional_stream`."""
        ...

    async def _invoke(
        self,
        params: Mapping[str, Any],
        body: Body | DeferredBody,
        head: Head | None = None,
        began: float | None = None,
        before: str = ...,
    ) -> tuple[InvokeEndpointOutput, Waited]: ...

    def _calls_with(self, head: Head) -> Callable[[bytes], Call]: ...

    def _head(self, params: Mapping[str, Any]) -> Head: ...

    def _check(self, operation_name: str, params: Mapping[str, Any]) -> None: ...

    def _for_job(self, patience: float | Unset | None) -> Self: ...

    def _observed_by(self, observer: Observer) -> Self: ...
