"""The same alerts told by several models over several seeds: one table, the differences seed by seed, one plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raybroker.learning import metrics
from raybroker.learning.metrics import Floats, Integers
from raybroker.protocols import findings
from raybroker.protocols.findings import Line, Plot, Sheet
from raybroker.protocols.models import BASELINE, MIXTURE, PLAIN

SHOWN = ("auc", "log_loss", "balanced_accuracy", "calibration_error")
SUMMARIES = Mapping[str, Mapping[str, float]]  # model -> metric -> value


@dataclass(frozen=True)
class Told:
    """What models said of some rows, of one seed."""

    truth: Integers
    said: Mapping[str, Floats]  # model -> [rows, classes]

    def summaries(self) -> SUMMARIES:
        """Every metric of every model."""
        return {name: metrics.summary(self.truth, said) for name, said in self.said.items()}


def values(seeds: Sequence[SUMMARIES], model: str, metric: str) -> list[float]:
    """One metric of one model, seed by seed."""
    return [one[model][metric] for one in seeds if metric in one[model]]


def numbers(prefix: str, seeds: Sequence[SUMMARIES]) -> dict[str, float]:
    """Means by name, and of the mixture against the forest the difference."""
    made = {
        findings.key(prefix, model, metric): findings.mean(values(seeds, model, metric))
        for model, told in seeds[0].items()
        for metric in told
    }
    for metric in SHOWN:
        gap = _gap(seeds, metric)
        made |= {findings.key(prefix, f"mixture_less_forest.{metric}.{part}"): gap[part] for part in gap}
    return made


def _gap(seeds: Sequence[SUMMARIES], metric: str) -> Mapping[str, float]:
    return metrics.paired(values(seeds, MIXTURE, metric), values(seeds, BASELINE, metric))


def table(title: str, seeds: Sequence[SUMMARIES], note: str = "") -> Sheet:
    """A row per model, the mixture first, and the paired difference last."""
    rows = [
        (model, *(findings.with_spread(values(seeds, model, metric)) for metric in SHOWN))
        for model in seeds[0]
    ]
    rows.append(
        ("mixture − random forest, paired", *(findings.signed(_gap(seeds, metric)) for metric in SHOWN))
    )
    return Sheet(
        title, ("model", "AUC", "log-loss", "balanced accuracy", "calibration error"), tuple(rows), note
    )


def thresholds(title: str, seeds: Sequence[SUMMARIES], wanted: str) -> Sheet:
    """Purity and efficiency of the mixture and of the forest."""
    rows = []
    for threshold in metrics.THRESHOLDS:
        for model in (MIXTURE, BASELINE):
            pair = [values(seeds, model, f"{what}_{threshold:g}") for what in ("purity", "efficiency")]
            rows.append((f"{threshold:g}", model, *map(findings.with_spread, pair)))
    return Sheet(title, ("threshold", "model", "purity", "efficiency"), tuple(rows), f"of {wanted}")


def reliability(title: str, told: Sequence[Told]) -> Plot:
    """What was promised and what came, in ten bins, before and after calibration."""
    truth = np.concatenate([one.truth for one in told])
    after = np.concatenate([one.said[MIXTURE] for one in told])
    before = np.concatenate([one.said[PLAIN] for one in told])
    lines = (
        _promises("mixture, calibrated", truth, after),
        _promises("mixture, before calibration", truth, before),
        Line("as it should be", (0.0, 1.0), (0.0, 1.0)),
    )
    return Plot(title, "promised probability", "share that came true", lines)


def _promises(name: str, truth: Integers, said: Floats) -> Line:
    promised, came = metrics.reliability(truth, said)
    place = np.minimum((promised * metrics.BINS).astype(int), metrics.BINS - 1)
    bins = [b for b in range(metrics.BINS) if (place == b).sum() >= 5]
    x = tuple(float(promised[place == b].mean()) for b in bins)
    return Line(name, x, tuple(float(came[place == b].mean()) for b in bins))
