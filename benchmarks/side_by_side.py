"""What does a call cost in several checkouts of the package, loaded side by side in one process?

    python benchmarks/side_by_side.py CHECKOUT CHECKOUT... [--in-flight 64] [--rounds 20] [--calls 2000] [--json FILE]

All share the process, its event loop, the server and the memory's layout, unlike the processes of compare.py, of which
two with the same checkout may differ by a tenth. Name a copy of the first checkout last to see
what is noise. A sample is a number of calls of one checkout; each round begins with another. Ratios are the medians of
the rounds' ratios to the first checkout.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

from harness import CONTENT_TYPE, WHO, median_ratio, seconds_and_cpu
from loopback_server import raise_descriptor_limit, running
from overhead import ENDPOINT, Work, sharing_out
from reporting import cores, environment, print_table, stay_on, write_json

PACKAGE = "aiosmrt"
Modules = dict[str, ModuleType]


def of_package() -> Modules:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == PACKAGE}


@contextmanager
def using(modules: Modules) -> Iterator[None]:
    """Let imports in functions find the modules of one checkout."""
    before = of_package()
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules)
    try:
        yield
    finally:
        modules.update(of_package())
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


def load(checkout: Path) -> Modules:
    """Import the package of a checkout; exits if that is not where it comes from."""
    modules: Modules = {}
    sys.path.insert(0, str(checkout))
    try:
        with using(modules):
            package = importlib.import_module(PACKAGE)
            # loads what the package loads on first use
            _ = package.Client
    finally:
        sys.path.pop(0)
    if not Path(str(package.__file__)).resolve().is_relative_to(checkout):
        sys.exit(f"{checkout}: not a checkout: {PACKAGE} is imported from {package.__file__}")
    return modules


def work_of(client: Any) -> Work:
    async def call(body: bytes) -> bytes:
        response = await client.invoke_endpoint(EndpointName=ENDPOINT, ContentType=CONTENT_TYPE, Body=body)
        received: bytes = await response["Body"].read()
        return received

    return sharing_out(call)


async def samples_of(url: str, packages: list[Modules], in_flight: int, rounds: int, calls: int) -> list[list[float]]:
    """CPU seconds per call, by checkout and round."""
    body = bytes(1024)
    async with AsyncExitStack() as stack:
        works: list[Work] = []
        for modules in packages:
            with using(modules):
                client = modules[PACKAGE].Client(**WHO, endpoint_url=url, max_concurrency=in_flight)
                works.append(work_of(await stack.enter_async_context(client)))
                await works[-1](body, 8 * in_flight, in_flight)
        taken: list[list[float]] = [[] for _ in packages]
        for number in range(rounds):
            turn = number % len(works)
            for which in (*range(turn, len(works)), *range(turn)):
                with using(packages[which]):
                    _, cpu = await seconds_and_cpu(partial(works[which], body, calls, in_flight))
                taken[which].append(cpu / calls)
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare what a call costs in several checkouts, in one process.")
    parser.add_argument("checkouts", nargs="+", type=lambda text: Path(text).resolve(), metavar="CHECKOUT")
    parser.add_argument("--in-flight", type=int, default=64, help="calls in flight")
    parser.add_argument("--rounds", type=int, default=20, help="number of rounds")
    parser.add_argument("--calls", type=int, default=2000, help="calls per sample")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args()
    packages = [load(checkout) for checkout in arguments.checkouts]
    raise_descriptor_limit()
    available = cores()
    with running(core=available[-1]) as (url, _):
        stay_on(available[0])
        taken = asyncio.run(samples_of(url, packages, arguments.in_flight, arguments.rounds, arguments.calls))
    results = [
        {
            "checkout": str(checkout),
            "cpu_seconds_per_call": median(samples),
            "cpu_ratio_to_first": median_ratio(samples, taken[0]),
        }
        for checkout, samples in zip(arguments.checkouts, taken, strict=True)
    ]
    rows = [
        [str(found["checkout"]), f"{found['cpu_seconds_per_call'] * 1e6:.1f}", f"{found['cpu_ratio_to_first']:.3f}"]
        for found in results
    ]
    print_table(f"invoke_endpoint, {arguments.in_flight} in flight", ["checkout", "µs a call", "ratio"], rows)
    write_json(arguments.json, {"environment": environment(), "in_flight": arguments.in_flight, "results": results})


if __name__ == "__main__":
    main()
