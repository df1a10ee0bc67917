"""How good a model is, from what it said of each label's alert before it knew the label (prequential evaluation)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from raybroker.learning import metrics
from raybroker.learning.learner import Learned
from raybroker.learning.metrics import Floats, Integers
from raybroker.learning.release import Forecast

RECENT = 500  # labels that the numbers are of
SHOWN = 50  # labels in the running mean of a learning curve
LEAST = 20  # labels below which nothing but the loss is said


class Told(NamedTuple):
    """One label, and what every configuration had said of its alert."""

    said: Mapping[str, Floats]  # [classes] by configuration
    label: int
    unseen: bool  # no label of its object was learned before
    pick: bool  # it was asked at random


class Progress:
    """Delayed prequential record of a model's configurations over the latest labels."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.losses: list[float] = []  # of the mixture that served, each label's
        self._met: set[str] = set()
        self._recent: deque[Told] = deque(maxlen=RECENT)

    def is_new(self, key: str) -> bool:
        """Whether no label of this object was learned so far; it then is."""
        new = key not in self._met
        self._met.add(key)
        return new

    def add(self, said: Mapping[str, Learned], serving: str, label: str, unseen: bool, pick: bool) -> None:
        """One label, and what the configurations had said."""
        self.losses.append(float(said[serving].mixture_losses[0]))
        mixtures = {key: learned.prediction.mixture[0].copy() for key, learned in said.items()}
        self._recent.append(Told(mixtures, self.classes.index(label), unseen, pick))

    def forecasts(self, key: str) -> list[Forecast]:
        """What a configuration said of the latest labels on unseen objects."""
        told = (one for one in self._recent if one.unseen)
        return [Forecast(self.classes[one.label], tuple(one.said[key].tolist())) for one in told]

    def _record(self, key: str, picks_only: bool) -> tuple[Integers, Floats]:
        told = [one for one in self._recent if one.unseen and (one.pick or not picks_only)]
        said = np.array([one.said[key] for one in told]).reshape(-1, len(self.classes))
        return np.array([one.label for one in told], np.int64), said

    def metrics(self, key: str) -> dict[str, float]:
        """Numbers over the latest labels on unseen objects, and over the random picks among them as `picks_*`."""
        found = {"log_loss": float(np.mean(self.losses[-SHOWN:]))} if self.losses else {}
        for prefix, picks_only in (("unseen_", False), ("picks_", True)):
            truth, said = self._record(key, picks_only)
            found[f"{prefix}labels"] = float(len(truth))
            if len(truth) >= LEAST:
                numbers = metrics.summary(truth, said)
                found |= {prefix + name: value for name, value in numbers.items() if np.isfinite(value)}
        return found
