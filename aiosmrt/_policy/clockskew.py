"""Signatures refused because the local clock is wrong: how far off it is, and whether to sign again.

A SigV4 signature is valid for five minutes around the service's clock.  A host whose clock is further off gets
nothing but 403, and the message does not always say why.  The response's ``Date`` header does: the service wrote it
somewhere between the moment the request was sent and the moment the response arrived, so

    offset = Date - (sent + received) / 2

is the service's clock minus ours, good to half the round trip plus the header's resolution of one second.

What decides is not the offset itself but its difference from the offset that the refused signature was made with.
Of a hundred calls that were in flight when the first refusal arrived, each may sign again; and a call that was signed
with the right time and is refused all the same has another fault, so it is not tried again.  The threshold of four
minutes and the codes are those of the AWS SDKs (aws-sdk-js-v3, ``service-error-classification``).

Times are float seconds since 1970 on the *uncorrected* local wall clock.
"""

from __future__ import annotations

from typing import Final

MAX_SKEW: Final = 240.0
"""Seconds by which a signature's time may be off before the clock is taken for the reason of its refusal."""

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
"""Error codes behind which a wrong clock may stand."""

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
    """Read a ``Date`` header in the one form that senders may generate, IMF-fixdate (RFC 9110, section 5.6.7).

    Args:
        value: the header's value, 29 characters.

    Returns:
        Seconds since 1970, or None for anything else: a clock is not set by a date that has to be guessed.

    Example:
        >>> parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT")
        784111777.0
        >>> parse_http_date("Sunday, 06-Nov-94 08:49:37 GMT") is None
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
    # 60 is a leap second, which the header may carry and which counts as the next minute's first.
    if hour > 23 or minute > 59 or second > 60 or not 1 <= day <= _DAYS_IN_MONTH[month]:
        return None
    if month == 2 and day == 29 and (year % 4 or (year % 100 == 0 and year % 400)):
        return None
    days = _days_since_1970(year, month, day)
    if value[:3] != _WEEKDAYS[days % 7]:
        return None
    return float(days * 86_400 + hour * 3600 + minute * 60 + second)


def _days_since_1970(year: int, month: int, day: int) -> int:
    # The year is taken to begin in March, so that the leap day is its last one and month lengths follow one formula.
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
        Seconds to add to the local clock (negative when it runs ahead), or None when the header is not a date.

    Example:
        >>> estimate_offset(784111000.0, 784111002.0, "Sun, 06 Nov 1994 08:49:37 GMT")
        776.0
    """
    server = parse_http_date(date)
    return None if server is None else server - (sent_at + received_at) / 2


def correct_offset(
    code: str, signed_offset: float, sent_at: float, received_at: float, date: str | None
) -> float | None:
    """Decide whether a refused signature was the clock's fault, and give the offset to sign with from now on.

    Args:
        code: the error's code.
        signed_offset: seconds that were added to the local clock when the refused request was signed.
        sent_at: when the request was sent, in seconds since 1970 by the uncorrected local clock.
        received_at: when the response's head arrived, by the same clock.
        date: the response's ``Date`` header; None when it had none.

    Returns:
        The new offset in seconds when the signature's time was more than four minutes (`MAX_SKEW`) off;
        None when the refusal has another reason or cannot be told.

    Example:
        >>> date = "Sun, 06 Nov 1994 08:49:37 GMT"
        >>> correct_offset("InvalidSignatureException", 0.0, 784111000.0, 784111002.0, date)
        776.0
        >>> correct_offset("InvalidSignatureException", 776.0, 784111000.0, 784111002.0, date) is None
        True
    """
    if date is None or code not in SIGNATURE_ERROR_CODES:
        return None
    offset = estimate_offset(sent_at, received_at, date)
    if offset is None or abs(offset - signed_offset) <= MAX_SKEW:
        return None
    return offset
