"""Endpoints as SageMaker configures them, and the choice of what serves a call.

An ``EndpointConfiguration`` is what a user writes; an ``Endpoint`` is its live form. The choice follows the service: a
session goes to where it lives, an inference component to its own target, a target variant to that variant, and
everything else to a variant by weight. An instance of the variant is then chosen at random, as the service's default
routing strategy does.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from aiosmrt._wire.s3uri import split_s3_uri
from aiosmrt.errors import ConfigurationError
from aiosmrt.local.backends import BackendSource, Container, Route, as_backend
from aiosmrt.local.error_responses import CallContext, ErrorAnswer, ErrorReply, validation_error
from aiosmrt.local.sessions import SessionTable

__all__ = [
    "AsyncInferenceConfig",
    "Endpoint",
    "EndpointConfiguration",
    "EndpointSource",
    "InferenceComponent",
    "ProductionVariant",
]

_NAME = re.compile("[a-zA-Z0-9](-*[a-zA-Z0-9])*")

NO_CAPACITY = (
    "Inference Component has no capacity to process this request. ApplicationAutoScaling may be in-progress "
    "(if configured) or try to increase the capacity by invoking UpdateInferenceComponentRuntimeConfig API."
)


@dataclass(frozen=True, slots=True)
class ProductionVariant:
    """A share of an endpoint's traffic and what serves it.

    Args:
        target: what serves it, or several for as many instances.
        name: the variant's name.
        weight: its share relative to the other variants; 0 takes only calls that name it.
    """

    target: BackendSource | Sequence[BackendSource]
    name: str = "AllTraffic"
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class InferenceComponent:
    """A model on a shared endpoint, which calls name with ``InferenceComponentName``.

    Args:
        target: what serves it, or several for as many copies; an empty sequence is scaled to zero.
        name: the component's name.
        variant: the production variant that it runs on.
    """

    target: BackendSource | Sequence[BackendSource]
    name: str
    variant: str = "AllTraffic"


@dataclass(frozen=True, slots=True)
class AsyncInferenceConfig:
    """How an endpoint takes asynchronous inferences.

    Args:
        s3_output_path: where results go, ``s3://bucket`` or ``s3://bucket/prefix``.
        s3_failure_path: where failures go, likewise; None writes none, and callers then cannot tell a failure from a
            result that takes long.
        max_concurrent_invocations_per_instance: calls that each instance gets at once, 1 to 1000. AWS chooses a number
            where none is given; here it is 4.

    Raises:
        ConfigurationError: a path is none, or the number is out of range.
    """

    s3_output_path: str
    s3_failure_path: str | None = None
    max_concurrent_invocations_per_instance: int = 4

    def __post_init__(self) -> None:
        for path in (self.s3_output_path, self.s3_failure_path):
            if path is not None and split_s3_uri(path) is None:
                raise ConfigurationError(f"a path for results or failures reads s3://bucket/prefix, not {path!r}")
        if not 1 <= self.max_concurrent_invocations_per_instance <= 1000:
            raise ConfigurationError(
                "max_concurrent_invocations_per_instance is from 1 to 1000, "
                f"not {self.max_concurrent_invocations_per_instance}"
            )


@dataclass(frozen=True, slots=True)
class EndpointConfiguration:
    """All about one endpoint.

    Args:
        variants: its production variants; empty for an endpoint of inference components.
        inference_components: its inference components; empty for an endpoint of production variants.
        multi_model: whether ``TargetModel`` is handed on to the container; False refuses it as the service does.
        model_timeout: seconds that a model has to answer; None for the runtime's setting.
        session_seconds: how long a session made for a Python callable lives, unless the callable names an expiry.
        async_inference: how it takes asynchronous inferences, beside the others; None refuses them.
    """

    variants: Sequence[ProductionVariant] = ()
    inference_components: Sequence[InferenceComponent] = ()
    multi_model: bool = True
    model_timeout: float | None = None
    session_seconds: float = 1200.0
    async_inference: AsyncInferenceConfig | None = None

    def containers(self) -> list[Container]:
        """The containers to start, each once."""
        parts: list[ProductionVariant | InferenceComponent] = [*self.variants, *self.inference_components]
        found: dict[int, Container] = {}
        for part in parts:
            for source in _instances(part.target):
                if isinstance(source, Container):
                    found[id(source)] = source
        return list(found.values())


EndpointSource = BackendSource | ProductionVariant | Sequence[ProductionVariant] | EndpointConfiguration


def as_configuration(source: EndpointSource) -> EndpointConfiguration:
    """The configuration that a user's short form stands for."""
    if isinstance(source, EndpointConfiguration):
        return source
    if isinstance(source, ProductionVariant):
        return EndpointConfiguration((source,))
    if isinstance(source, Sequence) and not isinstance(source, str):
        if not all(isinstance(variant, ProductionVariant) for variant in source):
            raise ConfigurationError("an endpoint's sequence holds ProductionVariant objects only")
        return EndpointConfiguration(tuple(source))
    return EndpointConfiguration((ProductionVariant(source),))


@dataclass(frozen=True, slots=True)
class _Share:
    name: str
    weight: float
    routes: tuple[Route, ...]


class Endpoint:
    """A configured endpoint with its live sessions.

    Args:
        name: the endpoint's name.
        configuration: what it consists of.
        session: gives the HTTP session for targets that are URLs.

    Raises:
        ConfigurationError: a name or a weight is not allowed, or nothing would serve a call.
    """

    def __init__(
        self, name: str, configuration: EndpointConfiguration, session: Callable[[], aiohttp.ClientSession]
    ) -> None:
        self.name = _checked_name(name, "endpoint")
        self.configuration = configuration
        self.sessions = SessionTable()
        if bool(configuration.variants) == bool(configuration.inference_components):
            raise ConfigurationError(f"endpoint {name} needs either production variants or inference components")
        self._shares: dict[str, _Share] = {}
        for variant in configuration.variants:
            _checked_name(variant.name, f"production variant of endpoint {name}")
            if variant.name in self._shares:
                raise ConfigurationError(f"endpoint {name} has two production variants named {variant.name}")
            if not 0 <= variant.weight < float("inf"):
                raise ConfigurationError(f"production variant {variant.name} of endpoint {name} has a negative weight")
            routes = tuple(Route(variant.name, as_backend(one, session)) for one in _instances(variant.target))
            if not routes:
                raise ConfigurationError(f"production variant {variant.name} of endpoint {name} has no target")
            self._shares[variant.name] = _Share(variant.name, variant.weight, routes)
        if configuration.inference_components and configuration.async_inference is not None:
            # InvokeEndpointAsync has no member that names a component
            raise ConfigurationError(f"endpoint {name} has inference components and cannot be asynchronous")
        if configuration.variants and not any(variant.weight for variant in configuration.variants):
            raise ConfigurationError(f"every production variant of endpoint {name} has weight 0")
        self._components: dict[str, tuple[Route, ...]] = {}
        for component in configuration.inference_components:
            _checked_name(component.name, f"inference component of endpoint {name}")
            if component.name in self._components:
                raise ConfigurationError(f"endpoint {name} has two inference components named {component.name}")
            self._components[component.name] = tuple(
                Route(component.variant, as_backend(one, session), component.name)
                for one in _instances(component.target)
            )

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} variants={list(self._shares)} components={list(self._components)}>"

    @property
    def instances(self) -> int:
        """How many instances its production variants have together."""
        return sum(len(share.routes) for share in self._shares.values())

    def choose(
        self, context: CallContext, chance: random.Random, *, target_variant: str | None, component: str | None
    ) -> Route:
        """Choose where a call without a session goes.

        Args:
            context: for the text of an error.
            chance: the source of random numbers.
            target_variant: the variant asked for; None leaves it to the weights.
            component: the inference component asked for; None for none.

        Raises:
            ErrorReply: there is no such variant or component, or it has no capacity.
        """
        if component is not None or self._components:
            return chance.choice(self._component_routes(context, component))
        if target_variant is not None:
            share = self._shares.get(target_variant)
            if share is None:
                raise ErrorReply(_variant_not_found(context, target_variant))
            return chance.choice(share.routes)
        shares = list(self._shares.values())
        share = chance.choices(shares, [share.weight for share in shares])[0]
        return chance.choice(share.routes)

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


def _instances(target: BackendSource | Sequence[BackendSource]) -> Sequence[BackendSource]:
    if isinstance(target, Sequence) and not isinstance(target, str):
        return target
    return (target,)


def _checked_name(name: str, what: str) -> str:
    if len(name) > 63 or not _NAME.fullmatch(name):
        raise ConfigurationError(f"{name!r} is no name of an {what}: up to 63 letters, digits and inner hyphens")
    return name


def _variant_not_found(context: CallContext, variant: str) -> ErrorAnswer:
    return validation_error(
        f"Variant {variant} of Endpoint {context.endpoint} of account {context.account_id} not found."
    )
