"""`serve` as a process."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from aiosmrt.cli import main
from aiosmrt.client import Client
from aiosmrt.local import ModelContainer
from tests.support.command_line import PROGRAM, environment, started
from tests.support.peers import CLIENT_ARGUMENTS

CONTAINER = Path(__file__).parent.parent / "local" / "container_program.py"
COMMAND = [sys.executable, "-I", str(CONTAINER)]


async def invoke(url: str, endpoint: str) -> bytes:
    async with Client(endpoint_url=url, **CLIENT_ARGUMENTS) as client:
        response = await client.invoke_endpoint(EndpointName=endpoint, Body=b"body")
        return await response["Body"].read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_prints_its_url_and_stops_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    async with ModelContainer(COMMAND) as container:
        command = ("serve", "--port", "0", "--endpoint", f"model={container.url}")
        async with started(*PROGRAM, *command, env=environment(tmp_path)) as process:
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+\n", line)
            assert await invoke(line.strip(), "model") == b"body"
            process.send_signal(number)
            stdout, stderr = await process.communicate()
        assert (process.returncode, stdout, stderr) == (0, b"", b"")
        assert container.running


async def test_a_python_function_serves_an_endpoint(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(
        "async def to_upper(invocation):\n    return invocation.body.upper()\n"
        "async def twice(invocation):\n    return invocation.body * 2\n"
        "class Model:\n    async def predict(self, invocation):\n        return invocation.body[::-1]\n"
        "model = Model()\n"
    )
    handlers = ("models:to_upper", "double=models:twice", "models:model.predict")
    command = ("serve", *(part for handler in handlers for part in ("--handler", handler)))
    async with started(*PROGRAM, *command, env=environment(tmp_path), cwd=tmp_path) as process:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        assert [await invoke(url, name) for name in ("to-upper", "double", "predict")] == [
            b"BODY",
            b"bodybody",
            b"ydob",
        ]
        process.terminate()
        _, stderr = await process.communicate()
    assert (process.returncode, stderr) == (0, b"")


async def test_a_second_port_carries_bidirectional_streams(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(
        "async def echo(invocation):\n    async for message in invocation.messages:\n        yield message\n"
    )
    command = ("serve", "--handler", "models:echo", "--http2-port", "0")
    async with started(*PROGRAM, *command, env=environment(tmp_path), cwd=tmp_path) as process:
        assert process.stdout is not None
        lines = [(await process.stdout.readline()).decode().strip() for _ in range(2)]
        assert lines[0] != lines[1]
        async with (
            Client(http2_endpoint_url=lines[1], **CLIENT_ARGUMENTS) as client,
            client.invoke_endpoint_with_bidirectional_stream(EndpointName="echo") as stream,
        ):
            await stream.send("x")
            assert (await anext(stream))["PayloadPart"]["Bytes"] == b"x"
        process.terminate()
        _, stderr = await process.communicate()
    assert (process.returncode, stderr) == (0, b"")


async def test_options_extend_the_file(tmp_path: Path) -> None:
    (tmp_path / "runtime.toml").write_text(f"[endpoints.started]\ncontainer = {{ command = {COMMAND!r} }}\n")
    async with ModelContainer(COMMAND) as container:
        command = ("serve", "--endpoint", f"running={container.url}", "runtime.toml")
        async with started(*PROGRAM, *command, env=environment(tmp_path), cwd=tmp_path) as process:
            assert process.stdout is not None
            url = (await process.stdout.readline()).decode().strip()
            assert [await invoke(url, name) for name in ("started", "running")] == [b"body", b"body"]
            process.terminate()
            _, stderr = await process.communicate()
        assert (process.returncode, stderr) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "problem"),
    [
        ((), {}, 253, "no endpoint to serve"),
        (("--endpoint", "m=http://127.0.0.1:1"), {"AWS_ACCESS_KEY_ID": ""}, 253, "AWS_ACCESS_KEY_ID"),
        (("missing.toml",), {}, 252, "missing.toml"),
        (("--handler", "json"), {}, 252, 'must have the form "module:function"; got'),
        (("--handler", "json:missing"), {}, 252, "cannot be imported"),
        (("--handler", "no_such_module:f"), {}, 252, "cannot be imported"),
        (("--handler", "m=json:loads", "--handler", "m=json:dumps"), {}, 252, "endpoint 'm' is given twice"),
        (("--handler", "m=json:loads", "--endpoint", "m=http://127.0.0.1:1"), {}, 252, "endpoint 'm' is given twice"),
    ],
)
def test_missing_settings_are_reported(
    arguments: tuple[str, ...],
    variables: dict[str, str],
    code: int,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in environment(tmp_path, **variables).items():
        monkeypatch.setenv(name, value)
    assert main(["serve", *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert problem in printed.err
    assert printed.err.count("\n") == 1
