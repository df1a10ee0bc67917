"""Probabilities that mean what they say: a temperature and a bias per class, fitted on random picks only.

What people are asked because the model is unsure of it is not like the stream: only random picks are. After
calibration p' is proportional to exp(bias) * p ** slope; for two classes this is Platt's scaling of the log-odds, with a
slope above 0, so that the order of two alerts never turns round.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PICKS = 300  # the last random picks that are learned from
LEAST = 30  # random picks from which on there is a calibration
LEAST_SLOPE = 0.05
# Curvature of the pull towards no change: some 120 picks at even odds say as much. Picks of one object or one month say
# the same again; with less, the bias follows the class balance of the month (docs/decisions/mixture.md).
PRIOR = 30.0
STEPS = 30


@dataclass(frozen=True)
class Calibration:
    """p' ~ exp(bias) * p ** slope."""

    slope: float
    bias: Floats  # [classes]


def neutral(classes: int) -> Calibration:
    """Changes nothing."""
    return Calibration(1.0, np.zeros(classes))


def fit(logs: Floats, labels: NDArray[np.int64]) -> Calibration:
    """The calibration of these picks: log probabilities of the mixture [picks, classes] and what was right.

    Penalized likelihood is convex in slope and bias; Newton's steps, halved until it falls, find its one minimum.
    """
    found = np.concatenate([[1.0], np.zeros(logs.shape[1])])
    loss = _loss(found, logs, labels)
    for _ in range(STEPS):
        hessian, gradient = _newton(found, logs, labels)
        step: Floats = np.asarray(np.linalg.solve(hessian, gradient), np.float64)
        found, new = _improved(found, step, logs, labels, loss)
        if loss - new < 1e-9:
            break
        loss = new
    return Calibration(float(found[0]), found[1:])


def _improved(
    at: Floats, step: Floats, logs: Floats, labels: NDArray[np.int64], loss: float
) -> tuple[Floats, float]:
    for halving in range(20):
        tried = at - step * 0.5**halving
        tried[0] = max(tried[0], LEAST_SLOPE)
        new = _loss(tried, logs, labels)
        if new < loss:
            return tried, new
    return at, loss


def _shares(at: Floats, logs: Floats) -> Floats:
    raised = at[0] * logs + at[1:]
    raised = np.exp(raised - raised.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _away(at: Floats) -> Floats:
    away = at.copy()
    away[0] -= 1.0
    return away


def _loss(at: Floats, logs: Floats, labels: NDArray[np.int64]) -> float:
    said = _shares(at, logs)[np.arange(len(labels)), labels]
    return float(0.5 * PRIOR * np.square(_away(at)).sum() - np.log(np.maximum(said, 1e-300)).sum())


def _newton(at: Floats, logs: Floats, labels: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Hessian and gradient of the loss. Sums, not matrix products: the same bits with any BLAS."""
    shares = _shares(at, logs)
    classes = logs.shape[1]
    missed = shares - np.eye(classes)[labels]
    gradient = PRIOR * _away(at)
    gradient[0] += (missed * logs).sum()
    gradient[1:] += missed.sum(axis=0)
    centred = shares * (logs - (shares * logs).sum(axis=1, keepdims=True))
    hessian = PRIOR * np.eye(classes + 1)
    hessian[0, 0] += (centred * logs).sum()
    hessian[0, 1:] += centred.sum(axis=0)
    hessian[1:, 0] = hessian[0, 1:]
    hessian[1:, 1:] += np.diag(shares.sum(axis=0)) - (shares[:, :, None] * shares[:, None, :]).sum(axis=0)
    return hessian, gradient


@dataclass
class Calibrator:
    """Remembers the last random picks."""

    classes: int
    picks: deque[tuple[Floats, int]] = field(default_factory=lambda: deque(maxlen=PICKS))
    calibration: Calibration | None = None  # None: not fitted since the last pick

    def learn(self, mixture: Floats, label: int) -> None:
        """A random pick: what the mixture [classes] said of it, not calibrated, before its label was learned."""
        self.picks.append((np.log(mixture), label))
        self.calibration = None

    def current(self) -> Calibration:
        """Neutral before `LEAST` picks."""
        if self.calibration is None:
            enough = len(self.picks) >= LEAST
            self.calibration = self._fitted() if enough else neutral(self.classes)
        return self.calibration

    def _fitted(self) -> Calibration:
        logs, labels = zip(*self.picks, strict=True)
        return fit(np.array(logs), np.array(labels))
