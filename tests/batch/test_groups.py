"""Several rows a request: bodies, answers by row, bad rows, and what a later run makes of it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from math import ceil, log2
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aiosmrt import Client, ParamValidationError
from aiosmrt.batch import ANY_ANSWER, codec_for, score
from aiosmrt.endpoint import Endpoint
from aiosmrt.errors import BatchOutputError, BatchStoppedError
from aiosmrt.local import ContainerFailure, Invocation, LocalRuntime, faults
from aiosmrt.serializers import JSON, NPY
from tests.support.command_line import PROGRAM, environment, started, unless_ended
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.runtime import local_runtime
from tests.support.scoring import Models, doubled, lines_of, write_rows


class Doubles:
    """A model of many rows that refuses those with a negative n, or answers one value too few.

    Attributes:
        calls: the rows of each request that were well-formed, by their n.
        bodies: the bodies of all requests.
        short: requests with one of these get an answer that is too short.
        refuse: whether to refuse everything.
    """

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.bodies: list[bytes] = []
        self.short: set[int] = set()
        self.refuse = False

    async def __call__(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        self.bodies.append(invocation.body)
        numbers = [row["n"] for row in json.loads(invocation.body)]
        self.calls.append(numbers)
        if self.refuse or any(number < 0 for number in numbers):
            raise ContainerFailure(400, "negative")
        values = [2 * number for number in numbers]
        short = self.short.intersection(numbers)
        return json.dumps(values[1:] if short else values).encode(), {"Content-Type": "application/json"}


@pytest.fixture
def model() -> Doubles:
    return Doubles()


@pytest.fixture
async def runtime(models: Models, model: Doubles) -> Any:
    async with local_runtime({"doubles": model, "echo": models.echo}, record_bodies=True) as running:
        yield running


@pytest.fixture
def endpoint(client: Client) -> Endpoint[Any, Any]:
    return client.endpoint("doubles", serializer=JSON, deserializer=ANY_ANSWER)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def errors_of(out: Path) -> list[dict[str, Any]]:
    return lines_of(out.with_name(f"{out.name}.errors.jsonl"))


def write_numbers(path: Path, numbers: list[int]) -> Path:
    path.write_text("".join(f'{{"n": {number}}}\n' for number in numbers))
    return path


# Bodies and answers

BODIES: list[tuple[dict[str, Any], str, list[bytes]]] = [
    ({}, "application/json", [b'[{"a": 1, "t": "x"},{"a":2, "t": "y"}]', b'[{"a": 3, "t": "z"}]']),
    ({}, "application/jsonlines", [b'{"a": 1, "t": "x"}\n{"a":2, "t": "y"}', b'{"a": 3, "t": "z"}']),
    ({"column": "t"}, "application/json", [b'["x","y"]', b'["z"]']),
    ({"column": "t"}, "text/plain", [b"x\ny", b"z"]),
    ({"template": ["{a}", "{t}"]}, "text/csv", [b"1,x\n2,y", b"3,z"]),
    ({"template": {"inputs": ["{t}"]}}, "application/json", [b'{"inputs":["x","y"]}', b'{"inputs":["z"]}']),
    (
        {"template": {"k": [1, 2], "instances": [{"q": "{t}", "n": ["{a}"]}], "p": {"z": 3}}},
        "application/json",
        [
            b'{"k":[1,2],"instances":[{"q":"x","n":[1]},{"q":"y","n":[2]}],"p":{"z":3}}',
            b'{"k":[1,2],"instances":[{"q":"z","n":[3]}],"p":{"z":3}}',
        ],
    ),
    (
        {"template": {"instances": ["{}"]}},
        "application/json",
        [b'{"instances":[{"a":1,"t":"x"},{"a":2,"t":"y"}]}', b'{"instances":[{"a":3,"t":"z"}]}'],
    ),
    (
        {"template": {"inputs": ["{{{t}}}"], "as": "{{t}}"}},
        "application/json",
        [b'{"inputs":["{x}","{y}"],"as":"{t}"}', b'{"inputs":["{z}"],"as":"{t}"}'],
    ),
    ({"template": [["{a}", "{a}"]]}, "application/json", [b"[[1,1],[2,2]]", b"[[3,3]]"]),
    ({"column": "t"}, "application/json; charset=utf-16", ['["x","y"]'.encode("utf-16"), '["z"]'.encode("utf-16")]),
]


@pytest.mark.parametrize(("arguments", "content_type", "bodies"), BODIES, ids=lambda value: str(value)[:40])
async def test_bodies_of_several_rows(
    client: Client, models: Models, tmp_path: Path, out: Path, arguments: Any, content_type: str, bodies: list[bytes]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"a": 1, "t": "x"}\n{"a":2, "t": "y"}\n{"a": 3, "t": "z"}\n')
    endpoint = client.endpoint("echo", serializer=codec_for(content_type), deserializer=ANY_ANSWER)
    await score(endpoint, rows, out, rows_per_request=2, split=lambda answer, count: [0] * count, **arguments)
    assert sorted(models.seen) == sorted(bodies)
    assert [line["value"] for line in lines_of(out)] == [0, 0, 0]


async def test_rows_of_csv_share_a_body_by_lines(client: Client, models: Models, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "out.csv"
    rows.write_text('a,b\n1,"x\ny"\n2,z\n3,"q,""r"\n')
    endpoint = client.endpoint("echo", serializer=codec_for("text/csv"), deserializer=ANY_ANSWER)
    report = await score(endpoint, rows, out, rows_per_request=2)
    assert report.scored == 3
    assert sorted(models.seen) == [b'1,"x\ny"\n2,z', b'3,"q,""r"']
    assert out.read_text() == 'index,value\n0,"[1,""x\\ny""]"\n1,"[2,""z""]"\n2,"[3,""q,\\""r""]"\n'


async def test_a_text_of_several_lines_cannot_share_a_body(client: Client, models: Models, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    rows.write_text('t\n"x\ny"\nz\n" "\n')
    endpoint = client.endpoint("echo", serializer=codec_for("text/plain"), deserializer=ANY_ANSWER)
    report = await score(endpoint, rows, out, column="t", rows_per_request=10)
    assert (report.scored, report.failed) == (2, 1)
    assert list(models.seen) == [b"z\n "]
    assert "is not a single line" in errors_of(out)[0]["message"]


@pytest.mark.parametrize("codec", [NPY])
async def test_a_serializer_that_is_not_by_rows_gets_their_list(
    client: Client, tmp_path: Path, out: Path, codec: Any
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("[1, 2]\n[3, 4]\n{}\n[5, 6]\n")
    endpoint = client.endpoint("echo", serializer=codec, deserializer=codec)
    report = await score(endpoint, rows, out, rows_per_request=4)
    assert [line["value"] for line in lines_of(out)] == [[1, 2], [3, 4], [5, 6]]
    assert (report.failed, errors_of(out)[0]["index"], errors_of(out)[0]["error"]) == (1, 2, "SerializationError")


@pytest.mark.parametrize(
    ("answer", "content_type", "values"),
    [
        (b"[0.5, {}]", "application/json", [0.5, {}]),
        (b'{"predictions": [[1], [2]]}', "application/json", [[1], [2]]),
        (b'{"a": 1}\n{"a": 2}\n', "application/jsonlines", [{"a": 1}, {"a": 2}]),
        (b"0.5\n0.25\n", "text/csv", [0.5, 0.25]),
        (b"0.5,0.25", "text/csv", [0.5, 0.25]),
        (b"0.5,a\r\n0.25,b\r\n", "text/csv", [[0.5, "a"], [0.25, "b"]]),
        (b"yes\nno", "text/plain", ["yes", "no"]),
    ],
)
def test_answers_by_row(answer: bytes, content_type: str, values: list[Any]) -> None:
    assert ANY_ANSWER.deserialize_rows(answer, content_type, 2) == values


async def test_what_the_serializer_makes_of_all_rows_is_bounded_by_an_estimate(
    client: Client, models: Models, tmp_path: Path, out: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f"{list(range(200))}\n" * 100)
    endpoint = client.endpoint("echo", serializer=NPY, deserializer=NPY)
    report = await score(endpoint, rows, out, rows_per_request=None, max_payload_mb=16_000 / (1 << 20))
    assert (report.scored, report.failed) == (100, 0)
    assert len(models.seen) > 1
    assert all(len(body) <= 16_000 for body in models.seen)


# Bad rows


async def test_every_row_is_scored_once(
    endpoint: Endpoint[Any, Any], model: Doubles, tmp_path: Path, out: Path
) -> None:
    report = await score(endpoint, write_rows(tmp_path / "rows.jsonl", 1000), out, rows_per_request=64)
    assert (report.scored, report.failed, report.finished) == (1000, 0, True)
    assert lines_of(out) == doubled(1000)
    assert sorted(map(len, model.calls)) == [1000 % 64] + (1000 // 64) * [64]


async def test_bad_rows_fail_alone(endpoint: Endpoint[Any, Any], model: Doubles, tmp_path: Path, out: Path) -> None:
    numbers = [-1 if n in (5, 70) else n for n in range(100)]
    model.short = {30}
    rows = write_numbers(tmp_path / "rows.jsonl", numbers)
    with rows.open("a") as file:
        file.write('not JSON\n{"m": 1}\n')
    report = await score(endpoint, rows, out, rows_per_request=50, column=None)
    bad = {5, 70, 30, 100, 101}
    assert lines_of(out) == [line for line in doubled(100) if line["index"] not in bad]
    assert {(line["index"], line["error"]) for line in errors_of(out)} == {
        (5, "ModelError"),
        (30, "DeserializationError"),
        (70, "ModelError"),
        (100, "SerializationError"),
        (101, "ModelError"),
    }
    assert report.failed == 5
    assert len(model.bodies) <= 3 + 2 * 3 * ceil(log2(50)) + 1


async def test_max_payload_mb_bounds_bodies(
    endpoint: Endpoint[Any, Any], model: Doubles, tmp_path: Path, out: Path
) -> None:
    rows = write_numbers(tmp_path / "rows.jsonl", [*range(100), 10**200])
    report = await score(endpoint, rows, out, rows_per_request=None, max_payload_mb=100 / (1 << 20))
    assert (report.scored, report.failed) == (100, 1)
    (error,) = errors_of(out)
    assert error["index"] == 100
    assert error["message"].endswith("makes a body of 210 bytes; the limit is 100 (InvokeEndpoint of endpoint doubles)")
    sizes = [len(body) for body in model.bodies]
    assert max(sizes) <= 100
    # Another row would not have fitted.
    assert all(size + len(b',{"n": 99}') > 100 for size in sizes[:-1])


async def test_as_many_rows_as_fit(endpoint: Endpoint[Any, Any], model: Doubles, tmp_path: Path, out: Path) -> None:
    await score(endpoint, write_rows(tmp_path / "rows.jsonl", 2000), out, rows_per_request=None)
    assert [len(call) for call in model.calls] == [2000]
    assert lines_of(out) == doubled(2000)


async def test_bodies_that_the_service_refuses_for_their_size_are_halved(
    model: Doubles, tmp_path: Path, out: Path
) -> None:
    async with (
        local_runtime({"doubles": model}, max_body_bytes=100) as runtime,
        Client(endpoint_url=runtime.url, **CLIENT_ARGUMENTS) as client,
    ):
        endpoint = client.endpoint("doubles", serializer=JSON, deserializer=ANY_ANSWER)
        report = await score(endpoint, write_rows(tmp_path / "rows.jsonl", 200), out, rows_per_request=64)
    assert (report.scored, report.failed) == (200, 0)
    assert lines_of(out) == doubled(200)


async def test_throttling_and_outages_split_no_request(
    endpoint: Endpoint[Any, Any], runtime: LocalRuntime, model: Doubles, tmp_path: Path, out: Path
) -> None:
    runtime.inject("doubles", faults.throttling().next(20))
    runtime.inject("doubles", faults.service_unavailable().next(5))
    report = await score(endpoint, write_rows(tmp_path / "rows.jsonl", 100), out, rows_per_request=10)
    assert (report.scored, report.failed) == (100, 0)
    assert sorted(model.calls) == [list(range(first, first + 10)) for first in range(0, 100, 10)]


async def test_a_model_that_refuses_everything_stops_the_job_early(
    endpoint: Endpoint[Any, Any], model: Doubles, tmp_path: Path, out: Path
) -> None:
    model.refuse = True
    rows = write_rows(tmp_path / "rows.jsonl", 20_000)
    with pytest.raises(BatchStoppedError, match="max_failures"):
        await score(endpoint, rows, out, rows_per_request=1000, max_failures="0.1%", max_concurrency=4)
    assert len(model.calls) < 150
    failed = len(errors_of(out))
    # Rows that were never sent alone are not failed.
    assert 20 <= failed < 60
    model.refuse = False
    report = await score(endpoint, rows, out, rows_per_request=1000, retry_failed=True)
    assert (report.scored, report.failed, report.resumed) == (20_000, 0, 0)


# Interruptions


async def test_a_job_resumes_with_another_number_of_rows(
    endpoint: Endpoint[Any, Any], model: Doubles, tmp_path: Path, out: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 100)
    await score(endpoint, rows, out, rows_per_request=7, limit=40)
    report = await score(endpoint, rows, out, rows_per_request=20)
    assert report.resumed == 40
    assert lines_of(out) == doubled(100)
    assert sorted(n for call in model.calls for n in call) == list(range(100))


async def test_a_job_of_single_rows_is_another_job(endpoint: Endpoint[Any, Any], tmp_path: Path, out: Path) -> None:
    """The model gets the row itself, not a list of one, and its answer is not split: values may differ."""
    rows = write_rows(tmp_path / "rows.jsonl", 100)
    await score(endpoint, rows, out, rows_per_request=7, limit=40)
    with pytest.raises(BatchOutputError, match="settings rows_per_request is gone"):
        await score(endpoint, rows, out)


async def test_stopping_finishes_the_groups_in_flight(
    endpoint: Endpoint[Any, Any], model: Doubles, tmp_path: Path, out: Path
) -> None:
    rows = write_numbers(tmp_path / "rows.jsonl", [-1 if n == 3 else n for n in range(1000)])
    stop = asyncio.Event()
    called = model.__call__

    class Stopping:
        async def __call__(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
            stop.set()
            return await called(invocation)

    async with (
        local_runtime({"doubles": Stopping()}) as runtime,
        Client(endpoint_url=runtime.url, **CLIENT_ARGUMENTS) as client,
    ):
        stopped = client.endpoint("doubles", serializer=JSON, deserializer=ANY_ANSWER)
        report = await score(stopped, rows, out, rows_per_request=16, stop=stop, max_concurrency=1)
    assert not report.finished
    assert [line["index"] for line in errors_of(out)] == [3]
    assert report.scored == len(lines_of(out)) >= 15
    await score(endpoint, rows, out, rows_per_request=16)
    assert lines_of(out) == [line for line in doubled(1000) if line["index"] != 3]
    good = [call for call in model.calls if -1 not in call]
    assert sorted(n for call in good for n in call) == [n for n in range(1000) if n != 3]


async def test_a_signal_ends_the_command_after_the_halves_in_flight(tmp_path: Path, out: Path) -> None:
    model = Doubles()
    halving = asyncio.Event()

    async def slow(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        if len(json.loads(invocation.body)) == 8:
            halving.set()
            await asyncio.sleep(0.2)
        return await model(invocation)

    rows = write_numbers(tmp_path / "rows.jsonl", [-1 if n == 3 else n for n in range(400)])
    command = (*PROGRAM, "score", str(rows), "--endpoint-name", "doubles", "--output", "out.jsonl")
    command += ("--rows-per-request", "16", "--max-concurrency", "1")
    async with local_runtime({"doubles": slow}) as runtime:
        env = environment(tmp_path, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url)
        async with started(*command, env=env, cwd=tmp_path) as process:
            await unless_ended(process, halving.wait())
            process.send_signal(signal.SIGTERM)
            _, stderr = await process.communicate()
        assert process.returncode == 130
        assert stderr.decode().splitlines()[-1].endswith("run the same command again to resume")
        # The group that was being halved was finished: its bad row is known.
        assert [line["index"] for line in errors_of(out)] == [3]
        assert 15 <= len(lines_of(out)) < 400
        async with started(*command, env=env, cwd=tmp_path) as process:
            await process.communicate()
    assert process.returncode == 1
    assert lines_of(out) == [line for line in doubled(400) if line["index"] != 3]
    assert sorted(n for call in model.calls if -1 not in call for n in call) == [n for n in range(400) if n != 3]


# Arguments


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"rows_per_request": 0}, "rows_per_request must be an integer >= 1 or None"),
        ({"rows_per_request": True}, "rows_per_request must be"),
        ({"max_payload_mb": 0}, "max_payload_mb must be a number > 0"),
        ({"max_payload_mb": float("nan")}, "max_payload_mb must be"),
        ({"split": len}, "split needs rows_per_request > 1"),
        ({"rows_per_request": 2, "template": {"inputs": "{n}"}}, "needs one list with one item"),
        ({"rows_per_request": 2, "template": [["{n}"], ["{n}"]]}, "needs one list with one item"),
        ({"rows_per_request": 2, "template": {"a": ["{n}"], "b": "{n}"}}, "names columns in it alone"),
    ],
)
async def test_faulty_arguments(
    endpoint: Endpoint[Any, Any], model: Doubles, tmp_path: Path, out: Path, arguments: dict[str, Any], problem: str
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 2)
    with pytest.raises(ParamValidationError, match=problem):
        await score(endpoint, rows, out, **arguments)
    assert not model.bodies
    assert not out.exists()


# Any rows in any groups


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Doubles, str]]:
    """One model for many examples."""
    model = Doubles()
    with local_runtime({"doubles": model}) as runtime:
        yield model, runtime.url


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.integers(1, 80),
    size=st.one_of(st.integers(2, 90), st.none()),
    concurrency=st.integers(1, 5),
    bad=st.sets(st.integers(0, 79), max_size=12),
    short=st.sets(st.integers(0, 79), max_size=4),
    torn=st.sets(st.integers(0, 79), max_size=4),
    first_run=st.integers(1, 80),
)
def test_exactly_the_bad_rows_fail(
    shared: tuple[Doubles, str],
    count: int,
    size: int | None,
    concurrency: int,
    bad: set[int],
    short: set[int],
    torn: set[int],
    first_run: int,
) -> None:
    """Whatever is bad, in whatever groups, in one run or two: the others are scored once, at a bounded cost."""
    model, url = shared
    model.calls.clear()
    model.short = short

    async def run(source: Path, out: Path) -> None:
        async with Client(endpoint_url=url, max_concurrency=concurrency, **CLIENT_ARGUMENTS) as client:
            endpoint = client.endpoint("doubles", serializer=JSON, deserializer=ANY_ANSWER)
            await score(endpoint, source, out, rows_per_request=size, limit=first_run)
            await score(endpoint, source, out, rows_per_request=size)

    with TemporaryDirectory() as folder:
        source, out = Path(folder) / "rows.jsonl", Path(folder) / "out.jsonl"
        lines = ("{" if n in torn else f'{{"n": {-1 - n if n in bad else n}}}' for n in range(count))
        source.write_text("".join(f"{line}\n" for line in lines))
        asyncio.run(run(source, out))
        failing = {n for n in bad | short | torn if n < count}
        assert lines_of(out) == [line for line in doubled(count) if line["index"] not in failing]
        listed = [line["index"] for line in errors_of(out)] if failing else []
        assert listed == sorted(failing)
    sent = [n for n in range(count) if n not in torn]
    good = [call for call in model.calls if all(n >= 0 for n in call) and not short.intersection(call)]
    assert sorted(n for call in good for n in call) == [n for n in sent if n not in bad | short]
    most = 0
    for run_of in ([n for n in sent if n < first_run], [n for n in sent if n >= first_run]):
        step = size or len(run_of) or 1
        for first in range(0, len(run_of), step):
            group = run_of[first : first + step]
            k = len((bad | short).intersection(group))
            most += 1 + (2 * k * ceil(log2(len(group))) if len(group) > 1 else 0)
    assert len(model.calls) <= most
