"""Who is evaluated: the project's own learner, and the random forest that it is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from raybroker.learning import learner as learning
from raybroker.learning.compiled import Floats, Prediction, matrix
from raybroker.protocols.tables import Integers, Labelled

TREES = 100  # of the forest that we are held against
PIECE = 10  # labels that come together at first, and a share of one in so many later
MIXTURE, BASELINE, PLAIN = "mixture", "random forest", "mixture, uncalibrated"


class Frozen(Protocol):
    """What `raybroker.learning` scores with."""

    def predict_matrix(self, features: Floats) -> Prediction: ...


class Teachable(Protocol):
    """The part of a learner that the protocols use; tests pass spies."""

    def learn(
        self,
        features: Any,
        labels: Sequence[str],
        *,
        before: Floats | None = None,
        picks: Sequence[bool] | None = None,
        unseen: Sequence[bool] | None = None,
    ) -> Any: ...

    def frozen(self) -> Frozen: ...

    @property
    def weights(self) -> Floats: ...


@dataclass(frozen=True)
class Recipe:
    """How to make the learner: as `[models.NAME]` says it. No members: the learner's own choice."""

    members: tuple[str, ...] = ()
    window: int = 10_000

    @property
    def names(self) -> tuple[str, ...]:
        """The members by name."""
        return self.members or tuple(learning.MEMBERS)

    def learner(self, data: Labelled, seed: int) -> learning.Learner:
        """One that knows nothing yet."""
        return learning.Learner("evaluated", data.classes, data.columns, self.names, seed, self.window)


def teach(
    learner: Teachable,
    data: Labelled,
    rows: Integers,
    before: Floats | None = None,
    unseen: NDArray[np.bool_] | None = None,
    picks: NDArray[np.bool_] | None = None,
) -> None:
    """Labels of these rows, in that order; nobody chose them unless `picks` says so.

    `before` [members, rows, classes] is what was said of them when they came, `unseen` whether their objects were new.
    """
    picked = np.ones(len(rows), bool) if picks is None else picks
    learner.learn(
        data.features.take(pa.array(rows)),
        data.said(rows),
        before=before,
        picks=picked.tolist(),
        unseen=None if unseen is None else unseen.tolist(),
    )


def teach_all(learner: Teachable, data: Labelled, rows: Integers, delay: float = 0.0) -> None:
    """Many labels in their order, each tested by what was said when its alert came, `delay` days before the label.

    The labels come in pieces, which grow as the labels do: a member that is fitted anew is not fitted for every label.
    An alert's object is unseen if none of its labels was heard before the piece in which the alert came.
    """
    features, times = numbers(data), data.times if data.timed else np.arange(len(data), dtype=float)
    before = np.full((len(learner.weights), len(rows), len(data.classes)), np.nan)
    met, begin, asked = first_of_object(data.objects[rows]), 0, 0
    unseen = np.zeros(len(rows), bool)
    while begin < len(rows):
        piece = slice(begin, begin + max(PIECE, begin // PIECE))
        come = np.searchsorted(times[rows], times[rows[begin]] + delay) if data.timed else 0
        new = slice(asked, max(min(piece.stop, len(rows)), int(come)))
        before[:, new] = learner.frozen().predict_matrix(features[rows[new]]).members
        unseen[new] = met[new] >= begin
        teach(learner, data, rows[piece], before[:, piece], unseen[piece])
        begin, asked = piece.stop, new.stop


def first_of_object(objects: Integers) -> Integers:
    """For each row, the first row of its object."""
    _, first, which = np.unique(objects, return_index=True, return_inverse=True)
    found: Integers = first[which]
    return found


def numbers(data: Labelled) -> Floats:
    """The features as [rows, columns], NaN where not known."""
    return matrix(data.features, data.columns)


def uncalibrated(learner: Teachable, prediction: Prediction) -> Floats:
    """The members' answers mixed by their weights alone."""
    return np.einsum("m,mrc->rc", learner.weights, prediction.members)


def forest(features: Floats, labels: Integers, classes: int, seed: int) -> Any:
    """A random forest of these rows, as a function from features to probabilities [rows, classes]."""
    model = RandomForestClassifier(TREES, min_samples_leaf=2, random_state=seed, n_jobs=1)
    model.fit(features, labels)

    def predict(asked: Floats) -> Floats:
        made = np.zeros((len(asked), classes))
        if len(asked):
            made[:, model.classes_.astype(int)] = model.predict_proba(asked)
        return made

    return predict
