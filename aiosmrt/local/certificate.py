"""A self-signed certificate for mutual TLS between the parts of one server.

A server whose parts talk over loopback ports needs a secret that other processes lack. This makes one with the standard
library alone: an Ed25519 key (RFC 8032) and an X.509 certificate (RFC 5280) for 127.0.0.1 that is its own authority.
The signature is computed once, over data that is not secret, so its running time reveals nothing worth having.
"""

from __future__ import annotations

import base64
import secrets
from hashlib import sha512
from typing import Final

__all__ = ["self_signed"]

_Point = tuple[int, int, int, int]  # extended coordinates, RFC 8032, section 5.1.4

_P: Final = 2**255 - 19
_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, -1, _P) % _P
_BASE_X: Final = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_BASE_Y: Final = 4 * pow(5, -1, _P) % _P
_BASE: Final[_Point] = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)

_INTEGER, _BITS, _OCTETS, _OID, _TEXT, _UTC_TIME, _TIME, _SEQUENCE, _SET = 2, 3, 4, 6, 12, 23, 24, 48, 49
_ED25519: Final = b"\x2b\x65\x70"
_COMMON_NAME: Final = b"\x55\x04\x03"
_SUBJECT_ALTERNATIVE_NAME: Final = b"\x55\x1d\x11"


def self_signed(common_name: str) -> tuple[str, str]:
    """Create a certificate and its private key, in PEM.

    Args:
        common_name: the name of subject and issuer.
    """
    seed = secrets.token_bytes(32)
    public_key, _ = _expanded(seed)
    algorithm = _der(_SEQUENCE, _der(_OID, _ED25519))
    name = _der(_SEQUENCE, _der(_SET, _der(_SEQUENCE, _der(_OID, _COMMON_NAME), _der(_TEXT, common_name.encode()))))
    addresses = _der(_SEQUENCE, _der(0x87, bytes([127, 0, 0, 1])))
    to_sign = _der(
        _SEQUENCE,
        _der(0xA0, _der(_INTEGER, b"\x02")),
        _der(_INTEGER, b"\x01" + secrets.token_bytes(8)),
        algorithm,
        name,
        # RFC 5280's form of "does not expire"
        _der(_SEQUENCE, _der(_UTC_TIME, b"200101000000Z"), _der(_TIME, b"99991231235959Z")),
        name,
        _der(_SEQUENCE, algorithm, _der(_BITS, b"\x00", public_key)),
        _der(
            0xA3,
            _der(_SEQUENCE, _der(_SEQUENCE, _der(_OID, _SUBJECT_ALTERNATIVE_NAME), _der(_OCTETS, addresses))),
        ),
    )
    certificate = _der(_SEQUENCE, to_sign, algorithm, _der(_BITS, b"\x00", _signature(seed, to_sign)))
    key = _der(_SEQUENCE, _der(_INTEGER, b"\x00"), algorithm, _der(_OCTETS, _der(_OCTETS, seed)))
    return _pem("CERTIFICATE", certificate), _pem("PRIVATE KEY", key)


def _der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + content


def _pem(label: str, content: bytes) -> str:
    text = base64.b64encode(content).decode()
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def _signature(seed: bytes, message: bytes) -> bytes:
    """Sign a message with Ed25519 (RFC 8032, section 5.1.6).

    >>> seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    >>> _signature(seed, b"r").hex()[:32]
    '92a009a9f0d4cab8720e820b5f642540'
    """
    public_key, scalar = _expanded(seed)
    nonce = _number(sha512(seed).digest()[32:] + message)
    point = _compressed(_multiple(nonce))
    challenge = _number(point + public_key + message)
    return point + ((nonce + challenge * scalar) % _ORDER).to_bytes(32, "little")


def _expanded(seed: bytes) -> tuple[bytes, int]:
    """Return the public key and the secret scalar."""
    scalar = int.from_bytes(sha512(seed).digest()[:32], "little")
    scalar = scalar & ((1 << 254) - 8) | (1 << 254)
    return _compressed(_multiple(scalar)), scalar


def _number(data: bytes) -> int:
    return int.from_bytes(sha512(data).digest(), "little") % _ORDER


def _multiple(scalar: int) -> _Point:
    total: _Point = (0, 1, 1, 0)
    power = _BASE
    while scalar:
        if scalar & 1:
            total = _sum(total, power)
        power = _sum(power, power)
        scalar >>= 1
    return total


def _sum(one: _Point, other: _Point) -> _Point:
    a = (one[1] - one[0]) * (other[1] - other[0]) % _P
    b = (one[1] + one[0]) * (other[1] + other[0]) % _P
    c = 2 * one[3] * other[3] * _D % _P
    d = 2 * one[2] * other[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _compressed(point: _Point) -> bytes:
    inverse = pow(point[2], -1, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | ((x & 1) << 255)).to_bytes(32, "little")
