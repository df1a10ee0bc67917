"""The score of a model that learns while the stream runs: each turn scores with one pinned snapshot of it."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybroker import alerts
from raybroker.errors import SettingsError, did_you_mean
from raybroker.step import Step

SNAPSHOT = "snapshot"


class Prediction(Protocol):
    """What a model says: `mixture` holds probabilities [rows, classes], in the order of the model's classes."""

    @property
    def mixture(self) -> npt.NDArray[np.float64]: ...


class Model(Protocol):
    """Anything that gives probabilities for a table of float64 features, null where unknown."""

    def predict(self, features: pa.Table) -> Prediction: ...


@dataclasses.dataclass(frozen=True)
class Score:
    """The call of a score step. Without a model all is null: nothing has been learned yet."""

    needs: tuple[str, ...]
    model: Model | None = None
    number: int | None = None

    def __call__(
        self, *arrays: pa.Array, columns: Sequence[str], classes: Sequence[str]
    ) -> dict[str, pa.Array]:
        rows = len(arrays[0])
        if self.model is None or rows == 0:
            unknown = {name: pa.nulls(rows, pa.float32()) for name in classes}
            return {**unknown, SNAPSHOT: pa.nulls(rows, pa.int32())}
        features = features_table(dict(zip(self.needs, arrays, strict=True)), columns)
        mixture = self.model.predict(features).mixture
        if mixture.shape != (rows, len(classes)):
            raise ValueError(f"the model gave {mixture.shape} for {rows} alerts and {len(classes)} classes")
        found = {name: _float32(mixture[:, i]) for i, name in enumerate(classes)}
        return {**found, SNAPSHOT: pa.array(np.full(rows, self.number, np.int32))}


def score(name: str, columns: Sequence[str], classes: Sequence[str]) -> Step:
    """The step that scores with the model `name`: a probability per class, and the number of the snapshot that gave
    them. `columns` are dotted paths of features, such as `basic.age`."""
    if not columns:
        raise SettingsError(f"models.{name}.columns: no features are named")
    if SNAPSHOT in classes or len(set(classes)) < len(classes):
        raise SettingsError(f"models.{name}.classes: must differ, and none may be '{SNAPSHOT}'")
    needs = tuple(dict.fromkeys(path.partition(".")[0] for path in columns))
    gives = pa.struct([*((label, pa.float32()) for label in classes), (SNAPSHOT, pa.int32())])
    settings = {"columns": list(columns), "classes": list(classes)}
    return Step(name, "score", Score(needs), needs, gives, settings=settings, about=score.__doc__ or "")


def pinned(step: Step, model: Model | None, number: int | None) -> Step:
    """The same step scoring with this snapshot of its model; the plan stays the same."""
    call = dataclasses.replace(cast(Score, step.call), model=model, number=number)
    return dataclasses.replace(step, call=call)


def features_table(columns: Mapping[str, pa.Array], paths: Iterable[str]) -> pa.Table:
    """The features at these dotted paths as float64 columns named by them; null where unknown or infinite."""
    return pa.table({path: _feature(columns, path) for path in paths})


def feature_digest(values: Iterable[float | None]) -> str:
    """SHA-256, in hex, of a model's features in the order of its columns, as little-endian float64.

    What is not known (None, NaN, infinite: the model sees no difference) is one and the same NaN.

    >>> feature_digest([1.5, None]) == feature_digest([1.5, float("inf")]) != feature_digest([None, 1.5])
    True
    """
    numbers = np.array([np.nan if value is None else value for value in values], "<f8")
    numbers[~np.isfinite(numbers)] = np.nan
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def _feature(columns: Mapping[str, pa.Array], path: str) -> pa.Array:
    name, _, inner = path.partition(".")
    numbers = alerts.values(columns[name], inner)
    return pa.array(numbers, mask=~np.isfinite(numbers))


def _float32(probabilities: npt.NDArray[np.float64]) -> pa.Array:
    return pa.array(probabilities, from_pandas=True).cast(pa.float32())


def expand(
    patterns: Sequence[str], types: Mapping[str, pa.DataType], key: str = "columns"
) -> tuple[str, ...]:
    """Dotted paths of the numeric columns that match these patterns, such as `basic.*`, in their order.

    >>> expand(["early.*"], {"early": pa.struct([("age", pa.float32()), ("band", pa.string())])})
    ('early.age',)
    """
    known = [path for name, kind in types.items() for path in _numeric(name, kind)]
    found: dict[str, None] = {}
    for pattern in patterns:
        matching = fnmatch.filter(known, pattern)
        if not matching:
            near = did_you_mean(pattern, known)
            raise SettingsError(f"{key}: '{pattern}' names no column of numbers{near}")
        found |= dict.fromkeys(matching)
    return tuple(found)


def _numeric(path: str, kind: pa.DataType) -> list[str]:
    if pa.types.is_struct(kind):
        return [inner for field in kind for inner in _numeric(f"{path}.{field.name}", field.type)]
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return [path] if number else []
