"""The member "window": scikit-learn's forests refitted on the last labels.

It forgets what is older than its window. What came before a change of the stream counts for less, so that it follows
where the online members average; unless only the shares of the classes changed, and what was learned still holds. A refit is due after a number of labels, never after a time, and is made when somebody asks: a thousand labels
learned in a row cost one refit.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from threadpoolctl import threadpool_limits

from raybroker.learning.compiled import Floats, Part
from raybroker.learning.metrics import class_auc
from raybroker.learning.trees import Committee, Tree, Trees, lay_out

LEAST = 10  # labels; a random forest of fewer knows nothing
BOOSTED_FROM = 150  # labels; boosting is at chance until about 40, since a leaf holds at least 20
# Boosting is the better model of objects that were labelled, the forest of those that were not, which matter more
# (docs/decisions/mixture.md); so the forest keeps most of the say.
BOOSTED_SHARE = 0.25
REFIT_SHARE = 10  # a refit is due when a tenth more was learned
AFTER_CHANGE = 50  # labels that count in full at least when the stream changed
BEFORE_CHANGE = 0.1  # what a label from before a change counts, if it is wrong since: soon overruled
STILL = 0.5  # what was learned before holds if it ranks what came since with more than this AUC: chance has one half

TREE_SAMPLES = (
    1_000  # labels drawn for one tree at most: as good on unseen objects, and a refit in half the time
)
FOREST: dict[str, Any] = {"n_estimators": 100, "max_leaf_nodes": 128, "n_jobs": 1}
LEAF_SHARE, MOST_IN_LEAF = 20, 5  # a leaf holds a twentieth of the labels at least, or five
# As FinkVRA (github.com/HeloiseS/finkvra, data/test_config.yaml)
BOOSTED: dict[str, Any] = {"learning_rate": 0.1, "l2_regularization": 10.0}


@dataclass(frozen=True)
class Lesson:
    """What a refit learns: scaled rows as float32, so that the compiled trees see what was fitted."""

    rows: NDArray[np.float32]  # [labels, columns]
    labels: NDArray[np.int64]  # [labels]
    weights: Floats | None = None  # [labels]; None: all count alike


class WindowMember:
    """Keeps the last `window` labels; `compile` fits what is due."""

    def __init__(self, classes: int, columns: int, seed: int, window: int) -> None:
        self.classes, self.columns, self.seed, self.window = classes, columns, seed, window
        self.rows = array("f")  # of label number `first`, then of the next: no array of its own for each
        self.labels: list[int] = []  # from number `first` on
        self.first = self.learned = 0
        self.change = 0  # labels before this number count for less
        self.fitted = 0  # the number of labels at the last refit
        self.due: tuple[int, int] | None = None  # numbers of the labels of the refit to be made
        self.part: Part = empty(classes)

    def learn(self, row: Floats, label: int) -> None:
        self.rows.frombytes(row.astype(np.float32).tobytes())
        self.labels.append(label)
        self.learned += 1
        held = min(self.learned, self.window)
        if held >= LEAST and self.learned - self.fitted >= max(5, held // REFIT_SHARE):
            self._refit_here()

    def _refit_here(self) -> None:
        start = max(0, self.learned - self.window)
        self.fitted, self.due = self.learned, (start, self.learned)
        gone = start - self.first
        del self.rows[: gone * self.columns], self.labels[:gone]
        self.first = start

    def changed(self, kept: int) -> None:
        """The stream changed: what came before the last `kept` labels, or AFTER_CHANGE if that is more, counts for less,
        unless it still tells the classes of those labels."""
        if not self._still_tells(self.learned - kept):
            self.change = max(self.change, self.learned - max(kept, AFTER_CHANGE))
        if self.learned >= LEAST:
            self._refit_here()

    def _still_tells(self, number: int) -> bool:
        """Whether a forest of the labels before that number ranks those after it."""
        before = max(0, number - self.first)
        if before < LEAST or len(self.labels) - before < AFTER_CHANGE:
            return False
        rows, labels = self._matrix(), np.array(self.labels)
        old = fit(Lesson(rows[:before], labels[:before]), self.classes, self.seed, boosts=False)
        return class_auc(labels[before:], old.predict(rows[before:].astype(float))) > STILL

    def _matrix(self) -> NDArray[np.float32]:
        """[labels, columns], a copy."""
        return np.array(self.rows, np.float32).reshape(-1, self.columns)

    def predict_one(self, row: Floats) -> Floats:
        return self.compile().predict(row[None, :])[0]

    def compile(self) -> Part:
        if self.due is not None:
            start, stop = (number - self.first for number in self.due)
            old = np.arange(*self.due) < self.change
            weights = np.where(old, BEFORE_CHANGE, 1.0) if old.any() else None
            lesson = Lesson(self._matrix()[start:stop], np.array(self.labels[start:stop]), weights)
            self.part, self.due = fit(lesson, self.classes, self.seed), None
        return self.part


def empty(classes: int) -> Trees:
    """What knows nothing: rows of zeros."""
    return lay_out((), np.zeros(classes), logits=False)


def fit(lesson: Lesson, classes: int, seed: int, boosts: bool = True) -> Part:
    """The model of these labels: a random forest, which boosting joins from `BOOSTED_FROM` labels on, if it may."""
    met = np.unique(lesson.labels)
    told = np.flatnonzero(_varies(lesson.rows))  # boosting raises on a column without a value
    if len(met) == 1 or len(told) == 0:
        return lay_out((), np.bincount(lesson.labels, minlength=classes) / len(lesson.labels), logits=False)
    lesson = Lesson(lesson.rows[:, told], lesson.labels, lesson.weights)
    with threadpool_limits(1):
        trees = forest(lesson, told, classes, seed)
        if not boosts or len(lesson.labels) < BOOSTED_FROM:
            return trees
        return Committee((trees, boosted(lesson, told, classes, seed)), (1 - BOOSTED_SHARE, BOOSTED_SHARE))


def _varies(rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Columns with two values, or with one that is not always known."""
    known = ~np.isnan(rows)
    least = np.where(known, rows, np.inf).min(axis=0)
    most = np.where(known, rows, -np.inf).max(axis=0)
    return known.any(axis=0) & ((least < most) | ~known.all(axis=0))


def forest_for(labels: int, seed: int) -> Any:
    """The random forest that suits so many labels, not fitted."""
    return RandomForestClassifier(
        **FOREST,
        max_samples=min(TREE_SAMPLES, labels),
        min_samples_leaf=max(1, min(labels // LEAF_SHARE, MOST_IN_LEAF)),
        random_state=seed,
    )


def forest(lesson: Lesson, told: NDArray[np.int64], classes: int, seed: int) -> Trees:
    """A random forest; column i of the lesson is column told[i] of the model."""
    model = forest_for(len(lesson.labels), seed)
    model.fit(lesson.rows, lesson.labels, lesson.weights)
    return lay_out(
        [_forest_tree(one.tree_, told, model.classes_, classes, len(model.estimators_)) for one in model],
        np.zeros(classes),
        logits=False,
    )


def _forest_tree(
    tree: Any, told: NDArray[np.int64], met: NDArray[np.int64], classes: int, count: int
) -> Tree:
    shares = np.zeros((tree.node_count, classes))
    shares[:, met] = tree.value[:, 0, :] / count
    return Tree(
        left=tree.children_left,
        right=tree.children_right,
        feature=told[np.maximum(tree.feature, 0)],
        threshold=tree.threshold,
        missing_left=tree.missing_go_to_left,
        values=shares,
    )


def boosted(lesson: Lesson, told: NDArray[np.int64], classes: int, seed: int) -> Trees:
    """Gradient boosting over histograms; of two classes met, the trees speak for the second."""
    model: Any = HistGradientBoostingClassifier(**BOOSTED, random_state=seed)
    model.fit(lesson.rows, lesson.labels, lesson.weights)
    speaks = model.classes_[1:] if len(model.classes_) == 2 else model.classes_
    baseline = np.full(classes, np.nan)
    baseline[model.classes_] = 0.0
    baseline[speaks] = model._baseline_prediction.ravel()
    trees = [
        _boosted_tree(one.nodes, told, int(target))
        for iteration in model._predictors
        for one, target in zip(iteration, speaks, strict=True)
    ]
    return lay_out(trees, baseline, logits=True)


def _boosted_tree(nodes: Any, told: NDArray[np.int64], target: int) -> Tree:
    leaf = nodes["is_leaf"].astype(bool)
    return Tree(
        left=np.where(leaf, -1, nodes["left"].astype(np.int64)),
        right=np.where(leaf, -1, nodes["right"].astype(np.int64)),
        feature=told[np.where(leaf, 0, nodes["feature_idx"])],
        threshold=nodes["num_threshold"],
        missing_left=nodes["missing_go_to_left"],
        values=nodes["value"][:, None].astype(float),
        target=target,
    )
