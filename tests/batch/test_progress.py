"""How far a job is: what is shown, and the page that it writes."""

from __future__ import annotations

import asyncio
import gzip
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt import Client, LimiterStatistics, ParamValidationError
from aiosmrt.batch import ANY_ANSWER, Progress, score
from aiosmrt.batch.outputlog import OutputLog
from aiosmrt.batch.progress import Pace, progress_of
from aiosmrt.errors import BatchOutputError, BatchStoppedError
from aiosmrt.local import LocalRuntime, faults
from aiosmrt.serializers import JSON
from tests.support.scoring import Models, write_rows


def progress(**changes: Any) -> Progress:
    facts: dict[str, Any] = {
        "started": 0.0,
        "scored": 90,
        "failed": 10,
        "resumed": 0,
        "limiter": None,
        "ceiling": 8,
        "retries": 0,
        "fraction": None,
        "rows_read": 0,
        "rows_in_input": None,
        "limit": None,
    }
    return progress_of(Pace(0.0, 0), 10.0, **(facts | changes))


@pytest.mark.parametrize(
    ("changes", "rows", "is_estimate", "remaining"),
    [
        ({}, None, False, None),
        ({"fraction": 0.25, "rows_read": 120}, 480, True, 38.0),
        ({"fraction": 0.0}, None, False, None),
        ({"rows_in_input": 400, "fraction": 1.0, "rows_read": 400}, 400, False, 30.0),
        ({"rows_in_input": 400, "limit": 200}, 200, False, 10.0),
        ({"rows_in_input": 400, "limit": 1000}, 400, False, 30.0),
        ({"fraction": 0.25, "rows_read": 120, "limit": 300}, 300, True, 20.0),
        ({"limit": 300}, 300, True, 20.0),
        ({"rows_read": 300, "limit": 300}, 300, False, 20.0),
        # An estimate is not less than what is done.
        ({"fraction": 1.0, "rows_read": 50}, 100, True, 0.0),
    ],
)
def test_rows_in_all(changes: dict[str, Any], rows: int | None, is_estimate: bool, remaining: float | None) -> None:
    found = progress(**changes)
    assert (found.rows, found.is_estimate, found.remaining) == (rows, is_estimate, remaining)


@pytest.mark.parametrize(
    ("limiter", "waiting_for", "waiting"),
    [
        (LimiterStatistics(8, 0, 8), None, 0),
        # Calls in line while all slots are in use are no sign of trouble.
        (LimiterStatistics(8, 3, 8), None, 3),
        (LimiterStatistics(4, 4, 4), "throttling", 4),
        (LimiterStatistics(4, 0, 4), None, 0),
        (LimiterStatistics(1, 2, 8, held_back=5, illness="outage"), "outage", 7),
        (LimiterStatistics(0, 0, 8, held_back=8, illness="capacity"), "capacity", 8),
        # An adaptive limit is below its ceiling in the best of times.
        (LimiterStatistics(4, 4, 4, reason="growth"), None, 4),
        (LimiterStatistics(4, 4, 4, reason="refusal"), "throttling", 4),
    ],
)
def test_what_calls_wait_for(limiter: LimiterStatistics, waiting_for: str | None, waiting: int) -> None:
    found = progress(limiter=limiter)
    assert (found.waiting_for, found.waiting) == (waiting_for, waiting)
    assert (found.in_flight, found.max_in_flight) == (limiter.in_use, limiter.max_concurrency)


@given(st.lists(st.floats(0.01, 60), min_size=1, max_size=100), st.floats(0, 1000))
def test_a_steady_pace_is_seen_whenever_one_looks(gaps: list[float], rate: float) -> None:
    pace, now = Pace(5.0, 100), 5.0
    for gap in gaps:
        now += gap
        assert pace.at(now, round(100 + rate * (now - 5.0))) == pytest.approx(rate, abs=1 / gap + 1e-6)


def test_an_old_pace_is_forgotten() -> None:
    pace = Pace(0.0, 0)
    for second in range(1, 101):
        pace.at(float(second), 1000 * second)
    for second in range(101, 139):
        pace.at(float(second), 100_000)
    assert pace.at(139.0, 100_000) == 0.0


async def test_progress_names_rows_waiting_and_the_reason(
    client: Client, runtime: LocalRuntime, models: Models, tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", 100)
    runtime.inject("double", faults.ResetBeforeHeaders().next(12))
    seen: list[Progress] = []
    endpoint = client.endpoint("double", serializer=JSON, deserializer=ANY_ANSWER)
    await score(
        endpoint, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", on_progress=seen.append, progress_interval=0.01
    )
    assert any(progress.waiting_for == "outage" and progress.waiting > 0 for progress in seen)
    last = seen[-1]
    assert (last.scored, last.rows, last.is_estimate, last.remaining) == (100, 100, False, 0.0)
    assert last.retries > 0


def gzipped(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


def in_zstd(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.zst")
    packed.write_bytes(pyarrow.compress(path.read_bytes(), codec="zstd", asbytes=True))
    return packed


def in_csv(path: Path) -> Path:
    table = path.with_suffix(".csv")
    table.write_text("n\n" + "".join(f"{number}\n" for number in range(2000)))
    return table


def in_parquet(path: Path) -> Path:
    table = path.with_suffix(".parquet")
    pyarrow.parquet.write_table(pyarrow.table({"n": range(2000)}), table)
    return table


@pytest.mark.parametrize(
    ("made", "is_estimate"), [(Path, True), (gzipped, True), (in_zstd, True), (in_csv, True), (in_parquet, False)]
)
async def test_rows_of_a_small_file_are_estimated_by_those_that_were_taken_from_it(
    client: Client, models: Models, tmp_path: Path, made: Callable[[Path], Path], is_estimate: bool
) -> None:
    """All of it fits into the buffers of its reader."""
    rows = made(write_rows(tmp_path / "rows.jsonl", 2000))
    stop = asyncio.Event()
    seen: list[Progress] = []

    async def hold(body: bytes) -> None:
        stop.set()
        await asyncio.sleep(3600)

    models.before = hold
    endpoint = client.endpoint("double", serializer=JSON, deserializer=ANY_ANSWER)
    out = tmp_path / "out.jsonl"
    await score(endpoint, rows, out, stop=stop, drain=0.0, on_progress=seen.append)
    assert seen[-1].rows == pytest.approx(2000, rel=0.3)
    assert seen[-1].is_estimate is is_estimate


async def test_progress_is_of_one_moment_also_while_a_thread_writes(
    client: Client, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", 40), tmp_path / "out.jsonl"
    endpoint = client.endpoint("double", serializer=JSON, deserializer=ANY_ANSWER)
    models.refused = {f'{{"n": {number}}}'.encode() for number in range(30)}
    await score(endpoint, rows, out)
    models.refused = {b'{"n": 7}', b'{"n": 20}'}
    seen: list[Progress] = []
    told = threading.Condition()
    append = OutputLog.append

    def see(progress: Progress) -> None:
        with told:
            seen.append(progress)
            told.notify_all()

    def append_and_wait(log: OutputLog, *records: Mapping[int, bytes]) -> None:
        append(log, *records)
        with told:
            before = len(seen)
            told.wait_for(lambda: len(seen) >= before + 2)

    monkeypatch.setattr(OutputLog, "append", append_and_wait)
    await score(endpoint, rows, out, retry_failed=True, on_progress=see, progress_interval=0.001)
    done = [(progress.scored, progress.failed) for progress in seen]
    assert (done[0], done[-1]) == ((10, 0), (38, 2))
    assert len(done) > 4
    # Neither fewer failures than there were before, nor rows that are counted twice or not at all.
    assert done == sorted(done)
    assert all(failed >= 0 and scored + failed <= 40 for scored, failed in done)


async def test_rows_that_are_scored_again_are_not_done_yet(
    client: Client, runtime: LocalRuntime, models: Models, tmp_path: Path
) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl", 40), tmp_path / "out.jsonl"
    endpoint = client.endpoint("double", serializer=JSON, deserializer=ANY_ANSWER)
    models.refused = {f'{{"n": {number}}}'.encode() for number in range(30)}
    await score(endpoint, rows, out)
    models.refused = {b'{"n": 7}', b'{"n": 20}'}
    seen: list[Progress] = []
    report = await score(endpoint, rows, out, retry_failed=True, limit=12, on_progress=seen.append)
    # Failures behind the limit stay as they are.
    assert (seen[0].scored, seen[0].failed, seen[0].resumed) == (10, 18, 28)
    assert (seen[-1].scored, seen[-1].failed) == (21, 19)
    assert (report.rows, report.scored, report.failed, report.resumed) == (40, 21, 19, 28)
    report = await score(endpoint, rows, out, retry_failed=True, on_progress=seen.append)
    assert (report.rows, report.scored, report.failed, report.resumed) == (40, 38, 2, 21)
    assert report.rows_per_second > 0
    stop = asyncio.Event()
    stop.set()
    report = await score(endpoint, rows, out, retry_failed=True, stop=stop)
    assert (report.rows, report.failed, report.resumed, report.finished) == (38, 0, 38, False)


async def test_a_page_is_written(client: Client, runtime: LocalRuntime, models: Models, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 60)
    models.refused = {b'{"n": 7}'}
    runtime.inject("double", faults.throttling().next(5))
    endpoint = client.endpoint("double", serializer=JSON, deserializer=ANY_ANSWER)
    page = tmp_path / "page.html"
    report = await score(endpoint, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", report_page=page)
    assert (report.scored, report.failed) == (59, 1)
    text = page.read_text()
    for expected in ("Batch job on double", "60 rows done, 1 of them failed", "ModelError", "ThrottlingException"):
        assert expected in text
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


async def test_a_page_replaces_a_page_and_nothing_else(client: Client, models: Models, tmp_path: Path) -> None:
    rows, page, link = write_rows(tmp_path / "rows.jsonl", 5), tmp_path / "page.html", tmp_path / "latest.html"
    link.symlink_to(page)
    endpoint = client.endpoint("double", serializer=JSON, deserializer=ANY_ANSWER)
    page.touch()
    for number, name in enumerate((page, page, link)):
        await score(endpoint, rows, tmp_path / f"{number}.jsonl", report_page=name)
        assert f"{number}.jsonl: 5 rows done" in page.read_text()
    assert link.is_symlink()

    async def put(body: bytes) -> None:
        page.write_text("mine")

    models.before = put
    with pytest.raises(BatchOutputError, match=r"page\.html is not a report page"):
        await score(endpoint, rows, tmp_path / "out.jsonl", report_page=page)
    assert page.read_text() == "mine"
    models.seen.clear()
    with pytest.raises(ParamValidationError, match=r"latest\.html is not a report page"):
        await score(endpoint, rows, tmp_path / "other.jsonl", report_page=link)
    assert (page.read_text(), models.seen.total()) == ("mine", 0)


async def test_a_page_of_an_output_whose_name_is_no_text(client: Client, tmp_path: Path) -> None:
    endpoint, page = client.endpoint("double", serializer=JSON, deserializer=ANY_ANSWER), tmp_path / "page.html"
    out = tmp_path / os.fsdecode(b"out-\xff.jsonl")
    await score(endpoint, write_rows(tmp_path / "rows.jsonl", 1), out, report_page=page)
    assert "out-\\udcff.jsonl: 1 rows done" in page.read_text()


async def test_a_page_says_why_the_job_stopped(client: Client, models: Models, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 60)
    endpoint = client.endpoint("missing", serializer=JSON, deserializer=ANY_ANSWER)
    with pytest.raises(BatchStoppedError):
        await score(endpoint, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", report_page=tmp_path / "page.html")
    assert "not found" in (tmp_path / "page.html").read_text()


async def test_a_cancelled_job_writes_its_page(client: Client, models: Models, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 60)
    called = asyncio.Event()

    async def hold(body: bytes) -> None:
        called.set()
        await asyncio.sleep(3600)

    models.before = hold
    endpoint = client.endpoint("double", serializer=JSON, deserializer=ANY_ANSWER)
    job = asyncio.create_task(
        score(endpoint, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", report_page=tmp_path / "page.html")
    )
    await called.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert "CancelledError" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("page", ["none/page.html", "folder"])
async def test_a_page_that_cannot_be_written_costs_no_call(
    client: Client, models: Models, tmp_path: Path, page: str
) -> None:
    write_rows(tmp_path / "rows.jsonl", 3)
    (tmp_path / "folder").mkdir()
    endpoint = client.endpoint("double", serializer=JSON, deserializer=ANY_ANSWER)
    with pytest.raises(BatchOutputError, match="cannot write"):
        await score(endpoint, tmp_path / "rows.jsonl", tmp_path / "out.jsonl", report_page=tmp_path / page)
    assert models.seen.total() == 0
    assert not (tmp_path / "out.jsonl").exists()
