"""The trainer: follows the archive, learns from labels, publishes snapshots, and asks.

A turn reads what is new in `alerts` and `labels`, learns, and then, for each model that changed: stores the model's
file, takes a number, writes the snapshot's row (with the labels learned since the last, in their order), and only then
tells the workers. Questions are written to `queries` before anybody can see them.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raybroker.archive import provenance
from raybroker.archive.events import EventLog, dicts
from raybroker.archive.lookup import Lookup
from raybroker.archive.table import AlertsTable
from raybroker.cluster.lesson import Lesson
from raybroker.cluster.pupil import Asked, Pupil
from raybroker.errors import RaybrokerError
from raybroker.learning.labels import Label
from raybroker.learning.registry import Registry, Release
from raybroker.learning.shortlist import Candidate, Query
from raybroker.pipeline import Pipeline
from raybroker.scores.online import features_table
from raybroker.settings import LearningSettings
from raybroker.surveys import Survey

log = logging.getLogger("raybroker")

IDLE_SECONDS = 0.1
ASK_SECONDS = 5.0  # how often the list is chosen anew while no label comes
HEAD = ("outcome", "survey", "alert_id", "object_id", "mjd")


@dataclass
class Newest:
    """The snapshot of a model that stands now."""

    number: int = 0
    digest: str = ""
    when: float = 0.0
    lessons: int = 0  # how many labels it and its parents record
    released: int = 0  # its number at the last release
    asked: float = 0.0


@dataclass(frozen=True)
class Stream:
    """How the trainer reads one survey: its table, and how to compute a rejected alert's features again."""

    survey: Survey
    pipeline: Pipeline
    table: AlertsTable


class Trainer:
    """All models of the settings. `turn` is called again and again; nothing is in flight between two calls."""

    def __init__(
        self,
        root: Path,
        streams: Mapping[str, Stream],
        pupils: Iterable[Pupil],
        registry: Registry | None,
        settings: LearningSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root, self.streams, self.registry, self.settings, self.clock = (
            root,
            streams,
            registry,
            settings,
            clock,
        )
        self.pupils = {pupil.name: pupil for pupil in pupils}
        self.newest = {name: Newest() for name in self.pupils}
        self.labels, self.queries = EventLog(root, "labels"), EventLog(root, "queries")
        self.snapshots, self.lookup = EventLog(root, "snapshots"), Lookup(root)
        self._seen = dict.fromkeys(streams, -1)
        self._labels_seen = -1
        self._events: list[dict[str, Any]] = []
        self._asked: dict[str, Query] = {}
        self._released = clock()
        self._plan = next((stream.pipeline.digest for stream in streams.values()), "")
        self._resume()

    def turn(self) -> Lesson:
        """Read, learn, publish, ask."""
        start = time.perf_counter()
        arrived = sum(self._follow(name) for name in self.streams)
        learned = self._learn()
        for pupil in self.pupils.values():
            self._publish(pupil)
            self._ask(pupil)
        self._write_queries()
        if self.clock() - self._released > self.settings.release_minutes * 60:
            self.release("clock")
        if not arrived and not learned:
            time.sleep(IDLE_SECONDS)
        return self._lesson(learned, time.perf_counter() - start)

    def _lesson(self, learned: int, seconds: float) -> Lesson:
        pupils = self.pupils.items()
        return Lesson(
            snapshots={name: (new.number, new.digest) for name, new in self.newest.items() if new.digest},
            labels={name: pupil.learner.learned for name, pupil in pupils},
            open={name: len(pupil.shortlist.open) for name, pupil in pupils},
            pool={name: len(pupil.shortlist) for name, pupil in pupils},
            learned=learned,
            seconds={"trainer": seconds},
        )

    # What arrives.

    def _follow(self, survey: str) -> int:
        """New alerts into every pool."""
        stream = self.streams[survey]
        names = [*HEAD, *self._steps(stream)]
        rows, self._seen[survey] = stream.table.tail(self._seen[survey], names)
        rows = rows.filter(pc.is_in(rows["outcome"], pa.array(["scored", "failed"])))
        if not rows.num_rows:
            return 0
        now = pc.max(rows["mjd"]).as_py() or 0.0
        for pupil in self.pupils.values():
            newest = rows.slice(max(0, rows.num_rows - 4 * pupil.settings.pool))
            gone = pupil.consider(candidates(newest, pupil.columns), now)
            self._events += [self._closed(query_id, "withdrawn") for query_id in gone]
        return rows.num_rows

    def _steps(self, stream: Stream) -> list[str]:
        """The columns that hold features: those that the models name."""
        wanted = {path.partition(".")[0] for pupil in self.pupils.values() for path in pupil.columns}
        return [name for name in stream.table.schema.names if name in wanted and name not in HEAD]

    def _learn(self) -> int:
        """New labels into ledgers and learners; one that cannot be learned is said and stays in the ledger."""
        rows, self._labels_seen = self.labels.tail(self._labels_seen)
        heard = 0
        for row in dicts(rows):
            pupil = self.pupils.get(row["model"])
            if pupil is None or row["event_id"] in pupil.ledger:
                continue
            heard += 1
            try:
                self._teach(pupil, Label.of(row))
            except (RaybrokerError, ValueError) as error:
                log.warning("label %s of %s is not learned: %s", row["event_id"], row["alert_id"], error)
        return heard

    def _teach(self, pupil: Pupil, label: Label) -> None:
        undoes, asked = pupil.ledger.undoes(label), self._asked_of(pupil, label)
        pupil.hear(label)
        if label.query_id in self._asked:
            self._events.append(self._closed(label.query_id, "answered"))
        if undoes:
            pupil.relearn(label, asked)
            self.newest[pupil.name].lessons = -1  # the next snapshot records the whole order
        else:
            pupil.learn(label, asked)

    def _asked_of(self, pupil: Pupil, label: Label) -> Asked:
        """The features that the labeller was asked about, or for an alert never asked, those in the archive."""
        return pupil.known(label) or self._archived(pupil, label.alert_id)

    def _archived(self, pupil: Pupil, alert_id: str) -> Asked:
        row = self.lookup.alert(alert_id)
        columns = row if row["outcome"] in ("scored", "failed") else self._computed(row["survey"], alert_id)
        return Asked({path: _at(columns, path) for path in pupil.columns}, row["mjd"])

    def _computed(self, survey: str, alert_id: str) -> dict[str, Any]:
        """A rejected alert's columns, computed now from its packet, with the cuts left out."""
        stream = self.streams[survey]
        decoded = stream.survey.decode([self.lookup.packet(alert_id)])
        return stream.pipeline.without_cuts().run(decoded.batch, decoded.bodies).kept.to_pylist()[0]

    # What leaves.

    def _publish(self, pupil: Pupil) -> None:
        """A new snapshot, if the model changed and the last is old enough."""
        new = self.newest[pupil.name]
        if new.digest and (
            new.lessons == len(pupil.lessons) or self.clock() - new.when < self.settings.snapshot_seconds
        ):
            return
        new.digest = provenance.put(self.root, pupil.frozen.snapshot())
        parent, new.number = new.number, self.snapshots.take_number(pupil.name)
        whole = new.lessons < 0
        self.snapshots.append([self._snapshot_row(pupil, new, 0 if whole else parent, max(0, new.lessons))])
        new.lessons, new.when, new.asked = len(pupil.lessons), self.clock(), 0.0

    def _snapshot_row(self, pupil: Pupil, new: Newest, parent: int, since: int) -> dict[str, Any]:
        return {
            "event_id": f"{pupil.name}-{new.number}",
            "model": pupil.name,
            "number": new.number,
            "digest": new.digest,
            "parent": parent,  # 0: `learned` below is the whole order, from a model that knew nothing
            "labels": pupil.learner.learned,
            "learned": pupil.lessons[since:],
            "when": self._now(),
        }

    def _ask(self, pupil: Pupil) -> None:
        new = self.newest[pupil.name]
        wanting = len(pupil.shortlist.open) < min(pupil.settings.queries, len(pupil.shortlist))
        patience = 1.0 if wanting else ASK_SECONDS
        if not len(pupil.shortlist) or self.clock() - new.asked < patience:
            return
        choice = pupil.choose(new.number)
        new.asked = self.clock()
        self._asked.update({query.query_id: query for query in choice.opened})
        self._events += [self._event(query, "open") for query in choice.opened]
        self._events += [self._closed(query.query_id, "withdrawn") for query in choice.withdrawn]

    def _closed(self, query_id: str, state: str) -> dict[str, Any]:
        """The last event of a question; nothing is kept of it but the features in its pupil's hands."""
        return self._event(self._asked.pop(query_id), state)

    def _event(self, query: Query, state: str) -> dict[str, Any]:
        by_member = [{"member": name, "probabilities": list(p)} for name, p in query.probabilities.items()]
        pupil = self.pupils[query.model]
        asked = pupil.asked.get(query.alert_id)
        return {
            **{name: getattr(query, name) for name in QUERY_FIELDS},
            "event_id": _new_id(query.query_id),
            "mjd": asked.mjd if asked else None,
            "features": dict(query.features),
            "classes": list(pupil.settings.classes),
            "probabilities": by_member,
            "when": self._now(),
            "state": state,
        }

    def _write_queries(self) -> None:
        if self._events:
            self.queries.append(self._events)
            self._events = []

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    def release(self, why: str) -> None:
        """Log every model that changed since its last release; MLflow being away costs nothing but a late run."""
        self._released = self.clock()
        for name, pupil in self.pupils.items():
            new = self.newest[name]
            if self.registry is not None and new.number != new.released and pupil.learner.learned:
                self.registry.release(release_of(pupil, new, why, self._plan))
                new.released = new.number

    # What was.

    def _resume(self) -> None:
        """Learn again what the snapshots record, in that order; withdraw the questions of whoever was before us."""
        labels = {row["event_id"]: Label.of(row) for row in dicts(self.labels.read())}
        self._recall_queries()
        for row in sorted(dicts(self.snapshots.read()), key=lambda row: row["number"]):
            if row["model"] in self.pupils:
                self._recall(self.pupils[row["model"]], row, labels)

    def _recall(self, pupil: Pupil, row: Mapping[str, Any], labels: Mapping[str, Label]) -> None:
        new = self.newest[pupil.name]
        if row["parent"] == 0:
            pupil.begin()
        for event_id in row["learned"] or ():
            label = labels[event_id]
            pupil.hear(label)
            pupil.learn(label, self._asked_of(pupil, label))
        new.number, new.digest, new.lessons = row["number"], row["digest"], len(pupil.lessons)
        new.released = new.number  # by whoever was before us, or with the next change

    def _recall_queries(self) -> None:
        last: dict[str, dict[str, Any]] = {}
        for row in dicts(self.queries.read()):
            last[row["query_id"]] = row
            if row["model"] in self.pupils:
                asked = Asked(row["features"], row["mjd"])
                self.pupils[row["model"]].asked[row["alert_id"]] = asked
        old = [row for row in last.values() if row["state"] in ("open", "claimed")]
        now = self._now()
        if old:
            self.queries.append(
                [
                    row | {"state": "withdrawn", "when": now, "event_id": _new_id(row["query_id"])}
                    for row in old
                ]
            )

    def close(self) -> None:
        """A last release, and the registry's queue emptied as far as it goes in a few seconds."""
        self.release("the end of the run")
        if self.registry is not None:
            self.registry.close(7.0)


QUERY_FIELDS = (
    "query_id",
    "model",
    "survey",
    "alert_id",
    "object_id",
    "strategy",
    "reason",
    "rank",
    "snapshot",
)


def candidates(rows: pa.Table, columns: Iterable[str]) -> list[Candidate]:
    """Rows of the archive as candidates for a pool."""
    whole = {name: rows[name].combine_chunks() for name in rows.schema.names}
    features = features_table(whole, columns).to_pylist()
    head = zip(
        *(rows[name].to_pylist() for name in ("survey", "alert_id", "object_id", "mjd")),
        features,
        strict=True,
    )
    return [
        Candidate(survey, alert_id, object_id, mjd, found) for survey, alert_id, object_id, mjd, found in head
    ]


def _new_id(query_id: str) -> str:
    return f"{query_id}-{uuid.uuid4().hex[:12]}"


def _at(row: Mapping[str, Any], path: str) -> float | None:
    """One number of a row by dotted path; None where it, or a parent, is not known."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def release_of(pupil: Pupil, new: Newest, why: str, plan: str) -> Release:
    """What MLflow is told of a model."""
    settings, losses = pupil.settings, pupil.progress.losses
    weights = dict(zip(settings.members, pupil.learner.weights.tolist(), strict=True))
    curve = [(i + 1.0, mean) for i, mean in enumerate(running_means(losses))]
    counts = Counter(label.label for label in pupil.ledger.to_learn(pupil.name))
    return Release(
        model=pupil.name,
        snapshot=new.number,
        digest=new.digest,
        plan=plan,
        state=pupil.frozen.snapshot(),
        when=time.time(),
        params={
            "classes": ", ".join(settings.classes),
            "members": ", ".join(settings.members),
            "strategy": settings.strategy,
            "columns": ", ".join(pupil.columns),
            "seed": settings.seed,
        },
        metrics={
            "labels": pupil.learner.learned,
            "prequential_log_loss": curve[-1][1] if curve else 0.0,
            **{f"weight.{name}": weight for name, weight in weights.items()},
            **{f"labels.{_key(name)}": count for name, count in counts.items() if name},
        },
        curves={"prequential_log_loss": curve},
        tags={"why": why},
    )


def running_means(values: Sequence[float], window: int = 50) -> list[float]:
    """The mean of the last `window` values, at each."""
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def _key(name: str) -> str:
    """A class as part of a metric's name: MLflow takes letters, digits and a few signs."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)
