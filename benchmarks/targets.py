"""Does the client meet its targets? One row per target: the limit, the measured value, met or not.

    python benchmarks/targets.py [--passes 3] [--client aiosmrt] [--json FILE]

Runs the other benchmarks in separate processes and takes the median of the passes, because figures vary by a few per
cent between processes. Takes about three minutes and needs two idle cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from loopback_server import running
from reporting import against_target, environment, print_targets, write_json
from startup import measure, scenarios

# Each run by its name here: the script and its options, to which the clients are added.
CALLS = {
    "asyncio": ["overhead.py", "--in-flight", "64,256"],
    "uvloop": ["overhead.py", "--in-flight", "64", "--loop", "uvloop"],
    "tls": ["overhead.py", "--in-flight", "64", "--tls"],
    "stream": ["stream.py", "--quick"],
    "uploads": ["uploads.py"],
}
PEERS = {"asyncio": ["aiohttp", "floor"], "stream": ["aiohttp"]}
ROUNDS = 9
STARTUP_ROUNDS = 5

Found = dict[str, Any]


class Row(NamedTuple):
    """A target: its name, whether the limit is an upper one, the limit, and how to find the figure in a pass."""

    what: str
    at_most: bool
    limit: float
    figure: Callable[[Found], float]
    unit: str = ""


def cpu(run: str, bound: str) -> Callable[[Found], float]:
    return lambda found: found[run][0]["cpu_ratio_to"][bound]


def stream(number: int, ratio: str, other: str) -> Callable[[Found], float]:
    return lambda found: found["stream"][number][ratio][other]


ROWS = [
    Row("1 KiB call, 64 in flight: CPU / aiobotocore", True, 1 / 20, cpu("asyncio", "aiobotocore")),
    Row("the same / aiohttp, unsigned", True, 0.35, cpu("asyncio", "aiohttp")),
    Row("the same / floor", True, 2.1, cpu("asyncio", "floor")),
    Row("the same under uvloop: CPU / aiobotocore", True, 1 / 22, cpu("uvloop", "aiobotocore")),
    Row("the same over TLS: CPU / aiobotocore", True, 1 / 16, cpu("tls", "aiobotocore")),
    Row("256 in flight: CPU / own at 64", True, 1.2, lambda found: found["asyncio"][1]["cpu_ratio_to_own"]),
    Row("64 B parts: events/s / aiobotocore", False, 14, stream(0, "speed_ratio_to", "aiobotocore")),
    Row("64 KiB parts: MB/s / aiobotocore", False, 1.8, stream(1, "speed_ratio_to", "aiobotocore")),
    Row("64 KiB parts: MB/s / bytes read with aiohttp", False, 0.6, stream(1, "speed_ratio_to", "aiohttp")),
    Row("64 streams of tokens: CPU / aiobotocore", True, 0.4, stream(2, "cpu_ratio_to", "aiobotocore")),
    Row("6 MiB bodies, four at once: lateness, p99", True, 5, lambda found: p99(found) * 1e3, " ms"),
    Row("6 MiB bodies: aiobotocore's CPU / own", False, 1.45, lambda found: found["uploads"][0]["cpu_lead"]),
    Row("start to first answer: time / aiobotocore", True, 0.55, lambda found: 1 / found["startup"]["wall_ratio"]),
    Row("start to first answer: memory / aiobotocore", True, 0.65, lambda found: 1 / found["startup"]["memory_ratio"]),
]


# `endpoint.py` measures the pooled transport only.
ENDPOINT_ROWS = [
    Row("predict with JSON: CPU on top of invoke_endpoint", True, 15, lambda found: predict_extra(found) * 1e6, " µs"),
    Row("64 B parts as bytes, text, lines, SSE: slowest / raw", False, 0.5, lambda found: slowest(found, *PLAIN_VIEWS)),
    Row("the same as JSON: slowest / raw", False, 0.5, lambda found: slowest(found, *JSON_VIEWS)),
]
PLAIN_VIEWS = ("bytes", "text", "lines", "sse")
JSON_VIEWS = ("jsonl", "json", "json of sse")


def predict_extra(found: Found) -> float:
    return float(found["endpoint"]["calls"]["predict"]["extra"])


def slowest(found: Found, *views: str) -> float:
    return min(1 / found["endpoint"]["views"][view]["ratio"] for view in views)


def p99(found: Found) -> float:
    return float(found["uploads"][0]["lateness_seconds"]["p99"])


def results_of(program: str, *options: str) -> Any:
    """Run a benchmark in a separate process; returns its results."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "report.json")
        command = [sys.executable, str(Path(__file__).with_name(program)), *options, "--rounds", str(ROUNDS)]
        subprocess.run([*command, "--json", str(path)], check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())["results"]


def run(name: str, client: str) -> list[dict[str, Any]]:
    """Return the client's figures at each point of a benchmark."""
    clients = ",".join([client, "aiobotocore", *PEERS.get(name, [])])
    return [point["clients"][client] for point in results_of(*CALLS[name], "--clients", clients)]


def start_up() -> dict[str, Any]:
    """Compare aiobotocore's start with aiosmrt's, with credentials from the environment."""
    with tempfile.TemporaryDirectory() as home, running() as (server, _):
        scenario = scenarios(server, Path(home))[0]
        programs = {peer: scenario.programs[peer] for peer in ("aiosmrt", "aiobotocore")}
        return measure(scenario._replace(programs=programs), server, STARTUP_ROUNDS)["aiobotocore"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a client with its targets.")
    parser.add_argument("--passes", type=int, default=3, help="number of passes (default 3)")
    parser.add_argument("--client", choices=["aiosmrt", "aiosmrt-session"], default="aiosmrt")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args()
    has_endpoint = arguments.client == "aiosmrt"
    passes = [
        {name: run(name, arguments.client) for name in CALLS}
        | {"startup": start_up(), "endpoint": results_of("endpoint.py") if has_endpoint else None}
        for _ in range(arguments.passes)
    ]
    figures = []
    for row in ROWS + ENDPOINT_ROWS * has_endpoint:
        by_pass = [row.figure(found) for found in passes]
        figure = against_target(row.what, statistics.median(by_pass), row.limit, at_most=row.at_most, unit=row.unit)
        figures.append(figure | {"by_pass": by_pass})
    print_targets(f"{arguments.client}, medians of {arguments.passes} passes", figures)
    write_json(arguments.json, {"environment": environment(), "client": arguments.client, "targets": figures})


if __name__ == "__main__":
    main()
