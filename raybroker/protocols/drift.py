"""Drift: the stream changes, and what was learned is wrong from then on. Who recovers, and after how many labels.

The change is one of: 'swap' (from a day on the classes are exchanged, each for the next; each seed draws the day in the
middle third, so that seeds differ in the objects that come after it), 'time' (nothing is done to the table: what its
second half brings is the change), or the values of a column, of which one side comes first.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from raybroker.learning import metrics
from raybroker.protocols import findings, stream
from raybroker.protocols.findings import Findings, Line, Plot, Sheet
from raybroker.protocols.models import BASELINE, MIXTURE, Recipe
from raybroker.protocols.stream import Progress, Rules, Run
from raybroker.protocols.tables import Integers, Labelled

SWAP, TIME = "swap", "time"
EDGES = (0, 50, 100, 200, 400, 800, 1_600, 3_200)  # labels learned since the change
LEAST_ROWS = 30  # alerts, for a number


def changed(data: Labelled, change: str, seed: int) -> tuple[Labelled, int]:
    """The table with its change, in order of time, and the row with which the new begins."""
    rng = np.random.default_rng(seed)
    data = data.in_time(rng)
    if data.change:
        return _by_column(data)
    part = 0.5 if change == TIME else rng.uniform(1 / 3, 2 / 3)
    edge = int(np.searchsorted(data.times, data.times[0] + part * (data.times[-1] - data.times[0])))
    if change == TIME:
        return data, edge
    labels = data.labels.copy()
    labels[edge:] = (labels[edge:] + 1) % len(data.classes)
    return replace(data, labels=labels), edge


def _by_column(data: Labelled) -> tuple[Labelled, int]:
    """The side with the commoner value (of numbers, the lower half) comes first; the days run on after it."""
    late = _late(data.change)
    first, second = np.flatnonzero(~late), np.flatnonzero(late)
    moved = data.take(np.concatenate([first, second]))
    shift = data.times[first[-1]] - data.times[second[0]]
    times = np.concatenate([data.times[first], data.times[second] + max(shift, 0.0)])
    return replace(moved, times=times), len(first)


def _late(values: Sequence[str]) -> stream.Mask:
    try:
        numbers = np.array(values, float)
        late = numbers > np.nanmedian(numbers)
        if late.any() and not late.all():
            return late
    except ValueError:
        pass
    names, counts = np.unique(np.array(values), return_counts=True)
    return np.array(values) != names[counts.argmax()]


def protocol(
    data: Labelled,
    recipe: Recipe,
    rules: Rules,
    seeds: Sequence[int],
    change: str = SWAP,
    progress: Progress = lambda share: None,
) -> Findings:
    """AUC by the number of labels learned since the change, of every member: on unseen objects, and on all alerts."""
    runs, edges = [], []
    for number, seed in enumerate(seeds):
        rows, edge = changed(data, change, seed)
        rng = np.random.default_rng(seed)
        step = lambda share, n=number: progress((n + share) / len(seeds))  # noqa: E731
        runs.append(stream.listen(rows, recipe.learner(rows, seed), stream.due(rows, rules, rng), seed, step))
        edges.append(edge)
    return _report(runs, edges, recipe, rules, change)


def since(run: Run, edge: int) -> Integers:
    """[rows] labels of alerts after the change that were learned before each row; -1 before the change."""
    before = np.searchsorted(run.label_rows, edge)  # labels come in the order of their alerts
    return np.where(np.arange(len(run.data)) < edge, -1, np.maximum(run.heard - before, 0))


PARTS = ("before", *(f"{low} to {high}" for low, high in itertools.pairwise(EDGES)))
Seeds = Sequence[Sequence[float]]  # by seed, a number for each of `PARTS`; NaN where it is of too few alerts


def _report(runs: Sequence[Run], edges: Sequence[int], recipe: Recipe, rules: Rules, change: str) -> Findings:
    names = (MIXTURE, BASELINE, *recipe.names)
    unseen, _, everything = stream.SCOPES
    note = f"change: {_what(runs[0].data, change)}; labels {rules.delay:g} days late; AUC, {findings.over(len(runs))}"
    numbers, sheets = dict[str, float](), list[Sheet]()
    for scope, prefix in ((unseen, ()), (everything, ("all_alerts",))):
        found = _by_model(runs, edges, names, scope)
        counts = [[int(mask.sum()) for mask in _masks(*one, scope)] for one in zip(runs, edges, strict=True)]
        sheets.append(_sheet(found, np.mean(counts, axis=0).tolist(), scope, note))
        for name, seeds in found.items():
            means = {part: findings.mean([one[i] for one in seeds]) for i, part in enumerate(PARTS)}
            numbers |= {
                findings.key("drift", *prefix, name, f"auc_{part.replace(' ', '_')}"): mean
                for part, mean in means.items()
                if mean == mean
            }
    lines = tuple(_line(name, seeds) for name, seeds in _by_model(runs, edges, names, unseen).items())
    plot = Plot(
        "Recovery after the change", "labels learned since the change", "AUC on unseen objects", lines
    )
    return Findings("drift", numbers, tuple(sheets), (plot,))


def _by_model(
    runs: Sequence[Run], edges: Sequence[int], names: Sequence[str], scope: str
) -> dict[str, Seeds]:
    """AUC before the change and in each part after it."""
    members = tuple(names[2:])
    told = [
        (run.said(members), run.data.labels, _masks(run, edge, scope))
        for run, edge in zip(runs, edges, strict=True)
    ]
    return {
        name: [[_auc(labels, said[name], mask) for mask in masks] for said, labels, masks in told]
        for name in names
    }


def _auc(labels: Integers, said: metrics.Floats, mask: stream.Mask) -> float:
    return metrics.class_auc(labels[mask], said[mask]) if mask.sum() >= LEAST_ROWS else float("nan")


def _sheet(found: Mapping[str, Seeds], alerts: Sequence[float], scope: str, note: str) -> Sheet:
    rows = [
        (
            part,
            f"{alerts[i]:.0f}",
            *(findings.with_spread([one[i] for one in seeds]) for seeds in found.values()),
        )
        for i, part in enumerate(PARTS)
        if any(one[i] == one[i] for seeds in found.values() for one in seeds)
    ]
    return Sheet(
        f"Drift, {scope}: labels learned since the change", ("labels", "alerts", *found), tuple(rows), note
    )


def _what(data: Labelled, change: str) -> str:
    told = {
        SWAP: "the classes are exchanged on a day of the middle third",
        TIME: "the second half of the days",
    }
    return "the values of a column, one side after the other" if data.change else told[change]


def _masks(run: Run, edge: int, scope: str) -> list[stream.Mask]:
    """[rows] each: those of a scope before the change, and in each part after it."""
    count, rows = since(run, edge), run.scope(scope)
    after = [rows & (count >= low) & (count < high) for low, high in itertools.pairwise(EDGES)]
    return [rows & (count < 0), *after]


def _line(name: str, seeds: Seeds) -> Line:
    middles = [-50.0, *((low + high) / 2 for low, high in itertools.pairwise(EDGES))]
    means = [findings.mean([one[i] for one in seeds]) for i in range(len(PARTS))]
    known = [(x, y) for x, y in zip(middles, means, strict=True) if y == y]
    return Line(name, tuple(x for x, _ in known), tuple(y for _, y in known))
