"""Compiled trees: what scikit-learn says, without scikit-learn, and the same bits alone as in a batch."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from raybroker.learning import windowed
from raybroker.learning.trees import Tree, Trees, lay_out
from raybroker.learning.windowed import Lesson

EVERY = np.arange(6)


def lesson(labels: int, classes: int, seed: int = 0) -> Lesson:
    """Six columns: five that tell a little and lack one value in ten, and one that is always known."""
    rng = np.random.default_rng(seed)
    truth = np.arange(labels) % classes
    rows = rng.normal(size=(labels, 6)) + 0.8 * truth[:, None]
    rows[:, :5][rng.random((labels, 5)) < 0.1] = np.nan
    return Lesson(rows.astype(np.float32), truth)


def asked() -> np.ndarray:
    """Rows that no lesson held; here any column may lack its value, and ties with thresholds are likely."""
    rows = np.random.default_rng(99).normal(0.8, 1.5, size=(400, 6))
    rows[np.random.default_rng(98).random(rows.shape) < 0.2] = np.nan
    return np.concatenate([rows.astype(np.float32), lesson(60, 2).rows, np.full((1, 6), np.nan)])


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("labels", [10, 200])
def test_a_compiled_forest_says_what_scikit_learn_says(labels: int, classes: int) -> None:
    told = lesson(labels, classes)
    model = windowed.forest_for(labels, 3).fit(told.rows, told.labels)
    found = windowed.forest(told, EVERY, classes, 3).predict(asked().astype(float))
    assert np.abs(found - model.predict_proba(asked())).max() < 1e-9


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("labels", [60, 300])
def test_compiled_boosting_says_what_scikit_learn_says(labels: int, classes: int) -> None:
    told = lesson(labels, classes)
    model = HistGradientBoostingClassifier(**windowed.BOOSTED, random_state=3).fit(told.rows, told.labels)
    found = windowed.boosted(told, EVERY, classes, 3).predict(asked().astype(float))
    assert np.abs(found - model.predict_proba(asked())).max() < 1e-9
    assert found.std() > 0.1


@pytest.mark.parametrize("make", [windowed.forest, windowed.boosted])
def test_a_class_that_was_not_met_gets_nothing_and_columns_keep_their_numbers(make: object) -> None:
    told = lesson(80, 2)
    moved = Lesson(told.rows, np.array([1, 3])[told.labels])
    rows = np.full((50, 9), 7.0)
    rows[:, 3:] = asked()[:50]
    few = make(told, EVERY, 2, 3).predict(asked()[:50].astype(float))  # type: ignore[operator]
    more = make(moved, EVERY + 3, 5, 3).predict(rows)  # type: ignore[operator]
    assert np.abs(more[:, [1, 3]] - few).max() < 1e-12
    assert (more[:, [0, 2, 4]] == 0).all()


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("make", [windowed.forest, windowed.boosted])
def test_same_bits_alone_as_in_a_batch(make: object, size: int) -> None:
    trees: Trees = make(lesson(200, 3), EVERY, 3, 0)  # type: ignore[operator]
    rows = asked().astype(float)
    parts = [trees.predict(rows[i : i + size]) for i in range(0, len(rows), size)]
    assert np.concatenate(parts).tobytes() == trees.predict(rows).tobytes()


def test_a_threshold_between_two_floats_sends_no_row_to_the_other_side() -> None:
    below = np.float32(0.1)
    above = np.nextafter(below, np.float32(1))
    for threshold in (float(below), (float(below) + float(above)) / 2, np.nextafter(float(above), 0.0)):
        stump = Tree(
            left=np.array([1, -1, -1]),
            right=np.array([2, -1, -1]),
            feature=np.array([0, -2, -2]),
            threshold=np.array([threshold, -2.0, -2.0]),
            missing_left=np.array([0, 0, 0]),
            values=np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
        )
        found = lay_out([stump], np.zeros(2), logits=False).predict(np.array([[below], [above]], float))
        assert found.tolist() == [[1, 0], [0, 1]]


def test_what_scores_needs_no_scikit_learn(tmp_path: Path) -> None:
    trees = windowed.boosted(lesson(200, 2), EVERY, 2, 0)
    Path(tmp_path, "trees").write_bytes(pickle.dumps(trees))
    code = (
        "import pickle, sys, numpy; trees = pickle.load(open(sys.argv[1], 'rb'));"
        "trees.predict(numpy.zeros((1, 6))); print([m for m in ('sklearn', 'river') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "trees")], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
