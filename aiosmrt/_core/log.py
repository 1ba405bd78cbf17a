"""What the client writes to the logger ``aiosmrt``: a line for each thing that happens.

Retries, waits, credentials and changes of a target's health come at INFO or WARNING, written where they happen. Single
attempts come at DEBUG: `log_event` is then one of a call's observers. Lines hold names, sizes and durations, never a
payload, a custom attribute, a credential or an error's message, which may quote a payload.
"""

from __future__ import annotations

import logging
import os
import warnings
from functools import cache
from typing import TYPE_CHECKING, Final

from aiosmrt import events

if TYPE_CHECKING:
    from aiosmrt.errors import AiosmrtError

__all__ = ["KNOWN_LEVELS", "LOGGER", "apply_environment", "log_event", "log_failure", "logs_debug"]

LOGGER: Final = logging.getLogger("aiosmrt")
# An application that has not set up logging gets no lines on standard error.
LOGGER.addHandler(logging.NullHandler())

_FORMAT: Final = "[%(asctime)s - %(name)s - %(levelname)s] %(message)s"
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO}

# Longest text of a server in a line, such as a request id.
_MAX_TEXT: Final = 100


# What the logger knows of levels already, in an attribute that is private to logging; without it, the logger is asked
# each time. It forgets all whenever any logger's level changes. An application's own class may decide otherwise.
_is_ordinary: Final = type(LOGGER).isEnabledFor is logging.Logger.isEnabledFor
KNOWN_LEVELS: Final[dict[int, bool]] = getattr(LOGGER, "_cache", {}) if _is_ordinary else {}


def logs_debug() -> bool:
    """Whether single attempts are logged; a quarter of the time that the logger takes, which counts in each call."""
    return KNOWN_LEVELS.get(logging.DEBUG, True) and LOGGER.isEnabledFor(logging.DEBUG)


@cache
def apply_environment() -> None:
    """Set up logging as ``AIOSMRT_LOG`` says, once: ``debug`` or ``info``; unset or empty, do nothing."""
    name = os.environ.get("AIOSMRT_LOG", "").lower()
    if not name:
        return
    if name not in _LEVELS:
        warnings.warn(
            f"AIOSMRT_LOG must be debug or info; got {name!r:.80}, which is ignored", RuntimeWarning, stacklevel=2
        )
        return
    logging.basicConfig(format=_FORMAT, datefmt="%Y-%m-%d %H:%M:%S")
    LOGGER.setLevel(_LEVELS[name])


def log_failure(operation: str, endpoint: str, attempt: int, error: AiosmrtError, outcome: str) -> None:
    """Write that an attempt failed, and what follows.

    Args:
        operation: the API operation.
        endpoint: the endpoint's name.
        attempt: its number, from 1; 0 if nothing was sent.
        error: why it failed.
        outcome: what follows.
    """
    if not LOGGER.isEnabledFor(logging.INFO):
        return
    LOGGER.info(
        "%s %s: %s: %s (%s), %s; request id %s",
        operation,
        endpoint,
        f"attempt {attempt} failed" if attempt else "not sent",
        type(error).__name__,
        error.cause,
        outcome,
        _text(error.request_id),
    )


def log_event(event: events.Event) -> None:
    """Write what an observer is told, unless it is written where it happens."""
    match event:
        case events.CallStarted():
            _debug(event, "call %s begins", event.invocation_id)
        case events.AttemptStarted():
            _debug(event, "attempt %d sends %d bytes", event.attempt, event.body_bytes)
        case events.AttemptEnded():
            outcome = "failed" if event.error is not None else "succeeded"
            status = "no response" if event.status is None else f"status {event.status}"
            error = "" if event.error is None else f": {_text(event.error)}"
            _debug(
                event,
                "attempt %d %s after %.3f s%s, %s; request id %s",
                event.attempt,
                outcome,
                event.duration,
                error,
                status,
                _text(event.request_id),
            )
        case events.LimiterWaited():
            _debug(event, "waited %.3f s for a slot", event.duration)
        case events.FirstPart():
            _debug(event, "first part after %.3f s", event.duration)
        case events.CallEnded():
            error = "" if event.error is None else f" with {event.error}"
            _debug(event, "call ended%s after %.3f s, attempts: %d", error, event.duration, event.attempts)
        case events.StreamEnded():
            state = "complete" if event.complete else "incomplete" if event.error is None else f"failed: {event.error}"
            _debug(
                event,
                "stream ended after %.3f s, parts: %d, bytes: %d, %s",
                event.duration,
                event.parts,
                event.payload_bytes,
                state,
            )
        case events.CredentialsRefreshed():
            expiry = event.expires_at
            LOGGER.info(
                "credentials obtained from %s, %s",
                event.source,
                "without expiry" if expiry is None else f"expiry at {expiry:.0f} (epoch seconds)",
            )
        case events.CredentialsRefreshFailed():
            LOGGER.warning(
                "credentials from %s could not be renewed: %s; those known are still valid", event.source, event.error
            )
        case events.ClockSkewCorrected():
            LOGGER.warning("the local clock is %.0f s behind the service's; signatures correct for it", event.offset)
        case _:
            # Retries and waits are written by the call, which knows more.
            return


def _debug(
    event: events.CallStarted
    | events.AttemptStarted
    | events.AttemptEnded
    | events.LimiterWaited
    | events.FirstPart
    | events.CallEnded
    | events.StreamEnded,
    text: str,
    *facts: object,
) -> None:
    LOGGER.debug("%s %s: " + text, event.operation, event.endpoint_name, *facts)


def _text(given: str | None) -> str:
    """What a server sent, on one line; ``-`` for nothing.

    >>> _text("d1b2"), _text(None), _text("forged\\nline")
    ('d1b2', '-', "'forged\\\\nline'")
    """
    if given is None:
        return "-"
    return given[:_MAX_TEXT] if given.isprintable() else repr(given[:_MAX_TEXT])
