"""A night's length at a steady rate: memory of every process, queues, files, and the books at the end.

    python -m tests.benchmarks.soak [--minutes 30] [--rate 300] [--write]

A real Kafka, two workers, trainer, Ray Serve, somebody who labels an alert a second. `--write` puts the report into
docs/soak.md. The tests run the same for three minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from deltalake import DeltaTable
from rich.console import Console

from raybroker import settings as settings_file
from raybroker.cluster.audit import audit
from raybroker.protocols.findings import Line, Plot
from raybroker.settings import TurnSettings
from tests.benchmarks.drawing import svg
from tests.benchmarks.end_to_end import DATA, Bench, of_process
from tests.benchmarks.processes import Watch
from tests.benchmarks.system import PARTITIONS, Labels, Night, Packets, Raybroker, raybroker, write_catalogue
from tests.benchmarks.tables import Sheet, machine, markdown, show
from tests.kafka.launcher import KafkaServer

NIGHT = DATA / "ztf" / "ztf_public_20181129.tar.gz"
DOCS = Path(__file__).parents[2] / "docs"
EVERY = 5.0  # seconds between two looks at queues and files
KAFKA = "kafka"  # not ours: its memory is shown and not judged


@dataclass
class Limits:
    """What is still flat. The slopes are by least squares after the first third."""

    growth: float = 1.0  # MB/min of private memory, of any process
    lag: float = 10.0  # seconds of stream that wait, at most, after the first third
    files: int = 500  # live files of the alerts


@dataclass
class Soak:
    """What was seen."""

    rate: float
    minutes: float
    sent: int
    processes: list[dict[str, Any]]
    seconds: list[float]
    lag: list[int]
    files: dict[str, list[int]]  # live files by table
    logs: list[int]  # commit files of the alerts' log
    outcomes: dict[str, int]
    wrong: list[str]  # what the audit found
    deaths: int
    machine: dict[str, Any] = field(default_factory=machine)

    @property
    def late(self) -> slice:
        """The looks after the first third."""
        return slice(len(self.seconds) // 3, None)

    def problems(self, limits: Limits) -> list[str]:
        """Why it is not flat; empty if it is."""
        found = [
            f"{one['role']} ({one['pid']}) grows by {one['uss_growth']:.2f} MB/min"
            for one in self.processes
            if one["role"] != KAFKA and one["uss_growth"] > limits.growth
        ]
        if (most := max(self.lag[self.late])) > limits.lag * self.rate:
            found.append(f"{most:,} alerts waited")
        found += [f"{name}: {max(n)} live files" for name, n in self.files.items() if max(n) > limits.files]
        found += [f"audit: {one}" for one in self.wrong]
        if self.deaths:
            found.append(f"{self.deaths} processes died")
        if (got := sum(self.outcomes.values())) != self.sent:
            found.append(f"{self.sent:,} were sent and {got:,} are in the archive")
        return found


class Looks:
    """Looks at queue and files every few seconds while the context is open."""

    def __init__(self, broker: Raybroker) -> None:
        self.broker, self.root = broker, broker.folder / "archive"
        self.seconds: list[float] = []
        self.lag: list[int] = []
        self.files: dict[str, list[int]] = {}
        self.logs: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Looks:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            self.seconds.append(time.monotonic() - self._began)
            self.lag.append(sum(self.broker.report().get("lags", {}).values()))
            for log in sorted(self.root.rglob("_delta_log")):
                name = str(log.parent.relative_to(self.root))
                live = len(DeltaTable(str(log.parent)).file_uris())
                self.files.setdefault(name, []).append(live)
            self.logs.append(sum(1 for _ in (self.root / "ztf" / "alerts" / "_delta_log").glob("*.json")))


def soak(folder: Path, rate: float, minutes: float, console: Console) -> Soak:
    """Run it; `folder` takes 45 kB for every alert."""
    packets, turn = Packets(NIGHT), TurnSettings()
    write_catalogue(folder / "big.parquet", packets.found)
    options = {"workers": 2, "consumer": "", "rows": 30_000, "batch": turn.batch}
    options |= {"turn_seconds": turn.seconds, "turn_megabytes": turn.megabytes}
    with KafkaServer() as kafka:
        topic = kafka.topic(PARTITIONS, retention_bytes="2000000000", segment_bytes="200000000")
        with raybroker(folder, kafka, topic, **options) as broker:
            bench = Bench(kafka, Night(kafka.servers, topic, packets), broker, 2, console)
            bench.warm_up(2_000, 100)
            console.print(f"{rate:g} alerts/s for {minutes:g} minutes")
            with Watch(bench.roots) as watch, Labels(broker), Looks(broker) as looks:
                bench.night.steady(rate, 60 * minutes)
            try:
                broker.wait_received(bench.night.sent, 120)
            except RuntimeError as error:  # the report says how many there are
                console.print(str(error)[:200])
            report, processes = broker.report(), _lasting(watch, broker.process.pid, 20 * minutes)
        books = audit(settings_file.load(folder / "raybroker.toml"))
        console.print(f"Kafka's and the archive's ranges: {[str(one) for one in books.ranges]}")
        wrong = [str(one) for one in books.wrong]
    kept = (looks.seconds, looks.lag, looks.files, looks.logs)
    return Soak(
        rate, minutes, bench.night.sent, processes, *kept, report["outcomes"], wrong, report["deaths"]
    )


def _lasting(watch: Watch, root: int, settle: float) -> list[dict[str, Any]]:
    """The processes that were there for most of the time, the largest first."""
    least = 0.8 * len(watch.memory[root].seconds)
    rows = [of_process(pid, m, settle) for pid, m in watch.memory.items() if len(m.seconds) > least]
    return sorted(rows, key=lambda row: -row["uss_last"])


def sheets(found: Soak, limits: Limits) -> list[Sheet]:
    """The tables of the report."""
    lag, files = np.array(found.lag[found.late]), found.files
    head = [
        ("alerts sent", f"{found.sent:,}"),
        ("in the archive", f"{sum(found.outcomes.values()):,}"),
        ("offsets about which the audit complains", str(len(found.wrong))),
        ("processes that died", str(found.deaths)),
        ("alerts waiting, median and most", f"{np.median(lag):,.0f} and {lag.max():,}"),
        ("commit files of the alerts' log, most", str(max(found.logs))),
    ]
    head += [(f"live files of {name}, most and last", f"{max(n)} and {n[-1]}") for name, n in files.items()]
    memory = [
        (
            one["role"],
            f"{one['rss_last']:,.0f}",
            f"{one['uss_last']:,.0f}",
            f"{one['uss_growth']:+.2f}",
            f"{one['dirty_growth']:+.2f}",
        )
        for one in found.processes
    ]
    after = f"MB/min after {found.minutes / 3:.0f} min"
    columns = ("process", "RSS, MB", "private, MB", f"private, {after}", f"of it written, {after}")
    return [Sheet("What it came to", ("", ""), head), Sheet("Memory", columns, memory)]


def plots(found: Soak) -> dict[str, Plot]:
    """Memory of our processes, files and queue over time."""
    lines, many = [], Counter(one["role"] for one in found.processes)
    for number, one in enumerate(found.processes):
        if one["uss_last"] > 30:
            name = one["role"] if many[one["role"]] == 1 else f"{one['role']} {number}"
            lines.append(_line(name, one["series"]["seconds"], one["series"]["uss"]))
    files = [_line(name, found.seconds[-len(n) :], n) for name, n in found.files.items()]
    return {
        "memory": Plot("Private memory", "minutes", "MB", tuple(lines)),
        "files": Plot("Live files", "minutes", "files", tuple(files)),
        "lag": Plot("Alerts that wait", "minutes", "alerts", (_line("lag", found.seconds, found.lag),)),
    }


def _line(name: str, seconds: Any, numbers: Any) -> Line:
    return Line(name, tuple(s / 60 for s in seconds), tuple(float(n) for n in numbers))


def write(found: Soak, limits: Limits) -> None:
    """docs/soak.md and its plots."""
    problems = found.problems(limits)
    verdict = "It is flat." if not problems else "**It is not flat**: " + "; ".join(problems) + "."
    text = [
        "# Half an hour at a steady rate\n" if found.minutes >= 30 else f"# {found.minutes:g} minutes\n",
        "Written by `python -m tests.benchmarks.soak --write`.",
        f"{found.rate:g} alerts/s for {found.minutes:g} minutes, two workers, four partitions, a label a second, on "
        f"{found.machine['processor']}, {found.machine['cores']} cores shared with Kafka and the writer.\n",
        f"{verdict} Flat is: no process grows by more than {limits.growth:g} MB/min, nothing waits for longer than "
        f"{limits.lag:g} s, no table has more than {limits.files} live files, nobody dies, the books hold.\n",
        *(markdown(sheet) for sheet in sheets(found, limits)),
    ]
    (DOCS / "soak").mkdir(exist_ok=True)
    for name, plot in plots(found).items():
        (DOCS / "soak" / f"{name}.svg").write_text(svg(plot))
        text.append(f"![{plot.title}](soak/{name}.svg)\n")
    (DOCS / "soak.md").write_text("\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=300.0, help="alerts/s")
    parser.add_argument("--write", action="store_true", help="write docs/soak.md")
    options, console, limits = parser.parse_args(), Console(highlight=False), Limits()
    folder = Path(tempfile.mkdtemp(prefix="raybroker-soak-"))
    try:
        found = soak(folder, options.rate, options.minutes, console)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / time.strftime("soak-%Y%m%d-%H%M%S.json")).write_text(json.dumps(asdict(found)))
    for sheet in sheets(found, limits):
        show(sheet, console)
    for problem in found.problems(limits):
        console.print(f"[red]✗[/] {problem}")
    if options.write:
        write(found, limits)


if __name__ == "__main__":
    main()
