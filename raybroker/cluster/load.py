"""A stream in the rhythm of Rubin's visits, driven through a crew of workers, and what is told of it: no Ray here.

A visit is 10,000 alerts, in 189 bursts (one for each detector) within 3 s, every 39 s; the last one has 40,000.
Latency is from the producer's timestamp until the row was written to the archive. Lost is what was sent and has no row.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker import simulate
from raybroker.alerts import Packet
from raybroker.archive.table import AlertsTable
from raybroker.cluster.tally import Tally
from raybroker.protocols.findings import Findings, Line, Plot, Sheet
from raybroker.protocols.report import Evaluation
from raybroker.stream import replay
from raybroker.synthetic import Sky

SECONDS = 1.0  # between two samples
BASE = 400  # packets that are multiplied
CHUNK = 500  # packets that are read from a spool at once
SPOOL = pa.schema([pa.field("value", pa.binary())])


@dataclass(frozen=True)
class Rhythm:
    """Visits, and the last with `peak` alerts."""

    visits: int = 6
    alerts: int = 10_000
    peak: int = 40_000
    bursts: int = 189
    burst_seconds: float = 3.0
    cadence: float = 39.0

    def due(self) -> Iterator[tuple[float, int]]:
        """When (seconds from the start) how many alerts are due, burst by burst."""
        sizes = [*[self.alerts] * self.visits, *([self.peak] if self.peak else [])]
        for visit, size in enumerate(sizes):
            edges = np.linspace(0, size, min(self.bursts, size) + 1).astype(int)
            for burst, (first, end) in enumerate(itertools.pairwise(edges.tolist())):
                yield visit * self.cadence + burst * self.burst_seconds / self.bursts, end - first

    @property
    def total(self) -> int:
        """All alerts."""
        return self.visits * self.alerts + self.peak


class Sample(NamedTuple):
    """One look, `seconds` after the first visit. `workers` work, `seats` are asked for."""

    seconds: float
    sent: int
    received: int
    lag: int
    workers: int
    seats: int
    nodes: int


class Crew(Protocol):
    """A `Supervisor`."""

    tally: Tally

    def step(self, seconds: float = 0.2) -> list[Any]: ...
    def told(self) -> dict[str, Any]: ...


class Send(Protocol):
    """A `Producer` of `stream.kafka`."""

    def send(self, topic: str, packet: Packet, partition: int = -1, timestamp_ms: int = 0) -> None: ...
    def flush(self, seconds: float = 60.0) -> None: ...


def packets(night: Path | None, seed: int = 1) -> Iterator[Packet]:
    """Ever new packets of ZTF, each with an id and noise of its own: of a real night, or of the simulator, which leaves
    the cutouts out."""
    if night is not None:
        base = list(replay.packets(night))
    else:
        sky = Sky.for_night(seed, BASE)
        exposures = simulate.night(sky, BASE, "20260901", cutouts=False)
        base = list(itertools.chain.from_iterable(exposure.packets for exposure in exposures))
    return simulate.multiply(base, 10**9, seed)


@dataclass(frozen=True)
class Spool:
    """Packets in a file, read without being made again."""

    path: Path

    @classmethod
    def of(cls, packets: Iterator[Packet], count: int, path: Path) -> Spool:
        """So many of them, written to `path` as Arrow."""
        with pa.ipc.new_file(str(path), SPOOL) as file:
            for first in range(0, count, CHUNK):
                values = [packet.value for packet in itertools.islice(packets, min(CHUNK, count - first))]
                file.write(pa.record_batch([pa.array(values, pa.binary())], SPOOL))
        return cls(path)

    def __iter__(self) -> Iterator[Packet]:
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_file(source) as file:
            for number in range(file.num_record_batches):
                yield from (Packet(value) for value in file.get_batch(number)["value"].to_pylist())


@dataclass
class Stream:
    """Writes the visits to a topic in a thread of its own. `behind` is how late the latest burst was."""

    producer: Send
    topic: str
    partitions: int
    rhythm: Rhythm
    packets: Iterator[Packet]
    sent: int = 0
    behind: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def start(self) -> None:
        """Begin the first visit."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self.begun = time.monotonic()
            for due, count in self.rhythm.due():
                time.sleep(max(0.0, self.begun + due - time.monotonic()))
                self.behind = max(self.behind, time.monotonic() - self.begun - due)
                for packet in itertools.islice(self.packets, count):
                    self.producer.send(self.topic, packet, self.sent % self.partitions)
                    self.sent += 1
            self.producer.flush()
        except Exception as error:  # told by whoever drives
            self.error = error
        finally:
            self.over.set()


def drive(crew: Crew, stream: Stream, nodes: Callable[[], int], least: int, patience: float) -> list[Sample]:
    """Turns from the first visit until everything is read and the crew is as small as it may be, or `patience` seconds
    after the last visit."""
    stream.start()
    begun, samples, end = time.monotonic(), [], float("inf")
    while time.monotonic() < end:
        crew.step()
        now = time.monotonic()
        if stream.over.is_set() and end == float("inf"):
            end = now + patience
        if stream.error is not None:
            raise stream.error
        if not samples or now - begun - samples[-1].seconds >= SECONDS:
            samples.append(_sample(crew, stream, nodes(), now - begun))
            if stream.over.is_set() and _is_done(samples[-1], least):
                break
    return samples


def _sample(crew: Crew, stream: Stream, nodes: int, seconds: float) -> Sample:
    seats = [seat for name, seat in crew.told()["seats"].items() if name != "trainer"]
    working = sum(seat["state"] in ("works", "leaves") for seat in seats)
    received = crew.tally.received
    return Sample(
        round(seconds, 2), stream.sent, received, stream.sent - received, working, len(seats), nodes
    )


def _is_done(sample: Sample, least: int) -> bool:
    return sample.lag <= 0 and sample.seats <= least and sample.nodes <= 1 + least


def books(table: AlertsTable) -> dict[str, Any]:
    """From the archive alone: rows, offsets that have none or more than one, and the latency of every alert."""
    rows, _ = table.read(["topic", "partition", "offset", "published", "stored", "outcome"])
    spans: dict[tuple[str, int], Counter[int]] = {}
    for topic, partition, offset in zip(
        *(rows[n].to_pylist() for n in ("topic", "partition", "offset")), strict=True
    ):
        spans.setdefault((topic, partition), Counter())[offset] += 1
    delays = (
        pc.divide(pc.subtract(rows["stored"], rows["published"]).cast(pa.float64()), 1000.0)
        .drop_null()
        .to_numpy()
    )
    quantiles = np.percentile(delays, (50, 95, 99)) if len(delays) else [float("nan")] * 3
    return {
        "rows": len(rows),
        "twice": sum(count - 1 for counts in spans.values() for count in counts.values()),
        "holes": sum(max(counts) + 1 - min(counts) - len(counts) for counts in spans.values()),
        "outcomes": Counter(rows["outcome"].to_pylist()),
        "latency": {name: float(q) for name, q in zip(("p50", "p95", "p99"), quantiles, strict=True)},
        "worst": float(delays.max()) if len(delays) else float("nan"),
    }


@dataclass(frozen=True)
class Run:
    """One load test: what was asked, what was seen each second, and what the archive says afterwards."""

    about: Mapping[str, Any]
    rhythm: Rhythm
    samples: list[Sample]
    sent: int
    behind: float
    books: Mapping[str, Any]

    @property
    def lost(self) -> int:
        """Sent, and without a row."""
        return self.sent - (self.books["rows"] - self.books["twice"])

    def numbers(self) -> dict[str, Any]:
        """The outcome, by name."""
        return {
            "sent": self.sent,
            "lost": self.lost,
            "twice": self.books["twice"],
            **{f"latency_{name}": round(value, 3) for name, value in self.books["latency"].items()},
            "latency_worst": round(self.books["worst"], 3),
            "most_lag": max(sample.lag for sample in self.samples),
            "most_workers": max(sample.workers for sample in self.samples),
            "most_nodes": max(sample.nodes for sample in self.samples),
            "last_workers": self.samples[-1].workers,
            "last_nodes": self.samples[-1].nodes,
            "size_changes": _changes([sample.seats for sample in self.samples]),
            "alerts_per_second_at_most": round(self._fastest(), 1),
            "writer_behind_seconds": round(self.behind, 2),
            "drained": self.samples[-1].lag <= 0,
        }

    def _fastest(self, seconds: float = 10.0) -> float:
        """The highest mean rate over ten seconds."""
        found = [0.0]
        for first, sample in itertools.combinations(self.samples, 2):
            if seconds <= sample.seconds - first.seconds < 2 * seconds:
                found.append((sample.received - first.received) / (sample.seconds - first.seconds))
        return max(found)

    def json(self) -> str:
        """Everything, the samples as columns."""
        series = {name: [getattr(sample, name) for sample in self.samples] for name in Sample._fields}
        whole = {"about": dict(self.about), "rhythm": asdict(self.rhythm), "numbers": self.numbers()}
        return json.dumps({**whole, "outcomes": self.books["outcomes"], "series": series}, default=str) + "\n"

    def findings(self) -> Findings:
        """As tables and plots."""
        numbers = self.numbers()
        sheet = Sheet("What came of it", ("what", "value"), tuple(numbers.items()))
        plain = {name: float(value) for name, value in numbers.items()}
        return Findings("load", plain, (sheet,), tuple(self.plots()))

    def plots(self) -> list[Plot]:
        """Lag, and workers and nodes, over time."""
        seconds = tuple(sample.seconds for sample in self.samples)

        def line(name: str, label: str) -> Line:
            return Line(label, seconds, tuple(float(getattr(sample, name)) for sample in self.samples))

        sizes = (line("seats", "workers asked for"), line("workers", "workers"), line("nodes", "nodes"))
        return [
            Plot("Alerts that wait", "seconds", "alerts", (line("lag", "lag"),)),
            Plot("Workers and nodes", "seconds", "how many", sizes),
        ]

    def write(self, folder: Path) -> list[Path]:
        """load.json and load.html in that folder; the HTML needs no network."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {"table": "a load test", **self.about, **asdict(self.rhythm)}
        files = {"load.json": self.json(), "load.html": Evaluation(about, (self.findings(),)).html()}
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        return [folder / name for name in files]


def _changes(sizes: list[int]) -> int:
    return sum(a != b for a, b in itertools.pairwise(sizes))
