"""What all benchmarks report: the environment, a table to read, and JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("aiohttp", "aiobotocore", "botocore", "boto3", "uvloop")


def environment() -> dict[str, Any]:
    """Describe the interpreter, the packages and the machine."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(cores()),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def stay_on(core: int) -> None:
    """Keep this process on one core, if the system allows it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the first column left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    print(f"\n{title}\n")
    for row in (heads, ["-" * width for width in widths], *rows):
        first, *others = zip(row, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip())
    sys.stdout.flush()


def against_target(what: str, measured: float, limit: float, *, at_most: bool, unit: str = "") -> dict[str, Any]:
    """Compare a figure with its target.

    Args:
        what: what was measured.
        measured: the figure.
        limit: its target.
        at_most: whether the target is an upper limit.
        unit: of both, with a space before it.
    """
    return {
        "what": what,
        "target": f"{'≤' if at_most else '≥'} {limit:.3g}{unit}",
        "measured": measured,
        "unit": unit,
        "met": measured <= limit if at_most else measured >= limit,
    }


def print_targets(title: str, figures: Sequence[dict[str, Any]]) -> None:
    """Print what `against_target` returned, a row each."""
    rows = [
        [each["what"], each["target"], f"{each['measured']:.3f}{each['unit']}", "yes" if each["met"] else "NO"]
        for each in figures
    ]
    print_table(title, ["", "target", "measured", "met"], rows)


def write_json(path: Path | None, report: Any) -> None:
    """Write a report, if there is a path."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")
