"""The report pages: one self-contained HTML file each, without scripts, and without anything from the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Final, NamedTuple

from aiosmrt._report.charts import (
    Axis,
    Band,
    Series,
    count_text,
    duration_text,
    figure,
    linear_axis,
    log_axis,
    time_axis,
)
from aiosmrt._report.histogram import RELATIVE_ERROR, Histogram
from aiosmrt._report.timeline import Timeline

__all__ = [
    "PERCENTS",
    "Fact",
    "axis_of",
    "distribution",
    "failures_over_time",
    "in_flight_over_time",
    "is_page",
    "latency_over_time",
    "over_time",
    "page",
    "table",
]

# Where values of a chart differ by more than this, its axis is logarithmic.
_WIDE_RANGE: Final = 40
_BINS: Final = 48
_FEWEST_BINS: Final = 12
_LABEL_GAP: Final = 0.2
_COLOURS: Final = 8
PERCENTS: Final = ((50, 2), (90, 3), (99, 1))
"""Percentiles that are drawn, and their colours."""

# Distinguishable with all common forms of colour blindness (Okabe and Ito), a little darker on white.
_STYLE: Final = """
:root{color-scheme:light dark;--paper:#fff;--card:#fff;--edge:#d9dee5;--ink:#1b2430;--soft:#5a6675;--grid:#e8ebef;
--c1:#c8500a;--c2:#0068a8;--c3:#008a62;--c4:#b0568f;--c5:#8a6d00;--c6:#3a97cf;--c7:#6b5bbf;--c8:#7d8794;--bad:#b3261e;
--band:#f6dfa6}
@media(prefers-color-scheme:dark){:root{--paper:#12161c;--card:#191f27;--edge:#303945;--ink:#e8ecf1;--soft:#a3aebb;
--grid:#28303a;--c1:#f08a4b;--c2:#5cb3ea;--c3:#3cc79a;--c4:#e39bc6;--c5:#e0c04a;--c6:#9ad1f3;--c7:#b3a6f5;--c8:#97a1ad;
--bad:#ff8a80;--band:#4a3f1d}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1180px;margin:0 auto;padding:28px clamp(14px,3vw,32px) 48px}
h1{font-size:24px;line-height:1.25;margin:0;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:15px;margin:0;font-weight:600}
header p,figcaption p,footer{color:var(--soft);margin:4px 0 0}
figcaption p,footer,.legend,table{font-size:13px}
header .bad{color:var(--bad)}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:12px;margin:22px 0}
dl div,figure,section{background:var(--card);border:1px solid var(--edge);border-radius:10px}
dl div{padding:10px 14px}dt{color:var(--soft);font-size:13px}dd{margin:0;font-size:21px;font-weight:600;
overflow-wrap:anywhere}dd.bad{color:var(--bad)}
.charts{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:16px}
figure,section{margin:0;padding:16px;min-width:0}.wide{grid-column:1/-1}
@media(max-width:820px){.charts{grid-template-columns:minmax(0,1fr)}}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;margin:8px 0 0;padding:0;min-height:20px;
color:var(--soft)}
.key{display:inline-block;width:16px;height:0;border-top:3px solid;margin-right:6px;vertical-align:middle;
border-color:currentColor}
.key.bar{height:11px;width:11px;border:0;border-radius:3px;background:currentColor}.key.dashed{border-top-style:dashed;
height:0;width:16px;border-top-width:2px;background:none;border-radius:0}
.key.band{height:11px;width:11px;border:0;border-radius:3px;background:var(--band)}
.plot{display:grid;grid-template-columns:auto 1fr;grid-template-rows:200px 22px;margin-top:14px}
.y{position:relative;width:56px;color:var(--soft);font-size:12px;line-height:1}
.y span{position:absolute;right:8px;transform:translateY(50%);white-space:nowrap}
.area{position:relative;min-width:0}.area svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.x{grid-column:2;position:relative;color:var(--soft);font-size:12px;line-height:1}
.x span{position:absolute;top:8px;transform:translateX(-50%);white-space:nowrap}
.marks span{position:absolute;top:-2px;font-size:12px;line-height:1;white-space:nowrap;color:var(--ink);
padding:2px 4px;background:var(--card);border-radius:3px;pointer-events:none}
.marks .right{margin-left:3px}.marks .left{transform:translateX(-100%);margin-left:-3px}
.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}
.c6{color:var(--c6)}.c7{color:var(--c7)}.c8{color:var(--c8)}
svg path{fill:none;vector-effect:non-scaling-stroke;stroke-linecap:round;stroke-linejoin:round}
svg .grid{stroke:var(--grid);stroke-width:1}svg .line{stroke:currentColor;stroke-width:2}
svg .dashed{stroke-dasharray:5 4;stroke-linecap:butt}svg .mark{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3}
svg .fill{fill:currentColor;opacity:.16}svg .bar{fill:currentColor}svg .band{fill:var(--band)}
svg .hover{fill:transparent}svg .hover:hover{fill:var(--ink);opacity:.07}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;margin-top:8px}
th,td{text-align:right;padding:5px 8px;border-bottom:1px solid var(--grid);white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{color:var(--soft);font-weight:500}
td:first-child{overflow-wrap:anywhere}tr.best td{font-weight:600}tr:last-child td{border-bottom:0}
footer{margin-top:24px}
"""


# By which a page is known again.
_GENERATOR: Final = '<meta name=generator content="aiosmrt">'


def is_page(start: bytes) -> bool:
    """Whether a file is a report page, by its first bytes.

    Args:
        start: at least 200 of them, or all.

    >>> is_page(page("Batch job", "", None, [], [], "").encode()), is_page(b"<!doctype html>")
    (True, False)
    """
    return _GENERATOR.encode() in start


class Fact(NamedTuple):
    """A figure at the top of a page; ``is_bad`` shows it in red."""

    name: str
    value: str
    is_bad: bool = False


def page(
    title: str, subtitle: str, problem: str | None, facts: Sequence[Fact], charts: Sequence[str], footnote: str
) -> str:
    bad = f"<p class=bad>{escape(problem)}</p>" if problem is not None else ""
    tiles = "".join(
        f"<div><dt>{escape(fact.name)}</dt><dd{' class=bad' if fact.is_bad else ''}>{escape(fact.value)}</dd></div>"
        for fact in facts
    )
    accuracy = f"Percentiles are within {RELATIVE_ERROR:.1%} of the exact ones."
    return (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8>{_GENERATOR}"
        '<meta name=viewport content="width=device-width">'
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:"><link rel=icon href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>{bad}</header><dl>{tiles}</dl>"
        f"<div class=charts>{''.join(charts)}</div><footer>{escape(accuracy)} {escape(footnote)}</footer></main></body>"
        "</html>\n"
    )


def over_time(
    title: str, note: str, timeline: Timeline, series: Sequence[Series], axis: Axis, bands: Sequence[Band] = ()
) -> str:
    """A chart of values for each slice of a timeline."""
    slices = timeline.slices()
    return figure(
        title,
        note,
        x_labels=time_axis(max(len(slices), 1) * timeline.seconds),
        axis=axis,
        series=series,
        tooltips=list(_tooltips(timeline, series, axis)),
        bands=bands,
    )


def _tooltips(timeline: Timeline, series: Sequence[Series], axis: Axis) -> Iterator[str]:
    for number in range(len(timeline.slices())):
        values = [
            f"{one.name}: {axis.label(value)}"
            for one in series
            if (value := one.values[number]) is not None and math.isfinite(value) and (value or one.kind != "bar")
        ]
        at = number * timeline.seconds
        yield f"{at:g} to {at + timeline.seconds:g} s\n" + "\n".join(values) if values else ""


def in_flight_over_time(timeline: Timeline) -> str:
    """A chart of calls in flight beside their limit, with a colour behind the times at which calls waited."""
    slices = timeline.slices()
    series = [Series("in flight", 2, [part.in_flight for part in slices], "area")]
    if any(part.limit is not None for part in slices):
        series.append(Series("limit", 1, [part.limit for part in slices], "step", dashed=True))
    if any(part.waiting for part in slices):
        series.append(Series("waiting", 5, [part.waiting for part in slices]))
    bands: list[Band] = []
    for number, part in enumerate(slices):
        if part.reason is None:
            continue
        if bands and bands[-1].end == number and bands[-1].name == part.reason:
            bands[-1] = bands[-1]._replace(end=number + 1)
        else:
            bands.append(Band(number, number + 1, part.reason))
    most = max((value for one in series for value in one.values if value is not None), default=0)
    axis = linear_axis(most, count_text, whole=True)
    return over_time("Calls in flight", "most in each stretch of time", timeline, series, axis, bands)


def latency_over_time(timeline: Timeline) -> list[str]:
    """A chart of percentiles, if anything succeeded."""
    if not timeline.latency.count:
        return []
    series = [
        Series(f"p{percent}", colour, [part.latency.percentile(percent) for part in timeline.slices()])
        for percent, colour in PERCENTS
    ]
    return [
        over_time("Latency over time", "of successes", timeline, series, axis_of(series, duration_text)),
    ]


def axis_of(series: Sequence[Series], label: Callable[[float], str]) -> Axis:
    """The y axis for some series: logarithmic where durations differ widely."""
    values = [value for one in series for value in one.values if value is not None and math.isfinite(value)]
    positive = [value for value in values if value > 0]
    if label is duration_text and positive and max(positive) > _WIDE_RANGE * min(positive):
        return log_axis(min(positive), max(positive), label)
    return linear_axis(max(values, default=0), label)


def distribution(title: str, histogram: Histogram) -> str:
    """Bars over a logarithmic axis of durations."""
    if not histogram.count:
        return ""
    low, high = max(histogram.minimum, 1e-6), max(histogram.maximum, 1e-6)
    # Wide enough for the buckets not to show.
    least, most = math.log(low * 0.98), math.log(max(high * 1.02, low * 2))
    # As many as are not mostly noise (Rice's rule).
    bins = min(max(round(2 * histogram.count ** (1 / 3)), _FEWEST_BINS), _BINS)
    counts: list[float] = [0.0] * bins
    for start, end, count in histogram.buckets():
        middle = math.log(min(max((start + end) / 2, low), high))
        counts[min(int((middle - least) / (most - least) * bins), bins - 1)] += count

    def place(seconds: float) -> float:
        return min(max((math.log(max(seconds, low)) - least) / (most - least), 0.0), 1.0)

    edges = [math.exp(least + (most - least) * number / bins) for number in range(bins + 1)]
    ticks = [
        tick
        for power in range(-6, 5)
        for factor in ((1,) if most - least > math.log(1000) else (1, 2, 5))
        if edges[0] <= (tick := factor * 10.0**power) <= edges[-1]
    ]
    # On a narrow screen, labels that are closer than this would overlap.
    labels: list[tuple[float, str]] = []
    for tick in ticks:
        if not labels or place(tick) - labels[-1][0] >= _LABEL_GAP:
            labels.append((place(tick), duration_text(tick)))
    shares = [count / histogram.count * 100 for count in counts]
    marks = [(place(histogram.percentile(percent)), f"p{percent}") for percent in (50, 99)]
    # Two labels in the same place would cover each other.
    if marks[1][0] - marks[0][0] < 0.12:
        marks = [(marks[0][0], "p50"), (marks[1][0], "")] if marks[0][0] < marks[1][0] else marks[:1]
    text = " · ".join(
        f"p{percent:g} {duration_text(histogram.percentile(percent))}" for percent in (50, 90, 95, 99, 99.9)
    )
    return figure(
        title,
        f"{text} · max {duration_text(histogram.maximum)}",
        x_labels=labels,
        axis=linear_axis(max(shares), lambda share: f"{share:g} %"),
        series=[Series(f"share of {histogram.count:,}", 2, shares, "bar")],
        tooltips=[
            f"{duration_text(edges[number])} to {duration_text(edges[number + 1])}: {count:,.0f}" if count else ""
            for number, count in enumerate(counts)
        ],
        marks=[mark for mark in marks if mark[1]],
    )


def failures_over_time(timeline: Timeline) -> list[str]:
    """Bars by cause over time, and a table."""
    causes = [cause for cause, _ in timeline.failures.most_common()]
    if not causes:
        return []
    slices = timeline.slices()
    shown = causes[: _COLOURS - 1]
    colours = (1, 4, 5, 6, 3, 7, 2)
    series = [
        Series(cause, colour, [part.failures[cause] for part in slices], "bar")
        for cause, colour in zip(shown, colours, strict=False)
    ]
    if rest := causes[len(shown) :]:
        series.append(Series("others", 8, [sum(part.failures[cause] for cause in rest) for part in slices], "bar"))
    most = max(part.failures.total() for part in slices)
    axis = linear_axis(most, count_text, whole=True)
    rows = [[cause, f"{count:,}"] for cause, count in timeline.failures.most_common()]
    return [
        over_time("Failed requests by cause", "retried ones among them", timeline, series, axis),
        table("Failed requests", ["cause", "requests"], rows),
    ]


def table(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], best: int | None = None, *, wide: bool = False
) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr{' class=best' if number == best else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows)
    )
    return (
        f"<section{' class=wide' if wide else ''}><h2>{escape(title)}</h2><div class=scroll tabindex=0><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )
