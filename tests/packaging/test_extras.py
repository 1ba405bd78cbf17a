"""What is not installed is named, with the command that installs it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import aiosmrt
from aiosmrt._extras import installed
from aiosmrt.errors import ConfigurationError, MissingExtraError
from aiosmrt.local import (
    AsyncInferenceConfig,
    Credentials,
    EndpointConfiguration,
    LocalRuntime,
    ObjectStorage,
    ProductionVariant,
)
from aiosmrt.serializers import TEXT

KEY = Credentials("AKIDEXAMPLE", "not-a-real-secret")


@pytest.fixture
def no_aiobotocore(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "aiobotocore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "aiosmrt._aws.s3session", raising=False)
    monkeypatch.setitem(sys.modules, "aiobotocore", None)


@pytest.mark.parametrize("fault", [None, ImportError("a library it links to is missing")])
def test_what_is_missing_and_what_is_broken_are_told_apart(
    fault: ImportError | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if fault is not None:
        (tmp_path / "partly_there.py").write_text(f"raise ImportError({str(fault)!r})")
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        installed("partly_there", "numpy")
    what = "is not installed" if fault is None else "cannot be imported"
    assert str(caught.value) == f"partly_there {what}; run: pip install 'aiosmrt[numpy]'"
    assert isinstance(caught.value, ImportError)


@pytest.mark.usefixtures("no_aiobotocore")
async def test_a_large_body_of_a_job_needs_the_extra_s3() -> None:
    async with aiosmrt.Client(
        region_name="us-east-1", aws_access_key_id=KEY.access_key, aws_secret_access_key=KEY.secret_key
    ) as client:
        queued = client.endpoint("queued", serializer=TEXT, deserializer=TEXT)
        with pytest.raises(ConfigurationError, match=r"pip install 'aiosmrt\[s3\]'"):
            await queued.submit("x" * 200_000, upload_to="s3://bucket/in")


@pytest.mark.usefixtures("no_aiobotocore")
async def test_object_storage_of_the_local_runtime_needs_the_extra_s3() -> None:
    async def model(invocation: object) -> bytes:
        return b""

    queued = EndpointConfiguration(
        [ProductionVariant(model)], async_inference=AsyncInferenceConfig("s3://bucket/out", "s3://bucket/failed")
    )
    storage = ObjectStorage(endpoint_url="http://127.0.0.1:9", credentials=KEY, buckets=["bucket"])
    with pytest.raises(ConfigurationError, match=r"pip install 'aiosmrt\[s3\]'"):
        async with LocalRuntime({"queued": queued}, credentials=KEY, object_storage=storage):
            pass


def test_the_command_names_its_extra_where_click_is_only_half_there() -> None:
    program = """
import sys, types
sys.modules["click"] = types.ModuleType("click")
sys.modules["click.shell_completion"] = types.ModuleType("click.shell_completion")
from aiosmrt.cli import main
sys.exit(main(["--help"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (253, "")
    assert done.stderr.startswith("aiosmrt: error: click cannot be imported (")
    assert done.stderr.endswith("); run: pip install 'aiosmrt[cli]'\n")


def test_an_error_of_a_missing_extra_keeps_its_module_when_copied() -> None:
    with pytest.raises(MissingExtraError) as raised:
        installed("no_such_module", "numpy")
    for copied in (copy.deepcopy(raised.value), pickle.loads(pickle.dumps(raised.value))):
        assert (type(copied), copied.name, str(copied)) == (MissingExtraError, "no_such_module", str(raised.value))
