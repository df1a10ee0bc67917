"""A release tells how good a model is on objects that it had not learned."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from raybroker.cluster.releases import release_of
from raybroker.learning.learner import Learner
from raybroker.learning.release import Forecast, Release, Taught, drawn
from raybroker.settings import ModelSettings

CLASSES = ("SN Ia", "other")
SETTINGS = ModelSettings(classes=list(CLASSES), members=["softmax", "naive_bayes"])
TAUGHT = [Taught(f"e{i}", f"ztf:{i}", CLASSES[i % 3 > 0]) for i in range(9)]


def release(unseen: list[Forecast], **more: object) -> Release:
    learner = Learner("ia", CLASSES, ("x", "y"), ("softmax", "naive_bayes"))
    learner.learn(pa.table({"x": [1.0, 2.0, 3.0], "y": [3.0, None, 1.0]}), ["SN Ia", "other", "other"])
    given = {"snapshot": 4, "plan": "p", "digest": "d", "when": 1.0, "why": "clock", "taught": TAUGHT, **more}
    return release_of(learner.frozen(), SETTINGS, unseen=unseen, **given)  # type: ignore[arg-type]


def test_its_numbers_are_those_of_unseen_objects() -> None:
    said = [Forecast("SN Ia", (0.8, 0.2)), Forecast("other", (0.6, 0.4)), Forecast("other", (0.1, 0.9))]
    metrics = release(said).metrics
    assert metrics["unseen.auc"] == 1.0
    assert metrics["unseen.balanced_accuracy"] == 0.75
    assert metrics["unseen.log_loss"] == pytest.approx(-math.log(0.8 * 0.4 * 0.9) / 3)
    assert metrics["unseen.calibration_error"] == pytest.approx((0.2 + 0.6 + 0.1) / 3)
    assert metrics["unseen.labels"] == 3


def test_it_tells_the_balance_of_classes_and_the_weights() -> None:
    metrics = release([]).metrics
    assert (metrics["labels"], metrics["labels.SN_Ia"], metrics["labels.other"]) == (3, 3, 6)
    assert metrics["weight.softmax"] + metrics["weight.naive_bayes"] == pytest.approx(1)
    assert "unseen.auc" not in metrics


def test_its_pictures_are_a_learning_curve_and_the_calibration() -> None:
    rng = np.random.default_rng(0)
    said = [Forecast(CLASSES[int(rng.random() > p)], (p, 1 - p)) for p in rng.random(120).tolist()]
    made = release(said)
    assert set(drawn(made)) == {"unseen_log_loss", "calibration_SN_Ia"}
    last = [-math.log(one.probabilities[CLASSES.index(one.label)]) for one in said[-50:]]
    assert made.curves["unseen_log_loss"][-1] == (120.0, pytest.approx(sum(last) / 50))


def test_why_it_was_made_is_told() -> None:
    made = release([], why="promotion", verdict="wide is better than own by 0.1", configuration="wide")
    assert made.tags == {"why": "promotion", "verdict": "wide is better than own by 0.1"}
    assert (made.name, made.alias) == ("ia-4-wide", "champion")
