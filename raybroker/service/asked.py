"""What was asked and what people said, in memory, as the event logs tell it: the queue and the progress of the night."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from raybroker.learning.labels import Label, Ledger, Raw, translate
from raybroker.service.changes import Changes
from raybroker.service.claims import Claim, Claims

Row = dict[str, Any]

CANT_TELL = "can't tell"
OPEN = ("open", "claimed")

logger = logging.getLogger(__name__)


class Asked:
    """Queries, labels and snapshots. What is said of a query last holds; labels may come twice. Threads may share it."""

    def __init__(self, raws: Mapping[str, Raw] | None = None) -> None:
        """`raws` is the `raw` map of each model that has one: raw labels answer its questions too."""
        self._ledger, self._raws = Ledger(), {name: raw for name, raw in (raws or {}).items() if raw}
        self._queries: dict[str, Row] = {}
        self._snapshots: dict[str, Row] = {}
        self._curves: dict[str, dict[int, Row]] = {}
        self.claims = Claims()
        self.changes = Changes()
        self._seen: dict[str, Row] = {}
        self._answered: frozenset[tuple[str, str]] | None = frozenset()
        self._lock = threading.RLock()

    def add_labels(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of the `labels` log."""
        with self._lock:
            for row in rows:
                if row["event_id"] not in self._ledger and self._add(label_of(row)):
                    self._seen[row["event_id"]] = dict(row)
            self._answered = None

    def _add(self, label: Label) -> bool:
        try:
            return self._ledger.add(label)
        except ValueError as error:  # written past the API; the others count all the same
            logger.warning("a label is left out: %s", error)
            return False

    def add_queries(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of the `queries` log; several may tell of one query. What is answered or withdrawn leaves the queue."""
        with self._lock:
            for row in rows:
                if row.get("state") == "claimed":  # opens nothing: the question may be gone by now
                    self.claims.add(row)
                else:
                    self._tell(row["query_id"], {k: v for k, v in row.items() if v is not None})

    def _tell(self, query_id: str, row: Row) -> None:
        """What is new of a question; whoever listens hears when it opens, and when it closes."""
        known = self._queries.get(query_id)
        now_open = row.get("state", "open") in OPEN
        if now_open:
            self._queries[query_id] = (known or {}) | row
        else:
            self._queries.pop(query_id, None)
        if now_open == (known is None):
            self.changes.add([(known or {}) | row])

    def add_snapshots(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of the `snapshots` log."""
        with self._lock:
            for row in rows:
                self._curves.setdefault(row["model"], {})[row["number"]] = _point(row)
                known = self._snapshots.get(row["model"])
                if known is None or row["number"] > known["number"]:
                    self._snapshots[row["model"]] = dict(row)

    def open(
        self, model: str | None = None, limit: int = 100, who: str | None = None, now: float = 0.0
    ) -> list[Row]:
        """The list to label, what to ask first at the top; whatever has a standing answer is not in it.

        For `who`, what others have claimed is not in it either.
        """
        with self._lock:
            answered = self._standing()
            found = [row for row in self._queries.values() if model in (None, row["model"])]
            found = [row for row in found if not answered & _targets(row)]
            if who is not None:
                found = [row for row in found if self.held(row, who, now) is None]
        return in_turn(found)[:limit]

    def held(self, row: Row, who: str, now: float) -> Claim | None:
        """The claim of somebody else than `who` on what a question asks; a raw label would answer other models' too."""
        models = self._raws if row["model"] in self._raws else (row["model"],)
        holders = (self.claims.holder({**row, "model": model}, now) for model in models)
        return next((claim for claim in holders if claim is not None and claim.who != who), None)

    def is_answered(self, row: Row) -> bool:
        """Whether somebody's answer to this question stands."""
        with self._lock:
            return bool(self._standing() & _targets(row))

    def _standing(self) -> frozenset[tuple[str, str]]:
        if self._answered is None:
            self._answered = frozenset(
                (model, name)
                for x in self._ledger.standing()
                for model in ([x.model] if x.model else self._raws)
                for name in (x.alert_id, x.object_id)
                if name
            )
        return self._answered

    def query(self, query_id: str) -> Row | None:
        """A query that is open, or was answered a moment ago."""
        return self._queries.get(query_id)

    def label(self, event_id: str) -> Label | None:
        """The label of that event id."""
        with self._lock:
            return self._ledger.get(event_id) if event_id in self._ledger else None

    def labels(self, object_id: str | None, alert_ids: Iterable[str]) -> list[Row]:
        """Every label of an object or of these alerts, in order of arrival; `standing` says which of them hold."""
        wanted = set(alert_ids)
        with self._lock:
            rows = [
                {**row, "standing": self._ledger.stands(row["event_id"])}
                for row in self._seen.values()
                if row["alert_id"] in wanted or (object_id is not None and row["object_id"] == object_id)
            ]
        return rows

    def recent(self, model: str | None, who: str | None, limit: int) -> list[Row]:
        """The last labels to arrive, newest first; `standing` says which of them hold.

        Of a model: also the raw labels that it translates.
        """
        wanted = {model, "" if model in self._raws else model}
        with self._lock:
            found: list[Row] = []
            for event_id, row in reversed(self._seen.items()):
                if (model is None or row["model"] in wanted) and who in (None, row["who"]):
                    found.append({**row, "standing": self._ledger.stands(event_id)})
                if len(found) == limit:
                    break
        return found

    def standing(self, model: str | None = None) -> list[Row]:
        """All labels that hold, in order of arrival; of one model ("" is raw labels), or of all."""
        with self._lock:
            return [self._seen[label.event_id] for label in self._ledger.standing(model)]

    def progress(self, since: float = 0.0) -> Row:
        """Standing labels since then (seconds since 1970), by model: by class, by person, and in all."""
        with self._lock:
            labels = [label for label in self._ledger.standing() if label.when >= since]
        told: dict[str, list[Label]] = {}
        for label in labels:
            for own in self._by_model(label):
                told.setdefault(own.model, []).append(own)
        return {model: _counted(told[model]) for model in sorted(told)}

    def answers(self, since: float) -> Counter[str]:
        """Standing answers to questions since then, by model: not what was said unasked, by a catalogue or a file."""
        with self._lock:
            labels = [label for label in self._ledger.standing() if label.query_id and label.when >= since]
        return Counter(own.model for label in labels for own in self._by_model(label))

    def _by_model(self, label: Label) -> list[Label]:
        """The label itself; a raw one as each model understands it."""
        if label.model:
            return [label]
        classes = {name: translate(label, name, None, raw) for name, raw in self._raws.items()}
        return [
            dataclasses.replace(label, model=name, label=found)
            for name, found in classes.items()
            if found or label.label is None
        ]

    def snapshot(self, model: str) -> Row | None:
        """The newest snapshot of a model."""
        return self._snapshots.get(model)

    def point(self, model: str, number: int) -> Row | None:
        """A snapshot by its number: labels, when, metrics, digest."""
        return self._curves.get(model, {}).get(number)

    def curve(self, model: str, limit: int) -> list[Row]:
        """The snapshots of a model by number; of more than `limit` evenly chosen ones, the newest always."""
        with self._lock:
            points = [own for _, own in sorted(self._curves.get(model, {}).items())]
        step = -(-len(points) // limit)
        return points[::-1][:: max(1, step)][::-1]


def in_turn(rows: Iterable[Row]) -> list[Row]:
    """The order to ask: by rank, where there are several models one of each in turn. `rank` becomes the place, from 0."""
    places: Counter[str] = Counter()
    found = []
    for row in sorted(rows, key=lambda row: (row.get("rank", 0), -row.get("snapshot", 0), row["query_id"])):
        found.append({**row, "rank": places[row["model"]]})
        places[row["model"]] += 1
    return sorted(found, key=lambda row: row["rank"])


def label_of(row: Mapping[str, Any]) -> Label:
    """A label from a row of the log, whose time is a timestamp there and seconds since 1970 here."""
    when = row.get("when")
    seconds = when.timestamp() if isinstance(when, datetime.datetime) else when
    return Label.of({**row, "when": seconds})


def row_of(label: Label, snapshot: int | None) -> Row:
    """The row of the `labels` log."""
    when = datetime.datetime.fromtimestamp(label.when, datetime.UTC)
    return {**label.row(), "when": when, "snapshot": snapshot}


def _point(row: Mapping[str, Any]) -> Row:
    own: Row = {name: row.get(name) for name in ("number", "labels", "when", "digest")}
    return {**own, "metrics": dict(row.get("metrics") or {})}


def _targets(row: Row) -> set[tuple[str, str]]:
    return {(row["model"], name) for name in (row["alert_id"], row.get("object_id")) if name}


def _counted(labels: list[Label]) -> Row:
    return {
        "labels": len(labels),
        "classes": Counter(label.label or CANT_TELL for label in labels),
        "people": Counter(label.who for label in labels),
    }
