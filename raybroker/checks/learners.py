"""The rules for learners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raybroker.checks.bits import SEED, raising

Make = Callable[[], Any]


def check_learner(make: Make, classes: Sequence[str], columns: Sequence[str] = ("a", "b", "c")) -> None:
    """Every rule for learners. `make` gives a new one for these classes and feature columns, the same each time."""
    for rule, keeps in LEARNER_RULES.items():
        with raising("the learner", rule):
            assert keeps(make, classes, columns), f"the learner breaks a rule: {rule}"


def lesson(classes: Sequence[str], columns: Sequence[str], rows: int = 60) -> tuple[pa.Table, list[str]]:
    """Features that tell the classes apart; the last column is constant, and one value in ten is unknown."""
    dice = np.random.default_rng(SEED)
    truth = np.arange(rows) % len(classes)
    numbers = truth[:, None] + dice.normal(0, 0.3, (rows, len(columns)))
    numbers[:, -1] = 1.0
    unknown = dice.random(numbers.shape) < 0.1
    arrays = [pa.array(numbers[:, i], mask=unknown[:, i]) for i in range(len(columns))]
    return pa.table(arrays, names=list(columns)), [classes[int(i)] for i in truth]


def _taught(make: Make, classes: Sequence[str], columns: Sequence[str]) -> tuple[Any, pa.Table]:
    learner = make()
    features, labels = lesson(classes, columns)
    learner.learn(features, labels)
    return learner, features


def _is_probability(prediction: Any, rows: int, classes: Sequence[str]) -> bool:
    members, mixture = np.asarray(prediction.members), np.asarray(prediction.mixture)
    shapes = members.ndim == 3 and members.shape[1:] == mixture.shape == (rows, len(classes))
    within = bool((mixture >= 0).all() and (members >= 0).all() and np.allclose(mixture.sum(axis=-1), 1))
    return shapes and within and bool(np.allclose(members.sum(axis=-1), 1))


def _starts_untaught(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    features, _ = lesson(classes, columns)
    return _is_probability(make().predict(features), features.num_rows, classes)


def _predicts_probabilities(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    learner, features = _taught(make, classes, columns)
    unknown = pa.table({name: pa.nulls(3, pa.float64()) for name in columns})
    tables = (features, features.slice(0, 0), features.slice(3, 5), unknown)
    return all(_is_probability(learner.predict(each), each.num_rows, classes) for each in tables)


def _learns(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    return _learned_well(make(), classes, columns)


def _remembers(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    """What is taught only the newest labels, all of one class, must not forget the others."""
    learner = make()
    _learned_well(learner, classes, columns)
    few, labels = lesson(classes, columns, 10 * len(classes))
    new = [i for i, label in enumerate(labels) if label == classes[0]]
    learner.learn(few.take(new), [classes[0]] * len(new))
    return _learned_well(learner, classes, columns, rows=0)


def _learned_well(learner: Any, classes: Sequence[str], columns: Sequence[str], rows: int = 240) -> bool:
    """Teach so many rows, 40 at a time; whether what tells classes apart is known afterwards."""
    features, labels = lesson(classes, columns, 240)
    for start in range(0, rows, 40):
        learner.learn(features.slice(start, 40), labels[start : start + 40])
    best = np.asarray(learner.predict(features).mixture).argmax(axis=1)
    right = np.mean(np.array(classes)[best] == np.array(labels))
    return bool(right > min(0.8, 1.5 / len(classes)))


def _predicting_changes_nothing(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    learner, features = _taught(make, classes, columns)
    before, after = (learner.predict(features).mixture.tobytes() for _ in range(2))
    return bool(before == after)


def _predicts_one_by_one(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    learner, features = _taught(make, classes, columns)
    together = np.asarray(learner.predict(features).mixture)
    for size in (1, 7):
        pieces = [learner.predict(features.slice(i, size)).mixture for i in range(0, len(together), size)]
        if np.concatenate(pieces).tobytes() != together.tobytes():
            return False
    return True


def _survives_its_snapshot(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    learner, features = _taught(make, classes, columns)
    again = type(learner).restore(learner.snapshot())
    more, labels = lesson(classes, columns, 30)
    for each in (learner, again):
        each.learn(more, labels)
    return bool(learner.predict(features).mixture.tobytes() == again.predict(features).mixture.tobytes())


def _is_reproducible(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    one, features = _taught(make, classes, columns)
    other, _ = _taught(make, classes, columns)
    return bool(one.predict(features).mixture.tobytes() == other.predict(features).mixture.tobytes())


LEARNER_RULES: dict[str, Callable[[Make, Sequence[str], Sequence[str]], bool]] = {
    "it predicts before it has learned anything": _starts_untaught,
    "it gives probabilities per member and in the mixture, for unknown features too": _predicts_probabilities,
    "it learns what tells classes apart, a constant column notwithstanding": _learns,
    "it remembers what it learned when it is taught only what is new": _remembers,
    "predicting changes nothing": _predicting_changes_nothing,
    "an alert has the same bits in batches of 1, 7 and more": _predicts_one_by_one,
    "a restored snapshot learns and predicts as the original": _survives_its_snapshot,
    "the same lessons give the same learner": _is_reproducible,
}
