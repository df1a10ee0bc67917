"""`raybroker explain`: an explanation for a person, or as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raybroker.cluster import assemble
from raybroker.cluster.explain import Explanation, explain
from raybroker.errors import SettingsError
from raybroker.pipeline import Pipeline
from raybroker.settings import Settings
from raybroker.surveys import Survey


def explained(settings: Settings, alert_id: str, model: str = "") -> Explanation:
    """The explanation, with the pipelines of these settings."""

    def parts(name: str) -> tuple[Survey, Pipeline]:
        if name not in settings.surveys:
            raise SettingsError(f"there is no [surveys.{name}]")
        return assemble.survey(settings, name), assemble.pipeline(settings, name)

    return explain(settings.archive.root, parts, alert_id, model)


def as_json(found: Explanation) -> str:
    """The whole explanation; a number that JSON has not is null."""
    return json.dumps(_plain(dataclasses.asdict(found)), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(found: Explanation, console: Console, top: int = 12) -> None:
    """The score, where it came from, and what moved it."""
    where = f" of {escape(found.object_id)}" if found.object_id else ""
    console.print(f"[bold]{escape(found.alert_id)}[/]{where}, {escape(found.survey)}: {found.outcome}")
    if found.stored:
        score = "  ".join(f"{escape(name)} [bold]{_number(value)}[/]" for name, value in found.stored.items())
        console.print(f"{escape(found.model)}  {score}")
        console.print(_origin(found))
    colour = {True: "green", False: "red", None: "yellow"}[found.reproduced]
    console.print(f"[{colour}]{escape(found.sentence)}[/]", soft_wrap=True)
    for difference in found.differences:
        console.print(f"[yellow]differs:[/] {escape(difference)}", soft_wrap=True)
    if found.effects:
        console.print(effects_table(found, top))
        console.print(members_table(found))


def _origin(found: Explanation) -> str:
    learned = "" if found.labels is None else f", which had learned {found.labels:,} labels"
    own = f", configuration {escape(found.configuration)}" if found.configuration else ""
    return (
        f"snapshot {found.snapshot}{learned}{own}\n"
        f"[dim]model {found.digest or 'not found'}\nplan {found.plan}\nfeatures {found.feature_digest}[/]"
    )


def effects_table(found: Explanation, top: int) -> Table:
    """Feature by feature; of two classes the first says it all."""
    classes = _told(found)
    table = Table(title="what moved it, one feature at a time", title_justify="left")
    table.add_column("feature")
    table.add_column("value", justify="right")
    for name in classes:
        table.add_column(f"{escape(name)}, against not known", justify="right")
    for name in classes:
        table.add_column(f"{escape(name)}, against the middle", justify="right")
    for effect in found.effects[:top]:
        value = "not known" if effect.value is None else f"{effect.value:.6g}"
        moved = [_change(effect.moved[name]) for name in classes]
        middle = [_change(effect.from_centre[name]) if effect.from_centre else "" for name in classes]
        table.add_row(escape(effect.feature), value, *moved, *middle)
    left = len(found.effects) - top
    table.caption = f"and {left} more (--top)" if left > 0 else None
    return table


def members_table(found: Explanation) -> Table:
    """What each member of the mixture says."""
    classes = _told(found)
    table = Table(title="its members", title_justify="left")
    table.add_column("member")
    table.add_column("weight", justify="right")
    for name in classes:
        table.add_column(escape(name), justify="right")
    for say in found.members:
        weight = "" if say.weight is None else f"{say.weight:.3f}"
        table.add_row(escape(say.member), weight, *(f"{say.probabilities[name]:.4f}" for name in classes))
    return table


def _told(found: Explanation) -> list[str]:
    names = list(found.computed)
    return names[:1] if len(names) == 2 else names


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"


def _change(value: float) -> str:
    return f"{value:+.4f}" if abs(value) >= 0.00005 else "0"
