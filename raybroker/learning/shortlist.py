"""What is open to be asked: a pool with one alert per object, and a short list of questions drawn from it.

The list is a queue of slots. A slot is for a random pick with probability `random_share`, decided when it joins at the
end; an answer takes a slot out and the others move up. So whoever works down from the top answers that share of random
picks, whatever the strategy, and these labels are an honest test set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raybroker.learning import strategies
from raybroker.learning.compiled import Prediction
from raybroker.learning.strategies import Floats, Pool, Strategy


@dataclass(frozen=True)
class Candidate:
    """An alert that may be asked about, with the features it was scored by; None is not known."""

    survey: str
    alert_id: str
    object_id: str | None
    mjd: float
    features: Mapping[str, float | None]

    @property
    def key(self) -> str:
        """What may have one pending look at a time: the object, or for a moving one the alert."""
        return self.object_id or self.alert_id


@dataclass(frozen=True)
class Query:
    """One question, with all that is needed to learn from its answer and to say why it was asked."""

    query_id: str
    model: str
    survey: str
    alert_id: str
    object_id: str | None
    strategy: str  # or 'random'
    reason: str
    rank: int  # 0 is asked first
    snapshot: int
    features: Mapping[str, float | None]
    probabilities: Mapping[str, tuple[float, ...]]  # by member, and 'mixture', in the order of the classes

    @property
    def key(self) -> str:
        """As `Candidate.key`."""
        return self.object_id or self.alert_id

    def row(self) -> dict[str, Any]:
        """The row of the `queries` event log."""
        return dataclasses.asdict(self)


class Choice(NamedTuple):
    """What a `choose` changed: write `opened` to the log before it is shown."""

    opened: list[Query]
    withdrawn: list[Query]


@dataclass
class Slot:
    """A place in the list; its query is None while the pool has nothing for it."""

    random: bool
    query: Query | None = None


class Shortlist:
    """The pool and the open questions of one model. Time and chance come in as arguments."""

    def __init__(
        self,
        model: str,
        classes: Sequence[str],
        members: Sequence[str],
        *,
        budget: int = 10,
        random_share: float = 0.1,
        max_age_days: float = 30.0,
        pool: int = 5_000,
    ) -> None:
        self.model, self.classes, self.members = model, tuple(classes), tuple(members)
        self.budget, self.random_share = budget, random_share
        self.max_age_days, self.pool_size = max_age_days, pool
        self._candidates: dict[str, Candidate] = {}
        self._answered: set[str] = set()
        self._slots: list[Slot] = []

    def __len__(self) -> int:
        return len(self._candidates)

    @property
    def candidates(self) -> list[Candidate]:
        """The pool, in the order of `pool`."""
        return list(self._candidates.values())

    def candidate(self, key: str) -> Candidate | None:
        """The pool's alert of that object (`Candidate.key`)."""
        return self._candidates.get(key)

    @property
    def open(self) -> list[Query]:
        """The open questions, in the order to ask them."""
        asked = [slot.query for slot in self._slots if slot.query is not None]
        return [dataclasses.replace(query, rank=rank) for rank, query in enumerate(asked)]

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Take alerts into the pool: the newest of each object, and of these the newest `pool`."""
        for candidate in candidates:
            known = self._candidates.get(candidate.key)
            if candidate.key not in self._answered and (known is None or _age(candidate) > _age(known)):
                self._candidates[candidate.key] = candidate
        if len(self._candidates) > self.pool_size:
            self._keep(sorted(self._candidates.values(), key=_age)[-self.pool_size :])

    def _keep(self, candidates: Iterable[Candidate]) -> None:
        kept = {candidate.key for candidate in candidates} | {query.key for query in self.open}
        self._candidates = {key: found for key, found in self._candidates.items() if key in kept}

    def answered(self, alert_id: str, object_id: str | None) -> None:
        """Somebody answered, "can't tell" included: the object leaves, and does not come back with its next alert."""
        key = object_id or alert_id
        self._answered.add(key)
        self._candidates.pop(key, None)
        self._slots = [slot for slot in self._slots if slot.query is None or slot.query.key != key]

    def reopen(self, alert_id: str, object_id: str | None) -> None:
        """Its answer was withdrawn: its next alert may be asked again."""
        self._answered.discard(object_id or alert_id)

    def expire(self, mjd: float) -> list[Query]:
        """Forget what is older than `max_age_days`; the open questions among it are withdrawn and returned."""
        old = {key for key, found in self._candidates.items() if mjd - found.mjd > self.max_age_days}
        self._candidates = {key: found for key, found in self._candidates.items() if key not in old}
        withdrawn = [query for query in self.open if query.key in old]
        self._empty(old)
        return withdrawn

    def _empty(self, keys: Collection[str]) -> None:
        for slot in self._slots:
            if slot.query is not None and slot.query.key in keys:
                slot.query = None

    def features(self, columns: Sequence[str]) -> pa.Table:
        """The pool's features, in the order of `pool`."""
        found = [candidate.features for candidate in self._candidates.values()]
        arrays = [pa.array([one.get(column) for one in found], pa.float64()) for column in columns]
        return pa.table(arrays, names=list(columns))

    def pool(self, prediction: Prediction, features: pa.Table | None = None) -> Pool:
        """The frozen view that a strategy gets, for what the model says of `features`."""
        if prediction.mixture.shape[0] != len(self):
            raise ValueError(f"{prediction.mixture.shape[0]} predictions for a pool of {len(self)}")
        found = self._candidates.values()
        ids = tuple(one.alert_id for one in found), tuple(one.object_id for one in found)
        return Pool(*ids, prediction.members, prediction.mixture, features)

    def choose(
        self, name: str, strategy: Strategy, pool: Pool, snapshot: int, rng: np.random.Generator
    ) -> Choice:
        """Fill the slots anew: random picks stay until they are answered, the others are the strategy's best now.

        A question that is chosen again keeps its id and the features it was asked with.
        """
        before = {query.key: query for query in self.open}
        kinds = [bool(rng.random() < self.random_share) for _ in range(self.budget - len(self._slots))]
        self._slots += [Slot(random) for random in kinds]
        keys = [object_id or alert for object_id, alert in zip(pool.object_ids, pool.alert_ids, strict=True)]
        self._draw(keys, pool, snapshot, rng)
        self._rank(name, strategy, keys, pool, snapshot, rng)
        after = {query.key: query for query in self.open}
        opened = [query for key, query in after.items() if _id(before.get(key)) != query.query_id]
        withdrawn = [query for key, query in before.items() if _id(after.get(key)) != query.query_id]
        return Choice(opened, withdrawn)

    def _draw(self, keys: Sequence[str], pool: Pool, snapshot: int, rng: np.random.Generator) -> None:
        taken = {slot.query.key for slot in self._slots if slot.random and slot.query}
        empty = [slot for slot in self._slots if slot.random and slot.query is None]
        rows = iter(row for row in strategies.random(pool, len(pool), rng) if self._may(keys[row], taken))
        for slot, row in zip(empty, rows, strict=False):
            slot.query = self._query("random", keys[row], row, pool, snapshot)

    def _rank(
        self,
        name: str,
        strategy: Strategy,
        keys: Sequence[str],
        pool: Pool,
        snapshot: int,
        rng: np.random.Generator,
    ) -> None:
        taken = {slot.query.key for slot in self._slots if slot.random and slot.query}
        slots = [slot for slot in self._slots if not slot.random]
        known = {slot.query.key: slot.query for slot in slots if slot.query}
        best = [row for row in strategy(pool, len(slots) + len(taken), rng) if self._may(keys[row], taken)]
        made = [known.get(keys[row]) or self._query(name, keys[row], row, pool, snapshot) for row in best]
        for i, slot in enumerate(slots):
            slot.query = made[i] if i < len(made) else None

    def _may(self, key: str, taken: Collection[str]) -> bool:
        return key in self._candidates and key not in taken

    def _query(self, name: str, key: str, row: int, pool: Pool, snapshot: int) -> Query:
        found = self._candidates[key]
        by_member = zip(self.members, pool.probabilities[:, row, :].tolist(), strict=True)
        return Query(
            query_id=_query_id(self.model, name, found.alert_id, snapshot),
            model=self.model,
            survey=found.survey,
            alert_id=found.alert_id,
            object_id=found.object_id,
            strategy=name,
            reason=reason(name, self.classes, pool.mixture[row], snapshot),
            rank=0,
            snapshot=snapshot,
            features=found.features,
            probabilities={
                "mixture": tuple(pool.mixture[row].tolist()),
                **{n: tuple(p) for n, p in by_member},
            },
        )


def _age(candidate: Candidate) -> float:
    return -math.inf if math.isnan(candidate.mjd) else candidate.mjd


def _id(query: Query | None) -> str | None:
    return query.query_id if query is not None else None


def _query_id(model: str, strategy: str, alert_id: str, snapshot: int) -> str:
    """The same question has the same id, so that a trainer that comes back writes no second row."""
    return hashlib.sha256(f"{model}|{strategy}|{alert_id}|{snapshot}".encode()).hexdigest()[:24]


def reason(strategy: str, classes: Sequence[str], mixture: Floats, snapshot: int) -> str:
    """Why it is asked, with its numbers, for a person.

    >>> reason("margin", ("AGN", "SN"), np.array([0.46, 0.54]), 12)
    'margin 0.08 between SN (0.54) and AGN (0.46), snapshot 12'
    """
    first, second = np.argsort(-mixture, kind="stable")[:2]
    top, next_one = f"{classes[first]} ({mixture[first]:.2f})", f"{classes[second]} ({mixture[second]:.2f})"
    numbers = {
        "margin": f"margin {mixture[first] - mixture[second]:.2f} between {top} and {next_one}",
        "uncertainty": f"uncertainty {1 - mixture[first]:.2f}, most likely {top}",
        "entropy": f"entropy {_entropy(mixture):.2f} of at most {math.log(len(classes)):.2f}, most likely {top}",
        "random": f"random pick, most likely {top}",
    }
    return f"{numbers.get(strategy, f'{strategy}, between {top} and {next_one}')}, snapshot {snapshot}"


def _entropy(mixture: Floats) -> float:
    return float(-sum(p * math.log(p) for p in mixture.tolist() if p > 0))
