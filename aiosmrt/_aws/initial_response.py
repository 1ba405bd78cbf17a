"""botocore's error for an event stream without an initial response."""

__all__ = ["no_initial_response"]


def no_initial_response() -> Exception:
    """Return a `botocore.eventstream.NoInitialResponseError`, which callers of several services catch."""
    from botocore.eventstream import NoInitialResponseError

    return NoInitialResponseError()
