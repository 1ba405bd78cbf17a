"""The script that asks a live endpoint, here with the local runtime in its place."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated
from websockets.asyncio.server import serve

from aiosmrt._wire.eventstream import encode_exception, encode_payload_part
from aiosmrt.local import Credentials, LocalRuntime, faults
from tests.support.command_line import environment, started
from tests.support.http2_peer import Peer, http2_server
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.runtime import ACCEPTED, local_runtime

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


probe = script("probe_bidirectional")
container = script("bidirectional_container")


@asynccontextmanager
async def probed(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> AsyncIterator[LocalRuntime]:
    """A runtime with the script's container, in whose environment the script finds what it needs."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CLIENT_ARGUMENTS["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CLIENT_ARGUMENTS["aws_secret_access_key"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", CLIENT_ARGUMENTS["region_name"])
    # What is waited for comes, however slow the machine is.
    monkeypatch.setattr(probe, "SILENCE_SECONDS", 20.0)
    monkeypatch.setattr(probe, "LATE_SECONDS", 60.0)
    async with serve(
        container.answer, "127.0.0.1", 0, process_request=container.route, max_size=None, compression=None
    ) as server:
        url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        async with local_runtime(
            {"probe": url},
            http2_port=0,
            http2_max_streams=5,
            credentials=[ACCEPTED, Credentials("AKIDOTHER", "other-secret")],
            **arguments,
        ) as running:
            yield running


@pytest.fixture
async def runtime(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalRuntime]:
    async with probed(monkeypatch) as running:
        yield running


async def answers(runtime: LocalRuntime, folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the script in a thread, and return its exit status and the answers of its report."""
    report = folder / "answers.json"
    # Nothing happens in these times, so they may be short.
    times = ("--idle-minutes", "0.002", "--lifetime-minutes", "0.02", "--largest-bytes", "100000")
    command = ("--endpoint-name", "probe", "--http2-endpoint-url", runtime.http2_url, "--json", str(report))
    status = await asyncio.to_thread(probe.main, [*command, *times, *arguments])
    document = json.loads(report.read_text())
    assert document["url"] == runtime.http2_url
    return status, {answer["name"]: answer for answer in document["answers"]}


EXPECTED = {
    "head": "yes: HTTP 200 without any message",
    "marks": "text: a part of 1 bytes, UTF8 COMPLETE; binary: a part of 1 bytes, BINARY COMPLETE; three fragments: "
    "a part of 3 bytes, UTF8 PARTIAL, then a part of 3 bytes, UTF8 PARTIAL, then a part of 5 bytes, UTF8 PARTIAL, "
    "then a part of 0 bytes, UTF8 COMPLETE",
    "where": "None and None become /invocations-bidirectional-stream; probe/path and a=b%20c&d=e become "
    r"/probe/path\?a=b%20c&d=e",
    "settings": "5 streams; .*, MAX_CONCURRENT_STREAMS=5, .*",
    "streams": "5 of 5 were answered",
    "ping": r"after [\d.]+ ms",
    "half-close": "no: END_STREAM came after it",
    "end": "InputValidationError .*, then END_STREAM",
    "message-signature": "InputValidationError .*, then END_STREAM",
    "request-signature": "HTTP 403 InvalidSignatureException",
    "missing-endpoint": "HTTP 400 ValidationError .*not found.*",
    "refused": "HTTP 424 ModelError .*refused the WebSocket.*",
    "close": "1000: ModelStreamError .*1000.*; 1011: ModelStreamError .*1011.*; 4000: ModelStreamError .*4000.*",
    "size": "6250 bytes: came back; 100000 bytes: came back",
    "idle-stream": r"no, not in 0\.12 s; the next message was answered with a part of 1 bytes, UTF8 COMPLETE",
    "idle-connection": r"no, not in 0\.12 s",
    "lifetime": r"the stream has not ended in 1\.2 s: no limit was seen; another one of the same connection, "
    r"begun after [\d.]+ s, goes on",
    "goaway": "never, on 21 connections of the probes before",
}


async def test_every_question_is_answered_in_one_line(
    runtime: LocalRuntime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = await answers(runtime, tmp_path)
    assert status == 1
    assert {name for name, answer in found.items() if not answer["answered"]} == {"other-key"}
    assert set(found) == {*EXPECTED, "other-key"}
    for name, pattern in EXPECTED.items():
        assert re.fullmatch(pattern, found[name]["answer"]), (name, found[name]["answer"])
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if not line.startswith("the WebSocket was closed")]
    assert len(lines) == len(found)
    assert "other-key: not answered: it needs --other-profile" in printed.out
    assert CLIENT_ARGUMENTS["aws_secret_access_key"] not in printed.out + printed.err


async def test_the_stated_costs_are_those_of_the_probes(
    runtime: LocalRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, large = [], []
    call, write = probe.Wire.call, probe.Stream.write

    async def counted_call(wire: Any, **changes: Any) -> Any:
        streams.append(changes)
        return await call(wire, **changes)

    async def counted_write(stream: Any, frame: bytes) -> None:
        if len(frame) > 1000:
            large.append(len(frame))
        await write(stream, frame)

    monkeypatch.setattr(probe.Wire, "call", counted_call)
    monkeypatch.setattr(probe.Stream, "write", counted_write)
    _, found = await answers(runtime, tmp_path, "--max-streams", "5")
    chosen = [one for one in probe.PROBES if found[one.name]["answered"]]
    assert len(chosen) == len(probe.PROBES) - 1
    options = probe.parser().parse_args([])
    options.idle_seconds, options.lifetime_seconds = options.idle_minutes * 60, options.lifetime_minutes * 60
    options.max_streams = 5
    assert f"make up to {len(streams)} streams" in probe.cost_of(chosen, options)
    assert sum(large) == pytest.approx(sum(probe.message_sizes(100_000)), rel=0.01)

    options.max_streams = probe.parser().get_default("max_streams")
    costs = probe.cost_of(probe.PROBES, options)
    assert "up to 31 minutes, make up to 40 streams, and send about 18 MB" in costs
    assert "All probes take 31 minutes" in (probe.__doc__ or "")
    assert "up to 40 streams, and send about\n18 MB" in (probe.__doc__ or "")
    size = [one for one in probe.PROBES if one.name == "size"]
    assert "up to 3 minutes, make up to 2 streams, and send about 18 MB" in probe.cost_of(size, options)
    few = [one for one in probe.PROBES if one.name in ("ping", "close")]
    assert "up to 3 minutes, make up to 3 streams, and send about 0 MB" in probe.cost_of(few, options)


async def test_a_change_of_keys_is_tried_with_another_profile(
    runtime: LocalRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text(
        "[other]\naws_access_key_id = AKIDOTHER\naws_secret_access_key = other-secret\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    status, found = await answers(runtime, tmp_path, "--only", "other-key", "--other-profile", "other")
    assert (status, list(found)) == (0, ["other-key"])
    assert re.fullmatch("no: InputValidationError .*signature.*", found["other-key"]["answer"])


async def test_what_the_service_does_to_connections_is_told(runtime: LocalRuntime, tmp_path: Path) -> None:
    runtime.inject("probe", faults.GoAway(after_parts=1))
    status, found = await answers(runtime, tmp_path, "--only", "idle-connection", "--only", "goaway")
    assert status == 0
    assert re.fullmatch(r"idle-connection: GOAWAY NO_ERROR after [\d.]+ s, last stream \d+", found["goaway"]["answer"])


async def test_the_end_of_a_long_stream_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with probed(monkeypatch, http2_stream_seconds=0.05) as runtime:
        status, found = await answers(runtime, tmp_path, "--only", "lifetime", "--lifetime-minutes", "30")
    assert status == 0
    how = r"ended after [\d.]+ s: InternalStreamFailure .*limit of 0\.05 seconds.*, then END_STREAM"
    assert re.fullmatch(f"the stream {how}, before a second one was begun", found["lifetime"]["answer"]), found


@pytest.mark.parametrize("of_streams", [True, False], ids=["of streams", "of connections"])
async def test_what_the_limit_counts_for_is_told(
    of_streams: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "SECOND_AT", 1e-5)
    # The other stream ends within this time, or never.
    monkeypatch.setattr(probe, "TOGETHER_SECONDS", 0.0 if of_streams else 60.0)

    async def end(peer: Peer, first: int) -> None:
        second = await peer.request()
        for number in (first,) if of_streams else (first, second):
            peer.answer(number)
            peer.send(number, encode_exception("InternalStreamFailure", b"time is up"), end=True)

    async with asked(monkeypatch, end, "--only", "lifetime", "--lifetime-minutes", "30") as (_, status):
        assert status == 0
    (line,) = capsys.readouterr().out.splitlines()
    how = r"ended after [\d.]+ s: InternalStreamFailure time is up, then END_STREAM"
    other = "goes on: the limit counts for streams" if of_streams else how
    expected = rf"lifetime: the stream {how}; another one of the same connection, begun after [\d.]+ s, {other}"
    assert re.fullmatch(expected, line), line


async def test_a_service_that_cannot_be_reached_is_no_answer(
    runtime: LocalRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--endpoint-name", "probe", "--http2-endpoint-url", "http://127.0.0.1:1", "--only", "ping"]
    assert await asyncio.to_thread(probe.main, arguments) == 1
    assert "ping: not answered: ConnectionRefusedError" in capsys.readouterr().out


async def test_a_failure_nobody_expected_is_the_answer_of_one_probe(
    runtime: LocalRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(setup: Any) -> str:
        return os.environ["AIOSMRT_MISSING"]

    before, after = (one for one in probe.PROBES if one.name in ("head", "where"))
    monkeypatch.setattr(
        probe,
        "PROBES",
        [before, probe.Probe("short", "?", broken, False), probe.Probe("long", "?", broken, True), after],
    )
    status, found = await answers(runtime, tmp_path)
    assert status == 1
    assert [(name, answer["answered"]) for name, answer in found.items()] == [
        ("head", True),
        ("short", False),
        ("long", False),
        ("where", True),
    ]
    assert found["short"]["answer"] == found["long"]["answer"] == "KeyError: 'AIOSMRT_MISSING'"
    assert "in broken" in capsys.readouterr().err


@asynccontextmanager
async def asked(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[Peer, int], Awaitable[None] | None], *only: str
) -> AsyncIterator[tuple[Peer, int]]:
    """Run the script with a server that acts as the test says when it gets a request; yields its exit status too."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CLIENT_ARGUMENTS["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CLIENT_ARGUMENTS["aws_secret_access_key"])
    async with http2_server() as server:
        command = ["--endpoint-name", "probe", "--region", "eu-central-1", "--http2-endpoint-url", server.origin, *only]
        asking = asyncio.create_task(asyncio.to_thread(probe.main, command))
        peer = await server.peer()
        acting = act(peer, await peer.request())
        if acting is not None:
            await acting
        yield peer, await asking


async def test_a_service_that_violates_http2_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def data_of_no_stream(peer: Peer, number: int) -> None:
        peer.write_raw(b"\0\0\1\0\0\0\0\0\0x")

    async with asked(monkeypatch, data_of_no_stream, "--only", "head", "--only", "goaway") as (peer, status):
        assert status == 1
        assert (await peer.event(ConnectionTerminated)).error_code == ErrorCodes.PROTOCOL_ERROR
    head, notes = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"head: not answered: the service violated HTTP/2 \(.+\) came where the head should", head), (
        head
    )
    assert re.fullmatch(r"goaway: head: the service violated HTTP/2 \(.+\) after [\d.]+ s", notes), notes


async def test_a_malformed_message_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def half_good(peer: Peer, number: int) -> None:
        peer.answer(number)
        peer.send(number, encode_payload_part(b"x") + bytes(16))

    async with asked(monkeypatch, half_good, "--only", "idle-stream") as (_, status):
        assert status == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"idle-stream: yes, after [\d.]+ s: a malformed message \(.+\)", line)


async def test_an_interrupt_keeps_the_answers(runtime: LocalRuntime, tmp_path: Path) -> None:
    report = tmp_path / "answers.json"

    def written() -> list[tuple[str, bool, str]]:
        found = json.loads(report.read_text())["answers"]
        return [(answer["name"], answer["answered"], answer["answer"]) for answer in found]

    command = (sys.executable, "-W", "error", str(SCRIPTS / "probe_bidirectional.py"), "--json", str(report))
    target = ("--endpoint-name", "probe", "--http2-endpoint-url", runtime.http2_url)
    chosen = ("--only", "head", "--only", "idle-connection", "--idle-minutes", "60")
    async with started(*command, *target, *chosen, env=environment(tmp_path)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.readline() == b"head: yes: HTTP 200 without any message\n"
        assert written() == [("head", True, "yes: HTTP 200 without any message")]
        process.send_signal(signal.SIGINT)
        assert await process.stdout.read() == b"idle-connection: not answered: interrupted\n"
        assert await process.stderr.read() == b""
        assert await process.wait() == 130
    assert written()[1:] == [("idle-connection", False, "interrupted")]


QUOTING = (
    "The request signature we calculated does not match the signature you provided.\n\nThe Canonical String for this "
    "request should have been\n'POST\n/endpoints/probe\nx-amz-security-token:SESSION-TOKEN\n'"
)


async def test_an_error_that_quotes_the_request_is_cut_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbid(peer: Peer, number: int) -> None:
        peer.answer(number, 403, x_amzn_errortype="InvalidSignatureException:http://example")
        peer.send(number, json.dumps({"message": f"SESSION-TOKEN {QUOTING}"}).encode(), end=True)

    def refuse(peer: Peer, number: int) -> None:
        peer.answer(number, 400)
        peer.send(number, QUOTING.encode(), end=True)

    def fail(peer: Peer, number: int) -> None:
        peer.answer(number)
        peer.send(number, encode_exception("InputValidationError", QUOTING.encode()), end=True)

    for act in (forbid, refuse, fail):
        async with asked(monkeypatch, act, "--only", "message-signature") as (_, status):
            assert status == 1
    cut = "The request signature we calculated does not match the signature you provided."
    assert capsys.readouterr().out.splitlines() == [
        "message-signature: not answered: HTTP 403 InvalidSignatureException came where the container's answer should",
        f"message-signature: not answered: HTTP 400 {cut} came where the container's answer should",
        f"message-signature: not answered: InputValidationError {cut} came where the container's answer should",
    ]


def test_the_questions_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(EXPECTED) + 1
    assert {line.partition(": ")[0] for line in lines} == {*EXPECTED, "other-key"}
    assert all(line.endswith("?") for line in lines)


LOCAL = ["--endpoint-name", "x", "--region", "eu-central-1", "--http2-endpoint-url", "http://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--endpoint-name is required"),
        (["--endpoint-name", "x", "--only", "nothing"], "unknown probe 'nothing'"),
        (["--endpoint-name", "x", "--region", "eu-central-1"], "--yes"),
        (["--endpoint-name", "x"], "--region"),
        ([*LOCAL, "--json", "/no/such/folder/answers.json"], "--json: "),
    ],
)
def test_wrong_usage_asks_nothing(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-real-secret")
    with pytest.raises(SystemExit) as ended:
        probe.main(arguments)
    assert ended.value.code == 2
    assert text in capsys.readouterr().err
