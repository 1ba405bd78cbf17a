"""The clock's offset from a response's Date header, and when it is the reason of a refused signature."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiosmrt._policy.clockskew import (
    EARLIEST,
    LATEST,
    MAX_SKEW,
    SIGNATURE_ERROR_CODES,
    correct_offset,
    estimate_offset,
    parse_http_date,
)

DATE = "Fri, 06 Nov 2026 08:49:37 GMT"
THEN = 1793954977.0


def http_date(timestamp: float) -> str:
    return format_datetime(datetime.fromtimestamp(int(timestamp), UTC), usegmt=True)


@given(st.datetimes(min_value=datetime(2017, 5, 13), max_value=datetime(2099, 12, 31, 23, 59, 59)))
@example(datetime(2096, 2, 29))
@example(datetime(2024, 2, 29, 23, 59, 59))
def test_every_date_is_read_as_the_standard_library_reads_it(moment: datetime) -> None:
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    header = format_datetime(moment, usegmt=True)
    assert parse_http_date(header) == moment.timestamp() == parsedate_to_datetime(header).timestamp()


@given(st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31, 23, 59, 59)))
@example(datetime(1, 1, 1))
@example(datetime(1970, 1, 1))
@example(datetime(2017, 5, 12, 23, 59, 59))
@example(datetime(2100, 1, 1))
@example(datetime(9999, 12, 31, 23, 59, 59))
def test_a_date_that_no_service_can_have_is_ignored(moment: datetime) -> None:
    timestamp = moment.replace(tzinfo=UTC).timestamp()
    date = format_datetime(moment.replace(tzinfo=UTC), usegmt=True)
    parsed = parse_http_date(date)
    assert (parsed is None) == (not EARLIEST <= timestamp < LATEST)
    if parsed is None:
        assert correct_offset("RequestExpired", 0.0, THEN, THEN, date) is None


@pytest.mark.parametrize("year", ["0000", "0004", "9999"])
def test_the_ends_of_the_form_are_ignored(year: str) -> None:
    for weekday in ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"):
        assert parse_http_date(f"{weekday}, 01 Jan {year} 00:00:00 GMT") is None


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Fri, 06-Nov-26 08:49:37 GMT",
        "Friday, 06-Nov-2026 08:49:37 GMT",
        "Saturday, 06-Nov-26 08:49:37 GMT",
        "Friday, 06-Nov-00 08:49:37 GMT",
        "Fri, 06 Nov 26 08:49:37 GMT",
        "Fri Nov 6 08:49:37 2026",
        "Fri Nov  6 08:49:37 2026 GMT",
        "Mon Nov  6 08:49:37 2026",
        "Fr, 06 Nov 2026 08:49:37 GMT",
        "Fr., 06. Nov. 2026 08:49:37 GMT",
        "ven., 06 nov. 2026 08:49:37 GMT",
        "Fri, 06 Nov 2026 08:49:37 -0800",
        "Fri, 06 Nov 2026 08:49:37 PST",
        "Fri, 06 Nov 2026 08:49:37 gmt",
        "Fri, 06 Nov -026 08:49:37 GMT",
        "Fri, 06 Nov 2026 08:49 GMT",
        "2026-11-06T08:49:37Z",
        "1793954977",
        f"{DATE}, {DATE}",
        f"{DATE}\n",
        "Fri, 6 Nov 2026 08:49:37 GMT",
        "Fri, 06 Nov 2026 08:49:37 UTC",
        "Fri, 06 Nov 2026 08:49:37 +0000",
        "Mon, 06 Nov 2026 08:49:37 GMT",
        "Fri, 06 nov 2026 08:49:37 GMT",
        "Fri, 06 Nov 2026 24:49:37 GMT",
        "Fri, 06 Nov 2026 08:60:37 GMT",
        "Fri, 06 Nov 2026 08:49:61 GMT",
        "Sat, 00 Nov 2026 08:49:37 GMT",
        "Tue, 31 Nov 2026 08:49:37 GMT",
        "Mon, 29 Feb 2027 08:49:37 GMT",
        "Wed, 29 Feb 2034 08:49:37 GMT",
        "Fri, +6 Nov 2026 08:49:37 GMT",
        "Fri, 06 Nov 2_26 08:49:37 GMT",
        "Fri, 06 Nov 202\u0666 08:49:37 GMT",
        DATE + " ",
        " " + DATE[:-1],
    ],
)
def test_anything_else_is_ignored(header: str) -> None:
    assert parse_http_date(header) is None


def test_a_leap_second_counts_as_the_next_minutes_first() -> None:
    second = parse_http_date("Fri, 31 Dec 2027 23:59:60 GMT")
    assert second is not None
    assert second == parse_http_date("Sat, 01 Jan 2028 00:00:00 GMT")


@given(st.datetimes(min_value=datetime(2017, 5, 13), max_value=datetime(2099, 12, 31, 23, 59, 59)))
@example(datetime(2096, 2, 29))
@example(datetime(2028, 1, 1))
def test_the_obsolete_forms_are_read_too(moment: datetime) -> None:
    """RFC 9110, 5.6.7: "a recipient … MUST accept all three"."""
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    weekday = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")[moment.weekday()]
    month = format_datetime(moment)[8:11]
    clock = f"{moment:%H:%M:%S}"
    rfc850 = f"{weekday}, {moment.day:02}-{month}-{moment.year % 100:02} {clock} GMT"
    asctime = f"{weekday[:3]} {month} {moment.day:2} {clock} {moment.year}"
    assert parse_http_date(rfc850) == parse_http_date(asctime) == moment.timestamp()


@given(st.text(max_size=40) | st.text(alphabet="SunNovGMT0123456789:, ", min_size=29, max_size=29))
def test_parsing_never_raises(header: str) -> None:
    parsed = parse_http_date(header)
    if parsed is not None:
        assert http_date(parsed) == header


@given(
    now=st.floats(1.5e9, 3e9),
    clock_error=st.floats(-1e6, 1e6),
    there=st.floats(0, 30),
    back=st.floats(0, 30),
)
def test_the_offset_is_good_to_half_the_round_trip_and_a_second(
    now: float, clock_error: float, there: float, back: float
) -> None:
    """``clock_error`` is how far the local clock runs ahead; the service reads its own between the two ways."""
    sent, received = now + clock_error, now + there + back + clock_error
    offset = estimate_offset(sent, received, http_date(now + there))
    assert offset is not None
    assert abs(offset + clock_error) <= (there + back) / 2 + 1.001


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 86400.0, MAX_SKEW + 1, -1.0])
@pytest.mark.parametrize("read", ["before", "after"])
def test_nothing_is_estimated_across_a_suspend_or_a_change_of_the_clock(jump: float, read: str) -> None:
    """The service may have written its date before that, or after it."""
    assert estimate_offset(THEN, THEN + jump, http_date(THEN if read == "before" else THEN + jump)) is None


def test_no_offset_without_a_date() -> None:
    assert estimate_offset(THEN, THEN, "yesterday") is None
    assert correct_offset("RequestExpired", 0.0, THEN, THEN, None) is None
    assert correct_offset("RequestExpired", 0.0, THEN - 1000, THEN - 1000, "yesterday") is None


@pytest.mark.parametrize("code", sorted(SIGNATURE_ERROR_CODES))
@pytest.mark.parametrize("skew", [MAX_SKEW + 1, -MAX_SKEW - 1, 86_400.0])
def test_a_refused_signature_is_corrected_above_the_threshold(code: str, skew: float) -> None:
    assert correct_offset(code, 0.0, THEN - skew, THEN - skew, DATE) == (skew, skew)


@pytest.mark.parametrize("clock", [0.0, 86_400.0, THEN * 2, 253_402_300_800.0])
def test_a_plausible_date_corrects_a_clock_that_is_off_by_decades(clock: float) -> None:
    assert correct_offset("RequestExpired", 0.0, clock, clock, DATE) == (THEN - clock, THEN - clock)


def test_it_is_not_corrected_at_the_threshold_or_for_another_error() -> None:
    assert correct_offset("RequestExpired", 0.0, THEN - MAX_SKEW, THEN - MAX_SKEW, DATE) is None
    assert correct_offset("AccessDeniedException", 0.0, THEN - 5000, THEN - 5000, DATE) is None
    assert correct_offset("AccessDeniedException", 0.0, THEN - 5000, THEN, DATE) is None


def test_what_counts_is_the_offset_that_the_refused_request_was_signed_with() -> None:
    """A call signed before a correction signs again; one signed after it and refused has another fault."""
    local = THEN - 900
    assert correct_offset("InvalidSignatureException", 0.0, local, local, DATE) == (900, 900)
    assert correct_offset("InvalidSignatureException", 899.0, local, local, DATE, confirmed_offset=900.0) is None
    # A clock that has been set right since makes the old correction the fault.
    assert correct_offset("InvalidSignatureException", 900.0, THEN, THEN, DATE, confirmed_offset=900.0) == (0, -900)


@pytest.mark.parametrize("confirmed", [0.0, -3600.0, 500.0])
@pytest.mark.parametrize("date", [DATE, "yesterday", None])
def test_a_correction_without_a_success_is_dropped_when_it_is_refused(confirmed: float, date: str | None) -> None:
    local = THEN - 900
    dropped = (confirmed, confirmed - 900.0)
    assert correct_offset("RequestExpired", 900.0, local, local, date, confirmed_offset=confirmed) == dropped
    assert correct_offset("AccessDeniedException", 900.0, local, local, date, confirmed_offset=confirmed) is None


@pytest.mark.parametrize("signed_offset", [0.0, 900.0])
@pytest.mark.parametrize(
    ("sent_at", "date", "skew"),
    [
        (THEN - 3600, THEN, 3600.0),  # The machine slept, and the service was asked afterwards.
        (THEN - 3600, None, 3600.0),
        (THEN + 3600, THEN, -3600.0),  # The clock was ahead, and has been set right since.
        (THEN + 3600, None, -3600.0),
        (THEN - 8 * 3600, THEN - 8 * 3600, None),  # It slept while the answer lay in its socket.
        (THEN - 8 * 3600, THEN - 7 * 3600, 3600.0),  # Its clock is wrong besides.
    ],
)
def test_across_a_suspend_or_a_change_of_the_clock_the_signature_alone_is_judged(
    sent_at: float, date: float | None, skew: float | None, signed_offset: float
) -> None:
    """It is made again if its time was off, and the offset stays."""
    header = None if date is None else http_date(date + signed_offset)
    found = correct_offset("RequestExpired", signed_offset, sent_at, THEN, header, confirmed_offset=signed_offset)
    assert found == (None if skew is None else (None, skew))
