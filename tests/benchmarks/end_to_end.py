"""Alerts per second from Kafka to a served score, with everything running; latency; memory.

    python -m tests.benchmarks.end_to_end [--alerts 20000] [--rate 300] [--latency SECONDS] [--soak MINUTES]

A real Kafka, two workers, trainer and Ray Serve share the machine with the producer and the HTTP client. The packets are
those of a real night, each with an id, an object and noise of its own. Results go to `results/` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from raybroker.settings import TurnSettings
from tests.benchmarks.processes import Memory, Watch
from tests.benchmarks.system import (
    PARTITIONS,
    Labels,
    Night,
    Packets,
    Raybroker,
    Reader,
    raybroker,
    write_catalogue,
)
from tests.benchmarks.tables import machine, markdown, sheets, show
from tests.kafka.launcher import KafkaServer

DATA = Path(os.environ.get("RAYBROKER_DATA", Path(__file__).parents[3] / "shared" / "data"))
RESULTS = Path(__file__).parent / "results"
KEPT = ("scored", "failed")
SETTINGS = ("workers", "consumer", "turn_seconds", "turn_megabytes", "batch", "rows")


class Bench:
    """A raybroker that is up and warm, and what is measured on it."""

    def __init__(
        self, kafka: KafkaServer, night: Night, broker: Raybroker, workers: int, console: Console
    ) -> None:
        self.kafka, self.night, self.broker, self.workers = kafka, night, broker, workers
        self.console = console

    @property
    def roots(self) -> list[psutil.Process]:
        assert self.kafka.process is not None
        return [psutil.Process(self.kafka.process.pid), self.broker.root]

    def warm_up(self, alerts: int, labels: int) -> None:
        """Some alerts through everything, and a model that has learned."""
        self.console.print(f"warming up: {alerts:,} alerts, {labels} labels")
        self.broker.wait(lambda: len(self.broker.report().get("lags", ())) == self.workers, 300)
        for written in (alerts // 2, alerts):  # twice, so that no worker meets its first packets later
            self.night.write(written - self.night.sent)
            self.broker.wait_received(written, 300)
        self.broker.wait(lambda: bool((self.broker.get("/alerts", limit=1) or {}).get("alerts")), 60)
        rows = self.broker.get("/alerts", limit=min(1000, labels + 50))["alerts"]
        for row in rows[: labels + 20]:
            self.broker.label(row)
        self.broker.wait(lambda: self.broker.learned() >= labels, 120)
        time.sleep(3)  # the last snapshot reaches the workers

    def throughput(self, alerts: int) -> dict[str, Any]:
        """All at once: from the moment they become visible in Kafka until the last commit."""
        before, learned = self.broker.report(), self.broker.learned()
        self.console.print(f"throughput: {alerts:,} alerts lie in Kafka in an open transaction ...")
        with self.night.hidden(alerts) as reveal:
            time.sleep(5)  # whatever the writing left to do is done
            assert self.broker.report()["received"] == before["received"], "an open transaction was read"
            with Watch(self.roots, 1.0) as watch, Labels(self.broker) as labels:
                start = time.time()
                reveal()
                self.broker.wait_received(before["received"] + alerts, 60 + alerts / 50)
        seconds = self.broker.last_commit() - start
        time.sleep(2)
        return {
            "alerts": alerts,
            "seconds": seconds,
            "alerts_per_second": alerts / seconds,
            "labels_before": learned,
            "labels_posted": labels.count,
            "megabytes_per_second": alerts / seconds * self._mean_size() / 1e6,
            **self._spent(watch, before, alerts),
        }

    def _mean_size(self) -> float:
        return float(np.mean([len(packet.value or b"") for packet in self.night.packets.found]))

    def _spent(self, watch: Watch, before: dict[str, Any], alerts: int) -> dict[str, Any]:
        after, cpu = self.broker.report(), watch.cpu_seconds()
        by_process = {role: 1000 * sum(spent) / alerts for role, spent in cpu.items()}
        total = sum(by_process.values())
        return {
            "cpu_ms_per_alert": total,
            "alerts_per_second_of_two_cores": 2000 / total,
            "cpu_by_process": _descending(by_process),
            "cpu_by_stage": by_stage(before, after, alerts, by_process.get("worker", 0.0)),
            "turns": after["turns"] - before["turns"],
            "worker_rss": max(max(memory.rss) for memory in watch.memory.values() if memory.role == "worker"),
            "outcomes": {k: n - before["outcomes"].get(k, 0) for k, n in after["outcomes"].items()},
        }

    def latency(self, rate: float, seconds: float) -> dict[str, Any]:
        """At a steady rate, how old an alert is when an HTTP client first reads it."""
        self.console.print(f"latency: {rate:g} alerts/s for {seconds:g} s")
        before, reader = self.broker.report(), Reader(self.broker)
        reader.start()
        with Watch(self.roots) as watch, Labels(self.broker):
            sent = self.night.steady(rate, seconds)
            self.broker.wait_received(before["received"] + sent, 60)
            time.sleep(3)
        reader.stop()
        delays = np.array([delay for delay in reader.delays.values() if np.isfinite(delay)])
        spent = self._spent(watch, before, sent)
        p50, p95, p99 = np.percentile(delays, (50, 95, 99))
        found = {"p50": p50, "p95": p95, "p99": p99, "worst": delays.max()}
        kept = sum(spent["outcomes"].get(name, 0) for name in KEPT)
        return {"rate": rate, "seconds": seconds, "seen": len(delays), "kept": kept} | found | spent

    def soak(self, rate: float, minutes: float, settle_minutes: float = 2.0) -> dict[str, Any]:
        """Memory of every process at a steady rate."""
        self.console.print(f"memory: {rate:g} alerts/s for {minutes:g} minutes")
        with Watch(self.roots) as watch, Labels(self.broker):
            self.night.steady(rate, 60 * minutes)
        rows = [
            of_process(pid, memory, 60 * settle_minutes)
            for pid, memory in watch.memory.items()
            if len(memory.seconds) > 0.5 * len(watch.memory[self.broker.process.pid].seconds)
        ]
        rows.sort(key=lambda row: -row["rss_last"])
        brief = {
            role: max(max(memory.rss) for memory in watch.memory.values() if memory.role == role)
            for role in {memory.role for memory in watch.memory.values()} - {row["role"] for row in rows}
        }
        return {
            "rate": rate,
            "minutes": minutes,
            "settle_minutes": settle_minutes,
            "processes": rows,
            "brief": brief,
        }


def of_process(pid: int, memory: Memory, settle_seconds: float) -> dict[str, Any]:
    """One process over time, in MB and MB per minute."""
    return {
        "role": memory.role,
        "pid": pid,
        "rss_first": memory.rss[0],
        "rss_last": memory.rss[-1],
        "rss_most": max(memory.rss),
        "uss_last": memory.uss[-1],
        "uss_growth": memory.growth(memory.uss, settle_seconds),
        "rss_growth": memory.growth(memory.rss, settle_seconds),
        "dirty_growth": memory.growth(memory.dirty, settle_seconds),
        "series": {"seconds": memory.seconds, "rss": memory.rss, "uss": memory.uss, "pss": memory.pss},
    }


def by_stage(
    before: dict[str, Any], after: dict[str, Any], alerts: int, worker_ms: float
) -> dict[str, float]:
    """CPU milliseconds per alert, by stage; a step's share of the pipeline is its share of the pipeline's time."""

    def spent(kind: str) -> dict[str, float]:
        return {k: 1000 * (v - before[kind].get(k, 0.0)) / alerts for k, v in after[kind].items()}

    cpu, wall = spent("cpu_seconds"), spent("seconds")
    steps = {name: ms for name, ms in wall.items() if name.startswith("step:")}
    scale = cpu.get("pipeline", 0.0) / (wall.get("pipeline", 0.0) or 1.0)
    rest = {"the rest: other threads, Ray": worker_ms - sum(cpu.values())}
    return _descending(cpu | rest) | _descending({name: ms * scale for name, ms in steps.items()})


def _descending(numbers: dict[str, float]) -> dict[str, float]:
    return dict(sorted(numbers.items(), key=lambda item: -item[1]))


def measure(options: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    packets = Packets(options.night)
    write_catalogue(folder / "big.parquet", packets.found)
    settings = {name: getattr(options, name) for name in SETTINGS}
    found: dict[str, Any] = {
        "machine": machine(),
        "settings": settings,
        "when": time.strftime("%Y-%m-%d %H:%M"),
    }
    with KafkaServer() as kafka:
        topic = kafka.topic(PARTITIONS, retention_bytes="2000000000", segment_bytes="200000000")
        with raybroker(folder, kafka, topic, **settings) as broker:
            bench = Bench(kafka, Night(kafka.servers, topic, packets), broker, options.workers, console)
            bench.warm_up(options.warm_up, options.labels)
            if options.alerts:
                found["throughput"] = bench.throughput(options.alerts)
            if options.latency:
                found["latency"] = bench.latency(options.rate, options.latency)
            if options.soak:
                found["soak"] = bench.soak(options.rate, options.soak)
    return found


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="end_to_end", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--night", type=Path, default=DATA / "ztf" / "ztf_public_20181129.tar.gz")
    parser.add_argument("--alerts", type=int, default=20_000, help="for the throughput; 0: not measured")
    parser.add_argument("--rate", type=float, default=300.0, help="alerts/s, for latency and memory")
    parser.add_argument("--latency", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--warm-up", type=int, default=2_000, help="alerts before anything is measured")
    parser.add_argument("--labels", type=int, default=200, help="learned before anything is measured")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--consumer", default="", help="librdkafka's options, as in TOML: '\"fetch.min.bytes\"=1'"
    )
    parser.add_argument("--turn-seconds", type=float, default=TurnSettings().seconds)
    parser.add_argument("--turn-megabytes", type=float, default=TurnSettings().megabytes)
    parser.add_argument("--batch", type=int, default=TurnSettings().batch)
    parser.add_argument("--rows", type=int, default=30_000, help="that the service keeps in memory")
    parser.add_argument("--folder", type=Path, help="where to work; kept. Default: a temporary folder")
    return parser.parse_args(arguments)


def main() -> None:
    options, console = parsed(), Console(highlight=False)
    if not options.night.exists():
        sys.exit(f"{options.night} does not exist: set RAYBROKER_DATA, or name a night of ZTF with --night")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="raybroker-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = measure(options, folder.resolve(), console)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps(found, indent=1))
    made = sheets(found)
    path.with_suffix(".md").write_text("\n".join(markdown(sheet) for sheet in made))
    for sheet in made:
        show(sheet, console)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
