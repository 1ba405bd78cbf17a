"""``aiosmrt score`` as a process: options, exit statuses, what it prints."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import pty
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aiosmrt.cli import main
from aiosmrt.local import LocalRuntime
from tests.support.command_line import PROGRAM, Ended, environment, run
from tests.support.scoring import Models, doubled, lines_of, write_rows

Command = Callable[..., Awaitable[Ended]]


@pytest.fixture
def command(runtime: LocalRuntime, tmp_path: Path) -> Command:
    """Run `aiosmrt score` in the temporary folder."""

    async def call(*arguments: str, endpoint: str = "double", stdin: bytes = b"") -> Ended:
        env = environment(tmp_path, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url)
        return await run(*PROGRAM, "score", "--endpoint-name", endpoint, *arguments, env=env, stdin=stdin, cwd=tmp_path)

    return call


@pytest.mark.parametrize(
    ("closed", "arguments", "code", "said"),
    [
        ("<&- 2>&-", ("rows.jsonl",), 0, b""),
        ("<&-", ("-", "--input-format", "jsonl"), 255, b"aiosmrt: error: cannot read -: Bad file descriptor\n"),
        (">&-", ("rows.jsonl", "--json"), 255, b"aiosmrt: error: [Errno 9] Bad file descriptor\n"),
        (">/dev/full", ("rows.jsonl", "--json"), 255, b"aiosmrt: error: [Errno 28] No space left on device\n"),
    ],
)
async def test_standard_streams_that_are_closed_or_full(
    runtime: LocalRuntime, tmp_path: Path, closed: str, arguments: tuple[str, ...], code: int, said: bytes
) -> None:
    write_rows(tmp_path / "rows.jsonl", 20)
    env = environment(tmp_path, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url)
    shell = ("sh", "-c", f'exec "$@" {closed}', "sh", *PROGRAM, "score", "--endpoint-name", "double")
    ended = await run(*shell, *arguments, "--output", "out.jsonl", env=env, cwd=tmp_path)
    assert (ended.code, ended.stderr) == (code, said)
    if code == 0:
        assert lines_of(tmp_path / "out.jsonl") == doubled(20)


async def test_all_rows_scored(command: Command, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 50)
    ended = await command("rows.jsonl", "--output", "out.jsonl")
    assert (ended.code, ended.stdout) == (0, b"")
    assert re.fullmatch(r"50 rows scored in \d+\.\d s \([\d,]+/s\)\n", ended.stderr.decode())
    assert lines_of(tmp_path / "out.jsonl") == doubled(50)


async def test_failed_rows(command: Command, tmp_path: Path, models: Models) -> None:
    write_rows(tmp_path / "rows.jsonl", 50)
    models.refused = {b'{"n": 7}'}
    ended = await command("rows.jsonl", "--output", "out.jsonl")
    assert ended.code == 1
    assert ended.stderr.decode().endswith("; 1 failed, see out.jsonl.errors.jsonl\n")
    ended = await command("rows.jsonl", "--output", "out.jsonl")
    assert ended.code == 1
    assert ended.stderr == b"nothing left to do: 49 rows scored before; 1 failed, see out.jsonl.errors.jsonl\n"
    assert (await command("rows.jsonl", "--output", "out.jsonl", "--quiet")) == (1, b"", b"")
    assert models.seen.total() == 50
    models.refused = set()
    assert (await command("rows.jsonl", "--output", "out.jsonl", "--retry-failed", "--quiet")) == (0, b"", b"")
    assert models.seen.total() == 51
    assert lines_of(tmp_path / "out.jsonl") == doubled(50)


@pytest.mark.parametrize("most", ["3", "10%"])
async def test_too_many_failures(command: Command, tmp_path: Path, models: Models, most: str) -> None:
    write_rows(tmp_path / "rows.jsonl", 100)
    models.refused = {f'{{"n": {number}}}'.encode() for number in range(100)}
    ended = await command("rows.jsonl", "--output", "out.jsonl", "--max-failures", most, "--max-concurrency", "2")
    assert (ended.code, ended.stdout) == (3, b"")
    assert b"items failed, which is more than max_failures allows" in ended.stderr
    assert b"the same job resumes" in ended.stderr
    assert models.seen.total() < 100


async def test_an_endpoint_that_does_not_exist(command: Command, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 100)
    ended = await command("rows.jsonl", "--output", "out.jsonl", endpoint="missing")
    assert (ended.code, ended.stdout, ended.stderr.count(b"\n")) == (3, b"", 1)
    assert b"missing" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("none.jsonl", "--output", "o.jsonl"), 255, "none.jsonl does not exist"),
        (("rows.jsonl", "--output", "mine.jsonl"), 255, "mine.jsonl exists without a journal"),
        (("rows.jsonl", "--output", "o"), 252, "output_format is needed"),
        (("rows.jsonl",), 252, "Missing option '--output'"),
        (("--output", "o.jsonl"), 252, "Missing argument 'INPUT...'"),
        (("rows.jsonl", "--output", "o.jsonl", "--max-failures", "many"), 252, "must be an integer >= 0, or a percent"),
        (("rows.jsonl", "--output", "o.jsonl", "--max-failures", "101%"), 252, "must be an integer >= 0, or a percent"),
        (("rows.jsonl", "--output", "o.jsonl", "--template", "{x}"), 252, "must be JSON"),
        (("rows.jsonl", "--output", "o.jsonl", "--template", "1"), 252, "template must name a column"),
        (("rows.jsonl", "--output", "o.jsonl", "--limit", "0"), 252, "0 is not in the range"),
        (("rows.jsonl", "--output", "o.jsonl", "--target-variant", "?"), 252, "TargetVariant"),
        (("rows.jsonl", "--output", "o.xml"), 252, "output_format is needed"),
        (("rows.jsonl", "--output", "o.jsonl", "--spool", "s"), 252, "spool is for output in S3 and for functions"),
        (
            ("rows.jsonl", "--output", "o.jsonl", "--input-format", "parquet"),
            255,
            "rows.jsonl is damaged, or not Parquet",
        ),
        (("rows.jsonl", "--output", "mine.parquet"), 255, "mine.parquet exists without a journal"),
        (("rows.jsonl", "--output", "", "--output-format", "csv"), 252, "the output must be a file; got ''"),
        (("rows.jsonl", "--output", ".", "--output-format", "csv"), 252, "the output must be a file; got '.'"),
        (("rows.jsonl", "--output", "none/", "--output-format", "csv"), 252, "the output must be a file; got 'none/'"),
        (("rows.jsonl", "--output", "-", "--output-format", "csv"), 252, "the output must be a file, from which the"),
        (("rows.jsonl", "--output", "none/o.csv"), 252, "the folder of the output does not exist: none"),
        (("rows.jsonl", "--output", "/dev/null", "--output-format", "csv"), 255, "must be a regular file; /dev/null"),
        (("", "--output", "o.jsonl"), 252, "source has an empty name"),
        (("rows.jsonl", "--output", "o.jsonl", "--report", "o.jsonl.journal"), 252, "report_page is a file of the out"),
        (("rows.jsonl", "--output", "o.jsonl", "--report", "rows.jsonl"), 252, "rows.jsonl is not a report page"),
        (("rows.jsonl", "--output", "o.jsonl", "--report", "mine.parquet"), 252, "mine.parquet is not a report page"),
        (("rows.jsonl", "--output", "o.jsonl", "--report", "/dev/null"), 252, "/dev/null is not a regular file"),
        (("rows.jsonl", "--output", "o.jsonl", "--report", "none/r.html"), 255, "cannot write none/r.html"),
        (("rows.jsonl", "--output", f"{'o' * 230}.jsonl"), 255, "File name too long"),
        (("s3://b", "--output", "o.jsonl"), 252, "form s3://bucket/key, with a bucket of 3 to 255"),
    ],
)
def test_one_line_says_what_is_wrong_and_nothing_is_written(
    arguments: tuple[str, ...],
    code: int,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", 3)
    for name in ("mine.jsonl", "mine.parquet"):
        (tmp_path / name).write_text("mine")
    connection = ("--endpoint-url", "http://127.0.0.1:1", "--region", "eu-central-1")
    assert main(["score", "--endpoint-name", "double", *connection, *arguments]) == code
    printed = capsys.readouterr()
    assert problem in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.jsonl", "mine.parquet", "rows.jsonl"]
    assert (tmp_path / "mine.jsonl").read_text() == (tmp_path / "mine.parquet").read_text() == "mine"


def test_an_error_that_nobody_foresaw_is_not_the_status_of_failed_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*arguments: Any, **settings: Any) -> None:
        raise KeyError("secret")

    monkeypatch.setattr("aiosmrt.batch.score", fail)
    rows, out = write_rows(tmp_path / "rows.jsonl", 3), tmp_path / "out.jsonl"
    connection = ("--endpoint-url", "http://127.0.0.1:1", "--region", "eu-central-1")
    assert main(["score", "--endpoint-name", "double", *connection, str(rows), "--output", str(out)]) == 255
    printed = capsys.readouterr()
    assert re.fullmatch(r"aiosmrt: error: unexpected KeyError at test_command\.py, line \d+\n", printed.err)


async def test_json(command: Command, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 50)
    ended = await command("rows.jsonl", "--output", "out.jsonl", "--json")
    assert (ended.code, ended.stderr) == (0, b"")
    *progress, last = map(json.loads, ended.stdout.splitlines())
    assert (progress[0]["scored"], progress[-1]["scored"], progress[-1]["fraction"]) == (0, 50, 1.0)
    assert {"in_flight", "max_in_flight", "waiting_for", "retries", "rows_per_second", "remaining"} <= set(progress[0])
    assert last.pop("seconds") > 0
    assert last.pop("rows_per_second") > 0
    assert last == {
        "rows": 50,
        "scored": 50,
        "failed": 0,
        "resumed": 0,
        "retries": 0,
        "finished": True,
        "output": "out.jsonl",
        "errors": None,
    }


async def test_standard_input(command: Command, tmp_path: Path) -> None:
    rows = gzip.compress("".join(f"line {number}\n" for number in range(20)).encode())
    arguments = ("-", "--input-format", "text", "--output", "out.txt", "--quiet")
    assert await command(*arguments, endpoint="echo", stdin=rows) == (0, b"", b"")
    assert (tmp_path / "out.txt").read_text().splitlines() == [f"line {number}" for number in range(20)]


@pytest.mark.parametrize(
    ("files", "arguments", "content_type"),
    [
        ({"a.csv": "x\n1\n"}, ("a.csv",), "text/csv"),
        ({"a.csv": "x\n1\n"}, ("a.csv", "--column", "x"), "text/plain"),
        ({"a.csv": "x\n1\n"}, (".",), "text/csv"),
        ({"a.csv": "x\n1\n"}, ("*.csv",), "text/csv"),
        ({"a.csv": "x\n1\n"}, ("a*",), "text/csv"),
        ({"a.csv": "x\n1\n", ".a.jsonl": "1\n", "out.jsonl": ""}, (".", "--fresh"), "text/csv"),
        ({"a.csv": "x\n1\n"}, ("a.csv", "--template", '{"q": "{x}"}'), "application/json"),
        (
            {"a.csv": "1\n"},
            ("a.csv", "--content-type", "text/csv; label_size=0", "--no-header"),
            "text/csv; label_size=0",
        ),
        ({"a.txt": "x\n"}, ("a.txt",), "text/plain"),
        ({"a.png": "x\n"}, ("a.png", "--split-type", "None"), "application/octet-stream"),
        ({"a.csv": "x\n1\n"}, ("a.csv", "--input-filter", "$[0]"), "text/csv"),
        ({"rows": "1\n"}, ("rows", "--input-format", "jsonl"), "application/json"),
    ],
)
async def test_content_types(
    command: Command,
    runtime: LocalRuntime,
    tmp_path: Path,
    files: dict[str, str],
    arguments: tuple[str, ...],
    content_type: str,
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    ended = await command(*arguments, "--output", "out.jsonl", "--quiet", endpoint="echo")
    assert ended == (0, b"", b"")
    (request,) = runtime.requests
    assert request.headers is not None
    assert request.headers["content-type"] == content_type
    assert "x-amzn-sagemaker-accept" not in request.headers


async def test_a_job_beside_its_input_stays_the_same(command: Command, models: Models, tmp_path: Path) -> None:
    (tmp_path / "z.csv").write_text("x\n1\n")
    for _ in range(2):
        assert await command(".", "--output", "out.jsonl", "--quiet", endpoint="echo") == (0, b"", b"")
    assert models.seen.total() == 1


async def test_members_are_sent(command: Command, runtime: LocalRuntime, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 1)
    members = {
        "--accept": "application/json",
        "--custom-attributes": "a=1",
        "--target-variant": "AllTraffic",
        "--enable-explanations": "`true`",
    }
    flags = [part for option in members.items() for part in option]
    await command("rows.jsonl", "--output", "out.jsonl", *flags)
    (request,) = runtime.requests
    assert request.headers is not None
    assert set(members.values()) <= set(request.headers.values())


async def test_progress_on_a_terminal(runtime: LocalRuntime, models: Models, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 60)

    async def slow(body: bytes) -> None:
        await asyncio.sleep(0.05)

    models.before = slow
    ours, theirs = pty.openpty()
    env = environment(tmp_path, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url, TERM="xterm", COLUMNS="120")
    process = await asyncio.create_subprocess_exec(
        *(*PROGRAM, "score", "rows.jsonl", "--endpoint-name", "double", "--output", "out.jsonl"),
        *("--max-concurrency", "4"),
        env=env,
        cwd=tmp_path,
        stderr=theirs,
    )
    os.close(theirs)

    def read_all() -> bytes:
        read = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how a terminal ends on Linux
                return read
            if not part:
                return read
            read += part

    shown = (await asyncio.to_thread(read_all)).decode()
    os.close(ours)
    assert await process.wait() == 0
    assert re.search(r"\d+ of (about )?60 rows \(\d+%\)", shown)
    assert re.search(r"\d+/s · \d of 4 in flight", shown)
    assert "━" in shown
    assert "60 rows scored in" in shown


# Progress fields that are not the usual ones, and the line of them.
LINES: list[tuple[dict[str, object], list[str]]] = [
    (
        {},
        [
            "12,003 of about 48,000 rows (25%)",
            "1,234/s",
            "8 of 64 in flight",
            "56 waiting: outage",
            "17 retries",
            "3 failed",
            "1:35 left",
        ],
    ),
    (
        {"waiting_for": None, "retries": 0, "is_estimate": False, "remaining": 7300.4},
        ["12,003 of 48,000 rows (25%)", "1,234/s", "8 of 64 in flight", "3 failed", "2:01:40 left"],
    ),
    (
        {"waiting_for": None, "retries": 0, "rows": None, "failed": 0, "remaining": None},
        ["12,000 rows", "1,234/s", "8 of 64 in flight"],
    ),
    (
        {"waiting_for": None, "retries": 0, "rows": 12_004, "failed": 0, "remaining": 0.0},
        ["12,000 of about 12,004 rows (99%)", "1,234/s", "8 of 64 in flight", "0:00 left"],
    ),
]


@pytest.mark.parametrize(("changes", "parts"), LINES)
def test_a_line_of_progress(changes: dict[str, object], parts: list[str]) -> None:
    from aiosmrt.batch import Progress
    from aiosmrt.cli.progress import progress_line

    progress = Progress(12_000, 3, 0, 9.0, 1234.5, 8, 64, "outage", 17, 0.25, 95.4, 56, 48_000, True)
    assert progress_line(progress._replace(**changes)) == " · ".join(parts)


async def test_options_of_several_rows(command: Command, runtime: LocalRuntime, models: Models, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,n\na,1\nb,2\nc,3\n")
    flags = ("--rows-per-request", "2", "--input-filter", "$[1:]", "--join-source", "Input", "--max-failures", "5%")
    flags += ("--output-filter", "$[0,-1]", "--max-concurrency", "adaptive", "--max-payload-mb", "0.5")
    assert await command("rows.csv", "--output", "out.csv", "--quiet", *flags, endpoint="echo") == (0, b"", b"")
    assert (tmp_path / "out.csv").read_text() == "id,prediction\na,1\nb,2\nc,3\n"
    assert sorted(models.seen) == [b"1\n2", b"3"]
    ended = await command(
        "rows.csv", "--output", "all.csv", "--quiet", "--batch-strategy", "MultiRecord", "--fresh", endpoint="echo"
    )
    assert ended == (0, b"", b"")
    assert b"a,1\nb,2\nc,3" in models.seen


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--max-failures", "x"), b"must be an integer >= 0, or a percentage such as 5%"),
        (("--max-failures", "101%"), b"must be an integer >= 0, or a percentage such as 5%"),
        (("--max-concurrency", "0"), b"must be an integer >= 1, or adaptive"),
        (("--rows-per-request", "2", "--batch-strategy", "SingleRecord"), b"excludes --rows-per-request over 1"),
        (("--split-type", "None", "--input-format", "csv"), b"leave --input-format out"),
        (("--input-filter", "x"), b"input_filter must be a JSONPath"),
        (("--asynchronous", "--target-model", "a"), b"does not accept target_model"),
    ],
)
def test_faulty_options_of_several_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any, flags: tuple[str, ...], problem: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("rows.jsonl"), 1)
    connection = ("--endpoint-url", "http://127.0.0.1:1", "--region", "eu-central-1")
    assert main(["score", "rows.jsonl", "--endpoint-name", "e", "--output", "o.jsonl", *connection, *flags]) == 252
    assert problem in capsysbinary.readouterr().err
    assert not Path("o.jsonl").exists()
