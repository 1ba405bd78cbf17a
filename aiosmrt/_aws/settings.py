"""What a client is to do, put together from its arguments, the environment and the selected profile.

An argument wins over an environment variable, and that over the profile, as in botocore's configuration chain; the
names and their order are botocore's. Two things differ on purpose. An empty environment variable counts as unset:
botocore would take an empty ``AWS_CA_BUNDLE`` as an order not to verify certificates. And ``AWS_REGION``, which every
other AWS SDK reads, counts right after ``AWS_DEFAULT_REGION``.

Nothing of botocore is loaded when neither configuration file exists.
"""

import os
import re
from typing import Any, NamedTuple

from aiosmrt._aws.shared_config import Section, SharedConfig, load_shared_config, selected_profile
from aiosmrt.config import RetryMode, check_retry_mode
from aiosmrt.errors import InvalidConfigError, InvalidRegionError, NoRegionError

__all__ = ["Settings", "resolve_settings"]

# A host label that is not all digits: botocore.utils.validate_region_name, less its tolerance for a final line end.
_REGION = re.compile(r"(?![0-9]+\Z)(?!-)[a-zA-Z0-9-]{1,63}(?<!-)")

_SERVICE_VARIABLE = "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"
_SERVICE_KEY = "sagemaker_runtime"


class Settings(NamedTuple):
    """Resolved settings of a client.

    Attributes:
        region_name: the region as it was given, so possibly a FIPS pseudo-region; None only for unsigned calls to an
            ``endpoint_url``.
        endpoint_url: a configured endpoint; None means the service's own.
        use_fips_endpoint: whether the FIPS endpoint is wanted.
        use_dualstack_endpoint: whether the endpoint that also speaks IPv6 is wanted.
        max_attempts: requests per call including the first; None when nobody set it.
        ca_bundle: path of a file with certificate authorities; None when nobody set it.
        user_agent_appid: the application's id for the User-Agent header; None when nobody set it.
        profile_name: the selected profile; None when none was named.
        retry_mode: ``"legacy"``, ``"standard"`` or ``"adaptive"``; None if not configured.

    >>> Settings(region_name="us-east-1").use_fips_endpoint
    False
    """

    region_name: str | None
    endpoint_url: str | None = None
    use_fips_endpoint: bool = False
    use_dualstack_endpoint: bool = False
    max_attempts: int | None = None
    ca_bundle: str | None = None
    user_agent_appid: str | None = None
    profile_name: str | None = None
    retry_mode: RetryMode | None = None


def resolve_settings(
    *,
    region_name: str | None = None,
    endpoint_url: str | None = None,
    profile_name: str | None = None,
    use_fips_endpoint: bool | None = None,
    use_dualstack_endpoint: bool | None = None,
    sign: bool = True,
) -> Settings:
    """Resolve a client's settings; reads files, so call it off the event loop.

    Args:
        region_name: the region; None takes ``AWS_DEFAULT_REGION``, ``AWS_REGION``, then the profile's ``region``.
        endpoint_url: the endpoint; None takes ``AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME``, ``AWS_ENDPOINT_URL``, then the
            profile's ``services`` section and its ``endpoint_url``, unless ``AWS_IGNORE_CONFIGURED_ENDPOINT_URLS``.
        profile_name: the profile; None takes ``AWS_DEFAULT_PROFILE``, then ``AWS_PROFILE``, then ``default``.
        use_fips_endpoint: None takes ``AWS_USE_FIPS_ENDPOINT``, then the profile.
        use_dualstack_endpoint: None takes ``AWS_USE_DUALSTACK_ENDPOINT``, then the profile.
        sign: whether calls will be signed; unsigned calls to an endpoint URL need no region.

    Raises:
        ProfileNotFoundError: the named profile does not exist.
        ConfigFileError: a configuration file cannot be parsed.
        InvalidConfigError: a setting makes no sense.
        InvalidRegionError: the region cannot be a part of a host name.
        InvalidRetryModeError: the retry mode is not one of `aiosmrt.config.RETRY_MODES`.
        NoRegionError: nobody set a region, and one is needed.

    Source: botocore.configprovider and botocore.args.

    >>> resolve_settings(region_name="eu-central-1", endpoint_url="http://127.0.0.1:8080").region_name
    'eu-central-1'
    """
    name = selected_profile(profile_name)
    shared = load_shared_config()
    profile = shared.profile(name)

    region_name = region_name or _env("AWS_DEFAULT_REGION") or _env("AWS_REGION") or _text(profile, "region")
    if region_name is not None and not _REGION.fullmatch(region_name):
        invalid = InvalidRegionError(f"Provided region_name {region_name!r} doesn't match a supported format.")
        invalid.kwargs = {"region_name": region_name}
        raise invalid
    if endpoint_url is None and not _flag(None, profile, "ignore_configured_endpoint_urls"):
        endpoint_url = _configured_endpoint_url(shared, profile)
    if region_name is None and (sign or endpoint_url is None):
        raise NoRegionError("You must specify a region.")
    return Settings(
        region_name=region_name,
        endpoint_url=endpoint_url,
        use_fips_endpoint=_flag(use_fips_endpoint, profile, "use_fips_endpoint"),
        use_dualstack_endpoint=_flag(use_dualstack_endpoint, profile, "use_dualstack_endpoint"),
        max_attempts=_max_attempts(profile),
        ca_bundle=_env("AWS_CA_BUNDLE") or _text(profile, "ca_bundle") or _env("REQUESTS_CA_BUNDLE"),
        user_agent_appid=_env("AWS_SDK_UA_APP_ID") or _text(profile, "sdk_ua_app_id"),
        profile_name=name,
        retry_mode=check_retry_mode(_env("AWS_RETRY_MODE") or _text(profile, "retry_mode")),
    )


def _env(variable: str) -> str | None:
    return os.environ.get(variable) or None


def _text(section: Section, key: str) -> str | None:
    value = section.get(key)
    # An indented block under a key that takes a text is a mistake, which botocore passes on until something breaks.
    if isinstance(value, dict):
        raise InvalidConfigError(f"The profile's {key} is a nested section where a value is expected")
    return value or None


def _flag(argument: bool | None, profile: Section, key: str) -> bool:
    if argument is not None:
        return argument
    value: Any = _env(f"AWS_{key.upper()}") or _text(profile, key)
    return value is not None and value.lower() == "true"


def _max_attempts(profile: Section) -> int | None:
    value = _env("AWS_MAX_ATTEMPTS") or _text(profile, "max_attempts")
    if value is None:
        return None
    try:
        max_attempts = int(value)
    except ValueError:
        max_attempts = 0
    if max_attempts < 1:
        raise InvalidConfigError(f"AWS_MAX_ATTEMPTS or max_attempts must be a whole number from 1, got {value!r}")
    return max_attempts


def _configured_endpoint_url(shared: SharedConfig, profile: Section) -> str | None:
    if (url := _env(_SERVICE_VARIABLE) or _env("AWS_ENDPOINT_URL")) is not None:
        return url
    if (services := _text(profile, "services")) is not None:
        section = shared.services.get(services)
        if not section:
            raise InvalidConfigError(f'The profile names the services section "{services}", which does not exist')
        service = section.get(_SERVICE_KEY, {})
        if isinstance(service, dict) and (url := _text(service, "endpoint_url")) is not None:
            return url
    return _text(profile, "endpoint_url")
