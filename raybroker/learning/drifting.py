"""When the stream changed for the worse: ADWIN on the delayed loss of the mixture."""

from __future__ import annotations

from collections import deque
from typing import Any

from river import drift

CONFIDENCE = 0.002  # ADWIN's delta, as River has it


class Change:
    """Remembers up to `most` losses; a loss that falls, as when a model learns, is no change."""

    def __init__(self, most: int) -> None:
        self.since = 0  # the number of the first label after the last change
        adwin: Any = drift.ADWIN
        self._adwin = adwin(delta=CONFIDENCE)
        self._counted: deque[int] = deque(maxlen=most)  # numbers of the labels that were counted

    def noticed(self, loss: float, number: int) -> bool:
        """Take the loss, between 0 and 1 as ADWIN's bound has it, of label `number`; True if it shows a change."""
        usual = self._adwin.estimation
        self._counted.append(number)
        self._adwin.update(loss)
        if not self._adwin.drift_detected or self._adwin.estimation <= usual:
            return False
        width = min(int(self._adwin.width), len(self._counted))
        self.since = self._counted[-width]
        return True
