"""TOML files: their settings, and the errors in invalid ones."""

import random
from pathlib import Path
from typing import Any

import pytest

from aiosmrt._wire.operations import BY_NAME
from aiosmrt.errors import ConfigurationError
from aiosmrt.local import (
    AsyncInferenceConfig,
    Credentials,
    Invocation,
    LocalRuntime,
    ModelContainer,
    MultiContainer,
    ObjectStorage,
    faults,
)
from aiosmrt.local.configuration import EFFECTS, load_settings, parse_settings
from aiosmrt.local.fault_schedule import Schedule
from tests.support.runtime import Draft, RawConnection

FULL = """
region = "eu-central-1"
account_id = "210987654321"
port = 0
verify_signatures = true
model_timeout = 5
stream_timeout = 7.5
max_body_bytes = 1000
max_response_bytes = 2000
keepalive_timeout = 30
drain_timeout = 1
seed = 7

[[credentials]]
access_key = "AKIDEXAMPLE"
secret_key = "not-a-real-secret"

[[credentials]]
access_key = "ASIDEXAMPLE"
secret_key = "not-a-real-secret"
token = "not-a-real-token"

[object_storage]
endpoint_url = "http://127.0.0.1:8333"
region = "eu-west-1"
buckets = ["results", "more-results"]
access_key = "AKIDEXAMPLE"
secret_key = "not-a-real-secret"

[[faults]]
effect = "skewed_clock"
seconds = 10

[endpoints.churn]
url = "http://127.0.0.1:8080"
multi_model = false
model_timeout = 3
session_seconds = 60

[endpoints.churn.async_inference]
s3_output_path = "s3://results/churn"
s3_failure_path = "s3://more-results"
max_concurrent_invocations_per_instance = 7

[[endpoints.churn.faults]]
effect = "throttling"
retry_after = 1.5
next = 3

[[endpoints.churn.faults]]
effect = "truncate"
after_bytes = 100
clean_ending = true
every = 10
operation = "InvokeEndpoint"

[[endpoints.digits.variants]]
name = "Blue"
weight = 3

[endpoints.digits.variants.container]
command = ["python", "serve.py"]
environment = { THREADS = "1" }
model_dir = "model"
working_dir = "."
startup_timeout = 30
grace = 2.5

[[endpoints.digits.variants]]
name = "Green"
instances = [{ url = "http://127.0.0.1:8081" }, { handler = "tests.local.test_configuration:model" }]

[endpoints.pair]
multi_model = true
container_mode = "Serial"
containers.first.url = "http://127.0.0.1:8083"
containers.second.handler = "tests.local.test_configuration:model"

[[endpoints.shared.inference_components]]
name = "adapter"
variant = "Spare"
url = "http://127.0.0.1:8082"
"""


async def model(invocation: Invocation) -> bytes:
    return invocation.body.upper()


def written(folder: Path, text: str) -> Path:
    path = folder / "runtime.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, FULL))
    endpoints = settings.pop("endpoints")
    script = settings.pop("faults")
    chance = settings.pop("chance")
    credentials = settings.pop("credentials")
    assert settings.pop("object_storage") == ObjectStorage(
        endpoint_url="http://127.0.0.1:8333",
        credentials=Credentials("AKIDEXAMPLE", "not-a-real-secret"),
        buckets=["results", "more-results"],
        region="eu-west-1",
    )
    assert settings == {
        "region": "eu-central-1",
        "account_id": "210987654321",
        "port": 0,
        "verify_signatures": True,
        "model_timeout": 5.0,
        "stream_timeout": 7.5,
        "max_body_bytes": 1000,
        "max_response_bytes": 2000,
        "keepalive_timeout": 30.0,
        "drain_timeout": 1.0,
    }
    assert chance.random() == random.Random(7).random()
    assert credentials == [
        Credentials("AKIDEXAMPLE", "not-a-real-secret"),
        Credentials("ASIDEXAMPLE", "not-a-real-secret", token="not-a-real-token"),
    ]
    assert script == {
        "*": [faults.SkewedClock(10.0).always()],
        "churn": [
            faults.throttling(1.5).next(3),
            faults.Fault(
                faults.Truncate(after_bytes=100, clean_ending=True), Schedule(every=10, operation="InvokeEndpoint")
            ),
        ],
    }
    churn, digits, pair, shared = (endpoints[name] for name in ("churn", "digits", "pair", "shared"))
    assert churn.variants[0].target == "http://127.0.0.1:8080"
    assert (churn.multi_model, churn.model_timeout, churn.session_seconds) == (False, 3.0, 60.0)
    assert churn.async_inference == AsyncInferenceConfig("s3://results/churn", "s3://more-results", 7)
    assert digits.async_inference is None
    blue, green = digits.variants
    assert (blue.name, blue.weight) == ("Blue", 3.0)
    assert isinstance(blue.target[0], ModelContainer)
    assert "python serve.py" in repr(blue.target[0])
    assert (green.name, green.weight) == ("Green", 1.0)
    assert green.target[0] == "http://127.0.0.1:8081"
    assert green.target[1].__name__ == "model"
    assert pair.multi_model
    assert isinstance(pair.variants[0].target, MultiContainer)
    assert list(pair.variants[0].target.containers) == ["first", "second"]
    assert pair.variants[0].target.mode == "Serial"
    assert pair.variants[0].target.containers["first"] == "http://127.0.0.1:8083"
    (component,) = shared.inference_components
    assert (component.name, component.variant) == ("adapter", "Spare")


async def test_runtime_from_a_file(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        region = "eu-central-1"
        credentials = [{ access_key = "AKIDEXAMPLE", secret_key = "fake-secret-key-for-tests" }]
        endpoints.echo.handler = "tests.local.test_configuration:model"
        endpoints.echo.faults = [{ effect = "internal_failure", next = 1 }]
        """,
    )
    async with LocalRuntime.from_toml(path) as runtime, RawConnection.to(runtime.url) as connection:
        assert (await connection.exchange(Draft(runtime.url, body=b"loud").sign().encode())).status == 500
        answer = await connection.exchange(Draft(runtime.url, body=b"loud").sign().encode())
        assert (answer.status, answer.body) == (200, b"LOUD")


@pytest.mark.parametrize("name", EFFECTS)
def test_names_of_effects(name: str) -> None:
    needed: dict[str, Any] = {"validation_error": {"message": "no"}, "skewed_clock": {"seconds": 1}}
    table = {"effect": name, **needed.get(name, {})}
    settings = parse_settings({"faults": [table]}, Path())
    (fault,) = settings["faults"]["*"]
    assert fault.effect.name == name
    assert fault.schedule == Schedule()


URL = 'url = "http://127.0.0.1:8080"'
STORAGE = "[object_storage]\nendpoint_url = 'http://127.0.0.1:8333'\naccess_key = 'A'\nsecret_key = 's'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("region = 7", "region: must be a string; got an integer"),
        ("port = true", "port: must be an integer; got a boolean"),
        ("model_timeout = 'long'", "model_timeout: must be a number; got a string"),
        ("endpoints = []", "endpoints: must be a table; got a list"),
        ("endpoint.a.b = 1", "endpoint: is unknown; did you mean endpoints?"),
        ("[endpoints.churn]", "endpoints.churn.url: exactly one of url, handler and container is required"),
        (f"[endpoints.churn]\n{URL}\nhandler = 'a:b'", "endpoints.churn.url: exactly one of url, handler and"),
        (f"[endpoints.churn]\n{URL}\nulr = 1", "endpoints.churn.ulr: is unknown; did you mean url?"),
        ("[endpoints.churn]\nurl = '127.0.0.1'", "endpoints.churn.url: a model container's URL must have the form"),
        ("[endpoints.churn]\nhandler = 'a.b'", 'endpoints.churn.handler: must have the form "module:function"'),
        ("[endpoints.churn]\nhandler = 'no_such_module:f'", "endpoints.churn.handler: cannot be imported: No module"),
        ("[endpoints.churn]\nhandler = 'json:nothing'", "endpoints.churn.handler: cannot be imported: module"),
        ("[endpoints.churn]\nhandler = 'json:__name__'", "endpoints.churn.handler: json:__name__ is not callable"),
        ("[endpoints.churn.container]\nport = 1", "endpoints.churn.container.command: is missing"),
        ("[endpoints.churn.container]\ncommand = 'a b'", "endpoints.churn.container.command: must be a list; got"),
        ("[endpoints.churn.container]\ncommand = [1]", "endpoints.churn.container.command: must be a list of strings"),
        (
            "[endpoints.churn.container]\ncommand = ['a']\nenvironment.A = 1",
            "endpoints.churn.container.environment.A: must be a string; got an integer",
        ),
        (f"[[endpoints.churn.variants]]\n{URL}", "endpoints.churn.variants[0].name: is missing"),
        (f"[[endpoints.churn.variants]]\nname = 'A'\nweight = '1'\n{URL}", "variants[0].weight: must be a number"),
        ("endpoints.churn.variants = [1]", "endpoints.churn.variants[0]: must be a table; got an integer"),
        (
            "[[endpoints.churn.variants]]\nname = 'A'\ninstances = [1]",
            "endpoints.churn.variants[0].instances[0]: must be a table",
        ),
        ("[[faults]]\neffect = 'throtling'", "faults[0].effect: 'throtling' is unknown; did you mean throttling?"),
        ("[[faults]]\nnext = 1", "faults[0].effect: is missing"),
        ("[[faults]]\neffect = 'skewed_clock'", "faults[0].seconds: is missing"),
        ("[[faults]]\neffect = 'throttling'\nnext = 0", "faults[0].effect: next must be an integer >= 1; got 0"),
        ("[[faults]]\neffect = 'throttling'\nafter = 1", "faults[0].after: is unknown"),
        ("[[faults]]\neffect = 'drip'\npiece_bytes = 1.5", "faults[0].piece_bytes: must be an integer; got a number"),
        ("[[faults]]\neffect = 'stall'\nseconds = 'x'", "faults[0].seconds: must be a number; got a string"),
        (
            "[[faults]]\neffect = 'stream_failure'\nexception = 'Boom'",
            "faults[0].exception: must be 'ModelStreamError' or 'InternalStreamFailure'; got a string",
        ),
        ("[[credentials]]\naccess_key = 'A'", "credentials[0].secret_key: is missing"),
        ("[[credentials]]\naccess_key = ' '\nsecret_key = 's'", "credentials[0].access_key: access_key contains"),
        ("endpoints.churn.containers = {}", "endpoints.churn.containers: a MultiContainer needs 1 to 15 containers"),
        (f"[endpoints.churn]\n{URL}\ncontainers.a.{URL}", "endpoints.churn.url: is unknown"),
        (
            f'[endpoints.churn]\ncontainer_mode = "serial"\ncontainers.a.{URL}',
            "endpoints.churn.containers: the mode of a MultiContainer must be Direct or Serial; got 'serial'",
        ),
        (f"endpoints.churn.containers.a_b.{URL}", "endpoints.churn.containers: invalid container hostname 'a_b'"),
        (f"endpoints.churn.containers.a = {{ {URL}, ulr = 1 }}", "endpoints.churn.containers.a.ulr: is unknown"),
        (STORAGE, "object_storage.buckets: is missing"),
        (f"{STORAGE}\nbuckets = []", "object_storage.endpoint_url: buckets must be a non-empty list"),
        (f"{STORAGE}\nbuckets = [1]", "object_storage.buckets: must be a list of strings"),
        (f"{STORAGE}\nbuckets = ['b']\nbukets = []", "object_storage.bukets: is unknown; did you mean buckets?"),
        (
            f"{STORAGE}\nbuckets = ['b']".replace("http://", ""),
            "object_storage.endpoint_url: endpoint_url must have the form",
        ),
        ("[object_storage]\nbuckets = ['b']\nendpoint_url = ''", "object_storage.access_key: is missing"),
        (f"[endpoints.churn]\n{URL}\nasync_inference = {{}}", "churn.async_inference.s3_output_path: is missing"),
        (
            f"[endpoints.churn]\n{URL}\nasync_inference.s3_output_path = 'out'",
            "churn.async_inference.s3_output_path: s3_output_path must have the form s3://bucket/prefix",
        ),
        ("region = ", "not TOML"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: No such file"):
        LocalRuntime.from_toml(tmp_path / "nowhere.toml")


def test_fault_for_an_unknown_endpoint(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, f"[endpoints.churn]\n{URL}"))
    settings["faults"] = {"chrun": [faults.throttling()]}
    with pytest.raises(ConfigurationError, match="unknown endpoint; got 'chrun'"):
        LocalRuntime(**settings, verify_signatures=False)


def test_operations_of_a_fault() -> None:
    for operation in BY_NAME:
        table = {"effect": "throttling", "operation": operation}
        assert parse_settings({"faults": [table]}, Path())["faults"]["*"][0].schedule.operation == operation
