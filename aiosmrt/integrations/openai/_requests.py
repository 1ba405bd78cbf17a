"""From an OpenAI client's request to a call of an endpoint; what cannot be one is refused before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import httpx2

from aiosmrt._wire.operations import CHAT_COMPLETIONS, INVOKE_ENDPOINT
from aiosmrt.config import UNSET, Unset, shown
from aiosmrt.errors import ParamValidationError
from aiosmrt.integrations.openai._json import dumps, loads

__all__ = ["PATHS", "Deployment", "Generation", "Models", "Refusal", "RequestReader", "Route"]

Route: TypeAlias = Literal["invocations", "openai"]

PATHS: Final = ("chat/completions", "completions", "embeddings")
"""OpenAI's paths that model servers tell apart at ``/invocations`` by the body's members."""

_CHAT: Final = "chat/completions"
_EMBEDDINGS: Final = "embeddings"

# Headers that a caller may give, such as by the SDK's `extra_headers`: all of AWS's but for those that a body has.
_OF_SAGEMAKER: Final = b"x-amzn-sagemaker-"
_MEMBERS: Final = {
    member.header.lower(): member.name
    for member in INVOKE_ENDPOINT.members
    if member.header is not None and member.header.lower().startswith(_OF_SAGEMAKER.decode())
}
_OF_OPENAI_ROUTE: Final = {member.name for member in CHAT_COMPLETIONS.members}


class Deployment(NamedTuple):
    """Where a model is: an endpoint, or an inference component of one.

    Args:
        endpoint: the endpoint's name.
        component: the inference component's name. Defaults to None, for an endpoint without components.
        container_model: what its container gets as ``model``. If None, the caller's name. Defaults to the HTTP
            client's ``container_model``.
    """

    endpoint: str
    component: str | None = None
    container_model: str | Unset | None = UNSET


Models: TypeAlias = Mapping[str, "str | tuple[str, str | None] | Deployment"]


class Generation(NamedTuple):
    """A call to make.

    Args:
        path: OpenAI's path, without a leading slash.
        model: the name that the caller gave.
        streams: whether the answer is to be a stream.
        params: the call's parameters under AWS's names, the body included.
    """

    path: str
    model: str
    streams: bool
    params: dict[str, Any]

    def __repr__(self) -> str:
        return f"<Generation {self.path} model={self.model!r} streams={self.streams}>"


class Refusal(Exception):
    """A request that cannot be sent.

    Args:
        status: the HTTP status of the answer.
        code: OpenAI's code of the error.
        message: what is wrong, what was given and what is accepted.
        param: the faulty member of the body. Defaults to None, if the fault is elsewhere.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


class RequestReader:
    """Reads requests of OpenAI clients.

    Args:
        route: ``"invocations"`` or ``"openai"``.
        models: where the models are, by the names that callers use. If None, a name is that of an endpoint.
        default_model: the name for requests without one. If None, they are refused.
        container_model: what containers get as ``model``. If None, the name that the caller gave.
        paths: OpenAI's paths that the containers serve.

    Raises:
        ParamValidationError: an argument cannot be what it should be.
    """

    def __init__(
        self,
        *,
        route: Route,
        models: Models | None,
        default_model: str | None,
        container_model: str | None,
        paths: Iterable[str] | None,
    ) -> None:
        faults = []
        if route not in ("invocations", "openai"):
            faults.append(f"route must be 'invocations' or 'openai'; got {shown(route)}")
        if not (default_model is None or isinstance(default_model, str)):
            faults.append(f"default_model must be a string or None; got {type(default_model)}")
        if not (container_model is None or isinstance(container_model, str)):
            faults.append(f"container_model must be a string or None; got {type(container_model)}")
        if isinstance(paths, str) or not all(isinstance(path, str) and path.strip("/") for path in paths or ()):
            faults.append(f"paths must be OpenAI's paths, such as 'embeddings'; got {shown(paths)}")
        elif paths is not None and route == "openai":
            faults.append("paths cannot be given with route 'openai', which serves chat/completions only")
        self._deployments = None if models is None else _deployments(models, faults)
        if isinstance(default_model, str) and self._deployments and default_model not in self._deployments:
            known = ", ".join(self._deployments)
            faults.append(f"default_model must be one of models: {known}; got {shown(default_model)}")
        if faults:
            raise ParamValidationError(faults)
        given = (_CHAT,) if route == "openai" else PATHS if paths is None else [path.strip("/") for path in paths]
        # The longest first: "completions" is the end of "chat/completions".
        self._paths = sorted(dict.fromkeys(given), key=len, reverse=True)
        self._members = {
            header: name for header, name in _MEMBERS.items() if route != "openai" or name in _OF_OPENAI_ROUTE
        }
        self._default_model = default_model
        self._container_model = container_model

    def read(self, request: httpx2.Request, content: bytes) -> Generation:
        """The call that a request asks for.

        Args:
            request: the request.
            content: its body.

        Raises:
            Refusal: it asks for none that could be made.
        """
        path = self._path(request)
        try:
            body: Any = loads(content)
        except (ValueError, RecursionError):
            body = None
        del content
        if not isinstance(body, dict):
            raise Refusal(400, "invalid_request_error", "the request's body must be a JSON object")
        model = body.get("model") or self._default_model
        if not isinstance(model, str):
            given = "none" if not body.get("model") else f"one of type {type(model).__name__}"
            raise Refusal(400, "missing_model", f"the request must name its model; got {given}", "model")
        streams = body.get("stream") is True
        if streams and path == _EMBEDDINGS:
            raise Refusal(400, "unsupported_value", f"{path} cannot be streamed; leave out stream=True", "stream")
        endpoint, component, container_model = self._deployment(model)
        if container_model is not None:
            body["model"] = container_model
        params = {"EndpointName": endpoint, "Body": dumps(body), "ContentType": "application/json"}
        if component is not None:
            params["InferenceComponentName"] = component
        if any(name.lower().startswith(_OF_SAGEMAKER) for name, _ in request.headers.raw):
            for name, value in request.headers.items():
                member = self._members.get(name)
                if member is not None:
                    params[member] = value
                elif name.encode().startswith(_OF_SAGEMAKER):
                    known = ", ".join(sorted(self._members))
                    raise Refusal(
                        400, "unknown_header", f"no call on this route has a header {shown(name)}; known are {known}"
                    )
        return Generation(path, model, streams, params)

    def _path(self, request: httpx2.Request) -> str:
        url_path = request.url.path
        if request.method == "POST":
            for path in self._paths:
                if url_path.endswith(path) and url_path[: -len(path)].endswith("/"):
                    return path
        served = ", ".join(sorted(self._paths))
        raise Refusal(
            404, "unknown_url", f"only POST requests to {served} are sent to SageMaker; got {request.method} {url_path}"
        )

    def _deployment(self, model: str) -> tuple[str, str | None, str | None]:
        if self._deployments is None:
            return model, None, self._container_model
        found = self._deployments.get(model)
        if found is None:
            known = ", ".join(self._deployments) or "none"
            raise Refusal(404, "model_not_found", f"the model {shown(model)} is not mapped; known are {known}", "model")
        own = found.container_model
        return found.endpoint, found.component, self._container_model if isinstance(own, Unset) else own


def _deployments(models: Models, faults: list[str]) -> dict[str, Deployment]:
    if not isinstance(models, Mapping):
        faults.append(f"models must map names to endpoints; got {type(models)}")
        return {}
    found: dict[str, Deployment] = {}
    for name, given in models.items():
        parts: Any = (given,) if isinstance(given, str) else given
        if isinstance(parts, tuple) and 1 <= len(parts) <= 3:
            one = Deployment(*parts)
            if isinstance(one.endpoint, str) and isinstance(one.component, str | None):
                found[name] = one
                continue
        faults.append(
            f"models must map each name to an endpoint's name, or to (endpoint, component); got {shown(given)} "
            f"for {shown(name)}"
        )
    return found
