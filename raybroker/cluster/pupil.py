"""One model in the trainer's hands: its configurations, its ledger of labels, its shortlist. No files, no clock.

What it has been taught is always `ledger.to_learn`, in that order: a label that only adds to it is learned on top, and
one that changes it (a revision, a withdrawal, a verdict that flips) takes the model back to a state from before and
forward again, since an online model cannot unlearn. So the same labels heard in the same order give the same model,
bit for bit, however often it died on the way.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raybroker.cluster import later
from raybroker.cluster.later import Later, Told
from raybroker.cluster.progress import Progress
from raybroker.cluster.states import Older, mark_after, nothing_older, origin_of
from raybroker.cluster.teaching import OWN, Asked, features_of, member_names, said_of, table_digest
from raybroker.learning import arrival, strategies
from raybroker.learning.compiled import Floats
from raybroker.learning.labels import Label, Ledger, translate
from raybroker.learning.learner import Learned, Learner, Thinning
from raybroker.learning.outliers import OutlierLearner
from raybroker.learning.promotion import Contest
from raybroker.learning.release import Taught
from raybroker.learning.shortlist import Candidate, Choice, Query, Shortlist
from raybroker.settings import ChallengerSettings, LabelsSettings, ModelSettings

ASKED = 2_000  # questions that are remembered; of older ones the archive is asked
NIGHT = 12 * 3600.0  # a night's budget is of the answers of so many seconds
KEPT_STATES, STATE_EVERY = 4, 10  # states to go back to, and how many lessons lie between two
LEAST_BACKGROUND = 200  # alerts in the pool before a forest grows on them
PACKING = pa.Codec("zstd", 1)  # of these states: to half in 2 ms, where zlib takes 14
FEW = 3  # lessons that are sooner learned than looked for in what is kept elsewhere
STATE = ("contest", "thinning", "progress", "verdict", "taken", "lessons")
NOT_KEPT = ("_frozen", "_background")  # of a learner: computed again, and kept once for all states
GROWN = 4  # a forest grows anew when the pool is so many times what it grew on


class Pupil:
    """Learns, and says what it wants to be told next."""

    def __init__(
        self,
        name: str,
        settings: ModelSettings,
        columns: Sequence[str],
        labels: LabelsSettings | None = None,
        challengers: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`columns` are the model's features; `challengers` gives those of each challenger."""
        self.name, self.settings = name, settings
        self.own_columns = {OWN: tuple(columns)} | {
            key: tuple((challengers or {}).get(key) or columns) for key in settings.challengers
        }
        self.columns = tuple(dict.fromkeys(path for paths in self.own_columns.values() for path in paths))
        self._places = {path: place for place, path in enumerate(self.columns)}
        self.ledger = Ledger(rule=labels.rule if labels else "newest")
        self.rng = np.random.default_rng(settings.seed)
        self.strategy = strategies.by_name(settings.strategy)
        self.arrival = arrival.by_name(settings.arrival, settings.arrival_share, settings.seed)
        self.asked: dict[str, Asked] = {}  # by query id
        self.taught: dict[str, Asked] = {}  # by event id: what each label teaches
        self.heard: list[str] = []  # event ids, in the order in which they came
        self.later: dict[str, Later] = {}  # by event id
        self.background: pa.Table | None = None  # what an anomaly forest grew on
        self._ground = ""  # its digest
        self._spoken: dict[str, list[str]] = {}  # by object: event ids of all labels of it
        self._answers: dict[str, float] = {}  # when each question was answered, by event id
        self._states: list[tuple[int, bytes]] = []  # lessons, and `state` compressed
        self._teaches: dict[str, str] = {}  # by event id: the digest of `taught`
        self.older: Older = nothing_older  # states that are kept elsewhere
        self.shortlist = Shortlist(
            name,
            settings.classes,
            (),
            budget=settings.queries,
            random_share=settings.random_share,
            oldest_days=settings.oldest_days,
            faintest=settings.faintest,
            pool=settings.pool,
        )
        self._begin()

    def _begin(self) -> None:
        """A model that has learned nothing."""
        self.learners = {key: self._learner(key) for key in self.own_columns}
        self.contest = Contest(OWN, tuple(self.settings.challengers))
        self.thinning = Thinning(self.settings.thinning_days)
        self.progress = Progress(self.settings.classes)
        self.verdict = ""  # why this configuration serves, where a contest decided
        self.taken: list[Taught] = []  # of the lessons, those that were not thinned out
        self.lessons: list[tuple[str, str]] = []  # (event id, class) as `ledger.to_learn` gave them
        self._states = []
        self.marks = [self._origin()]  # of 0, 1, 2 ... lessons: equal marks, equal models
        for key, learner in self.learners.items():
            if self.background is not None and isinstance(learner, OutlierLearner):
                learner.background(self.background.select(list(self.own_columns[key])))

    def _learner(self, key: str) -> Learner | OutlierLearner:
        own: ModelSettings | ChallengerSettings = self.settings.challengers.get(key, self.settings)
        given = (self.name, self.settings.classes, self.own_columns[key], own.members, own.seed)
        if self.settings.task == "anomaly":
            return OutlierLearner(*given)
        return Learner(*given, window=own.window)

    def _origin(self) -> str:
        """The digest of what decides, beside the lessons, what the learners become."""
        own = {key: self.settings.challengers.get(key, self.settings) for key in self.own_columns}
        made = {
            "model": [self.name, self.settings.task, self.settings.classes, self.settings.thinning_days],
            "learners": {
                key: [*self.own_columns[key], one.members, one.seed, one.window] for key, one in own.items()
            },
            "background": self._ground,
        }
        return origin_of(made, [name for one in own.values() for name in one.members])

    @property
    def learner(self) -> Learner | OutlierLearner:
        """The configuration that serves."""
        return self.learners[self.contest.champion]

    @property
    def configuration(self) -> str:
        """Which challenger's configuration serves; empty: the model's own."""
        return "" if self.contest.champion == OWN else self.contest.champion

    @property
    def frozen(self) -> Any:
        """The model as it is now, for scoring."""
        return self.learner.frozen()

    # Labels.

    def concerns(self, label: Told) -> bool:
        """Whether a label is for this model, and new: its own, or a raw one if it translates any."""
        if isinstance(label, Later):
            return label.model == self.name and label.event_id not in self.later
        own = label.model == self.name or (not label.model and bool(self.settings.raw))
        return own and label.event_id not in self.ledger

    def known(self, label: Label) -> Asked | None:
        """What the question was, or what the pool holds of an alert that nobody asked about; None: not here."""
        asked = self.asked.get(label.query_id or "")
        if asked is not None and asked.alert_id == label.alert_id:
            return asked
        candidate = self.shortlist.candidate(label.object_id or label.alert_id)
        if label.query_id is None and candidate is not None and candidate.alert_id == label.alert_id:
            return Asked(label.alert_id, candidate.features, candidate.mjd)
        return None

    def hear(self, label: Told, asked: Asked | None) -> bool:
        """Take a label into the ledger, with what it would teach; `study` learns what follows. False if it was there."""
        if isinstance(label, Label) and not self.ledger.add(label):
            return False
        self.heard.append(label.event_id)
        if asked is not None:
            self.taught[label.event_id] = asked.kept(self._places)
            self._teaches[label.event_id] = asked.digest(self.columns)
        if isinstance(label, Later):
            self.later[label.event_id] = label
            return True
        self._spoken.setdefault(label.object_id or label.alert_id, []).append(label.event_id)
        self._count(label)
        told = self.shortlist.answered if self.is_answered(label) else self.shortlist.reopen
        told(label.alert_id, label.object_id)
        return True

    def later_of(self, candidates: Sequence[Candidate]) -> list[Later]:
        """Of new alerts, those that a label of their object teaches too."""
        return (
            later.new(candidates, self._said(), self.thinning, self.settings, self.name)
            if self.lessons
            else []
        )

    def _said(self) -> list[Label]:
        return self.ledger.to_learn(self.name, self.settings.raw, self.settings.classes)

    def is_answered(self, label: Label) -> bool:
        """Whether somebody's word on this label's object stands: then it is not asked."""
        return any(map(self.ledger.stands, self._spoken.get(label.object_id or label.alert_id, ())))

    def _count(self, label: Label) -> None:
        """The answer to a question is one of the night's; a catalogue's label, or a file's, is none."""
        self._answers.pop(label.replaces or "", None)
        meant = label.label is None or translate(label, self.name, self.settings.classes, self.settings.raw)
        if label.query_id and meant and not label.withdrawn:
            self._answers[label.event_id] = label.when

    def answered_since(self, when: float) -> int:
        """How many questions were answered since then (seconds since 1970), and the answer was not taken back."""
        return sum(answer >= when for answer in self._answers.values())

    def study(self, after: Callable[[], object] = int) -> int:
        """Learn what the ledger says now; returns how many lessons were taught, those taught again included.

        `after` is called after each of them.
        """
        wanted = later.with_later(self._said(), self.later, self.heard, self.settings.of_alert)
        lessons = [(label.event_id, str(label.label)) for label in wanted]
        same = next((i for i, (a, b) in enumerate(zip(lessons, self.lessons, strict=False)) if a != b), None)
        same = min(len(lessons), len(self.lessons)) if same is None else same
        if same < len(self.lessons):
            self._back_to(same)
        if len(wanted) - len(self.lessons) > FEW:
            self._skip(wanted)
        begin = len(self.lessons)
        for label in wanted[begin:]:
            self._teach(label, self.taught[label.event_id])
            after()
        return len(lessons) - begin

    def _back_to(self, lessons: int) -> None:
        """The latest state that is not beyond so many lessons."""
        states, marks = [state for state in self._states if state[0] <= lessons], self.marks
        self._begin()
        if states:
            self._become(pickle.load(pa.input_stream(pa.py_buffer(states[-1][1]), compression="zstd")), marks)
            self._states = states

    def _skip(self, wanted: Sequence[Label]) -> None:
        """On to the latest state that is kept elsewhere and begins with what is to be learned."""
        marks = self.marks[:1]
        for label in wanted:
            marks.append(self._mark(marks[-1], label))
        state = self.older(marks, len(self.lessons))
        if state is not None:
            self._begin()
            self._become(state, marks)

    def _mark(self, before: str, label: Label) -> str:
        return mark_after(
            before,
            label.event_id,
            label.label,
            label.alert_id,
            label.object_id,
            self._teaches[label.event_id],
        )

    def state(self) -> bytes:
        """What was learned so far, with `_become` the same again; the ledger and the shortlist are not in it."""
        learners = {
            key: {name: value for name, value in vars(learner).items() if name not in NOT_KEPT}
            for key, learner in self.learners.items()
        }
        return pickle.dumps(
            {"learners": learners, **{name: getattr(self, name) for name in STATE}}, protocol=5
        )

    def _become(self, state: Mapping[str, Any], marks: Sequence[str]) -> None:
        """What has just begun takes this state; `marks` are of its lessons, and of more."""
        for key, learned in state["learners"].items():
            vars(self.learners[key]).update(learned)
        vars(self).update({name: state[name] for name in STATE})
        self.marks = list(marks[: len(self.lessons) + 1])

    def _keep_state(self) -> None:
        known = self._states[-1][0] if self._states else -1
        if len(self.lessons) % STATE_EVERY == 0 and len(self.lessons) > known:
            state = PACKING.compress(self.state(), asbytes=True)
            self._states = [*self._states[1 - KEPT_STATES :], (len(self.lessons), state)]

    def _teach(self, label: Label, asked: Asked) -> None:
        """Test, then train every configuration; nothing where the object was learned within `thinning_days`."""
        self._keep_state()
        self.lessons.append((label.event_id, str(label.label)))
        self.marks.append(self._mark(self.marks[-1], label))
        if not self.thinning.take(label.object_id, asked.mjd):
            return
        self.taken.append(Taught(label.event_id, label.alert_id, str(label.label)))
        unseen = self.progress.is_new(label.object_id or label.alert_id)
        said = {key: self._learn(key, label, asked, unseen) for key in self.learners}
        self.progress.add(said, self.contest.champion, str(label.label), unseen, asked.pick)
        if unseen and len(said) > 1:
            self.contest.hear({key: float(learned.mixture_losses[0]) for key, learned in said.items()})
            self._promote()

    def _learn(self, key: str, label: Label, asked: Asked, unseen: bool) -> Learned:
        row, before = features_of([asked.features], self.own_columns[key]), self._before(key, asked)
        given = {"before": before, "picks": [asked.pick], "unseen": [unseen]}
        return self.learners[key].learn(row, [str(label.label)], **given)

    def _before(self, key: str, asked: Asked) -> Floats | None:
        """[members, 1, classes]: what a configuration's members said when the question was asked, if they did."""
        names = member_names(key, self.learners[key].member_names)
        if any(len(asked.before.get(name, ())) != len(self.settings.classes) for name in names):
            return None
        return np.array([[asked.before[name]] for name in names], float)

    def _promote(self) -> None:
        winner = self.contest.verdict()
        if winner is not None:
            self.verdict = next(str(duel) for duel in self.contest.standing() if duel.challenger == winner)
            self.contest.promote(winner)

    def metrics(self) -> dict[str, float]:
        """What a snapshot's row tells: how good it is, and the share of each member in it."""
        shares = zip(self.learner.member_names, self.learner.weights.tolist(), strict=True)
        return self.progress.metrics(self.contest.champion) | {
            f"weight.{name}": share for name, share in shares
        }

    def runner_up(self) -> str | None:
        """The challenger for which most speaks."""
        standing = self.contest.standing()
        return max(standing, key=lambda duel: duel.evidence).challenger if standing else None

    def example(self, key: str) -> Mapping[str, float | None]:
        """The features of one alert, as a configuration takes them; empty where none was met."""
        row = next((one.features for one in self.shortlist.candidates), None)
        row = row or next((asked.features for asked in self.taught.values()), {})
        return {path: row.get(path) for path in self.own_columns[key]} if row else {}

    # The background of an anomaly forest.

    def outgrown(self) -> bool:
        """Whether a forest should grow on the pool as it is now."""
        if self.settings.task != "anomaly" or len(self.shortlist) < min(LEAST_BACKGROUND, self.settings.pool):
            return False
        return self.background is None or len(self.shortlist) >= GROWN * len(self.background)

    def grow(self, background: pa.Table) -> None:
        """Grow the forests on this sample: numbers by column, null where not known.

        What was learned is learned again, so that whoever resumes on this sample judges the model alike.
        """
        self.background, self._ground = background, table_digest(background)
        self._begin()
        self.study()

    # Questions.

    def consider(self, candidates: Sequence[Candidate], now_mjd: float, now: float = 0.0) -> list[str]:
        """New alerts for the pool; returns the ids of queries that are too old or too faint now."""
        if self.settings.arrival != "all" and candidates:
            said = self.frozen.predict(
                features_of([one.features for one in candidates], self.columns)
            ).mixture
            doubt = said[:, 0] if self.settings.task == "anomaly" else 1.0 - said.max(axis=1)
            entry = self.arrival.decide(doubt)
            candidates = [
                dataclasses.replace(one, drawn=bool(drawn))
                for one, taken, drawn in zip(candidates, *entry, strict=True)
                if taken
            ]
        self.shortlist.add(candidates)
        return [query.query_id for query in self.shortlist.expire(now_mjd, now)]

    def choose(self, snapshot: int, now: float) -> Choice:
        """Score the whole pool with the model as it is and choose what to ask; `now` in seconds since 1970."""
        features = self.shortlist.features(self.columns)
        self.shortlist.members = member_names(self.contest.champion, self.learner.member_names)
        pool = self.shortlist.pool(self.frozen.predict(features), features)
        given = {"allowance": self._allowance(now), "now": now}
        strategy = self.settings.strategy, self.strategy
        choice = self.shortlist.choose(*strategy, pool, snapshot, self.rng, **given)
        choice = choice._replace(opened=self._with_challengers(choice.opened))
        for query in choice.opened:  # one that is asked again of the same snapshot is what it was at first
            self.asked.setdefault(query.query_id, Asked.when(query))
        self._forget()
        return choice

    def _allowance(self, now: float) -> int | None:
        """How many questions the night's budget leaves; None: as many as people answer."""
        if not self.settings.budget:
            return None
        return max(0, self.settings.budget - self.answered_since(now - NIGHT))

    def wanted(self, now: float) -> int:
        """How many questions should stand open, as far as there is something to ask."""
        most, left = min(self.settings.queries, len(self.shortlist)), self._allowance(now)
        return most if left is None else min(most, left)

    def _with_challengers(self, queries: Sequence[Query]) -> list[Query]:
        """The questions with what every other configuration says of them: that is what it will be judged by."""
        others = [key for key in self.learners if key != self.contest.champion]
        if not queries or not others:
            return list(queries)
        rows = features_of([query.features for query in queries], self.columns)
        more = said_of({key: self.learners[key] for key in others}, rows)
        return [
            dataclasses.replace(query, probabilities={**query.probabilities, **found})
            for query, found in zip(queries, more, strict=True)
        ]

    def _forget(self) -> None:
        """Of what was asked, keep what is open and the latest `ASKED`."""
        standing = {query.query_id for query in self.shortlist.open}
        gone = [query_id for query_id in self.asked if query_id not in standing]
        for query_id in gone[: max(0, len(self.asked) - ASKED)]:
            del self.asked[query_id]
