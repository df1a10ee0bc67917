"""Any table of labelled alerts, read and checked: what the protocols need, and a line about all that was left out.

>>> rows = {"kind": ["SN", "AGN"] * 10, "name": [f"o{i // 2}" for i in range(20)], "rise": [float(i) for i in range(20)]}
>>> labelled(pa.table(rows), Names("kind", "name")).classes
('AGN', 'SN')
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raybroker.errors import SettingsError, did_you_mean
from raybroker.protocols import csvs

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

OTHER = "other"
LEAST_OBJECTS = 10  # of the whole table
LEAST_OF_A_CLASS = 2  # objects: one to learn from, one to be asked about
CSV_ENDINGS = (".csv", ".csv.gz", ".csv.bz2", ".csv.zst", ".txt")


@dataclass(frozen=True)
class Names:
    """Which columns mean what. `columns` are globs of the features; `time` is in days, or a timestamp or a date."""

    label: str
    object: str
    time: str | None = None
    columns: tuple[str, ...] = ("*",)
    change: str | None = None  # a column that tells the two sides of a change apart


@dataclass(frozen=True)
class Labelled:
    """Alerts with the class of their object. Nothing in `features` is infinite, constant or empty."""

    features: pa.Table  # float64, null where not known
    labels: Integers  # [rows] places in `classes`
    classes: tuple[str, ...]  # where there are two, the wanted one first
    objects: Integers  # [rows] places in `object_names`
    object_names: tuple[str, ...]
    times: Floats  # [rows] days; all NaN where the table has no time
    change: tuple[str, ...] = ()  # [rows] values of the column named so, as text
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the features."""
        return tuple(self.features.column_names)

    @property
    def timed(self) -> bool:
        """Whether the rows have times."""
        return bool(np.isfinite(self.times).all())

    @property
    def binary(self) -> bool:
        """Whether there is one wanted class and the rest."""
        return len(self.classes) == 2

    def take(self, rows: Any) -> Labelled:
        """Some of the rows, in that order."""
        rows = np.asarray(rows, np.int64)
        return replace(
            self,
            features=self.features.take(pa.array(rows)).combine_chunks(),
            labels=self.labels[rows],
            objects=self.objects[rows],
            times=self.times[rows],
            change=tuple(self.change[row] for row in rows.tolist()) if self.change else (),
        )

    def said(self, rows: Any) -> list[str]:
        """The classes of these rows by name."""
        return [self.classes[label] for label in self.labels[rows].tolist()]

    def in_time(self, rng: np.random.Generator) -> Labelled:
        """Rows in order of time, equals in an order drawn from `rng`; without times, all in such an order."""
        drawn = rng.permutation(len(self))
        times = self.times if self.timed else np.zeros(len(self))
        return self.take(drawn[np.argsort(times[drawn], kind="stable")])

    def of_objects(self, chosen: Any) -> Integers:
        """The rows of these objects."""
        return np.flatnonzero(np.isin(self.objects, chosen))

    def class_of_objects(self) -> Integers:
        """[objects] the class of each object: the one that most of its rows have."""
        counts = np.zeros((len(self.object_names), len(self.classes)), np.int64)
        np.add.at(counts, (self.objects, self.labels), 1)
        return np.asarray(counts.argmax(axis=1), np.int64)

    def shuffled(self, rng: np.random.Generator) -> Labelled:
        """The classes dealt out anew among the objects: whoever predicts these has seen what it must not."""
        dealt = rng.permutation(self.class_of_objects())
        return replace(self, labels=dealt[self.objects])

    def share(self, part: float, rng: np.random.Generator) -> Labelled:
        """A random share of the objects, each with all its rows."""
        present = np.unique(self.objects)
        count = max(1, round(part * len(present)))
        return self.take(self.of_objects(rng.choice(present, count, replace=False)))


def read(path: Path, names: Names) -> tuple[pa.Table, list[str]]:
    """A Parquet or CSV file as a flat table (structs as dotted columns), and what is to be said of it."""
    if not path.exists():
        raise SettingsError(f"{path}: there is no such file")
    if path.name.lower().endswith(CSV_ENDINGS):
        text = [name for name in (names.label, names.object, names.change) if name]
        table, broken = csvs.read(path, text)
        return table, csvs.notes(broken)
    try:
        return flat(pq.read_table(path)), []
    except (pa.ArrowInvalid, OSError) as error:
        raise SettingsError(f"{path} cannot be read as Parquet, and is not called .csv: {error}") from None


def flat(table: pa.Table) -> pa.Table:
    """Structs as dotted columns: 'early.age'."""
    while any(pa.types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    return table


def labelled(
    table: pa.Table, names: Names, wanted: Sequence[str] = (), notes: Sequence[str] = ()
) -> Labelled:
    """The table as the protocols want it; SettingsError says what it lacks. `wanted` are globs of one class of interest."""
    said = list(notes)
    _check_names(table, names)
    table = _known_rows(table, names, said)
    times, table = _times(table, names, said)
    labels, classes = classes_of(_texts(table, names.label), wanted, said)
    objects, object_names = _codes(_texts(table, names.object))
    features = _features(table, names, said)
    change = tuple(_texts(table, names.change)) if names.change else ()
    made = Labelled(features, labels, classes, objects, object_names, times, change)
    return replace(_enough(made, said), notes=tuple(said))


def _check_names(table: pa.Table, names: Names) -> None:
    for what in ("label", "object", "time", "change"):
        name = getattr(names, what)
        if name is not None and name not in table.column_names:
            near = did_you_mean(name, table.column_names)
            shown = ", ".join(table.column_names[:12]) + (", ..." if table.num_columns > 12 else "")
            raise SettingsError(f"--{what} {name}: the table has no such column{near}; it has {shown}")
    for pattern in names.columns:
        if not fnmatch.filter(table.column_names, pattern):
            near = did_you_mean(pattern, table.column_names)
            raise SettingsError(f"--columns {pattern}: names no column of the table{near}")


def _known_rows(table: pa.Table, names: Names, said: list[str]) -> pa.Table:
    for what, name in (("label", names.label), ("object", names.object)):
        unknown = table.column(name).is_null()
        if missing := pc.sum(unknown).as_py():
            said.append(f"{missing:,} rows without {what} ('{name}' is null) were left out")
            table = table.filter(pc.invert(unknown))
    if not table.num_rows:
        raise SettingsError(
            f"no row of the table has both a label ('{names.label}') and an object ('{names.object}')"
        )
    return table


def _texts(table: pa.Table, name: str) -> list[str]:
    """A column as text; 51.0 is written 51, so that a CSV and a Parquet file have the same classes."""
    return [_text(value) for value in table.column(name).to_pylist()]


def _text(value: Any) -> str:
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return str(int(number)) if number.is_integer() and "." in value else value
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _codes(texts: Sequence[str]) -> tuple[Integers, tuple[str, ...]]:
    found, places = np.unique(np.array(texts, object), return_inverse=True)
    return places.astype(np.int64), tuple(found.tolist())


def classes_of(texts: list[str], wanted: Sequence[str], said: list[str]) -> tuple[Integers, tuple[str, ...]]:
    """Class numbers; with `wanted`, two classes: what matches one of its globs, and 'other'."""
    if not wanted:
        codes, names = _codes(texts)
        if len(names) == 2 and (codes == 0).sum() > (codes == 1).sum():  # the rarer is the wanted one
            return 1 - codes, names[::-1]
        return codes, names
    known = sorted(set(texts))
    mine = {text for text in known for glob in wanted if fnmatch.fnmatchcase(text, glob)}
    for glob in wanted:
        if not any(fnmatch.fnmatchcase(text, glob) for text in known):
            raise SettingsError(
                f"--wanted {glob}: no such class{did_you_mean(glob, known)}; there are {_some(known)}"
            )
    said.append(f"the wanted class is {_some(sorted(mine))}")
    name = wanted[0] if len(wanted) == 1 else "wanted"
    return np.array([text not in mine for text in texts], np.int64), (name, OTHER)


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(f"'{name}'" for name in names[:most]) + (" ..." if len(names) > most else "")


def _times(table: pa.Table, names: Names, said: list[str]) -> tuple[Floats, pa.Table]:
    if names.time is None:
        return np.full(table.num_rows, np.nan), table
    days = _days(table.column(names.time).combine_chunks(), names.time)
    known = np.isfinite(days)
    if not known.all():
        said.append(f"{(~known).sum():,} rows without time ('{names.time}' is null) were left out")
    if not known.any():
        raise SettingsError(f"--time {names.time}: no row has a time")
    return days[known], table.filter(pa.array(known))


def _days(column: pa.Array, name: str) -> Floats:
    """A column of numbers as it is; dates and timestamps as days."""
    kind = column.type
    try:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            column, kind = column.cast(pa.timestamp("us")), pa.timestamp("us")
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            column = column.cast(pa.timestamp("us")).cast(pa.int64())
            return array(column) / 86_400e6
        return array(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise SettingsError(
            f"--time {name}: a column of {kind} is no time: numbers of days (such as MJD), dates or timestamps are"
        ) from None


def array(column: Any) -> Floats:
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _features(table: pa.Table, names: Names, said: list[str]) -> pa.Table:
    taken = {names.label, names.object, names.time, names.change}
    every = names.columns == ("*",)
    chosen = [n for n in table.column_names if any(fnmatch.fnmatchcase(n, glob) for glob in names.columns)]
    kept: dict[str, pa.Array] = {}
    for name in (name for name in chosen if name not in taken):
        column = table.column(name).combine_chunks()
        if _is_number(column.type):
            if made := _feature(name, column, every, said):
                kept[name] = made[0]
        elif not every and name in names.columns:
            raise SettingsError(f"--columns {name}: it holds {column.type}, not numbers")
    if not kept:
        raise SettingsError(
            "the table has no column of numbers that varies; features are what a model learns from"
        )
    return pa.table(kept)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _feature(name: str, column: pa.Array, every: bool, said: list[str]) -> tuple[pa.Array] | None:
    """The column as float64, or None where it says nothing."""
    numbers = array(column)
    infinite = np.isinf(numbers)
    if infinite.any():
        said.append(f"column '{name}': {infinite.sum():,} infinite values count as not known")
    known = numbers[np.isfinite(numbers)]
    if not len(known) or known.min() == known.max():
        said.append(f"column '{name}' is {'constant' if len(known) else 'empty'}: left out")
        return None
    if every and pa.types.is_integer(column.type) and len(known) == len(np.unique(known)) > 1_000:
        said.append(
            f"column '{name}' has another whole number in every row, as an id has: left out (--columns keeps it)"
        )
        return None
    return (pa.array(numbers, mask=~np.isfinite(numbers)),)


def _enough(made: Labelled, said: list[str]) -> Labelled:
    """Without classes of a single object; SettingsError where too little is left."""
    per_class = np.bincount(made.class_of_objects()[np.unique(made.objects)], minlength=len(made.classes))
    if len(made.classes) < 2:
        raise SettingsError(
            f"all {len(made):,} rows have the class '{made.classes[0]}': at least two classes are needed to tell apart"
        )
    rare = [c for c in range(len(made.classes)) if per_class[c] < LEAST_OF_A_CLASS]
    said += [f"class '{made.classes[c]}' has {per_class[c]} object(s): left out" for c in rare]
    made = _without(made, rare) if rare else made
    objects = len(np.unique(made.objects))
    if len(made.classes) < 2 or objects < LEAST_OBJECTS:
        raise SettingsError(
            f"{len(made):,} usable rows of {objects:,} objects in {len(made.classes)} classes are too few: at least "
            f"{LEAST_OBJECTS} objects are needed, and {LEAST_OF_A_CLASS} of each of two classes"
        )
    return made


def _without(made: Labelled, rare: Iterable[int]) -> Labelled:
    """Without the rows of some classes; numbers of classes and objects close up."""
    rare = set(rare)
    left = [c for c in range(len(made.classes)) if c not in rare]
    made = made.take(np.flatnonzero(np.isin(made.labels, left)))
    present, objects = np.unique(made.objects, return_inverse=True)
    return replace(
        made,
        labels=np.searchsorted(left, made.labels).astype(np.int64),
        classes=tuple(made.classes[c] for c in left),
        objects=objects.astype(np.int64),
        object_names=tuple(made.object_names[place] for place in present.tolist()),
    )
