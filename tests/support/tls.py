"""Certificates of a private authority, for servers on loopback."""

from __future__ import annotations

import ssl
from functools import cache

import trustme

__all__ = ["authority_pem", "client_context", "key_and_certificate", "server_context"]


@cache
def _authority(name: str) -> trustme.CA:
    return trustme.CA(organization_name=name)


@cache
def server_context(*names: str, authority: str = "tests", protocol: str | None = None) -> ssl.SSLContext:
    """What a server identifies itself with.

    Args:
        names: host names and addresses on the certificate; none for ``localhost`` and ``127.0.0.1``.
        authority: who signed it.
        protocol: what it offers by ALPN, such as ``h2``. If None, nothing.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _authority(authority).issue_cert(*(names or ("localhost", "127.0.0.1"))).configure_cert(context)
    if protocol is not None:
        context.set_alpn_protocols([protocol])
    return context


@cache
def client_context(authority: str = "tests", *, protocol: str | None = None) -> ssl.SSLContext:
    """What a client checks certificates with: those of the authority hold, and those that the system knows.

    Args:
        authority: the authority.
        protocol: what it offers by ALPN, such as ``h2``. If None, nothing.
    """
    context = ssl.create_default_context()
    _authority(authority).configure_trust(context)
    if protocol is not None:
        context.set_alpn_protocols([protocol])
    return context


def authority_pem(authority: str = "tests") -> bytes:
    """The certificate of an authority, for programs that read it from a file."""
    return _authority(authority).cert_pem.bytes()


def key_and_certificate(*names: str, authority: str = "tests") -> tuple[str, str]:
    """A private key and its certificate as PEM, for servers that are other programs; see `server_context`."""
    issued = _authority(authority).issue_cert(*(names or ("localhost", "127.0.0.1")))
    return issued.private_key_pem.bytes().decode(), issued.cert_chain_pems[0].bytes().decode()
