"""What the stream protocol tells: see `stream`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raybroker.learning import metrics
from raybroker.protocols import compared, stream
from raybroker.protocols.compared import Told
from raybroker.protocols.findings import Findings, Plot, curve, over
from raybroker.protocols.models import BASELINE, MIXTURE, Recipe
from raybroker.protocols.stream import SCOPES, Progress, Rules, Run
from raybroker.protocols.tables import Labelled

PIECES = 8  # of the stream, for the curve over it


def protocol(
    data: Labelled,
    recipe: Recipe,
    rules: Rules,
    seeds: Sequence[int],
    progress: Progress = lambda share: None,
) -> Findings:
    """The stream with every seed: unseen objects first."""
    runs = []
    for number, seed in enumerate(seeds):
        runs.append(
            stream.run(data, recipe, rules, seed, lambda share, n=number: progress((n + share) / len(seeds)))  # type: ignore[misc]
        )
    return report(runs, recipe, rules)


def report(runs: Sequence[Run], recipe: Recipe, rules: Rules) -> Findings:
    """Tables, numbers and plots of some runs of one table."""
    numbers: dict[str, float] = {}
    sheets, plots = [], []
    for scope in SCOPES:
        told = [_told(run, scope, recipe) for run in runs]
        if min(len(one.truth) for one in told) == 0:
            continue
        summaries = [one.summaries() for one in told]
        numbers |= compared.numbers(f"stream.{scope.replace(' ', '_')}", summaries)
        rows = round(np.mean([len(one.truth) for one in told]))
        sheets.append(compared.table(f"Stream, {scope}", summaries, f"{rows:,} alerts, {over(len(runs))}"))
        if scope == SCOPES[0]:
            wanted = (
                f"'{runs[0].data.classes[0]}'" if runs[0].data.binary else "each class against the rest, mean"
            )
            sheets.append(compared.thresholds("Stream, unseen objects, at thresholds", summaries, wanted))
            plots.append(compared.reliability("Calibration on unseen objects", told))
    plots += [_over_time(runs, recipe)]
    return Findings("stream", numbers, tuple(sheets), tuple(plots), tuple(_notes(runs, rules, recipe)))


def _told(run: Run, scope: str, recipe: Recipe) -> Told:
    rows = run.scope(scope)
    said = {name: probabilities[rows] for name, probabilities in run.said(recipe.names).items()}
    return Told(run.data.labels[rows], said)


def _over_time(runs: Sequence[Run], recipe: Recipe) -> Plot:
    """AUC on unseen objects along the stream, in pieces of equally many alerts."""
    lines = []
    for name in (MIXTURE, BASELINE, *recipe.names):
        found = [_pieces(run, run.said(recipe.names)[name]) for run in runs]
        lines.append(curve(name, [float(i + 1) for i in range(PIECES)], found))
    return Plot(
        "AUC on unseen objects along the stream", f"part of the stream, of {PIECES}", "AUC", tuple(lines)
    )


def _pieces(run: Run, said: metrics.Floats) -> list[float]:
    rows = np.flatnonzero(run.scope(SCOPES[0]))
    return [metrics.class_auc(run.data.labels[part], said[part]) for part in np.array_split(rows, PIECES)]


def _notes(runs: Sequence[Run], rules: Rules, recipe: Recipe) -> list[str]:
    weights = np.mean([run.weights for run in runs], axis=0)
    shares = ", ".join(f"{name} {share:.2f}" for name, share in zip(recipe.names, weights, strict=True))
    early = round(np.mean([(~run.counts).sum() for run in runs]))
    never = f", of {rules.never:.0%} of the objects never" if rules.never else ""
    return [
        f"labels come {rules.delay:g} days late{never}; of one object at most one in {rules.thinning:g} days is learned: "
        f"{runs[0].heard[-1]:,} labels",
        f"the first {early:,} alerts, before {stream.LEAST} labels and the forest's first week, do not count",
        f"the members' weights at the end: {shares}",
    ]
