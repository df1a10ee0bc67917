"""The whole archive on S3: several writers, a worker's turn and what reads it, compaction, deaths, a run from end to end."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from raybroker import settings as settings_file
from raybroker.alerts import Packet
from raybroker.archive import compact, delta, segments, store
from raybroker.archive.events import EventLog
from raybroker.archive.lookup import Lookup
from raybroker.archive.table import AlertsTable
from raybroker.cli import running
from raybroker.cluster import assemble, catalogues
from raybroker.cluster.heartbeat import STORE_SECONDS, Heartbeat
from raybroker.errors import ArchiveError, FencedError, SettingsError, UnknownError
from raybroker.places import ObjectUrl
from raybroker.service import server
from raybroker.service.asked import Asked
from raybroker.service.follow import Follower
from raybroker.service.sessions import LinkError, Sessions
from raybroker.service.view import View, counts
from tests.cluster.worlds import placed, worker

from .conftest import SCHEMA, header_length, rows_of
from .s3_server import S3Server
from .test_table import P0, append_in_turns, die_between_segment_and_commit

spawn = multiprocessing.get_context("spawn")


def ids(rows: pa.Table) -> list[str]:
    return sorted(rows["alert_id"].to_pylist())


# Several writers.


def test_processes_that_write_together_lose_nothing_and_each_version_is_put_once(
    bucket: ObjectUrl, s3: S3Server, tmp_path: Path, night_rows: pa.Table
) -> None:
    stored = tmp_path / "rows.arrow"
    with pa.ipc.new_file(stored, SCHEMA) as writer:
        writer.write_table(night_rows)
    parts = [(f"c/t/{i}", i * 249, 150) for i in range(2)]
    workers = [spawn.Process(target=append_in_turns, args=(bucket, stored, *part)) for part in parts]
    for process in workers:
        process.start()
    for process in workers:
        process.join(120)
    assert [process.exitcode for process in workers] == [0, 0]
    table = AlertsTable(bucket, "ztf")
    written = pa.concat_tables([night_rows.slice(start, size) for _, start, size in parts])
    assert ids(table.read(["alert_id"])[0]) == ids(written)
    assert table.positions([part[0] for part in parts]) == {"c/t/0": 150, "c/t/1": 150}
    puts = [line for line in s3.requests() if line.startswith("PUT") and str(bucket.bucket) in line]
    commits = Counter(re.findall(r"_delta_log/(\d+)\.json 200", "\n".join(puts)))
    assert commits == {f"{version:020d}": 1 for version in range(31)}


def test_a_zombie_is_refused(bucket: ObjectUrl, night_rows: pa.Table) -> None:
    zombie, successor = AlertsTable(bucket, "ztf", SCHEMA), AlertsTable(bucket, "ztf", SCHEMA)
    zombie.append(night_rows.slice(0, 100), {P0: None}, {P0: 100})
    successor.append(night_rows.slice(100, 37), {P0: 100}, {P0: 137})
    with pytest.raises(FencedError):
        zombie.append(night_rows.slice(100, 50), {P0: 100}, {P0: 150})
    assert ids(successor.read(["alert_id"])[0]) == ids(night_rows.slice(0, 137))


def test_an_environment_that_turns_conditions_off_is_overruled(
    bucket: ObjectUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    log = EventLog(bucket, "labels")
    assert log.append_new([{"event_id": "e"}]) == ["e"]
    store.check(bucket)


def test_positions_are_followed_with_few_requests(
    bucket: ObjectUrl, s3: S3Server, night_rows: pa.Table
) -> None:
    mine = [f"c/t/{partition}" for partition in range(20)]
    one, other = AlertsTable(bucket, "ztf", SCHEMA), AlertsTable(bucket, "ztf", SCHEMA)
    one.append(night_rows.slice(0, 5), dict.fromkeys(mine), dict.fromkeys(mine, 5))
    for i in range(5):
        other.append(night_rows.slice(i, 1), {P0: i or None}, {P0: i + 1})
    before = len(s3.requests())
    one.append(night_rows.slice(5, 5), dict.fromkeys(mine, 5), dict.fromkeys(mine, 10))
    assert len(s3.requests()) - before < 40
    other.append(night_rows.slice(9, 1), {mine[3]: 10}, {mine[3]: 11})
    assert one.positions([P0, *mine]) == {P0: 5, **dict.fromkeys(mine, 10), mine[3]: 11}
    with pytest.raises(FencedError):
        one.append(night_rows.slice(5, 5), dict.fromkeys(mine, 10), dict.fromkeys(mine, 15))


def test_a_reader_that_was_away_longer_than_the_log_reaches_back_reads_all(
    bucket: ObjectUrl, night_rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(delta.CONFIGURATION, "delta.logRetentionDuration", "interval 0 seconds")
    stale, writer = AlertsTable(bucket, "ztf", SCHEMA), AlertsTable(bucket, "ztf", SCHEMA)
    writer.append(night_rows.slice(0, 1), {P0: None}, {P0: 1})
    assert stale.positions([P0, "c/t/1"]) == {P0: 1}
    for i in range(1, 53):
        writer.append(night_rows.slice(i, 1), {P0: i}, {P0: i + 1})
    assert store.has(writer.folder / "_delta_log" / f"{10:020d}.json"), "a commit does not clean"
    compact.compact_all(bucket)
    assert not store.has(writer.folder / "_delta_log" / f"{10:020d}.json")
    assert stale.positions([P0, "c/t/1"]) == {P0: 53}
    rows, version = stale.tail(10, ["alert_id"])
    assert (ids(rows), version) == (ids(night_rows.slice(0, 53)), writer._handle.version() + 1)


def test_a_commit_between_check_and_commit_is_refused_by_the_store(
    bucket: ObjectUrl, night_rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = AlertsTable(bucket, "ztf", SCHEMA), AlertsTable(bucket, "ztf", SCHEMA)
    checked = slow._check_owner

    def check_then_lose_the_race(expected: dict[str, int | None]) -> None:
        checked(expected)
        if not quick.positions([P0]):
            quick.append(night_rows.slice(0, 10), {P0: None}, {P0: 10})

    monkeypatch.setattr(slow, "_check_owner", check_then_lose_the_race)
    with pytest.raises(FencedError):
        slow.append(night_rows.slice(0, 20), {P0: None}, {P0: 20})
    assert len(slow.read(["alert_id"])[0]) == 10


def test_an_event_is_there_once_and_a_number_is_taken_once(bucket: ObjectUrl) -> None:
    one, other = EventLog(bucket, "snapshots"), EventLog(bucket, "snapshots")
    events = [{"event_id": f"e{i}", "model": "m"} for i in range(3)]
    assert one.append_new(events[:2]) == ["e0", "e1"]
    assert other.append_new(events) == ["e2"]
    assert [log.take_number("m") for log in (one, other, one, other)] == [1, 2, 3, 4]
    assert one.read(["event_id"])["event_id"].to_pylist() == ["e0", "e1", "e2"]


def test_a_worker_killed_before_its_commit_leaves_only_orphans(
    bucket: ObjectUrl, night_packets: tuple[Packet, ...]
) -> None:
    some = list(night_packets[:37])
    process = spawn.Process(target=die_between_segment_and_commit, args=(bucket, some))
    process.start()
    process.join(120)
    assert process.exitcode == 9
    table = AlertsTable(bucket, "ztf", SCHEMA)
    assert len(segments.names(bucket / "ztf")) == 1
    assert [file.name.rpartition(".")[2] for file in store.files(table.folder)] == ["parquet"]
    assert (len(table.read()[0]), table.positions([P0])) == (0, {})
    name = segments.write(bucket / "ztf", some, header_length)
    table.append(rows_of(some, name), {P0: None}, {P0: 37})
    rows = table.read(["segment", "position"])[0].to_pylist()
    assert [segments.read(bucket / "ztf", r["segment"], r["position"]) for r in rows] == some
    assert list(segments.scan(bucket / "ztf", name)) == some
    assert compact.vacuum(table.folder) == 0, "it may be a turn's that is about to commit"
    assert compact.vacuum(table.folder, older_than_hours=0) == 1


# Reading.


def test_a_turn_is_found_again_by_every_reader(bucket: ObjectUrl, night_packets: tuple[Packet, ...]) -> None:
    packets = placed(night_packets)
    made = worker(bucket, packets)
    while not made.turn(limit=250).drained:
        pass
    sent = {(p.topic, p.partition, p.offset): p for p in packets}
    lookup = Lookup(bucket)
    rows = made.books.table.read()[0]
    row = rows.filter(pa.compute.equal(rows["outcome"], "scored")).slice(7, 1).to_pylist()[0]
    assert lookup.surveys() == ["ztf"]
    assert lookup.alert(row["alert_id"]) == row
    assert lookup.packet(row["alert_id"]) == sent[row["topic"], row["partition"], row["offset"]]
    found = [row["alert_id"]]
    assert found[0] in lookup.object(row["object_id"])["alert_id"].to_pylist()
    assert lookup.cone(row["ra"], row["dec"], 0.01)["alert_id"].to_pylist() == found
    assert lookup.alerts(found, ["ra"]) == {found[0]: {"alert_id": found[0], "ra": row["ra"]}}
    assert sum(line["alerts"] for line in lookup.counts("ztf")) == 498
    assert sum(line["alerts"] for line in lookup.counts("ztf", night=row["night"])) == 498
    bright = "select count(*) as n from ztf_alerts_rejected where ra < 180 and night = $night"
    expected = sum(r["outcome"] == "rejected" and r["ra"] < 180 for r in rows.to_pylist())
    assert lookup.sql(bright, {"night": row["night"]}).to_pylist() == [{"n": expected}]
    with pytest.raises(UnknownError):
        lookup.alert("ztf:1")
    with pytest.raises(ArchiveError, match="cannot be answered"):
        lookup.sql("select * from read_parquet('s3://elsewhere/x.parquet')")


def test_the_service_sees_what_is_committed(bucket: ObjectUrl, night_packets: tuple[Packet, ...]) -> None:
    made = worker(bucket, placed(night_packets))
    made.turn(limit=100)
    own = Follower(bucket, ["ztf"], View(catalogues=[]), Asked())
    own.step()
    while not made.turn(limit=200).drained:
        pass
    assert own.step() == 398
    (line,) = counts(own.view.totals())
    assert (line["received"], line["scored"], line["rejected"], len(own.view)) == (498, 291, 207, 498)


def test_the_tail_without_news_is_two_requests_and_with_much_news_they_go_side_by_side(
    bucket: ObjectUrl, s3: S3Server, night_rows: pa.Table
) -> None:
    table = AlertsTable(bucket, "ztf", SCHEMA)
    before = len(s3.requests())
    assert len(table.tail(0, ["alert_id"])[0]) == 0
    assert len(s3.requests()) - before == 2
    for i in range(5):
        table.append(night_rows.slice(i * 10, 10), {P0: i * 10 or None}, {P0: i * 10 + 10})
    before = len(s3.requests())
    rows, version = table.tail(0, ["alert_id"])
    assert (ids(rows), version) == (ids(night_rows.slice(0, 50)), 5)
    assert rows["alert_id"].to_pylist() == night_rows["alert_id"].slice(0, 50).to_pylist()
    assert len(s3.requests()) - before == 7 + 5  # commits 1, 2–3, 4–7 of which 6 and 7 are not there; files


def test_all_kinds_of_columns_come_back_through_sql(bucket: ObjectUrl) -> None:
    log = EventLog(bucket, "queries")
    event: dict[str, Any] = {
        "event_id": "q",
        "features": {"a": 1.5},
        "probabilities": [{"member": "softmax", "probabilities": [0.25, 0.75]}],
        "classes": ["x", "y"],
    }
    log.append([event])
    found = Lookup(bucket).sql("select event_id, features, probabilities, classes from queries")
    assert found.to_pylist(maps_as_pydicts="strict") == [event]


# Compaction.


def test_compaction_keeps_rows_and_what_readers_may_be_in(bucket: ObjectUrl, night_rows: pa.Table) -> None:
    table = AlertsTable(bucket, "ztf", SCHEMA)
    for i in range(8):
        table.append(night_rows.slice(i * 20, 20), {P0: i * 20 or None}, {P0: i * 20 + 20})
    before = table.read()[0].sort_by("offset")
    stale, (_, version) = delta.open_table(table.folder), table.tail(-1)
    done = compact.compact_all(bucket)["ztf/alerts"]
    assert (done.merges, done.rows, done.removed, done.live, done.refused) == (1, 160, 8, 1, False)
    assert table.read()[0].sort_by("offset").equals(before)
    assert len(table.tail(version)[0]) == 0
    paths = [file.path for file in delta.live(stale)]
    assert len(delta.read(table.folder, paths, SCHEMA)) == 160, "the old files are still there"
    (group,) = [compact.Group(tuple(delta.live(stale)), sort=False)]
    with pytest.raises(delta.Conflict):
        compact.merge(table.folder, stale, group)
    assert (
        compact.vacuum(table.folder, older_than_hours=0) == 9
    )  # eight merged, and the refused one's new file
    assert table.read()[0].sort_by("offset").equals(before)


# Beside the tables.


def test_the_secret_is_made_once_and_a_link_opens_once(bucket: ObjectUrl) -> None:
    made = server.secret(bucket)
    assert (len(made), server.secret(bucket)) == (32, made)
    sessions = [Sessions({}, made, bucket / "links") for _ in range(2)]
    link = sessions[0].link("ann")
    assert sessions[1].who(None, sessions[1].redeem(link)) == "ann"
    with pytest.raises(LinkError, match="used before"):
        sessions[0].redeem(link)


def test_the_heart_beats_less_often_but_tells_of_trouble_at_once(bucket: ObjectUrl, s3: S3Server) -> None:
    now = [1000.0]
    heart = Heartbeat(bucket, lambda: now[0])
    before = len(s3.requests())
    for _ in range(10):
        heart.beat({"lag": 1, "troubles": {}})
        now[0] += STORE_SECONDS / 5
    assert len(s3.requests()) - before == 2
    heart.beat({"lag": 1, "troubles": {"ztf-0": "gone"}})
    assert Heartbeat(bucket, lambda: now[0]).problems() == ["ztf-0: gone"]


def parsed(bucket: ObjectUrl, folder: Path, **tables: Any) -> settings_file.Settings:
    own = {"archive": {"root": str(bucket), "cache": str(folder / "cache")}, "mlflow": {"enabled": False}}
    return settings_file.parse({**own, **tables})


def test_a_machine_without_the_catalogues_file_fetches_the_sorted_one(
    bucket: ObjectUrl, s3: S3Server, data: Path, tmp_path: Path
) -> None:
    def on(machine: str, file: Path) -> settings_file.Settings:
        return parsed(bucket, tmp_path / machine, catalogues={"tde": {"file": str(file)}})

    file = data / "catalogues" / "tde_44.parquet"
    with pytest.raises(SettingsError, match="there is no such file, and none of that name was uploaded"):
        catalogues.sorted_file(on("other", tmp_path / file.name), "tde")
    made = catalogues.sorted_file(on("head", file), "tde")
    before = len(s3.requests())
    found = catalogues.sorted_file(on("other", tmp_path / file.name), "tde")
    assert (found.read_bytes(), found.name) == (made.read_bytes(), made.name)
    catalogues.sorted_file(on("other", tmp_path / file.name), "tde")
    assert [line.split()[0] for line in s3.requests()[before:]] == ["GET", "GET", "GET"]  # note, file, note
    assert catalogues.sorted_file(on("third", made), "tde").name == made.name, (
        "sorted already, under its own name"
    )
    with pytest.raises(SettingsError, match="none of that name"):
        catalogues.sorted_file(on("other", tmp_path / "another.csv"), "tde")


def test_mlflow_must_be_told_where_it_is(bucket: ObjectUrl, tmp_path: Path) -> None:
    settings = parsed(bucket, tmp_path, mlflow={"enabled": True})
    with pytest.raises(SettingsError, match=r"mlflow\.tracking_uri is empty, and the archive at s3://"):
        assemble.registry(settings)


def test_a_run_from_end_to_end(bucket: ObjectUrl, data: Path, tmp_path: Path) -> None:
    settings = parsed(
        bucket,
        tmp_path,
        surveys={"ztf": {"servers": f"replay:{data / 'ztf' / 'ztf_public_20191231.tar.gz'}", "workers": 1}},
        steps={"on": ["basic"], "paths": []},
        catalogues={"tde": {"file": str(data / "catalogues" / "tde_44.parquet"), "radius_arcsec": 60.0}},
        models={"m": {"classes": ["a", "b"], "columns": ["basic.*"], "members": ["softmax"]}},
    )
    running.run(settings, once=True, local=True, console=Console(quiet=True), report=tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["received"] == 50
    rows = Lookup(bucket).sql("select outcome, m.snapshot as snapshot, plan from ztf_alerts").to_pylist()
    assert Counter(row["outcome"] for row in rows) == {"scored": 50}
    (snapshot,) = EventLog(bucket, "snapshots").read().to_pylist()
    assert assemble.Models(bucket).load(snapshot["digest"]).classes == ("a", "b")
    assert {path.name for path in store.folders(bucket)} >= {
        "catalogues",
        "models",
        "plans",
        "queries",
        "ztf",
    }
    assert Heartbeat(bucket).read()["workers"] == ["ztf"]
    again = tmp_path / "again.json"
    running.run(settings, once=True, local=True, console=Console(quiet=True), report=again)
    assert json.loads(again.read_text())["received"] == 0, "it goes on where the archive says"
    assert not list(tmp_path.glob("raybroker-data*"))
