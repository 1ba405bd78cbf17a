"""Differential fuzzing of the event-stream decoder.

    python tests/fuzz/eventstream.py --seconds 60 --seed 1

Streams of valid frames are damaged, most of them with their checksums repaired so that the damage gets past the first
check, and cut into chunks anywhere. Each is decoded by `aiosmrt._wire.eventstream`, by a strict decoder written here
straight from the specification, and by botocore. Ours and the strict one must agree on the messages and on whether
the stream is sound; whatever botocore refuses, ours must refuse; and what ours accepts, botocore must read alike.

The first disagreement is printed with the bytes that show it, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from botocore.eventstream import EventStreamBuffer, ParserError

from aiosmrt._wire.eventstream import MAX_HEADERS_BYTES, MAX_PAYLOAD_BYTES, Decoder
from aiosmrt.errors import EventStreamFormatError

Plain = tuple[dict[str, object], bytes]

_NAMES = (b":event-type", b":content-type", b":message-type", b":exception-type", b"x", "né".encode(), b"n" * 255)
_EDGES = (0, 1, 2, 15, 16, 17, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, MAX_HEADERS_BYTES + 1)
_SIZES = {2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


@dataclass(frozen=True)
class Outcome:
    """What a decoder made of a stream: the messages before its end or fault, and the fault."""

    messages: list[Plain]
    fault: str | None


class Disagreement(AssertionError):
    """Two decoders read the same bytes differently."""


# -- making streams --------------------------------------------------------------------------------------------------


def random_header(rng: random.Random) -> bytes:
    kind = rng.randrange(10)
    if kind in (6, 7):
        text = "".join(rng.choices("aé\u20ac\U0001f600 ", k=rng.choice((0, 1, 5, 40)))).encode()
        octets = text if kind == 7 else rng.randbytes(rng.choice((0, 1, 5, 300)))
        value = struct.pack(">H", len(octets)) + octets
    else:
        value = rng.randbytes(_SIZES.get(kind, 0))
    name = rng.choice(_NAMES)
    return bytes((len(name),)) + name + bytes((kind,)) + value


def seal(header_block: bytes, payload: bytes, total: int | None = None, headers: int | None = None) -> bytes:
    """A frame with good checksums, whatever its lengths say."""
    total = 16 + len(header_block) + len(payload) if total is None else total
    lengths = struct.pack(">II", total, len(header_block) if headers is None else headers)
    before = lengths + struct.pack(">I", zlib.crc32(lengths)) + header_block + payload
    return before + struct.pack(">I", zlib.crc32(before))


def random_frame(rng: random.Random) -> bytes:
    block = b"".join({header[1 : 1 + header[0]]: header for header in _headers(rng)}.values())
    return seal(block, rng.randbytes(rng.choice((0, 1, 3, 3, 3, 64, 64, 5000))))


def _headers(rng: random.Random) -> Iterator[bytes]:
    return (random_header(rng) for _ in range(rng.randrange(4)))


def scramble(rng: random.Random, octets: bytes) -> bytes:
    """Octets with one small accident."""
    data = bytearray(octets)
    where = rng.randrange(len(data) + 1)
    match rng.randrange(5):
        case 0 if data:
            data[where - 1] ^= 1 << rng.randrange(8)
        case 1 if data:
            data[where - 1] = rng.choice((0, 1, 10, 127, 128, 255))
        case 2:
            del data[where : where + rng.choice((1, 2, 16))]
        case 3:
            data[where:where] = data[: rng.choice((1, 4, 12))]
        case _:
            data[where:where] = rng.randbytes(rng.choice((1, 2, 16)))
    return bytes(data)


def damaged(rng: random.Random, frame: bytes) -> bytes:
    """A frame with one fault, or none after all."""
    if len(frame) < 16:  # damaged before
        return frame
    headers_bytes = int.from_bytes(frame[4:8])
    block, payload = frame[12 : 12 + headers_bytes], frame[12 + headers_bytes : -4]
    match rng.randrange(6):
        case 0:
            return scramble(rng, frame)
        case 1:
            return seal(scramble(rng, block), payload)
        case 2:
            return seal(block + random_header(rng) + block, payload)
        case 3:
            return seal(block, payload, total=rng.choice((*_EDGES, len(frame) - 1, len(frame) + 1)))
        case 4:
            return seal(block, payload, headers=rng.choice((*_EDGES, max(0, len(block) - 1), len(block) + 1)))
        case _:
            return frame[: rng.randrange(len(frame))]


def random_case(rng: random.Random) -> tuple[bytes, list[int]]:
    """A stream, as a rule damaged, and where to cut it."""
    kinds = [random_frame(rng) for _ in range(rng.randrange(1, 4))]
    frames = rng.choices(kinds, k=rng.randrange(1, 7))
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        index = rng.randrange(len(frames))
        frames[index] = damaged(rng, frames[index])
    stream = b"".join(frames)
    if rng.randrange(20) == 0:
        return stream, list(range(1, len(stream)))
    return stream, sorted(rng.choices(range(len(stream) + 1), k=rng.choice((0, 1, 2, 8))))


# -- reading them ----------------------------------------------------------------------------------------------------


def decode_strictly(stream: bytes) -> Outcome:
    """The specification read aloud: whole stream in memory, no cleverness."""
    messages: list[Plain] = []
    while stream:
        if len(stream) < 12:
            return Outcome(messages, "ends in a prelude")
        total, headers_bytes, checksum = struct.unpack(">III", stream[:12])
        if zlib.crc32(stream[:8]) != checksum:
            return Outcome(messages, "prelude checksum")
        payload_bytes = total - headers_bytes - 16
        if not 0 <= payload_bytes <= MAX_PAYLOAD_BYTES or headers_bytes > MAX_HEADERS_BYTES:
            return Outcome(messages, "lengths")
        if len(stream) < total:
            return Outcome(messages, "ends in a frame")
        if zlib.crc32(stream[: total - 4]) != int.from_bytes(stream[total - 4 : total]):
            return Outcome(messages, "message checksum")
        try:
            headers = _read_headers(stream[12 : 12 + headers_bytes])
        except ValueError as error:  # UnicodeDecodeError is one
            return Outcome(messages, f"headers: {error}")
        messages.append((headers, stream[12 + headers_bytes : total - 4]))
        stream = stream[total:]
    return Outcome(messages, None)


def _read_headers(block: bytes) -> dict[str, object]:
    headers: dict[str, object] = {}

    def take(count: int) -> bytes:
        nonlocal block
        if len(block) < count:
            raise ValueError("too short")
        taken, block = block[:count], block[count:]
        return taken

    while block:
        name = take(take(1)[0]).decode()
        if not name or name in headers:
            raise ValueError("name")
        kind = take(1)[0]
        value: object
        if kind in (0, 1):
            value = kind == 0
        elif kind in (2, 3, 4, 5, 8):
            value = int.from_bytes(take(_SIZES[kind]), signed=True)
        elif kind in (6, 7):
            octets = take(int.from_bytes(take(2)))
            value = octets.decode() if kind == 7 else octets
        elif kind == 9:
            value = take(16)
        else:
            raise ValueError("type")
        headers[name] = value
    return headers


def decode_with_botocore(stream: bytes) -> Outcome:
    buffer: Any = EventStreamBuffer()
    buffer.add_data(stream)
    messages: list[Plain] = []
    try:
        messages.extend((message.headers, message.payload) for message in buffer)
    except (ParserError, KeyError, IndexError, UnicodeDecodeError, struct.error) as error:
        return Outcome(messages, type(error).__name__)
    return Outcome(messages, "ends in a frame" if buffer._data else None)


def decode_with_ours(stream: bytes, cuts: Sequence[int], decoder_type: type[Decoder] = Decoder) -> Outcome:
    decoder = decoder_type()
    messages: list[Plain] = []
    try:
        for start, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
            messages.extend((dict(headers), payload) for headers, payload in decoder.feed(stream[start:end]))
        decoder.finish()
    except EventStreamFormatError as error:
        return Outcome(messages, type(error).__name__)
    return Outcome(messages, None)


def check(stream: bytes, cuts: Sequence[int], decoder_type: type[Decoder] = Decoder) -> Outcome:
    """Compare the decoders on one stream.

    Raises:
        Disagreement: they differ in a way that they must not.
    """
    ours = decode_with_ours(stream, cuts, decoder_type)
    whole = decode_with_ours(stream, (), decoder_type)
    strict = decode_strictly(stream)
    botocore = decode_with_botocore(stream)
    if ours != whole:
        raise Disagreement(f"cut: {_brief(ours)}; whole: {_brief(whole)}")
    if (ours.fault is None) != (strict.fault is None) or not _alike(ours.messages, strict.messages):
        raise Disagreement(f"ours: {_brief(ours)}; the specification: {_brief(strict)}")
    if botocore.fault is not None and ours.fault is None:
        raise Disagreement(f"botocore refuses with {botocore.fault} what we accept")
    if not _alike(ours.messages, botocore.messages[: len(ours.messages)]):
        raise Disagreement(f"ours: {_brief(ours)}; botocore: {_brief(botocore)}")
    return ours


def _alike(first: list[Plain], second: list[Plain]) -> bool:
    # True == 1, so the types are compared too, as far as both sides know them.
    return first == second and all(
        isinstance(a, bool) == isinstance(b, bool)
        for (mine, _), (theirs, _) in zip(first, second, strict=True)
        for a, b in zip(mine.values(), theirs.values(), strict=True)
    )


def _brief(outcome: Outcome) -> str:
    return f"{len(outcome.messages)} messages, then {outcome.fault or 'a clean end'}"


# -- running ---------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a run saw."""

    cases: int = 0
    accepted: int = 0
    faults: dict[str, int] | None = None
    finding: str | None = None
    stream: bytes = b""
    cuts: Sequence[int] = ()


def run(
    seed: int, *, cases: int | None = None, seconds: float | None = None, decoder_type: type[Decoder] = Decoder
) -> Report:
    """Fuzz until the first finding, or until so many cases or seconds have passed."""
    rng = random.Random(seed)
    report = Report(faults={})
    end = None if seconds is None else time.monotonic() + seconds
    while (cases is None or report.cases < cases) and (end is None or time.monotonic() < end):
        stream, cuts = random_case(rng)
        report.cases += 1
        try:
            outcome = check(stream, cuts, decoder_type)
        except Exception as error:  # whatever escapes the decoder is a finding as well
            report.finding = f"{type(error).__name__}: {error}"
            report.stream, report.cuts = stream, cuts
            return report
        assert report.faults is not None
        if outcome.fault is None:
            report.accepted += 1
        else:
            report.faults[outcome.fault] = report.faults.get(outcome.fault, 0) + 1
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to go on")
    parser.add_argument("--seed", type=int, default=0, help="where the random numbers start")
    parser.add_argument("--reproduce", metavar="JSON", help='a finding, {"stream": HEX, "cuts": [...]}')
    options = parser.parse_args(arguments)
    if options.reproduce is not None:
        finding = json.loads(options.reproduce)
        print(_brief(check(bytes.fromhex(finding["stream"]), finding["cuts"])))
        return 0
    report = run(options.seed, seconds=options.seconds)
    if report.finding is not None:
        print(f"case {report.cases} of seed {options.seed}: {report.finding}")
        print("reproduce with --reproduce '" + json.dumps({"stream": report.stream.hex(), "cuts": report.cuts}) + "'")
        return 1
    print(f"{report.cases} cases, {report.accepted} accepted, refused: {json.dumps(report.faults, sort_keys=True)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
