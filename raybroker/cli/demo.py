"""`raybroker demo`: the main job end to end on one machine, with nothing to install and nobody to ask.

An embedded Kafka gets a night of alerts, from the simulator or from real packets; Ray workers, trainer and service do
with it what they do with a survey's stream. After the night it goes on in the rhythm of visits, so that labels can be
seen to change later scores.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from raybroker import settings as settings_file
from raybroker import simulate
from raybroker.alerts import Packet
from raybroker.cli import running
from raybroker.cli.asking import Client
from raybroker.cluster.heartbeat import Heartbeat
from raybroker.errors import RaybrokerError, SettingsError
from raybroker.service import server
from raybroker.settings import Settings
from raybroker.step import discover
from raybroker.stream import replay
from raybroker.stream.embedded import EmbeddedKafka, EmbeddedUnavailable, GroupPositions, PacedProducer
from raybroker.synthetic import CLASSES, Sky

TOPIC = "ztf_demo"
DATE = "20260901"
WORKERS = 2
PARTITIONS = 8
DISK_BYTES = 1_900_000_000  # then no more visits come
VISIT_SECONDS = 13.0  # a third of Rubin's cadence: nobody wants to wait 39 s in a demo
VISIT_ALERTS = 60
LABEL_SECONDS = 0.5  # between two labels of the oracle
ORACLE_LABELS = 30  # before the night counts as over
REAL_CLASSES = ["real", "bogus"]
ME = "demo"
VISITS = "visits go on until Ctrl-C, and labels change their scores"
NO_VISITS = "without Kafka no visits follow, but labels are learned until Ctrl-C"
EMBEDDED = {
    "auto.offset.reset": "error",  # the embedded Kafka drops old packets in silence: that must be seen
    "partition.assignment.strategy": "range",  # it knows no cooperative rebalancing
    "heartbeat.interval.ms": "300",
    "session.timeout.ms": "6000",
}


@dataclass(frozen=True)
class Wish:
    """What the command line asked for."""

    night: Path | None = None
    alerts: int = 3000
    oracle: bool = False
    exit: bool = False
    port: int = 8000
    folder: Path = Path("demo-data")


@dataclass
class Night:
    """The packets, first of the night, then for ever, and how many of them are written."""

    name: str
    packets: Callable[[], Iterator[Packet]]
    visits: Callable[[], Iterator[list[Packet]]]
    classes: list[str]
    truth: Callable[[str], str] | None = None
    size: int = 0
    error: RaybrokerError | None = None
    labels: int = 0
    over: threading.Event = field(default_factory=threading.Event)


def run(wish: Wish, console: Console) -> None:
    """The whole demo."""
    night = real_night(wish.night) if wish.night else simulated_night(wish.alerts)
    if wish.oracle and night.truth is None:
        raise SettingsError("--oracle needs the simulator's truth; leave --night out")
    folder = wish.folder / time.strftime("run-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    console.print(
        f"[bold]raybroker demo[/]: {night.name}, {night.size:,} alerts; kept in {folder}, {_disk(night, wish)}",
        soft_wrap=True,
    )
    os.environ.setdefault(settings_file.TOKENS_VARIABLE, f"{ME}:{secrets.token_urlsafe(24)}")
    with embedded(console) as kafka, running.stop_signal() as stopped:
        settings = demo_settings(folder.resolve(), night, wish, kafka)
        if settings.service.port != wish.port:
            console.print(f"[yellow]port {wish.port} is taken; the page is at {settings.service.port}[/]")
        write = (lambda: _write(night, kafka, settings, wish, stopped)) if kafka else None
        _work(settings, night, wish, write, stopped, console)


def _disk(night: Night, wish: Wish) -> str:
    megabytes = night.size * 0.06 + 50
    return f"about {megabytes:,.0f} MB" + (
        "" if wish.exit else f" and, as it goes on, at most {DISK_BYTES / 1e9:.1f} GB"
    )


def _work(
    settings: Settings, night: Night, wish: Wish, write: Any, stopped: Callable[[], bool], console: Console
) -> None:
    with running.working(settings, False, True, console, wait=True) as crew:
        stopped.listen()
        client = Client(_url(settings), _token())
        console.print(
            f"label here, as [bold]{ME}[/] (works once): [link]{_url(settings)}/open/{server.sessions(settings).link(ME)}[/link]",
            soft_wrap=True,
        )
        _start(write)
        if wish.oracle:
            _start(lambda: oracle(client, night, stopped))
        watch = running.Watch(console, Heartbeat(settings.archive.root))
        running.follow(crew, console, lambda: stopped() or _finished(crew, night, wish, write), watch)
        console.print(running.summary(crew.tally))
        if not wish.exit and not stopped():
            console.print(f"the night is over; {VISITS if write else NO_VISITS}")
            running.follow(crew, console, stopped, watch)
            console.print(running.summary(crew.tally))
        console.print(learned(client))


def _finished(crew: running.Crew, night: Night, wish: Wish, write: Any) -> bool:
    """The night is read, and an oracle has had time to teach something."""
    if night.error is not None:
        raise night.error
    if wish.oracle and night.labels < ORACLE_LABELS:
        return False
    if write is None:
        return crew.tally.received > 0 and crew.drained()
    return night.over.is_set() and crew.tally.received >= night.size


def _start(work: Callable[[], None] | None) -> None:
    if work is not None:
        threading.Thread(target=work, daemon=True).start()


# --- what there is ---


def simulated_night(alerts: int, seed: int = 1) -> Night:
    """A night of the synthetic sky, and the nights after it."""
    sky = Sky.for_night(seed, alerts)

    def packets() -> Iterator[Packet]:
        return itertools.chain.from_iterable(e.packets for e in simulate.night(sky, alerts, DATE))

    def visits() -> Iterator[list[Packet]]:
        return in_visits(itertools.chain.from_iterable(e.packets for e in simulate.visits(sky, DATE)))

    return Night(
        "a simulated night", packets, visits, list(CLASSES), lambda alert: simulate.truth(sky, alert), alerts
    )


def real_night(path: Path) -> Night:
    """A night of real packets, and after it the same packets as other alerts, with noise."""
    found = list(replay.packets(path))
    if not found:
        raise SettingsError(f"--night {path}: there are no packets in it")

    def visits() -> Iterator[list[Packet]]:
        return in_visits(
            itertools.chain.from_iterable(
                simulate.multiply(found, len(found), seed) for seed in itertools.count()
            )
        )

    return Night(path.name, lambda: iter(found), visits, REAL_CLASSES, size=len(found))


def in_visits(packets: Iterable[Packet]) -> Iterator[list[Packet]]:
    """Packets in groups that one visit sends."""
    endless = iter(packets)
    while visit := list(itertools.islice(endless, VISIT_ALERTS)):
        yield visit


@contextmanager
def embedded(console: Console) -> Iterator[EmbeddedKafka | None]:
    """An embedded Kafka, or None, and a line that says so."""
    try:
        kafka = EmbeddedKafka({TOPIC: PARTITIONS}).__enter__()
    except EmbeddedUnavailable as error:
        console.print(f"[yellow]{error}; the night is read without Kafka instead[/]")
        yield None
        return
    try:
        yield kafka
    finally:
        kafka.close()


def demo_settings(folder: Path, night: Night, wish: Wish, kafka: EmbeddedKafka | None) -> Settings:
    """The settings, as a `raybroker.toml` in the run's folder would give them."""
    survey: dict[str, Any] = {"topics": [TOPIC], "workers": WORKERS}
    if kafka is None:
        survey |= {"servers": f"replay:{_file(folder, night, wish)}", "workers": 1}
    else:
        survey |= {"servers": kafka.servers, "kafka": EMBEDDED}
    return settings_file.parse(
        {
            "archive": {"root": str(folder)},
            "surveys": {"ztf": survey},
            "turn": {"seconds": 0.3, "megabytes": 16},
            "steps": {"on": _steps(), "paths": []},
            "models": {"transient": {"classes": night.classes, "columns": ["basic.*"]}},
            "filters": {"bright": {"where": "basic.magnitude < 18 and reliability > 0.8"}},
            "learning": {"release_minutes": 2},
            "service": {"port": server.free_port("127.0.0.1", wish.port)},
        }
    )


def _steps() -> list[str]:
    """The default steps, and the light-curve features where their package is installed."""
    wanted = ["real", "good_pixels", "basic", "early"]
    try:
        import light_curve  # noqa: F401
    except ImportError:
        return wanted
    return [*wanted, "lightcurve"] if "lightcurve" in discover() else wanted


def _file(folder: Path, night: Night, wish: Wish) -> Path:
    """The night as a file, for the replay that takes Kafka's place."""
    if wish.night is not None:
        return wish.night.resolve()
    sky = Sky.for_night(1, night.size)
    return simulate.write_night(folder / "night", simulate.night(sky, night.size, DATE))[0]


def _url(settings: Settings) -> str:
    return f"http://{settings.service.host}:{settings.service.port}"


def _token() -> str:
    return next(iter(settings_file.tokens()))


# --- what goes in ---


def _write(
    night: Night, kafka: EmbeddedKafka, settings: Settings, wish: Wish, stopped: Callable[[], bool]
) -> None:
    """The night as fast as it is read, then visits; never more than the embedded Kafka keeps."""
    consumed = GroupPositions(kafka, settings.surveys["ztf"].group)
    producer = PacedProducer(kafka, consumed)
    try:
        for packet in night.packets():
            producer.send(TOPIC, packet)
            if stopped():
                return
        producer.flush()
        night.over.set()
        if not wish.exit:
            _visit(night, producer, settings.archive.root, stopped)
    except RaybrokerError as error:
        night.error = error


def _visit(night: Night, producer: PacedProducer, folder: Path, stopped: Callable[[], bool]) -> None:
    for visit in night.visits():
        if stopped() or disk_use(folder) > DISK_BYTES:
            return
        for packet in visit:
            producer.send(TOPIC, packet)
        producer.flush()
        time.sleep(VISIT_SECONDS)


def disk_use(folder: Path) -> int:
    """Bytes in a folder; files that vanish while it is counted do not matter."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue
    return total


def oracle(client: Client, night: Night, stopped: Callable[[], bool]) -> None:
    """Label what the model asks for, from the simulator's truth, over HTTP as a person would."""
    assert night.truth is not None
    while not stopped():
        try:
            for query in client.get("/queries", limit=1)["queries"]:
                client.label(
                    query["alert_id"], night.truth(query["alert_id"]), query["model"], query, "oracle"
                )
                night.labels += 1
        except RaybrokerError:
            pass  # the service is just starting or ending
        time.sleep(LABEL_SECONDS)


def learned(client: Client) -> Table:
    """What the models know at the end."""
    table = Table(title="models", title_justify="left")
    for column in ("model", "snapshot", "labels"):
        table.add_column(column)
    for model in client.get("/models")["models"]:
        snapshot = model["snapshot"] or {}
        table.add_row(model["name"], f"#{snapshot.get('number', 0)}", str(model["labels"]["labels"]))
    return table
