"""What may enter the pool, decided when it arrives: a share of the stream, and no look ahead.

`Split` is the strategy of Zliobaite et al. (2014, "Active Learning With Drifting Streaming Data", IEEE TNNLS 25, 27):
a random part of the stream keeps it honest, so that a change where the model feels sure is seen too; the rest is let in
where the model is less certain than a threshold that follows the stream; a running estimate of what was spent holds
both to the budget. Its constants are the defaults of scikit-activeml's `Split`.

One thing differs. There the threshold falls and rises by the same step, so that half of what it sees would enter and the
spent budget, not the threshold, turns the rest away: at a share of 0.1 what entered was hardly less certain than what
did not, and chance got 3 % of the entries instead of 10. Here it rises by so much less that it settles at the share.

>>> split = by_name("split", share=0.2)
>>> bool(split.take(np.full(1_000, 0.5)).sum() <= 0.2 * (1_000 + split.memory))
True
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from raybroker.errors import SettingsError, did_you_mean

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

RANDOM_PART = 0.1  # of the stream, where chance decides
STEP = 0.01  # by which the threshold falls for an alert that is let in
MEMORY = 100  # alerts over which spending is estimated, or ten times as many as the share lets one in


class Entry(NamedTuple):
    """Which alerts may enter, and which of these by chance: only they may be random picks (`Candidate.drawn`)."""

    taken: Mask
    drawn: Mask


class Arrival(Protocol):
    """Decides for alerts in the order of their arrival; cut into whatever batches, they are decided alike."""

    def take(self, uncertainty: Floats | Sequence[float]) -> Mask:
        """Which of these alerts may enter, by 1 - the probability of the likeliest class; NaN is not known."""

    def decide(self, uncertainty: Floats | Sequence[float]) -> Entry:
        """As `take`, with what entered by chance."""


class All:
    """Everything may enter, and be a random pick."""

    def take(self, uncertainty: Floats | Sequence[float]) -> Mask:
        """See `Arrival`."""
        return np.ones(len(uncertainty), bool)

    def decide(self, uncertainty: Floats | Sequence[float]) -> Entry:
        """See `Arrival`."""
        return Entry(self.take(uncertainty), self.take(uncertainty))


class Split:
    """At most `share` of the stream: never more than share x (alerts so far + memory), where memory >= 100.

    It pickles with its state.
    """

    def __init__(self, share: float, seed: int = 0) -> None:
        if not 0 < share <= 1:
            raise SettingsError(f"arrival_share = {share}: it must be above 0 and at most 1")
        self.share = share
        self.memory = max(MEMORY, round(10 / share))
        self._rise = STEP * share / max(1 - share, share)  # as many steps up as down where `share` enters
        self.threshold = 1.0  # of certainty: below it, an alert is let in
        self._spent = 0.0  # of the last `memory` alerts, fading
        self._rng = np.random.default_rng(seed)

    def take(self, uncertainty: Floats | Sequence[float]) -> Mask:
        """See `Arrival`."""
        return self.decide(uncertainty).taken

    def decide(self, uncertainty: Floats | Sequence[float]) -> Entry:
        """See `Arrival`."""
        certainty = 1 - np.asarray(uncertainty, np.float64)
        chances = self._rng.random((len(certainty), 2))
        drawn, taken = np.zeros(len(certainty), bool), np.zeros(len(certainty), bool)
        for row, (certain, (part, luck)) in enumerate(zip(certainty.tolist(), chances.tolist(), strict=True)):
            left = self._left()
            if part < RANDOM_PART:
                taken[row] = drawn[row] = left and luck < self.share
            elif left:
                taken[row] = self._is_uncertain(certain)
            self._spent = self._spent * (1 - 1 / self.memory) + bool(taken[row])
        return Entry(taken, drawn)

    def _left(self) -> bool:
        """Whether one more would still be within the budget."""
        return self._spent * (1 - 1 / self.memory) + 1 <= self.share * self.memory

    def _is_uncertain(self, certainty: float) -> bool:
        """Whether it is below the threshold, which then follows; not known is not."""
        if math.isnan(certainty):
            return False
        below = certainty < self.threshold
        self.threshold *= 1 - STEP if below else 1 + self._rise
        return below


NAMES = ("all", "split")


def by_name(name: str, share: float = 0.1, seed: int = 0) -> Arrival:
    """'all', or 'split' with the share of the stream that may enter."""
    if name not in NAMES:
        raise SettingsError(f"no arrival '{name}'{did_you_mean(name, NAMES)}: give one of {list(NAMES)}")
    return All() if name == "all" else Split(share, seed)
