"""The load test's own parts: its rhythm, its stream, its books; and a small run of it, on fake nodes and a real Kafka."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raybroker.alerts import Packet
from raybroker.cluster import load
from raybroker.cluster.fake_nodes import configuration
from raybroker.cluster.load import Rhythm, Run, Sample, Spool, Stream
from raybroker.cluster.tally import Tally
from raybroker.cluster.worker import Report
from tests.cluster import worlds

ROOT = Path(__file__).parents[2]


def test_a_visit_is_189_bursts_within_three_seconds_every_39_and_the_last_is_the_peak() -> None:
    rhythm = Rhythm(visits=3)
    due = list(rhythm.due())
    assert len(due) == 4 * 189
    assert sum(count for _, count in due) == rhythm.total == 70_000
    visits = [list(group) for _, group in itertools.groupby(due, key=lambda burst: burst[0] // 39)]
    assert [sum(count for _, count in visit) for visit in visits] == [10_000, 10_000, 10_000, 40_000]
    assert all(0 <= visit[-1][0] - visit[0][0] < 3.0 for visit in visits)
    assert min(count for _, count in due) >= 52


def test_a_visit_of_fewer_alerts_than_bursts_has_one_in_each() -> None:
    assert [count for _, count in Rhythm(visits=1, alerts=5, peak=0).due()] == [1] * 5


class Kept:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, bytes | None]] = []
        self.flushed = False

    def send(self, topic: str, packet: Packet, partition: int = -1, timestamp_ms: int = 0) -> None:
        self.sent.append((topic, partition, packet.value))

    def flush(self, seconds: float = 60.0) -> None:
        self.flushed = True


class Full(Kept):
    """A producer that cannot."""

    def send(self, topic: str, packet: Packet, partition: int = -1, timestamp_ms: int = 0) -> None:
        raise OSError("full")


class Turns:
    """A crew that reads all that is sent, one seat, one turn a step."""

    def __init__(self) -> None:
        self.tally, self.stream = Tally(), None
        self.read = 0

    def step(self, seconds: float = 0.2) -> list[Any]:
        new, self.read = self.stream.sent - self.read, self.stream.sent  # type: ignore[attr-defined]
        self.tally.add("ztf-0", Report(outcomes={"scored": new}))
        time.sleep(0.002)
        return []

    def told(self) -> dict[str, Any]:
        return {"seats": {"ztf-0": {"state": "works"}, "trainer": {"state": "works"}}}


def stream_of(producer: Any) -> Stream:
    numbers = (Packet(str(i).encode()) for i in itertools.count())
    return Stream(producer, "t", 4, Rhythm(2, 20, 40, 5, 0.05, 0.1), numbers)


def test_a_spool_gives_the_packets_that_were_put_in_and_no_more(tmp_path: Path) -> None:
    made = (Packet(str(i).encode()) for i in itertools.count())
    spool = Spool.of(made, 1_201, tmp_path / "packets.arrow")
    assert [int(packet.value or b"") for packet in spool] == list(range(1_201))


def test_all_visits_are_written_in_order_round_robin_and_read() -> None:
    kept, crew = Kept(), Turns()
    stream = crew.stream = stream_of(kept)  # type: ignore[assignment]
    samples = load.drive(crew, stream, lambda: 2, least=1, patience=30.0)
    assert [(partition, int(value or b"")) for _, partition, value in kept.sent] == [
        (i % 4, i) for i in range(80)
    ]
    assert kept.flushed
    last = samples[-1]
    assert (last.sent, last.received, last.lag, last.workers, last.seats, last.nodes) == (80, 80, 0, 1, 1, 2)


def test_a_stream_that_cannot_be_written_ends_the_test() -> None:
    crew = Turns()
    stream = crew.stream = stream_of(Full())  # type: ignore[assignment]
    with pytest.raises(OSError, match="full"):
        load.drive(crew, stream, lambda: 2, least=1, patience=30.0)


def run_of(books: dict[str, Any], samples: list[Sample], sent: int = 60) -> Run:
    return Run({"packets": "real"}, Rhythm(), samples, sent, 0.5, books)


def test_the_books_say_what_is_lost_and_what_came_twice(ztf_packets: Any, tmp_path: Path) -> None:
    found = [replace(packet, timestamp_ms=1) for packet in ztf_packets("public_20191231")]
    worker = worlds.worker(tmp_path, worlds.placed(found))
    worker.turn()
    books = load.books(worker.books.table)
    assert (books["rows"], books["twice"], books["holes"]) == (50, 0, 0)
    samples = [
        Sample(float(i), 60, min(60, 2 * i), 60 - 2 * i, 1 + i // 10, 1 + i // 10, 2) for i in range(31)
    ]
    numbers = run_of(books, samples).numbers()
    assert (numbers["lost"], numbers["most_lag"], numbers["most_workers"]) == (10, 60, 4)
    assert (numbers["size_changes"], numbers["drained"]) == (3, True)
    assert numbers["alerts_per_second_at_most"] == 2.0
    assert numbers["latency_p50"] <= numbers["latency_p99"] <= numbers["latency_worst"]


def test_the_report_is_json_with_its_series_and_a_page_that_needs_no_network(tmp_path: Path) -> None:
    books = {"rows": 60, "twice": 0, "holes": 0, "outcomes": {"scored": 60}, "worst": 2.0}
    books["latency"] = {"p50": 1.0, "p95": 1.5, "p99": 1.9}
    made = run_of(books, [Sample(0.0, 0, 0, 0, 1, 1, 2), Sample(1.0, 60, 60, 0, 1, 1, 2)])
    files = made.write(tmp_path)
    told = json.loads(files[0].read_text())
    assert told["numbers"]["lost"] == 0
    assert told["series"]["received"] == [0, 60]
    page = files[1].read_text()
    assert "Workers and nodes" in page
    assert "<script src=" not in page


def test_fake_nodes_begin_with_none_and_have_one_workers_room() -> None:
    made = configuration("10.0.0.1:6379", 1.0, 4, 0.2)
    fake = made["available_node_types"]["fake"]
    assert (fake["min_workers"], fake["max_workers"], fake["resources"]["CPU"]) == (0, 4, 1.0)
    assert made["provider"]["gcs_address"] == "10.0.0.1:6379"
    assert made["provider"]["use_node_id_as_ip"]  # else Ray takes them for one node, which is never idle


@pytest.mark.kafka
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_small_run_on_fake_nodes_loses_nothing(kafka: Any, tmp_path: Path) -> None:
    sizes = ["--visits", "1", "--alerts", "300", "--peak", "600", "--cadence", "6"]
    more = ["--workers", "1", "--most-workers", "1", "--nodes", "1", "--report", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "jobs/load_test.py", "--servers", kafka.servers, *sizes, *more],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    told = json.loads((tmp_path / "load.json").read_text())
    assert told["numbers"]["sent"] == 900
    assert told["numbers"]["lost"] == told["numbers"]["twice"] == 0
    assert told["numbers"]["most_nodes"] == 2  # the head, and the node that the worker asked for
