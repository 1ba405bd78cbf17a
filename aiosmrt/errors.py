"""The whole error tree.

::

    AiosmrtError
     ├── ServiceError                     also botocore.exceptions.ClientError; .response as botocore gives it
     │    ├── ValidationError             400
     │    │    ├── EndpointNotFoundError
     │    │    └── NoCapacityError        scaled to zero, scaling out now
     │    ├── ThrottlingError             ThrottlingException and its kin, bare 429
     │    ├── ModelNotReadyException      429
     │    ├── ModelError                  424; .original_status_code, .original_message, .log_stream_arn
     │    ├── InternalFailure             500
     │    ├── ServiceUnavailable          503
     │    ├── InternalDependencyException 530
     │    └── EventStreamError            inside a response stream, after the 200
     │         ├── ModelStreamError       .error_code
     │         └── InternalStreamFailure
     ├── TransportError                   nothing usable came back
     │    ├── EndpointConnectionError     no connection: refused, unresolvable, unreachable
     │    ├── ConnectTimeoutError
     │    ├── SSLError
     │    ├── ProxyConnectionError
     │    ├── ConnectionClosedError       the connection died before a response
     │    ├── ReadTimeoutError            the service was silent too long
     │    └── ResponseStreamingError      the response broke off in the middle
     ├── DeadlineExceededError            the caller's own deadline
     ├── TooManyWaitingError              max_waiting calls wait already; nothing was sent
     ├── TooManyFailuresError             a map had more failures than max_failures allows
     ├── EventStreamFormatError           bytes that are not an event stream
     │    ├── ChecksumMismatchError
     │    ├── FrameLengthError
     │    ├── HeaderFormatError
     │    └── TruncatedStreamError        the stream ended inside a frame
     ├── ParamValidationError             refused before anything was sent
     │    ├── ParameterNameError          a parameter is missing or unknown; a TypeError too
     │    ├── ParameterTypeError          a parameter is of the wrong type; a TypeError too
     │    ├── RetriesError                an unknown key or a wrong number in a `retries` dictionary
     │    └── UnknownClientMethodError
     ├── OperationNotPageableError
     ├── SerializationError               an object that the serializer cannot express; nothing was sent
     ├── DeserializationError             a response that the deserializer cannot read
     ├── StreamTimeoutError               the first or the next part of a stream came too late
     ├── SessionClosedError               a stateful session that expired or was closed
     ├── JobFailedError                   an asynchronous inference ended with a failure
     ├── JobTimeoutError                  an asynchronous inference's result did not come in time
     ├── ObjectStoreError                 S3 refused or failed; .code, .status
     ├── BatchInputError                  the input of a batch job cannot be read, or has changed
     ├── BatchOutputError                 the output of a batch job cannot be used or written
     ├── BatchStoppedError                a batch job ended early; run again, it resumes
     ├── ClientStateError                 closed, or used from another event loop or after a fork
     └── ConfigurationError
          ├── NoRegionError, InvalidRegionError, ApiVersionNotFoundError, EndpointResolutionError
          ├── ProfileNotFoundError, ConfigFileError, InvalidConfigError, InvalidRetryModeError
          ├── InvalidMaxAttemptsError, InvalidDefaultsModeError, InvalidStsRegionalEndpointsError
          ├── InvalidChecksumConfigError
          ├── NoCredentialsError, PartialCredentialsError, CredentialRetrievalError
          └── MissingExtraError           a package that an extra installs; an ImportError too

Errors that have a counterpart in botocore inherit from it as well, so ``except`` clauses written for boto3 or
aiobotocore keep catching. Each error carries the facts that retry decisions rest on, and never a payload, a custom
attribute or a credential. They are in one module so that the tree can be seen whole.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, TypeAlias, cast

from botocore import exceptions as boto

if TYPE_CHECKING:
    from botocore.exceptions import InvalidChecksumConfigError as _BotocoreChecksumConfigError
else:
    # Before 1.36, botocore does not know the setting.
    _BotocoreChecksumConfigError = getattr(boto, "InvalidChecksumConfigError", boto.BotoCoreError)

__all__ = [
    "AiosmrtError",
    "ApiVersionNotFoundError",
    "BatchInputError",
    "BatchOutputError",
    "BatchStoppedError",
    "Cause",
    "ChecksumMismatchError",
    "ClientStateError",
    "ConfigFileError",
    "ConfigurationError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "CredentialRetrievalError",
    "DeadlineExceededError",
    "DeserializationError",
    "EndpointConnectionError",
    "EndpointNotFoundError",
    "EndpointResolutionError",
    "EventStreamError",
    "EventStreamFormatError",
    "FrameLengthError",
    "HeaderFormatError",
    "InternalDependencyException",
    "InternalFailure",
    "InternalStreamFailure",
    "InvalidChecksumConfigError",
    "InvalidConfigError",
    "InvalidDefaultsModeError",
    "InvalidMaxAttemptsError",
    "InvalidRegionError",
    "InvalidRetryModeError",
    "InvalidStsRegionalEndpointsError",
    "JobFailedError",
    "JobTimeoutError",
    "MissingExtraError",
    "ModelError",
    "ModelNotReadyException",
    "ModelStreamError",
    "NoCapacityError",
    "NoCredentialsError",
    "NoRegionError",
    "ObjectStoreError",
    "OperationNotPageableError",
    "ParamValidationError",
    "ParameterNameError",
    "ParameterTypeError",
    "PartialCredentialsError",
    "ProfileNotFoundError",
    "ProxyConnectionError",
    "ReadTimeoutError",
    "ResponseStreamingError",
    "RetriesError",
    "SSLError",
    "SerializationError",
    "ServiceError",
    "ServiceUnavailable",
    "SessionClosedError",
    "StreamTimeoutError",
    "ThrottlingError",
    "TooManyFailuresError",
    "TooManyWaitingError",
    "TransportError",
    "TruncatedStreamError",
    "UnknownClientMethodError",
    "ValidationError",
    "Waited",
    "fresh_copy",
]

Cause: TypeAlias = Literal[
    "throttling",  # the service asks for less
    "model_not_ready",  # the model is still loading; no sign of too much load
    "transient",  # a 5xx that says nothing about the request
    "connection",  # no response byte came
    "truncated",  # a response that broke off
    "read_timeout",  # the model may still be running
    "clock_skew",  # the signature's time was refused
    "model",  # the container answered with an error
    "none",  # trying again would not help
]


class Waited(NamedTuple):
    """Seconds for which a call has waited, by what for.

    Args:
        slot: for its turn under ``max_concurrency``.
        probe: for a target that was ill to recover.
        capacity: for an inference component to scale out.
        back_off: between two attempts.
        attempt: for answers to its requests.
        rate: for the rate of AWS's retry mode ``adaptive``.
        body: for its request body to be read or serialized, hashed, and uploaded by `Endpoint.submit`.
        preparation: for the client's configuration.
        credentials: for credentials.
        session: for another call to open the stateful session.

    >>> str(Waited(slot=0.5, attempt=0.25))
    '0.500 s for a slot, 0.250 s for an answer to its request'
    """

    slot: float = 0.0
    probe: float = 0.0
    capacity: float = 0.0
    back_off: float = 0.0
    attempt: float = 0.0
    rate: float = 0.0
    body: float = 0.0
    preparation: float = 0.0
    credentials: float = 0.0
    session: float = 0.0

    @property
    def total_waiting(self) -> float:
        """Seconds of all waits, the model's answers aside."""
        return sum(self) - self.attempt

    def __str__(self) -> str:
        texts = {
            "slot": "for a slot",
            "probe": "for the service to recover",
            "capacity": "for capacity",
            "back_off": "in back-off between attempts",
            "attempt": "for an answer to its request",
            "rate": "for the send rate of retry mode adaptive",
            "body": "for its request body",
            "preparation": "for the client's configuration",
            "credentials": "for credentials",
            "session": "for another call to open the session",
        }
        known = {name: seconds for name, seconds in self._asdict().items() if seconds >= _SHOWN_SECONDS}
        return ", ".join(f"{seconds:.3f} s {texts[name]}" for name, seconds in known.items()) or "less than 1 ms"


# What a wait must have lasted to be named in a message.
_SHOWN_SECONDS = 0.0005


class AiosmrtError(Exception):
    """Root of every error that this package raises on purpose.

    Attributes:
        operation: the API operation, such as ``"InvokeEndpoint"``; None outside a call. It is in the message as
            well, with the endpoint, or, where the message is botocore's, in a note that tracebacks show.
        endpoint_name: the endpoint that was called; None outside a call.
        request_id: the service's request id; None when no response came.
        attempts: how many requests were sent; 0 when none was.
        cause: what a retry policy decides on.
        retry_after: seconds that the service asked to wait; None when it did not.
        waited: seconds for which the call waited, by what for.
        never_reached: whether the client had no answer of the service at all, to this call or any other.

    >>> AiosmrtError("broken").retry_safe
    False
    """

    default_cause: Cause = "none"

    # Whether the message is botocore's, and stays as it is.
    _text_is_botocores: ClassVar[bool] = False

    args: tuple[Any, ...]
    operation: str | None = None
    endpoint_name: str | None = None
    request_id: str | None = None
    attempts: int = 0
    retry_after: float | None = None
    waited: Waited = Waited()
    never_reached: bool = False

    def __init__(self, message: str, *, cause: Cause | None = None, retry_after: float | None = None) -> None:
        # botocore's own constructors format their message from keywords; ours is ready-made.
        Exception.__init__(self, message)
        self.cause: Cause = cause or self.default_cause
        self.kwargs: Any = {}
        if retry_after is not None:
            self.retry_after = retry_after

    @property
    def throttling(self) -> bool:
        """Whether the service asked for less load."""
        return self.cause == "throttling"

    @property
    def retry_safe(self) -> bool:
        """Whether the same request may succeed later without harm: no model is left running by this failure."""
        return self.cause not in ("none", "read_timeout", "model")

    def note_call(self, operation: str, endpoint_name: str | None) -> None:
        """Name the call that failed: in the attributes, and in the message or, where that is botocore's, in a note.

        Args:
            operation: the API operation.
            endpoint_name: the endpoint; None if it is unknown.
        """
        self.operation, self.endpoint_name = operation, endpoint_name
        if self._text_is_botocores:
            note = _call(operation, endpoint_name)
            if note not in getattr(self, "__notes__", ()):
                self.add_note(note)

    def note_waited(self) -> None:
        """Say in the message for how long the call waited before it gave up, and for what."""
        self.args = (f"{self._text} (gave up after waiting {self.waited})", *self.args[1:])

    @property
    def _text(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__

    def __str__(self) -> str:
        if self.operation is None or self._text_is_botocores:
            return self._text
        return f"{self._text} ({_call(self.operation, self.endpoint_name)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _call(operation: str, endpoint_name: str | None) -> str:
    return operation if endpoint_name is None else f"{operation} of endpoint {endpoint_name}"


def _rebuild(cls: type[AiosmrtError], args: tuple[Any, ...], state: dict[str, Any]) -> AiosmrtError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def fresh_copy(error: AiosmrtError) -> AiosmrtError:
    """An error like another one, without its traceback and its notes, for a call that shares its fate.

    >>> fresh_copy(EndpointConnectionError("refused")).args
    ('refused',)
    """
    copy = deepcopy(error)
    copy.__dict__.pop("__notes__", None)
    return copy


class ServiceError(AiosmrtError, boto.ClientError):
    """The service answered with an error; also a ``botocore.exceptions.ClientError``.

    Args:
        response: the ``{"Error": {"Code", "Message"}, "ResponseMetadata": …}`` dictionary that botocore would give.
        operation: the API operation.
        cause: what a retry policy decides on. Defaults to the class's.
        retry_after: seconds from ``x-amz-retry-after``; None when absent.

    >>> error = ServiceError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "InvokeEndpoint")
    >>> error.code, str(error)
    ('AccessDenied', 'An error occurred (AccessDenied) when calling the InvokeEndpoint operation: no')
    """

    _text_is_botocores = True
    args: tuple[Any, ...]

    def __init__(
        self,
        response: dict[str, Any],
        operation: str,
        *,
        cause: Cause | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(_describe(response, operation), cause=cause, retry_after=retry_after)
        self.response: Any = response
        self.operation: str | None = operation
        self.operation_name: str = operation
        self.request_id: str | None = response.get("ResponseMetadata", {}).get("RequestId")

    def note_max_attempts(self) -> None:
        """Say in response and message that retries were used up, as botocore does."""
        self.response.setdefault("ResponseMetadata", {})["MaxAttemptsReached"] = True
        self.args = (_describe(self.response, self.operation_name),)

    @property
    def code(self) -> str:
        """The error code, such as ``"ModelError"``."""
        return str(self.response.get("Error", {}).get("Code", ""))

    @property
    def message(self) -> str:
        """The service's message; empty when it gave none."""
        message: object = self.response.get("Error", {}).get("Message")
        return message if isinstance(message, str) else str(message or "")

    @property
    def status(self) -> int | None:
        """The HTTP status; None inside a stream."""
        return cast("int | None", self.response.get("ResponseMetadata", {}).get("HTTPStatusCode"))


def _describe(response: dict[str, Any], operation: str) -> str:
    error = response.get("Error", {})
    metadata = response.get("ResponseMetadata", {})
    retries = f" (reached max retries: {metadata.get('RetryAttempts', 0)})" if "MaxAttemptsReached" in metadata else ""
    return (
        f"An error occurred ({error.get('Code', 'Unknown')}) when calling the {operation} operation{retries}: "
        f"{error.get('Message', 'Unknown')}"
    )


class ValidationError(ServiceError):
    """The service refused the request's parameters."""


class EndpointNotFoundError(ValidationError):
    """The endpoint does not exist in the account and region."""


class NoCapacityError(ValidationError):
    """The inference component is scaled to zero and is scaling out now."""


class ThrottlingError(ServiceError):
    """Too many requests: ``ThrottlingException`` and its kin, or a bare 429."""

    default_cause: Cause = "throttling"


class ModelNotReadyException(ServiceError):
    """The model is still being loaded."""

    default_cause: Cause = "model_not_ready"


class ModelError(ServiceError):
    """The model's container answered with an error, or not in time."""

    default_cause: Cause = "model"

    @property
    def original_status_code(self) -> int | None:
        """The container's HTTP status; 0 when it timed out, None when the service did not say."""
        status = self.response.get("OriginalStatusCode")
        return status if isinstance(status, int) else None

    @property
    def original_message(self) -> str | None:
        """The container's message; None when the service did not say."""
        return cast("str | None", self.response.get("OriginalMessage"))

    @property
    def log_stream_arn(self) -> str | None:
        """The CloudWatch log stream of the container; None when the service did not say."""
        return cast("str | None", self.response.get("LogStreamArn"))


class InternalFailure(ServiceError):
    """The service failed."""

    default_cause: Cause = "transient"


class ServiceUnavailable(ServiceError):
    """The service is unavailable."""

    default_cause: Cause = "transient"


class InternalDependencyException(ServiceError):
    """Something that the service depends on failed."""

    default_cause: Cause = "transient"


class EventStreamError(ServiceError, boto.EventStreamError):
    """The service reported an error inside a response stream."""


class ModelStreamError(EventStreamError):
    """The model's container broke its response stream off."""

    default_cause: Cause = "transient"

    @property
    def error_code(self) -> str | None:
        """``"ModelInvocationTimeExceeded"`` or ``"StreamBroken"``; None when the service did not say."""
        return cast("str | None", self.response.get("ErrorCode"))


class InternalStreamFailure(EventStreamError):
    """The service broke a response stream off."""

    default_cause: Cause = "transient"


class TransportError(AiosmrtError, boto.HTTPClientError):
    """The exchange failed below the service: no usable response came.

    Args:
        message: what happened.
        endpoint_url: the URL that was called: scheme, host and port, and the path once the error has left its call;
            None when unknown.
        cause: what a retry policy decides on. Defaults to the class's.
    """

    default_cause: Cause = "connection"
    _text_is_botocores = True
    args: tuple[Any, ...]
    _names_path: bool = False

    def __init__(
        self,
        message: str,
        *,
        endpoint_url: str | None = None,
        cause: Cause | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, cause=cause, retry_after=retry_after)
        self.endpoint_url = endpoint_url
        self.request: Any = None
        self.response: Any = None

    def note_path(self, path: str) -> None:
        """Name the path that was called, in the message and in ``endpoint_url``, as botocore does.

        Args:
            path: the path of the URL.
        """
        if self.endpoint_url is None or self._names_path:
            return
        self._names_path = True
        url = self.endpoint_url + path
        self.args = (self._text.replace(f'"{self.endpoint_url}"', f'"{url}"', 1), *self.args[1:])
        self.endpoint_url = url


class EndpointConnectionError(TransportError, boto.EndpointConnectionError):
    """No connection could be made."""


class ConnectTimeoutError(TransportError, boto.ConnectTimeoutError, TimeoutError):
    """No connection within ``connect_timeout``."""


class SSLError(TransportError, boto.SSLError):
    """The TLS handshake failed.

    Its ``cause`` is ``"none"`` where the certificate is not valid, or HTTP/2 is not spoken: neither gets better by
    trying again.
    """


class ProxyConnectionError(TransportError, boto.ProxyConnectionError):
    """The proxy could not be reached or refused."""


class ConnectionClosedError(TransportError, boto.ConnectionClosedError):
    """The connection closed before any byte of a response."""


class ReadTimeoutError(TransportError, boto.ReadTimeoutError, TimeoutError):
    """The service was silent for ``read_timeout``; the model may still be running."""

    default_cause: Cause = "read_timeout"


class ResponseStreamingError(TransportError, boto.ResponseStreamingError):
    """The response broke off before its end."""

    default_cause: Cause = "truncated"


class DeadlineExceededError(AiosmrtError, TimeoutError):
    """The caller's ``deadline`` passed; the last attempt's error, where there was one, is the ``__cause__``."""


class TooManyWaitingError(AiosmrtError):
    """As many calls as ``max_waiting`` allows wait for the endpoint already; nothing was sent.

    Args:
        max_waiting: how many may wait.
    """

    retry_after: float | None = 1.0

    def __init__(self, max_waiting: int) -> None:
        super().__init__(f"{max_waiting} calls wait for this endpoint already, which is as many as max_waiting allows")
        self.max_waiting = max_waiting

    @property
    def retry_safe(self) -> bool:
        """True: nothing was sent."""
        return True


class EventStreamFormatError(AiosmrtError):
    """The bytes are not an event stream; a decoder that raised this stays failed."""

    default_cause: Cause = "truncated"


class ChecksumMismatchError(EventStreamFormatError):
    """A CRC of a frame does not match."""


class FrameLengthError(EventStreamFormatError):
    """A frame's lengths contradict each other or exceed the limits."""


class HeaderFormatError(EventStreamFormatError):
    """A frame's header block is malformed."""


class TruncatedStreamError(EventStreamFormatError):
    """The stream ended inside a frame."""


class ParamValidationError(AiosmrtError, boto.ParamValidationError):
    """The parameters break the service model's rules; nothing was sent. Names every fault, a line each.

    Args:
        faults: the faults, each naming its parameter but never quoting a sensitive value.

    >>> print(ParamValidationError(["Missing required parameter in input: \\"Body\\""]))
    Parameter validation failed:
    Missing required parameter in input: "Body"
    """

    _text_is_botocores = True

    def __init__(self, faults: list[str]) -> None:
        report = "\n".join(faults)
        super().__init__(f"Parameter validation failed:\n{report}")
        self.faults = faults
        self.kwargs: Any = {"report": report}


class ParameterNameError(ParamValidationError, TypeError):
    """A parameter is missing, or the operation does not have one of that name; nothing was sent."""


class ParameterTypeError(ParamValidationError, TypeError):
    """A parameter is of the wrong type; nothing was sent."""


class UnknownClientMethodError(ParamValidationError, boto.UnknownClientMethodError):
    """The client does not have a method of that name, for which a URL was to be signed."""


class RetriesError(ParamValidationError, boto.InvalidMaxRetryAttemptsError):
    """A ``retries`` dictionary has an unknown key, or a number of attempts that is out of range."""


class OperationNotPageableError(AiosmrtError, boto.OperationNotPageableError):
    """No operation of this service is paginated."""


class SerializationError(AiosmrtError, ValueError):
    """The serializer cannot express an object; nothing was sent. Says what is wrong and where, quoting nothing."""


class DeserializationError(AiosmrtError, ValueError):
    """The deserializer cannot read a response, or a stream's view a part. Says where, quoting nothing."""


class StreamTimeoutError(AiosmrtError, TimeoutError):
    """A stream's first part, or the next one, did not come within its limit; the stream is closed."""

    default_cause: Cause = "read_timeout"


class SessionClosedError(AiosmrtError):
    """The stateful session has expired, was closed by its model, or was never opened by it."""


class TooManyFailuresError(AiosmrtError):
    """A map had more failed items than its ``max_failures`` allows, and took no more.

    Args:
        failures: how many items failed.
        calls: how many items were called for.
    """

    def __init__(self, failures: int, calls: int) -> None:
        super().__init__(f"{failures} of {calls} items failed, which is more than max_failures allows")
        self.failures = failures
        self.calls = calls


class JobFailedError(AiosmrtError):
    """An asynchronous inference ended with a failure.

    Args:
        message: what happened.
        failure_location: the S3 URI of what the service wrote about it; None where there is nothing.
        reason: what is written there, cut to 1,024 characters; None where it was not read.
    """

    default_cause: Cause = "model"

    def __init__(self, message: str, *, failure_location: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.failure_location = failure_location
        self.reason = reason


class JobTimeoutError(AiosmrtError, TimeoutError):
    """An asynchronous inference had neither result nor failure in time; it goes on, and can be waited for again."""


class ObjectStoreError(AiosmrtError):
    """S3 refused a request, failed, or could not be reached.

    Args:
        message: what happened; names bucket and key.
        code: S3's error code, such as ``"AccessDenied"``, or the class of the failure on the way.
        status: the HTTP status; None without a response.
    """

    def __init__(self, message: str, *, code: str, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class BatchInputError(AiosmrtError):
    """The input of a batch job does not exist, cannot be read, is cut short, or has changed since the job began."""


class BatchOutputError(AiosmrtError):
    """The output of a batch job is in use, belongs to another job, was changed, or cannot be written."""


class BatchStoppedError(AiosmrtError):
    """A batch job ended early: too many rows failed, or every further row would.

    The `__cause__` is the reason: `TooManyFailuresError`, or the error that every row would end with. All answers
    received are in the output, and the same job resumes after them.
    """


class ClientStateError(AiosmrtError, RuntimeError):
    """The client cannot be used here: it is closed, or belongs to another event loop or process."""


class ConfigurationError(AiosmrtError):
    """Something in arguments, environment or AWS configuration files is missing or contradictory."""

    _text_is_botocores = True


class MissingExtraError(ConfigurationError, ImportError):
    """Something needs a package that is not installed, or cannot be imported; names the extra that installs it.

    Args:
        message: what is missing, with the command that installs it.
        name: the module.
    """

    def __init__(self, message: str, *, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        # An ImportError keeps its name outside its dictionary.
        return _rebuild_missing_extra, (self._text, self.name, self.__dict__)


def _rebuild_missing_extra(message: str, name: str | None, state: dict[str, Any]) -> MissingExtraError:
    error = MissingExtraError(message, name=name)
    error.__dict__.update(state)
    return error


class NoRegionError(ConfigurationError, boto.NoRegionError):
    """No region is configured."""


class InvalidRegionError(ConfigurationError, boto.InvalidRegionError):
    """The region is not a valid host label."""


class ApiVersionNotFoundError(ConfigurationError, boto.ApiVersionNotFoundError):
    """The requested API version does not exist."""


class EndpointResolutionError(ConfigurationError, boto.EndpointProviderError, ValueError):
    """The service's endpoint rules do not cover this configuration, or a URL is not valid (botocore: a ValueError)."""


class ProfileNotFoundError(ConfigurationError, boto.ProfileNotFound):
    """The named profile is not in the AWS configuration files."""


class ConfigFileError(ConfigurationError, boto.ConfigParseError):
    """An AWS configuration file could not be parsed."""


class InvalidConfigError(ConfigurationError, boto.InvalidConfigError):
    """A value in the environment or in an AWS configuration file makes no sense."""


class InvalidMaxAttemptsError(InvalidConfigError, boto.InvalidMaxRetryAttemptsError, ValueError):
    """The configured number of attempts is not an integer (botocore: a ValueError), or not >= 1."""


class InvalidDefaultsModeError(ConfigurationError, boto.InvalidDefaultsMode):
    """The defaults mode is not one that botocore knows."""


class InvalidChecksumConfigError(ConfigurationError, _BotocoreChecksumConfigError):
    """A setting for checksums is not ``when_supported`` or ``when_required``."""


class InvalidStsRegionalEndpointsError(ConfigurationError, boto.InvalidSTSRegionalEndpointsConfigError):
    """The setting for STS endpoints is not ``legacy`` or ``regional``."""


class InvalidRetryModeError(ConfigurationError, boto.InvalidRetryModeError):
    """The retry mode is not one of legacy, standard and adaptive."""


class NoCredentialsError(ConfigurationError, boto.NoCredentialsError):
    """No provider has credentials."""


class PartialCredentialsError(ConfigurationError, boto.PartialCredentialsError):
    """An access key without its secret key, or the reverse."""


class CredentialRetrievalError(ConfigurationError, boto.CredentialRetrievalError):
    """A source of credentials failed.

    ``except`` clauses for the class of the error behind it catch this one too: ``UnauthorizedSSOTokenError``,
    ``TokenRetrievalError``, ``ClientError`` with the ``response`` in which STS refused, Python's ``FileNotFoundError``.
    """

    _also: ClassVar[type[Exception] | None] = None

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {name: getattr(self, name) for name in _OS_FACTS} if isinstance(self, OSError) else {}
        return _rebuild_retrieval_error, (self._also, self.args, self.__dict__, facts)


# An OSError keeps them outside its dictionary.
_OS_FACTS = ("errno", "strerror", "filename")


def credential_retrieval_error(message: str, error: Exception | None = None) -> CredentialRetrievalError:
    """A `CredentialRetrievalError` that is also an instance of the class of the error behind it.

    Args:
        message: what happened.
        error: the error behind it, if any; a class that is neither botocore's nor Python's is left out.

    >>> isinstance(credential_retrieval_error("expired", boto.UnauthorizedSSOTokenError()), boto.SSOError)
    True
    """
    also = next((cls for cls in type(error).__mro__ if _can_be_added(cls)), None)
    failure = _retrieval_error_class(also)(message)
    if isinstance(error, boto.ClientError):
        failure.__dict__.update(response=error.response, operation_name=error.operation_name)
    elif isinstance(error, boto.BotoCoreError):
        failure.kwargs = dict(error.kwargs)
        if isinstance(error, boto.HTTPClientError):
            failure.__dict__.update(request=None, response=None)
    elif isinstance(error, OSError):
        for name in _OS_FACTS:
            setattr(failure, name, getattr(error, name))
    return failure


def _can_be_added(cls: type[BaseException]) -> bool:
    """Whether a `CredentialRetrievalError` can be of this class too, and says more by it."""
    if cls.__module__ == "builtins":
        # The first two mean something else to a coroutine, and a group cannot be made of a message.
        others = (StopIteration, StopAsyncIteration, BaseExceptionGroup)
        return issubclass(cls, Exception) and cls is not Exception and not issubclass(cls, others)
    # The classes of a client's own exceptions are made with that client, and cannot be named.
    return (
        cls.__module__.startswith("botocore.") and getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls
    )


_retrieval_error_classes: dict[type[Exception], type[CredentialRetrievalError]] = {}


def _retrieval_error_class(also: type[Exception] | None) -> type[CredentialRetrievalError]:
    if also is None or issubclass(CredentialRetrievalError, also):
        return CredentialRetrievalError
    if (known := _retrieval_error_classes.get(also)) is not None:
        return known
    members = {"__doc__": CredentialRetrievalError.__doc__, "__module__": __name__, "_also": also}
    made = type(CredentialRetrievalError.__name__, (CredentialRetrievalError, also), members)
    return _retrieval_error_classes.setdefault(also, cast("type[CredentialRetrievalError]", made))


def _rebuild_retrieval_error(
    also: type[Exception] | None, args: tuple[Any, ...], state: dict[str, Any], facts: dict[str, Any]
) -> CredentialRetrievalError:
    error = cast("CredentialRetrievalError", _rebuild(_retrieval_error_class(also), args, state))
    for name, value in facts.items():
        setattr(error, name, value)
    return error


class ErrorCode(NamedTuple):
    """What an error code stands for.

    Args:
        error_class: the class of its errors.
        cause: what a retry policy decides on.
        members: name and type of each member that the service model gives it besides ``Message``; None if the model
            does not name the code.
    """

    error_class: type[ServiceError]
    cause: Cause
    members: tuple[tuple[str, type], ...] | None = None


THROTTLING_CODES: Final = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    }
)
"""Error codes by which AWS services ask for less load (the table that all AWS SDKs share)."""

# By their codes and not only by their statuses, because inside a stream there is only the 200 that it began with.
_TRANSIENT_CODES: Final = (
    "InternalServerError",
    "InternalServerException",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailableException",
)


def _modelled(error_class: type[ServiceError], **members: type) -> ErrorCode:
    return ErrorCode(error_class, error_class.default_cause, tuple(members.items()))


ERROR_CODES: Final[dict[str, ErrorCode]] = {
    "InputValidationError": ErrorCode(ValidationError, "none"),
    "InternalDependencyException": _modelled(InternalDependencyException),
    "InternalFailure": _modelled(InternalFailure),
    "InternalStreamFailure": _modelled(InternalStreamFailure),
    "ModelError": _modelled(ModelError, OriginalStatusCode=int, OriginalMessage=str, LogStreamArn=str),
    "ModelNotReadyException": _modelled(ModelNotReadyException),
    "ModelStreamError": _modelled(ModelStreamError, ErrorCode=str),
    "ServiceUnavailable": _modelled(ServiceUnavailable),
    "ServiceUnavailableError": ErrorCode(ServiceUnavailable, "transient"),
    "ValidationError": _modelled(ValidationError),
    **dict.fromkeys(THROTTLING_CODES, ErrorCode(ThrottlingError, "throttling")),
    **dict.fromkeys(_TRANSIENT_CODES, ErrorCode(ServiceError, "transient")),
}
"""Every error code that means more to this package than its HTTP status."""
