"""KafkaSource and KafkaSink against a real Apache Kafka."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import confluent_kafka as ck
import pytest
from confluent_kafka.admin import AdminClient

from raybroker.alerts import Packet
from raybroker.errors import FencedError, StreamError
from raybroker.stream import sink as sinks
from raybroker.stream.client import Cluster, posix
from raybroker.stream.kafka import KafkaSink, KafkaSource, Producer, reach
from raybroker.stream.packets import Place
from tests.kafka.launcher import KafkaServer

pytestmark = pytest.mark.kafka
STRATEGIES = ("cooperative-sticky", "range")


class Archive:
    """Positions by place, as the archive keeps them; `asked` counts assignments."""

    def __init__(self) -> None:
        self.positions: dict[Place, int] = {}
        self.asked: list[Sequence[Place]] = []

    def start(self, places: Sequence[Place]) -> Mapping[Place, int]:
        self.asked.append(places)
        return {place: self.positions[place] for place in places if place in self.positions}

    def store(self, source: KafkaSource, packets: Sequence[Packet]) -> None:
        for packet in packets:
            self.positions[source.places[packet.topic, packet.partition]] = packet.offset + 1


Open = Callable[..., KafkaSource]


@pytest.fixture
def source(kafka: KafkaServer) -> Iterator[Open]:
    """Opens sources on a topic, and closes them."""
    opened: list[KafkaSource] = []

    def make(topic: str, archive: Archive, group: str = "", **options: str) -> KafkaSource:
        named = {key.replace("_", "."): value for key, value in options.items()}
        opened.append(KafkaSource(kafka.servers, [topic], group or f"group of {topic}", archive.start, named))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def fill(kafka: KafkaServer, topic: str, count: int, partitions: int = 1, first: int = 0) -> None:
    producer = Producer(kafka.servers)
    for i in range(first, first + count):
        producer.send(topic, Packet(b"%d" % i), partition=i % partitions)
    producer.flush()


def drain(source: KafkaSource, seconds: float = 20.0) -> list[Packet]:
    """Everything up to the end seen at the start."""
    packets: list[Packet] = []
    deadline = time.monotonic() + seconds
    while not source.end_reached():
        assert time.monotonic() < deadline, f"the end is not reached after {len(packets)} packets"
        packets += source.poll(1000, 0.2)
    return packets


def numbers(packets: Sequence[Packet]) -> list[int]:
    return sorted(int(packet.value or b"-1") for packet in packets)


def test_packets_come_back_as_they_were_sent(kafka: KafkaServer, source: Open) -> None:
    topic = kafka.topic()
    sent = [
        Packet(b"value", key=b"key", headers=(("a", b"1"), ("a", None))),
        Packet(None, key=b"tombstone"),
        Packet(b"", key=None),
    ]
    producer = Producer(kafka.servers)
    before = int(time.time() * 1000)
    for packet in sent:
        producer.send(topic, packet)
    producer.flush()
    got = drain(source(topic, Archive()))
    assert [(p.value, p.key, p.headers) for p in got] == [(p.value, p.key, p.headers) for p in sent]
    assert [(p.topic, p.partition, p.offset) for p in got] == [(topic, 0, i) for i in range(3)]
    assert all(before <= (p.timestamp_ms or 0) <= time.time() * 1000 for p in got)


def test_reading_resumes_where_the_archive_is_not_where_the_group_is(
    kafka: KafkaServer, source: Open
) -> None:
    topic, archive = kafka.topic(), Archive()
    fill(kafka, topic, 100)
    first = source(topic, archive)
    drain(first)
    (place,) = first.places.values()
    first.commit({place: 90})
    first.close()
    archive.positions[place] = 40
    again = source(topic, archive)
    assert numbers(drain(again)) == list(range(40, 100))
    assert again.lags() == {(topic, 0): 0}


def test_the_committed_hint_reaches_kafka(kafka: KafkaServer, source: Open) -> None:
    topic = kafka.topic()
    fill(kafka, topic, 5)
    reading = source(topic, Archive(), group="hinted")
    drain(reading)
    (place,) = reading.places.values()
    reading.commit({place: 3, place._replace(topic_id="another"): 9})
    reading.close()
    reader = ck.Consumer({"bootstrap.servers": kafka.servers, "group.id": "hinted"})
    assert reader.committed([ck.TopicPartition(topic, 0)], timeout=10)[0].offset == 3
    reader.close()


def test_latest_begins_at_the_end_and_lag_counts_what_waits(kafka: KafkaServer, source: Open) -> None:
    topic = kafka.topic(2)
    fill(kafka, topic, 10, partitions=2)
    reading = source(topic, Archive(), auto_offset_reset="latest")
    assert drain(reading) == []
    fill(kafka, topic, 4, partitions=2, first=10)
    assert numbers(reading.poll(2, 5.0) + reading.poll(2, 5.0)) == [10, 11, 12, 13]
    earliest = source(topic, Archive(), group="another")
    assert len(earliest.poll(3, 10.0)) == 3
    assert set(earliest.lags()) == {(topic, 0), (topic, 1)}
    assert sum(earliest.lags().values()) == 11


def test_a_poll_ends_at_the_limit_and_at_the_bytes(kafka: KafkaServer, source: Open) -> None:
    topic = kafka.topic()
    producer = Producer(kafka.servers)
    for _ in range(300):
        producer.send(topic, Packet(bytes(10_000)))
    producer.flush()
    reading = source(topic, Archive())
    began = time.monotonic()
    assert len(reading.poll(7, 20.0)) == 7
    few = reading.poll(1000, 20.0, max_bytes=500_000)
    assert 50 <= len(few) <= 60
    assert time.monotonic() - began < 15


def test_rewind_gives_the_same_packets_again(kafka: KafkaServer, source: Open) -> None:
    topic, archive = kafka.topic(3), Archive()
    fill(kafka, topic, 600, partitions=3)
    reading = source(topic, archive)
    first = reading.poll(100, 10.0)
    archive.store(reading, first)
    dropped = reading.poll(100, 10.0)
    reading.rewind()
    rest = drain(reading)
    assert numbers(first + rest) == list(range(600))
    assert set(numbers(dropped)) <= set(numbers(rest))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_members_share_four_partitions_and_lose_nothing(
    kafka: KafkaServer, source: Open, strategy: str
) -> None:
    topic, archive, lock = kafka.topic(4), Archive(), threading.Lock()
    fill(kafka, topic, 2000, partitions=4)
    got: list[Packet] = []

    def turn(reading: KafkaSource) -> None:
        with lock:  # as the archive's commit: only what follows on the stored position counts
            packets = reading.poll(50, 0.1)
            for packet in packets:
                place = reading.places[packet.topic, packet.partition]
                assert packet.offset == archive.positions.get(place, 0)
                archive.positions[place] = packet.offset + 1
            got.extend(packets)

    first = source(topic, archive, partition_assignment_strategy=strategy)
    while not got:
        turn(first)
    second = source(topic, archive, partition_assignment_strategy=strategy)
    while len(second.places) < 2 or len(first.places) > 2:
        turn(first)
        turn(second)
    second.close()
    deadline = time.monotonic() + 30
    while len(got) < 2000 or len(first.places) < 4:
        assert time.monotonic() < deadline
        turn(first)
    assert numbers(got) == list(range(2000))


def test_a_position_beyond_the_end_is_an_error_not_a_reset(kafka: KafkaServer, source: Open) -> None:
    topic, archive = kafka.topic(), Archive()
    fill(kafka, topic, 10)
    archive.positions[Cluster(kafka.servers, {}).places([(topic, 0)])[topic, 0]] = 11
    reading = source(topic, archive)
    with pytest.raises(StreamError, match=r"before offset 11, but Kafka has only 10"):
        drain(reading)
    with pytest.raises(StreamError, match="offset 11"):
        reading.poll(1, 0.1)
    assert reading.places == {}
    archive.positions.clear()
    reading.rewind()
    assert numbers(drain(reading)) == list(range(10))


def delete_before(kafka: KafkaServer, topic: str, offset: int) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    for made in admin.delete_records([ck.TopicPartition(topic, 0, offset)]).values():
        made.result(10)


def test_what_expired_before_it_was_read_is_said_and_counted(
    kafka: KafkaServer, source: Open, caplog: pytest.LogCaptureFixture
) -> None:
    topic, archive = kafka.topic(), Archive()
    fill(kafka, topic, 100)
    place = Cluster(kafka.servers, {}).places([(topic, 0)])[topic, 0]
    archive.positions[place] = 20
    delete_before(kafka, topic, 50)
    reading = source(topic, archive)
    assert numbers(drain(reading)) == list(range(50, 100))
    assert reading.gaps == [(place, 20, 50, "expired")]
    assert f"{topic} [0]: Kafka deleted offsets 20 to 49 before they were read" in caplog.text


def test_what_expires_while_we_read_is_said_and_counted(kafka: KafkaServer, source: Open) -> None:
    topic, archive = kafka.topic(), Archive()
    fill(kafka, topic, 4)
    archive.positions[Cluster(kafka.servers, {}).places([(topic, 0)])[topic, 0]] = 1
    delete_before(kafka, topic, 2)
    reading = source(topic, archive, queued_max_messages_kbytes="1", fetch_message_max_bytes="1000")
    got = drain(reading)
    send_large(kafka, topic, 20)
    time.sleep(0.5)  # its small queue holds the first of them now
    delete_before(kafka, topic, 20)
    deadline = time.monotonic() + 20
    while len(got) < 3 or got[-1].offset < 23:
        assert time.monotonic() < deadline
        got += reading.poll(100, 0.2)
    offsets = [packet.offset for packet in got]
    lost = [offset for _, first, end, _ in reading.gaps for offset in range(first, end)]
    assert reading.gaps
    assert 1 in lost  # from the beginning, though nothing was committed since
    assert sorted(offsets + lost) == list(range(1, 24))


def test_with_reset_error_nothing_may_be_missing(kafka: KafkaServer, source: Open) -> None:
    topic = kafka.topic()
    fill(kafka, topic, 10)
    delete_before(kafka, topic, 4)
    with pytest.raises(StreamError, match="deleted offsets 0 to 3"):
        drain(source(topic, Archive(), auto_offset_reset="error"))


def test_a_topic_made_again_is_read_from_its_beginning(
    kafka: KafkaServer, source: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    topic, archive = kafka.topic(), Archive()
    fill(kafka, topic, 10)
    first = source(topic, archive)
    archive.store(first, drain(first))
    cluster = Cluster(kafka.servers, {})
    old = cluster.places([(topic, 0)])[topic, 0]
    kafka.delete_topic(topic)
    kafka.topic(name=topic)
    fill(kafka, topic, 4)
    new = cluster.places([(topic, 0)])[topic, 0]
    assert new.topic_id != old.topic_id
    known = {(old.cluster, topic): [old.topic_id]}
    reading = KafkaSource(
        kafka.servers, [topic], "again", archive.start, {"auto.offset.reset": "latest"}, known_topics=known
    )
    assert numbers(drain(reading)) == [0, 1, 2, 3]
    assert set(reading.places.values()) == {new}
    reading.close()
    assert f"topic '{topic}' was deleted and made again" in caplog.text
    assert old.topic_id in caplog.text
    assert new.topic_id in caplog.text


def test_whoever_comes_after_reads_a_topic_made_again_to_where_the_archive_is(
    kafka: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    topic, archive = kafka.topic(2), Archive()
    fill(kafka, topic, 8, partitions=2)
    cluster = Cluster(kafka.servers, {})
    places = cluster.places([(topic, 0), (topic, 1)])
    archive.positions[places[topic, 0]] = 3  # nothing was stored of the other yet
    ids = ["the old one's", places[topic, 0].topic_id]
    reading = KafkaSource(
        kafka.servers,
        [topic],
        "after",
        archive.start,
        {"auto.offset.reset": "latest"},
        {(cluster.cluster_id(), topic): ids},
    )
    got = Counter(packet.partition for packet in drain(reading))
    reading.close()
    assert got == {0: 1, 1: 4}
    assert "made again" not in caplog.text  # it was said once


def test_a_topic_made_again_while_it_is_read_is_never_taken_for_the_old_one(kafka: KafkaServer) -> None:
    topic = kafka.topic()
    fill(kafka, topic, 10)
    small = {"queued.max.messages.kbytes": "1", "fetch.message.max.bytes": "1000"}
    reading = KafkaSource(kafka.servers, [topic], "while", Archive().start, small, check_seconds=0.2)
    assert len(drain(reading)) == 10
    (old,) = reading.places.values()
    send_large(kafka, topic, 20)
    time.sleep(0.5)  # its small queue is full: it fetches nothing while the topic is made again
    kafka.delete_topic(topic)
    kafka.topic(name=topic)
    fill(kafka, topic, 60)
    got: list[int] = []
    deadline = time.monotonic() + 30
    while len(got) < 60:
        assert time.monotonic() < deadline, got
        packets = reading.poll(100, 0.2)
        of_new = [packet for packet in packets if len(packet.value or b"") < 100]
        if of_new:
            assert len(of_new) == len(packets)
            assert set(reading.places.values()).isdisjoint({old})
        got += numbers(of_new)
    assert got == list(range(60))
    reading.close()


def send_large(kafka: KafkaServer, topic: str, count: int) -> None:
    """Packets that a source with a small queue fetches one by one."""
    producer = Producer(kafka.servers)
    for _ in range(count):
        producer.send(topic, Packet(bytes(100_000)))
        producer.flush()


def test_a_pattern_picks_up_the_topic_of_a_new_night(kafka: KafkaServer, source: Open) -> None:
    first, second = kafka.topic(name="ztf_20181129_programid1"), "ztf_20181130_programid1"
    kafka.topic(name="ztf_20181129_programid2")
    fill(kafka, first, 5)
    reading = source("^ztf_.*_programid1$", Archive(), topic_metadata_refresh_interval_ms="200")
    assert numbers(drain(reading)) == list(range(5))
    kafka.topic(2, name=second)
    fill(kafka, second, 6, partitions=2)
    got: list[Packet] = []
    deadline = time.monotonic() + 20
    while len(got) < 6:
        assert time.monotonic() < deadline
        got += reading.poll(100, 0.2)
    assert {packet.topic for packet in got} == {second}
    assert {topic for topic, _ in reading.places} == {first, second}


def test_digits_in_a_pattern_are_written_as_librdkafka_knows_them() -> None:
    assert posix(r"^ztf_\d{8}_[\da-f]+_programid1$") == "^ztf_[0-9]{8}_[0-9a-f]+_programid1$"
    assert posix("ztf_20181129") == "ztf_20181129"


def test_once_ends_where_no_topic_matches(kafka: KafkaServer, source: Open) -> None:
    reading = source("^no_such_topic.*", Archive())
    assert reading.poll(1, 0.1) == []
    assert reading.end_reached()


def test_an_unreachable_kafka_is_one_clear_line(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    reading = KafkaSource("127.0.0.1:1", ["any"], "nobody", Archive().start)
    for _ in range(10):
        assert reading.poll(1, 0.1) == []
    reading.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("Kafka at 127.0.0.1:1 cannot be reached: ")
    with pytest.raises(StreamError, match=r"^Kafka at 127\.0\.0\.1:1 cannot be reached"):
        reach("127.0.0.1:1", seconds=1)
    assert "".join(capfd.readouterr()) == ""


def test_reading_goes_on_after_kafka_was_away(source: Open, caplog: pytest.LogCaptureFixture) -> None:
    with KafkaServer() as own:
        topic, archive = own.topic(), Archive()
        fill(own, topic, 5)
        reading = KafkaSource(own.servers, [topic], "patient", archive.start)
        archive.store(reading, drain(reading))
        own.stop()
        for _ in range(10):
            assert reading.poll(1, 0.1) == []
        own.start()
        fill(own, topic, 5, first=5)
        got: list[Packet] = []
        deadline = time.monotonic() + 30
        while len(got) < 5:
            assert time.monotonic() < deadline
            got += reading.poll(10, 0.5)
        reading.close()
    assert numbers(got) == [5, 6, 7, 8, 9]
    assert sum("cannot be reached" in line for line in caplog.messages) == 1
    assert sum("answers again" in line for line in caplog.messages) == 1


# The sink


def committed(kafka: KafkaServer, topic: str) -> list[bytes | None]:
    """What a read_committed consumer sees of a topic, through no code of ours."""
    settings = {"bootstrap.servers": kafka.servers, "group.id": "see", "enable.partition.eof": True}
    reader = ck.Consumer({**settings, "isolation.level": "read_committed", "auto.offset.reset": "earliest"})
    partitions = reader.list_topics(topic, timeout=10).topics[topic].partitions
    reader.assign([ck.TopicPartition(topic, n, 0) for n in partitions])
    values, ended = [], set()
    while len(ended) < len(partitions):
        message = reader.poll(10)
        if message.error():
            ended.add(message.partition())
        else:
            values.append(message.value())
    reader.close()
    return values


def some_place(n: int = 0) -> Place:
    return Place("somewhere", "ztf", f"id-{time.monotonic_ns()}", n)


def test_outputs_and_position_are_stored_together(kafka: KafkaServer) -> None:
    place, other, topic = some_place(0), some_place(1), f"out-{time.monotonic_ns()}"
    sink = KafkaSink(kafka.servers)
    assert sink.emitted([place, other]) == {}
    sink.write(place, {topic: [Packet(b"a", key=b"1"), Packet(b"b", key=b"2")]}, 17)
    sink.write(place, {}, 25)
    sink.close()
    assert sorted(committed(kafka, topic)) == [b"a", b"b"]
    assert KafkaSink(kafka.servers).emitted([place, other]) == {place: 25}
    config = kafka.admin().list_topics(timeout=10).topics
    assert sinks.POSITIONS in config


def test_aborted_outputs_are_invisible(kafka: KafkaServer) -> None:
    place, topic = some_place(), kafka.topic()
    sink = KafkaSink(kafka.servers)
    sink.emitted([place])
    sink.write(place, {topic: [Packet(b"kept")]}, 1)
    producer = sink._producers[place]
    producer.raw.begin_transaction()
    producer.send(topic, Packet(b"half"))
    producer.send(sinks.POSITIONS, Packet(b"9", key=place.app_id.encode()), partition=0)
    producer.flush()
    successor = KafkaSink(kafka.servers)  # the first one died here: its transaction is still open
    assert successor.emitted([place]) == {place: 1}
    successor.write(place, {topic: [Packet(b"again")]}, 2)
    assert committed(kafka, topic) == [b"kept", b"again"]


def test_a_zombie_can_write_no_more(kafka: KafkaServer) -> None:
    place, topic = some_place(), kafka.topic()
    zombie, successor = KafkaSink(kafka.servers), KafkaSink(kafka.servers)
    zombie.emitted([place])
    zombie.write(place, {topic: [Packet(b"1")]}, 1)
    assert successor.emitted([place]) == {place: 1}
    with pytest.raises(FencedError, match="another worker"):
        zombie.write(place, {topic: [Packet(b"zombie")]}, 2)
    with pytest.raises(StreamError, match="emitted"):
        zombie.write(place, {topic: [Packet(b"zombie")]}, 2)
    successor.write(place, {topic: [Packet(b"2")]}, 2)
    assert committed(kafka, topic) == [b"1", b"2"]


def test_the_position_is_found_behind_another_places_open_transaction(kafka: KafkaServer) -> None:
    place, slow, topic = some_place(0), some_place(1), kafka.topic()
    sink = KafkaSink(kafka.servers)
    sink.emitted([place, slow])
    hanging = sink._producers[slow]
    hanging.raw.begin_transaction()
    hanging.send(sinks.POSITIONS, Packet(b"1", key=slow.app_id.encode()), partition=0)
    hanging.flush()
    sink.write(place, {topic: [Packet(b"x")]}, 5)
    timer = threading.Timer(1.0, hanging.raw.commit_transaction)
    timer.start()
    assert KafkaSink(kafka.servers).emitted([place]) == {place: 5}
    timer.join()


def test_without_transactions_outputs_come_before_the_position(kafka: KafkaServer) -> None:
    place, topic = some_place(), kafka.topic()
    sink = KafkaSink(kafka.servers, transactions=False)
    sink.emitted([place])
    sink.write(place, {topic: [Packet(b"x")]}, 3)
    sink.flush()
    assert sink.emitted([place]) == {place: 3}
    assert committed(kafka, topic) == [b"x"]
    sink.close()


def test_a_producer_waits_while_its_queue_is_full(kafka: KafkaServer) -> None:
    topic = kafka.topic()
    producer = Producer(kafka.servers, **{"queue.buffering.max.messages": 10, "linger.ms": 0})
    for i in range(500):
        producer.send(topic, Packet(b"%d" % i))
    producer.flush()
    assert len(committed(kafka, topic)) == 500


def test_a_packet_that_kafka_refuses_is_an_error(kafka: KafkaServer) -> None:
    topic = kafka.topic(max_message_bytes="1000")
    producer = Producer(kafka.servers)
    producer.send(topic, Packet(bytes(5000)))
    with pytest.raises(StreamError, match="did not store a packet"):
        producer.flush()
