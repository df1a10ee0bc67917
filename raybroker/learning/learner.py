"""A named model: a mixture of members that learns one label at a time and tests before it trains.

>>> learner = Learner("transients", ("AGN", "SN"), ("rise", "colour"), ("softmax", "naive_bayes"), seed=1)
>>> learned = learner.learn(pa.table({"rise": [1.0, 9.0], "colour": [0.1, None]}), ["SN", "AGN"])
>>> learned.losses.shape
(2, 2)
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raybroker.errors import did_you_mean
from raybroker.learning import members
from raybroker.learning.calibration import Calibrator
from raybroker.learning.compiled import (
    Floats,
    Frozen,
    Prediction,
    Scale,
    calibrated,
    drawn,
    matrix,
    mixed,
)
from raybroker.learning.drifting import Change
from raybroker.learning.windowed import WindowMember

MEMBERS = ("softmax", "naive_bayes", "window")
WINDOW = 10_000  # labels that the member "window" learns from
REMEMBERED = 256  # labels that the scale is measured on; until then members are taught again when it changes
SETTLED = 64  # values after which a column's scale stays
# How far one label moves the shares, along the gradient of the mixture's own log-loss (exponentiated gradient: Helmbold
# et al. 1998, "On-line portfolio selection using multiplicative updates"). A share follows what a member adds to the
# others, not how well it does alone: a poor member that says what no other says keeps a place.
RATE = 0.1
LEAST_SHARE = 0.001  # what all members share for ever, so that whoever is right after a change comes back


class Learned(NamedTuple):
    """What was said about each row before its label was learned."""

    prediction: Prediction
    losses: Floats  # [members, rows], log-loss in nats
    mixture_losses: Floats  # [rows]


class Test(NamedTuple):
    """How a label is used beside being learned. Its prediction is delayed: it was made when the alert was asked."""

    before: Floats  # [members, classes]; a member's row with NaN: not known, so it is asked now
    pick: bool  # a random pick: calibration learns from it
    unseen: bool  # no label of its object was learned before the prediction: only then does it count


class Learner:
    """Learns labels in the order they come; a batch of labels is the same as one after the other.

    Deterministic given the seed and that order: two learners taught the same have the same `frozen().digest()`.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        columns: Sequence[str],
        members: Sequence[str] = MEMBERS,
        seed: int = 0,
        window: int = WINDOW,
    ) -> None:
        for what, given, least in (("classes", classes, 2), ("columns", columns, 1), ("members", members, 1)):
            if len(set(given)) != len(given) or len(given) < least:
                raise ValueError(
                    f"model '{name}' needs at least {least} {what}, each once; it got {list(given)}"
                )
        self.name, self.seed, self.window = name, seed, window
        self.classes, self.columns, self.member_names = tuple(classes), tuple(columns), tuple(members)
        self.learned = 0
        self.weights = np.full(len(self.member_names), 1 / len(self.member_names))  # shares in the mixture
        self._calibrator, self._change = Calibrator(len(self.classes)), Change(window)
        self._scale = Scale(np.zeros(len(columns)), np.zeros(len(columns)))
        self._settled = np.zeros(len(columns), bool)
        self._recent: deque[tuple[Floats, int]] = deque(maxlen=REMEMBERED)
        self._members = self._fresh()
        self._frozen: Frozen | None = None

    def _fresh(self) -> list[members.Member]:
        task = members.Task(self.classes, self.columns, self.seed, self.window)
        return [members.make(name, task) for name in self.member_names]

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

        before: [members, rows, classes], `Prediction.members` of when the alerts came or were asked: a test that is
            made only now flatters members that memorize, if other alerts of the object were learned meanwhile. A
            member's row with NaN is not known: that member is asked now.
        picks: which rows were asked at random; calibration learns from these only. None: no row was.
        unseen: of which rows no label of the same object was learned before their prediction was made. Others do not
            count: neither for the weights nor for calibration, nor as a sign of change. None: all are.
        """
        numbers = [self._number(label) for label in labels]
        rows = matrix(features, self.columns)
        if len(rows) != len(numbers):
            raise ValueError(f"model '{self.name}': {len(rows)} rows of features for {len(numbers)} labels")
        tests = self._tests(len(rows), before, picks, unseen)
        told = zip(rows, numbers, tests, strict=True)
        return self._report([self._learn_one(*one) for one in told], numbers)

    def _number(self, label: str) -> int:
        if label not in self.classes:
            near = did_you_mean(str(label), self.classes)
            raise ValueError(
                f"model '{self.name}' has no class '{label}'{near}: it knows {list(self.classes)}"
            )
        return self.classes.index(label)

    def _tests(
        self,
        rows: int,
        before: Floats | None,
        picks: Sequence[bool] | None,
        unseen: Sequence[bool] | None,
    ) -> list[Test]:
        shape = (len(self.member_names), rows, len(self.classes))
        said = np.full(shape, np.nan) if before is None else np.asarray(before, float)
        if said.shape != shape:
            raise ValueError(
                f"model '{self.name}': `before` is {said.shape}; members, rows, classes are {shape}"
            )
        picked = [False] * rows if picks is None else picks
        new = [True] * rows if unseen is None else unseen
        for what, given in (("picks", picked), ("unseen", new)):
            if len(given) != rows:
                raise ValueError(f"model '{self.name}': {len(given)} `{what}` for {rows} rows of features")
        return [Test(said[:, i], bool(picked[i]), bool(new[i])) for i in range(rows)]

    def _learn_one(self, row: Floats, label: int, test: Test) -> Prediction:
        said = self._said(row, test.before)
        mixture = mixed(said, self.weights)
        tested = Prediction(said, calibrated(mixture, self._calibrator.current()))
        changed = test.unseen and self._judge(said[:, 0], mixture[0], label, test.pick)
        self._frozen = None
        self._recent.append((row.copy(), label))
        self.learned += 1
        if self._rescale():
            changed = changed or self._change.since > 0  # they were taught what came before the change, too
        else:
            self._teach(row, label)
        if changed:
            self._turn()
        return tested

    def _said(self, row: Floats, before: Floats) -> Floats:
        """[members, 1, classes]: what was said before, and where that is not known, what is said now."""
        known = np.asarray(np.isfinite(before).all(axis=1))
        if known.all():
            return before[:, None, :]
        scaled = self._scale.apply(row[None, :])[0]
        raw = np.stack([member.predict_one(scaled) for member in self._members])
        return np.where(known[:, None, None], before[:, None, :], drawn(raw[:, None, :], self.learned))

    def _judge(self, said: Floats, mixture: Floats, label: int, pick: bool) -> bool:
        """Count an honest test; True if it shows that the stream changed."""
        moved = self.weights * np.exp(RATE * said[:, label] / mixture[label])
        self.weights = (1 - LEAST_SHARE) * moved / moved.sum() + LEAST_SHARE / len(moved)
        if pick:
            self._calibrator.learn(mixture, label)
        return self._change.noticed(1.0 - float(mixture[label]), self.learned)

    def _turn(self) -> None:
        """Let members that refit forget what came before the last change."""
        for member in self._members:
            if isinstance(member, WindowMember):
                member.changed(self.learned - self._change.since)

    def _teach(self, row: Floats, label: int) -> None:
        scaled = self._scale.apply(row[None, :])[0]
        for member in self._members:
            member.learn(scaled, label)

    def _rescale(self) -> bool:
        """At 2, 4, 8 ... labels, measure the scale of columns not settled yet; True if all was taught again.

        The first labels say little of a column's spread. So long as all labels are remembered, the members begin again
        with the better scale; after that only a column that had no values before gets one.
        """
        if self.learned < 2 or self.learned & (self.learned - 1):
            return False
        self._scale, self._settled = _measure(
            np.array([row for row, _ in self._recent]), self._scale, self._settled
        )
        if self.learned > REMEMBERED:
            return False
        self._members = self._fresh()
        for row, label in self._recent:
            self._teach(row, label)
        return True

    def _report(self, tested: Sequence[Prediction], labels: Sequence[int]) -> Learned:
        shape = (len(self.member_names), 0, len(self.classes))
        by_member = np.concatenate([np.empty(shape), *(one.members for one in tested)], axis=1)
        mixture = np.concatenate([np.empty(shape[1:]), *(one.mixture for one in tested)])
        rows = np.arange(len(labels))
        chosen = np.array(labels, int)
        losses = -np.log(by_member[:, rows, chosen])
        return Learned(Prediction(by_member, mixture), losses, -np.log(mixture[rows, chosen]))

    def predict(self, features: pa.Table | pa.RecordBatch) -> Prediction:
        """As `frozen().predict`."""
        return self.frozen().predict(features)

    def frozen(self) -> Frozen:
        """This learner as it is now, compiled for the stream; later labels do not change it."""
        if self._frozen is None:
            parts = tuple(member.compile() for member in self._members)
            names = (self.name, self.classes, self.columns, self.member_names)
            calibration = self._calibrator.current()
            self._frozen = Frozen(*names, self.learned, self._scale, parts, self.weights, calibration)
        return self._frozen

    def snapshot(self) -> bytes:
        """The whole state: a learner restored from it goes on bit for bit."""
        return pickle.dumps({**vars(self), "_frozen": None}, protocol=5)

    @classmethod
    def restore(cls, data: bytes) -> Learner:
        """The learner from its snapshot. Unpickles: the caller has checked the digest of these bytes."""
        try:
            state = pickle.loads(data)
        except pickle.UnpicklingError:
            state = None
        if not isinstance(state, dict) or "member_names" not in state:
            raise ValueError("these bytes are not a learner's snapshot")
        learner = cls.__new__(cls)
        vars(learner).update(state)
        return learner


def _measure(rows: Floats, scale: Scale, settled: NDArray[np.bool_]) -> tuple[Scale, NDArray[np.bool_]]:
    """Median and spread of each column not settled yet: robust, since one flux in a hundred is wild."""
    center, spread, settled = scale.center.copy(), scale.spread.copy(), settled.copy()
    for i in np.flatnonzero(~settled):
        values = rows[np.isfinite(rows[:, i]), i]
        if len(values) < 2:
            continue
        center[i] = np.median(values)
        spread[i] = _spread(values - center[i])
        settled[i] = len(values) >= SETTLED and spread[i] > 0
    return Scale(center, spread), settled


def _spread(away: Floats) -> float:
    """1.48 median absolute deviations, or where most values are equal, the standard deviation; 0 if constant."""
    found = 1.4826 * float(np.median(np.abs(away)))
    found = found if found > 0 else float(np.sqrt(np.mean(away * away)))
    return found if np.isfinite(found) else 0.0


class Thinning:
    """Lets through at most one alert per object in any `days`: its neighbours say the same again.

    Alerts may come in any order of time. An alert without an object (None: a moving one) is always let through.
    """

    def __init__(self, days: float) -> None:
        self.days = days
        self._taken: dict[str, list[float]] = {}

    def take(self, object_id: str | None, mjd: float) -> bool:
        """True if this alert may be learned; it is then remembered."""
        if not self.would_take(object_id, mjd):
            return False
        if object_id is not None and self.days > 0:
            self._taken.setdefault(object_id, []).append(mjd)
        return True

    def would_take(self, object_id: str | None, mjd: float) -> bool:
        """Whether this alert may be learned."""
        if object_id is None or self.days <= 0:
            return True
        return all(abs(mjd - before) >= self.days for before in self._taken.get(object_id, ()))

    def forget(self, object_id: str | None, mjd: float) -> None:
        """Undo a `take`, for a label that was withdrawn."""
        if object_id in self._taken and mjd in self._taken[object_id]:
            self._taken[object_id].remove(mjd)
