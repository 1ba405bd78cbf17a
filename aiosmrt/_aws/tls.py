"""The certificate authorities that a client trusts.

botocore and aiobotocore trust the ones in ``AWS_CA_BUNDLE`` and its kin, or else a bundle that comes with Python
packages. Here the second place belongs to the system's authorities, and that bundle is for systems without any.

Contexts are not strict about the form of certificates, as theirs are not: from Python 3.13 on,
``ssl.create_default_context`` sets ``VERIFY_X509_STRICT``, which rejects the certificates of many companies' proxies.
"""

from __future__ import annotations

import os
import re
import ssl
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import botocore

__all__ = ["UnusableAuthoritiesError", "context_of_bundle", "default_verification", "http2_context"]

# OpenSSL looks a certificate up by this name in a folder; the rest of the folder is ignored.
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.[0-9]+")


class UnusableAuthoritiesError(Exception):
    """A path does not lead to certificate authorities; the message is the reason."""


def context_of_bundle(path: str) -> ssl.SSLContext:
    """A context that trusts the authorities in a file or folder, and no others; reads files.

    Args:
        path: a file in PEM format, or a folder prepared by ``openssl rehash``.

    Raises:
        UnusableAuthoritiesError: it cannot be read, or contains no certificate.
    """
    try:
        if not Path(path).is_dir():
            return _lenient(ssl.create_default_context(cafile=path))
        if _has_certificates(path):
            return _lenient(ssl.create_default_context(capath=path))
    except ssl.SSLError as error:
        raise UnusableAuthoritiesError(error.reason or "not a certificate in PEM format") from error
    except (OSError, ValueError) as error:
        raise UnusableAuthoritiesError(getattr(error, "strerror", None) or str(error)) from error
    raise UnusableAuthoritiesError("the folder contains no certificates under the names that `openssl rehash` makes")


def http2_context(bundle_path: str | None, *, verify: bool) -> ssl.SSLContext:
    """A context for HTTP/2, which a server chooses by ALPN; reads files.

    Args:
        bundle_path: a file or folder as for `context_of_bundle`. If None, the default authorities.
        verify: whether to verify certificates at all.

    Raises:
        UnusableAuthoritiesError: as `context_of_bundle`.
    """
    if bundle_path is not None:
        context = context_of_bundle(bundle_path)
    else:
        context = _lenient(
            ssl.create_default_context(cafile=None if _has_system_authorities() else _bundled_authorities())
        )
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def default_verification() -> bool | ssl.SSLContext:
    """How to verify without a bundle: True for aiohttp's own context, or another one; may read files."""
    if sys.version_info < (3, 13) and _has_system_authorities():
        return True
    return _default_context()


@cache
def _default_context() -> ssl.SSLContext:
    # Loading 150 authorities takes 18 ms and 800 KiB, so that clients share the result.
    return _lenient(ssl.create_default_context(cafile=None if _has_system_authorities() else _bundled_authorities()))


def _lenient(context: ssl.SSLContext) -> ssl.SSLContext:
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])  # as aiohttp does
    return context


def _has_system_authorities() -> bool:
    if sys.platform == "win32":  # in the registry
        return True
    paths = ssl.get_default_verify_paths()
    if paths.cafile and os.access(paths.cafile, os.R_OK) and Path(paths.cafile).stat().st_size:
        return True
    # OpenSSL takes several folders, which Python's `paths.capath` does not show.
    folders = os.environ.get(paths.openssl_capath_env, paths.openssl_capath).split(os.pathsep)
    return any(_has_certificates(folder) for folder in folders if os.access(folder, os.R_OK) and Path(folder).is_dir())


def _has_certificates(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(_HASHED_NAME.fullmatch(entry.name) for entry in entries)


def _bundled_authorities() -> str:
    """The bundle that botocore takes."""
    try:
        path: str = import_module("certifi").where()
    except ImportError:
        path = str(Path(botocore.__file__).with_name("cacert.pem"))
    return path
