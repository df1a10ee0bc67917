"""What went wrong with which offsets: a line of the log for each, with topic, partition, offsets, survey and worker.

A worker notes incidents in its `Report`; whoever hears the report logs them, in the process whose log a person reads.
With `RAYBROKER_LOG_FORMAT=json` each line is one JSON object, and these facts are its keys.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from raybroker.cluster.gauges import class_of

if TYPE_CHECKING:
    import pyarrow as pa

OFFSETS = 20  # that one line names; `count` says how many there are
REASON_LETTERS = 300
STORED = ("dead", "failed")  # outcomes that are in the archive too, with their reason
Spans = Mapping[tuple[str, int], tuple[int, int]]  # first and last offset by topic and partition

log = logging.getLogger("raybroker.incidents")


class Incident(NamedTuple):
    """`what`: dead, failed (a step), fenced, away, lost, or recreated (a topic). `offsets` are single ones, or first and
    last of a turn."""

    what: str
    reason: str
    topic: str = ""
    partition: int = -1
    offsets: tuple[int, ...] = ()
    count: int = 0


def of_rows(rows: pa.Table) -> tuple[Incident, ...]:
    """Of a turn's rows: dead packets and failed steps, those alike together."""
    alike: dict[tuple[str, str, str, int], list[tuple[int, str]]] = {}
    names = ("outcome", "reason", "topic", "partition", "offset")
    outcomes = rows["outcome"].to_pylist()
    bad = [i for i, outcome in enumerate(outcomes) if outcome in STORED]
    for row in rows.select(list(names)).take(bad).to_pylist() if bad else ():
        reason = row["reason"] or ""
        key = row["outcome"], class_of(reason), row["topic"], row["partition"]
        alike.setdefault(key, []).append((row["offset"], reason))
    return tuple(
        Incident(what, found[0][1][:REASON_LETTERS], topic, partition, _first(found), len(found))
        for (what, _, topic, partition), found in alike.items()
    )


def _first(found: Sequence[tuple[int, str]]) -> tuple[int, ...]:
    return tuple(offset for offset, _ in found[:OFFSETS])


def of_turn(what: str, reason: str, spans: Spans) -> tuple[Incident, ...]:
    """Of a whole turn, one for each topic-partition that it had in hand."""
    return tuple(
        Incident(what, reason[:REASON_LETTERS], topic, partition, span, span[1] - span[0] + 1)
        for (topic, partition), span in spans.items()
    )


def tell(survey: str, worker: str, incidents: Iterable[Incident]) -> None:
    """A line for each. What is stored with its reason is only news; what is not is a warning."""
    for one in incidents:
        level = logging.INFO if one.what in STORED else logging.WARNING
        place = (
            f"{one.topic}[{one.partition}] {_shown(one)}" if one.offsets else one.topic or "nothing in hand"
        )
        facts = {"event": one.what, "survey": survey, "worker": worker, **_facts(one)}
        log.log(level, "%s: %s, %s: %s", *(one.what, worker, place, one.reason), extra={"facts": facts})


def lost(survey: str, worker: str, process: int, taken: Spans, reason: str) -> None:
    """A worker, or the trainer, died with these offsets in hand."""
    for one in of_turn("lost", reason, taken) or (Incident("lost", reason),):
        facts = {"event": "lost", "survey": survey, "worker": worker, "process": process, **_facts(one)}
        log.warning(
            "%s (process %d) is lost with %s in hand: %s",
            *(worker, process, f"{one.topic}[{one.partition}] {_shown(one)}" if one.topic else "nothing"),
            reason,
            extra={"facts": facts},
        )


def _facts(one: Incident) -> dict[str, Any]:
    if not one.offsets:
        return {"reason": one.reason} | ({"topic": one.topic} if one.topic else {})
    place = {"topic": one.topic, "partition": one.partition, "offsets": list(one.offsets), "count": one.count}
    return place | {"reason": one.reason}


def _shown(one: Incident) -> str:
    if one.what not in STORED:
        return f"offsets {one.offsets[0]} to {one.offsets[-1]}"
    more = f" and {one.count - len(one.offsets)} more" if one.count > len(one.offsets) else ""
    return f"offsets {', '.join(map(str, one.offsets))}{more}"
