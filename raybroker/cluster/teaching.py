"""What a label teaches a model: the features of its alert, and what was said of it before."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raybroker.learning.shortlist import Query
from raybroker.scores.online import feature_digest

OWN = "own"  # a model's own configuration; the others are its challengers


class Row(Mapping[str, float | None]):
    """One alert's features, for as long as a model lives: eight bytes each, where a dict of them takes fifty and more.

    >>> row = Row({"rise": 0, "colour": 1}, {"rise": 1.5, "colour": None, "never asked": 2.0})
    >>> dict(row)
    {'rise': 1.5, 'colour': None}
    """

    __slots__ = ("_numbers", "_places")

    def __init__(self, places: Mapping[str, int], features: Mapping[str, float | None]) -> None:
        """`places` (0, 1, 2 ... by column) is one for all rows. What is not known is NaN: no model sees a difference."""
        known = (features.get(path) for path in places)
        self._places = places
        self._numbers = array("d", [math.nan if number is None else number for number in known])

    def __getitem__(self, path: str) -> float | None:
        number = self._numbers[self._places[path]]
        return None if math.isnan(number) else number

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a label teaches: the features as they were when the question was asked, and what was said of them then."""

    alert_id: str
    features: Mapping[str, float | None]
    mjd: float
    before: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)  # by member, as float32
    pick: bool = False  # a random pick

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Asked:
        """Of a question as the log keeps it."""
        said = {one["member"]: one["probabilities"] for one in row["probabilities"] or ()}
        return cls(row["alert_id"], row["features"], row["mjd"], said, row["strategy"] == "random")

    @classmethod
    def when(cls, query: Query) -> Asked:
        """Of a question that is asked now: the same as `of` its row, since the log keeps float32."""
        said = {who: np.float32(p).tolist() for who, p in query.probabilities.items()}
        return cls(query.alert_id, query.features, query.mjd, said, query.strategy == "random")

    def kept(self, places: Mapping[str, int]) -> Asked:
        """The same with these features alone, as a `Row`: one is kept of each label."""
        return dataclasses.replace(self, features=Row(places, self.features))

    def digest(self, columns: Sequence[str]) -> str:
        """Of all that a label teaches through it: equal ones teach the same, bit for bit."""
        said = {name: np.float32(p).tobytes().hex() for name, p in self.before.items()}
        features = feature_digest(self.features.get(path) for path in columns)
        told = (self.alert_id, features, float(self.mjd).hex(), self.pick, sorted(said.items()))
        return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def table_digest(table: pa.Table) -> str:
    """Of numbers by column, null where not known."""
    columns = (np.array(table[name].to_numpy(), np.float64).tobytes() for name in table.column_names)
    return hashlib.sha256(repr(table.column_names).encode() + b"".join(columns)).hexdigest()


def member_names(key: str, members: Sequence[str]) -> tuple[str, ...]:
    """A configuration's members as a question names them."""
    return tuple(members) if key == OWN else tuple(f"{key}/{name}" for name in members)


def features_of(rows: Sequence[Mapping[str, float | None]], columns: Sequence[str]) -> pa.Table:
    """Rows of features as a table of these columns."""
    arrays = [pa.array([row.get(path) for row in rows], pa.float64()) for path in columns]
    return pa.table(arrays, names=list(columns))


def said_of(learners: Mapping[str, Any], rows: pa.Table) -> list[dict[str, tuple[float, ...]]]:
    """Of each row: the probabilities of the classes by each member of each configuration."""
    found: list[dict[str, tuple[float, ...]]] = [{} for _ in range(rows.num_rows)]
    for key, learner in learners.items():
        said = learner.frozen().predict(rows).members
        for name, by_row in zip(member_names(key, learner.member_names), said, strict=True):
            for one, p in zip(found, by_row.tolist(), strict=True):
                one[name] = tuple(p)
    return found
