"""Did a change make it faster? Run a benchmark with two checkouts of the package, in turns.

    python benchmarks/compare.py SCRIPT --before PATH [--after PATH] [--turns 5] [--control] [--json FILE] -- OPTIONS
    python benchmarks/compare.py overhead.py --before ../old --control -- --clients aiosmrt --rounds 25

What follows ``--`` goes to the benchmark. ``--after`` defaults to the checkout that this file is in. ``--control`` runs
the checkout before a second time: its ratio to the first shows what is noise. A turn starts a process per checkout. A
script that measures with the harness's ``seconds_and_cpu`` runs in all of them at once, and they take their samples
one after the other: sample by sample, a machine that slows down or speeds up favors neither. Processes of any other
script run one after the other, in the order A B, B A, A B, ... PYTHONPATH and the working directory of a process are
its checkout, so paths in the options must be absolute.

Both run this folder's scripts. Where a script cannot be imported with a checkout's package, that checkout's own script
runs in its place, and the report points that out.

The table lists every figure that both report: the medians over the turns, the median of the turns' ratios after /
before, and the lowest and highest of these. Figures are all numbers under "results" in a script's JSON; where that is
missing, those whose name contains "seconds", "per_second" or "memory".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness import TURNS_VARIABLE
from reporting import environment, print_table, write_json

HERE = Path(__file__).resolve().parent
MARKERS = ("seconds", "per_second", "memory")
# What endpoint.py calls its figures in seconds.
IN_SECONDS = ("median", "extra")
SECONDS = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "µs"))

PROBE = """
import sys
import aiosmrt
print(aiosmrt.__file__)
sys.path.insert(0, sys.argv[1])
__import__(sys.argv[2])
"""

Keys = tuple[str, ...]


class Side(NamedTuple):
    """A checkout: what it is called here, where it is, and the script that runs with it."""

    name: str
    checkout: Path
    script: Path


def environ(checkout: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(checkout)}


def side_of(name: str, checkout: Path, script: str) -> Side:
    """Choose the script for a checkout; exits if none can be imported."""
    reason = ""
    for folder in (HERE, checkout / "benchmarks"):
        command = [sys.executable, "-c", PROBE, str(folder), Path(script).stem]
        done = subprocess.run(command, env=environ(checkout), cwd=checkout, capture_output=True, text=True)
        imported = done.stdout.partition("\n")[0]
        if not imported or not Path(imported).resolve().is_relative_to(checkout):
            found = f"aiosmrt is imported from {imported}" if imported else last_line(done.stderr)
            sys.exit(f"{name}: not a usable checkout: {found}")
        if done.returncode == 0:
            if folder != HERE:
                print(f"{name}: runs its own {script}; this folder's cannot be imported with its package: {reason}")
            return Side(name, checkout, folder / script)
        reason = last_line(done.stderr)
    sys.exit(f"{name}: {script} cannot be imported: {reason}")


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def commit_of(checkout: Path) -> str | None:
    """The commit, with "-dirty" where files differ from it; None outside a repository."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def reports_of(sides: Sequence[Side], options: list[str], together: bool) -> list[Any]:
    """Run the benchmark in a process per side; returns their reports, exits where one fails."""
    with tempfile.TemporaryDirectory(prefix="compare-") as directory:
        paths = [Path(directory, f"{number}.json") for number in range(len(sides))]
        commands = [
            [sys.executable, str(side.script), *options, "--json", str(path)]
            for side, path in zip(sides, paths, strict=True)
        ]
        if together:
            in_a_ring(sides, commands)
        else:
            for side, command in zip(sides, commands, strict=True):
                done = subprocess.run(
                    command, env=environ(side.checkout), cwd=side.checkout, capture_output=True, text=True
                )
                check(side, done.returncode, done.stderr)
        return [json.loads(path.read_text()) for path in paths]


def in_a_ring(sides: Sequence[Side], commands: list[list[str]]) -> None:
    """Run processes that take their samples in turns (harness.turn): each reads from a pipe and writes to the next."""
    pipes = [os.pipe() for _ in sides]
    with contextlib.ExitStack() as stack:
        processes = []
        for number, (side, command) in enumerate(zip(sides, commands, strict=True)):
            mine, following = pipes[number][0], pipes[(number + 1) % len(pipes)][1]
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = subprocess.Popen(
                command,
                env=environ(side.checkout) | {TURNS_VARIABLE: f"{mine},{following}"},
                cwd=side.checkout,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(mine, following),
            )
            stack.callback(process.kill)
            processes.append((side, process, errors))
        os.write(pipes[0][1], b".")
        for pipe in pipes:
            for descriptor in pipe:
                os.close(descriptor)
        for side, process, errors in processes:
            status = process.wait()
            errors.seek(0)
            check(side, status, errors.read())


def check(side: Side, status: int, errors: str) -> None:
    if status != 0:
        sys.exit(f"{side.name}: {side.script.name} failed with status {status}\n{errors}")


def figures_of(report: Any) -> dict[Keys, float]:
    """A report's figures by their path."""
    has_results = isinstance(report, dict) and "results" in report
    found: dict[Keys, float] = {}
    for path, value in leaves(report["results"] if has_results else report, ()):
        if has_results or any(marker in path[-1] for marker in MARKERS):
            number, key = 2, path
            while key in found:
                key, number = (*path[:-1], f"{path[-1]} #{number}"), number + 1
            found[key] = value
    return found


def leaves(node: Any, path: Keys) -> Iterator[tuple[Keys, float]]:
    """The numbers in a tree of dictionaries and lists of dictionaries. Lists of numbers are single rounds: left out.

    A dictionary in a list is named after the values that identify it: its strings and, where its figures are in
    dictionaries inside it, its integers.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(node, list):
        for element in node:
            if isinstance(element, dict):
                nested = any(isinstance(value, dict) for value in element.values())
                naming = {
                    key: value
                    for key, value in element.items()
                    if isinstance(value, str) or (nested and isinstance(value, int))
                }
                name = " ".join(value if isinstance(value, str) else f"{key}={value}" for key, value in naming.items())
                rest = {key: value for key, value in element.items() if key not in naming}
                yield from leaves(rest, (*path, name) if name else path)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, float(node)


def in_words(path: Keys, value: float) -> str:
    """A figure with its unit, as far as its name shows it."""
    if any("per_second" in part for part in path):
        return f"{value:,.0f} /s"
    if any("seconds" in part for part in path) or path[-1] in IN_SECONDS:
        scale, unit = next((scale, unit) for least, scale, unit in SECONDS if abs(value) >= least)
        return f"{value * scale:.4g} {unit}"
    if "memory_bytes" in path:
        return f"{value / 2**20:.1f} MiB"
    return f"{value:.4g}"


class Comparison(NamedTuple):
    """A figure on every side in every turn. A ratio is missing where a figure before is not positive."""

    before: list[float]
    after: list[float]
    control: list[float]

    def ratios(self, of: list[float]) -> list[float]:
        if min(self.before) <= 0:
            return []
        return [value / before for before, value in zip(self.before, of, strict=True)] if of else []

    def row(self, path: Keys) -> list[str]:
        row = [" ".join(path), *(in_words(path, statistics.median(values)) for values in (self.before, self.after))]
        for of in (self.after, self.control):
            ratios = self.ratios(of)
            row.append(f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" if ratios else "")
        return row

    def as_json(self) -> dict[str, Any]:
        ratios, noise = self.ratios(self.after), self.ratios(self.control)
        return {
            "before": statistics.median(self.before),
            "after": statistics.median(self.after),
            "ratio": statistics.median(ratios) if ratios else None,
            "control_ratio": statistics.median(noise) if noise else None,
            "before_by_turn": self.before,
            "after_by_turn": self.after,
            "control_by_turn": self.control,
        }


def compare(sides: Sequence[Side], turns: int, options: list[str]) -> dict[Keys, Comparison]:
    """Take turns; returns what was found on every side in every turn, in the order of the first report."""
    taken: dict[str, list[dict[Keys, float]]] = {side.name: [] for side in sides}
    together = all(side.script.parent == HERE and "seconds_and_cpu" in side.script.read_text() for side in sides)
    for turn in range(turns):
        start = time.perf_counter()
        ordered = sides[::-1] if turn % 2 else sides
        for side, report in zip(ordered, reports_of(ordered, options, together), strict=True):
            taken[side.name].append(figures_of(report))
        print(f"turn {turn + 1} of {turns}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    every = [found for side in taken.values() for found in side]
    common = [path for path in every[0] if all(path in found for found in every)]
    if missing := {path for found in every for path in found} - set(common):
        print(f"not in all reports: {', '.join(sorted(' '.join(path) for path in missing))}")
    return {
        path: Comparison(*([found[path] for found in taken.get(name, [])] for name in ("before", "after", "control")))
        for path in common
    }


def main() -> None:
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    own, options = sys.argv[1:split], sys.argv[split + 1 :]
    parser = argparse.ArgumentParser(
        description="Run a benchmark with two checkouts of the package, in turns.",
        usage="%(prog)s [-h] --before PATH [--after PATH] [--turns N] [--control] [--json FILE] SCRIPT -- OPTIONS",
    )
    parser.add_argument("script", help="a benchmark of this folder, such as overhead.py")
    parser.add_argument("--before", type=Path, required=True, metavar="PATH", help="a checkout")
    parser.add_argument("--after", type=Path, default=HERE.parent, metavar="PATH", help="another (default: this one)")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="processes per checkout (default 5)")
    parser.add_argument("--control", action="store_true", help="run the checkout before twice, to show what is noise")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args(own)
    if arguments.turns < 1:
        parser.error("--turns must be an integer >= 1")
    script = Path(arguments.script).name
    before = side_of("before", arguments.before.resolve(), script)
    after = side_of("after", arguments.after.resolve(), script)
    sides = [before, after, *([before._replace(name="control")] if arguments.control else [])]
    commits = {side.name: commit_of(side.checkout) for side in (before, after)}
    found = compare(sides, arguments.turns, options)
    if not found:
        sys.exit(f"{script} reports no figures")
    print_table(
        f"{script} {' '.join(options)}: before {commits['before']}, after {commits['after']},"
        f" medians of {arguments.turns} turns",
        ["figure", "before", "after", "after/before (lowest to highest)", "control/before"],
        [comparison.row(path) for path, comparison in found.items()],
    )
    report = {
        "benchmark": "compare",
        "environment": environment(),
        "script": script,
        "options": options,
        "turns": arguments.turns,
        "commits": commits,
        "figures": {" ".join(path): comparison.as_json() for path, comparison in found.items()},
    }
    write_json(arguments.json, report)


if __name__ == "__main__":
    main()
