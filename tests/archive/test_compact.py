from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raybroker.archive import compact, delta
from raybroker.archive.delta import File
from raybroker.archive.table import AlertsTable

from .conftest import SCHEMA

P0 = "c/t/0"
DAY_MS = 86_400_000


@pytest.fixture
def table(tmp_path: Path, night_rows: pa.Table) -> AlertsTable:
    """Ten turns of one night."""
    table = AlertsTable(tmp_path, "ztf", SCHEMA)
    append(table, night_rows.slice(0, 400), 40)
    return table


def append(table: AlertsTable, rows: pa.Table, size: int) -> None:
    at = table.positions([P0]).get(P0)
    for start in range(0, len(rows), size):
        turn = rows.slice(start, size)
        last, at = at, (at or 0) + len(turn)
        table.append(turn, {P0: last}, {P0: at})


def of_night(rows: pa.Table, night: int) -> pa.Table:
    at = SCHEMA.get_field_index("night")
    return rows.set_column(at, SCHEMA.field("night"), pa.array([night] * len(rows), pa.int32()))


def ids(table: AlertsTable) -> list[str]:
    return sorted(table.read(["alert_id"])[0]["alert_id"].to_pylist())


def test_many_files_become_one_with_the_same_rows(table: AlertsTable) -> None:
    before = table.read()[0].sort_by("offset")
    done = compact.compact(table.folder)
    assert (done.merges, done.rows, done.removed, done.live, done.refused) == (1, 400, 10, 1, False)
    assert table.read()[0].sort_by("offset").equals(before)
    assert compact.compact(table.folder).merges == 0


def test_the_tail_does_not_see_a_compaction(table: AlertsTable, night_rows: pa.Table) -> None:
    _, version = table.tail(-1)
    compact.compact(table.folder)
    append(table, night_rows.slice(400), 98)
    rows, _ = table.tail(version, ["alert_id"])
    assert rows["alert_id"].to_pylist() == night_rows["alert_id"].slice(400).to_pylist()


def test_of_two_compactors_from_one_version_the_second_is_refused(table: AlertsTable) -> None:
    before = ids(table)
    first, second = delta.open_table(table.folder), delta.open_table(table.folder)
    group = next(compact.plan(delta.live(first), 0))
    compact.merge(table.folder, first, group)
    with pytest.raises(delta.Conflict):
        compact.merge(table.folder, second, group)
    assert ids(table) == before


def test_a_refused_compactor_says_so(table: AlertsTable, monkeypatch: pytest.MonkeyPatch) -> None:
    before, merge = ids(table), compact.merge

    def merge_after_another(folder: Path, handle: object, group: compact.Group) -> None:
        merge(folder, delta.open_table(folder), group)
        merge(folder, handle, group)  # type: ignore[arg-type]

    monkeypatch.setattr(compact, "merge", merge_after_another)
    done = compact.compact(table.folder)
    assert (done.refused, done.merges) == (True, 0)
    assert ids(table) == before


def test_turns_go_on_while_files_are_merged(table: AlertsTable, night_rows: pa.Table) -> None:
    handle = delta.open_table(table.folder)
    group = next(compact.plan(delta.live(handle), 0))
    append(table, night_rows.slice(400, 60), 30)
    compact.merge(table.folder, handle, group)
    append(table, night_rows.slice(460), 38)
    assert ids(table) == sorted(night_rows["alert_id"].to_pylist())
    assert table.positions([P0]) == {P0: 498}


def test_a_new_column_between_is_no_harm(table: AlertsTable, night_rows: pa.Table) -> None:
    handle = delta.open_table(table.folder)
    group = next(compact.plan(delta.live(handle), 0))
    AlertsTable(table.folder.parent.parent, "ztf", SCHEMA.append(pa.field("early", pa.float32())))
    with pytest.raises(delta.Conflict):
        compact.merge(table.folder, handle, group)
    assert compact.compact(table.folder).live == 1
    assert ids(table) == sorted(night_rows["alert_id"].slice(0, 400).to_pylist())


def test_an_old_quiet_night_is_laid_out_by_healpix(table: AlertsTable, night_rows: pa.Table) -> None:
    append(table, of_night(night_rows.slice(400), 20181203), 98)
    soon, later = int(time.time() * 1000), int(time.time() * 1000) + DAY_MS
    assert not any(group.sort for group in compact.plan(delta.live(delta.open_table(table.folder)), soon))
    done = compact.compact(table.folder, now_ms=later)
    assert (done.merges, done.live) == (1, 2)
    files = [f for f in delta.live(delta.open_table(table.folder)) if f.path.startswith(compact.SORTED)]
    cells = delta.read(table.folder, [files[0].path], SCHEMA)["healpix"].to_pylist()
    assert (len(files), len(cells)) == (1, 400)
    assert cells == sorted(cells)
    assert ids(table) == sorted(night_rows["alert_id"].to_pylist())


def test_live_files_stay_few_however_many_turns_there_are() -> None:
    """Ten nights of 3,000 turns: the plan, on files that exist in the log only."""
    live: list[File] = []
    numbers = itertools.count()
    rewritten = most = 0
    for night in range(20260101, 20260111):
        for turn in range(3000):
            live.append(file_of(f"{next(numbers)}", night, 400))
            if turn % 20 == 0:
                live, rows = run(live, DAY_MS)
                rewritten += rows
            most = max(most, len(live))
    assert most < 500
    assert sum(file.rows for file in live) == 10 * 3000 * 400
    assert rewritten < 5 * 10 * 3000 * 400


def file_of(path: str, night: int, rows: int) -> File:
    return File(path, rows * 800, 0, rows, {"night": night}, {"night": night})


def run(live: list[File], now_ms: int) -> tuple[list[File], int]:
    rewritten = 0
    while (group := next(compact.plan(live, now_ms), None)) is not None:
        prefix = compact.SORTED if group.sort else ""
        rows = sum(file.rows for file in group.files)
        assert rows <= compact.MOST_ROWS
        gone = {file.path for file in group.files}
        merged = file_of(f"{prefix}{min(gone)}-{rows}", max(f.most["night"] for f in group.files), rows)
        live = [file for file in live if file.path not in gone] + [merged]
        rewritten += rows
    return live, rewritten


def test_vacuum_deletes_what_has_long_not_been_live(table: AlertsTable, night_rows: pa.Table) -> None:
    before = ids(table)
    compact.compact(table.folder)
    orphan = delta.write_file(table.folder, night_rows)
    assert compact.vacuum(table.folder) == 0, "readers may still be in them"
    for path in table.folder.glob("*.parquet"):
        os.utime(path, (0, 0))
    assert compact.vacuum(table.folder) == 11
    assert not (table.folder / orphan.path).exists()
    assert ids(table) == before


def test_a_file_that_was_just_replaced_is_kept_for_its_readers(table: AlertsTable) -> None:
    for path in table.folder.glob("*.parquet"):
        os.utime(path, (0, 0))
    compact.compact(table.folder)
    assert compact.vacuum(table.folder) == 0


def test_a_tail_whose_files_are_gone_reads_all(table: AlertsTable) -> None:
    compact.compact(table.folder)
    compact.vacuum(table.folder, older_than_hours=-1)
    rows, _ = table.tail(3, ["alert_id"])
    assert len(rows) == 400
    assert pc.count_distinct(rows["alert_id"]).as_py() == 400


def test_all_tables_of_an_archive_are_found(table: AlertsTable) -> None:
    root = table.folder.parent.parent
    assert set(compact.compact_all(root)) == {"ztf/alerts"}
