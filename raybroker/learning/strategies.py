"""What to ask next: a strategy ranks the rows of a pool, best first.

>>> pool = Pool(("a", "b"), ("x", "y"), np.full((1, 2, 2), 0.5), np.array([[0.9, 0.1], [0.5, 0.5]]))
>>> by_name("margin")(pool, 1, np.random.default_rng(0)).tolist()
[1]
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from modAL.uncertainty import classifier_entropy, classifier_margin, classifier_uncertainty
from numpy.typing import NDArray

from raybroker.errors import SettingsError, did_you_mean

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Pool:
    """What may be asked: a view that holds no labels, and whose arrays cannot be written."""

    alert_ids: tuple[str, ...]
    object_ids: tuple[str | None, ...]
    probabilities: Floats  # [members, rows, classes]
    mixture: Floats  # [rows, classes]
    features: pa.Table | None = None

    def __post_init__(self) -> None:
        for name in ("probabilities", "mixture"):
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __len__(self) -> int:
        return len(self.alert_ids)


# (pool, n, rng) -> at most n different rows, best first. All chance comes from `rng`.
Strategy = Callable[[Pool, int, np.random.Generator], Rows]


@dataclass(frozen=True)
class Committee:
    """The three lines of scikit-learn that modAL's measures ask for."""

    def predict_proba(self, probabilities: Floats) -> Floats:
        return probabilities


def ranked(utility: Floats, n: int, rng: np.random.Generator) -> Rows:
    """The n rows of highest utility, highest first; equals in an order drawn from `rng`. NaN comes last."""
    # modAL's own n-best are in no order, and its tie-break draws from NumPy's global state
    order = rng.permutation(len(utility))
    lowest_last = np.argsort(-np.nan_to_num(utility[order], nan=-np.inf), kind="stable")
    return order[lowest_last][: max(n, 0)]


def measured(measure: Callable[..., Floats], sign: float = 1.0) -> Strategy:
    """A strategy from one of modAL's measures of the mixture; sign -1 where the least is asked first."""

    def strategy(pool: Pool, n: int, rng: np.random.Generator) -> Rows:
        if not len(pool):
            return np.empty(0, np.intp)
        return ranked(sign * measure(Committee(), pool.mixture), n, rng)

    return strategy


uncertainty = measured(classifier_uncertainty)
margin = measured(classifier_margin, -1.0)
entropy = measured(classifier_entropy)


def random(pool: Pool, n: int, rng: np.random.Generator) -> Rows:
    """Any row: the honest test set, and what the others are compared with."""
    return rng.permutation(len(pool))[: max(n, 0)]


BUILT_IN: dict[str, Strategy] = {
    "uncertainty": uncertainty,
    "margin": margin,
    "entropy": entropy,
    "random": random,
}


def by_name(name: str) -> Strategy:
    """A built-in strategy, or the user's by its dotted path 'package.module:function'."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        near = did_you_mean(name, BUILT_IN)
        raise SettingsError(
            f"no strategy '{name}'{near}: give one of {sorted(BUILT_IN)} or 'package.module:function'"
        )
    module, _, function = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"strategy '{name}' cannot be loaded: {error}") from error
    return checked(name, found)


def checked(name: str, strategy: Strategy) -> Strategy:
    """A user's strategy whose answer is held to the contract: rows of the pool, each once, at most n."""

    def call(pool: Pool, n: int, rng: np.random.Generator) -> Rows:
        rows = np.asarray(strategy(pool, n, rng))
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise ValueError(
                f"strategy '{name}' must return row numbers, not {rows.dtype} of shape {rows.shape}"
            )
        rows = rows.astype(np.intp)
        if len(np.unique(rows)) < len(rows) or ((rows < 0) | (rows >= len(pool))).any():
            raise ValueError(
                f"strategy '{name}' returned a row twice or one that the pool of {len(pool)} does not have"
            )
        return rows[: max(n, 0)]

    return call
