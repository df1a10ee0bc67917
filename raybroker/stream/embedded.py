"""A Kafka inside this process, for demos and tests: librdkafka's mock cluster, from confluent_kafka's own wheel.

It is ready in 50 ms and other processes reach it. But it keeps only 5 MiB per partition and drops older batches in
silence, and it has no transactions: it is fed through `PacedProducer`, and never used to prove exactly-once.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import confluent_kafka as ck
from confluent_kafka import cimpl

from raybroker.alerts import Packet
from raybroker.errors import StreamError
from raybroker.stream.client import LOG, SECONDS, Producer, common
from raybroker.stream.packets import TopicPartition
from raybroker.stream.sink import POSITIONS

PRODUCER = 0  # rd_kafka_type_t
RETENTION = 5 * 1024 * 1024  # bytes per partition, fixed inside librdkafka
AHEAD = 3 * 1024 * 1024
RECORD_OVERHEAD = 100  # more than Kafka's framing of one record
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "rd_kafka_conf_new": (ctypes.c_void_p, []),
    "rd_kafka_conf_set": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rd_kafka_new": (ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    "rd_kafka_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_mock_cluster_new": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
    "rd_kafka_mock_cluster_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_mock_cluster_bootstraps": (ctypes.c_char_p, [ctypes.c_void_p]),
    "rd_kafka_mock_topic_create": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
    ),
    "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [ctypes.c_void_p, ctypes.c_int32]),
}


class EmbeddedUnavailable(StreamError):
    """librdkafka's mock cluster cannot be loaded here; the replay source does without."""


@functools.cache
def librdkafka() -> ctypes.CDLL:
    """The librdkafka that confluent_kafka itself uses, found through its extension module."""
    try:
        found = ctypes.CDLL(cimpl.__file__)
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise EmbeddedUnavailable(
            f"no embedded Kafka: librdkafka's mock cluster cannot be loaded ({error})"
        ) from None
    return found


class EmbeddedKafka:
    """A cluster of one broker while the context is open; `topics` gives the number of partitions by name.

    >>> with EmbeddedKafka({"alerts": 4}) as kafka:
    ...     kafka.servers.startswith("127.0.0.1:")
    True
    """

    def __init__(self, topics: Mapping[str, int]) -> None:
        self.topics = dict(topics)
        self.servers = ""
        self._client: int | None = None
        self._cluster: int | None = None

    def __enter__(self) -> EmbeddedKafka:
        found = librdkafka()
        self._client = _client(found)
        self._cluster = found.rd_kafka_mock_cluster_new(self._client, 1)
        if not self._cluster:
            self.close()
            raise EmbeddedUnavailable("no embedded Kafka: librdkafka could not open a port on 127.0.0.1")
        found.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self.servers = found.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        for name, partitions in {
            **self.topics,
            POSITIONS: 1,
        }.items():  # a client that asks would make 4 partitions
            self._create(name, partitions)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the cluster; whatever it held is gone."""
        if self._cluster:
            librdkafka().rd_kafka_mock_cluster_destroy(self._cluster)
        if self._client:
            librdkafka().rd_kafka_destroy(self._client)
        self._cluster = self._client = None

    def _create(self, name: str, partitions: int) -> None:
        failed = librdkafka().rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        if failed:
            self.close()
            raise StreamError(f"the embedded Kafka cannot make topic '{name}': {ck.KafkaError(failed).str()}")


def _client(found: ctypes.CDLL) -> int:
    """The librdkafka client that hosts the cluster; silent, for it connects to nothing."""
    said = ctypes.create_string_buffer(512)
    settings = found.rd_kafka_conf_new()
    found.rd_kafka_conf_set(settings, b"log_level", b"0", said, len(said))
    client = found.rd_kafka_new(PRODUCER, settings, said, len(said))
    if not client:
        raise EmbeddedUnavailable(f"no embedded Kafka: {said.value.decode()}")
    return int(client)


Consumed = Callable[[], Mapping[TopicPartition, int]]
"""The position up to which each partition is safely read; an absent one counts as 0."""


class PacedProducer:
    """Feeds an embedded Kafka: never more than `ahead` bytes per partition beyond what was consumed.

    Packets go round the partitions, whatever their keys, so that none runs ahead of the others.
    """

    def __init__(self, kafka: EmbeddedKafka, consumed: Consumed, ahead: int = AHEAD) -> None:
        if ahead > RETENTION - 1_500_000:  # a batch of up to 1 MB is dropped as a whole
            raise ValueError(f"ahead={ahead}: the embedded Kafka keeps {RETENTION} bytes per partition")
        self.ahead, self._topics, self._consumed = ahead, kafka.topics, consumed
        self._producer = Producer(kafka.servers, {}, **{"batch.size": 262_144})
        self._turns = {
            topic: itertools.cycle(range(partitions)) for topic, partitions in kafka.topics.items()
        }
        self._waiting: dict[TopicPartition, deque[tuple[int, int]]] = {}
        self._next: dict[TopicPartition, int] = {}
        self._bytes: dict[TopicPartition, int] = {}

    def send(self, topic: str, packet: Packet, seconds: float = 300.0) -> None:
        """Send one packet, waiting until there is room; StreamError if nobody reads for so long."""
        key = topic, next(self._turns[topic])
        size = len(packet.value or b"") + len(packet.key or b"") + RECORD_OVERHEAD
        size += sum(len(name) + len(value or b"") for name, value in packet.headers)
        deadline = time.monotonic() + seconds
        while self._bytes.get(key, 0) and self._bytes[key] + size > self.ahead:
            if time.monotonic() > deadline:
                raise StreamError(
                    f"nobody has read {topic} [{key[1]}] of the embedded Kafka for {seconds:g} s"
                )
            self._release()
        self._producer.send(topic, packet, partition=key[1])
        self._hold(key, size)

    def flush(self, seconds: float = 60.0) -> None:
        """Return when all that was sent is stored."""
        self._producer.flush(seconds)

    def _hold(self, key: TopicPartition, size: int) -> None:
        offset = self._next.get(key, 0)
        self._next[key] = offset + 1
        self._waiting.setdefault(key, deque()).append((offset, size))
        self._bytes[key] = self._bytes.get(key, 0) + size

    def _release(self) -> None:
        """Count off what was consumed; a pause where nothing was."""
        before = sum(self._bytes.values())
        for key, position in self._consumed().items():
            waiting = self._waiting.get(key, deque())
            while waiting and waiting[0][0] < position:
                self._bytes[key] -= waiting.popleft()[1]
        if sum(self._bytes.values()) == before:
            self._producer.raw.poll(0.02)


class GroupPositions:
    """Calling it gives the committed positions of a consumer group: what `PacedProducer` waits for."""

    def __init__(self, kafka: EmbeddedKafka, group: str) -> None:
        self._reader = ck.Consumer(
            {**common(kafka.servers, {}), "group.id": group, "enable.auto.commit": False}
        )
        self._partitions = [
            ck.TopicPartition(t, n) for t, count in kafka.topics.items() for n in range(count)
        ]

    def __call__(self) -> dict[TopicPartition, int]:
        try:
            found = self._reader.committed(self._partitions, timeout=SECONDS)
        except ck.KafkaException as error:
            LOG.debug("committed positions: %s", error)
            return {}
        return {(place.topic, place.partition): place.offset for place in found if place.offset >= 0}

    def close(self) -> None:
        """Give the connection back."""
        self._reader.close()
