"""A client trusts the authorities that botocore trusts, and a wrong setting of them is named."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import boto3
import botocore.exceptions
import botocore.httpsession
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aiosmrt import Client, RetryPolicy, errors
from aiosmrt._aws import tls
from tests.aws import oracle
from tests.support.config_files import ConfigFiles
from tests.support.peers import CLIENT_ARGUMENTS
from tests.support.recording_server import RecordingServer, respond

CALL: dict[str, Any] = {"EndpointName": "e", "Body": b"1,2"}


class OldAuthority:
    """An authority like that of many companies: no key identifiers, basic constraints that are not critical."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.pem = self._certificate("Company", self._key, x509.BasicConstraints(ca=True, path_length=None))

    def server_context(self, folder: Path) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / "server.pem").write_bytes(self._certificate("proxy", key, address) + private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        return context

    def _certificate(self, name: str, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> bytes:
        subject, issuer = (
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (name, "Company")
        )
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        builder = x509.CertificateBuilder(
            issuer, subject, key.public_key(), x509.random_serial_number(), now - day, now + day
        )
        signed = builder.add_extension(extension, critical=False).sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def authority() -> OldAuthority:
    return OldAuthority()


@pytest.fixture
async def server(authority: OldAuthority, tmp_path: Path) -> AsyncIterator[RecordingServer]:
    async with RecordingServer(respond(200, b"over TLS"), tls=authority.server_context(tmp_path)) as server:
        yield server


@pytest.fixture
def bundle(authority: OldAuthority, tmp_path: Path) -> Path:
    path = tmp_path / "company.pem"
    path.write_bytes(authority.pem)
    return path


async def read(server: RecordingServer, **arguments: Any) -> bytes:
    policy = RetryPolicy(max_attempts=1)
    async with Client(endpoint_url=server.url, retry=policy, **CLIENT_ARGUMENTS, **arguments) as client:
        response = await client.invoke_endpoint(**CALL)
        return await response["Body"].read()


@pytest.mark.parametrize("transport", ["pooled", "session"])
@pytest.mark.parametrize("setting", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle", "verify"])
async def test_a_companys_old_certificates_are_accepted(
    server: RecordingServer,
    bundle: Path,
    config_files: ConfigFiles,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    transport: str,
) -> None:
    """The home folder is expanded in each of the settings."""
    path = f"~/{bundle.name}"
    arguments: dict[str, Any] = {"transport": transport}
    if setting == "verify":
        arguments["verify"] = path
    elif setting == "ca_bundle":
        config_files(f"[default]\nca_bundle = {path}\n")
    else:
        monkeypatch.setenv(setting, path)
    assert await read(server, **arguments) == b"over TLS"
    assert await asyncio.to_thread(read_with_boto3, server.url, arguments.get("verify")) == b"over TLS"


def read_with_boto3(url: str, verify: str | None) -> bytes:
    session = boto3.Session("AKIDEXAMPLE", "fake-secret", region_name="eu-west-1")
    client = session.client("sagemaker-runtime", endpoint_url=url, verify=verify)
    body: bytes = client.invoke_endpoint(**CALL)["Body"].read()
    client.close()
    return body


@pytest.mark.parametrize("transport", ["pooled", "session"])
async def test_a_companys_old_certificates_among_the_systems_are_accepted(
    server: RecordingServer, bundle: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    if sys.version_info < (3, 13):
        pytest.skip("aiohttp's own context, which it made when it was imported, is not strict")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    tls._default_context.cache_clear()
    try:
        assert await read(server, transport=transport) == b"over TLS"
    finally:
        tls._default_context.cache_clear()


async def test_they_are_not_accepted_without_their_authority(server: RecordingServer) -> None:
    with pytest.raises(errors.SSLError):
        await read(server)
    assert server.requests == []


def hashed(bundle: Path, folder: Path) -> Path:
    """A folder as `openssl rehash` prepares it."""
    folder.mkdir()
    name = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", str(bundle)], capture_output=True, text=True, check=True
    )
    (folder / f"{name.stdout.strip()}.0").write_bytes(bundle.read_bytes())
    return folder


async def test_a_folder_of_authorities(server: RecordingServer, bundle: Path, tmp_path: Path) -> None:
    assert await read(server, verify=hashed(bundle, tmp_path / "authorities")) == b"over TLS"


def wrong_paths(folder: Path) -> dict[str, Path]:
    (folder / "text.pem").write_text("no certificate")
    (folder / "empty.pem").write_text("")
    (folder / "folder").mkdir()
    (folder / "folder" / "company.pem").write_text("not under the name that OpenSSL looks for")
    return {name: folder / name for name in ("missing.pem", "text.pem", "empty.pem", "folder")}


@pytest.mark.parametrize("name", ["missing.pem", "text.pem", "empty.pem", "folder"])
@pytest.mark.parametrize("setting", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle", "verify"])
async def test_a_wrong_path_is_named_with_its_setting(
    server: RecordingServer,
    tmp_path: Path,
    config_files: ConfigFiles,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    name: str,
) -> None:
    path = wrong_paths(tmp_path)[name]
    arguments: dict[str, Any] = {}
    kind: type[errors.AiosmrtError] = errors.InvalidConfigError
    shown = setting
    if setting == "verify":
        arguments["verify"] = path
        kind = errors.ParamValidationError
    elif setting == "ca_bundle":
        config_files(f"[profile corp]\nca_bundle = {path}\n")
        arguments["profile_name"] = "corp"
        shown = "ca_bundle in the profile 'corp'"
    else:
        monkeypatch.setenv(setting, str(path))
    with pytest.raises(
        kind, match=re.escape(f"{shown} must be a file or folder of CA certificates in PEM format; got {str(path)!r}: ")
    ):
        await read(server, **arguments)
    assert server.requests == []


@pytest.mark.parametrize("value", ["", " ", "\t"])
@pytest.mark.parametrize("setting", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle"])
async def test_a_blank_path_is_refused_as_botocore_refuses_it(
    server: RecordingServer, config_files: ConfigFiles, monkeypatch: pytest.MonkeyPatch, setting: str, value: str
) -> None:
    config_files("[default]\nregion = eu-west-1\n" + (f"ca_bundle = {value}\n" if setting == "ca_bundle" else ""))
    if setting != "ca_bundle":
        monkeypatch.setenv(setting, value)
    try:
        theirs = oracle.client()
    except botocore.exceptions.InvalidConfigError:
        pass
    else:
        # Releases before 1.43 take an empty one as an order not to verify, which nothing here may do.
        assert not theirs._endpoint.http_session._verify.strip()
    with pytest.raises(botocore.exceptions.InvalidConfigError, match=setting) as caught:
        await read(server)
    assert isinstance(caught.value, errors.InvalidConfigError)
    assert server.requests == []


async def test_no_verification_ignores_all_of_it(server: RecordingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "")
    assert await read(server, verify=False) == b"over TLS"


async def test_plain_http_reads_no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/authorities.pem")
    async with RecordingServer(respond(200, b"plain")) as plain:
        assert await read(plain) == b"plain"


async def test_a_callers_session_verifies_as_it_does_otherwise(
    server: RecordingServer, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless something else is configured."""
    connector = aiohttp.TCPConnector(ssl=tls.context_of_bundle(str(bundle)))
    async with aiohttp.ClientSession(connector=connector) as session:
        assert await read(server, session=session) == b"over TLS"
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    async with aiohttp.ClientSession() as session:
        assert await read(server, session=session) == b"over TLS"


# Systems without authorities


@pytest.fixture
def without_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    """Set where OpenSSL looks for the system's authorities."""

    def point(file: str, folder: str) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", file)
        monkeypatch.setenv("SSL_CERT_DIR", folder)
        tls._default_context.cache_clear()

    yield point
    tls._default_context.cache_clear()


def trusted(verification: bool | ssl.SSLContext) -> int:
    assert isinstance(verification, ssl.SSLContext)
    assert verification.verify_mode is ssl.CERT_REQUIRED
    assert verification.check_hostname
    return verification.cert_store_stats()["x509_ca"]


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_system_without_authorities_gets_botocores(
    without_authorities: Callable[[str, str], None], tmp_path: Path, kind: str
) -> None:
    file, folder = tmp_path / "cert.pem", tmp_path / "certs"
    if kind == "empty":
        file.write_text("")
        folder.mkdir()
    without_authorities(str(file), str(folder))
    expected = ssl.create_default_context(cafile=botocore.httpsession.get_cert_path(True))
    assert trusted(tls.default_verification()) == trusted(expected) > 50
    assert tls.default_verification() is tls.default_verification()


def test_the_systems_authorities_come_first(
    without_authorities: Callable[[str, str], None], bundle: Path, tmp_path: Path
) -> None:
    without_authorities(str(bundle), str(tmp_path / "nowhere"))
    verification = tls.default_verification()
    if sys.version_info < (3, 13):
        assert verification is True
    else:
        assert trusted(verification) == 1
    without_authorities(str(tmp_path / "nowhere.pem"), str(hashed(bundle, tmp_path / "authorities")))
    # OpenSSL reads a folder when it looks for a certificate, so nothing is counted yet.
    assert tls.default_verification() is True or trusted(tls.default_verification()) == 0
    without_authorities(str(tmp_path / "nowhere.pem"), f"{tmp_path / 'nowhere'}{os.pathsep}{tmp_path / 'authorities'}")
    assert tls.default_verification() is True or trusted(tls.default_verification()) == 0
