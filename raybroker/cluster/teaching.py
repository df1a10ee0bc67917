"""What a label teaches a model: the features of its alert, and what was said of it before."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raybroker.learning.shortlist import Query
from raybroker.scores.online import feature_digest


@dataclass(frozen=True)
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
