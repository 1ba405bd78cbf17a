"""How long does a process take until its first response, and how much memory?

    python benchmarks/startup.py [--rounds 15] [--json startup.json]

Each sample is a fresh interpreter that imports and creates one client and reports its first response; the parent
measures the time from before the start of the child until that report. Three scenarios:

- environment: credentials, region and endpoint URL in environment variables; one call to a loopback server;
- profile: the same settings in ``~/.aws/config`` and ``~/.aws/credentials``;
- AWS's host: credentials and region in environment variables without an endpoint URL, so that the endpoint rules are
  evaluated; the result is a presigned URL, because there is nothing to call.

Peers are aiobotocore and boto3; bounds are a bare interpreter and an unsigned call with aiohttp. Rounds are interleaved
and each begins with another peer; the first warms byte code and file cache and is discarded. The report has medians,
and the median of the rounds' ratios to aiosmrt. Memory is the peak of the resident set.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from loopback_server import JSON_BODY, running
from reporting import environment, print_table, write_json

REGION = "eu-central-1"
ENDPOINT = "startup"
URL_VARIABLE = "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"

# Reports the response, then the CPU time and memory used.
REPORT = """
def report(answer):
    assert answer == EXPECTED, answer
    sys.stdout.write("answered\\n")
    sys.stdout.flush()
    peak = 0
    try:
        # Unlike getrusage, this leaves out what the parent used before the exec.
        with open("/proc/self/status") as status:
            peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(time.process_time(), peak, len(sys.modules))
"""

INVOKE = {
    "aiosmrt": """
import asyncio, aiosmrt
async def main():
    async with aiosmrt.Client() as client:
        response = await client.invoke_endpoint(EndpointName=ENDPOINT, Body=b"{}")
        report(await response["Body"].read())
asyncio.run(main())
""",
    "aiobotocore": """
import asyncio
from aiobotocore.session import get_session
async def main():
    async with get_session().create_client("sagemaker-runtime") as client:
        response = await client.invoke_endpoint(EndpointName=ENDPOINT, Body=b"{}")
        async with response["Body"] as body:
            report(await body.read())
asyncio.run(main())
""",
    "boto3": """
import boto3
response = boto3.client("sagemaker-runtime").invoke_endpoint(EndpointName=ENDPOINT, Body=b"{}")
report(response["Body"].read())
""",
    "aiohttp, unsigned": """
import asyncio, aiohttp
async def main():
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{URL}/endpoints/{ENDPOINT}/invocations", data=b"{}") as response:
            report(await response.read())
asyncio.run(main())
""",
    "interpreter alone": "report(EXPECTED)",
}

PRESIGN = {
    "aiosmrt": """
import asyncio, aiosmrt
async def main():
    async with aiosmrt.Client() as client:
        url = await client.generate_presigned_url("invoke_endpoint", Params={"EndpointName": ENDPOINT, "Body": b"{}"})
        report(url.split("?")[0])
asyncio.run(main())
""",
    "aiobotocore": """
import asyncio
from aiobotocore.session import get_session
async def main():
    async with get_session().create_client("sagemaker-runtime") as client:
        url = await client.generate_presigned_url("invoke_endpoint", Params={"EndpointName": ENDPOINT, "Body": b"{}"})
        report(url.split("?")[0])
asyncio.run(main())
""",
    "boto3": """
import boto3
client = boto3.client("sagemaker-runtime")
url = client.generate_presigned_url("invoke_endpoint", Params={"EndpointName": ENDPOINT, "Body": b"{}"})
report(url.split("?")[0])
""",
    "interpreter alone": "report(EXPECTED)",
}


class Sample(NamedTuple):
    """One process: seconds to the response, CPU seconds, bytes of memory, loaded modules."""

    wall: float
    cpu: float
    memory_bytes: int
    modules: int


class Scenario(NamedTuple):
    """An environment, and the programs measured in it."""

    name: str
    environ: dict[str, str]
    programs: dict[str, str]
    expected: bytes | str


def scenarios(url: str, home: Path) -> list[Scenario]:
    """Return the three scenarios; writes the files of the second."""
    base = {name: os.environ[name] for name in ("PATH", "LANG", "VIRTUAL_ENV") if name in os.environ}
    base |= {"HOME": str(home / "empty"), "AWS_EC2_METADATA_DISABLED": "true"}
    keys = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "not-a-real-secret"}
    region = {"AWS_DEFAULT_REGION": REGION}
    files = home / "profile" / ".aws"
    files.mkdir(parents=True)
    (files / "config").write_text(f"[default]\nregion = {REGION}\nendpoint_url = {url}\n")
    (files / "credentials").write_text(
        "[default]\n" + "".join(f"{name.lower()} = {value}\n" for name, value in keys.items())
    )
    host = f"https://runtime.sagemaker.{REGION}.amazonaws.com/endpoints/{ENDPOINT}/invocations"
    return [
        Scenario("environment", base | keys | region | {URL_VARIABLE: url}, INVOKE, JSON_BODY),
        Scenario("profile", base | {"HOME": str(home / "profile")}, INVOKE, JSON_BODY),
        Scenario("AWS's host", base | keys | region, PRESIGN, host),
    ]


def sample(scenario: Scenario, peer: str, url: str) -> Sample:
    """Start a process and wait for its response."""
    prelude = f"import sys, time\nENDPOINT, URL, EXPECTED = {ENDPOINT!r}, {url!r}, {scenario.expected!r}\n"
    program = prelude + REPORT + scenario.programs[peer]
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", program], env=scenario.environ, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        word = child.stdout.readline()
        wall = time.perf_counter() - began
        rest = child.stdout.read()
    if child.returncode != 0 or word != "answered\n":
        raise RuntimeError(f"{peer} failed in scenario {scenario.name!r}")
    cpu, memory, modules = rest.split()
    return Sample(wall, float(cpu), int(memory), int(modules))


def measure(scenario: Scenario, url: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Return medians by peer; ratios are taken round by round."""
    taken: dict[str, list[Sample]] = {peer: [] for peer in scenario.programs}
    peers = list(taken)
    for number in range(rounds + 1):
        turn = number % len(peers)
        for peer in peers[turn:] + peers[:turn]:
            result = sample(scenario, peer, url)
            if number:
                taken[peer].append(result)
    ours = taken["aiosmrt"]
    return {
        peer: {
            "wall_seconds": statistics.median(one.wall for one in samples),
            "cpu_seconds": statistics.median(one.cpu for one in samples),
            "memory_bytes": statistics.median(one.memory_bytes for one in samples),
            "modules": samples[0].modules,
            "wall_ratio": statistics.median(one.wall / mine.wall for one, mine in zip(samples, ours, strict=True)),
            "memory_ratio": statistics.median(
                one.memory_bytes / mine.memory_bytes for one, mine in zip(samples, ours, strict=True)
            ),
        }
        for peer, samples in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time from process start to the first response.")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds (default 15)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()

    report: dict[str, Any] = {"benchmark": "startup", "environment": environment(), "rounds": arguments.rounds}
    report["scenarios"] = {}
    with tempfile.TemporaryDirectory() as home, running() as (server, _):
        for scenario in scenarios(server, Path(home)):
            figures = measure(scenario, server, arguments.rounds)
            report["scenarios"][scenario.name] = figures
            print_table(
                f"{scenario.name}: from process start to the first answer",
                ("client", "wall ms", "CPU ms", "peak MiB", "modules", "wall x aiosmrt", "memory x aiosmrt"),
                [
                    (
                        peer,
                        f"{row['wall_seconds'] * 1e3:.0f}",
                        f"{row['cpu_seconds'] * 1e3:.0f}",
                        f"{row['memory_bytes'] / 2**20:.1f}",
                        str(row["modules"]),
                        f"{row['wall_ratio']:.2f}",
                        f"{row['memory_ratio']:.2f}",
                    )
                    for peer, row in figures.items()
                ],
            )
    write_json(arguments.json, report)


if __name__ == "__main__":
    main()
