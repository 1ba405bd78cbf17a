"""How a job's progress is shown: kept up to date on a terminal, otherwise line by line, or as JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

__all__ = ["Shown", "print_json", "progress_line", "rows_text", "shown_progress"]

_LINE_EVERY = 10.0
_JSON_EVERY = 1.0
_REFRESH_EVERY = 0.25

# What waits to be printed at most, before progress is left out.
_WAITING: Final = 60


class Shown(NamedTuple):
    """How a job is shown.

    Args:
        on_progress: for progress; None if it is not shown.
        every: seconds between its calls.
        tell: prints a line on standard error while the job runs.
        say: prints the last line on standard error, once it has ended.
    """

    on_progress: Callable[[Any], None] | None
    every: float
    tell: Callable[[str], None]
    say: Callable[[str], None]


class _Printer:
    """Prints in a thread: a reader that pauses, or a terminal that was stopped, must hold up neither calls nor signals.

    What printing raises is raised by the next call of `offer`, or else in the end.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._fault: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="aiosmrt-progress", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            try:
                if self._fault is None:
                    work()
            except Exception as fault:
                self._fault = fault

    def put(self, work: Callable[[], object]) -> None:
        """Have something printed."""
        self._waiting.put(work)

    def offer(self, work: Callable[[], object]) -> None:
        """Have something printed, unless much is waiting; raises what printing has raised."""
        if self._fault is not None:
            raise self._fault
        if self._waiting.qsize() < _WAITING:
            self._waiting.put(work)

    def close(self) -> Exception | None:
        """Wait until everything is printed; returns what printing has raised."""
        self._waiting.put(None)
        self._thread.join()
        return self._fault


@contextmanager
def _printer() -> Iterator[_Printer]:
    printer = _Printer()
    try:
        yield printer
    finally:
        fault = printer.close()
    if fault is not None:
        raise fault


@contextmanager
def shown_progress(*, as_json: bool, quiet: bool) -> Iterator[Shown]:
    """Show progress.

    Args:
        as_json: on standard output as JSON, a record a second, and nothing on standard error.
        quiet: not at all.
    """
    on_progress: Callable[[Any], None] | None = None
    say, every = _say, 1.0
    with ExitStack() as open_until_the_end:
        if not (as_json or quiet) and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            # `transient`: the last line takes its place.
            live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)
            open_until_the_end.enter_context(live)
            every = _REFRESH_EVERY

            def update_bar(progress: Any) -> None:
                printer.offer(lambda: live.update(_bar(progress), refresh=True))

            on_progress = update_bar

        elif as_json:
            say, every = _nothing, _JSON_EVERY

            def write_record(progress: Any) -> None:
                printer.offer(partial(print_json, _rounded(progress._asdict())))

            on_progress = write_record

        elif quiet:
            say = _nothing
        else:
            # The first call comes when the job starts, the last when it ends; a line for either says nothing.
            due = time.monotonic() + _LINE_EVERY

            def write_line(progress: Any) -> None:
                nonlocal due
                if time.monotonic() >= due:
                    due = time.monotonic() + _LINE_EVERY
                    printer.offer(partial(_say, progress_line(progress)))

            on_progress = write_line

        # Closed first: nothing is printed behind the bar's end.
        printer = open_until_the_end.enter_context(_printer())
        # Its own printer: a reader that pauses on progress may still read this.
        notices = open_until_the_end.enter_context(_printer())
        yield Shown(on_progress, every, lambda line: notices.put(partial(_say, line)), say)


def print_json(record: dict[str, Any]) -> None:
    """Print a record on a line of standard output."""
    sys.stdout.write(f"{json.dumps(record)}\n")
    sys.stdout.flush()


def progress_line(progress: Any) -> str:
    """A job's progress in words."""
    parts = [_rows(progress), *_details(progress)]
    if progress.remaining is not None:
        parts.append(f"{_clock(progress.remaining)} left")
    return " · ".join(parts)


def rows_text(count: int) -> str:
    """So many rows, in words."""
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _bar(progress: Any) -> Any:
    """A job's progress on two lines of a terminal: a bar, and words."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    left = "" if progress.remaining is None else f"  {_clock(progress.remaining)} left"
    # Without a total it moves, to show that something happens.
    total = None if not progress.rows else progress.rows
    done = min(progress.scored + progress.failed, total or 0)
    bar.add_row(ProgressBar(total=total, completed=done, pulse=total is None), f"{_rows(progress)}{left}")
    return Group(bar, Text(" · ".join(_details(progress)), style="dim"))


def _rows(progress: Any) -> str:
    done = progress.scored + progress.failed
    if not progress.rows:
        return rows_text(done)
    # 100 % is for the end.
    share = min(done / progress.rows, 0.99) if done < progress.rows else 1.0
    return f"{done:,} of {'about ' if progress.is_estimate else ''}{rows_text(progress.rows)} ({share:.0%})"


def _details(progress: Any) -> list[str]:
    parts = [f"{progress.rows_per_second:,.0f}/s", f"{progress.in_flight} of {progress.max_in_flight} in flight"]
    if progress.waiting_for is not None:
        parts.append(f"{progress.waiting:,} waiting: {progress.waiting_for}")
    if progress.retries:
        parts.append(f"{progress.retries:,} retries")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    return parts


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in record.items()}


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _nothing(line: str) -> None:
    pass
