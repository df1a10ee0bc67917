"""Calibration: it says less where the mixture said too much, never turns the order round, and needs picks."""

from __future__ import annotations

import numpy as np
import pytest

from raybroker.learning import calibration
from raybroker.learning.calibration import LEAST, PICKS, Calibrator
from raybroker.learning.compiled import calibrated


def told(
    rows: int, classes: int = 2, boast: float = 1.0, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """What a mixture said [rows, classes], `boast` times as sure as it may be, and what was right."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 1.2, size=(rows, classes))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(classes, p=row) for row in honest])
    said = np.exp(boast * logits + shift * np.arange(classes))
    return said / said.sum(axis=1, keepdims=True), labels


def error(mixture: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of the last class in ten bins."""
    said, right = mixture[:, -1], labels == mixture.shape[1] - 1
    bins = np.minimum((said * 10).astype(int), 9)
    return sum(abs((right - said)[bins == i].sum()) for i in range(10)) / len(labels)


def of(mixture: np.ndarray, labels: np.ndarray) -> Calibrator:
    calibrator = Calibrator(mixture.shape[1])
    for row, label in zip(mixture, labels, strict=True):
        calibrator.learn(row, int(label))
    return calibrator


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("boast", "shift"), [(3.0, 0.0), (1.0, 0.8), (0.6, -0.5)])
def test_three_hundred_picks_mend_what_is_said_too_loud(boast: float, shift: float, classes: int) -> None:
    mixture, labels = told(2_000, classes, boast, shift)
    found = of(mixture[:PICKS], labels[:PICKS]).current()
    assert (found.slope - 1) * (1 - boast) >= 0
    after, before = (error(said[PICKS:], labels[PICKS:]) for said in (calibrated(mixture, found), mixture))
    assert after < 0.08
    assert after < before


def test_what_is_honest_stays_as_it_is() -> None:
    mixture, labels = told(PICKS)
    assert np.abs(calibrated(mixture, of(mixture, labels).current()) - mixture).max() < 0.08


def test_too_few_picks_change_no_bit() -> None:
    mixture, labels = told(LEAST, boast=4.0)
    assert calibrated(mixture, of(mixture[:-1], labels[:-1]).current()).tobytes() == mixture.tobytes()
    assert calibrated(mixture, of(mixture, labels).current()).tobytes() != mixture.tobytes()


def test_the_order_of_two_classes_never_turns_round() -> None:
    mixture, labels = told(200)
    found = of(mixture, 1 - labels).current()  # a mixture that is always wrong
    assert found.slope > 0
    said = np.sort(mixture[:, 1])
    after = calibrated(np.column_stack([1 - said, said]), found)[:, 1]
    assert (np.diff(after) >= 0).all()


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only_does_no_harm(label: int) -> None:
    mixture, _ = told(60)
    after = calibrated(mixture, of(mixture, np.full(60, label)).current())
    assert np.isfinite(after).all()
    assert after[:, label].mean() > 0.6
    assert (after > 0).all()


def test_only_the_last_picks_count() -> None:
    old, wrong = told(PICKS, boast=5.0)
    new, right = told(PICKS)
    both = of(np.concatenate([old, new]), np.concatenate([wrong, right])).current()
    assert (both.slope, both.bias.tolist()) == (
        of(new, right).current().slope,
        of(new, right).current().bias.tolist(),
    )


def test_the_fit_is_at_its_minimum() -> None:
    mixture, labels = told(100, 3, 2.0, 0.3)
    found = calibration.fit(np.log(mixture), labels)
    at = np.array([found.slope, *found.bias])
    best = calibration._loss(at, np.log(mixture), labels)
    for i in range(len(at)):
        for step in (-1e-3, 1e-3):
            aside = at.copy()
            aside[i] += step
            assert calibration._loss(aside, np.log(mixture), labels) > best
