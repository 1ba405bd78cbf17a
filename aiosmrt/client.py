"""The client: SageMaker Runtime's operations under AWS's names, shaped like aiobotocore's client."""

# This module is the client's surface: arguments, results, views, facts. What a call does is in `aiosmrt._core.call`;
# what a client and its views share is in `aiosmrt._core.client_core`.

from __future__ import annotations

import asyncio
import inspect
import os
import platform
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Never, NoReturn, Self, TypeVar, Unpack, cast

from aiosmrt._aws.credentials import CredentialsCache
from aiosmrt._aws.providers import provider_for
from aiosmrt._core.admission import LimiterStatistics, MaxConcurrency
from aiosmrt._core.bearer import TOKEN_SECONDS, BearerToken, bearer_token_of
from aiosmrt._core.body import DeferredBody
from aiosmrt._core.call import Call, deadline_exceeded
from aiosmrt._core.client_core import ClientCore
from aiosmrt._core.deadline import OverdueError, within
from aiosmrt._core.meta import ClientConfig, ClientExceptions, ClientMeta
from aiosmrt._core.observe import report
from aiosmrt._core.view import View
from aiosmrt._frames import clear_locals
from aiosmrt._version import __version__
from aiosmrt._wire.operations import API_VERSION, BY_NAME, CHAT_COMPLETIONS, CHAT_COMPLETIONS_STREAM, OPERATIONS
from aiosmrt._wire.sigv4.canonical import MAX_EXPIRES_IN
from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.config import DEFAULT_PATIENCE, JOB_PATIENCE, UNSET, RetryPolicy, Unset, shown
from aiosmrt.errors import (
    ApiVersionNotFoundError,
    OperationNotPageableError,
    ParamValidationError,
    UnknownClientMethodError,
    Waited,
)
from aiosmrt.events import Observer

if TYPE_CHECKING:
    import aiohttp

    from aiosmrt._aws.providers import CredentialsFunction, FrozenCredentialsSource
    from aiosmrt._aws.s3 import ObjectStore
    from aiosmrt._core.duplex import BidirectionalStream
    from aiosmrt._transport.factory import TransportName
    from aiosmrt._wire.params import Head
    from aiosmrt.endpoint import CallOptions, Endpoint
    from aiosmrt.serializers import Deserializer, Serializer
    from aiosmrt.types import (
        Body,
        InvokeEndpointAsyncOutput,
        InvokeEndpointOutput,
        InvokeEndpointWithResponseStreamOutput,
    )

__all__ = ["Client", "ClientStatistics"]

T = TypeVar("T")
In = TypeVar("In")
Out = TypeVar("Out")
Operation = TypeVar("Operation", bound=Callable[..., Any])

_METHODS = {operation.method: operation.name for operation in OPERATIONS}


def _names_missing_parameters(operation: Operation) -> Operation:
    """Have the checks name a parameter that is missing, in place of Python's TypeError for the first one.

    Type checkers and `inspect.signature` see the signature as it is written.
    """
    function: Any = operation
    function.__signature__ = inspect.signature(function)  # as it is written, for help() and editors
    optional = {name: None for name in ("EndpointName", "Body") if name in function.__annotations__}
    function.__kwdefaults__ = {**optional, **function.__kwdefaults__}
    return operation


class ClientStatistics(NamedTuple):
    """A client's numbers at one moment; a client and its views count together.

    A view with its own ``max_concurrency`` has its own ``in_use``, ``waiting`` and ``endpoints``.

    Args:
        in_use: calls and streams that hold a slot under ``max_concurrency`` now.
        waiting: calls that wait for one.
        calls: calls begun.
        attempts: requests sent.
        retries: repeated requests, by cause; ``"no_capacity"`` for those of calls that waited for capacity.
        throttles: answers by which the service asked for less load.
        bytes_sent: bytes of request bodies, retries included.
        bytes_received: bytes of response bodies; of streams, the payload.
        endpoints: slots, waiting calls and health of each endpoint of this client or view.
        failures: failed attempts, by the error's class.
        waited: seconds that calls have waited, by what for: ``"slot"``, ``"probe"`` (a target that was ill to recover),
            ``"capacity"``, ``"back_off"``, ``"rate"`` (retry mode ``adaptive``).
    """

    in_use: int
    waiting: int
    calls: int
    attempts: int
    retries: Mapping[str, int]
    throttles: int
    bytes_sent: int
    bytes_received: int
    endpoints: Mapping[str, LimiterStatistics]
    failures: Mapping[str, int] = MappingProxyType({})
    waited: Mapping[str, float] = MappingProxyType({})

    def as_dict(self) -> dict[str, Any]:
        """The same as dictionaries, numbers and strings alone, such as for JSON."""
        return {
            **self._asdict(),
            "retries": dict(self.retries),
            "endpoints": {name: limits._asdict() for name, limits in self.endpoints.items()},
            "failures": dict(self.failures),
            "waited": dict(self.waited),
        }


class Client:
    """Calls Amazon SageMaker endpoints.

    Making one does no I/O and needs no running loop; files, environment and credentials are read at the first call. It
    belongs to the event loop of that call. Use ``async with``, or ``await client.close()`` in the end.

    Args:
        region_name: AWS region. Defaults to ``AWS_DEFAULT_REGION``, ``AWS_REGION``, then the profile's.
        endpoint_url: the service's URL in place of AWS's, such as a local runtime's. Defaults to
            ``AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME``, ``AWS_ENDPOINT_URL`` and the profile's, then the region's.
        s3_endpoint_url: the URL of the S3 that holds the results of asynchronous inferences, such as an
            `aiosmrt.local.ObjectServer`'s. Defaults to ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL`` and the profile's,
            then the region's.
        http2_endpoint_url: the URL of the service's HTTP/2 endpoint, which carries bidirectional streams; ``http``
            means HTTP/2 without TLS. Defaults to ``AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME_HTTP2``, then the service's host
            at port 8443.
        profile_name: profile of the AWS configuration files. Defaults to ``AWS_PROFILE``, then ``default``.
        aws_access_key_id: static credentials, with the two that follow. Defaults to the provider chain.
        aws_secret_access_key: the secret key of ``aws_access_key_id``.
        aws_session_token: the token of temporary credentials.
        credentials: credentials in place of the provider chain: `aiosmrt.Credentials`, an async callable that returns
            them, or a botocore or aiobotocore credentials object. Defaults to the provider chain.
        api_version: ``"2017-05-13"``, the only version of this API, or None.
        verify: True checks certificates against the authorities of ``AWS_CA_BUNDLE``, the profile's ``ca_bundle`` or
            ``REQUESTS_CA_BUNDLE``, or else the system's; False checks nothing; a path names a file of authorities, or a
            folder of them (not for S3); an ``ssl.SSLContext`` is used as it is (for neither S3 nor HTTP/2).
        connect_timeout: seconds for a new connection, TLS included. If None, no limit.
        read_timeout: seconds that the service may take for the head of its response, and then be silent. If None, no
            limit. The model has 60 s to answer, and AWS asks for 70 here (API reference, InvokeEndpoint).
        deadline: seconds for a whole call: reading the body, waiting for a slot and for the service, attempts and
            back-off; for a stream, everything up to the response's head. If None, no limit.
        patience: seconds after a call's first failure for which it waits and is sent again while the service throttles,
            fails or cannot be reached; then the last failure is raised. While nothing gets through, one call probes now
            and then, and the others wait for it without slots. 0 fails at once; None waits until the deadline, and
            without end if the call lacks one. Defaults to 20, or to the ``deadline`` if given. AWS's retry modes count
            attempts and ignore patience.
        wait_for_capacity: seconds that a call waits, in all, while its inference component is scaled to zero and scales
            out, in the same way. If None, a NoCapacityError is raised at once.
        max_concurrency: most calls in flight for each endpoint, inference component and variant; further ones wait in
            the order they came. Throttling lowers the number that is in use, success raises it again. ``"adaptive"`` or
            an `aiosmrt.AdaptiveLimit` finds the number for each of them.
        max_waiting: calls that may wait for each endpoint, inference component and variant; a further one fails at once
            with a TooManyWaitingError. If None, no limit.
        max_response_bytes: largest response body to accept, bytes, answers of asynchronous inference in S3 included; a
            larger one is a ResponseStreamingError and is not tried again. Streams are not limited, and of errors 64 KiB
            are kept. If None, no limit.
        retry: when to try again; a `RetryPolicy`, or the ``retries`` dictionary of botocore's ``Config``.
        sign: whether requests are signed. False needs no credentials, and no region if ``endpoint_url`` is given.
        user_agent_extra: text to append to the ``User-Agent`` header.
        use_fips_endpoint: whether to call the FIPS endpoint. Defaults to ``AWS_USE_FIPS_ENDPOINT``, then the profile's.
        use_dualstack_endpoint: whether to call the dual-stack endpoint. Defaults to ``AWS_USE_DUALSTACK_ENDPOINT``,
            then the profile's.
        session: your own ``aiohttp.ClientSession``, which is used as it is, ``verify`` aside, and not closed. It lacks
            two things. Its pool does not notice data that arrive on an idle connection, which a faulty service or proxy
            could make the next call's response. And interim responses or chunk extensions without end keep restarting
            ``read_timeout``, so that only a ``deadline`` ends such a call. If None, one is created when it is needed.
        transport: ``"pooled"`` is fast, and uses aiohttp for making connections only; ``"session"`` sends through an
            ``aiohttp.ClientSession``. Defaults to the first, unless a ``session`` is given or the environment names a
            proxy.
        observers: callables that get each `aiosmrt.events` record.

    Raises:
        ParamValidationError: an argument is out of its range.
        ApiVersionNotFoundError: another ``api_version``.
        PartialCredentialsError: one of access key and secret key without the other.

    >>> client = Client(region_name="eu-central-1")
    >>> client
    <aiosmrt.Client region_name='eu-central-1'>
    """

    def __init__(
        self,
        region_name: str | None = None,
        *,
        endpoint_url: str | None = None,
        s3_endpoint_url: str | None = None,
        http2_endpoint_url: str | None = None,
        profile_name: str | None = None,
        aws_access_key_id: str | None = None,
        aws_secret_access_key: str | None = None,
        aws_session_token: str | None = None,
        credentials: Credentials | FrozenCredentialsSource | CredentialsFunction | None = None,
        api_version: str | None = None,
        verify: bool | str | os.PathLike[str] | ssl.SSLContext = True,
        connect_timeout: float | None = 5.0,
        read_timeout: float | None = 70.0,
        deadline: float | None = None,
        patience: float | Unset | None = UNSET,
        wait_for_capacity: float | None = None,
        max_concurrency: MaxConcurrency = 100,
        max_waiting: int | None = None,
        max_response_bytes: int | None = None,
        retry: RetryPolicy | Mapping[str, Any] = RetryPolicy(),  # noqa: B008 (frozen)
        sign: bool = True,
        user_agent_extra: str | None = None,
        use_fips_endpoint: bool | None = None,
        use_dualstack_endpoint: bool | None = None,
        session: aiohttp.ClientSession | None = None,
        transport: TransportName | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        try:
            _check_api_version(api_version)
            _check_types(
                str,
                region_name=region_name,
                endpoint_url=endpoint_url,
                s3_endpoint_url=s3_endpoint_url,
                http2_endpoint_url=http2_endpoint_url,
                profile_name=profile_name,
                aws_access_key_id=aws_access_key_id,
                aws_secret_access_key=aws_secret_access_key,
                aws_session_token=aws_session_token,
            )
            _check_types(bool, use_fips_endpoint=use_fips_endpoint, use_dualstack_endpoint=use_dualstack_endpoint)
            checked_observers = _observers(observers)
            self._region_name = region_name
            self._endpoint_url = endpoint_url
            self._core = ClientCore(
                settings={
                    "region_name": region_name,
                    "endpoint_url": endpoint_url,
                    "profile_name": profile_name,
                    "use_fips_endpoint": use_fips_endpoint,
                    "use_dualstack_endpoint": use_dualstack_endpoint,
                    "sign": sign,
                },
                credentials=CredentialsCache(
                    provider_for(
                        access_key=aws_access_key_id,
                        secret_key=aws_secret_access_key,
                        session_token=aws_session_token,
                        credentials=credentials,
                        profile_name=profile_name,
                        region_name=region_name,
                    ),
                    observer=partial(report, checked_observers),
                ),
                s3_endpoint_url=s3_endpoint_url,
                http2_endpoint_url=http2_endpoint_url,
                verify=verify,
                session=session,
                transport=transport,
            )
            self._view = View(
                connect_timeout=connect_timeout,
                read_timeout=read_timeout,
                deadline=deadline,
                patience=patience,
                wait_for_capacity=wait_for_capacity,
                max_waiting=max_waiting,
                max_response_bytes=max_response_bytes,
                retry=_policy(retry),
                sign=sign,
                user_agent=_user_agent(user_agent_extra),
                observers=checked_observers,
                admissions=self._core.new_admissions(max_concurrency),
            )
            self._is_view = False
        except BaseException as error:
            # Error trackers report locals, and a client that is half made has no representation.
            del self, aws_access_key_id, aws_secret_access_key, aws_session_token, credentials
            clear_locals(error)
            raise

    def __repr__(self) -> str:
        facts = [f"region_name={self._region_name!r}"] if self._region_name is not None else []
        if self._endpoint_url is not None:
            facts.append(f"endpoint_url={self._endpoint_url!r}")
        if self._is_view:
            facts.append("view")
        if self._core.closed:
            facts.append("closed")
        return f"<aiosmrt.Client {' '.join(facts)}>" if facts else "<aiosmrt.Client>"

    # The operations

    @_names_missing_parameters
    async def invoke_endpoint(
        self,
        *,
        EndpointName: str,
        Body: Body,
        ContentType: str | None = None,
        Accept: str | None = None,
        CustomAttributes: str | None = None,
        TargetModel: str | None = None,
        TargetVariant: str | None = None,
        TargetContainerHostname: str | None = None,
        InferenceId: str | None = None,
        EnableExplanations: str | None = None,
        InferenceComponentName: str | None = None,
        SessionId: str | None = None,
        PrefixAwareId: str | None = None,
        **unknown: Never,
    ) -> InvokeEndpointOutput:
        """Get an inference from the model behind an endpoint.

        Arguments, limits and results are those of AWS's InvokeEndpoint; None leaves one out. ``Body`` may be bytes, a
        bytearray, a memoryview, a str (sent as UTF-8) or a seekable binary file, which is read from its position to
        its end without blocking the loop. The response body is received before this returns.

        Raises:
            ParamValidationError: before anything is sent; it names every fault. If a parameter is missing or unknown,
                it is a ParameterNameError, which is a TypeError too.
            ServiceError: the service answered with an error, as one of its subclasses where the model names it.
            TransportError: no response, or one that broke off.
            DeadlineExceededError: the ``deadline`` passed.
        """
        codec = self._core.codecs["InvokeEndpoint"]
        try:
            head = codec.heads.head(
                (
                    EndpointName,
                    ContentType,
                    Accept,
                    CustomAttributes,
                    TargetModel,
                    TargetVariant,
                    TargetContainerHostname,
                    InferenceId,
                    EnableExplanations,
                    InferenceComponentName,
                    SessionId,
                    PrefixAwareId,
                ),
                Body,
                unknown,
            )
            call = Call(self._core, self._view, codec, head, Body)
            del head
        finally:
            # error trackers report locals
            del Body, CustomAttributes, unknown
        result: InvokeEndpointOutput = call.result(await call.run())
        return result

    @_names_missing_parameters
    async def invoke_endpoint_async(
        self,
        *,
        EndpointName: str,
        ContentType: str | None = None,
        Accept: str | None = None,
        CustomAttributes: str | None = None,
        InferenceId: str | None = None,
        InputLocation: str | None = None,
        S3OutputPathExtension: str | None = None,
        Filename: str | None = None,
        RequestTTLSeconds: int | None = None,
        InvocationTimeoutSeconds: int | None = None,
        Body: Body | None = None,
        **unknown: Never,
    ) -> InvokeEndpointAsyncOutput:
        """Queue an inference at an asynchronous endpoint.

        Arguments, limits and results are those of AWS's InvokeEndpointAsync; None leaves one out. Exactly one of
        ``InputLocation`` (``s3://`` or ``https://``) and ``Body`` (up to 128,000 bytes) must be given.

        Raises:
            ParamValidationError: before anything is sent; it names every fault.
            ServiceError, TransportError, DeadlineExceededError: as in `invoke_endpoint`.
        """
        codec = self._core.codecs["InvokeEndpointAsync"]
        try:
            head = codec.heads.head(
                (
                    EndpointName,
                    ContentType,
                    Accept,
                    CustomAttributes,
                    InferenceId,
                    InputLocation,
                    S3OutputPathExtension,
                    Filename,
                    RequestTTLSeconds,
                    InvocationTimeoutSeconds,
                ),
                Body,
                unknown,
            )
            call = Call(self._core, self._view, codec, head, Body)
            del head
        finally:
            # error trackers report locals
            del Body, CustomAttributes, unknown
        result: InvokeEndpointAsyncOutput = call.result(await call.run())
        return result

    @_names_missing_parameters
    async def invoke_endpoint_with_response_stream(
        self,
        *,
        EndpointName: str,
        Body: Body,
        ContentType: str | None = None,
        Accept: str | None = None,
        CustomAttributes: str | None = None,
        TargetVariant: str | None = None,
        TargetContainerHostname: str | None = None,
        InferenceId: str | None = None,
        InferenceComponentName: str | None = None,
        SessionId: str | None = None,
        PrefixAwareId: str | None = None,
        **unknown: Never,
    ) -> InvokeEndpointWithResponseStreamOutput:
        """Get an inference as a stream of parts, each yielded as it arrives.

        Arguments, limits and results are those of AWS's InvokeEndpointWithResponseStream; None leaves one out. Iterate
        over ``result["Body"]``, best inside ``async with``, which closes the connection if the block exits early.

        Raises:
            ParamValidationError: before anything is sent; it names every fault.
            ServiceError, TransportError, DeadlineExceededError: as in `invoke_endpoint`. The iteration
                raises what fails after the response's head, see `aiosmrt.EventStream`.
        """
        codec = self._core.codecs["InvokeEndpointWithResponseStream"]
        try:
            head = codec.heads.head(
                (
                    EndpointName,
                    ContentType,
                    Accept,
                    CustomAttributes,
                    TargetVariant,
                    TargetContainerHostname,
                    InferenceId,
                    InferenceComponentName,
                    SessionId,
                    PrefixAwareId,
                ),
                Body,
                unknown,
            )
            call = Call(self._core, self._view, codec, head, Body)
            del head
        finally:
            # error trackers report locals
            del Body, CustomAttributes, unknown
        result: InvokeEndpointWithResponseStreamOutput = call.result(await call.run())
        return result

    @_names_missing_parameters
    def invoke_endpoint_with_bidirectional_stream(
        self,
        *,
        EndpointName: str,
        TargetVariant: str | None = None,
        ModelInvocationPath: str | None = None,
        ModelQueryString: str | None = None,
        max_resend_bytes: int = 2**20,
        pin_credentials: bool = True,
        **unknown: Never,
    ) -> BidirectionalStream:
        """Talk with the model: messages go in both directions at once, over HTTP/2.

        Needs the extra ``http2``. Enter the result with ``async with``; see `aiosmrt.BidirectionalStream`.

        Args:
            EndpointName: the endpoint.
            TargetVariant: the production variant. If None, the service chooses.
            ModelInvocationPath: the path at the container, without a leading slash, up to 100 characters. If None,
                ``invocations-bidirectional-stream``.
            ModelQueryString: the query at the container, without ``?``, up to 2,048 characters.
            max_resend_bytes: how much of what was sent is kept until the first part arrives. If an attempt fails before
                that, what was sent so far is sent again; above this size the call is not repeated. Defaults to 1 MiB.
            pin_credentials: whether all messages of a stream are signed with the credentials of its request. If False,
                with those of the moment; whether AWS accepts that is not documented. Defaults to True.

        Raises:
            ParamValidationError: before anything is sent; it names every fault.

        >>> client = Client("eu-central-1")
        >>> client.invoke_endpoint_with_bidirectional_stream(EndpointName="speech")
        <BidirectionalStream idle>
        """
        # loaded with the first one
        from aiosmrt._core.duplex import BidirectionalStream, DuplexCall, duplex_faults

        codec = self._core.codecs["InvokeEndpointWithBidirectionalStream"]
        values = (EndpointName, TargetVariant, ModelInvocationPath, ModelQueryString)
        try:
            faults = duplex_faults(unknown, max_resend_bytes=max_resend_bytes, pin_credentials=pin_credentials)
            head = codec.heads.head(values, b"", unknown, faults)
            return BidirectionalStream(
                DuplexCall(
                    self._core,
                    self._view,
                    codec,
                    head,
                    max_resend_bytes=max_resend_bytes,
                    pin_credentials=pin_credentials,
                )
            )
        finally:
            # error trackers report locals
            del ModelQueryString, unknown, values

    async def make_request(self, operation_name: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call an operation by AWS's name.

        Args:
            operation_name: such as ``"InvokeEndpoint"``.
            params: its parameters under AWS's names. Defaults to no parameters.

        Raises:
            ParamValidationError: an unknown operation, or as the operation's own method.
            ServiceError, TransportError, DeadlineExceededError: as in `invoke_endpoint`.
        """
        if operation_name not in BY_NAME:
            raise ParamValidationError(
                [f"Unknown operation: {shown(operation_name)}, must be one of: {', '.join(BY_NAME)}"]
            )
        try:
            call = self._new_call(operation_name, _named(params))
        finally:
            del params
        result: dict[str, Any] = call.result(await call.run())
        return result

    async def _request_since(self, began: float, operation_name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Do what `make_request` does, in a call that has begun before.

        Args:
            began: when, by the client's clock; see `_now`.
            operation_name: the API operation.
            params: its parameters under AWS's names.
        """
        try:
            call = self._new_call(operation_name, params, began=began)
        finally:
            del params
        result: dict[str, Any] = call.result(await call.run())
        return result

    def _now(self) -> float:
        """The time in seconds by the clock of deadlines."""
        return self._core.clock()

    async def _before_deadline(
        self, began: float, operation_name: str, endpoint_name: str, work: Awaitable[T], reason: str = "body"
    ) -> T:
        """The result of work that belongs to a call and comes before its request.

        Args:
            began: when the call began, by the client's clock; see `_now`.
            operation_name: the operation that an error names.
            endpoint_name: the endpoint that an error names.
            work: makes the result.
            reason: what for, as a member of `Waited`.

        Raises:
            DeadlineExceededError: the call's deadline has passed.
        """
        deadline, clock = self._view.deadline, self._core.clock
        try:
            return await within(None if deadline is None else began + deadline - clock(), work)
        except OverdueError:
            pass
        finally:
            del work
        error = deadline_exceeded(deadline, Waited(**{reason: clock() - began}))
        error.note_call(operation_name, endpoint_name)
        try:
            raise error
        finally:
            del error

    async def generate_presigned_url(
        self,
        ClientMethod: str,
        Params: Mapping[str, Any] | None = None,
        ExpiresIn: int = 3600,
        HttpMethod: str | None = None,
    ) -> str:
        """Sign a URL with which a caller without credentials can make one call.

        That caller must send the same body, and the headers that the parameters stand for.

        Args:
            ClientMethod: the client's method, such as ``"invoke_endpoint"``.
            Params: its parameters under AWS's names. Defaults to no parameters.
            ExpiresIn: seconds for which the URL is valid, 1 to 604,800.
            HttpMethod: the HTTP method. Defaults to the operation's, which is POST.

        Raises:
            ParamValidationError: an unknown method, as botocore's UnknownClientMethodError, or faulty parameters.
            NoCredentialsError, NoRegionError: there is nothing to sign with.
        """
        if not isinstance(ClientMethod, str) or ClientMethod not in _METHODS:
            raise UnknownClientMethodError([f"Client does not have method: {shown(ClientMethod)}"])
        if isinstance(ExpiresIn, bool) or not isinstance(ExpiresIn, int) or not 1 <= ExpiresIn <= MAX_EXPIRES_IN:
            raise ParamValidationError([f"ExpiresIn must be 1 to {MAX_EXPIRES_IN} seconds; got {shown(ExpiresIn)}"])
        try:
            call = self._new_call(_METHODS[ClientMethod], _named(Params))
        finally:
            del Params
        return await call.presigned_url(HttpMethod or "POST", ExpiresIn)

    def bearer_token(self, *, expires_in: int = TOKEN_SECONDS) -> BearerToken:
        """A bearer token for other HTTP clients, which call an endpoint's OpenAI route with it.

        It is made of the client's credentials, kept, and renewed ahead of its end and of theirs. Making it sends
        nothing. With it, anyone may do whatever the client's identity may do at SageMaker, not at one endpoint alone.

        ::

            token = client.bearer_token()
            url = f"{client.endpoint_url}/endpoints/llm/openai/v1"
            llm = openai.AsyncOpenAI(base_url=url, api_key=token)

        Args:
            expires_in: seconds for which a token is valid, 1 to 43,200.

        Raises:
            ParamValidationError: ``expires_in`` is out of its range.

        >>> Client("eu-central-1").bearer_token(expires_in=900)
        <BearerToken expires_in=900>
        """
        return bearer_token_of(self._core, expires_in)

    # Views, endpoints, facts

    def with_options(
        self,
        *,
        connect_timeout: float | Unset | None = UNSET,
        read_timeout: float | Unset | None = UNSET,
        deadline: float | Unset | None = UNSET,
        patience: float | Unset | None = UNSET,
        wait_for_capacity: float | Unset | None = UNSET,
        max_concurrency: MaxConcurrency | Unset = UNSET,
        max_waiting: int | Unset | None = UNSET,
        max_response_bytes: int | Unset | None = UNSET,
        retry: RetryPolicy | Mapping[str, Any] | Unset = UNSET,
        sign: bool | Unset = UNSET,
        user_agent_extra: str | Unset | None = UNSET,
        observers: Sequence[Observer] | Unset = UNSET,
    ) -> Self:
        """A view on the same connections and credentials with other settings.

        Closing a view does nothing; closing the client ends its views. A view shares its client's slots, and what is
        known about the health of endpoints, unless it names its own ``max_concurrency``.

        Args:
            connect_timeout, read_timeout, deadline, patience: as in the constructor, like all others; what is not given
                stays as it is.
            wait_for_capacity, max_concurrency, max_waiting, max_response_bytes: as in the constructor.
            retry, sign, user_agent_extra, observers: as in the constructor.

        >>> client = Client("eu-central-1")
        >>> impatient = client.with_options(deadline=2.0, retry=RetryPolicy(max_attempts=1))
        """
        changes: dict[str, Any] = {
            name: value
            for name, value in (
                ("connect_timeout", connect_timeout),
                ("read_timeout", read_timeout),
                ("deadline", deadline),
                ("patience", patience),
                ("wait_for_capacity", wait_for_capacity),
                ("max_waiting", max_waiting),
                ("max_response_bytes", max_response_bytes),
                ("sign", sign),
            )
            if not isinstance(value, Unset)
        }
        if not isinstance(max_concurrency, Unset):
            changes["admissions"] = self._core.new_admissions(max_concurrency)
        if not isinstance(retry, Unset):
            changes["retry"] = _policy(retry)
        if not isinstance(user_agent_extra, Unset):
            changes["user_agent"] = _user_agent(user_agent_extra)
        if not isinstance(observers, Unset):
            changes["observers"] = _observers(observers)
        return self._with_view(changes)

    def _with_view(self, changes: dict[str, Any]) -> Self:
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._view = self._view.replace(**changes)
        view._is_view = True
        return view

    def endpoint(
        self,
        name: str,
        *,
        serializer: Serializer[In],
        deserializer: Deserializer[Out],
        deadline: float | Unset | None = UNSET,
        patience: float | Unset | None = UNSET,
        wait_for_capacity: float | Unset | None = UNSET,
        upload_to: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Endpoint[In, Out]:
        """An endpoint for Python objects: `predict`, `invoke`, `stream`, `map`, `submit` and `session`.

        Args:
            name: the endpoint's name.
            serializer: makes request bodies; one of `aiosmrt.serializers`, or an object with ``content_type`` and
                ``serialize(data)``.
            deserializer: reads response bodies; one of `aiosmrt.serializers`, or an object with ``accept`` and
                ``deserialize(body, content_type)``.
            deadline: seconds for a whole call. If None, no limit. Defaults to the client's.
            patience: seconds for which a call waits and is sent again after its first failure. Defaults to the
                client's.
            wait_for_capacity: seconds to wait while the endpoint scales out from zero. If None, calls do not wait.
                Defaults to the client's.
            upload_to: the S3 URI under which `submit` puts bodies that are too large for a request. If None, such
                bodies are refused.
            options: members of all calls, such as ``inference_component="adapter"``; see
                `aiosmrt.endpoint.CallOptions`. ``content_type`` and ``accept`` are the serializer's and the
                deserializer's where they are not given.

        Raises:
            ParamValidationError: serializer or deserializer cannot be one.

        >>> from aiosmrt.serializers import CSV, JSON
        >>> endpoint = Client("eu-central-1").endpoint("churn", serializer=CSV, deserializer=JSON)
        >>> endpoint.name
        'churn'
        """
        # loaded with the first one
        from aiosmrt.endpoint import Endpoint

        client = self
        try:
            if not all(isinstance(setting, Unset) for setting in (deadline, patience, wait_for_capacity)):
                client = self.with_options(deadline=deadline, patience=patience, wait_for_capacity=wait_for_capacity)
            return Endpoint(
                client, name, serializer=serializer, deserializer=deserializer, upload_to=upload_to, **options
            )
        finally:
            del options

    @property
    def max_concurrency(self) -> int:
        """Most calls in flight for each endpoint, inference component and variant; an adaptive limit's maximum."""
        return self._view.admissions.max_concurrency

    def statistics(self) -> ClientStatistics:
        """The client's numbers now; see `ClientStatistics`."""
        counters = self._core.counters
        endpoints = self._view.admissions.statistics()
        return ClientStatistics(
            in_use=sum(state.in_use for state in endpoints.values()),
            waiting=sum(state.waiting for state in endpoints.values()),
            calls=counters.calls,
            attempts=counters.attempts,
            retries=dict(counters.retries),
            throttles=counters.throttles,
            bytes_sent=counters.bytes_sent,
            bytes_received=counters.bytes_received,
            endpoints=endpoints,
            failures=dict(counters.failures),
            waited=dict(counters.waited),
        )

    @property
    def exceptions(self) -> ClientExceptions:
        """The error classes, as ``client.exceptions.ModelError``."""
        return ClientExceptions()

    @property
    def meta(self) -> ClientMeta:
        """Region, URL and service model facts; before the first call, this reads environment and files."""
        configuration, view = self._core.configuration(), self._view
        if not view.settled:
            self._core.settle(view)
        region_name = configuration.settings.region_name
        retries: dict[str, str | int] = {}
        if view.rules.mode is not None:
            retries["mode"] = view.rules.mode
        if view.max_attempts is not None:
            retries["total_max_attempts"] = view.max_attempts
        config = ClientConfig(
            region_name=None if region_name is None else region_name.replace("fips-", "").replace("-fips", ""),
            user_agent=view.user_agent,
            connect_timeout=view.connect_timeout,
            read_timeout=view.read_timeout,
            max_pool_connections=self.max_concurrency,
            retries=retries,
        )
        return ClientMeta(configuration, config)

    @property
    def endpoint_url(self) -> str:
        """The service's URL; before the first call, this reads environment and files."""
        return self._core.configuration().endpoint.url

    def can_paginate(self, operation_name: str) -> bool:
        """Whether a method is paginated, which none of this service's methods is.

        Args:
            operation_name: the client's method.

        Raises:
            KeyError: the method does not exist, as in botocore.
        """
        _METHODS[operation_name]
        return False

    def get_paginator(self, operation_name: str) -> NoReturn:
        """Raise, because no operation of this service is paginated.

        Raises:
            OperationNotPageableError: always, unless the method does not exist (KeyError).
        """
        _METHODS[operation_name]
        raise OperationNotPageableError(f"Operation cannot be paginated: {operation_name}")

    def get_waiter(self, waiter_name: str) -> NoReturn:
        """Raise, because waiters do not exist for this service.

        Raises:
            ValueError: always, as in botocore.
        """
        raise ValueError(f"Waiter does not exist: {waiter_name}")

    @property
    def waiter_names(self) -> list[str]:
        """The names of this service's waiters: an empty list."""
        return []

    async def close(self) -> None:
        """Close connections and background work; on a view, do nothing. May be called more than once.

        Raises:
            ClientStateError: called on another event loop, or in another process, than the calls were.
        """
        if not self._is_view:
            await self._core.close()

    async def __aenter__(self) -> Self:
        if not self._core.is_ready():
            self._core.bind(asyncio.get_running_loop())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Client cannot be pickled or copied: it has connections and secrets; make a client in each process"
        )

    # Inside

    def _check(self, operation_name: str, params: Mapping[str, Any]) -> None:
        """Raise as the operation would for faulty parameters, and send nothing."""
        try:
            heads = self._core.codecs[operation_name].heads
            heads.head(heads.values(params), params.get("Body"), params)
        finally:
            # error trackers report locals
            del params

    @property
    def _has_deadline(self) -> bool:
        """Whether calls have a deadline, which then covers the making of their bodies."""
        return self._view.deadline is not None

    @property
    def _max_response_bytes(self) -> int | None:
        return self._view.max_response_bytes

    async def _object_store(self) -> ObjectStore:
        """Access to S3 with this client's credentials."""
        return await self._core.object_store()

    def _new_call(
        self,
        operation_name: str,
        params: Mapping[str, Any],
        body: Body | DeferredBody | None = None,
        began: float | None = None,
        before: str = "body",
    ) -> Call:
        """A call for checked parameters.

        Args:
            operation_name: the API operation.
            params: its parameters under AWS's names.
            body: the body, if ``params`` does not have it.
            began: when the call began, by the client's clock. Defaults to when it runs.
            before: what it has waited for since then, as a member of `Waited`.
        """
        codec = self._core.codecs[operation_name]
        given = params.get("Body") if body is None else body
        try:
            head = codec.heads.head(codec.heads.values(params), given, params)
            return Call(self._core, self._view, codec, head, given, began, before)
        finally:
            # error trackers report locals
            del params, given, body

    async def _invoke(
        self,
        params: Mapping[str, Any],
        body: Body | DeferredBody,
        head: Head | None = None,
        began: float | None = None,
        before: str = "body",
    ) -> tuple[InvokeEndpointOutput, Waited]:
        """The result of InvokeEndpoint, and what the call has waited for.

        Args:
            params: its parameters under AWS's names, without the body.
            body: the body.
            head: what `_head` returned for these parameters; only for a body of bytes.
            began: when the call began, by the client's clock; see `_now`. Defaults to now.
            before: what it has waited for since then, as a member of `Waited`.
        """
        try:
            if head is None:
                call = self._new_call("InvokeEndpoint", params, body, began, before)
            else:
                call = Call(self._core, self._view, self._core.codecs["InvokeEndpoint"], head, body, began, before)
        finally:
            del params, body
        result = call.result(await call.run())
        return cast("InvokeEndpointOutput", result), call.waited

    def _calls_with(self, head: Head) -> Callable[[bytes], Call]:
        """A function that makes a call of InvokeEndpoint, given its body; `Call.run` carries it out.

        Args:
            head: what `_head` returned.
        """
        return partial(Call, self._core, self._view, self._core.codecs["InvokeEndpoint"], head)

    def _head(self, params: Mapping[str, Any]) -> Head:
        """The checked head of InvokeEndpoint requests with these parameters and any body of bytes."""
        heads = self._core.codecs["InvokeEndpoint"].heads
        try:
            return heads.head(heads.values(params), b"", params)
        finally:
            del params

    async def _chat_completions(self, params: Mapping[str, Any], *, streams: bool) -> dict[str, Any]:
        """The result of a call of an endpoint's OpenAI route.

        Args:
            params: EndpointName, Body, ContentType and InferenceComponentName.
            streams: whether the answer is a stream.
        """
        try:
            call = self._new_call((CHAT_COMPLETIONS_STREAM if streams else CHAT_COMPLETIONS).name, params)
        finally:
            del params
        result: dict[str, Any] = call.result(await call.run())
        return result

    def _for_job(self, patience: float | Unset | None) -> Self:
        """A view for many calls that belong together.

        Args:
            patience: as the constructor's; left out, calls wait for `aiosmrt.config.JOB_PATIENCE`, unless the client
                was given its own patience, or a retry mode.
        """
        view = self._view
        changes: dict[str, Any] = {} if isinstance(patience, Unset) else {"patience": patience}
        if not changes and isinstance(view.patience, Unset) and view.retry.mode is None:
            changes = {"job_patience": JOB_PATIENCE}
        return self._with_view({**changes, "patience_until_reached": DEFAULT_PATIENCE})

    def _observed_by(self, observer: Observer) -> Self:
        """A view with an observer more."""
        return self._with_view({"observers": (*self._view.observers, observer)})


def _check_api_version(api_version: str | None) -> None:
    if api_version not in (None, API_VERSION):
        raise ApiVersionNotFoundError(
            f"Unable to load data for sagemaker-runtime, API version {api_version!r}: it must be {API_VERSION}"
        )


def _check_types(kind: type, **arguments: object) -> None:
    # the values are not quoted: there are secrets among them
    faults = [
        f"{name} must be a {kind.__name__} or None; got {type(value)}"
        for name, value in arguments.items()
        if value is not None and not isinstance(value, kind)
    ]
    if faults:
        raise ParamValidationError(faults)


def _observers(observers: Sequence[Observer]) -> tuple[Observer, ...]:
    if not isinstance(observers, Iterable):
        raise ParamValidationError([f"observers must be a sequence of callables; got {type(observers)}"])
    return tuple(observers)


def _named(params: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise ParamValidationError([f"Invalid type for the parameters, type: {type(params)}, valid types: a mapping"])
    return params


def _policy(retry: RetryPolicy | Mapping[str, Any]) -> RetryPolicy:
    if isinstance(retry, RetryPolicy):
        return retry
    if isinstance(retry, Mapping):
        return RetryPolicy.from_retries(retry)
    raise ParamValidationError([f"retry must be a RetryPolicy or a retries dictionary; got {type(retry)}"])


def _user_agent(extra: str | None) -> str:
    own = f"aiosmrt/{__version__} python/{platform.python_version()} os/{platform.system().lower()}"
    if extra is None:
        return own
    if not isinstance(extra, str) or not extra.isascii() or not extra.isprintable():
        raise ParamValidationError(["user_agent_extra must be printable ASCII"])
    return f"{own} {extra}"
