"""Self-signed certificates, checked by an independent implementation."""

import secrets

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from aiosmrt.local.certificate import _signature, self_signed


def test_certificate_and_key_belong_together() -> None:
    certificate, key = self_signed("a server")
    parsed = x509.load_pem_x509_certificate(certificate.encode())
    private_key = load_pem_private_key(key.encode(), None)
    parsed.verify_directly_issued_by(parsed)
    assert parsed.public_key() == private_key.public_key()
    assert parsed.subject.rfc4514_string() == "CN=a server"
    assert parsed.not_valid_after_utc.year == 9999
    (extension,) = parsed.extensions
    assert [str(one.value) for one in extension.value] == ["127.0.0.1"]


def test_certificates_differ() -> None:
    assert len({text for _ in range(3) for text in self_signed("a server")}) == 6


def test_signatures() -> None:
    for size in range(20):
        seed, message = secrets.token_bytes(32), secrets.token_bytes(size * 13)
        assert _signature(seed, message) == Ed25519PrivateKey.from_private_bytes(seed).sign(message)
