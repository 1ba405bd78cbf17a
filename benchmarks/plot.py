"""Small SVGs of curves, log-log or linear, for light and dark backgrounds, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 900, 430
TOP, BOTTOM, LEFT, BETWEEN, RIGHT = 84, 44, 58, 64, 118
# Distinguishable with all common forms of colour blindness (Okabe and Ito), on white and on black.
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#999999", "#cc79a7", "#e69f00")
STYLE = """text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-size: 16px; font-weight: 600 }
.grid { stroke: #8884; fill: none } .line { fill: none }
@media (prefers-color-scheme: dark) { text { fill: #ccc } }"""
# The least distance between the labels of two lines.
LABEL_PIXELS = 14


class Line(NamedTuple):
    """A line, its points in the units of the axes, and its width in pixels."""

    name: str
    points: Sequence[tuple[float, float]]
    width: float = 2


class Panel(NamedTuple):
    """One diagram: its lines, the labels of the x axis by value, and whether both axes are linear, from 0 on."""

    title: str
    lines: Sequence[Line]
    ticks: dict[float, str]
    is_linear: bool = False


def scale(panel: Panel) -> tuple[Callable[[float], float], list[float]]:
    """Return what places a value on the y axis, from 0 to 1, and the values to label there."""
    most = max(y for line in panel.lines for _, y in line.points)
    if panel.is_linear:
        step = 10.0 ** math.floor(math.log10(most))
        step *= next(factor for factor in (0.2, 0.5, 1.0, 2.0) if most / (step * factor) <= 6)
        top = step * math.ceil(most / step)
        return lambda value: value / top, [step * number for number in range(round(top / step) + 1)]
    least = min(y for line in panel.lines for _, y in line.points)
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return lambda value: (math.log10(value) - low) / (high - low), [10.0**power for power in range(low, high + 1)]


def drawing(title: str, note: str, panels: Sequence[Panel]) -> str:
    """Draw the panels side by side; each line is named at its end in the last one."""
    width = (WIDTH - LEFT - RIGHT - BETWEEN * (len(panels) - 1)) / len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text x="{LEFT}" y="24" class="title">{escape(title)}</text><text x="{LEFT}" y="43">{escape(note)}</text>',
    ]
    for number, panel in enumerate(panels):
        left = LEFT + number * (width + BETWEEN)
        along = float if panel.is_linear else math.log
        first, last = along(min(panel.ticks)), along(max(panel.ticks))
        up, labels = scale(panel)

        def y_of(value: float, up: Callable[[float], float] = up) -> float:
            return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - up(value)), 1)

        def x_of(
            value: float,
            along: Callable[[float], float] = along,
            left: float = left,
            first: float = first,
            last: float = last,
        ) -> float:
            return round(left + width * (along(value) - first) / (last - first), 1)

        parts.append(f'<text x="{left:.1f}" y="{TOP - 12}">{escape(panel.title)}</text>')
        for value in labels:
            y = y_of(value)
            parts.append(f'<path class="grid" d="M{left:.1f} {y}h{width:.1f}"/>')
            parts.append(f'<text x="{left - 6:.1f}" y="{y + 4}" text-anchor="end">{value:,.0f}</text>')
        for value, label in panel.ticks.items():
            parts.append(f'<path class="grid" d="M{x_of(value)} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text x="{x_of(value)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>')
        for line, colour in zip(panel.lines, COLOURS, strict=False):
            path = "L".join(f"{x_of(x)} {y_of(y)}" for x, y in line.points)
            parts.append(f'<path class="line" stroke="{colour}" stroke-width="{line.width}" d="M{path}"/>')
            if not panel.is_linear:
                parts += [f'<circle cx="{x_of(x)}" cy="{y_of(y)}" r="3" fill="{colour}"/>' for x, y in line.points]
    ends = [(y_of(line.points[-1][1]), line.name, colour) for line, colour in zip(panel.lines, COLOURS, strict=False)]
    free, x = float(TOP), WIDTH - RIGHT + 10
    for y, name, colour in sorted(ends):
        free = max(free, y)
        parts.append(f'<text x="{x}" y="{free + 4:.1f}" style="fill: {colour}">{escape(name)}</text>')
        free += LABEL_PIXELS
    return "\n".join([*parts, "</svg>\n"])
