"""The members of a mixture: River models that learn one label at a time, and how each becomes flat arrays.

A member sees scaled features (about 0, spread about 1, within ±5) by the number of their column, and classes by their
number; what is not known is a missing key. `[models.NAME] members` names them: built in, or the dotted path
'package.module:factory' of a function `factory(seed) -> river classifier`, which then sees names instead of numbers.
"""

from __future__ import annotations

import importlib
import math
import pickle
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from river import ensemble, forest, linear_model, naive_bayes, optim, tree

from raybroker.errors import SettingsError, did_you_mean
from raybroker.learning import compiled
from raybroker.learning.compiled import Floats, Part
from raybroker.learning.windowed import WindowMember

ADAPTATION = 0.01  # the softmax scaler forgets over some 100 labels, as AdaptiveStandardScaler(0.01)
HALF_LOG_TAU = 0.5 * math.log(math.tau)


class Member(Protocol):
    """A model that learns row by row: `row` is [columns], scaled, NaN where not known; labels are class numbers."""

    def learn(self, row: Floats, label: int) -> None: ...

    def predict_one(self, row: Floats) -> Floats:
        """Probabilities of the classes as River computes them; all 0 if it knows nothing."""

    def compile(self) -> Part: ...


class Task(NamedTuple):
    """What a member is made for."""

    classes: tuple[str, ...]
    columns: tuple[str, ...]
    seed: int
    window: int  # labels that a refitted member learns from


def make(name: str, task: Task) -> Member:
    """The member of that name, fresh."""
    shape = (len(task.classes), len(task.columns), task.seed)
    if name == "window":
        return WindowMember(*shape, task.window)
    if name in BUILT_IN:
        return BUILT_IN[name](*shape)
    if name not in RIVER and ":" not in name:
        names = sorted(["window", *BUILT_IN, *RIVER])
        raise SettingsError(
            f"no member '{name}'{did_you_mean(name, names)}: give one of {names} or 'package.module:factory'"
        )
    model = (RIVER[name] if name in RIVER else load_dotted(name))(task.seed)
    for method in ("learn_one", "predict_proba_one"):
        if not hasattr(model, method):
            raise SettingsError(f"member '{name}' made a {type(model).__name__}, which has no {method}")
    return RiverMember(model, task.classes, task.columns)


def load_dotted(path: str) -> Callable[..., Any]:
    """What 'package.module:name' names."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"'{path}' cannot be loaded: {error}") from error


def known(row: Floats) -> dict[int, float]:
    """River's form of a row: missing features are missing keys."""
    return {i: value for i, value in enumerate(row.tolist()) if value == value}


def shares(found: Mapping[Any, float], classes: Sequence[Hashable]) -> Floats:
    """River's answer as an array in the order of the classes."""
    return np.array([found.get(c, 0.0) for c in classes])


class SoftmaxMember:
    """An adaptive scaler, then softmax regression: the member that follows a drift fastest."""

    def __init__(self, classes: int, columns: int, seed: int) -> None:
        self.classes = range(classes)
        self.model: Any = linear_model.SoftmaxRegression(optimizer=optim.AdaGrad(0.1))
        for (
            c
        ) in self.classes:  # all classes from the start, in one order: softmax sums in the order they came
            self.model.weights[c][-1] = 0.0
        self.mean, self.variance = np.zeros(columns), np.ones(columns)
        self.count = np.full(columns, 10.0)  # the features come scaled, which counts as 10 labels seen

    def learn(self, row: Floats, label: int) -> None:
        self._adapt(row)
        self.model.learn_one(self._standardized(row), label)

    def _adapt(self, row: Floats) -> None:
        self.count += ~np.isnan(row)
        gain = np.where(np.isnan(row), 0.0, np.maximum(1.0 / self.count, ADAPTATION))
        away = np.nan_to_num(row) - self.mean
        self.mean = self.mean + gain * away
        self.variance = (1.0 - gain) * (self.variance + gain * away * away)

    def _standardized(self, row: Floats) -> dict[int, float]:
        return {
            **known((row - self.mean) / self._sigma()),
            -1: 1.0,
        }  # -1 is the intercept, which River's lacks

    def _sigma(self) -> Floats:
        return np.sqrt(self.variance + 1e-4)

    def predict_one(self, row: Floats) -> Floats:
        return shares(self.model.predict_proba_one(self._standardized(row)), self.classes)

    def compile(self) -> Part:
        columns = range(len(self.mean))
        weights = [[self.model.weights[c].get(i, 0.0) for i in columns] for c in self.classes]
        bias = [self.model.weights[c][-1] for c in self.classes]
        return compiled.Softmax(
            np.array(weights).reshape(len(bias), -1), np.array(bias), self.mean, self._sigma()
        )


class NaiveBayesMember:
    """Gaussian naive Bayes that begins with two made-up rows per class, all features at -1 and all at +1.

    River's gives a class met once, or a feature constant so far, no density at all; the two rows mend both.
    """

    def __init__(self, classes: int, columns: int, seed: int) -> None:
        self.classes, self.columns = range(classes), range(columns)
        bayes: Any = naive_bayes.GaussianNB
        self.model = bayes()
        for c in self.classes:
            for value in (-1.0, 1.0):
                self.model.learn_one(dict.fromkeys(self.columns, value), c)

    def learn(self, row: Floats, label: int) -> None:
        self.model.learn_one(known(row), label)

    def predict_one(self, row: Floats) -> Floats:
        return shares(self.model.predict_proba_one(known(row)), self.classes)

    def compile(self) -> Part:
        prior = [math.log(self.model.p_class(c)) for c in self.classes]
        densities = [[self.model.gaussians[c][i] for i in self.columns] for c in self.classes]
        mean = np.array([[density.mu for density in row] for row in densities])
        sigma = np.array([[density.sigma for density in row] for row in densities])
        return compiled.NaiveBayes(
            np.array(prior), mean.reshape(len(prior), -1), sigma.reshape(len(prior), -1)
        )


class ForestMember:
    """An adaptive random forest of ten Hoeffding trees."""

    def __init__(self, classes: int, columns: int, seed: int) -> None:
        self.classes = range(classes)
        self.model: Any = forest.ARFClassifier(n_models=10, seed=seed)
        self.model.predict_proba_one(
            dict.fromkeys(range(columns), 0.0)
        )  # its first row fixes how many it samples

    def learn(self, row: Floats, label: int) -> None:
        self.model.learn_one(known(row), label)

    def predict_one(self, row: Floats) -> Floats:
        return shares(self.model.predict_proba_one(known(row)), self.classes)

    def compile(self) -> Part:
        trees = _Trees(len(self.classes))
        roots = [trees.add(tree._root) for tree in self.model]
        accuracy = [metric.get() for metric in self.model._metrics]
        votes = [value if value > 0.0 else 1.0 for value in accuracy]  # as in ARFClassifier.predict_proba_one
        return trees.forest(roots, votes)


class _Trees:
    """Lays River's trees out as the arrays of `compiled.Forest`."""

    def __init__(self, classes: int) -> None:
        self.classes = range(classes)
        self.splits: list[tuple[int, float, int, int, int]] = []  # feature, threshold, left, right, heavier
        self.leaves: list[tuple[bool, list[float], list[float], int, int]] = []
        self.observed: list[tuple[int, list[float], list[float], list[float]]] = []

    def add(self, node: Any) -> int:
        """The number of this node, after it and all below it are laid out; -1 for none."""
        if node is None:
            return -1
        number = len(self.splits)
        self.splits.append((-1, 0.0, -1, -1, -1))
        self.leaves.append(self._no_leaf() if hasattr(node, "children") else self._leaf(node))
        if hasattr(node, "children"):
            left, right = (self.add(child) for child in node.children)
            heavier = (left, right)[node.most_common_path()[0]]
            self.splits[number] = (node.feature, node.threshold, left, right, heavier)
        return number

    def _no_leaf(self) -> tuple[bool, list[float], list[float], int, int]:
        return False, [0.0 for _ in self.classes], [math.nan for _ in self.classes], 0, 0

    def _leaf(self, leaf: Any) -> tuple[bool, list[float], list[float], int, int]:
        total = sum(leaf.stats.values())
        bayes = leaf.is_active() and leaf._nb_correct_weight >= leaf._mc_correct_weight
        counts = [leaf.stats.get(c, 0.0) / (total or 1.0) for c in self.classes]
        first = len(self.observed)
        if bayes and total > 0:
            self.observed += [
                self._observed(i, splitter, leaf.stats) for i, splitter in leaf.splitters.items()
            ]
        return (
            bayes,
            counts,
            [self._prior(leaf.stats.get(c), total) for c in self.classes],
            first,
            len(self.observed),
        )

    def _prior(self, weight: float | None, total: float) -> float:
        if weight is None or total == 0:
            return math.nan
        return (
            math.log(weight / total) if weight > 0 else 0.0
        )  # as river.tree.utils.do_naive_bayes_prediction

    def _observed(
        self, column: int, splitter: Any, stats: Mapping[int, float]
    ) -> tuple[int, list[float], list[float], list[float]]:
        met = [splitter._att_dist_per_class.get(c) if stats.get(c, 0.0) > 0 else None for c in self.classes]
        mean = [density.mu if density else 0.0 for density in met]
        variance = [density._var.get() if density and density.n_samples > 1 else 0.0 for density in met]
        constant = [-HALF_LOG_TAU - 0.5 * math.log(v) if v > 0 else 0.0 for v in variance]
        return column, mean, variance, constant

    def forest(self, roots: Sequence[int], votes: Sequence[float]) -> compiled.Forest:
        feature, threshold, left, right, heavier = _columns(self.splits, 5)
        bayes, counts, prior, first, last = _columns(self.leaves, 5)
        attribute, mean, variance, constant = _columns(self.observed, 4)
        wide = (-1, len(self.classes))
        return compiled.Forest(
            root=np.array(roots, np.int32),
            vote=np.array(votes, float),
            feature=np.array(feature, np.int32),
            threshold=np.array(threshold, float),
            left=np.array(left, np.int32),
            right=np.array(right, np.int32),
            heavier=np.array(heavier, np.int32),
            bayes=np.array(bayes, bool),
            counts=np.array(counts, float).reshape(wide),
            prior=np.array(prior, float).reshape(wide),
            first=np.array(first, np.int32),
            last=np.array(last, np.int32),
            attribute=np.array(attribute, np.int32),
            mean=np.array(mean, float).reshape(wide),
            variance=np.array(variance, float).reshape(wide),
            constant=np.array(constant, float).reshape(wide),
        )


def _columns(rows: Sequence[tuple[Any, ...]], count: int) -> list[list[Any]]:
    return [[row[i] for row in rows] for i in range(count)]


@dataclass(frozen=True)
class RiverMember:
    """A user's River classifier; it goes row by row where ours are compiled."""

    model: Any
    classes: tuple[str, ...]
    columns: tuple[str, ...]

    def learn(self, row: Floats, label: int) -> None:
        self.model.learn_one(self._named(row), self.classes[label])

    def _named(self, row: Floats) -> dict[str, float]:
        return {self.columns[i]: value for i, value in known(row).items()}

    def predict_one(self, row: Floats) -> Floats:
        return shares(self.model.predict_proba_one(self._named(row)), self.classes)

    def compile(self) -> Part:
        return RowByRow(pickle.dumps(self, protocol=5))


@dataclass(frozen=True)
class RowByRow:
    """A part that asks a pickled member, row after row."""

    member: bytes

    def predict(self, scaled: Floats) -> Floats:
        member: RiverMember = pickle.loads(self.member)
        made = [member.predict_one(row) for row in scaled]
        return np.array(made, float).reshape(len(scaled), len(member.classes))


BUILT_IN: dict[str, Callable[[int, int, int], Member]] = {
    "softmax": SoftmaxMember,
    "naive_bayes": NaiveBayesMember,
    "forest": ForestMember,
}


def bagging(seed: int) -> Any:
    """Leveraging bagging of ten Hoeffding trees."""
    return ensemble.LeveragingBaggingClassifier(tree.HoeffdingTreeClassifier(), n_models=10, seed=seed)


def patches(seed: int) -> Any:
    """Streaming random patches: ten Hoeffding trees, each on a part of features and labels."""
    return ensemble.SRPClassifier(tree.HoeffdingTreeClassifier(), n_models=10, seed=seed)


RIVER: dict[str, Callable[[int], Any]] = {"bagging": bagging, "patches": patches}  # not compiled: row by row
