"""What keeps a reader in its group, and what it does with topics that come, empty and go: a real Kafka."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import AdminClient

from raybroker.alerts import Packet
from raybroker.archive.table import AlertsTable, row_schema
from raybroker.cluster.audit import audit
from raybroker.cluster.worker import Books, Worker
from raybroker.errors import FencedError
from raybroker.settings import TurnSettings, parse
from raybroker.stream.kafka import KafkaSource, Producer
from raybroker.stream.packets import Place
from tests.cluster.worlds import ZTF, pipeline
from tests.kafka.launcher import KafkaServer

pytestmark = pytest.mark.kafka
HASTY = {"session.timeout.ms": "1000", "heartbeat.interval.ms": "200", "max.poll.interval.ms": "1200"}


class Archive:
    """Positions by place; `asked` holds what was assigned, each time."""

    def __init__(self) -> None:
        self.positions: dict[Place, int] = {}
        self.asked: list[Sequence[Place]] = []

    def start(self, places: Sequence[Place]) -> Mapping[Place, int]:
        self.asked.append(places)
        return {place: self.positions[place] for place in places if place in self.positions}


Open = Callable[[str, Archive], KafkaSource]


@pytest.fixture
def source(kafka: KafkaServer) -> Iterator[Open]:
    """Opens sources whose group soon thinks them dead, and closes them."""
    opened: list[KafkaSource] = []

    def make(topic: str, archive: Archive) -> KafkaSource:
        opened.append(KafkaSource(kafka.servers, [topic], f"group of {topic}", archive.start, HASTY))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def fill(kafka: KafkaServer, topic: str, first: int, end: int) -> None:
    producer = Producer(kafka.servers)
    for i in range(first, end):
        producer.send(topic, Packet(b"%d" % i), partition=i % 2)
    producer.flush()


def some(reading: KafkaSource, count: int) -> list[int]:
    """So many packets, as numbers."""
    found: list[int] = []
    until = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < until, f"{len(found)} of {count}"
        found += [int(packet.value or b"-1") for packet in reading.poll(count - len(found), 0.2)]
    return found


def test_a_paused_reader_gives_nothing_stays_in_its_group_and_goes_on(
    kafka: KafkaServer, source: Open
) -> None:
    topic, archive = kafka.topic(2), Archive()
    fill(kafka, topic, 0, 30)
    reading = source(topic, archive)
    before = some(reading, 7)
    reading.pause()
    until = time.monotonic() + 3.0  # longer than `max.poll.interval.ms` and the session
    while time.monotonic() < until:
        assert reading.poll(100, 0.3) == []
    fill(kafka, topic, 30, 40)
    assert reading.poll(100, 0.3) == []
    reading.resume()
    assert sorted(before + some(reading, 33)) == list(range(40))
    assert len(archive.asked) == 1


def test_partitions_that_come_while_it_is_paused_are_paused_too(kafka: KafkaServer, source: Open) -> None:
    topic, archive = kafka.topic(2), Archive()
    fill(kafka, topic, 0, 10)
    reading = source(topic, archive)
    reading.pause()
    until = time.monotonic() + 30
    while not reading.places:
        assert time.monotonic() < until
        assert reading.poll(100, 0.2) == []
    for _ in range(5):
        assert reading.poll(100, 0.2) == []
    reading.rewind()
    assert reading.poll(100, 0.5) == []
    reading.resume()
    assert sorted(some(reading, 10)) == list(range(10))


def test_a_turn_longer_than_the_group_waits_keeps_its_partitions(kafka: KafkaServer, source: Open) -> None:
    topic, archive = kafka.topic(2), Archive()
    fill(kafka, topic, 0, 30)
    reading = source(topic, archive)
    got = some(reading, 9)
    until = time.monotonic() + 3.0
    while time.monotonic() < until:  # the batches of a long turn
        time.sleep(0.1)
        reading.keep()
    got += some(reading, 21)
    assert sorted(got) == list(range(30))
    assert len(archive.asked) == 1


def test_a_long_turn_hears_that_its_partitions_moved(kafka: KafkaServer, source: Open) -> None:
    topic, archive = kafka.topic(2), Archive()
    fill(kafka, topic, 0, 30)
    first = source(topic, archive)
    some(first, 5)
    second = source(topic, archive)
    until = time.monotonic() + 30

    def work() -> None:
        while time.monotonic() < until:
            second.poll(1, 0.1)
            first.keep()

    with pytest.raises(FencedError, match="while a long turn"):
        work()


def test_reading_says_how_far_it_came_markers_and_beginnings_included(
    kafka: KafkaServer, source: Open
) -> None:
    topic, archive = kafka.topic(2), Archive()
    producer = ck.Producer({"bootstrap.servers": kafka.servers, "transactional.id": topic})
    producer.init_transactions(30)
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        for i in range(4):
            producer.produce(topic, b"%d" % i, partition=0)
        producer.flush(30)
        end(30)
    fill(kafka, topic, 0, 6)
    delete_before(kafka, topic, 1, 2)
    reading = source(topic, archive)
    got: list[Packet] = []
    until = time.monotonic() + 30
    while not reading.end_reached():
        assert time.monotonic() < until
        got += reading.poll(100, 0.2)
    assert len(got) == 4 + 3 + 1
    assert {place.partition: reached for place, reached in reading.reached.items()} == {0: 13, 1: 3}
    assert [tuple(gap[1:]) for gap in reading.gaps] == [(0, 2, "before")]


def delete_before(kafka: KafkaServer, topic: str, partition: int, offset: int) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    for made in admin.delete_records([ck.TopicPartition(topic, partition, offset)]).values():
        made.result(10)


# ZTF: a topic for each night of UTC


class Telescope:
    """Sends packets into the topic of the night that its (shifted) clock shows; a new night's topic is made at 0 h."""

    def __init__(self, kafka: KafkaServer, now: datetime, packets: Iterator[Packet]) -> None:
        self.kafka, self.now, self.packets = kafka, now.timestamp(), packets
        self.topics: dict[str, int] = {}

    def observe(self, count: int, seconds: float) -> None:
        """So many packets, one every so many seconds of its clock."""
        producer = Producer(self.kafka.servers)
        for _ in range(count):
            night = datetime.fromtimestamp(self.now, UTC).strftime("%Y%m%d")
            topic = f"ztf_{night}_programid1"
            if topic not in self.topics:
                self.kafka.topic(1, name=topic, retention_ms="-1")  # its clock is years behind Kafka's
            self.topics[topic] = self.topics.get(topic, 0) + 1
            producer.send(topic, next(self.packets), timestamp_ms=int(self.now * 1000))
            self.now += seconds
        producer.flush()


def read(root: Path, kafka: KafkaServer) -> Worker:
    made = pipeline(names=("basic",))
    books = Books(AlertsTable(root, "ztf", row_schema(made.columns)))
    small = {
        "topic.metadata.refresh.interval.ms": "200",
        "queued.max.messages.kbytes": "512",
        "fetch.message.max.bytes": "200000",
    }
    source = KafkaSource(kafka.servers, ZTF.topics, "nights", books.start, small)
    return Worker(ZTF, made, source, books, TurnSettings(packets=10, seconds=0.2))


def rows_by_topic(reader: Worker) -> Counter[str]:
    return Counter(reader.books.table.read(["topic"])[0]["topic"].to_pylist())


def test_at_midnight_the_next_nights_topic_is_read_and_emptied_ones_starve_none(
    tmp_path: Path, kafka: KafkaServer, ztf_packets: Any
) -> None:
    packets = ztf_packets("selected_20231018")
    telescope = Telescope(kafka, datetime(2023, 10, 15, 22, tzinfo=UTC), iter(packets))
    expired, partly, backlog = (f"ztf_202310{day}_programid1" for day in (15, 16, 17))
    for count in (5, 8, 60):
        telescope.observe(count, 0.0)
        telescope.now += 86400
    delete_before(kafka, expired, 0, 5)
    delete_before(kafka, partly, 0, 6)
    tonight, tomorrow = "ztf_20231018_programid1", "ztf_20231019_programid1"
    telescope.now = datetime(2023, 10, 18, 23, 59, 40, tzinfo=UTC).timestamp()
    telescope.observe(8, 1.0)
    reader = read(tmp_path, kafka)
    reader.turn()
    telescope.observe(30, 1.0)  # midnight comes after the twelfth
    assert telescope.topics[tonight] == 20
    until = time.monotonic() + 60
    while (seen := rows_by_topic(reader))[tomorrow] < 18 or seen[backlog] < 60 or seen[tonight] < 20:
        assert time.monotonic() < until, seen
        reader.turn()
    while reader.turn().alerts:
        pass
    mine = {topic: count for topic, count in rows_by_topic(reader).items() if topic in telescope.topics}
    assert mine == {partly: 2, backlog: 60, tonight: 20, tomorrow: 18}
    stream = {"servers": kafka.servers, "topics": list(ZTF.topics)}
    found = audit(parse({"archive": {"root": str(tmp_path)}, "surveys": {"ztf": stream}}))
    assert found.wrong == []
    before = {one.topic: one.counts["before"] for one in found.ranges if one.counts["before"]}
    assert before == {expired: 5, partly: 6}
    reader.close()
    for topic in telescope.topics:
        kafka.delete_topic(topic)
