"""What users of an OpenAI client make: its HTTP client, or the client itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import httpx2
import openai

from aiosmrt.client import Client
from aiosmrt.config import shown
from aiosmrt.errors import ParamValidationError
from aiosmrt.integrations.openai._answers import QuickAsyncClient, QuickAsyncOpenAI
from aiosmrt.integrations.openai._requests import Models, RequestReader, Route
from aiosmrt.integrations.openai._transport import ClientTransport

__all__ = ["BASE_URL", "async_openai", "http_client"]

BASE_URL: Final = "https://aiosmrt.invalid/v1"
"""The base URL of clients made here; no request goes there."""

# The SDK insists on a key. Requests are signed with AWS's credentials.
_NO_KEY: Final = "unused"


def http_client(
    client: Client,
    *,
    route: Route = "invocations",
    models: Models | None = None,
    default_model: str | None = None,
    container_model: str | None = "",
    paths: Iterable[str] | None = None,
) -> httpx2.AsyncClient:
    """An HTTP client for the OpenAI SDK, whose requests are calls of an endpoint.

    Credentials, retries, concurrency limits and deadlines are the client's; the SDK does not retry. A ``timeout`` of
    the SDK becomes the call's ``deadline``, and for a stream the longest silence as well, where it is shorter than the
    client's own. The base URL does not matter.

    Headers such as ``X-Amzn-SageMaker-Custom-Attributes`` in ``extra_headers`` become the parameters of those names.

    Closing it does not close the ``client``.

    Args:
        client: makes the calls.
        route: ``"invocations"`` calls InvokeEndpoint and InvokeEndpointWithResponseStream, for any container that takes
            OpenAI's requests there: vLLM, SGLang, LMI, TGI. ``"openai"`` calls the endpoint's OpenAI route with a
            bearer token; it has chat completions alone.
        models: where the models are, by the names that requests give: an endpoint's name, ``(endpoint, component)``, or
            a `Deployment`. If None, the name of a model is that of an endpoint.
        default_model: the name for requests without one. If None, they are refused.
        container_model: what the container gets as ``model``. vLLM refuses names that it does not know, such as an
            endpoint's, and takes an empty one. If None, it gets what the request gives. Defaults to an empty name.
        paths: OpenAI's paths that the container serves at its ``/invocations``. Defaults to ``chat/completions``,
            ``completions`` and ``embeddings``.

    Raises:
        ParamValidationError: an argument cannot be what it should be.

    >>> client = Client("eu-central-1")
    >>> sdk = openai.AsyncOpenAI(http_client=http_client(client), api_key="unused")
    """
    if not isinstance(client, Client):
        raise ParamValidationError([f"client must be an aiosmrt.Client; got {shown(type(client))}"])
    reader = RequestReader(
        route=route, models=models, default_model=default_model, container_model=container_model, paths=paths
    )
    # Without a timeout, so that the SDK passes on those of its users alone. Variables of the environment
    # would put a proxy in the place of the transport.
    return QuickAsyncClient(
        transport=ClientTransport(client, reader, route), base_url=BASE_URL, timeout=None, trust_env=False
    )


def async_openai(
    client: Client,
    *,
    route: Route = "invocations",
    models: Models | None = None,
    default_model: str | None = None,
    container_model: str | None = "",
    paths: Iterable[str] | None = None,
    **options: Any,
) -> openai.AsyncOpenAI:
    """An `openai.AsyncOpenAI` whose requests are calls of an endpoint.

    It makes the objects of answers by pydantic's validator where that makes the same ones as the SDK, which spares most
    of the CPU time of a streamed token.

    Args:
        client: makes the calls, as do the next five arguments for `http_client`.
        route: see `http_client`.
        models: see `http_client`.
        default_model: see `http_client`.
        container_model: see `http_client`.
        paths: see `http_client`.
        options: those of `openai.AsyncOpenAI`, such as ``timeout``.

    Raises:
        ParamValidationError: an argument cannot be what it should be, or ``http_client`` is given.

    >>> llm = async_openai(Client("eu-central-1"), models={"qwen": ("llm", "qwen-component")}, timeout=30.0)
    """
    if "http_client" in options:
        raise ParamValidationError(["http_client cannot be given here; pass your own to openai.AsyncOpenAI"])
    http = http_client(
        client,
        route=route,
        models=models,
        default_model=default_model,
        container_model=container_model,
        paths=paths,
    )
    settings: dict[str, Any] = {"api_key": _NO_KEY, "base_url": BASE_URL, "max_retries": 0, **options}
    return QuickAsyncOpenAI(http_client=http, **settings)
