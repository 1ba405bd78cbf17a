"""Jobs: what is scored, what fails, and what a later run makes of it."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from types import CoroutineType
from typing import Any

import pytest

from aiosmrt import Client, EndpointNotFoundError, ParamValidationError, TooManyFailuresError
from aiosmrt.batch import ANY_ANSWER, Progress, Report, score
from aiosmrt.endpoint import Endpoint
from aiosmrt.errors import BatchInputError, BatchOutputError, BatchStoppedError
from aiosmrt.local import LocalRuntime, faults
from aiosmrt.serializers import JSON, TEXT
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.scoring import Models, doubled, lines_of, write_rows


@pytest.fixture
def endpoint(client: Client) -> Endpoint[Any, Any]:
    return client.endpoint("double", serializer=JSON, deserializer=JSON)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", 200)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def errors_of(out: Path) -> list[dict[str, Any]]:
    return lines_of(out.with_name("out.jsonl.errors.jsonl"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def stopped_halfway(endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models, after: int) -> Report:
    """A job that is stopped once the model has seen some rows."""
    stop = asyncio.Event()

    async def count(body: bytes) -> None:
        if models.seen.total() >= after:
            stop.set()

    models.before = count
    report = await score(endpoint, rows, out, stop=stop)
    models.before = None
    return report


async def test_every_row_is_scored_once_and_in_order(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models, tmp_path: Path
) -> None:
    async def shuffle(body: bytes) -> None:
        await asyncio.sleep(hash(body) % 5 / 1000)

    models.before = shuffle
    report = await score(endpoint, rows, out)
    assert lines_of(out) == doubled(200)
    assert set(models.seen.values()) == {1}
    assert (report.rows, report.scored, report.failed, report.resumed, report.finished) == (200, 200, 0, 0, True)
    assert report.output == out
    assert report.seconds > 0
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.journal", "rows.jsonl"]


async def test_a_finished_job_sends_nothing(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models
) -> None:
    await score(endpoint, rows, out)
    before = out.read_bytes()
    report = await score(endpoint, rows, out)
    assert (report.rows, report.resumed, report.finished) == (200, 200, True)
    assert models.seen.total() == 200
    assert out.read_bytes() == before


async def test_a_stopped_job_resumes_and_repeats_nothing(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models
) -> None:
    report = await stopped_halfway(endpoint, rows, out, models, 50)
    assert not report.finished
    assert 50 <= report.rows < 200
    half = lines_of(out)
    assert sorted(line["index"] for line in half) == list(range(report.rows))
    again = await score(endpoint, rows, out)
    assert (again.finished, again.resumed, again.rows) == (True, report.rows, 200)
    assert lines_of(out) == doubled(200)
    assert set(models.seen.values()) == {1}


async def test_calls_that_outlast_the_drain_are_left_for_the_next_run(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models
) -> None:
    stop = asyncio.Event()

    async def hang(body: bytes) -> None:
        if models.seen.total() > 20:
            stop.set()
            await asyncio.Event().wait()

    models.before = hang
    report = await score(endpoint, rows, out, stop=stop, drain=0.05)
    models.before = None
    assert not report.finished
    assert report.failed == 0
    await score(endpoint, rows, out)
    assert lines_of(out) == doubled(200)
    assert max(models.seen.values()) <= 2


async def test_a_cancelled_job_keeps_what_it_has(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models
) -> None:
    enough = asyncio.Event()

    async def hang(body: bytes) -> None:
        if models.seen.total() > 30:
            enough.set()
            await asyncio.Event().wait()

    models.before = hang
    job = asyncio.create_task(score(endpoint, rows, out))
    await enough.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    models.before = None
    kept = len(lines_of(out))
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("aiosmrt-map")] == []
    report = await score(endpoint, rows, out)
    assert report.resumed == kept
    assert lines_of(out) == doubled(200)


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
async def test_a_pipe_that_nobody_writes_to_does_not_hold_a_job(
    endpoint: Endpoint[Any, Any], tmp_path: Path, how: str
) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    out, stop = tmp_path / "out.jsonl", asyncio.Event()
    job = asyncio.create_task(score(endpoint, pipe, out, stop=stop))
    is_open = await opened_here(pipe)
    if how == "cancelled":
        job.cancel()
    else:
        stop.set()
    done, _ = await asyncio.wait([job], timeout=30)
    if not done:
        # For its thread to end.
        pipe.open("wb").close()
    assert (is_open, bool(done)) == (True, True)
    assert job.cancelled() if how == "cancelled" else not job.result().finished
    assert not is_open_here(pipe)


async def test_a_pipe_waits_for_its_writer(endpoint: Endpoint[Any, Any], tmp_path: Path) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    job = asyncio.create_task(score(endpoint, pipe, tmp_path / "out.jsonl"))
    await opened_here(pipe)
    with await asyncio.to_thread(pipe.open, "w") as writer:
        writer.write('{"n": 0}\n')
        writer.flush()
        writer.write('{"n": 1}\n')
    await job
    assert lines_of(tmp_path / "out.jsonl") == doubled(2)


def is_open_here(path: Path) -> bool:
    """Whether this process has a file open."""
    for link in Path("/proc/self/fd").iterdir():
        # Other threads close theirs in between.
        with suppress(FileNotFoundError):
            if link.readlink() == path:
                return True
    return False


async def opened_here(path: Path) -> bool:
    """Wait until this process has a file open, for 30 seconds at most; returns whether it has."""
    with suppress(TimeoutError):
        async with asyncio.timeout(30):
            while not is_open_here(path):
                await asyncio.sleep(0.01)
    return is_open_here(path)


async def test_failed_rows_are_listed_and_retried_on_request(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models, tmp_path: Path
) -> None:
    models.refused = {b'{"n": 7}', b'{"n": 150}', b'{"n": 3}'}
    report = await score(endpoint, rows, out)
    assert (report.scored, report.failed, report.finished) == (197, 3, True)
    errors = errors_of(out)
    assert [line["index"] for line in errors] == [3, 7, 150]
    assert {(line["error"], line["code"], line["attempts"]) for line in errors} == {("ModelError", "ModelError", 1)}
    assert all(line["request_id"] and line["waited"] >= 0 and "not this one" in line["message"] for line in errors)
    assert lines_of(out) == [line for line in doubled(200) if line["index"] not in (3, 7, 150)]

    again = await score(endpoint, rows, out)
    assert (again.failed, models.seen.total()) == (3, 200)
    models.refused = {b'{"n": 7}'}
    again = await score(endpoint, rows, out, retry_failed=True)
    assert (again.scored, again.failed, models.seen.total()) == (199, 1, 203)
    assert [line["index"] for line in errors_of(out)] == [7]
    models.refused = set()
    again = await score(endpoint, rows, out, retry_failed=True)
    assert (again.scored, again.failed) == (200, 0)
    assert lines_of(out) == doubled(200)
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.journal", "rows.jsonl"]


async def test_an_unreadable_row_fails_and_is_never_quoted(
    client: Client, tmp_path: Path, out: Path, models: Models
) -> None:
    endpoint = client.endpoint("echo", serializer=JSON, deserializer=JSON)
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(b'{"q": "a"}\n\n{"q": secret}\n{"p": "secret"}\n[1]\n{"q": "\xff secret"}\n{"q": "b"}')
    report = await score(endpoint, rows, out, column="q")
    assert (report.scored, report.failed) == (2, 4)
    assert lines_of(out) == [{"index": 0, "value": "a"}, {"index": 5, "value": "b"}]
    text = out.with_name("out.jsonl.errors.jsonl").read_text()
    assert "secret" not in text
    messages = [line["message"] for line in errors_of(out)]
    assert [message.partition(") ")[2] for message in messages] == [
        "is not JSON at column 7",
        "has no column 'q'",
        "is not a JSON object",
        "is not UTF-8 at byte 7",
    ]
    assert messages[0].startswith(f"row 1 ({rows}, line 3) ")
    assert {(line["error"], line["attempts"]) for line in errors_of(out)} == {("SerializationError", 0)}
    assert models.seen.total() == 2


async def test_what_others_raise_is_named_but_not_quoted(client: Client, rows: Path, out: Path) -> None:
    class Strict:
        accept = "application/json"

        def deserialize(self, body: bytes, content_type: str, /) -> int:
            if body == b"4":
                raise LookupError(f"secret {body!r}")
            return int(body)

    endpoint = client.endpoint("double", serializer=JSON, deserializer=Strict())
    report = await score(endpoint, rows, out)
    assert (report.scored, report.failed) == (199, 1)
    (line,) = errors_of(out)
    assert (line["index"], line["error"], line["message"], line["code"]) == (2, "LookupError", "", None)


async def test_an_error_that_every_row_would_meet_stops_the_job_and_fails_no_row(
    client: Client, rows: Path, out: Path, endpoint: Endpoint[Any, Any], models: Models
) -> None:
    missing = client.endpoint("missing", serializer=JSON, deserializer=JSON)
    with pytest.raises(BatchStoppedError, match="0 rows are done, and the same job resumes") as caught:
        await score(missing, rows, out)
    assert isinstance(caught.value.__cause__, EndpointNotFoundError)
    assert out.read_bytes() == b""
    # Nothing was scored, so another job may have the output.
    await score(endpoint, rows, out)
    assert lines_of(out) == doubled(200)


@pytest.mark.parametrize("most", [3, 0.1])
async def test_too_many_failures_stop_the_job(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models, most: float
) -> None:
    models.refused = {f'{{"n": {n}}}'.encode() for n in range(0, 200, 2)}
    with pytest.raises(BatchStoppedError, match="max_failures") as caught:
        await score(endpoint, rows, out, max_failures=most)
    assert isinstance(caught.value.__cause__, TooManyFailuresError)
    done = len(lines_of(out)) + len(errors_of(out))
    assert 4 <= done == models.seen.total() < 100
    report = await score(endpoint, rows, out)
    assert (report.scored, report.failed, report.resumed) == (100, 100, done)


@pytest.mark.parametrize("most", [0.1, "10%", 18, 0])
async def test_failures_of_a_job_whose_rows_are_all_done_stop_nothing(
    endpoint: Endpoint[Any, Any], out: Path, models: Models, tmp_path: Path, most: float | str
) -> None:
    rows = write_rows(tmp_path / "few.jsonl", 19)
    failing = 1 if most == 0 else 19
    models.refused = {f'{{"n": {n}}}'.encode() for n in range(19 - failing, 19)}
    report = await score(endpoint, rows, out, max_failures=most, max_concurrency=1)
    assert (report.scored, report.failed, report.finished) == (19 - failing, failing, True)
    assert lines_of(out) == doubled(19 - failing)
    assert [line["index"] for line in errors_of(out)] == list(range(19 - failing, 19))


async def test_too_many_failures_of_few_rows_stop_the_job(
    endpoint: Endpoint[Any, Any], out: Path, models: Models, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "few.jsonl", 19)
    models.refused = {b'{"n": 3}'}
    with pytest.raises(BatchStoppedError, match=r"1 of 4 items failed.*; 4 rows are done"):
        await score(endpoint, rows, out, max_failures=0, max_concurrency=1)
    models.refused = {b'{"n": 0}', b'{"n": 3}'}
    report = await score(endpoint, rows, out, fresh=True)
    assert (report.scored, report.failed) == (17, 2)
    # Rows that are done behind the limit do not stand for the one in front of it that is not.
    with pytest.raises(BatchStoppedError, match="1 of 1 items failed"):
        await score(endpoint, rows, out, max_failures=0, max_concurrency=1, retry_failed=True, limit=5)


async def test_throttling_makes_the_job_wait(
    runtime: LocalRuntime, endpoint: Endpoint[Any, Any], rows: Path, out: Path
) -> None:
    runtime.inject("double", faults.throttling().next(20))
    report = await score(endpoint, rows, out)
    assert (report.scored, report.failed) == (200, 0)
    assert report.retries >= 20


async def test_limit_is_a_number_of_rows_of_the_input(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models
) -> None:
    report = await score(endpoint, rows, out, limit=30)
    assert (report.rows, report.finished) == (30, True)
    assert lines_of(out) == doubled(30)
    report = await score(endpoint, rows, out, limit=30)
    assert models.seen.total() == 30
    report = await score(endpoint, rows, out)
    assert (report.rows, report.resumed) == (200, 30)
    assert lines_of(out) == doubled(200)
    assert models.seen.total() == 200


async def test_fresh_starts_over(endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models) -> None:
    models.refused = {b'{"n": 7}'}
    await score(endpoint, rows, out)
    models.refused = set()
    report = await score(endpoint, write_rows(rows, 20), out, fresh=True)
    assert (report.rows, report.resumed, report.failed) == (20, 0, 0)
    assert lines_of(out) == doubled(20)


async def test_progress_comes_at_once_and_at_the_end(endpoint: Endpoint[Any, Any], rows: Path, out: Path) -> None:
    seen: list[Progress] = []
    await score(endpoint, rows, out, on_progress=seen.append, progress_interval=0.01, max_concurrency=4)
    assert (seen[0].scored, seen[0].fraction) == (0, 0.0)
    assert (seen[-1].scored, seen[-1].fraction, seen[-1].remaining, seen[-1].in_flight) == (200, 1.0, 0.0, 0)
    assert all(progress.in_flight <= 4 == progress.max_in_flight for progress in seen)


async def test_what_on_progress_raises_ends_the_job(endpoint: Endpoint[Any, Any], rows: Path, out: Path) -> None:
    def fail(progress: Progress) -> None:
        if progress.scored:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await score(endpoint, rows, out, on_progress=fail, progress_interval=0.001)
    report = await score(endpoint, rows, out)
    assert report.finished
    assert lines_of(out) == doubled(200)


# Other input, other settings, others' files


async def test_changed_input_is_refused_and_named(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models
) -> None:
    await stopped_halfway(endpoint, rows, out, models, 20)
    before = out.read_bytes()
    write_rows(rows, 201)
    with pytest.raises(BatchOutputError, match=r"another job: input .*rows\.jsonl .*size was \d+, is \d+.*--fresh"):
        await score(endpoint, rows, out)
    assert out.read_bytes() == before


async def test_changed_settings_are_refused_and_named(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models
) -> None:
    await stopped_halfway(endpoint, rows, out, models, 20)
    with pytest.raises(BatchOutputError, match="another job: settings id_field is new"):
        await score(endpoint, rows, out, id_field="n")
    other = endpoint.with_options(target_variant="b", custom_attributes="secret")
    with pytest.raises(BatchOutputError, match="settings members custom_attributes is new, target_variant is new"):
        await score(other, rows, out)
    assert b"secret" not in out.with_name("out.jsonl.journal").read_bytes()
    # These change no value.
    report = await score(endpoint, rows, out, max_concurrency=3, max_failures=5, limit=150)
    assert report.rows == 150


async def test_input_that_changes_while_it_is_read_is_reported(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models
) -> None:
    async def grow(body: bytes) -> None:
        if body == b'{"n": 100}':
            with rows.open("a") as file:
                file.write('{"n": 200}\n')

    models.before = grow
    with pytest.raises(BatchInputError, match=r"rows\.jsonl changed while it was read"):
        await score(endpoint, rows, out)


async def test_an_output_without_a_journal_is_not_touched(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, tmp_path: Path
) -> None:
    out.write_text("mine")
    with pytest.raises(BatchOutputError, match="exists without a journal"):
        await score(endpoint, rows, out)
    assert out.read_text() == "mine"
    assert names(tmp_path) == ["out.jsonl", "rows.jsonl"]
    await score(endpoint, rows, out, fresh=True)
    assert lines_of(out) == doubled(200)


async def test_a_foreign_journal_is_refused(endpoint: Endpoint[Any, Any], rows: Path, out: Path) -> None:
    out.write_text("mine")
    out.with_name("out.jsonl.journal").write_text("also mine")
    with pytest.raises(BatchOutputError, match="not a journal"):
        await score(endpoint, rows, out)
    assert out.read_text() == "mine"


async def test_an_output_that_was_edited_is_refused(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models
) -> None:
    await stopped_halfway(endpoint, rows, out, models, 20)
    text = out.read_text()
    out.write_text(text[:5] + "X" + text[6:])
    with pytest.raises(BatchOutputError, match="was changed by something else"):
        await score(endpoint, rows, out)
    out.unlink()
    with pytest.raises(BatchOutputError, match="was changed by something else"):
        await score(endpoint, rows, out)
    out.write_text(text)
    await score(endpoint, rows, out)
    assert lines_of(out) == doubled(200)


async def test_two_jobs_on_one_output(endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models) -> None:
    errors = []

    async def second(body: bytes) -> None:
        if body == b'{"n": 5}':
            with pytest.raises(BatchOutputError, match=r"another job is writing .*out\.jsonl") as caught:
                await score(endpoint, rows, out, fresh=True)
            errors.append(caught.value)

    models.before = second
    await score(endpoint, rows, out)
    assert len(errors) == 1
    assert lines_of(out) == doubled(200)


async def test_two_jobs_on_one_output_of_two_names(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models, tmp_path: Path
) -> None:
    """Each name has its own journal."""
    link = tmp_path / "link.jsonl"
    link.symlink_to(out)
    begun, going = asyncio.Event(), asyncio.Event()

    async def hold(body: bytes) -> None:
        begun.set()
        await going.wait()

    models.before = hold
    first = asyncio.create_task(score(endpoint, rows, out))
    await begun.wait()
    with pytest.raises(BatchOutputError, match="another job is writing"):
        await score(endpoint, rows, link, fresh=True)
    going.set()
    assert (await first).scored == 200
    assert lines_of(out) == doubled(200)


@pytest.mark.parametrize("is_pipe", [True, False])
async def test_a_stream_that_goes_on_where_an_earlier_one_ended(
    endpoint: Endpoint[Any, Any], out: Path, models: Models, tmp_path: Path, is_pipe: bool
) -> None:
    async def of(count: int, **settings: Any) -> Report:
        lines = "".join(f'{{"n": {number}}}\n' for number in range(count))
        if not is_pipe:
            return await score(endpoint, (json.loads(line) for line in lines.splitlines()), out, **settings)
        pipe = tmp_path / "pipe.jsonl"
        if not pipe.exists():
            os.mkfifo(pipe)
        job = asyncio.create_task(score(endpoint, pipe, out, **settings))
        await opened_here(pipe)
        with await asyncio.to_thread(pipe.open, "w") as writer:
            writer.write(lines)
        return await job

    assert (await of(5)).scored == 5
    report = await of(9)
    assert (report.scored, report.resumed) == (9, 5)
    assert lines_of(out) == doubled(9)
    assert (await of(9)).resumed == 9
    assert (await of(9, limit=4)).resumed == 9
    assert models.seen.total() == 9
    with pytest.raises(BatchInputError, match="ends after 5 rows, but row 8 was scored before"):
        await of(5)
    assert lines_of(out) == doubled(9)


async def test_a_lock_of_another_process_is_respected(
    endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models
) -> None:
    journal = out.with_name("out.jsonl.journal")
    with journal.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BatchOutputError, match="another job is writing"):
            await score(endpoint, rows, out)
    assert not models.seen


async def test_a_symbolic_link_stays_one(endpoint: Endpoint[Any, Any], rows: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    out.symlink_to(tmp_path / "real" / "scores")
    await score(endpoint, rows, out)
    assert out.is_symlink()
    assert lines_of(tmp_path / "real" / "scores") == doubled(200)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"column": "n", "template": {"a": "{n}"}}, "column and template exclude each other"),
        ({"template": {"a": "b"}}, "template must name a column"),
        ({"template": {"a": {1, 2}}}, "template must be a JSON value"),
        ({"limit": 0}, "limit must be an integer >= 1 or None; got 0"),
        ({"drain": -1}, "drain must be a non-negative number of seconds; got -1"),
        ({"max_concurrency": 0}, "max_concurrency must be an integer >= 1"),
        ({"max_failures": 2.0}, "max_failures must be"),
        ({"input_format": "xml"}, "input_format must be one of"),
        ({"join_source": "input"}, "join_source must be one of 'None', 'Input'; got 'input'"),
        ({"sink": "x.out"}, "output_format is needed"),
        ({"sink": "x.jsonl.gz"}, "cannot be compressed"),
        ({"sink": "x.txt", "id_field": "n"}, "text holds answers only"),
        ({"sink": "x.csv", "join_source": "Input"}, "CSV of CSV with a header only"),
        ({"sink": "no/such/x.jsonl"}, "the folder of the output does not exist"),
        ({"source": []}, "source must name at least one file"),
    ],
)
async def test_arguments_are_checked_before_anything_is_sent_or_written(
    endpoint: Endpoint[Any, Any],
    rows: Path,
    out: Path,
    models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamValidationError, match=problem):
        await score(endpoint, **{"source": rows, "sink": out, **arguments})
    assert not models.seen
    assert names(tmp_path) == ["rows.jsonl"]


async def test_an_unreachable_service_stops_the_job(rows: Path, out: Path) -> None:
    async with Client(endpoint_url="http://127.0.0.1:1", **CLIENT_ARGUMENTS) as client:
        endpoint = client.endpoint("double", serializer=JSON, deserializer=ANY_ANSWER)
        with pytest.raises(BatchStoppedError, match="0 rows are done"):
            await score(endpoint, rows, out, patience=0)
    assert lines_of(out) == []


async def test_no_file_stays_open(endpoint: Endpoint[Any, Any], rows: Path, out: Path, models: Models) -> None:
    def open_files() -> list[str]:
        found = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return [str(path) for path in found if out.parent in path.parents]

    await stopped_halfway(endpoint, rows, out, models, 20)
    await score(endpoint, rows, out)
    with pytest.raises(BatchOutputError):
        await score(endpoint, rows, out, id_field="n")
    assert open_files() == []


@pytest.mark.parametrize("stops", [False, True])
async def test_a_step_of_closing_that_fails_skips_none_and_hides_nothing(
    client: Client, rows: Path, out: Path, models: Models, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """The empty errors file cannot be removed, which is done before the output is let go."""
    endpoint = client.endpoint("missing" if stops else "double", serializer=JSON, deserializer=JSON)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "out.jsonl.errors.jsonl":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    fault = re.escape(f"cannot write {out}.errors.jsonl: Permission denied")
    with pytest.raises(BatchStoppedError if stops else BatchOutputError) as caught:
        await score(endpoint, rows, out)
    said = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert re.search(f"^stopped: .* closing also failed: {fault}$" if stops else f"^{fault}$", said)
    monkeypatch.undo()
    assert not any(is_open_here(path) for path in out.parent.iterdir())


async def test_a_cancellation_while_the_last_answers_are_written_leaves_nothing_behind(
    endpoint: Endpoint[Any, Any], rows: Path
) -> None:
    begun, stop = asyncio.Event(), asyncio.Event()

    async def taken(records: list[dict[str, Any]]) -> None:
        begun.set()
        await asyncio.Event().wait()

    job = asyncio.create_task(score(endpoint, rows, taken, stop=stop, drain=0))
    await begun.wait()
    stop.set()
    # Until the calls have ended, and nothing but the function is waited for.
    while any(task.get_name().startswith("aiosmrt-map") for task in asyncio.all_tasks()):
        await asyncio.sleep(0.001)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    coroutines = [task.get_coro() for task in asyncio.all_tasks()]
    assert [
        one for one in coroutines if isinstance(one, CoroutineType) and "batch/job" in one.cr_code.co_filename
    ] == []


@pytest.mark.parametrize(("row_bytes", "ahead"), [(10, 512), (50_000, 4 * 2**20 // 50_000)])
async def test_a_slow_sink_holds_up_the_calls(
    client: Client, tmp_path: Path, models: Models, row_bytes: int, ahead: int
) -> None:
    """Twice as many rows as there are calls in flight are held, and a few hundred more if they are small."""
    count = ahead * 3
    rows = tmp_path / "rows.txt"
    rows.write_text("".join(f"{number:0{row_bytes}d}\n" for number in range(count)))
    taken: list[dict[str, Any]] = []
    gate, blocked = asyncio.Event(), asyncio.Event()

    async def take(records: list[dict[str, Any]]) -> None:
        if taken:
            blocked.set()
            await gate.wait()
        taken.extend(records)

    endpoint = client.endpoint("echo", serializer=TEXT, deserializer=TEXT)
    job = asyncio.create_task(score(endpoint, rows, take, max_concurrency=4))
    await blocked.wait()
    written, before = len(taken), 0
    while (seen := models.seen.total()) > before:
        # As long as it makes calls while as many others are made.
        before = seen
        for _ in range(30):
            await client.endpoint("double", serializer=JSON, deserializer=JSON).predict({"n": -1})
        models.seen.pop(b'{"n":-1}')
    assert seen - written <= 2 * 4 + ahead
    gate.set()
    assert (await job).scored == count == len(taken)
