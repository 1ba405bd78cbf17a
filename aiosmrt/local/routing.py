"""Endpoint configurations as in SageMaker, and the choice of the backend for a call.

An ``EndpointConfiguration`` is what a user writes; an ``Endpoint`` is its live form. The choice follows the service: a
session goes to the backend that holds it, an inference component to its own backend, a target variant to that variant,
and everything else to a variant by weight. An instance of the variant is then chosen at random, which is the service's
default routing strategy, and on a multi-container endpoint the container that the call names.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar, cast

import aiohttp

from aiosmrt._wire.s3uri import split_s3_uri
from aiosmrt.errors import ConfigurationError
from aiosmrt.local.backends import BackendSource, Container, Pipeline, Route, as_backend
from aiosmrt.local.capacity import Capacity
from aiosmrt.local.error_responses import (
    CallContext,
    ErrorAnswer,
    ErrorReply,
    container_not_found,
    container_required,
    container_unsupported,
    validation_error,
)
from aiosmrt.local.sessions import SessionTable

__all__ = [
    "AsyncInferenceConfig",
    "Endpoint",
    "EndpointConfiguration",
    "EndpointSource",
    "InferenceComponent",
    "InstanceSource",
    "MultiContainer",
    "ProductionVariant",
]

_NAME = re.compile("[a-zA-Z0-9](-*[a-zA-Z0-9])*")
MAX_CONTAINERS: Final = 15  # of a multi-container endpoint, as AWS documents it

NO_CAPACITY: Final = (
    "Inference Component has no capacity to process this request. ApplicationAutoScaling may be in-progress "
    "(if configured) or try to increase the capacity by invoking UpdateInferenceComponentRuntimeConfig API."
)


@dataclass(frozen=True, slots=True)
class MultiContainer:
    """The containers of a multi-container model.

    Args:
        containers: what serves each container, by hostname; 1 to 15 of them.
        mode: ``Direct``: every call names one of them with ``TargetContainerHostname``. ``Serial``, an inference
            pipeline: each gets the response of the one before it, and calls name none. Defaults to ``Direct``.

    Raises:
        ConfigurationError: too few or too many containers, an invalid hostname, or another mode.
    """

    containers: Mapping[str, BackendSource]
    mode: Literal["Direct", "Serial"] = "Direct"

    def __post_init__(self) -> None:
        if self.mode not in ("Direct", "Serial"):
            raise ConfigurationError(f"the mode of a MultiContainer must be Direct or Serial; got {self.mode!r:.80}")
        if not 1 <= len(self.containers) <= MAX_CONTAINERS:
            raise ConfigurationError(
                f"a MultiContainer needs 1 to {MAX_CONTAINERS} containers; got {len(self.containers)}"
            )
        for hostname in self.containers:
            _checked_name(hostname, "container hostname")


InstanceSource = BackendSource | MultiContainer
_Source = TypeVar("_Source", bound=InstanceSource)


@dataclass(frozen=True, slots=True)
class ProductionVariant:
    """A share of an endpoint's traffic and what serves it.

    Args:
        target: what serves it, or a sequence with one entry per instance.
        name: the variant's name. Defaults to ``AllTraffic``.
        weight: its share relative to the other variants; 0 takes only calls that name it. Defaults to 1.
    """

    target: InstanceSource | Sequence[InstanceSource]
    name: str = "AllTraffic"
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class InferenceComponent:
    """A model on a shared endpoint, which calls name with ``InferenceComponentName``.

    Args:
        target: what serves it, or a sequence with one entry per copy; an empty sequence is scaled to zero.
        name: the component's name.
        variant: the production variant that it runs on. Defaults to ``AllTraffic``.
    """

    target: BackendSource | Sequence[BackendSource]
    name: str
    variant: str = "AllTraffic"


@dataclass(frozen=True, slots=True)
class AsyncInferenceConfig:
    """Asynchronous inference of an endpoint.

    Args:
        s3_output_path: where results are written, ``s3://bucket`` or ``s3://bucket/prefix``.
        s3_failure_path: where failures are written, likewise. If None, none are written, and callers cannot tell a
            failure from a result that takes long.
        max_concurrent_invocations_per_instance: how many calls an instance serves at once, 1 to 1000. Defaults to 4;
            AWS chooses its own default.

    Raises:
        ConfigurationError: a path is not an S3 URI, or the number is out of range.
    """

    s3_output_path: str
    s3_failure_path: str | None = None
    max_concurrent_invocations_per_instance: int = 4

    def __post_init__(self) -> None:
        for name, path in (("s3_output_path", self.s3_output_path), ("s3_failure_path", self.s3_failure_path)):
            if path is not None and split_s3_uri(path) is None:
                raise ConfigurationError(f"{name} must have the form s3://bucket/prefix; got {path!r}")
        if not 1 <= self.max_concurrent_invocations_per_instance <= 1000:
            raise ConfigurationError(
                "max_concurrent_invocations_per_instance must be an integer from 1 to 1000; "
                f"got {self.max_concurrent_invocations_per_instance}"
            )


@dataclass(frozen=True, slots=True)
class EndpointConfiguration:
    """The configuration of one endpoint.

    Args:
        variants: its production variants; empty for an endpoint with inference components.
        inference_components: its inference components; empty for an endpoint with production variants.
        multi_model: whether it is a multi-model endpoint, whose calls must name a ``TargetModel``. Defaults to False:
            as in the service, other endpoints reject that parameter.
        model_timeout: seconds that a model has to answer. Defaults to the runtime's ``model_timeout``.
        session_seconds: lifetime in seconds of a session with a Python callable, unless the callable names an expiry.
            Defaults to 1200.
        async_inference: makes it an asynchronous endpoint, which rejects synchronous and streaming calls as the service
            does. If None, it rejects asynchronous calls.
        capacity: how many calls it carries out at once, how long they take, and what it refuses. If None, every call
            goes to its backend at once. Waiting and working count towards ``model_timeout``.
    """

    variants: Sequence[ProductionVariant] = ()
    inference_components: Sequence[InferenceComponent] = ()
    multi_model: bool = False
    model_timeout: float | None = None
    session_seconds: float = 1200.0
    async_inference: AsyncInferenceConfig | None = None
    capacity: Capacity | None = None

    def containers(self) -> list[Container]:
        """Return the containers to start, each once."""
        parts: list[ProductionVariant | InferenceComponent] = [*self.variants, *self.inference_components]
        found: dict[int, Container] = {}
        for part in parts:
            for source in _backend_sources(part.target):
                if isinstance(source, Container):
                    found[id(source)] = source
        return list(found.values())


EndpointSource = InstanceSource | ProductionVariant | Sequence[ProductionVariant] | EndpointConfiguration


def as_configuration(source: EndpointSource) -> EndpointConfiguration:
    """Expand a user's short form to a configuration."""
    if isinstance(source, EndpointConfiguration):
        return source
    if isinstance(source, ProductionVariant):
        return EndpointConfiguration((source,))
    if isinstance(source, Sequence) and not isinstance(source, str):
        if not all(isinstance(variant, ProductionVariant) for variant in source):
            raise ConfigurationError("an endpoint given as a sequence must contain ProductionVariant objects only")
        return EndpointConfiguration(tuple(source))
    return EndpointConfiguration((ProductionVariant(source),))


# The route to each container of an instance by hostname; None is the key where an instance has a single container.
_Instance = Mapping[str | None, Route]


@dataclass(frozen=True, slots=True)
class _Share:
    name: str
    weight: float
    instances: tuple[_Instance, ...]


class Endpoint:
    """A configured endpoint with its live sessions.

    Args:
        name: the endpoint's name.
        configuration: its configuration.
        session: returns the HTTP session for backends that are URLs.

    Raises:
        ConfigurationError: an invalid name or weight, a combination that the service does not offer, or an endpoint
            without a backend.
    """

    def __init__(
        self, name: str, configuration: EndpointConfiguration, session: Callable[[], aiohttp.ClientSession]
    ) -> None:
        self.name: str = _checked_name(name, "endpoint name")
        self.configuration = configuration
        self.sessions: SessionTable = SessionTable()
        if bool(configuration.variants) == bool(configuration.inference_components):
            raise ConfigurationError(f"endpoint {name} needs either production variants or inference components")
        self._shares: dict[str, _Share] = {}
        for variant in configuration.variants:
            _checked_name(variant.name, f"production variant name of endpoint {name}")
            if variant.name in self._shares:
                raise ConfigurationError(f"endpoint {name} has two production variants named {variant.name}")
            if not 0 <= variant.weight < float("inf"):
                raise ConfigurationError(
                    f"the weight of production variant {variant.name} of endpoint {name} must be a number >= 0; "
                    f"got {variant.weight}"
                )
            instances = tuple(_instance(variant.name, one, session) for one in _as_sequence(variant.target))
            if not instances:
                raise ConfigurationError(f"production variant {variant.name} of endpoint {name} needs a target")
            self._shares[variant.name] = _Share(variant.name, variant.weight, instances)
        if configuration.variants and not any(variant.weight for variant in configuration.variants):
            raise ConfigurationError(f"every production variant of endpoint {name} has weight 0")
        if configuration.async_inference is not None:
            self._check_asynchronous()
        self._components: dict[str, tuple[Route, ...]] = {}
        for component in configuration.inference_components:
            _checked_name(component.name, f"inference component name of endpoint {name}")
            if component.name in self._components:
                raise ConfigurationError(f"endpoint {name} has two inference components named {component.name}")
            self._components[component.name] = tuple(
                Route(component.variant, as_backend(one, session), component.name)
                for one in _as_sequence(component.target)
            )

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} variants={list(self._shares)} components={list(self._components)}>"

    @property
    def instances(self) -> int:
        """The number of instances of all its production variants."""
        return sum(len(share.instances) for share in self._shares.values())

    def _check_asynchronous(self) -> None:
        """Reject what InvokeEndpointAsync has no parameter for."""
        several = any(None not in one for share in self._shares.values() for one in share.instances)
        for given, what in (
            (bool(self.configuration.inference_components), "inference components"),
            (self.configuration.multi_model, "several models"),
            (several, "several containers"),
            (self.configuration.capacity is not None, "a capacity"),
        ):
            if given:
                raise ConfigurationError(f"endpoint {self.name} has {what} and cannot be asynchronous")

    def choose(
        self,
        context: CallContext,
        chance: random.Random,
        *,
        target_variant: str | None,
        component: str | None,
        hostname: str | None,
    ) -> Route:
        """Choose the route of a call without a session.

        Args:
            context: the call, for the message of an error.
            chance: the source of random numbers.
            target_variant: the requested variant. If None, the weights decide.
            component: the requested inference component, if any.
            hostname: the requested container of a multi-container endpoint, if any.

        Raises:
            ErrorReply: the variant, component or container does not exist, or has no capacity.
        """
        if component is not None or self._components:
            routes = self._component_routes(context, component)
            if hostname is not None:
                raise ErrorReply(container_unsupported(context))
            if target_variant is not None and target_variant != routes[0].variant:
                raise ErrorReply(_variant_not_found(context, target_variant))
            return chance.choice(routes)
        if target_variant is not None:
            share = self._shares.get(target_variant)
            if share is None:
                raise ErrorReply(_variant_not_found(context, target_variant))
        else:
            shares = list(self._shares.values())
            share = chance.choices(shares, [share.weight for share in shares])[0]
        return _container_route(chance.choice(share.instances), context, hostname)

    def _component_routes(self, context: CallContext, component: str | None) -> tuple[Route, ...]:
        if not self._components:
            raise ErrorReply(
                validation_error(
                    "Inference Component Name header is not allowed for endpoints to which you dont plan to deploy "
                    "inference components. Please remove the Inference Component Name header and try again."
                )
            )
        if component is None:
            raise ErrorReply(
                validation_error(
                    "Inference Component Name header is required for endpoints to which you plan to deploy inference "
                    "components. Please include Inference Component Name header or consider using SageMaker models."
                )
            )
        routes = self._components.get(component)
        if routes is None:
            raise ErrorReply(
                validation_error(f"Inference Component {component} of account {context.account_id} not found.")
            )
        if not routes:
            raise ErrorReply(validation_error(NO_CAPACITY))
        return routes


def _as_sequence(target: _Source | Sequence[_Source]) -> Sequence[_Source]:
    if isinstance(target, Sequence) and not isinstance(target, str):
        return target
    return (cast("_Source", target),)


def _backend_sources(target: InstanceSource | Sequence[InstanceSource]) -> Iterator[BackendSource]:
    for source in _as_sequence(target):
        if isinstance(source, MultiContainer):
            yield from source.containers.values()
        else:
            yield source


def _instance(variant: str, source: InstanceSource, session: Callable[[], aiohttp.ClientSession]) -> _Instance:
    if isinstance(source, MultiContainer) and source.mode == "Serial":
        stages = {hostname: as_backend(one, session) for hostname, one in source.containers.items()}
        return {None: Route(variant, Pipeline(stages))}
    if isinstance(source, MultiContainer):
        return {
            hostname: Route(variant, as_backend(one, session), container=hostname)
            for hostname, one in source.containers.items()
        }
    return {None: Route(variant, as_backend(source, session))}


def _container_route(instance: _Instance, context: CallContext, hostname: str | None) -> Route:
    route = instance.get(hostname)
    if route is not None:
        return route
    if hostname is None:
        raise ErrorReply(container_required(context))
    if None in instance:
        raise ErrorReply(container_unsupported(context))
    raise ErrorReply(container_not_found(context, hostname))


def _checked_name(name: str, what: str) -> str:
    if len(name) > 63 or not _NAME.fullmatch(name):
        raise ConfigurationError(f"invalid {what} {name!r}; accepted are up to 63 letters, digits and inner hyphens")
    return name


def _variant_not_found(context: CallContext, variant: str) -> ErrorAnswer:
    return validation_error(
        f"Variant {variant} of Endpoint {context.endpoint} of account {context.account_id} not found."
    )
