"""How fast is the event-stream decoder alone, beside botocore's, and does a single chunk stall the event loop?

    python benchmarks/eventstream_codec.py [--quick] [--json FILE]

Both decoders read the same chunks in the same process, in turns, round by round; figures are medians of CPU time.
botocore decodes the 23 MiB frame only once: it copies its buffer for every chunk, which takes many seconds.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.eventstream import EventStreamBuffer
from reporting import cores, environment, print_table, stay_on, write_json

from aiosmrt._wire.eventstream import Decoder, encode_payload_part

KIB = 1024
MIB = 1024 * KIB

Feed = Callable[[bytes], int]


@dataclass(frozen=True)
class Case:
    """A stream, cut into chunks."""

    name: str
    chunks: list[bytes]
    frames: int
    payload_bytes: int
    botocore_rounds: int | None = None  # defaults to the number of ours


def cut(stream: bytes, chunk_bytes: int) -> list[bytes]:
    return [stream[at : at + chunk_bytes] for at in range(0, len(stream), chunk_bytes)]


def cases(quick: bool) -> list[Case]:
    rng = random.Random(1)
    made = []

    def add(name: str, payloads: Sequence[bytes], chunk_bytes: int | None, botocore_rounds: int | None = None) -> None:
        frames = [encode_payload_part(payload) for payload in payloads]
        chunks = frames if chunk_bytes is None else cut(b"".join(frames), chunk_bytes)
        made.append(Case(name, chunks, len(frames), sum(map(len, payloads)), botocore_rounds))

    scale = 1 if quick else 4
    add("64 B parts, 64 KiB chunks", [bytes(64)] * (25_000 * scale), 64 * KIB)
    add("64 B parts, a chunk each", [bytes(64)] * (10_000 * scale), None)
    tokens = [bytes(rng.randrange(1, 30)) for _ in range(25_000 * scale)]
    add("1-29 B parts, 64 KiB chunks", tokens, 64 * KIB)
    add("1-29 B parts, a chunk each", tokens[: 10_000 * scale], None)
    large = [rng.randbytes(64 * KIB)] * (250 * scale)
    add("64 KiB parts, a chunk each", large, None)
    add("64 KiB parts, 256 KiB chunks", large, 256 * KIB)
    add("64 KiB parts, 16 KiB chunks", large, 16 * KIB)
    if quick:
        add("2 MiB part, 8 KiB chunks", [rng.randbytes(2 * MIB)], 8 * KIB, 1)
    else:
        add("23 MiB part, 8 KiB chunks", [rng.randbytes(23 * MIB)], 8 * KIB, 1)
    return made


def ours() -> Feed:
    feed = Decoder().feed
    return lambda chunk: len(feed(chunk))


def botocore() -> Feed:
    buffer: Any = EventStreamBuffer()

    def feed(chunk: bytes) -> int:
        buffer.add_data(chunk)
        return sum(1 for _ in buffer)

    return feed


def measure(make: Callable[[], Feed], case: Case) -> float:
    """Measure the CPU seconds for the whole stream."""
    gc.collect()
    feed = make()
    start = time.process_time()
    frames = sum(map(feed, case.chunks))
    spent = time.process_time() - start
    if frames != case.frames:
        raise RuntimeError(f"decoded {frames} of {case.frames} frames")
    return spent


def worst_feed(case: Case) -> float:
    """Measure the CPU seconds of the slowest single chunk, for which an event loop would stall."""
    feed = ours()
    worst = 0.0
    for chunk in case.chunks:
        start = time.thread_time()
        feed(chunk)
        worst = max(worst, time.thread_time() - start)
    return worst


def run(case: Case, rounds: int) -> dict[str, Any]:
    spent: dict[str, list[float]] = {"aiosmrt": [], "botocore": []}
    stalls = []
    for round_number in range(rounds):
        spent["aiosmrt"].append(measure(ours, case))
        stalls.append(worst_feed(case))
        if case.botocore_rounds is None or round_number < case.botocore_rounds:
            spent["botocore"].append(measure(botocore, case))
    result: dict[str, Any] = {"case": case.name, "frames": case.frames, "payload_bytes": case.payload_bytes}
    for name, seconds in spent.items():
        median = statistics.median(seconds)
        result[name] = {
            "seconds": median,
            "rounds": len(seconds),
            "frames_per_second": case.frames / median,
            "payload_bytes_per_second": case.payload_bytes / median,
        }
    result["ratio"] = result["botocore"]["seconds"] / result["aiosmrt"]["seconds"]
    result["worst_feed_seconds"] = statistics.median(stalls)
    return result


def encoding(quick: bool) -> list[dict[str, Any]]:
    """Measure the encoder alone: botocore only decodes."""
    results = []
    for payload_bytes, count in ((64, 50_000), (64 * KIB, 1_000)):
        payload = bytes(payload_bytes)
        seconds = []
        for _ in range(3 if quick else 7):
            start = time.process_time()
            for _ in range(count):
                encode_payload_part(payload)
            seconds.append((time.process_time() - start) / count)
        median = statistics.median(seconds)
        results.append(
            {
                "payload_bytes": payload_bytes,
                "frames_per_second": 1 / median,
                "bytes_per_second": payload_bytes / median,
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the event-stream codec next to botocore's decoder.")
    parser.add_argument("--quick", action="store_true", help="shorter streams, fewer rounds")
    parser.add_argument("--rounds", type=int, help="rounds per case (default 7, quick 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    report: dict[str, Any] = {"environment": environment(), "rounds": rounds}
    stay_on(cores()[-1])
    report["decoding"] = results = [run(case, rounds) for case in cases(arguments.quick)]
    report["encoding"] = encoded = encoding(arguments.quick)
    print_table(
        "Decoding, CPU time, medians",
        ["stream", "frames/s", "botocore", "MB/s", "botocore", "ratio", "slowest feed"],
        [
            [
                result["case"],
                f"{result['aiosmrt']['frames_per_second']:,.0f}",
                f"{result['botocore']['frames_per_second']:,.0f}",
                f"{result['aiosmrt']['payload_bytes_per_second'] / 1e6:,.0f}",
                f"{result['botocore']['payload_bytes_per_second'] / 1e6:,.0f}",
                f"{result['ratio']:,.1f}",
                f"{result['worst_feed_seconds'] * 1e3:.2f} ms",
            ]
            for result in results
        ],
    )
    print_table(
        "Encoding payload parts",
        ["payload", "frames/s", "MB/s"],
        [
            [
                f"{result['payload_bytes']:,} B",
                f"{result['frames_per_second']:,.0f}",
                f"{result['bytes_per_second'] / 1e6:,.0f}",
            ]
            for result in encoded
        ],
    )
    write_json(arguments.json, report)


if __name__ == "__main__":
    main()
