"""A worker does turns: poll, decode, run, archive, route, commit. Nothing is in flight between turns.

The order of a turn, on which "no alert lost" rests:

1. Poll packets from the source; they start where the archive's stored position says.
2. Write them, raw, as one segment file. An orphan segment is harmless.
3. Decode and run the pipeline. What cannot be decoded is dead, what a cut drops is rejected; both are rows.
4. Commit once: a row per offset together with the new position of each topic-partition.
   If another worker was first, drop everything and be assigned again.
5. Send what the filters let through, with the same positions, in one Kafka transaction per topic-partition.
   Dying before this is mended on the next assignment, from the stored filter columns.
6. Commit the source's offsets, as a hint to monitors.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker.alerts import Decoded, Packet
from raybroker.archive import segments
from raybroker.archive.events import note_topics
from raybroker.archive.table import AlertsTable
from raybroker.cluster.recent import RECENT, Recent
from raybroker.errors import FencedError, StreamError
from raybroker.pipeline import Outcome, Pipeline
from raybroker.scores.online import pinned
from raybroker.settings import TurnSettings
from raybroker.stream import outgoing
from raybroker.stream.packets import Place, Sink, Source
from raybroker.surveys import Survey

Key = tuple[str, int]
HINT_SECONDS = 2.0


class Books:
    """Where each partition stands: asked by the source on every assignment, checked by every commit.

    Outputs that a predecessor archived but did not send are sent from the archive first: see `start`.
    """

    def __init__(
        self, table: AlertsTable, sink: Sink | None = None, topics: Mapping[str, str] | None = None
    ) -> None:
        self.table, self.sink, self.topics = table, sink, dict(topics or {})
        self.assigned: set[Key] = set()  # since whoever looks last emptied it
        self.expected: dict[str, int | None] = {}  # by app id: what the archive must hold when we commit next

    def start(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Take these places over: fence whoever had them, send what was left unsent, and say where to read on."""
        topics = sorted({(place.cluster, place.topic, place.topic_id) for place in places})
        note_topics(self.table.folder.parent.parent, topics, datetime.now(UTC))
        self.assigned.update((place.topic, place.partition) for place in places)
        emitted = self.sink.emitted(places) if self.sink else {}
        stored = self.table.positions([place.app_id for place in places])
        self.expected.update({place.app_id: stored.get(place.app_id) for place in places})
        for place in places:
            position = stored.get(place.app_id)
            if self.sink and position is not None and emitted.get(place, 0) < position:
                self._send_again(place, emitted.get(place, 0), position)
        return {place: stored[place.app_id] for place in places if place.app_id in stored}

    def _send_again(self, place: Place, first: int, position: int) -> None:
        """From the stored filter columns, so that a changed filter cannot change what was decided."""
        rows, _ = self.table.read()
        rows = rows.filter(of_place(rows, place)).filter(pc.field("offset") >= first)
        known = {name: topic for name, topic in self.topics.items() if name in rows.schema.names}
        self.route(rows, {place: position}, known)

    def positions(self, places: Iterable[Place]) -> dict[Place, int]:
        """The archive's positions of these places, as far as it has any."""
        known = {place: self.expected.get(place.app_id) for place in places}
        return {place: position for place, position in known.items() if position is not None}

    def commit(self, rows: pa.Table, after: Mapping[Place, int]) -> None:
        """One commit: the rows and the new positions. FencedError where another worker was first."""
        new = {place.app_id: position for place, position in after.items()}
        self.table.append(rows, {app_id: self.expected[app_id] for app_id in new}, new)
        self.expected.update(new)

    def route(
        self, rows: pa.Table, after: Mapping[Place, int], topics: Mapping[str, str] | None = None
    ) -> Counter[str]:
        """Send what passes the filters; counts by topic."""
        sent: Counter[str] = Counter()
        for place, position in after.items() if self.sink else ():
            outputs = outgoing.route(
                rows.filter(of_place(rows, place)), self.topics if topics is None else topics
            )
            self.sink.write(place, outputs, position)
            sent.update({topic: len(found) for topic, found in outputs.items()})
        return sent


def of_place(rows: pa.Table, place: Place) -> pa.ChunkedArray:
    """Which rows came from this topic-partition."""
    return pc.and_(pc.equal(rows["topic"], place.topic), pc.equal(rows["partition"], place.partition))


@dataclass(frozen=True)
class Report:
    """What one turn did. Counts are of packets; `seconds` are by stage, steps as `step:NAME`."""

    taken: Mapping[Key, tuple[int, int]] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)  # scored, rejected, failed, dead, duplicate
    reasons: Mapping[str, int] = field(default_factory=dict)  # 'rejected: real', 'dead: ...'
    sent: Mapping[str, int] = field(default_factory=dict)  # by topic
    unknown_fields: Mapping[str, int] = field(default_factory=dict)
    expired: int = 0  # offsets that Kafka deleted before they were read
    lag: int = 0
    drained: bool = False  # all is polled that was there when the partitions were assigned
    fenced: bool = False
    snapshots: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)  # of the worker's own thread, by stage

    @property
    def alerts(self) -> int:
        """Packets received."""
        return sum(self.outcomes.values())


class Clock:
    """Seconds, and seconds of CPU, by stage, as a context manager per stage."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.cpu_seconds: Counter[str] = Counter()

    def __call__(self, stage: str) -> Clock:
        self._stage = stage
        return self

    def __enter__(self) -> None:
        self._start, self._cpu_start = time.perf_counter(), time.thread_time()

    def __exit__(self, *error: object) -> None:
        self.seconds[self._stage] += time.perf_counter() - self._start
        self.cpu_seconds[self._stage] += time.thread_time() - self._cpu_start


class Worker:
    """One reader of one survey's stream. Single-threaded; everything it needs is given."""

    def __init__(
        self, survey: Survey, pipeline: Pipeline, source: Source, books: Books, limits: TurnSettings
    ) -> None:
        self.survey, self.pipeline, self.source = survey, pipeline, source
        self.books, self.limits = books, limits
        self.plan = pipeline.digest
        self.snapshots: dict[str, int] = {}
        self._packets: list[Packet] = []
        self._recent: dict[Key, Recent] = {}
        self._clock = Clock()
        self._hinted = 0.0

    def turn(
        self, limit: int | None = None, dead: Mapping[tuple[str, int, int], str] | None = None
    ) -> Report:
        """One whole turn. `dead` are packets known to kill workers: archived unread, with that reason."""
        self.take(limit)
        return self.finish(dead)

    def pin(self, models: Mapping[str, tuple[int, Any]]) -> None:
        """Score with these (number, model) from now on."""
        steps = {step.name: step for step in self.pipeline.steps}
        changed = {
            name: pinned(steps[name], model, number)
            for name, (number, model) in models.items()
            if name in steps
        }
        self.pipeline = self.pipeline.replaced(changed)
        self.snapshots.update({name: models[name][0] for name in changed})

    def take(self, limit: int | None = None) -> dict[Key, tuple[int, int]]:
        """The first half: poll. Gives the offsets that `finish` will work on, so that a death can be placed."""
        self._clock = Clock()
        most = min(limit or self.limits.packets, self.limits.packets)
        with self._clock("poll"):
            self._packets = self.source.poll(most, self.limits.seconds, int(self.limits.megabytes * 1e6))
        return taken(self._packets)

    def finish(self, dead: Mapping[tuple[str, int, int], str] | None = None) -> Report:
        """The second half: everything from segment to commit, for the packets that `take` polled."""
        packets, self._packets = self._packets, []
        if not packets:
            self._hint_again()
            return Report(
                lag=self.source.lag(),
                drained=self._drained(),
                snapshots=dict(self.snapshots),
                seconds=dict(self._clock.seconds),
                cpu_seconds=dict(self._clock.cpu_seconds),
            )
        try:
            return self._work(packets, dead or {})
        except FencedError:
            self._recent.clear()
            self.source.rewind()
            return Report(fenced=True, lag=self.source.lag())

    def _work(self, packets: list[Packet], dead: Mapping[tuple[str, int, int], str]) -> Report:
        with self._clock("segment"):
            segment = segments.write(self.books.table.folder.parent, packets, self.survey.shared)
        unknown: Counter[str] = Counter()
        pieces = []
        for first in range(0, len(packets), self.limits.batch):
            rows = self._rows(packets[first : first + self.limits.batch], dead, unknown)
            pieces.append(rows.add(segment, first))
        rows = pa.concat_tables(pieces)
        after = {self.source.places[key]: last + 1 for key, (_, last) in taken(packets).items()}
        with self._clock("commit"):
            self.books.commit(rows, after)
        with self._clock("route"):
            sent = self.books.route(rows, after)
        self.source.commit(after)
        return self._report(packets, rows, sent, unknown)

    def _rows(
        self, packets: list[Packet], dead: Mapping[tuple[str, int, int], str], unknown: Counter[str]
    ) -> _Rows:
        """The archive's rows for one batch of packets."""
        rows = _Rows(self.books.table.schema, packets, self.plan)
        for i, packet in enumerate(packets):
            if reason := dead.get((packet.topic, packet.partition, packet.offset)):
                rows.dead(i, reason)
        living = np.array([i for i in range(len(packets)) if i not in rows.unread], dtype=np.int64)
        with self._clock("decode"):
            decoded = self.survey.decode([packets[i] for i in living])
        unknown.update(decoded.unknown_fields)
        for row, reason in decoded.bad:
            rows.dead(int(living[row]), reason)
        fresh = self._fresh(decoded.batch)
        outcome = self._run(decoded, fresh)
        places = living[decoded.rows]
        rows.duplicates(decoded.batch.filter(pa.array(~fresh)), places[~fresh])
        rows.outcome(decoded.batch.filter(pa.array(fresh)), places[fresh], outcome)
        return rows

    def _run(self, decoded: Decoded, fresh: np.ndarray) -> Outcome:
        bodies = [body for body, new in zip(decoded.bodies, fresh, strict=True) if new]
        batch = decoded.batch if fresh.all() else decoded.batch.filter(pa.array(fresh))
        with self._clock("pipeline"):
            outcome = self.pipeline.run(batch, bodies)
        self._clock.seconds.update({f"step:{name}": spent for name, spent in outcome.seconds.items()})
        return outcome

    def _fresh(self, batch: pa.RecordBatch) -> np.ndarray:
        """False for an alert id that this partition has already given."""
        while self.books.assigned:  # what another worker read of it meanwhile is not known here
            self._recent.pop(self.books.assigned.pop(), None)
        keys = list(zip(batch["topic"].to_pylist(), batch["partition"].to_pylist(), strict=True))
        ids, fresh = np.array(batch["alert_id"].to_pylist(), dtype=object), np.ones(len(keys), bool)
        for key in dict.fromkeys(keys):
            mine = np.array([other == key for other in keys])
            fresh[mine] = self._recently(key, batch["night"]).add(ids[mine])
        return fresh

    def _recently(self, key: Key, nights: pa.Array) -> Recent:
        if key not in self._recent:
            names = ["topic", "partition", "alert_id"]
            rows, _ = self.books.table.read(names, from_night=pc.min(nights).as_py())
            mine = (pc.field("topic") == key[0]) & (pc.field("partition") == key[1])
            known = rows.filter(mine)["alert_id"].drop_null()
            self._recent[key] = Recent(known[-RECENT:].to_pylist())
        return self._recent[key]

    def _report(
        self, packets: list[Packet], rows: pa.Table, sent: Counter[str], unknown: Counter[str]
    ) -> Report:
        outcomes, reasons = rows["outcome"].to_pylist(), rows["reason"].to_pylist()
        return Report(
            taken=taken(packets),
            outcomes=Counter(outcomes),
            reasons=Counter(f"{o}: {r}" for o, r in zip(outcomes, reasons, strict=True) if r is not None),
            sent=sent,
            unknown_fields=unknown,
            expired=self._expired(),
            drained=self._drained(),
            lag=self.source.lag(),
            snapshots=dict(self.snapshots),
            seconds=dict(self._clock.seconds),
            cpu_seconds=dict(self._clock.cpu_seconds),
        )

    def _hint_again(self) -> None:
        """While nothing comes, tell the stream where we are: a hint may be lost when partitions change hands."""
        if time.monotonic() - self._hinted >= HINT_SECONDS:
            self._hinted = time.monotonic()
            self.source.commit(self.books.positions(self.source.places.values()))

    def _drained(self) -> bool:
        try:
            return self.source.end_reached()
        except StreamError:  # the stream is away; the source says so and tries again
            return False

    def _expired(self) -> int:
        lost = sum(gone.end - gone.first for gone in self.source.expired)
        self.source.expired.clear()
        return lost

    def close(self) -> None:
        """Leave the group; nothing is in flight."""
        self.source.close()
        if self.books.sink:
            self.books.sink.close()


def taken(packets: Sequence[Packet]) -> dict[Key, tuple[int, int]]:
    """First and last offset of each topic-partition."""
    spans: dict[Key, tuple[int, int]] = {}
    for packet in packets:
        key = packet.topic, packet.partition
        first, last = spans.get(key, (packet.offset, packet.offset))
        spans[key] = min(first, packet.offset), max(last, packet.offset)
    return spans


class _Rows:
    """Collects the archive's rows of one batch of packets: every packet becomes exactly one."""

    def __init__(self, schema: pa.Schema, packets: list[Packet], plan: str) -> None:
        self.schema, self.packets, self.plan = schema, packets, plan
        self.unread: set[int] = set()
        self._tables: list[pa.Table] = []
        self._dead: list[tuple[int, str]] = []

    def dead(self, place: int, reason: str) -> None:
        self.unread.add(place)
        self._dead.append((place, reason))

    def duplicates(self, batch: pa.RecordBatch, places: np.ndarray) -> None:
        self._add(batch, places, ["duplicate"] * len(places), [None] * len(places))

    def outcome(self, batch: pa.RecordBatch, places: np.ndarray, outcome: Outcome) -> None:
        rejected = sorted(outcome.rejected_by)
        names = [outcome.rejected_by[row] for row in rejected]
        self._add(
            batch.take(pa.array(rejected, pa.int64())), places[rejected], ["rejected"] * len(names), names
        )
        said: dict[int, list[str]] = {}
        for failure in outcome.failures:
            said.setdefault(failure.row, []).append(f"{failure.step}: {failure.error}")
        reasons = ["; ".join(said[row]) if row in said else None for row in outcome.kept_rows.tolist()]
        results = ["scored" if reason is None else "failed" for reason in reasons]
        self._add(outcome.kept, places[outcome.kept_rows], results, reasons)

    def _add(
        self, batch: pa.RecordBatch, places: np.ndarray, outcomes: Sequence[str], reasons: Sequence[Any]
    ) -> None:
        if len(places):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            self._tables.append(self._table(columns, places.tolist(), outcomes, reasons))

    def _table(
        self, columns: Mapping[str, Any], places: list[int], outcomes: Sequence[str], reasons: Sequence[Any]
    ) -> pa.Table:
        packets = [self.packets[place] for place in places]
        own = {
            "outcome": outcomes,
            "reason": reasons,
            "position": places,
            "plan": [self.plan] * len(places),
            "published": [packet.timestamp_ms for packet in packets],
            "stored": [int(time.time() * 1000)] * len(places),
            "topic": [packet.topic for packet in packets],
            "partition": [packet.partition for packet in packets],
            "offset": [packet.offset for packet in packets],
        }
        arrays = [_array(own.get(f.name, columns.get(f.name)), f.type, len(places)) for f in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def add(self, segment: str, first: int) -> pa.Table:
        """The finished rows, in the order of the packets; `first` is the batch's place in the segment."""
        if self._dead:
            places, reasons = zip(*self._dead, strict=True)
            self._tables.append(self._table({}, list(places), ["dead"] * len(places), reasons))
        table = pa.concat_tables(self._tables).sort_by("position")
        position = pc.add(table["position"], pa.scalar(first, pa.int32()))
        names = table.schema.names
        table = table.set_column(names.index("position"), self.schema.field("position"), position)
        column = pa.chunked_array([pa.repeat(pa.scalar(segment), len(table))])
        return table.set_column(names.index("segment"), self.schema.field("segment"), column)


def _array(given: Any, kind: pa.DataType, rows: int) -> pa.Array:
    if given is None:
        return pa.nulls(rows, kind)
    return given if isinstance(given, pa.Array) else pa.array(given, kind)
