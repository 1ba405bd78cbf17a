"""`input_filter` and `output_filter`: Batch Transform's data processing, on rows of JSON Lines and CSV."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiosmrt import Client, ParamValidationError
from aiosmrt.batch.filters import Selection
from aiosmrt.errors import SerializationError
from tests.batch.test_formats import echoed
from tests.support.scoring import Models, lines_of

RECORD = {"id": 7, "features": [1, 2, {"x": 3}], "text": "a"}


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("$", RECORD),
        ("$.features", [1, 2, {"x": 3}]),
        ("$.features[0]", 1),
        ("$['text']", "a"),
        ("$['id','text']", {"id": 7, "text": "a"}),
        ("$['id','missing']", {"id": 7}),
        ("$.features[0:2]", [1, 2]),
        ("$.features[0,2]", [1, {"x": 3}]),
        ("$.features[-1].x", 3),
        ("$.features[1:2]", [2]),
        ("$..x", {"x": 3}),
        ("$.features[?@ > 1]", [2]),
        ("$[*]", {"id": 7, "features": [1, 2, {"x": 3}], "text": "a"}),
    ],
)
def test_what_a_path_selects(path: str, part: Any) -> None:
    assert Selection(path)(RECORD) == part


@pytest.mark.parametrize("path", ["$.missing", "$[0]", "$.features[9]", "$.features[5:]"])
def test_a_path_that_selects_nothing(path: str) -> None:
    with pytest.raises(SerializationError, match="there is nothing at"):
        Selection(path)(RECORD)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("$[1:]", ["b", "c"]),
        ("$[0,-1]", ["a", "c"]),
        ("$[ 0 ]", "a"),
        ("$[:2]", ["a", "b"]),
        ("$.y", "b"),
        ("$['x','z']", {"x": "a", "z": "c"}),
    ],
)
def test_columns_have_positions_and_names(path: str, part: Any) -> None:
    assert Selection(path).of_fields({"x": "a", "y": "b", "z": "c"}) == part


@pytest.mark.parametrize("path", ["", "id", "$.a | $.b", "$[", "$.a b", 7, None])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(ParamValidationError, match="must be a JSONPath"):
        Selection(path)


def test_a_missing_library_is_named() -> None:
    code = (
        "import sys; sys.modules['jsonpath'] = None\n"
        "from aiosmrt.batch.filters import Selection\n"
        "try: Selection('$')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "MissingExtraError" in ended.stdout
    assert "pip install 'aiosmrt[batch]'" in ended.stdout


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("id,age,calls\na7,41,3\nb2,28,1\n")
    return path


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1, "features": [1.5, 2], "note": "x"}\n{"id": 2, "features": [3, 4], "note": "y"}\n')
    return path


@pytest.mark.parametrize("rows_per_request", [1, 10])
async def test_filters_of_json_lines(
    client: Client, models: Models, lines: Path, tmp_path: Path, rows_per_request: int
) -> None:
    out = tmp_path / "out.jsonl"
    await echoed(
        client,
        lines,
        out,
        "application/json",
        input_filter="$.features",
        join_source="Input",
        output_filter="$['id','prediction']",
        rows_per_request=rows_per_request,
    )
    bodies = {1: [b"[1.5,2]", b"[3,4]"], 10: [b"[[1.5,2],[3,4]]"]}
    assert sorted(models.seen) == bodies[rows_per_request]
    assert lines_of(out) == [{"id": 1, "prediction": [1.5, 2]}, {"id": 2, "prediction": [3, 4]}]


async def test_an_output_filter_without_a_join_is_of_the_value(client: Client, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    await echoed(client, lines, out, "application/json", output_filter="$.features[0]", id_field="id")
    assert lines_of(out) == [{"index": 0, "id": 1, "value": 1.5}, {"index": 1, "id": 2, "value": 3}]


@pytest.mark.parametrize("rows_per_request", [1, 10])
async def test_filters_of_csv_by_position(
    client: Client, models: Models, table: Path, tmp_path: Path, rows_per_request: int
) -> None:
    """As in Batch Transform's documentation: leave the id out of the input, and join the answer to it."""
    out = tmp_path / "out.csv"
    await echoed(
        client,
        table,
        out,
        "text/csv",
        input_filter="$[1:]",
        join_source="Input",
        output_filter="$[0,-1]",
        rows_per_request=rows_per_request,
    )
    bodies = {1: [b"28,1", b"41,3"], 10: [b"41,3\n28,1"]}
    assert sorted(models.seen) == bodies[rows_per_request]
    assert out.read_text() == 'id,prediction\na7,"[41,3]"\nb2,"[28,1]"\n'


@pytest.mark.parametrize(
    ("input_filter", "content_type", "bodies"),
    [
        ("$.age", "text/csv", [b"28", b"41"]),
        ("$['age','calls']", "text/csv", [b"28,1", b"41,3"]),
        ("$[1:]", "text/plain", [b"28,1", b"41,3"]),
        ("$['age','calls']", "application/json", [b'{"age":"28","calls":"1"}', b'{"age":"41","calls":"3"}']),
        ("$[1:]", "application/json", [b'["28","1"]', b'["41","3"]']),
    ],
)
async def test_parts_of_rows_of_csv(
    client: Client, models: Models, table: Path, tmp_path: Path, input_filter: str, content_type: str, bodies: Any
) -> None:
    await echoed(client, table, tmp_path / "out.jsonl", content_type, input_filter=input_filter)
    assert sorted(models.seen) == bodies


async def test_joined_csv_may_be_kept_by_name(client: Client, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    await echoed(
        client,
        table,
        out,
        "text/csv",
        input_filter="$.age",
        join_source="Input",
        output_filter="$['prediction','id']",
    )
    assert out.read_text() == "prediction,id\n41,a7\n28,b2\n"


async def test_a_row_without_the_part_fails_alone(client: Client, models: Models, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"a": {"b": 1}}\n{"a": 1}\n{"a": {"c": 1}}\n')
    report = await echoed(client, rows, out, "application/json", input_filter="$.a", output_filter="$.b")
    assert report.failed == 2
    assert lines_of(out) == [{"index": 0, "value": 1}]
    errors = lines_of(tmp_path / "out.jsonl.errors.jsonl")
    assert [(line["index"], line["error"], line["attempts"]) for line in errors] == [
        (1, "SerializationError", 1),
        (2, "SerializationError", 1),
    ]
    await echoed(client, rows, out, "application/json", input_filter="$.a.b", fresh=True)
    errors = lines_of(tmp_path / "out.jsonl.errors.jsonl")
    assert [(line["index"], line["attempts"]) for line in errors] == [(1, 0), (2, 0)]
    assert json.dumps(errors).count("there is nothing at $.a.b") == 2


async def test_an_answer_too_deep_for_the_filter_fails_its_row_alone(client: Client, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"x": 1}\n' + "[" * 150 + "]" * 150 + "\n" + '{"x": 3}\n')
    report = await echoed(client, rows, out, "application/json", output_filter="$..x")
    assert (report.scored, report.failed, report.finished) == (2, 1, True)
    (error,) = lines_of(tmp_path / "out.jsonl.errors.jsonl")
    assert (error["index"], error["error"]) == (1, "SerializationError")
    report = await echoed(client, rows, out, "application/json", input_filter="$..x", fresh=True)
    assert (report.scored, report.failed) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"input_filter": "$["}, "input_filter must be a JSONPath"),
        ({"output_filter": "a"}, "output_filter must be a JSONPath"),
        ({"input_filter": "$.a", "column": "a"}, "input_filter excludes column and template"),
    ],
)
async def test_faulty_filters(client: Client, lines: Path, tmp_path: Path, arguments: Any, problem: str) -> None:
    with pytest.raises(ParamValidationError, match=problem):
        await echoed(client, lines, tmp_path / "out.jsonl", "application/json", **arguments)
