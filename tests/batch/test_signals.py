"""Ctrl-C where something hangs, and readers of the progress that pause."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from aiohttp import web

from aiosmrt.local import LocalRuntime
from tests.support.command_line import PROGRAM, environment, started, unless_ended
from tests.support.scoring import Models, doubled, lines_of, write_rows


@pytest.fixture
def full_pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Both ends of a pipe that takes nothing more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "wb", buffering=0) as write:
        try:
            while True:
                os.write(writer, b"\n" * 512)
        except BlockingIOError:
            os.set_blocking(writer, True)
        yield read, write


class HangingStore:
    """An S3 without objects, which does not answer requests to write one.

    Attributes:
        url: where it is.
        asked: set once a client waits.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        if request.method == "HEAD":
            return web.Response(status=404)
        self.asked.set()
        return await asyncio.get_running_loop().create_future()


@pytest.fixture
async def store() -> AsyncIterator[HangingStore]:
    store = HangingStore()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", store.answer)
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        store.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield store
    finally:
        await runner.cleanup()


def command(runtime: LocalRuntime, output: str, *more: str) -> tuple[str, ...]:
    address = ("--endpoint-url", runtime.url)
    return (*PROGRAM, "score", "rows.jsonl", "--endpoint-name", "double", "--output", output, *address, *more)


async def test_a_reader_that_pauses_holds_up_no_call(
    runtime: LocalRuntime, tmp_path: Path, full_pipe: tuple[BinaryIO, BinaryIO]
) -> None:
    write_rows(tmp_path / "rows.jsonl", 300)
    reader, writer = full_pipe
    score = command(runtime, "out.jsonl", "--json")
    async with started(*score, env=environment(tmp_path), cwd=tmp_path, stdout=writer.fileno()) as process:
        writer.close()
        out = tmp_path / "out.jsonl"
        while not out.exists() or out.read_bytes().count(b"\n") < 300:
            assert process.returncode is None
            await asyncio.sleep(0.01)
        assert process.returncode is None
        read = await asyncio.to_thread(reader.read)
        assert await process.wait() == 0
    assert lines_of(out) == doubled(300)
    first, *_, last = map(json.loads, filter(None, read.splitlines()))
    assert (first["scored"], last["scored"]) == (0, 300)


@pytest.mark.parametrize("what_hangs", ["output", "upload"])
async def test_a_second_signal_ends_the_command_whatever_hangs(
    runtime: LocalRuntime,
    models: Models,
    tmp_path: Path,
    full_pipe: tuple[BinaryIO, BinaryIO],
    store: HangingStore,
    what_hangs: str,
) -> None:
    write_rows(tmp_path / "rows.jsonl", 10)

    async def hang(body: bytes) -> None:
        store.asked.set()
        await asyncio.Event().wait()

    if what_hangs == "output":
        models.before, stdout = hang, full_pipe[1].fileno()
        score = command(runtime, "out.jsonl", "--json")
    else:
        score, stdout = command(runtime, "s3://bucket/out.jsonl"), asyncio.subprocess.PIPE
    env = environment(tmp_path, AWS_ENDPOINT_URL_S3=store.url)
    async with started(*score, env=env, cwd=tmp_path, stdout=stdout) as process:
        await unless_ended(process, store.asked.wait())
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert (await process.stderr.readline()).startswith(b"stopping: ")
        process.send_signal(signal.SIGINT)
        rest = await process.stderr.read()
        assert (await process.wait(), rest) == (130, b"")
