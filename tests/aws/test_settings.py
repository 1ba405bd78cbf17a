"""Settings come from where botocore takes them, in its order."""

from __future__ import annotations

import os
import pickle
import string
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any
from unittest.mock import patch

import botocore.exceptions
import pytest
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES
from botocore.utils import validate_region_name
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosmrt import errors
from aiosmrt._aws.settings import _DEFAULTS_MODES, Settings, resolve_settings
from aiosmrt._aws.shared_config import load_shared_config
from tests.aws import oracle
from tests.support.config_files import ConfigFiles

# Setting, environment variable, key in a profile, values.
SOURCES: list[tuple[str, str | None, str | None, list[str]]] = [
    ("region_name", "AWS_DEFAULT_REGION", "region", ["eu-west-1", "us-gov-east-1", "us-east-1-fips"]),
    ("endpoint_url", "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", None, ["http://own.env:1", ""]),
    ("endpoint_url", "AWS_ENDPOINT_URL", "endpoint_url", ["http://global:2", "https://other:3", ""]),
    ("endpoint_url", None, "services", ["first", "second", "others"]),
    ("ignore", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "ignore_configured_endpoint_urls", ["true", "false", ""]),
    ("use_fips_endpoint", "AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint", ["true", "TRUE", "false", "yes", ""]),
    ("use_dualstack_endpoint", "AWS_USE_DUALSTACK_ENDPOINT", "use_dualstack_endpoint", ["true", "False", ""]),
    ("max_attempts", "AWS_MAX_ATTEMPTS", "max_attempts", ["1", "7"]),
    ("ca_bundle", "AWS_CA_BUNDLE", "ca_bundle", ["/ca/one.pem", "/ca/two.pem"]),
    ("ca_bundle", "REQUESTS_CA_BUNDLE", None, ["/ca/requests.pem"]),
    ("retry_mode", "AWS_RETRY_MODE", "retry_mode", ["legacy", "standard", "adaptive", ""]),
    ("user_agent_appid", "AWS_SDK_UA_APP_ID", "sdk_ua_app_id", ["app-one", "app-two", ""]),
]
SERVICES = """
[services first]
sagemaker_runtime =
  endpoint_url = http://service-section:4
[services second]
endpoint_url = http://not-looked-at:5
[services others]
s3 =
  endpoint_url = http://another-service:6
"""


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    environ = {}
    profiles: dict[str, dict[str, str]] = {"default": {}, "prod": {}}
    credentials: dict[str, dict[str, str]] = {}
    for _, variable, key, values in SOURCES:
        if variable is not None and draw(st.booleans()):
            environ[variable] = draw(st.sampled_from(values))
        for profile in profiles.values():
            if key is not None and draw(st.booleans()):
                profile[key] = draw(st.sampled_from(values))
    if draw(st.booleans()):
        credentials["prod"] = {"region": "sa-east-1", "aws_access_key_id": "AKIDEXAMPLE"}
    for variable in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        if draw(st.booleans()):
            environ[variable] = draw(st.sampled_from(["default", "prod", "missing"]))
    return {
        "environ": environ,
        "config": as_ini(profiles, prefix="profile ") + SERVICES,
        "credentials": as_ini(credentials),
        "profile_name": draw(st.sampled_from([None, "default", "prod", "missing"])),
        "region_name": draw(st.sampled_from([None, "ap-south-1"])),
        "endpoint_url": draw(st.sampled_from([None, "http://argument:7"])),
    }


def as_ini(profiles: dict[str, dict[str, str]], prefix: str = "") -> str:
    lines = []
    for name, values in profiles.items():
        lines.append(f"[{name}]" if name == "default" else f"[{prefix}{name}]")
        lines += [f"{key} = {value}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def as_botocore(profile_name: str | None, region_name: str | None, endpoint_url: str | None) -> dict[str, Any] | type:
    try:
        session = oracle.session(profile_name)
        client = oracle.client(profile_name, region_name, endpoint_url)
    except botocore.exceptions.BotoCoreError as error:
        return type(error)
    fips_region = client.meta.region_name != (region_name or session.get_config_variable("region"))
    retries = client.meta.config.retries
    verify = client._endpoint.http_session._verify
    own_url = client.meta.endpoint_url
    return {
        "region_name": region_name or session.get_config_variable("region"),
        "endpoint_url": None if own_url.endswith(("amazonaws.com", "api.aws")) else own_url,
        "use_fips_endpoint": bool(session.get_config_variable("use_fips_endpoint")),
        "use_dualstack_endpoint": bool(session.get_config_variable("use_dualstack_endpoint")),
        "max_attempts": retries.get("total_max_attempts"),
        "retry_mode": retries["mode"],
        "ca_bundle": None if verify is True else verify,
        "user_agent_appid": session.get_config_variable("user_agent_appid") or None,
        "profile_name": session.profile,
        "is_fips_region": fips_region,
    }


@settings(max_examples=40, deadline=None)
@given(configurations())
def test_settings_are_those_of_a_botocore_client(case: dict[str, Any]) -> None:
    arguments = (case["profile_name"], case["region_name"], case["endpoint_url"])
    with tempfile.TemporaryDirectory() as directory:
        config, credentials = Path(directory, "config"), Path(directory, "credentials")
        config.write_text(case["config"])
        credentials.write_text(case["credentials"])
        files = {"AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": str(credentials)}
        with patch.dict(os.environ, case["environ"] | files):
            expected = as_botocore(*arguments)
            if isinstance(expected, type):
                with pytest.raises(expected) as caught:
                    resolve_settings(profile_name=arguments[0], region_name=arguments[1], endpoint_url=arguments[2])
                assert isinstance(caught.value, errors.ConfigurationError)
                return
            got = resolve_settings(profile_name=arguments[0], region_name=arguments[1], endpoint_url=arguments[2])
    del expected["is_fips_region"]
    # Botocore fills in its default here, and the settings leave that to the client.
    got = got._replace(retry_mode=got.retry_mode or BOTOCORE_DEFAUT_SESSION_VARIABLES["retry_mode"][2])
    as_theirs = got._asdict() | {"ca_bundle": got.ca_bundle.path if got.ca_bundle else None}
    assert {name: as_theirs[name] for name in expected} == expected


def test_with_nothing_configured_there_is_no_region() -> None:
    with pytest.raises(errors.NoRegionError) as caught:
        resolve_settings()
    assert isinstance(caught.value, botocore.exceptions.NoRegionError)
    assert str(caught.value) == str(botocore.exceptions.NoRegionError())


def test_a_signed_call_to_a_custom_endpoint_needs_a_region_as_in_botocore() -> None:
    with pytest.raises(botocore.exceptions.NoRegionError):
        oracle.client(endpoint_url="http://localhost:1")
    with pytest.raises(errors.NoRegionError):
        resolve_settings(endpoint_url="http://localhost:1")


def test_an_unsigned_call_needs_a_region_only_without_a_custom_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.NoRegionError):
        resolve_settings(sign=False)
    assert resolve_settings(sign=False, endpoint_url="http://localhost:1").region_name is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:2")
    assert resolve_settings(sign=False) == Settings(region_name=None, endpoint_url="http://localhost:2")


def test_aws_region_counts_after_aws_default_region_and_before_the_profile(
    monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles
) -> None:
    config_files("[default]\nregion = sa-east-1\n")
    assert resolve_settings().region_name == "sa-east-1"
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    assert resolve_settings().region_name == "eu-west-3"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert resolve_settings().region_name == "eu-north-1"


def test_arguments_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    got = resolve_settings(region_name="eu-west-1", use_fips_endpoint=False, use_dualstack_endpoint=False)
    assert (got.use_fips_endpoint, got.use_dualstack_endpoint) == (False, False)


def test_an_empty_region_or_url_counts_as_unset(monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles) -> None:
    config_files("[default]\nregion = eu-west-1\nendpoint_url = http://localhost:1\n")
    expected = resolve_settings()
    assert expected == Settings(region_name="eu-west-1", endpoint_url="http://localhost:1")
    for variable in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(variable, "")
    assert resolve_settings() == expected


@settings(max_examples=300)
@given(st.text(string.ascii_letters + string.digits + "-._ \n€", min_size=1, max_size=70))
def test_region_names_are_refused_as_botocore_refuses_them(region: str) -> None:
    def botocore_accepts() -> bool:
        try:
            validate_region_name(region)
        except botocore.exceptions.InvalidRegionError:
            return False
        # "$" lets a final line end pass.
        return not region.endswith("\n")

    if botocore_accepts():
        assert resolve_settings(region_name=region).region_name == region
        return
    with pytest.raises(errors.InvalidRegionError) as caught:
        resolve_settings(region_name=region)
    assert isinstance(caught.value, botocore.exceptions.InvalidRegionError)
    assert caught.value.kwargs == {"region_name": region}


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "", " "])
def test_invalid_max_attempts_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", value)
    with pytest.raises(errors.InvalidConfigError, match="max_attempts") as caught:
        resolve_settings(region_name="eu-west-1")
    with pytest.raises((ValueError, botocore.exceptions.InvalidMaxRetryAttemptsError)) as theirs:
        oracle.client()
    assert isinstance(caught.value, theirs.type)


MODES = [
    *(
        ("AWS_DEFAULTS_MODE", "defaults_mode", value)
        for value in (
            "legacy",
            "auto",
            "standard",
            "in-region",
            "cross-region",
            "mobile",
            "STANDARD",
            "fast",
            "in_region",
            "",
            " ",
        )
    ),
    *(
        ("AWS_ACCOUNT_ID_ENDPOINT_MODE", "account_id_endpoint_mode", value)
        for value in ("preferred", "disabled", "required", "Disabled", "off", "prefered", "", " ")
    ),
    *(
        ("AWS_STS_REGIONAL_ENDPOINTS", "sts_regional_endpoints", value)
        for value in ("legacy", "regional", "Regional", "LEGACY", "global", "", " ")
    ),
    *(("AWS_RETRY_MODE", "retry_mode", value) for value in ("legacy", "standard", "Standard", "none", "", " ")),
    *(
        (variable, key, value)
        for variable, key in (
            ("AWS_REQUEST_CHECKSUM_CALCULATION", "request_checksum_calculation"),
            ("AWS_RESPONSE_CHECKSUM_VALIDATION", "response_checksum_validation"),
        )
        for value in ("when_supported", "When_Required", "never", "true", "", " ")
    ),
    *(
        ("AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES", "request_min_compression_size_bytes", value)
        for value in ("1", " 4 ", "1048576", "0", "-1", "1048577", "1.5", "many", "", " ")
    ),
    *(
        ("AWS_S3_DISABLE_EXPRESS_SESSION_AUTH", "s3_disable_express_session_auth", value)
        for value in ("true", "FALSE", "yes", "1", "", " ")
    ),
    *(("AWS_AUTH_SCHEME_PREFERENCE", "auth_scheme_preference", value) for value in ("sigv4", "nonsense,,", "")),
]


def test_the_defaults_modes_are_botocores() -> None:
    data = oracle.shared_loader().load_data("sdk-default-configuration")
    assert set(_DEFAULTS_MODES) == {"legacy", "auto", *data["modes"]}


@pytest.mark.parametrize(
    ("variable", "key", "value", "sign"),
    [(*mode, sign) for mode in MODES for sign in (True, False) if sign or mode[1] == "account_id_endpoint_mode"],
)
@pytest.mark.parametrize("in_profile", [False, True], ids=["variable", "profile"])
def test_modes_are_refused_as_botocore_refuses_them(
    monkeypatch: pytest.MonkeyPatch,
    config_files: ConfigFiles,
    variable: str,
    key: str,
    value: str,
    sign: bool,
    in_profile: bool,
) -> None:
    if key not in {names[0] for names in BOTOCORE_DEFAUT_SESSION_VARIABLES.values()}:
        pytest.skip("this botocore does not know the setting")
    if in_profile:
        config_files(f"[default]\nregion = eu-west-1\n{key} = {value}\n")
    else:
        config_files("[default]\nregion = eu-west-1\n")
        monkeypatch.setenv(variable, value)
    try:
        client = oracle.client(sign=sign)
    except botocore.exceptions.BotoCoreError as error:
        theirs = error
    else:
        assert (resolve_settings(sign=sign).retry_mode or "legacy") == client.meta.config.retries["mode"]
        return
    with pytest.raises(type(theirs)) as caught:
        resolve_settings(sign=sign)
    for ours in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert isinstance(ours, errors.ConfigurationError)
        assert value.lower() in str(ours).lower()
    if not isinstance(theirs, botocore.exceptions.InvalidConfigError):
        assert (str(caught.value), caught.value.kwargs) == (str(theirs), theirs.kwargs)


@pytest.mark.parametrize(
    "key",
    [
        "retry_mode",
        "sts_regional_endpoints",
        "request_checksum_calculation",
        "request_min_compression_size_bytes",
        "auth_scheme_preference",
        "use_fips_endpoint",
        "ignore_configured_endpoint_urls",
    ],
)
def test_a_section_in_place_of_a_mode_does_what_it_does_in_botocore(config_files: ConfigFiles, key: str) -> None:
    config_files(f"[default]\nregion = eu-west-1\n{key} =\n  a = b\n")
    try:
        oracle.client()
    except botocore.exceptions.BotoCoreError as error:
        with pytest.raises(type(error)):
            resolve_settings()
    else:
        assert resolve_settings() == Settings(region_name="eu-west-1")


@pytest.mark.parametrize("mode", ["standard", "auto", "Mobile"])
def test_a_retry_mode_takes_precedence_over_that_of_the_defaults_mode(
    monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles, mode: str
) -> None:
    config_files(f"[default]\nregion = eu-west-1\ndefaults_mode = {mode}\n[profile own]\nregion = eu-west-1\n")
    assert resolve_settings().retry_mode == oracle.client().meta.config.retries["mode"] == "standard"
    assert resolve_settings(profile_name="own").retry_mode is None
    monkeypatch.setenv("AWS_RETRY_MODE", "legacy")
    assert resolve_settings().retry_mode == oracle.client().meta.config.retries["mode"] == "legacy"


@pytest.mark.parametrize("variable", ["AWS_PROFILE", "AWS_DEFAULT_PROFILE", None])
def test_an_empty_profile_does_not_exist_as_in_botocore(
    monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles, variable: str | None
) -> None:
    config_files("[default]\nregion = eu-west-1\n[profile prod]\nregion = eu-west-2\n")
    monkeypatch.setenv("AWS_PROFILE", "prod")
    if variable is not None:
        monkeypatch.setenv(variable, "")
    name = "" if variable is None else None
    with pytest.raises(botocore.exceptions.ProfileNotFound) as theirs:
        oracle.client(name)
    with pytest.raises(errors.ProfileNotFoundError) as ours:
        resolve_settings(profile_name=name)
    assert (str(ours.value), ours.value.kwargs) == (str(theirs.value), theirs.value.kwargs)


def test_the_retry_mode_of_the_environment_takes_precedence_over_the_profile(
    monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles
) -> None:
    assert resolve_settings(region_name="eu-west-1").retry_mode is None
    config_files("[default]\nregion = eu-west-1\nretry_mode = standard\n[profile batch]\nretry_mode = adaptive\n")
    assert resolve_settings().retry_mode == "standard"
    assert resolve_settings(region_name="eu-west-1", profile_name="batch").retry_mode == "adaptive"
    monkeypatch.setenv("AWS_RETRY_MODE", "legacy")
    assert resolve_settings(region_name="eu-west-1", profile_name="batch").retry_mode == "legacy"


@pytest.mark.parametrize("value", ["Standard", "ADAPTIVE", "standard,adaptive", "none", "3", "{0}"])
@pytest.mark.parametrize("variable", [False, True])
def test_unknown_retry_modes_are_refused_as_botocore_refuses_them(
    monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles, variable: bool, value: str
) -> None:
    in_profile = "standard" if variable else value
    config_files(f"[default]\nregion = eu-west-1\nretry_mode = {in_profile}\n")
    if variable:
        monkeypatch.setenv("AWS_RETRY_MODE", value)
    with pytest.raises(botocore.exceptions.InvalidRetryModeError) as theirs:
        oracle.client()
    with pytest.raises(errors.InvalidRetryModeError) as ours:
        resolve_settings()
    for error in (ours.value, pickle.loads(pickle.dumps(ours.value))):
        assert isinstance(error, errors.ConfigurationError)
        assert isinstance(error, botocore.exceptions.InvalidRetryModeError)
        assert str(error) == str(theirs.value)
        assert error.kwargs == theirs.value.kwargs
        assert not error.retry_safe


def test_a_valid_retry_mode_hides_an_unknown_one_in_the_profile(
    monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles
) -> None:
    config_files("[default]\nregion = eu-west-1\nretry_mode = nonsense\n")
    monkeypatch.setenv("AWS_RETRY_MODE", "adaptive")
    assert oracle.client().meta.config.retries["mode"] == resolve_settings().retry_mode == "adaptive"


def test_an_empty_variable_hides_the_profile_as_in_botocore(
    monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles
) -> None:
    config_files(
        "[default]\nregion = eu-west-1\nuse_fips_endpoint = true\nsdk_ua_app_id = app\n"
        "sts_regional_endpoints = nonsense\n"
    )
    for variable in ("AWS_USE_FIPS_ENDPOINT", "AWS_SDK_UA_APP_ID", "AWS_STS_REGIONAL_ENDPOINTS"):
        monkeypatch.setenv(variable, "")
    assert oracle.request_of(oracle.client()).url.startswith("https://runtime.sagemaker.eu-west-1.")
    assert resolve_settings() == Settings(region_name="eu-west-1")


def test_a_section_in_place_of_a_value_is_refused(config_files: ConfigFiles) -> None:
    config_files("[default]\nregion =\n  name = eu-west-1\n")
    with pytest.raises(errors.InvalidConfigError, match="region"):
        resolve_settings()


def test_a_missing_profile_is_reported_as_by_botocore(config_files: ConfigFiles) -> None:
    config_files("[profile here]\nregion = eu-west-1\n")
    assert resolve_settings(profile_name="here").region_name == "eu-west-1"
    with pytest.raises(botocore.exceptions.ProfileNotFound) as theirs:
        oracle.session("gone").get_scoped_config()
    with pytest.raises(errors.ProfileNotFoundError) as ours:
        resolve_settings(profile_name="gone")
    assert str(ours.value) == str(theirs.value)
    assert ours.value.kwargs == {"profile": "gone"}
    assert isinstance(ours.value, botocore.exceptions.ProfileNotFound)


@pytest.mark.parametrize(
    "broken",
    [
        "[default]\naws_secret_access_key sesame\n",
        "aws_secret_access_key = sesame\n",
        "[default]\naws_secret_access_key = a\naws_secret_access_key = sesame\n",
        "[default]\n[default]\naws_secret_access_key = sesame\n",
        "[default]\ns3 =\n  sesame\n",
        "[default]\naws_secret_access_key = sesame\udcff\n",
    ],
)
@pytest.mark.parametrize("which", ["config", "credentials"])
def test_a_broken_file_is_named_and_not_quoted(
    config_files: ConfigFiles, tmp_path: Path, broken: str, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / which
    path.write_bytes(broken.encode(errors="surrogateescape"))
    variable = "AWS_CONFIG_FILE" if which == "config" else "AWS_SHARED_CREDENTIALS_FILE"
    monkeypatch.setenv(variable, str(path))
    with pytest.raises(errors.ConfigFileError) as caught:
        resolve_settings(region_name="eu-west-1")
    error = caught.value
    assert isinstance(error, botocore.exceptions.ConfigParseError)
    assert str(path) in str(error)
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
    assert "sesame" not in shown
    assert error.__cause__ is None
    assert error.__context__ is None


def test_no_repr_contains_a_value_from_the_files(config_files: ConfigFiles) -> None:
    config_files("[default]\nregion = eu-west-1\n", "[default]\naws_secret_access_key = sesame\n")
    shared = load_shared_config()
    assert shared.credentials_profiles["default"]["aws_secret_access_key"] == "sesame"
    assert "sesame" not in repr(shared)
    assert "sesame" not in repr(resolve_settings())


def test_paths_are_expanded_as_in_botocore(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("[default]\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", "~/$NAME")
    monkeypatch.setenv("NAME", "elsewhere")
    assert resolve_settings().region_name == "eu-west-1"


def test_without_files_nothing_of_botocore_but_its_errors_is_loaded(tmp_path: Path) -> None:
    program = (
        "import sys, asyncio\n"
        "from aiosmrt._aws.settings import resolve_settings\n"
        "from aiosmrt._aws.hosts import resolve_endpoint\n"
        "from aiosmrt._aws.credentials import CredentialsCache\n"
        "from aiosmrt._aws.providers import provider_for\n"
        "settings = resolve_settings()\n"
        "assert resolve_endpoint(settings.region_name).host == 'runtime.sagemaker.eu-west-1.amazonaws.com'\n"
        "assert asyncio.run(CredentialsCache(provider_for()).get()).access_key == 'AKIDEXAMPLE'\n"
        "print(*sorted(name for name in sys.modules if 'botocore' in name or name == 'urllib3'))\n"
    )
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "fake-secret-key-for-tests",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    loaded = [name for name in done.stdout.split() if not name.startswith("botocore.vendored")]
    assert loaded == ["botocore", "botocore.exceptions"]
