"""The trainer: follows the archive, learns from labels, publishes snapshots, and asks.

A turn reads what is new in `alerts` and `labels`, learns, and then, for each model that changed: stores the model's
file, takes a number, writes the snapshot's row (with the labels heard since the last, in their order), and only then
tells the workers. Questions are written to `queries` before anybody can see them.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raybroker.archive import provenance
from raybroker.archive.events import EventLog, dicts
from raybroker.archive.lookup import Lookup
from raybroker.cluster.catalogue_labels import Watch
from raybroker.cluster.later import Later, Told
from raybroker.cluster.lesson import Lesson
from raybroker.cluster.pupil import Pupil
from raybroker.cluster.questions import Questions
from raybroker.cluster.releases import release_of
from raybroker.cluster.requests import Requests
from raybroker.cluster.rows import (
    Dates,
    Stream,
    candidates,
    first_night,
    from_bytes,
    kept,
    to_bytes,
    value_at,
    whole,
)
from raybroker.cluster.states import States
from raybroker.cluster.teaching import OWN, Asked
from raybroker.errors import RaybrokerError, UnknownError
from raybroker.learning.labels import Label
from raybroker.learning.registry import Registry
from raybroker.places import Place
from raybroker.settings import LearningSettings

log = logging.getLogger("raybroker")

IDLE_SECONDS = 0.1
IDLE_REMOTE_SECONDS = 1.0  # where each look at the archive is a request
CATALOGUE_SECONDS = 20.0
ASK_SECONDS = 5.0  # how often the list is chosen anew while no label comes
HEAD = ("outcome", "survey", "alert_id", "object_id", "mjd", "ra", "dec", "flux")
ROWS = 4  # rows that are read at once for each place in a pool: an object has several
State = tuple[int, str, str]  # labels heard, digest of the background, the configuration that serves


@dataclass
class Newest:
    """The snapshot of a model that stands now."""

    number: int = 0
    digest: str = ""
    when: float = 0.0
    state: State = (0, "", "")
    released: int = 0  # its number at the last release
    asked: float = 0.0


class Trainer:
    """All models of the settings. `turn` is called again and again; nothing is in flight between two calls."""

    def __init__(
        self,
        root: Place,
        streams: Mapping[str, Stream],
        pupils: Iterable[Pupil],
        registry: Registry | None,
        settings: LearningSettings,
        clock: Callable[[], float] = time.time,
        requests: Requests | None = None,
        catalogues: Watch | None = None,
    ) -> None:
        self.root, self.streams, self.registry = root, streams, registry
        self.settings, self.clock, self.catalogues = settings, clock, catalogues
        self.pupils = {pupil.name: pupil for pupil in pupils}
        self.newest = {name: Newest() for name in self.pupils}
        self.labels, self.snapshots = EventLog(root, "labels"), EventLog(root, "snapshots")
        self.later, self._later_seen = EventLog(root, "later"), -1
        self.questions, self.lookup = Questions(root, self.pupils, requests), Lookup(root)
        self._seen = dict.fromkeys(streams, -1)
        self._enough = ROWS * max((pupil.settings.pool for pupil in self.pupils.values()), default=1)
        self._labels_seen, self._dates = -1, Dates()
        self._references = dict.fromkeys(self.pupils, "")
        self.states = {name: States(root, name) for name in self.pupils}
        self.restored: dict[str, int] = {}  # labels that a kept state had learned already, by model
        self.relearned: dict[str, int] = {}  # labels learned before by whoever was before us, and by us again
        self._released = self._looked = clock()
        self._plan = next((stream.pipeline.digest for stream in streams.values()), "")
        self._resume()

    def turn(self) -> Lesson:
        """Read, learn, publish, ask."""
        start = time.perf_counter()
        arrived = sum(self._follow(name) for name in self.streams)
        self.questions.follow_claims()
        self._ask_catalogues()
        learned = self._learn()
        for pupil in self.pupils.values():
            self._grow(pupil)
            self._publish(pupil)
            self.states[pupil.name].offer(pupil)
            self._ask(pupil)
        self.questions.write()
        if self.clock() - self._released > self.settings.release_minutes * 60:
            self.release("clock")
        if not arrived and not learned:
            time.sleep(IDLE_SECONDS if isinstance(self.root, Path) else IDLE_REMOTE_SECONDS)
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
            releases=self.registry.counts if self.registry is not None else {},
            restored=self.restored,
            relearned=self.relearned,
        )

    # What arrives.

    def _follow(self, survey: str) -> int:
        """New alerts into every pool."""
        stream = self.streams[survey]
        since = self._seen[survey]
        first = first_night(stream.table, self._enough) if since < 0 else None
        rows, self._seen[survey] = stream.table.tail(since, self._columns(stream), first)
        rows = kept(rows)
        if not rows.num_rows:
            return 0
        now = self._dates.newest(rows["mjd"].to_pylist())
        for pupil in self.pupils.values():
            newest = rows.slice(max(0, rows.num_rows - ROWS * pupil.settings.pool))
            new = candidates(newest, pupil.columns)
            self.questions.closed(pupil.consider(new, now, self.clock()), "withdrawn", self._now())
            if more := pupil.later_of(new):
                self.later.append_new([{**dataclasses.asdict(one), "when": self._now()} for one in more])
        return rows.num_rows

    def _columns(self, stream: Stream) -> list[str]:
        """What is read of an alert: its place and time, and the columns that hold the models' features."""
        wanted = {path.partition(".")[0] for pupil in self.pupils.values() for path in pupil.columns}
        return [*HEAD, *(name for name in stream.table.schema.names if name in wanted and name not in HEAD)]

    def _ask_catalogues(self) -> None:
        """Labels that a catalogue gives by now go the way of all labels."""
        if self.catalogues is None or self.clock() - self._looked < CATALOGUE_SECONDS:
            return
        self._looked = self.clock()
        tables = {name: stream.table for name, stream in self.streams.items()}
        if labels := self.catalogues.labels(tables, self.clock()):
            when = self._now()
            self.labels.append_new([{**label.row(), "when": when} for label in labels])

    def _learn(self) -> int:
        """New labels into ledgers and learners, and later alerts of labelled objects; how many were new."""
        rows, self._labels_seen = self.labels.tail(self._labels_seen)
        more, self._later_seen = self.later.tail(self._later_seen)
        labels = [*map(_label, dicts(rows)), *map(Later.of_row, dicts(more))]
        return sum(self._tell(pupil, labels) for pupil in self.pupils.values()) if labels else 0

    def _tell(self, pupil: Pupil, labels: Sequence[Told]) -> int:
        """What is new of these to a pupil is heard, and learned."""
        heard = self._hear_all(pupil, labels)
        if heard:
            self._study(pupil)
        return heard

    def _hear_all(self, pupil: Pupil, labels: Sequence[Told]) -> int:
        """One that cannot be learned is said, and stays in the log."""
        new = [label for label in labels if pupil.concerns(label)]
        said = [label for label in new if isinstance(label, Label) and label.label is not None]
        later = [one for one in new if isinstance(one, Later)]
        known = self._known(pupil, said) | self._archived(pupil, later)
        return sum(self._hear(pupil, label, known) for label in new)

    def _study(self, pupil: Pupil) -> int:
        """A thousand labels at once take minutes: whoever dies meanwhile has what was learned by then."""
        return pupil.study(lambda: self.states[pupil.name].offer(pupil))

    def _hear(self, pupil: Pupil, label: Told, known: Mapping[str, Asked]) -> bool:
        try:
            if (isinstance(label, Later) or label.label is not None) and label.event_id not in known:
                raise UnknownError(f"the archive has no features of alert '{label.alert_id}'")
            heard = pupil.hear(label, known.get(label.event_id))
        except (RaybrokerError, ValueError) as error:
            log.warning("label %s of %s is not learned: %s", label.event_id, label.alert_id, error)
            return False
        if heard and isinstance(label, Label) and pupil.is_answered(label):
            self.questions.answered(pupil.name, label.alert_id, label.object_id, self._now())
        return heard

    def _known(self, pupil: Pupil, labels: Sequence[Label]) -> dict[str, Asked]:
        """By event id: the features that the labeller was asked about; of an alert never asked, those in the archive."""
        labels = [self._addressed(pupil, label) for label in labels]
        found = {label.event_id: asked for label in labels if (asked := pupil.known(label))}
        missing = [label for label in labels if label.event_id not in found]
        rows = self.questions.find({label.query_id for label in missing if label.query_id})
        asked_once = {row["query_id"]: Asked.of(row) for row in rows if row["model"] == pupil.name}
        for label in missing:
            asked = asked_once.get(label.query_id or "")
            if asked is not None and asked.alert_id == label.alert_id:
                found[label.event_id] = asked
        return found | self._archived(pupil, [label for label in missing if label.event_id not in found])

    def _addressed(self, pupil: Pupil, label: Label) -> Label:
        """Without its question where another model asked it: what was said then was said by that one."""
        others = (other for other in self.pupils.values() if other is not pupil)
        asked = any(label.query_id in other.asked for other in others)
        return dataclasses.replace(label, query_id=None) if asked else label

    def _archived(self, pupil: Pupil, labels: Sequence[Told]) -> dict[str, Asked]:
        if not labels:
            return {}
        names = dict.fromkeys(name for stream in self.streams.values() for name in self._columns(stream))
        rows = self.lookup.alerts([label.alert_id for label in labels], list(names))
        found = {}
        for label in labels:
            if (row := rows.get(label.alert_id)) and (made := whole(row, self.streams, self.lookup)):
                features = {path: value_at(made, path) for path in pupil.columns}
                found[label.event_id] = Asked(label.alert_id, features, row["mjd"])
        return found

    # What leaves.

    def _grow(self, pupil: Pupil) -> None:
        """An anomaly forest on the pool as it is now; the sample is kept, so that whoever comes after grows the same."""
        if pupil.outgrown():
            sample = pupil.shortlist.features(pupil.columns)
            self._references[pupil.name] = provenance.put(self.root, to_bytes(sample))
            pupil.grow(sample)

    def _state(self, pupil: Pupil) -> State:
        return len(pupil.heard), self._references[pupil.name], pupil.configuration

    def _publish(self, pupil: Pupil) -> None:
        """A new snapshot, if the model changed and the last is old enough."""
        new, state = self.newest[pupil.name], self._state(pupil)
        if new.digest and (new.state == state or self.clock() - new.when < self.settings.snapshot_seconds):
            return
        promoted = bool(new.digest) and new.state[2] != state[2]
        new.digest = provenance.put(self.root, pupil.frozen.snapshot())
        parent, new.number = new.number, self.snapshots.take_number(pupil.name)
        self.snapshots.append([self._snapshot_row(pupil, new, parent)])
        new.state, new.when, new.asked = state, self.clock(), 0.0
        if promoted:
            self._release(pupil, "promotion")

    def _snapshot_row(self, pupil: Pupil, new: Newest, parent: int) -> dict[str, Any]:
        return {
            "event_id": f"{pupil.name}-{new.number}",
            "model": pupil.name,
            "number": new.number,
            "digest": new.digest,
            "parent": parent,
            "labels": pupil.learner.learned,
            "learned": pupil.heard[max(0, new.state[0]) :],
            "when": self._now(),
            "metrics": pupil.metrics(),
            "reference": self._references[pupil.name],
            "configuration": pupil.configuration,
        }

    def _ask(self, pupil: Pupil) -> None:
        new = self.newest[pupil.name]
        wanting = len(pupil.shortlist.open) < pupil.wanted(self.clock())
        patience = 1.0 if wanting else ASK_SECONDS
        if not len(pupil.shortlist) or self.clock() - new.asked < patience:
            return
        choice = pupil.choose(new.number, self.clock())
        new.asked = self.clock()
        self.questions.opened(choice.opened, self._now())
        self.questions.closed([query.query_id for query in choice.withdrawn], "withdrawn", self._now())

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    def release(self, why: str) -> None:
        """Log every model that changed since its last release; MLflow being away costs nothing but a late run."""
        self._released = self.clock()
        for pupil in self.pupils.values():
            self._release(pupil, why)

    def _release(self, pupil: Pupil, why: str) -> None:
        """The configuration that serves, then its challengers: the registry keeps the order."""
        new = self.newest[pupil.name]
        if self.registry is None or new.number == new.released or not pupil.learner.learned:
            return
        best = pupil.runner_up()
        for key, learner in sorted(pupil.learners.items(), key=lambda item: item[1] is not pupil.learner):
            serves = learner is pupil.learner
            frozen = learner.frozen()
            made = release_of(
                frozen,
                pupil.settings,
                snapshot=new.number,
                plan=self._plan,
                digest=new.digest if serves else provenance.put(self.root, frozen.snapshot()),
                when=self.clock(),
                why=why,
                taught=pupil.taken,
                unseen=pupil.progress.forecasts(key),
                parents=(new.released,) if new.released else (),
                configuration="" if key == OWN else key,
                alias="champion" if serves else "challenger" if key == best else "",
                example=pupil.example(key),
                verdict=pupil.verdict if serves else "",
            )
            self.registry.release(made)
        new.released = new.number

    # What was.

    def _resume(self) -> None:
        """Become what the labels say, in the order that the snapshots record; withdraw whoever was before us's questions."""
        self.questions.recall(self._now())
        told, self._labels_seen = self.labels.tail(-1)
        labels = {row["event_id"]: _label(row) for row in dicts(told)}
        if self.catalogues is not None:
            self.catalogues.recall(labels.values())
        more, self._later_seen = self.later.tail(-1)
        heard = labels | {row["event_id"]: Later.of_row(row) for row in dicts(more)}
        rows = sorted(dicts(self.snapshots.read()), key=lambda row: row["number"])
        for name, pupil in self.pupils.items():
            self._recall(pupil, [row for row in rows if row["model"] == name], heard)

    def _recall(self, pupil: Pupil, rows: Sequence[Mapping[str, Any]], labels: Mapping[str, Told]) -> None:
        """First what the snapshots' rows name, then what came after the last of them."""
        if rows:
            self._recall_background(pupil, rows[-1]["reference"])
        named = dict.fromkeys(event_id for row in rows for event_id in row["learned"] or ())
        self._hear_all(pupil, [labels[event_id] for event_id in named if event_id in labels])
        before = len(pupil.heard)
        self._hear_all(pupil, [label for event_id, label in labels.items() if event_id not in named])
        self._relearn(pupil, set(named))
        if rows:
            self._follow_on(pupil, rows[-1], before)

    def _recall_background(self, pupil: Pupil, reference: str | None) -> None:
        if not reference:
            return
        sample = from_bytes(provenance.get(self.root, reference))
        if set(pupil.columns) <= set(sample.column_names):  # else the settings changed: another grows soon
            self._references[pupil.name] = reference
            pupil.grow(sample)

    def _relearn(self, pupil: Pupil, named: set[str]) -> None:
        """From the latest state that is kept; what the snapshots do not name may have been learned or not."""
        pupil.older, start = self.states[pupil.name].find, time.perf_counter()
        taught = self._study(pupil)
        restored = len(pupil.lessons) - taught
        again = sum(event_id in named for event_id, _ in pupil.lessons[restored:])
        self.restored[pupil.name], self.relearned[pupil.name] = restored, again
        log.info(
            "trainer: restored %d labels of %s, learned %d again and %d that no snapshot names, in %.1f s",
            *(restored, pupil.name, again, taught - again, time.perf_counter() - start),
        )

    def _follow_on(self, pupil: Pupil, last: Mapping[str, Any], heard: int) -> None:
        """Go on after the last snapshot, which had heard so many labels."""
        new = self.newest[pupil.name]
        new.number, new.digest = last["number"], last["digest"]
        new.state = (heard, self._references[pupil.name], last["configuration"] or "")
        new.released = new.number  # by whoever was before us, or with the next change
        if heard == len(pupil.heard) and provenance.name_of(pupil.frozen.snapshot()) != last["digest"]:
            log.warning(
                "model %s, learned again, is not snapshot %d: other packages or settings made it",
                pupil.name,
                new.number,
            )
            new.state = (heard, "", "another")  # so that what is served is what we have

    def close(self) -> None:
        """A last release, and the registry's queue emptied as far as it goes in a few seconds."""
        self.release("the end of the run")
        for name, pupil in self.pupils.items():
            self.states[name].close(pupil)
        self.questions.close()
        if self.registry is not None:
            self.registry.close(7.0)


def _label(row: Mapping[str, Any]) -> Label:
    return Label.of({**row, "when": row["when"].timestamp() if row["when"] else 0.0})
