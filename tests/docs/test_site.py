"""The site as it is built: every public name is found, faults of pages fail the build, and each page fits a phone."""

from __future__ import annotations

import ast
import html
import importlib.util
import os
import re
import subprocess
import sys
import types
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import pytest
from aiohttp import web

from tests.integrations.browser import browsing, installed_chromium
from tests.typing.test_public_surface import ENGINES, PUBLIC_MODULES

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "docs" / "_site" / "build.py"

# One page of each layout: without and with contents at the right, of the API, of the search.
LAYOUTS = ["index.html", "timeouts.html", "benchmarks.html", "api/aiosmrt.client.html", "search.html"]

pytestmark = pytest.mark.timeout(600)


def run_build(*arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BUILD), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site() -> Path:
    """The site, built as `make docs` does."""
    done = run_build()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return ROOT / ".cache" / "site"


def inventory(site: Path) -> dict[str, str]:
    """The pages and anchors of Python names (the format is Sphinx's, version 2)."""
    head, _, rest = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert b"version 2" in head
    found = re.findall(r"^(\S+) py:\S+ -?\d+ (\S+) .*$", zlib.decompress(rest).decode(), re.MULTILINE)
    return {name: where.replace("$", name) for name, where in found}


def names_of(module: str) -> list[str]:
    """What a module offers, read from its source: engines need not be installed here."""
    source = ast.parse(Path(str(importlib.util.find_spec(module).origin)).read_text())  # type: ignore[union-attr]
    (assigned,) = (
        node.value
        for node in source.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    )
    return list(ast.literal_eval(assigned))


@pytest.mark.parametrize("module", [*PUBLIC_MODULES, *ENGINES])
def test_every_public_name_is_described(site: Path, module: str) -> None:
    known = inventory(site)
    names = [module, *(f"{module}.{name}" for name in names_of(module))]
    assert [name for name in names if name not in known] == []
    for name in names:
        page, _, anchor = known[name].partition("#")
        assert f'id="{anchor}"' in (site / page).read_text(), name


def test_a_class_is_described_with_its_methods_and_arguments(site: Path) -> None:
    page = (site / "api" / "aiosmrt.client.html").read_text()
    assert 'id="aiosmrt.client.Client.with_options"' in page
    text = re.sub(r"<[^>]+>", "", page)
    assert "seconds for a new connection, TLS included" in text
    assert "EndpointName: str," in text


def test_values_are_described_as_values(site: Path) -> None:
    pages = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    text = html.unescape(re.sub(r"<[^>]+>", "", pages)).replace("\u2019", "'")
    for kind in (int, str, tuple, types.UnionType, type(Annotated[int, ""])):
        assert (kind.__doc__ or "").strip().splitlines()[0] not in text
    assert "OFF_LOOP_BYTES = " in text
    assert "throttling(" in text


def test_faults_of_a_page_fail_the_build(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.md").write_text(
        "# T\n\n[file](missing.md)\n\n[anchor](#nowhere)\n\n![picture](none.png)\n\n```{toctree}\nlisted\ngone\n```\n"
    )
    (pages / "listed.md").write_text("# L\n\n[anchor](index.md#nowhere-either)\n")
    (pages / "forgotten.md").write_text("# F\n")
    (pages / "name.rst").write_text(":orphan:\n\nN\n=\n\n.. autoclass:: aiosmrt.NoSuchName\n")
    done = run_build(tmp_path / "site", pages)
    assert done.returncode == 1
    for fault in ("missing.md", "'nowhere'", "none.png", "nowhere-either", "gone", "forgotten.md", "NoSuchName"):
        assert any(fault in line for line in done.stderr.splitlines() if "WARNING" in line), (fault, done.stderr)


@pytest.fixture
def chromium() -> str:
    return installed_chromium()


async def no_icon(request: web.Request) -> web.Response:
    return web.Response(status=204)


@pytest.fixture
async def url(site: Path) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_get("/favicon.ico", no_icon)
    application.router.add_static("/", site)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


# What sticks out to the right of the window, and not of a frame that scrolls by itself.
TOO_WIDE = """[...document.querySelectorAll("article *")]
    .filter(one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .filter(one => { for (let e = one; e; e = e.parentElement)
        if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(e).overflowX) && e !== document.body
            && e.getBoundingClientRect().right <= document.documentElement.clientWidth + 1) return false;
        return true })
    .map(one => one.outerHTML.slice(0, 100))"""


async def test_pages_fit_a_phone_and_a_desk_and_need_no_network(
    site: Path, url: str, chromium: str, tmp_path: Path
) -> None:
    pages = sorted(str(page.relative_to(site)) for page in site.rglob("*.html"))
    assert set(LAYOUTS) <= set(pages)
    async with browsing(chromium, tmp_path) as browser:
        tab = await browser.open("about:blank", width=390, height=844)
        tab.listen()
        await tab.command("Network.enable")
        await tab.command("Log.enable")
        await tab.command("Runtime.enable")
        for width, height, some in ((390, 844, pages), (1440, 900, LAYOUTS)):
            await tab.resize(width=width, height=height)
            for page in some:
                await tab.load(f"{url}/{page}")
                fits = await tab.evaluate(
                    "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
                )
                assert fits, (page, width, await tab.evaluate(TOO_WIDE))
        await tab.load(f"{url}/search.html?q=wait_for_capacity")
        await tab.until("document.querySelectorAll('#search-results li a').length > 0")
        heard = tab.heard
    asked = {event["request"]["url"] for name, event in heard if name == "Network.requestWillBeSent"}
    assert f"{url}/searchindex.js" in {address.partition("?")[0] for address in asked}
    assert [address for address in asked if not address.startswith((f"{url}/", "data:"))] == []
    troubles = [
        event
        for name, event in heard
        if name == "Runtime.exceptionThrown"
        or (name == "Log.entryAdded" and event["entry"]["level"] == "error")
        or (name == "Runtime.consoleAPICalled" and event["type"] in ("error", "assert"))
    ]
    assert troubles == []
