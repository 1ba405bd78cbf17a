"""Option values as request members."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore import xform_name
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt._wire.operations import (
    INVOKE_ENDPOINT,
    INVOKE_ENDPOINT_ASYNC,
    INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM,
    OPERATIONS,
)
from aiosmrt.cli.parameters import HELP, ParameterError, option_name, request_parameters, skeleton

MEMBERS = sorted(
    {
        member.name
        for operation in (*OPERATIONS, INVOKE_ENDPOINT_WITH_BIDIRECTIONAL_STREAM)
        for member in operation.members
    }
)


def parameters(given: dict[str, str], **options: Any) -> dict[str, Any]:
    return request_parameters(INVOKE_ENDPOINT, given, **options)


@pytest.mark.parametrize("member", MEMBERS)
def test_option_names_match_the_aws_cli(member: str) -> None:
    assert option_name(member) == "--" + xform_name(member, "-")


def test_help_covers_exactly_the_members() -> None:
    assert sorted(HELP) == MEMBERS


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "://" not in text and text != "-"))
def test_text_is_sent_as_utf_8(text: str) -> None:
    assert parameters({"Body": text}) == {"Body": text.encode()}


def test_argument_that_is_not_utf_8_is_sent_unchanged() -> None:
    assert parameters({"Body": b"\xff\x00".decode(errors="surrogateescape")}) == {"Body": b"\xff\x00"}


def test_binary_files_are_sent_unchanged(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"\xff\r\n\x00")
    assert parameters({"Body": f"fileb://{tmp_path}/body"}) == {"Body": b"\xff\r\n\x00"}


def test_line_ends_of_text_files_are_normalized(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("ä\r\nb\rc\n".encode())
    value = f"file://{tmp_path}/text"
    assert parameters({"Body": value, "CustomAttributes": value}) == {
        "Body": "ä\nb\nc\n".encode(),
        "CustomAttributes": "ä\nb\nc\n",
    }


def test_home_and_variables_are_expanded_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "body").write_bytes(b"found")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FOLDER", str(tmp_path))
    assert parameters({"Body": "fileb://~/body"}) == parameters({"Body": "fileb://$FOLDER/body"}) == {"Body": b"found"}


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"\x00piped")))
    assert parameters({"Body": "-"}, text_is_base64=True) == {"Body": b"\x00piped"}


def test_dash_is_standard_input_only_for_bodies() -> None:
    assert parameters({"CustomAttributes": "-"}) == {"CustomAttributes": "-"}


@given(st.binary())
def test_base64_text_is_decoded_if_requested(body: bytes) -> None:
    text = base64.b64encode(body).decode()
    assert parameters({"Body": text}, text_is_base64=True) == {"Body": body}
    assert parameters({"Body": text}) == {"Body": text.encode()}


def test_binary_files_are_never_base64(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"QUJD")
    assert parameters({"Body": f"fileb://{tmp_path}/body"}, text_is_base64=True) == {"Body": b"QUJD"}
    assert parameters({"Body": f"file://{tmp_path}/body"}, text_is_base64=True) == {"Body": b"ABC"}


def test_integers(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("60\n")
    given = {"RequestTTLSeconds": f"file://{tmp_path}/number", "InvocationTimeoutSeconds": "7"}
    assert request_parameters(INVOKE_ENDPOINT_ASYNC, given) == {"RequestTTLSeconds": 60, "InvocationTimeoutSeconds": 7}
    with pytest.raises(ParameterError, match=r"'--request-ttl-seconds': 'soon' is not an integer"):
        request_parameters(INVOKE_ENDPOINT_ASYNC, {"RequestTTLSeconds": "soon"})


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("fileb:///no/such/file", "Unable to load paramfile fileb:///no/such/file: .*No such file"),
        ("file:///no/such/file", "Unable to load paramfile file:///no/such/file: .*No such file"),
        ("file://binary", "its text is not UTF-8. For binary files, use fileb://"),
        ("fileb://.", "Is a directory"),
    ],
)
def test_unreadable_file_is_reported(value: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match=f"Error parsing parameter '--body': .*{problem}"):
        parameters({"Body": value})


def test_invalid_base64_is_reported_without_quoting_it() -> None:
    with pytest.raises(ParameterError, match="Invalid base64") as caught:
        parameters({"Body": "secret!"}, text_is_base64=True)
    assert "secret" not in str(caught.value)


def test_options_override_members_of_the_json_document(tmp_path: Path) -> None:
    document = json.dumps({"EndpointName": "one", "Body": "text", "Accept": "a/b"})
    assert parameters({"EndpointName": "two"}, input_json=document) == {
        "EndpointName": "two",
        "Body": b"text",
        "Accept": "a/b",
    }
    (tmp_path / "input").write_text(document)
    assert parameters({}, input_json=f"file://{tmp_path}/input")["EndpointName"] == "one"


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("{", "Invalid JSON: "),
        ("[]", "must be an object of members"),
        ("[" * 100_000, "Invalid JSON: nested too deeply"),
        ('{"Bodi": ""}', "Unknown members: Bodi"),
    ],
)
def test_invalid_json_document_is_reported(document: str, problem: str) -> None:
    with pytest.raises(ParameterError, match=f"'--cli-input-json': {problem}"):
        parameters({}, input_json=document)


def test_yaml_document(tmp_path: Path) -> None:
    document = "EndpointName: one\nBody: !!binary /wA=\nAccept: a/b\n"
    assert parameters({"EndpointName": "two"}, input_yaml=document) == {
        "EndpointName": "two",
        "Body": b"\xff\x00",
        "Accept": "a/b",
    }
    (tmp_path / "input").write_text("Body: text\n")
    assert parameters({}, input_yaml=f"file://{tmp_path}/input") == {"Body": b"text"}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("Body: secret\nAccept: [", "Invalid YAML in line 2"),
        ("- Body", "must be an object of members"),
        ("[" * 100_000, "Invalid YAML: nested too deeply"),
        ("Bodi: x", "Unknown members: Bodi"),
        ("!!python/object:os.system {}", "Invalid YAML in line 1"),
        ("Body: !!binary é", "Invalid YAML"),
    ],
)
def test_invalid_yaml_document_is_reported_without_quoting_it(document: str, problem: str) -> None:
    with pytest.raises(ParameterError, match=f"'--cli-input-yaml': {problem}") as caught:
        parameters({}, input_yaml=document)
    assert "secret" not in str(caught.value)


def test_only_one_document_may_be_given() -> None:
    with pytest.raises(ParameterError, match="only one of --cli-input-json and --cli-input-yaml"):
        parameters({}, input_json="{}", input_yaml="{}")


def test_lone_surrogates_in_a_body_are_reported_without_quoting_it() -> None:
    with pytest.raises(ParameterError, match="contains lone surrogates") as caught:
        parameters({}, input_json='{"EndpointName": "x", "Body": "secret \\ud83d"}')
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_skeleton_has_every_member(operation: Any) -> None:
    assert list(skeleton(operation)) == [member.name for member in operation.members]
