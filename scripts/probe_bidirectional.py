"""Finds out on a live endpoint what the documentation of bidirectional streams does not say.

    python scripts/probe_bidirectional.py --list
    python scripts/probe_bidirectional.py --endpoint-name probe --region eu-central-1 --yes --json answers.json

Each question is one probe, and each probe has one line of answer. The endpoint's container must be
`bidirectional_container.py`, beside this script. All probes take 31 minutes; the long ones run beside the short ones,
and ``--only`` chooses. The endpoint costs what its instance costs; the probes make up to 40 streams, and send about
18 MB, which the container sends back.

Credentials, region and profile are found as by boto3. ``--json`` is written after each answer. The exit status is 0 if
all questions were answered, 1 if some were not, 2 for wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import ssl
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

from aiosmrt._aws.hosts import http2_endpoint, resolve_endpoint
from aiosmrt._wire.eventstream import Decoder, EventHeaders, encode_payload_part
from aiosmrt._wire.http2 import Connection, header_fields
from aiosmrt._wire.sigv4.events import EVENTS_PAYLOAD, EventSigner
from aiosmrt._wire.sigv4.signer import Credentials, SignedRequest, Signer
from aiosmrt.errors import AiosmrtError, EventStreamFormatError

# How long an answer may take that is expected at once, and a whole short probe, seconds.
ANSWER_SECONDS: Final = 20.0
PROBE_SECONDS: Final = 180.0
# How long something is waited for that may not come at all, seconds.
SILENCE_SECONDS: Final = 5.0
# When the second of two long streams begins, as a share of the time for which they are kept.
SECOND_AT: Final = 1 / 6
# Within what time two streams end together, seconds.
TOGETHER_SECONDS: Final = 5.0
# How long after the end of the input the container speaks, seconds.
LATE_SECONDS: Final = 3.0
# With which codes the container is to close its WebSocket.
CLOSE_CODES: Final = (1000, 1011, 4000)

COST = (
    "This calls a live endpoint, which costs what its instance costs for as long as it runs: the probes take up to "
    "{minutes:.0f} minutes, make up to {streams} streams, and send about {megabytes:.0f} MB, which come back."
)


def message_sizes(largest_bytes: int) -> tuple[int, int]:
    """How large the large messages are, bytes."""
    return largest_bytes // 16, largest_bytes


class UnansweredError(Exception):
    """The question cannot be answered here; the text is the reason."""


# What happens on a stream


class Head(NamedTuple):
    """The response's head; of an error, with its body."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


class Message(NamedTuple):
    headers: EventHeaders
    payload: bytes


class Over(NamedTuple):
    """The stream is over: by END_STREAM, RST_STREAM, GOAWAY, or with its connection."""

    how: str


Happening = Head | Message | Over


def told(happening: Happening | None) -> str:
    """What happened, in a few words."""
    if happening is None:
        return "nothing"
    if isinstance(happening, Over):
        return happening.how
    if isinstance(happening, Head):
        kind = happening.headers.get("x-amzn-errortype", "").partition(":")[0]
        # What forbids a request may quote it, with its signature and its session token.
        body = "" if happening.status == 403 else quoted(happening.body.decode("utf-8", "replace"))
        return " ".join(one for one in (f"HTTP {happening.status}", kind, body) if one)
    headers, payload = happening
    if headers.event_type == "PayloadPart":
        marks = " ".join(str(headers.get(name)) for name in ("DataType", "CompletionState") if headers.get(name))
        return f"a part of {len(payload)} bytes{f', {marks}' if marks else ''}"
    name = headers.exception_type or str(headers.get(":error-code") or headers.event_type or headers.message_type)
    text = payload.decode("utf-8", "replace") or str(headers.get(":error-message", ""))
    return f"{name} {quoted(text)}"


def quoted(text: str) -> str:
    """The beginning of an error's text, up to the canonical request, which has the session token in it."""
    return re.split(r"(?i)(?:the )?canonical", text, maxsplit=1)[0].strip()[:300]


class Wire(asyncio.Protocol):
    """One HTTP/2 connection, which notes what the service says about it.

    Args:
        setup: the script's settings.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.h2 = Connection(client_side=True, stream_window_bytes=2**24)
        self.began = time.monotonic()
        self.settings: dict[str, int] = {}
        self.notes: list[str] = []
        self.has_settings = asyncio.Event()
        self.ping_acked = asyncio.Event()
        self.lost = asyncio.Event()
        self.streams: dict[int, Stream] = {}
        self._transport: asyncio.Transport | None = None

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self.began

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(2**25)
        self.flush()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self.lost.is_set():
            return
        try:
            for event in self.h2.receive_data(data):
                self._handle(event)
        except ProtocolError as error:
            self._break_off(f"the service violated HTTP/2 ({error})")
        self.flush()

    def _break_off(self, how: str) -> None:
        """Close the connection, after the GOAWAY that h2 has for the service."""
        self.notes.append(f"{how} after {self.age:.1f} s")
        self.flush()
        for one in self.streams.values():
            one.happen(Over(how))
        self.close()

    def _handle(self, event: Event) -> None:
        if isinstance(event, RemoteSettingsChanged):
            for setting in event.changed_settings.values():
                name = getattr(setting.setting, "name", str(setting.setting))
                self.settings[name] = int(setting.new_value or 0)
            self.has_settings.set()
        elif isinstance(event, PingAckReceived):
            self.ping_acked.set()
        elif isinstance(event, ConnectionTerminated):
            code, last = _code(event.error_code), event.last_stream_id or 0
            self.notes.append(f"GOAWAY {code} after {self.age:.1f} s, last stream {last}")
            for number, one in self.streams.items():
                if number > last:
                    one.happen(Over(f"GOAWAY {code}"))
        if isinstance(event, RemoteSettingsChanged) or (isinstance(event, WindowUpdated) and not event.stream_id):
            for one in self.streams.values():
                one.room.set()
        stream = self.streams.get(getattr(event, "stream_id", None) or 0)
        if stream is not None:
            stream.handle(event)

    def connection_lost(self, error: Exception | None) -> None:
        how = f"the connection was lost{'' if error is None else f' ({type(error).__name__})'}"
        if not self.lost.is_set():
            self.notes.append(f"{how} after {self.age:.1f} s")
        self.lost.set()
        for one in self.streams.values():
            one.happen(Over(how))

    def close(self) -> None:
        self.lost.set()
        if self._transport is not None:
            self._transport.abort()

    async def call(self, **changes: Any) -> Stream:
        """Begin a stream; ``changes`` are those of `Setup.request`."""
        fields, signer = self._setup.request(**changes)
        number = self.h2.get_next_available_stream_id()
        stream = self.streams[number] = Stream(self, number, signer)
        self.h2.send_headers(number, header_fields(fields))
        self.flush()
        return stream


class Stream:
    """One stream, whose every step is the probe's."""

    def __init__(self, wire: Wire, number: int, signer: EventSigner) -> None:
        self._wire = wire
        self._number = number
        self.signer = signer
        self.room = asyncio.Event()
        self.is_over = False
        self._decoder: Decoder | None = None
        self._refusal: Head | None = None
        self._happened: asyncio.Queue[Happening] = asyncio.Queue()

    def happen(self, happening: Happening) -> None:
        if not self.is_over:
            self.is_over = isinstance(happening, Over)
            self._happened.put_nowait(happening)
            self.room.set()

    def handle(self, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers or ()}
            head = Head(int(fields.pop(":status")), fields)
            if head.status < 300:
                self._decoder = Decoder()
                self.happen(head)
            else:
                self._refusal = head
        elif isinstance(event, DataReceived):
            self._wire.h2.acknowledge_received_data(event.flow_controlled_length or 0, self._number)
            if self._decoder is not None:
                messages: list[Any] = []
                with suppress(EventStreamFormatError):  # which `failure` has as well
                    messages = self._decoder.feed(event.data or b"")
                for headers, payload in messages:
                    self.happen(Message(headers, payload))
                if self._decoder.failure is not None:
                    self.happen(Over(f"a malformed message ({self._decoder.failure})"))
            elif self._refusal is not None:
                self._refusal = self._refusal._replace(body=self._refusal.body + (event.data or b""))
        elif isinstance(event, StreamEnded):
            if self._refusal is not None:
                self.happen(self._refusal)
            self.happen(Over("END_STREAM"))
        elif isinstance(event, StreamReset):
            self.happen(Over(f"RST_STREAM {_code(event.error_code)}"))
        elif isinstance(event, WindowUpdated):
            self.room.set()

    async def next(self, seconds: float = ANSWER_SECONDS) -> Happening | None:
        """What happens next; None if nothing does in this time."""
        try:
            async with asyncio.timeout(seconds):
                return await self._happened.get()
        except TimeoutError:
            return None

    async def next_message(self, seconds: float = ANSWER_SECONDS) -> Happening | None:
        """What happens next, the head of a stream aside."""
        happening = await self.next(seconds)
        if isinstance(happening, Head) and happening.status < 300:
            return await self.next(seconds)
        return happening

    async def part(self) -> Message:
        """The next part."""
        happening = await self.next_message()
        if not isinstance(happening, Message) or happening.headers.event_type != "PayloadPart":
            raise UnansweredError(f"{told(happening)} came where the container's answer should")
        return happening

    async def rest(self, seconds: float = SILENCE_SECONDS) -> list[Happening]:
        """All that happens until the end, or until nothing does any more."""
        found: list[Happening] = []
        while (happening := await self.next(seconds)) is not None:
            found.append(happening)
            if isinstance(happening, Over):
                break
        return found

    async def send(self, data: bytes | str, *, signer: EventSigner | None = None) -> None:
        """Send a message."""
        text = isinstance(data, str)
        inner = encode_payload_part(
            data.encode() if isinstance(data, str) else data, "UTF8" if text else "BINARY", None
        )
        await self.write((signer or self.signer).sign(time.time(), inner))

    async def write(self, frame: bytes) -> None:
        """Send bytes as they are."""
        left = memoryview(frame)
        while left and not self.is_over:
            h2 = self._wire.h2
            size = min(h2.local_flow_control_window(self._number), h2.max_outbound_frame_size)
            if size <= 0:
                self.room.clear()
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self.room.wait()
                continue
            h2.send_data(self._number, bytes(left[:size]))
            self._wire.flush()
            left = left[size:]

    async def end(self, *, signed: bool = True) -> None:
        """End the input, by default after the empty signed message that belongs there."""
        if signed:
            await self.write(self.signer.sign(time.time(), b""))
        if not self.is_over:
            self._wire.h2.end_stream(self._number)
            self._wire.flush()


def _code(code: object) -> str:
    try:
        return ErrorCodes(code).name  # type: ignore[arg-type]
    except ValueError:
        return str(code)


# What all probes share


@dataclass
class Setup:
    """Where to call, and with what.

    Args:
        url: the HTTP/2 endpoint.
        region: the signing region.
        endpoint_name: the endpoint.
        key: returns the credentials.
        other_key: returns other credentials, for the probe that changes them. If None, it is not asked.
        context: how to verify certificates; None without TLS.
        idle_seconds: how long to be silent.
        lifetime_seconds: how long to keep a stream.
        largest_bytes: the size of the largest message.
        max_streams: the most streams to open at once.
    """

    url: str
    region: str
    endpoint_name: str
    key: Callable[[], Credentials]
    other_key: Callable[[], Credentials] | None
    context: ssl.SSLContext | None
    idle_seconds: float
    lifetime_seconds: float
    largest_bytes: int
    max_streams: int
    wires: list[tuple[str, Wire]] = field(default_factory=list)

    @asynccontextmanager
    async def wire(self, name: str) -> AsyncIterator[Wire]:
        """A connection of a probe."""
        parts = urlsplit(self.url)
        loop = asyncio.get_running_loop()
        port = parts.port or (80 if self.context is None else 443)
        host = parts.hostname or ""
        async with asyncio.timeout(ANSWER_SECONDS):
            _, wire = await loop.create_connection(
                lambda: Wire(self), host, port, ssl=self.context, server_hostname=None if self.context is None else host
            )
        self.wires.append((name, wire))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await wire.has_settings.wait()
            yield wire
        finally:
            wire.close()
            for _ in range(2):  # an aborted transport closes its socket in the next iteration of the loop
                await asyncio.sleep(0)

    @asynccontextmanager
    async def stream(self, name: str, **changes: Any) -> AsyncIterator[Stream]:
        """A stream on its own connection."""
        async with self.wire(name) as wire:
            yield await wire.call(**changes)

    def request(
        self,
        *,
        path: str | None = None,
        query: str | None = None,
        endpoint_name: str | None = None,
        key: Credentials | None = None,
    ) -> tuple[list[tuple[str, str]], EventSigner]:
        """The header fields of a request, and what signs its messages."""
        parts = urlsplit(self.url)
        target = (
            f"{parts.path.rstrip('/')}/endpoints/{endpoint_name or self.endpoint_name}/invocations-bidirectional-stream"
        )
        headers = [
            ("Content-Type", "application/vnd.amazon.eventstream"),
            ("X-Amz-Content-Sha256", EVENTS_PAYLOAD),
            *([("X-Amzn-SageMaker-Model-Invocation-Path", path)] if path is not None else []),
            *([("X-Amzn-SageMaker-Model-Query-String", query)] if query is not None else []),
        ]
        key = key or self.key()
        signer = Signer(region=self.region)
        request = SignedRequest("POST", parts.netloc, target, "", tuple(headers))
        added = signer.sign(key, time.time(), request, EVENTS_PAYLOAD)
        fields = [(":method", "POST"), (":scheme", parts.scheme), (":authority", parts.netloc), (":path", target)]
        fields += [(name.lower(), value) for name, value in (*headers, *added)]
        seed = dict(added)["Authorization"].rpartition("=")[2]
        return fields, signer.event_signer(lambda: key, seed)

    def chained(self, key: Credentials, last_frame: bytes) -> EventSigner:
        """What signs the messages after a frame with another key."""
        ((headers, _),) = Decoder().feed(last_frame)
        signature = cast("bytes", headers[":chunk-signature"])
        return Signer(region=self.region).event_signer(lambda: key, signature.hex())


# The probes


class Probe(NamedTuple):
    name: str
    question: str
    find_out: Callable[[Setup], Awaitable[str]]
    is_long: bool
    streams: int | None = 1  # how many it makes; if None, as many as --max-streams allows


PROBES: list[Probe] = []


def probe(name: str, question: str, *, is_long: bool = False, streams: int | None = 1) -> Callable[[Any], Any]:
    """Add a probe."""

    def add(find_out: Callable[[Setup], Awaitable[str]]) -> Callable[[Setup], Awaitable[str]]:
        PROBES.append(Probe(name, question, find_out, is_long, streams))
        return find_out

    return add


@probe("head", "Does the response's head come before the first message?")
async def _head(setup: Setup) -> str:
    async with setup.stream("head") as stream:
        early = await stream.next(SILENCE_SECONDS)
        if isinstance(early, Head) and early.status < 300:
            return f"yes: {told(early)} without any message"
        if early is not None:
            raise UnansweredError(f"{told(early)} came where the head should")
        await stream.send("x")
        return (
            f"no: {told(await stream.next())} came after the first message, and nothing in {SILENCE_SECONDS:g} s before"
        )


@probe("marks", "How does the service mark text, binary messages and fragments?")
async def _marks(setup: Setup) -> str:
    async with setup.stream("marks") as stream:
        await stream.send("x")
        text = await stream.part()
        await stream.send(b"\xff")
        binary = await stream.part()
        await stream.send("probe:fragments one two three")
        fragments = [await stream.part()]
        while fragments[-1].headers.get("CompletionState") == "PARTIAL":
            fragments.append(await stream.part())
        return f"text: {told(text)}; binary: {told(binary)}; three fragments: {', then '.join(map(told, fragments))}"


@probe("where", "What do path and query of the container's WebSocket look like?", streams=2)
async def _where(setup: Setup) -> str:
    answers = []
    for path, query in ((None, None), ("probe/path", "a=b%20c&d=e")):
        async with setup.stream("where", path=path, query=query) as stream:
            await stream.send("probe:where")
            answers.append(f"{path} and {query} become {(await stream.part()).payload.decode()}")
    return "; ".join(answers)


@probe(
    "settings",
    "Which SETTINGS does the service send, and how many streams does it allow on a connection?",
    streams=0,
)
async def _settings(setup: Setup) -> str:
    async with setup.wire("settings") as wire:
        # Values that SETTINGS leave out are HTTP/2's defaults, such as no limit of streams.
        shown = ", ".join(f"{name}={value}" for name, value in sorted(wire.settings.items()))
        limit = wire.settings.get("MAX_CONCURRENT_STREAMS")
        return f"{'no limit of streams' if limit is None else f'{limit} streams'}; {shown}"


@probe("streams", "Do many streams work at once on one connection?", streams=None)
async def _streams(setup: Setup) -> str:
    async with setup.wire("streams") as wire:
        count = min(setup.max_streams, wire.settings.get("MAX_CONCURRENT_STREAMS", setup.max_streams))
        streams = [await wire.call() for _ in range(count)]
        for stream in streams:
            await stream.send("x")
        happened = [told(await stream.next_message()) for stream in streams]
        good = sum(one.startswith("a part") for one in happened)
        others = sorted({one for one in happened if not one.startswith("a part")})
        return f"{good} of {count} were answered{''.join(f'; {one}' for one in others)}"


@probe("ping", "Does the service answer HTTP/2's PING?", streams=0)
async def _ping(setup: Setup) -> str:
    async with setup.wire("ping") as wire:
        began = time.monotonic()
        wire.h2.ping(b"probeing")
        wire.flush()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await wire.ping_acked.wait()
        except TimeoutError:
            return f"not within {ANSWER_SECONDS:g} s"
        return f"after {(time.monotonic() - began) * 1000:.1f} ms"


@probe("half-close", "Does the model's output go on after the end of the input?")
async def _half_close(setup: Setup) -> str:
    async with setup.stream("half-close") as stream:
        await stream.send("x")
        await stream.part()
        await stream.send(f"probe:wait {LATE_SECONDS}")
        await stream.end()
        happened = await stream.rest(ANSWER_SECONDS)
        late = any(isinstance(one, Message) and one.payload == b"late" for one in happened)
        return f"{'yes' if late else 'no'}: {', then '.join(map(told, happened)) or 'nothing'} came after it"


@probe("end", "What if the input ends without the empty signed message?")
async def _end(setup: Setup) -> str:
    async with setup.stream("end") as stream:
        await stream.send("x")
        await stream.part()
        await stream.end(signed=False)
        return ", then ".join(map(told, await stream.rest())) or "nothing"


@probe("message-signature", "What is answered to a message with a wrong signature?")
async def _message_signature(setup: Setup) -> str:
    async with setup.stream("message-signature") as stream:
        await stream.send("x")
        await stream.part()
        key = setup.key()
        wrong = Signer(region=setup.region).event_signer(lambda: key, "0" * 64)
        await stream.send("y", signer=wrong)
        return ", then ".join(map(told, await stream.rest())) or "nothing"


@probe("request-signature", "What is answered to a request with a wrong signature?")
async def _request_signature(setup: Setup) -> str:
    key = setup.key()
    wrong = Credentials(key.access_key, key.secret_key[::-1], key.token)
    async with setup.stream("request-signature", key=wrong) as stream:
        return told(await stream.next())


@probe("missing-endpoint", "What is answered for an endpoint that does not exist?")
async def _missing_endpoint(setup: Setup) -> str:
    async with setup.stream("missing-endpoint", endpoint_name=f"{setup.endpoint_name[:50]}-missing") as stream:
        return told(await stream.next())


@probe("refused", "What is answered if the container refuses the WebSocket?")
async def _refused(setup: Setup) -> str:
    async with setup.stream("refused", path="probe/refuse") as stream:
        await stream.send("x")
        return told(await stream.next())


@probe("close", "What becomes of the container's Close frame?", streams=len(CLOSE_CODES))
async def _close(setup: Setup) -> str:
    answers = []
    for code in CLOSE_CODES:
        async with setup.stream("close") as stream:
            await stream.send("x")
            await stream.part()
            await stream.send(f"probe:close {code} reason")
            answers.append(f"{code}: {', then '.join(map(told, await stream.rest())) or 'nothing'}")
    return "; ".join(answers)


@probe("size", "How large may a message be?", streams=2)
async def _size(setup: Setup) -> str:
    answers = []
    for size in message_sizes(setup.largest_bytes):
        async with setup.stream("size") as stream:
            await stream.send(bytes(size))
            received, happening = 0, None
            while received < size:
                happening = await stream.next_message()
                if not isinstance(happening, Message) or happening.headers.event_type != "PayloadPart":
                    break
                received += len(happening.payload)
            text = "came back" if received == size else f"{received} bytes came back, then {told(happening)}"
            answers.append(f"{size} bytes: {text}")
    return "; ".join(answers)


@probe("other-key", "May later messages be signed with other credentials (pin_credentials=False)?")
async def _other_key(setup: Setup) -> str:
    if setup.other_key is None:
        raise UnansweredError("it needs --other-profile, a profile with other credentials of the same account")
    async with setup.stream("other-key") as stream:
        first = stream.signer.sign(time.time(), encode_payload_part(b"x", "UTF8", None))
        await stream.write(first)
        await stream.part()
        await stream.send("y", signer=setup.chained(setup.other_key(), first))
        happening = await stream.next_message()
        accepted = isinstance(happening, Message) and happening.payload == b"y"
        return f"{'yes' if accepted else 'no'}: {told(happening)}"


@probe("idle-stream", "Does the service end a stream on which nothing is said?", is_long=True)
async def _idle_stream(setup: Setup) -> str:
    async with setup.wire("idle-stream") as wire:
        stream = await wire.call()
        await stream.send("x")
        await stream.part()
        began = time.monotonic()
        happening = await stream.next(setup.idle_seconds)
        if happening is not None:
            return f"yes, after {time.monotonic() - began:.1f} s: {told(happening)}"
        await stream.send("y")
        return f"no, not in {setup.idle_seconds:g} s; the next message was answered with {told(await stream.next())}"


@probe("idle-connection", "Does the service end a connection without streams?", is_long=True)
async def _idle_connection(setup: Setup) -> str:
    async with setup.wire("idle-connection") as wire:
        stream = await wire.call()
        await stream.send("x")
        await stream.part()
        await stream.end()
        await stream.rest()
        began = time.monotonic()
        try:
            async with asyncio.timeout(setup.idle_seconds):
                await wire.lost.wait()
        except TimeoutError:
            return f"no, not in {setup.idle_seconds:g} s{''.join(f'; {note}' for note in wire.notes)}"
        return f"yes, after {time.monotonic() - began:.1f} s: {', then '.join(wire.notes)}"


@probe(
    "lifetime",
    "When and how does a long stream end, and does the limit count for streams or for connections?",
    is_long=True,
    streams=2,
)
async def _lifetime(setup: Setup) -> str:
    async with setup.wire("lifetime") as wire:
        began = time.monotonic()
        first = asyncio.create_task(_until_over(setup, wire))
        second = None
        try:
            await asyncio.wait({first}, timeout=setup.lifetime_seconds * SECOND_AT)
            if first.done():
                return f"the stream {(await first).text}, before a second one was begun"
            second_at = time.monotonic() - began
            second = asyncio.create_task(_until_over(setup, wire))
            one = await first
            if one.ended:
                # If the limit is the connection's, both end at the same time.
                await asyncio.wait({second}, timeout=TOGETHER_SECONDS)
            limit = "" if one.ended else ": no limit was seen"
            if second.done() and (await second).ended:
                other = (await second).text
            else:
                other = "goes on: the limit counts for streams" if one.ended else "goes on"
            return (
                f"the stream {one.text}{limit}; another one of the same connection, "
                f"begun after {second_at:.1f} s, {other}"
            )
        finally:
            tasks = [task for task in (first, second) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Lifetime(NamedTuple):
    """Whether a stream has ended, and how."""

    ended: bool
    text: str


async def _until_over(setup: Setup, wire: Wire) -> Lifetime:
    """Say something from time to time until the stream is over."""
    stream = await wire.call()
    began = time.monotonic()
    pause = setup.lifetime_seconds / 120
    happened: list[Happening] = []
    while (left := began + setup.lifetime_seconds - time.monotonic()) > 0:
        await stream.send("x")
        pause_ends = time.monotonic() + min(pause, left)
        while (rest := pause_ends - time.monotonic()) > 0:
            happening = await stream.next(rest)
            is_part = isinstance(happening, Message) and happening.headers.event_type == "PayloadPart"
            if happening is not None and not is_part and not (isinstance(happening, Head) and happening.status < 300):
                happened.append(happening)
                if isinstance(happening, Over):
                    how = ", then ".join(map(told, happened))
                    return Lifetime(True, f"ended after {time.monotonic() - began:.1f} s: {how}")
    return Lifetime(False, f"has not ended in {setup.lifetime_seconds:g} s")


@probe("goaway", "When does the service send GOAWAY, or close connections?", streams=0)
async def _goaway(setup: Setup) -> str:
    notes = [f"{name}: {note}" for name, wire in setup.wires for note in wire.notes]
    return "; ".join(notes) or f"never, on {len(setup.wires)} connections of the probes before"


# Running them


@dataclass(frozen=True)
class Answer:
    """What a probe has found out.

    Args:
        name: the probe.
        question: what it asks.
        answered: whether there is an answer.
        answer: the answer, or the reason why it is missing.
        seconds: how long it took.
    """

    name: str
    question: str
    answered: bool
    answer: str
    seconds: float


class Report:
    """The answers so far, kept in a file so that none is lost, however the script ends.

    Args:
        path: where to write them as JSON. If None, they are only printed.
        setup: the script's settings.
        chosen: what is asked, in the order of the report.
    """

    def __init__(self, path: Path | None, setup: Setup, chosen: Sequence[Probe]) -> None:
        self._path = path
        self._setup = setup
        self._chosen = chosen
        self._began = time.time()
        self._answers: dict[str, Answer] = {}

    @property
    def is_complete(self) -> bool:
        """Whether all questions are answered."""
        return all(one.name in self._answers and self._answers[one.name].answered for one in self._chosen)

    def add(self, answer: Answer) -> None:
        """Write the file, and print the answer."""
        self._answers[answer.name] = answer
        try:
            self.write()
        except OSError as error:  # the next answer may find room again, and this one is printed
            print(f"{self._path} cannot be written: {error}", file=sys.stderr)
        print(f"{answer.name}: {'' if answer.answered else 'not answered: '}{answer.answer}", flush=True)

    def write(self) -> None:
        """Write the file.

        Raises:
            OSError: it cannot be written.
        """
        if self._path is None:
            return
        document = {
            "endpoint_name": self._setup.endpoint_name,
            "url": self._setup.url,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "answers": [asdict(self._answers[one.name]) for one in self._chosen if one.name in self._answers],
        }
        self._path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def cost_of(chosen: Sequence[Probe], setup: Setup) -> str:
    """What the probes cost; the other messages, of a few bytes each, are left out."""
    long = [setup.idle_seconds, setup.lifetime_seconds] if any(one.is_long for one in chosen) else []
    return COST.format(
        minutes=max([PROBE_SECONDS, *long]) / 60,
        streams=sum(setup.max_streams if one.streams is None else one.streams for one in chosen),
        megabytes=sum(message_sizes(setup.largest_bytes)) / 1e6 if any(one.name == "size" for one in chosen) else 0,
    )


async def ask(one: Probe, setup: Setup, report: Report) -> None:
    """Run one probe, and add its answer; whatever goes wrong is the answer of this probe alone."""
    began = time.monotonic()
    limit = PROBE_SECONDS + (max(setup.idle_seconds, setup.lifetime_seconds) if one.is_long else 0.0)
    try:
        async with asyncio.timeout(limit):
            answered, text = True, await one.find_out(setup)
    except UnansweredError as error:
        answered, text = False, str(error)
    except TimeoutError:
        answered, text = False, "the service did not answer in time"
    except (OSError, AiosmrtError) as error:
        answered, text = False, f"{type(error).__name__}: {error}"
    except Exception as error:
        traceback.print_exc()  # a fault of this script, or something that it does not know of the service
        answered, text = False, f"{type(error).__name__}: {error}"
    except asyncio.CancelledError:
        report.add(Answer(one.name, one.question, False, "interrupted", round(time.monotonic() - began, 3)))
        raise
    report.add(Answer(one.name, one.question, answered, text, round(time.monotonic() - began, 3)))


async def ask_all(chosen: Sequence[Probe], setup: Setup, report: Report) -> None:
    """Run the probes: the long ones beside the short ones, one after the other, and `goaway` in the end."""
    last = [one for one in chosen if one.name == "goaway"]
    long = [asyncio.create_task(ask(one, setup, report)) for one in chosen if one.is_long]
    try:
        for one in chosen:
            if not one.is_long and one not in last:
                await ask(one, setup, report)
        await asyncio.gather(*long)
    finally:
        for task in long:
            task.cancel()
        await asyncio.gather(*long, return_exceptions=True)
    for one in last:
        await ask(one, setup, report)


def keys_of(profile: str | None) -> Callable[[], Credentials]:
    """What returns the credentials of a profile, refreshed if need be.

    Raises:
        UnansweredError: they are missing.
    """
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        found = Session(profile=profile).get_credentials()
    except BotoCoreError as error:
        raise UnansweredError(str(error)) from error
    if found is None:
        raise UnansweredError("credentials are missing")

    def key() -> Credentials:
        frozen: Any = found.get_frozen_credentials()
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)

    return key


def region_of(arguments: argparse.Namespace) -> str:
    """The region.

    Raises:
        UnansweredError: none is configured.
    """
    from botocore.session import Session

    region = arguments.region or Session(profile=arguments.profile).get_config_variable("region")
    if not region:
        raise UnansweredError("the region is missing: give --region")
    return str(region)


def tls(url: str, ca_bundle: str | None) -> ssl.SSLContext | None:
    """How to verify certificates; None without TLS."""
    if urlsplit(url).scheme != "https":
        return None
    context = ssl.create_default_context(cafile=ca_bundle)
    context.set_alpn_protocols(["h2"])
    return context


def parser() -> argparse.ArgumentParser:
    """The script's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--list", action="store_true", help="print the questions, and ask nothing")
    add("--endpoint-name", help="an endpoint whose container is bidirectional_container.py")
    add("--region", help="AWS region")
    add("--profile", help="profile of the AWS configuration files")
    add("--other-profile", help="a profile with other credentials of the same account, for the probe other-key")
    add("--http2-endpoint-url", help="URL of the HTTP/2 endpoint, such as a local runtime's")
    add("--ca-bundle", help="certificate authorities to trust")
    add("--only", action="append", default=[], metavar="NAME", help="ask this question; may be repeated")
    add("--json", metavar="FILE", help="where to write the answers as JSON")
    add("--idle-minutes", type=float, default=12.0, help="how long to be silent (default: 12)")
    add("--lifetime-minutes", type=float, default=31.0, help="how long to keep a stream (default: 31)")
    add("--largest-bytes", type=int, default=2**24, help="size of the largest message (default: 16 MiB)")
    add("--max-streams", type=int, default=20, help="most streams to open at once (default: 20)")
    add("--yes", action="store_true", help="accept the costs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script, and return its exit status."""
    options = parser()
    arguments = options.parse_args(argv)
    if arguments.list:
        for one in PROBES:
            print(f"{one.name}: {one.question}")
        return 0
    names = {one.name for one in PROBES}
    if unknown := sorted(set(arguments.only) - names):
        options.error(f"unknown probe {unknown[0]!r}; see --list")
    if not arguments.endpoint_name:
        options.error("--endpoint-name is required")
    chosen = [one for one in PROBES if not arguments.only or one.name in arguments.only]
    try:
        region = region_of(arguments)
        url = arguments.http2_endpoint_url or http2_endpoint(resolve_endpoint(region), None).url
        setup = Setup(
            url=url,
            region=region,
            endpoint_name=arguments.endpoint_name,
            key=keys_of(arguments.profile),
            other_key=keys_of(arguments.other_profile) if arguments.other_profile else None,
            context=tls(url, arguments.ca_bundle),
            idle_seconds=arguments.idle_minutes * 60,
            lifetime_seconds=arguments.lifetime_minutes * 60,
            largest_bytes=arguments.largest_bytes,
            max_streams=arguments.max_streams,
        )
    except (UnansweredError, AiosmrtError, OSError) as error:
        options.error(str(error))
    if urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
        print(cost_of(chosen, setup), file=sys.stderr)
        if not arguments.yes:
            options.error("pass --yes to accept that")
    report = Report(Path(arguments.json) if arguments.json else None, setup, chosen)
    try:
        report.write()
    except OSError as error:  # known before half an hour of probes, not after it
        options.error(f"--json: {error}")
    try:
        asyncio.run(ask_all(chosen, setup, report))
    except KeyboardInterrupt:
        return 130
    return 0 if report.is_complete else 1


if __name__ == "__main__":
    sys.exit(main())
