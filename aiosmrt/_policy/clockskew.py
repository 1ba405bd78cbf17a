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

A signature may also be too old because it was long on the way. It is made again, with the same offset.

Times are float seconds since 1970 on the *uncorrected* local wall clock.
"""

from __future__ import annotations

from typing import Final

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

_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), start=1
    )
}
_DAYS_IN_MONTH: Final = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
# 1970-01-01 was a Thursday.
_WEEKDAYS: Final = ("Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed")


def parse_http_date(value: str) -> float | None:
    """Read a ``Date`` header in the only form that senders may generate, IMF-fixdate (RFC 9110, section 5.6.7).

    Args:
        value: the header's value, 29 characters.

    Returns:
        Seconds since 1970, or None if the form is another or the time is not between `EARLIEST` and `LATEST`.

    >>> parse_http_date("Fri, 06 Nov 2026 08:49:37 GMT")
    1793954977.0
    >>> parse_http_date("Friday, 06-Nov-26 08:49:37 GMT") is None
    True
    >>> parse_http_date("Sat, 01 Jan 0000 00:00:00 GMT") is None
    True
    """
    if (
        len(value) != 29
        or value[3:5] != ", "
        or value[7] != " "
        or value[11] != " "
        or value[16] != " "
        or value[19] != ":"
        or value[22] != ":"
        or value[25:] != " GMT"
    ):
        return None
    digits = value[5:7] + value[12:16] + value[17:19] + value[20:22] + value[23:25]
    month = _MONTHS.get(value[8:11])
    if month is None or not (digits.isascii() and digits.isdigit()):
        return None
    number = int(digits)
    number, second = divmod(number, 100)
    number, minute = divmod(number, 100)
    number, hour = divmod(number, 100)
    day, year = divmod(number, 10_000)
    # 60 is a leap second, which counts as the first of the next minute.
    if hour > 23 or minute > 59 or second > 60 or not 1 <= day <= _DAYS_IN_MONTH[month]:
        return None
    if month == 2 and day == 29 and (year % 4 or (year % 100 == 0 and year % 400)):
        return None
    days = _days_since_1970(year, month, day)
    if value[:3] != _WEEKDAYS[days % 7]:
        return None
    seconds = float(days * 86_400 + hour * 3600 + minute * 60 + second)
    return seconds if EARLIEST <= seconds < LATEST else None


def _days_since_1970(year: int, month: int, day: int) -> int:
    # The year counts from March, so that the leap day is the last and one formula covers the lengths of the months.
    if month <= 2:
        year -= 1
        month += 12
    return year * 365 + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + day - 719_469


def estimate_offset(sent_at: float, received_at: float, date: str) -> float | None:
    """Estimate by how much the service's clock is ahead of the local one.

    Args:
        sent_at: when the request was sent, in seconds since 1970 by the local clock.
        received_at: when the response's head arrived, by the same clock.
        date: the response's ``Date`` header.

    Returns:
        Seconds to add to the local clock (negative if it runs ahead), or None if the header is not a plausible date.

    >>> estimate_offset(1793954200.0, 1793954202.0, "Fri, 06 Nov 2026 08:49:37 GMT")
    776.0
    """
    server = parse_http_date(date)
    if server is None:
        return None
    # No refusal takes that long: the local clock was set, or stood still, in between. The later reading is right.
    is_one_clock = 0 <= received_at - sent_at <= MAX_SKEW
    return server - ((sent_at + received_at) / 2 if is_one_clock else received_at)


def correct_offset(
    code: str,
    signed_offset: float,
    sent_at: float,
    received_at: float,
    date: str | None,
    *,
    confirmed_offset: float = 0.0,
) -> float | None:
    """Decide whether the clock is the reason of a refused signature, and which offset to sign with from now on.

    Args:
        code: the error's code.
        signed_offset: seconds that were added to the local clock when the refused request was signed.
        sent_at: when the request was sent, in seconds since 1970 by the uncorrected local clock.
        received_at: when the response's head arrived, by the same clock.
        date: the response's ``Date`` header, if any.
        confirmed_offset: the last offset with which a call succeeded. Defaults to 0, the local clock as it is.

    Returns:
        The new offset in seconds if the signature's time was more than four minutes (`MAX_SKEW`) off. The confirmed
        offset if it was not, but was made with another one. None if the refusal has another or an unknown reason.

    >>> date = "Fri, 06 Nov 2026 08:49:37 GMT"
    >>> correct_offset("InvalidSignatureException", 0.0, 1793954200.0, 1793954202.0, date)
    776.0
    >>> correct_offset("InvalidSignatureException", 776.0, 1793954200.0, 1793954202.0, date)
    0.0
    >>> correct_offset(
    ...     "InvalidSignatureException", 776.0, 1793954200.0, 1793954202.0, date, confirmed_offset=776.0
    ... ) is None
    True
    """
    if date is None or code not in SIGNATURE_ERROR_CODES:
        return None
    offset = estimate_offset(sent_at, received_at, date)
    if offset is None:
        return None
    if abs(offset - signed_offset) > MAX_SKEW:
        return offset
    return confirmed_offset if abs(confirmed_offset - signed_offset) > MAX_SKEW else None


def expired_on_the_way(code: str, sent_at: float, received_at: float) -> float | None:
    """Decide whether a refused signature was right, but too old when it reached the service.

    Making the connection may have taken long, or the machine was suspended while it was made.

    Args:
        code: the error's code.
        sent_at: when the request was signed, in seconds since 1970 by the local clock.
        received_at: when the response's head arrived, by the same clock.

    Returns:
        Its age in seconds if that was more than four minutes (`MAX_SKEW`); otherwise None.

    Example:
        >>> expired_on_the_way("InvalidSignatureException", 1793954200.0, 1793954800.0)
        600.0
        >>> expired_on_the_way("InvalidSignatureException", 1793954200.0, 1793954202.0) is None
        True
    """
    age = received_at - sent_at
    return age if age > MAX_SKEW and code in SIGNATURE_ERROR_CODES else None
