"""The configuration of a local runtime in TOML.

The file is read strictly: a key that is unknown, missing or of the wrong type is an error that names it.

    region = "us-east-1"                # also account_id, port, verify_signatures, model_timeout, stream_timeout,
    seed = 7                            # max_body_bytes, max_response_bytes, keepalive_timeout, drain_timeout; the
                                        # seed makes random choices repeatable

    [[credentials]]                     # accepted signatures; defaults to the environment's credentials
    access_key = "AKIDEXAMPLE"          # and optionally token
    secret_key = "not-a-real-secret"

    [object_storage]                    # the S3 for asynchronous inference; also region
    endpoint_url = "http://127.0.0.1:8333"
    buckets = ["results"]               # the only ones that are accessed
    access_key = "AKIDEXAMPLE"          # and optionally token
    secret_key = "not-a-real-secret"

    [endpoints.churn]                   # one backend: url, handler ("module:function"), container or containers; also
    url = "http://127.0.0.1:8080"       # multi_model, model_timeout, session_seconds

    [endpoints.churn.capacity]          # how many calls at once, and how long they take; see ``Capacity``
    workers = [[0, 8], [15, 32]]        # from which second on; or one number
    queue = 16                          # also seconds, sigma, times, batch, quota, burst, refused

    [endpoints.churn.async_inference]   # also max_concurrent_invocations_per_instance
    s3_output_path = "s3://results/churn"
    s3_failure_path = "s3://results/churn/failed"

    [[endpoints.digits.variants]]       # or several variants
    name = "Blue"
    weight = 3
    container = { command = ["python", "serve.py"], environment = { THREADS = "1" }, startup_timeout = 30 }

    [[endpoints.digits.variants]]
    name = "Green"
    instances = [{ url = "http://127.0.0.1:8081" }, { url = "http://127.0.0.1:8082" }]

    [endpoints.pair.containers]         # a multi-container endpoint: the containers by hostname
    first = { url = "http://127.0.0.1:8083" }
    second = { url = "http://127.0.0.1:8084" }
                                        # container_mode = "Serial" in [endpoints.pair] makes them a pipeline

    [[endpoints.shared.inference_components]]
    name = "adapter"
    handler = "my_models:adapter"

    [[endpoints.churn.faults]]          # at the top level, [[faults]] apply to all endpoints
    effect = "throttling"
    next = 3

    [[endpoints.churn.faults]]
    effect = "reset_after_headers"
    after_bytes = 100
    every = 10                          # or probability = 0.1; operation = "InvokeEndpoint" limits any of them

Paths are relative to the file. ``EFFECTS`` maps the names of effects to the callables that take their arguments.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import random
import tomllib
import types
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.errors import ConfigurationError
from aiosmrt.local import faults
from aiosmrt.local.backends import BackendSource, base_url
from aiosmrt.local.capacity import Capacity, Times
from aiosmrt.local.containers import ModelContainer
from aiosmrt.local.fault_schedule import Effect, Fault, Schedule
from aiosmrt.local.objectstorage import ObjectStorage
from aiosmrt.local.routing import (
    AsyncInferenceConfig,
    EndpointConfiguration,
    InferenceComponent,
    InstanceSource,
    MultiContainer,
    ProductionVariant,
)

__all__ = ["EFFECTS", "load_settings", "parse_settings"]

_T = TypeVar("_T")

EFFECTS: Final[Mapping[str, Callable[..., Effect]]] = {
    "throttling": faults.throttling,
    "too_many_requests": faults.too_many_requests,
    "model_not_ready": faults.model_not_ready,
    "internal_failure": faults.internal_failure,
    "service_unavailable": faults.service_unavailable,
    "bad_gateway": faults.bad_gateway,
    "gateway_timeout": faults.gateway_timeout,
    "internal_dependency": faults.internal_dependency,
    "no_capacity": faults.no_capacity,
    "validation_error": faults.validation_failure,
    "model_failure": faults.ModelFailure,
    "signature_expired": faults.SignatureExpired,
    "skewed_clock": faults.SkewedClock,
    "reset_before_headers": faults.ResetBeforeHeaders,
    "close_before_headers": faults.CloseBeforeHeaders,
    "stall": faults.Stall,
    "reset_after_headers": faults.ResetAfterHeaders,
    "reset_stream": faults.ResetStream,
    "go_away": faults.GoAway,
    "truncate": faults.Truncate,
    "corrupt": faults.Corrupt,
    "stall_in_body": faults.StallInBody,
    "drip": faults.Drip,
    "stream_failure": faults.StreamFailure,
    "idle_close": faults.IdleClose,
}

_TOP_LEVEL: Final[Mapping[str, Any]] = {
    "region": str,
    "account_id": str,
    "port": int,
    "http2_port": int,
    "http2_tls": bool,
    "http2_window_bytes": int,
    "http2_max_streams": int,
    "http2_stream_seconds": float,
    "verify_signatures": bool,
    "model_timeout": float,
    "stream_timeout": float,
    "max_body_bytes": int,
    "max_response_bytes": int,
    "keepalive_timeout": float,
    "drain_timeout": float,
}


class _Table:
    """A TOML table whose keys are taken one by one; a leftover key is an error."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self._values = dict(values)
        self._known: list[str] = []
        self._path = path

    def name(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def error(self, key: str, reason: str) -> ConfigurationError:
        return ConfigurationError(f"{self.name(key)}: {reason}")

    def take(self, key: str, kind: Any) -> Any:
        """Return the value of a key, or None if it is missing."""
        self._known.append(key)
        if key not in self._values:
            return None
        value = self._values.pop(key)
        if not _fits(value, kind):
            raise self.error(key, f"must be {_described(kind)}; got {_shown(value)}")
        return float(value) if kind is float else value

    def need(self, key: str, kind: Any) -> Any:
        value = self.take(key, kind)
        if value is None:
            raise self.error(key, "is missing")
        return value

    def table(self, key: str) -> _Table | None:
        values = self.take(key, dict)
        return None if values is None else _Table(values, self.name(key))

    def tables(self, key: str) -> list[_Table]:
        items = self.take(key, list) or []
        for i, values in enumerate(items):
            if not isinstance(values, dict):
                raise self.error(f"{key}[{i}]", f"must be a table; got {_shown(values)}")
        return [_Table(values, self.name(f"{key}[{i}]")) for i, values in enumerate(items)]

    def children(self) -> dict[str, _Table]:
        """Return every remaining key as a table."""
        return {key: cast("_Table", self.table(key)) for key in list(self._values)}

    def end(self) -> None:
        for key in self._values:
            near = difflib.get_close_matches(key, self._known, 1)
            raise self.error(key, f"is unknown{f'; did you mean {near[0]}?' if near else ''}")


def load_settings(path: Path) -> dict[str, Any]:
    """Read a file into the arguments of ``LocalRuntime``.

    Args:
        path: the file.

    Raises:
        ConfigurationError: it cannot be read, is not TOML, or a key is unknown or has an invalid value.
    """
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    try:
        return parse_settings(document, path.parent)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def parse_settings(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Turn a TOML document into the arguments of ``LocalRuntime``.

    Args:
        document: the document.
        folder: the base of relative paths.

    Raises:
        ConfigurationError: a key is unknown or has an invalid value.

    >>> parse_settings({"region": "eu-west-1", "endpoints": {"churn": {"url": "http://127.0.0.1:8080"}}}, Path())
    ... # doctest: +ELLIPSIS
    {'region': 'eu-west-1', 'endpoints': {'churn': EndpointConfiguration(...)}, 'faults': {}}
    >>> parse_settings({"reigon": "eu-west-1"}, Path())
    Traceback (most recent call last):
    aiosmrt.errors.ConfigurationError: reigon: is unknown; did you mean region?
    """
    top = _Table(document, "")
    settings = {key: value for key, kind in _TOP_LEVEL.items() if (value := top.take(key, kind)) is not None}
    seed = top.take("seed", int)
    if seed is not None:
        settings["chance"] = random.Random(seed)  # noqa: S311 - routing, not secrets
    credentials = [_credentials(table) for table in top.tables("credentials")]
    if credentials:
        settings["credentials"] = credentials
    if (storage := top.table("object_storage")) is not None:
        settings["object_storage"] = _object_storage(storage)
    script: dict[str, list[Fault]] = {}
    if for_all := _faults(top):
        script["*"] = for_all
    endpoints = {}
    table = top.table("endpoints")
    for name, endpoint in {} if table is None else table.children().items():
        if acting := _faults(endpoint):
            script[name] = acting
        endpoints[name] = _endpoint(endpoint, folder)
    top.end()
    return {**settings, "endpoints": endpoints, "faults": script}


def _credentials(table: _Table) -> Credentials:
    credentials = _keys(table)
    table.end()
    return credentials


def _keys(table: _Table) -> Credentials:
    try:
        return Credentials(table.need("access_key", str), table.need("secret_key", str), token=table.take("token", str))
    except ValueError as error:
        raise table.error("access_key", str(error)) from error


def _object_storage(table: _Table) -> ObjectStorage:
    buckets = table.need("buckets", list)
    if not all(isinstance(bucket, str) for bucket in buckets):
        raise table.error("buckets", "must be a list of strings")
    region = {} if (name := table.take("region", str)) is None else {"region": name}
    endpoint_url, credentials = table.need("endpoint_url", str), _keys(table)
    table.end()
    try:
        return ObjectStorage(endpoint_url=endpoint_url, credentials=credentials, buckets=buckets, **region)
    except ConfigurationError as error:
        raise table.error("endpoint_url", str(error)) from error


def _async_inference(table: _Table) -> AsyncInferenceConfig:
    output, failure = table.need("s3_output_path", str), table.take("s3_failure_path", str)
    limit = "max_concurrent_invocations_per_instance"
    given = {} if (number := table.take(limit, int)) is None else {limit: number}
    table.end()
    try:
        return AsyncInferenceConfig(output, failure, **given)
    except ConfigurationError as error:
        raise table.error("s3_output_path", str(error)) from error


def _capacity(table: _Table) -> Capacity:
    workers = table.need("workers", int | list)
    if isinstance(workers, list):
        for step in workers:
            if not (isinstance(step, list) and len(step) == 2 and _fits(step[0], float) and _fits(step[1], int)):
                raise table.error("workers", "must be an integer or steps such as [[0, 8], [15, 32]]")
        workers = [(float(second), number) for second, number in workers]
    kinds = {
        "queue": int,
        "seconds": float,
        "sigma": float,
        "times": Times,
        "batch": float,
        "quota": float,
        "burst": float,
        "refused": float,
    }
    others = {key: value for key, kind in kinds.items() if (value := table.take(key, kind)) is not None}
    table.end()
    try:
        return Capacity(workers=workers, **others)
    except ConfigurationError as error:
        raise table.error("workers", str(error)) from error


def _endpoint(table: _Table, folder: Path) -> EndpointConfiguration:
    variants = [_variant(one, folder) for one in table.tables("variants")]
    components = [_component(one, folder) for one in table.tables("inference_components")]
    if not variants and not components:
        variants = [ProductionVariant(_instance(table, folder))]
    given = {
        key: value
        for key, kind in (("multi_model", bool), ("model_timeout", float), ("session_seconds", float))
        if (value := table.take(key, kind)) is not None
    }
    if (asynchronous := table.table("async_inference")) is not None:
        given["async_inference"] = _async_inference(asynchronous)
    if (capacity := table.table("capacity")) is not None:
        given["capacity"] = _capacity(capacity)
    table.end()
    return EndpointConfiguration(variants, components, **given)


def _variant(table: _Table, folder: Path) -> ProductionVariant:
    name, weight = table.need("name", str), table.take("weight", float)
    variant = ProductionVariant(_several(table, folder, _instance), name, 1.0 if weight is None else weight)
    table.end()
    return variant


def _component(table: _Table, folder: Path) -> InferenceComponent:
    name, variant = table.need("name", str), table.take("variant", str)
    component = InferenceComponent(_several(table, folder, _backend), name, variant or "AllTraffic")
    table.end()
    return component


def _several(table: _Table, folder: Path, one: Callable[[_Table, Path], _T]) -> list[_T]:
    """Read a table with one backend, or with several under ``instances``."""
    instances = table.take("instances", list)
    if instances is None:
        return [one(table, folder)]
    found = []
    for i, values in enumerate(instances):
        if not isinstance(values, dict):
            raise table.error(f"instances[{i}]", f"must be a table; got {_shown(values)}")
        instance = _Table(values, table.name(f"instances[{i}]"))
        found.append(one(instance, folder))
        instance.end()
    return found


def _instance(table: _Table, folder: Path) -> InstanceSource:
    containers = table.table("containers")
    if containers is None:
        return _backend(table, folder)
    backends = {}
    for hostname, container in containers.children().items():
        backends[hostname] = _backend(container, folder)
        container.end()
    mode: Any = table.take("container_mode", str)
    try:
        return MultiContainer(backends, "Direct" if mode is None else mode)
    except ConfigurationError as error:
        raise table.error("containers", str(error)) from error


def _backend(table: _Table, folder: Path) -> BackendSource:
    url, handler, container = table.take("url", str), table.take("handler", str), table.table("container")
    if sum(given is not None for given in (url, handler, container)) != 1:
        raise table.error("url", "exactly one of url, handler and container is required")
    if container is not None:
        return _container(container, folder)
    if handler is not None:
        return _handler(table, handler)
    try:
        base_url(url)
    except ConfigurationError as error:
        raise table.error("url", str(error)) from error
    return cast("str", url)


def _container(table: _Table, folder: Path) -> ModelContainer:
    command = table.need("command", list)
    if not command or not all(isinstance(argument, str) for argument in command):
        raise table.error("command", "must be a list of strings: the program and its arguments")
    environment = table.take("environment", dict)
    for name, value in (environment or {}).items():
        if not isinstance(value, str):
            raise table.error(f"environment.{name}", f"must be a string; got {_shown(value)}")
    folders = {key: folder / value for key in ("model_dir", "working_dir") if (value := table.take(key, str))}
    kinds = {"inherit_aws": bool, "port": int, "startup_timeout": float, "grace": float}
    others = {key: value for key, kind in kinds.items() if (value := table.take(key, kind)) is not None}
    table.end()
    return ModelContainer(command, environment=environment, **folders, **others)


def _handler(table: _Table, handler: str) -> BackendSource:
    try:
        return import_handler(handler)
    except ConfigurationError as error:
        raise table.error("handler", str(error)) from error.__cause__


def import_handler(handler: str) -> BackendSource:
    """Import a model that is a Python function.

    Args:
        handler: its module and its name there, as ``module:function``; for a method, ``module:object.method``.

    Raises:
        ConfigurationError: it has another form, cannot be imported, or is not callable.

    >>> import_handler("json")
    Traceback (most recent call last):
        ...
    aiosmrt.errors.ConfigurationError: must have the form "module:function"; got 'json'
    """
    module, _, attribute = handler.partition(":")
    if not module or not attribute:
        raise ConfigurationError(f'must have the form "module:function"; got {handler!r}')
    try:
        function = attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"cannot be imported: {error}") from error
    if not callable(function):
        raise ConfigurationError(f"{handler} is not callable")
    return cast("BackendSource", function)


def _faults(table: _Table) -> list[Fault]:
    return [_fault(one) for one in table.tables("faults")]


def _fault(table: _Table) -> Fault:
    name = table.need("effect", str)
    make = EFFECTS.get(name)
    if make is None:
        near = difflib.get_close_matches(name, EFFECTS, 1)
        raise table.error("effect", f"{name!r} is unknown{f'; did you mean {near[0]}?' if near else ''}")
    hints = get_type_hints(make)
    arguments = {}
    for parameter in inspect.signature(make).parameters.values():
        value = table.take(parameter.name, hints[parameter.name])
        if value is not None:
            arguments[parameter.name] = value
        elif parameter.default is parameter.empty:
            raise table.error(parameter.name, "is missing")
    when = {
        key: value
        for key, kind in (("next", int), ("every", int), ("probability", float), ("operation", str))
        if (value := table.take(key, kind)) is not None
    }
    table.end()
    try:
        return Fault(make(**arguments), Schedule(**when))
    except ConfigurationError as error:
        raise table.error("effect", str(error)) from error


def _fits(value: object, kind: Any) -> bool:
    if get_origin(kind) in (types.UnionType, Union):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _described(kind: Any) -> str:
    if get_origin(kind) in (types.UnionType, Union):
        return " or ".join(_described(one) for one in get_args(kind) if one is not types.NoneType)
    if get_origin(kind) is Literal:
        return " or ".join(repr(one) for one in get_args(kind))
    names = {str: "a string", int: "an integer", float: "a number", bool: "true or false", dict: "a table"}
    return names.get(kind, "a list")


def _shown(value: object) -> str:
    names = {str: "a string", int: "an integer", float: "a number", bool: "a boolean", dict: "a table", list: "a list"}
    return names.get(type(value), type(value).__name__)
