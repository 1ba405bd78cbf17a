"""What a client's arguments, the environment and AWS's files amount to: facts that are found out once, off the loop."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from aiosmrt._aws.hosts import ResolvedEndpoint, resolve_endpoint
from aiosmrt._aws.settings import Settings, resolve_settings
from aiosmrt.errors import InvalidConfigError, ParamValidationError

__all__ = ["Configuration", "Verify", "app_id_of", "check_verify", "configure"]

Verify = bool | str | os.PathLike[str] | ssl.SSLContext

# What may not be in a part of the User-Agent header, as in botocore: a token (RFC 9110, 5.6.2) less "#", and a comma.
_UNFIT_FOR_USER_AGENT = re.compile(r"[^A-Za-z0-9!$%&'*+.^_`|~,-]")


class Configuration(NamedTuple):
    """The facts.

    Args:
        settings: the AWS settings.
        endpoint: the service's endpoint.
        origin: its scheme, host and port.
        base_path: what comes before the operation's path.
        verify: whether certificates are checked, or the context to check them with.
        proxy: URL of an HTTP proxy; None for a direct connection.
    """

    settings: Settings
    endpoint: ResolvedEndpoint
    origin: str
    base_path: str
    verify: bool | ssl.SSLContext
    proxy: str | None


def configure(settings_arguments: dict[str, Any], verify: Verify, *, use_proxy: bool) -> Configuration:
    """Resolve arguments, environment and files; reads files and may import botocore.

    Args:
        settings_arguments: the client's arguments for `aiosmrt._aws.settings.resolve_settings`.
        verify: as the client's argument.
        use_proxy: whether a proxy that the environment names is used.

    Raises:
        ConfigurationError: something is missing or contradictory.
        ParamValidationError: ``verify`` cannot be loaded.
    """
    settings = resolve_settings(**settings_arguments)
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
        # Loading the bundle takes 18 ms and 800 KiB, and plain HTTP has no use for it.
        verify=_tls(verify, settings.ca_bundle if parts.scheme == "https" else None),
        proxy=_proxy(parts.scheme, parts.netloc, parts.hostname or "") if use_proxy else None,
    )


def check_verify(verify: object) -> None:
    """Check a client's ``verify`` without reading anything.

    Raises:
        ParamValidationError: it can be none.
    """
    if not isinstance(verify, (bool, str, os.PathLike, ssl.SSLContext)) or verify == "":
        raise ParamValidationError([f"verify must be True, False, a path or an ssl.SSLContext; got {verify!r:.80}"])


def app_id_of(settings: Settings) -> str:
    """The application's id as a part of the User-Agent header, a blank before it; empty where none is configured."""
    if settings.user_agent_appid is None:
        return ""
    return f" app/{_UNFIT_FOR_USER_AGENT.sub('-', settings.user_agent_appid)}"


def _tls(given: Verify, ca_bundle: str | None) -> bool | ssl.SSLContext:
    verify: Any = ca_bundle if given is True and ca_bundle is not None else given
    if isinstance(verify, (bool, ssl.SSLContext)):
        return verify
    path = os.fspath(verify)
    try:
        if Path(path).is_dir():
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise ParamValidationError([f"verify: {path!r} cannot be loaded as CA certificates: {error}"]) from error


def _proxy(scheme: str, netloc: str, host: str) -> str | None:
    """The proxy that the environment names for a scheme and host, by botocore's rules (botocore.httpsession).

    Raises:
        InvalidConfigError: not a valid URL of an HTTP proxy.
    """
    proxies = getproxies()
    proxy = proxies.get(scheme)
    # an entry of NO_PROXY may name the port
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
        # not quoted: it may hold a password
        raise InvalidConfigError(f"{scheme.upper()}_PROXY must be the URL of an HTTP proxy, such as http://host:3128")
    return proxy
