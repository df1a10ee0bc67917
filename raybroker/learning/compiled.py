"""What scores the stream: a learner's members as flat arrays, walked by Numba. No River, no BLAS.

A row's bits do not depend on the rows beside it: every kernel goes through one row after the other, in a fixed order
of features, members and classes. Arrays of a `Frozen` are never changed.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from raybroker.errors import did_you_mean
from raybroker.learning.calibration import Calibration

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

SQUASH_LIMIT = 5.0  # asinh(74): what lies 74 spreads away says no more than that it is far
SQRT_PI = math.sqrt(math.pi)
SMALL, LARGE = 1e-200, 1e200  # a product of densities stays within
PDF_FLOOR = 10e-10  # river.naive_bayes.gaussian._PDF_EPS
PICKLED = b"\x80"  # the first byte of a pickle; what begins otherwise is compressed
FACE = ("name", "classes", "columns", "members", "learned", "predict", "predict_matrix", "digest", "snapshot")
TRUSTED = 500  # labels after which a member's probability may come as near to 0 as 1 in 500


class Prediction(NamedTuple):
    """Probabilities of each class, in the learner's order of classes; a row sums to 1."""

    members: Floats  # [members, rows, classes]
    mixture: Floats  # [rows, classes], calibrated


class Part(Protocol):
    """One member, compiled, as a dataclass: scaled features [rows, columns], NaN where not known -> [rows, classes].

    A row may sum to 0: then the member knows nothing of it.
    """

    def predict(self, scaled: Floats) -> Floats: ...


@dataclass(frozen=True)
class Scale:
    """Per column: asinh((x - center) / spread), clipped. A spread of 0 makes the column not known."""

    center: Floats
    spread: Floats

    def apply(self, features: Floats) -> Floats:
        """The scaled copy of [rows, columns]; what is not finite becomes NaN."""
        scaled: Floats = _squash(features, self.center, self.spread)
        return scaled


@dataclass(frozen=True)
class Softmax:
    """Softmax regression over standardized features."""

    weights: Floats  # [classes, columns]
    bias: Floats  # [classes]
    mean: Floats  # [columns]
    sigma: Floats  # [columns]

    def predict(self, scaled: Floats) -> Floats:
        made: Floats = _softmax(scaled, self.weights, self.bias, self.mean, self.sigma)
        return made


@dataclass(frozen=True)
class NaiveBayes:
    """Gaussian naive Bayes; a sigma of 0 stands for 'no density'."""

    prior: Floats  # log of [classes]
    mean: Floats  # [classes, columns]
    sigma: Floats  # [classes, columns]

    def predict(self, scaled: Floats) -> Floats:
        met = self.sigma > 0.0
        steep = np.divide(math.sqrt(0.5), self.sigma, where=met, out=np.zeros_like(self.sigma))
        made: Floats = _naive_bayes(scaled, self.prior, self.mean, steep)
        return made


@dataclass(frozen=True)
class Forest:
    """Hoeffding trees laid out node after node.

    `feature` is -1 in a leaf; `heavier` is the child for a row that lacks the feature. A leaf answers with `counts` as
    they are, or with naive Bayes over its observed attributes: `first[node]` to `last[node]` of the `attribute` arrays.
    """

    root: Ints  # [trees], -1 for a tree that has seen nothing
    vote: Floats  # [trees]
    feature: Ints  # [nodes]
    threshold: Floats
    left: Ints
    right: Ints
    heavier: Ints
    bayes: NDArray[np.bool_]
    counts: Floats  # [nodes, classes]: the share of each class
    prior: Floats  # [nodes, classes]: its log, or NaN for a class the leaf has not met
    first: Ints
    last: Ints
    attribute: Ints  # [observations]: the column
    mean: Floats  # [observations, classes]
    variance: Floats  # [observations, classes]: 0 where there is no density
    constant: Floats  # [observations, classes]: the part of the log density that does not depend on x

    def predict(self, scaled: Floats) -> Floats:
        nodes = (self.feature, self.threshold, self.left, self.right, self.heavier)
        leaves = (self.bayes, self.counts, self.prior, self.first, self.last)
        observed = (self.attribute, self.mean, self.variance, self.constant)
        made: Floats = _forest(scaled, self.root, self.vote, nodes, leaves, observed)
        return made


@dataclass(frozen=True)
class Frozen:
    """A learner as it was at one moment: it only predicts. Small, picklable, and equal bits for equal models."""

    name: str
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    members: tuple[str, ...]
    learned: int
    scale: Scale
    parts: tuple[Part, ...]
    weights: Floats  # [members], sum 1
    calibration: Calibration

    def predict(self, features: pa.Table | pa.RecordBatch) -> Prediction:
        """Probabilities for the rows of a table that holds at least the learner's columns; null is not known."""
        return self.predict_matrix(matrix(features, self.columns))

    def predict_matrix(self, features: Floats) -> Prediction:
        """The same for [rows, columns] in the learner's order of columns; NaN is not known."""
        scaled = self.scale.apply(features)
        members = drawn(np.stack([part.predict(scaled) for part in self.parts]), self.learned)
        return Prediction(members, calibrated(mixed(members, self.weights), self.calibration))

    def digest(self) -> str:
        """Sha256 over all that decides a score: two learners that learned the same have the same digest."""
        found = hashlib.sha256(repr((self.classes, self.columns, self.members, self.learned)).encode())
        for holder in (self.scale, *self.parts, self.calibration):
            for value in _bytes_of(holder):
                found.update(value)
        found.update(self.weights.tobytes())
        return found.hexdigest()

    def snapshot(self) -> bytes:
        """The bytes that `restore` reads; the arrays of trees shrink to a third."""
        return packed(self)

    @staticmethod
    def restore(data: bytes) -> Frozen:
        """The frozen learner from its bytes. Unpickles: the caller has checked where they come from."""
        found = _unpacked(data)
        if not isinstance(found, Frozen):
            raise ValueError(f"these bytes hold a {type(found).__name__}, not a frozen learner")
        return found


def packed(model: Any) -> bytes:
    """A model's pickle, compressed: equal models have equal bytes. Nothing in a model may hold itself."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.fast = True  # no memo: it notes which objects are one, and that changes by unpickling
    pickler.dump(model)
    return zlib.compress(buffer.getvalue(), level=1)


def restore(data: bytes) -> Any:
    """What a snapshot holds: a `Frozen`, or for anomalies what has the same face. Unpickles, as `Frozen.restore`."""
    found = _unpacked(data)
    missing = [name for name in FACE if not hasattr(found, name)]
    if missing:
        raise ValueError(
            f"these bytes hold a {type(found).__name__}, not a model that scores: no '{missing[0]}'"
        )
    return found


def _unpacked(data: bytes) -> Any:
    packed = data[:1] != PICKLED
    return pickle.loads(zlib.decompress(data) if packed else data)


def drawn(raw: Floats, learned: int) -> Floats:
    """Members' answers [members, rows, classes], each drawn towards uniform by its inexperience; rows sum to 1."""
    found: Floats = _drawn(raw, float(min(learned, TRUSTED)))
    return found


def mixed(members: Floats, weights: Floats) -> Floats:
    """The mixture [rows, classes] of members [members, rows, classes], not calibrated."""
    found: Floats = _mixed(members, weights)
    return found


def calibrated(mixture: Floats, calibration: Calibration) -> Floats:
    """p' ~ exp(bias) * p ** slope; the same bits where there is nothing to change."""
    if calibration.slope == 1.0 and not calibration.bias.any():
        return mixture
    found: Floats = _calibrated(mixture, calibration.slope, calibration.bias)
    return found


def _bytes_of(value: Any) -> Iterator[bytes]:
    """Of arrays their bits, of what holds others its fields in their order, of the rest its pickle."""
    if isinstance(value, np.ndarray):
        yield value.tobytes()
    elif isinstance(value, tuple) or is_dataclass(value):
        held = value if isinstance(value, tuple) else [getattr(value, one.name) for one in fields(value)]
        for each in held:
            yield from _bytes_of(each)
    else:
        yield pickle.dumps(value)


def matrix(features: pa.Table | pa.RecordBatch, columns: Sequence[str]) -> Floats:
    """[rows, columns] of float64 from a table's columns in that order; null becomes NaN."""
    found = np.empty((features.num_rows, len(columns)))
    known = features.schema.names
    for i, name in enumerate(columns):
        if name not in known:
            raise ValueError(
                f"the model needs column '{name}', which is not among them{did_you_mean(name, known)}"
            )
        found[:, i] = (
            features.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False) if len(found) else 0
        )
    return found


@njit(cache=True)
def _squash(features, center, spread):  # type: ignore[no-untyped-def]  # pragma: no cover
    scaled = np.empty(features.shape)
    for row in range(features.shape[0]):
        for i in range(features.shape[1]):
            value = features[row, i]
            if spread[i] > 0.0 and math.isfinite(value):
                squashed = math.asinh((value - center[i]) / spread[i])
                scaled[row, i] = min(max(squashed, -SQUASH_LIMIT), SQUASH_LIMIT)
            else:
                scaled[row, i] = math.nan
    return scaled


@njit(cache=True)
def _softmax(scaled, weights, bias, mean, sigma):  # type: ignore[no-untyped-def]  # pragma: no cover
    classes = len(bias)
    made = np.empty((scaled.shape[0], classes))
    for row in range(scaled.shape[0]):
        for c in range(classes):
            made[row, c] = bias[c]
        for i in range(scaled.shape[1]):
            if not math.isnan(scaled[row, i]):
                value = (scaled[row, i] - mean[i]) / sigma[i]
                for c in range(classes):
                    made[row, c] += weights[c, i] * value
        _exponentiate(made[row])
    return made


@njit(cache=True)
def _exponentiate(logs):  # type: ignore[no-untyped-def]  # pragma: no cover
    """In place: logs to probabilities; NaN stands for a class that is not met."""
    most, total = -math.inf, 0.0
    for c in range(len(logs)):
        if logs[c] > most:
            most = logs[c]
    for c in range(len(logs)):
        logs[c] = 0.0 if math.isnan(logs[c]) else math.exp(logs[c] - most)
        total += logs[c]
    for c in range(len(logs)):
        logs[c] = logs[c] / total if total > 0.0 else 0.0


@njit(cache=True)
def exponentiate(logs):  # type: ignore[no-untyped-def]  # pragma: no cover
    """In place: logs [rows, classes] to probabilities; NaN stands for a class that is not met."""
    for row in range(logs.shape[0]):
        _exponentiate(logs[row])


@njit(cache=True)
def _naive_bayes(scaled, prior, mean, steep):  # type: ignore[no-untyped-def]  # pragma: no cover
    """`steep` is 1 / (sqrt(2) sigma). Densities are multiplied and the log taken before the product may overflow."""
    classes = len(prior)
    made = np.empty((scaled.shape[0], classes))
    for row in range(scaled.shape[0]):
        for c in range(classes):
            found, product = prior[c], 1.0
            for i in range(scaled.shape[1]):
                if not math.isnan(scaled[row, i]):
                    away = (scaled[row, i] - mean[c, i]) * steep[c, i]
                    product *= PDF_FLOOR + math.exp(-away * away) * steep[c, i] / SQRT_PI
                    if not SMALL < product < LARGE:
                        found += math.log(product)
                        product = 1.0
            made[row, c] = found + math.log(product)
        _exponentiate(made[row])
    return made


@njit(cache=True)
def _leaf_of(row, node, feature, threshold, left, right, heavier):  # type: ignore[no-untyped-def]  # pragma: no cover
    while feature[node] >= 0:
        value = row[feature[node]]
        if math.isnan(value):
            node = heavier[node]
        elif value <= threshold[node]:
            node = left[node]
        else:
            node = right[node]
    return node


@njit(cache=True)
def _leaf_bayes(row, node, prior, first, last, observed, votes):  # type: ignore[no-untyped-def]  # pragma: no cover
    attribute, mean, variance, constant = observed
    for c in range(len(votes)):
        votes[c] = prior[node, c]
        for i in range(first[node], last[node]):
            value = row[attribute[i]]
            if variance[i, c] > 0.0 and not math.isnan(value):
                away = value - mean[i, c]
                votes[c] += away * away / (-2.0 * variance[i, c]) + constant[i, c]
    _exponentiate(votes)


@njit(cache=True)
def _forest(scaled, root, vote, nodes, leaves, observed):  # type: ignore[no-untyped-def]  # pragma: no cover
    feature, threshold, left, right, heavier = nodes
    bayes, counts, prior, first, last = leaves
    classes = counts.shape[1]
    made = np.zeros((scaled.shape[0], classes))
    votes = np.empty(classes)
    for row in range(scaled.shape[0]):
        for tree in range(len(root)):
            if root[tree] < 0:
                continue
            node = _leaf_of(scaled[row], root[tree], feature, threshold, left, right, heavier)
            if bayes[node]:
                _leaf_bayes(scaled[row], node, prior, first, last, observed, votes)
            else:
                votes[:] = counts[node]
            for c in range(classes):
                made[row, c] += vote[tree] * votes[c]
    return made


@njit(cache=True)
def _drawn(raw, trust):  # type: ignore[no-untyped-def]  # pragma: no cover
    count, rows, classes = raw.shape
    members = np.empty(raw.shape)
    for m in range(count):
        for row in range(rows):
            total = 0.0
            for c in range(classes):
                total += raw[m, row, c]
            for c in range(classes):
                share = raw[m, row, c] / total if total > 0.0 else 1.0 / classes
                members[m, row, c] = (trust * share + 1.0) / (trust + classes)
    return members


@njit(cache=True)
def _mixed(members, weights):  # type: ignore[no-untyped-def]  # pragma: no cover
    count, rows, classes = members.shape
    mixture = np.zeros((rows, classes))
    for m in range(count):
        for row in range(rows):
            for c in range(classes):
                mixture[row, c] += weights[m] * members[m, row, c]
    return mixture


@njit(cache=True)
def _calibrated(mixture, slope, bias):  # type: ignore[no-untyped-def]  # pragma: no cover
    made = np.empty(mixture.shape)
    for row in range(mixture.shape[0]):
        for c in range(mixture.shape[1]):
            made[row, c] = slope * math.log(mixture[row, c]) + bias[c]
        _exponentiate(made[row])
    return made
