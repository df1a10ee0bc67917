"""Hold-out: learn from some objects, be asked about others. By object, and by time.

No object is on both sides: by object, a share of the objects is kept back; by time, what came after a day, of objects
that had not been met before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from raybroker.learning.learner import Thinning
from raybroker.protocols import compared, findings, models
from raybroker.protocols.compared import Told
from raybroker.protocols.findings import Findings
from raybroker.protocols.models import BASELINE, MIXTURE, PLAIN, Recipe
from raybroker.protocols.stream import Progress
from raybroker.protocols.tables import Floats, Integers, Labelled

KEPT = 0.3  # share of the objects, or of the days, that are asked about
DELAY = 14.0  # days until a label comes


class Split(NamedTuple):
    """Rows to learn from, in the order in which they are learned, and rows to be asked about."""

    train: Integers
    test: Integers


def by_object(data: Labelled, rng: np.random.Generator, kept: float = KEPT) -> Split:
    """A share of the objects of every class is kept back."""
    held: list[int] = []
    present = np.unique(data.objects)
    classes = data.class_of_objects()[present]
    for number in range(len(data.classes)):
        mine = rng.permutation(present[classes == number])
        held += mine[: max(1, round(kept * len(mine)))].tolist()
    test = np.isin(data.objects, held)
    return Split(np.flatnonzero(~test), np.flatnonzero(test))


def by_time(data: Labelled, kept: float = KEPT) -> Split:
    """The last share of the alerts, of objects that had not been met before."""
    edge = np.quantile(data.times, 1 - kept)
    train = np.flatnonzero(data.times <= edge)
    new = ~np.isin(data.objects, data.objects[train])
    return Split(train, np.flatnonzero(new & (data.times > edge)))


def thinned(data: Labelled, rows: Integers, days: float) -> Integers:
    """At most one alert of an object in these days; without times, all."""
    if not data.timed:
        return rows
    thinning = Thinning(days)
    taken = [row for row in rows.tolist() if thinning.take(str(data.objects[row]), float(data.times[row]))]
    return np.array(taken, np.int64)


def ask(data: Labelled, split: Split, recipe: Recipe, days: float, delay: float, seed: int) -> Told:
    """Teach the mixture and the forest the same labels, and ask both about the rest.

    The mixture hears them in the order of time, `delay` days late, as it does in the stream: so its members are judged
    by what they say of the first days of an object, not of its first alert alone.
    """
    if shared := set(data.objects[split.train].tolist()) & set(data.objects[split.test].tolist()):
        name = data.object_names[min(shared)]
        raise ValueError(f"object '{name}' is both learned from and asked about: the numbers would flatter")
    rows = thinned(data, split.train, days)
    learner, features = recipe.learner(data, seed), models.numbers(data)
    models.teach_all(learner, data, rows, delay)
    said = learner.frozen().predict_matrix(features[split.test])
    predict = models.forest(features[rows], data.labels[rows], len(data.classes), seed)
    answers: dict[str, Floats] = {MIXTURE: said.mixture, BASELINE: predict(features[split.test])}
    answers[PLAIN] = models.uncalibrated(learner, said)
    answers |= dict(zip(recipe.names, said.members, strict=True))
    return Told(data.labels[split.test], answers)


def protocol(
    data: Labelled,
    recipe: Recipe,
    seeds: Sequence[int],
    days: float = 5.0,
    delay: float = DELAY,
    progress: Progress = lambda share: None,
) -> Findings:
    """Both hold-outs with every seed; by object only, where the table has no time."""
    numbers: dict[str, float] = {}
    sheets, plots, notes = [], [], []
    ways = ("object", "time") if data.timed else ("object",)
    for place, way in enumerate(ways):
        told = []
        for seed, (rows, split) in zip(seeds, splits(data, way, seeds), strict=True):
            if len(split.test) == 0 or len(np.unique(rows.labels[split.train])) < 2:
                notes.append(f"by {way}: too few objects come after the edge; left out")
                break
            told.append(ask(rows, split, recipe, days, delay, seed))
            progress((place + len(told) / len(seeds)) / len(ways))
        if not told:
            continue
        summaries = [one.summaries() for one in told]
        numbers |= compared.numbers(f"holdout.{way}", summaries)
        count = round(np.mean([len(one.truth) for one in told]))
        sheets.append(
            compared.table(
                f"Hold-out by {way}", summaries, f"{count:,} alerts asked, {findings.over(len(told))}"
            )
        )
        plots.append(compared.reliability(f"Calibration, hold-out by {way}", told))
    return Findings("holdout", numbers, tuple(sheets), tuple(plots), tuple(notes))


def splits(data: Labelled, way: str, seeds: Sequence[int]) -> Iterator[tuple[Labelled, Split]]:
    """The table in the order of each seed, and how it is split."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        rows = data.in_time(rng)
        yield rows, by_object(rows, rng) if way == "object" else by_time(rows)
