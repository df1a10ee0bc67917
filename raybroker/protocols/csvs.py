"""CSV as it comes: every row that can be read is, and every one that cannot is named with its column."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from raybroker.errors import SettingsError

NULLS = ("", "NULL", "null", "None", "none", "NA", "N/A", "n/a", "NaN", "nan")
NUMERIC = 0.9  # of a column's cells: where fewer are numbers, the column is text
SHOWN = 5  # broken rows that are named one by one


@dataclass(frozen=True)
class Broken:
    """A row that was left out; rows are counted as a person does, the header being row 1."""

    row: int
    reason: str


def read(path: Path, text: Iterable[str]) -> tuple[pa.Table, list[Broken]]:
    """The table and the rows left out. Columns of `text` stay as they are written, the others become numbers if they are."""
    cells, numbers, broken = _cells(path)
    arrays, bad = {}, dict[int, str]()
    for name in cells.column_names:
        column = cells.column(name).combine_chunks()
        arrays[name], wrong = (column, []) if name in text else _numbers(column)
        for row in wrong:
            bad.setdefault(row, f"column '{name}': '{column[row].as_py()}' is not a number")
    kept = np.setdiff1d(np.arange(cells.num_rows), list(bad))
    broken += [Broken(int(numbers[row]), reason) for row, reason in bad.items()]
    return pa.table(arrays).take(pa.array(kept)), sorted(broken, key=lambda one: one.row)


def notes(broken: Sequence[Broken]) -> list[str]:
    """What is said of them: the first few by number, and how many there are."""
    if not broken:
        return []
    lines = [f"row {one.row}, {one.reason}" for one in broken[:SHOWN]]
    more = f" (the first {SHOWN} are named)" if len(broken) > SHOWN else ""
    plural = "s were" if len(broken) > 1 else " was"
    return [*lines, f"{len(broken):,} broken row{plural} left out{more}; the rest is used"]


def _cells(path: Path) -> tuple[pa.Table, Any, list[Broken]]:
    """All cells as text, the number of each row in the file, and the rows with too few or too many cells."""
    odd: list[Any] = []

    def handle(row: Any) -> str:
        odd.append(row)
        return "skip"

    header = _header(path)
    try:
        table = pyarrow.csv.read_csv(
            path,
            # without threads, since only then a row's number is known
            read_options=pyarrow.csv.ReadOptions(use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=handle, ignore_empty_lines=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                null_values=list(NULLS),
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise SettingsError(f"{path} cannot be read as CSV: {error}") from None
    skipped = {row.number for row in odd}
    numbers = [n for n in range(2, table.num_rows + len(odd) + 2) if n not in skipped]
    ragged = [Broken(row.number, _ragged(row, header)) for row in odd if row.text.strip()]
    empty = np.logical_and.reduce([np.asarray(column.is_null()) for column in table.columns])  # blank lines
    return table.filter(pa.array(~empty)), np.array(numbers, int)[~empty], ragged


def _header(path: Path) -> list[str]:
    """The names of the columns, each once."""
    try:
        options = pyarrow.csv.ReadOptions(use_threads=False)
        skip = pyarrow.csv.ParseOptions(invalid_row_handler=lambda row: "skip")
        with pyarrow.csv.open_csv(path, read_options=options, parse_options=skip) as reader:
            names = list(reader.schema.names)
    except (pa.ArrowInvalid, OSError) as error:
        raise SettingsError(f"{path} cannot be read as CSV: {error}") from None
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SettingsError(
            f"{path}: the header has '{twice[0]}' twice; every column needs a name of its own"
        )
    return names


def _ragged(row: Any, header: Sequence[str]) -> str:
    if row.actual_columns < row.expected_columns:
        return f"column '{header[row.actual_columns]}': the row ends before it, after {row.actual_columns} of {len(header)} cells"
    return (
        f"column '{header[-1]}': {row.actual_columns - len(header)} more cells follow after the last column"
    )


def _numbers(column: pa.StringArray) -> tuple[pa.Array, list[int]]:
    """The column as float64 and the rows whose cell is no number; or as it is, where it is text."""
    try:
        return column.cast(pa.float64()), []
    except pa.ArrowInvalid:
        values = column.to_pylist()
    made = [_number(value) for value in values]
    wrong = [
        row for row, (value, number) in enumerate(zip(values, made, strict=True)) if _differ(value, number)
    ]
    if len(wrong) > (1 - NUMERIC) * max(len(values) - column.null_count, 1):
        return column, []
    return pa.array(made, pa.float64()), wrong


def _number(cell: str | None) -> float | None:
    try:
        found = float(cell) if cell is not None else math.nan
    except ValueError:
        return None
    return None if math.isnan(found) else found


def _differ(cell: str | None, number: float | None) -> bool:
    """Whether something stands there that is no number."""
    return number is None and cell is not None and cell.strip().lower() not in {"", "nan"}
