"""What scores anomalies: an isolation forest whose leaves were weighed by labels, as flat arrays walked by Numba.

Like `compiled`, it imports nothing that learns, and a row's bits do not depend on the rows beside it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from raybroker.learning import compiled
from raybroker.learning.compiled import Prediction, matrix

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

BLOCK = 64  # rows that go through one tree together, while it is in the processor's cache
KNOTS = 1_000  # scores of the background that are kept
TOP_KNOTS = 256  # of these from its top, each one: the order of the top is what people look at
LARGEST = 1e100  # coniferest panics where the span of a column is not finite
EDGE = 1e-3  # the share kept for what lies beyond the background; float32 tells 16,000 numbers apart in it


@dataclass(frozen=True)
class Trees:
    """Tree after tree, node after node. A row with more than `threshold` goes to the node after `left`, others to `left`.

    A leaf leads to itself: its `left` is its own number, its threshold infinite, so that all rows take `depth` steps
    and the processor need not guess. `leaf` is what a leaf adds to the score, and 0 elsewhere.
    """

    root: Ints  # [trees]
    feature: Ints  # [nodes]
    threshold: Floats  # [nodes]
    left: Ints  # [nodes]
    leaf: Floats  # [nodes]
    depth: int
    halving: float  # 0: the score is the sum; else it is -2 ** (-sum / halving), an isolation forest's

    def scores(self, filled: Floats) -> Floats:
        """[rows] for [rows, columns] without NaN, as coniferest's `score_samples`: the lower, the more anomalous."""
        nodes = (self.root, self.feature, self.threshold, self.left, self.leaf)
        made: Floats = _scores(np.ascontiguousarray(filled), *nodes, self.depth, self.halving)
        return made

    def over(self, columns: NDArray[np.intp]) -> Trees:
        """The same trees, whose feature i is column `columns[i]` of a wider table."""
        return replace(self, feature=columns[self.feature].astype(np.int32))


@dataclass(frozen=True)
class Ranks:
    """Where scores lie among those of the background: its sorted anomaly scores (minus coniferest's), thinned."""

    knots: Floats  # ascending, each once
    shares: Floats  # of the background below each knot, in (EDGE, 1 - EDGE)

    @staticmethod
    def of(anomaly: Floats) -> Ranks:
        """The ranks of a background. Equal scores share the middle of their ranks."""
        ordered = np.sort(anomaly)
        kept = np.linspace(0, len(ordered) - 1, KNOTS - TOP_KNOTS).astype(np.intp)
        knots = np.unique(np.concatenate([ordered[kept], ordered[-TOP_KNOTS:]]))
        below, upto = (np.searchsorted(ordered, knots, side) for side in ("left", "right"))
        return Ranks(knots, EDGE + (1 - 2 * EDGE) * (below + upto) / (2 * len(ordered)))

    def probabilities(self, anomaly: Floats) -> Floats:
        """[rows, 2]: the share of the background that is less anomalous, and the share that is more.

        Strictly monotone, beyond the background too. What differs by a hundredth of the background's range
        still differs as float32.
        """
        made: Floats = _probabilities(anomaly, self.knots, self.shares)
        return made


@dataclass(frozen=True)
class Outliers:
    """An anomaly learner as it was at one moment: it only predicts. It has the face of `compiled.Frozen`."""

    name: str
    classes: tuple[str, ...]  # the wanted one first
    columns: tuple[str, ...]
    members: tuple[str, ...]
    learned: int
    filling: Floats  # [columns]: the background's median, put where a value is not known
    trees: Trees | None  # None: no background yet, nothing is known
    ranks: Ranks | None

    def predict(self, features: pa.Table | pa.RecordBatch) -> Prediction:
        """For the rows of a table that holds at least the learner's columns; null is not known."""
        return self.predict_matrix(matrix(features, self.columns))

    def predict_matrix(self, features: Floats) -> Prediction:
        """The same for [rows, columns] in the learner's order of columns; what is not finite is not known.

        The first class's number is the share of the background that is less anomalous.
        """
        if self.trees is None or self.ranks is None:
            found = np.full((len(features), 2), 0.5)
        else:
            found = self.ranks.probabilities(-self.trees.scores(self.fill(features)))
        return Prediction(found[None], found.copy())

    def fill(self, features: Floats) -> Floats:
        """A copy with the background's medians where a value is not finite."""
        return filled(features, self.filling)

    def digest(self) -> str:
        """Sha256 over all that decides a score: two learners that learned the same have the same digest."""
        found = hashlib.sha256(repr((self.classes, self.columns, self.members, self.learned)).encode())
        found.update(self.filling.tobytes())
        for holder in (self.trees, self.ranks):
            for field in fields(holder) if holder is not None else ():
                value: Any = getattr(holder, field.name)
                found.update(np.asarray(value).tobytes())
        return found.hexdigest()

    def snapshot(self) -> bytes:
        """The bytes that `compiled.restore` reads; they shrink to a third."""
        return compiled.packed(self)

    @staticmethod
    def restore(data: bytes) -> Outliers:
        """From its bytes. Unpickles: the caller has checked where they come from."""
        found = compiled.restore(data)
        if not isinstance(found, Outliers):
            raise ValueError(f"these bytes hold a {type(found).__name__}, not a frozen anomaly learner")
        return found


def filled(features: Floats, filling: Floats) -> Floats:
    """[rows, columns] with `filling` where a value is not finite, and none so large that differences overflow."""
    return np.where(np.isfinite(features), np.clip(features, -LARGEST, LARGEST), filling)


@njit(cache=True)
def _scores(rows, root, feature, threshold, left, leaf, depth, halving):  # type: ignore[no-untyped-def]  # pragma: no cover
    made = np.zeros(len(rows))
    node = np.empty(BLOCK, np.int32)
    for start in range(0, len(rows), BLOCK):
        count = min(BLOCK, len(rows) - start)
        for tree in range(len(root)):
            node[:] = root[tree]
            for _ in range(depth):
                for i in range(count):
                    at = node[i]
                    node[i] = left[at] + np.int32(rows[start + i, feature[at]] > threshold[at])
            for i in range(count):
                made[start + i] += leaf[node[i]]
    if halving > 0.0:
        for row in range(len(rows)):
            made[row] = -math.pow(2.0, -made[row] / halving)
    return made


@njit(cache=True)
def _probabilities(anomaly, knots, shares):  # type: ignore[no-untyped-def]  # pragma: no cover
    last = len(knots) - 1
    width = knots[last] - knots[0] if last > 0 else 1.0
    made = np.empty((len(anomaly), 2))
    for row in range(len(anomaly)):
        found = anomaly[row]
        if found > knots[last]:
            made[row, 1] = (1.0 - shares[last]) / (1.0 + (found - knots[last]) / width)
            made[row, 0] = 1.0 - made[row, 1]
        elif found < knots[0]:
            made[row, 0] = shares[0] / (1.0 + (knots[0] - found) / width)
            made[row, 1] = 1.0 - made[row, 0]
        else:
            i = min(np.searchsorted(knots, found, side="right") - 1, max(last - 1, 0))
            step = (found - knots[i]) / (knots[i + 1] - knots[i]) if last > 0 else 0.0
            made[row, 0] = shares[i] + step * (shares[min(i + 1, last)] - shares[i])
            made[row, 1] = 1.0 - made[row, 0]
    return made
