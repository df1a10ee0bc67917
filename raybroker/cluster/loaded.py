"""The load test put together: a Kafka, a Ray, a supervisor, the stream, and the report."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from raybroker import settings as settings_file
from raybroker.cluster import fake_nodes, load
from raybroker.errors import SettingsError
from raybroker.settings import Settings
from raybroker.stream.client import Cluster
from raybroker.stream.kafka import Producer

CPUS = 1.0  # of a worker, and of a fake node: each worker asks for a node of its own
STEPS = ["real", "good_pixels", "basic", "early"]


@dataclass(frozen=True)
class Wish:
    """What the command line asked for."""

    address: str = ""
    servers: str = ""
    root: Path | None = None
    night: Path | None = None
    report: Path = Path("load-report")
    workers: int = 1
    most_workers: int = 4
    nodes: int = 4
    partitions: int = 8
    drain_seconds: float = 20.0
    hold_minutes: float = 0.5
    patience: float = 300.0
    rhythm: load.Rhythm = field(default_factory=load.Rhythm)


def run(wish: Wish) -> bool:
    """The whole test; True if nothing was lost and everything was read."""
    console = Console(highlight=False)
    with _spool(wish, console) as spool, _kafka(wish) as servers, _root(wish) as root, _ray(wish) as address:
        made = _driven(wish, servers, root, address, spool)
    for file in made.write(wish.report):
        console.print(f"wrote [bold]{file}[/]")
    for name, value in made.numbers().items():
        console.print(f"{name:>28} {value}")
    return made.lost == 0 and made.numbers()["drained"]


def _driven(wish: Wish, servers: str, root: Path, address: str, spool: load.Spool) -> load.Run:
    from raybroker.cluster import assemble, supervisor

    topic = f"load-{int(time.time())}"
    Cluster(servers, {}).create([topic], wish.partitions)
    settings = settings_of(wish, servers, topic, root, address)
    table = next(assemble.table(settings, made) for made in assemble.check_plans(settings).values())
    supervisor.start_ray(settings)
    crew = supervisor.Supervisor(settings)
    try:
        _until_ready(crew, wish)
        stream = load.Stream(Producer(servers), topic, wish.partitions, wish.rhythm, iter(spool))
        samples = load.drive(crew, stream, supervisor.nodes, wish.workers, wish.patience)
    finally:
        crew.stop()
        supervisor.stop_ray()
    return load.Run(_about(wish), wish.rhythm, samples, stream.sent, stream.behind, load.books(table))


def _until_ready(crew: load.Crew, wish: Wish) -> None:
    """The least number of workers is at work: what is measured is growing, not starting."""
    until = time.monotonic() + 180
    while crew.tally.turns < wish.workers:
        crew.step()
        if time.monotonic() > until:
            raise SettingsError(f"the first workers did not start within 180 s: {crew.told()}")


def settings_of(wish: Wish, servers: str, topic: str, root: Path, address: str) -> Settings:
    """As a `raybroker.toml` would give them: the steps that need no extra, no model, no service."""
    survey = {
        "servers": servers,
        "topics": [topic],
        "group": topic,
        "workers": wish.workers,
        "most_workers": wish.most_workers,
        "drain_seconds": wish.drain_seconds,
        "hold_minutes": wish.hold_minutes,
    }
    return settings_file.parse(
        {
            "archive": {"root": str(root)},
            "surveys": {"ztf": survey},
            "steps": {"on": STEPS, "paths": []},
            "ray": {"address": address, "cpus_per_worker": CPUS},
        }
    )


def _about(wish: Wish) -> dict[str, object]:
    return {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[1],
        "packets": wish.night.name if wish.night else "simulated, without cutouts",
        "nodes": f"fake, at most {wish.nodes}" if not wish.address else wish.address,
        "workers": f"{wish.workers} to {wish.most_workers}",
        "drain_seconds": wish.drain_seconds,
        "partitions": wish.partitions,
    }


@contextmanager
def _spool(wish: Wish, console: Console) -> Iterator[load.Spool]:
    """All packets, made before anything is measured: to make one takes longer than to read it."""
    with tempfile.TemporaryDirectory(prefix="raybroker-spool-") as folder:
        seen = console.status(f"making {wish.rhythm.total:,} packets")
        with seen:
            made = load.Spool.of(load.packets(wish.night), wish.rhythm.total, Path(folder) / "packets.arrow")
        yield made


@contextmanager
def _root(wish: Wish) -> Iterator[Path]:
    if wish.root is not None:
        yield wish.root.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="raybroker-load-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _ray(wish: Wish) -> Iterator[str]:
    if wish.address:
        yield wish.address
        return
    with fake_nodes.cluster(0, CPUS, wish.nodes) as address:
        yield address


@contextmanager
def _kafka(wish: Wish) -> Iterator[str]:
    if wish.servers:
        yield wish.servers
        return
    try:
        from tests.kafka.launcher import KafkaServer
    except ImportError:
        raise SettingsError(
            "--servers: a Kafka can be started here only from a checkout of raybroker"
        ) from None
    with KafkaServer(heap="512m") as kafka:
        yield kafka.servers
