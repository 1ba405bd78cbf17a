"""Stateful sessions: the route of each session, and its expiry.

The model creates the session: its container responds to a request with ``NEW_SESSION`` with the id and the expiry
(``X-Amzn-SageMaker-Session-Id: id; Expires=2024-01-01T00:00:00Z`` as AWS documents it, or the same value under
``X-Amzn-SageMaker-New-Session-Id`` as newer serving containers write it), and closes one with
``X-Amzn-SageMaker-Closed-Session-Id: id``. The runtime only remembers the route of each session.
"""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Mapping
from dataclasses import dataclass
from time import gmtime, strftime, strptime
from typing import Final

from aiosmrt.local.backends import Route

__all__ = ["CLOSED_SESSION_HEADER", "NEW_SESSION_HEADER", "SESSION_HEADER", "Session", "SessionTable"]

SESSION_HEADER: Final = "X-Amzn-SageMaker-Session-Id"
NEW_SESSION_HEADER: Final = "X-Amzn-SageMaker-New-Session-Id"
CLOSED_SESSION_HEADER: Final = "X-Amzn-SageMaker-Closed-Session-Id"

_ANNOUNCEMENT = re.compile(r"([a-zA-Z0-9](?:-*[a-zA-Z0-9])*);\s*Expires=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Session:
    """A session and its route."""

    session_id: str
    expires_at: float
    route: Route

    def announcement(self) -> str:
        """Return the value of ``NewSessionId``.

        >>> Session("s-1", 1704067200.0, None).announcement()
        's-1; Expires=2024-01-01T00:00:00Z'
        """
        return f"{self.session_id}; Expires={strftime(_TIME, gmtime(self.expires_at))}"


def parse_announcement(value: str) -> tuple[str, float] | None:
    """Parse ``id; Expires=...Z`` to the id and the expiry in epoch seconds; other forms are None.

    >>> parse_announcement("s-1; Expires=2024-01-01T00:00:00Z")
    ('s-1', 1704067200.0)
    >>> parse_announcement("s-1") is None
    True
    """
    match = _ANNOUNCEMENT.fullmatch(value)
    if match is None:
        return None
    try:
        return match[1], float(timegm(strptime(match[2], _TIME)))
    except ValueError:
        return None


def announced_session(headers: Mapping[str, str]) -> tuple[str, float] | None:
    """Return the session that a container's response headers (names in lower case) announce, if any."""
    for name in (NEW_SESSION_HEADER, SESSION_HEADER):
        value = headers.get(name.lower())
        if value is not None and (announced := parse_announcement(value)) is not None:
            return announced
    return None


class SessionTable:
    """The live sessions of one endpoint.

    >>> table = SessionTable()
    >>> table.open("s-1", 100.0, None)
    Session(session_id='s-1', expires_at=100.0, route=None)
    >>> table.find("s-1", now=99.0) is None, table.find("s-1", now=100.0) is None
    (False, True)
    """

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, session_id: str, expires_at: float, route: Route) -> Session:
        """Add a session."""
        session = Session(session_id, expires_at, route)
        self._sessions[session_id] = session
        return session

    def find(self, session_id: str, *, now: float) -> Session | None:
        """Return the session, or None if it does not exist or has expired."""
        session = self._sessions.get(session_id)
        if session is not None and session.expires_at <= now:
            del self._sessions[session_id]
            return None
        return session

    def close(self, session_id: str) -> bool:
        """Remove a session; return whether it existed."""
        return self._sessions.pop(session_id, None) is not None
