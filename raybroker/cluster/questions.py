"""What the trainer asks, as events: written to the `queries` log before anybody sees them, then to a topic."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raybroker.archive.events import EventLog, dicts
from raybroker.cluster.pupil import Pupil
from raybroker.cluster.requests import Requests
from raybroker.learning.shortlist import Query
from raybroker.places import Place

STANDING = ("open", "claimed")
FIELDS = (
    "query_id",
    "model",
    "survey",
    "alert_id",
    "object_id",
    "mjd",
    "ra",
    "dec",
    "magnitude",
    "strategy",
    "reason",
    "rank",
    "snapshot",
)


class Questions:
    """All models' questions: what stands open, and the events that tell of it."""

    def __init__(self, root: Place, pupils: Mapping[str, Pupil], requests: Requests | None) -> None:
        self.log, self.pupils, self.requests = EventLog(root, "queries"), pupils, requests
        self._open: dict[str, Query] = {}
        self._events: list[dict[str, Any]] = []
        self._seen = -1

    def opened(self, queries: Sequence[Query], now: datetime) -> None:
        """New questions, to be written."""
        self._open.update({query.query_id: query for query in queries})
        self._events += [self._event(query, "open", now) for query in queries]

    def closed(self, query_ids: Sequence[str | None], state: str, now: datetime) -> None:
        """These are answered or withdrawn; what is not open is left alone."""
        gone = [self._open.pop(query_id) for query_id in query_ids if query_id in self._open]
        self._events += [self._event(query, state, now) for query in gone]

    def answered(self, model: str, alert_id: str, object_id: str | None, now: datetime) -> None:
        """Somebody spoke of this object, asked or not: its question is answered."""
        key = object_id or alert_id
        gone = [name for name, query in self._open.items() if (query.model, query.key) == (model, key)]
        self.closed(gone, "answered", now)

    def _event(self, query: Query, state: str, now: datetime) -> dict[str, Any]:
        said = [{"member": name, "probabilities": list(p)} for name, p in query.probabilities.items()]
        return {
            **{name: getattr(query, name) for name in FIELDS},
            "event_id": _new_id(query.query_id),
            "features": dict(query.features),
            "classes": list(self.pupils[query.model].settings.classes),
            "probabilities": said,
            "when": now,
            "state": state,
        }

    def write(self) -> None:
        """First the log, then the topic."""
        if self._events:
            self.log.append(self._events)
        if self.requests is not None:
            self.requests.send(self._events)
        self._events = []

    def close(self) -> None:
        """What the topic was not told yet, as far as that goes in a few seconds."""
        if self.requests is not None:
            self.requests.close()

    def follow_claims(self) -> None:
        """What people look at now keeps its place until they are done, in every model's list that asks of that object.

        A claim is of an object, as the service reads it: so a question that was asked anew meanwhile is held too, and
        one raw label answers them all.
        """
        names = ["event_id", "alert_id", "object_id", "state", "until"]
        rows, self._seen = self.log.tail(self._seen, names)
        for row in dicts(rows):
            if row["state"] == "claimed" and row["until"]:
                self._hold(row["object_id"] or row["alert_id"], row["until"].timestamp())

    def _hold(self, key: str, until: float) -> None:
        for pupil in self.pupils.values():
            for query in pupil.shortlist.open:
                if query.key == key:
                    pupil.shortlist.hold(query.query_id, until)

    def find(self, query_ids: set[str]) -> list[dict[str, Any]]:
        """The questions of these ids as they were asked, from the log."""
        if not query_ids:
            return []
        rows = self.log.read()
        wanted = rows.filter(pc.is_in(rows["query_id"], pa.array(sorted(query_ids), pa.string())))
        first: dict[str, dict[str, Any]] = {}
        for row in sorted(dicts(wanted), key=lambda row: row["when"]):
            if row["features"] is not None:  # a claim has none
                first.setdefault(row["query_id"], row)
        return list(first.values())

    def recall(self, now: datetime) -> None:
        """Withdraw what still stands of whoever was before us."""
        states: dict[str, str] = {}
        for row in sorted(dicts(self.log.read(["query_id", "state", "when"])), key=lambda row: row["when"]):
            states[row["query_id"]] = row["state"]
        standing = {query_id for query_id, state in states.items() if state in STANDING}
        self._events += [
            {**row, "state": "withdrawn", "when": now, "event_id": _new_id(row["query_id"])}
            for row in self.find(standing)
        ]
        self.write()


def _new_id(query_id: str) -> str:
    return f"{query_id}-{uuid.uuid4().hex[:12]}"
