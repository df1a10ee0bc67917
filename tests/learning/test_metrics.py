from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from raybroker.learning import metrics


@pytest.fixture
def told():
    rng = np.random.default_rng(3)
    said = rng.dirichlet(np.ones(3), 400).round(2) + 1e-3
    said /= said.sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(3, p=row) for row in said])
    return truth, said


def test_auc_is_that_of_scikit_learn_with_ties_too(told):
    truth, said = told
    assert metrics.auc(truth == 1, said[:, 1]) == pytest.approx(roc_auc_score(truth == 1, said[:, 1]))
    assert metrics.class_auc(truth, said) == pytest.approx(roc_auc_score(truth, said, multi_class="ovr"))


def test_loss_and_accuracy_are_those_of_scikit_learn(told):
    truth, said = told
    assert metrics.log_loss(truth, said) == pytest.approx(sklearn_log_loss(truth, said))
    wanted = balanced_accuracy_score(truth, said.argmax(axis=1))
    assert metrics.balanced_accuracy(truth, said) == pytest.approx(wanted)


def test_of_two_classes_the_first_is_the_wanted_one():
    said = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert metrics.class_auc(np.array([0, 1]), said) == 1.0
    assert metrics.purity_and_efficiency(np.array([True, False]), said[:, 0], 0.9) == (1.0, 1.0)


def test_calibration_error_of_a_known_case():
    said = np.tile([0.85, 0.15], (100, 1))
    truth = np.array([0] * 60 + [1] * 40)
    assert metrics.calibration_error(truth, said) == pytest.approx(0.25)
    assert metrics.calibration_error(truth[:0], said[:0]) != metrics.calibration_error(truth, said)


def test_who_keeps_its_promises_has_no_calibration_error(told):
    truth, said = told
    assert metrics.calibration_error(truth, said) < 0.08


def test_what_cannot_be_told_is_nan():
    alone = np.zeros(5, int)
    assert math.isnan(metrics.class_auc(alone, np.full((5, 2), 0.5)))
    assert math.isnan(metrics.purity_and_efficiency(alone == 0, np.zeros(5), 0.5)[0])
    assert math.isnan(metrics.summary(np.zeros(0, int), np.zeros((0, 2)))["auc"])


def test_paired_differences_are_seed_by_seed():
    gap = metrics.paired([0.7, 0.8, 0.9], [0.6, 0.8, 0.7])
    assert gap["mean"] == pytest.approx(0.1)
    assert gap["worst"] == pytest.approx(0.0)
    assert gap["spread"] == pytest.approx(0.1)
