"""`raybroker run` when Kafka is not as it should be, as a user meets it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import confluent_kafka as ck
import pytest

SETTINGS = """
[archive]
root = "archive"
[surveys.ztf]
servers = "{servers}"
topics = ["{topic}"]
group = "{topic}"
[steps]
on = ["real", "good_pixels", "basic"]
[service]
port = 18700
"""
COMMAND = [sys.executable, "-c", "from raybroker.cli.verbs import main; main()", "run", "--local"]

pytestmark = pytest.mark.timeout(300)


def once(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--once"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def produce(servers: str, topic: str, values: list[bytes]) -> None:
    producer = ck.Producer({"bootstrap.servers": servers, "message.max.bytes": 16_000_000})
    for value in values:
        producer.produce(topic, value)
    producer.flush(30)


def write_settings(folder: Path, servers: str, topic: str) -> None:
    (folder / "raybroker.toml").write_text(SETTINGS.format(servers=servers, topic=topic))


def test_a_kafka_that_is_away_is_said_and_waited_for(tmp_path: Path) -> None:
    write_settings(tmp_path, "127.0.0.1:1", "away")
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(COMMAND, cwd=tmp_path, stdout=out, stderr=out, start_new_session=True)
    until = time.monotonic() + 90
    while "cannot be reached" not in log.read_text() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    assert process.poll() is None, log.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    text = log.read_text()
    assert "Kafka at 127.0.0.1:1 cannot be reached" in text
    assert "Traceback" not in text


@pytest.mark.kafka
def test_once_drains_what_is_there_and_the_next_time_only_what_is_new(
    kafka, tmp_path: Path, ztf_packets
) -> None:  # type: ignore[no-untyped-def]
    topic = kafka.topic(2)
    write_settings(tmp_path, kafka.servers, topic)
    values = [packet.value for packet in ztf_packets("public_20191231")]
    produce(kafka.servers, topic, values[:40])
    first = once(tmp_path)
    assert (first.returncode, "40 alerts received" in first.stdout) == (0, True), first.stdout + first.stderr
    produce(kafka.servers, topic, values[40:])
    second = once(tmp_path)
    assert "10 alerts received" in second.stdout, second.stdout + second.stderr


@pytest.mark.kafka
def test_a_topic_made_again_is_read_from_its_beginning(kafka, tmp_path: Path, ztf_packets) -> None:  # type: ignore[no-untyped-def]
    topic = kafka.topic(1)
    write_settings(tmp_path, kafka.servers, topic)
    values = [packet.value for packet in ztf_packets("public_20200202")]
    produce(kafka.servers, topic, values[:6])
    assert once(tmp_path).returncode == 0
    kafka.delete_topic(topic)
    kafka.topic(1, name=topic)
    produce(kafka.servers, topic, values[6:])
    again = once(tmp_path)
    said = again.stdout + again.stderr
    assert (again.returncode, "6 alerts received" in again.stdout) == (0, True), said
    assert said.count(f"topic '{topic}' was deleted and made again") == 1, said
    assert "Traceback" not in said
    command = [*COMMAND[:3], "audit"]
    audit = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert audit.returncode == 0, audit.stdout + audit.stderr
