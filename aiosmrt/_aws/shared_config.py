"""The AWS configuration files: ``~/.aws/config`` and ``~/.aws/credentials``, as botocore reads them.

botocore's parser reads them, because its dialect (nested sections, quoted section names, variables in paths) is the
contract. It takes 2 ms to import and is loaded only if one of the files exists. Errors name the file and the line but
never quote it: a line that cannot be parsed may be a secret key.
"""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from aiosmrt.errors import ConfigFileError, ProfileNotFoundError

__all__ = ["SharedConfig", "load_shared_config", "selected_profile"]

Section = Mapping[str, Any]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class SharedConfig(NamedTuple):
    """Both files, parsed; the repr contains no value from them.

    Attributes:
        profiles: the settings of each profile; the credentials file takes precedence.
        config_profiles: the profiles of the config file alone.
        credentials_profiles: the profiles of the credentials file alone.
        services: the ``[services NAME]`` sections of the config file.
    """

    profiles: Mapping[str, Section] = _NOTHING
    config_profiles: Mapping[str, Section] = _NOTHING
    credentials_profiles: Mapping[str, Section] = _NOTHING
    services: Mapping[str, Any] = _NOTHING

    def __repr__(self) -> str:
        return f"SharedConfig(profiles={sorted(self.profiles)!r})"

    def profile(self, name: str | None) -> Section:
        """The settings of a profile.

        Args:
            name: the profile. If None, ``default``, which need not exist.

        Raises:
            ProfileNotFoundError: neither file has a profile of this name.

        >>> SharedConfig({"prod": {"region": "eu-west-1"}}).profile("prod")
        {'region': 'eu-west-1'}
        >>> SharedConfig().profile(None)
        {}
        """
        if name is None:
            return self.profiles.get("default", {})
        try:
            return self.profiles[name]
        except KeyError:
            error = ProfileNotFoundError(f"The config profile ({name}) could not be found")
            error.kwargs = {"profile": name}
            raise error from None


def selected_profile(profile_name: str | None) -> str | None:
    """The profile to use: the argument, ``AWS_DEFAULT_PROFILE``, ``AWS_PROFILE``, or None.

    The first that is there counts, even if it is empty: then there is no such profile, as in botocore.

    Source: ``BOTOCORE_DEFAUT_SESSION_VARIABLES`` in botocore.configprovider, which has them in this order.

    >>> selected_profile("prod")
    'prod'
    """
    if profile_name is not None:
        return profile_name
    return os.environ.get("AWS_DEFAULT_PROFILE", os.environ.get("AWS_PROFILE"))


def load_shared_config() -> SharedConfig:
    """Read both files, if they exist; blocks.

    Raises:
        ConfigFileError: a file cannot be parsed.

    >>> isinstance(load_shared_config(), SharedConfig)
    True
    """
    config = _parsed(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"), with_sections=True)
    credentials = _parsed(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), with_sections=False)
    config_profiles: dict[str, Section] = config.get("profiles", {})
    profiles = {name: dict(values) for name, values in config_profiles.items()}
    for name, values in credentials.items():
        profiles.setdefault(name, {}).update(values)
    return SharedConfig(profiles, config_profiles, credentials, config.get("services", {}))


def _parsed(path: str, *, with_sections: bool) -> dict[str, Any]:
    # As botocore.configloader expands it.
    path = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111
    if not os.path.isfile(path):  # noqa: PTH113
        return {}
    from botocore import configloader, exceptions

    parse = configloader.load_config if with_sections else configloader.raw_config_parse
    try:
        parsed: dict[str, Any] = parse(path)
        return parsed
    except exceptions.ConfigNotFound:
        return {}  # gone since the check above
    except exceptions.ConfigParseError as error:
        failure = ConfigFileError(f"Unable to parse config file: {path} ({_what_is_wrong(error.kwargs.get('error'))})")
        failure.kwargs = {"path": path}
    # Raised out here, because the parser's error quotes the file.
    raise failure


def _what_is_wrong(error: object) -> str:
    lines = [str(line) for line, _ in getattr(error, "errors", ())]
    lines = lines or ([str(line)] if (line := getattr(error, "lineno", None)) else [])
    if lines:
        return f"{type(error).__name__} in line {', '.join(lines)}"
    return type(error).__name__
