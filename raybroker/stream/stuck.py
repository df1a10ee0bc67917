"""Partitions that are assigned and never fetched, which librdkafka neither mends nor says.

Seen with librdkafka 2.16.1 after a broker was killed and came back: of three partitions assigned at once two were read;
the third stayed at position -1001, not paused, its cached high watermark old, so that the lag did not show it either.
To assign it anew did not help; a new consumer did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raybroker.stream.packets import TopicPartition


class Stuck:
    """Looks now and then which partitions stand still although there is something to read."""

    def __init__(self) -> None:
        self._before: dict[TopicPartition, int] = {}

    def look(
        self, positions: Mapping[TopicPartition, int], end: Callable[[TopicPartition], int]
    ) -> set[TopicPartition]:
        """Those that stand where they stood at the last look, before their end; `end` asks the broker."""
        still = {key for key, position in positions.items() if self._before.get(key) == position}
        self._before = dict(positions)
        return {key for key in still if end(key) > positions[key]}
