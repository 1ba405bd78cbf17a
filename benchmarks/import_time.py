"""How much does ``import aiosmrt`` cost, beside the ``import aiohttp`` that it contains?

Each round starts a fresh interpreter per peer, in turn, and times the import statement inside it. So the start of
Python is not counted, and a slow spell of the machine affects all peers alike. The first round warms byte code and file
cache and is discarded. The report has medians, and the median of the rounds' ratios to aiohttp.

    python benchmarks/import_time.py [--rounds 21] [--json import_time.json]
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

FLOOR = "aiohttp"
PEERS = ("aiosmrt", "aiohttp", "boto3", "aiobotocore.session")

PROBE = """
import sys, time
start, cpu = time.perf_counter(), time.process_time()
import {module}
print(time.perf_counter() - start, time.process_time() - cpu, len(sys.modules))
"""


def probe(module: str) -> tuple[float, float, int]:
    """Measure wall seconds, CPU seconds and loaded modules of one import in a fresh interpreter."""
    # If set, every round would compile the modules again.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(module=module)], env=environ, capture_output=True, check=True, text=True
    )
    wall, cpu, modules = done.stdout.split()
    return float(wall), float(cpu), int(modules)


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Return medians by peer; ratios are taken round by round."""
    samples: dict[str, list[tuple[float, float, int]]] = {peer: [] for peer in PEERS}
    for number in range(rounds + 1):
        for peer in PEERS:
            sample = probe(peer)
            if number:
                samples[peer].append(sample)
    floor = samples[FLOOR]
    return {
        peer: {
            "wall_seconds": statistics.median(wall for wall, _, _ in taken),
            "cpu_seconds": statistics.median(cpu for _, cpu, _ in taken),
            "wall_ratio": statistics.median(mine[0] / its[0] for mine, its in zip(taken, floor, strict=True)),
            "cpu_ratio": statistics.median(mine[1] / its[1] for mine, its in zip(taken, floor, strict=True)),
            "modules": taken[0][2],
        }
        for peer, taken in samples.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time `import aiosmrt` beside `import aiohttp`.")
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds (default 21)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()

    figures = measure(arguments.rounds)
    versions = {name: importlib.metadata.version(name) for name in ("aiosmrt", "aiohttp", "boto3", "aiobotocore")}
    print(
        f"Python {platform.python_version()}, {', '.join(f'{name} {version}' for name, version in versions.items())}\n"
    )
    print(f"{'import':<24}{'wall ms':>10}{'CPU ms':>10}{'x aiohttp':>12}{'x (CPU)':>10}{'modules':>10}")
    for peer, row in figures.items():
        print(
            f"{peer:<24}{row['wall_seconds'] * 1e3:>10.1f}{row['cpu_seconds'] * 1e3:>10.1f}"
            f"{row['wall_ratio']:>12.2f}{row['cpu_ratio']:>10.2f}{row['modules']:>10}"
        )
    if arguments.json:
        document = {
            "benchmark": "import_time",
            "python": platform.python_version(),
            "machine": platform.machine(),
            "versions": versions,
            "rounds": arguments.rounds,
            "peers": figures,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
