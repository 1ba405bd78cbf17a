"""`score`: rows of files through an endpoint into a file.

::

    reader thread ── rows ──► Results (map) ── results ──► writer thread ──► OutputLog
     (Source, RequestMaker)      Feed, RowCalls            (Sink)

Both threads work on many rows at a time. At most one batch of rows is read ahead. A map holds twice as many items as it
makes calls, and those whose results wait to be written are among them, but for a few hundred results if they are small:
memory does not grow with the input.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from inspect import isawaitable
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, cast

from aiosmrt._core.admission import MaxConcurrency
from aiosmrt._core.outcome import concerns_every_call
from aiosmrt._frames import clear_locals
from aiosmrt._wire.operations import INVOKE_ENDPOINT_ASYNC
from aiosmrt.batch.answers import Verbatim
from aiosmrt.batch.asynchronous import JobsUnderWay, QueuedScoring, jobs_file, rewritten
from aiosmrt.batch.calls import RowCalls
from aiosmrt.batch.destination import Deliver, Destination
from aiosmrt.batch.feed import Feed
from aiosmrt.batch.filters import Selection
from aiosmrt.batch.objects import Bucket
from aiosmrt.batch.outputlog import OutputLog
from aiosmrt.batch.progress import Pace, Progress, progress_of
from aiosmrt.batch.recorder import Recorder, check_page, write_page
from aiosmrt.batch.records import RecordSource, records_fault
from aiosmrt.batch.requests import (
    FILE_COLUMN,
    GROUP_BYTES,
    TEXT_COLUMN,
    Groups,
    JoinSource,
    Prepared,
    RequestMaker,
    Row,
    names_whole_row,
    template_columns,
)
from aiosmrt.batch.rowset import RowSet
from aiosmrt.batch.sink import OutputFormat, Sink, failure_record, openai_failure
from aiosmrt.batch.source import STANDARD_INPUT, FileSet, InputFormat, Line, Source, format_of, is_compressed
from aiosmrt.batch.tasks import JobStoppedError, close_all, note_failed_close, uninterrupted
from aiosmrt.config import UNSET, Unset, is_seconds, is_whole
from aiosmrt.endpoint import CallOptions, Endpoint, Results
from aiosmrt.endpoint.bodies import in_thread
from aiosmrt.endpoint.fanout import CALLS_FOR_A_SHARE, Outcome, failure_limit
from aiosmrt.endpoint.groups import GroupedResults
from aiosmrt.endpoint.jobs import INLINE_BYTES
from aiosmrt.endpoint.options import check_accepted, merged
from aiosmrt.endpoint.protocols import EndpointClient
from aiosmrt.errors import (
    AiosmrtError,
    BatchInputError,
    BatchOutputError,
    BatchStoppedError,
    ParamValidationError,
    SerializationError,
    TooManyFailuresError,
)
from aiosmrt.serializers import Serializer
from aiosmrt.serializers.tables import SupportsArrowArray, SupportsArrowStream

__all__ = ["Inputs", "Progress", "Records", "Report", "score"]

T = TypeVar("T")

StrPath: TypeAlias = str | os.PathLike[str]
Inputs: TypeAlias = StrPath | Sequence[StrPath]
Records: TypeAlias = Iterable[Any] | AsyncIterable[Any] | SupportsArrowStream | SupportsArrowArray

# What the reader makes at a time.
_BATCH_ROWS: Final = 256
_BATCH_BYTES: Final = 1 << 20

# Results that are gathered before they are written: so long, or so many.
_GATHER_SECONDS: Final = 0.005
_GATHER_RESULTS: Final = 256

# Results that wait to be written while other items are called in their places: so many, of so many bytes in all.
_AHEAD_RESULTS: Final = 512
_AHEAD_BYTES: Final = 4 << 20

# How often written records are made to survive a power failure, in seconds.
_SYNC_SECONDS: Final = 1.0

# How often the report page's charts get a value.
_RECORD_SECONDS: Final = 1.0

_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")

# Members of a call that are only known by their hashes: they may be secret.
_SECRET: Final = frozenset({"custom_attributes", "session_id"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a job came to.

    Attributes:
        rows: rows that are done, scored or failed, earlier runs' among them.
        scored: rows whose answers are in the output.
        failed: rows that failed; their errors are in the errors file. With ``retry_failed``, rows that this run did not
            come to again are neither failed nor done.
        resumed: rows that earlier runs had done; with ``retry_failed``, those that they scored.
        retries: requests of this run's calls that were sent again.
        seconds: how long this run took.
        finished: whether all rows are done, up to the limit, and the output is made; False if ``stop`` was set before.
        output: the output file, or its URI; None if it is a function.
        errors: the errors file, or its URI; it exists if rows failed.
    """

    rows: int
    scored: int
    failed: int
    resumed: int
    retries: int
    seconds: float
    finished: bool
    output: Path | str | None
    errors: Path | str

    @property
    def rows_per_second(self) -> float:
        """Rows done by this run, per second."""
        return (self.rows - self.resumed) / self.seconds if self.seconds > 0 else 0.0


async def score(
    endpoint: Endpoint[Any, Any],
    source: Inputs | Records,
    sink: StrPath | Deliver,
    *,
    input_format: InputFormat | None = None,
    output_format: OutputFormat | None = None,
    serializer_for: Callable[[str], Serializer[Any]] | None = None,
    header: bool = True,
    column: str | None = None,
    template: Any = None,
    id_field: str | None = None,
    join_source: JoinSource = "None",
    input_filter: str | None = None,
    output_filter: str | None = None,
    rows_per_request: int | None = 1,
    max_payload_mb: float | None = None,
    split: Callable[[Any, int], Sequence[Any]] | None = None,
    asynchronous: bool = False,
    doubt: float = 60.0,
    max_concurrency: MaxConcurrency | None = None,
    patience: float | Unset | None = UNSET,
    max_failures: int | float | str | None = None,
    retry_failed: bool = False,
    fresh: bool = False,
    spool: StrPath | None = None,
    limit: int | None = None,
    stop: asyncio.Event | None = None,
    drain: float = 10.0,
    on_progress: Callable[[Progress], object] | None = None,
    progress_interval: float = 1.0,
    report_page: StrPath | None = None,
) -> Report:
    """Score the rows of files, and write the answers to a file::

        report = await aiosmrt.batch.score(endpoint, "rows.jsonl", "scores.jsonl")

    Answers are written as they come, and are in input order once all rows are done. Beside the output are
    ``SINK.journal``, by which a later run resumes, and ``SINK.errors.jsonl`` with a line for each row that failed. Run
    the same job again after any interruption: rows that are done are not sent again. A row may be sent twice (it was in
    flight when the job was killed), but never is it in the output twice.

    A row is the body of one call, or shares it with others (``rows_per_request``). It fails by its own fault: it cannot
    be read, the model refuses it, or the service does not answer it for ``patience`` seconds. What the model refuses of
    several rows is halved until the bad row is known; the others are scored. An error that every row would meet fails
    no row but stops the job.

    Args:
        endpoint: where rows are sent; its serializer makes the bodies, its deserializer reads the answers.
        source: a file, a folder, a pattern, ``s3://bucket/key``, ``s3://bucket/prefix/``, ``-`` for standard input, or
            several of them in a list; files may be compressed with gzip or zstd. Or rows from Python: a table (pandas,
            polars, Arrow, whatever has ``__arrow_c_stream__`` or ``__dataframe__``), or an iterable of records, which
            is advanced in a thread, or an asynchronous one.
        sink: the output file, ``s3://bucket/key``, or a function that is called with lists of records, as JSON Lines
            has them. It is called in a thread, and what it returns is awaited if it can be, and cancelled with the job;
            only then are the rows done. After an interruption it may get a row again.
        input_format: ``"jsonl"``, ``"csv"``, ``"parquet"``, ``"text"`` (a row a line), ``"openai-batch"``, or
            ``"file"``: a file is a row, which is sent as it is and has one column, ``file``, its name. Defaults to what
            the suffixes say.
        output_format: ``"jsonl"``, ``"csv"``, ``"parquet"``, ``"text"`` (the answers alone) or ``"openai-batch"``.
            Defaults to what the suffix says.
        serializer_for: returns the serializer, given the input's format (``"records"`` for rows from Python), once the
            files are known. If None, the endpoint's.
        header: whether files of CSV begin with the names of their columns; if not, they are ``0``, ``1``, ...
        column: the column that is sent. If None, the template or the whole row.
        template: a JSON value whose texts name columns, such as ``{"inputs": "{question}"}``; braces that are written
            twice stand for themselves. If None, the column or the whole row.
        id_field: a column whose value is repeated in the output as the row's id.
        join_source: ``"Input"``: a record of the output is the row with ``prediction`` added. ``"None"``: it is the
            row's index, its id and the value.
        input_filter: a JSONPath of what is sent of a row, in place of ``column`` and ``template``, such as
            ``"$.features"`` or, for columns of CSV by their numbers, ``"$[1:]"``. Needs the extra ``batch``.
        output_filter: a JSONPath of what is written: of the value, or of the joined row, whose last member or column
            is ``prediction``: ``"$['id','prediction']"``, ``"$[0,-1]"``. Needs the extra ``batch``.
        rows_per_request: the most rows of a call; the serializer's lines, or items of a list. If None, as many as
            ``max_payload_mb`` allows. By default, the row is the body, and the answer is its value; otherwise the
            answer must have a value for each row; see `aiosmrt.endpoint.split_answer`.
        max_payload_mb: the largest body, in MiB; a larger row fails and is not sent. If None, any row is sent, and
            several share up to 6 MiB.
        split: returns the values of the rows, given the answer and the number of rows, if `split_answer` does not know
            how.
        asynchronous: whether the endpoint is an asynchronous one. Each request is then a job whose answer is awaited in
            S3; ``SINK.jobs`` lists those under way, and a later run waits for them in place of sending their rows
            again. Bodies over 128,000 bytes need the endpoint's ``upload_to``.
        doubt: seconds for which the answer to an asynchronous request that may have been accepted unheard is looked for
            in S3, before its rows fail or a later run sends them again; or twice as long as any other answer took, if
            that is longer.
        max_concurrency: calls in flight, or jobs under way, at the same time; or ``"adaptive"``, see `aiosmrt.Client`.
            Defaults to the client's.
        patience: seconds after its first failure for which a call is tried again; see `Endpoint.map`.
        max_failures: failed rows of this run (an integer), or their share (a float from 0 to 1, or ``"5%"``, once
            20 were called for), that stop the job when there are more. If None, no limit.
        retry_failed: whether to score the rows again that failed in earlier runs.
        fresh: whether to start over, and overwrite what is there.
        spool: the folder in which answers are kept until they are uploaded, with the journal. Defaults to one for each
            URI in ``~/.local/state/aiosmrt/score``. Where the sink is a function, the folder of the journal and of the
            errors; if None, the job cannot be resumed, and the errors are in a temporary folder that stays if rows
            failed.
        limit: the number of rows of the input that are scored, from its beginning. If None, all.
        stop: set it to end the job: no further rows are sent, those in flight have ``drain`` seconds.
        drain: seconds for calls in flight to end once ``stop`` is set.
        on_progress: called with the progress, on the event loop.
        progress_interval: seconds between these calls.
        report_page: a file for a page of HTML with charts of the run, written when it ends, however it does. An older
            page is replaced, any other file refused.

    Returns:
        What the job came to; with ``finished=False`` if ``stop`` was set.

    Raises:
        ParamValidationError: an argument is out of range, or two do not fit together.
        ConfigurationError: Parquet, zstd and tables need the extra ``batch``.
        ObjectStoreError: S3 refuses a request, or fails.
        BatchInputError: the input does not exist, cannot be read, has no rows, or has changed.
        BatchOutputError: the output is in use, belongs to another job, was changed, or cannot be written.
        BatchStoppedError: more rows failed than ``max_failures`` allows, or every further row would.
    """
    faults = []
    inputs: list[str] | None = None
    if isinstance(source, (str, os.PathLike)):
        inputs = [os.fspath(source)]
    elif isinstance(source, (list, tuple)) and all(isinstance(name, (str, os.PathLike)) for name in source):
        inputs = [os.fspath(name) for name in source]
        if not inputs:
            faults.append("source must name at least one file")
    elif (fault := records_fault(source)) is not None:
        faults.append(fault)
    elif input_format is not None:
        faults.append("input_format is for files; the source is an iterable or a table")
    if inputs is not None and "" in inputs:
        faults.append("source has an empty name")
    if not callable(sink) and not isinstance(sink, (str, os.PathLike)):
        faults.append(f"sink must be a path, a URI or a function; got {type(sink)}")
    name_of_sink = os.fspath(sink) if isinstance(sink, (str, os.PathLike)) else ""
    kind = output_format if output_format is not None else format_of(name_of_sink)
    if callable(sink):
        kind = kind or "jsonl"
        if kind != "jsonl":
            faults.append("output_format must be jsonl, or left out, for a function")
    elif spool is not None and not name_of_sink.startswith("s3://"):
        faults.append("spool is for output in S3 and for functions; a file has its journal beside it")
    # A folder's name ends with a separator, or is that of the current one or of its parent.
    is_file = name_of_sink.startswith("s3://") or os.path.split(name_of_sink)[1] not in ("", ".", "..")
    if isinstance(sink, (str, os.PathLike)) and not is_file:
        faults.append(f"the output must be a file; got {name_of_sink!r:.80}")
    if name_of_sink == STANDARD_INPUT:
        # As an input it is standard input; a file of that name is ./-
        faults.append("the output must be a file, from which the job resumes; standard output is not one")
    formats = ("jsonl", "csv", "parquet", "text", "openai-batch", None)
    for name, value, allowed in (
        ("input_format", input_format, (*formats[:-1], "file", None)),
        ("output_format", output_format, formats),
        ("asynchronous", asynchronous, (True, False)),
        ("join_source", join_source, ("None", "Input")),
    ):
        if value not in allowed:
            faults.append(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r:.80}")
    if kind is None and is_file:
        faults.append(
            f"output_format is needed: the suffix of {Path(name_of_sink).name!r:.80} is not one of jsonl, csv, "
            "parquet and text"
        )
    if is_compressed(name_of_sink):
        faults.append("the output cannot be compressed: it is written at its end and resumed")
    ways = (column, template, id_field, input_filter)
    if input_format == "openai-batch" and any(way is not None for way in ways):
        faults.append(
            "lines of openai-batch are complete requests; leave out column, template, id_field and input_filter"
        )
    if kind == "openai-batch" and join_source == "Input":
        faults.append("openai-batch output cannot include the input; leave out join_source")
    if kind == "openai-batch" and input_format != "openai-batch" and id_field is None:
        faults.append("output_format openai-batch needs input_format openai-batch, or an id_field")
    sends_a_part = not (column is None and template is None and input_filter is None)
    if input_format == "file" and (sends_a_part or rows_per_request != 1):
        faults.append("a file is sent as it is: leave column, template, input_filter and rows_per_request out")
    if "openai-batch" in (input_format, kind) and rows_per_request != 1:
        faults.append("openai-batch has a request for each line; leave rows_per_request out")
    if column is not None and template is not None:
        faults.append("column and template exclude each other")
    if kind == "text" and (id_field is not None or join_source == "Input"):
        faults.append("text holds answers only; id_field and join_source need another output_format")
    if input_filter is not None and (column is not None or template is not None):
        faults.append("input_filter excludes column and template")
    if not (rows_per_request is None or is_whole(rows_per_request, 1)):
        faults.append(f"rows_per_request must be an integer >= 1 or None; got {rows_per_request!r:.80}")
    if split is not None and rows_per_request == 1:
        faults.append("split needs rows_per_request > 1 or None")
    if max_payload_mb is not None and not (is_seconds(max_payload_mb) and max_payload_mb > 0):
        faults.append(f"max_payload_mb must be a number > 0 or None; got {max_payload_mb!r:.80}")
    if limit is not None and not is_whole(limit, 1):
        faults.append(f"limit must be an integer >= 1 or None; got {limit!r:.80}")
    for name, seconds in (("drain", drain), ("doubt", doubt), ("progress_interval", progress_interval)):
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
            faults.append(f"{name} must be a non-negative number of seconds; got {seconds!r:.80}")
    filters = {"input_filter": input_filter, "output_filter": output_filter}
    selections: dict[str, Selection | None] = {}
    for name, path in filters.items():
        try:
            selections[name] = None if path is None else Selection(path)
        except ParamValidationError as error:
            faults += [f"{name} {fault}" for fault in error.faults]
    if faults:
        raise ParamValidationError(faults)
    output = Destination(sink, str(kind), None if spool is None else Path(spool))
    if report_page is not None and os.fspath(report_page) in FileSet(_written(output)):
        raise ParamValidationError([f"report_page is a file of the output: {report_page!s:.200}"])
    if asynchronous:
        check_accepted(INVOKE_ENDPOINT_ASYNC, merged({}, endpoint.options))
    if max_concurrency is not None:
        endpoint = _copied(endpoint, client=endpoint.client.with_options(max_concurrency=max_concurrency))
    # Makes no calls: checks the arguments that are those of `map`, and the endpoint's options.
    endpoint.map((), patience=patience, max_failures=max_failures)
    job = _Job(
        endpoint,
        output,
        cast("OutputFormat", kind),
        serializer_for=serializer_for,
        column=column,
        template=template,
        id_field=id_field,
        join=join_source == "Input",
        choose=selections["input_filter"],
        keep=selections["output_filter"],
        rows_per_request=rows_per_request,
        max_bytes=None if max_payload_mb is None else int(max_payload_mb * (1 << 20)),
        split=split,
        asynchronous=asynchronous,
        doubt=doubt,
        header=header,
        patience=patience,
        max_failures=max_failures,
        retry_failed=retry_failed,
        fresh=fresh,
        limit=limit,
        stop=stop,
        drain=drain,
        on_progress=on_progress,
        progress_interval=progress_interval,
        report_page=None if report_page is None else Path(report_page),
    )
    try:
        return await job.run(source if inputs is None else inputs, input_format)
    except BaseException as error:
        # Error trackers report locals, and those of jobs hold rows and answers.
        del source, inputs
        clear_locals(error)
        raise


@dataclass(kw_only=True)
class _Settings:
    """What does not change while a job runs; see `score`."""

    serializer_for: Callable[[str], Serializer[Any]] | None
    column: str | None
    template: Any
    id_field: str | None
    join: bool
    choose: Selection | None
    keep: Selection | None
    rows_per_request: int | None
    max_bytes: int | None
    split: Callable[[Any, int], Sequence[Any]] | None
    asynchronous: bool
    doubt: float
    header: bool
    patience: float | Unset | None
    max_failures: int | float | str | None
    retry_failed: bool
    fresh: bool
    limit: int | None
    stop: asyncio.Event | None
    drain: float
    on_progress: Callable[[Progress], object] | None
    progress_interval: float
    report_page: Path | None

    @property
    def in_groups(self) -> bool:
        """Whether rows are handed on in groups."""
        return self.several or self.asynchronous

    @property
    def several(self) -> bool:
        """Whether rows share bodies."""
        return self.rows_per_request != 1


class _Job:
    """One run of a job."""

    def __init__(self, endpoint: Endpoint[Any, Any], output: Destination, kind: OutputFormat, **settings: Any) -> None:
        self._endpoint = endpoint
        self._client = endpoint.client
        self._output = output
        self._kind: OutputFormat = kind
        self._settings = _Settings(**settings)
        # None until they are opened.
        self._opened_source: Source | None = None
        self._opened_log: OutputLog | None = None
        self._maker: RequestMaker
        self._sink: Sink
        self._started = time.monotonic()
        self._resumed = 0
        self._retries_before = self._all_retries()
        self._pace: Pace
        self._recorder: Recorder | None = None
        # Set when no further rows are wanted, for the loop and for threads.
        self._ending = asyncio.Event()
        self._unwanted = threading.Event()
        # What the function returned that takes records, and whether the job was cancelled.
        self._delivery: asyncio.Future[Any] | None = None
        self._delivery_stopped = False
        # Set once all rows are done, and when the job must not go on even then.
        self._finishing = self._abandoned = False
        self._bucket = Bucket(asyncio.get_running_loop(), endpoint.object_store, self._is_unwanted)
        # The first error that ends the job from within.
        self._error: BaseException | None = None
        # An error that every row would meet; map() ends with it.
        self._error_of_all: Exception | None = None
        self._time_limit: asyncio.Timeout | None = None
        self._read_to_end = False
        self._rows_read = 0
        # Whether all rows that are to be scored were taken from the input, how many they are, and how
        # many of them are done.
        self._all_taken = False
        self._rows_taken = self._rows_ended = 0
        # Rows of the input that wait for others.
        self._groups: Groups
        # Rows that failed in earlier runs, and are still to be scored again.
        self._to_retry = RowSet()
        # Rows that are scored, and rows that failed and are not to be scored again by this run: those of one moment,
        # because others look while a thread writes.
        self._counts = (0, 0)
        # Jobs of an asynchronous endpoint, and those rows of earlier ones that were read.
        self._under_way: JobsUnderWay | None = None
        self._queued: QueuedScoring | None = None
        self._of_jobs: dict[int, list[Row]] = {}

    async def run(self, inputs: Any, input_format: InputFormat | None) -> Report:
        page = self._settings.report_page
        if page is None:
            return await self._run(inputs, input_format)
        self._recorder = recorder = Recorder(time.monotonic)
        self._client = self._client._observed_by(recorder)
        try:
            check_page(page)
        except OSError as error:
            raise BatchOutputError(f"cannot write {page}: {error.strerror or error}") from error
        try:
            report = await self._run(inputs, input_format)
        except BaseException as error:
            # Without a log, nothing has begun.
            if self._opened_log is not None:
                try:
                    await self._write_page(page, self._report(finished=False), str(error) or type(error).__name__)
                except BatchOutputError as late:
                    error.add_note(str(late))
            raise
        await self._write_page(page, report, None)
        return report

    async def _write_page(self, path: Path, report: Report, problem: str | None) -> None:
        text = cast("Recorder", self._recorder).page(self._endpoint.name, report, problem)
        try:
            await uninterrupted(asyncio.to_thread(write_page, path, text))
        except OSError as error:
            raise BatchOutputError(f"cannot write {path}: {error.strerror or error}") from error

    async def _run(self, inputs: Any, input_format: InputFormat | None) -> Report:
        stop = self._settings.stop
        watcher = None if stop is None else asyncio.create_task(self._watch(stop))
        try:
            report = await self._scored(inputs, input_format)
        except BaseException as error:
            try:
                await uninterrupted(self._release(watcher))
            except Exception as failure:
                note_failed_close(error, failure)
            raise
        await uninterrupted(self._release(watcher))
        return report

    async def _release(self, watcher: asyncio.Task[None] | None) -> None:
        """Release what the job has, whatever it ended with."""
        self._unwanted.set()
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait([watcher])
        await asyncio.to_thread(self._close)

    async def _scored(self, inputs: Any, input_format: InputFormat | None) -> Report:
        try:
            await self._in_thread(self._open, inputs, input_format)
            self._resumed = self._done()
            if self._is_done():
                self._finishing = True
                if not await self._in_thread(self._output.is_made, self._log, self._bucket):
                    await self._in_thread(self._make)
                return self._report(finished=True)
            self._pace = Pace(time.monotonic(), self._resumed)
            return await self._score()
        except JobStoppedError:
            return self._report(finished=False)
        except Exception as error:
            if self._output.keeps_errors:
                error.add_note(f"rows that failed are listed in {self._output.errors}")
            raise

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a thread; a job that is cancelled waits for it."""
        return await uninterrupted(in_thread(function, *arguments), self._abandon)

    def _abandon(self) -> None:
        self._abandoned = True
        self._unwanted.set()

    def _is_unwanted(self) -> bool:
        """Whether what a thread waits for, or makes, is of no use any more."""
        return self._abandoned if self._finishing else self._unwanted.is_set()

    # In the reader's thread

    def _open(self, inputs: Any, input_format: InputFormat | None) -> None:
        settings = self._settings
        self._opened_source = source = self._new_source(inputs, input_format)
        if settings.serializer_for is not None:
            self._endpoint = _copied(self._endpoint, serializer=settings.serializer_for(source.input_format))
        if self._kind == "csv" and settings.join and not (source.input_format == "csv" and settings.header):
            raise ParamValidationError(
                ["join_source='Input' writes CSV of CSV with a header only; use jsonl for the output"]
            )
        if source.input_format == "openai-batch" and (settings.several or settings.choose is not None):
            raise ParamValidationError(
                ["lines of openai-batch are complete requests; leave out rows_per_request and input_filter"]
            )
        if source.input_format == "openai-batch" and settings.id_field is None:
            settings.id_field = "custom_id"
        _check_names(_written(self._output))
        noted = self._output.prepare(self._bucket, fresh=settings.fresh)
        self._maker = RequestMaker(
            source.input_format,
            self._endpoint.serializer,
            columns=lambda: source.columns,
            column=settings.column,
            template=settings.template,
            id_field=settings.id_field,
            join=settings.join,
            several=settings.several,
            choose=settings.choose,
            max_bytes=settings.max_bytes,
        )
        self._groups = Groups(self._maker, settings.rows_per_request, self._most_bytes())
        facts = source.prepare()
        self._check_columns()
        if self._kind == "parquet":
            self._maker.exact = self._hints().keys()
        if (wanted := self._wanted_columns()) is not None:
            source.wanted = sorted(wanted)
        self._sink = Sink(
            self._kind,
            columns=source.columns,
            has_ids=settings.id_field is not None,
            join=settings.join,
            keep=settings.keep,
        )
        about = {"input": facts, "settings": self._facts()}
        self._opened_log = log = OutputLog.open(
            self._output.files, about, preamble=self._sink.preamble, fresh=settings.fresh, noted=noted
        )
        if settings.retry_failed:
            self._to_retry = log.failed.copy(settings.limit)
        self._count()
        self._output.check(log, self._bucket)
        if settings.asynchronous:
            self._under_way = JobsUnderWay(
                jobs_file(self._output.files.out),
                about,
                fresh=settings.fresh,
                is_done=lambda row: row in log.scored or (not settings.retry_failed and row in log.failed),
            )

    def _new_source(self, inputs: Any, input_format: InputFormat | None) -> Source:
        if not (isinstance(inputs, list) and all(isinstance(name, str) for name in inputs)):
            return RecordSource(inputs, loop=self._bucket.loop, stopped=self._unwanted)
        page = self._settings.report_page
        return Source(
            inputs,
            input_format=input_format,
            header=self._settings.header,
            excluded=[*_written(self._output), *([] if page is None else [page])],
            stopped=self._unwanted,
            bucket=self._bucket,
        )

    def _hints(self) -> dict[str, Any]:
        """The types of the input's columns that Parquet repeats."""
        # Members that a filter selects may be the answer's, under the name of a column.
        schema = self._source.schema if self._settings.join and self._settings.keep is None else None
        hints = {} if schema is None else {name: schema.field(name).type for name in schema.names}
        # The row's own column of that name gives way.
        hints.pop("prediction", None)
        return hints

    def _make(self) -> None:
        """Make the output of the log, once all rows are done."""
        self._output.make(
            self._log,
            self._bucket,
            columns=self._sink.columns(self._source.columns or ()),
            hints=self._hints(),
            is_unwanted=self._is_unwanted,
        )

    def _wanted_columns(self) -> set[str] | None:
        """The columns that are sent or written, if the settings name them all."""
        settings = self._settings
        names_some = settings.column is not None or settings.template is not None
        if settings.join or not names_some or names_whole_row(settings.template):
            return None
        return self._named_columns()

    def _named_columns(self) -> set[str]:
        settings = self._settings
        named = template_columns(settings.template)
        return named | {name for name in (settings.column, settings.id_field) if name is not None}

    def _check_columns(self) -> None:
        """Refuse columns that no row of the input has."""
        source = self._source
        known = {"text": [TEXT_COLUMN], "file": [FILE_COLUMN]}.get(source.input_format, source.columns)
        if known is None:
            return
        if missing := sorted(self._named_columns().difference(known)):
            raise BatchInputError(
                f"the input has no column {', '.join(map(repr, missing)):.80}; it has {', '.join(known):.200}"
            )

    def _facts(self) -> dict[str, Any]:
        """Settings that change what is in the output."""
        settings, endpoint = self._settings, self._endpoint
        members = {
            name: sha256(str(value).encode()).hexdigest()[:16] if name in _SECRET else str(value)
            for name, value in endpoint.options.items()
            if value is not None
        }
        facts = {
            "endpoint": endpoint.name,
            "members": members,
            "serializer": _ADDRESS.sub("", repr(endpoint.serializer)),
            "deserializer": _ADDRESS.sub("", repr(endpoint.deserializer)),
            "input_format": self._source.input_format,
            "output_format": self._kind,
            "header": settings.header,
            "column": settings.column,
            "template": None if settings.template is None else json.dumps(settings.template),
            "id_field": settings.id_field,
            "join_source": "Input" if settings.join else "None",
        }
        # What earlier versions did not have is named where it is used, so that their jobs can be resumed.
        if settings.several:
            # How many does not matter: each answer is split into the values of its rows.
            facts["rows_per_request"] = "several"
        if settings.split is not None:
            facts["split"] = _ADDRESS.sub("", repr(settings.split))
        for name, selection in (("input_filter", settings.choose), ("output_filter", settings.keep)):
            if selection is not None:
                facts[name] = selection.path
        return facts

    def _lines(self) -> Iterator[Line | None]:
        """The lines that are still to be scored; None where the next one has to be waited for."""
        log, limit, retry_failed = self._log, self._settings.limit, self._settings.retry_failed
        # No earlier run has come to rows from here on.
        new_from = log.rows
        for line in self._source.rows():
            if line is None:
                yield None
                continue
            row = line.row
            if limit is not None and row >= limit:
                return
            self._rows_read = row + 1
            if row < new_from and (row in log.scored or (not retry_failed and row in log.failed)):
                continue
            self._rows_taken += 1
            yield line
        self._read_to_end = not self._unwanted.is_set()

    def _next_batch(self, lines: Iterator[Line | None]) -> list[Any]:
        """Make as many rows, or groups of rows, as are handed to the loop at a time; none at the input's end."""
        batch: list[Any] = []
        in_groups = self._settings.in_groups
        size = 0
        for rows, line in enumerate(lines, 1):
            if line is None:
                if batch:
                    return batch
                continue
            row = self._maker.row(line)
            if in_groups:
                batch += self._grouped(row)
            else:
                batch.append(row)
            size += len(row.body)
            if batch and (rows >= _BATCH_ROWS or size >= _BATCH_BYTES):
                return batch
        self._all_taken = not self._unwanted.is_set()
        if in_groups:
            batch += self._groups.rest()
        batch += self._of_jobs.values()
        self._of_jobs.clear()
        return batch

    def _grouped(self, row: Row) -> Iterator[list[Row]]:
        """The groups that are full with this row; the open one is kept for the next."""
        if row.error is not None:
            yield [row]
            return
        if self._under_way is not None and (job := self._under_way.job_of(row.number)) is not None:
            # Of an earlier run: its rows stay together.
            rows = self._of_jobs.setdefault(job, [])
            rows.append(row)
            # What is in doubt comes last of all: until then, its answer may appear.
            if len(rows) == len(self._under_way.rows_of(job)) and not self._under_way.is_in_doubt(job):
                yield self._of_jobs.pop(job)
            return
        yield from self._groups.add(row)

    def _most_bytes(self) -> int:
        """The size up to which rows share a body."""
        if self._settings.max_bytes is not None:
            return self._settings.max_bytes
        inline = self._settings.asynchronous and self._endpoint.upload_to is None
        return INLINE_BYTES if inline else GROUP_BYTES

    # On the event loop

    @property
    def _source(self) -> Source:
        return cast("Source", self._opened_source)

    @property
    def _log(self) -> OutputLog:
        return cast("OutputLog", self._opened_log)

    def _is_done(self) -> bool:
        """Whether an earlier run has done it all, up to the limit, and has put it in order."""
        log, limit = self._log, self._settings.limit
        if self._to_retry:
            return False
        if (rows := log.rows_in_input) is not None:
            if not self._source.is_known and (limit is None or limit > rows):
                # Another stream may begin with the same line, and go on behind the rows of that one.
                return False
            done = len(log.scored) + len(log.failed)
            return log.is_ordered and done >= (rows if limit is None else min(rows, limit))
        return (
            limit is not None
            and log.is_ordered
            and len(log.scored.copy(before=limit)) + len(log.failed.copy(before=limit)) == limit
        )

    def _rows(self) -> Feed:
        """Rows to be scored, or groups of them."""
        return Feed(partial(self._next_batch, self._lines()), self._ending, self._unwanted.set)

    async def _score(self) -> Report:
        settings, endpoint = self._settings, self._endpoint
        prepared = _copied(
            endpoint,
            client=self._client,
            serializer=Prepared(endpoint.serializer.content_type, self._maker.body_of),
        )
        self._retries_before = self._all_retries()
        writer = _Writer(self._write, self._abort)
        helpers = [asyncio.create_task(writer.run()), asyncio.create_task(self._sync_regularly())]
        told = [] if settings.on_progress is None else [(settings.on_progress, settings.progress_interval)]
        if self._recorder is not None:
            told.append((self._recorder.see, _RECORD_SECONDS))
        helpers += [asyncio.create_task(self._tell(*each)) for each in told]
        failure: BaseException | None = None
        try:
            await self._send(prepared, writer)
        except JobStoppedError:
            pass
        except Exception as error:
            failure = error
        except asyncio.CancelledError:
            self._stop_delivery()
            raise
        finally:
            await uninterrupted(_ended(writer, helpers), self._stop_delivery)
        if isinstance(failure, TooManyFailuresError) and self._is_in_vain(failure):
            failure = None
        failure = self._error or failure or self._error_of_all
        finished = failure is None and not self._ending.is_set()
        if finished:
            failure = await self._finish()
        if failure is not None:
            await self._in_thread(self._sync_quietly, failure)
            if isinstance(failure, TooManyFailuresError) or (
                # Once all rows are done, nothing was stopped early.
                not self._finishing and isinstance(failure, AiosmrtError) and concerns_every_call(failure)
            ):
                reason = str(failure).removesuffix(".")
                raise BatchStoppedError(
                    f"stopped: {reason}; {self._done()} rows are done, and the same job resumes after them"
                ) from failure
            raise failure
        await self._in_thread(self._sync)
        for on_progress, _ in told:
            on_progress(self._progress())
        return self._report(finished=finished)

    def _is_in_vain(self, failure: TooManyFailuresError) -> bool:
        """Whether too many failures stop nothing: all rows are done, or a share of too few calls was looked at."""
        is_share = isinstance(failure_limit(self._settings.max_failures), float)
        return (self._all_taken and self._rows_taken == self._rows_ended) or (
            is_share and failure.calls < CALLS_FOR_A_SHARE
        )

    def _results(self, endpoint: Endpoint[Any, Any], rows: Feed) -> Results[Row, Any]:
        """The calls for rows, or for groups of them."""
        settings = self._settings
        if self._under_way is not None:
            self._queued = QueuedScoring(
                endpoint.for_job(settings.patience),
                self._under_way,
                several=settings.several,
                split=settings.split,
                patience=settings.patience,
                doubt=settings.doubt,
                options_for=_openai_options if self._source.input_format == "openai-batch" else None,
            )
            return GroupedResults(
                self._queued,
                rows,
                size=None,
                concurrency=self._client.max_concurrency,
                ordered=False,
                max_failures=settings.max_failures,
            )
        if not settings.several:
            if self._source.input_format == "openai-batch":
                return endpoint.map(
                    rows,
                    ordered=False,
                    patience=settings.patience,
                    max_failures=settings.max_failures,
                    options_for=_openai_options,
                )
            reader = Verbatim.of(endpoint.deserializer) if self._sink.repeats_json else endpoint.deserializer
            return Results(
                RowCalls(endpoint.for_job(settings.patience), reader).call,
                rows,
                concurrency=endpoint.client.max_concurrency,
                ordered=False,
                max_failures=settings.max_failures,
            )
        return endpoint.map_groups(
            rows,
            split=settings.split,
            ordered=False,
            patience=settings.patience,
            max_failures=settings.max_failures,
        )

    async def _send(self, endpoint: Endpoint[Any, Any], writer: _Writer) -> None:
        """Call the endpoint for all rows, and have the results written, until `_end` sets a limit."""
        limit = asyncio.timeout(None)
        try:
            async with limit, aclosing(self._rows()) as rows:
                if self._ending.is_set():
                    return
                self._time_limit = limit
                try:
                    async with self._results(endpoint, rows) as results:
                        try:
                            while some := await results._take_ready():
                                writer.add(some, results._release)
                        finally:
                            # What was answered is paid for, even if the time limit came.
                            writer.add(results._take_at_once(), results._release)
                finally:
                    self._time_limit = None
        except TimeoutError:
            # Raised by nothing but the time limit: what rows end with is in their results.
            if not limit.expired():
                raise

    def _sync(self) -> None:
        self._log.sync()
        if self._under_way is not None:
            self._under_way.sync()

    def _sync_quietly(self, failure: BaseException) -> None:
        """Sync before a failure is raised, which would otherwise hide that one."""
        try:
            self._sync()
        except AiosmrtError as error:
            failure.add_note(str(error))

    async def _finish(self) -> Exception | None:
        """Check that all rows are done and put them in order; returns what is wrong."""
        log, limit = self._log, self._settings.limit
        self._finishing = True
        try:
            if not self._rows_read:
                raise BatchInputError("the input is empty: no rows were found")
            if self._rows_read < log.rows and limit is None:
                raise BatchInputError(
                    f"the input ends after {self._rows_read} rows, but row {log.rows - 1} was scored before: "
                    "it was cut short"
                )
            await self._in_thread(self._source.check_unchanged)
            rows = self._rows_read if self._read_to_end else None
            await self._in_thread(partial(log.finish, rows, is_unwanted=self._is_unwanted))
            await self._in_thread(self._make)
        except AiosmrtError as error:
            return error
        return None

    def _abort(self, error: BaseException) -> None:
        """End the job with an error, at once."""
        if self._error is None:
            self._error = error
        self._end(0.0)

    def _end(self, seconds: float) -> None:
        """Send no further rows, and end the calls in flight after some seconds."""
        self._ending.set()
        self._unwanted.set()
        if self._time_limit is not None and not self._time_limit.expired():
            self._time_limit.reschedule(asyncio.get_running_loop().time() + seconds)

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._end(self._settings.drain)
        # What is made of the answers in the end has no longer than calls in flight have.
        await asyncio.sleep(self._settings.drain)
        self._abandon()

    async def _sync_regularly(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_SECONDS)
            try:
                # Beside the writer: a disk may take long for it.
                await uninterrupted(asyncio.to_thread(self._sync))
            except AiosmrtError as error:
                self._abort(error)
                return

    async def _tell(self, on_progress: Callable[[Progress], object], interval: float) -> None:
        try:
            while True:
                on_progress(self._progress())
                await asyncio.sleep(interval)
        except Exception as error:
            self._abort(error)

    async def _write(self, results: list[Outcome]) -> int:
        """Write results; those of a function only when it has taken them. Returns the bytes of rows and records."""
        if (deliver := self._output.deliver) is None:
            return await in_thread(lambda: self._append(results, *self._records_of(results)))
        values: list[dict[str, Any]] = []
        scored, failed = await in_thread(self._records_of, results, values)
        if values and not await self._delivered(deliver, values):
            # The job was cancelled: these rows stay open.
            scored = {}
        return await in_thread(self._append, results, scored, failed)

    async def _delivered(self, deliver: Deliver, scored: list[dict[str, Any]]) -> bool:
        """Have the function take records; returns whether it did, before the job was cancelled."""
        if self._delivery_stopped:
            return False
        taken = await in_thread(deliver, scored)
        if not isawaitable(taken):
            return True
        self._delivery = delivery = asyncio.ensure_future(taken)
        if self._delivery_stopped:
            delivery.cancel()
        await asyncio.wait([delivery])
        if not delivery.cancelled():
            delivery.result()
            return True
        if not self._delivery_stopped:
            raise BatchOutputError("what the sink returned was cancelled, so it did not take its records")
        return False

    def _stop_delivery(self) -> None:
        """Give the function no further records, and do not wait for it any longer."""
        self._delivery_stopped = True
        if self._delivery is not None:
            self._delivery.cancel()

    def _append(self, results: list[Outcome], scored: dict[int, bytes], failed: dict[int, bytes]) -> int:
        self._log.append(scored, failed)
        self._rows_ended += len(scored) + len(failed)
        if self._to_retry:
            for row in (*scored, *failed):
                self._to_retry.discard(row)
        self._count()
        if self._under_way is not None:
            self._under_way.end(list(scored), list(failed))
        records = sum(map(len, scored.values())) + sum(map(len, failed.values()))
        return records + sum([len(outcome[1].body) for outcome in results])

    def _records_of(
        self, results: list[Outcome], values: list[dict[str, Any]] | None = None
    ) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """The records of results by their rows: of scored rows, and of those that failed.

        Args:
            results: the outcomes of rows.
            values: gets the records of scored rows as values.
        """
        scored: dict[int, bytes] = {}
        failed: dict[int, bytes] = {}
        record = self._sink.record
        for _, row, value, error, attempts, waited, request_id in results:
            if error is None:
                try:
                    data = record(row, value, request_id)
                    if values is not None:
                        values.append(json.loads(data))
                    scored[row.number] = data
                    continue
                except SerializationError as fault:
                    error = fault
                except RecursionError:
                    error = SerializationError("the answer cannot be read: it is nested too deeply")
            elif concerns_every_call(error):
                # Not the row's fault: it stays open for the next run.
                self._error_of_all = error
                continue
            elif isinstance(error, BatchOutputError):
                # Of the file of jobs under way, which ends the job.
                raise error
            if self._kind == "openai-batch":
                failed[row.number] = openai_failure(row, error)
            else:
                failed[row.number] = failure_record(row, error, attempts, waited)
        return scored, failed

    # What others see

    def _count(self) -> None:
        """Count the rows that are done: on opening, and after each write."""
        self._counts = len(self._log.scored), len(self._log.failed) - len(self._to_retry)

    def _done(self) -> int:
        return sum(self._counts)

    def _all_retries(self) -> int:
        return sum(self._client.statistics().retries.values())

    def _retries(self) -> int:
        return self._all_retries() - self._retries_before

    def _progress(self) -> Progress:
        statistics = self._client.statistics()
        fraction = self._source.fraction
        scored, failed = self._counts
        progress = progress_of(
            self._pace,
            time.monotonic(),
            started=self._started,
            scored=scored,
            failed=failed,
            resumed=self._resumed,
            limiter=statistics.endpoints.get(self._endpoint.name),
            ceiling=self._client.max_concurrency,
            retries=self._retries(),
            fraction=fraction,
            rows_read=self._rows_read,
            rows_in_input=self._rows_in_input(),
            limit=self._settings.limit,
        )
        if self._queued is None:
            return progress
        return progress._replace(in_flight=self._queued.in_flight, max_in_flight=self._client.max_concurrency)

    def _rows_in_input(self) -> int | None:
        if self._read_to_end:
            return self._rows_read
        if self._source.rows_in_all is not None:
            return self._source.rows_in_all
        return self._log.rows_in_input if self._source.is_known else None

    def _report(self, *, finished: bool) -> Report:
        scored, failed = self._counts
        return Report(
            rows=scored + failed,
            scored=scored,
            failed=failed,
            resumed=self._resumed,
            retries=self._retries(),
            seconds=time.monotonic() - self._started,
            finished=finished,
            output=self._output.shown,
            errors=self._output.errors,
        )

    def _close(self) -> None:
        """Release the files."""
        opened = (self._under_way, self._opened_log, self._opened_source, self._output)
        close_all(*(one.close for one in opened if one is not None))


async def _ended(writer: _Writer, helpers: list[asyncio.Task[None]]) -> None:
    """Have all results written, and end what runs beside the calls."""
    await writer.close()
    for task in helpers:
        task.cancel()
    await asyncio.wait(helpers)


def _openai_options(row: Row) -> CallOptions:
    """The custom id of a line of OpenAI's Batch API as the inference id, if it can be one: 64 characters of ASCII."""
    name = row.id
    fits = isinstance(name, str) and 0 < len(name) <= 64 and name.isascii() and name.isprintable()
    return {"inference_id": name} if fits else {}


def _written(output: Destination) -> list[Path | str]:
    """The files and objects that a job may write."""
    jobs = jobs_file(output.files.out)
    return [*output.all(), jobs, rewritten(jobs)]


def _check_names(files: Iterable[Path | str]) -> None:
    """Refuse names of files that cannot be, before rows are paid for whose answers could not be put in order.

    Raises:
        BatchOutputError: one of them is too long, or its folder cannot be looked into.
    """
    for path in files:
        if isinstance(path, Path):
            try:
                path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise BatchOutputError(f"cannot write {path}: {error.strerror or error}") from error


def _copied(
    endpoint: Endpoint[Any, Any], *, client: EndpointClient | None = None, serializer: Serializer[Any] | None = None
) -> Endpoint[Any, Any]:
    """An endpoint with another client, or another serializer."""
    return Endpoint(
        endpoint.client if client is None else client,
        endpoint.name,
        serializer=endpoint.serializer if serializer is None else serializer,
        deserializer=endpoint.deserializer,
        upload_to=endpoint.upload_to,
        **endpoint.options,
    )


class _Writer:
    """Hands results to a function that writes them, many at a time.

    The place of a result in its map is free for another item once the result is written; small ones are ahead of that.

    Args:
        write: writes results, and returns how many bytes they took.
        on_error: called with the error that `write` raised; nothing is written afterwards.
    """

    def __init__(
        self, write: Callable[[list[Outcome]], Awaitable[int]], on_error: Callable[[BaseException], None]
    ) -> None:
        self._write = write
        self._on_error = on_error
        self._release: Callable[[list[int]], None] = _release_none
        # Results that wait; of these, how many have given up their places, and the indices of the others.
        self._results: list[Outcome] = []
        self._waiting_ahead = 0
        self._holding: list[int] = []
        # How many have given up their places in all, those being written among them, and how many may.
        self._ahead = 0
        self._most_ahead = 0
        self._any = asyncio.Event()
        self._many = asyncio.Event()
        self._closing = False
        self._ended = asyncio.Event()

    def add(self, some: list[Outcome], release: Callable[[list[int]], None]) -> None:
        """Have results written.

        Args:
            some: the results.
            release: frees their places in the map, by their indices.
        """
        self._release = release
        self._results += some
        indices = [outcome[0] for outcome in some]
        ahead = max(min(self._most_ahead - self._ahead, len(some)), 0)
        self._ahead += ahead
        self._waiting_ahead += ahead
        self._holding += indices[ahead:]
        release(indices[:ahead])
        self._any.set()
        # Items wait for the places that are held.
        if self._holding or len(self._results) >= _GATHER_RESULTS:
            self._many.set()

    async def run(self) -> None:
        try:
            while not (self._closing and not self._results):
                await self._any.wait()
                if not self._closing and not self._many.is_set():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_GATHER_SECONDS):
                            await self._many.wait()
                results, self._results = self._results, []
                ahead, self._waiting_ahead = self._waiting_ahead, 0
                holding, self._holding = self._holding, []
                self._many.clear()
                if not self._closing:
                    self._any.clear()
                if results:
                    size = await self._write(results)
                    self._most_ahead = min(_AHEAD_RESULTS, _AHEAD_BYTES * len(results) // max(size, 1))
                    self._ahead -= ahead
                    self._release(holding)
                    results.clear()
        except Exception as error:
            self._on_error(error)
        finally:
            self._ended.set()

    async def close(self) -> None:
        """Wait until all results are written."""
        self._closing = True
        self._any.set()
        self._many.set()
        await self._ended.wait()


def _release_none(indices: list[int]) -> None:
    pass
