"""Requests to Kafka: each once if all is well, none lost while it is away for a while, and the trainer never waits."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import confluent_kafka as ck
import pytest

from raybroker.alerts import Packet
from raybroker.cluster import requests as module
from raybroker.cluster.requests import PLACE, Requests, message, packet
from raybroker.errors import FencedError, StreamError
from raybroker.settings import RequestsSettings
from raybroker.stream.memory import MemorySink
from raybroker.stream.packets import Place
from raybroker.stream.sink import KafkaSink
from tests.kafka.launcher import KafkaServer

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
NAN = float("nan")


def event(number: int, state: str = "open", model: str = "transient", **changed: Any) -> dict[str, Any]:
    """An event of the `queries` log as the trainer makes it."""
    own = {
        "event_id": f"q{number}-{state}",
        "query_id": f"q{number}",
        "model": model,
        "survey": "ztf",
        "alert_id": f"ztf:{number}",
        "object_id": f"ztf:o{number}",
        "strategy": "margin",
        "reason": "margin 0.08 between SN (0.54) and AGN (0.46), snapshot 12",
        "rank": number,
        "snapshot": 12,
        "mjd": 60000.5,
        "ra": 10.0,
        "dec": 20.0,
        "magnitude": None,
        "features": {"rise": 1.0, "colour": NAN},
        "classes": ["AGN", "SN"],
        "probabilities": [
            {"member": "mixture", "probabilities": [0.46, 0.54]},
            {"member": "forest", "probabilities": [NAN, NAN]},
        ],
        "when": NOW,
        "state": state,
    }
    return {**own, **changed}


class Away(MemorySink):
    """Kafka that answers only while it is `here`; `attempts` counts who asked."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.here, self.attempts = False, 0
        self.error = error or StreamError("Kafka at nowhere:9092 cannot be reached")

    def write(self, place: Place, outputs: Mapping[str, Sequence[Packet]], position: int) -> None:
        self.attempts += 1
        if not self.here:
            raise self.error
        super().write(place, outputs, position)


def read(sink: MemorySink, topic: str = "raybroker.queries.transient") -> list[tuple[str, str]]:
    """Key and state, as they were written."""
    return [(p.key.decode(), json.loads(p.value or b"")["state"]) for p in sink.written[topic] if p.key]


def test_each_request_and_its_end_is_a_message_keyed_by_the_question() -> None:
    sink = MemorySink()
    requests = Requests(sink)
    requests.send([event(1), event(2, model="anomaly")])
    assert requests.wait(10)
    requests.send([event(1, "withdrawn"), event(2, "answered", "anomaly")])
    assert requests.wait(10)
    assert read(sink) == [("q1", "open"), ("q1", "withdrawn")]
    assert read(sink, "raybroker.queries.anomaly") == [("q2", "open"), ("q2", "answered")]
    assert (requests.sent, requests.unsent, requests.dropped, sink.positions) == (4, 0, 0, {PLACE: 4})


@pytest.mark.parametrize(
    ("limits", "sent"),
    [
        ({}, ["q1", "q2", "q3"]),
        ({"dec_min": 25.0}, ["q2"]),
        ({"dec_max": 25.0}, ["q1"]),
        ({"brighter_than": 20.0}, ["q2"]),
        ({"classes": ["SN"]}, ["q1", "q2", "q3"]),
        ({"classes": ["AGN"]}, []),
    ],
)
def test_limits_keep_requests_and_their_ends_from_the_topic(limits: dict[str, Any], sent: list[str]) -> None:
    sink = MemorySink()
    requests = Requests(sink, limits=RequestsSettings(**limits))
    asked = [{"dec": 20.0}, {"dec": 30.0, "magnitude": 19.5}, {"dec": None, "magnitude": 20.5}]
    for state in ("open", "answered"):
        requests.send([event(i, state, **changed) for i, changed in enumerate(asked, 1)])
        assert requests.wait(10)
    assert read(sink) == [(name, state) for state in ("open", "answered") for name in sent]


def test_a_message_is_strict_json_without_features_and_with_an_id() -> None:
    sent = packet(event(1))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(sent.value or b"", parse_constant=refuse)
    assert found == {
        **{name: event(1)[name] for name in module.FIELDS},
        "when": "2026-01-02T03:04:05+00:00",
        "probabilities": {"mixture": {"AGN": 0.46, "SN": 0.54}, "forest": {"AGN": None, "SN": None}},
    }
    assert sent.key == b"q1"
    assert found["event_id"] == "q1-open"


def test_what_is_not_known_of_an_old_row_is_null() -> None:
    found = message({"event_id": "e", "query_id": "q", "model": "m"})
    assert (found["state"], found["dec"], found["probabilities"]) == ("open", None, {})


def test_a_claim_is_not_told() -> None:
    sink = MemorySink()
    requests = Requests(sink)
    requests.send([event(1), event(1, "claimed", claim="ann", until=NOW)])
    assert requests.wait(10)
    assert read(sink) == [("q1", "open")]


@pytest.mark.parametrize(
    "error",
    [StreamError("Kafka at nowhere:9092 cannot be reached"), FencedError("another writes"), OSError("disk")],
)
def test_what_could_not_be_sent_is_sent_in_order_once_kafka_is_back(error: Exception) -> None:
    sink = Away(error)
    requests = Requests(sink, pause=0)
    for number in range(3):
        requests.send([event(number)])
        assert not requests.wait(10)
    assert (sink.attempts, requests.unsent, requests.sent) == (3, 3, 0)
    sink.here = True
    requests.send([event(0, "withdrawn")])
    assert requests.wait(10)
    assert read(sink) == [("q0", "open"), ("q1", "open"), ("q2", "open"), ("q0", "withdrawn")]
    assert requests.sent == 4


def test_an_empty_call_tries_again() -> None:
    sink = Away()
    requests = Requests(sink, pause=0)
    requests.send([event(1)])
    requests.wait(10)
    sink.here = True
    requests.send(())
    assert requests.wait(10)
    assert read(sink) == [("q1", "open")]


def test_between_two_attempts_is_a_pause() -> None:
    now = [0.0]
    sink = Away()
    requests = Requests(sink, pause=5.0, clock=lambda: now[0])
    requests.send([event(1)])
    requests.wait(10)
    for now[0] in (1.0, 4.9):
        requests.send([event(2)])
        requests.wait(10)
    assert sink.attempts == 1
    now[0] = 5.1
    requests.send(())
    requests.wait(10)
    assert sink.attempts == 2


def test_the_newest_are_kept_and_the_others_counted(caplog: pytest.LogCaptureFixture) -> None:
    sink = Away()
    requests = Requests(sink, keep=5, pause=0)
    for first in (0, 4, 8):
        requests.send([event(number) for number in range(first, first + 4)])
        requests.wait(10)
    assert (requests.unsent, requests.dropped) == (5, 7)
    sink.here = True
    requests.send(())
    assert requests.wait(10)
    assert [key for key, _ in read(sink)] == ["q7", "q8", "q9", "q10", "q11"]
    assert len([r for r in caplog.records if "dropped" in r.message]) == 1
    assert len([r for r in caplog.records if "cannot be reached" in r.message]) == 1
    assert "reach Kafka again" in caplog.text


def test_the_trainer_does_not_wait_for_a_kafka_that_hangs() -> None:
    let_go, began = threading.Event(), threading.Event()

    class Hangs(MemorySink):
        def write(self, place: Place, outputs: Mapping[str, Sequence[Packet]], position: int) -> None:
            began.set()
            assert let_go.wait(30)
            super().write(place, outputs, position)

    sink = Hangs()
    requests = Requests(sink)
    requests.send([event(1)])  # these return although nothing is written
    assert began.wait(10)
    for number in range(2, 50):
        requests.send([event(number)])
    assert not requests.wait(0)
    assert read(sink) == []
    let_go.set()
    requests.wait(30)
    requests.send(())
    assert requests.wait(30)
    assert [key for key, _ in read(sink)] == [f"q{number}" for number in range(1, 50)]


def test_closing_sends_what_is_left_whatever_the_pause() -> None:
    sink = Away()
    requests = Requests(sink, pause=1_000)
    requests.send([event(1)])
    requests.wait(10)
    sink.here = True
    assert requests.close(10)
    assert read(sink) == [("q1", "open")]


def test_closing_says_what_did_not_arrive(caplog: pytest.LogCaptureFixture) -> None:
    requests = Requests(Away(), pause=0)
    requests.send([event(1), event(2)])
    assert not requests.close(10)
    assert "2 label requests did not reach Kafka" in caplog.text


def test_a_successor_goes_on_at_the_position_that_is_stored() -> None:
    sink = MemorySink()
    for number in range(2):
        requests = Requests(sink)
        requests.send([event(number)])
        assert requests.wait(10)
    assert sink.positions == {PLACE: 2}


def consumed(servers: str, topic: str, count: int) -> list[tuple[str, str]]:
    """Key and state of what a reader of committed messages sees, by key in their order."""
    settings = {"bootstrap.servers": servers, "group.id": "reader", "auto.offset.reset": "earliest"}
    reader = ck.Consumer(settings)
    reader.subscribe([topic])
    found: list[tuple[str, str]] = []
    end = time.monotonic() + 60
    while len(found) < count and time.monotonic() < end:
        news = [one for one in reader.consume(10, timeout=1.0) if one.error() is None]
        found += [(one.key().decode(), json.loads(one.value())["state"]) for one in news]
    reader.close()
    return sorted(found, key=lambda pair: pair[0])


@pytest.mark.kafka
def test_a_reader_of_a_real_kafka_sees_each_once(kafka: KafkaServer) -> None:
    requests = Requests(KafkaSink(kafka.servers, prefix="raybroker/queries/"), prefix=f"{kafka.topic()}.")
    requests.send([event(1), event(2)])
    assert requests.wait(60)
    requests.send([event(1, "withdrawn")])
    assert requests.close(60)
    successor = Requests(KafkaSink(kafka.servers, prefix="raybroker/queries/"), prefix=requests.prefix)
    successor.send([event(2, "answered")])
    assert successor.close(60)
    assert consumed(kafka.servers, f"{requests.prefix}transient", 4) == [
        *(("q1", "open"), ("q1", "withdrawn"), ("q2", "open"), ("q2", "answered")),
    ]
