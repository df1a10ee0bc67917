"""The proof that no alert was lost: per topic-partition, every offset before the stored position is exactly one thing.

A row (scored, rejected, failed, dead or duplicate), or an offset of the log `gaps` (before, expired, no record). What is
twice, nowhere, or where it cannot be, is `wrong`. It reads five narrow columns, file by file, and keeps 8 bytes per row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from raybroker.archive.events import known_topics
from raybroker.archive.table import AlertsTable
from raybroker.cluster import gaps
from raybroker.cluster.gaps import Offsets, Spans
from raybroker.errors import ArchiveError, StreamError
from raybroker.settings import Settings, SurveySettings
from raybroker.stream.client import Cluster
from raybroker.stream.look import Look
from raybroker.stream.packets import Gap, Place

REPLAY = "replay:"
ANSWER_SECONDS = 5.0  # how long Kafka may take to answer at all
COLUMNS = ("topic", "partition", "offset", "outcome", "reason", "night", "stored", "origin")
OUTCOMES = ("scored", "rejected", "failed", "dead", "duplicate")
REASONS = 500  # distinct ones counted per survey; a step's error may hold a number
VERIFIED = 200  # spans without a record that are looked up in Kafka, per partition, the newest first
TWICE = "archived more than once"
NOWHERE = "neither a row nor a gap: lost"
BEYOND = "archived at or beyond the stored position"
NOT_THERE = "before the stored position, but Kafka has not had so many offsets"
DELETED = "deleted by Kafka before it was read; the next turn will note it as expired"
RECORD = "noted as 'no record', but Kafka has one there"


@dataclass(frozen=True)
class Wrong:
    """Offsets `first <= offset < end` about which the books do not hold."""

    survey: str
    topic: str
    partition: int
    first: int
    end: int
    what: str


@dataclass(frozen=True)
class Range:
    """One topic-partition: `counts` of the offsets from 0 to `end`, the stored position, by what became of them."""

    survey: str
    cluster: str
    topic: str
    topic_id: str
    partition: int
    first: int  # where reading began; what comes before is counted as 'before'
    end: int
    counts: Mapping[str, int]
    waiting: int | None = None  # offsets that Kafka has from the position on; None: not known


@dataclass(frozen=True)
class Audit:
    """What was found. The books hold where `wrong` is empty; `notes` say what could not be looked at."""

    ranges: Sequence[Range] = ()
    wrong: Sequence[Wrong] = ()
    notes: Sequence[str] = ()
    nights: Mapping[str, Mapping[int | None, Mapping[str, int]]] = field(default_factory=dict)  # by survey
    reasons: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # by survey: 'rejected: real'

    @property
    def counts(self) -> dict[str, int]:
        """Over all ranges; every kind is there, with 0 where there is none."""
        total = Counter(dict.fromkeys((*OUTCOMES, *gaps.KINDS), 0))
        for one in self.ranges:
            total.update(one.counts)
        return dict(total)


def audit(settings: Settings, *, kafka: bool = True) -> Audit:
    """Look through the archive of every survey of the settings, and compare it with Kafka unless it is away."""
    found = [_survey(settings, name, own, kafka) for name, own in settings.surveys.items()]
    return Audit(
        [one for made in found for one in made.ranges],
        [one for made in found for one in made.wrong],
        [one for made in found for one in made.notes],
        {name: of for made in found for name, of in made.nights.items()},
        {name: of for made in found for name, of in made.reasons.items()},
    )


def _survey(settings: Settings, name: str, own: SurveySettings, kafka: bool) -> Audit:
    root = settings.archive.root
    try:
        table = AlertsTable(root, name)
    except ArchiveError as error:
        return Audit(notes=[f"{name}: {error}"])
    scan = Scan(known_topics(root))
    scan.read(table)
    noted = _by_place(gaps.noted(root))
    known = {*scan.offsets, *noted}
    stored = table.positions(
        [place.app_id for place in known], fresh=False
    )  # of the version that was scanned
    known = {place for place in known if place in scan.offsets or place.app_id in stored}
    marks, notes = _marks(name, own, known, kafka)
    later = table.positions([place.app_id for place in known])
    books = [
        Book(
            name,
            place,
            scan.of(place),
            noted.get(place, []),
            stored.get(place.app_id, 0),
            marks.get(place),
            later.get(place.app_id, 0),
            scan.counts[place],
        )
        for place in sorted(known)
    ]
    wrong = [one for book in books for one in book.wrong()]
    try:
        wrong += _records(own, [book for book in books if book.marks])
    except StreamError as error:
        notes.append(f"{name}: offsets without a record not looked up: {error}")
    return Audit([book.range() for book in books], wrong, notes, {name: scan.nights}, {name: scan.reasons})


class Scan:
    """What the rows say: the offsets of each place, and counts. Rows that do not name their topic's id (older ones)
    belong to the topic that was the newest of its name when they were stored."""

    def __init__(self, topics: Sequence[Mapping[str, Any]]) -> None:
        self.offsets: dict[Place, list[Offsets]] = defaultdict(list)
        self.counts: dict[Place, Counter[str]] = defaultdict(Counter)
        self.nights: dict[int | None, Counter[str]] = defaultdict(Counter)
        self.reasons: Counter[str] = Counter()
        self._seen: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for row in sorted(topics, key=lambda row: row["first_seen"]):
            stamp = int(row["first_seen"].timestamp() * 1000)
            self._seen[row["topic"]].append((stamp, f"{row['cluster']}/{row['topic_id']}"))

    def read(self, table: AlertsTable) -> None:
        """All rows of the newest version, which the table's handle then stands at."""
        for rows in table.pieces(COLUMNS):
            self.add(rows)

    def add(self, rows: pa.Table) -> None:
        """Count some rows."""
        rows = self._named(rows)
        keys = ["origin", "topic", "partition"]
        groups = rows.group_by([*keys, "outcome", "reason", "night"]).aggregate([([], "count_all")])
        for group in groups.to_pylist():
            self._count(_place(group), group, group["count_all"])
        for place, offsets in _split(rows):
            self.offsets[place].append(offsets)

    def of(self, place: Place) -> Offsets:
        """Its offsets, sorted."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *self.offsets.get(place, [])]))

    def _count(self, place: Place, group: Mapping[str, Any], count: int) -> None:
        self.counts[place][group["outcome"]] += count
        self.nights[group["night"]][group["outcome"]] += count
        if group["reason"] is not None:
            reason = f"{group['outcome']}: {group['reason']}"
            full = len(self.reasons) >= REASONS and reason not in self.reasons
            self.reasons[f"{group['outcome']}: other reasons" if full else reason] += count

    def _named(self, rows: pa.Table) -> pa.Table:
        if not rows["origin"].null_count:
            return rows
        named = zip(
            rows["origin"].to_pylist(), rows["topic"].to_pylist(), rows["stored"].to_pylist(), strict=True
        )
        origins = [given or self._origin(topic, stored or 0) for given, topic, stored in named]
        return rows.set_column(rows.schema.names.index("origin"), "origin", pa.array(origins, pa.string()))

    def _origin(self, topic: str, stored: int) -> str:
        seen = self._seen.get(topic) or [(0, f"unknown/{topic}")]
        return next((name for stamp, name in reversed(seen) if stamp <= stored), seen[0][1])


def _place(row: Mapping[str, Any]) -> Place:
    cluster, _, topic_id = row["origin"].partition("/")
    return Place(cluster, row["topic"], topic_id, row["partition"])


def _split(rows: pa.Table) -> Iterator[tuple[Place, Offsets]]:
    """The offsets of each place among rows, vectorised: one sort, however many places there are."""
    names = [rows[name].combine_chunks().dictionary_encode() for name in ("origin", "topic", "partition")]
    codes = np.zeros(len(rows), np.int64)
    for column in names:
        codes = codes * len(column.dictionary) + column.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    offsets = rows["offset"].to_numpy().astype(np.int64)[order]
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    for start, piece in zip(starts, np.split(offsets, starts[1:]), strict=True):
        row = int(order[start])
        given = {name: rows[name][row].as_py() for name in ("origin", "topic", "partition")}
        yield _place(given), piece


def _by_place(noted: Iterable[Gap]) -> dict[Place, list[Gap]]:
    found: dict[Place, list[Gap]] = defaultdict(list)
    for gap in noted:
        found[gap.place].append(gap)
    return found


@dataclass(frozen=True)
class Book:
    """What is known of one place: sorted offsets of its rows, gaps, the position, and what Kafka says of it."""

    survey: str
    place: Place
    offsets: Offsets
    noted: Sequence[Gap]
    position: int
    marks: tuple[int, int] | None  # Kafka's low and high watermark, asked after the position was read
    later: int  # the position, read after that
    outcomes: Mapping[str, int]

    def gaps(self) -> tuple[dict[str, Spans], Spans]:
        """The offsets before the position that have no row, by kind; and those that nothing explains."""
        return gaps.explained(gaps.holes(np.unique(self.offsets), 0, self.position), self.noted)

    def range(self) -> Range:
        """The counts, which add up to the position where nothing is wrong."""
        by_kind, _ = self.gaps()
        counts = {**self.outcomes, **{kind: gaps.size(part) for kind, part in by_kind.items()}}
        before = by_kind["before"]
        first = int(before[0, 1]) if len(before) and not before[0, 0] else 0
        waiting = self.marks[1] - max(self.later, self.marks[0]) if self.marks else None
        return Range(
            self.survey, *self.place[:3], self.place.partition, first, self.position, counts, waiting
        )

    def wrong(self) -> list[Wrong]:
        """Everything about which rows, gaps, position and watermarks do not agree."""
        again = self.offsets[1:][np.diff(self.offsets) == 0]
        found = [(TWICE, _runs(again)), (NOWHERE, self.gaps()[1])]
        found.append((BEYOND, _runs(self.offsets[self.offsets >= self.position])))
        if self.marks:
            low, high = self.marks
            found.append((NOT_THERE, gaps.spans([(high, self.position)])))
            found.append((DELETED, gaps.spans([(self.later, low)])))
        return [self.says(first, end, what) for what, part in found for first, end in part.tolist()]

    def says(self, first: int, end: int, what: str) -> Wrong:
        """One range that is wrong."""
        return Wrong(self.survey, self.place.topic, self.place.partition, first, end, what)


def _runs(offsets: Offsets) -> Spans:
    """Sorted offsets as spans.

    >>> _runs(np.array([3, 4, 4, 9])).tolist()
    [[3, 5], [9, 10]]
    """
    return gaps.joined(np.stack([offsets, offsets + 1], axis=1))


def _marks(
    name: str, own: SurveySettings, places: Iterable[Place], kafka: bool
) -> tuple[dict[Place, tuple[int, int]], list[str]]:
    """Kafka's watermarks of the places that it still has, and what could not be compared."""
    if not kafka or own.servers.startswith(REPLAY):
        return {}, [f"{name}: not compared with Kafka: {own.servers if kafka else 'it was not asked'}"]
    try:
        there, notes = _there(name, own, places)
        with closing(Look(own.servers, own.kafka)) as look:
            return look.watermarks(there), notes
    except StreamError as error:
        return {}, [f"{name}: not compared with Kafka: {error}"]


def _there(name: str, own: SurveySettings, places: Iterable[Place]) -> tuple[list[Place], list[str]]:
    """The places whose topics are in the cluster under the same id, and a note for each that is not."""
    cluster = Cluster(own.servers, own.kafka)
    partitions = cluster.topics(ANSWER_SECONDS)
    named = {place.topic for place in places}
    ids = cluster.topic_ids(named & partitions.keys())
    there = [
        place
        for place in places
        if (cluster.cluster_id(), ids.get(place.topic)) == (place.cluster, place.topic_id)
        and place.partition < partitions[place.topic]
    ]
    gone = sorted(
        {(place.topic, place.topic_id) for place in places} - {(p.topic, p.topic_id) for p in there}
    )
    return there, [
        f"{name}: not compared with Kafka: topic {topic} (id {topic_id}) is not there any more"
        for topic, topic_id in gone
    ]


def _records(own: SurveySettings, books: Sequence[Book]) -> list[Wrong]:
    """Spans noted as 'no record' where Kafka, which still has them, gives one."""
    found: list[Wrong] = []
    if not books:
        return found
    with closing(Look(own.servers, own.kafka)) as look:
        for book in books:
            low = book.marks[0] if book.marks else 0
            empty = book.gaps()[0][gaps.NO_RECORD]
            kept = [(first, end) for first, end in empty.tolist() if first >= low][-VERIFIED:]
            found += [book.says(at, at + 1, RECORD) for at in look.records(book.place, kept)]
    return found
