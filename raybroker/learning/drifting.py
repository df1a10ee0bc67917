"""When the stream changed for the worse: ADWIN on the delayed loss of the mixture."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from river import drift

CONFIDENCE = 0.002  # ADWIN's delta, as River has it


class Change:
    """Remembers up to `most` losses; a loss that falls, as when a model learns, is no change."""

    def __init__(self, most: int) -> None:
        self.since = 0  # the number of the first label after the last change
        adwin: Any = drift.ADWIN
        self._adwin = adwin(delta=CONFIDENCE)
        self._counted: deque[tuple[int, float]] = deque(
            maxlen=most
        )  # labels since the last change, and losses

    def noticed(self, loss: float, number: int) -> bool:
        """Take the loss, between 0 and 1 as ADWIN's bound has it, of label `number`; True if it shows a change."""
        usual = self._adwin.estimation
        self._counted.append((number, loss))
        self._adwin.update(loss)
        if not self._adwin.drift_detected or self._adwin.estimation <= usual:
            return False
        self.since = self._counted[self._split()][0]
        self._counted.clear()
        return True

    def _split(self) -> int:
        """Where the losses rise most, by least squares: ADWIN's own window drops the past by whole buckets, too late."""
        losses = np.array([loss for _, loss in self._counted])
        count, sums = len(losses), np.cumsum(losses)
        before = np.arange(1, count)
        rise = (sums[-1] - sums[:-1]) / (count - before) - sums[:-1] / before
        return int(before[np.argmax(np.maximum(rise, 0.0) ** 2 * before * (count - before))])
