"""Offsets without a row, and why: spans of offsets, and the log `gaps`.

A span is a pair (first, end) of offsets `first <= offset < end`; spans are an int64 array of shape (n, 2), sorted and
apart. An event of the log may have been written by a worker whose commit was refused: **a gap says only what has no
row, before the position**. Where events overlap, the earlier of `KINDS` counts.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raybroker.archive.events import EventLog
from raybroker.archive.table import AlertsTable
from raybroker.places import Place as Folder
from raybroker.stream.packets import Gap, Place

Spans = npt.NDArray[np.int64]
Offsets = npt.NDArray[np.int64]
NO_RECORD = "no record"
KINDS = ("before", "expired", NO_RECORD)


def spans(pairs: Iterable[tuple[int, int]]) -> Spans:
    """Spans from pairs in any order: empty ones are left out, those that touch or overlap are one.

    >>> spans([(5, 9), (0, 2), (8, 12), (3, 3)]).tolist()
    [[0, 2], [5, 12]]
    """
    return joined(np.array(list(pairs), np.int64).reshape(-1, 2))


def joined(given: Spans) -> Spans:
    """Spans in order, without empty ones; those that touch or overlap are one."""
    given = given[given[:, 0] < given[:, 1]]
    given = given[np.argsort(given[:, 0], kind="stable")]
    if not len(given):
        return given
    ends = np.maximum.accumulate(given[:, 1])
    new = np.concatenate([[True], given[1:, 0] > ends[:-1]])
    last = np.concatenate([new[1:], [True]])
    return np.stack([given[new, 0], ends[last]], axis=1)


def holes(offsets: Offsets, first: int, end: int) -> Spans:
    """What sorted offsets leave out between `first` and `end`.

    >>> holes(np.array([2, 3, 7]), 0, 9).tolist()
    [[0, 2], [4, 7], [8, 9]]
    """
    inside = offsets[np.searchsorted(offsets, first) : np.searchsorted(offsets, end)]
    starts, ends = np.concatenate([[first], inside + 1]), np.concatenate([inside, [end]])
    there = starts < ends
    return np.stack([starts[there], ends[there]], axis=1).astype(np.int64)


def parted(given: Spans, by: Spans) -> tuple[Spans, Spans]:
    """The parts of spans that are within `by`, and those that are not.

    >>> [part.tolist() for part in parted(spans([(0, 10)]), spans([(2, 4)]))]
    [[[2, 4]], [[0, 2], [4, 10]]]
    """
    edges = np.unique(np.concatenate([given.ravel(), by.ravel()]))
    left, right = edges[:-1], edges[1:]
    ours, theirs = _within(left, given), _within(left, by)
    pieces = np.stack([left, right], axis=1)
    return joined(pieces[ours & theirs]), joined(pieces[ours & ~theirs])


def _within(offsets: Offsets, of: Spans) -> npt.NDArray[np.bool_]:
    begun = np.searchsorted(of[:, 0], offsets, "right")
    return begun > np.searchsorted(of[:, 1], offsets, "right")


def size(given: Spans) -> int:
    """How many offsets there are in spans."""
    return int((given[:, 1] - given[:, 0]).sum())


def found(place: Place, offsets: Offsets, first: int, end: int, told: Sequence[Gap]) -> list[Gap]:
    """The gaps of a turn in one place: what its offsets (sorted) leave out of `first` to `end`, and why.

    `told` is what the source knows of it; the rest holds no record: a marker, an aborted or a compacted one.
    """
    rest, gaps = holes(offsets, first, end), []
    for kind in KINDS[:2]:
        why = spans((gap.first, gap.end) for gap in told if gap.place == place and gap.kind == kind)
        inside, rest = parted(rest, why)
        gaps += [Gap(place, *span, kind) for span in inside.tolist()]
    return gaps + [Gap(place, *span, NO_RECORD) for span in rest.tolist()]


def event(gap: Gap, now: datetime.datetime) -> dict[str, Any]:
    """The event of a gap; the same one whoever notes it."""
    place = gap.place
    return {
        "event_id": f"{place.app_id}/{gap.first}-{gap.end}/{gap.kind}",
        **place._asdict(),
        "first": gap.first,
        "end": gap.end,
        "kind": gap.kind,
        "when": now,
    }


def noted(root: Folder) -> list[Gap]:
    """All gaps of the log."""
    rows = EventLog(root, "gaps").read().to_pylist()
    return [
        Gap(
            Place(row["cluster"], row["topic"], row["topic_id"], row["partition"]),
            row["first"],
            row["end"],
            row["kind"],
        )
        for row in rows
    ]


def explained(given: Spans, gaps: Sequence[Gap]) -> tuple[dict[str, Spans], Spans]:
    """Holes by the kind of gap that explains them, and those that nothing explains."""
    by_kind, rest = {}, given
    for kind in KINDS:
        why = spans((gap.first, gap.end) for gap in gaps if gap.kind == kind)
        by_kind[kind], rest = parted(rest, why)
    return by_kind, rest


def counts(root: Folder, survey: str) -> dict[str, int]:
    """How many offsets of a survey have no row, by kind, for status pages: from the log alone, so it is quick.

    It counts what is before the stored positions, and does not look whether there is a row after all: `audit` does.
    """
    by_place: dict[Place, list[Gap]] = {}
    for gap in noted(root):
        by_place.setdefault(gap.place, []).append(gap)
    positions = AlertsTable(root, survey).positions([place.app_id for place in by_place])
    total = dict.fromkeys(KINDS, 0)
    for place, gaps in by_place.items():
        reached = spans([(0, positions.get(place.app_id, 0))])
        for kind, part in explained(reached, gaps)[0].items():
            total[kind] += size(part)
    return total


def offsets_of(rows: pa.Table, place: Place) -> Offsets:
    """The sorted offsets of a place's rows."""
    mine = rows.filter(
        pc.and_(pc.equal(rows["topic"], place.topic), pc.equal(rows["partition"], place.partition))
    )
    return np.sort(mine["offset"].to_numpy().astype(np.int64))
