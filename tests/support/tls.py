"""Certificates of a private authority, for servers on loopback."""

from __future__ import annotations

import ssl
from functools import cache

import trustme

__all__ = ["client_context", "server_context"]


@cache
def _authority(name: str) -> trustme.CA:
    return trustme.CA(organization_name=name)


@cache
def server_context(*names: str, authority: str = "tests") -> ssl.SSLContext:
    """What a server identifies itself with.

    Args:
        names: host names and addresses on the certificate; none for ``localhost`` and ``127.0.0.1``.
        authority: who signed it.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _authority(authority).issue_cert(*(names or ("localhost", "127.0.0.1"))).configure_cert(context)
    return context


@cache
def client_context(authority: str = "tests") -> ssl.SSLContext:
    """What a client checks certificates with: those of the authority hold, and those that the system knows."""
    context = ssl.create_default_context()
    _authority(authority).configure_trust(context)
    return context
