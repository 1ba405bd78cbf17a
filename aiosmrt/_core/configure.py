"""A client's configuration, from its arguments, the environment and AWS's files; resolved once, off the event loop."""

from __future__ import annotations

import os
import re
import ssl
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from aiosmrt._aws.hosts import ResolvedEndpoint, resolve_endpoint
from aiosmrt._aws.settings import CaBundle, Settings, resolve_settings
from aiosmrt._aws.tls import UnusableAuthoritiesError, context_of_bundle, default_verification
from aiosmrt.errors import InvalidConfigError, ParamValidationError

__all__ = ["Configuration", "Verify", "app_id_of", "check_verify", "configure"]

Verify = bool | str | os.PathLike[str] | ssl.SSLContext

# As in botocore, a part of the User-Agent header is a token (RFC 9110, 5.6.2) without "#", or with a comma.
_UNFIT_FOR_USER_AGENT = re.compile(r"[^A-Za-z0-9!$%&'*+.^_`|~,-]")


class Configuration(NamedTuple):
    """A client's configuration.

    Attributes:
        settings: the AWS settings.
        endpoint: the service's endpoint.
        origin: its scheme, host and port.
        base_path: the path before the operation's.
        verify: whether to verify certificates, or the context to verify them with.
        proxy: URL of an HTTP proxy, if any.
        ca_bundle: the file or folder with the certificate authorities to trust, if any is configured.
    """

    settings: Settings
    endpoint: ResolvedEndpoint
    origin: str
    base_path: str
    verify: bool | ssl.SSLContext
    proxy: str | None
    ca_bundle: CaBundle | None


def configure(settings_arguments: dict[str, Any], verify: Verify, *, use_proxy: bool) -> Configuration:
    """Resolve arguments, environment and files; reads files and may import botocore.

    Args:
        settings_arguments: the client's arguments for `aiosmrt._aws.settings.resolve_settings`.
        verify: as the client's argument.
        use_proxy: whether to use a proxy named by the environment.

    Raises:
        ConfigurationError: Something is missing or contradictory.
        ParamValidationError: ``verify`` is a path without certificate authorities.
    """
    settings = resolve_settings(**settings_arguments)
    bundle = _ca_bundle(verify, settings)
    endpoint = resolve_endpoint(
        settings.region_name,
        use_fips=settings.use_fips_endpoint,
        use_dualstack=settings.use_dualstack_endpoint,
        endpoint_url=settings.endpoint_url,
    )
    parts = urlsplit(endpoint.url)
    return Configuration(
        settings=settings,
        endpoint=endpoint,
        origin=f"{parts.scheme}://{parts.netloc}",
        base_path=endpoint.path,
        verify=_tls(verify, bundle, needed=parts.scheme == "https"),
        proxy=_proxy(parts.scheme, parts.netloc, parts.hostname or "") if use_proxy else None,
        ca_bundle=bundle,
    )


def check_verify(verify: object) -> None:
    """Check a client's ``verify`` without reading anything.

    Raises:
        ParamValidationError: It is not one of the accepted types, or blank.
    """
    if not isinstance(verify, (bool, str, os.PathLike, ssl.SSLContext)) or (
        isinstance(verify, str) and not verify.strip()
    ):
        raise ParamValidationError([f"verify must be True, False, a path or an ssl.SSLContext; got {verify!r:.80}"])


def app_id_of(settings: Settings) -> str:
    """The application's id as a part of the User-Agent header, after a space; empty if none is configured."""
    if settings.user_agent_appid is None:
        return ""
    return f" app/{_UNFIT_FOR_USER_AGENT.sub('-', settings.user_agent_appid)}"


def _ca_bundle(verify: Verify, settings: Settings) -> CaBundle | None:
    bundle = settings.ca_bundle
    if isinstance(verify, (str, os.PathLike)):
        bundle = CaBundle(os.fspath(verify), "verify")
    elif verify is not True or bundle is None:
        return None
    if not bundle.path.strip():
        # botocore refuses it too. Older releases took it as an order not to verify.
        raise InvalidConfigError(f"{bundle.setting} must be the path of CA certificates; got {bundle.path!r}")
    # urllib3, and so botocore, expands it.
    return bundle._replace(path=os.path.expanduser(bundle.path))  # noqa: PTH111


def _tls(verify: Verify, bundle: CaBundle | None, *, needed: bool) -> bool | ssl.SSLContext:
    if bundle is None:
        if verify is not True:
            return verify if isinstance(verify, ssl.SSLContext) else False
        return default_verification() if needed else True
    # A setting may be meant for other clients; an argument is checked in any case.
    if not needed and bundle.setting != "verify":
        return True
    try:
        return context_of_bundle(bundle.path)
    except UnusableAuthoritiesError as error:
        fault = (
            f"{bundle.setting} must be a file or folder of CA certificates in PEM format; got {bundle.path!r}: {error}"
        )
        if bundle.setting == "verify":
            raise ParamValidationError([fault]) from error
        raise InvalidConfigError(fault) from error


def _proxy(scheme: str, netloc: str, host: str) -> str | None:
    """The proxy that the environment names for a scheme and host, by botocore's rules (botocore.httpsession).

    Raises:
        InvalidConfigError: Not a valid URL of an HTTP proxy.
    """
    proxies = getproxies()
    proxy = proxies.get(scheme)
    # an entry of NO_PROXY may include the port
    if not proxy or proxy_bypass(netloc) or proxy_bypass(host):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy.removeprefix('//')}"
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # not quoted: it may contain a password
        raise InvalidConfigError(f"{scheme.upper()}_PROXY must be the URL of an HTTP proxy, such as http://host:3128")
    return proxy
