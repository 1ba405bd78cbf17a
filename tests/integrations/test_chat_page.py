"""The chat of examples/chat.py, with and without a browser."""

import json
import re
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aiosmrt.local import LocalRuntime, faults
from tests.integrations.browser import Page, browsing, installed_chromium
from tests.integrations.models import GatedModel
from tests.integrations.serving import request
from tests.support.command_line import environment, started
from tests.support.openai_models import speaker
from tests.support.runtime import RawConnection, local_runtime

CHAT = Path(__file__).parents[2] / "examples" / "chat.py"
CHAT_OPENAI = CHAT.with_name("chat_openai.py")


def token(text: str) -> bytes:
    return json.dumps({"token": {"text": text}}).encode() + b"\n"


@pytest.fixture
def chromium() -> str:
    return installed_chromium()


@asynccontextmanager
async def chatting(folder: Path, example: Path = CHAT, **variables: str) -> AsyncIterator[str]:
    """Run the example on a free port, and return its URL."""
    env = environment(folder, **variables)
    async with started(sys.executable, "-W", "error", str(example), "0", env=env) as process:
        assert process.stderr is not None
        said = ""
        while (found := re.search(r"running on (http://[\d.:]+)", said)) is None:
            line = (await process.stderr.readline()).decode()
            assert line, f"the example ended at once:\n{said}"
            said += line
        yield found[1]
        process.terminate()
        _, rest = await process.communicate()
        assert b"Application shutdown complete" in rest
        assert b"Traceback" not in rest


def last_answer_is(text: str, css_class: str = "answer") -> str:
    last = "[...document.querySelectorAll('.answer')].at(-1)"
    return f"{last}?.textContent === {json.dumps(text)} && {last}.className === {json.dumps(css_class)}"


async def test_words_appear_one_by_one_and_closing_the_page_ends_the_stream(chromium: str, tmp_path: Path) -> None:
    profile = tmp_path / "profile"
    profile.mkdir()
    model = GatedModel()
    async with (
        local_runtime({"llm": model.speak}) as runtime,
        chatting(tmp_path, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url) as url,
        browsing(chromium, profile) as browser,
    ):
        page = await browser.open(url, width=640, height=300)
        await page.type("input", "I cannot stop watching my endpoint.")
        answer = "Why do you say that you cannot stop watching your endpoint?"
        await appears_word_by_word(page, model, answer)
        model.say(end=True)
        (record,) = await runtime.wait_for_requests(1)
        assert (record.outcome, record.parts) == ("answered", len(answer.split()))

        await page.type("input", "My dashboards need me.")
        await appears_word_by_word(page, model, "Why do you say that your dashboards")
        (tmp_path / "chat.png").write_bytes(image := await page.screenshot())
        assert image.startswith(b"\x89PNG")
        assert struct.unpack(">II", image[16:24]) == (640, 300)
        model.say(end=True)

        await errors_are_shown(page, model, runtime)

        await page.type("input", "Goodbye.")
        await appears_word_by_word(page, model, "Why do")
        runtime.clear_requests()
        await page.close()
        (record,) = await runtime.wait_for_requests(1)
        assert (record.outcome, record.parts) == ("disconnected", 2)
        assert runtime.statistics()["in_flight"] == 0


async def appears_word_by_word(page: Page, model: GatedModel, answer: str) -> None:
    """Each word is visible before the model sends the next one."""
    await page.until(last_answer_is(""))
    shown = ""
    for word in answer.split():
        model.say(token(f"{word} "))
        shown += f"{word} "
        await page.until(last_answer_is(shown))


async def errors_are_shown(page: Page, model: GatedModel, runtime: LocalRuntime) -> None:
    runtime.inject("llm", faults.ModelFailure(500, "secret"))
    await page.type("input", "What if it fails?")
    await page.until(last_answer_is(" (ModelError)", "answer failed"))
    runtime.clear_faults()

    runtime.inject("llm", faults.StreamFailure(after_parts=1))
    model.say(token("Well, "))
    await page.type("input", "And in the middle?")
    await page.until(last_answer_is("Well,  (ModelStreamError)", "answer failed"))
    runtime.clear_faults()


@pytest.mark.parametrize("example", [CHAT, CHAT_OPENAI], ids=["chat", "openai"])
async def test_example_includes_a_model(tmp_path: Path, example: Path) -> None:
    async with chatting(tmp_path, example) as url:
        async with RawConnection.to(url) as connection:
            answer = await connection.exchange(request("/answer", b'{"text": "My cat ignores me!"}'))
        assert answer.status == 200
        data = re.findall(rb"data: (.*)\n\n", answer.body)
        text = "".join(json.loads(line)["token"]["text"] for line in data)
        assert text == "Why do you say that your cat ignores you? "
        async with RawConnection.to(url) as connection:
            await connection.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
            page = await connection.answer()
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        # The page loads nothing from other servers.
        assert re.findall(rb"https?:", page.body) == []


async def test_openai_example_shows_the_kind_of_an_error(tmp_path: Path) -> None:
    async with (
        local_runtime({"llm": speaker}) as runtime,
        chatting(tmp_path, CHAT_OPENAI, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url) as url,
    ):
        runtime.inject(
            "llm", faults.Fault(faults.StreamFailure(after_parts=1, message="secret"), faults.Schedule(next=1))
        )
        async with RawConnection.to(url) as connection:
            answer = await connection.exchange(request("/answer", b'{"text": "To be?"}'))
        first, failed = answer.body.split(b"\n\n")[:2]
        assert json.loads(first.removeprefix(b"data: ")) == {"token": {"text": "To "}}
        assert failed == b'event: error\ndata: {"type": "APIError"}'
