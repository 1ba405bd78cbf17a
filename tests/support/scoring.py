"""Rows to score, models that count what they are asked, and what must come out."""

from __future__ import annotations

import json
import resource
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from aiosmrt.local import ContainerFailure, Invocation

Rows: TypeAlias = list[dict[str, Any]]


class Models:
    """Models that count the bodies they are sent.

    Attributes:
        seen: how often each body came.
        refused: bodies that the model refuses.
        before: called with each body that is to be doubled, before anything else.
    """

    def __init__(self) -> None:
        self.seen: Counter[bytes] = Counter()
        self.refused: set[bytes] = set()
        self.before: Callable[[bytes], Awaitable[object]] | None = None

    async def double(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        """Doubles the n of a JSON object."""
        body = invocation.body
        self.seen[body] += 1
        if self.before is not None:
            await self.before(body)
        if body in self.refused:
            raise ContainerFailure(400, "not this one")
        return json.dumps(2 * json.loads(body)["n"]).encode(), {"Content-Type": "application/json"}

    async def echo(self, invocation: Invocation) -> tuple[bytes, dict[str, str]]:
        """Answers with the body, as the type that it came with."""
        self.seen[invocation.body] += 1
        return invocation.body, {"Content-Type": invocation.content_type or "application/octet-stream"}


def write_rows(path: Path, count: int) -> Path:
    """A file of so many rows for `Models.double`."""
    path.write_text("".join(f'{{"n": {number}}}\n' for number in range(count)))
    return path


def lines_of(path: Path) -> Rows:
    """The records of a file of JSON Lines, whose last line must be whole."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def files_that_end_at(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def doubled(count: int) -> Rows:
    """What `Models.double` makes of so many rows of `write_rows`."""
    return [{"index": number, "value": 2 * number} for number in range(count)]
