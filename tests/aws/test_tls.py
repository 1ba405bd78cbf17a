"""A client trusts the authorities that botocore trusts, and a wrong setting of them is named."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import re
import ssl
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Callable
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

from aiosmrt import Client, Credentials, RetryPolicy, errors
from aiosmrt._aws import tls
from aiosmrt._wire.operations import INLINE_BYTES
from aiosmrt.serializers import BYTES
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
        self.key_pem = _pem(self._key)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Company")])
        now = datetime.datetime.now(datetime.UTC)
        revocations = x509.CertificateRevocationListBuilder(name, now, now + datetime.timedelta(days=1))
        self.revocations_pem = revocations.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def server_context(self, folder: Path) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        address = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        )
        (folder / "server.pem").write_bytes(self._certificate("proxy", key, address) + _pem(key))
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


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


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
    """Also if they became the system's after aiohttp was imported."""
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    assert await read(server, transport=transport) == b"over TLS"


@pytest.mark.parametrize("among", ["the bundle", "the system's"])
def test_a_companys_old_certificates_are_accepted_for_bidirectional_streams(
    authority: OldAuthority, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, among: str
) -> None:
    if among != "the bundle":
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    context = tls.http2_context(str(bundle) if among == "the bundle" else None, verify=True)
    serving = authority.server_context(tmp_path)
    serving.set_alpn_protocols(["h2"])
    assert agreed_protocol(context, serving) == "h2"


def agreed_protocol(client: ssl.SSLContext, server: ssl.SSLContext) -> str | None:
    """What two ends agree on by ALPN, after a handshake in memory."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    there = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (here, there, here, there, here):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return here.selected_alpn_protocol()


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


TOO_LONG = "x" * 300

WRONG_PATHS = {
    "missing.pem": "No such file or directory",
    "text.pem": "it contains no certificate in PEM format",
    "empty.pem": "it contains no certificate in PEM format",
    "key.pem": "it contains no certificate in PEM format",
    "binary.der": "it contains no certificate in PEM format",
    "revoked.pem": "it contains no certificate in PEM format",
    "broken.pem": "it contains a malformed certificate in PEM format",
    "folder": "the folder contains no certificates under the names that `openssl rehash` makes",
    "folder-of-text": "the folder contains no certificates under the names that `openssl rehash` makes",
    "nul\0.pem": "embedded null",
    TOO_LONG: "File name too long",
}


def wrong_path(folder: Path, name: str, authority: OldAuthority) -> Path:
    """A path to what is not a certificate."""
    content = {
        "text.pem": b"no certificate",
        "empty.pem": b"",
        "key.pem": authority.key_pem,
        "binary.der": ssl.PEM_cert_to_DER_cert(authority.pem.decode()),
        "revoked.pem": authority.revocations_pem,
        # A good one before it does not help OpenSSL.
        "broken.pem": authority.pem + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    }
    if name in content:
        (folder / name).write_bytes(content[name])
    elif name.startswith("folder"):
        (folder / name).mkdir()
        # The first is not a name that OpenSSL looks for.
        (folder / name / ("company.pem" if name == "folder" else "01234567.0")).write_bytes(
            authority.pem if name == "folder" else b"no certificate"
        )
    return folder / name


@pytest.mark.parametrize("name", ["missing.pem", "text.pem", "folder"])
@pytest.mark.parametrize("setting", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle", "verify"])
async def test_a_wrong_path_is_named_with_its_setting(
    server: RecordingServer,
    authority: OldAuthority,
    tmp_path: Path,
    config_files: ConfigFiles,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    name: str,
) -> None:
    path = wrong_path(tmp_path, name, authority)
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
        kind,
        match=re.escape(
            f"{shown} must be a file or folder of CA certificates in PEM format; got {str(path)!r}: {WRONG_PATHS[name]}"
        ),
    ):
        await read(server, **arguments)
    assert server.requests == []


@pytest.mark.parametrize("name", WRONG_PATHS, ids=range(len(WRONG_PATHS)))
def test_what_is_wrong_with_a_path_is_told(tmp_path: Path, authority: OldAuthority, name: str) -> None:
    with pytest.raises(tls.UnusableAuthoritiesError, match=re.escape(WRONG_PATHS[name])):
        tls.context_of_bundle(str(wrong_path(tmp_path, name, authority)))


@pytest.mark.parametrize(
    ("setting", "what"),
    [("AWS_CA_BUNDLE", TOO_LONG), ("REQUESTS_CA_BUNDLE", "authorities"), ("ca_bundle", "missing.pem")],
    ids=["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle"],
)
async def test_what_other_services_cannot_use_is_named_with_its_setting(
    bundle: Path,
    server: RecordingServer,
    tmp_path: Path,
    config_files: ConfigFiles,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    what: str,
) -> None:
    """Also where the service itself is called without TLS, so that nothing has looked at the path before."""
    hashed(bundle, tmp_path / "authorities")
    path = tmp_path / what
    role = "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/fake\nsource_profile = keys\n"
    keys = "[profile keys]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = not-a-real-secret\n"
    if setting == "ca_bundle":
        role += f"ca_bundle = {path}\n"
        setting = "ca_bundle in the profile 'role'"
    else:
        monkeypatch.setenv(setting, str(path))
    config_files(f"{role}region = eu-west-1\n{keys}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fault = re.escape(f"{setting} must be a file of CA certificates in PEM format; got {str(path)!r}: ")
    async with (
        RecordingServer(respond(200, b"plain")) as plain,
        Client(endpoint_url=plain.url, profile_name="role", patience=0) as client,
    ):
        with pytest.raises(errors.CredentialRetrievalError, match=fault) as caught:
            await client.invoke_endpoint(**CALL)
        assert isinstance(caught.value, botocore.exceptions.SSLError)
        assert plain.requests == []
    arguments: dict[str, Any] = {"endpoint_url": "http://127.0.0.1:9", "s3_endpoint_url": server.url}
    arguments["profile_name"] = "role"
    async with Client(credentials=Credentials("AKIDEXAMPLE", "not-a-real-secret"), **arguments) as client:
        with pytest.raises(errors.InvalidConfigError, match=fault):
            await submit(client)
    assert server.requests == []


async def submit(client: Client) -> None:
    """Upload a body to S3, and let an endpoint know."""
    endpoint = client.endpoint("e", serializer=BYTES, deserializer=BYTES, upload_to="s3://bucket/in/")
    await endpoint.submit(bytes(INLINE_BYTES + 1))


async def test_plain_http_reads_no_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/authorities.pem")
    async with RecordingServer(respond(200, b"plain")) as plain:
        assert await read(plain) == b"plain"


async def test_a_wrong_path_for_bidirectional_streams_is_named_with_its_setting(
    server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("h2")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/authorities.pem")
    async with Client(endpoint_url="http://127.0.0.1:9", http2_endpoint_url=server.url, **CLIENT_ARGUMENTS) as client:
        stream = client.invoke_endpoint_with_bidirectional_stream(EndpointName="e")
        with pytest.raises(errors.InvalidConfigError, match=r"AWS_CA_BUNDLE must be a file or folder .* '/nowhere/"):
            async with stream:
                pass


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
def without_authorities(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Set where OpenSSL looks for the system's authorities."""

    def point(file: str, folder: str) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", file)
        monkeypatch.setenv("SSL_CERT_DIR", folder)

    return point


def trusted(verification: bool | ssl.SSLContext) -> int:
    assert isinstance(verification, ssl.SSLContext)
    assert verification.verify_mode is ssl.CERT_REQUIRED
    assert verification.check_hostname
    return verification.cert_store_stats()["x509_ca"]


@pytest.mark.parametrize("kind", ["missing", "empty", "blank", "wrong", "dangling"])
def test_a_system_without_authorities_gets_botocores(
    without_authorities: Callable[[str, str], None], tmp_path: Path, kind: str
) -> None:
    file, folder = tmp_path / "cert.pem", tmp_path / "certs"
    if kind not in ("missing", "blank"):
        file.write_text("" if kind == "empty" else "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        folder.mkdir()
    if kind == "wrong":
        (folder / "01234567.0").write_text("no certificate")
    elif kind == "dangling":
        (folder / "01234567.0").symlink_to("removed.pem")
    without_authorities(*("", "") if kind == "blank" else (str(file), str(folder)))
    expected = ssl.create_default_context(cafile=botocore.httpsession.get_cert_path(True))
    assert trusted(tls.default_verification()) == trusted(expected) > 50
    assert tls.default_verification() is tls.default_verification()
    assert trusted(tls.http2_context(None, verify=True)) == trusted(expected)


def test_a_system_without_authorities_at_its_own_places_gets_botocores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As of a Python that was built elsewhere, or a container image without the package."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    nowhere = str(tmp_path / "nowhere")
    places = ssl.DefaultVerifyPaths(None, None, "SSL_CERT_FILE", nowhere, "SSL_CERT_DIR", nowhere)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: places)
    # which OpenSSL has built in
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: None)
    expected = ssl.create_default_context(cafile=botocore.httpsession.get_cert_path(True))
    tls._default_context.cache_clear()
    try:
        assert trusted(tls.default_verification()) == trusted(expected) > 50
    finally:
        tls._default_context.cache_clear()


@pytest.mark.parametrize("certifi", ["missing", "without its file"])
def test_botocores_own_authorities_are_the_last(
    without_authorities: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, certifi: str
) -> None:
    """Packed programs may lack certifi, or the file in it."""
    without_authorities(str(tmp_path / "missing.pem"), str(tmp_path))
    certifis = types.ModuleType("certifi")
    certifis.where = lambda: str(tmp_path / "nowhere.pem")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "certifi", None if certifi == "missing" else certifis)
    expected = ssl.create_default_context(cafile=str(Path(botocore.__file__).with_name("cacert.pem")))
    assert trusted(tls.default_verification()) == trusted(expected) > 50


def test_the_systems_authorities_come_first(
    without_authorities: Callable[[str, str], None], bundle: Path, tmp_path: Path
) -> None:
    without_authorities(str(bundle), str(tmp_path / "nowhere"))
    assert trusted(tls.default_verification()) == 1
    without_authorities(str(tmp_path / "nowhere.pem"), str(hashed(bundle, tmp_path / "authorities")))
    # OpenSSL reads a folder when it looks for a certificate, so nothing is counted yet.
    assert trusted(tls.default_verification()) == 0
    without_authorities(str(tmp_path / "nowhere.pem"), f"{tmp_path / 'nowhere'}{os.pathsep}{tmp_path / 'authorities'}")
    assert trusted(tls.default_verification()) == 0


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="aiohttp's own context is strict there")
def test_aiohttps_own_context_has_the_systems_authorities_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading them again would take 18 ms of a client's start."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    if not (paths := ssl.get_default_verify_paths()).cafile and not paths.capath:
        pytest.skip("this system has none")
    assert tls.default_verification() is True
