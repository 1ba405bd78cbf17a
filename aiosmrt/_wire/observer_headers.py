"""Adds headers to a request that its parameters do not determine."""

import re
from collections.abc import Mapping

from aiosmrt._wire.params import Head

__all__ = ["extend"]

# RFC 9110, 5.6.2
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

# Set by the client, the signer or the transport, or specific to the connection; adding one would send it twice.
_RESERVED = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
_RESERVED_PREFIXES = ("amz-sdk-", "x-amz-")


def extend(head: Head, added: Mapping[str, str]) -> Head:
    """Add headers to a request's head.

    Args:
        head: the head.
        added: names and values. They replace headers with the same name in any case.

    Raises:
        ValueError: a header is not valid in HTTP, or is reserved. The message does not quote its value.

    >>> extend(Head("churn", "/endpoints/churn/invocations", (("Accept", "text/csv"),)), {"traceparent": "00-ab-cd-01"})
    Head(endpoint_name='churn', path='/endpoints/churn/invocations', \
headers=(('Accept', 'text/csv'), ('traceparent', '00-ab-cd-01')), lasting=False, component=None)
    """
    if not added:
        return head
    names = {name.lower() for name in added}
    for name, value in added.items():
        if not _TOKEN.fullmatch(name) or not value.isascii() or not value.isprintable() or value != value.strip():
            raise ValueError(f"the header {name!r:.80} cannot be sent: its name or value is not valid in HTTP")
    reserved = sorted(name for name in names if name in _RESERVED or name.startswith(_RESERVED_PREFIXES))
    if reserved:
        raise ValueError(f"the client sets these headers itself: {', '.join(reserved)}")
    kept = (header for header in head.headers if header[0].lower() not in names)
    return head._replace(headers=(*kept, *added.items()), lasting=False)
