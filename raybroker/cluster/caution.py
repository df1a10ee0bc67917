"""Finding the packet that kills workers: ever smaller turns, then one packet declared dead.

Pure: the supervisor tells it what was taken, finished and lost, and asks how much to take next.

>>> caution = Caution()
>>> caution.limit is None                       # normal turns
True
>>> caution.lost({("ztf", 0): (100, 139)})      # a worker died in a turn of 40 packets
>>> caution.limit
5
>>> caution.lost({("ztf", 0): (100, 104)})      # again: still somewhere in the first five
>>> caution.limit
1
>>> caution.lost({("ztf", 0): (100, 100)})      # alone: this one, if it does so twice
>>> caution.lost({("ztf", 0): (100, 100)})
>>> caution.dead
{('ztf', 0, 100): 'kills the worker'}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Span = tuple[int, int]
Taken = Mapping[tuple[str, int], Span]
SMALLER = 8


@dataclass
class Caution:
    """What is suspected (topic, partition → first and last offset) and what is known to kill."""

    suspects: dict[tuple[str, int], Span] = field(default_factory=dict)
    dead: dict[tuple[str, int, int], str] = field(default_factory=dict)
    limit: int | None = None
    _strikes: dict[tuple[str, int, int], int] = field(default_factory=dict)

    def lost(self, taken: Taken, reason: str = "kills the worker") -> None:
        """A worker died, or overran its deadline, with these offsets in hand (empty: before it took any)."""
        size = sum(last - first + 1 for first, last in taken.values())
        if not size:
            return
        self.suspects.update(taken)
        self.limit = max(1, size // SMALLER)
        if size == 1:
            self._strike(taken, reason)

    def _strike(self, taken: Taken, reason: str) -> None:
        ((topic, partition), (offset, _)) = next(iter(taken.items()))
        packet = (topic, partition, offset)
        self._strikes[packet] = self._strikes.get(packet, 0) + 1
        if self._strikes[packet] >= 2:
            self.dead[packet] = reason

    def finished(self, taken: Taken) -> None:
        """These offsets are archived: suspects among them are cleared, and normal turns return after the last."""
        for place, (_, last) in taken.items():
            self._strikes = {p: n for p, n in self._strikes.items() if p[:2] != place or p[2] > last}
            self.dead = {p: r for p, r in self.dead.items() if p[:2] != place or p[2] > last}
            if place in self.suspects and self.suspects[place][1] <= last:
                del self.suspects[place]
        if not self.suspects:
            self.limit = None
