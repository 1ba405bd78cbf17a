"""`converse` against a local runtime: in this process, and as a process where signals and pipes matter."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from aiosmrt._wire.messages import MAX_PART_BYTES
from aiosmrt.cli import converse, main
from aiosmrt.local import Invocation, LocalRuntime, StreamMessage, faults
from tests.support.command_line import PROGRAM, Cli, Ended, environment, run, started
from tests.support.peers import isolate_aws
from tests.support.runtime import local_runtime

COMMAND = ("converse", "--endpoint-name")


async def echo(invocation: Invocation) -> AsyncIterator[StreamMessage]:
    async for message in invocation.messages:
        yield message


async def described(invocation: Invocation) -> AsyncIterator[str]:
    """A model that says what it got."""
    async for message in invocation.messages:
        text = isinstance(message.data, str)
        yield f"{'text' if text else 'binary'} {len(message.data)}"
    yield f"{invocation.model_path} {invocation.model_query} {invocation.variant}"


async def greeting(invocation: Invocation) -> AsyncIterator[str]:
    """A model that ends whether its caller has or not."""
    yield "hello"


async def verse(invocation: Invocation) -> AsyncIterator[str]:
    """A model whose messages have several lines, or none."""
    yield "one\ntwo\n"
    yield ""
    yield "three"


async def failing(invocation: Invocation) -> AsyncIterator[str]:
    yield "half"
    raise ValueError("out of words")


async def flooding(invocation: Invocation) -> AsyncIterator[bytes]:
    for _ in range(100):
        yield bytes(65_536)


@pytest.fixture
async def runtime() -> AsyncIterator[LocalRuntime]:
    models = {
        "echo": echo,
        "described": described,
        "greeting": greeting,
        "failing": failing,
        "flooding": flooding,
        "verse": verse,
    }
    async with local_runtime(models, http2_port=0) as runtime:
        yield runtime


def of_runtime(runtime: LocalRuntime, folder: Path) -> dict[str, str]:
    return environment(folder, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME_HTTP2=runtime.http2_url)


@pytest.fixture
def cli(runtime: LocalRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `aiosmrt` against the runtime, in a thread of this process; ``stdin`` may be the path of a file."""
    isolate_aws(monkeypatch, tmp_path)

    async def call(*arguments: str, stdin: bytes | Path = b"", **variables: str) -> Ended:
        with monkeypatch.context() as patch, ExitStack() as stack:
            for name, value in (of_runtime(runtime, tmp_path) | variables).items():
                patch.setenv(name, value)
            if isinstance(stdin, bytes):
                file = tmp_path / "stdin"
                file.write_bytes(stdin)
            else:
                file = stdin
            descriptor = os.open(file, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            patch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: descriptor))
            for name in ("stdout", "stderr"):
                patch.setattr(sys, name, stack.enter_context((tmp_path / name).open("w")))
            code = await asyncio.to_thread(main, arguments)
            sys.stderr.flush()
        return Ended(code, (tmp_path / "stdout").read_bytes(), (tmp_path / "stderr").read_bytes())

    return call


async def test_bytes_go_both_ways(runtime: LocalRuntime, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1500
    ended = await run(*PROGRAM, *COMMAND, "echo", env=of_runtime(runtime, tmp_path), stdin=data)
    assert (ended.code, ended.stdout) == (0, data)
    assert json.loads(ended.stderr) == {"InvokedProductionVariant": "AllTraffic"}


async def test_lines_are_messages_and_messages_are_lines(cli: Cli) -> None:
    ended = await cli(*COMMAND, "echo", "--lines", "--output", "off", stdin="one\r\n\nzwölf\nlast".encode())
    assert ended == (0, "one\n\nzwölf\nlast\n".encode(), b"")
    ended = await cli(*COMMAND, "described", "--lines", "--output", "off", stdin=b"one\nfour\n")
    assert ended.stdout == b"text 3\ntext 4\nNone None AllTraffic\n"


async def test_a_message_of_several_lines_is_printed_as_it_is(cli: Cli) -> None:
    ended = await cli(*COMMAND, "verse", "--lines", "--output", "off")
    assert ended == (0, b"one\ntwo\n\n\nthree\n", b"")


async def test_an_empty_part_is_printed_where_nothing_is_known_of_pipes(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_socket(*arguments: object) -> None:
        raise OSError("an operation was attempted on something that is not a socket")

    monkeypatch.setattr(converse, "_SURE_BYTES", 0)  # as on Windows
    monkeypatch.setattr(converse, "select", SimpleNamespace(select=no_socket))
    ended = await cli(*COMMAND, "verse", "--output", "off")
    assert ended == (0, b"one\ntwo\nthree", b"")


async def test_options_reach_the_model(cli: Cli, runtime: LocalRuntime) -> None:
    ended = await cli(
        *(*COMMAND, "described", "--model-invocation-path", "v1/listen", "--model-query-string", "a=b"),
        *("--target-variant", "AllTraffic", "--lines", "--data-type", "BINARY", "--output", "text"),
        *("--http2-endpoint-url", runtime.http2_url),
        stdin=b"\xff\xfe\n",
        AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME_HTTP2="http://127.0.0.1:1",
    )
    assert ended == (0, b"binary 2\nv1/listen a=b AllTraffic\n", b"AllTraffic\n")


async def test_frames_of_audio(cli: Cli) -> None:
    ended = await cli(*COMMAND, "described", "--message-bytes", "640", "--output", "off", stdin=bytes(1500))
    assert ended.stdout == b"binary 640binary 640binary 220None None AllTraffic"


async def test_each_side_arrives_at_once_and_text_keeps_its_characters(runtime: LocalRuntime, tmp_path: Path) -> None:
    command = (*PROGRAM, *COMMAND, "echo", "--data-type", "UTF8")
    async with started(*command, env=of_runtime(runtime, tmp_path)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"caf\xc3")
        assert await process.stdout.readexactly(3) == b"caf"
        process.stdin.write(b"\xa9")
        assert await process.stdout.readexactly(2) == b"\xc3\xa9"
        process.stdin.close()
        assert await process.wait() == 0
    (record,) = await runtime.wait_for_requests(1)
    assert record.parts == 2


async def test_the_models_end_is_the_end_while_input_is_open(cli: Cli) -> None:
    reading, writing = os.pipe()
    try:
        ended = await cli(*COMMAND, "greeting", "--output", "off", stdin=Path(f"/dev/fd/{reading}"))
    finally:
        os.close(writing)
        os.close(reading)
    assert ended == (0, b"hello", b"")


async def test_interrupt_is_a_clean_end(runtime: LocalRuntime, tmp_path: Path) -> None:
    async with started(*PROGRAM, *COMMAND, "echo", "--lines", env=of_runtime(runtime, tmp_path)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"one\n")
        assert await process.stdout.readexactly(4) == b"one\n"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert (await process.stdout.read(), await process.stderr.read()) == (b"", b"")
    (record,) = await runtime.wait_for_requests(1)
    assert record.outcome == "disconnected"


async def test_interrupt_ends_a_write_that_waits(runtime: LocalRuntime, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        command = (*PROGRAM, *COMMAND, "flooding")
        async with started(*command, env=of_runtime(runtime, tmp_path), stdout=writing) as process:
            # Nobody reads. Once the pipe is full, the command has written, and has more to write.
            while select.select([], [writing], [], 0)[1]:
                assert process.returncode is None
                await asyncio.sleep(0.001)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
    finally:
        os.close(writing)
        os.close(reading)
    (record,) = await runtime.wait_for_requests(1)
    assert record.outcome == "disconnected"


async def test_broken_pipe_ends_without_a_message(runtime: LocalRuntime, tmp_path: Path) -> None:
    shell = "; ".join(
        [f"{' '.join(PROGRAM)} {' '.join(COMMAND)} echo --lines | head -n 1", 'echo "${PIPESTATUS[0]}"'],
    )
    async with started("bash", "-c", shell, env=of_runtime(runtime, tmp_path)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"one\n")
        assert await process.stdout.readline() == b"one\n"
        while not (ended := asyncio.ensure_future(process.stdout.readline())).done():
            process.stdin.write(b"two\n")
            await asyncio.wait({ended}, timeout=0.05)
            if ended.done():
                break
            ended.cancel()
            await asyncio.wait({ended})
        assert ended.result() == b"141\n"
        assert await process.stderr.read() == b""


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (("failing",), b"", 254, b"(ModelStreamError)"),
        (("missing",), b"", 254, b"(ValidationError)"),
        (("echo", "--lines"), b"ok\nno\xff", 255, b"standard input is not UTF-8 at byte 5"),
        (("echo", "--data-type", "UTF8"), b"ok\xc3", 255, b"standard input is not UTF-8 at byte 2"),
        (("echo", "--lines"), bytes(MAX_PART_BYTES + 2), 255, b"a line of standard input exceeds 16777216 bytes"),
        (("echo", "--http2-endpoint-url", "http://127.0.0.1:1"), b"", 255, b"Could not connect"),
        (("echo", "--endpoint-url", "http://127.0.0.1:1"), b"", 253, b"http2_endpoint_url is needed"),
    ],
)
async def test_failures_have_their_codes(
    arguments: tuple[str, ...], stdin: bytes, code: int, message: bytes, cli: Cli
) -> None:
    variables = {"AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME_HTTP2": ""} if "--endpoint-url" in arguments else {}
    ended = await cli(*COMMAND, *arguments, stdin=stdin, AWS_MAX_ATTEMPTS="1", AWS_RETRY_MODE="standard", **variables)
    assert ended.code == code, ended
    assert message in ended.stderr
    assert ended.stderr.startswith(b"aiosmrt: error: ")
    assert ended.stderr.count(b"\n") == 1


async def test_what_came_before_a_failure_is_printed(cli: Cli) -> None:
    assert (await cli(*COMMAND, "failing")).stdout == b"half"


async def test_input_that_is_a_folder_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    ended = await cli(*COMMAND, "echo", stdin=tmp_path)
    assert ended == (255, b"", b"aiosmrt: error: standard input cannot be read: Is a directory\n")


async def test_a_reset_is_an_error(cli: Cli, runtime: LocalRuntime) -> None:
    runtime.inject("echo", faults.ResetStream(after_parts=1))
    ended = await cli(*COMMAND, "echo", stdin=b"one")
    assert (ended.code, ended.stdout) == (255, b"one")
    assert b"reset" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "the following arguments are required: --endpoint-name"),
        (("--endpoint-name", "x", "--message-bytes", "0"), "--message-bytes"),
        (("--endpoint-name", "x", "--message-bytes", "4", "--lines"), "--message-bytes makes binary messages"),
        (("--endpoint-name", "x", "--message-bytes", "4", "--data-type", "UTF8"), "--message-bytes makes binary"),
        (("--endpoint-name", "x", "--data-type", "TEXT"), "'TEXT' is not one of"),
        (("--endpoint-name", "x", "--model-invocation-path", "/x"), "ModelInvocationPath"),
        (("--endpoint-name", "x", "--query", "missing("), "--query"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["converse", "--region", "us-east-1", *arguments]) == 252
    output = capsys.readouterr()
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert problem in output.err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["converse", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--model-query-string", "--lines", "--message-bytes", "--data-type", "--http2-endpoint-url"):
        assert option in text
    assert "one that contains line feeds takes several lines" in " ".join(text.split())
