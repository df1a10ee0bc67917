"""Three real nights through a real Kafka and two Ray workers, one of them killed on the way: nothing lost, nothing twice.

Nothing of raybroker is imported: the program runs as a user runs it, and the books are checked with Kafka's own
watermarks, the Delta log and its Parquet files read as plain files, and the sha256 of every packet sent.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka as ck
import psutil
import pyarrow as pa
import pytest

from tests import delta_log

NIGHTS = ("ztf_public_20181129", "ztf_public_20191231", "ztf_selected_20231018")
SENT = 1048
SETTINGS = """
[archive]
root = "archive"
[surveys.ztf]
servers = "{servers}"
topics = ["{topic}"]
group = "three-nights"
workers = 2
[turn]
packets = 37
[steps]
on = ["real", "good_pixels", "basic", "lightcurve"]
[models.transient]
classes = ["real", "bogus"]
[filters.bright]
where = "basic.snr > 50"
topic = "bright"
[output]
servers = "{servers}"
[service]
port = {port}
"""

pytestmark = [pytest.mark.kafka, pytest.mark.ray, pytest.mark.timeout(600)]


def packets_of(data: Path) -> list[bytes]:
    found = []
    for night in NIGHTS:
        with tarfile.open(data / "ztf" / f"{night}.tar.gz") as archive:
            found += [archive.extractfile(member).read() for member in archive if member.isfile()]  # type: ignore[union-attr]
    return found


def produce(servers: str, topic: str, packets: list[bytes]) -> dict[tuple[int, int], str]:
    """The sha256 of each packet by the partition and offset that Kafka gave it."""
    kept: dict[tuple[int, int], str] = {}
    producer = ck.Producer({"bootstrap.servers": servers, "message.max.bytes": 16_000_000})

    def note(error: ck.KafkaError | None, message: ck.Message) -> None:
        assert error is None
        kept[message.partition(), message.offset()] = hashlib.sha256(message.value()).hexdigest()

    for i, packet in enumerate(packets):
        producer.produce(topic, packet, partition=i % 4, headers=[("n", str(i).encode())], on_delivery=note)
        producer.poll(0)
    producer.flush(60)
    return kept


@contextmanager
def raybroker(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`raybroker` in a folder, stopped as a user stops it."""
    command = [sys.executable, "-c", "from raybroker.cli.verbs import main; main()", *arguments]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, text=True, start_new_session=True
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


NAMES = ["partition", "offset", "outcome", "reason", "segment", "position", "alert_id", "night", "bright"]


def wait_for(what, seconds: float, log: Path) -> None:  # type: ignore[no-untyped-def]
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"not in {seconds} s; the log ends:\n{log.read_text()[-3000:]}"
        time.sleep(0.2)


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "WorkerActor" in " ".join(child.cmdline())]


def read_back(survey: Path, row: dict) -> str:
    """The sha256 of a packet put together again from its segment and its schema, as docs/archive.md says."""
    with pa.memory_map(str(survey / "segments" / row["segment"])) as file:
        found = pa.ipc.open_file(file).read_all().slice(row["position"], 1).to_pylist()[0]
    head = (survey / "schemas" / found["value_schema"]).read_bytes() if found["value_schema"] else b""
    return hashlib.sha256(head + found["value"]).hexdigest()


@pytest.fixture(scope="module")
def night(kafka, data, tmp_path_factory):  # type: ignore[no-untyped-def]
    """The whole run, once: what was sent, and the folder of the archive afterwards."""
    folder = tmp_path_factory.mktemp("three-nights")
    topic = kafka.topic(4)
    packets = packets_of(data)
    first, rest = packets[:600], packets[600:]
    kept = produce(kafka.servers, topic, first)
    (folder / "raybroker.toml").write_text(
        SETTINGS.format(servers=kafka.servers, topic=topic, port=18000 + os.getpid() % 1000)
    )
    table = folder / "archive" / "ztf" / "alerts"
    with raybroker(folder, "run") as process:
        wait_for(lambda: delta_log.count(table) >= 100, 180, folder / "log")
        workers(process)[0].kill()
        at_death = delta_log.count(table)
        kept |= produce(kafka.servers, topic, rest)
        wait_for(lambda: delta_log.count(table) >= SENT, 180, folder / "log")
        time.sleep(1)  # whatever would come twice has time to come
    return kafka, topic, kept, folder, at_death


def test_the_worker_died_in_mid_run(night) -> None:  # type: ignore[no-untyped-def]
    assert 100 <= night[4] < SENT


def test_every_offset_that_kafka_holds_is_one_row(night) -> None:  # type: ignore[no-untyped-def]
    kafka, topic, kept, folder, _ = night
    consumer = ck.Consumer({"bootstrap.servers": kafka.servers, "group.id": "books"})
    marks = {p: consumer.get_watermark_offsets(ck.TopicPartition(topic, p), timeout=10) for p in range(4)}
    consumer.close()
    rows = delta_log.rows(folder / "archive" / "ztf" / "alerts", NAMES)
    have = Counter((row["partition"], row["offset"]) for row in rows)
    assert sum(high - low for low, high in marks.values()) == SENT == len(kept)
    assert have == Counter(
        {(p, offset): 1 for p, (low, high) in marks.items() for offset in range(low, high)}
    )


def test_the_outcomes_add_up_and_are_what_the_cuts_say(night) -> None:  # type: ignore[no-untyped-def]
    rows = delta_log.rows(night[3] / "archive" / "ztf" / "alerts", NAMES)
    outcomes = Counter(row["outcome"] for row in rows)
    assert sum(outcomes.values()) == SENT
    assert set(outcomes) == {"scored", "rejected"}
    assert {row["reason"] for row in rows if row["outcome"] == "rejected"} == {"real"}
    assert Counter(row["outcome"] for row in rows if row["night"] == 20181129)["scored"] == 291


def test_every_packet_is_given_back_byte_for_byte(night) -> None:  # type: ignore[no-untyped-def]
    _, _, kept, folder, _ = night
    rows = delta_log.rows(folder / "archive" / "ztf" / "alerts", NAMES)
    found = {(row["partition"], row["offset"]): read_back(folder / "archive" / "ztf", row) for row in rows}
    assert found == kept


def test_each_output_is_sent_once(night) -> None:  # type: ignore[no-untyped-def]
    kafka, _, _, folder, _ = night
    consumer = ck.Consumer(
        {
            "bootstrap.servers": kafka.servers,
            "group.id": "outputs",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe(["bright"])
    sent: Counter[str] = Counter()
    quiet = 0
    while quiet < 5:
        messages = [message for message in consumer.consume(500, timeout=1.0) if not message.error()]
        quiet = 0 if messages else quiet + 1
        sent.update(message.key().decode() for message in messages)
    consumer.close()
    rows = delta_log.rows(folder / "archive" / "ztf" / "alerts", NAMES)
    assert sent == Counter(row["alert_id"] for row in rows if row["bright"])
    assert sent
