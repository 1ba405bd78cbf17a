"""Signatures refused because the local clock is wrong: how far it is off, and whether to sign again.

A SigV4 signature is valid for five minutes around the service's clock. A host whose clock is further off gets nothing
but 403, and the message does not always name the reason. The response's ``Date`` header shows it: the service wrote it
between the time the request was sent and the time the response arrived, so

    offset = Date - (sent + received) / 2

is the service's clock minus the local one, accurate to half the round trip plus the header's resolution of a second.

The decision rests on the difference between that offset and the one the refused signature was made with. If a hundred
calls were in flight when the first refusal arrived, each may sign again. A call that was signed with the right time and
refused has another fault, so it is not repeated. The threshold of four minutes and the codes are those of the AWS SDKs
(aws-sdk-js-v3, ``service-error-classification``).

A ``Date`` may be wrong: a proxy with a wrong clock may have written it. Two rules keep that from making every later
signature wrong. A date outside of `EARLIEST` to `LATEST` is ignored. And a correction with which no call has succeeded
yet is dropped if a signature made with it is refused.

Between sending and receiving, the machine may have been suspended, or its clock set. Then nobody knows by which reading
of the local clock the service wrote its date, and the offset is left alone. Whether the signature was too old, or from
the future, shows all the same: by the date, or without one by how long it was on the way. It is made again.

Times are float seconds since 1970 on the *uncorrected* local wall clock.
"""

from __future__ import annotations

import calendar
import re
from typing import Final, NamedTuple

__all__ = [
    "EARLIEST",
    "LATEST",
    "MAX_SKEW",
    "SIGNATURE_ERROR_CODES",
    "Correction",
    "correct_offset",
    "estimate_offset",
    "parse_http_date",
]

MAX_SKEW: Final = 240.0
"""Seconds by which a signature's time may be off before the clock counts as the reason of its refusal."""

SIGNATURE_ERROR_CODES: Final = frozenset(
    {
        "AuthFailure",
        "InvalidSignatureException",
        "RequestExpired",
        "RequestInTheFuture",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)
"""Error codes whose reason may be a wrong clock."""

EARLIEST: Final = 1_494_633_600.0
"""The first plausible time of the service in seconds since 1970: 2017-05-13, the version of its API."""

LATEST: Final = 4_102_444_800.0
"""The first time in seconds since 1970 that is implausible: 2100-01-01."""

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SHORT_DAY, _LONG_DAY = (f"(?P<weekday>{'|'.join(days)})" for days in ([day[:3] for day in _DAYS], _DAYS))
_MONTH: Final = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME: Final = "(?P<hour>[01][0-9]|2[0-3]):(?P<minute>[0-5][0-9]):(?P<second>[0-5][0-9]|60)"
_DATES: Final = tuple(
    map(
        re.compile,
        (
            f"{_SHORT_DAY}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",  # IMF-fixdate
            f"{_LONG_DAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",  # RFC 850
            f"{_SHORT_DAY} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})",  # asctime
        ),
    )
)


def parse_http_date(value: str) -> float | None:
    """Read a ``Date`` header in one of the three forms that recipients must accept (RFC 9110, section 5.6.7).

    Args:
        value: the header's value.

    Returns:
        Seconds since 1970, or None if the form is another or the time is not between `EARLIEST` and `LATEST`.

    >>> parse_http_date("Fri, 06 Nov 2026 08:49:37 GMT")
    1793954977.0
    >>> parse_http_date("Friday, 06-Nov-26 08:49:37 GMT") == parse_http_date("Fri Nov  6 08:49:37 2026")
    True
    >>> parse_http_date("Sat, 01 Jan 0000 00:00:00 GMT") is None
    True
    """
    found = next((match for form in _DATES if (match := form.fullmatch(value))), None)
    if found is None:
        return None
    year, month, day = int(found["year"]), 1 + _MONTHS.index(found["month"]), int(found["day"])
    if len(found["year"]) == 2:
        year += 2000  # the century of the plausible times
    # Before the year 1 the calendar module fails.
    if not (year >= 1970 and 1 <= day <= calendar.monthrange(year, month)[1]):
        return None
    if _DAYS[calendar.weekday(year, month, day)][:3] != found["weekday"][:3]:
        return None
    # A second of 60 is a leap second, and counts as the first of the next minute.
    seconds = float(calendar.timegm((year, month, day, int(found["hour"]), int(found["minute"]), int(found["second"]))))
    return seconds if EARLIEST <= seconds < LATEST else None


def estimate_offset(sent_at: float, received_at: float, date: str) -> float | None:
    """Estimate by how much the service's clock is ahead of the local one.

    Args:
        sent_at: when the request was sent, in seconds since 1970 by the local clock.
        received_at: when the response's head arrived, by the same clock.
        date: the response's ``Date`` header.

    Returns:
        Seconds to add to the local clock (negative if it runs ahead). None if the header is not a plausible date, or
        the clock was not one and the same from sending to receiving.

    >>> estimate_offset(1793954200.0, 1793954202.0, "Fri, 06 Nov 2026 08:49:37 GMT")
    776.0
    """
    server = parse_http_date(date)
    # No refusal takes longer than that: the machine was suspended, or its clock was set.
    if server is None or not 0 <= received_at - sent_at <= MAX_SKEW:
        return None
    return server - (sent_at + received_at) / 2


class Correction(NamedTuple):
    """What to do about a refused signature.

    Attributes:
        offset: seconds to add to the local clock from now on. If None, as many as before.
        skew: by how many seconds the signature's time was off.
    """

    offset: float | None
    skew: float


def correct_offset(
    code: str,
    signed_offset: float,
    sent_at: float,
    received_at: float,
    date: str | None,
    *,
    confirmed_offset: float = 0.0,
) -> Correction | None:
    """Decide whether the time is the reason of a refused signature, so that another one may be accepted.

    Args:
        code: the error's code.
        signed_offset: seconds that were added to the local clock when the refused request was signed.
        sent_at: when the request was sent, in seconds since 1970 by the uncorrected local clock.
        received_at: when the response's head arrived, by the same clock.
        date: the response's ``Date`` header, if any.
        confirmed_offset: the last offset with which a call succeeded. Defaults to 0, the local clock as it is.

    Returns:
        A correction if the signature's time was more than four minutes (`MAX_SKEW`) off, or if it was made with another
        offset than the confirmed one, which then counts again. None if the refusal has another or an unknown reason.

    >>> date = "Fri, 06 Nov 2026 08:49:37 GMT"
    >>> correct_offset("InvalidSignatureException", 0.0, 1793954200.0, 1793954202.0, date)
    Correction(offset=776.0, skew=776.0)
    >>> correct_offset("InvalidSignatureException", 776.0, 1793954200.0, 1793954202.0, date)
    Correction(offset=0.0, skew=-776.0)
    >>> correct_offset("InvalidSignatureException", 0.0, 1793954200.0, 1793954800.0, None)
    Correction(offset=None, skew=600.0)
    >>> correct_offset(
    ...     "InvalidSignatureException", 776.0, 1793954200.0, 1793954202.0, date, confirmed_offset=776.0
    ... ) is None
    True
    """
    if code not in SIGNATURE_ERROR_CODES:
        return None
    server = None if date is None else parse_http_date(date)
    offset = None if date is None else estimate_offset(sent_at, received_at, date)
    if offset is not None:
        skew = offset - signed_offset
    elif server is not None:
        skew = server - sent_at - signed_offset
    else:
        skew = received_at - sent_at
    if abs(skew) > MAX_SKEW:
        return Correction(offset, skew)
    skew = confirmed_offset - signed_offset
    return Correction(confirmed_offset, skew) if abs(skew) > MAX_SKEW else None
