"""Plots of an evaluation as small SVG files, which need nothing to be seen."""

from __future__ import annotations

import html
import math

from raybroker.protocols.findings import Line, Plot
from raybroker.protocols.report import COLOURS

WIDTH, HEIGHT = 720, 370
LEFT, RIGHT, TOP, BOTTOM = 60, 200, 46, 44


def svg(plot: Plot) -> str:
    """The plot with its legend at the right."""
    lines = [line for line in plot.lines if any(math.isfinite(y) for y in line.y)]
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    ranges = [_range([point[axis] for point in points]) for axis in (0, 1)] if points else [(0.0, 1.0)] * 2
    ranges[1] = _ticks(*ranges[1])[0], max(_ticks(*ranges[1])[-1], ranges[1][1])
    drawn = [_line(line, COLOURS[i % len(COLOURS)], ranges) for i, line in enumerate(lines)]
    legend = [_legend(line.name, COLOURS[i % len(COLOURS)], i) for i, line in enumerate(lines)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<text x="{LEFT}" y="20" font-size="14">{html.escape(plot.title)}</text>'
        + _axes(plot, ranges)
        + "".join(drawn + legend)
        + "</svg>\n"
    )


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Some four to eight round numbers; the first is at or below `low`, the last at or above `high` less one step."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough)
    first = math.floor(low / step + 1e-9)
    return [step * i for i in range(first, math.ceil(high / step - 1e-9) + 1)]


def _x(value: float, ranges: list[tuple[float, float]]) -> float:
    low, high = ranges[0]
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _y(value: float, ranges: list[tuple[float, float]]) -> float:
    low, high = ranges[1]
    return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _axes(plot: Plot, ranges: list[tuple[float, float]]) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#888"/>']
    for x in (tick for tick in _ticks(*ranges[0]) if ranges[0][0] <= tick <= ranges[0][1]):
        at = _x(x, ranges)
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{_number(x)}</text>')
    for y in _ticks(*ranges[1]):
        at = _y(y, ranges)
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_number(y)}</text>')
        parts.append(f'<path d="M{LEFT} {at:.1f}H{right}" stroke="#eee"/>')
    parts.append(
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(plot.x)}</text>'
    )
    parts.append(f'<text x="8" y="{TOP - 8}">{html.escape(plot.y)}</text>')
    return "".join(parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{round(value, 10):g}"


def _line(line: Line, colour: str, ranges: list[tuple[float, float]]) -> str:
    known = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    path = " ".join(f"{_x(x, ranges):.1f},{_y(y, ranges):.1f}" for x, y in known)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _legend(name: str, colour: str, place: int) -> str:
    y = TOP + 10 + 18 * place
    return (
        f'<path d="M{WIDTH - RIGHT + 14} {y}h18" stroke="{colour}" stroke-width="3"/>'
        f'<text x="{WIDTH - RIGHT + 38}" y="{y + 4}">{html.escape(name)}</text>'
    )
