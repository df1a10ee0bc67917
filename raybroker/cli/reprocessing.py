"""`raybroker reprocess`: steps computed again for stored nights, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from raybroker.cluster.recompute import Done, Wish
from raybroker.errors import SettingsError
from raybroker.settings import Settings

if TYPE_CHECKING:
    from rich.status import Status

MOST = 20  # troubles that are printed


def wish(survey: str, first: int, last: int = 0, steps: Sequence[str] = ()) -> Wish:
    """What is asked for; SettingsError for what is not a night."""
    for night in (first, last or first):
        if not 19_000_101 <= night <= 21_001_231:
            raise SettingsError(f"reprocess: {night} is not a night; it is written YYYYMMDD")
    return Wish(survey, first, last or first, tuple(steps))


def run(settings: Settings, wish: Wish, address: str, out: Console, err: Console) -> bool:
    """Do it and tell how far it is; whether anything could not be had."""
    from raybroker.cluster import batch

    if address:
        settings = settings.model_copy(update={"ray": settings.ray.model_copy(update={"address": address})})
    with err.status("starting Ray") as status:
        done = batch.reprocess(settings, wish, lambda so_far: _tell(status, so_far))
    out.print(line(done), soft_wrap=True)
    for trouble, count in done.troubles.most_common(MOST):
        err.print(f"[red]{count:,}×[/] {escape(trouble)}", soft_wrap=True)
    if len(done.troubles) > MOST:
        err.print(f"and {len(done.troubles) - MOST:,} more kinds of trouble")
    return bool(done.troubles)


def _tell(status: Status, done: Done) -> None:
    status.update(line(done))


def line(done: Done) -> str:
    """All of it in a line."""
    if not done.alerts and not done.troubles:
        return "nothing to compute: no alerts of these nights, or every value is stored already"
    each = ", ".join(f"{name} {count:,}" for name, count in sorted(done.values.items())) or "no values"
    return f"{done.alerts:,} alerts computed again; written to `annotations`: {each}"
