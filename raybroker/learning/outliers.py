"""A model of what is interesting: coniferest's forests, grown on unlabelled alerts and told "interesting" or not.

>>> learner = OutlierLearner("odd", ("interesting", "ordinary"), ("rise",))
>>> learner.background(pa.table({"rise": [1.0, 1.1, 0.9, 1.2, 30.0]}))
>>> said = learner.predict(pa.table({"rise": [1.0, 30.0]})).mixture[:, 0]
>>> bool(said[1] > said[0])
True
"""

from __future__ import annotations

import hashlib
import pickle
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raybroker.errors import did_you_mean
from raybroker.learning.compiled import Prediction, matrix
from raybroker.learning.grove import Floats, Outliers, Ranks, Trees, filled
from raybroker.learning.learner import Learned

MEMBERS = ("aad",)
CLASSES = ("interesting", "ordinary")
BACKGROUND = 10_000  # rows of the unlabelled sample that are kept
TREES = 100
SUBSAMPLES = 256  # rows that each tree is grown on
DEPTH = 10  # of a tree
EARLY_DEPTH = 4  # so long as nothing was called interesting
BACKGROUND_VOTE = 0.3  # of one ordinary label; only then
PRIOR = 1e-3  # how strongly weights are drawn towards the votes
WANTED = 3.0  # ordinary labels that one wanted label outweighs
SPARE_TREES = 400  # of a pine forest, of which the labels choose `TREES`
FLOOR = 1e-12  # a loss is finite, whatever was said
Labels = NDArray[np.int64]  # coniferest's: -1 wanted, 1 ordinary


class OutlierLearner:
    """Has the methods of `learner.Learner`, and `background`. It knows nothing before that was called.

    What it is depends on the background and the labels in their order alone: it is computed when it is asked for, from
    all labels heard so far, so that a batch of labels, or a replay, or another background in between changes nothing.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str] = CLASSES,
        columns: Sequence[str] = (),
        members: Sequence[str] = MEMBERS,
        seed: int = 0,
    ) -> None:
        _check(name, classes, columns, members)
        self.name, self.seed = name, seed
        self.classes, self.columns, self.member_names = tuple(classes), tuple(columns), tuple(members)
        self._background: Floats | None = None
        self._lessons: list[tuple[Floats, int]] = []  # features, number of the class
        self._frozen: Outliers | None = None

    @property
    def learned(self) -> int:
        """How many labels were learned."""
        return len(self._lessons)

    @property
    def weights(self) -> Floats:
        """As the learner's: there is one member."""
        return np.ones(1)

    def background(self, features: pa.Table | pa.RecordBatch) -> None:
        """The unlabelled sample that the forest is grown on, at least two rows; the labels stand.

        Of more than `BACKGROUND` rows so many are drawn. The same rows in the same order give the same forest.
        """
        rows = matrix(features, self.columns)
        if len(rows) < 2:
            raise ValueError(f"model '{self.name}': a background needs at least 2 rows; it got {len(rows)}")
        if len(rows) > BACKGROUND:
            drawn = np.random.default_rng(self.seed).choice(len(rows), BACKGROUND, replace=False)
            rows = rows[np.sort(drawn)]
        self._background, self._frozen = np.where(np.isfinite(rows), rows, np.nan), None

    @property
    def sample(self) -> pa.Table | None:
        """The background as it was kept: given to `background`, it makes the same forest."""
        if self._background is None:
            return None
        arrays = [pa.array(column, pa.float64(), from_pandas=True) for column in self._background.T]
        return pa.table(arrays, names=list(self.columns))

    @property
    def reference(self) -> str:
        """Sha256 of the background, '' without one."""
        return "" if self._background is None else hashlib.sha256(self._background.tobytes()).hexdigest()

    def learn(
        self,
        features: pa.Table | pa.RecordBatch,
        labels: Sequence[str],
        *,
        before: Floats | None = None,
        picks: Sequence[bool] | None = None,
        unseen: Sequence[bool] | None = None,
    ) -> Learned:
        """Test, then train, row by row. An unknown class raises before anything is learned.

        `before` [1, rows, 2]: what was said of each alert when it was asked; a NaN row is tested now. `picks` and
        `unseen` are not used: a rank has no calibration, and there is one member.
        """
        numbers = [self._number(label) for label in labels]
        rows = matrix(features, self.columns)
        if len(rows) != len(numbers):
            raise ValueError(f"model '{self.name}': {len(rows)} rows of features for {len(numbers)} labels")
        said = np.full((1, len(rows), 2), np.nan) if before is None else np.array(before, np.float64)
        if said.shape != (1, len(rows), 2):
            raise ValueError(f"model '{self.name}': `before` has shape {said.shape}, not {(1, len(rows), 2)}")
        for i, label in enumerate(numbers):
            if np.isnan(said[0, i]).any():
                said[0, i] = self.frozen().predict_matrix(rows[i : i + 1]).mixture[0]
            self._lessons.append((rows[i].copy(), label))
            self._frozen = None
        losses = -np.log(np.maximum(said[:, np.arange(len(rows)), np.array(numbers, int)], FLOOR))
        return Learned(Prediction(said, said[0].copy()), losses, losses[0].copy())

    def _number(self, label: str) -> int:
        if label not in self.classes:
            near = did_you_mean(str(label), self.classes)
            raise ValueError(
                f"model '{self.name}' has no class '{label}'{near}: it knows {list(self.classes)}"
            )
        return self.classes.index(label)

    def predict(self, features: pa.Table | pa.RecordBatch) -> Prediction:
        """As `frozen().predict`."""
        return self.frozen().predict(features)

    def frozen(self) -> Outliers:
        """This learner as it is now, compiled for the stream; later labels do not change it."""
        if self._frozen is None:
            names = (self.name, self.classes, self.columns, self.member_names, self.learned)
            self._frozen = Outliers(*names, *self._grown())
        return self._frozen

    def _grown(self) -> tuple[Floats, Trees | None, Ranks | None]:
        """The medians, the trees, and where the background lies."""
        if self._background is None:
            return np.zeros(len(self.columns)), None, None
        filling = medians(self._background)
        background, known = (filled(rows, filling) for rows in (self._background, self._known()))
        used = np.flatnonzero(background.min(axis=0) < background.max(axis=0))
        if not len(used):
            return filling, None, None
        labels = np.array([1 if label else -1 for _, label in self._lessons], np.int64)
        grow = GROWERS[self.member_names[0]]
        trees = grow(background[:, used], known[:, used], labels, self.seed).over(used)
        return filling, trees, Ranks.of(-trees.scores(background))

    def _known(self) -> Floats:
        return np.array([row for row, _ in self._lessons]).reshape(-1, len(self.columns))

    def snapshot(self) -> bytes:
        """The whole state: a learner restored from it goes on bit for bit."""
        return zlib.compress(pickle.dumps({**vars(self), "_frozen": None}, protocol=5), level=1)

    @classmethod
    def restore(cls, data: bytes) -> OutlierLearner:
        """The learner from its snapshot. Unpickles: the caller has checked the digest of these bytes."""
        state = pickle.loads(zlib.decompress(data))
        if not isinstance(state, dict) or "_background" not in state:
            raise ValueError("these bytes are not an anomaly learner's snapshot")
        learner = cls.__new__(cls)
        vars(learner).update(state)
        return learner


def medians(rows: Floats) -> Floats:
    """Of what is known in each column; 0 where nothing is."""
    known = (column[np.isfinite(column)] for column in rows.T)
    return np.array([np.median(values) if len(values) else 0.0 for values in known])


def _check(name: str, classes: Sequence[str], columns: Sequence[str], members: Sequence[str]) -> None:
    if len(set(classes)) != 2 or len(classes) != 2:
        raise ValueError(
            f"anomaly model '{name}' has two classes, the wanted one first; it got {list(classes)}"
        )
    if not columns or len(set(columns)) != len(columns):
        raise ValueError(f"model '{name}' needs at least 1 columns, each once; it got {list(columns)}")
    if len(members) != 1 or members[0] not in GROWERS:
        near = did_you_mean(members[0], GROWERS) if members else ""
        raise ValueError(
            f"anomaly model '{name}' has one member, of {sorted(GROWERS)}; it got {list(members)}{near}"
        )


def _aad(background: Floats, known: Floats, labels: Labels, seed: int) -> Trees:
    """An isolation forest whose leaves get weights from the labels."""
    forest = aad_forest(background, known, labels, seed)
    return _flat(forest.core_forest, forest.evaluator.weights * forest.evaluator.leaf_values, 0.0)


def aad_forest(background: Floats, known: Floats, labels: Labels, seed: int) -> Any:
    """The AADForest of Das et al. 2017 (arXiv:1708.09441), its leaves' weights drawn towards `votes`.

    The paper draws them towards the isolation forest's: then a label says little about alerts like it. Drawn towards
    nothing, one odd label can hold the top for good. So long as nothing is wanted, the trees are shallow and the
    background has a vote too: the top goes from one corner to the next. docs/decisions/anomaly.md has the numbers.
    """
    from coniferest.aadforest import AADForest

    early = len(labels) > 0 and labels.min() > 0
    size, depth = min(SUBSAMPLES, len(background)), EARLY_DEPTH if early else DEPTH
    own = {"n_trees": TREES, "n_subsamples": size, "max_depth": depth, "n_jobs": 1, "random_seed": seed}
    forest = AADForest(map_value="const", prior_influence=PRIOR, **own).fit(background)
    fit = forest.evaluator
    if not len(labels):
        fit.weights = -1.0 / fit.combine_leaf_values(forest.core_forest)  # coniferest's default
        return forest
    fit.weights = voted = votes(forest.apply(known), np.where(labels < 0, -WANTED, 1.0), len(fit.weights))
    if early:
        share = np.full(len(background), BACKGROUND_VOTE / len(background))
        fit.weights = voted + votes(forest.apply(background), share, len(voted))
    elif labels.max() > 0 and voted.any():
        fit.fit_known(known, known, labels, prior_weights=voted)
    return forest


def votes(leaves: NDArray[np.intp], weights: Floats, count: int) -> Floats:
    """[leaves of the forest]: what rows [rows, trees] give to the leaves that they are in, `weights` [rows] in all."""
    trees = leaves.shape[1]
    return np.bincount(leaves.ravel(), np.repeat(weights / trees, trees), count).astype(np.float64)


def _pine(background: Floats, known: Floats, labels: Labels, seed: int) -> Trees:
    """Of many trees, those that find the wanted ones and not the others."""
    from coniferest.pineforest import PineForest

    forest = PineForest(
        n_trees=TREES,
        n_subsamples=min(SUBSAMPLES, len(background)),
        n_spare_trees=SPARE_TREES,
        n_jobs=1,
        random_seed=seed,
    )
    forest.fit_known(background, known, labels)
    values = forest.evaluator.combine_leaf_values(forest.core_forest)
    halving = forest.evaluator.average_path_length(forest.n_subsamples) * forest.evaluator.n_trees
    return _flat(forest.core_forest, values, float(halving))


GROWERS: dict[str, Callable[[Floats, Floats, Labels, int], Trees]] = {"aad": _aad, "pine": _pine}


def _flat(forest: Any, values: Floats, halving: float) -> Trees:
    """Coniferest's trees one after the other; there, a leaf has no `left` and its number in the place of the feature."""
    trees = list(forest)
    root = np.cumsum([0, *(tree.n_nodes for tree in trees)])
    left = np.concatenate([tree.left for tree in trees])
    feature = np.concatenate([tree.feature for tree in trees])
    threshold = np.concatenate([tree.value for tree in trees])
    own, ends = np.arange(root[-1]), left == 0
    tree_of = np.repeat(np.arange(len(trees)), np.diff(root))
    first = np.cumsum([0, *(tree.n_leaves for tree in trees)])
    return Trees(
        root[:-1].astype(np.int32),
        np.where(ends, 0, feature).astype(np.int32),
        np.where(ends, np.inf, threshold),
        np.where(ends, own, left + root[tree_of]).astype(np.int32),
        np.where(ends, values[np.where(ends, first[tree_of] + feature, 0)], 0.0),
        _depth(trees),
        halving,
    )


def _depth(trees: Sequence[Any]) -> int:
    """Steps from the root to the lowest leaf of all."""
    deepest = 0
    for tree in trees:
        at = np.zeros(tree.n_nodes, np.int64)
        for node in np.flatnonzero(tree.left):  # children come after their parent
            at[tree.left[node] : tree.left[node] + 2] = at[node] + 1
        deepest = max(deepest, int(at.max()))
    return deepest
