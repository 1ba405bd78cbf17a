"""How a job's progress is shown: kept up to date on a terminal, otherwise line by line, or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

__all__ = ["Shown", "print_json", "progress_line", "shown_progress"]

_LINE_EVERY = 10.0
_JSON_EVERY = 1.0
_REFRESH_EVERY = 0.25

Shown: TypeAlias = tuple[Callable[[Any], None] | None, float, Callable[[str], None]]
"""A function for progress, the seconds between its calls, and a function for the last line."""


@contextmanager
def shown_progress(*, as_json: bool, quiet: bool) -> Iterator[Shown]:
    """Show progress.

    Args:
        as_json: on standard output as JSON, a record a second, and nothing on standard error.
        quiet: not at all.
    """
    last = _nothing if quiet or as_json else _say
    if as_json:
        yield (lambda progress: print_json(_rounded(progress._asdict()))), _JSON_EVERY, last
    elif quiet:
        yield None, _JSON_EVERY, last
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live

        # `transient`: the last line takes its place.
        with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:
            yield (lambda progress: live.update(_bar(progress), refresh=True)), _REFRESH_EVERY, last
    else:
        # The first call comes when the job starts, the last when it ends; a line for either says nothing.
        due = time.monotonic() + _LINE_EVERY

        def tell(progress: Any) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + _LINE_EVERY
                _say(progress_line(progress))

        yield tell, 1.0, last


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
        return f"{done:,} rows"
    # 100 % is for the end.
    share = min(done / progress.rows, 0.99) if done < progress.rows else 1.0
    return f"{done:,} of {'about ' if progress.is_estimate else ''}{progress.rows:,} rows ({share:.0%})"


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
