"""Usage, help and completion, which need neither a process nor a service."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import aiosmrt.cli
from aiosmrt._wire.operations import OPERATIONS
from aiosmrt.cli import main
from aiosmrt.cli.app import cli
from aiosmrt.cli.parameters import option_name
from tests.support.command_line import environment, run

ROOT = Path(__file__).parents[2]
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
        (
            (*INVOKE, "--output", "xml", "out"),
            "'xml' is not one of 'json', 'text', 'table', 'yaml'",
        ),
        ((*INVOKE, "--cli-read-timeout", "-1", "out"), "-1"),
        ((*INVOKE[:-1], "fileb:///no/such", "out"), "Error parsing parameter '--body': Unable to load paramfile"),
        (("invoke-endpoint-async", "--endpoint-name", "x", "--request-ttl-seconds", "a"), "'a' is not an integer"),
        (("no-such-command",), "No such command 'no-such-command'"),
        (("serve", "--endpoint", "nonsense"), "must be NAME=URL; got 'nonsense'"),
        (("serve", "--endpoint", "a=http://x", "--endpoint", "a=http://y"), "endpoint 'a' is given twice"),
    ],
)
def test_usage_error_is_one_line_with_code_252(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], problem: str
) -> None:
    assert main(arguments) == 252
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("aiosmrt: error: ")
    assert problem in output.err
    assert output.err.count("\n") == 1


def test_all_validation_errors_are_reported_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
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
        assert option_name(member.name) in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(rf"aiosmrt/{aiosmrt.__version__} Python/\S+ \S+ aiohttp/\S+\n", capsys.readouterr().out)


def test_skeleton_is_valid_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invoke-endpoint-async", "--generate-cli-skeleton"]) == 0
    document = capsys.readouterr().out
    assert json.loads(document)["RequestTTLSeconds"] == 0
    assert main(["invoke-endpoint-async", "--cli-input-json", document]) == 252
    assert "EndpointName" in capsys.readouterr().err


def test_yaml_skeleton_is_valid_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invoke-endpoint-async", "--generate-cli-skeleton", "yaml-input"]) == 0
    members = yaml.safe_load(capsys.readouterr().out)
    assert members["EndpointName"] == ""
    assert "InputLocation" in members


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["help"], "aiosmrt [OPTIONS]"),
        (["invoke-endpoint", "help"], "aiosmrt invoke-endpoint [OPTIONS]"),
        (["sagemaker-runtime", "invoke-endpoint", "help"], "aiosmrt sagemaker-runtime invoke-endpoint [OPTIONS]"),
    ],
)
def test_help_as_a_word(arguments: list[str], usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert usage in capsys.readouterr().out


def test_help_behind_an_option_is_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invoke-endpoint", "--query", "missing(", "--endpoint-name", "help"]) == 252
    assert "--query" in capsys.readouterr().err


def test_missing_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("aiosmrt.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "click", None)
    assert main(["--version"]) == 253
    assert capsys.readouterr().err == "aiosmrt: error: click is not installed; run: pip install 'aiosmrt[cli]'\n"


def test_help_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 252
    printed = capsys.readouterr()
    assert main(["--help"]) == 0
    assert (printed.out, printed.err) == ("", capsys.readouterr().out)


def test_help_of_a_group_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sagemaker-runtime"]) == 252
    printed = capsys.readouterr()
    assert main(["sagemaker-runtime", "--help"]) == 0
    assert (printed.out, printed.err) == ("", capsys.readouterr().out)


@pytest.mark.parametrize("group", [[], ["sagemaker-runtime"]])
def test_options_without_a_command(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--region", "us-east-1", *group]) == 252
    assert re.fullmatch("aiosmrt: error: Missing command.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("command", [None, *sorted(cli.commands)])
def test_help_is_not_cut_and_names_what_options_take(command: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"] if command is None else [command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert not re.search(r"[a-z]\.\.\.", printed)
    assert not re.search(r"--\S+ (INTEGER|FLOAT|TEXT|PATH|FILENAME)\b", printed)


@pytest.mark.parametrize("module", ["aiosmrt", "aiosmrt.cli"])
def test_run_as_a_module(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"aiosmrt/{aiosmrt.__version__} ")


def test_a_command_does_not_load_what_others_need() -> None:
    program = "import sys, aiosmrt.cli.app; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    of_others = [f"aiosmrt.{room}" for room in ("batch", "bench", "endpoint", "integrations", "local", "serializers")]
    assert [name for name in done.stdout.split() if name.startswith(tuple(of_others))] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_AIOSMRT_COMPLETE", f"{shell}_source")
    assert main([]) == 0
    assert f"_AIOSMRT_COMPLETE={shell}_complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("aiosmrt invoke-endpoint-w", ["plain,invoke-endpoint-with-response-stream"]),
        ("aiosmrt invoke-endpoint --output t", ["plain,text", "plain,table"]),
        ("aiosmrt invoke-endpoint --target-v", ["plain,--target-variant"]),
        ("aiosmrt conv", ["plain,converse"]),
        ("aiosmrt converse --data-type U", ["plain,UTF8"]),
        ("aiosmrt --region x invoke-endpoint ou", ["file,ou"]),
        ("aiosmrt serve mod", ["file,mod"]),
    ],
)
def test_completions(
    words: str, completions: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_AIOSMRT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines() == completions


def test_help_documents_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert 'eval "$(_AIOSMRT_COMPLETE=bash_source aiosmrt)"\n' in capsys.readouterr().out


# The script, interrupted once a module is imported.
INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

module = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupt())
from _aiosmrt_command import main
sys.exit(main())
"""
ARGUMENTS = {
    "score": ("rows.jsonl", "--output", "out.jsonl"),
    "bench": ("--body", "x"),
    "invoke-endpoint": ("--body", "x", "out"),
}


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("aiosmrt.errors", "invoke-endpoint"),
        ("click", "score"),
        ("aiosmrt.batch.job", "score"),
        ("aiosmrt.bench.load", "bench"),
    ],
)
async def test_ctrl_c_during_imports_leaves_no_traceback(module: str, command: str, tmp_path: Path) -> None:
    connection = ("--endpoint-name", "x", "--endpoint-url", "http://127.0.0.1:1")
    program = (sys.executable, "-c", INTERRUPTED, module, command)
    ended = await run(*program, *ARGUMENTS[command], *connection, env=environment(tmp_path), cwd=tmp_path)
    assert ended.code == 130
    assert ended.stderr.count(b"\n") <= 1
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_the_caller_has_ignored_stays_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "click", "--version"],
        capture_output=True,
        env=environment(tmp_path),
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"aiosmrt/")
