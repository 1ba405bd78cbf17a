"""The object store against a real S3: what it gives, whom it signs as, how it fails, and what is left of it."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.session import AioSession
from hypothesis import given
from hypothesis import strategies as st

from aiosmrt._aws import s3
from aiosmrt._aws.credentials import CredentialsCache
from aiosmrt._aws.providers import provider_for
from aiosmrt._aws.s3 import ObjectStore, parse_s3_uri
from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.errors import (
    ClientStateError,
    ConfigurationError,
    NoCredentialsError,
    ObjectStoreError,
    ParamValidationError,
    ResponseStreamingError,
)
from aiosmrt.local.objectserver import ObjectServer
from tests.support.blocking_server import BlockingServer, Conversation
from tests.support.cancellation import Moment, cancel_everywhere
from tests.support.config_files import ConfigFiles
from tests.support.peers import REGION
from tests.support.raw_server import CLOSE, RawServer, response
from tests.support.seaweed import GUEST, GUEST_BUCKET, OWNER, s3_client

each_moment = pytest.mark.parametrize("moment", list(Moment), ids=lambda moment: moment.value)


@pytest.fixture
async def credentials() -> AsyncIterator[CredentialsCache]:
    cache = CredentialsCache(provider_for(credentials=OWNER))
    yield cache
    await cache.close()


@pytest.fixture
async def store(object_server: ObjectServer, credentials: CredentialsCache) -> AsyncIterator[ObjectStore]:
    store = ObjectStore(credentials, region_name=REGION, endpoint_url=object_server.url)
    yield store
    await store.close()


async def failure(work: Coroutine[Any, Any, object]) -> ObjectStoreError:
    with pytest.raises(ObjectStoreError) as caught:
        await work
    # aiobotocore's error holds the request, with its body and its signature
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value


class TestObjects:
    async def test_an_object_exists_until_it_is_deleted(
        self, store: ObjectStore, bucket: str, object_server: ObjectServer
    ) -> None:
        uri = f"s3://{bucket}/results/été 1+2%20.csv"
        assert await store.get(uri) is None
        assert await store.modified_at(uri) is None
        await store.put(uri, b"1,2,3", "text/csv")
        written_at = await store.modified_at(uri)
        assert abs(written_at - time.time()) < 60
        stored = await store.get(uri)
        assert stored == (b"1,2,3", "text/csv", written_at)
        assert "1,2,3" not in repr(stored)
        seen = s3_client(object_server.url).get_object(Bucket=bucket, Key="results/été 1+2%20.csv")
        assert (seen["ContentType"], seen["Body"].read()) == ("text/csv", b"1,2,3")
        await store.delete(uri)
        assert await store.modified_at(uri) is None
        await store.delete(uri)

    async def test_an_empty_object_is_not_a_missing_one(self, store: ObjectStore, bucket: str) -> None:
        await store.put(f"s3://{bucket}/empty", b"")
        assert (await store.get(f"s3://{bucket}/empty")).body == b""

    async def test_large_objects(self, store: ObjectStore, bucket: str) -> None:
        body = os.urandom(24 * 1024 * 1024)
        await store.put(f"s3://{bucket}/large", body)
        assert (await store.get(f"s3://{bucket}/large")).body == body

    @pytest.mark.parametrize("size", [0, 1, 1000, 1001, 2**20])
    async def test_the_largest_object(self, store: ObjectStore, bucket: str, size: int) -> None:
        uri = f"s3://{bucket}/sized"
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        await store.put(uri, body)
        if size <= 1000:
            stored = await store.get(uri, 1000)
            assert stored is not None
            assert stored.body == body
        else:
            with pytest.raises(ResponseStreamingError, match="exceeds max_response_bytes of 1000"):
                await store.get(uri, 1000)
        beginning = await store.get(uri, 1000, cut=True)
        assert beginning is not None
        assert beginning.body == body[:1000]
        assert await store.get(f"s3://{bucket}/missing", 1000) is None

    async def test_many_at_once(self, store: ObjectStore, bucket: str) -> None:
        uris = [f"s3://{bucket}/{number}" for number in range(100)]
        await asyncio.gather(*(store.put(uri, uri.encode()) for uri in uris))
        stored = await asyncio.gather(*map(store.get, uris))
        assert [found.body for found in stored if found] == [uri.encode() for uri in uris]


class TestFailures:
    async def test_a_missing_bucket(self, store: ObjectStore) -> None:
        for work in (store.get("s3://no-such-bucket/1"), store.put("s3://no-such-bucket/1", b"")):
            error = await failure(work)
            assert (error.code, error.status) == ("NoSuchBucket", 404)
            assert "s3://no-such-bucket/1" in str(error)
        assert await store.modified_at("s3://no-such-bucket/1") is None

    async def test_a_bucket_of_another_owner(self, object_server: ObjectServer, bucket: str) -> None:
        store = ObjectStore(
            CredentialsCache(provider_for(credentials=GUEST)), region_name=REGION, endpoint_url=object_server.url
        )
        try:
            uri = f"s3://{bucket}/1"
            for work in (store.get(uri), store.put(uri, b""), store.delete(uri)):
                error = await failure(work)
                assert (error.code, error.status) == ("AccessDenied", 403)
            error = await failure(store.modified_at(uri))
            assert error.status == 403
            assert await store.get(f"s3://{GUEST_BUCKET}/nothing") is None
        finally:
            await store.close()

    async def test_a_wrong_key_is_named_by_its_code_alone(self, object_server: ObjectServer, bucket: str) -> None:
        wrong = Credentials(OWNER.access_key, "another-fake-secret")
        store = ObjectStore(
            CredentialsCache(provider_for(credentials=wrong)), region_name=REGION, endpoint_url=object_server.url
        )
        error = await failure(store.put(f"s3://{bucket}/1", b"a payload"))
        assert (error.code, error.status) == ("SignatureDoesNotMatch", 403)
        assert "payload" not in str(error)
        assert "another-fake-secret" not in repr(vars(error))
        await store.close()

    async def test_a_refused_connection(self, credentials: CredentialsCache, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with socket.socket() as silent:  # bound, and not listening
            silent.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            store = ObjectStore(credentials, region_name=REGION, endpoint_url=url)
            error = await failure(store.get("s3://bucket/key"))
            assert (error.code, error.status) == ("EndpointConnectionError", None)
            assert str(error) == f"get_object of s3://bucket/key at {url} failed: EndpointConnectionError"
            await store.close()

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nhalf",
            b"HTTP/1.0 200 OK\r\n\r\nhalf",
        ],
        ids=["length", "chunks", "until the end", "http-1.0"],
    )
    async def test_a_truncated_response(
        self, credentials: CredentialsCache, monkeypatch: pytest.MonkeyPatch, answer: bytes
    ) -> None:
        """What ends with its connection may be truncated too: the connection does not tell, and S3 gives a length."""
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr(s3, "_PAUSE_SECONDS", 0.0)
        async with RawServer(otherwise=[answer, CLOSE]) as server:
            store = ObjectStore(credentials, region_name=REGION, endpoint_url=server.url)
            for work in (store.get("s3://bucket/key"), store.get_range("s3://bucket/key", 0, 10, "etag")):
                error = await failure(work)
                assert error.status is None
                assert error.code in ("ClientPayloadError", "ResponseStreamingError")
            await store.close()

    async def test_no_credentials(self, object_server: ObjectServer) -> None:
        cache = CredentialsCache(provider_for())
        store = ObjectStore(cache, region_name=REGION, endpoint_url=object_server.url)
        with pytest.raises(NoCredentialsError):
            await store.get("s3://bucket/key")
        await store.close()
        await cache.close()

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({"region_name": REGION, "profile_name": "missing"}, "ProfileNotFound"),
            ({"region_name": "not a region"}, "InvalidRegion"),
            ({"region_name": REGION, "endpoint_url": "no-url"}, "ValueError"),
        ],
    )
    async def test_no_client(self, credentials: CredentialsCache, arguments: dict[str, Any], reason: str) -> None:
        store = ObjectStore(credentials, **arguments)
        with pytest.raises(ConfigurationError, match=reason) as caught:
            await store.get("s3://bucket/key")
        assert caught.value.__context__ is None
        await store.close()


class TestConfiguration:
    async def test_the_endpoint_of_the_environment(
        self, credentials: CredentialsCache, object_server: ObjectServer, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", object_server.url)
        store = ObjectStore(credentials, region_name=REGION)
        assert await store.get(f"s3://{bucket}/1") is None
        assert repr(store) == f"<ObjectStore {object_server.url}>"
        await store.close()

    async def test_the_endpoint_of_a_profile(
        self, credentials: CredentialsCache, object_server: ObjectServer, bucket: str, config_files: ConfigFiles
    ) -> None:
        config_files(config=f"[profile here]\nendpoint_url = {object_server.url}\nregion = {REGION}\n")
        store = ObjectStore(credentials, profile_name="here")
        assert await store.get(f"s3://{bucket}/1") is None
        await store.close()


class Changing:
    """An async function that gives other credentials each time, which hold for an hour."""

    def __init__(self, *given: Credentials) -> None:
        self.given = list(given)
        self.now = 1_000_000.0

    async def __call__(self) -> Credentials:
        one = self.given.pop(0)
        return Credentials(one.access_key, one.secret_key, None, self.now + 3600)


async def test_renewed_credentials_sign_the_next_request(
    object_server: ObjectServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the owner's, who may read the bucket, then the guest's, who may not, then the owner's again."""
    made: list[str] = []
    create_client = AioSession.create_client

    def create_counted(session: AioSession, service: str, **arguments: Any) -> Any:
        made.append(service)
        return create_client(session, service, **arguments)

    monkeypatch.setattr(AioSession, "create_client", create_counted)
    source = Changing(OWNER, GUEST, OWNER)
    cache = CredentialsCache(provider_for(credentials=source), clock=lambda: source.now)
    store = ObjectStore(cache, region_name=REGION, endpoint_url=object_server.url)
    uri = f"s3://{bucket}/1"
    assert await store.get(uri) is None
    first = len(made)
    source.now += 3600
    assert (await failure(store.get(uri))).code == "AccessDenied"
    source.now += 3600
    assert await store.get(uri) is None
    assert len(made) == first, "the client is kept"
    assert source.given == []
    await store.close()
    await cache.close()


class TestLife:
    async def test_unused(self, credentials: CredentialsCache) -> None:
        store = ObjectStore(credentials)
        assert repr(store) == "<ObjectStore idle>"
        await store.close()
        await store.close()
        assert repr(store) == "<ObjectStore closed>"

    async def test_closed(self, store: ObjectStore, bucket: str) -> None:
        await store.put(f"s3://{bucket}/1", b"")
        await store.close()
        with pytest.raises(ClientStateError, match="closed"):
            await store.get(f"s3://{bucket}/1")

    async def test_closed_while_its_client_is_being_made(self, store: ObjectStore, bucket: str) -> None:
        calls = [asyncio.create_task(store.get(f"s3://{bucket}/1")) for _ in range(3)]
        await asyncio.sleep(0)
        await store.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [ClientStateError] * 3

    async def test_one_client_for_all_first_calls(self, store: ObjectStore, bucket: str) -> None:
        await asyncio.gather(*(store.get(f"s3://{bucket}/{number}") for number in range(20)))
        assert await store.get(f"s3://{bucket}/1") is None


class TestCancellation:
    """After a call that was cancelled anywhere: at most one connection, and it is idle."""

    @pytest.fixture
    async def sockets(self, open_descriptors: Callable[[], set[str]]) -> Callable[[], int]:
        """Counts open sockets, once those of earlier tests are gone."""
        # A first call that was cancelled leaves its thread, whose event loop has sockets.
        await until(lambda: not any(thread.name == "aiosmrt-s3" for thread in threading.enumerate()))
        gc.collect()
        return lambda: sum(name.startswith("socket:") for name in open_descriptors())

    @each_moment
    @pytest.mark.parametrize("operation", ["get", "modified_at", "put", "delete"])
    async def test_of_a_call(
        self, operation: str, moment: Moment, store: ObjectStore, bucket: str, sockets: Callable[[], int]
    ) -> None:
        uri = f"s3://{bucket}/1"
        before = sockets()
        await store.put(uri, b"x" * 1_000_000)

        async def prepare() -> Coroutine[Any, Any, Any]:
            return store.put(uri, b"x" * 1_000_000) if operation == "put" else getattr(store, operation)(uri)

        async def after() -> None:
            await until(lambda: sockets() - before <= 1)
            await store.put(uri, b"x" * 1_000_000)  # on the connection that is there, or a new one
            assert sockets() - before <= 1

        assert await cancel_everywhere(prepare, moment, after=after) >= 1
        await store.close()
        await until(lambda: sockets() == before)

    @each_moment
    async def test_of_the_first_call(
        self,
        moment: Moment,
        credentials: CredentialsCache,
        object_server: ObjectServer,
        bucket: str,
        sockets: Callable[[], int],
    ) -> None:
        stores: list[ObjectStore] = []
        before = sockets()

        async def prepare() -> Coroutine[Any, Any, Any]:
            stores.append(ObjectStore(credentials, region_name=REGION, endpoint_url=object_server.url))
            return stores[-1].get(f"s3://{bucket}/1")

        async def after() -> None:
            assert await stores[-1].get(f"s3://{bucket}/1") is None
            await stores[-1].close()
            await until(lambda: sockets() == before)

        assert await cancel_everywhere(prepare, moment, after=after) >= 2


@pytest.mark.parametrize("status", [400, 403, 500])
async def test_a_huge_error_is_cut(status: int, credentials: CredentialsCache) -> None:
    code, message = b"C" * 2**20, b"x" * 2**22
    error = b"<?xml version='1.0'?><Error><Code>%b</Code><Message>%b</Message></Error>" % (code, message)

    def refuse(talk: Conversation) -> None:
        while True:
            talk.request()
            talk.send(response(status, error))

    with BlockingServer([refuse]) as server:
        store = ObjectStore(credentials, region_name=REGION, endpoint_url=server.url)
        refusal = await failure(store.get("s3://results/1.out"))
        assert refusal.status == status
        assert len(refusal.code) == 256
        assert 2**16 < len(str(refusal)) < 2**16 + 1000
        await store.close()


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
async def test_a_repeated_response_is_not_the_next_objects(
    read: bool, half: bool, credentials: CredentialsCache
) -> None:
    """What arrives on an idle connection is no object: the next request goes to another connection."""
    go_on, repeated = threading.Event(), threading.Event()

    def answer(talk: Conversation) -> bytes:
        talk.request()
        return response(200, b"content of " + talk.target, [("Last-Modified", "Sun, 29 Nov 2026 00:00:00 GMT")])

    def serve(talk: Conversation) -> None:
        while True:
            talk.send(answer(talk))

    def repeat(talk: Conversation) -> None:
        sent = answer(talk)
        talk.send(sent)
        go_on.wait(20)
        talk.send(sent[: len(sent) // 2] if half else sent)
        repeated.set()
        serve(talk)

    with BlockingServer([repeat, serve]) as server:
        store = ObjectStore(credentials, region_name=REGION, endpoint_url=server.url)
        first = await store.get("s3://results/1.out")
        assert first is not None
        go_on.set()
        if read:
            await asyncio.to_thread(repeated.wait, 20)
            await asyncio.sleep(0.05)  # the loop reads it in that time, unless it is too slow: then it is unread
        else:
            assert repeated.wait(20)
        for name in ("2.out", "3.out"):
            stored = await store.get(f"s3://results/{name}")
            assert stored is not None
            assert stored.body == b"content of /results/" + name.encode()
        assert server.connections_made == 2
        await store.close()


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop turn until something holds; transports close in one of the next turns."""
    while not holds():
        await asyncio.sleep(0.01)


class TestUri:
    def test_parts(self) -> None:
        assert parse_s3_uri("s3://bucket/a//b/../c?d#e%20") == ("bucket", "a//b/../c?d#e%20")

    @given(st.from_regex(r"[a-z0-9][a-z0-9.-]{2,61}", fullmatch=True), st.text(min_size=1, max_size=200))
    def test_every_key(self, bucket: str, key: str) -> None:
        assert parse_s3_uri(f"s3://{bucket}/{key}") == (bucket, key)

    @pytest.mark.parametrize(
        "uri",
        [
            *(
                "",
                "s3://",
                "s3://bucket",
                "s3://bucket/",
                "s3:///key",
                "s3://b/key",
                "https://bucket/key",
                "bucket/key",
            ),
            *("s3://bu cket/key", "s3://bucket\n/key", "S3://bucket/key", f"s3://bucket/{'k' * 1025}"),
            "s3://bucket/\ud800",
        ],
    )
    def test_invalid_uris(self, uri: str) -> None:
        with pytest.raises(ParamValidationError, match="s3://bucket/key"):
            parse_s3_uri(uri)

    def test_a_uri_that_is_not_a_string(self) -> None:
        with pytest.raises(ParamValidationError):
            parse_s3_uri(None)  # type: ignore[arg-type]

    async def test_an_invalid_uri_makes_no_client(self, credentials: CredentialsCache) -> None:
        store = ObjectStore(credentials)
        for work in (store.get("bucket/key"), store.modified_at("s3://bucket"), store.put("", b""), store.delete("")):
            with pytest.raises(ParamValidationError):
                await work
        assert repr(store) == "<ObjectStore idle>"


def test_the_module_loads_nothing_of_aiobotocore() -> None:
    import subprocess
    import sys

    program = "import sys, aiosmrt._aws.s3; print([name for name in sys.modules if name.startswith('aiobotocore')])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
