"""Ranking: how far down a queue people must read before they have met what is wanted.

Every object is scored by a model that learned from other objects only, then ranked by one rule. The number is the area
under recall at rank K, as ATLAS judges its virtual research assistant (Stevance et al. 2025): 1 for a perfect queue of
any length, and about one half for a random one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from raybroker.protocols import findings, holdout
from raybroker.protocols.compared import Told
from raybroker.protocols.findings import Findings, Line, Plot, Sheet, curve
from raybroker.protocols.models import BASELINE, MIXTURE, Recipe
from raybroker.protocols.stream import Progress
from raybroker.protocols.tables import Floats, Integers, Labelled

FOLDS = 5
RANKS = (10, 30, 50, 100, 300)

# An object's score from those of its alerts, which come in order of time.
RULES: dict[str, Callable[[Floats], float]] = {
    "mean": lambda scores: float(scores.mean()),
    "latest": lambda scores: float(scores[-1]),
    "max": lambda scores: float(scores.max()),
}


def recall_at(wanted: np.ndarray[tuple[int], np.dtype[np.bool_]], score: Floats) -> Floats:
    """Recall at rank 1, 2, 3 ...: the share of the wanted among so many best. Equals stay in their order."""
    order = np.argsort(-score, kind="stable")
    return np.cumsum(wanted[order]) / max(int(wanted.sum()), 1)


def area(recall: Floats, wanted: int) -> float:
    """Area under recall at rank K over all ranks, divided by that of the perfect queue."""
    perfect = np.minimum(np.arange(1, len(recall) + 1) / wanted, 1.0).sum()
    return float(recall.sum() / perfect)


def scores(data: Labelled, recipe: Recipe, days: float, seed: int) -> tuple[Labelled, dict[str, Floats]]:
    """[rows] the probability of the wanted class of every alert, by the mixture and the forest, out of fold."""
    rng = np.random.default_rng(seed)
    data = data.in_time(rng)
    fold = rng.permutation(len(data.object_names)) % FOLDS
    found = {MIXTURE: np.empty(len(data)), BASELINE: np.empty(len(data))}
    for number in range(FOLDS):
        test = fold[data.objects] == number
        split = holdout.Split(np.flatnonzero(~test), np.flatnonzero(test))
        told: Told = holdout.ask(data, split, recipe, days, holdout.DELAY, seed)
        for name, column in found.items():
            column[split.test] = told.said[name][:, 0]
    return data, found


def of_objects(data: Labelled, score: Floats, rule: str) -> tuple[Integers, Floats]:
    """The objects, and the score of each by the rule."""
    order = np.argsort(data.objects, kind="stable")
    present, starts = np.unique(data.objects[order], return_index=True)
    made = [RULES[rule](part) for part in np.split(score[order], starts[1:])]
    return present, np.array(made)


def protocol(
    data: Labelled,
    recipe: Recipe,
    seeds: Sequence[int],
    rule: str = "mean",
    days: float = 5.0,
    progress: Progress = lambda share: None,
) -> Findings:
    """The queue of all objects by that rule, of the mixture and of the forest, with every seed."""
    recalls: dict[str, list[Floats]] = {MIXTURE: [], BASELINE: []}
    wanted_objects = 0
    for done, seed in enumerate(seeds):
        rows, found = scores(data, recipe, days, seed)
        drawn = np.random.default_rng(seed).permutation(len(np.unique(rows.objects)))
        for name, score in found.items():
            present, ranked = of_objects(rows, score, rule)
            wanted = rows.class_of_objects()[present] == 0
            wanted_objects = int(wanted.sum())
            recalls[name].append(recall_at(wanted[drawn], ranked[drawn]))
        progress((done + 1) / len(seeds))
    return _report(data, recalls, wanted_objects, rule)


def _report(data: Labelled, recalls: dict[str, list[Floats]], wanted: int, rule: str) -> Findings:
    objects = len(recalls[MIXTURE][0])
    ranks = [rank for rank in RANKS if rank < objects]
    numbers, rows = {}, []
    for name, by_seed in recalls.items():
        areas = [area(one, wanted) for one in by_seed]
        at = {rank: [float(one[rank - 1]) for one in by_seed] for rank in ranks}
        numbers[findings.key("ranking", name, "area")] = findings.mean(areas)
        numbers |= {findings.key("ranking", name, f"recall_{k}"): findings.mean(v) for k, v in at.items()}
        rows.append((name, findings.with_spread(areas), *(findings.with_spread(at[rank]) for rank in ranks)))
    chance = (objects + 1) / 2 / objects * objects / np.minimum(np.arange(1, objects + 1) / wanted, 1.0).sum()
    rows.append(("random order", f"{chance:.3f}", *(f"{rank / objects:.3f}" for rank in ranks)))
    note = f"{wanted} '{data.classes[0]}' among {objects:,} objects; an object's score is the {rule} of its alerts'"
    columns = ("model", "area under recall at rank K", *(f"recall at {rank}" for rank in ranks))
    return Findings(
        "ranking", numbers, (Sheet("Ranking", columns, tuple(rows), note),), (_plot(recalls, wanted),)
    )


def _plot(recalls: dict[str, list[Floats]], wanted: int) -> Plot:
    length = len(recalls[MIXTURE][0])
    places = np.unique(np.linspace(0, length - 1, min(length, 200)).astype(int))
    x = (places + 1.0).tolist()
    lines = [curve(name, x, [one[places].tolist() for one in by_seed]) for name, by_seed in recalls.items()]
    best = Line("perfect", tuple(x), tuple(min(rank / wanted, 1.0) for rank in x))
    return Plot("Recall at rank K", "rank K", "recall", (*lines, best))
