"""A client's settings, from its arguments, the environment and the selected profile.

An argument takes precedence over an environment variable, and that over the profile, as in botocore's configuration
chain; names and order are botocore's. So is what an empty value means: it hides later sources, and is refused where it
is not valid; only for endpoint URLs it counts as unset. The region differs on purpose: there, too, an empty value
counts as unset, and ``AWS_REGION``, which every other AWS SDK reads, comes right after ``AWS_DEFAULT_REGION``.

Settings that have no effect here are checked all the same, where botocore's client refuses a wrong value: the modes of
account-based endpoints and of STS endpoints, checksums, compression and S3 Express. A mode of defaults other than
``legacy`` implies the retry mode ``standard``, as in botocore.

Nothing of botocore is loaded if neither configuration file exists.
"""

import os
import re
from typing import Final, NamedTuple

from aiosmrt._aws.shared_config import Section, SharedConfig, load_shared_config, selected_profile
from aiosmrt.config import RetryMode, check_retry_mode
from aiosmrt.errors import (
    InvalidChecksumConfigError,
    InvalidConfigError,
    InvalidDefaultsModeError,
    InvalidMaxAttemptsError,
    InvalidRegionError,
    InvalidStsRegionalEndpointsError,
    NoRegionError,
)

__all__ = ["CaBundle", "Settings", "configured_authorities", "resolve_settings"]

# A host label that is not all digits: botocore.utils.validate_region_name, without a final line break.
_REGION = re.compile(r"(?![0-9]+\Z)(?!-)[a-zA-Z0-9-]{1,63}(?<!-)")

# botocore.args and, for the first, the data file sdk-default-configuration.json.
_DEFAULTS_MODES: Final = ("legacy", "auto", "standard", "in-region", "cross-region", "mobile")
_ACCOUNT_ID_ENDPOINT_MODES: Final = ("preferred", "disabled", "required")
_STS_REGIONAL_ENDPOINTS: Final = ("legacy", "regional")
_CHECKSUM_SETTINGS: Final = ("request_checksum_calculation", "response_checksum_validation")
_CHECKSUM_MODES: Final = ("when_supported", "when_required")
_MAX_COMPRESSION_SIZE: Final = 1_048_576

_SERVICE_VARIABLE = "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"
_SERVICE_KEY = "sagemaker_runtime"


class CaBundle(NamedTuple):
    """The configured path of certificate authorities.

    Attributes:
        path: the path as configured; may be blank, which is an error where it is used.
        setting: the name of the setting it comes from.
    """

    path: str
    setting: str


class Settings(NamedTuple):
    """Resolved settings of a client.

    Attributes:
        region_name: the region as it was given, so possibly a FIPS pseudo-region; None only for unsigned calls to an
            ``endpoint_url``.
        endpoint_url: a configured endpoint. If None, the service's own.
        use_fips_endpoint: whether to call the FIPS endpoint.
        use_dualstack_endpoint: whether to call the endpoint that also supports IPv6.
        max_attempts: requests per call including the first, if configured.
        ca_bundle: the certificate authorities to trust, if configured.
        user_agent_appid: the application's id for the User-Agent header, if configured.
        profile_name: the selected profile, if any.
        retry_mode: ``"legacy"``, ``"standard"`` or ``"adaptive"``, if configured.

    >>> Settings(region_name="us-east-1").use_fips_endpoint
    False
    """

    region_name: str | None
    endpoint_url: str | None = None
    use_fips_endpoint: bool = False
    use_dualstack_endpoint: bool = False
    max_attempts: int | None = None
    ca_bundle: CaBundle | None = None
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
    """Resolve a client's settings; reads files.

    Args:
        region_name: the region. Defaults to ``AWS_DEFAULT_REGION``, ``AWS_REGION``, the profile's ``region``.
        endpoint_url: the endpoint. Defaults to ``AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME``, ``AWS_ENDPOINT_URL``, the
            profile's ``services`` section, its ``endpoint_url``, unless ``AWS_IGNORE_CONFIGURED_ENDPOINT_URLS``.
        profile_name: the profile. Defaults to ``AWS_DEFAULT_PROFILE``, ``AWS_PROFILE``, ``default``.
        use_fips_endpoint: whether to call the FIPS endpoint. Defaults to ``AWS_USE_FIPS_ENDPOINT``, the profile.
        use_dualstack_endpoint: whether to call the endpoint that also supports IPv6. Defaults to
            ``AWS_USE_DUALSTACK_ENDPOINT``, the profile.
        sign: whether calls will be signed; unsigned calls to an endpoint URL need no region.

    Raises:
        ProfileNotFoundError: The named profile does not exist.
        ConfigFileError: A configuration file cannot be parsed.
        InvalidChecksumConfigError: A setting for checksums is not ``when_supported`` or ``when_required``.
        InvalidConfigError: A setting has an invalid value.
        InvalidDefaultsModeError: The defaults mode is not one of botocore's.
        InvalidRegionError: The region cannot be part of a host name.
        InvalidRetryModeError: The retry mode is not one of `aiosmrt.config.RETRY_MODES`.
        InvalidStsRegionalEndpointsError: The setting for STS endpoints is not ``legacy`` or ``regional``.
        NoRegionError: A region is needed and not configured.

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
    defaults_mode = _defaults_mode(profile)
    _check_others(profile, sign=sign)
    retry_mode = check_retry_mode(_setting("AWS_RETRY_MODE", profile, "retry_mode"))
    return Settings(
        region_name=region_name,
        endpoint_url=endpoint_url,
        use_fips_endpoint=_flag(use_fips_endpoint, profile, "use_fips_endpoint"),
        use_dualstack_endpoint=_flag(use_dualstack_endpoint, profile, "use_dualstack_endpoint"),
        max_attempts=_max_attempts(profile),
        ca_bundle=_ca_bundle(profile, name),
        user_agent_appid=_value("AWS_SDK_UA_APP_ID", profile, "sdk_ua_app_id") or None,
        profile_name=name,
        retry_mode="standard" if retry_mode is None and defaults_mode != "legacy" else retry_mode,
    )


def configured_authorities(profile_name: str | None) -> CaBundle | None:
    """The authorities that environment and profile configure; reads files.

    Args:
        profile_name: as in `resolve_settings`.

    Raises:
        ProfileNotFoundError, ConfigFileError: as in `resolve_settings`.
    """
    name = selected_profile(profile_name)
    return _ca_bundle(load_shared_config().profile(name), name)


def _setting(variable: str, section: Section, key: str) -> str | Section | None:
    """A setting, which may be empty, or a nested section; None if neither the environment nor the profile has it."""
    value = os.environ.get(variable)
    return section.get(key) if value is None else value


def _value(variable: str, section: Section, key: str) -> str | None:
    """The same, but no nested section, which botocore passes on until something breaks."""
    value = _setting(variable, section, key)
    if value is None or isinstance(value, str):
        return value
    raise InvalidConfigError(f"{key} in the profile must be a value; got a nested section")


def _env(variable: str) -> str | None:
    return os.environ.get(variable) or None


def _text(section: Section, key: str) -> str | None:
    value = section.get(key)
    if isinstance(value, dict):
        raise InvalidConfigError(f"{key} in the profile must be a value; got a nested section")
    return value or None


def _flag(argument: bool | None, profile: Section, key: str) -> bool:
    if argument is not None:
        return argument
    value = _setting(f"AWS_{key.upper()}", profile, key)
    return isinstance(value, str) and value.lower() == "true"


def _max_attempts(profile: Section) -> int | None:
    value = _value("AWS_MAX_ATTEMPTS", profile, "max_attempts")
    if value is None:
        return None
    max_attempts = _whole(value)
    if max_attempts is None or max_attempts < 1:
        raise InvalidMaxAttemptsError(f"AWS_MAX_ATTEMPTS or max_attempts must be an integer >= 1; got {value!r}")
    return max_attempts


def _ca_bundle(profile: Section, profile_name: str | None) -> CaBundle | None:
    _text(profile, "ca_bundle")
    for value, setting in (
        (os.environ.get("AWS_CA_BUNDLE"), "AWS_CA_BUNDLE"),
        (profile.get("ca_bundle"), f"ca_bundle in the profile {profile_name or 'default'!r}"),
        (os.environ.get("REQUESTS_CA_BUNDLE"), "REQUESTS_CA_BUNDLE"),
    ):
        if value is not None:
            return CaBundle(value, setting)
    return None


def _defaults_mode(profile: Section) -> str:
    mode = _value("AWS_DEFAULTS_MODE", profile, "defaults_mode")
    if mode is None:
        return "legacy"
    if mode.lower() not in _DEFAULTS_MODES:
        modes = ", ".join(_DEFAULTS_MODES)
        invalid = InvalidDefaultsModeError(
            f"Client configured with invalid defaults mode: {mode}. Valid defaults modes include: {modes}."
        )
        invalid.kwargs = {"mode": mode, "valid_modes": modes}
        raise invalid
    return mode.lower()


def _check_others(profile: Section, *, sign: bool) -> None:
    """Check the settings that have no effect."""
    mode = _value("AWS_ACCOUNT_ID_ENDPOINT_MODE", profile, "account_id_endpoint_mode") if sign else None
    if mode is not None and mode.lower() not in _ACCOUNT_ID_ENDPOINT_MODES:
        raise InvalidConfigError(
            f"AWS_ACCOUNT_ID_ENDPOINT_MODE or account_id_endpoint_mode must be one of "
            f"{', '.join(_ACCOUNT_ID_ENDPOINT_MODES)}; got {mode!r}"
        )
    regional = _setting("AWS_STS_REGIONAL_ENDPOINTS", profile, "sts_regional_endpoints")
    if regional and regional not in _STS_REGIONAL_ENDPOINTS:
        sts = InvalidStsRegionalEndpointsError(
            f'STS regional endpoints option {regional} is invalid. Valid options are: "legacy", "regional"'
        )
        sts.kwargs = {"sts_regional_endpoints_config": regional}
        raise sts
    for key in _CHECKSUM_SETTINGS:
        when = _setting(f"AWS_{key.upper()}", profile, key)
        when = when.lower() if isinstance(when, str) else when
        if when is not None and when not in _CHECKSUM_MODES:
            checksum = InvalidChecksumConfigError(
                f"Unsupported configuration value for {key}. Expected one of {_CHECKSUM_MODES} but got {when}."
            )
            checksum.kwargs = {"config_key": key, "config_value": when, "valid_options": _CHECKSUM_MODES}
            raise checksum
    size = _value("AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES", profile, "request_min_compression_size_bytes")
    if size is not None and not 1 <= (_whole(size) or 0) <= _MAX_COMPRESSION_SIZE:
        raise InvalidConfigError(
            f"AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES or request_min_compression_size_bytes must be an integer between "
            f"1 and {_MAX_COMPRESSION_SIZE}; got {size!r}"
        )
    express = _value("AWS_S3_DISABLE_EXPRESS_SESSION_AUTH", profile, "s3_disable_express_session_auth")
    if express is not None and express.lower() not in ("true", "false"):
        raise InvalidConfigError(
            f"AWS_S3_DISABLE_EXPRESS_SESSION_AUTH or s3_disable_express_session_auth must be true or false; "
            f"got {express!r}"
        )
    _value("AWS_AUTH_SCHEME_PREFERENCE", profile, "auth_scheme_preference")


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _configured_endpoint_url(shared: SharedConfig, profile: Section) -> str | None:
    if (url := _env(_SERVICE_VARIABLE) or _env("AWS_ENDPOINT_URL")) is not None:
        return url
    if (services := _text(profile, "services")) is not None:
        section = shared.services.get(services)
        if not section:
            raise InvalidConfigError(
                f"services in the profile must name a section of the configuration file; got {services!r}"
            )
        service = section.get(_SERVICE_KEY, {})
        if isinstance(service, dict) and (url := _text(service, "endpoint_url")) is not None:
            return url
    return _text(profile, "endpoint_url")
