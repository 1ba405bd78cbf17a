"""A client's configuration, from its arguments, the environment and AWS's files; resolved once, off the event loop."""

from __future__ import annotations

import os
import re
import ssl
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

from aiosmrt._aws.hosts import ResolvedEndpoint, resolve_endpoint
from aiosmrt._aws.settings import CaBundle, Settings, resolve_settings
from aiosmrt._aws.tls import UnusableAuthoritiesError, context_of_bundle, default_verification
from aiosmrt.config import shown
from aiosmrt.errors import AiosmrtError, InvalidConfigError, ParamValidationError

__all__ = [
    "Configuration",
    "Verify",
    "app_id_of",
    "authorities_error",
    "check_verify",
    "configure",
    "is_in_lambda",
    "trace_line",
]

Verify = bool | str | os.PathLike[str] | ssl.SSLContext

# As in botocore, a part of the User-Agent header is a token (RFC 9110, 5.6.2) without "#", or with a comma.
_UNFIT_FOR_USER_AGENT = re.compile(r"[^A-Za-z0-9!$%&'*+.^_`|~,-]")

_SAFE_IN_TRACE = "-=;:+&[]{}\"',"


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

    def __repr__(self) -> str:
        # The proxy's URL may contain a password.
        return f"<{type(self).__name__} origin={self.origin!r}>"


def configure(settings_arguments: dict[str, Any], verify: Verify, *, session_given: bool) -> Configuration:
    """Resolve arguments, environment and files; reads files and may import botocore.

    Args:
        settings_arguments: the client's arguments for `aiosmrt._aws.settings.resolve_settings`.
        verify: as the client's argument.
        session_given: whether the caller's session makes the connections; it decides about proxies and, unless
            something else is configured, about the authorities to trust.

    Raises:
        ConfigurationError: something is missing or contradictory.
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
        verify=_tls(verify, bundle, is_https=parts.scheme == "https", session_given=session_given),
        proxy=_proxy(parts.scheme, parts.netloc, parts.hostname or "") if not session_given else None,
        ca_bundle=bundle,
    )


def check_verify(verify: object) -> None:
    """Check a client's ``verify`` without reading anything.

    Raises:
        ParamValidationError: it is not one of the accepted types, or blank.
    """
    if not isinstance(verify, (bool, str, os.PathLike, ssl.SSLContext)) or (
        isinstance(verify, str) and not verify.strip()
    ):
        raise ParamValidationError([f"verify must be True, False, a path or an ssl.SSLContext; got {shown(verify)}"])


def app_id_of(settings: Settings) -> str:
    """The application's id as a part of the User-Agent header, after a space; empty if none is configured."""
    if settings.user_agent_appid is None:
        return ""
    return f" app/{_UNFIT_FOR_USER_AGENT.sub('-', settings.user_agent_appid)}"


def is_in_lambda() -> bool:
    """Whether this is a function of AWS Lambda, whose traces are passed on."""
    return "AWS_LAMBDA_FUNCTION_NAME" in os.environ


def trace_line(headers: tuple[tuple[str, str], ...]) -> str:
    """The header line that passes on the trace of the current invocation in AWS Lambda; may be empty.

    Lambda changes the variable with each invocation. Source: ``add_recursion_detection_header`` in botocore.handlers.

    Args:
        headers: the request's other headers; a trace among them takes precedence.
    """
    trace = os.environ.get("_X_AMZN_TRACE_ID")
    if not trace or any(name.lower() == "x-amzn-trace-id" for name, _ in headers):
        return ""
    return f"X-Amzn-Trace-Id: {quote(trace, safe=_SAFE_IN_TRACE, errors='replace')}\r\n"


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


def _tls(verify: Verify, bundle: CaBundle | None, *, is_https: bool, session_given: bool) -> bool | ssl.SSLContext:
    if bundle is None:
        if verify is not True:
            return verify if isinstance(verify, ssl.SSLContext) else False
        return default_verification() if is_https and not session_given else True
    # A setting may be meant for other clients; an argument is checked in any case.
    if not is_https and bundle.setting != "verify":
        return True
    try:
        return context_of_bundle(bundle.path)
    except UnusableAuthoritiesError as error:
        raise authorities_error(bundle, error) from error


def authorities_error(bundle: CaBundle, error: UnusableAuthoritiesError) -> AiosmrtError:
    """The error for a path that does not lead to certificate authorities, which names the setting it comes from."""
    fault = f"{bundle.setting} must be a file or folder of CA certificates in PEM format; got {bundle.path!r}: {error}"
    return ParamValidationError([fault]) if bundle.setting == "verify" else InvalidConfigError(fault)


def _proxy(scheme: str, netloc: str, host: str) -> str | None:
    """The proxy that the environment names for a scheme and host, by botocore's rules (botocore.httpsession).

    Raises:
        InvalidConfigError: not a valid URL of an HTTP proxy.
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
