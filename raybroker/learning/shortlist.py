"""What is open to be asked: a pool with one alert per object, and a short list of questions drawn from it.

The list is a queue of slots. A slot is for a random pick with probability `random_share`, decided when it joins at the
end; an answer takes a slot out and the others move up. So whoever works down from the top answers that share of random
picks, whatever the strategy, and these labels are an honest test set.

A question that stands keeps its slot as long as the strategy still ranks it among twice as many rows as there are
slots; of those that fell behind one is taken back, the last, in as many snapshots as there are slots. So a person's
list does not jump under their eyes and the log does not fill with changes of mind: ten labels that one model asked for
teach as much as ten that were asked for one by one.
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
from raybroker.learning.strategies import Pool, Strategy, reason

STAY = 2  # a standing question stays while it is among the best of so many times the slots


@dataclass(frozen=True)
class Candidate:
    """An alert that may be asked about, with the features it was scored by; None is not known."""

    survey: str
    alert_id: str
    object_id: str | None
    mjd: float
    features: Mapping[str, float | None]
    ra: float | None = None
    dec: float | None = None
    magnitude: float | None = None  # of |flux|
    drawn: bool = (
        True  # it is in the pool by chance, or as all are: so it may be a random pick (see `arrival`)
    )

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
    rank: int  # the lowest is asked first; it stays what it is while the question stands
    snapshot: int
    features: Mapping[str, float | None]
    probabilities: Mapping[str, tuple[float, ...]]  # by member, and 'mixture', in the order of the classes
    mjd: float = math.nan  # of the alert
    ra: float | None = None
    dec: float | None = None
    magnitude: float | None = None

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
    """A place in the list; its query is None while the pool has nothing for it, or no more may be asked."""

    number: int  # in the order of joining: the rank of whatever is asked here
    random: bool
    query: Query | None = None

    @property
    def key(self) -> str | None:
        """Of its query."""
        return self.query.key if self.query else None


class Shortlist:
    """The pool and the open questions of one model. Time and chance come in as arguments.

    `budget` is how many questions stand open at a time.
    """

    def __init__(
        self,
        model: str,
        classes: Sequence[str],
        members: Sequence[str],
        *,
        budget: int = 10,
        random_share: float = 0.1,
        oldest_days: float = 30.0,
        faintest: float | None = None,
        pool: int = 5_000,
    ) -> None:
        self.model, self.classes, self.members = model, tuple(classes), tuple(members)
        self.budget, self.random_share, self.pool_size = budget, random_share, pool
        self.oldest_days, self.faintest = oldest_days, faintest
        self._candidates: dict[str, Candidate] = {}
        self._answered: set[str] = set()
        self._slots: list[Slot] = []
        self._joined = 0
        self._held: dict[str, float] = {}  # by query id, until when
        self._take_back_from = 0  # the snapshot at which the next question may be taken back

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
        return [slot.query for slot in self._slots if slot.query is not None]

    # The pool.

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Take alerts into the pool: the newest of each object, and of these the newest `pool`."""
        for candidate in candidates:
            known = self._candidates.get(candidate.key)
            if candidate.key in self._answered or (known is None and self._is_faint(candidate)):
                continue
            if known is None or _age(candidate) > _age(known):
                drawn = candidate.drawn or (known is not None and known.drawn)  # chance is of the object
                self._candidates[candidate.key] = dataclasses.replace(candidate, drawn=drawn)
        if len(self._candidates) > self.pool_size:
            self._keep(sorted(self._candidates.values(), key=_age)[-self.pool_size :])

    def _is_faint(self, candidate: Candidate) -> bool:
        """Whether it is known to be too faint to follow up."""
        return (
            self.faintest is not None
            and candidate.magnitude is not None
            and candidate.magnitude > self.faintest
        )

    def _keep(self, candidates: Iterable[Candidate]) -> None:
        kept = {candidate.key for candidate in candidates} | {query.key for query in self.open}
        self._candidates = {key: found for key, found in self._candidates.items() if key in kept}

    def answered(self, alert_id: str, object_id: str | None) -> None:
        """Somebody answered, "can't tell" included: the object leaves, and does not come back with its next alert."""
        key = object_id or alert_id
        self._answered.add(key)
        self._candidates.pop(key, None)
        self._slots = [slot for slot in self._slots if slot.key != key]

    def reopen(self, alert_id: str, object_id: str | None) -> None:
        """Its answer was withdrawn: its next alert may be asked again."""
        self._answered.discard(object_id or alert_id)

    def expire(self, mjd: float, now: float = 0.0) -> list[Query]:
        """Forget what is older than `oldest_days`, or fainter than `faintest`; its open questions are withdrawn.

        Those are returned. What somebody holds at `now` (see `hold`) stays, and leaves later.
        """
        held = {slot.key for slot in self._slots if self._is_held(slot, now)}
        gone = {
            key
            for key, found in self._candidates.items()
            if (mjd - found.mjd > self.oldest_days or self._is_faint(found)) and key not in held
        }
        self._candidates = {key: found for key, found in self._candidates.items() if key not in gone}
        return self._empty(slot for slot in self._slots if slot.key in gone)

    def _empty(self, slots: Iterable[Slot]) -> list[Query]:
        """Take the questions out of these slots."""
        withdrawn = []
        for slot in slots:
            if slot.query is not None:
                withdrawn.append(slot.query)
                slot.query = None
        return withdrawn

    def features(self, columns: Sequence[str]) -> pa.Table:
        """The pool's features, in the order of `pool`: these columns and no other."""
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

    # The questions.

    def hold(self, query_id: str, until: float) -> bool:
        """Somebody looks at it: it stays in its slot until then (seconds, as `now` of the others), or is let go by 0.

        False if that question is not open.
        """
        if all(query.query_id != query_id for query in self.open):
            return False
        self._held[query_id] = until
        return True

    def _is_held(self, slot: Slot, now: float) -> bool:
        return slot.query is not None and self._held.get(slot.query.query_id, -math.inf) > now

    def choose(
        self,
        name: str,
        strategy: Strategy,
        pool: Pool,
        snapshot: int,
        rng: np.random.Generator,
        *,
        allowance: int | None = None,
        now: float = 0.0,
    ) -> Choice:
        """Fill the slots: random picks stay until they are answered, the others while the strategy thinks well of them.

        At most `allowance` questions stand open then, the first of the list and what somebody holds at `now`; None is
        no limit. A question that stays keeps its id, its rank and the features it was asked with.
        """
        before = {query.query_id: query for query in self.open}
        self._held = {key: until for key, until in self._held.items() if key in before and until > now}
        self._join(name, rng)
        slots = self._allowed(allowance, now)
        keys = [object_id or alert for object_id, alert in zip(pool.object_ids, pool.alert_ids, strict=True)]
        held = {slot.key for slot in slots if self._is_held(slot, now)}
        look = _Look(name, strategy, pool, keys, snapshot, rng, held)
        self._draw(look, slots)
        self._rank(look, slots)
        after = {query.query_id: query for query in self.open}
        opened = [query for key, query in after.items() if key not in before]
        return Choice(opened, [query for key, query in before.items() if key not in after])

    def _join(self, name: str, rng: np.random.Generator) -> None:
        """New slots at the end; what each is for is decided here, before anybody knows what there is to ask."""
        for _ in range(self.budget - len(self._slots)):
            self._slots.append(Slot(self._joined, bool(rng.random() < self.random_share) or name == "random"))
            self._joined += 1

    def _allowed(self, allowance: int | None, now: float) -> list[Slot]:
        """The slots that may hold a question now; the others are emptied."""
        held = {slot.number for slot in self._slots if self._is_held(slot, now)}
        others = [slot.number for slot in self._slots if slot.number not in held]
        room = len(others) if allowance is None else max(0, allowance - len(held))
        allowed = held | set(others[:room])
        self._empty(slot for slot in self._slots if slot.number not in allowed)
        return [slot for slot in self._slots if slot.number in allowed]

    def _draw(self, look: _Look, slots: Sequence[Slot]) -> None:
        """A random pick for each empty slot that is for one."""
        taken = {slot.key for slot in slots if slot.random} | look.held
        order = strategies.random(look.pool, len(look.pool), look.rng)
        keys = ((row, look.keys[row]) for row in order)
        rows = (row for row, key in keys if self._may(key, taken) and self._candidates[key].drawn)
        for slot, row in zip([slot for slot in slots if slot.random and not slot.query], rows, strict=False):
            slot.query = self._query(look, "random", slot, row)

    def _rank(self, look: _Look, slots: Sequence[Slot]) -> None:
        """The strategy's best for each empty slot that is for them, and for those whose question fell far behind."""
        ours = [slot for slot in slots if not slot.random and slot.key not in look.held]
        taken = {slot.key for slot in slots if slot.random} | look.held
        wanted = STAY * sum(not slot.random for slot in slots)
        if not ours:
            return
        ranked = look.strategy(look.pool, wanted + len(taken), look.rng).tolist()
        best = [row for row in ranked if self._may(look.keys[row], taken)][:wanted]
        self._empty(slot for slot in ours if slot.key and not self._may(slot.key, taken))
        self._take_back(look, ours, _as_good(look, best, {slot.key for slot in ours}))
        standing = {slot.key for slot in ours}
        fresh = (row for row in best if look.keys[row] not in standing)
        for slot, row in zip([slot for slot in ours if not slot.query], fresh, strict=False):
            slot.query = self._query(look, look.name, slot, row)

    def _take_back(self, look: _Look, slots: Sequence[Slot], good: Collection[str | None]) -> None:
        """The last of the questions that fell behind, one while the list is answered through once."""
        behind = [slot for slot in slots if slot.query and slot.key not in good]
        if behind and look.snapshot >= self._take_back_from:
            self._empty(behind[-1:])
            self._take_back_from = look.snapshot + self.budget

    def _may(self, key: str, taken: Collection[str | None]) -> bool:
        return key in self._candidates and key not in taken

    def _query(self, look: _Look, strategy: str, slot: Slot, row: int) -> Query:
        found, mixture = self._candidates[look.keys[row]], look.pool.mixture[row]
        said = look.pool.probabilities[:, row, :].tolist()
        members = {member: tuple(p) for member, p in zip(self.members, said, strict=True)}
        return Query(
            query_id=_query_id(self.model, strategy, found.alert_id, look.snapshot),
            model=self.model,
            survey=found.survey,
            alert_id=found.alert_id,
            object_id=found.object_id,
            strategy=strategy,
            reason=reason(strategy, self.classes, mixture, look.snapshot, members),
            rank=slot.number,
            snapshot=look.snapshot,
            features=found.features,
            probabilities={"mixture": tuple(mixture.tolist()), **members},
            mjd=found.mjd,
            ra=found.ra,
            dec=found.dec,
            magnitude=found.magnitude,
        )


@dataclass(frozen=True)
class _Look:
    """One look at the pool: what `choose` was given, and what somebody holds."""

    name: str
    strategy: Strategy
    pool: Pool
    keys: Sequence[str]  # of the pool's rows
    snapshot: int
    rng: np.random.Generator
    held: set[str | None]


def _as_good(look: _Look, best: Sequence[int], standing: set[str | None]) -> set[str | None]:
    """What stands and is among the best, or has the very same said of it: as long as the model knows nothing, all."""
    pool = look.pool
    said = np.concatenate([pool.probabilities, pool.mixture[None]]).transpose(1, 0, 2)
    known = {said[row].tobytes() for row in best}
    return {key for row, key in enumerate(look.keys) if key in standing and said[row].tobytes() in known}


def _age(candidate: Candidate) -> float:
    return -math.inf if math.isnan(candidate.mjd) else candidate.mjd


def _query_id(model: str, strategy: str, alert_id: str, snapshot: int) -> str:
    """The same question has the same id, so that a trainer that comes back writes no second row."""
    return hashlib.sha256(f"{model}|{strategy}|{alert_id}|{snapshot}".encode()).hexdigest()[:24]
