"""Anomalies with feedback: of so many looks, how many meet the wanted class.

The loop looks at one object after the other, each time at what it holds most likely to be wanted, and is told what it
was. It is held against an isolation forest, which is told nothing, and against the strong baseline: an isolation
forest until both kinds were met, then a random forest that looks at its likeliest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest, RandomForestClassifier

from raybroker.protocols import findings, models
from raybroker.protocols.findings import Findings, Plot, Sheet, curve
from raybroker.protocols.stream import Progress
from raybroker.protocols.tables import Floats, Integers, Labelled

LOOKS = (10, 30, 50, 100)
FIRST = 10  # looks of the strong baseline before its random forest begins
OURS, ISOLATION, GREEDY = "the loop", "isolation forest", "isolation forest, then random forest"
Make = Callable[[Labelled, int], Any]  # (table, seed) -> a learner of anomalies


def outlier_learner(member: str = "aad") -> Make:
    """The project's own."""

    def make(data: Labelled, seed: int) -> Any:
        from raybroker.learning.outliers import OutlierLearner

        return OutlierLearner("evaluated", data.classes, data.columns, (member,), seed)

    return make


def sample(data: Labelled, seed: int) -> Labelled:
    """One alert of each object: the newest, or without times any."""
    rng = np.random.default_rng(seed)
    rows = data.in_time(rng)
    _, newest = np.unique(rows.objects[::-1], return_index=True)
    return rows.take(rng.permutation(len(rows) - 1 - newest))


def loop(data: Labelled, learner: Any, looks: int, progress: Progress = lambda share: None) -> list[bool]:
    """Whether each look met the wanted class."""
    learner.background(data.features)
    features, left = models.numbers(data), np.ones(len(data), bool)
    hits: list[bool] = []
    for look in range(min(looks, len(data))):
        score = learner.frozen().predict_matrix(features).mixture[:, 0]
        row = int(np.argmax(np.where(left, score, -np.inf)))
        left[row] = False
        models.teach(learner, data, np.array([row]), picks=np.zeros(1, bool))
        hits.append(bool(data.labels[row] == 0))
        progress((look + 1) / looks)
    return hits


def isolation(features: Floats, seed: int) -> Integers:
    """The rows, most outlying first."""
    model = IsolationForest(random_state=seed, n_jobs=1).fit(_filled(features))
    return np.argsort(model.score_samples(_filled(features)), kind="stable")


def greedy(data: Labelled, order: Integers, looks: int, seed: int) -> list[bool]:
    """The strong baseline: down the isolation forest's list, then a random forest's likeliest."""
    features, wanted, seen = models.numbers(data), data.labels == 0, list[int]()
    for _ in range(min(looks, len(data))):
        if len(seen) < FIRST or len(set(wanted[seen].tolist())) < 2:
            seen.append(next(row for row in order.tolist() if row not in set(seen)))
            continue
        model = RandomForestClassifier(models.TREES, random_state=seed, n_jobs=1).fit(
            features[seen], wanted[seen]
        )
        score = model.predict_proba(features)[:, 1]
        score[seen] = -1.0
        seen.append(int(np.argmax(score)))
    return [bool(wanted[row]) for row in seen]


def _filled(features: Floats) -> Floats:
    """Its middle where a number is not known: an isolation forest takes no NaN."""
    return np.where(np.isnan(features), np.nanmedian(features, axis=0), features)


def protocol(
    data: Labelled,
    seeds: Sequence[int],
    members: Sequence[str] = ("aad",),
    makes: Sequence[Make] = (),
    progress: Progress = lambda share: None,
) -> Findings:
    """Hits in 10, 30, 50 and 100 looks of every way, with every seed. The wanted class is the first."""
    made = list(makes) or [outlier_learner(member) for member in members]
    names = [OURS] if len(made) == 1 else [f"{OURS}, {member}" for member in members]
    hits: dict[str, list[list[bool]]] = {name: [] for name in (*names, ISOLATION, GREEDY)}
    rows = data
    for done, seed in enumerate(seeds):
        rows = sample(data, seed)
        for place, (name, make) in enumerate(zip(names, made, strict=True)):
            begun = done + place / len(made)
            step = lambda share, begun=begun: progress((begun + share / len(made)) / len(seeds))  # noqa: E731
            hits[name].append(loop(rows, make(rows, seed), LOOKS[-1], step))
        order = isolation(models.numbers(rows), seed)
        hits[ISOLATION].append((rows.labels[order[: LOOKS[-1]]] == 0).tolist())
        hits[GREEDY].append(greedy(rows, order, LOOKS[-1], seed))
    return _report(rows, hits)


def _report(data: Labelled, hits: dict[str, list[list[bool]]]) -> Findings:
    wanted, table, lines = int((data.labels == 0).sum()), [], []
    numbers: dict[str, float] = {}
    for name, by_seed in hits.items():
        found = [np.cumsum(one).astype(float) for one in by_seed]
        at = {looks: [float(one[min(looks, len(one)) - 1]) for one in found] for looks in LOOKS}
        numbers |= {
            findings.key("anomaly", name, f"hits_{looks}"): findings.mean(v) for looks, v in at.items()
        }
        table.append((name, *(_count(values) for values in at.values())))
        lines.append(
            curve(name, [float(i + 1) for i in range(len(found[0]))], [one.tolist() for one in found])
        )
    chance = [looks * wanted / len(data) for looks in LOOKS]
    table.append(("random looks, expected", *(f"{value:.1f}" for value in chance)))
    note = f"{wanted} '{data.classes[0]}' among {len(data):,} objects, one alert each"
    columns = ("way", *(f"hits in {looks} looks" for looks in LOOKS))
    plot = Plot("Hits by looks", "looks", "hits", tuple(lines))
    return Findings(
        "anomaly", numbers, (Sheet("Anomalies with feedback", columns, tuple(table), note),), (plot,)
    )


def _count(values: Sequence[float]) -> str:
    """'44.2 (41 to 47)' over the seeds."""
    mean = findings.mean(values)
    return f"{mean:.1f} ({min(values):.0f} to {max(values):.0f})" if len(values) > 1 else f"{mean:.0f}"
