"""What the command says of its own use; no process and no service is needed for that."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import aiosmrt.cli
from aiosmrt._wire.operations import OPERATIONS
from aiosmrt.cli import main
from aiosmrt.cli.parameters import flag_name

INVOKE = ("invoke-endpoint", "--endpoint-name", "x", "--body", "x")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("invoke-endpoint",), "the following arguments are required: --endpoint-name, --body, outfile"),
        (("invoke-endpoint", "--body", "x", "out"), "the following arguments are required: --endpoint-name"),
        (INVOKE, "the following arguments are required: outfile"),
        (("invoke-endpoint-async",), "the following arguments are required: --endpoint-name"),
        ((*INVOKE, "--bogus", "out"), "--bogus"),
        ((*INVOKE, "out", "more"), "unexpected extra argument"),
        ((*INVOKE, "--output", "yaml", "out"), "'yaml' is not one of 'json', 'text'"),
        ((*INVOKE, "--cli-read-timeout", "-1", "out"), "-1"),
        ((*INVOKE[:-1], "fileb:///no/such", "out"), "Error parsing parameter '--body': Unable to load paramfile"),
        (("invoke-endpoint-async", "--endpoint-name", "x", "--request-ttl-seconds", "a"), "'a' is not a whole number"),
        (("no-such-command",), "No such command 'no-such-command'"),
        (("serve", "--endpoint", "nonsense"), "'nonsense' does not read NAME=URL"),
        (("serve", "--endpoint", "a=http://x", "--endpoint", "a=http://y"), "'a' is given twice"),
    ],
)
def test_a_wrong_command_is_one_line_and_code_252(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    assert main(arguments) == 252
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("aiosmrt: error: ")
    assert problem in output.err
    assert output.err.count("\n") == 1


def test_every_broken_rule_of_the_service_is_named_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ("invoke-endpoint", "--endpoint-name", "-", "--body", "x", "--target-variant", "?", str(tmp_path / "o"))
    assert main((*arguments, "--endpoint-url", "http://127.0.0.1:1", "--region", "us-east-1")) == 252
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match("aiosmrt: error: Parameter validation failed: .*EndpointName.*; .*TargetVariant", line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_help_lists_every_member(capsys: pytest.CaptureFixture[str], operation: Any) -> None:
    assert main([operation.method.replace("_", "-"), "--help"]) == 0
    text = capsys.readouterr().out
    for member in operation.members:
        assert flag_name(member.name) in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(rf"aiosmrt/{aiosmrt.__version__} Python/\S+ \S+ aiohttp/\S+\n", capsys.readouterr().out)


def test_the_skeleton_can_be_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invoke-endpoint-async", "--generate-cli-skeleton"]) == 0
    document = capsys.readouterr().out
    assert json.loads(document)["RequestTTLSeconds"] == 0
    assert main(["invoke-endpoint-async", "--cli-input-json", document]) == 252
    assert "EndpointName" in capsys.readouterr().err


def test_a_missing_extra_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("aiosmrt.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "click", None)
    assert main(["--version"]) == 253
    assert capsys.readouterr().err == "aiosmrt: the command line needs click: pip install 'aiosmrt[cli]'\n"
