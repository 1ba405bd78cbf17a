"""The capacity of an endpoint by script: how many calls it carries out at once, how long they take, what it refuses.

``Capacity`` is what a user writes, ``Workers`` its live form. A call gets a worker, waits for one in the queue, or is
refused with the service's ThrottlingException, as from an endpoint whose instances are busy. Its worker holds it for a
time drawn from a distribution, and then for as long as the model takes.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from aiosmrt.errors import ConfigurationError
from aiosmrt.local.error_responses import ErrorReply, throttled

__all__ = ["TIMES", "Capacity", "Times", "Workers", "service_seconds"]

Times: TypeAlias = Literal["lognormal", "exponential", "bimodal", "pareto", "floor"]
TIMES: Final[tuple[str, ...]] = get_args(Times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What an endpoint can carry out.

    Args:
        workers: calls that are carried out at once; or steps of (seconds since the endpoint's first call, workers),
            the first at 0. With 0 workers nothing is carried out.
        queue: calls that wait for a worker; further ones are refused. If None, all wait and none is refused.
        seconds: the mean time of a call alone on its worker, not counting the model's own. Defaults to 0.
        sigma: the standard deviation of the logarithm of that time, for ``lognormal``. Defaults to 0: always the mean.
        times: the distribution: ``lognormal``; ``exponential``; ``bimodal`` (one in five takes 3.4 times the mean, the
            others 0.4 times); ``pareto`` (shape 2.5); ``floor`` (half constant, half exponential). Defaults to
            ``lognormal``.
        batch: the calls in service that double each one's time, as in a server that batches. If None, calls do not
            slow each other down.
        quota: calls per second; those above it are refused. If None, no limit.
        burst: calls that the quota allows at once. Defaults to 1.
        refused: the share of calls that are refused whatever their number, from 0 to 1. Defaults to 0.

    Raises:
        ConfigurationError: a number is out of range, or the steps do not begin at 0 and increase.

    >>> scaling = Capacity(workers=[(0, 8), (15, 32)], queue=8, seconds=0.1, sigma=0.3)
    >>> scaling.workers_at(14.9), scaling.workers_at(15)
    (8, 32)
    """

    workers: int | Sequence[tuple[float, int]]
    queue: int | None = None
    seconds: float = 0.0
    sigma: float = 0.0
    times: Times = "lognormal"
    batch: float | None = None
    quota: float | None = None
    burst: float = 1.0
    refused: float = 0.0

    def __post_init__(self) -> None:
        steps = self.steps
        moments = [second for second, _ in steps]
        if not steps or moments[0] != 0 or any(later <= earlier for earlier, later in itertools.pairwise(moments)):
            raise ConfigurationError("the steps of workers must begin at second 0 and increase")
        if any(workers < 0 for _, workers in steps):
            raise ConfigurationError(f"workers must be an integer >= 0; got {min(workers for _, workers in steps)}")
        if self.queue is not None and self.queue < 0:
            raise ConfigurationError(f"queue must be an integer >= 0; got {self.queue}")
        for name in ("seconds", "sigma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name} must be a number >= 0; got {getattr(self, name)}")
        for name in ("batch", "quota"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ConfigurationError(f"{name} must be a number > 0; got {value}")
        if not self.burst >= 1:
            raise ConfigurationError(f"burst must be a number >= 1; got {self.burst}")
        if not 0 <= self.refused <= 1:
            raise ConfigurationError(f"refused must be a number from 0 to 1; got {self.refused}")
        if self.times not in TIMES:
            raise ConfigurationError(f"times must be one of {', '.join(TIMES)}; got {self.times!r}")

    @property
    def steps(self) -> Sequence[tuple[float, int]]:
        """The workers as steps of (second, workers)."""
        return [(0.0, self.workers)] if isinstance(self.workers, int) else self.workers

    def workers_at(self, second: float) -> int:
        """Return the workers at a time.

        Args:
            second: seconds since the endpoint's first call.
        """
        return [workers for begin, workers in self.steps if begin <= second][-1]

    def next_step(self, second: float) -> float | None:
        """Return the second of the first step after a time; None after the last.

        Args:
            second: seconds since the endpoint's first call.
        """
        return next((begin for begin, _ in self.steps if begin > second), None)


def service_seconds(times: str, mean: float, sigma: float, rand: random.Random) -> float:
    """Draw the seconds of one call.

    Args:
        times: the distribution, one of ``TIMES``; all have the same mean.
        mean: the mean in seconds.
        sigma: the standard deviation of the logarithm, for ``lognormal``.
        rand: the source of random numbers.
    """
    if times == "exponential":
        return mean * rand.expovariate(1.0)
    if times == "bimodal":
        return mean * (0.4 if rand.random() < 0.8 else 3.4) * rand.lognormvariate(-0.005, 0.1)
    if times == "pareto":
        return mean * rand.paretovariate(2.5) * 0.6
    if times == "floor":
        return mean * (0.5 + rand.expovariate(2.0))
    return mean * rand.lognormvariate(-(sigma**2) / 2, sigma) if sigma else mean


class Workers:
    """The workers of one endpoint and the calls that wait for them.

    Args:
        capacity: the script.
        chance: the source of random numbers.
        changed: called when the number of calls that wait has changed. Defaults to no effect.
        clock: returns the time in seconds. Defaults to the running event loop's.
    """

    def __init__(
        self,
        capacity: Capacity,
        chance: random.Random,
        *,
        changed: Callable[[], object] = lambda: None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._capacity = capacity
        self._chance = chance
        self._changed = changed
        self._clock = clock
        self._began: float | None = None
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._tokens, self._filled_at = capacity.burst, 0.0

    @property
    def busy(self) -> int:
        """Calls that have a worker."""
        return self._busy

    @property
    def queued(self) -> int:
        """Calls that wait for one."""
        return len(self._waiting)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Hold a worker, from when there is one; the block begins when the call's time has passed.

        Raises:
            ErrorReply: on entering: the call is refused.
        """
        capacity, second = self._capacity, self._second()
        if self._is_refused(second):
            raise ErrorReply(throttled())
        if self._busy < capacity.workers_at(second) and not self._waiting:
            self._busy += 1
        elif capacity.queue is None or len(self._waiting) < capacity.queue:
            await self._wait()
        else:
            raise ErrorReply(throttled())
        try:
            seconds = service_seconds(capacity.times, capacity.seconds, capacity.sigma, self._chance)
            if capacity.batch is not None:
                seconds *= 1 + self._busy / capacity.batch
            if seconds:
                await asyncio.sleep(seconds)
            yield
        finally:
            self._busy -= 1
            self._go_on()

    async def _wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._watch()
        self._changed()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # It had a worker already.
                self._busy -= 1
            elif turn in self._waiting:
                self._waiting.remove(turn)
            self._go_on()
            self._watch()
            raise
        finally:
            self._changed()

    def _go_on(self) -> None:
        """Give free workers to the calls that wait longest."""
        if self._waiting:
            workers = self._capacity.workers_at(self._second())
            while self._waiting and self._busy < workers:
                turn = self._waiting.popleft()
                # Its caller may just have left.
                if not turn.done():
                    self._busy += 1
                    turn.set_result(None)
            self._watch()

    def _watch(self) -> None:
        """While calls wait, look again at the next step."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        second = self._second()
        if self._waiting and (step := self._capacity.next_step(second)) is not None:
            self._timer = asyncio.get_running_loop().call_later(step - second, self._go_on)

    def _second(self) -> float:
        now = self._clock() if self._clock is not None else asyncio.get_running_loop().time()
        if self._began is None:
            self._began = now
        return now - self._began

    def _is_refused(self, second: float) -> bool:
        capacity = self._capacity
        if capacity.refused and self._chance.random() < capacity.refused:
            return True
        if capacity.quota is None:
            return False
        self._tokens = min(capacity.burst, self._tokens + (second - self._filled_at) * capacity.quota)
        self._filled_at = second
        if self._tokens < 1:
            return True
        self._tokens -= 1
        return False
