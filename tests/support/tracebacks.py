"""What error trackers would report of an error: the local variables of every frame in its traceback."""

from __future__ import annotations

import traceback
from collections.abc import Mapping


def shown_locals(error: BaseException, secrets: Mapping[str, str]) -> list[str]:
    """Which secrets stand in the locals of frames that are the package's or a library's, rather than the tests'.

    Args:
        error: the error; its causes, contexts and the members of groups are included.
        secrets: the text of each secret, by what it is.
    """
    found = set()
    reports = [traceback.TracebackException.from_exception(error, capture_locals=True)]
    while reports:
        report = reports.pop()
        reports += [other for other in (report.__cause__, report.__context__) if other is not None]
        reports += report.exceptions or []
        for frame in report.stack:
            if "/tests/" not in frame.filename:
                for name, text in (frame.locals or {}).items():
                    found |= {f"{what}: {frame.name}, {name}" for what, secret in secrets.items() if secret in text}
    return sorted(found)
