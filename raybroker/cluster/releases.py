"""What MLflow is told of a model: the release, put together from what the trainer knows. No clock, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raybroker.learning.metrics import summary
from raybroker.learning.release import Forecast, Release, Taught, balance, key
from raybroker.settings import ModelSettings

WINDOW = 50  # labels over which the learning curve is a mean
START = 10  # labels before which it says nothing
QUALITY = ("auc", "log_loss", "balanced_accuracy", "calibration_error")


def release_of(
    frozen: Any,
    settings: ModelSettings,
    *,
    snapshot: int,
    plan: str,
    digest: str,
    when: float,
    why: str,
    taught: Sequence[Taught] = (),
    unseen: Sequence[Forecast] = (),
    parents: Sequence[int] = (),
    configuration: str = "",
    alias: str = "champion",
    example: Mapping[str, float | None] | None = None,
    verdict: str = "",
) -> Release:
    """One frozen model as a release.

    `frozen` is what scores (a `compiled.Frozen` or a `grove.Outliers`), `digest` that of its stored file. `unseen` are
    the delayed forecasts for labelled alerts of objects that were not learned before, in the order of the labels.
    `verdict` says with numbers why this configuration serves, where a contest decided.
    """
    tags = {"why": why} | ({"verdict": verdict} if verdict else {})
    return Release(
        model=frozen.name,
        snapshot=snapshot,
        digest=digest,
        plan=plan,
        state=frozen.snapshot(),
        when=when,
        params=_params(frozen, settings),
        metrics=_metrics(frozen, taught, unseen),
        curves=_curves(frozen.classes, unseen),
        tags=tags,
        parents=tuple(parents),
        configuration=configuration,
        alias=alias,
        classes=tuple(frozen.classes),
        taught=tuple(taught),
        unseen=tuple(unseen),
        example=dict(example or {}),
    )


def _params(frozen: Any, settings: ModelSettings) -> dict[str, Any]:
    return {
        "task": settings.task,
        "classes": ", ".join(frozen.classes),
        "members": ", ".join(frozen.members),
        "columns": ", ".join(frozen.columns),
        "strategy": settings.strategy,
        "thinning_days": settings.thinning_days,
        "seed": settings.seed,
    }


def _metrics(frozen: Any, taught: Sequence[Taught], unseen: Sequence[Forecast]) -> dict[str, float]:
    found: dict[str, float] = {"labels": float(frozen.learned), "unseen.labels": float(len(unseen))}
    found |= {f"labels.{key(name)}": float(count) for name, count in balance(taught).items()}
    weights = getattr(frozen, "weights", None)
    if weights is not None:
        shares = zip(frozen.members, np.asarray(weights).tolist(), strict=True)
        found |= {f"weight.{key(name)}": share for name, share in shares}
    if unseen:
        told = summary(*_arrays(frozen.classes, unseen))
        found |= {f"unseen.{name}": told[name] for name in QUALITY}
    return found


def _arrays(classes: Sequence[str], unseen: Sequence[Forecast]) -> tuple[Any, Any]:
    """Class numbers [rows] and probabilities [rows, classes]."""
    number = {name: i for i, name in enumerate(classes)}
    truth = np.array([number[one.label] for one in unseen], np.int64)
    return truth, np.array([one.probabilities for one in unseen], np.float64)


def _curves(classes: Sequence[str], unseen: Sequence[Forecast]) -> dict[str, list[tuple[float, float]]]:
    """The mean log-loss of the last `WINDOW` labels of unseen objects, at each from the `START`th."""
    if not unseen:
        return {}
    truth, said = _arrays(classes, unseen)
    losses = -np.log(np.maximum(said[np.arange(len(truth)), truth], 1e-12))
    means = list(enumerate(running_means(losses.tolist()), 1))
    return {"unseen_log_loss": [(float(i), mean) for i, mean in means if i >= min(START, len(means))]}


def running_means(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """The mean of the last `window` values, at each.

    >>> running_means([1.0, 3.0, 5.0], window=2)
    [1.0, 2.0, 4.0]
    """
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
