"""Active learning: what each strategy gets out of the same number of labels, against random picks.

All begin with the same labels and are asked about the same objects, which no strategy can choose. The pool holds one
alert per object. Label noise gives a wrong class to a share of the objects, the same ones whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raybroker.learning import metrics, strategies
from raybroker.learning.strategies import Pool
from raybroker.protocols import findings, holdout, models
from raybroker.protocols.findings import Findings, Line, Plot, Sheet, curve
from raybroker.protocols.models import Recipe
from raybroker.protocols.stream import Progress
from raybroker.protocols.tables import Floats, Integers, Labelled

NOISE = (0.0, 0.1, 0.2)
START = 10  # labels that all begin with
BATCH = 10  # labels between two looks at how good it is
RANDOM = "random"


@dataclass(frozen=True)
class Wish:
    """What is compared. No strategies: all that are built in."""

    strategies: tuple[str, ...] = ()
    noise: tuple[float, ...] = NOISE
    labels: int = 200
    batch: int = BATCH

    @property
    def names(self) -> tuple[str, ...]:
        """The strategies, random first."""
        others = [name for name in self.strategies or tuple(strategies.BUILT_IN) if name != RANDOM]
        return (RANDOM, *others)


@dataclass(frozen=True)
class Field:
    """One seed's table: who may be asked, who is asked about, what is answered."""

    data: Labelled  # labels as the person answers, noise included
    truth: Integers  # [rows] what is true
    features: Floats  # [rows, columns]
    start: Integers  # rows that all begin with
    pool: Integers  # one row per object, the start not among them
    test: Integers


def field(data: Labelled, noise: float, seed: int) -> Field:
    """Objects are split, one alert of each is drawn for the pool, and some answers will be wrong."""
    rng = np.random.default_rng(seed)
    data = data.in_time(rng)
    split = holdout.by_object(data, rng)
    drawn = rng.permutation(split.train)
    one_each = drawn[np.unique(data.objects[drawn], return_index=True)[1]]
    start = first_labels(data, rng.permutation(one_each))
    pool = np.setdiff1d(one_each, start)
    return Field(noisy(data, noise, rng), data.labels, models.numbers(data), start, pool, split.test)


def first_labels(data: Labelled, rows: Integers) -> Integers:
    """The first `START` of these rows, changed only so far that two classes are among them."""
    start = rows[:START]
    if len(np.unique(data.labels[start])) < 2:
        others = rows[data.labels[rows] != data.labels[start[0]]]
        start = np.append(start[:-1], others[:1])
    return start


def noisy(data: Labelled, share: float, rng: np.random.Generator) -> Labelled:
    """The table with the classes of a share of its objects changed to another one."""
    objects = len(data.object_names)
    wrong, step = rng.random(objects) < share, rng.integers(1, len(data.classes), objects)
    moved = (data.labels + step[data.objects]) % len(data.classes)
    labels = np.where(wrong[data.objects], moved, data.labels)
    return Labelled(**{**vars(data), "labels": labels.astype(np.int64)})


def learn(field: Field, recipe: Recipe, strategy: str, wish: Wish, seed: int) -> list[float]:
    """AUC on the objects asked about, after the start and after every batch of labels."""
    choose, rng = strategies.by_name(strategy), np.random.default_rng(seed)
    learner, pool = recipe.learner(field.data, seed), field.pool
    models.teach(learner, field.data, field.start)
    found = [_score(field, learner)]
    while len(pool) and START + wish.batch * len(found) <= wish.labels:
        view, said = _view(field, pool, learner)
        chosen = choose(view, wish.batch, rng)
        picks = np.full(len(chosen), strategy == RANDOM)
        models.teach(learner, field.data, pool[chosen], said[:, chosen], picks=picks)
        pool = np.delete(pool, chosen)
        found.append(_score(field, learner))
    return found


def _score(field: Field, learner: models.Teachable) -> float:
    said = learner.frozen().predict_matrix(field.features[field.test]).mixture
    return metrics.class_auc(field.truth[field.test], said)


def _view(field: Field, pool: Integers, learner: models.Teachable) -> tuple[Pool, Floats]:
    """What a strategy sees: no labels."""
    said = learner.frozen().predict_matrix(field.features[pool])
    objects = tuple(field.data.object_names[thing] for thing in field.data.objects[pool].tolist())
    alerts = tuple(f"row {row}" for row in pool.tolist())
    features = field.data.features.take(pool)
    return Pool(alerts, objects, said.members, said.mixture, features), said.members


Curves = Mapping[str, Sequence[Sequence[float]]]  # strategy -> seed -> AUC after each batch


def protocol(
    data: Labelled,
    recipe: Recipe,
    seeds: Sequence[int],
    wish: Wish | None = None,
    progress: Progress = lambda share: None,
) -> Findings:
    """Curves of all strategies at every noise, and how many labels each needs to reach what random ends with."""
    wish = wish or Wish()
    jobs = [(noise, name, seed) for noise in wish.noise for name in wish.names for seed in seeds]
    curves: dict[float, dict[str, list[list[float]]]] = {noise: {} for noise in wish.noise}
    for done, (noise, name, seed) in enumerate(jobs):
        found = learn(field(data, noise, seed), recipe, name, wish, seed)
        curves[noise].setdefault(name, []).append(found)
        progress((done + 1) / len(jobs))
    numbers: dict[str, float] = {}
    sheets, plots = [], []
    for noise, by_name in curves.items():
        numbers |= _numbers(by_name, noise, wish)
        sheets.append(_sheet(by_name, noise, wish, len(seeds)))
        plots.append(_plot(by_name, noise, wish))
    return Findings("active", numbers, tuple(sheets), tuple(plots))


def _percent(noise: float) -> str:
    return f"{100 * noise:g} % of the labels wrong"


def _labels(wish: Wish, count: int) -> list[float]:
    return [float(START + wish.batch * i) for i in range(count)]


def _lines(by_name: Curves, wish: Wish) -> list[Line]:
    steps = max(len(one) for seeds in by_name.values() for one in seeds)
    return [curve(name, _labels(wish, steps), seeds) for name, seeds in by_name.items()]


def _plot(by_name: Curves, noise: float, wish: Wish) -> Plot:
    return Plot(f"Active learning, {_percent(noise)}", "labels", "AUC", tuple(_lines(by_name, wish)))


def labels_to(line: Line, target: float) -> float:
    """Labels after which the mean curve reaches the target; NaN if it never does."""
    reached = [x for x, y in zip(line.x, line.y, strict=True) if y >= target]
    return reached[0] if reached else float("nan")


def _numbers(by_name: Curves, noise: float, wish: Wish) -> dict[str, float]:
    prefix, lines = f"active.noise_{100 * noise:g}", _lines(by_name, wish)
    target = lines[0].y[-1]
    made = {f"{prefix}.target": target}
    for line in lines:
        made[findings.key(prefix, line.name, "auc")] = line.y[-1]
        made[findings.key(prefix, line.name, "mean_auc")] = float(np.mean(line.y))
        made[findings.key(prefix, line.name, "labels_to_target")] = labels_to(line, target)
    return made


def _sheet(by_name: Curves, noise: float, wish: Wish, seeds: int) -> Sheet:
    lines = _lines(by_name, wish)
    target = lines[0].y[-1]
    rows = []
    for line in lines:
        gap = metrics.paired(*([one[-1] for one in by_name[name]] for name in (line.name, RANDOM)))
        needed = labels_to(line, target)
        means = [float(np.mean(one)) for one in by_name[line.name]]
        last = [one[-1] for one in by_name[line.name]]
        told = f"{needed:.0f}" if needed == needed else "not reached"
        rows.append(
            (line.name, findings.with_spread(means), findings.with_spread(last), findings.signed(gap), told)
        )
    columns = (
        "strategy",
        "mean AUC of the curve",
        "AUC at the end",
        "less random, paired",
        "labels to target",
    )
    note = f"target: {target:.3f}, where random ends after {lines[0].x[-1]:.0f} labels; {findings.over(seeds)}, the same start"
    return Sheet(f"Active learning, {_percent(noise)}", columns, tuple(rows), note)
