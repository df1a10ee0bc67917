"""The order of a turn, line by line, against two real Kafkas: the survey's, which is not ours, and our own for outputs.

Each numbered line of `raybroker.cluster.worker` is met by a worker that dies just before it and one that dies just after.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest

from raybroker.alerts import Packet
from raybroker.archive import events
from raybroker.archive.table import AlertsTable, row_schema
from raybroker.cluster import books as books_module
from raybroker.cluster import worker as worker_module
from raybroker.cluster.audit import audit
from raybroker.cluster.books import Books
from raybroker.cluster.worker import Worker
from raybroker.errors import FencedError
from raybroker.filters.where import where
from raybroker.settings import Settings, TurnSettings, parse
from raybroker.stream.kafka import KafkaSink, KafkaSource
from raybroker.stream.sink import read_positions
from tests import delta_log
from tests.cluster.worlds import ZTF, pipeline
from tests.kafka.launcher import KafkaServer

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]
NIGHT = "public_20181129"
PIECES = (14, 4, 12)  # the packets of three transactions; the second is aborted


@pytest.fixture(scope="module")
def ours(kafka: KafkaServer) -> Iterator[KafkaServer]:
    """A second Kafka: the survey's stream is in the first one."""
    with KafkaServer(heap="256m") as server:
        assert server.servers != kafka.servers
        yield server


class Killed(BaseException):
    """The process ends here: nothing is closed, nothing is caught."""


@dataclass
class World:
    """One survey topic, one archive, one output topic; every worker is in a group of its own, as after a crash."""

    root: Path
    source: KafkaServer
    ours: KafkaServer
    topic: str
    output: str

    def worker(self, group: str = "") -> Worker:
        made = pipeline(where("positive", "flux > 0"), names=("real", "good_pixels", "basic"))
        sink = KafkaSink(self.ours.servers, prefix="raybroker/ztf/", partitions=2)
        table = AlertsTable(self.root, "ztf", row_schema(made.columns))
        books = Books(table, sink, {"positive": self.output})
        group = group or f"{self.topic}-{next(NUMBERS)}"
        source = KafkaSource(self.source.servers, [self.topic], group, books.start)
        return Worker(ZTF, made, source, books, TurnSettings(seconds=0.3, batch=5, packets=9))

    def settings(self) -> Settings:
        stream = {"servers": self.source.servers, "topics": [self.topic]}
        return parse({"archive": {"root": str(self.root)}, "surveys": {"ztf": stream}})

    def rows(self) -> list[dict[str, Any]]:
        names = ["partition", "offset", "alert_id", "outcome", "positive"]
        return delta_log.rows(self.root / "ztf" / "alerts", names)


NUMBERS = itertools.count()


@pytest.fixture
def world(tmp_path: Path, kafka: KafkaServer, ours: KafkaServer, ztf_packets: Any) -> World:
    made = World(tmp_path, kafka, ours, kafka.topic(2), ours.topic(2))
    packets = iter(ztf_packets(NIGHT))
    producer = ck.Producer({"bootstrap.servers": kafka.servers, "transactional.id": made.topic})
    producer.init_transactions(30)
    for number, count in enumerate(PIECES):
        producer.begin_transaction()
        for i, packet in enumerate(itertools.islice(packets, count)):
            producer.produce(made.topic, packet.value, partition=i % 2)
        producer.flush(30)
        (producer.abort_transaction if number == 1 else producer.commit_transaction)(30)
    return made


def turns(worker: Worker, seconds: float = 60.0) -> None:
    """Turns until everything is read, and the books say so."""
    until = time.monotonic() + seconds
    while not worker.source.end_reached() or worker.books.moved(worker.source.reached):
        assert time.monotonic() < until
        assert worker.turn().trouble == ""


def first_turns(worker: Worker) -> None:
    """Turns until both partitions are begun."""
    until = time.monotonic() + 60
    while worker.turn().alerts == 0:
        assert time.monotonic() < until


def committed(servers: str, topic: str) -> list[str]:
    """The keys that a `read_committed` reader sees, through no code of ours."""
    settings = {"bootstrap.servers": servers, "group.id": "see", "enable.partition.eof": True}
    reader = ck.Consumer({**settings, "isolation.level": "read_committed", "auto.offset.reset": "earliest"})
    partitions = reader.list_topics(topic, timeout=10).topics[topic].partitions
    reader.assign([ck.TopicPartition(topic, n, 0) for n in partitions])
    keys, ended = [], set()
    while len(ended) < len(partitions):
        message = reader.poll(30)
        if message.error():
            ended.add(message.partition())
        else:
            keys.append(message.key().decode())
    reader.close()
    return keys


def highs(servers: str, topic: str) -> dict[int, int]:
    reader = ck.Consumer({"bootstrap.servers": servers, "group.id": "see"})
    found = {n: reader.get_watermark_offsets(ck.TopicPartition(topic, n), timeout=10)[1] for n in (0, 1)}
    reader.close()
    return found


def check(world: World, worker: Worker) -> None:
    """Each offset once in the archive, each output once for a reader, positions right; and the audit agrees."""
    rows = world.rows()
    offsets = Counter((row["partition"], row["offset"]) for row in rows)
    assert set(offsets.values()) == {1}
    assert len(offsets) == PIECES[0] + PIECES[2]
    passed = [row["alert_id"] for row in rows if row["positive"]]
    assert sorted(committed(world.ours.servers, world.output)) == sorted(passed)
    assert 0 < len(passed) < len(rows)
    places = list(worker.source.places.values())
    ends = {place.app_id: highs(world.source.servers, world.topic)[place.partition] for place in places}
    assert worker.books.table.positions(ends) == ends
    assert read_positions(world.ours.servers, {}, set(ends)) == ends
    found = audit(world.settings())
    assert found.wrong == []
    assert found.counts["no record"] == sum(ends.values()) - len(rows) > 6
    assert found.counts["expired"] == 0
    assert {row["topic"] for row in events.known_topics(world.root)} == {world.topic}


def fatal(owner: Any, name: str, after: bool) -> Callable[[pytest.MonkeyPatch], None]:
    """A call at which the process dies: instead of it, or as soon as it has returned."""
    whole = getattr(owner, name)

    def die(*given: Any, **named: Any) -> Any:
        if after:
            whole(*given, **named)
        raise Killed

    return lambda patch: patch.setattr(owner, name, die)


def point(victim: Worker, line: int) -> tuple[Any, str]:
    """What a line of the docstring calls."""
    books = victim.books
    return {
        1: (books_module, "note_topics"),
        2: (books.sink, "emitted"),
        3: (books.table, "positions"),
        4: (books, "_send_again"),
        5: (victim.source, "poll"),
        6: (worker_module.segments, "write"),
        7: (victim, "_rows"),
        8: (books, "note"),
        9: (books.table, "append"),
        10: (books.sink, "write"),
        11: (victim.source, "commit"),
    }[line]


def unsent(world: World, patch: pytest.MonkeyPatch) -> None:
    """A predecessor whose last turn is archived and not sent."""
    first = world.worker()
    first_turns(first)
    with patch.context() as dying:
        fatal(*point(first, 10), after=False)(dying)
        with pytest.raises(Killed):
            turns(first)


@pytest.mark.parametrize("line", range(1, 12))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_whatever_line_a_worker_dies_at_nothing_is_lost_and_nothing_comes_twice(
    world: World, line: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if line <= 4:
        unsent(world, monkeypatch)
    victim = world.worker()
    if line > 4:
        first_turns(victim)
    with monkeypatch.context() as dying:
        fatal(*point(victim, line), after=after)(dying)
        with pytest.raises(Killed):
            turns(victim)
    successor = world.worker()
    turns(successor)
    check(world, successor)
    successor.close()


def test_a_worker_whose_partitions_moved_is_refused_by_the_archive_and_fenced_by_kafka(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = world.worker(), world.worker()
    first_turns(early)
    held = early.take()  # here it stalls, thinking that the partitions are its own
    while not held:
        held = early.take()
    first_turns(late)
    place = next(iter(early.source.places.values()))
    with pytest.raises(FencedError, match="another worker"):
        early.books.sink.write(place, {world.output: [Packet(b"zombie", key=b"zombie")]}, 99)
    with monkeypatch.context() as stalled:
        stalled.setattr(early.source, "rewind", lambda: None)  # it would take the partitions back
        report = early.finish()
    assert (report.fenced, report.alerts, report.sent) == (True, 0, {})
    turns(late)
    check(world, late)
    late.close()


def test_a_zombie_that_has_archived_its_turn_can_not_send_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = world.worker()
    first_turns(early)
    sending = early.books.route
    late: list[Worker] = []

    def overtaken(*given: Any) -> Any:
        late.append(world.worker())
        first_turns(late[0])  # takes over, and sends what is archived
        return sending(*given)

    with monkeypatch.context() as stalled:
        stalled.setattr(early.books, "route", overtaken)
        stalled.setattr(early.source, "rewind", lambda: None)
        reports = [early.turn()]
        while not late:
            reports.append(early.turn())
    assert reports[-1].fenced
    assert reports[-1].alerts > 0  # they are archived, and counted
    assert reports[-1].sent == {}
    turns(late[0])
    check(world, late[0])
    late[0].close()


SETTINGS = """
[archive]
root = "archive"
[surveys.ztf]
servers = "{source}"
topics = ["{topic}"]
group = "{topic}"
kafka = {{ "session.timeout.ms" = 6000 }}
[turn]
packets = 9
seconds = 0.3
[steps]
on = ["real", "good_pixels", "basic", "stall"]
paths = ["steps"]
[filters.positive]
where = "flux > 0"
topic = "{output}"
[output]
servers = "{ours}"
"""
STALL = """
import os
import time
from pathlib import Path

from raybroker import alerts
from raybroker.step import enrich


@enrich(gives="float64")
def stall(ra):
    while Path("stall").exists():
        Path("stalled").touch()
        time.sleep(0.05)
    return alerts.values(ra)
"""
RUN = [sys.executable, "-c", "from raybroker.cli.verbs import main; main()", "run", "--local", "--once"]


def test_a_process_killed_in_mid_turn_is_succeeded_in_its_own_group(world: World) -> None:
    folder = world.root
    (folder / "steps").mkdir()
    (folder / "steps" / "stall.py").write_text(STALL)
    named = {"source": world.source.servers, "ours": world.ours.servers}
    text = SETTINGS.format(**named, topic=world.topic, output=world.output)
    (folder / "raybroker.toml").write_text(text)
    (folder / "stall").touch()
    victim = subprocess.Popen(RUN, cwd=folder, start_new_session=True)
    try:
        while not (folder / "stalled").exists():
            assert victim.poll() is None
            time.sleep(0.05)
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.wait(30)
    (folder / "stall").unlink()
    done = subprocess.run(RUN, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{PIECES[0] + PIECES[2]} alerts received" in done.stdout
    rows = delta_log.rows(
        folder / "archive" / "ztf" / "alerts", ["partition", "offset", "alert_id", "positive"]
    )
    assert len({(row["partition"], row["offset"]) for row in rows}) == len(rows) == PIECES[0] + PIECES[2]
    passed = sorted(row["alert_id"] for row in rows if row["positive"])
    assert sorted(committed(world.ours.servers, world.output)) == passed != []
