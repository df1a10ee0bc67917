"""Event logs: labels, queries, snapshots, annotations, topics, gaps. Rows are added, never changed, and known by `event_id`.

An append is on the disk before it returns. Where an event id is there twice (a writer that did not check), readers
take the first.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa

from raybroker.archive import columns, delta
from raybroker.errors import ArchiveError, UnknownError, did_you_mean
from raybroker.places import Place

TIME = pa.timestamp("us", "UTC")
MEMBER = pa.struct([("member", pa.string()), ("probabilities", pa.list_(pa.float32()))])

LABELS = pa.schema(
    [
        ("event_id", pa.string()),  # made by the client: its idempotency key
        ("model", pa.string()),
        ("survey", pa.string()),
        ("alert_id", pa.string()),
        ("object_id", pa.string()),
        ("label", pa.string()),  # null: can't tell
        ("source", pa.string()),  # page, cli, oracle, tns
        ("who", pa.string()),  # from the token
        ("when", TIME),
        ("query_id", pa.string()),  # null: nobody asked
        ("snapshot", pa.int64()),  # whose score the labeller saw
        ("comment", pa.string()),
        ("replaces", pa.string()),  # event id of the label that this one corrects
        ("withdrawn", pa.bool_()),  # what it replaces no longer holds, and nothing takes its place
    ]
)
QUERIES = pa.schema(
    [
        ("event_id", pa.string()),
        (
            "query_id",
            pa.string(),
        ),  # the event id of the event that opened it: later ones tell what became of it
        ("model", pa.string()),
        ("survey", pa.string()),
        ("alert_id", pa.string()),
        ("object_id", pa.string()),
        ("strategy", pa.string()),
        ("reason", pa.string()),
        ("rank", pa.int32()),
        ("snapshot", pa.int64()),
        ("mjd", pa.float64()),  # of the alert
        ("ra", pa.float64()),
        ("dec", pa.float64()),
        ("magnitude", pa.float64()),  # of |flux|
        ("features", pa.map_(pa.string(), pa.float64())),  # as they were when the question was asked
        ("classes", pa.list_(pa.string())),  # the order of the probabilities
        ("probabilities", pa.list_(MEMBER)),
        ("claim", pa.string()),  # who is looking at it now
        ("until", TIME),  # then the claim ends
        ("when", TIME),
        ("state", pa.string()),  # open, claimed, answered or withdrawn
    ]
)
SNAPSHOTS = pa.schema(
    [
        ("event_id", pa.string()),
        ("model", pa.string()),
        ("number", pa.int64()),  # from `take_number`: never used twice
        ("digest", pa.string()),  # of its file under models/
        ("parent", pa.int64()),  # the number it was learned from
        ("labels", pa.int64()),  # how many it has learned
        (
            "learned",
            pa.list_(pa.string()),
        ),  # event ids heard since the parent, in that order; all of them if it is 0
        ("when", TIME),
        ("release", pa.string()),  # the MLflow run, where it is one
        ("metrics", pa.map_(pa.string(), pa.float64())),  # measured before learning: see docs/learning.md
        ("reference", pa.string()),  # digest of the sample that an anomaly forest grew on
        ("configuration", pa.string()),  # which challenger's, once one has taken over; empty: the model's own
    ]
)
ANNOTATIONS = pa.schema(
    [
        ("event_id", pa.string()),
        ("survey", pa.string()),
        ("alert_id", pa.string()),
        ("night", pa.int32()),
        ("step", pa.string()),
        ("version", pa.int32()),
        ("snapshot", pa.int64()),
        ("when", TIME),  # readers take the newest
        ("value", pa.string()),  # JSON
    ]
)
LATER = pa.schema(  # later alerts of objects that somebody labelled, which teach the same
    [
        ("event_id", pa.string()),  # model and alert id
        ("model", pa.string()),
        ("survey", pa.string()),
        ("alert_id", pa.string()),
        ("object_id", pa.string()),
        ("of", pa.string()),  # the alert id of the label
        ("when", TIME),
    ]
)
TOPICS = pa.schema(
    [
        ("event_id", pa.string()),  # cluster/topic_id
        ("cluster", pa.string()),
        ("topic", pa.string()),
        ("topic_id", pa.string()),
        ("first_seen", TIME),
    ]
)
GAPS = pa.schema(
    [
        ("event_id", pa.string()),  # made of place, first, end and kind
        ("cluster", pa.string()),
        ("topic", pa.string()),
        ("topic_id", pa.string()),
        ("partition", pa.int32()),
        ("first", pa.int64()),
        ("end", pa.int64()),  # the offset after the last
        ("kind", pa.string()),  # before, expired or no record
        ("when", TIME),
    ]
)
SCHEMAS: Mapping[str, pa.Schema] = {
    "labels": LABELS,
    "queries": QUERIES,
    "snapshots": SNAPSHOTS,
    "annotations": ANNOTATIONS,
    "later": LATER,
    "topics": TOPICS,
    "gaps": GAPS,
}
Event = Mapping[str, Any]


class EventLog:
    """One log as one process has it open: `EventLog(root, 'labels')`. Any number of processes may append."""

    def __init__(self, root: Place, name: str, schema: pa.Schema | None = None) -> None:
        if schema is None and name not in SCHEMAS:
            raise UnknownError(f"there is no event log '{name}'{did_you_mean(name, SCHEMAS)}")
        self.folder = root / name
        self.schema = columns.normal(SCHEMAS[name] if schema is None else schema)
        self._positions = delta.Positions(self.folder)
        self._lock = threading.Lock()  # between check and commit nobody may move the handle
        self._handle = delta.create(self.folder, self.schema)
        delta.grow(self.folder, self._handle, self.schema)
        self._known: set[str] = set()
        self._known_to = -1

    def append(self, events: Sequence[Event] | pa.Table) -> int:
        """Add events without looking whether their ids are there; returns a version that holds them."""
        rows = self._table(events)
        with self._lock:
            return delta.repeat(self.folder, self._handle, lambda: self._commit(rows, {}))

    def append_new(self, events: Sequence[Event] | pa.Table) -> list[str]:
        """Add the events whose ids are not there yet; returns these ids. Of many processes that add an id, one does."""
        rows = self._table(events)

        def attempt() -> list[str]:
            self._learn_known()
            new = rows.filter(self._is_new(rows["event_id"]))
            if len(new):
                self._commit(new, {"events": (self._positions.of(self._handle, "events") or 0) + 1})
            return list(new["event_id"].to_pylist())

        with self._lock:
            return delta.repeat(self.folder, self._handle, attempt)

    def tail(self, since: int, names: Iterable[str] | None = None) -> tuple[pa.Table, int]:
        """Events added after version `since` and the version up to which they reach; from -1, all of them.

        All of them come too where the log no longer reaches back to `since`: then some were seen before.
        """
        news = delta.added(self.folder, since)
        if news is not None:
            with suppress(FileNotFoundError):  # compacted and cleaned away since
                return self._read(news[0], names), news[1]
        handle = delta.open_table(self.folder)
        paths = [file.path for file in sorted(delta.live(handle), key=lambda f: f.written_ms)]
        return self._read(paths, names), handle.version()

    def read(self, names: Iterable[str] | None = None) -> pa.Table:
        """All events, each id once."""
        return self.tail(-1, names)[0]

    def take_number(self, sequence: str) -> int:
        """The next number of a sequence (a model's name): 1, 2, 3 ..., never given twice, to whichever process."""
        app_id = f"number/{sequence}"

        def attempt() -> int:
            number = (self._positions.of(self._handle, app_id) or 0) + 1
            delta.commit(self.folder, self._handle, [], {app_id: number})
            return number

        with self._lock:
            return delta.repeat(self.folder, self._handle, attempt)

    def _commit(self, rows: pa.Table, transactions: Mapping[str, int]) -> int:
        files = [delta.write_file(self.folder, rows)] if len(rows) else []
        return delta.commit(self.folder, self._handle, files, transactions)

    def _learn_known(self) -> None:
        """Ids up to the handle's version, or a little beyond: then the commit conflicts, and we look again."""
        seen, self._known_to = self.tail(self._known_to, ["event_id"])
        self._known.update(seen["event_id"].to_pylist())

    def _is_new(self, ids: pa.ChunkedArray) -> pa.Array:
        seen, answers = set(self._known), []
        for event_id in ids.to_pylist():
            answers.append(event_id not in seen)
            seen.add(event_id)
        return pa.array(answers, pa.bool_())

    def _read(self, paths: Sequence[str], names: Iterable[str] | None) -> pa.Table:
        wanted = columns.select(self.schema, names)
        extra = [] if "event_id" in wanted.names else [self.schema.field("event_id")]
        rows = delta.read(self.folder, paths, pa.schema([*wanted, *extra]))
        return rows.take(first_of_each(rows["event_id"])).select(wanted.names)

    def _table(self, events: Sequence[Event] | pa.Table) -> pa.Table:
        if isinstance(events, pa.Table):
            given = events
        else:
            given = pa.Table.from_pylist([self._checked(event) for event in events], schema=self.schema)
        if columns.missing(given.schema, pa.schema([self.schema.field("event_id")]), str(self.folder)):
            raise ArchiveError(f"events for {self.folder} have no 'event_id'")
        if new := columns.missing(self.schema, columns.normal(given.schema), str(self.folder)):
            raise ArchiveError(f"events for {self.folder} have a column '{new[0].name}' that the log has not")
        return columns.conform(given, self.schema)

    def _checked(self, event: Event) -> dict[str, Any]:
        if unknown := [key for key in event if key not in self.schema.names]:
            near = did_you_mean(unknown[0], self.schema.names)
            raise ArchiveError(f"an event for {self.folder} has '{unknown[0]}', which the log has not{near}")
        if not event.get("event_id"):
            raise ArchiveError(f"an event for {self.folder} has no 'event_id'")
        return dict(event)


def dicts(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as dicts, maps as dicts too."""
    return list(rows.to_pylist(maps_as_pydicts="strict"))


def known_topics(root: Place) -> list[dict[str, Any]]:
    """Every topic that was ever read: cluster, topic, topic_id, first_seen."""
    return dicts(EventLog(root, "topics").read())


def note_topics(root: Place, topics: Iterable[tuple[str, str, str]], now: datetime.datetime) -> list[str]:
    """Record (cluster, topic, topic id)s; returns the event ids of those that were never seen before."""
    names = ("cluster", "topic", "topic_id")
    events: list[dict[str, Any]] = [dict(zip(names, topic, strict=True)) for topic in topics]
    return EventLog(root, "topics").append_new(
        [{"event_id": topic_event(event), "first_seen": now, **event} for event in events]
    )


def topic_event(row: Mapping[str, Any]) -> str:
    """The event id of a topic as it was made once."""
    return f"{row['cluster']}/{row['topic_id']}"


def first_of_each(ids: pa.ChunkedArray) -> pa.Array:
    """Rows at which an id is met first, ascending."""
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return pa.array(np.sort(np.unique(codes, return_index=True)[1]), pa.int64())
