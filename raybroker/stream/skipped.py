"""Offsets that a reader passed over. Most hold no record: a transaction's marker, an aborted or a compacted one.

librdkafka has skipped records without a word before (its issues 1720 and 2279), and then nothing would tell the two
apart. So each hole is read once more, by a consumer of its own, before it goes into the books as empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raybroker.stream.look import Look, Span
from raybroker.stream.packets import Place, TopicPartition


class Holes:
    """The holes that nobody has looked into yet."""

    def __init__(self, servers: str, options: Mapping[str, str]) -> None:
        self._servers, self._options = servers, options
        self._look: Look | None = None  # made with the first hole
        self._spans: dict[TopicPartition, list[Span]] = {}

    def note(self, key: TopicPartition, first: int, end: int) -> None:
        """Nothing came of these offsets."""
        if first < end:
            self._spans.setdefault(key, []).append((first, end))

    def forget(self, keys: Iterable[TopicPartition]) -> None:
        """These partitions are not read any more, or are read again."""
        for key in keys:
            self._spans.pop(key, None)

    def records(self, places: Mapping[TopicPartition, Place]) -> dict[TopicPartition, int]:
        """Of each partition the first record that was passed over, if any; StreamError where Kafka cannot say.

        A hole that was found empty is forgotten; one with a record stays until its partition is read again.
        """
        found = {}
        for key, spans in list(self._spans.items()):
            if self._look is None:
                self._look = Look(self._servers, self._options)
            if (at := self._look.record_in(places[key], spans)) is None:
                del self._spans[key]
            else:
                found[key] = at
        return found

    def close(self) -> None:
        """Leave Kafka."""
        if self._look is not None:
            self._look.close()
