"""Where each partition stands: asked by the source on every assignment, checked by every commit.

What it writes to may be away (a full disk, an output Kafka that restarts): then `AwayError` says so, nothing is half
done that a later try would not mend, and nobody is to blame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from raybroker.archive.events import EventLog, known_topics, note_topics, topic_event
from raybroker.archive.table import AlertsTable
from raybroker.cluster import gaps
from raybroker.cluster.incidents import Incident
from raybroker.errors import ArchiveError, AwayError, FencedError, StreamError
from raybroker.stream import outgoing
from raybroker.stream.client import recreated
from raybroker.stream.packets import Gap, Place, Sink

Key = tuple[str, int]


@contextmanager
def away(what: str) -> Iterator[None]:
    """Errors of the archive or the output Kafka as `AwayError`; that another worker was first stays what it is."""
    try:
        yield
    except FencedError:
        raise
    except (ArchiveError, StreamError, OSError) as error:
        raise AwayError(f"{what}: {error}") from error


class Books:
    """The archive's positions, and the outputs, of the places that one worker has."""

    def __init__(
        self, table: AlertsTable, sink: Sink | None = None, topics: Mapping[str, str] | None = None
    ) -> None:
        self.table, self.sink, self.topics = table, sink, dict(topics or {})
        self.root = table.folder.parent.parent
        self.assigned: set[Key] = set()  # since whoever looks last emptied it
        self.expected: dict[str, int | None] = {}  # by app id: what the archive must hold when we commit next
        self.news: list[Incident] = []  # what a person should hear of; whoever tells it empties this
        self._gaps: EventLog | None = None

    def start(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Take these places over: fence whoever had them, send what was left unsent, and say where to read on."""
        topics = sorted({(place.cluster, place.topic, place.topic_id) for place in places})
        with away("the archive cannot be used"):
            self._note_again(note_topics(self.root, topics, datetime.now(UTC)))
        self.assigned.update((place.topic, place.partition) for place in places)
        with away("outputs cannot be sent"):
            emitted = self.sink.emitted(places) if self.sink else {}
        with away("the archive cannot be used"):
            stored = self.table.positions([place.app_id for place in places])
            self.expected.update({place.app_id: stored.get(place.app_id) for place in places})
            at = {place: stored[place.app_id] for place in places if place.app_id in stored}
            self._send_again(
                {p: (emitted.get(p, 0), end) for p, end in at.items() if emitted.get(p, 0) < end}
            )
        return at

    def _note_again(self, new: Collection[str]) -> None:
        """Of topics that nobody read before: those of which another of that name was."""
        known = sorted(known_topics(self.root), key=lambda row: row["first_seen"]) if new else []
        old = {
            (row["cluster"], row["topic"]): row["topic_id"] for row in known if topic_event(row) not in new
        }
        for row in known:
            key = row["cluster"], row["topic"]
            if topic_event(row) in new and key in old:
                said = recreated(row["topic"], old[key], row["topic_id"])
                self.news.append(Incident("recreated", said, row["topic"]))

    def _send_again(self, unsent: Mapping[Place, tuple[int, int]]) -> None:
        """From the stored filter columns, so that a changed filter cannot change what was decided."""
        if not self.sink or not unsent:
            return
        rows = self._rows_of(unsent)
        known = {name: topic for name, topic in self.topics.items() if name in rows.schema.names}
        for place, (_, end) in unsent.items():
            self.route(rows, {place: end}, known)

    def _rows_of(self, unsent: Mapping[Place, tuple[int, int]]) -> pa.Table:
        """These offsets' rows, whole: first it is looked in few columns from which night on they are."""
        thin, _ = self.table.read([*PLACED, "night"])
        nights = [thin.filter(_between(thin, place, *span))["night"] for place, span in unsent.items()]
        first = pc.min(
            pa.chunked_array([piece for night in nights for piece in night.chunks], pa.int32())
        ).as_py()
        if first is None:  # nothing, or the dead, which no filter lets through
            return self.table.schema.empty_table()
        rows, _ = self.table.read(from_night=first)
        masks = [_between(rows, place, *span) for place, span in unsent.items()]
        wanted = masks[0]
        for mask in masks[1:]:
            wanted = pc.or_(wanted, mask)
        return rows.filter(wanted)

    def positions(self, places: Iterable[Place]) -> dict[Place, int]:
        """The archive's positions of these places, as far as it has any."""
        known = {place: self.expected.get(place.app_id) for place in places}
        return {place: position for place, position in known.items() if position is not None}

    def moved(self, reached: Mapping[Place, int]) -> dict[Place, int]:
        """The places that were read further than the archive says; those that it does not know are among them."""
        known = {place: self.expected.get(place.app_id) for place in reached}
        return {place: n for place, n in reached.items() if (before := known[place]) is None or n > before}

    def missing(self, rows: pa.Table, after: Mapping[Place, int], told: Sequence[Gap]) -> list[Gap]:
        """The offsets before the new positions that have neither a row yet nor one here, and why."""
        groups = rows.group_by(["topic", "partition"]).aggregate([([], "count_all")]).to_pylist()
        counted = {(group["topic"], group["partition"]): group["count_all"] for group in groups}
        found = []
        for place, end in after.items():
            first = self.expected[place.app_id] or 0
            if end - first != counted.get((place.topic, place.partition), 0):
                found += gaps.found(place, gaps.offsets_of(rows, place), first, end, told)
        return found

    def note(self, missing: Sequence[Gap]) -> None:
        """Into the log `gaps`, before the commit whose positions pass over them."""
        if missing:
            self._gaps = self._gaps or EventLog(self.root, "gaps")
            now = datetime.now(UTC)
            self._gaps.append([gaps.event(gap, now) for gap in missing])

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


PLACED = ("topic", "partition", "offset", "origin")


def origin(place: Place) -> str:
    """How rows name the topic that they came from: its event id in the log `topics`."""
    return f"{place.cluster}/{place.topic_id}"


def of_place(rows: pa.Table, place: Place) -> pa.ChunkedArray:
    """Which rows came from this topic-partition, as made once (older rows do not say, then the name counts)."""
    same = pc.fill_null(pc.equal(rows["origin"], origin(place)), True)
    return pc.and_(
        pc.and_(pc.equal(rows["topic"], place.topic), pc.equal(rows["partition"], place.partition)), same
    )


def _between(rows: pa.Table, place: Place, first: int, end: int) -> pa.ChunkedArray:
    offsets = rows["offset"]
    within = pc.and_(pc.greater_equal(offsets, first), pc.less(offsets, end))
    return pc.and_(of_place(rows, place), within)
