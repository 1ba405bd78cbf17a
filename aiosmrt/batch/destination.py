"""Where a job's records go: what is written while it runs, and what is made of it in the end.

::

    sink                  while the job runs (the log)                     at the end
    rows.jsonl, csv, txt  the file itself                                  sorted
    rows.parquet          rows.parquet.rows.jsonl, beside it               written from the log, renamed into place
    s3://bucket/key       the same in a local folder, the spool            uploaded from the spool
    a function            called with records, then the log in the spool   nothing

What was made in the end carries the run and the state of the log that it was made of. So an interruption while it is
made costs nothing but making it again, and what something else has put into its place is not overwritten.

All of this blocks; the job calls it in threads.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

from aiosmrt.batch.objects import Bucket, is_s3, spool_name
from aiosmrt.batch.outputlog import LogFiles, OutputLog
from aiosmrt.batch.tables import parquet_facts, pyarrow, write_parquet
from aiosmrt.batch.tasks import close_all
from aiosmrt.errors import BatchOutputError, ParamValidationError

__all__ = ["Deliver", "Destination"]

Deliver: TypeAlias = Callable[[list[dict[str, Any]]], object | Awaitable[object]]

_CONTENT_TYPES: Final = {
    "jsonl": "application/x-ndjson",
    "openai-batch": "application/x-ndjson",
    "csv": "text/csv",
    "text": "text/plain; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}

# The facts of what was made, and of what a fresh job may replace.
_RUN, _STATE, _REPLACES, _REPLACES_ERRORS = "aiosmrt-run", "aiosmrt-state", "replaces", "replaces errors"


class Destination:
    """The end of a job.

    Args:
        sink: a path, a URI of S3, or a function that takes records.
        kind: the format of the output.
        spool: the folder of the log of what goes to S3 or to a function. If None, one in the user's state folder for
            S3, and a temporary one for a function, of which nothing but the errors outlives the job.

    Attributes:
        files: the log.
        shown: what reports name as the output. If None, the sink is a function.
        deliver: the function, if there is one.

    Raises:
        ParamValidationError: the sink is not a URI of S3 that names an object.
    """

    def __init__(self, sink: str | os.PathLike[str] | Deliver, kind: str, spool: Path | None) -> None:
        self._kind = kind
        self._uri: str | None = None
        self._parquet: Path | None = None
        self._is_temporary = callable(sink) and spool is None
        self._folder: Path | None = None
        self.deliver: Deliver | None = None
        self.shown: Path | str | None = None
        if callable(sink):
            self.deliver = sink
            # Made when the job begins; until then, nothing has to be removed.
            temporary = Path(tempfile.gettempdir()) / f"aiosmrt-{secrets.token_hex(8)}"
            self._folder = temporary if spool is None else spool
            out = self._folder / "records.jsonl"
        elif isinstance(sink, str) and is_s3(sink):
            self._uri = self.shown = sink
            folder, name = spool_name(sink)
            if not name:
                raise ParamValidationError([f"the output must be an object; {sink!r:.200} is a prefix"])
            self._folder = _state_folder() / folder if spool is None else spool
            out = self._folder / name
        else:
            self.shown = out = Path(sink)
        if kind == "parquet":
            self._parquet = out
        self.files: LogFiles = LogFiles.beside(out, ".rows.jsonl" if kind == "parquet" else "")
        self.errors: Path | str = self.files.errors if self._uri is None else f"{self._uri}.errors.jsonl"

    def all(self) -> list[Path | str]:
        """All local files that the job may write, and the URIs of its objects."""
        made = (
            [] if self._parquet is None else [self._parquet, self._parquet.with_name(f"{self._parquet.name}.partial")]
        )
        return [*self.files.all(), *made, *([] if self._uri is None else [self._uri, self.errors])]

    def prepare(self, bucket: Bucket, *, fresh: bool) -> dict[str, str]:
        """Make sure that the output can be written and is not something else's.

        Returns:
            facts that a new log keeps: what the job may replace.

        Raises:
            BatchOutputError: there is an output without a journal, or the folder of the log cannot be made.
            ParamValidationError: the folder of the output does not exist.
            ObjectStoreError: S3 would not take the output.
        """
        if self._kind == "parquet":
            pyarrow("pyarrow.parquet")
        if self._folder is not None:
            try:
                if self._is_temporary:
                    self._folder.mkdir(mode=0o700)
                else:
                    self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BatchOutputError(f"cannot make the folder {self._folder}: {error.strerror or error}") from error
        elif not self.files.out.absolute().parent.is_dir():
            raise ParamValidationError([f"the folder of the output does not exist: {self.files.out.parent}"])
        found = self._found(bucket)
        journal = self.files.journal
        is_new = not (journal.exists() and journal.stat().st_size)
        if found is not None and is_new and not fresh:
            where = "" if self._uri is None else f" in {journal.parent}"
            raise BatchOutputError(
                f"{self.shown} exists without a journal{where}, so no job can resume it; "
                "choose another output, or start over with fresh (--fresh)"
            )
        errors = self._foreign_errors(bucket)
        if errors is not None and is_new and not fresh:
            raise BatchOutputError(
                f"{self.errors} exists, and no job has written it; choose another output, or start over with fresh "
                "(--fresh)"
            )
        if self._uri is not None and is_new:
            # Before any row is paid for.
            bucket.check_writable(self._uri)
        noted = {_REPLACES: None if found is None else found[0], _REPLACES_ERRORS: errors}
        return {name: identity for name, identity in noted.items() if identity is not None}

    @property
    def keeps_errors(self) -> bool:
        """Whether rows failed whose errors are in a temporary folder, where nobody would look for them."""
        errors = self.files.errors
        return self._is_temporary and errors.exists() and errors.stat().st_size > 0

    def check(self, log: OutputLog, bucket: Bucket) -> None:
        """Make sure that what is there was made by the job, or may be replaced.

        Raises:
            BatchOutputError: it was not.
        """
        found, errors = self._found(bucket), self._foreign_errors(bucket)
        if found is not None and found[1].get(_RUN) != log.run and found[0] != log.noted.get(_REPLACES):
            replaced = self.shown
        elif errors is not None and errors != log.noted.get(_REPLACES_ERRORS):
            replaced = self.errors
        else:
            return
        raise BatchOutputError(
            f"{replaced} was written by something else since the job began; the job's answers are in "
            f"{self.files.out}; choose another output, or start over with fresh (--fresh)"
        )

    def is_made(self, log: OutputLog, bucket: Bucket) -> bool:
        """Whether the output is what the log has."""
        if self._parquet is None and self._uri is None:
            return True
        found = self._found(bucket)
        return found is not None and _facts(log).items() <= found[1].items()

    def make(
        self,
        log: OutputLog,
        bucket: Bucket,
        *,
        columns: Iterable[str],
        hints: Mapping[str, Any],
        is_unwanted: Callable[[], bool],
    ) -> None:
        """Make the output of the log, whose rows are all done and in order.

        Args:
            log: the log.
            bucket: gives access to S3.
            columns: what the columns of Parquet begin with.
            hints: types of columns of Parquet that are known.
            is_unwanted: asked every now and then.

        Raises:
            JobStoppedError: it is no longer wanted.
            BatchOutputError: it cannot be written, or something else has written it.
            ObjectStoreError: S3 does not take it.
        """
        if self._parquet is None and self._uri is None:
            return
        self.check(log, bucket)
        facts = _facts(log)
        made = self.files.out
        if self._parquet is not None:
            made = self._parquet
            write_parquet(self.files.out, made, columns=columns, hints=hints, facts=facts, is_unwanted=is_unwanted)
        if self._uri is not None:
            errors = f"{self._uri}.errors.jsonl"
            if log.failed:
                bucket.send(self.files.errors, errors, facts, _CONTENT_TYPES["jsonl"])
            elif (stored := bucket.facts(errors)) is not None and _RUN in stored.metadata:
                bucket.remove(errors)
            # Last: where it is, all is there.
            bucket.send(made, self._uri, facts, _CONTENT_TYPES[self._kind])

    def _found(self, bucket: Bucket) -> tuple[str, Mapping[str, str]] | None:
        """What is there now: its identity, and its facts."""
        if self._uri is not None:
            stored = bucket.facts(self._uri)
            return None if stored is None else (stored.etag, stored.metadata)
        if self._parquet is not None:
            with suppress(FileNotFoundError):
                status = self._parquet.stat()
                return f"{status.st_mtime_ns} {status.st_size}", parquet_facts(self._parquet) or {}
        return None

    def _foreign_errors(self, bucket: Bucket) -> str | None:
        """The identity of an object that is where errors are put in S3, if no job has written it."""
        if self._uri is None:
            return None
        stored = bucket.facts(str(self.errors))
        return None if stored is None or _RUN in stored.metadata else stored.etag

    def close(self) -> None:
        """Remove what does not outlive the job: a temporary folder, but for the errors of rows that failed.

        Raises:
            BatchOutputError: it cannot be removed.
        """
        folder = self._folder
        if not self._is_temporary or folder is None:
            return
        try:
            if folder.exists():
                kept = [self.files.errors] if self.keeps_errors else []
                close_all(*(path.unlink for path in folder.iterdir() if path not in kept))
                if not kept:
                    folder.rmdir()
        except OSError as error:
            raise BatchOutputError(f"cannot remove {folder}: {error.strerror or error}") from error


def _facts(log: OutputLog) -> dict[str, str]:
    return {_RUN: log.run, _STATE: log.state}


def _state_folder() -> Path:
    """Where jobs keep what must survive a restart of the machine, as the XDG Base Directory Specification has it."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state") / "aiosmrt" / "score"
