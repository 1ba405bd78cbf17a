"""Rejects requests that a web page sent, on a runtime that does not check signatures.

A browser lets any page send a POST to 127.0.0.1 (the page only cannot read the response), and under a host name that
the page's owner points to 127.0.0.1 (DNS rebinding) it can read the response too. Without signatures, the headers are
all that tells such a request apart: browsers add ``Origin`` to every cross-origin POST, and a rebound host name is not
a loopback name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["foreign_origin"]

_AUTHORITY: Final = re.compile(
    r"(?:localhost|(?:[a-z0-9-]+\.)+localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?", re.ASCII | re.IGNORECASE
)


def foreign_origin(
    headers: Mapping[str, Sequence[str]], authority: str | None = None, scheme: str = "http"
) -> str | None:
    """Return why a request may come from a web page of another origin; None if it does not.

    Args:
        headers: the request's header values by name, in lower case.
        authority: the authority of a request target in absolute form, or of a request over HTTP/2. If None, the target
            has the usual form.
        scheme: the request's. Defaults to ``http``.

    >>> foreign_origin({"host": ["127.0.0.1:8000"]}) is None
    True
    >>> foreign_origin({"origin": ["https://localhost"]}, "localhost", "https") is None
    True
    >>> foreign_origin({"host": ["evil.example:8000"]})
    'its Host is not a loopback name'
    >>> foreign_origin({"host": ["localhost"], "origin": ["https://evil.example"]})
    'its Origin is another host'
    """
    hosts = [*headers.get("host", ()), *([] if authority is None else [authority])]
    if not hosts or not all(_AUTHORITY.fullmatch(host.strip()) for host in hosts):
        return "its Host is not a loopback name"
    own = f"{scheme}://{hosts[-1].strip()}".lower()
    if any(origin.strip().lower() != own for origin in headers.get("origin", ())):
        return "its Origin is another host"
    if any(site.strip().lower() in ("cross-site", "same-site") for site in headers.get("sec-fetch-site", ())):
        return "it is cross-site"
    return None
