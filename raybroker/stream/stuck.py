"""Partitions that are assigned and never fetched, which librdkafka neither mends nor says.

Seen with librdkafka 2.16.1 after a broker was killed and came back: of three partitions assigned at once two were read;
the third stayed at position -1001, not paused, its cached high watermark old, so that the lag did not show it either.
To assign it anew did not help; a new consumer did.
"""

from __future__ import annotations

from collections.abc import Mapping

from raybroker.stream.fair import Ends
from raybroker.stream.packets import TopicPartition


class Stuck:
    """Looks now and then which partitions stand still although there is something to read.

    Once is not enough: a packet may have come to an idle partition just before the look.
    """

    def __init__(self) -> None:
        self._before: dict[TopicPartition, int] = {}
        self._behind: set[TopicPartition] = set()  # at the last look, where they stood already

    def look(self, positions: Mapping[TopicPartition, int], ends: Ends) -> set[TopicPartition]:
        """Those that stood still, before their end, at the last look and stand there now; `ends` asks the brokers."""
        still = [key for key, position in positions.items() if self._before.get(key) == position]
        found = ends(still) if still else {}
        behind = {key for key in still if found.get(key, 0) > positions[key]}
        stuck = behind & self._behind
        self._before, self._behind = dict(positions), behind - stuck
        return stuck
