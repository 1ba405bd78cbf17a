"""What rows are read from, what is sent of them, and what is written."""

from __future__ import annotations

import asyncio
import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiosmrt import Client, ParamValidationError
from aiosmrt.batch import ANY_ANSWER, Report, codec_for, score
from aiosmrt.batch.requests import Row
from aiosmrt.batch.sink import failure_record, openai_failure
from aiosmrt.errors import BatchInputError, BatchOutputError
from aiosmrt.serializers import BYTES, JSON, NPY, Serializer
from tests.support.scoring import Models, doubled, lines_of, write_rows


async def echoed(client: Client, source: Any, sink: Path, content_type: str, **arguments: Any) -> Report:
    """Score with a model that returns what it is sent."""
    endpoint = client.endpoint("echo", serializer=codec_for(content_type), deserializer=ANY_ANSWER)
    return await score(endpoint, source, sink, **arguments)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text('id,text,n\na1,"one, two",1\na2,"line\nbreak",2\n\na3,ü,3\n')
    return path


@pytest.mark.parametrize(
    ("arguments", "content_type", "bodies"),
    [
        ({}, "text/csv", [b'a1,"one, two",1', b'a2,"line\nbreak",2', "a3,ü,3".encode()]),
        ({}, "text/plain", [b'a1,"one, two",1', b'a2,"line\nbreak",2', "a3,ü,3".encode()]),
        ({"column": "n"}, "text/plain", [b"1", b"2", b"3"]),
        ({"column": "n"}, "text/csv", [b"1", b"2", b"3"]),
        ({"column": "text"}, "application/json", [b'"one, two"', b'"line\\nbreak"', '"ü"'.encode()]),
        (
            {"template": {"inputs": "Q: {text}", "k": ["{n}", 7]}},
            "application/json",
            [
                b'{"inputs":"Q: one, two","k":["1",7]}',
                b'{"inputs":"Q: line\\nbreak","k":["2",7]}',
                '{"inputs":"Q: ü","k":["3",7]}'.encode(),
            ],
        ),
        (
            {"template": {"inputs": 'JSON as {{"n": {n}}}: }}', "k": "{{n}}", "end": "}}", "l": "{", "e": "{{}}"}},
            "application/json",
            [
                b'{"inputs":"JSON as {\\"n\\": %d}: }","k":"{n}","end":"}","l":"{","e":"{}"}' % number
                for number in (1, 2, 3)
            ],
        ),
        (
            {},
            "application/json",
            [
                b'{"id":"a1","text":"one, two","n":"1"}',
                b'{"id":"a2","text":"line\\nbreak","n":"2"}',
                '{"id":"a3","text":"ü","n":"3"}'.encode(),
            ],
        ),
        ({}, "application/x-ndjson", [b'{"id":"a1","text":"one, two","n":"1"}']),
    ],
)
async def test_bodies_of_csv(
    client: Client,
    table: Path,
    tmp_path: Path,
    models: Models,
    arguments: dict[str, Any],
    content_type: str,
    bodies: list[bytes],
) -> None:
    report = await echoed(client, table, tmp_path / "out.jsonl", content_type, **arguments)
    assert (report.scored, report.failed) == (3, 0)
    assert set(bodies) <= set(models.seen)
    assert len(models.seen) == 3


@pytest.mark.parametrize(
    ("arguments", "content_type", "body"),
    [
        ({}, "application/json", b'{"a": 1.50,  "b": {"c": "\\u00fc"}}'),
        ({}, "application/octet-stream", b'{"a": 1.50,  "b": {"c": "\\u00fc"}}'),
        ({"column": "a"}, "application/json", b"1.5"),
        ({"column": "a"}, "text/plain", b"1.5"),
        ({"template": {"x": "{b}", "y": "{a} and {b}"}}, "application/json", None),
        ({"id_field": "a"}, "application/json", b'{"a": 1.50,  "b": {"c": "\\u00fc"}}'),
    ],
)
async def test_bodies_of_json_lines(
    client: Client, tmp_path: Path, models: Models, arguments: dict[str, Any], content_type: str, body: bytes | None
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b'{"a": 1.50,  "b": {"c": "\\u00fc"}}\r\n')
    await echoed(client, rows, tmp_path / "out.jsonl", content_type, **arguments)
    expected = body or '{"x":{"c":"ü"},"y":"1.5 and {\\"c\\": \\"ü\\"}"}'.encode()
    assert list(models.seen) == [expected]


@pytest.mark.parametrize("content_type", ["application/json", "application/jsonlines", "application/x-model"])
async def test_a_line_that_is_not_json_is_no_row_of_json_lines(
    client: Client, tmp_path: Path, models: Models, content_type: str
) -> None:
    """Rows that are sent as they were written are read all the same."""
    good = [b'{"n": 1.50, "n": 2}', b" [1, 2] ", b"NaN", b"7", '"ü"'.encode()]
    bad = [b'{"n": 1', b'{"n": 1} {"n": 2}', b"nil", b'"\xff"', b"[" * 100_000, b"\xef\xbb\xbf1"]
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b"\n".join([*good, *bad]) + b"\n")
    report = await echoed(client, rows, tmp_path / "out.jsonl", content_type)
    assert (report.scored, report.failed) == (len(good), len(bad))
    assert models.seen == dict.fromkeys(good, 1)
    errors = lines_of(tmp_path / "out.jsonl.errors.jsonl")
    assert [error["error"] for error in errors] == ["SerializationError"] * len(bad)
    assert [
        re.search(r"line (\d+)\) is (not JSON|not UTF-8|JSON that Python cannot read)", e["message"]) is not None
        for e in errors
    ] == [True] * len(bad)
    assert [error["attempts"] for error in errors] == [0] * len(bad)


async def test_text_is_sent_line_by_line(client: Client, tmp_path: Path, models: Models) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_bytes("\ufeffone\r\n\n two \n\xff".encode())
    await echoed(client, rows, tmp_path / "out.txt", "text/plain")
    assert (tmp_path / "out.txt").read_text() == "one\n two \n\xff\n"
    await echoed(client, rows, tmp_path / "out.jsonl", "application/json", template={"inputs": "{text}"})
    assert [line["value"] for line in lines_of(tmp_path / "out.jsonl")] == [
        {"inputs": text} for text in ("one", " two ", "\xff")
    ]


async def test_fields_of_csv_may_be_longer_than_python_reads_by_default(
    client: Client, models: Models, tmp_path: Path
) -> None:
    rows, text = tmp_path / "rows.csv", "ab" * 100_000
    rows.write_text(f'id,text\n1,{text}\n2,"{text}\n"\n')
    before = csv.field_size_limit(131_072)
    try:
        report = await echoed(client, rows, tmp_path / "out.jsonl", "text/plain", column="text")
        assert (report.scored, set(models.seen)) == (2, {text.encode(), f"{text}\n".encode()})
        # A higher limit of the program's own stays.
        csv.field_size_limit(1 << 30)
        await echoed(client, rows, tmp_path / "again.jsonl", "text/plain", column="text")
        assert csv.field_size_limit() == 1 << 30
    finally:
        csv.field_size_limit(before)


async def test_csv_without_a_header(client: Client, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("5,6\n7,8\n")
    await echoed(client, rows, tmp_path / "out.jsonl", "text/csv", header=False, id_field="1")
    assert lines_of(tmp_path / "out.jsonl") == [
        {"index": 0, "id": "6", "value": [5, 6]},
        {"index": 1, "id": "8", "value": [7, 8]},
    ]


async def test_csv_out(client: Client, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    await echoed(client, table, out, "application/json", template={"q": "{text}"}, id_field="id")
    with out.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["index", "id", "value"],
            ["0", "a1", '{"q":"one, two"}'],
            ["1", "a2", '{"q":"line\nbreak"}'.replace("\n", "\\n")],
            ["2", "a3", '{"q":"ü"}'],
        ]


async def test_joined_csv(client: Client, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    await echoed(client, table, out, "text/plain", column="n", join_source="Input")
    with out.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["id", "text", "n", "prediction"],
            ["a1", "one, two", "1", "1"],
            ["a2", "line\nbreak", "2", "2"],
            ["a3", "ü", "3", "3"],
        ]


async def test_joined_json_lines(client: Client, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"q": "a", "rest": [1, null]}\n"no object"\n')
    report = await echoed(client, rows, tmp_path / "out.jsonl", "application/json", column="q", join_source="Input")
    assert lines_of(tmp_path / "out.jsonl") == [{"q": "a", "rest": [1, None], "prediction": "a"}]
    assert report.failed == 1


async def test_numbers_that_csv_has_and_json_lacks(client: Client, tmp_path: Path) -> None:
    """As programs that read CSV know them, by themselves; those in lists are JSON."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("NaN\n-Infinity\n1.5\n[NaN]\n")
    await echoed(client, rows, tmp_path / "out.csv", "application/json")
    text = (tmp_path / "out.csv").read_text()
    assert text.splitlines() == ["index,value", "0,NaN", "1,-Infinity", "2,1.5", '3,"[""NaN""]"']


@pytest.mark.parametrize("name", ["rows.jsonl", "other name.jsonl"])
@pytest.mark.parametrize("link", [os.link, os.symlink])
async def test_an_input_is_never_overwritten_whatever_the_output_calls_it(
    client: Client, tmp_path: Path, name: str, link: Callable[[Path, Path], None]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 3)
    out = tmp_path / name
    if out != rows:
        link(rows, out)
    endpoint = client.endpoint("double", serializer=JSON, deserializer=JSON)
    for source in (rows, tmp_path / "*.jsonl"):
        with pytest.raises(BatchInputError, match=r"is both input and output|no file matches"):
            await score(endpoint, source, out, fresh=True)
    # As are the files beside the output, and the page.
    link(rows, tmp_path / "new.jsonl.journal")
    with pytest.raises(BatchInputError, match="is both input and output"):
        await score(endpoint, rows, tmp_path / "new.jsonl", fresh=True)
    with pytest.raises(ParamValidationError, match="is not a report page"):
        await score(endpoint, rows, tmp_path / "out.jsonl", fresh=True, report_page=out)
    page = tmp_path / "page.html"
    await score(endpoint, rows, tmp_path / "out.jsonl", report_page=page)
    with pytest.raises(BatchInputError, match="is both input and output"):
        await score(endpoint, page, tmp_path / "of page.jsonl", input_format="text", report_page=page)
    assert lines_of(rows) == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_values_that_json_lacks(client: Client, tmp_path: Path, models: Models) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('[NaN, 1, {"a": -Infinity}]\n"\\ud800"\n')
    await echoed(client, rows, tmp_path / "out.jsonl", "application/json")
    assert [line["value"] for line in lines_of(tmp_path / "out.jsonl")] == [
        ["NaN", 1, {"a": "-Infinity"}],
        "\ud800",
    ]
    await echoed(client, rows, tmp_path / "out.txt", "application/json")
    assert (tmp_path / "out.txt").read_text().splitlines()[0] == '["NaN",1,{"a":"-Infinity"}]'


class _Words:
    content_type = "application/octet-stream"

    def serialize(self, data: Any, /) -> bytes:
        return b"\xff\x00" if data == "raw" else str(data).encode()


async def test_bytes_arrays_and_objects(client: Client, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('"raw"\n"plain"\n')
    words: Serializer[Any] = _Words()
    await score(client.endpoint("echo", serializer=words, deserializer=BYTES), rows, tmp_path / "out.jsonl")
    values = [line["value"] for line in lines_of(tmp_path / "out.jsonl")]
    assert values == [{"base64": "/wA="}, "plain"]

    class Objects:
        accept = "*/*"

        def deserialize(self, body: bytes, content_type: str, /) -> object:
            return object() if body == b"plain" else np.arange(3)

    report = await score(client.endpoint("echo", serializer=words, deserializer=Objects()), rows, tmp_path / "b.jsonl")
    assert lines_of(tmp_path / "b.jsonl") == [{"index": 0, "value": [0, 1, 2]}]
    (error,) = lines_of(tmp_path / "b.jsonl.errors.jsonl")
    assert error["message"] == "the answer, of type object, cannot be written as jsonl"
    assert report.failed == 1


@pytest.mark.parametrize("depth", [0, 100_000])
def test_a_row_whose_id_cannot_be_written_can_still_fail(depth: int) -> None:
    name: Any = object()
    for _ in range(depth):
        name = [name]
    row = Row(3, name, None, b"", None)
    listed = json.loads(failure_record(row, ParamValidationError(["no"]), 1, 0.0))
    assert (listed["index"], listed["id"], listed["error"]) == (3, None, "ParamValidationError")
    assert json.loads(openai_failure(row, ParamValidationError(["no"])))["custom_id"] is None


async def test_any_serializer_makes_bodies(client: Client, tmp_path: Path, models: Models) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("[1, 2]\n{}\n")
    report = await score(client.endpoint("echo", serializer=NPY, deserializer=NPY), rows, tmp_path / "out.jsonl")
    assert lines_of(tmp_path / "out.jsonl") == [{"index": 0, "value": [1, 2]}]
    assert report.failed == 1


def test_answers_by_their_content_type() -> None:
    answers = {
        ("application/json; charset=utf-8", b'{"a": 1}'): {"a": 1},
        ("application/vnd.x+json", b"[1]"): [1],
        ("application/jsonlines", b"1\n2\n"): [1, 2],
        ("text/csv", b"0.5\n"): 0.5,
        ("text/csv", b"1,007,a,-2e3\r\n"): [1, "007", "a", -2000.0],
        ("text/csv", b"1,2\n3,4"): [[1, 2], [3, 4]],
        ("text/plain", b"0.5"): "0.5",
        ("", b"\x00"): b"\x00",
    }
    assert {key: ANY_ANSWER.deserialize(body, kind) for key in answers for kind, body in [key]} == answers


# Several files


@pytest.mark.parametrize("source", ["parts", "parts/*.jsonl*", ["parts/a.jsonl", "parts/b.jsonl.gz"]])
async def test_folders_patterns_and_lists(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("parts").mkdir()
    write_rows(Path("parts/a.jsonl"), 50)
    with gzip.open("parts/b.jsonl.gz", "wt") as file:
        file.writelines(f'{{"n": {number}}}\n' for number in range(50, 120))
    Path("parts/.hidden.jsonl").write_text("{}")
    Path("parts/README").write_text("no input")
    endpoint = client.endpoint("double", serializer=JSON, deserializer=JSON)
    # A job does not read what it has written.
    out = Path("parts/z.jsonl")
    await score(endpoint, source, out, limit=20)
    await score(endpoint, source, out)
    assert lines_of(out) == doubled(120)


async def test_a_pipe_is_read_once_and_known_by_its_first_line(client: Client, tmp_path: Path, models: Models) -> None:
    endpoint = client.endpoint("double", serializer=JSON, deserializer=JSON)
    pipe, out = tmp_path / "pipe", tmp_path / "out.jsonl"
    os.mkfifo(pipe)

    def feed(first: int, count: int) -> None:
        with pipe.open("w") as file:
            file.writelines(f'{{"n": {number}}}\n' for number in range(first, first + count))

    async def run(first: int, count: int, **arguments: Any) -> Report:
        feeding = asyncio.create_task(asyncio.to_thread(feed, first, count))
        try:
            return await score(endpoint, pipe, out, input_format="jsonl", **arguments)
        finally:
            await feeding

    await run(0, 60, limit=40)
    with pytest.raises(BatchOutputError, match=r"belongs to another job: input .*first line was"):
        await run(1, 60)
    with pytest.raises(BatchInputError, match="ends after 10 rows, but row 39 was scored before"):
        await run(0, 10)
    await run(0, 60)
    assert lines_of(out) == doubled(60)
    assert set(models.seen.values()) == {1}


async def test_a_header_of_a_pipe_is_no_row(client: Client, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeding = asyncio.create_task(asyncio.to_thread(pipe.write_text, "a,b\n1,2\n3,4\n"))
    await echoed(client, pipe, tmp_path / "out.jsonl", "text/csv", input_format="csv")
    await feeding
    assert [line["value"] for line in lines_of(tmp_path / "out.jsonl")] == [[1, 2], [3, 4]]


@pytest.mark.parametrize("wait", ["stop", "cancel"])
async def test_a_job_that_waits_for_a_pipe_can_be_ended(client: Client, tmp_path: Path, wait: str) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    endpoint = client.endpoint("double", serializer=JSON, deserializer=JSON)
    stop = asyncio.Event()
    # Opened for both, it has a writer that sends nothing.
    descriptor = os.open(pipe, os.O_RDWR)
    try:
        job = asyncio.create_task(score(endpoint, pipe, out, input_format="jsonl", stop=stop))
        await asyncio.sleep(0.05)
        if wait == "stop":
            stop.set()
            report = await job
            assert (report.finished, report.rows) == (False, 0)
        else:
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
    finally:
        os.close(descriptor)
    assert not out.exists()


def zipped(data: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.csv", data)
    return archive.getvalue()


@pytest.mark.parametrize(
    ("files", "arguments", "problem"),
    [
        ({}, {"source": "none.jsonl"}, "none.jsonl does not exist"),
        ({}, {"source": "*.jsonl"}, r"no file matches \*.jsonl"),
        ({}, {"source": "."}, r"\. has no input files"),
        ({}, {"source": "-"}, "an input format is needed for standard input"),
        ({"a.xml": b"<x/>"}, {"source": "a.xml"}, "an input format is needed for a.xml"),
        ({"a.jsonl": b"1", "a.csv": b"x\n1"}, {"source": "."}, "more than one format: csv, jsonl"),
        ({"a.jsonl": b""}, {"source": "a.jsonl"}, "the input is empty"),
        ({"a.csv": b"a,b\n"}, {"source": "a.csv"}, "the input is empty"),
        ({"a.csv": b"a,b\n1,2"}, {"source": "a.csv", "column": "c"}, "no column 'c'; it has a, b"),
        ({"a.csv": b"a,b\n1,2"}, {"source": "a.csv", "template": "{x}{a}"}, "no column 'x'; it has a, b"),
        ({"a.csv": b"a,b,a\n1,2,3"}, {"source": "a.csv"}, "header line of a.csv names the column 'a' twice"),
        ({"a.csv": b"a,,\n1,2,3"}, {"source": "a.csv"}, "header line of a.csv has several columns without a name"),
        ({"a.csv": b"a,\xff\n1,2"}, {"source": "a.csv"}, "header line of a.csv is not UTF-8"),
        ({"a.csv": b'a\n1\n"2\n3\n4'}, {"source": "a.csv"}, "a.csv is not CSV at lines 3 to 5"),
        ({"a.csv": b'a\n1\n"2"3\n4'}, {"source": "a.csv"}, "a.csv is not CSV at line 3: ',' expected"),
        ({"a.csv": b"a\r1\r2\r"}, {"source": "a.csv"}, "a.csv is not CSV at line 1: lines must end with a line feed"),
        ({"a.csv": b"a\n1", "b.csv": b"b\n1"}, {"source": "*.csv"}, "columns of b.csv are not those"),
        ({"a.txt": b"x"}, {"source": "a.txt", "column": "y"}, "no column 'y'; it has text"),
        ({"a.jsonl": "1".encode("utf-16")}, {"source": "a.jsonl"}, "a.jsonl is UTF-16"),
        ({"a.jsonl": bz2.compress(b"1\n")}, {"source": "a.jsonl"}, "a.jsonl is compressed by bzip2"),
        ({"a.jsonl": lzma.compress(b"1\n")}, {"source": "a.jsonl"}, "a.jsonl is compressed by xz"),
        ({"a.csv": zipped(b"a\n1\n")}, {"source": "a.csv"}, "a.csv is a ZIP archive"),
        ({"a.csv": gzip.compress(zipped(b"a\n1\n"))}, {"source": "a.csv"}, "a.csv is a ZIP archive"),
        ({"a.jsonl": gzip.compress(b"1\n" * 99)[:-9]}, {"source": "a.jsonl"}, "a.jsonl is cut short"),
        ({"a.jsonl": gzip.compress(b"1\n")[:-8] + bytes(8)}, {"source": "a.jsonl"}, "a.jsonl is damaged"),
        ({"out.jsonl": b""}, {"source": "out.jsonl"}, "out.jsonl is both input and output"),
        ({"a.jsonl": b"1"}, {"source": ["a.jsonl", "./a.jsonl"]}, "a.jsonl is among the inputs twice"),
        ({"a.jsonl": b"1"}, {"source": ["a.jsonl", "*.jsonl"]}, "a.jsonl is among the inputs twice"),
        ({}, {"source": ["-", "-"], "input_format": "jsonl"}, "standard input is among the inputs twice"),
        ({}, {"source": ["-", "/dev/stdin"], "input_format": "jsonl"}, "/dev/stdin is among the inputs twice"),
    ],
)
async def test_input_that_cannot_be_read(
    client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes],
    arguments: dict[str, Any],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, data in files.items():
        Path(name).write_bytes(data)
    endpoint = client.endpoint("echo", serializer=JSON, deserializer=JSON)
    with pytest.raises(BatchInputError, match=problem):
        await score(endpoint, **{"sink": "out.jsonl", **arguments})


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            ["folder/a.jsonl", "{here}/folder/a.jsonl"],
            "{here}/folder/a.jsonl is among the inputs twice: it is folder/a",
        ),
        (["{here}/folder", "folder/a.jsonl"], "folder/a.jsonl is among the inputs twice: it is {here}/folder/a.jsonl"),
        (["folder/a.jsonl", "soft.jsonl"], "soft.jsonl is among the inputs twice: it is folder/a.jsonl"),
        (["hard.jsonl", "folder"], "folder/a.jsonl is among the inputs twice: it is hard.jsonl"),
        (["folder", "linked"], "linked/a.jsonl is among the inputs twice: it is folder/a.jsonl"),
    ],
)
async def test_a_file_by_two_names_is_refused(
    client: Client, tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch, source: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("folder", "a.jsonl")
    file.parent.mkdir()
    file.write_bytes(b"1\n")
    Path("soft.jsonl").symlink_to(file)
    Path("hard.jsonl").hardlink_to(file)
    Path("linked").symlink_to("folder")
    endpoint = client.endpoint("echo", serializer=JSON, deserializer=JSON)
    with pytest.raises(BatchInputError, match=re.escape(problem.format(here=tmp_path))):
        await score(endpoint, [name.format(here=tmp_path) for name in source], "out.jsonl")
    assert not models.seen


async def test_ragged_and_undecodable_rows_of_csv_fail_alone(client: Client, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    rows.write_bytes(b"a,b\n1,2\n1\n1,2,3\n\xff,1\n3,4\n")
    report = await echoed(client, rows, out, "text/csv")
    assert [line["value"] for line in lines_of(out)] == [[1, 2], [3, 4]]
    messages = [line["message"] for line in lines_of(tmp_path / "out.jsonl.errors.jsonl")]
    assert messages == [
        f"row 1 ({rows}, line 3) has 1 fields, not 2",
        f"row 2 ({rows}, line 4) has 3 fields, not 2",
        f"row 3 ({rows}, line 5) is not UTF-8",
    ]
    assert report.failed == 3


@pytest.mark.parametrize("serializer", ["application/octet-stream", "application/json", "text/csv", "image/png"])
async def test_a_file_may_be_a_row(client: Client, tmp_path: Path, models: Models, serializer: str) -> None:
    """Batch Transform's SplitType None; no byte is interpreted, whatever a file begins with."""
    folder, out = tmp_path / "images", tmp_path / "out.jsonl"
    folder.mkdir()
    contents = [b"\xff\xfe\x00\n\r\n", gzip.compress(b"x"), b"", b"\xef\xbb\xbf1,2\n3,4\n"]
    for number, content in enumerate(contents):
        (folder / f"{number}.png").write_bytes(content)
    report = await echoed(client, folder, out, serializer, input_format="file", id_field="file")
    assert report.rows == 4
    assert sorted(models.seen) == sorted(contents)
    ids = [line["id"] for line in lines_of(out)]
    assert set(ids) <= {str(folder / f"{number}.png") for number in range(4)}
    await echoed(client, folder, tmp_path / "joined.jsonl", "text/plain", input_format="file", join_source="Input")
    joined = lines_of(tmp_path / "joined.jsonl")
    assert {"file": str(folder / "2.png"), "prediction": ""} in joined


async def test_a_serializer_that_is_not_ours_gets_the_content_of_files(client: Client, tmp_path: Path) -> None:
    class Backwards:
        content_type = "text/plain"

        def serialize(self, data: bytes, /) -> bytes:
            return data[::-1]

    (tmp_path / "a.bin").write_bytes(b"abc")
    endpoint = client.endpoint("echo", serializer=Backwards(), deserializer=ANY_ANSWER)
    await score(endpoint, tmp_path / "a.bin", tmp_path / "out.txt", input_format="file")
    assert (tmp_path / "out.txt").read_text() == "cba\n"


async def test_files_that_are_rows_have_no_columns(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc")
    for arguments in (
        {"column": "file"},
        {"template": {"a": "{file}"}},
        {"input_filter": "$"},
        {"rows_per_request": 2},
    ):
        with pytest.raises(ParamValidationError, match="a file is sent as it is"):
            await echoed(
                client, tmp_path / "a.bin", tmp_path / "out.txt", "text/plain", input_format="file", **arguments
            )
    with pytest.raises(BatchInputError, match="no column 'name'; it has file"):
        await echoed(client, tmp_path / "a.bin", tmp_path / "o.jsonl", "text/x", input_format="file", id_field="name")
    with pytest.raises(BatchInputError, match="standard input is a stream; the input format file needs files"):
        await echoed(client, "-", tmp_path / "out.txt", "text/plain", input_format="file")
    with pytest.raises(BatchInputError, match="standard input is a stream; Parquet is read from files and objects"):
        await echoed(client, "-", tmp_path / "out.txt", "text/plain", input_format="parquet")
