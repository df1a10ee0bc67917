"""Two pictures of a release as SVG: how good a model became, and whether it keeps its word. A few kilobytes each.

They need nothing to be seen, and equal numbers give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from raybroker.learning.compiled import Floats

Curve = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 44, 52  # margins
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito 2008
MOST_POINTS = 600  # of a line: more are thinner than a pixel
BINS = 10


@dataclass(frozen=True)
class Axis:
    """A range of numbers, laid on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Four to nine round numbers within the range.

        >>> Axis(0.0, 1.0, 0, 1).ticks
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        """
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power / rough)))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


def around(values: Iterable[float], start: float, end: float) -> Axis:
    """An axis with room for all finite values."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    return Axis(low, high, start, end)


def learning_curve(
    title: str, curves: Mapping[str, Curve], across: str = "labels learned", up: str = ""
) -> str:
    """One line per named curve of (labels, value); points that are not finite leave a gap."""
    x = around([p[0] for curve in curves.values() for p in curve], LEFT, WIDTH - RIGHT)
    y = around([p[1] for curve in curves.values() for p in curve], HEIGHT - BOTTOM, TOP)
    parts = [_frame(title, x, y, across, up)]
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        parts += [_line(piece, x, y, colour) for piece in _pieces(_thinned(curve))]
        if len(curves) > 1:
            parts.append(_legend(i, name, colour))
    return _svg(parts)


def calibration(title: str, promised: Floats, came: NDArray[np.bool_] | Floats) -> str:
    """Shares that came true against shares that were promised, in ten bins, with one standard error and the counts."""
    x, y = Axis(0.0, 1.0, LEFT, WIDTH - RIGHT), Axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    parts = [_frame(title, x, y, "probability given", "share that came true")]
    parts.append(_line([(0.0, 0.0), (1.0, 1.0)], x, y, "#888", "4 4"))
    place = np.minimum((promised * BINS).astype(int), BINS - 1)
    for b in np.unique(place):
        inside = place == b
        parts.append(
            _bin(float(promised[inside].mean()), float(came[inside].mean()), int(inside.sum()), x, y)
        )
    return _svg(parts)


def _bin(promised: float, share: float, count: int, x: Axis, y: Axis) -> str:
    """A point with its error (of a share of `count`, with half a row added to either side) and its count."""
    smooth = (share * count + 0.5) / (count + 1)
    error = math.sqrt(smooth * (1 - smooth) / count)
    low, high = max(0.0, share - error), min(1.0, share + error)
    at = f"{x(promised):.1f}"
    return (
        f'<path d="M{at} {y(low):.1f}V{y(high):.1f}" stroke="{COLOURS[0]}" stroke-width="2" opacity="0.5"/>'
        f'<circle cx="{at}" cy="{y(share):.1f}" r="4.5" fill="{COLOURS[0]}"/>'
        f'<text x="{at}" y="{y(high) - 8:.1f}" text-anchor="middle" fill="#555" font-size="11">{count}</text>'
    )


def _frame(title: str, x: Axis, y: Axis, across: str, up: str) -> str:
    """Title, axes, ticks with their numbers, a faint grid, and what the axes are."""
    bottom, middle = HEIGHT - BOTTOM, (HEIGHT - BOTTOM + TOP) / 2
    parts = [f'<text x="{LEFT}" y="24" font-size="15" font-weight="bold">{escape(title)}</text>']
    for tick in x.ticks:
        parts.append(_tick(f"M{x(tick):.1f} {TOP}V{bottom}", f"M{x(tick):.1f} {bottom}v5"))
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 19}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks:
        parts.append(_tick(f"M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}", f"M{LEFT} {y(tick):.1f}h-5"))
        parts.append(f'<text x="{LEFT - 9}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="#444"/>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 12}" text-anchor="middle">{escape(across)}</text>'
    )
    turned = f'transform="translate(16 {middle:g}) rotate(-90)"'
    return "".join([*parts, f'<text {turned} text-anchor="middle">{escape(up)}</text>'])


def _tick(grid: str, mark: str) -> str:
    return f'<path d="{grid}" stroke="#e4e4e4"/><path d="{mark}" stroke="#444"/>'


def _line(points: Curve, x: Axis, y: Axis, colour: str, dashes: str = "") -> str:
    placed = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in points)
    if len(points) == 1:
        return f'<circle cx="{x(points[0][0]):.1f}" cy="{y(points[0][1]):.1f}" r="3" fill="{colour}"/>'
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{placed}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>'


def _legend(i: int, name: str, colour: str) -> str:
    at = TOP + 14 + 18 * i
    return (
        f'<path d="M{WIDTH - 150} {at - 4}h18" stroke="{colour}" stroke-width="3"/>'
        f'<text x="{WIDTH - 126}" y="{at}">{escape(name)}</text>'
    )


def _thinned(curve: Curve) -> Curve:
    """At most `MOST_POINTS`, evenly spread, with the first and the last."""
    if len(curve) <= MOST_POINTS:
        return curve
    return [curve[i] for i in np.linspace(0, len(curve) - 1, MOST_POINTS).round().astype(int)]


def _pieces(curve: Curve) -> list[Curve]:
    """The stretches between points that are not finite."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for px, py in curve:
        if math.isfinite(px) and math.isfinite(py):
            pieces[-1].append((px, py))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _svg(parts: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" fill="#222"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )
