"""The Python in README.md and docs/ runs as it stands, against a local SageMaker Runtime.

The blocks of a page run in order and share their names, like cells of a notebook: a block may await at its top level.
Before each block, ``client`` is a client of the runtime and ``runtime`` the runtime, without faults; a few modules are
imported, ``config`` is one of aiobotocore's, and ``bucket`` the name of a bucket in a real S3.

- A ``text`` block right behind a Python block is what that one prints (``...`` stands for anything).
- A block that makes an event loop (``asyncio.run`` and the like) runs as a script, in its own thread.
  One with a ``Scorer``, which blocks, runs in a thread too.
- A block with test functions runs under pytest, in its own process.

Links between pages lead somewhere, also those with the repository's address; the files that the design pages name
exist, architecture.md names every module in its room, and the tables of settings and events name all of them.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import dataclasses
import doctest
import inspect
import io
import json
import os
import re
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import aiobotocore.config
import aiobotocore.session
import aiohttp
import pytest

import aiosmrt
import aiosmrt.events
from aiosmrt.local import (
    AsyncInferenceConfig,
    ContainerFailure,
    EndpointConfiguration,
    Invocation,
    LocalRuntime,
    ObjectServer,
    ObjectStorage,
    ProductionVariant,
    faults,
)
from tests.support.openai_models import speaker
from tests.support.plugin import plugin_options

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DESIGN = sorted((ROOT / "docs" / "design").rglob("*.md"))
ALL_PAGES = [*PAGES, *DESIGN, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
REGION = "eu-central-1"

REPOSITORY = "https://github.com/aiosmrt/aiosmrt/"

_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
_FILE = re.compile(r"`([\w.]+/[\w./]*\.(?:py|json|md))`")
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MAKES_A_LOOP = re.compile(r"asyncio\.(run|Runner|new_event_loop)\(")
_CHECKER = doctest.OutputChecker()


class Block(NamedTuple):
    """A fenced Python block, the number of its first line, and the output that the page shows for it."""

    line: int
    code: str
    output: str | None


def blocks(page: str) -> Iterator[Block]:
    fences = list(_FENCE.finditer(page))
    for fence, following in zip(fences, [*fences[1:], None], strict=True):
        if fence[1] != "python":
            continue
        shown = None
        if following is not None and following[1] == "text" and not page[fence.end() : following.start()].strip():
            shown = following[2]
        yield Block(page.count("\n", 0, fence.start()) + 2, fence[2], shown)


async def churn(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
    """A score for each row: the share of its fields that are odd numbers."""
    try:
        rows = [[int(field) for field in row.split(b",")] for row in invocation.body.split()]
    except ValueError:
        raise ContainerFailure(400, "a field is not a number") from None
    scores = [sum(field % 2 for field in row) / len(row) for row in rows]
    return "\n".join(f"{score:.2f}" for score in scores).encode(), {"Content-Type": "text/csv"}


async def llm(invocation: Invocation) -> AsyncIterator[bytes]:
    """A line of JSON for each word, cut where no reader would cut."""
    lines = b"".join(json.dumps({"text": word}).encode() + b"\n" for word in ("To", " be", " or", " not"))
    for start in range(0, len(lines), 10):
        yield lines[start : start + 10]


async def chat(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
    """Count a session's requests; open sessions on request."""
    session = "s-1" if invocation.new_session else invocation.session_id
    headers = {"Content-Type": "application/json"}
    if invocation.new_session:
        headers["X-Amzn-SageMaker-New-Session-Id"] = f"{session}; Expires=2999-01-01T00:00:00Z"
        SAID.clear()
    SAID.append(invocation.body)
    return str(len(SAID)).encode(), headers


SAID: list[bytes] = []


async def documents(invocation: Invocation) -> tuple[bytes, dict[str, str]]:
    """Reads a document."""
    return json.dumps(json.loads(invocation.body) | {"read": True}).encode(), {"Content-Type": "application/json"}


@pytest.fixture
async def runtime(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, object_server: ObjectServer, bucket: str
) -> AsyncIterator[LocalRuntime]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    key = object_server.credentials
    queued = EndpointConfiguration(
        [ProductionVariant(documents)],
        async_inference=AsyncInferenceConfig(f"s3://{bucket}/out", f"s3://{bucket}/failed"),
    )
    async with LocalRuntime(
        {"churn": churn, "llm": llm, "chat": chat, "documents": queued, "qwen": speaker},
        credentials=key,
        region=REGION,
        drain_timeout=1.0,
        object_storage=ObjectStorage(endpoint_url=object_server.url, credentials=key, buckets=[bucket]),
    ) as running:
        for name, value in {
            "AWS_ACCESS_KEY_ID": key.access_key,
            "AWS_SECRET_ACCESS_KEY": key.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": running.url,
            "AWS_ENDPOINT_URL_S3": object_server.url,
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)
        # Where snippets write files.
        monkeypatch.chdir(tmp_path)
        yield running


async def run_under_pytest(code: str, folder: Path) -> None:
    (folder / "test_page.py").write_text(code)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"),
        *("-o", "asyncio_default_fixture_loop_scope=function", *plugin_options(), "test_page.py"),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    report, _ = await process.communicate()
    assert process.returncode == 0, report.decode()


async def run_block(block: Block, page: Path, names: dict[str, Any], folder: Path) -> str:
    """Run a block and give what it printed; what it raises points at its line of the page."""
    if re.search(r"^(async )?def test_", block.code, re.MULTILINE):
        await run_under_pytest(block.code, folder)
        return ""
    source = "\n" * (block.line - 1) + block.code
    code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if _MAKES_A_LOOP.search(block.code):
            await asyncio.to_thread(exec, code, {"__name__": "__main__"})
        elif "Scorer(" in block.code:
            await asyncio.to_thread(exec, code, names)
        else:
            pending = eval(code, names)
            if pending is not None:
                await pending
    return printed.getvalue()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
async def test_page(page: Path, runtime: LocalRuntime, bucket: str, tmp_path: Path) -> None:
    found = list(blocks(page.read_text()))
    assert found, "a page for users shows code"
    names: dict[str, Any] = {"asyncio": asyncio, "aiosmrt": aiosmrt, "json": json, "faults": faults}
    names |= {"aiobotocore": aiobotocore, "config": aiobotocore.config.AioConfig()}
    async with aiosmrt.Client() as client:
        for block in found:
            # A request that the block before gave up may still be unread, and would meet this block's faults.
            async with aiohttp.request("GET", runtime.url):
                pass
            runtime.clear_faults()
            runtime.clear_requests()
            names |= {"client": client, "runtime": runtime, "bucket": bucket}
            printed = await run_block(block, page, names, tmp_path)
            if block.output is not None:
                where = f"{page.name}, line {block.line}"
                printed = printed.rstrip("\n") + "\n"
                assert _CHECKER.check_output(block.output, printed, doctest.ELLIPSIS), f"{where} printed:\n{printed}"


def test_blocks_are_found_with_their_lines_and_outputs() -> None:
    page = (
        "# T\n\n```python\na = 1\n```\n\n```text\n1\n```\n\n```\nnone\n```\n```python\nb = 2\n```\nx\n```text\nx\n```\n"
    )
    assert list(blocks(page)) == [Block(4, "a = 1\n", "1\n"), Block(15, "b = 2\n", None)]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def linked(page: Path) -> Iterator[tuple[str, Path | None, str]]:
    """A page's links: the target, the file that it stands for if it is one of this repository, and the anchor."""
    for target, anchor in _LINK.findall(_FENCE.sub("", page.read_text())):
        if target.startswith(REPOSITORY):
            yield target, ROOT / target.removeprefix(REPOSITORY).partition("/main/")[2], anchor
        elif "://" not in target:
            yield target, page.parent / target if target else page, anchor
        else:
            yield target, None, anchor


@pytest.mark.parametrize("page", ALL_PAGES, ids=[str(page.relative_to(ROOT)) for page in ALL_PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target, path, anchor in linked(page):
        if path is not None:
            assert path.exists(), target
            assert not anchor or anchor in anchors(path.read_text()), f"{target}#{anchor}"


@pytest.mark.parametrize("name", ["README.md"])
def test_links_hold_on_a_package_index(name: str) -> None:
    relative = [target for target, _, _ in linked(ROOT / name) if "://" not in target]
    assert relative == []
    assert any(path for _, path, _ in linked(ROOT / name))


def test_links_of_the_project_lead_somewhere() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"].values()
    paths = [ROOT / found[1] for url in urls if (found := re.fullmatch(REPOSITORY + "(?:blob|tree)/main/(.+)", url))]
    assert paths
    assert [path for path in paths if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES[1:], ids=[str(page.relative_to(ROOT)) for page in PAGES[1:]])
def test_the_site_lists_the_page(page: Path) -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    toctrees = re.findall(r"^```{toctree}\n(?::[^\n]*\n)*\n(.*?)^```$", index, re.MULTILINE | re.DOTALL)
    listed = "".join(toctrees).split()
    assert page.stem == "index" or page.stem in listed, (
        f"add {page.stem} to a toctree in docs/index.md, so that the site has {page.name}"
    )


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_every_extra_is_named(page: str) -> None:
    text = (ROOT / page).read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [extra for extra in extras if f"`{extra}`" not in text and f"aiosmrt[{extra}]" not in text] == []


def test_figures_of_the_readme_are_those_of_the_benchmarks_page() -> None:
    def rows(page: str, section: str) -> dict[str, set[str]]:
        text = (ROOT / page).read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "µs" in line]
        return {name: set(figures) for name, *figures in cells if figures}

    short, long = rows("README.md", "Measured"), rows("docs/benchmarks.md", "Calls")
    assert short
    assert {name: figures - long[name] for name, figures in short.items()} == {name: set() for name in short}


def row_names(page: str, heading: str) -> set[str]:
    """The names in backquotes in the first column of the tables under a heading."""
    text = (ROOT / "docs" / page).read_text()
    section = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    cells = re.findall(r"^\| ([^|]*)\|", section[2], re.MULTILINE)
    return {name.rstrip("=") for cell in cells for name in re.findall(r"`(\w+=?)`", cell)}


def test_the_table_of_events_is_complete() -> None:
    kinds = {kind.__name__: kind for kind in get_args(aiosmrt.events.Event)}
    assert row_names("observability.md", "Observers") == set(kinds)
    common = ("operation", "endpoint_name", "invocation_id")
    for line in (ROOT / "docs" / "observability.md").read_text().splitlines():
        if (found := re.match(r"\| `(\w+)` \|", line)) and (kind := kinds.get(found[1])):
            fields = line.split("|")[3]
            assert [name for name in kind._fields if name not in common and f"`{name}`" not in fields] == [], line


def test_the_table_of_retry_settings_is_complete() -> None:
    fields = {field.name for field in dataclasses.fields(aiosmrt.RetryPolicy)}
    assert row_names("errors-and-retries.md", "The retry policy") & fields == fields


def test_the_table_of_time_limits_is_complete() -> None:
    limits = {
        name
        for name, parameter in inspect.signature(aiosmrt.Client).parameters.items()
        if "float" in str(parameter.annotation)
    }
    assert limits
    assert row_names("timeouts.md", "One call") == limits


@pytest.mark.parametrize("page", DESIGN, ids=[page.name for page in DESIGN])
def test_named_files_exist(page: Path) -> None:
    for name in _FILE.findall(page.read_text()):
        assert (ROOT / name).is_file() or (ROOT / "aiosmrt" / name).is_file(), name


def test_architecture_names_every_module_in_its_room() -> None:
    page = (ROOT / "docs" / "design" / "architecture.md").read_text()
    named: dict[str, set[str]] = {}
    room = ""
    for line in page.partition("## Modules")[2].partition("\n## ")[0].splitlines():
        if line.startswith("|"):
            _, first, rest = line.split("|", 2)
            room = first.strip().strip("`/") or room
            named.setdefault(room, set()).update(re.findall(r"`(\w+)/?`", rest))
    package = ROOT / "aiosmrt"
    for folder in [package, *(path.parent for path in package.glob("*/__init__.py"))]:
        inside = {*folder.glob("*.py"), *(path.parent for path in folder.glob("*/__init__.py") if folder != package)}
        names = {path.stem for path in inside if not path.stem.startswith("_")}
        assert names - named["public" if folder == package else folder.name] == set(), folder
