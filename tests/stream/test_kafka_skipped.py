"""Records that the client library passes over without a word are read all the same; markers are not looked for twice."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import confluent_kafka as ck
import pytest

from raybroker.stream.kafka import KafkaSource
from raybroker.stream.packets import Place
from raybroker.stream.skipped import Holes
from tests.kafka.launcher import KafkaServer
from tests.stream.test_kafka import STRATEGIES, drain, fill

pytestmark = pytest.mark.kafka


def beginning(places: Sequence[Place]) -> Mapping[Place, int]:
    return {}


class Forgetful:
    """A consumer that loses the messages of some offsets once."""

    def __init__(self, consumer: ck.Consumer, lost: set[int]) -> None:
        self._consumer, self._lost = consumer, lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def consume(self, *given: Any, **named: Any) -> list[Any]:
        found = self._consumer.consume(*given, **named)
        kept = [one for one in found if one.error() or one.offset() not in self._lost]
        self._lost -= {one.offset() for one in found if not one.error()}
        return kept


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("lost", [{0, 1}, {40, 41, 77}, {149}])
def test_what_the_library_skips_is_read_again_each_once_and_in_order(
    kafka: KafkaServer, caplog: pytest.LogCaptureFixture, strategy: str, lost: set[int]
) -> None:
    topic = kafka.topic(2)
    fill(kafka, topic, 300, partitions=2)
    options = {"partition.assignment.strategy": strategy}
    source = KafkaSource(kafka.servers, [topic], f"group of {topic}", beginning, options)
    source._consumer = Forgetful(source._consumer, set(lost))  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        packets = drain(source)
    for partition in range(2):
        assert [p.offset for p in packets if p.partition == partition] == list(range(150))
    assert "passed over records" in caplog.text
    assert source.gaps == []
    source.close()


def test_markers_hold_no_record_and_are_looked_into_once(
    kafka: KafkaServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = kafka.topic(1)
    producer = ck.Producer({"bootstrap.servers": kafka.servers, "transactional.id": topic})
    producer.init_transactions(30)
    for number in range(6):
        producer.begin_transaction()
        for _ in range(5):
            producer.produce(topic, b"%d" % number)
        (producer.abort_transaction if number % 2 else producer.commit_transaction)()
    looked: list[Any] = []
    records = Holes.records

    def counted(holes: Holes, places: Any) -> Any:
        looked.append({key: list(spans) for key, spans in holes._spans.items()})
        return records(holes, places)

    monkeypatch.setattr(Holes, "records", counted)
    source = KafkaSource(kafka.servers, [topic], f"group of {topic}", beginning)
    packets = drain(source)
    packets += source.poll(10, 0.2)
    assert [int(packet.value or b"") for packet in packets] == [0] * 5 + [2] * 5 + [4] * 5
    assert sum(map(len, looked)) > 0
    assert looked[-1] == {}
    assert "passed over" not in caplog.text
    source.close()


def test_a_hole_that_kafka_cannot_tell_about_yet_is_not_forgotten(kafka: KafkaServer) -> None:
    topic = kafka.topic(1)
    fill(kafka, topic, 10)
    holes = Holes(kafka.servers, {})
    place = Place("c", topic, "t", 0)
    holes.note((topic, 0), 3, 3)
    assert holes.records({(topic, 0): place}) == {}
    holes.note((topic, 0), 3, 5)
    assert holes.records({(topic, 0): place}) == {(topic, 0): 3}
    assert holes.records({(topic, 0): place}) == {(topic, 0): 3}  # until it is read again
    holes.forget([(topic, 0)])
    assert holes.records({(topic, 0): place}) == {}
    holes.close()
