"""How good probabilities are. Nothing here knows where they come from.

`truth` is [rows] of class numbers, `said` is [rows, classes] of probabilities. A number that cannot be told (one class
only, no rows) is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

BINS = 10  # of the calibration error
THRESHOLDS = (0.5, 0.7, 0.9)  # at which purity and efficiency are told
SURE = 1e-12


def auc(wanted: NDArray[np.bool_], score: Floats) -> float:
    """Area under the ROC curve: the chance that a wanted row scores above another; equals count half."""
    yes = int(wanted.sum())
    if yes in (0, len(wanted)):
        return float("nan")
    _, place, equal = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(equal) - (equal - 1) / 2)[place]
    return float((ranks[wanted].sum() - yes * (yes + 1) / 2) / (yes * (len(wanted) - yes)))


def class_auc(truth: Integers, said: Floats) -> float:
    """Of two classes the AUC; of more, the mean over the classes of each against the rest, classes equal in weight."""
    if said.shape[1] == 2:
        return auc(truth == 0, said[:, 0])
    found = [auc(truth == c, said[:, c]) for c in range(said.shape[1])]
    known = [value for value in found if value == value]
    return float(np.mean(known)) if known else float("nan")


def log_loss(truth: Integers, said: Floats) -> float:
    """Mean negative log of the probability of what was true, in nats."""
    return _mean(-np.log(np.maximum(said[np.arange(len(truth)), truth], SURE)))


def balanced_accuracy(truth: Integers, said: Floats) -> float:
    """Mean over the classes of the share of its rows that are told right."""
    right = said.argmax(axis=1) == truth
    return _mean(np.array([right[truth == c].mean() for c in np.unique(truth)]))


def purity_and_efficiency(wanted: NDArray[np.bool_], score: Floats, threshold: float) -> tuple[float, float]:
    """Of what scores at least the threshold, the share that is wanted; and of the wanted, the share that does."""
    chosen = score >= threshold
    hits = int((chosen & wanted).sum())
    purity = hits / int(chosen.sum()) if chosen.any() else float("nan")
    return purity, hits / int(wanted.sum()) if wanted.any() else float("nan")


def calibration_error(truth: Integers, said: Floats, bins: int = BINS) -> float:
    """Expected calibration error: mean distance of promised and found shares in `bins` equal bins, weighted by rows.

    Of two classes it is the probability of the first that is held to its word, of more that of the likeliest.
    """
    promised, came = reliability(truth, said)
    place = np.minimum((promised * bins).astype(int), bins - 1)
    gaps = [abs(promised[place == b].sum() - came[place == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(truth)) if len(truth) else float("nan")


def reliability(truth: Integers, said: Floats) -> tuple[Floats, Floats]:
    """What was promised of each row and whether it came: see `calibration_error`."""
    if said.shape[1] == 2:
        return said[:, 0], (truth == 0).astype(float)
    return said.max(axis=1), (said.argmax(axis=1) == truth).astype(float)


def summary(truth: Integers, said: Floats) -> dict[str, float]:
    """All of them, by name."""
    found = {
        "auc": class_auc(truth, said),
        "log_loss": log_loss(truth, said),
        "balanced_accuracy": balanced_accuracy(truth, said),
        "calibration_error": calibration_error(truth, said),
    }
    for threshold in THRESHOLDS:
        pairs = [purity_and_efficiency(truth == c, said[:, c], threshold) for c in _wanted(truth, said)]
        found[f"purity_{threshold:g}"], found[f"efficiency_{threshold:g}"] = (
            _mean(np.array(side)) for side in zip(*pairs, strict=True)
        )
    return found


def _wanted(truth: Integers, said: Floats) -> Sequence[int]:
    """The classes whose purity is told: of two the first, of more all."""
    return (0,) if said.shape[1] == 2 else range(said.shape[1])


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over the seeds; NaN values are left out."""
    known = [value for value in values if value == value]
    if not known:
        return float("nan"), float("nan")
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Mapping[str, float]:
    """The difference seed by seed: its mean, its spread, and the worst."""
    gaps = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    mean, sd = spread(gaps)
    return {"mean": mean, "spread": sd, "worst": min(gaps, default=float("nan"))}
