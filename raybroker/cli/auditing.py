"""`raybroker audit`: the proof that no alert was lost, as a table for people or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raybroker.cluster import tables
from raybroker.cluster.audit import OUTCOMES, Audit, Range, audit
from raybroker.cluster.gaps import KINDS
from raybroker.errors import SettingsError, did_you_mean
from raybroker.settings import Settings

MOST = 50  # wrong ranges that are printed; JSON has all


def looked(settings: Settings, survey: str, kafka: bool) -> Audit:
    """The audit of one survey of the settings, or of all."""
    if survey and survey not in settings.surveys:
        raise SettingsError(
            f"audit --survey {survey}: the settings have no such survey{did_you_mean(survey, settings.surveys)}"
        )
    chosen = {name: own for name, own in settings.surveys.items() if survey in ("", name)}
    return audit(settings.model_copy(update={"surveys": chosen}), kafka=kafka)


def note(settings: Settings, survey: str, found: Audit) -> None:
    """Keep the verdict in the archive, where `/metrics` tells it."""
    chosen = [name for name in settings.surveys if survey in ("", name)]
    tables.audited(settings.archive.root, found, chosen, time.time())


def as_json(found: Audit, night: int | None = None) -> str:
    """All of it; with a night, the counts of that night in place of all nights."""
    nights = {
        name: {str(when): dict(counts) for when, counts in of.items() if night in (None, when)}
        for name, of in found.nights.items()
    }
    told = {
        "holds": not found.wrong,
        "counts": found.counts,
        "ranges": [asdict(one) for one in found.ranges],
        "wrong": [asdict(one) for one in found.wrong],
        "nights": nights,
        "reasons": {name: dict(counts) for name, counts in found.reasons.items()},
        "notes": list(found.notes),
    }
    return json.dumps(told, indent=2)


def show(found: Audit, out: Console, night: int | None = None) -> None:
    """Tables, what is wrong, and one line that says whether the books hold."""
    out.print(_ranges(found) if night is None else _night(found, night))
    for note in found.notes:
        out.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    for one in found.wrong[:MOST]:
        where = f"{one.survey}: {one.topic} [{one.partition}] {one.first:,} to {one.end - 1:,}"
        out.print(f"[red]✗[/] {escape(where)}: {one.what}", soft_wrap=True)
    if len(found.wrong) > MOST:
        out.print(f"[red]✗[/] and {len(found.wrong) - MOST:,} more ranges; --json has all")
    if not found.wrong:
        total = sum(count for kind, count in found.counts.items() if kind != "before")
        out.print(f"[green]✓[/] the books hold: each of {total:,} offsets is exactly one thing")


def _columns(counts: Mapping[str, int]) -> list[str]:
    """The outcomes that occur."""
    return [name for name in (*OUTCOMES, *KINDS) if counts.get(name)]


def _ranges(found: Audit) -> Table:
    names = _columns(found.counts)
    table = Table(title="offsets by what became of them", title_justify="left")
    for name in ("survey", "topic", "partition"):
        table.add_column(name)
    for name in ("offsets", *names, "waiting"):
        table.add_column(name, justify="right")
    for one in found.ranges:
        table.add_row(*_row(one, names))
    return table


def _row(one: Range, names: list[str]) -> list[str]:
    counts = [f"{one.counts.get(name, 0):,}" for name in names]
    waiting = "?" if one.waiting is None else f"{one.waiting:,}"
    return [one.survey, one.topic, str(one.partition), f"{one.first:,} – {one.end:,}", *counts, waiting]


def _night(found: Audit, night: int) -> Table:
    table = Table(title=f"night {night}", title_justify="left")
    table.add_column("survey")
    table.add_column("outcome")
    table.add_column("alerts", justify="right")
    for survey, nights in found.nights.items():
        counts: Mapping[str, Any] = nights.get(night, {})
        for name in _columns(counts):
            table.add_row(survey, name, f"{counts[name]:,}")
    return table
