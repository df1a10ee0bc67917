"""What was asked and what people said, in memory, as the event logs tell it: the queue and the progress of the night."""

from __future__ import annotations

import datetime
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from raybroker.learning.labels import Label, Ledger

Row = dict[str, Any]

CANT_TELL = "can't tell"
OPEN = ("open", "claimed")


class Asked:
    """Queries, labels and snapshots. What is said of a query last holds; labels may come twice. Threads may share it."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._queries: dict[str, Row] = {}
        self._snapshots: dict[str, Row] = {}
        self._seen: dict[str, Row] = {}
        self._answered: frozenset[tuple[str, str]] | None = frozenset()
        self._lock = threading.RLock()

    def add_labels(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of the `labels` log."""
        with self._lock:
            for row in rows:
                if row["event_id"] not in self._ledger:
                    self._ledger.add(label_of(row))
                    self._seen[row["event_id"]] = dict(row)
            self._answered = None

    def add_queries(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of the `queries` log; several may tell of one query. What is answered or withdrawn leaves the queue."""
        with self._lock:
            for row in rows:
                name = row["query_id"]
                if (row.get("state") or "open") not in OPEN:
                    self._queries.pop(name, None)
                else:
                    told = {key: value for key, value in row.items() if value is not None}
                    self._queries[name] = self._queries.get(name, {}) | told

    def add_snapshots(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of the `snapshots` log."""
        with self._lock:
            for row in rows:
                known = self._snapshots.get(row["model"])
                if known is None or row["number"] > known["number"]:
                    self._snapshots[row["model"]] = dict(row)

    def open(self, model: str | None = None, limit: int = 100) -> list[Row]:
        """The list to label, what to ask first at the top; whatever has a standing answer is not in it."""
        with self._lock:
            answered = self._standing()
            found = [row for row in self._queries.values() if model in (None, row["model"])]
            found = [row for row in found if not answered & _targets(row)]
        return sorted(found, key=lambda row: (row.get("rank", 0), -row.get("snapshot", 0), row["query_id"]))[
            :limit
        ]

    def _standing(self) -> frozenset[tuple[str, str]]:
        if self._answered is None:
            labels = self._ledger.standing()
            pairs = [(x.model, name) for x in labels for name in (x.alert_id, x.object_id) if name]
            self._answered = frozenset(pairs)
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
            holds = {label.event_id for label in self._ledger.standing()}
            rows = [
                {**row, "standing": row["event_id"] in holds}
                for row in self._seen.values()
                if row["alert_id"] in wanted or (object_id is not None and row["object_id"] == object_id)
            ]
        return rows

    def progress(self, since: float = 0.0) -> Row:
        """Standing labels since then (seconds since 1970), by model: by class, by person, and in all."""
        with self._lock:
            labels = [label for label in self._ledger.standing() if label.when >= since]
        return {
            model: _counted([x for x in labels if x.model == model])
            for model in sorted({x.model for x in labels})
        }

    def snapshot(self, model: str) -> Row | None:
        """The newest snapshot of a model."""
        return self._snapshots.get(model)


def label_of(row: Mapping[str, Any]) -> Label:
    """A label from a row of the log, whose time is a timestamp there and seconds since 1970 here."""
    when = row.get("when")
    seconds = when.timestamp() if isinstance(when, datetime.datetime) else when
    return Label.of({**row, "when": seconds})


def row_of(label: Label, snapshot: int | None) -> Row:
    """The row of the `labels` log."""
    when = datetime.datetime.fromtimestamp(label.when, datetime.UTC)
    return {**label.row(), "when": when, "snapshot": snapshot}


def _targets(row: Row) -> set[tuple[str, str]]:
    return {(row["model"], name) for name in (row["alert_id"], row.get("object_id")) if name}


def _counted(labels: list[Label]) -> Row:
    return {
        "labels": len(labels),
        "classes": Counter(label.label or CANT_TELL for label in labels),
        "people": Counter(label.who for label in labels),
    }
