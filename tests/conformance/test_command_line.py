"""`aiosmrt` beside the AWS CLI, byte for byte: the same flags give the same requests, files and output."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiosmrt._wire.operations import OPERATIONS
from aiosmrt.cli.app import cli
from aiosmrt.cli.parameters import option_name
from aiosmrt.cli.table import format_table
from aiosmrt.cli.text import format_text
from aiosmrt.local import Credentials, Invocation, LocalRuntime, RequestRecord
from tests.support.command_line import PROGRAM, Ended, environment, run
from tests.support.peers import CREDENTIALS, REGION

AWS_OPTIONS = Path(__file__).with_name("aws_options.py")

# Headers about the client itself or the attempt.
OWN_HEADERS = {
    "amz-sdk-invocation-id",
    "amz-sdk-request",
    "user-agent",
    "x-amz-user-agent",
    "connection",
    "accept-encoding",
}
DATED_HEADERS = {"x-amz-date", "date"}

# The first release of the AWS CLI seen with the newest member of InvokeEndpointAsync, Body. Older ones have a shorter
# skeleton: 1.45.20 lacks Body, 1.38.0 Filename and S3OutputPathExtension as well. What they do have is equal.
SKELETON_IS_EXACT_FROM = (1, 45, 30)

# Version 1 of the AWS CLI has 2 for its parser's errors and 255 for all others; ours are version 2's.
EXIT_CODES = {0: {0}, 252: {2, 252, 255}, 253: {253, 255}, 254: {254, 255}, 255: {255}}


async def answer(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
    return b"\xff\x00" + invocation.body, {
        "Content-Type": invocation.content_type or "application/octet-stream",
        "X-Amzn-SageMaker-Custom-Attributes": '<&> \\ " attributes',
    }


@pytest.fixture
async def runtime() -> AsyncIterator[LocalRuntime]:
    credentials = Credentials(CREDENTIALS.access_key, CREDENTIALS.secret_key)
    endpoints: dict[str, Any] = {"model": answer}
    async with LocalRuntime(endpoints, credentials=credentials, region=REGION, record_bodies=True) as runtime:
        yield runtime


class Both:
    """Runs a command line with both programs, each in its own folder."""

    def __init__(self, aws_cli: str, url: str, folder: Path) -> None:
        self.folders = folder / "aws", folder / "aiosmrt"
        for path in self.folders:
            path.mkdir()
        self._programs = (aws_cli, "sagemaker-runtime"), PROGRAM
        self._url = url

    def write(self, name: str, content: bytes) -> None:
        for folder in self.folders:
            (folder / name).write_bytes(content)

    async def run(self, *arguments: str, **variables: str) -> tuple[Ended, Ended]:
        variables = {"AWS_ENDPOINT_URL": self._url, "AWS_MAX_ATTEMPTS": "1", **variables}
        theirs, ours = await asyncio.gather(
            *(
                run(*program, *arguments, env=environment(folder, **variables), cwd=folder)
                for program, folder in zip(self._programs, self.folders, strict=True)
            )
        )
        return theirs, ours


@pytest.fixture
def both(aws_cli: str, runtime: LocalRuntime, tmp_path: Path) -> Both:
    return Both(aws_cli, runtime.url, tmp_path)


def essence(record: RequestRecord) -> dict[str, str]:
    headers = {name: value for name, value in (record.headers or {}).items() if name not in OWN_HEADERS}
    if headers.get("accept") == "*/*":
        del headers["accept"]  # aiohttp sends */* where none was asked for; the AWS CLI sends none
    return {name: "dated" if name in DATED_HEADERS else value for name, value in headers.items()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--body", "plain text, \u00e4", "--content-type", "text/csv", "--accept", "text/plain"),
        ("--body", "fileb://binary", "--custom-attributes", "file://text"),
        ("--body", "file://text", "--query", "[ContentType, InvokedProductionVariant]", "--output", "text"),
        ("--body", "x", "--output", "text", "--no-paginate", "--color", "off"),
        ("--body", "x", "--query", "{b: ContentType, a: Missing}"),
        ("--body", "x", "--query", "{b: [ContentType], a: {c: Missing}}", "--output", "text"),
        ("--body", "x", "--query", "{a: ContentType}", "--output", "table"),
        (
            *(
                "--body=-1",
                "--target-variant",
                "AllTraffic",
                "--inference-id",
                "id-1",
                "--enable-explanations",
                "`true`",
            ),
            *("--cli-read-timeout", "30", "--cli-connect-timeout", "0"),
        ),
    ],
    ids=["text", "binary", "query-text", "text-output", "query-json", "query-nested", "table", "flags"],
)
async def test_invoke_endpoint(both: Both, runtime: LocalRuntime, arguments: tuple[str, ...]) -> None:
    both.write("binary", b"\xff\x00\r\n")
    both.write("text", b"some text")
    theirs, ours = await both.run("invoke-endpoint", "--endpoint-name", "model", *arguments, "out")
    assert ours == theirs
    assert ours.code == 0
    assert ours.stdout
    first, second = ((folder / "out").read_bytes() for folder in both.folders)
    assert first == second
    assert first.startswith(b"\xff\x00")
    records = await runtime.wait_for_requests(2)
    assert records[0].request_body == records[1].request_body
    assert essence(records[0]) == essence(records[1])


# Formats documents with the AWS CLI's own code; a table as on a narrow terminal, and None where it fails.
AWS_FORMATTERS = """
import argparse, io, json, sys
from awscli.formatter import get_formatter

def formatted(name, document):
    formatter = get_formatter(name, argparse.Namespace(query=None, color="off"))
    if name == "table":
        formatter.table._terminal_width = 0
    stream = io.StringIO()
    try:
        formatter("InvokeEndpoint", document, stream)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None
    return stream.getvalue()

json.dump([formatted(*case) for case in json.load(sys.stdin)], sys.stdout)
"""

SCALARS = [None, True, False, 0, 3, 1.5, "", "text/csv", "ä", "漢字", "a longer text"]
ROWS = [[], ["x"], ["x", None], [1, 2, 3], {}, {"key": "x"}, {"b": 1, "a": "x"}, {"b": [1, 2], "a": {"c": "ä"}}]
LISTS = [
    [{"a": 1, "b": "x"}, {"a": 2}],
    [{"a": 1}, {"b": [3]}],
    [{"a": [1]}, {"a": "x"}],
    [["x", 1], ["yy", 2]],
    [[["x"]], [["y"]]],
    [{}, {"a": None}],
    [{"a": {"b": [{"c": 1}, {"c": "a longer text"}]}}],
]


@pytest.mark.parametrize("name", ["text", "table"])
async def test_nested_documents(aws_cli: str, tmp_path: Path, name: str) -> None:
    documents = [*SCALARS, *ROWS, *LISTS, *({"Key": item, "Other": SCALARS[-1]} for item in [*ROWS, *LISTS])]
    program = Path(shutil.which(aws_cli) or aws_cli).with_name("python")
    if not program.exists():
        pytest.skip("the AWS CLI is not a Python environment")
    cases = json.dumps([(name, document) for document in documents]).encode()
    env = {key: value for key, value in environment(tmp_path).items() if key != "PYTHONPATH"}
    ended = await run(str(program), "-c", AWS_FORMATTERS, env=env, stdin=cases)
    assert (ended.code, ended.stderr) == (0, b"")
    form = {"text": format_text, "table": lambda document: format_table("InvokeEndpoint", document)}[name]
    expected = list(zip(documents, json.loads(ended.stdout), strict=True))
    formatted = [(document, form(document)) for document, text in expected if text is not None]
    assert formatted == [(document, text) for document, text in expected if text is not None]
    assert len(formatted) > len(documents) / 2


async def test_a_bad_query_and_a_bad_output_send_nothing(both: Both, runtime: LocalRuntime) -> None:
    for option in (("--query", "a["), ("--query", ""), ("--output", "xml")):
        theirs, ours = await both.run("invoke-endpoint", "--endpoint-name", "model", "--body", "x", *option, "out")
        assert ours.code == 252
        assert theirs.code in EXIT_CODES[252]
    assert runtime.requests == ()


async def test_text_files_with_other_line_ends(both: Both, runtime: LocalRuntime) -> None:
    both.write("text", "a\r\nb\rc\n\u00e4".encode())
    theirs, ours = await both.run("invoke-endpoint", "--endpoint-name", "model", "--body", "file://text", "out")
    assert ours == theirs
    records = await runtime.wait_for_requests(2)
    assert records[0].request_body == records[1].request_body == "a\nb\nc\n\u00e4".encode()


async def test_the_skeleton(both: Both, aws_cli: str, tmp_path: Path) -> None:
    theirs, ours = await both.run("invoke-endpoint-async", "--generate-cli-skeleton")
    assert ours.code == 0
    if await release_of(aws_cli, tmp_path) < SKELETON_IS_EXACT_FROM:
        known = json.loads(theirs.stdout)
        document = {name: value for name, value in json.loads(ours.stdout).items() if name in known}
        ours = ours._replace(stdout=f"{json.dumps(document, indent=4)}\n".encode())
    assert ours == theirs


async def test_the_page_lists_the_options_that_differ(aws_cli: str, tmp_path: Path) -> None:
    python = Path(aws_cli).with_name("python")
    if not python.exists():
        pytest.skip("the AWS CLI is not in a virtual environment whose Python can be asked")
    asked = await run(str(python), str(AWS_OPTIONS), env=environment(tmp_path))
    theirs: dict[str, list[str]] = json.loads(asked.stdout)
    members = {option_name(member.name).removeprefix("--") for operation in OPERATIONS for member in operation.members}
    differing: set[str] = set()
    for operation in OPERATIONS:
        command = operation.method.replace("_", "-")
        if command not in theirs:  # streams, in version 1
            continue
        own = {name.removeprefix("--") for option in cli.commands[command].params for name in option.opts}
        # Which members there are depends on the release's service model.
        differing |= {f"--{name}" for name in own ^ {*theirs[""], *theirs[command]} if name not in members}
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    section = page.partition("## Beside the AWS CLI")[2].partition("\n## ")[0]
    listed = {
        option
        for row in re.findall(r"^\| (`--.*?) \|", section, re.MULTILINE)
        for option in re.findall("`(--[a-z0-9-]+)", row)
    }
    assert listed == differing - {"--version"}


async def test_commands_as_the_aws_cli_spells_them(both: Both, runtime: LocalRuntime) -> None:
    theirs, ours = await both.run("invoke-endpoint", "--endpoint-name", "model", "--body", "x", "out")
    spelled = await run(
        *(*PROGRAM, "--output", "json", "sagemaker-runtime", "invoke-endpoint"),
        *("--endpoint-name", "model", "--body", "x", "out"),
        env=environment(both.folders[1], AWS_ENDPOINT_URL=runtime.url),
        cwd=both.folders[1],
    )
    assert spelled == ours == theirs


async def release_of(aws_cli: str, folder: Path) -> tuple[int, ...]:
    """The AWS CLI's version."""
    ended = await run(aws_cli, "--version", env=environment(folder))
    found = re.match(r"aws-cli/(\d+)\.(\d+)\.(\d+) ", ended.stdout.decode())
    assert found is not None
    return tuple(int(part) for part in found.groups())


async def test_members_from_a_json_document(both: Both, runtime: LocalRuntime) -> None:
    document = {"EndpointName": "absent", "InputLocation": "s3://bucket/key", "RequestTTLSeconds": 60, "Accept": "a/b"}
    both.write("input.json", json.dumps(document).encode())
    theirs, ours = await both.run(
        *("invoke-endpoint-async", "--cli-input-json", "file://input.json", "--accept", "c/d"),
        *("--invocation-timeout-seconds", "7", "--endpoint-name", "model"),
    )
    assert (ours.code, ours.stdout) == (254, theirs.stdout)
    records = await runtime.wait_for_requests(2)
    assert essence(records[0]) == essence(records[1])
    assert essence(records[0])["x-amzn-sagemaker-accept"] == "c/d"
    assert {record.endpoint for record in records} == {"model"}


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "same_text"),
    [
        (("--endpoint-name", "missing", "--body", "x", "out"), {}, 254, True),
        (("--endpoint-name", "model", "--body", "x", "--target-variant", "Other", "out"), {}, 254, True),
        (("--endpoint-name", "model", "--body", "x", "missing/out"), {}, 255, False),
        (("--endpoint-name", "model", "--body", "fileb://missing", "out"), {}, 252, True),
        (("--endpoint-name", "model", "--body", "x"), {}, 252, True),
        (("--endpoint-name", "model", "out"), {}, 252, True),
        (("--endpoint-name", "model", "--body", "x", "--unknown", "out"), {}, 252, False),
        (("--endpoint-name", "model", "--body", "x", "--profile", "missing", "out"), {}, 253, True),
        (
            ("--endpoint-name", "model", "--body", "x", "out"),
            {"AWS_DEFAULT_REGION": "", "AWS_ENDPOINT_URL": ""},
            253,
            False,
        ),
        (
            ("--endpoint-name", "model", "--body", "x", "out"),
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            253,
            False,
        ),
        (
            ("--endpoint-name", "model", "--body", "x", "--endpoint-url", "http://127.0.0.1:1", "out"),
            {},
            255,
            False,
        ),
    ],
)
async def test_failures(
    both: Both, arguments: tuple[str, ...], variables: dict[str, str], code: int, same_text: bool
) -> None:
    theirs, ours = await both.run("invoke-endpoint", *arguments, **variables)
    assert ours.code == code
    assert theirs.code in EXIT_CODES[code]
    assert ours.stdout == theirs.stdout == b""
    assert [path.name for folder in both.folders for path in folder.iterdir()] == []
    prefix, _, line = ours.stderr.decode().partition("aiosmrt: error: ")
    assert (prefix, line.count("\n")) == ("", 1)
    if same_text:
        assert line.partition(" (see ")[0].strip() in theirs.stderr.decode()
