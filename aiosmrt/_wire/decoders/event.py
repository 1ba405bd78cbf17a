"""`ServerSentEvent`, apart from its decoder, so that naming it loads nothing else."""

from typing import NamedTuple

__all__ = ["ServerSentEvent"]


class ServerSentEvent(NamedTuple):
    """An event of a ``text/event-stream``.

    Args:
        event: the event's type.
        data: the event's data lines, joined by LF.
        id: the last event id: that of this event or, without one, that of the last event that had one.
        retry: the reconnection time that the stream asked for last, in milliseconds; None if it never asked.
    """

    event: str = "message"
    data: str = ""
    id: str = ""
    retry: int | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.data)} characters>"
