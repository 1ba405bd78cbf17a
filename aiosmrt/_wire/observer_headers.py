"""Headers on a request beside those that its parameters stand for."""

import re
from collections.abc import Mapping

from aiosmrt._wire.params import Head

__all__ = ["extend"]

# RFC 9110, 5.6.2
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

# Set by the client, the signer and the transports, or about the connection: there would be two of each.
_TAKEN = frozenset(
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
_TAKEN_PREFIXES = ("amz-sdk-", "x-amz-")


def extend(head: Head, added: Mapping[str, str]) -> Head:
    """Add headers to a request's head.

    Args:
        head: the head.
        added: names and values; one that the head has already, in whatever case, is replaced.

    Raises:
        ValueError: HTTP cannot carry one of them, or it is not for others to set. Its value is not quoted.

    >>> extend(Head("churn", "/endpoints/churn/invocations", (("Accept", "text/csv"),)), {"traceparent": "00-ab-cd-01"})
    Head(endpoint_name='churn', path='/endpoints/churn/invocations', \
headers=(('Accept', 'text/csv'), ('traceparent', '00-ab-cd-01')), lasting=False)
    """
    if not added:
        return head
    names = {name.lower() for name in added}
    for name, value in added.items():
        if not _TOKEN.fullmatch(name) or not value.isascii() or not value.isprintable() or value != value.strip():
            raise ValueError(f"the header {name!r:.80} cannot be sent: its name or value is not fit for HTTP")
    taken = sorted(name for name in names if name in _TAKEN or name.startswith(_TAKEN_PREFIXES))
    if taken:
        raise ValueError(f"the client sets these headers itself: {', '.join(taken)}")
    kept = (header for header in head.headers if header[0].lower() not in names)
    return head._replace(headers=(*kept, *added.items()), lasting=False)
