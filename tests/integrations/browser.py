"""A headless Chromium, driven over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.command_line import environment, started

NAMES = ("chromium", "chromium-browser", "google-chrome")


def installed_chromium() -> str:
    """The path of a browser. Without one, skip, or fail if the whole suite is required."""
    for name in NAMES:
        if (found := shutil.which(name)) is not None:
            return found
    reason = "Chromium is not installed: .ci/browser does that on Debian"
    if os.environ.get("AIOSMRT_REQUIRE_CONFORMANCE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


# A new profile, no window, no calls home; the sandbox does not work for root.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
    # a microphone that beeps, and that no one has to allow
    *(
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        "--autoplay-policy=no-user-gesture-required",
    ),
)

# Seconds for any command, on a busy machine.
PATIENCE = 30.0

# Resolves when an expression is true, evaluated now and after each change of the document.
_WHEN_TRUE = """new Promise(resolve => {
  const look = () => { if (%s) { observer.disconnect(); resolve(true) } };
  const observer = new MutationObserver(look);
  observer.observe(document, {subtree: true, childList: true, characterData: true, attributes: true});
  look();
})"""


class Browser:
    """A running browser.

    Args:
        socket: the connection to its DevTools.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        # Responses by the number of their command, events by name and session.
        self._expected: dict[Any, asyncio.Future[dict[str, Any]]] = {}
        # All events of the sessions that are listened to, with their names.
        self.heard: dict[str, list[tuple[str, dict[str, Any]]]] = {}

    async def read(self) -> None:
        """Deliver the browser's messages until it exits."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "method" in said and said.get("sessionId") in self.heard:
                self.heard[said["sessionId"]].append((said["method"], said["params"]))
            waiting = self._expected.pop(said.get("id") or (said["method"], said.get("sessionId")), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(said)

    def expect(self, key: Any) -> asyncio.Future[dict[str, Any]]:
        """Wait for the response to a command, or for the next event of a session."""
        self._expected[key] = asyncio.get_running_loop().create_future()
        return self._expected[key]

    async def command(self, method: str, *, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        number = next(self._numbers)
        answered = self.expect(number)
        to = {} if session is None else {"sessionId": session}
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": params, **to}))
        async with asyncio.timeout(PATIENCE):
            answer = await answered
        assert "error" not in answer, f"{method}: {answer}"
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, url: str, *, width: int, height: int) -> Page:
        """Load a page in a new tab."""
        target = (await self.command("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.command("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = Page(self, target, session)
        await page.resize(width=width, height=height)
        await page.command("Page.enable")
        await page.load(url)
        return page


class Page:
    """A page in a tab."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        return await self._browser.command(method, session=self._session, **params)

    async def resize(self, *, width: int, height: int) -> None:
        """Set the size of the window, in CSS pixels."""
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def load(self, url: str) -> None:
        """Load another page in the tab."""
        loaded = self._browser.expect(("Page.loadEventFired", self._session))
        await self.command("Page.navigate", url=url)
        await loaded

    def listen(self) -> None:
        """Keep the events of this tab from now on; a domain of the protocol has to be enabled to send any."""
        self._browser.heard[self._session] = []

    @property
    def heard(self) -> list[tuple[str, dict[str, Any]]]:
        """The events since `listen`, with their names."""
        return self._browser.heard[self._session]

    async def evaluate(self, expression: str) -> Any:
        """Evaluate a JavaScript expression, and await a promise."""
        evaluated = await self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in evaluated, evaluated
        return evaluated["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a JavaScript expression over the document is true."""
        await self.evaluate(_WHEN_TRUE % condition)

    async def type(self, selector: str, text: str) -> None:
        """Type text and Enter into the first field that a CSS selector finds."""
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.command("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self.command("Input.dispatchKeyEvent", type=kind, key="Enter", windowsVirtualKeyCode=13, text="\r")

    async def screenshot(self) -> bytes:
        """Take a PNG screenshot of the visible part."""
        return base64.b64decode((await self.command("Page.captureScreenshot"))["data"])

    async def close(self) -> None:
        """Close the tab, as with Ctrl-W."""
        await self._browser.command("Target.closeTarget", targetId=self._target)


@asynccontextmanager
async def browsing(program: str, folder: Path) -> AsyncIterator[Browser]:
    """Run a browser.

    Args:
        program: its path.
        folder: an empty one, for its profile.
    """
    command = (program, *FLAGS, f"--user-data-dir={folder}", "about:blank")
    async with started(*command, env=environment(folder)) as process, aiohttp.ClientSession() as session:
        assert process.stderr is not None
        while not (line := (await process.stderr.readline()).decode()).startswith("DevTools listening on "):
            assert line, "the browser ended at once"
        # Further output must not fill the pipe.
        listening = asyncio.create_task(process.stderr.read())
        async with session.ws_connect(line.split()[-1]) as socket:
            browser = Browser(socket)
            reading = asyncio.create_task(browser.read())
            try:
                yield browser
            finally:
                await browser.command("Browser.close")
                await reading
                await process.wait()
                await listening
