from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord

from raybroker.alerts import Packet
from raybroker.archive import compact, scan, segments
from raybroker.archive.events import EventLog
from raybroker.archive.lookup import Lookup
from raybroker.archive.table import AlertsTable
from raybroker.errors import ArchiveError, UnknownError

from .conftest import SCHEMA, header_length, rows_of

P0 = "c/t/0"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, night_packets: tuple[Packet, ...]) -> Path:
    """The night in three turns, its first 50 alerts once more as duplicates."""
    root = tmp_path_factory.mktemp("it's an archive")
    table = AlertsTable(root, "ztf", SCHEMA)
    for start in (0, 200, 400):
        packets = night_packets[start : start + 200]
        name = segments.write(root / "ztf", packets, header_length)
        table.append(rows_of(packets, name), {P0: start or None}, {P0: start + len(packets)})
    again = rows_of(night_packets[:50]).set_column(0, "outcome", pa.array(["duplicate"] * 50))
    table.append(again, {P0: 498}, {P0: 548})
    return root


@pytest.fixture(scope="module")
def lookup(archive: Path) -> Lookup:
    return Lookup(archive)


def test_any_alert_by_id(lookup: Lookup, night_rows: pa.Table) -> None:
    for i in (0, 250, 497):
        wanted = night_rows.slice(i, 1).to_pylist()[0]
        found = lookup.alert(wanted["alert_id"])
        assert found["outcome"] == wanted["outcome"]
        assert {k: found[k] for k in ("ztf", "history", "healpix")} == {
            k: wanted[k] for k in ("ztf", "history", "healpix")
        }


def test_many_alerts_in_one_scan_each_as_it_came_first(lookup: Lookup, night_rows: pa.Table) -> None:
    wanted = night_rows.slice(20, 60).to_pylist()  # some of these came again, as duplicates
    found = lookup.alerts([row["alert_id"] for row in wanted] + ["ztf:1"], ["mjd", "outcome", "nothing"])
    assert found == {
        row["alert_id"]: {name: row[name] for name in ("alert_id", "mjd", "outcome")} for row in wanted
    }


def test_any_packet_by_alert_id(
    lookup: Lookup, night_rows: pa.Table, night_packets: tuple[Packet, ...]
) -> None:
    for i in (3, 205, 450):
        assert lookup.packet(night_rows["alert_id"][i].as_py()) == night_packets[i]


def test_an_object_has_each_alert_once(lookup: Lookup, night_rows: pa.Table) -> None:
    repeated = [
        o for o in night_rows["object_id"].to_pylist() if night_rows["object_id"].to_pylist().count(o) > 1
    ]
    for object_id in {repeated[0], night_rows["object_id"][0].as_py()}:
        found = lookup.object(object_id)
        assert sorted(found["alert_id"].to_pylist()) == sorted(
            row["alert_id"] for row in night_rows.to_pylist() if row["object_id"] == object_id
        )
        assert "duplicate" not in found["outcome"].to_pylist()


def test_unknown_ids_say_so(lookup: Lookup) -> None:
    for wrong in ("ztf:1", "nothing", "' or 1=1 --", "../../etc:1", ""):
        with pytest.raises(UnknownError, match="no alert"):
            lookup.alert(wrong)
        with pytest.raises(UnknownError, match="no object"):
            lookup.object(wrong)


@pytest.mark.parametrize("radius", [2.0, 60.0, 3600.0, 40_000.0])
def test_a_cone_holds_what_astropy_says(lookup: Lookup, night_rows: pa.Table, radius: float) -> None:
    sky = SkyCoord(night_rows["ra"].to_numpy(), night_rows["dec"].to_numpy(), unit="deg")
    for i in (0, 100):
        near = np.flatnonzero(sky[i].separation(sky).arcsec <= radius)
        found = lookup.cone(sky[i].ra.deg, sky[i].dec.deg, radius, names=["alert_id"])
        assert sorted(found["alert_id"].to_pylist()) == sorted(night_rows["alert_id"].take(near).to_pylist())


def test_a_cone_with_nothing_in_it_is_empty(lookup: Lookup) -> None:
    assert len(lookup.cone(10.0, -80.0, 5.0)) == 0
    assert len(lookup.cone(10.0, -80.0, 5.0, names=["alert_id"])) == 0


def test_counts_add_up(lookup: Lookup) -> None:
    counts = lookup.counts("ztf")
    assert sum(row["alerts"] for row in counts) == 548
    assert sum(row["alerts"] for row in counts if row["outcome"] == "duplicate") == 50
    assert sum(row["alerts"] for row in lookup.counts("ztf", 20181129)) == 548
    assert lookup.counts("ztf", 20200101) == []
    with pytest.raises(UnknownError, match="did you mean 'ztf'"):
        lookup.counts("zft")


def test_sql_reads_alerts_and_event_logs_together(
    archive: Path, lookup: Lookup, night_rows: pa.Table
) -> None:
    some = night_rows["alert_id"][107].as_py()
    EventLog(archive, "labels").append_new([{"event_id": "e", "alert_id": some, "label": "AGN"}])
    query = (
        "select label, a.ztf.objectId as o from labels join ztf_alerts a using (alert_id) where alert_id = ?"
    )
    found = lookup.sql(query, [some]).to_pylist()
    assert found == [{"label": "AGN", "o": night_rows["ztf"][107].as_py()["objectId"]}]
    rejected = lookup.sql("select count(*) as n from ztf_alerts_rejected").to_pylist()[0]["n"]
    assert rejected == sum(row["alerts"] for row in lookup.counts("ztf") if row["outcome"] == "rejected")


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_text('/etc/passwd')",
        "select * from '/etc/passwd'",
        "copy (select 1) to '/tmp/raybroker-must-not-exist'",
        "select 1; select 2",
        "attach '/tmp/raybroker-must-not-exist.db'",
        "set threads = 4",
        "install httpfs",
        "select nothing from ztf_alerts",
        "this is no query",
    ],
)
def test_sql_reads_and_does_nothing_else(lookup: Lookup, query: str) -> None:
    with pytest.raises(ArchiveError, match=r"one SELECT|cannot be answered"):
        lookup.sql(query)
    assert not list(Path("/tmp").glob("raybroker-must-not-exist*"))


def test_answers_hold_after_compaction_and_growth(tmp_path: Path, night_packets: tuple[Packet, ...]) -> None:
    table = AlertsTable(tmp_path, "ztf", SCHEMA)
    for start in range(0, 450, 50):
        rows = rows_of(night_packets[start : start + 50])
        table.append(rows, {P0: start or None}, {P0: start + 50})
    lookup = Lookup(tmp_path)
    alert_id = rows_of(night_packets[:1])["alert_id"][0].as_py()
    before = lookup.alert(alert_id)
    grown = AlertsTable(tmp_path, "ztf", SCHEMA.append(pa.field("early", pa.struct([("age", pa.float32())]))))
    ages = pa.array([{"age": 1.0}] * 48, pa.struct([("age", pa.float32())]))
    grown.append(rows_of(night_packets[450:]).append_column("early", ages), {P0: 450}, {P0: 498})
    assert lookup.alert(alert_id) == before | {"early": None}
    assert compact.compact(table.folder).live == 1
    assert lookup.alert(alert_id) == before | {"early": None}
    assert lookup.alert(rows_of(night_packets[497:])["alert_id"][0].as_py())["early"] == {"age": 1.0}


def test_finks_rows_are_found_by_ztfs_ids(tmp_path: Path, night_rows: pa.Table) -> None:
    fink = AlertsTable(tmp_path, "fink", SCHEMA)
    at = SCHEMA.get_field_index("survey")
    fink.append(night_rows.set_column(at, "survey", pa.array(["fink"] * 498)), {P0: None}, {P0: 498})
    lookup, alert_id = Lookup(tmp_path), night_rows["alert_id"][0].as_py()
    assert lookup.alert(alert_id)["survey"] == "fink"
    AlertsTable(tmp_path, "ztf", SCHEMA).append(night_rows, {P0: None}, {P0: 498})
    assert lookup.alert(alert_id)["survey"] == "ztf"
    assert len(lookup.object(night_rows["object_id"][0].as_py())) == 1


def test_our_own_questions_open_nothing_beside_the_archive(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with scan.engine(archive / "ztf" / "alerts", 1).cursor() as cursor:
        with pytest.raises(duckdb.PermissionException):
            cursor.sql(f"select * from read_csv('{tmp_path / 'secret.csv'}')").fetchall()
        with pytest.raises(duckdb.InvalidInputException):
            cursor.execute("set enable_external_access = true")
        one = next((archive / "ztf" / "alerts").glob("*.parquet"))
        path = str(one.absolute()).replace("'", "''")
        assert cursor.sql(f"select count(*) from read_parquet('{path}')").fetchall()[0][0] > 0


def test_many_alerts_are_looked_for_in_the_files_that_may_hold_them(
    lookup: Lookup, night_rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    holding = scan.holding

    def counted(cursor: object, files: scan.Files, *rest: object) -> scan.Files:
        opened.append(len(files.found))
        return holding(cursor, files, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(scan, "holding", counted)
    ids = sorted(night_rows["alert_id"].to_pylist())
    assert set(lookup.alerts(ids, ["mjd"])) == set(ids)
    assert not lookup.alerts(["ztf:0", "ztf:9"], ["mjd"])  # before the first and after the last
    assert opened == [4, 0]


def test_a_survey_may_lie_behind_a_link(archive: Path, tmp_path: Path, night_rows: pa.Table) -> None:
    (tmp_path / "ztf").symlink_to(archive / "ztf")
    one = night_rows["alert_id"][0].as_py()
    linked = Lookup(tmp_path)
    assert linked.alert(one)["alert_id"] == one
    assert linked.alerts([one], ["mjd"]).keys() == {one}
    assert sum(found["alerts"] for found in linked.counts("ztf")) == 548
