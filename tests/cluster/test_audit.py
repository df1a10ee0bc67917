from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka.admin import AdminClient
from typer.testing import CliRunner

from raybroker.alerts import Packet
from raybroker.archive.events import EventLog, note_topics
from raybroker.archive.table import AlertsTable, row_schema
from raybroker.cli.verbs import app
from raybroker.cluster import audit as module
from raybroker.cluster import gaps
from raybroker.cluster.audit import audit
from raybroker.cluster.books import Books, origin
from raybroker.cluster.worker import Worker
from raybroker.settings import Settings, TurnSettings, parse
from raybroker.stream.client import Cluster, Producer
from raybroker.stream.kafka import KafkaSource
from raybroker.stream.packets import Gap, Place
from tests.cluster.worlds import TOPIC, ZTF, pipeline, placed, worker
from tests.kafka.launcher import KafkaServer

NIGHT = "public_20181129"
PLACE = Place("memory", TOPIC, TOPIC, 0)


def settings(root: Path, servers: str = "replay:nowhere", **own: Any) -> Settings:
    return parse({"archive": {"root": str(root)}, "surveys": {"ztf": {"servers": servers, **own}}})


class Archive:
    """Rows written by hand: only what the audit reads."""

    def __init__(self, root: Path) -> None:
        self.root, self.table = root, AlertsTable(root, "ztf", row_schema(pipeline().columns))
        note_topics(root, [PLACE[:3]], datetime.now(UTC))

    def rows(
        self,
        offsets: Sequence[int],
        position: int | None = None,
        before: int | None = None,
        place: Place = PLACE,
        **given: Any,
    ) -> None:
        row = {"outcome": "scored", "topic": place.topic, "partition": place.partition, "night": 20181129}
        row |= {"origin": origin(place), **given}
        made = pa.Table.from_pylist([{**row, "offset": n} for n in offsets], schema=self.table.schema)
        new = {} if position is None else {place.app_id: position}
        self.table.append(made, dict.fromkeys(new, before), new)

    def gap(self, first: int, end: int, kind: str = "expired", place: Place = PLACE) -> None:
        EventLog(self.root, "gaps").append([gaps.event(Gap(place, first, end, kind), datetime.now(UTC))])

    def audit(self) -> module.Audit:
        return audit(settings(self.root))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def found(made: module.Audit) -> list[tuple[int, int, int, str]]:
    return [(one.partition, one.first, one.end, one.what) for one in made.wrong]


def test_a_night_holds_and_every_offset_is_counted_once(tmp_path: Path, ztf_packets) -> None:  # type: ignore[no-untyped-def]
    packets = list(ztf_packets(NIGHT))
    given = placed([*packets[:60], *packets[:4], Packet(b"junk")], partitions=2)
    made = worker(tmp_path, given)
    while made.turn(limit=20).alerts:
        pass
    seen = audit(settings(tmp_path))
    assert seen.wrong == []
    assert (seen.counts["duplicate"], seen.counts["dead"]) == (4, 1)
    assert seen.counts["scored"] + seen.counts["rejected"] == 60
    assert [(one.first, one.end, sum(one.counts.values())) for one in seen.ranges] == [
        (0, 33, 33),
        (0, 32, 32),
    ]
    nights = seen.nights["ztf"]
    assert sum(nights[20181129].values()) == 64
    assert nights[None] == {"dead": 1}
    assert seen.reasons["ztf"]["rejected: real"] == seen.counts["rejected"]
    assert seen.notes == ["ztf: not compared with Kafka: replay:nowhere"]


def test_each_thing_that_can_be_wrong_is_found_with_its_range(archive: Archive) -> None:
    archive.rows([*range(10), *range(13, 20)], 20)
    archive.rows([4, 5, 5, 15])
    archive.rows([20, 21, 30])
    assert found(archive.audit()) == [
        (0, 4, 6, module.TWICE),
        (0, 15, 16, module.TWICE),
        (0, 10, 13, module.NOWHERE),
        (0, 20, 22, module.BEYOND),
        (0, 30, 31, module.BEYOND),
    ]


def test_gaps_explain_what_has_no_row_and_nothing_else(archive: Archive) -> None:
    archive.rows([5, 6, 9, 10], 13)
    archive.gap(0, 5, "before")
    archive.gap(7, 9, "expired")
    archive.gap(8, 12, "no record")  # overlaps the expired, and a worker that was refused noted 9 and 10
    archive.gap(13, 99, "expired")  # beyond the position: its commit was refused
    seen = archive.audit()
    assert found(seen) == [(0, 12, 13, module.NOWHERE)]
    (one,) = seen.ranges
    assert (one.first, one.end) == (5, 13)
    assert one.counts == {"scored": 4, "before": 5, "expired": 2, "no record": 1}
    assert gaps.counts(archive.root, "ztf") == {"before": 5, "expired": 2, "no record": 3}


def test_a_position_that_passed_over_everything_is_audited_by_its_gaps(archive: Archive) -> None:
    archive.gap(0, 40, "expired")
    archive.rows([], 40)
    seen = archive.audit()
    assert (found(seen), seen.counts["expired"]) == ([], 40)


def test_a_topic_made_again_has_books_of_its_own(archive: Archive) -> None:
    again = PLACE._replace(topic_id="again")
    archive.rows(range(10), 10)
    archive.rows(range(6), 7, place=again)
    seen = archive.audit()
    assert found(seen) == [(0, 6, 7, module.NOWHERE)]
    assert sorted((one.topic_id, one.counts["scored"]) for one in seen.ranges) == [("again", 6), (TOPIC, 10)]


def test_older_rows_without_a_topic_id_go_to_the_topic_of_their_time(archive: Archive) -> None:
    again, now = PLACE._replace(topic_id="again"), datetime.now(UTC)
    later = now + timedelta(hours=1)
    note_topics(archive.root, [again[:3]], later)
    archive.rows(range(10), 10, origin=None, stored=int(now.timestamp() * 1000) + 1)
    archive.rows(range(6), 6, place=again, origin=None, stored=int(later.timestamp() * 1000) + 1)
    seen = archive.audit()
    assert found(seen) == []
    assert sorted((one.topic_id, one.end) for one in seen.ranges) == [("again", 6), (TOPIC, 10)]


def test_partitions_and_topics_in_one_file_are_told_apart(archive: Archive) -> None:
    rng = np.random.default_rng(1)
    places = [Place("memory", f"t{n % 3}", f"id{n % 3}", n) for n in range(9)]
    pieces = [(place, n) for place in places for n in range(50)]
    rng.shuffle(pieces)  # type: ignore[arg-type]
    rows = [
        {"outcome": "scored", "topic": p.topic, "partition": p.partition, "offset": n, "origin": origin(p)}
        for p, n in pieces
    ]
    table = pa.Table.from_pylist(rows, schema=archive.table.schema)
    archive.table.append(table, dict.fromkeys([p.app_id for p in places]), {p.app_id: 50 for p in places})
    seen = archive.audit()
    assert found(seen) == []
    assert [(one.topic, one.partition, one.end) for one in seen.ranges] == [
        (place.topic, place.partition, 50) for place in sorted(places)
    ]


def test_where_kafka_is_away_that_is_said_and_the_rest_is_done(archive: Archive) -> None:
    archive.rows(range(5), 6)
    seen = audit(settings(archive.root, "127.0.0.1:1", kafka={"socket.timeout.ms": "1000"}))
    assert found(seen) == [(0, 5, 6, module.NOWHERE)]
    assert [one.waiting for one in seen.ranges] == [None]
    assert "cannot be reached" in seen.notes[0]


def test_an_archive_that_is_not_there_is_a_note(tmp_path: Path) -> None:
    seen = audit(settings(tmp_path))
    assert (seen.ranges, seen.wrong) == ([], [])
    assert "there is no table" in seen.notes[0]


def test_the_verb_prints_a_table_and_says_by_its_status_whether_the_books_hold(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    (archive.root / "raybroker.toml").write_text(
        '[archive]\nroot = "."\n[surveys.ztf]\nservers = "replay:nowhere"\n'
    )
    monkeypatch.chdir(archive.root)
    monkeypatch.setenv("COLUMNS", "200")
    archive.rows(range(5), 5)
    run = CliRunner().invoke(app, ["audit"])
    assert (run.exit_code, "the books hold: each of 5 offsets" in run.output) == (0, True), run.output
    archive.rows([3], night=20181130)
    run = CliRunner().invoke(app, ["audit", "--night", "20181130"])
    assert run.exit_code == 1
    assert f"{TOPIC} [0] 3 to 3: {module.TWICE}" in run.output
    run = CliRunner().invoke(app, ["audit", "--json", "--survey", "ztf"])
    told = json.loads(run.stdout)
    assert (run.exit_code, told["holds"], told["counts"]["scored"]) == (1, False, 6)
    assert told["nights"] == {"ztf": {"20181129": {"scored": 5}, "20181130": {"scored": 1}}}
    assert told["wrong"][0]["what"] == module.TWICE


# Against Kafka


def read(root: Path, kafka: KafkaServer, topic: str, **options: str) -> Worker:
    """All of a topic, archived."""
    made = pipeline()
    books = Books(AlertsTable(root, "ztf", row_schema(made.columns)))
    group = f"{topic}-{time.monotonic_ns()}"
    named = {key.replace("_", "."): value for key, value in options.items()}
    source = KafkaSource(kafka.servers, [topic], group, books.start, named)
    reader = Worker(ZTF, made, source, books, TurnSettings(seconds=0.2))
    until = time.monotonic() + 60
    while not source.end_reached() or books.moved(source.reached):
        assert time.monotonic() < until
        reader.turn()
    return reader


def fill(kafka: KafkaServer, topic: str, packets: Sequence[Packet]) -> None:
    producer = Producer(kafka.servers)
    for packet in packets:
        producer.send(topic, replace(packet, topic=topic), partition=0)
    producer.flush()


def delete_before(kafka: KafkaServer, topic: str, offset: int) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    for made in admin.delete_records([ck.TopicPartition(topic, 0, offset)]).values():
        made.result(10)


@pytest.mark.kafka
def test_what_kafka_deletes_unread_is_found_before_and_after_it_is_noted(
    tmp_path: Path, kafka: KafkaServer, ztf_packets: Any
) -> None:
    topic, packets = kafka.topic(), ztf_packets(NIGHT)[:12]
    own = settings(tmp_path, kafka.servers, topics=[topic])
    fill(kafka, topic, packets[:5])
    delete_before(kafka, topic, 2)
    read(tmp_path, kafka, topic).close()
    seen = audit(own)
    assert (found(seen), seen.notes, seen.ranges[0].waiting) == ([], [], 0)
    assert (seen.counts["before"], seen.ranges[0].first, seen.ranges[0].end) == (2, 2, 5)
    fill(kafka, topic, packets[5:])
    delete_before(kafka, topic, 8)
    seen = audit(own)
    assert found(seen) == [(0, 5, 8, module.DELETED)]
    assert seen.ranges[0].waiting == 4
    delete_before(kafka, topic, 12)
    read(tmp_path, kafka, topic).close()  # there is nothing to read any more: it notes the loss all the same
    seen = audit(own)
    assert (found(seen), seen.counts["expired"], seen.ranges[0].end) == ([], 7, 12)


@pytest.mark.kafka
def test_the_archive_is_compared_with_what_kafka_still_has(
    tmp_path: Path, kafka: KafkaServer, ztf_packets: Any
) -> None:
    topic = kafka.topic()
    own = settings(tmp_path, kafka.servers, topics=[topic])
    fill(kafka, topic, ztf_packets(NIGHT)[:6])
    reader = read(tmp_path, kafka, topic)
    (place,) = reader.source.places.values()
    reader.close()
    archive = Archive(tmp_path)
    archive.gap(6, 8, "no record", place)
    archive.rows([8, 9], 10, 6, place)  # as after a cluster that lost its end
    assert found(audit(own)) == [(0, 6, 10, module.NOT_THERE)]
    fill(kafka, topic, ztf_packets(NIGHT)[6:10])
    assert found(audit(own)) == [(0, 6, 7, module.RECORD)]
    kafka.delete_topic(topic)
    seen = audit(own)
    assert found(seen) == []
    assert f"topic {topic} (id {place.topic_id}) is not there any more" in seen.notes[0]


@pytest.mark.kafka
def test_a_reader_that_begins_at_the_end_loses_nothing_that_comes_while_it_is_down(
    tmp_path: Path, kafka: KafkaServer, ztf_packets: Any
) -> None:
    topic, packets = kafka.topic(), ztf_packets(NIGHT)[:9]
    fill(kafka, topic, packets[:4])
    read(tmp_path, kafka, topic, auto_offset_reset="latest").close()
    fill(kafka, topic, packets[4:])
    read(tmp_path, kafka, topic, auto_offset_reset="latest").close()
    seen = audit(settings(tmp_path, kafka.servers, topics=[topic]))
    assert found(seen) == []
    assert (seen.counts["before"], seen.ranges[0].first, seen.ranges[0].end) == (4, 4, 9)
    assert Cluster(kafka.servers, {}).cluster_id() == seen.ranges[0].cluster
