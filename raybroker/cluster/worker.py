"""A worker does turns: poll, decode, run, archive, route, commit. Nothing is in flight between turns.

"No alert lost, none repeated" rests on an order. Each line has a test that dies just before and just after it.

When partitions are assigned (`Books.start`, called by the source):

1. Note the topics, with the ids they have now, in the log `topics`.
2. Take over: `init_transactions` fences whoever wrote the outputs of these places; then read how far they were sent.
3. Read the archive's positions. Only a commit that still finds them there will be accepted.
4. Send again, from the stored filter columns, what is archived but was not sent.
   Reading starts at the positions. What Kafka has deleted since is a gap: expired.

In a turn:

5. Poll packets, and how far each partition was read.
6. Write them, raw, as one segment file. An orphan segment is harmless.
7. Decode and run the pipeline. What cannot be decoded is dead, what a cut drops is rejected; both are rows.
8. Note in the log `gaps` the offsets that are passed over: expired, or no record. Mostly there are none.
9. Commit once: a row per packet together with the new position of each topic-partition.
   If another worker was first, drop everything and be assigned again.
10. Send what the filters let through, with the same positions, in one Kafka transaction per topic-partition.
11. Commit the source's offsets, as a hint to monitors.

Dying before line 9 leaves nothing that counts. Dying after it is mended by line 4 of the successor. Where the archive or
the output Kafka is away (a full disk), the turn is dropped, the partitions are paused but kept, and it is tried again:
that is trouble, and the fault of no packet.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker.alerts import Decoded, Packet
from raybroker.archive import segments
from raybroker.cluster import gaps, incidents
from raybroker.cluster.books import Books, Key, away, origin
from raybroker.cluster.incidents import Incident
from raybroker.cluster.received import Rows
from raybroker.cluster.recent import RECENT, Recent
from raybroker.errors import AwayError, FencedError, StreamError
from raybroker.pipeline import Outcome, Pipeline
from raybroker.scores.online import pinned
from raybroker.settings import TurnSettings
from raybroker.stream.packets import Gap, Place, Source
from raybroker.surveys import Survey

__all__ = ["Books", "Report", "Worker"]
HINT_SECONDS = 2.0
TROUBLE_SECONDS = (0.5, 1.0, 2.0, 4.0)  # between two tries while the archive or the output Kafka is away


@dataclass(frozen=True)
class Report:
    """What one turn did. Counts are of packets; `seconds` are by stage, steps as `step:NAME`."""

    taken: Mapping[Key, tuple[int, int]] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)  # scored, rejected, failed, dead, duplicate
    reasons: Mapping[str, int] = field(default_factory=dict)  # 'rejected: real', 'dead: ...'
    sent: Mapping[str, int] = field(default_factory=dict)  # by topic
    unknown_fields: Mapping[str, int] = field(default_factory=dict)
    expired: int = 0  # offsets that Kafka deleted before they were read
    no_record: int = 0  # offsets that never held a packet: markers, aborted or compacted records
    lag: int = 0  # packets that wait in all its partitions
    lags: Mapping[Key, int] = field(default_factory=dict)  # in each of them, those without any included
    drained: bool = False  # all is polled that was there when the partitions were assigned
    fenced: bool = False
    trouble: str = ""  # what is away, so that the turn must be tried again; for a person
    snapshots: Mapping[str, int] = field(default_factory=dict)
    incidents: Sequence[Incident] = ()  # for the log
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
        self,
        survey: Survey,
        pipeline: Pipeline,
        source: Source,
        books: Books,
        limits: TurnSettings,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.survey, self.pipeline, self.source = survey, pipeline, source
        self.books, self.limits = books, limits
        self.plan = pipeline.digest
        self.snapshots: dict[str, int] = {}
        self._packets: list[Packet] = []
        self._recent: dict[Key, Recent] = {}
        self._clock = Clock()
        self._now, self._hinted = now, 0.0
        self._trouble, self._tries, self._again_at = "", 0, 0.0

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
            try:
                if self._trouble and self._now() >= self._again_at:
                    self._begin_again()
                self._packets = self.source.poll(most, self.limits.seconds, int(self.limits.megabytes * 1e6))
            except (AwayError, FencedError) as error:  # fenced: another was assigned the same at that time
                self._packets = []
                if not self._trouble:  # else it is what we wait for already
                    self._wait(error)
        return taken(self._packets)

    def finish(self, dead: Mapping[tuple[str, int, int], str] | None = None) -> Report:
        """The second half: everything from segment to commit, for the packets that `take` polled."""
        packets, self._packets = self._packets, []
        if self._trouble:
            return self._idle(trouble=self._trouble)
        try:
            report = self._work(packets, dead or {})
        except FencedError:
            return self._fenced(self._idle(), taken(packets))
        except AwayError as error:
            self._wait(error)
            idle = self._idle(self._trouble)
            return replace(
                idle, incidents=(*idle.incidents, *incidents.of_turn("away", str(error), taken(packets)))
            )
        self._tries = self._tries if report.trouble else 0
        return report

    def _idle(self, trouble: str = "") -> Report:
        return Report(
            **self._waiting(),
            drained=not trouble and self._drained(),
            trouble=trouble,
            incidents=self._news(),
            snapshots=dict(self.snapshots),
            seconds=dict(self._clock.seconds),
            cpu_seconds=dict(self._clock.cpu_seconds),
        )

    def _fenced(self, report: Report, spans: incidents.Spans) -> Report:
        """Another worker was first: be assigned again, which reads the positions anew."""
        told = incidents.of_turn("fenced", "another worker was first; reading the positions anew", spans)
        try:
            self._begin_again()
        except AwayError as error:
            self._wait(error)
        noted = (*report.incidents, *told)
        return replace(report, fenced=True, drained=False, trouble=self._trouble, incidents=noted)

    def _wait(self, error: AwayError | FencedError) -> None:
        """Drop the turn, keep the partitions, and try again after a while, which is short: disks come back."""
        self._trouble = str(error)
        self._again_at = self._now() + TROUBLE_SECONDS[min(self._tries, len(TROUBLE_SECONDS) - 1)]
        self._tries += 1
        self.source.pause()

    def _begin_again(self) -> None:
        self._trouble = ""
        self._recent.clear()
        self.source.resume()
        self.source.rewind()

    def _work(self, packets: list[Packet], dead: Mapping[tuple[str, int, int], str]) -> Report:
        after = self.books.moved(self.source.reached)
        if not after:
            self._hint_again()
            return self._idle()
        unknown: Counter[str] = Counter()
        rows = self._archived(packets, dead, unknown)
        with self._clock("commit"), away("the archive cannot be written"):
            missing = self.books.missing(rows, after, self.source.gaps)
            self.books.note(missing)
            self.books.commit(rows, after)
        report = self._report(packets, rows, missing, unknown)
        self.source.gaps[:] = [gap for gap in self.source.gaps if gap.place not in after]
        return self._sent(rows, after, report)

    def _archived(
        self,
        packets: list[Packet],
        dead: Mapping[tuple[str, int, int], str],
        unknown: Counter[str],
    ) -> pa.Table:
        """The rows of the turn, whose packets are in a segment."""
        if not packets:
            return self.books.table.schema.empty_table()
        with self._clock("segment"), away("the archive cannot be written"):
            segment = segments.write(self.books.table.folder.parent, packets, self.survey.shared)
        pieces = []
        for first in range(0, len(packets), self.limits.batch):
            rows = self._rows(packets[first : first + self.limits.batch], dead, unknown)
            pieces.append(rows.add(segment, first))
            self.source.keep()
        return pa.concat_tables(pieces)

    def _sent(self, rows: pa.Table, after: Mapping[Place, int], report: Report) -> Report:
        """The rows are archived, whatever becomes of the outputs: what is not sent now is sent on the next assignment."""
        try:
            with self._clock("route"), away("outputs cannot be sent"):
                sent = self.books.route(rows, after)
        except FencedError:
            return self._fenced(report, report.taken)
        except AwayError as error:
            self._wait(error)
            noted = (*report.incidents, *incidents.of_turn("away", str(error), report.taken))
            return replace(report, drained=False, trouble=self._trouble, incidents=noted)
        self.source.commit(after)
        return replace(
            report,
            sent=sent,
            seconds=dict(self._clock.seconds),
            cpu_seconds=dict(self._clock.cpu_seconds),
        )

    def _rows(
        self, packets: list[Packet], dead: Mapping[tuple[str, int, int], str], unknown: Counter[str]
    ) -> Rows:
        """The archive's rows for one batch of packets."""
        rows = Rows(self.books.table.schema, packets, self.plan, self._origins())
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

    def _origins(self) -> dict[str, str]:
        return {topic: origin(place) for (topic, _), place in self.source.places.items()}

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
            with away("the archive cannot be read"):
                rows, _ = self.books.table.read(names, from_night=pc.min(nights).as_py())
            mine = (pc.field("topic") == key[0]) & (pc.field("partition") == key[1])
            known = rows.filter(mine)["alert_id"].drop_null()
            self._recent[key] = Recent(known[-RECENT:].to_pylist())
        return self._recent[key]

    def _report(
        self, packets: list[Packet], rows: pa.Table, missing: Sequence[Gap], unknown: Counter[str]
    ) -> Report:
        outcomes, reasons = rows["outcome"].to_pylist(), rows["reason"].to_pylist()
        return Report(
            taken=taken(packets),
            outcomes=Counter(outcomes),
            reasons=Counter(f"{o}: {r}" for o, r in zip(outcomes, reasons, strict=True) if r is not None),
            unknown_fields=unknown,
            expired=_size(missing, "expired"),
            no_record=_size(missing, gaps.NO_RECORD),
            drained=self._drained(),
            **self._waiting(),
            snapshots=dict(self.snapshots),
            incidents=(*self._news(), *incidents.of_rows(rows)),
            seconds=dict(self._clock.seconds),
            cpu_seconds=dict(self._clock.cpu_seconds),
        )

    def _hint_again(self) -> None:
        """While nothing comes, tell the stream where we are: a hint may be lost when partitions change hands."""
        if self._now() - self._hinted >= HINT_SECONDS:
            self._hinted = self._now()
            self.source.commit(self.books.positions(self.source.places.values()))

    def _news(self) -> tuple[incidents.Incident, ...]:
        """What is told with the next report, once."""
        told, self.books.news = tuple(self.books.news), []
        return told

    def _waiting(self) -> dict[str, Any]:
        lags = self.source.lags()
        return {"lag": sum(lags.values()), "lags": lags}

    def _drained(self) -> bool:
        try:
            return self.source.end_reached()
        except StreamError:  # the stream is away; the source says so and tries again
            return False

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


def _size(missing: Sequence[Gap], kind: str) -> int:
    return sum(gap.end - gap.first for gap in missing if gap.kind == kind)
