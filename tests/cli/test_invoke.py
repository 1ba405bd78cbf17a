"""`invoke-endpoint` and its siblings, run as processes against a local runtime."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from aiosmrt.cli import main
from aiosmrt.local import LocalRuntime
from aiosmrt.local.faults import StallInBody, StreamFailure, Truncate
from tests.support.command_line import PROGRAM, Cli, environment, started
from tests.support.peers import isolate_aws


async def test_body_is_written_to_the_file_and_the_rest_printed(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"\xff\x00body")
    ended = await cli(
        *("invoke-endpoint", "--endpoint-name", "echo", "--body", "fileb://body", "--content-type", "a/b"),
        *("--custom-attributes", "x=1", "out"),
    )
    assert (ended.code, ended.stderr) == (0, b"")
    assert ended.stdout.decode().splitlines() == [
        "{",
        '    "ContentType": "a/b",',
        '    "InvokedProductionVariant": "AllTraffic",',
        '    "CustomAttributes": "x=1"',
        "}",
    ]
    assert (tmp_path / "out").read_bytes() == b"\xff\x00body"


async def test_standard_input_and_output(cli: Cli) -> None:
    ended = await cli("invoke-endpoint", "--endpoint-name", "echo", "--body", "-", "-", stdin=b"\xff\x00piped")
    assert (ended.code, ended.stdout) == (0, b"\xff\x00piped")
    assert json.loads(ended.stderr)["ContentType"] == "application/octet-stream"


async def test_options_reach_the_service(cli: Cli, runtime: LocalRuntime) -> None:
    ended = await cli(
        *("invoke-endpoint", "--endpoint-name", "echo", "--body", "-1,2", "--content-type", "text/csv"),
        *("--accept", "text/plain", "--target-variant", "AllTraffic", "--inference-id", "id-1"),
        *("--enable-explanations", "`true`", "--prefix-aware-id", "prefix", "out"),
    )
    assert (ended.code, ended.stderr) == (0, b"")
    (record,) = await runtime.wait_for_requests(1)
    headers = dict(record.headers or {})
    assert record.request_body == b"-1,2"
    assert headers["content-type"] == "text/csv"
    assert headers["accept"] == "text/plain"
    assert headers["x-amzn-sagemaker-target-variant"] == "AllTraffic"
    assert headers["x-amzn-sagemaker-inference-id"] == "id-1"
    assert headers["x-amzn-sagemaker-enable-explanations"] == "`true`"
    assert headers["x-amzn-sagemaker-prefix-aware-id"] == "prefix"
    assert "md/command#aiosmrt" in headers["user-agent"]


async def test_global_options_after_the_command_override_those_before_it(
    cli: Cli, runtime: LocalRuntime, tmp_path: Path
) -> None:
    ended = await cli(
        *("--endpoint-url", "http://127.0.0.1:1", "--query", "ContentType", "--output", "text"),
        *("invoke-endpoint", "--endpoint-url", runtime.url, "--endpoint-name", "echo", "--body", "x", "out"),
    )
    assert ended == (0, b"application/octet-stream\n", b"")


@pytest.mark.parametrize(
    ("lines", "arguments", "sent"),
    [
        ("cli_binary_format = base64", (), b"hi"),
        ("cli_binary_format = base64", ("--cli-binary-format", "raw-in-base64-out"), b"aGk="),
        ("cli_binary_format = raw-in-base64-out", (), b"aGk="),
        ("cli_binary_format =", (), b"aGk="),
    ],
)
async def test_profile_says_what_text_of_a_body_is(
    lines: str, arguments: tuple[str, ...], sent: bytes, cli: Cli, runtime: LocalRuntime, tmp_path: Path
) -> None:
    (tmp_path / "configured").write_text(f"[default]\n{lines}\n")
    command = ("invoke-endpoint", "--endpoint-name", "echo", "--body", "aGk=", *arguments, "out")
    ended = await cli(*command, AWS_CONFIG_FILE=str(tmp_path / "configured"))
    assert ended.code == 0, ended.stderr
    assert (await runtime.wait_for_requests(1))[0].request_body == sent


async def test_invalid_binary_format_of_a_profile_is_reported(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "configured").write_text("[default]\ncli_binary_format = hex\n")
    command = ("invoke-endpoint", "--endpoint-name", "echo", "--body", "x", "out")
    ended = await cli(*command, AWS_CONFIG_FILE=str(tmp_path / "configured"))
    assert (ended.code, ended.stdout) == (253, b"")
    assert b"cli_binary_format in the profile must be one of base64, raw-in-base64-out; got 'hex'" in ended.stderr


async def test_debug_prints_attempts_without_payloads(cli: Cli) -> None:
    ended = await cli("invoke-endpoint", "--debug", "--endpoint-name", "echo", "--body", "hidden", "out")
    assert ended.code == 0
    assert b"AttemptStarted(operation='InvokeEndpoint', endpoint_name='echo'" in ended.stderr
    assert b"CallEnded(" in ended.stderr
    assert b"hidden" not in ended.stderr


async def test_stream_is_written_to_the_file(cli: Cli, tmp_path: Path) -> None:
    ended = await cli(
        "invoke-endpoint-with-response-stream", "--endpoint-name", "parts", "--body", "one two three", "out"
    )
    assert (ended.code, ended.stderr) == (0, b"")
    assert (tmp_path / "out").read_bytes() == b"onetwothree"
    assert "Body" not in json.loads(ended.stdout)


async def test_part_is_written_on_arrival_and_interrupt_ends_the_stream(runtime: LocalRuntime, tmp_path: Path) -> None:
    runtime.inject("parts", StallInBody(after_parts=1))
    command = ("invoke-endpoint-with-response-stream", "--endpoint-name", "parts", "--body", "one two", "-")
    env = environment(tmp_path, AWS_ENDPOINT_URL=runtime.url)
    async with started(*PROGRAM, *command, env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.readexactly(3) == b"one"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert (await process.stdout.read(), await process.stderr.read()) == (b"", b"")


async def test_broken_pipe_ends_a_stream_without_a_message(runtime: LocalRuntime, tmp_path: Path) -> None:
    runtime.inject("parts", StallInBody(after_parts=1))
    command = ("invoke-endpoint-with-response-stream", "--endpoint-name", "parts", "--body", "one two", "-")
    read_end, write_end = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=write_end,
        stderr=asyncio.subprocess.PIPE,
        env=environment(tmp_path, AWS_ENDPOINT_URL=runtime.url),
    )
    os.close(write_end)
    await runtime.wait_for_stalled(1)
    os.close(read_end)
    runtime.release_stalled()
    _, stderr = await process.communicate()
    assert stderr == b""
    assert process.returncode == 141


async def test_failed_stream_keeps_the_received_parts(cli: Cli, runtime: LocalRuntime, tmp_path: Path) -> None:
    runtime.inject("parts", StreamFailure(after_parts=2, message="the model\nstumbled").next())
    command = ("invoke-endpoint-with-response-stream", "--endpoint-name", "parts", "--body", "one two three", "out")
    ended = await cli(*command)
    assert (ended.code, ended.stdout) == (254, b"")
    assert ended.stderr.startswith(b"aiosmrt: error: An error occurred (ModelStreamError) when calling the InvokeEnd")
    assert ended.stderr.count(b"\n") == 1
    assert (tmp_path / "out").read_bytes() == b"onetwo"


async def test_stream_truncated_inside_a_frame_is_an_error(cli: Cli, runtime: LocalRuntime, tmp_path: Path) -> None:
    runtime.inject("parts", Truncate(after_parts=1, after_bytes=9, clean_ending=True).always())
    ended = await cli("invoke-endpoint-with-response-stream", "--endpoint-name", "parts", "--body", "one two", "out")
    assert ended.code == 255
    assert ended.stderr.count(b"\n") == 1
    assert (tmp_path / "out").read_bytes() == b"one"


async def test_service_error_is_one_line_and_keeps_the_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"before")
    ended = await cli("invoke-endpoint", "--endpoint-name", "failing", "--body", "x", "out")
    assert (ended.code, ended.stdout) == (254, b"")
    assert ended.stderr.startswith(b"aiosmrt: error: An error occurred (ModelError) when calling the InvokeEndpoint op")
    assert b"out of; memory" in ended.stderr
    assert ended.stderr.count(b"\n") == 1
    assert (tmp_path / "out").read_bytes() == b"before"


@pytest.mark.parametrize(
    ("arguments", "variables", "code"),
    [
        (("--query", "a[", "out"), {}, 252),
        (("--query", "nope(@)", "out"), {}, 252),
        (("--output", "xml", "out"), {}, 252),
        (("out",), {"AWS_DEFAULT_OUTPUT": "xml"}, 253),
        (("missing/out",), {}, 255),
        (("folder",), {}, 255),
        (("folder/",), {}, 255),
        (("",), {}, 255),
        (("file/out",), {}, 255),
        (("long" * 100,), {}, 255),
        (("--inference-id", "\n", "out"), {}, 252),
        (("--target-variant", "\u00e4", "out"), {}, 252),
        (("--cli-read-timeout", "nan", "out"), {}, 252),
        (("--cli-connect-timeout", "inf", "out"), {}, 252),
        (("--cli-input-json", "{", "out"), {}, 252),
        (("--ca-bundle", "missing.pem", "out"), {}, 252),
        (("--endpoint-url", "nonsense", "out"), {}, 253),
        (("--endpoint-url", "http://", "out"), {}, 253),
        (("--region", "no region", "out"), {}, 253),
        (("--profile", "missing", "out"), {}, 253),
    ],
)
@pytest.mark.parametrize("command", ["invoke-endpoint", "invoke-endpoint-with-response-stream"])
async def test_errors_in_a_command_are_found_before_the_call(
    runtime: LocalRuntime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: tuple[str, ...],
    variables: dict[str, str],
    code: int,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"before")
    monkeypatch.chdir(tmp_path)
    isolate_aws(monkeypatch, tmp_path)
    for name, value in (environment(tmp_path, AWS_ENDPOINT_URL=runtime.url) | variables).items():
        monkeypatch.setenv(name, value)
    ended = await asyncio.to_thread(main, [command, "--endpoint-name", "echo", "--body", "x", *arguments])
    printed = capsys.readouterr()
    assert (ended, printed.out, printed.err.count("\n")) == (code, "", 1), printed.err
    assert printed.err.startswith("aiosmrt: error: ")
    assert runtime.requests == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"before"


async def test_output_formats(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\noutput = yaml\n")
    command = ("invoke-endpoint", "--endpoint-name", "echo", "--body", "x", "--content-type", "a/b")
    query = ("--query", "{Type: ContentType}")
    config = {"AWS_CONFIG_FILE": str(tmp_path / "config")}
    assert await cli(*command, *query, "out", **config) == (0, b"Type: a/b\n", b"")
    assert await cli(*command, *query, "-", **config) == (0, b"x", b"Type: a/b\n")
    assert await cli(*command, *query, "out", AWS_DEFAULT_OUTPUT="text", **config) == (0, b"a/b\n", b"")
    assert await cli(*command, *query, "--output", "off", "out", **config) == (0, b"", b"")
    assert (tmp_path / "out").read_bytes() == b"x"


async def test_asynchronous_call_takes_no_outfile(cli: Cli, runtime: LocalRuntime) -> None:
    command = ("invoke-endpoint-async", "--endpoint-name", "missing", "--input-location", "s3://bucket/key")
    ended = await cli(*command, "--request-ttl-seconds", "60", "--no-paginate")
    (record,) = await runtime.wait_for_requests(1)
    headers = dict(record.headers or {})
    assert headers["x-amzn-sagemaker-requestttlseconds"] == "60"
    assert headers["x-amzn-sagemaker-inputlocation"] == "s3://bucket/key"
    assert ended.code == 254


async def test_connection_failure_has_code_255(cli: Cli) -> None:
    ended = await cli(
        *("invoke-endpoint", "--endpoint-name", "x", "--body", "x", "--endpoint-url", "http://127.0.0.1:1", "out"),
        AWS_MAX_ATTEMPTS="1",
    )
    assert (ended.code, ended.stdout) == (255, b"")
    assert ended.stderr.startswith(b"aiosmrt: error: Could not connect to ")


@pytest.mark.parametrize(
    ("arguments", "variables", "problem"),
    [
        (("--profile", "missing"), {}, "missing"),
        ((), {"AWS_DEFAULT_REGION": "", "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": ""}, "region"),
        ((), {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "credentials"),
    ],
)
async def test_configuration_error_has_code_253(
    cli: Cli, arguments: tuple[str, ...], variables: dict[str, str], problem: str
) -> None:
    ended = await cli("invoke-endpoint", "--endpoint-name", "x", "--body", "x", *arguments, "out", **variables)
    assert (ended.code, ended.stdout) == (253, b"")
    assert problem in ended.stderr.decode()
    assert ended.stderr.count(b"\n") == 1


async def test_unsigned_requests_need_no_credentials(cli: Cli) -> None:
    variables = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    ended = await cli("invoke-endpoint", "--no-sign-request", "--endpoint-name", "x", "--body", "x", "out", **variables)
    assert ended.code == 254
    assert b"MissingAuthenticationToken" in ended.stderr
