"""The embedded Kafka: librdkafka's mock cluster, fed no faster than it is read."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

import confluent_kafka as ck
import pytest
from confluent_kafka import cimpl

from raybroker.alerts import Packet
from raybroker.errors import StreamError
from raybroker.stream import embedded
from raybroker.stream.embedded import (
    RETENTION,
    EmbeddedKafka,
    EmbeddedUnavailable,
    GroupPositions,
    PacedProducer,
)
from raybroker.stream.kafka import KafkaSink, KafkaSource, Producer
from raybroker.stream.packets import Place

SIZE = 70_000


def unknown(places: Sequence[Place]) -> Mapping[Place, int]:
    return {}


def watermarks(kafka: EmbeddedKafka, topic: str, partition: int) -> tuple[int, int]:
    reader = ck.Consumer({"bootstrap.servers": kafka.servers, "group.id": "watermarks"})
    found = reader.get_watermark_offsets(ck.TopicPartition(topic, partition), timeout=10)
    reader.close()
    return found


def test_unpaced_packets_are_dropped_in_silence() -> None:
    """Why there is a PacedProducer at all."""
    with EmbeddedKafka({"alerts": 1}) as kafka:
        producer = Producer(kafka.servers)
        for _ in range(3 * RETENTION // SIZE):
            producer.send("alerts", Packet(bytes(SIZE)))
        producer.flush()
        low, high = watermarks(kafka, "alerts", 0)
    assert low > 0
    assert high == 3 * RETENTION // SIZE


def test_nothing_is_lost_at_three_times_the_retention() -> None:
    count = 2 * 3 * RETENTION // SIZE
    with EmbeddedKafka({"alerts": 2}) as kafka:
        source = KafkaSource(kafka.servers, ["alerts"], "demo", unknown, {"auto.offset.reset": "error"})
        positions = GroupPositions(kafka, "demo")
        producer = PacedProducer(kafka, positions)
        sender = threading.Thread(target=send, args=(producer, count))
        sender.start()
        got = read(source, count)
        sender.join(10)
        low, _ = watermarks(kafka, "alerts", 0)
        source.close()
        positions.close()
    assert low > 0  # the retention was at work
    assert sorted(int(packet.key or b"-1") for packet in got) == list(range(count))
    assert source.gaps == []


def send(producer: PacedProducer, count: int) -> None:
    for i in range(count):
        producer.send("alerts", Packet(bytes(SIZE), key=b"%d" % i))
    producer.flush()


def read(source: KafkaSource, count: int) -> list[Packet]:
    """In turns, each committed only after it was 'archived'."""
    got: list[Packet] = []
    deadline = time.monotonic() + 60
    while len(got) < count:
        assert time.monotonic() < deadline, f"{len(got)} of {count}"
        packets = source.poll(1000, 0.2)
        got += packets
        source.commit({source.places[p.topic, p.partition]: p.offset + 1 for p in packets})
    return got


def test_the_paced_producer_never_runs_ahead() -> None:
    with EmbeddedKafka({"alerts": 1}) as kafka:
        producer = PacedProducer(kafka, lambda: {}, ahead=1_000_000)
        for _ in range(1_000_000 // (SIZE + 100)):
            producer.send("alerts", Packet(bytes(SIZE)))
        with pytest.raises(StreamError, match=r"nobody has read alerts \[0\]"):
            producer.send("alerts", Packet(bytes(SIZE)), seconds=0.1)
        producer.flush()
        assert watermarks(kafka, "alerts", 0) == (0, 1_000_000 // (SIZE + 100))


def test_a_packet_larger_than_the_lead_goes_alone() -> None:
    with EmbeddedKafka({"alerts": 1}) as kafka:
        producer = PacedProducer(kafka, lambda: {}, ahead=1000)
        producer.send("alerts", Packet(bytes(5000)), seconds=0.1)
        producer.flush()


def test_a_lead_beyond_the_retention_is_refused() -> None:
    with EmbeddedKafka({}) as kafka, pytest.raises(ValueError, match="keeps 5242880 bytes"):
        PacedProducer(kafka, lambda: {}, ahead=RETENTION)


def test_other_processes_reach_it() -> None:
    script = "import sys; from raybroker.stream.kafka import reach; print(reach(sys.argv[1])['alerts'])"
    with EmbeddedKafka({"alerts": 3}) as kafka:
        done = subprocess.run(
            [sys.executable, "-c", script, kafka.servers],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    assert done.stdout.strip() == "3"
    assert done.stderr == ""


def test_two_clusters_have_different_places() -> None:
    with EmbeddedKafka({"alerts": 1}) as one, EmbeddedKafka({"alerts": 1}) as two:
        assert one.servers != two.servers
        places = []
        for kafka in (one, two):
            source = KafkaSource(kafka.servers, ["alerts"], "x", unknown)
            while not source.places:
                source.poll(1, 0.1)
            places.append(source.places["alerts", 0])
            source.close()
    assert places[0].app_id != places[1].app_id


def test_the_sink_works_on_it_without_transactions() -> None:
    place = Place("c", "alerts", "id", 0)
    with EmbeddedKafka({"out": 1}) as kafka:
        sink = KafkaSink(kafka.servers, transactions=False)
        assert sink.emitted([place]) == {}
        sink.write(place, {"out": [Packet(b"x")]}, 3)
        sink.flush()
        assert sink.emitted([place]) == {place: 3}
        assert watermarks(kafka, "out", 0) == (0, 1)


def test_where_it_cannot_be_loaded_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    embedded.librdkafka.cache_clear()
    monkeypatch.setattr(cimpl, "__file__", "/nowhere/cimpl.so")
    with pytest.raises(EmbeddedUnavailable, match=r"no embedded Kafka: .*nowhere"):
        EmbeddedKafka({}).__enter__()
    embedded.librdkafka.cache_clear()
