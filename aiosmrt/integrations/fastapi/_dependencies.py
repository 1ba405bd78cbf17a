"""The application's client and its endpoints, as a lifespan and as dependencies."""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, Final, ParamSpec, TypeAlias, TypeVar, Unpack

from fastapi import Depends
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from aiosmrt.client import Client
from aiosmrt.config import UNSET, Unset
from aiosmrt.endpoint import CallOptions, Endpoint
from aiosmrt.errors import ClientStateError
from aiosmrt.serializers import Deserializer, Serializer

__all__ = ["SageMakerClient", "client_lifespan", "endpoint", "sagemaker_client"]

In = TypeVar("In")
Out = TypeVar("Out")
Arguments = ParamSpec("Arguments")
Lifespan: TypeAlias = Callable[[Starlette], AbstractAsyncContextManager[Mapping[str, Client]]]

_STATE_KEY: Final = "sagemaker_client"


def _lifespan_of(make_client: Callable[Arguments, Client]) -> Callable[Arguments, Lifespan]:
    """Make `client_lifespan`, typed with the arguments of the client's constructor."""

    def client_lifespan(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Lifespan:
        """Make an application's lifespan, which opens a client at startup and closes it at shutdown.

        ::

            app = FastAPI(lifespan=client_lifespan(region_name="eu-central-1"))

        A custom lifespan can enter it and use the client::

            open_client = client_lifespan(region_name="eu-central-1")

            @asynccontextmanager
            async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
                async with open_client(app) as state:
                    await state["sagemaker_client"].endpoint(...).predict(...)
                    yield state

        Mounted applications find the client in the yielded state. Without mounted applications, the custom lifespan
        may yield anything.

        Args:
            args, kwargs: the arguments of `aiosmrt.Client`. Each startup makes a new client in the application's event
                loop.

        Raises (when entered):
            ClientStateError: the application already has a client.
            ParamValidationError: see `aiosmrt.Client`, like all other errors.
        """

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, Client]]:
            if hasattr(app.state, _STATE_KEY):
                raise ClientStateError("the application already has a client; enter client_lifespan(...) only once")
            async with make_client(*args, **kwargs) as client:
                setattr(app.state, _STATE_KEY, client)
                try:
                    yield {_STATE_KEY: client}
                finally:
                    delattr(app.state, _STATE_KEY)

        return lifespan

    return client_lifespan


client_lifespan: Final = _lifespan_of(Client)


async def sagemaker_client(connection: HTTPConnection) -> Client:
    """Return the application's client. A dependency; replace it in tests through ``app.dependency_overrides``.

    Args:
        connection: a request or a WebSocket.

    Raises:
        ClientStateError: the application does not have a client.
    """
    client: Client | None = connection.scope.get("state", {}).get(_STATE_KEY)
    if client is None:
        client = getattr(connection.app.state, _STATE_KEY, None)
    if client is None:
        raise ClientStateError(
            "the application does not have a client; use FastAPI(lifespan=client_lifespan(...)), or enter "
            "client_lifespan(...) in your own lifespan, which must yield its state for mounted applications"
        )
    return client


SageMakerClient: TypeAlias = Annotated[Client, Depends(sagemaker_client)]


def endpoint(
    name: str,
    *,
    serializer: Serializer[In],
    deserializer: Deserializer[Out],
    deadline: float | Unset | None = UNSET,
    patience: float | Unset | None = UNSET,
    wait_for_capacity: float | Unset | None = UNSET,
    upload_to: str | None = None,
    **options: Unpack[CallOptions],
) -> Callable[[Client], Coroutine[Any, Any, Endpoint[In, Out]]]:
    """Make a dependency that provides an endpoint of the application's client.

    ::

        Churn = Annotated[Endpoint[Any, Any], Depends(endpoint("churn", serializer=CSV, deserializer=JSON))]

    Args:
        name, serializer, deserializer, deadline, patience, wait_for_capacity, upload_to, options: the arguments of
            `aiosmrt.Client.endpoint`, which is called, and may raise, once per request.
    """

    async def dependency(client: SageMakerClient) -> Endpoint[In, Out]:
        return client.endpoint(
            name,
            serializer=serializer,
            deserializer=deserializer,
            deadline=deadline,
            patience=patience,
            wait_for_capacity=wait_for_capacity,
            upload_to=upload_to,
            **options,
        )

    return dependency
