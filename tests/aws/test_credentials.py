"""Credentials are found once, shared, renewed ahead of time, and never stall a call while they are valid."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import aiobotocore.session
import boto3
import pytest
from botocore.credentials import ReadOnlyCredentials

from aiosmrt import errors
from aiosmrt._aws.credentials import CredentialsCache
from aiosmrt._aws.providers import REASK_INTERVAL, provider_for
from aiosmrt._wire.sigv4.signer import Credentials
from aiosmrt.events import CredentialsRefreshed, CredentialsRefreshFailed, Event
from tests.aws.fake_services import ROLE_ARN, CredentialServices
from tests.support.config_files import ConfigFiles
from tests.support.virtual_time import VirtualTime

HOUR = 3600.0
START = 1_800_000_000.0
MOMENT = 1 / 1024


class Source:
    """An async function that returns credentials, or fails, when the test lets it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.calls = 0
        self.lifetime: float | None = HOUR
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.cancelled = False

    async def __call__(self) -> Credentials:
        self.calls += 1
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        expires_at = None if self.lifetime is None else self.clock.now + self.lifetime
        return Credentials(f"AKID{self.calls}", "fake-secret", f"fake-token-{self.calls}", expires_at)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Setup:
    """A cache with everything around it under control."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.source = Source(self.clock)
        self.events: list[Event] = []
        self.cache = CredentialsCache(
            provider_for(credentials=self.source), clock=self.clock, rand=lambda: 1.0, observer=self.events.append
        )

    def pauses_for(self, seconds: float) -> bool:
        """Whether calls that have valid credentials come by again after so many seconds, which pass."""
        self.clock.now += seconds - MOMENT
        early = self.cache.current() is None
        self.clock.now += MOMENT
        return not early and self.cache.current() is None


async def until_fetched() -> None:
    """Let the fetch that is under way end."""
    while fetches := [task for task in asyncio.all_tasks() if task.get_name() == "aiosmrt-credentials"]:
        await asyncio.wait(fetches)


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    made = Setup()
    yield made
    await made.cache.close()


async def test_credentials_are_fetched_once(setup: Setup) -> None:
    first = await setup.cache.get()
    assert setup.cache.current() is first
    assert await setup.cache.get() is first
    assert setup.source.calls == 1
    assert setup.events == [CredentialsRefreshed("function", START + HOUR)]


async def test_concurrent_callers_share_one_request(setup: Setup) -> None:
    setup.source.gate.clear()
    callers = [asyncio.create_task(setup.cache.get()) for _ in range(50)]
    await setup.source.entered.wait()
    setup.source.gate.set()
    assert len({id(credentials) for credentials in await asyncio.gather(*callers)}) == 1
    assert setup.source.calls == 1


async def test_renewal_begins_15_minutes_before_expiry_and_delays_no_call(setup: Setup) -> None:
    first = await setup.cache.get()
    setup.clock.now = START + HOUR - 901
    assert setup.cache.current() is first
    setup.clock.now = START + HOUR - 900
    assert setup.cache.current() is None
    setup.source.gate.clear()
    setup.source.entered.clear()
    assert await asyncio.wait_for(setup.cache.get(), 1) is first
    # While the renewal is under way, calls do not even come by.
    assert setup.cache.current() is first
    await setup.source.entered.wait()
    assert setup.source.calls == 2
    setup.source.gate.set()
    await until_fetched()
    second = setup.cache.current()
    assert second is not None
    assert second.access_key == "AKID2"
    assert setup.events[1:] == [CredentialsRefreshed("function", START + 2 * HOUR - 900)]


async def test_a_failed_early_renewal_keeps_valid_credentials_and_backs_off(setup: Setup) -> None:
    first = await setup.cache.get()
    setup.source.error = ValueError("broken")
    setup.clock.now = START + HOUR - 900
    for pause in [1, 2, 4, 8, 16, 32, 60, 60, 60]:
        assert await setup.cache.get() is first
        await until_fetched()
        assert setup.cache.current() is first
        assert setup.pauses_for(pause)
    assert setup.source.calls == 10
    assert setup.events[1:] == [CredentialsRefreshFailed("function", "CredentialRetrievalError")] * 9
    # In the last ten minutes it is tried more often.
    setup.clock.now = START + HOUR - 500
    assert await setup.cache.get() is first
    await until_fetched()
    assert setup.pauses_for(10)
    # And once it succeeds, all is forgotten.
    setup.source.error = None
    await setup.cache.get()
    await until_fetched()
    renewed = setup.cache.current()
    assert renewed is not None
    assert renewed is not first
    setup.source.error = ValueError("broken")
    setup.clock.now += HOUR - 900
    assert await setup.cache.get() is renewed
    await until_fetched()
    assert setup.pauses_for(1)


async def test_back_off_ends_at_the_expiry(setup: Setup) -> None:
    first = await setup.cache.get()
    setup.source.error = ValueError("broken")
    setup.clock.now = START + HOUR - 0.25
    assert await setup.cache.get() is first
    await until_fetched()
    assert setup.pauses_for(0.25)


async def test_calls_wait_for_expired_credentials_and_get_the_error(setup: Setup) -> None:
    await setup.cache.get()
    setup.clock.now = START + HOUR
    assert setup.cache.current() is None
    setup.source.gate.clear()
    setup.source.entered.clear()
    callers = [asyncio.create_task(setup.cache.get()) for _ in range(3)]
    await setup.source.entered.wait()
    assert not any(caller.done() for caller in callers)
    setup.source.error = ValueError("broken")
    setup.source.gate.set()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, errors.CredentialRetrievalError)]
    assert len({id(failure) for failure in failures}) == 3, "each call adds its own facts to its error"
    assert all(isinstance(failure.__cause__, ValueError) for failure in failures)
    assert setup.source.calls == 2
    setup.source.error = None
    setup.clock.now += 1
    assert (await setup.cache.get()).access_key == "AKID3"


async def test_a_call_that_comes_after_the_expiry_waits_for_the_renewal_under_way(setup: Setup) -> None:
    await setup.cache.get()
    setup.clock.now = START + HOUR - 60
    setup.source.gate.clear()
    await setup.cache.get()
    setup.clock.now = START + HOUR
    caller = asyncio.create_task(setup.cache.get())
    await asyncio.sleep(0)
    setup.source.gate.set()
    assert (await caller).access_key == "AKID2"
    assert setup.source.calls == 2


async def test_a_source_that_returns_expired_credentials_is_an_error(setup: Setup) -> None:
    setup.source.lifetime = 0
    with pytest.raises(errors.CredentialRetrievalError, match="expired"):
        await setup.cache.get()
    assert setup.cache.current() is None


@pytest.mark.parametrize("lifetime", [60.0, 900.0, 1799.0])
async def test_short_lived_credentials_are_renewed_halfway_and_not_at_every_call(setup: Setup, lifetime: float) -> None:
    setup.source.lifetime = lifetime
    first = await setup.cache.get()
    assert await setup.cache.get() is first
    assert setup.source.calls == 1
    assert setup.pauses_for(lifetime / 2)


async def test_a_source_with_nothing_newer_is_asked_again_after_a_back_off(setup: Setup) -> None:
    await setup.cache.get()
    setup.clock.now = START + HOUR - 600
    setup.source.lifetime = 600  # the same expiry as before
    await setup.cache.get()
    await until_fetched()
    assert setup.pauses_for(1)
    assert setup.events[1:] == [CredentialsRefreshFailed("function", "CredentialRetrievalError")]


async def test_credentials_without_expiry_are_never_fetched_again(setup: Setup) -> None:
    setup.source.lifetime = None
    first = await setup.cache.get()
    setup.clock.now = math.nextafter(math.inf, 0)
    assert setup.cache.current() is first


async def test_jitter_shortens_the_back_off_by_half_at_most(setup: Setup) -> None:
    setup.cache = CredentialsCache(provider_for(credentials=setup.source), clock=setup.clock, rand=lambda: 0.0)
    await setup.cache.get()
    setup.source.error = ValueError("broken")
    setup.clock.now = START + HOUR - 900
    await setup.cache.get()
    await until_fetched()
    assert setup.pauses_for(0.5)


# Failures without valid credentials


async def test_a_failing_source_is_asked_again_after_a_back_off_and_not_by_every_call(setup: Setup) -> None:
    setup.source.error = ValueError("broken")
    for attempt, pause in enumerate([1, 2, 4, 8, 10, 10, 10], 1):
        seen = []
        for _ in range(20):
            with pytest.raises(errors.CredentialRetrievalError) as caught:
                await setup.cache.get()
            assert isinstance(caught.value.__cause__, ValueError)
            seen.append(caught.value)
        assert len({id(error) for error in seen}) == 20, "each call adds its own facts to its error"
        assert setup.source.calls == attempt
        setup.clock.now += pause - MOMENT
        with pytest.raises(errors.CredentialRetrievalError):
            await setup.cache.get()
        assert setup.source.calls == attempt
        setup.clock.now += MOMENT
    setup.source.error = None
    assert (await setup.cache.get()).access_key == "AKID8"
    # It starts over at the next failure.
    setup.source.error = ValueError("broken")
    setup.clock.now += HOUR
    for _ in range(2):
        with pytest.raises(errors.CredentialRetrievalError):
            await setup.cache.get()
    assert setup.source.calls == 9
    setup.clock.now += 1
    with pytest.raises(errors.CredentialRetrievalError):
        await setup.cache.get()
    assert setup.source.calls == 10


async def test_a_clock_that_is_set_back_does_not_prolong_the_back_off(setup: Setup) -> None:
    setup.source.error = ValueError("broken")
    with pytest.raises(errors.CredentialRetrievalError):
        await setup.cache.get()
    setup.clock.now -= 86_400
    setup.source.error = None
    assert (await setup.cache.get()).access_key == "AKID2"


async def test_calls_that_wait_share_one_failure(setup: Setup) -> None:
    setup.source.gate.clear()
    setup.source.error = ValueError("broken")
    callers = [asyncio.create_task(setup.cache.get()) for _ in range(50)]
    await setup.source.entered.wait()
    setup.source.gate.set()
    failures = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(failure, errors.CredentialRetrievalError) for failure in failures)
    assert setup.source.calls == 1


async def test_variables_that_appear_during_the_back_off_are_used_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CredentialsCache(provider_for())
    with pytest.raises(errors.NoCredentialsError):
        await cache.get()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake-secret")
    assert (await cache.get()).access_key == "AKIDENV"


async def test_a_failure_keeps_no_frames(setup: Setup) -> None:
    """It is remembered for as long as the source fails."""
    setup.source.error = ValueError("broken")
    with pytest.raises(errors.CredentialRetrievalError):
        await setup.cache.get()
    gc.collect()
    kept = [one for one in gc.get_objects() if isinstance(one, Exception) and one.__cause__ is setup.source.error]
    assert [one.__traceback__ for one in kept] == [None]


# Eager tasks, which may be over when they have been created


class Immediate(Source):
    """A source that never suspends, such as one that reads a file."""

    async def __call__(self) -> Credentials:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return Credentials(f"AKID{self.calls}", "fake-secret", None, self.clock.now + HOUR)


@pytest.fixture
async def eager(setup: Setup) -> Setup:
    if sys.version_info < (3, 12):
        pytest.skip("eager tasks came with Python 3.12")
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    setup.source = Immediate(setup.clock)
    setup.cache = CredentialsCache(provider_for(credentials=setup.source), clock=setup.clock, rand=lambda: 1.0)
    return setup


async def test_an_eager_renewal_replaces_credentials_ahead_of_time(eager: Setup) -> None:
    first = await eager.cache.get()
    assert eager.cache.current() is first
    eager.clock.now += HOUR - 900
    assert (await eager.cache.get()).access_key == "AKID2"
    eager.clock.now += HOUR
    assert eager.cache.current() is None
    assert (await eager.cache.get()).access_key == "AKID3"
    assert eager.source.calls == 3


async def test_an_eager_renewal_that_fails_keeps_valid_credentials_and_backs_off(eager: Setup) -> None:
    first = await eager.cache.get()
    eager.source.error = ValueError("broken")
    eager.clock.now += HOUR - 900
    for _ in range(3):
        assert await eager.cache.get() is first
    assert eager.source.calls == 2
    eager.source.error = None
    eager.clock.now += 1
    assert (await eager.cache.get()).access_key == "AKID3"


async def test_eager_tasks_that_a_source_starts_wait_for_it(eager: Setup) -> None:
    """They ask while create_task() has not returned yet."""
    calls = 0
    others: list[asyncio.Task[Credentials]] = []

    async def obtain() -> Credentials:
        nonlocal calls
        calls += 1
        others.extend(asyncio.create_task(cache.get()) for _ in range(3))
        return Credentials("AKIDEXAMPLE", "fake-secret", None, START + HOUR)

    cache = CredentialsCache(provider_for(credentials=obtain), clock=eager.clock)
    first = await cache.get()
    assert [await other is first for other in others] == [True] * 3
    assert calls == 1


async def test_an_eager_failure_is_not_permanent(eager: Setup) -> None:
    eager.source.error = ValueError("broken")
    for _ in range(3):
        with pytest.raises(errors.CredentialRetrievalError):
            await eager.cache.get()
    assert eager.source.calls == 1
    eager.source.error = None
    eager.clock.now += 1
    assert (await eager.cache.get()).access_key == "AKID2"


# Cancellation and close


async def test_a_cancelled_caller_does_not_affect_the_others(setup: Setup) -> None:
    setup.source.gate.clear()
    callers = [asyncio.create_task(setup.cache.get()) for _ in range(3)]
    await setup.source.entered.wait()
    callers[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await callers[0]
    setup.source.gate.set()
    assert {(await caller).access_key for caller in callers[1:]} == {"AKID1"}
    assert not setup.source.cancelled


async def test_a_fetch_begun_for_a_cancelled_caller_serves_the_next(setup: Setup) -> None:
    setup.source.gate.clear()
    caller = asyncio.create_task(setup.cache.get())
    await setup.source.entered.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    following = asyncio.create_task(setup.cache.get())
    await asyncio.sleep(0)
    setup.source.gate.set()
    assert (await following).access_key == "AKID1"
    assert setup.source.calls == 1


async def test_a_failure_without_waiting_callers_makes_no_noise(setup: Setup) -> None:
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    setup.source.gate.clear()
    setup.source.error = ValueError("broken")
    caller = asyncio.create_task(setup.cache.get())
    await setup.source.entered.wait()
    caller.cancel()
    await asyncio.wait((caller,))
    setup.source.gate.set()
    await until_fetched()
    gc.collect()
    await asyncio.sleep(0)
    assert noise == []


async def test_close_cancels_the_fetch_and_wakes_waiting_callers(setup: Setup) -> None:
    setup.source.gate.clear()
    caller = asyncio.create_task(setup.cache.get())
    await setup.source.entered.wait()
    await setup.cache.close()
    assert setup.source.cancelled
    with pytest.raises(errors.ClientStateError):
        await caller
    with pytest.raises(errors.ClientStateError):
        await setup.cache.get()
    await setup.cache.close()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "aiosmrt-credentials"] == []


async def test_a_provider_that_is_cancelled_from_within_is_an_ordinary_failure(setup: Setup) -> None:
    setup.source.error = asyncio.CancelledError()  # type: ignore[assignment]
    with pytest.raises(errors.CredentialRetrievalError, match="CancelledError"):
        await setup.cache.get()
    setup.source.error = None
    setup.clock.now += 1
    assert (await setup.cache.get()).access_key == "AKID2"


async def test_close_forgets_the_credentials(setup: Setup) -> None:
    await setup.cache.get()
    await setup.cache.close()
    assert setup.cache.current() is None


async def test_a_cancelled_close_can_be_repeated(setup: Setup) -> None:
    release = asyncio.Event()

    async def stubborn() -> Credentials:
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()
        raise AssertionError

    cache = CredentialsCache(provider_for(credentials=stubborn))
    caller = asyncio.create_task(cache.get())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    closing = asyncio.create_task(cache.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not caller.done()
    release.set()
    await cache.close()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "aiosmrt-credentials"] == []
    with pytest.raises(errors.ClientStateError):
        await caller


async def test_a_source_that_asks_for_its_own_credentials_is_told_so() -> None:
    """It would wait for itself."""

    async def obtain() -> Credentials:
        return await cache.get()

    cache = CredentialsCache(provider_for(credentials=obtain))
    with pytest.raises(errors.ClientStateError, match="which it obtains"):
        await cache.get()


async def test_close_gives_up_a_function_that_ignores_its_cancellation(virtual_time: VirtualTime) -> None:
    """Callers wake up after a second, and what the function returns in the end is dropped."""
    release = asyncio.Event()

    async def deaf() -> Credentials:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()
        return Credentials("AKIDEXAMPLE", "fake-secret")

    cache = CredentialsCache(provider_for(credentials=deaf))
    caller = asyncio.create_task(cache.get())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    (fetch,) = [task for task in asyncio.all_tasks() if task.get_name() == "aiosmrt-credentials"]
    closing = asyncio.create_task(cache.close())
    await virtual_time.set_to(1.0)
    with pytest.warns(ResourceWarning, match="the credentials function still runs 1 s after"):
        await asyncio.gather(closing, virtual_time.advance(1.0))
    with pytest.raises(errors.ClientStateError):
        await caller
    assert not fetch.done()
    release.set()
    await fetch
    await cache.close()
    assert cache.current() is None


@pytest.mark.parametrize("steps", range(4))
async def test_cancelled_after_any_number_of_steps_nothing_is_held(setup: Setup, steps: int) -> None:
    caller = asyncio.create_task(setup.cache.get())
    for _ in range(steps):
        await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait((caller,))
    await setup.cache.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# Observers


async def test_an_observer_that_fails_does_not_affect_calls() -> None:
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

    def observer(event: Event) -> None:
        raise ValueError("observer")

    cache = CredentialsCache(provider_for(access_key="AKIDEXAMPLE", secret_key="fake-secret"), observer=observer)
    assert (await cache.get()).access_key == "AKIDEXAMPLE"
    assert [str(context["exception"]) for context in seen] == ["observer"]


async def test_no_repr_contains_a_secret(setup: Setup) -> None:
    credentials = await setup.cache.get()
    assert credentials.token is not None
    shown = f"{setup.cache!r} {setup.cache} {setup.events} {credentials}"
    assert "fake-secret" not in shown
    assert credentials.token not in shown


def shown(error: BaseException) -> list[str]:
    """The locals of our frames in which a part of some credentials is."""
    reports, found = [traceback.TracebackException.from_exception(error, capture_locals=True)], []
    while reports:
        report = reports.pop()
        reports += [other for other in (report.__cause__, report.__context__) if other is not None]
        for frame in report.stack:
            if "/tests/" not in frame.filename:
                found += [f"{frame.name}: {name}" for name, text in (frame.locals or {}).items() if "sesame" in text]
    return found


class Marked:
    """A credentials object whose keys no header can carry."""

    method = "marked"

    def get_frozen_credentials(self) -> Any:
        return ReadOnlyCredentials("AKIDsesame\n", "secret-sesame", "token-sesame")


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_CREDENTIAL_EXPIRATION": "tomorrow"},
        {"AWS_CREDENTIAL_EXPIRATION": "2001-01-01T00:00:00Z"},
        {"AWS_SECRET_ACCESS_KEY": ""},
        {"AWS_SESSION_TOKEN": "token sesame"},
    ],
)
async def test_no_frame_has_keys_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "AKIDsesame", "AWS_SECRET_ACCESS_KEY": "secret-sesame", "AWS_SESSION_TOKEN": "sesame"}
    for name, value in (keys | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.ConfigurationError) as caught:
        await CredentialsCache(provider_for()).get()
    assert shown(caught.value) == []


async def test_no_frame_has_keys_from_files(config_files: ConfigFiles) -> None:
    config_files("", "[default]\naws_access_key_id = AKID sesame\naws_secret_access_key = secret-sesame\n")
    with pytest.raises(errors.CredentialRetrievalError) as caught:
        await CredentialsCache(provider_for()).get()
    assert shown(caught.value) == []


async def test_no_frame_has_keys_from_objects_and_functions() -> None:
    async def expired() -> Credentials:
        return Credentials("AKIDsesame", "secret-sesame", None, 1.0)

    async def wrong() -> Any:
        return Marked().get_frozen_credentials()

    fixed = Credentials("AKIDsesame", "secret-sesame", None, 1.0)
    given: Any
    for given in (Marked(), expired, wrong, fixed):
        cache = CredentialsCache(provider_for(credentials=given))
        for _ in range(2):
            with pytest.raises(errors.CredentialRetrievalError) as caught:
                await cache.get()
            assert shown(caught.value) == []


# Sources that answer from memory


async def test_fixed_credentials_need_no_task() -> None:
    cache = CredentialsCache(provider_for(credentials=Credentials("AKIDEXAMPLE", "fake-secret")))
    before = asyncio.all_tasks()
    assert (await cache.get()).access_key == "AKIDEXAMPLE"
    assert asyncio.all_tasks() == before


async def test_fixed_credentials_serve_until_they_expire() -> None:
    clock = Clock()
    cache = CredentialsCache(
        provider_for(credentials=Credentials("AKIDEXAMPLE", "fake-secret", "t", START + HOUR)), clock=clock
    )
    given = await cache.get()
    clock.now = START + HOUR - 1
    assert await cache.get() is given
    clock.now = START + HOUR
    with pytest.raises(errors.CredentialRetrievalError, match="expired"):
        await cache.get()


async def test_the_environment_is_read_again_when_its_credentials_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    def set_environment(name: str, expiry: str) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", name)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake-secret")
        monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", expiry)

    clock = Clock()
    clock.now = 4_070_908_800.0 - HOUR  # an hour before 2099
    set_environment("AKIDONE", "2099-01-01T00:00:00Z")
    events: list[Event] = []
    cache = CredentialsCache(provider_for(), clock=clock, rand=lambda: 1.0, observer=events.append)
    first = await cache.get()
    clock.now += HOUR - 900
    # Nothing newer yet, then half a pair: what is valid stays.
    assert await cache.get() is first
    clock.now += 1
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert await cache.get() is first
    clock.now += 2
    set_environment("AKIDTWO", "2099-01-01T01:00:00Z")
    assert (await cache.get()).access_key == "AKIDTWO"
    assert [type(event) for event in events] == [
        CredentialsRefreshed,
        CredentialsRefreshFailed,
        CredentialsRefreshFailed,
        CredentialsRefreshed,
    ]


async def test_one_key_without_the_other_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    with pytest.raises(errors.PartialCredentialsError):
        await CredentialsCache(provider_for()).get()


# Renewal of real sources


async def renewed_ahead_of_time(cache: CredentialsCache, clock: Clock) -> tuple[Credentials, Credentials]:
    """The first credentials, and those that a renewal in the background brings."""
    first = await cache.get()
    assert first.expires_at is not None
    clock.now = first.expires_at - 300
    assert await cache.get() is first
    await until_fetched()
    second = cache.current()
    assert second is not None
    return first, second


# botocore renews by its own clock, and only within its window: these live for less than 15 minutes.
SHORT = 800.0


@pytest.fixture
def short_lived(services: CredentialServices) -> CredentialServices:
    services.lifetime, services.rotate = SHORT, True
    return services


async def test_the_container_endpoint_is_asked_again(
    short_lived: CredentialServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{short_lived.url}/container")
    clock = Clock()
    clock.now = time.time()
    cache = CredentialsCache(provider_for(), clock=clock)
    first, second = await renewed_ahead_of_time(cache, clock)
    assert (first.access_key[:13], second.access_key[:13]) == ("AKIDCONTAINER", "AKIDCONTAINER")
    assert first.access_key != second.access_key
    await cache.close()


async def test_instance_metadata_is_asked_again(
    short_lived: CredentialServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", short_lived.url)
    clock = Clock()
    clock.now = time.time()
    cache = CredentialsCache(provider_for(), clock=clock)
    first, second = await renewed_ahead_of_time(cache, clock)
    assert first.access_key != second.access_key
    await cache.close()


async def test_a_role_is_assumed_again(
    short_lived: CredentialServices, monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", short_lived.url)
    config_files(
        f"[profile role]\nrole_arn = {ROLE_ARN}\nsource_profile = base\n",
        "[base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = base-secret\n",
    )
    clock = Clock()
    clock.now = time.time()
    cache = CredentialsCache(provider_for(profile_name="role", region_name="eu-west-1"), clock=clock)
    first, second = await renewed_ahead_of_time(cache, clock)
    assert first.access_key != second.access_key
    await cache.close()


async def test_valid_credentials_stay_when_a_real_source_fails(
    short_lived: CredentialServices, monkeypatch: pytest.MonkeyPatch, config_files: ConfigFiles
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", short_lived.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    config_files(
        f"[profile role]\nrole_arn = {ROLE_ARN}\nsource_profile = base\n",
        "[base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = base-secret\n",
    )
    clock = Clock()
    clock.now = time.time()
    events: list[Event] = []
    cache = CredentialsCache(
        provider_for(profile_name="role", region_name="eu-west-1"), clock=clock, observer=events.append
    )
    await cache.get()
    short_lived.failing = True
    first, second = await renewed_ahead_of_time(cache, clock)
    assert first is second
    assert events[1:] == [CredentialsRefreshFailed("assume-role", "CredentialRetrievalError")]
    await cache.close()


@pytest.mark.parametrize("kind", ["boto3", "aiobotocore"])
async def test_a_given_object_renews_itself(
    short_lived: CredentialServices, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{short_lived.url}/container")
    if kind == "boto3":
        given = await asyncio.to_thread(boto3.Session().get_credentials)
    else:
        given = await aiobotocore.session.get_session().get_credentials()
    clock = Clock()
    clock.now = time.time()
    cache = CredentialsCache(provider_for(credentials=given), clock=clock)
    first, second = await renewed_ahead_of_time(cache, clock)
    assert first.access_key != second.access_key
    await cache.close()


async def test_an_object_that_a_function_returns_renews_itself(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys are not taken for good, nor read on the loop, which its renewal would block."""
    services.rotate = True
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.url}/container")
    given = await asyncio.to_thread(boto3.Session().get_credentials)
    threads: list[threading.Thread] = []

    class Watched:
        method = "container-role"
        _expiry_time = given._expiry_time

        def get_frozen_credentials(self) -> ReadOnlyCredentials:
            threads.append(threading.current_thread())
            frozen: ReadOnlyCredentials = given.get_frozen_credentials()
            return frozen

    async def obtain() -> Any:
        return Watched()

    clock = Clock()
    clock.now = time.time()
    cache = CredentialsCache(provider_for(credentials=obtain), clock=clock)
    first = await cache.get()
    assert first.expires_at == given._expiry_time.timestamp()
    assert threads[0] is not threading.current_thread()
    clock.now += HOUR
    assert cache.current() is None
    await cache.close()


async def test_frozen_credentials_of_a_function_are_asked_for_every_minute() -> None:
    """They do not say when they expire."""
    keys = iter("AB")

    async def obtain() -> Any:
        return ReadOnlyCredentials(f"AKID{next(keys)}", "fake-secret", "fake-token")

    clock = Clock()
    cache = CredentialsCache(provider_for(credentials=obtain), clock=clock)
    first = await cache.get()
    clock.now += REASK_INTERVAL - 1
    assert cache.current() is first
    clock.now += 1
    await cache.get()
    await until_fetched()
    assert (await cache.get()).access_key == "AKIDB"


async def test_a_given_object_without_expiry_is_asked_every_minute() -> None:
    given = boto3.Session("AKIDONE", "fake-secret").get_credentials()
    clock = Clock()
    events: list[Event] = []
    cache = CredentialsCache(provider_for(credentials=given), clock=clock, observer=events.append)
    first = await cache.get()
    clock.now += REASK_INTERVAL - 1
    assert cache.current() is first
    clock.now += 1
    assert await cache.get() is first
    await until_fetched()
    assert cache.current() is first, "equal credentials stay the same object"
    assert len(events) == 1
    given.access_key = "AKIDTWO"
    clock.now += REASK_INTERVAL
    assert await cache.get() is first
    await until_fetched()
    second = cache.current()
    assert second is not None
    assert second.access_key == "AKIDTWO"
    await cache.close()


# Closing amid real sources


async def test_a_thread_whose_request_outlives_close_leaves_no_connection(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch, open_descriptors: Callable[[], set[str]]
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.url}/container")
    services.gate.clear()
    before = len(open_descriptors())
    cache = CredentialsCache(provider_for())
    caller = asyncio.create_task(cache.get())
    assert await asyncio.to_thread(services.arrived.wait, 10)
    await cache.close()
    with pytest.raises(errors.ClientStateError):
        await caller
    services.gate.set()
    gc.collect()
    while len(open_descriptors()) > before:
        await asyncio.sleep(0.01)  # the server's end of the connection


async def test_close_during_a_credential_process_leaves_no_process(tmp_path: Path, config_files: ConfigFiles) -> None:
    fifo = tmp_path / "fifo"
    program = tmp_path / "process.py"
    program.write_text(f"import os, time\nopen({str(fifo)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n")
    config_files(f"[default]\ncredential_process = {sys.executable} {program}\n")
    os.mkfifo(fifo)
    cache = CredentialsCache(provider_for())
    caller = asyncio.create_task(cache.get())
    pid = int(await asyncio.to_thread(fifo.read_text))
    os.kill(pid, 0)
    await cache.close()
    with pytest.raises(errors.ClientStateError):
        await caller
    with pytest.raises(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            await asyncio.sleep(0.001)  # until its thread has reaped it


async def test_the_event_loop_runs_on_while_the_chain_is_resolved(
    services: CredentialServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.url}/container")
    loop_thread = threading.get_ident()
    on_loop: list[str] = []

    def profile(frame: Any, event: str, argument: object) -> None:
        name = frame.f_globals.get("__name__", "")
        if event == "call" and threading.get_ident() == loop_thread and name.split(".")[0] == "botocore":
            on_loop.append(f"{name}.{frame.f_code.co_name}")

    events: list[Event] = []
    cache = CredentialsCache(provider_for(), observer=events.append)
    sys.setprofile(profile)
    try:
        await cache.get()
    finally:
        sys.setprofile(None)
    assert on_loop == []
    assert [event.source for event in events if isinstance(event, CredentialsRefreshed)] == ["container-role"]
    await cache.close()


def test_known_credentials_cost_a_look_at_the_clock_and_nothing_else() -> None:
    cache = CredentialsCache(provider_for(access_key="AKIDEXAMPLE", secret_key="fake-secret"))
    asyncio.run(cache.get())
    called: list[str] = []

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            called.append(frame.f_code.co_name if event == "call" else argument.__name__)

    sys.setprofile(profile)
    try:
        cache.current()
    finally:
        sys.setprofile(None)
    assert called == ["current", "time", "setprofile"]
