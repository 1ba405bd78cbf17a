"""``aiosmrt bench``: how many calls an endpoint takes, and how long they take then.

A line for each step goes to standard output as the step ends. The exit status:

====  ===========================================================================================
0     the test was made, or stopped because the service was over-saturated
130   interrupted by Ctrl-C or SIGTERM; what was measured until then is printed and written
252   invalid command: options that are unknown, missing, out of range, or do not fit together
254   the service refuses every call: an endpoint that does not exist, refused credentials
255   anything else: a service that cannot be reached, a file that cannot be written
====  ===========================================================================================
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from aiosmrt._wire.operations import BY_NAME
from aiosmrt.cli.options import (
    GlobalOptions,
    binary_format,
    choice_option,
    count_option,
    make_command,
    max_concurrency_option,
    number_option,
    version_line,
)
from aiosmrt.cli.outfile import STANDARD_OUTPUT, Outfile
from aiosmrt.cli.parameters import HELP, ParameterError, option_name, request_parameters

__all__ = ["bench"]

_MEMBERS = (
    *("ContentType", "Accept", "CustomAttributes", "InferenceComponentName", "TargetVariant", "TargetModel"),
    *("TargetContainerHostname", "SessionId", "PrefixAwareId"),
)
# About what is printed for one response.
_NOT_HERE = frozenset({"output", "query"})


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> list[float] | None:
    """Numbers in ascending order, such as 1,2,4."""
    if value is None:
        return None
    with suppress(ValueError):
        numbers = [float(part) for part in value.split(",")]
        if numbers == sorted(set(numbers)) and numbers[0] > 0 and numbers[-1] < math.inf:
            return numbers
    raise click.BadParameter(f"must be a number > 0, or several in ascending order such as 1,2,4; got {value!r:.80}")


def _callers(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    numbers = _numbers(context, parameter, value)
    if numbers is None:
        return None
    if not all(number.is_integer() for number in numbers):
        raise click.BadParameter(f"must be integers; got {value!r:.80}")
    return [int(number) for number in numbers]


_OWN_OPTIONS: list[click.Parameter] = [
    click.Option(["--endpoint-name"], required=True, metavar="NAME", help=HELP["EndpointName"]),
    click.Option(["--body"], metavar="VALUE", help=f"{HELP['Body']} @PATH is the same as fileb://PATH."),
    click.Option(["--bodies"], type=click.Path(), metavar="FILE", help="Bodies to send in turn, one on each line."),
    click.Option(
        ["--concurrency"],
        metavar="N[,N...]",
        callback=_callers,
        help="Closed model: steps with so many callers, each of which waits for its answer.  "
        "[default: 1,2,4,8,16,32,64]",
    ),
    click.Option(
        ["--rate"],
        metavar="R[,R...]",
        callback=_numbers,
        help="Open model: steps with so many calls a second, whatever the service does.",
    ),
    choice_option(
        "--arrivals",
        ["poisson", "constant"],
        "When calls come in the open model: at random, or evenly.  [default: poisson]",
    ),
    number_option("--duration", "SECONDS", "Of a step.  [default: 10]", least=0.001, default=10.0),
    number_option(
        "--warm-up", "SECONDS", "Before each step, under the same load, without counting.  [default: 2]", default=2.0
    ),
    number_option(
        "--slo-ms",
        "MS",
        "Milliseconds within which an answer is good; goodput is the good answers a second.",
        exclusive=True,
    ),
    click.Option(["--stream"], is_flag=True, help="Call for response streams; also measure the times of their parts."),
    click.Option(
        ["--as-client"],
        is_flag=True,
        help="Retry, wait and limit as the client does for applications.  [default: one request a call, sent at once]",
    ),
    max_concurrency_option("With --as-client, the client's limit of calls in flight.  [default: 100]"),
    click.Option(["--all-steps"], is_flag=True, help="Go on when the service is over-saturated."),
    count_option(
        "--max-in-flight", "Calls in flight that end a step of the open model.  [default: 10000]", default=10_000
    ),
    click.Option(["--seed"], type=int, metavar="N", help="For arrivals that can be repeated.  [default: random]"),
    *(click.Option([option_name(member), member], metavar="VALUE", help=HELP[member]) for member in _MEMBERS),
    click.Option(
        ["--json", "json_file"],
        type=click.Path(allow_dash=True),
        metavar="FILE",
        help="Write the figures to FILE as JSON; - for standard output.",
    ),
    click.Option(["--report"], type=click.Path(), metavar="FILE", help="Write a page with charts to FILE."),
    click.Option(["--quiet"], is_flag=True, help="Print errors only."),
]


def _run(**given: Any) -> None:
    context = click.get_current_context()
    if given["concurrency"] is not None and given["rate"] is not None:
        raise click.UsageError("only one of --concurrency and --rate may be given", context)
    if (given["body"] is None) == (given["bodies"] is None):
        raise click.UsageError("exactly one of --body and --bodies is required", context)
    if given["max_concurrency"] is not None and not given["as_client"]:
        raise click.UsageError("--max-concurrency needs --as-client", context)
    if given["rate"] is None and given["arrivals"] is not None:
        raise click.UsageError("--arrivals needs --rate", context)
    operation = BY_NAME["InvokeEndpointWithResponseStream" if given["stream"] else "InvokeEndpoint"]
    accepted = {member.name for member in operation.members}
    if refused := [option_name(name) for name in _MEMBERS if given[name] is not None and name not in accepted]:
        raise click.UsageError(f"--stream cannot be combined with {', '.join(refused)}", context)
    options = GlobalOptions.of(context)
    members = {name: given[name] for name in _MEMBERS if given[name] is not None}
    members["EndpointName"] = given["endpoint_name"]
    params = request_parameters(operation, members)
    params.setdefault("ContentType", "application/json")
    bodies = _bodies(options, given)
    _check_page(given["report"])
    with ExitStack() as files:
        # Opened before the first call: a file that cannot be written must not cost a load test.
        json_file, page_file = (
            None if given[name] is None else files.enter_context(Outfile(given[name], atomic=True))
            for name in ("json_file", "report")
        )
        code = asyncio.run(_bench(options, params, bodies, given, json_file=json_file, page_file=page_file))
    context.exit(code)


_HELP = """Measure how many calls an endpoint takes, and how long they take then.

By default, with steps of concurrency: so many callers, each of which calls again when it has its answer. With
--rate, calls come at that rate whatever the service does, and each latency counts from the time at which its call
was meant to begin. Stops when more load brings no more answers.
"""
bench: click.Command = make_command("bench", _run, _OWN_OPTIONS, _NOT_HERE, _HELP)


def _check_page(name: str | None) -> None:
    if name is None or name == STANDARD_OUTPUT:
        return
    from aiosmrt.batch.recorder import page_fault

    path = Path(name)
    # Devices and pipes are written to, not replaced.
    if path.is_file() and (fault := page_fault(path)) is not None:
        raise ParameterError("--report", fault)


def _bodies(options: GlobalOptions, given: dict[str, Any]) -> list[bytes]:
    if given["body"] is not None:
        text: str = given["body"]
        if text.startswith("@"):
            text = f"fileb://{text[1:]}"
        is_base64 = binary_format(options) == "base64"
        body: bytes = request_parameters(BY_NAME["InvokeEndpoint"], {"Body": text}, text_is_base64=is_base64)["Body"]
        return [body]
    path = Path(given["bodies"])
    try:
        bodies = [line for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise ParameterError("--bodies", f"Unable to load {path}: {error}") from error
    if not bodies:
        raise ParameterError("--bodies", f"{path} has no lines")
    return bodies


async def _bench(
    options: GlobalOptions,
    params: dict[str, Any],
    bodies: list[bytes],
    given: dict[str, Any],
    *,
    json_file: Outfile | None,
    page_file: Outfile | None,
) -> int:
    from aiosmrt.bench import LoadTest, Plan, sender, unaided
    from aiosmrt.bench.arrivals import doubling

    is_open = given["rate"] is not None
    plan = Plan(
        model="open" if is_open else "closed",
        loads=given["rate"] or given["concurrency"] or doubling(64),
        seconds=given["duration"],
        warm_up=given["warm_up"],
        slo=None if given["slo_ms"] is None else given["slo_ms"] / 1000,
        kind=given["arrivals"] or "poisson",
        max_in_flight=given["max_in_flight"],
        stops=not given["all_steps"],
    )
    say = _nothing if given["quiet"] or given["json_file"] == "-" else _print
    facts = _facts(plan, given["as_client"])
    for fact in facts:
        say(fact)
    say("")
    table = _Table(plan, streams=given["stream"])
    say(table.head)
    seed = given["seed"] if given["seed"] is not None else random.SystemRandom().randrange(1 << 32)
    code = 0
    # A load test sends every call at once, unless the client's own limit is part of what it tests.
    limit = given["max_concurrency"] if given["as_client"] else plan.concurrency
    async with options.client(**({} if limit is None else {"max_concurrency": limit})) as client:
        test = LoadTest(
            sender(client if given["as_client"] else unaided(client, plan), params, stream=given["stream"]),
            bodies,
            plan,
            on_step=lambda step: say(table.row(step)),
            random=random.Random(seed).random,  # noqa: S311 (arrivals are no secret)
        )
        with _termination():
            try:
                await test.run()
            except asyncio.CancelledError:
                code = 130
    report = test.report
    if report.stopped is not None:
        say(f"\nstopped: {report.stopped}")
    if code:
        sys.stderr.write("interrupted: the figures are those of the steps that are over\n")
    for line in _conclusions(report):
        say(line)
    figures = {
        "endpoint": given["endpoint_name"],
        "operation": "InvokeEndpointWithResponseStream" if given["stream"] else "InvokeEndpoint",
        "settings": {
            "model": plan.model,
            "loads": list(plan.loads),
            "duration": plan.seconds,
            "warm_up": plan.warm_up,
            "slo": plan.slo,
            "arrivals": plan.kind if is_open else None,
            "seed": seed if is_open and plan.kind == "poisson" else None,
            "as_client": given["as_client"],
            "bodies": len(bodies),
        },
        "notes": facts,
        **report.as_dict(),
    }
    if json_file is not None:
        json_file.write(f"{json.dumps(figures, indent=2)}\n".encode())
    if page_file is not None:
        from aiosmrt.bench.page import bench_page

        footnote = f"Made by {version_line().split()[0]} bench."
        page_file.write(bench_page(given["endpoint_name"], facts, report, plan.slo, footnote=footnote).encode())
    return code


def _facts(plan: Any, as_client: bool) -> list[str]:
    """What a reader has to know of the figures; how latency counts comes first."""
    if plan.model == "open":
        first = (
            f"open model, {'random (Poisson)' if plan.kind == 'poisson' else 'even'} arrivals: latency counts from the "
            "time at which a call was meant to begin, so a slow service cannot hide its queue (no coordinated omission)"
        )
    else:
        first = (
            "closed model: callers wait for their answers, so a slow service is asked less, and latency leaves out "
            "those who would have called in between (coordinated omission); the open model, --rate, does not"
        )
    second = (
        "the client helps as it does for applications: retries, waits and its limit are part of the latency, and hide "
        "failures"
        if as_client
        else "every call is one request, sent at once: no retries, no waits, no limiter hides what the service does"
    )
    return [first, second]


def _conclusions(report: Any) -> Iterator[str]:
    """What the steps say together."""
    from aiosmrt.bench.steps import lateness_note

    notes = [note for step in report.steps if (note := lateness_note(step)) is not None]
    if notes:
        yield f"\n{notes[-1]}"
    if report.knee is None and any(step.succeeded for step in report.steps):
        yield "\nno knee: every load was more than the service could keep up with"
    if report.knee is not None:
        step = report.knee
        unit = "calls/s" if step.model == "open" else "caller" if step.load == 1 else "callers"
        load = f"{step.load:g} {unit}"
        beyond = (
            "the knee may be beyond it, as no step had more load"
            if step is report.steps[-1]
            else "beyond it, more load brings more waiting than answers"
        )
        median = _milliseconds(step.latency.percentile(50))
        yield f"\nknee: {load}, {step.throughput:,.4g} answers/s, p50 {median} ms; {beyond}"
    failures: Counter[str] = sum((step.failures for step in report.steps), Counter())
    if failures:
        yield "failures: " + ", ".join(f"{count:,} {cause}" for cause, count in failures.most_common())


class _Table:
    """The lines of the steps.

    Args:
        plan: what is done.
        streams: whether calls are for streams.
    """

    def __init__(self, plan: Any, *, streams: bool) -> None:
        self._columns = ["calls/s" if plan.model == "open" else "callers", "answers/s"]
        if plan.slo is not None:
            self._columns.append("good/s")
        self._columns += ["p50 ms", "p90", "p95", "p99", "p99.9", "max", "failed"]
        if streams:
            self._columns += ["1st p50", "1st p99", "gap p50", "gap p99"]
        self._has_slo = plan.slo is not None
        self._streams = streams

    @property
    def head(self) -> str:
        return self._line(self._columns)

    def row(self, step: Any) -> str:
        """A step's line."""
        from aiosmrt.bench.steps import PERCENTS

        latency = step.latency
        cells = [f"{step.load:g}", f"{step.throughput:,.1f}"]
        if self._has_slo:
            cells.append(f"{step.goodput:,.1f}")
        cells += [_milliseconds(latency.percentile(percent)) for percent in (*PERCENTS, 100)]
        cells.append(f"{step.failed:,}")
        if self._streams:
            cells += [
                _milliseconds(times.percentile(percent))
                for times in (step.first_part, step.gaps)
                for percent in (50, 99)
            ]
        return self._line(cells)

    @staticmethod
    def _line(cells: list[str]) -> str:
        return "  ".join(cell.rjust(9) for cell in cells)


def _milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with three digits, or a dash for none."""
    if not math.isfinite(seconds):
        return "-"
    value = seconds * 1000
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@contextmanager
def _termination() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C: what was measured is kept."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _nothing(line: str) -> None:
    pass
