"""What observers are told, and what they add to a request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiosmrt._core.log import log_event
from aiosmrt.events import CallStarted, Event, Observer

if TYPE_CHECKING:
    from aiosmrt._wire.params import Head

__all__ = ["emit", "report", "with_observers_headers"]


def emit(observers: tuple[Observer, ...], event: Event) -> None:
    """Pass an event to observers; what one raises goes to the loop's exception handler."""
    for observer in observers:
        try:
            observer(event)
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"an observer failed on {type(event).__name__}", "exception": error}
            )


def report(observers: tuple[Observer, ...], event: Event) -> None:
    """Log an event that belongs to no single call, and pass it to observers."""
    log_event(event)
    emit(observers, event)


def with_observers_headers(observers: tuple[Observer, ...], started: CallStarted, head: Head) -> Head:
    """A request's head with the headers that observers have for it."""
    for observer in observers:
        request_headers = getattr(observer, "request_headers", None)
        if request_headers is None:
            continue
        from aiosmrt._wire.observer_headers import extend

        try:
            head = extend(head, request_headers(started, dict(head.headers)))
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "ignored invalid headers from an observer", "exception": error}
            )
    return head
