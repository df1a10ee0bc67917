"""Tonight's alerts do not wait until yesterday's backlog is read: a real Kafka."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import pytest

from raybroker.alerts import Packet
from raybroker.stream import fair
from raybroker.stream.kafka import KafkaSource, Producer
from raybroker.stream.packets import Place
from tests.kafka.launcher import KafkaServer

pytestmark = pytest.mark.kafka
TURN = 500


class Reading:
    """A source of a backlog and of tonight's topic, and what came of the backlog."""

    def __init__(self, kafka: KafkaServer, backlog: str, options: Mapping[str, str] | None = None) -> None:
        self.tonight, self.backlog = kafka.topic(), backlog
        self.servers, self.assigned = kafka.servers, 0
        topics, group = [backlog, self.tonight], f"fair to {self.tonight}"
        self.source = KafkaSource(kafka.servers, topics, group, self.start, options, check_seconds=0.2)
        self.offsets: dict[int, list[int]] = {}

    def start(self, places: Sequence[Place]) -> Mapping[Place, int]:
        self.assigned += 1
        return {}

    def poll(self, limit: int) -> int:
        """How many of tonight's came."""
        tonight = 0
        for packet in self.source.poll(limit, 5.0):
            tonight += packet.topic == self.tonight
            if packet.topic == self.backlog:
                self.offsets.setdefault(packet.partition, []).append(packet.offset)
        return tonight

    @property
    def read(self) -> int:
        return sum(map(len, self.offsets.values()))

    def waits(self, limit: int) -> int:
        """How many of the backlog come before a packet that is sent now to tonight's topic."""
        before = self.read
        producer = Producer(self.servers)
        producer.send(self.tonight, Packet(b"now"))
        producer.flush()
        until = time.monotonic() + 60
        while not self.poll(limit):
            assert time.monotonic() < until
        return self.read - before


@pytest.fixture(autouse=True)
def asks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test reads faster than any worker."""
    monkeypatch.setattr(fair, "ASK_SECONDS", 0.0)


def filled(kafka: KafkaServer, count: int, size: int, partitions: int = 1) -> str:
    topic, producer = kafka.topic(partitions), Producer(kafka.servers)
    for i in range(count):
        producer.send(topic, Packet(bytes(size)), partition=i % partitions)
    producer.flush()
    return topic


def test_a_backlog_of_small_packets_lets_others_go_first_and_loses_none(
    kafka: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    count = 20_000
    reading = Reading(kafka, filled(kafka, count, 20))
    while reading.read < TURN:
        reading.poll(TURN)
    waited = [reading.waits(TURN) for _ in range(3)]
    while reading.read < count:
        reading.poll(TURN)
    reading.source.close()
    assert max(waited) <= (fair.FULL_POLLS + 2) * TURN
    assert reading.offsets == {0: list(range(count))}
    assert (reading.assigned, "joining anew" in caplog.text) == (1, False)


def test_many_partitions_with_a_backlog_let_others_go_first_and_lose_none(
    kafka: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    count, partitions, turn = 3_000, 24, 10
    small = {"queued.max.messages.kbytes": "1024", "fetch.message.max.bytes": "200000"}
    reading = Reading(kafka, filled(kafka, count, 10_000, partitions), small)
    while reading.read < turn:
        reading.poll(turn)
    waited = [reading.waits(turn) for _ in range(3)]
    while reading.read < count:
        reading.poll(100)
    reading.source.close()
    assert max(waited) <= (fair.FULL_POLLS + 2) * turn
    assert reading.offsets == {n: list(range(count // partitions)) for n in range(partitions)}
    assert "joining anew" not in caplog.text
