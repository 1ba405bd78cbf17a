"""How does the cost of a call grow with the calls in flight and with the size of its body?

    python benchmarks/curve.py [--quick] [--loop uvloop] [--tls] [--json FILE] [--plot docs/benchmarks/cost.svg]

The clients and rounds of overhead.py: bodies of 1 KiB at 1 to 1,024 calls in flight, and one call at a time with bodies
of 1 KiB to 25 MiB.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import overhead
from harness import arguments_of, report_of
from overhead import Point
from plot import Line, Panel, drawing
from reporting import print_table, write_json

KIB, MIB = 2**10, 2**20
IN_FLIGHT = [Point(in_flight) for in_flight in (1, 16, 64, 256, 1024)]
SIZES = [Point(1, size) for size in (KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 6 * MIB, 25 * MIB)]
DEFAULT = ("aiosmrt", "aiosmrt-session", "aiobotocore", "aiohttp", "floor")


def words(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def of_sizes(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [result for result in results if result["in_flight"] == 1]


def of_in_flight(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [result for result in results if result["body_bytes"] == KIB]


def show(results: list[dict[str, Any]]) -> None:
    names = list(results[0]["clients"])

    def table(title: str, chosen: list[dict[str, Any]], heads: list[str]) -> None:
        micros = [
            [name, *(f"{point['clients'][name]['cpu_seconds_per_call'] * 1e6:,.1f}" for point in chosen)]
            for name in names
        ]
        ratios = [
            [f"aiosmrt / {bound}", *(f"{point['clients']['aiosmrt']['cpu_ratio_to'][bound]:.3f}" for point in chosen)]
            for bound in results[0]["clients"].get("aiosmrt", {"cpu_ratio_to": ()})["cpu_ratio_to"]
        ]
        print_table(title, ["CPU µs/call", *heads], micros + ratios)

    levels, sizes = of_in_flight(results), of_sizes(results)
    table("Calls in flight, bodies of 1 KiB", levels, [f"{point['in_flight']:,}" for point in levels])
    table("Size of the body, one call at a time", sizes, [words(point["body_bytes"]) for point in sizes])


def picture(report: dict[str, Any]) -> str:
    """Draw both curves as an SVG."""
    results = report["results"]

    def panel(title: str, chosen: list[dict[str, Any]], what: str, label: Callable[[int], str]) -> Panel:
        lines = [
            Line(name, [(point[what], point["clients"][name]["cpu_seconds_per_call"] * 1e6) for point in chosen])
            for name in results[0]["clients"]
        ]
        return Panel(title, lines, {point[what]: label(point[what]) for point in chosen})

    where = report["environment"]
    return drawing(
        "CPU µs of the client per signed call",
        f"Python {where['python']}, aiohttp {where['packages']['aiohttp']}, {report['loop']}; medians of "
        f"{report['rounds']} interleaved rounds",
        [
            panel("calls in flight, bodies of 1 KiB", of_in_flight(results), "in_flight", "{:,}".format),
            panel("size of the body, one call at a time", of_sizes(results), "body_bytes", words),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a call costs over calls in flight and body sizes.")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves here, as SVG")
    arguments = arguments_of(parser, overhead.CLIENTS, DEFAULT)
    rounds = arguments.rounds or (3 if arguments.quick else 9)
    calls = 800 if arguments.quick else 2000
    points = IN_FLIGHT + SIZES[1:]
    report = report_of(
        arguments,
        max(point.in_flight for point in points),
        rounds,
        lambda target: overhead.run(target, arguments.clients, points, rounds, calls),
    )
    show(report["results"])
    write_json(arguments.json, report)
    if arguments.plot:
        arguments.plot.write_text(picture(report), encoding="utf-8")


if __name__ == "__main__":
    main()
