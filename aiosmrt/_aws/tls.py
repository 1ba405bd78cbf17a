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
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Final

import botocore

from aiosmrt._aws.settings import CaBundle

__all__ = [
    "UnusableAuthoritiesError",
    "context_of_bundle",
    "default_verification",
    "fault_for_botocore",
    "http2_context",
]

# OpenSSL looks a certificate up by this name in a folder; the rest of the folder is ignored.
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.[0-9]+")

# What names the system's authorities, for OpenSSL.
_VARIABLES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")


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
            context = ssl.create_default_context(cafile=path)
            if context.cert_store_stats()["x509"]:
                return _lenient(context)
        elif _has_certificates(path):
            return _lenient(ssl.create_default_context(capath=path))
    except ssl.SSLError as error:
        what = "no" if error.reason == "NO_CERTIFICATE_OR_CRL_FOUND" else "a malformed"
        raise UnusableAuthoritiesError(f"it contains {what} certificate in PEM format") from error
    except (OSError, ValueError) as error:
        raise UnusableAuthoritiesError(getattr(error, "strerror", None) or str(error)) from error
    raise UnusableAuthoritiesError(
        "the folder contains no certificates under the names that `openssl rehash` makes"
        if Path(path).is_dir()
        else "it contains no certificate in PEM format"
    )


def fault_for_botocore(bundle: CaBundle) -> str | None:
    """What keeps botocore and aiobotocore from using authorities, as they do not tell; None if nothing. Reads files.

    Args:
        bundle: the authorities.
    """
    path = os.path.expanduser(bundle.path)  # noqa: PTH111
    try:
        context_of_bundle(path)
    except UnusableAuthoritiesError as error:
        reason = str(error)
    else:
        if not Path(path).is_dir():
            return None
        reason = "it is a folder, which botocore does not take"
    return f"{bundle.setting} must be a file of CA certificates in PEM format; got {bundle.path!r}: {reason}"


def http2_context(bundle_path: str | None, *, verify: bool) -> ssl.SSLContext:
    """A context for HTTP/2, which a server chooses by ALPN; reads files.

    Args:
        bundle_path: a file or folder as for `context_of_bundle`. If None, the default authorities.
        verify: whether to verify certificates at all.

    Raises:
        UnusableAuthoritiesError: as `context_of_bundle`.
    """
    context = _make_default() if bundle_path is None else context_of_bundle(bundle_path)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def default_verification() -> bool | ssl.SSLContext:
    """How to verify without a bundle: True for aiohttp's own context, or another one; may read files."""
    named = tuple(map(os.environ.get, _VARIABLES))
    # aiohttp's reads the variables when it is imported, and is strict from Python 3.13 on.
    if sys.version_info < (3, 13) and named == (None, None) and _has_system_authorities():
        return True
    return _default_context(named)


# Loading 150 authorities takes 18 ms and 800 KiB, so that clients share the result.
@lru_cache(maxsize=4)
def _default_context(named: tuple[str | None, ...]) -> ssl.SSLContext:
    return _make_default()


def _make_default() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not (context.cert_store_stats()["x509"] or _has_system_folder()):
        for bundle in _bundled_authorities():
            if os.access(bundle, os.R_OK):
                context = ssl.create_default_context(cafile=bundle)
                break
    return _lenient(context)


def _lenient(context: ssl.SSLContext) -> ssl.SSLContext:
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])  # as aiohttp does
    return context


def _has_system_authorities() -> bool:
    if sys.platform == "win32":  # in the registry
        return True
    file = ssl.get_default_verify_paths().cafile
    if file and os.access(file, os.R_OK) and Path(file).stat().st_size:
        return True
    return _has_system_folder()


def _has_system_folder() -> bool:
    # OpenSSL takes several folders, which Python's `paths.capath` does not show, and reads them when it looks for a
    # certificate.
    paths = ssl.get_default_verify_paths()
    folders = os.environ.get(paths.openssl_capath_env, paths.openssl_capath).split(os.pathsep)
    return any(_has_certificates(folder) for folder in folders if os.access(folder, os.R_OK) and Path(folder).is_dir())


def _has_certificates(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(_HASHED_NAME.fullmatch(entry.name) and _is_certificate(entry.path) for entry in entries)


def _is_certificate(path: str) -> bool:
    """Whether it is one that OpenSSL reads; links in a system's folder may lead nowhere."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:
        return False
    return True


def _bundled_authorities() -> list[Path]:
    """The bundle that botocore takes, and the one that it comes with; packed programs may lack either."""
    own = Path(botocore.__file__).with_name("cacert.pem")
    try:
        return [Path(import_module("certifi").where()), own]
    except ImportError:
        return [own]
