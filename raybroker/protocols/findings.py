"""What a protocol found: numbers by name, tables and plots for people. No drawing here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raybroker.learning import metrics

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Sheet:
    """A table: its title, its columns, its rows, and what must be known to read it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a plot, with its spread over the seeds where there is one."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plot:
    """Lines over one axis."""

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Findings:
    """The outcome of one protocol. `metrics` are means over the seeds, with dots in their names."""

    protocol: str
    metrics: Mapping[str, float]
    sheets: tuple[Sheet, ...]
    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = field(default=())


def with_spread(values: Sequence[float]) -> str:
    """'0.712 ± 0.004'; an empty text where nothing is known."""
    mean, sd = metrics.spread(values)
    if mean != mean:
        return ""
    return f"{mean:.3f} ± {sd:.3f}" if len(values) > 1 else f"{mean:.3f}"


def signed(values: Mapping[str, float]) -> str:
    """A paired difference: '+0.012 ± 0.003'."""
    return f"{values['mean']:+.3f} ± {values['spread']:.3f}" if values["mean"] == values["mean"] else ""


def key(*parts: str) -> str:
    """A metric's name: letters, digits, dots and underscores only, as MLflow wants them."""
    return ".".join("".join(c if c.isalnum() or c in "._" else "_" for c in part) for part in parts)


def over(seeds: int) -> str:
    """'5 seeds'."""
    return f"{seeds} seeds" if seeds != 1 else "1 seed"


def mean(values: Sequence[float]) -> float:
    """Over the seeds; NaN values are left out."""
    return metrics.spread(values)[0]


def curve(name: str, x: Sequence[float], by_seed: Sequence[Sequence[float]]) -> Line:
    """A line of means over the seeds, cut where the shortest ends."""
    length = min([len(x), *(len(one) for one in by_seed)])
    told = [metrics.spread([one[i] for one in by_seed]) for i in range(length)]
    return Line(name, tuple(x[:length]), tuple(m for m, _ in told), tuple(s for _, s in told))
