"""The page of examples/voice.py: a browser's WebSocket, and bidirectional streams behind it."""

from __future__ import annotations

import importlib.util
import json
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK

from aiosmrt.local import Invocation, faults
from tests.integrations.browser import browsing, installed_chromium
from tests.integrations.test_chat_page import chatting
from tests.support.runtime import local_runtime

VOICE = Path(__file__).parents[2] / "examples" / "voice.py"
SOUND, SILENCE = array("h", [8000] * 320).tobytes(), bytes(640)


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("voice", VOICE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_audio_goes_in_while_texts_come_out(tmp_path: Path) -> None:
    async with chatting(tmp_path, VOICE) as url:
        async with connect(url.replace("http", "ws") + "/speech") as socket:
            for _ in range(9):
                await socket.send(SOUND)
            await socket.send(SOUND)
            assert json.loads(await socket.recv()) == {"partial": "the"}
            for _ in range(10):
                await socket.send(SOUND)
            assert json.loads(await socket.recv()) == {"partial": "the quick"}
            for _ in range(15):
                await socket.send(SILENCE)
            assert json.loads(await socket.recv()) == {"final": "the quick"}
            for _ in range(10):
                await socket.send(SOUND)
            await socket.send("")
            assert [json.loads(text) async for text in socket] == [{"partial": "brown"}, {"final": "brown"}]
            with pytest.raises(ConnectionClosedOK):
                await socket.recv()
        async with connect(url.replace("http", "ws") + "/echo") as socket:
            for text in ("one", "zwölf"):
                await socket.send(text)
                assert json.loads(await socket.recv()) == text


async def test_the_page_speaks_hears_and_shows_how_it_ends(tmp_path: Path) -> None:
    chromium = installed_chromium()
    profile = tmp_path / "profile"
    profile.mkdir()
    voice = example()
    queries: list[str | None] = []

    async def speech(invocation: Invocation) -> AsyncIterator[str]:
        queries.append(invocation.model_query)
        async for text in voice.speech(invocation):
            yield text

    models: dict[str, Any] = {"echo": voice.echo, "speech": speech}
    async with (
        local_runtime(models, http2_port=0) as runtime,
        chatting(tmp_path, VOICE, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME_HTTP2=runtime.http2_url) as url,
        browsing(chromium, profile) as browser,
    ):
        page = await browser.open(url, width=640, height=600)
        await page.type("input", "Can you hear me?")
        await page.until(lines("#echo", "repeated: Can you hear me?"))
        await page.type("input", "Yes.")
        await page.until(lines("#echo", "repeated: Can you hear me?", "repeated: Yes."))

        await page.evaluate("document.querySelector('#sample').click()")
        await page.until(lines("#speech", "final: the quick brown", "final: fox jumps", "ended: "))
        assert queries == ["sample_rate=16000"]
        (record,) = await runtime.wait_for_requests(1)
        # five partial texts, two final ones; 65 frames and the end
        assert (record.endpoint, record.outcome, record.parts) == ("speech", "answered", 7)

        runtime.clear_requests()
        runtime.inject("speech", faults.StreamFailure(after_parts=1, message="secret"))
        await page.load(url)
        await page.evaluate("document.querySelector('#sample').click()")
        # its kind, and not its text
        await page.until(lines("#speech", "partial: the", "failed: ModelStreamError"))
        runtime.clear_faults()

        # The browser's fake device beeps once a second.
        await page.load(url)
        await page.evaluate("document.querySelector('#microphone').click()")
        await page.until("document.querySelector('#speech .partial, #speech .final') !== null")

        # Loading the page again has ended the echo's stream; closing it ends the microphone's.
        await page.close()
        records = await runtime.wait_for_requests(3)
        assert [(record.endpoint, record.outcome) for record in records] == [
            ("echo", "disconnected"),
            ("speech", "cut"),
            ("speech", "disconnected"),
        ]
        assert runtime.statistics()["in_flight"] == 0


def lines(where: str, *expected: str) -> str:
    """Whether a part of the page has these paragraphs, each with its class."""
    shown = f"[...document.querySelectorAll('{where} p')].map(p => `${{p.className}}: ${{p.textContent}}`)"
    return f"JSON.stringify({shown}) === {json.dumps(json.dumps(expected, ensure_ascii=False, separators=(',', ':')))}"
