"""A real S3 for the tests that need one: started on first need, one for the whole run, with fresh buckets for each.

A pytest plugin. What the server has written is shown with every failure of a test that used it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest

from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.local.objectserver import ObjectServer, ObjectServerGuest
from tests.support.peers import CREDENTIALS, REGION

OWNER = Credentials(CREDENTIALS.access_key, CREDENTIALS.secret_key)
GUEST = Credentials("AKIDGUEST", "fake-secret-key-for-guests")
# The only bucket in which the guest may do anything.
GUEST_BUCKET = "of-the-guest"

LINES_SHOWN = 50

_numbers = itertools.count(1)
_output = pytest.StashKey[ObjectServer]()


@pytest.fixture(scope="session")
def object_server() -> Iterator[ObjectServer]:
    """A running server. No test owns it: what is in it besides the test's own bucket belongs to others."""
    server = ObjectServer(OWNER, buckets=[GUEST_BUCKET], guests=[ObjectServerGuest(GUEST, [GUEST_BUCKET])])
    apart(server.start())
    try:
        yield server
    finally:
        apart(server.stop())


@pytest.fixture
async def bucket(object_server: ObjectServer, request: pytest.FixtureRequest) -> str:
    """The name of a new, empty bucket of the test's own."""
    request.node.stash[_output] = object_server
    name = f"bucket-{next(_numbers)}"
    await object_server.create_bucket(name)
    return name


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Add what the server has written to the report of a failure."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and (server := item.stash.get(_output, None)) is not None:
        report.sections.append(("Object server", "\n".join(server.output[-LINES_SHOWN:])))


def apart(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end on a new loop, wherever this is called."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


@cache
def s3_client(url: str) -> Any:
    """boto3's client for a server: what the tests look at its objects with."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=OWNER.access_key,
        aws_secret_access_key=OWNER.secret_key,
        config=Config(retries={"total_max_attempts": 1}),
    )
