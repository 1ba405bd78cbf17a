"""The models of docs/real-models.md, in MLflow's scoring server and as a LitServe application.

Predictions are compared with those of the process that trained the model, and errors with MLflow's responses
without a runtime in between.
"""

import asyncio
import itertools
import json
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from botocore.exceptions import ClientError

from aiosmrt import Client
from aiosmrt.local import LocalRuntime, ModelContainer, faults
from aiosmrt.local.configuration import load_settings
from tests.support.peers import aiosmrt_client, boto3_client
from tests.support.runtime import local_runtime

PAGE = Path(__file__).parent.parent.parent / "docs" / "real-models.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONCURRENCY = 50

pytestmark = [
    pytest.mark.models,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),  # MLflow is imported three times, which takes a minute on a busy machine
]

Invoke = Callable[..., Awaitable[tuple[str, bytes]]]


@dataclass(frozen=True)
class Trained:
    """The training rows, and the model's predictions in the process that trained it."""

    columns: list[str]
    data: list[list[float]]
    predictions: list[int]


@dataclass(frozen=True)
class Served:
    """A running runtime with the page's endpoints."""

    runtime: LocalRuntime
    mlflow: ModelContainer


def page_files() -> dict[str, str]:
    """The programs and settings on the page, by the name in their first line."""
    return {named[1]: text for _, text in FENCE.findall(PAGE.read_text()) if (named := re.match(r"# (\S+)\n", text))}


def page_commands() -> list[tuple[str, str]]:
    """The shell commands on the page that are followed by their output."""
    pairs = itertools.pairwise(FENCE.findall(PAGE.read_text()))
    return [(text, shown) for (kind, text), (next_kind, shown) in pairs if (kind, next_kind) == ("sh", "text")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files."""
    path = tmp_path_factory.mktemp("page")
    for name, text in page_files().items():
        (path / name).write_text(text)
    return path


@pytest.fixture(scope="module")
def trained(folder: Path, models_python: Path, server_processes: object) -> Trained:
    """The page's model, trained and saved."""
    program = Path(__file__).with_name("run_training.py")
    command = [str(models_python), str(program), "iris.py", "trained.json"]
    ended = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 0, ended.stdout
    return Trained(**json.loads((folder / "trained.json").read_text()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(folder: Path, trained: Trained) -> AsyncIterator[Served]:
    settings = load_settings(folder / "models.toml")
    (mlflow,) = settings["endpoints"]["iris"].containers()
    async with local_runtime(**settings) as runtime:
        yield Served(runtime, mlflow)


@pytest_asyncio.fixture(loop_scope="module")
async def client(served: Served) -> AsyncIterator[Client]:
    async with aiosmrt_client(served.runtime.url, max_concurrency=CONCURRENCY) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module", params=["aiosmrt", "boto3"])
async def invoke(request: pytest.FixtureRequest, served: Served) -> AsyncIterator[Invoke]:
    """InvokeEndpoint of the MLflow endpoint through either client: content type and body."""
    if request.param == "aiosmrt":
        async with aiosmrt_client(served.runtime.url) as ours:

            async def through_aiosmrt(**members: Any) -> tuple[str, bytes]:
                response = await ours.invoke_endpoint(EndpointName="iris", **members)
                return response["ContentType"], await response["Body"].read()

            yield through_aiosmrt
    else:
        async with boto3_client(served.runtime.url) as theirs:

            def through_boto3(**members: Any) -> tuple[str, bytes]:
                response = theirs.invoke_endpoint(EndpointName="iris", **members)
                with closing(response["Body"]) as body:
                    return response["ContentType"], body.read()

            yield lambda **members: asyncio.to_thread(through_boto3, **members)


def csv(columns: list[str], data: list[list[float]]) -> bytes:
    return "\n".join([",".join(columns), *(",".join(map(str, row)) for row in data)]).encode()


def split(columns: list[str], data: list[list[float]]) -> bytes:
    return json.dumps({"dataframe_split": {"columns": columns, "data": data}}).encode()


def records(columns: list[str], data: list[list[float]]) -> bytes:
    return json.dumps({"dataframe_records": [dict(zip(columns, row, strict=True)) for row in data]}).encode()


@pytest.mark.parametrize(
    ("encode", "content_type"),
    [(csv, "text/csv"), (csv, "text/csv; charset=utf-8"), (split, "application/json"), (records, "application/json")],
    ids=["csv", "csv-utf-8", "split", "records"],
)
async def test_predictions_match_the_model(invoke: Invoke, trained: Trained, encode: Any, content_type: str) -> None:
    answered_as, body = await invoke(Body=encode(trained.columns, trained.data), ContentType=content_type)
    assert answered_as == "application/json"
    assert json.loads(body) == {"predictions": trained.predictions}
    assert set(trained.predictions) == {0, 1, 2}


async def test_body_of_megabytes(invoke: Invoke, trained: Trained) -> None:
    body = csv(trained.columns, trained.data * 1000)
    assert len(body) > 2 << 20
    _, answer = await invoke(Body=body, ContentType="text/csv")
    assert json.loads(answer)["predictions"] == trained.predictions * 1000


async def test_fifty_calls_at_once(client: Client, served: Served, trained: Trained) -> None:
    async def predict(row: list[float]) -> int:
        body = split(trained.columns, [row])
        response = await client.invoke_endpoint(EndpointName="iris", Body=body, ContentType="application/json")
        (label,) = json.loads(await response["Body"].read())["predictions"]
        return int(label)

    # Held at the runtime until all have arrived, so that they reach the server together.
    served.runtime.inject("iris", faults.Stall().next(CONCURRENCY))
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(predict(row)) for row in trained.data[:: len(trained.data) // CONCURRENCY]]
        await served.runtime.wait_for_stalled(CONCURRENCY)
        served.runtime.release_stalled()
    assert [call.result() for call in calls] == trained.predictions[:: len(trained.data) // CONCURRENCY]


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"sepal length (cm),colour\n5.1,blue\n", "text/csv", 400),
        (
            json.dumps({"dataframe_split": {"columns": ["colour"], "data": [["blue"]]}}).encode(),
            "application/json",
            400,
        ),
        (b'{"dataframe_split": ', "application/json", 400),
        (b"5.1 3.5 1.4 0.2", "text/plain", 415),
    ],
    ids=["csv-columns", "json-columns", "no-json", "content-type"],
)
async def test_error_of_the_model(invoke: Invoke, served: Served, body: bytes, content_type: str, status: int) -> None:
    headers = {"Content-Type": content_type}
    async with (
        aiohttp.ClientSession(served.mlflow.url) as session,
        session.post("/invocations", data=body, headers=headers) as direct,
    ):
        original = await direct.text()
    assert direct.status == status
    with pytest.raises(ClientError) as caught:
        await invoke(Body=body, ContentType=content_type)
    response: Any = caught.value.response
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["Error"]["Code"] == "ModelError"
    assert response["OriginalStatusCode"] == status
    assert response["OriginalMessage"] == original[:2048]


async def test_plain_response_as_a_stream(client: Client, trained: Trained) -> None:
    response = await client.invoke_endpoint_with_response_stream(
        EndpointName="iris", Body=csv(trained.columns, trained.data), ContentType="text/csv"
    )
    async with response["Body"] as stream:
        parts = [event["PayloadPart"]["Bytes"] async for event in stream]
    assert response["ContentType"] == "application/json"
    assert json.loads(b"".join(parts)) == {"predictions": trained.predictions}


async def test_stream_as_a_plain_response(client: Client) -> None:
    response = await client.invoke_endpoint(
        EndpointName="words", Body=b'{"prompt": "to be or not"}', ContentType="application/json"
    )
    assert await response["Body"].read() == b"to\nbe\nor\nnot\n"


@pytest.mark.parametrize(("commands", "shown"), page_commands(), ids=["invoke-endpoint", "response-stream"])
async def test_commands_on_the_page(served: Served, folder: Path, tmp_path: Path, commands: str, shown: str) -> None:
    assert "http://127.0.0.1:8000" in commands
    process = await asyncio.create_subprocess_exec(
        *("sh", "-euc", commands.replace("http://127.0.0.1:8000", served.runtime.url)),
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    assert stdout.decode().strip() == shown.strip()
