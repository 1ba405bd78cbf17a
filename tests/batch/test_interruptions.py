"""Jobs that are killed, torn off, or run out of disk: nothing is lost, nothing is there twice."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt.batch import score
from aiosmrt.batch.outputlog import OutputLog
from aiosmrt.endpoint import Endpoint
from aiosmrt.errors import BatchOutputError
from aiosmrt.local import LocalRuntime
from aiosmrt.serializers import JSON
from tests.batch.kill_loop import KILLS_IN_FLIGHT, kill_until_done
from tests.support.command_line import PROGRAM, environment, started, unless_ended
from tests.support.scoring import Models, doubled, files_that_end_at, lines_of, write_rows
from tests.support.tracebacks import shown_locals

FILES = ("out.jsonl", "out.jsonl.errors.jsonl", "out.jsonl.journal")


@pytest.fixture
def endpoint(client: Client) -> Endpoint[Any, Any]:
    return client.endpoint("double", serializer=JSON, deserializer=JSON)


def scored_or_failed(folder: Path, count: int, refused: set[int]) -> None:
    """Every row is in exactly one of the files, and in input order."""
    assert lines_of(folder / "out.jsonl") == [line for line in doubled(count) if line["index"] not in refused]
    errors = folder / "out.jsonl.errors.jsonl"
    assert [line["index"] for line in (lines_of(errors) if errors.exists() else [])] == sorted(refused)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "kills"), [("jsonl", 10), ("csv", 4), ("parquet", 4)])
async def test_kills_lose_and_repeat_no_row(
    runtime: LocalRuntime, models: Models, tmp_path: Path, kind: str, kills: int
) -> None:
    """The log is the same for all kinds; what is made of it in the end differs."""
    outcome = await kill_until_done(runtime, models, tmp_path, kills=kills, seed=7, kind=kind)
    assert (outcome.lost, outcome.twice, outcome.kills) == (0, 0, kills)
    assert outcome.repeated <= outcome.kills * KILLS_IN_FLIGHT


def bytes_behind_announcements(journal: bytes) -> int:
    """How much of a journal a power failure may take: a first record is announced on the disk before it is written."""
    for behind in range(0, len(journal) - 20, 20):
        word, length = struct.unpack_from("<QI", journal, len(journal) - behind - 20)
        if word >> 62 == 3 and length == 2:
            return behind
    raise AssertionError("nothing is announced")


async def test_any_torn_end_is_mended(
    endpoint: Endpoint[Any, Any], models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut each file at random, as a kill between two writes or a power failure before the first sync may."""
    monkeypatch.setattr("aiosmrt.batch.job._SYNC_SECONDS", 3600.0)
    source = write_rows(tmp_path / "rows.jsonl", 40)
    models.refused = {f'{{"n": {number}}}'.encode() for number in (3, 20, 21)}
    stop = asyncio.Event()

    async def count(body: bytes) -> None:
        if models.seen.total() >= 25:
            stop.set()

    models.before = count
    begun = tmp_path / "begun"
    begun.mkdir()
    await score(endpoint, source, begun / "out.jsonl", stop=stop)
    models.before = None
    drawn = random.Random(3)
    # The mark of the sync at the end is the last entry: without it, no record is vouched for.
    journal = begun / "out.jsonl.journal"
    os.truncate(journal, journal.stat().st_size - 20)
    most = bytes_behind_announcements(journal.read_bytes())
    for number in range(40):
        folder = shutil.copytree(begun, tmp_path / str(number))
        for name in drawn.sample(FILES, drawn.randint(1, 3)):
            size = (folder / name).stat().st_size
            cut = drawn.randint(0, min(most, 60)) if name == FILES[2] else drawn.randint(0, size)
            os.truncate(folder / name, size - cut)
        models.seen.clear()
        report = await score(endpoint, source, folder / "out.jsonl")
        assert report.finished
        assert set(models.seen.values()) <= {1}
        scored_or_failed(folder, 40, {3, 20, 21})


@pytest.mark.parametrize("rows", [40, 50])
@pytest.mark.parametrize("after", range(6))
async def test_putting_in_order_may_be_interrupted_anywhere(
    endpoint: Endpoint[Any, Any], models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, rows: int
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", rows)
    limit = 40 if rows > 40 else None
    models.refused = {b'{"n": 3}', b'{"n": 20}'}

    async def backwards(body: bytes) -> None:
        await asyncio.sleep(0.002 * (8 - models.seen.total() % 8))

    models.before = backwards
    renames = 0
    rename = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames > after:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", interrupted)
        if after < 4:
            with pytest.raises(BatchOutputError, match="Input/output error"):
                await score(endpoint, source, tmp_path / "out.jsonl", limit=limit)
        else:
            await score(endpoint, source, tmp_path / "out.jsonl", limit=limit)
    # The output is whole at any moment; only its order may be open.
    whole = lines_of(tmp_path / "out.jsonl")
    assert sorted(whole, key=lambda line: line["index"]) == [d for d in doubled(40) if d["index"] not in (3, 20)]
    report = await score(endpoint, source, tmp_path / "out.jsonl", limit=limit)
    assert report.finished
    assert models.seen.total() == 40
    scored_or_failed(tmp_path, 40, {3, 20})
    assert not list(tmp_path.glob("*.sorting"))
    assert not list(tmp_path.glob("*.commit"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_disk_stops_the_job_and_loses_nothing(
    endpoint: Endpoint[Any, Any], models: Models, tmp_path: Path, small_disk: Path
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 3000)
    out = small_disk / "out.jsonl"
    with pytest.raises(BatchOutputError, match="No space left on device"):
        await score(endpoint, source, out)
    sent = models.seen.total()
    assert 0 < sent < 3000
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    report = await score(endpoint, source, out)
    assert report.resumed > 0
    assert models.seen.total() - 3000 <= sent - report.resumed
    scored_or_failed(small_disk, 3000, set())


@pytest.mark.parametrize("fits", [0.7, 1.5])
async def test_a_file_that_may_not_grow(
    runtime: LocalRuntime, endpoint: Endpoint[Any, Any], models: Models, tmp_path: Path, fits: float
) -> None:
    """The same without mounting: a limit on the size of files, in a separate process."""
    count = 400
    source = write_rows(tmp_path / "rows.jsonl", count)
    size = int(sum(len(f'{{"index":{n},"value":{2 * n}}}\n') for n in range(count)) * fits)
    command = (*PROGRAM, "score", str(source), "--endpoint-name", "double", "--output", "out.jsonl", "--quiet")
    process = await asyncio.create_subprocess_exec(
        *command,
        # Python would rename bytecode that was cut off at the limit over the cached one.
        env=environment(tmp_path, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url, PYTHONDONTWRITEBYTECODE="1"),
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    _, stderr = await process.communicate()
    if fits > 1:
        assert (process.returncode, stderr) == (0, b"")
    else:
        assert process.returncode == 255
        assert b"cannot write" in stderr
        assert b"File too large" in stderr
        assert stderr.count(b"\n") == 1
    await score_by_command(runtime, tmp_path, source)
    scored_or_failed(tmp_path, count, set())


@pytest.mark.parametrize("ends_with", ["full disk", "function", "cancellation"])
async def test_tracebacks_hold_neither_rows_nor_answers(client: Client, tmp_path: Path, ends_with: str) -> None:
    secret = "swordfish"
    rows = [{"n": secret * 10}] * 2000
    endpoint = client.endpoint("echo", serializer=JSON, deserializer=JSON)
    out = tmp_path / "out.jsonl"
    if ends_with == "full disk":
        with files_that_end_at(20_000), pytest.raises(BatchOutputError, match="File too large") as caught:
            await score(endpoint, rows, out)
        error: BaseException = caught.value
    elif ends_with == "function":
        with pytest.raises(LookupError) as raised:
            await score(endpoint, rows, refuse)
        error = raised.value
    else:
        running = asyncio.Event()
        job = asyncio.create_task(score(endpoint, rows, out, on_progress=lambda progress: running.set()))
        await running.wait()
        job.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await job
        error = cancelled.value
    assert shown_locals(error, {"row": secret}) == []


def refuse(some: list[dict[str, Any]]) -> None:
    raise LookupError("the database is gone")


async def score_by_command(runtime: LocalRuntime, folder: Path, source: Path) -> None:
    command = (*PROGRAM, "score", str(source), "--endpoint-name", "double", "--output", "out.jsonl", "--quiet")
    env = environment(folder, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url)
    async with started(*command, env=env, cwd=folder) as process:
        _, stderr = await process.communicate()
    assert (process.returncode, stderr) == (0, b"")


async def test_a_journal_that_cannot_be_written_is_reported_before_anything_is_sent(
    endpoint: Endpoint[Any, Any], models: Models, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 4)
    (tmp_path / "out.jsonl.journal").mkdir()
    with pytest.raises(BatchOutputError, match=r"cannot write .*out\.jsonl\.journal: Is a directory"):
        await score(endpoint, source, tmp_path / "out.jsonl")
    assert not models.seen
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_the_command_and_it_resumes(
    runtime: LocalRuntime, models: Models, tmp_path: Path, number: signal.Signals
) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 300)
    enough = asyncio.Event()

    async def slow(body: bytes) -> None:
        if models.seen.total() > 30:
            enough.set()
        await asyncio.sleep(0.02)

    models.before = slow
    command = (*PROGRAM, "score", str(source), "--endpoint-name", "double", "--output", "out.jsonl")
    env = environment(tmp_path, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url)
    async with started(*command, "--max-concurrency", "4", env=env, cwd=tmp_path) as process:
        await unless_ended(process, enough.wait())
        process.send_signal(number)
        stdout, stderr = await process.communicate()
    assert (process.returncode, stdout) == (130, b"")
    first, second = stderr.decode().splitlines()
    assert first.startswith("stopping: ")
    assert second.endswith("rows done; run the same command again to resume")
    await score_by_command(runtime, tmp_path, source)
    scored_or_failed(tmp_path, 300, set())
    # Those in flight were waited for.
    assert set(Counter(models.seen.values())) == {1}


async def test_a_second_signal_ends_the_command_at_once(runtime: LocalRuntime, models: Models, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", 30)
    hanging = asyncio.Event()

    async def hang(body: bytes) -> None:
        if models.seen.total() > 10:
            hanging.set()
            await asyncio.Event().wait()

    models.before = hang
    command = (*PROGRAM, "score", str(source), "--endpoint-name", "double", "--output", "out.jsonl")
    env = environment(tmp_path, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url)
    async with started(*command, "--max-concurrency", "2", env=env, cwd=tmp_path) as process:
        await unless_ended(process, hanging.wait())
        out = tmp_path / "out.jsonl"
        while out.read_bytes().count(b"\n") < 10:
            assert process.returncode is None
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert (await process.stderr.readline()).startswith(b"stopping: ")
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert len(lines_of(out)) == 10
    models.before = None
    await score_by_command(runtime, tmp_path, source)
    scored_or_failed(tmp_path, 30, set())


async def test_what_a_kill_leaves_beside_the_output_is_no_input(endpoint: Endpoint[Any, Any], tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 5)
    for end in (".jobs", ".jobs.new", ".sorting", ".journal.sorting", ".errors.jsonl.sorting"):
        (tmp_path / f"out.jsonl{end}").write_text('{"n": 100}\n')
    report = await score(endpoint, tmp_path, tmp_path / "out.jsonl", input_format="jsonl")
    assert report.rows == 5
    scored_or_failed(tmp_path, 5, set())


async def test_what_was_added_behind_a_finished_job_is_not_cut_off(
    endpoint: Endpoint[Any, Any], models: Models, tmp_path: Path
) -> None:
    source, out = write_rows(tmp_path / "rows.jsonl", 10), tmp_path / "out.jsonl"
    models.refused = {b'{"n": 3}'}
    await score(endpoint, source, out)
    for path in (out, out.with_name("out.jsonl.errors.jsonl")):
        whole = path.read_text()
        path.write_text(f"{whole}a line\n")
        with pytest.raises(BatchOutputError, match="7 bytes were added after the job ended"):
            await score(endpoint, source, out)
        assert path.read_text() == f"{whole}a line\n"
        path.write_text(whole)
    assert (await score(endpoint, source, out)).resumed == 10


@pytest.mark.parametrize("content", [b"my notes\n", b"aiosmrt batch journal 2\n", b"\0\0also mine", b"aiosmrt\0x"])
def test_a_file_in_place_of_the_journal_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    out, journal = tmp_path / "out", tmp_path / "out.journal"
    journal.write_bytes(content)
    with pytest.raises(BatchOutputError, match=r"out\.journal is not a journal of this version"):
        OutputLog.open(out, {})
    assert (journal.read_bytes(), out.exists()) == (content, False)
    OutputLog.open(out, {}, fresh=True).close()
    OutputLog.open(out, {}).close()


MAGIC = b"aiosmrt batch journal 1\n"


@pytest.mark.parametrize(
    "torn",
    [b"", b"aios", b"aios\0\0", b"\0" * 300, MAGIC, MAGIC + b"12", MAGIC + b"a b\n", MAGIC + b"%d 1\n{" % 10**17],
)
def test_a_journal_whose_first_write_was_torn_is_begun_again(tmp_path: Path, torn: bytes) -> None:
    out = tmp_path / "out"
    out.with_name("out.journal").write_bytes(torn)
    for scored in (0, 1):
        log = OutputLog.open(out, {"about": 1})
        assert len(log.scored) == scored
        if not scored:
            log.append({0: b"row\n"}, {})
        log.close()


def test_a_file_in_place_of_the_sorted_journal_is_not_taken_for_it(tmp_path: Path) -> None:
    log = OutputLog.open(tmp_path / "out", {})
    log.append({0: b"row\n"}, {})
    log.close()
    commit = tmp_path / "out.journal.commit"
    commit.write_text("mine")
    for fresh in (False, True):
        with pytest.raises(BatchOutputError, match=r"out\.journal\.commit is not a journal of this version"):
            OutputLog.open(tmp_path / "out", {}, fresh=fresh)
    assert commit.read_text() == "mine"
    commit.unlink()
    log = OutputLog.open(tmp_path / "out", {})
    assert len(log.scored) == 1
    log.close()


FIRST = {0: b"the first record of the output\n"}
# What the job had done when something was put in place of its output: nothing; a row; a row whose record is torn.
BEGINNINGS = ({}, FIRST, {0: FIRST[0] * 40})


@pytest.mark.parametrize("content", [b"x", b"the first letter\n", b"the first record of another job\n" * 1000])
@pytest.mark.parametrize("preamble", [b"", b"index,value\n"])
@pytest.mark.parametrize("begun", BEGINNINGS)
@pytest.mark.parametrize("name", ["out", "out.errors.jsonl"])
def test_a_file_in_place_of_an_output_that_has_hardly_begun_is_not_overwritten(
    tmp_path: Path, name: str, begun: dict[int, bytes], preamble: bytes, content: bytes
) -> None:
    log = OutputLog.open(tmp_path / "out", {}, preamble=preamble)
    log.append(*((begun, {}) if name == "out" else ({}, begun)))
    log.close()
    path = tmp_path / name
    path.write_bytes(content)
    for facts in ({}, *([{"other": 1}] if not begun else [])):
        with pytest.raises(BatchOutputError, match=rf"{name} was put there by something else"):
            OutputLog.open(tmp_path / "out", facts, preamble=preamble)
        assert path.read_bytes() == content
    path.unlink()
    log = OutputLog.open(tmp_path / "out", {}, preamble=preamble)
    assert (len(log.scored), len(log.failed)) == (0, 0)
    log.close()


@pytest.mark.parametrize("preamble", [b"", b"index,value\n"])
def test_a_first_record_that_is_torn_anywhere_is_mended(tmp_path: Path, preamble: bytes) -> None:
    """Also where a power failure has left zeros."""
    out, record = tmp_path / "out", b"%080d\n" % 7
    log = OutputLog.open(out, {}, preamble=preamble)
    log.append({7: record}, {})
    log.close()
    journal = out.with_name("out.journal")
    whole = preamble + record
    noted = journal.read_bytes()
    for end in range(len(whole)):
        for torn in (whole[:end], whole[:end] + bytes(len(whole) - end)):
            out.write_bytes(torn)
            journal.write_bytes(noted)
            log = OutputLog.open(out, {}, preamble=preamble)
            assert len(log.scored) == 0
            log.append({7: record}, {})
            log.close()
            assert out.read_bytes() == whole


def test_a_first_failure_behind_a_torn_record_is_the_jobs_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    log = OutputLog.open(out, {})
    log.append({0: b"row 0\n", 1: b"row 1\n"}, {})
    log.append({}, {2: b"failure\n"})
    log.close()
    os.truncate(out, 9)
    log = OutputLog.open(out, {})
    assert (len(log.scored), len(log.failed)) == (1, 0)
    log.append({}, {2: b"failure\n"})
    log.close()
    assert (out.read_bytes(), out.with_name("out.errors.jsonl").read_bytes()) == (b"row 0\n", b"failure\n")


def test_a_job_that_has_not_begun_may_be_begun_with_other_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for facts, preamble in (({}, b"index,value\n"), ({"other": 1}, b""), ({}, b"index,id,value\n")):
        OutputLog.open(out, facts, preamble=preamble).close()
        assert out.read_bytes() == preamble


def test_a_write_that_the_disk_takes_in_part_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    log = OutputLog.open(out, {})
    log.append({0: b"row\n"}, {})
    with files_that_end_at(1000), pytest.raises(BatchOutputError, match="cannot write"):
        log.append({1: b"x" * 2000}, {})
    assert out.read_bytes() == b"row\n"
    log.close()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_a_file_that_something_else_replaces_meanwhile_is_not_overwritten(
    endpoint: Endpoint[Any, Any], models: Models, tmp_path: Path, name: str, replaced: bool, concurrency: int
) -> None:
    """Neither by what is put in order, nor as an empty file of errors."""

    async def replace(body: bytes) -> None:
        if models.seen.total() == 30:
            (tmp_path / name).unlink()
            if replaced:
                (tmp_path / name).write_text("mine")

    models.before = replace
    with pytest.raises(BatchOutputError, match=f"{name} was removed, or replaced by something else, while the job ran"):
        await score(
            endpoint,
            write_rows(tmp_path / "rows.jsonl", 40),
            tmp_path / "out.jsonl",
            max_concurrency=concurrency,
        )
    assert ((tmp_path / name).read_text() if replaced else (tmp_path / name).exists()) == (
        "mine" if replaced else False
    )


def test_a_copy_that_somebody_sorted_stays(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "out.sorted"
    mine.write_text("mine")
    log = OutputLog.open(out, {})
    log.append({1: b"1\n", 0: b"0\n"}, {})
    log.finish(2)
    log.close()
    OutputLog.open(out, {}).close()
    assert (mine.read_text(), out.read_text()) == ("mine", "0\n1\n")


def test_a_log_that_goes_on_behind_its_end_may_be_torn_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for last in range(3):
        log = OutputLog.open(out, {})
        log.append(dict.fromkeys(range(3 * last, 3 * last + 3), b"row\n"), {})
        log.finish(3 * last + 3)
        log.close()
    log = OutputLog.open(out, {})
    log.append({9: b"row\n"}, {})
    log.close()
    journal = out.with_name("out.journal")
    # The record reached the file, its entry did not.
    os.truncate(journal, journal.stat().st_size - 20)
    log = OutputLog.open(out, {})
    assert (len(log.scored), log.rows_in_input) == (9, 9)
    log.close()
    assert out.read_bytes() == 9 * b"row\n"


async def test_a_retry_that_was_interrupted_before_the_end_is_put_in_order(
    endpoint: Endpoint[Any, Any], models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_rows(tmp_path / "rows.jsonl", 10), tmp_path / "out.jsonl"
    models.refused = {b'{"n": 3}', b'{"n": 5}'}
    await score(endpoint, source, out)
    models.refused = {b'{"n": 5}'}
    with monkeypatch.context() as patched:

        def killed(*arguments: object, **settings: object) -> None:
            raise BatchOutputError("killed")

        patched.setattr(OutputLog, "finish", killed)
        with pytest.raises(BatchOutputError, match="killed"):
            await score(endpoint, source, out, retry_failed=True)
    sent = models.seen.total()
    report = await score(endpoint, source, out)
    assert (report.scored, report.failed, report.resumed) == (9, 1, 10)
    assert models.seen.total() == sent
    scored_or_failed(tmp_path, 10, {5})


def appended(log: OutputLog, drawn: random.Random, count: int) -> list[tuple[bool, int]]:
    """Append records of rows in any order, some of them failed, some of those scored later, with syncs in between."""
    rows = list(range(count))
    drawn.shuffle(rows)
    history: list[tuple[bool, int]] = []
    while rows:
        some = [(drawn.random() < 0.1, rows.pop()) for _ in range(min(drawn.randint(1, 20), len(rows)))]
        failed = [row for was_failed, row in history if was_failed and row in log.failed]
        if failed and drawn.random() < 0.3:
            some.append((False, drawn.choice(failed)))
        some.sort(key=lambda each: each[0])
        records = [(bad, row, b"%d\n" % row * drawn.randint(1, 40)) for bad, row in some]
        log.append(*({row: data for bad, row, data in records if bad == kind} for kind in (False, True)))
        history += some
        if drawn.random() < 0.3:
            log.sync()
    return history


def done(history: list[tuple[bool, int]]) -> tuple[set[int], set[int]]:
    scored = {row for bad, row in history if not bad}
    return scored, {row for bad, row in history if bad} - scored


def found_in(log: OutputLog, count: int) -> tuple[set[int], set[int]]:
    rows = range(count)
    return {row for row in rows if row in log.scored}, {row for row in rows if row in log.failed}


@pytest.mark.parametrize("seed", range(12))
def test_a_log_is_read_as_it_was_written(tmp_path: Path, seed: int) -> None:
    drawn, out = random.Random(seed), tmp_path / "out"
    log = OutputLog.open(out, {})
    history = appended(log, drawn, 400)
    for finished in (False, True):
        if finished:
            log.finish(400)
        log.close()
        log = OutputLog.open(out, {})
        assert found_in(log, 400) == done(history)
    assert log.rows_in_input == 400
    log.close()


@pytest.mark.parametrize("size", [20, 60_000])
def test_a_log_is_put_in_order_however_far_its_records_are_apart(tmp_path: Path, size: int) -> None:
    rows, out = list(range(120)), tmp_path / "out"
    random.Random(size).shuffle(rows)
    records = {row: b"%0*d\n" % (size, row) for row in rows}
    log = OutputLog.open(out, {})
    for begin in range(0, 120, 10):
        some = rows[begin : begin + 10]
        log.append({row: records[row] for row in some if row % 7}, {row: records[row] for row in some if not row % 7})
    log.finish(120)
    log.close()
    failed = {row for row in rows if not row % 7}
    assert out.read_bytes() == b"".join(records[row] for row in sorted(rows) if row not in failed)
    assert out.with_name("out.errors.jsonl").read_bytes() == b"".join(records[row] for row in sorted(failed))
    log = OutputLog.open(out, {})
    assert found_in(log, 120) == (set(rows) - failed, failed)
    assert log.is_ordered
    log.close()


@pytest.mark.parametrize("name", ["out", "out.errors.jsonl", "out.journal"])
def test_a_log_that_something_else_changes_is_not_put_in_order(tmp_path: Path, name: str) -> None:
    log = OutputLog.open(tmp_path / "out", {})
    log.append({row: b"%d\n" % row for row in (5, 3, 4)}, {row: b"%d\n" % row for row in (1, 0, 2)})
    changed = tmp_path / name
    data = bytearray(changed.read_bytes())
    # In the journal, the middle of the entry before the last.
    data[-30 if name == "out.journal" else 0] ^= 1
    changed.write_bytes(data)
    with pytest.raises(BatchOutputError, match="changed by something else while the job ran"):
        log.finish(6)
    log.close()
    assert not (tmp_path / "out.sorted").exists()


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_byte_is_refused_or_costs_what_is_behind_it(tmp_path: Path, seed: int) -> None:
    drawn, out = random.Random(seed), tmp_path / "out"
    log = OutputLog.open(out, {})
    history = appended(log, drawn, 300)
    if seed % 3 == 0:
        log.finish(300)
        failed = done(history)[1]
        history = [(row in failed, row) for row in range(300)]
    log.close()
    path = drawn.choice([out, out.with_name("out.errors.jsonl"), out.with_name("out.journal")])
    data = bytearray(path.read_bytes())
    data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
    path.write_bytes(data)
    refused = pytest.raises(BatchOutputError, match=r"changed by something else|is damaged|belongs to another job")
    with suppress(BatchOutputError):
        log = OutputLog.open(out, {})
        try:
            prefixes = (done(history[:length]) for length in range(len(history) + 1))
            assert found_in(log, 300) in prefixes
        finally:
            log.close()
        return
    with refused:
        OutputLog.open(out, {})
