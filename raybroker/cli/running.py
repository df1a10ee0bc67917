"""`raybroker run`: supervisor, service and a progress line, until Ctrl-C, SIGTERM or the end of what was there."""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from raybroker.archive import compact
from raybroker.cluster import assemble
from raybroker.cluster.heartbeat import Heartbeat
from raybroker.cluster.tally import Tally
from raybroker.cluster.worker import Report
from raybroker.errors import SettingsError
from raybroker.settings import Settings
from raybroker.stream.kafka import reach

COMPACT_SECONDS = 60.0
BEAT_SECONDS = 1.0
LOG_SECONDS = 10.0


class Crew(Protocol):
    """What runs the turns: `Supervisor` on Ray, or `Single` in this process."""

    tally: Tally
    snapshots: dict[str, tuple[int, str]]
    troubles: dict[str, str]

    def step(self, seconds: float = 0.2) -> list[Report]: ...
    def drained(self) -> bool: ...
    def stop(self, seconds: float = 8.0) -> list[Report]: ...


def run(settings: Settings, once: bool, local: bool, console: Console, report: Path | None = None) -> None:
    """Everything that the settings ask for; `report` is a file that always holds the totals, as JSON."""
    if not settings.surveys:
        raise SettingsError(
            "surveys: no survey is configured; `raybroker init ztf` writes a settings file with one"
        )
    assemble.check(settings)
    for name in settings.surveys:
        assemble.table(settings, assemble.pipeline(settings, name))
    if once:
        _reach(settings)
    with stop_signal() as stopped, working(settings, local, serve=not once, console=console) as crew:
        stopped.listen()
        watch = Watch(console, Heartbeat(settings.archive.root), report)
        follow(crew, console, lambda: stopped() or (once and crew.drained()), watch)
    if report is not None:
        write_report(crew.tally, report)
    console.print(summary(crew.tally))


def _reach(settings: Settings) -> None:
    """A run for cron does not wait for a Kafka that is away: StreamError says so."""
    for own in settings.surveys.values():
        if not own.servers.startswith(assemble.REPLAY):
            reach(own.servers, own.kafka)


@contextmanager
def working(settings: Settings, local: bool, serve: bool, console: Console) -> Iterator[Crew]:
    """Crew and service, started and, at the end, stopped in order."""
    compacting = Compacting(settings)
    with _crew(settings, local, console) as crew, _service(settings, local, serve, console), compacting:
        try:
            yield crew
        finally:
            crew.stop()


@contextmanager
def _crew(settings: Settings, local: bool, console: Console) -> Iterator[Crew]:
    if local:
        from raybroker.cluster.single import Single

        yield Single(settings)
        return
    from raybroker.cluster import supervisor

    workers = sum(own.workers for own in settings.surveys.values())
    console.print(
        f"starting Ray, {workers} worker{'s' if workers > 1 else ''}, and the trainer (up to a minute)"
    )
    supervisor.start_ray(settings)
    try:
        yield supervisor.Supervisor(settings)
    finally:
        supervisor.stop_ray()


@contextmanager
def _service(settings: Settings, local: bool, serve: bool, console: Console) -> Iterator[None]:
    if not serve:
        yield
        return
    if local:
        from raybroker.service.server import in_thread as start
    else:
        from raybroker.cluster.serve import started as start
    with start(settings) as url:
        if not url.endswith(f":{settings.service.port}"):
            console.print(f"[yellow]port {settings.service.port} is taken[/]")
        console.print(f"serving at [bold]{url}[/] (API: {url}/docs)")
        yield


class Compacting:
    """Merges small files once a minute, in a process of its own: its memory goes with it, and workers go first."""

    def __init__(self, settings: Settings) -> None:
        self.root = settings.archive.root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="compact", daemon=True)

    def __enter__(self) -> Compacting:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def _work(self) -> None:
        processes = multiprocessing.get_context("spawn")  # a fork of a process with Ray's threads may hang
        while not self._stop.wait(COMPACT_SECONDS):
            process = processes.Process(target=compact.compact_aside, args=(self.root,), daemon=True)
            process.start()
            while process.is_alive() and not self._stop.wait(0.5):
                pass
            process.terminate()  # half a merge is an orphan file
            process.join()


def follow(crew: Crew, console: Console, until: Callable[[], bool], watch: Watch) -> None:
    """Turns, until it is time to stop."""
    with console.status("starting") as status:
        while not until():
            crew.step()
            watch.look(crew, status)


@dataclass
class Watch:
    """What is told while it runs: troubles at once; a progress line, rewritten each second on a terminal and added
    every ten seconds to a log; and each second the heartbeat that the service shows."""

    console: Console
    heartbeat: Heartbeat
    report: Path | None = None  # a file that always holds the totals, as JSON
    said: dict[str, str] = field(default_factory=dict)
    beaten: float = 0.0
    printed: float = field(default_factory=time.monotonic)

    def look(self, crew: Crew, status: Status) -> None:
        """Tell what is due."""
        for name, trouble in crew.troubles.items():
            if self.said.get(name) != trouble:
                self.console.print(f"[red]{name}:[/] {escape(trouble)}", soft_wrap=True)
        self.said = dict(crew.troubles)
        now = time.monotonic()
        if now - self.beaten >= BEAT_SECONDS:
            self.beaten = now
            self._beat(crew)
            line = crew.tally.line({name: number for name, (number, _) in crew.snapshots.items()})
            if self.console.is_terminal:
                status.update(line)
            elif now - self.printed >= LOG_SECONDS:
                self.printed = now
                self.console.print(line)

    def _beat(self, crew: Crew) -> None:
        tally = crew.tally
        told = {
            "lag": tally.lag,
            "alerts_per_second": tally.rate(),
            "turns": tally.turns,
            "deaths": tally.deaths,
        }
        self.heartbeat.beat({**told, "workers": sorted(tally.lags), "troubles": crew.troubles})
        if self.report is not None:
            write_report(tally, self.report)


def write_report(tally: Tally, path: Path) -> None:
    """The totals as JSON, never seen half written."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(tally.totals(), indent=1), encoding="utf-8")
    partial.replace(path)


def summary(tally: Tally) -> Table:
    """What became of every packet."""
    table = Table(title=f"{tally.received:,} alerts received", title_justify="left")
    table.add_column("outcome")
    table.add_column("reason")
    table.add_column("alerts", justify="right")
    for outcome, count in tally.outcomes.most_common():
        table.add_row(f"[bold]{outcome}[/]", "", f"[bold]{count:,}[/]")
        for reason, number in tally.reasons.most_common():
            if reason.startswith(f"{outcome}: "):
                table.add_row("", reason.removeprefix(f"{outcome}: ")[:90], f"{number:,}")
    for topic, count in tally.sent.items():
        table.add_row("[bold]sent[/]", topic, f"{count:,}")
    return table


class Stop:
    """Whether SIGTERM or Ctrl-C came; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def listen(self) -> None:
        """Take the signals; again after Ray has started, since it takes SIGTERM for itself."""
        for which in (signal.SIGTERM, signal.SIGINT):
            signal.signal(which, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def stop_signal() -> Iterator[Stop]:
    """A `Stop` that listens while the context is open."""
    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    stop = Stop()
    stop.listen()
    try:
        yield stop
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
