"""The demo: its model container alone, and the whole command as a process."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aiosmrt.cli.digits import PIXELS, ROWS_PER_CHUNK, TRAINING_ROWS, digits, parse_rows, trained_model
from aiosmrt.local import ModelContainer
from tests.support.command_line import PROGRAM, environment, run, started

ROW = [0.0] * PIXELS


@pytest.fixture
async def container() -> AsyncIterator[ModelContainer]:
    async with ModelContainer(
        [sys.executable, "-m", "aiosmrt.cli.digits"], environment={"PYTHONPATH": _root()}
    ) as model:
        yield model


def _root() -> str:
    return str(Path(sys.modules["aiosmrt"].__file__ or "").parent.parent)


def csv(rows: Any) -> bytes:
    return b"\n".join(b",".join(b"%g" % pixel for pixel in row) for row in rows)


def test_model_generalizes_to_unseen_rows() -> None:
    images, labels = digits()
    assert len(images) == len(labels) == 1797
    assert trained_model().score(images[TRAINING_ROWS:], labels[TRAINING_ROWS:]) > 0.95


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("text/csv", csv([ROW, ROW]) + b"\r\n\r\n"), ("application/json", json.dumps({"instances": [ROW, ROW]}).encode())],
)
def test_rows_are_parsed_from_csv_and_json(content_type: str, body: bytes) -> None:
    assert parse_rows(content_type, body) == [ROW, ROW]


@pytest.mark.parametrize(
    ("content_type", "body", "problem"),
    [
        ("text/plain", b"", "content type must be"),
        ("text/csv", b"", "at least one row"),
        ("text/csv", b"1,2,3", "64 pixels in each"),
        ("text/csv", b"secret", "rows of numbers"),
        ("text/csv", b"\xff", "rows of numbers"),
        ("application/json", b"{", "rows of numbers"),
        ("application/json", b"[]", "rows of numbers"),
        ("application/json", b'{"instances": [["secret"]]}', "rows of numbers"),
        ("application/json", b'{"instances": 7}', "rows of numbers"),
        ("application/json", b'{"instances": []}', "at least one row"),
    ],
)
def test_invalid_rows_are_rejected_without_quoting_them(content_type: str, body: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_rows(content_type, body)
    assert "secret" not in str(caught.value)


async def test_container_honours_the_accept_header(container: ModelContainer) -> None:
    images = digits()[0][: 3 * ROWS_PER_CHUNK]
    body, expected = csv(images), [int(label) for label in trained_model().predict(images)]
    async with aiohttp.ClientSession(container.url) as session:

        async def invoke(accept: str, data: bytes = body) -> aiohttp.ClientResponse:
            headers = {"Content-Type": "text/csv", "Accept": accept}
            response = await session.post("/invocations", data=data, headers=headers)
            await response.read()
            return response

        response = await invoke("application/json")
        assert (await response.json())["predictions"] == expected
        response = await invoke("text/csv")
        assert [int(line) for line in (await response.text()).splitlines()] == expected
        response = await invoke("application/jsonlines")
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert [json.loads(line)["label"] for line in (await response.text()).splitlines()] == expected
        response = await invoke("text/csv", b"1,2")
        assert (response.status, await response.text()) == (
            400,
            "invalid input: the body must have at least one row, and 64 pixels in each row",
        )


@pytest.fixture
async def report(tmp_path: Path) -> str:
    settings = {"AWS_PROFILE": "missing", "HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
    ended = await run(*PROGRAM, "demo", env=environment(tmp_path, COLUMNS="100", **settings), cwd=tmp_path)
    assert (ended.code, ended.stderr) == (0, b"")
    return ended.stdout.decode()


async def test_demo_classifies_every_digit_and_reports_the_accuracy(report: str) -> None:
    images, labels = digits()
    right = trained_model().predict(images) == labels
    cells = dict(re.findall(r"│ (.+?) +│ +(.+?) │", report))
    assert cells["rows"] == "1,797"
    assert cells["accuracy, all rows"] == f"{right.mean():.2%}"
    assert cells["accuracy, 899 unseen rows"] == f"{right[TRAINING_ROWS:].mean():.2%}"
    assert re.fullmatch(r"\d+ after throttling", cells["retries"])
    # Every 50th request is throttled, retries included.
    assert int(cells["retries"].split()[0]) == 1797 // 49
    assert int(cells["calls/s"].replace(",", "")) > 0
    assert re.fullmatch(r"[\d.]+ / [\d.]+ / [\d.]+ ms", cells["latency p50 / p95 / p99"])
    assert cells["streamed in one call"] == "1,797 rows"
    assert cells["asynchronous inference"] == "1,797 rows through S3"
    assert re.search(r"result after \d+ ms", report)


async def test_interrupt_stops_the_demo_and_its_container(tmp_path: Path) -> None:
    async with started(*PROGRAM, "demo", env=environment(tmp_path), cwd=tmp_path) as process:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        found = re.fullmatch(r"SageMaker Runtime on (\S+), model container on (\S+)\n", line)
        assert found is not None
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
    assert (process.returncode, stderr) == (130, b"")
    async with aiohttp.ClientSession() as session:
        for url in found.groups():
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(url)


@pytest.mark.parametrize("package", ["sklearn", "rich"])
async def test_a_missing_extra_is_named(tmp_path: Path, package: str) -> None:
    blocked = f"import sys; sys.modules['{package}'] = None; from aiosmrt.cli import main; sys.exit(main(['demo']))"
    ended = await run(sys.executable, "-c", blocked, env=environment(tmp_path), cwd=tmp_path)
    assert (ended.code, ended.stdout) == (253, b"")
    assert ended.stderr == f"aiosmrt: error: {package} is not installed; run: pip install 'aiosmrt[demo]'\n".encode()
