"""The whole of raybroker under load: a real Kafka, `raybroker run` in a process of its own, packets, labels, readers."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from raybroker import simulate
from raybroker.alerts import Packet
from raybroker.service.server import free_port
from raybroker.stream import replay
from raybroker.surveys import load
from tests.kafka.launcher import KafkaServer

PARTITIONS = 4
CATALOGUE_ROWS = 1_000_000
TOKEN = "benchmark"
MODEL = "transient"
SETTINGS = """
[archive]
root = "archive"
[surveys.ztf]
servers = "{servers}"
topics = ["{topic}"]
workers = {workers}
kafka = {{ {consumer} }}
[turn]
seconds = {turn_seconds}
megabytes = {turn_megabytes}
batch = {batch}
[steps]
on = ["real", "good_pixels", "basic", "early", "lightcurve"]
[catalogues.big]
file = "big.parquet"
radius_arcsec = 3.0
columns = ["magnitude"]
[models.{model}]
classes = ["real", "bogus"]
columns = ["basic.*", "early.*"]
[service]
port = {port}
rows = {rows}
"""


class Packets:
    """Ever new packets out of a real night's: ids and noise of their own."""

    def __init__(self, night: Path) -> None:
        self.found = list(replay.packets(night))
        self._more: Iterator[Packet] = simulate.multiply(self.found, 10**9, seed=1)

    def take(self, count: int) -> Iterator[Packet]:
        """The next ones."""
        return itertools.islice(self._more, count)


def write_catalogue(path: Path, packets: list[Packet], rows: int = CATALOGUE_ROWS) -> None:
    """A catalogue all over the sky, with a source near each of the packets' positions."""
    dice = np.random.default_rng(0)
    batch = load("ztf").decode(packets).batch
    ra, dec = (np.asarray(batch[name].to_numpy()) for name in ("ra", "dec"))
    far = rows - len(ra)
    table = {
        "ra": np.concatenate([ra, dice.uniform(0, 360, far)]),
        "dec": np.concatenate([dec, np.degrees(np.arcsin(dice.uniform(-1, 1, far)))]),
        "magnitude": dice.normal(20, 2, rows),
    }
    pq.write_table(pa.table(table), path)


class Night:
    """Writes packets to the topic, round robin over its partitions."""

    def __init__(self, servers: str, topic: str, packets: Packets) -> None:
        self.topic, self.packets, self.servers = topic, packets, servers
        self.sent = 0

    def _producer(self, **more: Any) -> ck.Producer:
        settings = {"bootstrap.servers": self.servers, "message.max.bytes": 16_000_000, "linger.ms": 5}
        return ck.Producer(settings | more)

    def _send(self, producer: ck.Producer, packet: Packet) -> None:
        while True:
            try:
                producer.produce(self.topic, packet.value, partition=self.sent % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.1)
        self.sent += 1
        producer.poll(0)

    def write(self, count: int) -> None:
        """As fast as it goes."""
        producer = self._producer()
        for packet in self.packets.take(count):
            self._send(producer, packet)
        producer.flush()

    @contextmanager
    def hidden(self, count: int) -> Iterator[Callable[[], None]]:
        """Packets that lie in Kafka in an open transaction; what is given makes all of them visible at once."""
        ident = f"benchmark-{uuid.uuid4().hex}"
        producer = self._producer(**{"transactional.id": ident, "transaction.timeout.ms": 600_000})
        producer.init_transactions()
        producer.begin_transaction()
        for packet in self.packets.take(count):
            self._send(producer, packet)
        producer.flush()
        yield producer.commit_transaction

    def steady(self, rate: float, seconds: float) -> int:
        """At a steady rate; how many were sent."""
        producer, start, count = self._producer(), time.monotonic(), int(rate * seconds)
        for number, packet in enumerate(self.packets.take(count)):
            while (ahead := start + number / rate - time.monotonic()) > 0:
                producer.poll(min(ahead, 0.005))
            self._send(producer, packet)
        producer.flush()
        return count


class Raybroker:
    """A running `raybroker run`: its processes, its report, its HTTP API."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, port: int) -> None:
        self.process, self.folder = process, folder
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30
        )

    @property
    def root(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def report(self) -> dict[str, Any]:
        """The totals that the supervisor keeps."""
        try:
            return dict(json.loads((self.folder / "report.json").read_text()))
        except FileNotFoundError:
            return {"received": 0, "outcomes": {}, "seconds": {}, "cpu_seconds": {}, "turns": 0}

    def get(self, path: str, **query: Any) -> Any:
        """The JSON of a GET; None while nothing answers."""
        try:
            return self.http.get(path, params=query).raise_for_status().json()
        except httpx.HTTPError:
            return None

    def wait(self, what: Callable[[], bool], seconds: float, every: float = 0.5) -> None:
        """Until something is so."""
        until = time.monotonic() + seconds
        while not what():
            if self.process.poll() is not None or time.monotonic() > until:
                log = (self.folder / "log").read_text()[-3000:]
                raise RuntimeError(f"raybroker did not get there in {seconds:g} s; its log ends:\n{log}")
            time.sleep(every)

    def wait_received(self, count: int, seconds: float) -> None:
        """Until so many packets are in the archive."""
        self.wait(lambda: self.report()["received"] >= count, seconds)

    def label(self, alert: dict[str, Any]) -> bool:
        """Post a label by a rule; True if it was taken."""
        label = "real" if (alert["reliability"] or 0) > 0.8 else "bogus"
        body = {"event_id": uuid.uuid4().hex, "alert_id": alert["alert_id"], "model": MODEL, "label": label}
        return self.http.post("/labels", json=body).status_code == 201

    def learned(self) -> int:
        """How many labels the newest snapshot has learned."""
        found = (self.get("/models") or {"models": [{"snapshot": None}]})["models"][0]["snapshot"]
        return found["labels"] if found else 0

    def last_commit(self) -> float:
        """When the last rows came into the archive, in seconds since 1970."""
        logs = sorted((self.folder / "archive" / "ztf" / "alerts" / "_delta_log").glob("*.json"))
        return max(log.stat().st_mtime for log in logs[-40:] if '"dataChange":true' in log.read_text())


@contextmanager
def raybroker(folder: Path, kafka: KafkaServer, topic: str, **options: Any) -> Iterator[Raybroker]:
    """`raybroker run` with its own settings file, stopped as a user stops it."""
    port = free_port("127.0.0.1", 18_500)
    text = SETTINGS.format(servers=kafka.servers, topic=topic, port=port, model=MODEL, **options)
    (folder / "raybroker.toml").write_text(text)
    command = [sys.executable, "-c", "from raybroker.cli.verbs import main; main()", "run", "--report"]
    environment = os.environ | {"RAYBROKER_TOKENS": f"benchmark:{TOKEN}", "RAYBROKER_LOG": "WARNING"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "report.json"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    broker = Raybroker(process, folder, port)
    try:
        yield broker
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        broker.http.close()
        if process.poll() is None:
            process.kill()
            process.wait()


class Labels:
    """Somebody who labels one alert a second while the context is open."""

    def __init__(self, broker: Raybroker, seconds: float = 1.0) -> None:
        self.broker, self.every, self.count = broker, seconds, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Labels:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.every):
            found = self.broker.get("/alerts", limit=1)
            if found and found["alerts"]:
                self.count += self.broker.label(found["alerts"][0])


class Reader(threading.Thread):
    """An HTTP client that reads the newest alerts again and again, and notes how old each is when first seen."""

    def __init__(self, broker: Raybroker, seconds: float = 0.1, page: int = 100) -> None:
        super().__init__(daemon=True)
        self.broker, self.every, self.page = broker, seconds, page
        self.delays: dict[str, float] = {}
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        self._look(first=True)
        while not self._stopped.wait(self.every):
            self._look()

    def _look(self, first: bool = False) -> None:
        """Pages until one holds something that was seen before."""
        before: dict[str, str] = {}
        while found := self.broker.get("/alerts", limit=self.page, **before):
            now = time.time()
            new = [row for row in found["alerts"] if row["alert_id"] not in self.delays]
            ages = {row["alert_id"]: now - row["published"] / 1000 for row in new}
            self.delays |= dict.fromkeys(ages, float("nan")) if first else ages
            if first or len(new) < len(found["alerts"]) or not found["before"]:
                return
            before = {"before": found["before"]}
