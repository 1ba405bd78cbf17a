"""The local runtime, called by the AWS CLI."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aiosmrt.local import ContainerFailure, Credentials, Invocation, LocalRuntime
from tests.support.peers import CREDENTIALS, REGION

BODY = b"5.1,3.5\x00\xff\n"

# 254: the service answered with an error; version 1 before 1.24 gave 255 for every error.
SERVICE_ERROR_EXITS = (254, 255)


class Ended(NamedTuple):
    """A finished AWS CLI."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        return json.loads(self.stdout)


class AwsCli:
    """`aws sagemaker-runtime …` against one runtime."""

    def __init__(self, program: str, url: str, environment: dict[str, str]) -> None:
        self._program = program
        self._url = url
        self._environment = {"PATH": os.environ["PATH"], "AWS_PAGER": "", "AWS_MAX_ATTEMPTS": "1", **environment}

    async def run(self, command: str, *arguments: str, **changed: str) -> Ended:
        process = await asyncio.create_subprocess_exec(
            self._program,
            "sagemaker-runtime",
            command,
            f"--endpoint-url={self._url}",
            f"--region={REGION}",
            "--output=json",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**self._environment, **changed},
        )
        try:
            stdout, stderr = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return Ended(process.returncode, stdout.decode(), stderr.decode())


async def classify(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
    assert invocation.body == BODY
    attributes = {"X-Amzn-SageMaker-Custom-Attributes": f"seen {invocation.custom_attributes}"}
    return b"\x00class\xff\n", {"Content-Type": f"{invocation.accept}; of={invocation.content_type}", **attributes}


async def fails(invocation: Invocation) -> bytes:
    raise ContainerFailure(503, "the model is out to lunch")


@pytest.fixture
async def runtime() -> AsyncIterator[LocalRuntime]:
    credentials = Credentials(CREDENTIALS.access_key, CREDENTIALS.secret_key)
    endpoints: dict[str, Any] = {"classify": classify, "fails": fails}
    async with LocalRuntime(endpoints, credentials=credentials, region=REGION) as runtime:
        yield runtime


@pytest.fixture
def cli(aws_cli: str, runtime: LocalRuntime, aws_variables: dict[str, str]) -> AwsCli:
    return AwsCli(aws_cli, runtime.url, aws_variables)


@pytest.fixture
def body_file(tmp_path: Path) -> Path:
    path = tmp_path / "body.bin"
    path.write_bytes(BODY)
    return path


async def test_invoke_endpoint(cli: AwsCli, runtime: LocalRuntime, body_file: Path, tmp_path: Path) -> None:
    outfile = tmp_path / "out.bin"
    ended = await cli.run(
        "invoke-endpoint",
        "--endpoint-name=classify",
        f"--body=fileb://{body_file}",
        "--content-type=text/csv",
        "--accept=application/json",
        "--custom-attributes=c000b4f9-df62-4c85-a0bf-7c525f9104a4",
        "--target-variant=AllTraffic",
        "--inference-id=id-1",
        str(outfile),
    )
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert outfile.read_bytes() == b"\x00class\xff\n"
    assert ended.document == {
        "ContentType": "application/json; of=text/csv",
        "InvokedProductionVariant": "AllTraffic",
        "CustomAttributes": "seen c000b4f9-df62-4c85-a0bf-7c525f9104a4",
    }
    (record,) = await runtime.wait_for_requests(1)
    assert record.access_key_id == CREDENTIALS.access_key
    assert record.inference_id == "id-1"
    assert record.user_agent is not None
    assert record.user_agent.startswith("aws-cli/")


async def test_errors_and_exit_codes(cli: AwsCli, runtime: LocalRuntime, body_file: Path, tmp_path: Path) -> None:
    outfile = tmp_path / "out.bin"

    async def invoke(name: str, **changed: str) -> Ended:
        return await cli.run(
            "invoke-endpoint", f"--endpoint-name={name}", f"--body=fileb://{body_file}", str(outfile), **changed
        )

    unknown, failed, forged, inference = await asyncio.gather(
        invoke("nowhere"),
        invoke("fails"),
        invoke("classify", AWS_SECRET_ACCESS_KEY="another-fake-secret"),
        cli.run("invoke-endpoint-async", "--endpoint-name=classify", "--input-location=s3://bucket/key"),
    )
    assert "An error occurred (ValidationError) when calling the InvokeEndpoint operation" in unknown.stderr
    assert "Endpoint nowhere of account" in unknown.stderr
    assert "An error occurred (ModelError) when calling the InvokeEndpoint operation" in failed.stderr
    assert "the model is out to lunch" in failed.stderr
    assert "(InvalidSignatureException)" in forged.stderr
    # The endpoint is not asynchronous.
    assert "An error occurred (ValidationError) when calling the InvokeEndpointAsync operation" in inference.stderr
    for ended in (unknown, failed, forged, inference):
        assert ended.exit_code in SERVICE_ERROR_EXITS
        assert ended.stdout == ""
    assert not outfile.exists()
    assert sorted(record.status or 0 for record in await runtime.wait_for_requests(4)) == [400, 400, 403, 424]
