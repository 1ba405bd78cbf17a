"""``aiosmrt bench`` as a process: options, exit statuses, what it prints and writes."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from aiosmrt import Client
from aiosmrt.bench import LoadTest, Plan, sender, unaided
from aiosmrt.cli import main
from aiosmrt.local import Invocation, LocalRuntime, faults
from tests.support.command_line import PROGRAM, Ended, environment, run, started
from tests.support.peers import CLIENT_ARGUMENTS, isolate_aws
from tests.support.runtime import local_runtime

Command = Callable[..., Awaitable[Ended]]

FAST = ("--duration", "0.3", "--warm-up", "0.1")


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS setting of the machine reaches a test."""
    isolate_aws(monkeypatch, tmp_path)


class Models:
    """A model for each kind of call, and the bodies that were sent."""

    def __init__(self) -> None:
        self.bodies: set[bytes] = set()
        self.in_flight = self.peak = 0

    async def answer(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        self.bodies.add(invocation.body)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        await asyncio.sleep(0.005)
        self.in_flight -= 1
        return b"{}", {"Content-Type": "application/json"}

    async def words(self, invocation: Invocation) -> AsyncIterator[bytes]:
        for word in (b"To ", b"be ", b"or"):
            yield word


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
async def runtime(models: Models) -> AsyncIterator[LocalRuntime]:
    async with local_runtime({"churn": models.answer, "llm": models.words}, record_bodies=True) as running:
        yield running


@pytest.fixture
def command(runtime: LocalRuntime, tmp_path: Path) -> Command:
    """Run `aiosmrt bench` in the temporary folder."""

    async def call(*arguments: str, endpoint: str = "churn") -> Ended:
        env = environment(tmp_path, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url)
        return await run(*PROGRAM, "bench", "--endpoint-name", endpoint, *arguments, *FAST, env=env, cwd=tmp_path)

    return call


async def test_a_closed_model(command: Command, models: Models, runtime: LocalRuntime, tmp_path: Path) -> None:
    (tmp_path / "bodies.jsonl").write_text('{"n": 1}\n\n{"n": 2}\n')
    files = ("--json", "figures.json", "--report", "page.html")
    ended = await command("--bodies", "bodies.jsonl", "--concurrency", "1,3", "--slo-ms", "10000", *files)
    assert (ended.code, ended.stderr) == (0, b"")
    first, second, blank, head, one, three, *_ = ended.stdout.decode().splitlines()
    assert first.startswith("closed model: ")
    assert "(coordinated omission)" in first
    assert "no retries, no waits, no limiter" in second
    assert blank == ""
    assert " ".join(head.split()) == "callers answers/s good/s p50 ms p90 p95 p99 p99.9 max failed"
    assert [line.split()[0] for line in (one, three)] == ["1", "3"]
    assert "knee: " in ended.stdout.decode()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["notes"][0] == first
    assert [step["load"] for step in figures["steps"]] == [1, 3]
    assert all(step["failed"] == 0 and 0 < step["goodput"] <= step["throughput"] for step in figures["steps"])
    assert figures["steps"][0]["latency"]["minimum"] >= 0.005
    assert figures["settings"]["slo"] == 10.0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert models.bodies == {b'{"n": 1}', b'{"n": 2}'}
    assert {request.headers["content-type"] for request in runtime.requests if request.headers} == {"application/json"}


async def test_a_load_that_is_too_much_from_the_beginning(command: Command) -> None:
    ended = await command("--body", "{}", "--rate", "2000", "--max-in-flight", "2")
    assert (ended.code, ended.stderr) == (0, b"")
    text = ended.stdout.decode()
    assert "stopped: too many calls were in flight at once: 2\n" in text
    assert "no knee: every load was more than the service could keep up with" in text


async def test_an_open_model(command: Command, tmp_path: Path) -> None:
    ended = await command("--body", "{}", "--rate", "20,40", "--arrivals", "constant", "--json", "-")
    assert (ended.code, ended.stderr) == (0, b"")
    figures = json.loads(ended.stdout)
    assert figures["notes"][0].startswith("open model, even arrivals: latency counts from the time")
    assert "no coordinated omission" in figures["notes"][0]
    assert [step["sent"] for step in figures["steps"]] == [6, 12]


async def test_streams(command: Command) -> None:
    ended = await command("--body", "{}", "--stream", "--concurrency", "2", "--json", "-", endpoint="llm")
    assert (ended.code, ended.stderr) == (0, b"")
    (step,) = json.loads(ended.stdout)["steps"]
    assert step["first_part"]["count"] == step["sent"] == step["succeeded"] > 0
    assert step["gaps"]["count"] == 2 * step["sent"]


async def test_failures_are_not_hidden(command: Command, runtime: LocalRuntime) -> None:
    runtime.inject("churn", faults.throttling().every(2))
    ended = await command("--body", "{}", "--concurrency", "4", "--all-steps")
    assert ended.code == 0
    assert "ThrottlingError" in ended.stdout.decode().splitlines()[-1]


async def test_as_a_client_its_own_limit_holds(command: Command, models: Models) -> None:
    """Eight callers share two slots of the client."""
    ended = await command("--body", "1", "--concurrency", "8", "--as-client", "--max-concurrency", "2")
    assert ended.code == 0, ended.stderr
    assert models.peak == 2


async def test_an_endpoint_that_does_not_exist(command: Command, tmp_path: Path) -> None:
    ended = await command("--body", "{}", "--quiet", "--json", "figures.json", endpoint="missing")
    assert (ended.code, ended.stdout, ended.stderr.count(b"\n")) == (254, b"", 1)
    assert b"missing" in ended.stderr
    assert not (tmp_path / "figures.json").exists()


async def test_an_interrupted_test_keeps_what_was_measured(runtime: LocalRuntime, tmp_path: Path) -> None:
    env = environment(tmp_path, AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=runtime.url)
    arguments = ("--body", "{}", "--concurrency", "1,2", "--warm-up", "0", "--duration", "0.5", "--json", "f.json")
    command = (*PROGRAM, "bench", "--endpoint-name", "churn", *arguments)
    async with started(*command, env=env, cwd=tmp_path) as process:
        assert process.stdout is not None
        lines = []
        while not lines or lines[-1].split()[:1] != [b"1"]:
            lines.append(await process.stdout.readline())
            assert lines[-1], lines
        process.send_signal(signal.SIGTERM)
        _, said = await process.communicate()
    assert process.returncode == 130
    assert said == b"interrupted: the figures are those of the steps that are over\n"
    figures = json.loads((tmp_path / "f.json").read_text())
    assert ([step["load"] for step in figures["steps"]], figures["finished"]) == ([1], False)


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ((), 252, "exactly one of --body and --bodies is required"),
        (("--body", "{}", "--bodies", "rows.jsonl"), 252, "exactly one of --body and --bodies is required"),
        (("--body", "{}", "--rate", "1", "--concurrency", "1"), 252, "only one of --concurrency and --rate"),
        (("--body", "{}", "--arrivals", "poisson"), 252, "--arrivals needs --rate"),
        (("--body", "{}", "--max-concurrency", "2"), 252, "--max-concurrency needs --as-client"),
        (("--body", "{}", "--concurrency", "2,1"), 252, "in ascending order"),
        (("--body", "{}", "--concurrency", "1.5"), 252, "must be integers"),
        (("--body", "{}", "--concurrency", "0"), 252, "must be a number > 0"),
        (("--body", "{}", "--rate", "fast"), 252, "must be a number > 0"),
        (("--body", "{}", "--rate", "nan"), 252, "must be a number > 0"),
        (("--body", "@none"), 252, "Unable to load"),
        (("--bodies", "none"), 252, "Unable to load"),
        (("--bodies", "empty"), 252, "has no lines"),
        (("--body", "{}", "--stream", "--target-model", "m"), 252, "--stream cannot be combined with --target-model"),
        (("--body", "{}", "--report", "no/folder/page.html"), 255, "No such file"),
        (("--body", "{}", "--report", "empty"), 252, "empty is not a report page"),
    ],
)
def test_one_line_says_what_is_wrong(
    arguments: tuple[str, ...],
    code: int,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n")
    connection = ("--endpoint-url", "http://127.0.0.1:1", "--region", "eu-central-1")
    assert main(["bench", "--endpoint-name", "churn", *connection, *arguments]) == code
    printed = capsys.readouterr()
    assert problem in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)


async def test_an_unaided_client_sends_every_call_once_and_at_once(runtime: LocalRuntime) -> None:
    """Whatever fails: nothing is retried, no limit is lowered, no call waits for another."""
    runtime.inject("churn", faults.throttling())
    plan = Plan(model="closed", loads=[8], seconds=0.3, warm_up=0.0)
    most = 0

    def look(view: Client) -> None:
        nonlocal most
        most = max(most, view.statistics().waiting)

    async with Client(endpoint_url=runtime.url, patience=5.0, **CLIENT_ARGUMENTS) as client:
        view = unaided(client, plan)
        send = sender(view, {"EndpointName": "churn"})

        async def watched(body: bytes, on_part: Any) -> None:
            look(view)
            await send(body, on_part)

        (step,) = (await LoadTest(watched, [b"{}"], plan).run()).steps
        statistics = view.statistics()
    assert step.failures == {"ThrottlingError": step.sent}
    assert (statistics.attempts, dict(statistics.retries), most) == (step.sent, {}, 0)
    assert statistics.endpoints["churn"].max_concurrency == 8
