"""How fast requests may be sent: the client-side rate limiter of AWS's retry mode "adaptive".

Theory of operation
-------------------
The limiter is off until the service throttles for the first time. From then on every request, retries included, takes
a token from a bucket that fills at the *send rate*. Three pieces of arithmetic decide that rate:

- *Measured rate*: responses are counted in bins of half a second. The first response in a later bin closes the count,
  and the exponential moving average ``0.8 * new + 0.2 * old`` is the measured rate.
- *CUBIC* (as in RFC 9438, with times in seconds and requests per second in place of a window): a throttled response at
  rate w cuts the rate to ``0.7 * w``. Every other response, t seconds after that cut, sets it to
  ``0.4 * (t - k)**3 + w``, where ``k = cbrt(0.3 * w / 0.4)``: fast back towards w, flat around it, then fast beyond.
  The w of a cut is the measured rate, or the send rate if that is lower.
- *Token bucket*: the send rate is at least 0.5 and otherwise at most twice the measured rate, so that an idle client
  does not earn a burst. The bucket holds one second's tokens, at least 1.

One `SendRate` belongs to one client. It paces requests; whether to retry is decided as in the mode "standard".

Source: botocore.retries (modules adaptive, throttling and bucket). The numbers are the same to the last bit, which
tests/policy/test_send_rate.py checks; that includes the first bin, which begins at a whole second, and the bucket,
which fills while the limiter is still off. One thing differs: waits of less than a microsecond are rounded up to one.

Times are float seconds of one clock that does not run backwards. Rates are requests per second.
"""

from __future__ import annotations

from math import floor
from typing import Final

MIN_WAIT: Final = 1e-6
"""Shortest wait in seconds. Sleeping for less may not move a float clock, and the caller would ask forever."""

_BINS_PER_SECOND: Final = 2.0
_SMOOTHING: Final = 0.8
_BETA: Final = 0.7
_CUBIC_SCALE: Final = 0.4
_MAX_RATE_FACTOR: Final = 2.0
_MIN_RATE: Final = 0.5


class SendRate:
    """A client's send rate, learned from throttled responses.

    Args:
        now: time in seconds at which the client is created.

    >>> send_rate = SendRate(0.0)
    >>> send_rate.wait(0.0)  # nothing has been throttled yet
    0.0
    >>> send_rate.on_response(1.0, throttled=False)
    >>> send_rate.on_response(2.0, throttled=True)
    >>> round(send_rate.rate, 3)
    0.672
    >>> send_rate.wait(2.0), round(send_rate.wait(2.0), 3)
    (0.0, 1.488)
    >>> send_rate.wait(3.5)
    0.0
    """

    __slots__ = (
        "_bin_count",
        "_bin_start",
        "_cut_at",
        "_enabled",
        "_filled_at",
        "_k",
        "_max_tokens",
        "_measured",
        "_rate",
        "_tokens",
        "_w_max",
    )

    def __init__(self, now: float) -> None:
        self._enabled = False
        # Measured rate. The first bin begins at a whole second, and all others at half seconds.
        self._measured = 0.0
        self._bin_start = float(floor(now))
        self._bin_count = 0
        # CUBIC, as if a rate of 0 had just been cut.
        self._w_max = 0.0
        self._k = 0.0
        self._cut_at = now
        # Token bucket.
        self._rate = 1.0
        self._max_tokens = 1.0
        self._tokens = 0.0
        self._filled_at = now

    @property
    def rate(self) -> float | None:
        """Requests per second that may be sent now, at least 0.5; None until the first throttled response."""
        return self._rate if self._enabled else None

    def wait(self, now: float) -> float:
        """Take a token for one request, or return how long to sleep before asking again.

        Args:
            now: current time in seconds.

        Returns:
            0.0 if the request may be sent now; a token was taken unless the limiter is still off. Otherwise the seconds
            until a token is there if no other caller takes it first; nothing was taken.

        >>> SendRate(0.0).wait(0.0)
        0.0
        """
        if not self._enabled:
            return 0.0
        self._fill(now)
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return max((1.0 - self._tokens) / self._rate, MIN_WAIT)

    def on_response(self, now: float, *, throttled: bool) -> None:
        """Update the rate after an attempt; call it for every response and every attempt that failed without one.

        Args:
            now: current time in seconds.
            throttled: whether the service throttled the request; the first such response turns the limiter on.

        >>> send_rate = SendRate(0.0)
        >>> send_rate.on_response(0.0, throttled=True)
        >>> send_rate
        <SendRate rate=0.5 tokens=0.0>
        """
        measured = self._measure(now)
        if throttled:
            self._w_max = min(measured, self._rate) if self._enabled else measured
            self._k = (self._w_max * (1 - _BETA) / _CUBIC_SCALE) ** (1 / 3)
            self._cut_at = now
            self._enabled = True
            wanted = self._w_max * _BETA
        else:
            wanted = _CUBIC_SCALE * (now - self._cut_at - self._k) ** 3 + self._w_max
        # The time up to now still counts at the old rate.
        self._fill(now)
        wanted = min(wanted, _MAX_RATE_FACTOR * measured)
        self._rate = max(wanted, _MIN_RATE)
        self._max_tokens = max(wanted, 1.0)
        self._tokens = min(self._tokens, self._max_tokens)

    def _measure(self, now: float) -> float:
        start = floor(now * _BINS_PER_SECOND) / _BINS_PER_SECOND
        self._bin_count += 1
        if start > self._bin_start:
            rate = self._bin_count / (start - self._bin_start)
            self._measured = rate * _SMOOTHING + self._measured * (1 - _SMOOTHING)
            self._bin_count = 0
            self._bin_start = start
        return self._measured

    def _fill(self, now: float) -> None:
        self._tokens = min(self._max_tokens, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now

    def __repr__(self) -> str:
        return f"<SendRate rate={self.rate} tokens={self._tokens}>"
