"""Objects of S3 for a job's threads: as files that are read, and as places that files are sent to.

S3 is called on the event loop, with the client's credentials; the threads wait for it. A file is read in parts of a few
megabytes, of which two are in memory: the one that is read and the next. Each part is asked for with the object's ETag,
so an object that is replaced while it is read ends the job and never mixes with the one before.
"""

from __future__ import annotations

import asyncio
import fnmatch
import io
import threading
from collections.abc import Awaitable, Callable, Container, Coroutine, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

from aiosmrt._aws.s3 import ObjectFacts, ObjectStore, parse_s3_uri
from aiosmrt._wire.s3uri import S3_URI_FORM, split_s3_uri
from aiosmrt.batch.tasks import JobStoppedError
from aiosmrt.errors import AiosmrtError, BatchInputError, BatchOutputError, ObjectStoreError, ParamValidationError

__all__ = ["Bucket", "ObjectFile", "is_s3", "result_while_wanted", "spool_name"]

T = TypeVar("T")

_PART_BYTES: Final = 4 << 20

# Seconds between two looks at whether an answer is still wanted.
_LOOK_EVERY: Final = 0.1

# How long an upload that was cancelled may take to remove its parts.
_ABORT_SECONDS: Final = 10.0

# S3's code for an object that is not the one that was asked for.
_REPLACED: Final = "PreconditionFailed"

_MAGIC: Final = frozenset("*?[")


def is_s3(name: str) -> bool:
    """Whether a name is that of an object or a prefix in S3."""
    return name.startswith("s3://")


def result_while_wanted(future: Future[T], is_unwanted: Callable[[], bool]) -> T:
    """Wait for a result of the event loop, in another thread.

    Args:
        future: the result.
        is_unwanted: asked every now and then.

    Raises:
        JobStoppedError: it is no longer wanted.
    """
    while True:
        try:
            return future.result(_LOOK_EVERY)
        except NotYetError:
            if future.done():
                # It ended just now, or the error is its own.
                return future.result()
            if is_unwanted():
                future.cancel()
                raise JobStoppedError from None


class Bucket:
    """S3 for a thread.

    Args:
        loop: where S3 is called.
        store: gives access to it.
        is_unwanted: whether answers are no longer wanted.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: Callable[[], Awaitable[ObjectStore]],
        is_unwanted: Callable[[], bool],
    ) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self._store = store
        self._is_unwanted = is_unwanted

    def start(self, call: Callable[[ObjectStore], Awaitable[T]]) -> Future[T]:
        """Begin a call; `wait` waits for it."""

        async def made() -> T:
            return await call(await self._store())

        return self._scheduled(made())

    def _scheduled(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def wait(self, future: Future[T]) -> T:
        """What a call returns.

        Raises:
            JobStoppedError: it is no longer wanted.
            ObjectStoreError: it failed.
        """
        return result_while_wanted(future, self._is_unwanted)

    def find(
        self, name: str, wanted: Callable[[str], bool], excluded: Container[str] = ()
    ) -> list[tuple[str, ObjectFacts]]:
        """The objects that a name stands for, with their URIs: one, those behind a prefix, or those of a pattern.

        Args:
            name: ``s3://bucket/key``, ``s3://bucket/prefix/``, or a URI with ``*``, ``?`` or ``[`` in it, of which
                ``*`` also stands for slashes.
            wanted: whether an object behind a prefix is, given its key.
            excluded: URIs that prefixes and patterns leave out.

        Raises:
            BatchInputError: no object matches, or the name is that of an excluded one.
            ParamValidationError: the name is not a URI of S3.
        """
        bucket, key = split_s3_uri(name) or ("", "")
        if not bucket:
            raise ParamValidationError([f"{S3_URI_FORM}; got {name!r:.200}"])
        if name in excluded:
            raise BatchInputError(f"{name} is both input and output")
        if _MAGIC.isdisjoint(key):
            if key and not key.endswith("/"):
                if (facts := self.wait(self.start(lambda store: store.facts(name)))) is not None:
                    return [(name, facts)]
                key += "/"
            found = [one for one in self._listed(bucket, key) if self._is_shown(one.key[len(key) :])]
            found = [one for one in found if wanted(one.key)]
        else:
            literal = key[: min(key.index(sign) for sign in _MAGIC if sign in key)]
            found = [one for one in self._listed(bucket, literal) if fnmatch.fnmatchcase(one.key, key)]
            found = [one for one in found if self._is_shown(one.key[len(literal) :])]
        objects = [(uri, one) for one in found if (uri := f"s3://{bucket}/{one.key}") not in excluded]
        if not objects:
            raise BatchInputError(f"no S3 object matches {name}")
        return objects

    def _listed(self, bucket: str, prefix: str) -> list[ObjectFacts]:
        found = self.wait(self.start(lambda store: store.list_objects(bucket, prefix)))
        return [one for one in found if not one.key.endswith("/")]

    @staticmethod
    def _is_shown(key: str) -> bool:
        return not any(part.startswith(".") for part in key.split("/"))

    def facts(self, uri: str) -> ObjectFacts | None:
        """What S3 knows of an object; None if it does not exist."""
        return self.wait(self.start(lambda store: store.facts(uri)))

    def send(self, path: Path, uri: str, metadata: Mapping[str, str], content_type: str) -> None:
        """Write a file into an object, which appears when it is complete.

        Raises:
            BatchOutputError: the file cannot be read.
            ObjectStoreError: S3 does not take it.
        """
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                lock = threading.Lock()

                def part(start: int, length: int) -> bytes:
                    with lock:
                        file.seek(start)
                        return file.read(length)

                async def read(start: int, length: int) -> bytes:
                    return await asyncio.to_thread(part, start, length)

                begun, ended = threading.Event(), threading.Event()

                async def put(store: ObjectStore) -> None:
                    begun.set()
                    try:
                        await store.put_parts(uri, size, read, metadata=metadata, content_type=content_type)
                    finally:
                        ended.set()

                try:
                    self.wait(self.start(put))
                finally:
                    # One that is not wanted any more still has its parts to remove.
                    if begun.is_set():
                        ended.wait(_ABORT_SECONDS)
        except AiosmrtError:
            raise  # of S3, or of the credentials for it
        except OSError as error:
            raise BatchOutputError(f"cannot read {path}: {error.strerror or error}") from error

    def check_writable(self, uri: str) -> None:
        """See whether an object may be written.

        Raises:
            ObjectStoreError: S3 refuses it.
        """
        self.wait(self.start(lambda store: store.check_writable(uri)))

    def remove(self, uri: str) -> None:
        """Remove an object, if it exists."""
        self.wait(self.start(lambda store: store.delete(uri)))


class ObjectFile(io.RawIOBase):
    """An object, as a file that is read anywhere.

    Args:
        bucket: gives access to it.
        uri: the object's.
        facts: what it must be.
        count: called with the number of bytes whenever some are read.
    """

    def __init__(self, bucket: Bucket, uri: str, facts: ObjectFacts, count: Callable[[int], object]) -> None:
        self._bucket = bucket
        self._uri = uri
        self._facts = facts
        self._count = count
        self._position = 0
        # the part that was fetched last, where it begins, and the one that is being fetched
        self._part, self._start = b"", 0
        self._next: tuple[int, Future[bytes]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._facts.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        position = self._position
        if position >= self._facts.size:
            return 0
        at = position - self._start
        if not 0 <= at < len(self._part):
            self._fetch(position)
            at = 0
        data = self._part[at : at + len(buffer)]
        buffer[: len(data)] = data
        self._position = position + len(data)
        self._count(len(data))
        return len(data)

    def _fetch(self, position: int) -> None:
        in_sequence = position == self._start + len(self._part)
        waiting, self._next = self._next, None
        if waiting is not None and waiting[0] != position:
            waiting[1].cancel()
            waiting = None
        future = self._begin(position) if waiting is None else waiting[1]
        self._part = b""
        try:
            part = self._bucket.wait(future)
        except ObjectStoreError as error:
            if error.code == _REPLACED:
                raise BatchInputError(f"{self._uri} was replaced while it was read") from None
            raise
        self._start, self._part = position, part
        behind = position + len(part)
        if in_sequence and behind < self._facts.size:
            self._next = behind, self._begin(behind)

    def _begin(self, position: int) -> Future[bytes]:
        length = min(_PART_BYTES, self._facts.size - position)
        return self._bucket.start(lambda store: store.get_range(self._uri, position, length, self._facts.etag))

    def close(self) -> None:
        waiting, self._next = self._next, None
        if waiting is not None:
            waiting[1].cancel()
        self._part = b""
        super().close()


def spool_name(uri: str) -> tuple[str, str]:
    """A folder's and a file's name for what becomes an object: the first tells URIs apart, the second is for people.

    >>> spool_name("s3://results/churn/scores.jsonl")
    ('results-churn-9e4ad7c7a2', 'scores.jsonl')
    """
    bucket, key = parse_s3_uri(uri)
    *folders, name = key.split("/")
    readable = "-".join([bucket, *folders])[:80]
    return f"{readable}-{sha256(uri.encode()).hexdigest()[:10]}", name
