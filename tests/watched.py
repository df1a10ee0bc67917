"""A run whose every number is there: real packets, a dead one, a duplicate, a failing step, an output, a model, an audit."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from raybroker import settings as settings_file
from raybroker.alerts import Packet
from raybroker.cli.running import Watch
from raybroker.cluster.audit import audit
from raybroker.cluster.heartbeat import Heartbeat
from raybroker.cluster.seats import Seat
from raybroker.cluster.single import Single
from raybroker.cluster.tables import audited
from raybroker.service import server
from raybroker.settings import Settings
from raybroker.stream.memory import MemorySink

STEP = """
from raybroker import alerts
from raybroker.step import enrich


@enrich(gives="float64")
def fragile(alert_id, dec):
    if any(name.endswith("6") for name in alert_id.to_pylist()):
        raise RuntimeError("not this one")
    return alerts.values(dec)
"""


class Seated(Single):
    """One process with what the heartbeat tells of seats on Ray: a worker at work, and a trainer that died twice."""

    def told(self) -> dict[str, Any]:
        worker, trainer = Seat("ztf", "ztf", pid=7), Seat("trainer")
        trainer.lost(0.0, "it was killed", counts=True)
        trainer.lost(0.0, "it was killed", counts=True)
        seats = {seat.name: seat.told(0.0) for seat in (worker, trainer)}
        return {"seats": seats, "sizes": {"ztf": {"workers": 1}}}


def settings_of(folder: Path, packets: Sequence[Packet]) -> Settings:
    """A night of these packets, as files, with a broken one and a duplicate behind them."""
    sky = folder / "sky"
    sky.mkdir()
    for i, packet in enumerate([*packets, Packet(b"Obj\x01broken"), packets[3]]):
        (sky / f"{i}.avro").write_bytes(packet.value or b"")
    (folder / "fragile.py").write_text(STEP)
    tree = {
        "archive": {"root": str(folder / "archive")},
        "surveys": {"ztf": {"servers": f"replay:{sky}", "workers": 1}},
        "steps": {"on": ["real", "good_pixels", "basic", "fragile"], "paths": [str(folder / "fragile.py")]},
        "filters": {"northern": {"where": "dec > -90"}},
        "models": {"transient": {"classes": ["supernova", "other"], "columns": ["basic.age"]}},
    }
    return settings_file.parse(tree)


def run(settings: Settings, began: Callable[[], Any] = lambda: None) -> Single:
    """All of it, once, with a heartbeat; then an audit. `began` is called when the tables are there, still empty."""
    crew = Seated(settings)
    began()
    worker, _ = crew.workers["ztf"]
    worker.books.sink = MemorySink()
    worker.books.sink.emitted(list(worker.source.places.values()))
    watch = Watch(Console(file=io.StringIO()), Heartbeat(settings.archive.root))
    while not crew.drained():
        crew.step()
    crew.tally.lost("trainer")
    crew.troubles["trainer"] = "died 2 times in a row: it was killed"
    with watch.console.status("") as status:
        watch.look(crew, status)
    crew.stop()
    audited(settings.archive.root, audit(settings, kafka=False), settings.surveys, 1_700_000_000.0)
    return crew


def served(settings: Settings) -> Any:
    """The service beside a whole run, which it has followed to its end."""
    app = server.build(settings)
    follower = app.state.follower
    follower.stop()  # two threads would count twice
    run(settings, follower.step)
    follower.step()
    return app
