"""The output formats, and the expressions that select what is printed."""

from __future__ import annotations

import doctest
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from aiosmrt.cli import table, text
from aiosmrt.cli.output import FORMATS, OutputFormat
from aiosmrt.cli.parameters import ParameterError
from aiosmrt.cli.table import format_table
from aiosmrt.cli.text import format_text
from aiosmrt.errors import ConfigurationError, InvalidConfigError, ProfileNotFoundError
from tests.support.peers import isolate_aws

RESPONSE = {"ContentType": "text/csv", "InvokedProductionVariant": "ä", "Nothing": None}


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate_aws(monkeypatch, tmp_path)


def printed(response: Any, output: str | None = None, query: str | None = None) -> str:
    stream = io.StringIO()
    OutputFormat.of(output, query, profile=None).write(response, stream, title="InvokeEndpoint")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("output", "query", "expected"),
    [
        (
            None,
            None,
            '{\n    "ContentType": "text/csv",\n    "InvokedProductionVariant": "ä",\n    "Nothing": null\n}\n',
        ),
        ("json", "ContentType", '"text/csv"\n'),
        ("json", "Missing", "null\n"),
        ("text", None, "text/csv\tä\tNone\n"),
        ("text", "ContentType", "text/csv\n"),
        ("text", "[InvokedProductionVariant, ContentType]", "ä\ttext/csv\n"),
        ("text", "[[ContentType], [Nothing]]", "text/csv\nNone\n"),
        ("text", "{b: ContentType, a: Nothing}", "None\ttext/csv\n"),
        ("text", "{a: [ContentType, Nothing], b: {c: Nothing}}", "A\ttext/csv\nA\tNone\nB\tNone\n"),
        ("yaml", None, "ContentType: text/csv\nInvokedProductionVariant: ä\nNothing: null\n"),
        ("yaml", "[ContentType]", "- text/csv\n"),
        ("yaml-stream", "{a: ContentType}", "- a: text/csv\n"),
        ("off", None, ""),
        ("off", "ContentType", ""),
    ],
)
def test_formats(output: str | None, query: str | None, expected: str) -> None:
    assert printed(RESPONSE, output, query) == expected


def test_record_is_a_vertical_table() -> None:
    assert printed(RESPONSE, "table").splitlines() == [
        "------------------------------------------",
        "|             InvokeEndpoint             |",
        "+---------------------------+------------+",
        "|  ContentType              |  text/csv  |",
        "|  InvokedProductionVariant |  ä         |",
        "|  Nothing                  |  None      |",
        "+---------------------------+------------+",
    ]


@pytest.mark.parametrize("output", ["json", "text", "table", "yaml", "off"])
def test_empty_response_prints_nothing(output: str) -> None:
    assert printed({}, output) == ""


@pytest.mark.parametrize(
    ("output", "encoding", "printed"),
    [
        ("json", "ascii", b'"\\u00e4 \\udcff"\n'),
        ("json", "utf-8", b'"\\u00e4 \\udcff"\n'),
        ("yaml", "ascii", b'"\\xE4 \\uDCFF"\n'),
        ("text", "latin-1", b"\xe4 \\udcff\n"),
        ("text", "ascii", b"\\xe4 \\udcff\n"),
    ],
)
def test_characters_that_the_stream_cannot_encode_are_escaped(output: str, encoding: str, printed: bytes) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, newline="\n")
    OutputFormat(output).write("\u00e4 \udcff", stream, title="InvokeEndpoint")
    stream.flush()
    assert stream.buffer.getvalue() == printed  # type: ignore[attr-defined]


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda nested: st.lists(nested) | st.dictionaries(st.text(st.characters(codec="utf-8")), nested),
    max_leaves=20,
)


@example("\x85")
@example({"a\x85b": "\u2028"})
@given(documents)
def test_json_and_yaml_round_trip(document: Any) -> None:
    if document != {}:
        assert json.loads(printed(document, "json")) == document
        assert yaml.safe_load(printed(document, "yaml")) == document
    assert yaml.safe_load(printed(document, "yaml-stream")) == [document]


@given(documents)
def test_text_and_table_accept_any_document(document: Any) -> None:
    assert all(isinstance(form(document), str) for form in (format_text, lambda data: format_table("Title", data)))


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("a[", "Bad value a\\[: .*Incomplete expression"),
        ("ContentType ||", "Incomplete expression"),
        ("", "cannot be empty"),
        ("'", "Bad value ': "),
        ("`[1", "Bad value `\\[1: "),
        ("no_such_function(@)", "Unknown function"),
        ("a.b[?length(@) > `1` && [nope()]]", "Unknown function"),
        ("length()", "Expected 1 argument"),
        ("sort_by(@)", "Expected 2 arguments"),
        ("a[::0]", "slice step cannot be zero"),
        ("(" * 10_000 + "a" + ")" * 10_000, "nested too deeply"),
        ("a[" + "9" * 5_000 + "]", "Bad value"),
    ],
)
def test_invalid_query_is_rejected_before_the_call(query: str, problem: str) -> None:
    with pytest.raises(ParameterError, match=f"(?s)'--query': .*{problem}"):
        OutputFormat.of("json", query, profile=None)


@pytest.mark.parametrize(
    "query",
    ["length(ContentType)", "sort_by(a, &b)", "merge(@, {a: `1`})", "not_null(a, b, c)", "a[::2] | [?b == 'c'].*"],
)
def test_valid_query_is_accepted(query: str) -> None:
    assert OutputFormat.of("json", query, profile=None).query.expression == query


def test_query_with_a_type_error_is_rejected() -> None:
    with pytest.raises(ParameterError, match=r"'--query': Bad value abs\(ContentType\): "):
        printed(RESPONSE, "json", "abs(ContentType)")


def configure(monkeypatch: pytest.MonkeyPatch, folder: Path, **variables: str) -> None:
    (folder / "config").write_text(
        "[default]\noutput = text\n[profile other]\noutput = yaml\n[profile empty]\noutput =\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("option", "profile", "variables", "expected"),
    [
        ("json", None, {"AWS_DEFAULT_OUTPUT": "table"}, "json"),
        (None, None, {"AWS_DEFAULT_OUTPUT": "table"}, "table"),
        (None, "other", {"AWS_DEFAULT_OUTPUT": "table"}, "table"),
        (None, "other", {"AWS_DEFAULT_OUTPUT": ""}, "yaml"),
        (None, "other", {}, "yaml"),
        (None, None, {"AWS_PROFILE": "other"}, "yaml"),
        (None, "empty", {}, "json"),
        (None, None, {}, "text"),
    ],
)
def test_format_from_option_environment_or_profile(
    option: str | None,
    profile: str | None,
    variables: dict[str, str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    configure(monkeypatch, tmp_path, **variables)
    assert OutputFormat.of(option, None, profile=profile).name == expected


def test_default_format_is_json() -> None:
    assert OutputFormat.of(None, None, profile=None).name == "json"


@pytest.mark.parametrize("name", FORMATS)
def test_format_can_be_configured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_OUTPUT", name)
    assert OutputFormat.of(None, None, profile=None).name == name


def test_unknown_configured_format_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configure(monkeypatch, tmp_path)
    (tmp_path / "config").write_text("[default]\noutput = xml\n")
    with pytest.raises(InvalidConfigError, match=r"^output in the profile must be one of json, .*; got 'xml'$"):
        OutputFormat.of(None, None, profile=None)
    monkeypatch.setenv("AWS_DEFAULT_OUTPUT", "JSON")
    with pytest.raises(InvalidConfigError, match=r"^AWS_DEFAULT_OUTPUT must be one of json, .*; got 'JSON'$"):
        OutputFormat.of(None, None, profile=None)
    monkeypatch.delenv("AWS_DEFAULT_OUTPUT")
    with pytest.raises(ProfileNotFoundError):
        OutputFormat.of(None, None, profile="missing")


def test_missing_yaml_library_is_named_before_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigurationError, match=r"^yaml is not installed; run: pip install 'aiosmrt\[cli\]'$"):
        OutputFormat.of("yaml", None, profile=None)


@pytest.mark.parametrize("module", [table, text], ids=lambda module: module.__name__)
def test_docstrings(module: Any) -> None:
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried
