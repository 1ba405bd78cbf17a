"""Facts about a client in the places where botocore has them: ``client.meta`` and ``client.exceptions``."""

from typing import TYPE_CHECKING, Any, NamedTuple, Never, NoReturn

from botocore import exceptions as boto

from aiosmrt import errors
from aiosmrt._aws.hosts import partition_of
from aiosmrt._aws.service_model import whole_service_model
from aiosmrt._wire.operations import API_VERSION, BY_NAME, OPERATIONS, SERVICE_ID, SIGNING_NAME

if TYPE_CHECKING:
    from aiosmrt._core.configure import Configuration

__all__ = ["ClientConfig", "ClientExceptions", "ClientMeta", "ServiceModel"]


class ServiceModel(NamedTuple):
    """What the service model says about the service.

    What is not here, such as ``operation_model()``, is that of botocore's model, whose file the first use reads.
    """

    service_name: str = "sagemaker-runtime"
    service_id: str = SERVICE_ID
    api_version: str = API_VERSION
    endpoint_prefix: str = "runtime.sagemaker"
    signing_name: str = SIGNING_NAME
    signature_version: str = "v4"
    protocol: str = "rest-json"
    operation_names: tuple[str, ...] = tuple(BY_NAME)

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling ask for special methods.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(whole_service_model(), name)


class ClientConfig(NamedTuple):
    """Settings of a client under the names of ``botocore.config.Config``.

    Args:
        region_name: the AWS region; None if it is unknown.
        user_agent: the ``User-Agent`` header.
        connect_timeout: seconds for a new connection. If None, no limit.
        read_timeout: seconds that the service may be silent. If None, no limit.
        max_pool_connections: most calls in flight for each endpoint; this is the only limit of connections.
        retries: ``mode`` and ``total_max_attempts``, each if it is set.
        signature_version: how requests are signed.
    """

    region_name: str | None
    user_agent: str
    connect_timeout: float | None
    read_timeout: float | None
    max_pool_connections: int
    retries: dict[str, str | int]
    signature_version: str = "v4"

    def __getattr__(self, name: str) -> Never:
        raise AttributeError(
            f"client.meta.config has no {name!r}; it has {', '.join(self._fields)}. Client's arguments are the options"
        )


class ClientMeta:
    """Region, URL and service model facts of a client.

    Args:
        configuration: the client's configuration.
        config: the client's or view's settings.
    """

    __slots__ = ("_configuration", "config", "service_model")

    def __init__(self, configuration: "Configuration", config: ClientConfig) -> None:
        self._configuration = configuration
        self.config: ClientConfig = config
        self.service_model: ServiceModel = ServiceModel()

    def __reduce__(self) -> NoReturn:
        # The configuration may hold a proxy's password.
        raise TypeError("a client's meta cannot be pickled or copied: make a client in each process")

    def __getattr__(self, name: str) -> Never:
        if name == "events":
            raise AttributeError(
                "client.meta has no 'events', botocore's event system: use Client(observers=...) to see calls and add "
                "headers, or Client(session=...) for what your own aiohttp.ClientSession does"
            )
        raise AttributeError(f"client.meta has no {name!r}")

    def __repr__(self) -> str:
        return f"<ClientMeta region_name={self.region_name!r} endpoint_url={self.endpoint_url!r}>"

    @property
    def region_name(self) -> str | None:
        """The AWS region, of a FIPS pseudo-region the one it stands for; None if it is unknown."""
        return self.config.region_name

    @property
    def partition(self) -> str:
        """The AWS partition of the region, such as ``"aws"`` or ``"aws-cn"``; reads a file."""
        return partition_of(self.region_name)

    @property
    def endpoint_url(self) -> str:
        """The service's URL."""
        return self._configuration.endpoint.url

    @property
    def method_to_api_mapping(self) -> dict[str, str]:
        """The operation behind each method."""
        return {operation.method: operation.name for operation in OPERATIONS}


class ClientExceptions:
    """The service's error classes, as attributes named by their codes.

    >>> ClientExceptions().ModelError is errors.ModelError
    True
    """

    ClientError = boto.ClientError
    InternalDependencyException = errors.InternalDependencyException
    InternalFailure = errors.InternalFailure
    InternalStreamFailure = errors.InternalStreamFailure
    ModelError = errors.ModelError
    ModelNotReadyException = errors.ModelNotReadyException
    ModelStreamError = errors.ModelStreamError
    ServiceUnavailable = errors.ServiceUnavailable
    ValidationError = errors.ValidationError

    def __getattr__(self, name: str) -> Never:
        valid = ", ".join(name for name in vars(ClientExceptions) if name[0].isupper())
        raise AttributeError(f"client.exceptions has no {name!r}; valid exceptions are: {valid}")

    def from_code(self, code: str) -> type[boto.ClientError]:
        """The class for an error code; ``ClientError`` for one that the service model does not name."""
        known = errors.ERROR_CODES.get(code)
        return boto.ClientError if known is None or known.members is None else known.error_class
