"""Files of labels, in and out: CSV or Parquet.

The CSV form is FinkVRA's `labels.csv`: `candid, objectId, label, timestamp`, where ids have no survey before them and
times are ISO 8601 in UTC. A row is known by its content, so that a file that is read twice says nothing new. A row that
cannot be read is named by its number and column; the others are read.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raybroker.errors import RaybrokerError, did_you_mean
from raybroker.learning.labels import Label

CANT_TELL = "can't tell"
SAYS_NOTHING = (CANT_TELL, "?")
# our name of a column: how a file may call it
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "alert_id": ("alert_id", "candid"),
    "object_id": ("object_id", "objectId"),
    "label": ("label",),
    "timestamp": ("timestamp",),
    "model": ("model",),
    "comment": ("comment",),
    "event_id": ("event_id",),
}
NEEDED = ("alert_id", "label")
FINKVRA = ("candid", "objectId", "label", "timestamp")
WHOLE = ("alert_id", "object_id", "label", "timestamp", "model", "who", "source", "comment", "event_id")
PREFIXED = re.compile(r"^[a-z][a-z0-9_]{1,15}:[A-Za-z0-9_.+/ -]{1,64}$")
NAKED = re.compile(r"^[A-Za-z0-9_.+-]{1,64}$")
EVENT_ID = re.compile(r"^[A-Za-z0-9_.:-]{8,64}$")
LONGEST = {"label": 64, "model": 64, "comment": 2_000}
Utc = datetime.UTC


@dataclass(frozen=True)
class Row:
    """One label of a file: the body of its `POST /labels`."""

    number: int  # 1 is the first after the header
    body: Mapping[str, Any]
    names: Mapping[str, str]  # of our columns: how the file calls them

    def broken(self, field: str, why: str) -> Broken:
        """This row, refused: `field` is of the body."""
        name = {"when": "timestamp"}.get(field, field)
        return Broken(self.number, self.names.get(name, name), why)


@dataclass(frozen=True)
class Broken:
    """A row that gives no label. `column` is as the file calls it."""

    number: int
    column: str
    why: str

    def __str__(self) -> str:
        where = f"row {self.number}, column '{self.column}'" if self.column else f"row {self.number}"
        return f"{where}: {self.why}"


class BrokenError(ValueError):
    """A value that is no label's; the column is the one it was read from."""


def read(path: Path, model: str = "", survey: str = "ztf") -> Iterator[Row | Broken]:
    """The rows of a file, in its order. `model` is what rows without one are for; `survey` that of ids without one.

    RaybrokerError where the whole file cannot be read: no such file, another kind, no column of labels or alerts.
    """
    kinds = {".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in kinds:
        raise RaybrokerError(f"{path}: labels are read from {' or '.join(kinds)}")
    if not path.is_file():
        raise RaybrokerError(f"{path} does not exist")
    return kinds[path.suffix.lower()](path, model, survey)


def _csv(path: Path, model: str, survey: str) -> Iterator[Row | Broken]:
    """Line by line, so that a quote that is never closed breaks its own row only."""
    with path.open("rb") as file:
        header, columns = _header(path, file.readline())
        for number, line in enumerate((line for line in file if line.strip()), 1):
            try:
                cells = _cells(line)
                if len(cells) != len(header):
                    raise BrokenError(f"{len(cells)} values where the header has {len(header)}")
            except BrokenError as error:
                yield Broken(number, "", str(error))
                continue
            given = {name: cells[at] for name, at in columns.items()}
            yield _row(number, given, {name: header[at] for name, at in columns.items()}, model, survey)


def _header(path: Path, line: bytes) -> tuple[list[str], dict[str, int]]:
    try:
        names = [name.strip() for name in _cells(line.removeprefix(b"\xef\xbb\xbf"))]
    except BrokenError as error:
        raise RaybrokerError(f"{path}: the first line names no columns: {error}") from error
    return names, columns_of(names, str(path))


def columns_of(names: Sequence[str], where: str) -> dict[str, int]:
    """Where each of our columns is among a file's; RaybrokerError where one that is needed is missing."""
    found = {
        ours: next(names.index(name) for name in theirs if name in names)
        for ours, theirs in COLUMNS.items()
        if any(name in names for name in theirs)
    }
    for needed in NEEDED:
        if needed not in found:
            wanted = " or ".join(f"'{name}'" for name in reversed(COLUMNS[needed]))
            near = "".join(did_you_mean(name, names) for name in COLUMNS[needed][:1])
            raise RaybrokerError(
                f"{where} has no column {wanted}{near}; it has: {', '.join(names) or 'none'}"
            )
    return found


def _cells(line: bytes) -> list[str]:
    text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise BrokenError(f"no line of a CSV: {error}") from error


def _parquet(path: Path, model: str, survey: str) -> Iterator[Row | Broken]:
    try:
        file = pq.ParquetFile(path)
        header = file.schema_arrow.names
        names = {ours: header[at] for ours, at in columns_of(header, str(path)).items()}
        table = file.read(list(names.values()))
    except pa.ArrowException as error:
        raise RaybrokerError(f"{path} cannot be read as Parquet: {error}") from error
    for number, values in enumerate(table.to_pylist(), 1):
        yield _row(number, {ours: values[theirs] for ours, theirs in names.items()}, names, model, survey)


def _row(
    number: int, cells: Mapping[str, Any], names: Mapping[str, str], model: str, survey: str
) -> Row | Broken:
    told: dict[str, Any] = {}
    for name, read_cell in CELLS.items():
        try:
            told[name] = read_cell(cells.get(name), name, survey)
        except BrokenError as error:
            return Broken(number, names.get(name, name), str(error))
    return Row(number, body(told, model), names)


def body(told: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What `POST /labels` is sent: the event id is made from the content, so that the same says nothing new."""
    when: datetime.datetime | None = told["timestamp"]
    given = {
        "alert_id": told["alert_id"],
        "label": None if told["label"] in SAYS_NOTHING else told["label"],
        "model": told["model"] or model or None,
        "when": when.isoformat() if when else None,
    }
    content = json.dumps(given, sort_keys=True).encode()
    return {
        **given,
        "event_id": told["event_id"] or f"file-{hashlib.sha256(content).hexdigest()[:32]}",
        "object_id": told["object_id"],
        "comment": told["comment"],
        "source": "csv",
    }


# Cells. Each takes what the file holds, our name of the column, and the survey.


def _id(value: Any, name: str, survey: str) -> str:
    if isinstance(value, float) or (isinstance(value, str) and re.fullmatch(r"\d\.\d+[eE]\+?\d+", value)):
        raise BrokenError(f"{value!r} is a rounded number: ids of this size need all their digits")
    text = _text(value, name, survey)
    if not text:
        raise BrokenError("is empty")
    named = text if ":" in text else f"{survey}:{text}"
    if not (PREFIXED if ":" in text else NAKED).match(text) or not PREFIXED.match(named):
        raise BrokenError(f"{text[:80]!r} is no id")
    return named


def _optional_id(value: Any, name: str, survey: str) -> str | None:
    return None if value is None or value == "" else _id(value, name, survey)


def _text(value: Any, name: str, survey: str) -> str:
    text = "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise BrokenError("is not UTF-8")
    if len(text) > LONGEST.get(name, 200):
        raise BrokenError(f"is longer than {LONGEST.get(name, 200):,} letters")
    return text


def _label(value: Any, name: str, survey: str) -> str:
    if not (text := _text(value, name, survey)):
        raise BrokenError(f"is empty; '{CANT_TELL}' is written '?'")
    return text


def _optional(value: Any, name: str, survey: str) -> str | None:
    return _text(value, name, survey) or None


def _event_id(value: Any, name: str, survey: str) -> str | None:
    text = _optional(value, name, survey)
    if text and not EVENT_ID.match(text):
        raise BrokenError(f"{text[:80]!r} is no event id: 8 to 64 letters, digits, or any of _.:-")
    return text


def _time(value: Any, name: str, survey: str) -> datetime.datetime | None:
    if isinstance(value, datetime.datetime):
        told = value
    elif not (text := _text(value, name, survey)):
        return None
    else:
        try:
            told = datetime.datetime.fromisoformat(text)
        except ValueError:
            raise BrokenError(f"{text[:80]!r} is no time such as 2026-01-31T22:15:00") from None
    return told.replace(tzinfo=Utc) if told.tzinfo is None else told.astimezone(Utc)


CELLS: Mapping[str, Callable[[Any, str, str], Any]] = {
    "alert_id": _id,
    "object_id": _optional_id,
    "label": _label,
    "timestamp": _time,
    "model": _optional,
    "comment": _optional,
    "event_id": _event_id,
}


# Out.


def write(path: Path, labels: Sequence[Label]) -> None:
    """Labels as a file. CSV is FinkVRA's form as far as it holds all: a column `model` follows where there are several,
    and ids keep their survey where one is not ZTF's. Parquet holds who said it, and the event ids, too.
    """
    if path.suffix.lower() == ".csv":
        _write_csv(path, labels)
    elif path.suffix.lower() == ".parquet":
        pq.write_table(table(labels), path)
    else:
        raise RaybrokerError(f"{path}: labels are written to .csv or .parquet")


def _write_csv(path: Path, labels: Sequence[Label]) -> None:
    naked = all(one.alert_id.startswith("ztf:") for one in labels)
    names = FINKVRA if naked else ("alert_id", "object_id", "label", "timestamp")
    several = len({one.model for one in labels}) > 1
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, *(["model"] if several else [])])
        for one in labels:
            ids = [
                (name or "").removeprefix("ztf:" if naked else "") for name in (one.alert_id, one.object_id)
            ]
            time = _moment(one).replace(tzinfo=None).isoformat()
            writer.writerow([*ids, one.label or CANT_TELL, time, *([one.model] if several else [])])


def table(labels: Iterable[Label]) -> pa.Table:
    """Labels as an Arrow table with the columns `WHOLE`."""
    rows = [
        {name: getattr(one, name, None) for name in WHOLE}
        | {"timestamp": _moment(one), "label": one.label or CANT_TELL}
        for one in labels
    ]
    kinds = {"timestamp": pa.timestamp("us", "UTC")}
    return pa.Table.from_pylist(rows, pa.schema([(name, kinds.get(name, pa.string())) for name in WHOLE]))


def _moment(label: Label) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(label.when, Utc)
