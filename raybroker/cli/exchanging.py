"""`raybroker label --from`, `--to` and `--undo`: files of labels through the service, or where none answers, straight
into the archive."""

from __future__ import annotations

import getpass
import hashlib
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress

from raybroker import settings as settings_file
from raybroker.archive import store
from raybroker.archive.events import EventLog, dicts
from raybroker.archive.lookup import Lookup
from raybroker.cli.asking import Client, SilentError
from raybroker.errors import RaybrokerError, UnknownError
from raybroker.learning import exchange
from raybroker.learning.exchange import Broken
from raybroker.learning.exchange import Row as FileRow
from raybroker.learning.labels import Label
from raybroker.service import asked, bulk
from raybroker.service.asked import Asked
from raybroker.service.desk import Desk
from raybroker.service.sessions import Sessions
from raybroker.service.view import View
from raybroker.settings import Settings

Row = dict[str, Any]
BATCH = 500
SHOWN = 20  # broken rows that are named one by one


class Door(Protocol):
    """Where labels go to and come from."""

    who: str

    def send(self, bodies: Sequence[Row]) -> list[Row]: ...

    def standing(self, model: str) -> list[Row]: ...


class Service:
    """The service, over HTTP."""

    def __init__(self, client: Client) -> None:
        self.client, self.who = client, client.get("/me")["name"] or ""

    def send(self, bodies: Sequence[Row]) -> list[Row]:
        """What became of each."""
        return list(self.client.post("/labels/batch", {"labels": list(bodies)})["results"])

    def standing(self, model: str) -> list[Row]:
        """All labels that hold."""
        return list(self.client.get("/labels/standing", model=model)["labels"])


class Archive:
    """The archive, where no service answers: what is written here, the trainer reads when it runs."""

    def __init__(self, settings: Settings, who: str) -> None:
        root = settings.archive.root
        self.who = who
        log, known = EventLog(root, "labels"), Asked({name: m.raw for name, m in settings.models.items()})
        known.add_labels(dicts(log.read()))
        self.desk = Desk(
            view=View(),
            asked=known,
            lookup=Lookup(root),
            labels=log,
            questions=EventLog(root, "queries"),
            sessions=Sessions({}, b"", root),
            models=settings.models,
            raw=settings.labels.classes,
            surveys={},
            score=_no_scores,
            score_packet=_no_scores,
        )

    def send(self, bodies: Sequence[Row]) -> list[Row]:
        """What became of each."""
        return bulk.record(self.desk, bodies, self.who)

    def standing(self, model: str) -> list[Row]:
        """All labels that hold."""
        return self.desk.asked.standing(self.desk.model(model) if model else None)


def _no_scores(*given: Any) -> Any:
    raise RaybrokerError("nothing is scored here")


def door(url: str, token: str, settings: Path, console: Console, write: bool = True) -> Door:
    """The service, or said in a line, the archive that the settings name."""
    try:
        return Service(Client(url, token))
    except SilentError as error:
        if not settings.exists():
            raise RaybrokerError(f"{error}; without it, --settings must name the archive") from None
    loaded = settings_file.load(settings)
    if not store.exists(loaded.archive.root):
        raise UnknownError(f"nothing answers at {url}, and there is no archive at {loaded.archive.root}")
    who = settings_file.tokens().get(token) or getpass.getuser()
    doing = f"labels go straight into the archive as {who}'s" if write else "labels are read from the archive"
    console.print(f"nothing answers at {url}: {doing}, {loaded.archive.root}", soft_wrap=True)
    return Archive(loaded, who)


def take_in(to: Door, path: Path, model: str, console: Console, err: Console) -> int:
    """Send a file's labels; how many rows gave none. Each of these is named, with its column where it has one."""
    counts: Counter[str] = Counter()
    rows = list(exchange.read(path, model))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(path.name, total=len(rows))
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            for broken in _send(to, batch, counts):
                if counts["named"] < SHOWN:
                    err.print(f"{path.name}: {broken}", markup=False, soft_wrap=True)
                counts["named"] += 1
            progress.advance(task, len(batch))
    broken_rows = counts["named"]
    if broken_rows > SHOWN:
        err.print(f"{path.name}: {broken_rows - SHOWN:,} more broken rows")
    console.print(
        f"{path.name}: {counts['new']:,} new, {counts['known']:,} known before, {broken_rows:,} broken"
    )
    return broken_rows


def _send(to: Door, batch: Sequence[FileRow | Broken], counts: Counter[str]) -> list[Broken]:
    """The broken rows of a batch, in their order; the others are counted."""
    good = [row for row in batch if isinstance(row, FileRow)]
    refused = []
    for row, result in zip(good, to.send([dict(row.body) for row in good]) if good else [], strict=True):
        if result.get("error"):
            refused.append(row.broken(result.get("field") or "", result["error"]))
        else:
            counts["known" if result["repeated"] else "new"] += 1
    broken = [row for row in batch if isinstance(row, Broken)] + refused
    return sorted(broken, key=lambda row: row.number)


def give_out(of: Door, path: Path, model: str, console: Console) -> None:
    """Write the labels that hold to a file."""
    labels = [_label(row) for row in of.standing(model)]
    exchange.write(path, labels)
    console.print(f"{path.name}: {len(labels):,} labels")


def _label(row: Row) -> Label:
    when = row["when"]
    return asked.label_of(row | {"when": datetime.fromisoformat(when) if isinstance(when, str) else when})


def undo(to: Door, count: int, model: str, console: Console) -> None:
    """Take back the last labels of this person that hold."""
    if not to.who:
        raise RaybrokerError("whose labels? --token, or RAYBROKER_TOKEN, says who you are")
    own = [row for row in to.standing(model) if row["who"] == to.who]
    chosen = own[: -count - 1 : -1]
    if not chosen:
        console.print(f"no label of {to.who} stands")
    for start in range(0, len(chosen), BATCH):
        batch = chosen[start : start + BATCH]
        for row, result in zip(batch, to.send([_withdrawal(row) for row in batch]), strict=True):
            said = row["label"] or exchange.CANT_TELL
            told = result.get("error") or "taken back"
            console.print(f"{row['alert_id']}, {said}: {told}", markup=False, soft_wrap=True)


def _withdrawal(row: Row) -> Row:
    own = hashlib.sha256(row["event_id"].encode()).hexdigest()[:32]
    body = {"event_id": f"undo-{own}", "alert_id": row["alert_id"], "label": None, "source": "cli"}
    return body | {"model": row["model"] or None, "replaces": row["event_id"], "withdrawn": True}
