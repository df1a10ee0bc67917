"""`raybroker run`: supervisor, service and a progress line, until Ctrl-C, SIGTERM or the end of what was there."""

from __future__ import annotations

import json
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from raybroker.cluster.tally import Tally
from raybroker.errors import RaybrokerError, SettingsError
from raybroker.settings import Settings

if TYPE_CHECKING:
    from raybroker.cluster.heartbeat import Heartbeat
    from raybroker.cluster.worker import Report

# What is heavy is imported where it is used.
COMPACT_SECONDS = 60.0
BEAT_SECONDS = 1.0
LOG_SECONDS = 10.0
ONCE_SECONDS = 60.0  # for which a run for cron waits for what is away


class Crew(Protocol):
    """What runs the turns: `Supervisor` on Ray, or `Single` in this process."""

    tally: Tally
    snapshots: dict[str, tuple[int, str]]
    troubles: dict[str, str]

    def step(self, seconds: float = 0.2) -> list[Report]: ...
    def drained(self) -> bool: ...
    def told(self) -> dict[str, Any]: ...
    def stop(self, seconds: float = 6.0) -> list[Report]: ...


def run(
    settings: Settings,
    once: bool,
    local: bool,
    console: Console,
    report: Path | None = None,
    service: bool = True,
) -> None:
    """Everything that the settings ask for; `report` is a file that always holds the totals, as JSON."""
    if not settings.surveys:
        raise SettingsError(
            "surveys: no survey is configured; `raybroker init ztf` writes a settings file with one"
        )
    with (
        stop_signal() as stopped,
        working(settings, local, service and not once, console, patient=once, heard=stopped.listen) as crew,
    ):
        from raybroker.cluster.heartbeat import Heartbeat

        watch = Watch(console, Heartbeat(settings.archive.root), report)
        patience = Patience()
        follow(crew, console, lambda: stopped() or (once and (crew.drained() or patience.over(crew))), watch)
        trouble = patience.trouble
    if report is not None:
        write_report(crew.tally, report)
    console.print(summary(crew.tally))
    if trouble:
        raise RaybrokerError(f"not all was read, since for {ONCE_SECONDS:g} s nothing went on: {trouble}")


@dataclass
class Patience:
    """How long a run for cron waits for what is away: a trouble that lasts ends it, the next run goes on."""

    clock: Callable[[], float] = time.monotonic
    trouble: str = ""
    _received: int = -1
    _since: float = 0.0

    def over(self, crew: Crew) -> bool:
        """Whether there has been a trouble, and nothing received, for `ONCE_SECONDS`."""
        if not crew.troubles or crew.tally.received != self._received:
            self._received = crew.tally.received if crew.troubles else -1
            self._since = self.clock()
            return False
        if self.clock() - self._since < ONCE_SECONDS:
            return False
        self.trouble = "; ".join(f"{name}: {said}" for name, said in crew.troubles.items())
        return True


def _prepare(settings: Settings, reach_kafka: bool) -> None:
    """Say what is wrong with the settings, and put the tables in place, before anybody works."""
    from raybroker.cluster import assemble

    for made in assemble.check_plans(settings).values():
        assemble.table(settings, made)
    if reach_kafka:
        _reach(settings)


def _reach(settings: Settings) -> None:
    """A run for cron does not wait for a Kafka that is away: StreamError says so."""
    from raybroker.cluster import assemble
    from raybroker.stream.kafka import reach

    for own in settings.surveys.values():
        if not own.servers.startswith(assemble.REPLAY):
            reach(own.servers, own.kafka)


@contextmanager
def working(
    settings: Settings,
    local: bool,
    serve: bool,
    console: Console,
    patient: bool = False,
    wait: bool = False,
    heard: Callable[[], None] = lambda: None,
) -> Iterator[Crew]:
    """Crew and service, started and, at the end, stopped in order. On Ray the workers go first: the service starts
    beside them, once they are ready; with `wait` it is there when the context opens. `patient`: Kafka must be there.
    `heard` takes the signals back from Ray."""
    from raybroker.cli.starting import Serving, started

    compacting = Compacting(settings)
    with started(settings, local, console, lambda: _prepare(settings, patient), heard) as crew, compacting:
        serving = Serving(settings, local, console, crew) if serve else nullcontext()
        with serving as service:
            try:
                if service and (wait or local):
                    service.wait()
                yield crew
            finally:
                crew.stop()


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
        from raybroker.archive import compact

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
            line += resting(crew.told().get("seats", {}))
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
            "numbers": tally.gauges.told(),
            "lags": dict(tally.lags),
            "partition_lags": tally.partition_lags(),
            **crew.told(),
        }
        self.heartbeat.beat({**told, "workers": sorted(tally.lags), "troubles": crew.troubles})
        if self.report is not None:
            write_report(tally, self.report)


def resting(seats: Mapping[str, Mapping[str, Any]]) -> str:
    """The end of the progress line: who does not work, and why."""
    told = ""
    for name, seat in seats.items():
        if deaths := seat["deaths_in_a_row"]:
            told += f" · {name}: {deaths} death{'s' if deaths > 1 else ''} in a row, {seat['state']}"
        elif seat["state"].startswith("waits"):
            told += f" · {name} {seat['state']}"
    return told


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
