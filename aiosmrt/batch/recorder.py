"""`Recorder`: what happens in a job, over time, and the page that shows it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePath
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from aiosmrt._report import page as pages
from aiosmrt._report.charts import Series, count_text, duration_text, linear_axis
from aiosmrt._report.timeline import Timeline
from aiosmrt._version import __version__
from aiosmrt.batch.progress import Progress
from aiosmrt.errors import BatchOutputError, ParamValidationError
from aiosmrt.events import AttemptEnded, Event

if TYPE_CHECKING:
    from aiosmrt.batch.job import Report

__all__ = ["Recorder", "check_page", "page_fault", "write_page"]

# Bytes at its beginning by which a page is known.
_KNOWN_BY: Final = 4096


class Recorder:
    """Takes note of a job's requests and progress; an observer of its client.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._rows: int | None = None
        self.timeline: Timeline = Timeline()

    def __call__(self, event: Event) -> None:
        """Take note of a request."""
        if not isinstance(event, AttemptEnded):
            return
        at = self._clock() - self._began
        if event.error is None:
            self.timeline.succeeded(at, event.duration)
        else:
            self.timeline.failed(at, event.error)

    def see(self, progress: Progress) -> None:
        """Take note of a job's progress, best once a second."""
        at = self._clock() - self._began
        done = progress.scored + progress.failed
        self.timeline.rows_done(at, max(done - (progress.resumed if self._rows is None else self._rows), 0))
        self._rows = done
        self.timeline.see(
            at,
            in_flight=progress.in_flight,
            limit=progress.max_in_flight,
            waiting=progress.waiting,
            reason=progress.waiting_for,
        )

    def page(self, endpoint: str, report: Report, problem: str | None) -> str:
        """The job's page, an HTML document.

        Args:
            endpoint: the endpoint's name.
            report: what the job came to.
            problem: why it did not finish; None if it did, or was stopped.
        """
        timeline = self.timeline
        if problem is None and not report.finished:
            problem = "Stopped; the same job resumes."
        facts = [
            pages.Fact("rows scored", f"{report.scored:,}"),
            pages.Fact("rows failed", f"{report.failed:,}", report.failed > 0),
            *([pages.Fact("done before", f"{report.resumed:,}")] if report.resumed else []),
            pages.Fact("rows/s", count_text(report.rows_per_second)),
            pages.Fact("time", duration_text(report.seconds)),
            pages.Fact("p50 of requests", duration_text(timeline.latency.percentile(50))),
            pages.Fact("p99 of requests", duration_text(timeline.latency.percentile(99))),
            pages.Fact("sent again", f"{report.retries:,}"),
        ]
        rates = [part.rows / timeline.seconds for part in timeline.slices()]
        throughput = pages.over_time(
            "Throughput",
            "rows a second",
            timeline,
            [Series("rows", 2, rates, "area")],
            linear_axis(max(rates, default=0), count_text),
        )
        name = "answers" if report.output is None else PurePath(report.output).name
        return pages.page(
            f"Batch job on {endpoint}",
            f"{name}: {report.rows:,} rows done, {report.failed:,} of them failed",
            problem,
            facts,
            [
                throughput,
                pages.in_flight_over_time(timeline),
                *pages.latency_over_time(timeline),
                pages.distribution("Latency of requests", timeline.latency),
                *pages.failures_over_time(timeline),
            ],
            f"Latency is that of successful requests, waits between them not included. aiosmrt {__version__}.",
        )


def page_fault(path: Path) -> str | None:
    """Why a page may not be written to a file: something else is there. None if there is nothing, or a page.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is not a regular file, which a page could replace"
    with path.open("rb") as file:
        start = file.read(_KNOWN_BY)
    if start and not pages.is_page(start):
        return f"{path} is not a report page, and is not overwritten; remove it, or choose another name"
    return None


def check_page(path: Path) -> None:
    """See whether a page can be written, and leave no trace.

    Raises:
        ParamValidationError: the file is something else.
        OSError: it cannot be written.
    """
    if (fault := page_fault(path)) is not None:
        raise ParamValidationError([fault])
    temporary = _temporary(path)
    temporary.touch(exist_ok=False)
    temporary.unlink()


def write_page(path: Path, text: str) -> None:
    """Write a page, in place of an older one.

    Raises:
        BatchOutputError: something else has been put there.
        OSError: it cannot be written.
    """
    if (fault := page_fault(path)) is not None:
        raise BatchOutputError(fault)
    temporary = _temporary(path)
    try:
        # File names may contain bytes that are not UTF-8.
        temporary.write_bytes(text.encode(errors="backslashreplace"))
        # What a link leads to, not the link.
        os.replace(temporary, os.path.realpath(path))  # noqa: PTH105 (both are there)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path) -> Path:
    """A new file beside the one that a path leads to."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.{token_hex(4)}")
