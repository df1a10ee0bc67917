"""Looking into Kafka without being of a group: where a partition begins and ends, and whether offsets hold records."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence

import confluent_kafka as ck

from raybroker.errors import StreamError
from raybroker.stream.client import SECONDS, common, kafka_error, unreachable
from raybroker.stream.packets import Place

Span = tuple[int, int]


class Look:
    """A reader of one cluster; `close` it. It sees what a worker sees: committed records only."""

    def __init__(self, servers: str, options: Mapping[str, str] | None = None) -> None:
        self.servers = servers
        self._reader = ck.Consumer(
            {
                **common(servers, options or {}),
                "group.id": f"raybroker-reader-{uuid.uuid4()}",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
                "queued.max.messages.kbytes": 1024,
            }
        )

    def watermarks(self, places: Iterable[Place]) -> dict[Place, Span]:
        """The first offset that each partition still has, and the one after its last."""
        found = {}
        for place in places:
            partition = ck.TopicPartition(place.topic, place.partition)
            try:
                found[place] = self._reader.get_watermark_offsets(partition, timeout=SECONDS)
            except ck.KafkaException as error:
                raise StreamError(unreachable(self.servers, kafka_error(error) or error)) from None
        return found

    def records(self, place: Place, spans: Sequence[Span]) -> list[int]:
        """The first offset within each span that holds a record after all; a span without one gives none."""
        found = [self._first(place, first) for first, _ in spans]
        return [at for at, (_, end) in zip(found, spans, strict=True) if at is not None and at < end]

    def record_in(self, place: Place, spans: Sequence[Span]) -> int | None:
        """The first offset within these spans, which are in order, that holds a record after all; None where none does."""
        end = spans[-1][1]
        for offset in self._from(place, spans[0][0]):
            if offset >= end:
                return None
            if any(first <= offset < last for first, last in spans):
                return offset
        return None

    def _first(self, place: Place, offset: int) -> int | None:
        """The first record at or after an offset; None where the partition ends before one."""
        return next(self._from(place, offset), None)

    def _from(self, place: Place, offset: int) -> Iterator[int]:
        """The offsets of the records from there on, until the end of the partition."""
        self._reader.assign([ck.TopicPartition(place.topic, place.partition, offset)])
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            message = self._reader.poll(0.5)
            if message is None:
                continue
            error = message.error()
            if error is None:
                until = time.monotonic() + SECONDS
                yield int(message.offset() or 0)
            elif error.code() == ck.KafkaError._PARTITION_EOF:
                return
        raise StreamError(f"Kafka at {self.servers} gives nothing of {place.topic} [{place.partition}]")

    def close(self) -> None:
        """Leave."""
        self._reader.close()
