"""One model in the trainer's hands: its learner, its ledger of labels, its shortlist. No files, no clock.

Labels are learned in the order they come; the trainer records that order with every snapshot, so that the same order
gives the same model, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from raybroker.learning import strategies
from raybroker.learning.compiled import Frozen
from raybroker.learning.labels import Label, Ledger
from raybroker.learning.learner import Learner, Thinning
from raybroker.learning.shortlist import Candidate, Choice, Shortlist
from raybroker.settings import ModelSettings

Features = Mapping[str, float | None]
ASKED = 2_000  # alerts whose features are remembered; of others the archive is asked


@dataclass(frozen=True)
class Asked:
    """What a label teaches: the features as they were when the question was asked."""

    features: Features
    mjd: float


@dataclass
class Progress:
    """Prequential log-losses: each row's was measured before its label was learned."""

    losses: list[float] = field(default_factory=list)  # of the mixture
    by_member: list[list[float]] = field(default_factory=list)


class Pupil:
    """Learns, and says what it wants to be told next."""

    def __init__(self, name: str, settings: ModelSettings, columns: Sequence[str]) -> None:
        self.name, self.settings, self.columns = name, settings, tuple(columns)
        self.ledger = Ledger()
        self.shortlist = Shortlist(
            name,
            settings.classes,
            settings.members,
            budget=settings.queries,
            random_share=settings.random_share,
            pool=settings.pool,
        )
        self.rng = np.random.default_rng(settings.seed)
        self.strategy = strategies.by_name(settings.strategy)
        self.asked: dict[str, Asked] = {}  # by alert id: what is open, and what was a while ago
        self.taught: dict[str, Asked] = {}  # by alert id: what was learned, for `relearn`
        self.begin()

    def begin(self) -> None:
        """A model that has learned nothing."""
        own = self.settings
        self.learner = Learner(self.name, own.classes, self.columns, own.members, own.seed)
        self.thinning = Thinning(own.thinning_days)
        self.progress = Progress()
        self.lessons: list[str] = []  # event ids, in the order in which they were learned

    @property
    def frozen(self) -> Frozen:
        """The model as it is now, for scoring."""
        return self.learner.frozen()

    def known(self, label: Label) -> Asked | None:
        """What an alert was asked, or learned, or stands in the pool with; None: the archive must be asked."""
        found = self.asked.get(label.alert_id) or self.taught.get(label.alert_id)
        candidate = self.shortlist.candidate(label.object_id or label.alert_id)
        if found is None and candidate is not None and candidate.alert_id == label.alert_id:
            found = Asked(candidate.features, candidate.mjd)
        return found

    def hear(self, label: Label) -> bool:
        """Take a label into the ledger; False if it was there already. `undoes` tells whether to `relearn`."""
        if not self.ledger.add(label):
            return False
        self.shortlist.answered(label.alert_id, label.object_id)
        if label.withdrawn:
            self.shortlist.reopen(label.alert_id, label.object_id)
        return True

    def learn(self, label: Label, asked: Asked) -> bool:
        """Test, then train; False where the object was learned within `thinning_days`."""
        self.taught[label.alert_id] = asked
        self.lessons.append(label.event_id)
        if label.label is None or not self.ledger.stands(label.event_id):
            return False
        if not self.thinning.take(label.object_id, asked.mjd):
            return False
        row = {name: [asked.features.get(name)] for name in self.columns}
        table = pa.table({name: pa.array(value, pa.float64()) for name, value in row.items()})
        learned = self.learner.learn(table, [label.label])
        self.progress.losses.append(float(learned.mixture_losses[0]))
        self.progress.by_member.append(learned.losses[:, 0].tolist())
        return True

    def relearn(self, label: Label, asked: Asked) -> None:
        """From the beginning, without what this label revises or withdraws: an online model cannot unlearn."""
        order = {event_id: i for i, event_id in enumerate(self.lessons)}
        standing = [other for other in self.ledger.to_learn(self.name) if other.event_id in order]
        self.begin()
        for other in sorted(standing, key=lambda other: order[other.event_id]):
            self.learn(other, self.taught[other.alert_id])
        self.learn(label, asked)

    def consider(self, candidates: Sequence[Candidate], now_mjd: float) -> list[str]:
        """New alerts for the pool; returns the ids of queries that are too old now."""
        self.shortlist.add(candidates)
        return [query.query_id for query in self.shortlist.expire(now_mjd)]

    def choose(self, snapshot: int) -> Choice:
        """Score the whole pool with the model as it is and choose what to ask."""
        features = self.shortlist.features(self.columns)
        pool = self.shortlist.pool(self.frozen.predict(features), features)
        choice = self.shortlist.choose(self.settings.strategy, self.strategy, pool, snapshot, self.rng)
        when = {one.alert_id: one.mjd for one in self.shortlist.candidates}
        self.asked.update(
            {q.alert_id: Asked(q.features, when.get(q.alert_id, math.nan)) for q in choice.opened}
        )
        self._forget()
        return choice

    def _forget(self) -> None:
        """Of what was asked, keep what is open and the latest `ASKED`."""
        standing = {query.alert_id for query in self.shortlist.open}
        gone = [alert_id for alert_id in self.asked if alert_id not in standing]
        for alert_id in gone[: max(0, len(self.asked) - ASKED)]:
            del self.asked[alert_id]
