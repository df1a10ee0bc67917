from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from raybroker.alerts import Packet
from raybroker.archive import compact, delta, segments
from raybroker.archive.lookup import Lookup
from raybroker.archive.table import AlertsTable
from raybroker.errors import ArchiveError, FencedError, UnknownError
from raybroker.places import Place

from .conftest import SCHEMA, header_length, rows_of

P0, P1 = "cluster/topic-id/0", "cluster/topic-id/1"
spawn = multiprocessing.get_context("spawn")


@pytest.fixture
def table(tmp_path: Path) -> AlertsTable:
    return AlertsTable(tmp_path, "ztf", SCHEMA)


def ids(rows: pa.Table) -> list[str]:
    return sorted(rows["alert_id"].to_pylist())


def live_by_hand(folder: Path) -> list[Path]:
    """The live files, from the log alone: no deltalake, no raybroker."""
    found: set[str] = set()
    for log in sorted((folder / "_delta_log").glob("*.json")):
        for action in map(json.loads, log.read_text().splitlines()):
            found |= {action["add"]["path"]} if "add" in action else set()
            found -= {action["remove"]["path"]} if "remove" in action else set()
    return [folder / path for path in found]


def test_rows_come_back_as_they_went_in(table: AlertsTable, night_rows: pa.Table) -> None:
    table.append(night_rows, {P0: None}, {P0: 498})
    found, version = table.read()
    assert found.equals(night_rows.cast(found.schema))
    assert version == 1
    assert table.positions([P0, P1]) == {P0: 498}


def test_the_files_are_plain_parquet(table: AlertsTable, night_rows: pa.Table) -> None:
    table.append(night_rows.slice(0, 100), {P0: None}, {P0: 100})
    table.append(night_rows.slice(100), {P0: 100}, {P0: 498})
    found = pa.concat_tables([pq.read_table(path) for path in live_by_hand(table.folder)])
    assert ids(found) == ids(night_rows)
    assert sum(found["history"].combine_chunks().value_lengths().to_pylist()) > 498


def test_statistics_let_readers_skip_files(table: AlertsTable, night_rows: pa.Table) -> None:
    table.append(night_rows, {P0: None}, {P0: 498})
    (file,) = delta.live(delta.open_table(table.folder))
    assert file.rows == 498
    assert (file.least["night"], file.most["night"]) == (20181129, 20181129)
    assert (file.least["offset"], file.most["offset"]) == (0, 497)
    assert file.least["healpix"] == min(night_rows["healpix"].to_pylist())
    assert file.most["alert_id"] == max(night_rows["alert_id"].to_pylist())


def test_the_same_turn_twice_is_refused(table: AlertsTable, night_rows: pa.Table) -> None:
    table.append(night_rows, {P0: None}, {P0: 498})
    with pytest.raises(FencedError, match=f"{P0} is at 498 .* left it at None"):
        table.append(night_rows, {P0: None}, {P0: 498})
    assert len(table.read(["alert_id"])[0]) == 498


def test_a_zombie_is_refused_after_its_successor_has_committed(tmp_path: Path, night_rows: pa.Table) -> None:
    zombie, successor = AlertsTable(tmp_path, "ztf", SCHEMA), AlertsTable(tmp_path, "ztf", SCHEMA)
    zombie.append(night_rows.slice(0, 100), {P0: None}, {P0: 100})
    assert successor.positions([P0]) == {P0: 100}
    successor.append(night_rows.slice(100, 37), {P0: 100}, {P0: 137})
    with pytest.raises(FencedError):
        zombie.append(night_rows.slice(100, 50), {P0: 100}, {P0: 150})
    assert ids(successor.read(["alert_id"])[0]) == ids(night_rows.slice(0, 137))


def test_a_commit_that_comes_between_check_and_commit_is_noticed(
    tmp_path: Path, night_rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = AlertsTable(tmp_path, "ztf", SCHEMA), AlertsTable(tmp_path, "ztf", SCHEMA)
    checked = slow._check_owner

    def check_then_lose_the_race(expected: dict[str, int | None]) -> None:
        checked(expected)
        if not quick.positions([P0]):
            quick.append(night_rows.slice(0, 10), {P0: None}, {P0: 10})

    monkeypatch.setattr(slow, "_check_owner", check_then_lose_the_race)
    with pytest.raises(FencedError):
        slow.append(night_rows.slice(0, 20), {P0: None}, {P0: 20})
    assert len(slow.read(["alert_id"])[0]) == 10


@pytest.mark.parametrize("rows", [0, 3])
def test_a_commit_that_raises_and_stands_is_a_commit(
    table: AlertsTable, night_rows: pa.Table, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """deltalake raises where what it does after a commit fails, such as a checkpoint on a full disk."""
    real = DeltaTable.create_write_transaction

    def then_fail(*given: Any, **named: Any) -> None:
        real(*given, **named)
        raise FileNotFoundError("00000000000000000139.json not found")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", then_fail)
    table.append(night_rows.slice(0, rows), {P0: None}, {P0: 3})
    assert table.positions([P0]) == {P0: 3}
    assert len(table.read(["alert_id"])[0]) == rows
    with pytest.raises(FencedError):
        table.append(night_rows.slice(0, rows), {P0: None}, {P0: 3})


@pytest.mark.parametrize("rows", [0, 3])
def test_a_commit_that_raises_and_does_not_stand_is_none(
    table: AlertsTable, night_rows: pa.Table, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    def fail(*given: Any, **named: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DeltaTable, "create_write_transaction", fail)
        with pytest.raises(ArchiveError, match="No space left"):
            table.append(night_rows.slice(0, rows), {P0: None}, {P0: 3})
    assert table.positions([P0]) == {}
    table.append(night_rows.slice(0, rows), {P0: None}, {P0: 3})
    assert table.positions([P0]) == {P0: 3}


def append_and_count_errors(root: Place, rows: Path, app_id: str, count: int, told: Any) -> None:
    delta.CONFIGURATION |= OFTEN
    table, row = AlertsTable(root, "ztf", SCHEMA), pq.read_table(rows, schema=SCHEMA).slice(0, 1)
    for i in range(count):
        try:
            table.append(row, {app_id: i or None}, {app_id: i + 1})
        except Exception as error:
            told.put(repr(error))
            return
        if i % 40 == 39 and app_id == P0:  # without any retention, two would take each other's log
            compact.compact_all(root)


OFTEN = {"delta.checkpointInterval": "10", "delta.logRetentionDuration": "interval 0 seconds"}


def test_logs_are_cleaned_while_several_write_and_no_commit_fails_for_it(
    tmp_path: Path, night_rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "CONFIGURATION", delta.CONFIGURATION | OFTEN)
    folder = AlertsTable(tmp_path, "ztf", SCHEMA).folder
    rows = tmp_path / "rows.parquet"
    pq.write_table(night_rows, rows)
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    apps = [f"cluster/topic-id/{i}" for i in range(3)]
    ours = [spawn.Process(target=append_and_count_errors, args=(tmp_path, rows, a, 120, told)) for a in apps]
    for process in ours:
        process.start()
    for process in ours:
        process.join()
    assert told.empty()
    table = AlertsTable(tmp_path, "ztf", SCHEMA)
    assert table.positions(apps) == dict.fromkeys(apps, 120)
    assert len(table.read(["alert_id"])[0]) == 360
    assert not (folder / "_delta_log" / f"{10:020d}.json").exists()


def test_a_position_whose_log_was_cleaned_away_is_read_anew_and_a_merge_is_refused(
    tmp_path: Path, night_rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "CONFIGURATION", delta.CONFIGURATION | OFTEN)
    table = AlertsTable(tmp_path, "ztf", SCHEMA)
    for i in range(15):
        table.append(night_rows.slice(i, 1), {P0: i or None}, {P0: i + 1})
    old, stale = delta.open_table(table.folder), AlertsTable(tmp_path, "ztf")
    for i in range(15, 40):
        table.append(night_rows.slice(i, 1), {P0: i}, {P0: i + 1})
    compact.compact_all(tmp_path)
    with pytest.raises(delta.Conflict):
        delta.transaction(old, P0)
    with pytest.raises(ArchiveError, match="cleaned away under its reader"):
        stale.positions([P0], fresh=False)
    assert stale.positions([P0]) == {P0: 40}
    monkeypatch.setattr(delta, "open_table", lambda folder: old)
    assert compact.compact(table.folder).refused


def test_a_stale_handle_still_commits_other_partitions(tmp_path: Path, night_rows: pa.Table) -> None:
    one, other = AlertsTable(tmp_path, "ztf", SCHEMA), AlertsTable(tmp_path, "ztf", SCHEMA)
    one.append(night_rows.slice(0, 100), {P0: None}, {P0: 100})
    other.append(night_rows.slice(100), {P1: None}, {P1: 398})
    assert ids(one.read(["alert_id"])[0]) == ids(night_rows)


def append_in_turns(root: Place, rows: Path, app_id: str, start: int, size: int) -> None:
    table, mine = AlertsTable(root, "ztf", SCHEMA), pa.ipc.open_file(rows).read_all().slice(start, size)
    last = None
    for at in range(0, size, 10):
        turn = mine.slice(at, 10)
        table.append(turn, {app_id: last}, {app_id: at + len(turn)})
        last = at + len(turn)


def test_processes_that_create_the_table_and_write_together_lose_nothing(
    tmp_path: Path, night_rows: pa.Table
) -> None:
    stored = tmp_path / "rows.arrow"
    with pa.ipc.new_file(stored, SCHEMA) as writer:
        writer.write_table(night_rows)
    parts = [(f"c/t/{i}", i * 166, 166) for i in range(3)]
    workers = [spawn.Process(target=append_in_turns, args=(tmp_path, stored, *part)) for part in parts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    table = AlertsTable(tmp_path, "ztf", SCHEMA)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert ids(table.read(["alert_id"])[0]) == ids(night_rows)
    assert table.positions([part[0] for part in parts]) == {part[0]: 166 for part in parts}


def die_between_segment_and_commit(root: Place, packets: list[Packet]) -> None:
    table = AlertsTable(root, "ztf", SCHEMA)
    name = segments.write(root / "ztf", packets, header_length)
    delta.commit = lambda *_: os._exit(9)
    table.append(rows_of(packets, name), {P0: None}, {P0: len(packets)})


def test_a_worker_killed_before_its_commit_leaves_only_orphans(
    tmp_path: Path, night_packets: tuple[Packet, ...]
) -> None:
    some = list(night_packets[:37])
    worker = spawn.Process(target=die_between_segment_and_commit, args=(tmp_path, some))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 9
    table = AlertsTable(tmp_path, "ztf", SCHEMA)
    assert len(segments.names(tmp_path / "ztf")) == 1
    assert len(list(table.folder.glob("*.parquet"))) == 1
    assert (len(table.read()[0]), table.positions([P0])) == (0, {})
    name = segments.write(tmp_path / "ztf", some, header_length)
    table.append(rows_of(some, name), {P0: None}, {P0: 37})
    rows = table.read(["segment", "position"])[0].to_pylist()
    assert [segments.read(tmp_path / "ztf", r["segment"], r["position"]) for r in rows] == some


def test_positions_alone_may_be_committed(table: AlertsTable) -> None:
    table.append(SCHEMA.empty_table(), {P0: None}, {P0: 5})
    assert (table.positions([P0]), len(table.read()[0])) == ({P0: 5}, 0)


def test_a_position_never_goes_back(table: AlertsTable, night_rows: pa.Table) -> None:
    table.append(night_rows, {P0: None}, {P0: 498})
    with pytest.raises(ArchiveError, match="498 does not come after 498"):
        table.append(night_rows, {P0: 498}, {P0: 498})


def test_a_new_plans_columns_are_null_in_old_rows(tmp_path: Path, night_rows: pa.Table) -> None:
    table = AlertsTable(tmp_path, "ztf", SCHEMA)
    table.append(night_rows, {P0: None}, {P0: 498})
    early = pa.field(
        "early", pa.struct([("age", pa.float32()), ("rates", pa.list_(pa.struct([("g", pa.float64())])))])
    )
    grown = AlertsTable(tmp_path, "ztf", SCHEMA.append(early))
    made = pa.array([{"age": 1.5, "rates": [{"g": 2.0}]}] * 10, early.type)
    grown.append(night_rows.slice(0, 10).append_column(early, made), {P0: 498}, {P0: 508})
    table.append(night_rows.slice(0, 5), {P0: 508}, {P0: 513})  # the old plan goes on beside it
    ages = grown.read(["early.age"])[0]["early"].to_pylist()
    assert sorted(ages, key=str)[:10] == sorted([{"age": 1.5}] * 10 + [None] * 503, key=str)[:10]
    assert len(ages) == 513


def test_a_surveys_struct_may_gain_fields(tmp_path: Path, night_rows: pa.Table) -> None:
    dead = pa.Table.from_pylist([{"outcome": "dead"}], schema=SCHEMA)
    AlertsTable(tmp_path, "ztf", SCHEMA).append(pa.concat_tables([night_rows, dead]), {P0: None}, {P0: 499})
    own = pa.struct([*SCHEMA.field("ztf").type, ("drb", pa.float32())])
    grown = AlertsTable(tmp_path, "ztf", SCHEMA.set(SCHEMA.get_field_index("ztf"), pa.field("ztf", own)))
    found = grown.read(["ztf.drb", "ztf.rb"])[0]["ztf"].to_pylist()
    assert found[0]["drb"] is None
    assert found[498] is None, "a null struct stays null"
    assert found[0]["rb"] == pytest.approx(night_rows["ztf"][0].as_py()["rb"])


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    AlertsTable(tmp_path, "ztf", SCHEMA)
    wrong = SCHEMA.set(SCHEMA.get_field_index("night"), pa.field("night", pa.string()))
    with pytest.raises(ArchiveError, match="column 'night' is string here, but int32 in the table"):
        AlertsTable(tmp_path, "ztf", wrong)


def test_rows_that_lack_or_add_a_column_are_refused(table: AlertsTable, night_rows: pa.Table) -> None:
    with pytest.raises(ArchiveError, match="lack column 'reason'"):
        table.append(night_rows.drop_columns(["reason"]), {P0: None}, {P0: 1})
    with pytest.raises(ArchiveError, match=r"column 'extra' \(int64\) is not in the plan"):
        table.append(night_rows.append_column("extra", pa.array([1] * 498)), {P0: None}, {P0: 1})
    assert delta.open_table(table.folder).version() == 0


def test_a_column_that_the_table_lacks_is_never_dropped_silently(
    table: AlertsTable, night_rows: pa.Table
) -> None:
    late = pa.field("late", pa.float32())
    table.schema = table.schema.append(late)  # as if the table had been put back from a copy
    rows = night_rows.append_column(late, pa.array([1.0] * 498, pa.float32()))
    with pytest.raises(ArchiveError, match="has no column 'late'"):
        table.append(rows, {P0: None}, {P0: 498})


@pytest.mark.parametrize("kind", [pa.uint64(), pa.float16(), pa.null(), pa.timestamp("ns"), pa.struct([])])
def test_types_that_delta_would_change_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    with pytest.raises(ArchiveError, match=r"column 'odd\.inner' is"):
        AlertsTable(tmp_path, "ztf", SCHEMA.append(pa.field("odd", pa.struct([("inner", kind)]))))


def test_all_allowed_types_come_back(tmp_path: Path) -> None:
    kinds = [
        pa.int8(),
        pa.int16(),
        pa.bool_(),
        pa.binary(),
        pa.timestamp("us", "UTC"),
        pa.map_(pa.string(), pa.float64()),
    ]
    values = [1, 2, True, b"x", 5, [("a", 1.0)]]
    odd = pa.schema([*SCHEMA, *(pa.field(f"c{i}", kind) for i, kind in enumerate(kinds))])
    table = AlertsTable(tmp_path, "ztf", odd)
    row = pa.Table.from_pylist([{f"c{i}": value for i, value in enumerate(values)}], schema=odd)
    table.append(row, {P0: None}, {P0: 1})
    assert table.read()[0].equals(row)


def test_dictionaries_and_large_types_are_undone(table: AlertsTable, night_rows: pa.Table) -> None:
    at = SCHEMA.get_field_index("topic")
    encoded = night_rows.set_column(at, "topic", night_rows["topic"].dictionary_encode())
    large = encoded.set_column(1, "reason", night_rows["reason"].cast(pa.large_string()))
    table.append(large, {P0: None}, {P0: 498})
    assert table.read()[0].equals(night_rows.cast(table.schema))


def test_the_tail_gives_each_row_once(table: AlertsTable, night_rows: pa.Table) -> None:
    version, seen = 0, []
    for i in range(4):
        table.append(night_rows.slice(i * 100, 100), {P0: i * 100 or None}, {P0: i * 100 + 100})
        if i % 2:
            rows, version = table.tail(version, ["alert_id", "ztf.rb"])
            assert rows.schema.names == ["alert_id", "ztf"]
            seen += rows["alert_id"].to_pylist()
    assert sorted(seen) == ids(night_rows.slice(0, 400))
    assert len(table.tail(version)[0]) == 0


def test_the_tail_survives_checkpoints_and_log_cleaning(table: AlertsTable, night_rows: pa.Table) -> None:
    stale = AlertsTable(table.folder.parent.parent, "ztf", SCHEMA)
    for i in range(60):
        table.append(night_rows.slice(i, 1), {P0: i or None}, {P0: i + 1})
    logs = table.folder / "_delta_log"
    for log in logs.iterdir():
        os.utime(log, (0, 0))
    for i in range(60, 110):
        table.append(night_rows.slice(i, 1), {P0: i}, {P0: i + 1})
    compact.vacuum(table.folder)
    assert not (logs / f"{10:020d}.json").exists()
    rows, version = stale.tail(10, ["alert_id"])
    assert ids(rows) == ids(night_rows.slice(0, 110))
    assert stale.positions([P0]) == {P0: 110}
    assert len(stale.tail(version - 2, ["alert_id"])[0]) == 2


def test_nights_before_the_wanted_one_are_left_out(table: AlertsTable, night_rows: pa.Table) -> None:
    at = SCHEMA.get_field_index("night")
    nights = pa.array(
        [20181129 if i < 300 else 20181130 if i < 497 else None for i in range(498)], pa.int32()
    )
    table.append(night_rows.set_column(at, SCHEMA.field("night"), nights), {P0: None}, {P0: 498})
    found, _ = table.read(["alert_id"], from_night=20181130)
    assert ids(found) == ids(night_rows.slice(300))
    assert found.schema.names == ["alert_id"]


def test_a_reader_needs_no_schema(tmp_path: Path, table: AlertsTable, night_rows: pa.Table) -> None:
    table.append(night_rows, {P0: None}, {P0: 498})
    assert ids(AlertsTable(tmp_path, "ztf").tail(0, ["alert_id"])[0]) == ids(night_rows)
    with pytest.raises(ArchiveError, match="there is no table at"):
        AlertsTable(tmp_path, "rubin")


def test_an_unknown_column_is_named(table: AlertsTable) -> None:
    with pytest.raises(UnknownError, match="did you mean 'alert_id'"):
        table.tail(-1, ["alertid"])


@pytest.mark.parametrize("left", [0, 1, 300])
def test_a_damaged_commit_is_said_in_a_line_and_moved_away_is_a_turn_before(
    tmp_path: Path, night_rows: pa.Table, left: int
) -> None:
    table = AlertsTable(tmp_path, "ztf", SCHEMA)
    table.append(night_rows.slice(0, 100), {P0: None}, {P0: 100})
    reader = Lookup(tmp_path)
    assert sum(one["alerts"] for one in reader.counts("ztf")) == 100
    table.append(night_rows.slice(100), {P0: 100}, {P0: 498})
    last = max((table.folder / "_delta_log").glob("*.json"))
    whole = last.read_bytes()
    last.write_bytes(whole[:left] or b"\xff")
    for use in (lambda: AlertsTable(tmp_path, "ztf").positions([P0]), lambda: reader.counts("ztf")):
        with pytest.raises(ArchiveError, match=r"log of the table at .* cannot be read") as raised:
            use()
        assert "\n" not in str(raised.value)
    last.rename(tmp_path / "damaged")
    again = AlertsTable(tmp_path, "ztf")
    assert again.positions([P0]) == {P0: 100}
    again.append(night_rows.slice(100), {P0: 100}, {P0: 498})
    assert ids(again.read()[0]) == ids(night_rows)
