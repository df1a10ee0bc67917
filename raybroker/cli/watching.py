"""`raybroker status`: how it goes, in a terminal, from the numbers that Prometheus gets too."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from raybroker import settings as settings_file
from raybroker.cli import asking
from raybroker.cluster.heartbeat import Heartbeat
from raybroker.cluster.tables import Tables
from raybroker.errors import RaybrokerError
from raybroker.places import Place
from raybroker.service.messages import clean

WATCH_SECONDS = 2.0
WORST = 5  # partitions of a survey that are shown
STAGES = ("poll", "segment", "decode", "pipeline", "commit", "route")
Told = Mapping[str, Any]
Look = Callable[[], dict[str, Any]]


def look(url: str, settings: Path) -> dict[str, Any]:
    """What the service says; where none answers, what the archive of the settings holds, and what is wrong."""
    try:
        client = asking.Client(url)
        return {**client.get("/status"), "problems": client.problems()}
    except asking.SilentError as silent:
        if not settings.exists():
            raise
        root = settings_file.load(settings).archive.root
        return {**archived(root), "problems": [str(silent), *Heartbeat(root).problems()]}


def archived(root: Place) -> dict[str, Any]:
    """The archive's counts, its tables, and the supervisor's last word."""
    return {**asking.archived(root), "archive": Tables(root)(), **Heartbeat(root).read()}


def show(found: Look, out: Console, watch: bool = False, as_json: bool = False) -> None:
    """Once, or again and again until Ctrl-C; with `as_json` an object to a line."""
    if not watch or as_json:
        _print(found(), out, as_json)
        while watch:
            time.sleep(WATCH_SECONDS)
            _print(found(), out, as_json)
        return
    with Live(board(found()), console=out, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(WATCH_SECONDS)
            live.update(_again(found), refresh=True)


def _again(found: Look) -> Any:
    """The board, or why there is none now: who watches goes on watching."""
    try:
        return board(found())
    except RaybrokerError as error:
        return Text(str(error))


def _print(told: Told, out: Console, as_json: bool) -> None:
    if as_json:
        print(json.dumps(clean(told)), file=out.file, flush=True)
    else:
        out.print(board(told))


def board(told: Told) -> Group:
    """All tables that there is something to show in."""
    tables = (
        *(surveys(told), partitions(told), asking.status_table(told)),
        *(stages(told), models(told), tables_of(told)),
    )
    parts: list[Any] = [Text(sentence, style="red") for sentence in told.get("problems", ())]
    return Group(*parts, *(table for table in tables if table.row_count))


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in texts:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def surveys(told: Told) -> Table:
    """Each survey's rate, lag and workers, and what was lost."""
    names = ("alerts/s", "lag", "workers", "turns", "fenced", "deaths", "expired", "sent")
    table = _table("surveys", ("survey",), names)
    numbers = told.get("numbers", {})
    for survey, own in numbers.get("surveys", {}).items():
        lag = _of(survey, told.get("lags", {}))
        working = f"{_present(survey, told)} of {_wanted(survey, told)}"
        counts = (own["turns"], own["fenced"], _of(survey, numbers.get("deaths", {})), own["expired"])
        shown = [f"{count:,}" for count in (*counts, sum(own["sent"].values()))]
        table.add_row(survey, f"{own['rate']:,.1f}", f"{lag:,}", working, *shown)
    return table


def partitions(told: Told) -> Table:
    """Where most packets wait: the worst few partitions of each survey."""
    table = _table(
        f"where packets wait: the {WORST} fullest partitions", ("survey", "topic", "partition"), ("lag",)
    )
    for survey, topics in told.get("partition_lags", {}).items():
        rows = [(lag, topic, part) for topic, parts in topics.items() for part, lag in parts.items() if lag]
        for lag, topic, part in sorted(rows, reverse=True)[:WORST]:
            table.add_row(survey, escape(topic), part, f"{lag:,}")
    return table


def _of(survey: str, by_worker: Mapping[str, int]) -> int:
    return sum(count for name, count in by_worker.items() if name.partition("-")[0] == survey)


def _present(survey: str, told: Told) -> int:
    seats = told.get("seats") or {name: {"process": 1} for name in told.get("workers", ())}
    return _of(survey, {name: bool(seat["process"]) for name, seat in seats.items()})


def _wanted(survey: str, told: Told) -> int:
    sizes = told.get("sizes", {})
    return sizes[survey]["workers"] if survey in sizes else _present(survey, told)


def stages(told: Told) -> Table:
    """Where the time goes: milliseconds per alert, of the clock and of the CPU; steps below the pipeline."""
    table = _table("milliseconds per alert, by stage", ("survey", "stage"), ("clock", "CPU"))
    for survey, own in told.get("numbers", {}).get("surveys", {}).items():
        alerts = max(1, sum(own["outcomes"].values()))
        for stage, seconds, cpu in _spent(own):
            shown = "" if cpu is None else f"{1000 * cpu / alerts:,.3f}"
            table.add_row(survey, stage, f"{1000 * seconds / alerts:,.3f}", shown)
    return table


def _spent(own: Told) -> Iterator[tuple[str, float, float | None]]:
    for stage in sorted(own["seconds"], key=lambda name: STAGES.index(name) if name in STAGES else 99):
        yield stage, own["seconds"][stage], own["cpu_seconds"].get(stage)
        if stage == "pipeline":
            for step, seconds in sorted(own["step_seconds"].items(), key=lambda pair: -pair[1]):
                yield f"  {step}", seconds, None


def models(told: Told) -> Table:
    """Each model's snapshot, its labels and its questions."""
    table = _table("models", ("model",), ("snapshot", "labels", "open questions", "pool"))
    pool = told.get("numbers", {}).get("trainer", {}).get("pool", {})
    for name, snapshot in told.get("models", {}).items():
        new = snapshot or {}
        waiting = told.get("open_queries", {}).get(name)
        numbers = (new.get("number"), new.get("labels"), waiting, pool.get(name))
        table.add_row(name, *("" if number is None else f"{number:,}" for number in numbers))
    return table


def tables_of(told: Told) -> Table:
    """The archive's tables."""
    table = _table("archive", ("table",), ("commits", "live files", "MB", "merges"))
    for name, own in told.get("archive", {}).get("tables", {}).items():
        size = f"{own['bytes'] / 1e6:,.1f}"
        table.add_row(escape(name), f"{own['commits']:,}", f"{own['files']:,}", size, f"{own['merges']:,}")
    return table
