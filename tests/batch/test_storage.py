"""Input and output in S3: a real one, and what happens when it or the job fails half way."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aiosmrt import Client
from aiosmrt._aws import s3 as object_store
from aiosmrt.batch import codec_for, objects, score
from aiosmrt.endpoint import Endpoint
from aiosmrt.errors import (
    BatchInputError,
    BatchOutputError,
    CredentialRetrievalError,
    ObjectStoreError,
    ParamValidationError,
    credential_retrieval_error,
)
from aiosmrt.local import LocalRuntime, ObjectServer
from aiosmrt.serializers import BYTES, JSON
from tests.support.command_line import PROGRAM, environment, run
from tests.support.peers import CLIENT_ARGUMENTS, CREDENTIALS, REGION
from tests.support.scoring import Models, doubled, lines_of


class Storage:
    """A bucket, looked at with aiobotocore itself."""

    def __init__(self, client: Any, bucket: str) -> None:
        self.client = client
        self.bucket = bucket

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    async def put(self, key: str, body: bytes) -> str:
        await self.client.put_object(Bucket=self.bucket, Key=key, Body=body)
        return self.uri(key)

    async def get(self, key: str) -> bytes:
        answer = await self.client.get_object(Bucket=self.bucket, Key=key)
        async with answer["Body"] as body:
            content: bytes = await body.read()
            return content

    async def keys(self) -> list[str]:
        answer = await self.client.list_objects_v2(Bucket=self.bucket)
        return sorted(one["Key"] for one in answer.get("Contents", ()))

    async def uploads(self) -> list[Any]:
        """Multipart uploads that are neither completed nor aborted."""
        answer = await self.client.list_multipart_uploads(Bucket=self.bucket)
        found: list[Any] = answer.get("Uploads", [])
        return found


@pytest.fixture
async def storage(object_server: ObjectServer, bucket: str) -> AsyncIterator[Storage]:
    from aiobotocore.session import get_session

    async with get_session().create_client(
        "s3",
        endpoint_url=object_server.url,
        region_name=REGION,
        aws_access_key_id=CREDENTIALS.access_key,
        aws_secret_access_key=CREDENTIALS.secret_key,
    ) as client:
        yield Storage(client, bucket)


@pytest.fixture
async def endpoint(runtime: LocalRuntime, object_server: ObjectServer) -> AsyncIterator[Endpoint[Any, Any]]:
    async with Client(
        endpoint_url=runtime.url, s3_endpoint_url=object_server.url, max_concurrency=8, **CLIENT_ARGUMENTS
    ) as client:
        yield client.endpoint("double", serializer=JSON, deserializer=JSON)


def rows(first: int, count: int) -> bytes:
    return "".join(f'{{"n": {number}}}\n' for number in range(first, first + count)).encode()


# 17 MB of records, which are three parts.
LARGE: dict[str, Any] = {
    "source": [{"n": number, "text": "x" * 170_000} for number in range(100)],
    "template": {"n": "{n}"},
    "join_source": "Input",
}


def is_large_and_whole(data: bytes) -> bool:
    return [(one["n"], len(one["text"]), one["prediction"]) for one in parsed(data)] == [
        (number, 170_000, 2 * number) for number in range(100)
    ]


def parsed(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


async def test_credentials_that_fail_are_not_taken_for_the_file(tmp_path: Path) -> None:
    """Their error may be an OSError: here, of a credential process that does not exist."""
    missing = credential_retrieval_error("no such program", FileNotFoundError(2, "No such file or directory", "/vault"))

    async def store() -> object_store.ObjectStore:
        raise missing

    path = tmp_path / "out.jsonl"
    path.write_bytes(b"{}\n")
    bucket = objects.Bucket(asyncio.get_running_loop(), store, lambda: False)
    with pytest.raises(CredentialRetrievalError) as caught:
        await asyncio.to_thread(bucket.send, path, "s3://bucket/out.jsonl", {}, "application/jsonlines")
    assert caught.value is missing


async def test_an_output_that_s3_would_not_take_costs_no_call(
    endpoint: Endpoint[Any, Any], storage: Storage, models: Models, tmp_path: Path
) -> None:
    source = [{"n": number} for number in range(5)]
    with pytest.raises(ObjectStoreError, match="NoSuchBucket"):
        await score(endpoint, source, "s3://no-such-bucket/out.jsonl", spool=tmp_path / "spool")
    assert not models.seen
    await score(endpoint, source, storage.uri("out.jsonl"), spool=tmp_path / "spool")
    # It was tried out by an upload.
    assert (await storage.keys(), await storage.uploads()) == (["out.jsonl"], [])


@pytest.mark.parametrize("name", ["in/a.jsonl", "in", "in/", "in/*", "*.jsonl*"])
async def test_objects_prefixes_and_patterns(
    endpoint: Endpoint[Any, Any], storage: Storage, tmp_path: Path, name: str
) -> None:
    await storage.put("in/a.jsonl", rows(0, 30))
    if name != "in/a.jsonl":
        await storage.put("in/b.jsonl.gz", gzip.compress(rows(30, 20)))
        await storage.put("in/.hidden/c.txt", b"no input")
    await score(endpoint, storage.uri(name), tmp_path / "out.jsonl")
    assert lines_of(tmp_path / "out.jsonl") == doubled(30 if name == "in/a.jsonl" else 50)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
async def test_a_large_object_is_read_in_parts(
    endpoint: Endpoint[Any, Any],
    models: Models,
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(objects, "_PART_BYTES", 1000)
    if kind == "jsonl":
        source = await storage.put("a.jsonl", rows(0, 400))
    else:
        pq.write_table(pa.table({"n": range(400)}), tmp_path / "a.parquet", row_group_size=90)
        source = await storage.put("a.parquet", (tmp_path / "a.parquet").read_bytes())
    await score(endpoint, source, tmp_path / "out.jsonl", limit=150)
    report = await score(endpoint, source, tmp_path / "out.jsonl")
    assert report.resumed == 150
    assert lines_of(tmp_path / "out.jsonl") == doubled(400)
    assert set(models.seen.values()) == {1}


async def test_an_object_that_was_replaced_is_refused(
    endpoint: Endpoint[Any, Any], models: Models, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_PART_BYTES", 1000)
    source = await storage.put("a.jsonl", rows(0, 2000))

    async def replace(body: bytes) -> None:
        if models.seen.total() == 1:
            await storage.put("a.jsonl", rows(1, 2000))

    models.before = replace
    with pytest.raises(BatchInputError, match=r"a\.jsonl was replaced while it was read"):
        await score(endpoint, source, tmp_path / "out.jsonl")
    with pytest.raises(BatchOutputError, match=r"belongs to another job: input .*etag was"):
        await score(endpoint, source, tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("name", "error", "problem"),
    [
        ("none.jsonl", BatchInputError, "no S3 object matches"),
        ("none/*.jsonl", BatchInputError, "no S3 object matches"),
        ("x.xml", BatchInputError, "an input format is needed"),
    ],
)
async def test_input_that_is_not_there(
    endpoint: Endpoint[Any, Any], storage: Storage, tmp_path: Path, name: str, error: type[Exception], problem: str
) -> None:
    await storage.put("x.xml", b"<x/>")
    with pytest.raises(error, match=problem):
        await score(endpoint, storage.uri(name), tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


async def test_names_that_are_no_uris_and_buckets_that_do_not_exist(
    endpoint: Endpoint[Any, Any], tmp_path: Path
) -> None:
    with pytest.raises(ParamValidationError, match="an S3 URI must be of the form"):
        await score(endpoint, "s3://", tmp_path / "out.jsonl")
    with pytest.raises(ParamValidationError, match="an S3 URI must be of the form"):
        await score(endpoint, [{"n": 1}], "s3://bucket", output_format="jsonl")
    with pytest.raises(ObjectStoreError, match="NoSuchBucket"):
        await score(endpoint, "s3://no-such-bucket/in/", tmp_path / "out.jsonl")


@pytest.mark.parametrize("key", ["out/scores.jsonl", "out/scores.csv", "out/scores.parquet"])
async def test_output_in_s3(
    endpoint: Endpoint[Any, Any], models: Models, storage: Storage, tmp_path: Path, key: str
) -> None:
    source = await storage.put("a.jsonl", rows(0, 50))
    models.refused = {b'{"n": 7}'}
    uri, spool = storage.uri(key), tmp_path / "spool"
    report = await score(endpoint, source, uri, spool=spool)
    assert (report.output, report.errors, report.failed) == (uri, f"{uri}.errors.jsonl", 1)
    expected = [record for record in doubled(50) if record["index"] != 7]
    content = await storage.get(key)
    if key.endswith(".parquet"):
        assert pq.read_table(pa.BufferReader(content)).to_pylist() == expected
    elif key.endswith(".csv"):
        assert content.splitlines()[1:3] == [b"0,0", b"1,2"]
    else:
        assert parsed(content) == expected
    (error,) = parsed(await storage.get(f"{key}.errors.jsonl"))
    assert error["index"] == 7
    models.refused = set()
    await score(endpoint, source, uri, spool=spool, retry_failed=True)
    assert await storage.keys() == ["a.jsonl", key]
    assert len((await storage.get(key)).splitlines()) >= len(content.splitlines())
    assert models.seen.total() == 51


async def test_a_large_output_is_uploaded_in_parts_and_a_finished_job_uploads_nothing(
    endpoint: Endpoint[Any, Any], storage: Storage, tmp_path: Path
) -> None:
    await score(endpoint, sink=storage.uri("out.jsonl"), spool=tmp_path, **LARGE)
    assert is_large_and_whole(await storage.get("out.jsonl"))
    assert await storage.uploads() == []
    head = await storage.client.head_object(Bucket=storage.bucket, Key="out.jsonl")
    # The ETag of an object that was uploaded in parts ends with their number.
    assert head["ETag"].endswith('-3"')
    await score(endpoint, sink=storage.uri("out.jsonl"), spool=tmp_path, **LARGE)
    again = await storage.client.head_object(Bucket=storage.bucket, Key="out.jsonl")
    assert (again["ETag"], again["LastModified"]) == (head["ETag"], head["LastModified"])


@pytest.mark.parametrize("end", ["failure", "cancellation", "stop"])
async def test_an_upload_that_ends_half_way_leaves_no_parts_and_is_made_again(
    endpoint: Endpoint[Any, Any],
    models: Models,
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    call = object_store.ObjectStore._call
    sending = asyncio.Event()
    parts = 0

    async def interrupted(self: Any, operation: str, *arguments: Any) -> Any:
        nonlocal parts
        parts += operation == "upload_part"
        if operation == "upload_part" and parts == 2:
            sending.set()
            if end != "failure":
                await asyncio.Event().wait()
            raise ObjectStoreError("the network is gone", code="EndpointConnectionError")
        return await call(self, operation, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(object_store.ObjectStore, "_call", interrupted)
        stop = asyncio.Event()
        job = asyncio.create_task(
            score(endpoint, sink=storage.uri("out.jsonl"), spool=tmp_path, stop=stop, drain=0.01, **LARGE)
        )
        await sending.wait()
        if end == "stop":
            stop.set()
            report = await job
            assert (report.finished, report.rows) == (False, 100)
        else:
            if end == "cancellation":
                job.cancel()
            with pytest.raises(asyncio.CancelledError if end == "cancellation" else ObjectStoreError):
                await job
    assert await storage.keys() == []
    assert await storage.uploads() == []
    report = await score(endpoint, sink=storage.uri("out.jsonl"), spool=tmp_path, **LARGE)
    assert (report.resumed, models.seen.total()) == (100, 100)
    assert is_large_and_whole(await storage.get("out.jsonl"))


async def test_an_object_of_others_is_not_overwritten(
    endpoint: Endpoint[Any, Any], storage: Storage, tmp_path: Path
) -> None:
    uri = await storage.put("out.jsonl", b"mine")
    with pytest.raises(BatchOutputError, match="exists without a journal"):
        await score(endpoint, [{"n": 1}], uri, spool=tmp_path)
    assert await storage.get("out.jsonl") == b"mine"
    await score(endpoint, [{"n": 1}], uri, spool=tmp_path, fresh=True)
    assert parsed(await storage.get("out.jsonl")) == [{"index": 0, "value": 2}]
    await storage.put("out.jsonl", b"mine again")
    with pytest.raises(BatchOutputError, match="written by something else since the job began"):
        await score(endpoint, [{"n": 1}], uri, spool=tmp_path)
    assert await storage.get("out.jsonl") == b"mine again"


async def test_errors_do_not_overwrite_an_object_of_others(
    endpoint: Endpoint[Any, Any], models: Models, storage: Storage, tmp_path: Path
) -> None:
    models.refused = {b'{"n":1}'}
    sink, name = storage.uri("out.jsonl"), "out.jsonl.errors.jsonl"
    await storage.put(name, b"mine")
    with pytest.raises(BatchOutputError, match=f"{name} exists, and no job has written it"):
        await score(endpoint, [{"n": 1}], sink, spool=tmp_path / "a")
    assert models.seen.total() == 0
    await score(endpoint, [{"n": 1}], sink, spool=tmp_path / "a", fresh=True)
    assert parsed(await storage.get(name))[0]["error"] == "ModelError"
    # Of an earlier job.
    await score(endpoint, [{"n": 1}], storage.uri("out.jsonl"), spool=tmp_path / "b", fresh=True)

    async def replace(body: bytes) -> None:
        await storage.put(name, b"mine again")

    models.before = replace
    with pytest.raises(BatchOutputError, match=f"{name} was written by something else since the job began"):
        await score(endpoint, [{"n": 1}], sink, spool=tmp_path / "c", fresh=True)
    assert await storage.get(name) == b"mine again"


async def test_the_output_is_never_input(
    endpoint: Endpoint[Any, Any], models: Models, storage: Storage, tmp_path: Path
) -> None:
    source = await storage.put("in/a.jsonl", rows(0, 10))
    for errors in ("", ".errors.jsonl"):
        with pytest.raises(BatchInputError, match="both input and output"):
            await score(endpoint, f"{source}{errors}", source, spool=tmp_path / "refused", fresh=True)
    assert (await storage.get("in/a.jsonl"), models.seen.total()) == (rows(0, 10), 0)
    models.refused = {b'{"n": 7}'}
    for name in ("in/", "in/*.jsonl"):
        uri, spool = storage.uri("in/scores.jsonl"), tmp_path / "spool"
        await score(endpoint, storage.uri(name), uri, spool=spool, fresh=True)
        assert await storage.keys() == ["in/a.jsonl", "in/scores.jsonl", "in/scores.jsonl.errors.jsonl"]
        report = await score(endpoint, storage.uri(name), uri, spool=spool)
        assert (report.rows, report.resumed, report.failed) == (10, 10, 1)
        again = await score(endpoint, storage.uri(name), uri, spool=spool, fresh=True)
        assert (again.rows, again.resumed, again.failed) == (10, 0, 1)


async def test_the_serializer_goes_by_the_format_of_what_is_found(
    endpoint: Endpoint[Any, Any], models: Models, storage: Storage, tmp_path: Path
) -> None:
    await storage.put("in/a.csv", b"n\n1\n")
    codecs = {"csv": codec_for("text/csv"), "records": JSON}
    echo = Endpoint(endpoint.client, "echo", serializer=BYTES, deserializer=BYTES)
    for number, source in enumerate((storage.uri("in/"), [{"n": 1}])):
        out = tmp_path / f"{number}.txt"
        await score(echo, source, out, serializer_for=codecs.__getitem__)
    assert set(models.seen) == {b"1", b'{"n":1}'}


async def test_from_a_shell(
    runtime: LocalRuntime, object_server: ObjectServer, storage: Storage, tmp_path: Path
) -> None:
    source = await storage.put("in/a.jsonl", rows(0, 40))
    env = environment(tmp_path, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url, AWS_ENDPOINT_URL_S3=object_server.url)
    command = (
        *PROGRAM,
        "score",
        source,
        "--endpoint-name",
        "double",
        "--output",
        storage.uri("out.parquet"),
        "--quiet",
    )
    ended = await run(*command, env=env, cwd=tmp_path)
    assert ended == (0, b"", b"")
    table = pq.read_table(pa.BufferReader(await storage.get("out.parquet")))
    assert table.to_pylist() == doubled(40)
    # The answers and the journal are under the user's state folder.
    (journal,) = (tmp_path / ".local/state/aiosmrt/score").glob("*/out.parquet.journal")
    assert journal.stat().st_size


@pytest.mark.parametrize("error", [None, TimeoutError("of the loop's side")])
def test_what_ends_just_after_it_was_waited_for_is_its_result(error: Exception | None) -> None:
    class Late(Future[int]):
        def result(self, timeout: float | None = None) -> int:
            if self.done():
                return super().result(timeout)
            if error is None:
                self.set_result(7)
            else:
                self.set_exception(error)
            raise FutureTimeoutError

    if error is None:
        assert objects.result_while_wanted(Late(), lambda: False) == 7
    else:
        with pytest.raises(TimeoutError, match="of the loop's side"):
            objects.result_while_wanted(Late(), lambda: False)
