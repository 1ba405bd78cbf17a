"""`RowCalls`: the call for one row, at the least cost.

What `Endpoint.predict` does beyond sending bytes and reading an answer (making a body, options of a single call, the
response as a dictionary) a row does not need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aiosmrt._core.call import NO_WAITS
from aiosmrt._frames import clear_locals
from aiosmrt._wire.operations import INVOKE_ENDPOINT
from aiosmrt.batch.requests import Row
from aiosmrt.endpoint import Endpoint
from aiosmrt.endpoint.bodies import in_thread
from aiosmrt.errors import AiosmrtError
from aiosmrt.serializers import OFF_LOOP_BYTES, Deserializer

__all__ = ["RowCalls"]

_OPERATION: Final = INVOKE_ENDPOINT.name


class RowCalls:
    """Calls an endpoint for one row at a time; what `aiosmrt.endpoint.Results` makes its calls with.

    Args:
        endpoint: where rows are sent.
        deserializer: reads the answers.
    """

    __slots__ = ("_call", "_deserialize", "_endpoint_name")

    def __init__(self, endpoint: Endpoint[Any, Any], deserializer: Deserializer[Any]) -> None:
        client = endpoint.client
        self._call = client._calls_with(client._head(endpoint.params))
        self._endpoint_name = endpoint.name
        self._deserialize: Callable[[bytes, str], Any] = deserializer.deserialize

    async def call(self, row: Row) -> tuple[Any, int, float, str | None]:
        """Make the call for a row; returns what an `Answer` has, which would take longer to make.

        Raises:
            AiosmrtError: the row's own, if it could not be made, or that of its call.
        """
        try:
            if row.error is not None:
                raise row.error  # noqa: TRY301 (as if it were the call's)
            call = self._call(row.body)
            reply = await call.run()
            headers, body = reply.headers, reply.body
            request_id = headers.get("x-amzn-requestid")
            try:
                content_type = headers.get("content-type", "")
                if len(body) <= OFF_LOOP_BYTES:
                    value = self._deserialize(body, content_type)
                else:
                    value = await in_thread(self._deserialize, body, content_type)
            except AiosmrtError as error:
                error.note_call(_OPERATION, self._endpoint_name)
                error.request_id = request_id
                error.attempts = call.sent
                raise
        except BaseException as error:
            # error trackers report locals
            row = call = reply = body = headers = None  # type: ignore[assignment]
            clear_locals(error)
            raise
        waited = call.waited
        return value, call.sent, waited.total_waiting if waited is not NO_WAITS else 0.0, request_id
