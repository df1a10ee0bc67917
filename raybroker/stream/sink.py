"""Outputs to our own Kafka: those of a turn and the position they reach, in one transaction per source place.

The positions live in `raybroker.positions`, a compacted topic: key the place's app id, value the position in decimal.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import confluent_kafka as ck

from raybroker.alerts import Packet
from raybroker.errors import FencedError, StreamError
from raybroker.stream.client import (
    LOG,
    SECONDS,
    Cluster,
    Producer,
    common,
    kafka_error,
    unreachable,
)
from raybroker.stream.packets import Place

POSITIONS = "raybroker.positions"
SMALL = {  # compacted often, for it is read from its beginning on every assignment
    "cleanup.policy": "compact",
    "segment.ms": "600000",
    "segment.bytes": "16777216",
    "min.cleanable.dirty.ratio": "0.1",
}
ATTEMPTS = 3
FENCED = (
    ck.KafkaError._FENCED,
    ck.KafkaError.PRODUCER_FENCED,
    ck.KafkaError.INVALID_PRODUCER_EPOCH,
)


class KafkaSink:
    """Outputs by transaction; see `Sink`.

    With `transactions=False`, for clusters that have none, an output can appear twice after a crash, never be missing.
    Topics that do not exist are made with `partitions` partitions, where the cluster lets us.
    """

    def __init__(
        self,
        servers: str,
        options: Mapping[str, str] | None = None,
        prefix: str = "raybroker/",
        transactions: bool = True,
        partitions: int = 4,
    ) -> None:
        self.servers, self.prefix, self.transactions = servers, prefix, transactions
        self._options, self._partitions = dict(options or {}), partitions
        self._cluster = Cluster(servers, self._options)
        self._producers: dict[Place, Producer] = {}
        self._topics: set[str] = set()

    def emitted(self, places: Sequence[Place]) -> dict[Place, int]:
        """See `Sink`. All places are taken over before the positions are read, so none can still move."""
        self._ensure([POSITIONS], 1, SMALL)
        with ThreadPoolExecutor(max_workers=16) as pool:  # each may wait half a second for its coordinator
            self._producers |= zip(places, pool.map(self._taken_over, places), strict=True)
        found = read_positions(self.servers, self._options, {place.app_id for place in places})
        return {place: found[place.app_id] for place in places if place.app_id in found}

    def write(self, place: Place, outputs: Mapping[str, Sequence[Packet]], position: int) -> None:
        """See `Sink`. A transaction that Kafka aborts is tried again as a whole."""
        self._ensure([POSITIONS], 1, SMALL)
        self._ensure(list(outputs), self._partitions)
        producer = self._producers.get(place)
        if producer is None:
            raise StreamError(
                f"`emitted` must be asked before outputs of {place.topic} [{place.partition}] are written"
            )
        mark = Packet(str(position).encode(), key=place.app_id.encode())
        if self.transactions:
            self._transact(place, producer, {**outputs, POSITIONS: [mark]})
        else:
            _send(producer, outputs)
            producer.flush()
            producer.send(POSITIONS, mark, partition=0)

    def flush(self) -> None:
        """See `Sink`; transactions are stored when `write` returns."""
        if not self.transactions:
            for producer in self._producers.values():
                producer.flush()

    def close(self) -> None:
        """See `Sink`."""
        self.flush()
        self._producers.clear()

    def _ensure(
        self, topics: Sequence[str], partitions: int, config: Mapping[str, str] | None = None
    ) -> None:
        unseen = set(topics) - self._topics
        if unseen:
            self._cluster.create(sorted(unseen), partitions, config)
            self._topics |= unseen

    def _taken_over(self, place: Place) -> Producer:
        """A fresh producer for this place; one that wrote for it before, here or elsewhere, is fenced."""
        if not self.transactions:
            return self._producers.get(place) or Producer(self.servers, self._options)
        identity = {"transactional.id": f"{self.prefix}{place.app_id}", "transaction.timeout.ms": 30_000}
        producer = Producer(self.servers, self._options, **identity)
        try:
            producer.raw.init_transactions(3 * SECONDS)
        except ck.KafkaException as error:
            raise StreamError(unreachable(self.servers, kafka_error(error) or error)) from None
        return producer

    def _transact(self, place: Place, producer: Producer, outputs: Mapping[str, Sequence[Packet]]) -> None:
        for _ in range(ATTEMPTS):
            try:
                producer.raw.begin_transaction()
                _send(producer, outputs)
                producer.raw.commit_transaction(3 * SECONDS)
                return
            except (ck.KafkaException, StreamError) as error:
                failure = error
                if not self._taken_back(producer, error):
                    break
        self._give_up(place, failure)

    def _taken_back(self, producer: Producer, error: Exception) -> bool:
        """Whether the transaction was undone, so that it may be tried again."""
        found = kafka_error(error)
        if found is not None and (found.code() in FENCED or found.fatal()):
            return False
        try:
            producer.raw.abort_transaction(SECONDS)
        except ck.KafkaException as refused:
            LOG.debug("a transaction could not be aborted: %s", refused)
            return False
        producer.forget_refusals()
        return True

    def _give_up(self, place: Place, error: Exception) -> None:
        """Drop the producer, so that nothing more is written before `emitted` has looked what was stored."""
        del self._producers[place]
        found = kafka_error(error)
        if found is not None and found.code() in FENCED:
            raise FencedError(
                f"another worker writes the outputs of {place.topic} [{place.partition}] now"
            ) from None
        raise StreamError(
            f"the outputs of {place.topic} [{place.partition}] were not stored: {error}"
        ) from None


def _send(producer: Producer, outputs: Mapping[str, Sequence[Packet]]) -> None:
    for topic, packets in outputs.items():
        for packet in packets:
            producer.send(topic, packet, partition=0 if topic == POSITIONS else -1)


def read_positions(
    servers: str, options: Mapping[str, str], app_ids: set[str], seconds: float = 60.0
) -> dict[str, int]:
    """The last committed position by app id.

    It reads to the high watermark, not only to the end of what is committed: another place's open transaction can
    stand before a committed record of ours, so that has to end first (by its commit, its successor or its time-out).
    """
    reader = ck.Consumer(_reader_settings(servers, options))
    partition = ck.TopicPartition(POSITIONS, 0, ck.OFFSET_BEGINNING)
    try:
        end = _high_watermark(servers, options)
        reader.assign([partition])
        return _read_to(reader, end, app_ids, time.monotonic() + seconds)
    except ck.KafkaException as error:
        raise StreamError(unreachable(servers, kafka_error(error) or error)) from None
    finally:
        reader.close()


def _reader_settings(servers: str, options: Mapping[str, str]) -> dict[str, Any]:
    return {
        **common(servers, options),
        "group.id": f"raybroker-reader-{uuid.uuid4()}",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "fetch.wait.max.ms": 50,
    }


def _high_watermark(servers: str, options: Mapping[str, str]) -> int:
    """The end of the positions, open transactions included."""
    everything = {"isolation.level": "read_uncommitted"}
    reader = ck.Consumer(_reader_settings(servers, options) | everything)
    try:
        found = reader.get_watermark_offsets(ck.TopicPartition(POSITIONS, 0), timeout=SECONDS)
    finally:
        reader.close()
    return int(found[1])


def _read_to(reader: ck.Consumer, end: int, app_ids: set[str], deadline: float) -> dict[str, int]:
    positions: dict[str, int] = {}
    reached = 0
    while reached < end:
        if time.monotonic() > deadline:
            raise StreamError(
                f"'{POSITIONS}' could not be read to its end: a transaction at offset {reached} stays open"
            )
        for message in reader.consume(1000, timeout=0.1):
            reached = _note(message, app_ids, positions)
    return positions


def _note(message: Any, app_ids: set[str], positions: dict[str, int]) -> int:
    """Keep one record's position; the offset that is read now."""
    error = message.error()
    if error is None and (key := message.key().decode()) in app_ids:
        positions[key] = int(message.value())
    if error is not None and error.code() != ck.KafkaError._PARTITION_EOF:
        raise ck.KafkaException(error)
    return int(message.offset()) + (error is None)
