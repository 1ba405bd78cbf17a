"""Charts as HTML and SVG: lines, areas, stacked bars.

A chart's shapes are an SVG that is stretched to the width that there is, its labels HTML over and beside it, so that
text keeps its size on a narrow screen. A transparent rectangle over each value has a tooltip. Everything that is not a
number is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Literal, NamedTuple, TypeAlias

__all__ = [
    "Axis",
    "Band",
    "Kind",
    "Series",
    "count_text",
    "duration_text",
    "figure",
    "linear_axis",
    "log_axis",
    "time_axis",
]

Kind: TypeAlias = Literal["line", "step", "area", "bar"]

# The drawing's coordinates, in its own units.
_SIZE = 1000.0
_BRIEF = 1e-3


class Axis(NamedTuple):
    """A y axis.

    Args:
        least: the value at the bottom.
        most: the value at the top.
        ticks: values with a line and a label.
        label: makes a label of a value.
        is_log: whether it is logarithmic.
    """

    least: float
    most: float
    ticks: Sequence[float]
    label: Callable[[float], str]
    is_log: bool = False

    def share(self, value: float) -> float:
        """How far up a value is, from 0 to 1."""
        if self.is_log:
            value, least, most = (math.log(max(number, self.least)) for number in (value, self.least, self.most))
        else:
            least, most = self.least, self.most
        return min(max((value - least) / (most - least), 0.0), 1.0)


class Series(NamedTuple):
    """Values over the x axis.

    Args:
        name: as the legend has it.
        colour: a number of the page's palette, from 1.
        values: one for each place on the x axis; None where it is missing.
        kind: how it is drawn. Bars of several series are stacked.
        dashed: whether a line is dashed.
    """

    name: str
    colour: int
    values: Sequence[float | None]
    kind: Kind = "line"
    dashed: bool = False


class Band(NamedTuple):
    """A stretch of the x axis with a colour behind it; places from ``first`` to before ``end``."""

    first: int
    end: int
    name: str


def _nice(step: float) -> float:
    """The least of 1, 2, 5, 10, 20 ... that is not less."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))


def linear_axis(most: float, label: Callable[[float], str], *, whole: bool = False) -> Axis:
    """An axis from 0 with about four ticks.

    Args:
        most: the largest value.
        label: makes a label of a value.
        whole: whether ticks are whole numbers.

    >>> linear_axis(730, str).ticks
    [0.0, 200.0, 400.0, 600.0, 800.0]
    """
    step = _nice(max(most, 1e-9) / 4)
    if whole:
        step = max(step, 1.0)
    count = max(math.ceil(most / step * (1 - 1e-9)), 1)
    return Axis(0.0, step * count, [step * number for number in range(count + 1)], label)


def log_axis(least: float, most: float, label: Callable[[float], str]) -> Axis:
    """A logarithmic axis over whole powers of ten, or of ten and two and five in between if there are few.

    >>> log_axis(0.004, 3, str).ticks
    [0.001, 0.01, 0.1, 1.0, 10.0]
    """
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    high = max(high, low + 1)
    ticks = [10.0**power for power in range(low, high + 1)]
    if high - low <= 2:
        ticks = [10.0**power * factor for power in range(low, high) for factor in (1, 2, 5)] + [10.0**high]
    return Axis(ticks[0], ticks[-1], ticks, label, is_log=True)


# Seconds between the ticks of a time axis.
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


def time_axis(seconds: float) -> list[tuple[float, str]]:
    """Places from 0 to 1, and labels, of a time axis.

    >>> time_axis(250)
    [(0.0, '0'), (0.24, '1 min'), (0.48, '2 min'), (0.72, '3 min'), (0.96, '4 min')]
    """
    step = float(next((step for step in _TIME_STEPS if step >= seconds / 5), _nice(seconds / 5)))
    return [(number * step / seconds, _time(number * step)) for number in range(int(seconds / step * (1 + 1e-9)) + 1)]


def _time(seconds: float) -> str:
    if seconds == 0:
        return "0"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:g} s"


def count_text(value: float) -> str:
    """A number, short.

    >>> [count_text(value) for value in (0, 0.25, 1.5, 250, 12_345, 2_000_000)]
    ['0', '0.25', '1.5', '250', '12.3k', '2M']
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def duration_text(seconds: float) -> str:
    """A duration, short; a dash for none.

    >>> [duration_text(value) for value in (0, 0.00025, 0.042, 3.5, 90, math.nan)]
    ['0', '250 µs', '42 ms', '3.5 s', '90 s', '-']
    """
    if not math.isfinite(seconds):
        return "-"
    if seconds == 0:
        return "0"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * 0.9995:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def figure(
    title: str,
    note: str,
    *,
    x_labels: Sequence[tuple[float, str]],
    axis: Axis,
    series: Sequence[Series],
    tooltips: Sequence[str],
    bands: Sequence[Band] = (),
    marks: Sequence[tuple[float, str]] = (),
    wide: bool = False,
) -> str:
    """A chart with its title and legend.

    Args:
        title: what it shows.
        note: more about it; may be empty.
        x_labels: places on the x axis, from 0 to 1, and their labels.
        axis: the y axis.
        series: what is drawn, later ones over earlier ones. All have the same number of values.
        tooltips: a text for each place on the x axis.
        bands: stretches with a colour behind them.
        marks: places with a vertical line and a label.
        wide: whether it takes the whole width of the page.
    """
    places = len(tooltips)
    width = _SIZE / max(places, 1)
    shapes = [
        f'<rect class="band" x="{band.first * width:.1f}" y="0" width="{(band.end - band.first) * width:.1f}" '
        f'height="{_SIZE:.0f}"><title>{escape(band.name)}</title></rect>'
        for band in bands
    ]
    shapes += [f'<path class="grid" d="M0 {_y(axis, tick)}H{_SIZE:.0f}"/>' for tick in axis.ticks]
    below = [0.0] * places
    for one in series:
        if one.kind == "bar":
            shapes += _bars(one, axis, width, below)
        else:
            shapes += _curves(one, axis, width)
    shapes += [f'<path class="mark" d="M{place * _SIZE:.1f} 0V{_SIZE:.0f}"/>' for place, _ in marks]
    shapes += [
        f'<rect class="hover" x="{number * width:.2f}" y="0" width="{width:.2f}" height="{_SIZE:.0f}">'
        f"<title>{escape(text)}</title></rect>"
        for number, text in enumerate(tooltips)
        if text
    ]
    y_labels = "".join(
        f'<span style="bottom:{axis.share(tick):.2%}">{escape(axis.label(tick))}</span>' for tick in axis.ticks
    )
    x_texts = "".join(f'<span style="left:{place:.2%}">{escape(text)}</span>' for place, text in x_labels)
    mark_texts = "".join(
        f'<span class="{"left" if place > 0.8 else "right"}" style="left:{place:.2%}">{escape(text)}</span>'
        for place, text in marks
    )
    legend = "".join(
        f'<li><i class="key c{one.colour}{" dashed" if one.dashed else ""}{" bar" if one.kind != "line" else ""}"></i>'
        f"{escape(one.name)}</li>"
        for one in series
    )
    if bands:
        names = ", ".join(dict.fromkeys(band.name for band in bands))
        legend += f'<li><i class="key band"></i>{escape(names)}</li>'
    return (
        f"<figure{' class=wide' if wide else ''}><figcaption><h2>{escape(title)}</h2>"
        f"{f'<p>{escape(note)}</p>' if note else ''}<ul class=legend>{legend}</ul></figcaption>"
        f"<div class=plot><div class=y aria-hidden=true>{y_labels}</div><div class=area>"
        f'<svg role=img aria-label="{escape(title)}" viewBox="0 0 {_SIZE:.0f} {_SIZE:.0f}" preserveAspectRatio=none>'
        f"{''.join(shapes)}</svg><div class=marks>{mark_texts}</div></div>"
        f"<div class=x aria-hidden=true>{x_texts}</div></div></figure>"
    )


def _y(axis: Axis, value: float) -> str:
    return f"{_SIZE * (1 - axis.share(value)):.1f}"


def _bars(one: Series, axis: Axis, width: float, below: list[float]) -> list[str]:
    shapes = []
    gap = 0.12 * width
    for number, value in enumerate(one.values):
        if value:
            bottom = below[number]
            below[number] = top = bottom + value
            y, end = _SIZE * (1 - axis.share(top)), _SIZE * (1 - axis.share(bottom))
            shapes.append(
                f'<rect class="bar c{one.colour}" x="{number * width + gap / 2:.2f}" y="{y:.1f}" '
                f'width="{width - gap:.2f}" height="{max(end - y, 0):.1f}"/>'
            )
    return shapes


def _curves(one: Series, axis: Axis, width: float) -> list[str]:
    """A path for each stretch of values without a gap, each value in the middle of its place."""
    shapes = []
    for first, values in _stretches(one.values):
        if one.kind == "step":
            parts = [
                f"{(first + number) * width:.1f} {_y(axis, value)}H{(first + number + 1) * width:.1f}"
                for number, value in enumerate(values)
            ]
        else:
            parts = [f"{(first + number + 0.5) * width:.1f} {_y(axis, value)}" for number, value in enumerate(values)]
            if len(parts) == 1:
                # A dot, by the round ends of a line.
                parts.append(f"{(first + 0.5) * width + _BRIEF:.3f} {_y(axis, values[0])}")
        path = "L".join(parts)
        if one.kind == "area":
            left, right = (first + 0.5) * width, (first + len(values) - 0.5) * width
            shapes.append(
                f'<path class="fill c{one.colour}" d="M{left:.1f} {_SIZE:.0f}L{path}L{right:.1f} {_SIZE:.0f}Z"/>'
            )
        shapes.append(f'<path class="line c{one.colour}{" dashed" if one.dashed else ""}" d="M{path}"/>')
    return shapes


def _stretches(values: Sequence[float | None]) -> list[tuple[int, list[float]]]:
    stretches: list[tuple[int, list[float]]] = []
    for number, value in enumerate(values):
        if value is None or not math.isfinite(value):
            continue
        if stretches and stretches[-1][0] + len(stretches[-1][1]) == number:
            stretches[-1][1].append(value)
        else:
            stretches.append((number, [value]))
    return stretches
