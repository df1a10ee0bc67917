"""Which alert ids a partition has given lately, in memory that soon stops growing: 16 bytes an id, at most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RECENT = 200_000  # ids remembered, at most; half of them at least

Hashes = npt.NDArray[np.int64]


class Recent:
    """The last alert ids of a partition, as hashes of 64 bits: two ids that share one are a chance of 1 in 10¹⁴.

    >>> recent = Recent()
    >>> recent.add(["ztf:1", "ztf:2", "ztf:1"]).tolist()
    [True, True, False]
    >>> recent.add(["ztf:3", "ztf:2"]).tolist()
    [True, False]
    """

    def __init__(self, known: Sequence[str] = (), size: int = RECENT) -> None:
        self.size = size
        self._newer = self._older = np.empty(0, np.int64)  # sorted
        self.add(known[-size:])

    def add(self, ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Remember these; True where one is new, for the first of several."""
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
        distinct, first = np.unique(hashes, return_index=True)
        new = ~_among(distinct, self._newer) & ~_among(distinct, self._older)
        self._remember(distinct[new])
        fresh = np.zeros(len(ids), bool)
        fresh[first[new]] = True
        return fresh

    def _remember(self, distinct: Hashes) -> None:
        """Two generations: when the newer is half of all, it becomes the older."""
        self._newer = np.insert(self._newer, np.searchsorted(self._newer, distinct), distinct)
        if len(self._newer) >= self.size // 2:
            self._newer, self._older = np.empty(0, np.int64), self._newer


def _among(hashes: Hashes, known: Hashes) -> npt.NDArray[np.bool_]:
    """Which are in a sorted array."""
    if not len(known):
        return np.zeros(len(hashes), bool)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.asarray(known[places] == hashes)
