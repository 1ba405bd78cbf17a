"""Small SVGs of log-log curves, for light and dark backgrounds, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 900, 430
TOP, BOTTOM, LEFT, BETWEEN, RIGHT = 84, 44, 58, 64, 118
# Distinguishable with all common forms of colour blindness (Okabe and Ito), on white and on black.
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#999999", "#cc79a7", "#e69f00")
STYLE = """text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-size: 16px; font-weight: 600 }
.grid { stroke: #8884; fill: none } .line { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #ccc } }"""
# The least distance between the labels of two lines.
LABEL_PIXELS = 14


class Line(NamedTuple):
    name: str
    points: Sequence[tuple[float, float]]


class Panel(NamedTuple):
    """One diagram: its lines, and the labels of the x axis by value."""

    title: str
    lines: Sequence[Line]
    ticks: dict[float, str]


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
        first, last = math.log(min(panel.ticks)), math.log(max(panel.ticks))
        values = [y for line in panel.lines for _, y in line.points]
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

        def y_of(value: float, low: int = low, high: int = high) -> float:
            return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(value)) / (high - low), 1)

        def x_of(value: float, left: float = left, first: float = first, last: float = last) -> float:
            return round(left + width * (math.log(value) - first) / (last - first), 1)

        parts.append(f'<text x="{left:.1f}" y="{TOP - 12}">{escape(panel.title)}</text>')
        for power in range(low, high + 1):
            y = y_of(10.0**power)
            parts.append(f'<path class="grid" d="M{left:.1f} {y}h{width:.1f}"/>')
            parts.append(f'<text x="{left - 6:.1f}" y="{y + 4}" text-anchor="end">{10.0**power:,.0f}</text>')
        for value, label in panel.ticks.items():
            parts.append(f'<path class="grid" d="M{x_of(value)} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text x="{x_of(value)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{label}</text>')
        for line, colour in zip(panel.lines, COLOURS, strict=False):
            path = "L".join(f"{x_of(x)} {y_of(y)}" for x, y in line.points)
            parts.append(f'<path class="line" stroke="{colour}" d="M{path}"/>')
            parts += [f'<circle cx="{x_of(x)}" cy="{y_of(y)}" r="3" fill="{colour}"/>' for x, y in line.points]
    ends = [(y_of(line.points[-1][1]), line.name, colour) for line, colour in zip(panel.lines, COLOURS, strict=False)]
    free, x = float(TOP), WIDTH - RIGHT + 10
    for y, name, colour in sorted(ends):
        free = max(free, y)
        parts.append(f'<text x="{x}" y="{free + 4:.1f}" style="fill: {colour}">{escape(name)}</text>')
        free += LABEL_PIXELS
    return "\n".join([*parts, "</svg>\n"])
