"""Requests before they are sent: an operation's codec, and what all requests with the same head have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from aiosmrt._core.admission import target_of
from aiosmrt._policy.retry import sdk_request
from aiosmrt._transport.base import Request, header_lines
from aiosmrt._wire.operations import Operation
from aiosmrt._wire.params import MAX_HEADS, Head, HeadBuilder
from aiosmrt._wire.replies import ReplyReader
from aiosmrt._wire.sigv4.signer import SignedRequest

if TYPE_CHECKING:
    from aiosmrt._core.client_core import ClientCore
    from aiosmrt._core.view import View

__all__ = ["OperationCodec", "RequestTemplate", "template_of"]

# What a call may name besides its endpoint and has its own capacity (the operation table has them as members).
_COMPONENT_HEADER: Final = "X-Amzn-SageMaker-Inference-Component"
_VARIANT_HEADER: Final = "X-Amzn-SageMaker-Target-Variant"


_new: Final = object.__new__


class OperationCodec:
    """An operation with what builds its requests and reads its replies.

    Args:
        operation: the operation.
    """

    __slots__ = ("has_payload", "heads", "openai", "operation", "reader", "streams")

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.heads = HeadBuilder(operation)
        self.reader = ReplyReader(operation)
        self.streams = operation.streams
        # whether it is authorized by a bearer token, and answered as OpenAI answers
        self.openai = operation.openai
        # whether a result has a body to read, rather than members of a JSON document
        self.has_payload = operation.status == 200


class RequestTemplate:
    """What all requests of a client or view with the same head have in common.

    Args:
        core: the client's core.
        view: the client's or view's settings.
        head: the checked request head.
        over_http2: whether the request goes to the service's HTTP/2 endpoint. Defaults to False.
    """

    __slots__ = (
        "_connect_timeout",
        "_max_response_bytes",
        "_read_timeout",
        "_resend",
        "_target",
        "first_lines",
        "head",
        "lines",
        "signed",
        "target",
    )

    def __init__(self, core: ClientCore, view: View, head: Head, *, over_http2: bool = False) -> None:
        self.head = head
        endpoint = core.http2_endpoint() if over_http2 else core.endpoint
        host = endpoint.host
        base_path = endpoint.path if over_http2 else core.base_path
        self.signed = SignedRequest("POST", host, base_path + head.path, "", head.headers)
        self.lines = header_lines(
            [
                ("Host", host),
                ("Accept-Encoding", "identity"),
                ("User-Agent", view.user_agent + core.user_agent_app),
                *head.headers,
            ]
        )
        self.first_lines = f"{self.lines}amz-sdk-request: {sdk_request(1, view.max_attempts)}\r\n"
        self._target = self.signed.path
        named = dict(head.headers)
        self.target = target_of(
            head.endpoint_name, head.component or named.get(_COMPONENT_HEADER), named.get(_VARIANT_HEADER)
        )
        self._max_response_bytes = view.max_response_bytes
        self._connect_timeout = view.connect_timeout
        self._read_timeout = view.read_timeout
        self._resend = view.retry.retry_stale_connections

    def request(self, headers: str, body: bytes | memoryview, renew_headers: Callable[[], Awaitable[str]]) -> Request:
        """A request for this head.

        Args:
            headers: all headers but ``Content-Length``, as lines.
            body: the body.
            renew_headers: returns ``headers`` with a new signature.
        """
        # Request's own constructor is a function in Python, which takes twice as long.
        request = _new(Request)
        request.target = self._target
        request.headers = headers
        request.body = body
        request.connect_timeout = self._connect_timeout
        request.read_timeout = self._read_timeout
        request.resend = self._resend
        request.renew_headers = renew_headers
        request.max_response_bytes = self._max_response_bytes
        return request


def template_of(core: ClientCore, view: View, head: Head, *, over_http2: bool = False) -> RequestTemplate:
    """The template of a head, made on first use; kept where the head is."""
    kept = view.templates
    # By identity, which is faster than by value; the head is kept with it, so that its identity stays its own.
    known = kept.get(id(head))
    if known is not None and known.head is head:
        return known
    if not view.settled:
        core.settle(view)
    template = RequestTemplate(core, view, head, over_http2=over_http2)
    if head.lasting:
        if len(kept) >= MAX_HEADS:
            kept.clear()
        kept[id(head)] = template
    return template
