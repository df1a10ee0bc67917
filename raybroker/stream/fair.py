"""Whose turn it is: a partition must not wait until another one's backlog is read.

librdkafka puts what it fetches of all partitions into one queue of 16 MB or 100,000 messages, first in, first out, and
fetches when there is room: whichever partition is asked first may fill it again. Measured with a real Kafka: behind a
backlog of 100-byte messages 118,000 of them came first; behind 48 partitions of 60 kB alerts 3,800, fourteen turns.
See librdkafka's issues 1854 and 2853. So we look ourselves who got nothing while polls were full, and let them go first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from itertools import accumulate

from raybroker.stream.packets import TopicPartition

FULL_POLLS = 2  # without a packet in so many full polls in a row a partition was passed over
LONG_POLLS = 20  # and in so many it goes first however much waits in it
ASK_SECONDS = 2.0  # between two questions to the brokers

Ends = Callable[[Collection[TopicPartition]], Mapping[TopicPartition, int]]


class Fair:
    """Knows who was passed over. A poll is full where it ended before the time was up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked = -ASK_SECONDS
        self._full = False
        self._before: dict[TopicPartition, int] = {}
        self._passed: dict[TopicPartition, int] = {}  # full polls in a row that gave nothing of it
        self._went_first: set[TopicPartition] = set()  # since the last `could_come`

    def polled(self, positions: Mapping[TopicPartition, int], full: bool) -> None:
        """A poll ended with every partition at these positions. One that is not full has passed over nobody."""
        still = [key for key, position in positions.items() if self._before.get(key) == position]
        self._passed = {key: self._passed.get(key, 0) + 1 for key in still} if full else {}
        self._before, self._full = dict(positions), full

    def first(self, positions: Mapping[TopicPartition, int], ends: Ends, room: int) -> set[TopicPartition]:
        """Who goes before all others in a poll with room for so many packets; `ends` asks the brokers, seldom.

        Of those that were passed over, the ones where least waits, as many as fill half the poll: tonight's. Where all
        have a backlog nobody goes first, since what was fetched of the others is fetched again.
        """
        passed = [key for key, polls in self._passed.items() if polls >= FULL_POLLS and key in positions]
        if not passed or self._clock() - self._asked < ASK_SECONDS:
            return set()
        self._asked = self._clock()
        now = ends(passed)
        lags = {key: now[key] - positions[key] for key in passed if now.get(key, 0) > positions[key]}
        chosen = _shortest(lags, room // 2)
        if long := [key for key in lags if self._passed[key] >= LONG_POLLS]:
            chosen.add(max(long, key=self._passed.__getitem__))
        self._went_first |= chosen
        return chosen

    def could_come(self, positions: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """The positions of those that had the chance to move since the last call: while polls are full, who went first."""
        chosen = self._went_first if self._full else set(positions)
        self._went_first = set()
        return {key: position for key, position in positions.items() if key in chosen}


def _shortest(lags: Mapping[TopicPartition, int], room: int) -> set[TopicPartition]:
    shortest = sorted(lags, key=lags.__getitem__)
    return {
        key
        for key, sum_ in zip(shortest, accumulate(map(lags.__getitem__, shortest)), strict=True)
        if sum_ <= room
    }
