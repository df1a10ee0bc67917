"""What /metrics tells: sums by survey, classes of reasons, and numbers that a restart of the service does not set back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from raybroker.cluster import tables
from raybroker.cluster.audit import Audit, Wrong
from raybroker.cluster.gauges import CLASSES, Gauges, Sums, class_of
from raybroker.cluster.heartbeat import Heartbeat
from raybroker.cluster.lesson import Lesson
from raybroker.cluster.tally import Tally
from raybroker.cluster.worker import Report
from raybroker.errors import ArchiveError
from tests.service.conftest import Station, fill, night, open_station, pipeline_of

TURN = Report(
    outcomes={"scored": 8, "rejected": 2, "failed": 1, "dead": 1},
    reasons={"rejected: real": 2, "failed: basic: ValueError: x = 17": 1, "dead: it is 9 bytes short: no": 1},
    sent={"raybroker.northern": 3},
    unknown_fields={"novelty": 4},
    expired=5,
    no_record=6,
    lag=40,
    seconds={"poll": 0.5, "pipeline": 2.0, "step:basic": 1.5},
    cpu_seconds={"pipeline": 1.0},
)


def told(station: Station) -> dict[tuple[str, ...], float]:
    """Every sample: its name and the values of its labels, in the labels' order → its value."""
    families = text_string_to_metric_families(station.get("/metrics").text)
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def beaten(root: Path, tally: Tally, **more: Any) -> None:
    """The heartbeat of a supervisor."""
    Heartbeat(root, lambda: 1_700_000_000.0).beat(
        {"numbers": tally.gauges.told(), "lags": tally.lags, **more}
    )


def test_two_workers_turns_are_summed_by_survey(archive: Path, tmp_path: Path) -> None:
    tally = Tally()
    for worker in ("ztf-0", "ztf-1", "rubin-0"):
        tally.add(worker, TURN)
    tally.add("ztf-1", dataclasses.replace(TURN, fenced=True, trouble="the disk is full"))
    beaten(tmp_path, tally)
    found = told(open_station(archive, status=Heartbeat(tmp_path).read))
    for name, ztf, rubin in [
        ("raybroker_turns_total", 3, 1),
        ("raybroker_turns_fenced_total", 1, 0),
        ("raybroker_turns_troubled_total", 1, 0),
        ("raybroker_expired_total", 15, 5),
        ("raybroker_no_record_total", 18, 6),
        ("raybroker_unknown_fields_total", 12, 4),
    ]:
        assert (found[name, "ztf"], found[name, "rubin"]) == (ztf, rubin), name
    assert found["raybroker_stage_seconds_total", "pipeline", "ztf"] == 6.0
    assert found["raybroker_stage_cpu_seconds_total", "pipeline", "ztf"] == 3.0
    assert found["raybroker_step_seconds_total", "basic", "ztf"] == 4.5
    assert ("raybroker_stage_seconds_total", "step:basic", "ztf") not in found
    assert found["raybroker_sent_total", "ztf", "raybroker.northern"] == 9
    assert found["raybroker_lag", "ztf", "ztf-1"] == 40
    assert found["raybroker_supervisor_timestamp_seconds",] == 1_700_000_000.0


def test_what_waits_is_told_of_every_partition(archive: Path, tmp_path: Path) -> None:
    tally = Tally()
    for worker, lags in [("ztf-0", {("t", 0): 50, ("t", 1): 0}), ("ztf-1", {("t", 0): 60})]:
        tally.add(worker, dataclasses.replace(TURN, lags=lags))
    beaten(tmp_path, tally, partition_lags=tally.partition_lags())
    found = told(open_station(archive, status=Heartbeat(tmp_path).read))
    lags = {key[1:]: value for key, value in found.items() if key[0] == "raybroker_partition_lag"}
    assert lags == {("0", "ztf", "t"): 60, ("1", "ztf", "t"): 0}


def test_reasons_are_cuts_steps_and_classes(archive: Path, tmp_path: Path) -> None:
    tally = Tally()
    tally.add("ztf-0", TURN)
    beaten(tmp_path, tally)
    found = told(open_station(archive, status=Heartbeat(tmp_path).read))
    reasons = {key[1:]: value for key, value in found.items() if key[0] == "raybroker_reasons_total"}
    assert reasons == {
        ("rejected", "real", "ztf"): 2,
        ("failed", "basic", "ztf"): 1,
        ("dead", "it is N bytes short", "ztf"): 1,
    }


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("stops the worker: ValueError: 5 is not 6", "stops the worker"),
        ("overruns the deadline of 60 s", "overruns the deadline of N s"),
        ("x" * 500, "x" * 60),
        ("", "unknown"),
        (": nothing before it", "unknown"),
    ],
)
def test_the_class_of_a_reason_has_no_numbers_and_an_end(reason: str, kind: str) -> None:
    assert class_of(reason) == kind


def test_reasons_without_end_make_no_labels_without_end() -> None:
    sums = Sums()
    for letter in range(500):
        sums.add(Report(reasons={f"dead: {chr(0x4E00 + letter)}": 2}))
    assert len(sums.reasons["dead"]) == CLASSES + 1
    assert sums.reasons["dead"]["other"] == 2 * (500 - CLASSES)


def test_counters_go_on_where_they_were_when_the_service_restarts(archive: Path, tmp_path: Path) -> None:
    tally = Tally()
    tally.add("ztf-0", TURN)
    beaten(tmp_path, tally)
    counters = [told(open_station(archive, status=Heartbeat(tmp_path).read)) for _ in range(2)]
    before, after = ({key: n for key, n in one.items() if "http" not in key[0]} for one in counters)
    assert before == after
    assert before["raybroker_alerts_total", "scored", "ztf"] == 8


def test_what_a_replica_counts_by_itself_is_no_counter_unless_it_names_the_replica(station: Station) -> None:
    station.get("/models")
    families = text_string_to_metric_families(station.get("/metrics").text)
    counted = [family for family in families if family.type in ("counter", "histogram") and family.samples]
    assert {family.name for family in counted} == {"raybroker_http_requests", "raybroker_http_seconds"}
    assert all(sample.labels.get("replica") for family in counted for sample in family.samples)


def test_the_trainers_turns_add_up(archive: Path, tmp_path: Path) -> None:
    gauges = Gauges()
    releases = {"logged": 1, "waiting": 2, "dropped": 3}
    for _ in range(2):
        gauges.taught(Lesson({}, {}, {}, {"transients": 9}, 4, seconds={"trainer": 0.5}, releases=releases))
    Heartbeat(tmp_path).beat({"numbers": gauges.told()})
    found = told(open_station(archive, status=Heartbeat(tmp_path).read))
    names = (
        "raybroker_trainer_turns_total",
        "raybroker_trainer_seconds_total",
        "raybroker_trainer_learned_total",
    )
    assert [found[name,] for name in names] == [2, 1.0, 8]
    assert found["raybroker_pool", "transients"] == 9
    assert found["raybroker_releases_logged_total",] == 1
    assert found["raybroker_releases_waiting",] == 2
    assert found["raybroker_releases_dropped_total",] == 3


def test_workers_wanted_and_present_and_deaths_in_a_row(archive: Path, tmp_path: Path) -> None:
    tally = Tally()
    tally.lost("ztf-1")
    seats = {
        name: {"process": pid, "deaths_in_a_row": deaths}
        for name, pid, deaths in [("ztf-0", 7, 0), ("ztf-1", 0, 3)]
    }
    trouble = {"ztf-1": "died 3 times in a row, the next try comes later: it was killed"}
    beaten(tmp_path, tally, seats=seats, sizes={"ztf": {"workers": 2}}, troubles=trouble)
    found = told(open_station(archive, status=Heartbeat(tmp_path).read))
    assert (found["raybroker_workers", "ztf"], found["raybroker_workers_wanted", "ztf"]) == (1, 2)
    assert found["raybroker_deaths_in_a_row", "ztf-1"] == 3
    assert found["raybroker_deaths_total", "ztf-1"] == 1
    assert found["raybroker_troubles", "died N times in a row, the next try comes later", "ztf-1"] == 1


def test_a_service_whose_supervisor_was_never_heard_tells_the_rest(archive: Path) -> None:
    def away() -> dict[str, Any]:
        raise ArchiveError("the store is away")

    for status in (Heartbeat(archive / "nowhere").read, away):
        found = told(open_station(archive, status=status))
        assert found["raybroker_archived_alerts", "scored", "ztf"] == 120
        assert ("raybroker_supervisor_timestamp_seconds",) not in found


def test_a_supervisor_of_another_version_tells_what_it_tells(archive: Path) -> None:
    told_by_it = {"heartbeat": 1.0, "numbers": {"surveys": {"ztf": {"turns": 3, "novelty": {}}}}}
    found = told(open_station(archive, status=lambda: told_by_it))
    assert found["raybroker_turns_total", "ztf"] == 3
    assert found["raybroker_expired_total", "ztf"] == 0


def test_the_archive_tells_its_commits_files_and_audits(data: Path, ztf_packets: Any, tmp_path: Path) -> None:
    fill(tmp_path, pipeline_of(data, tmp_path / "catalogues"), night(ztf_packets("selected_20231018"), 20), 5)
    now = [0.0]
    look = tables.Tables(tmp_path, lambda: now[0])
    found = look()["tables"]["ztf/alerts"]
    assert found["files"] == 5  # turns of five packets
    assert found["commits"] == 6  # and the table's making
    tables.audited(tmp_path, Audit(wrong=[Wrong("ztf", "t", 0, 1, 2, "lost")] * 2), ["ztf", "rubin"], 99.0)
    tables.audited(tmp_path, Audit(), ["rubin"], 100.0)
    assert look()["audits"] == {}  # it looks now and then
    now[0] = tables.LOOK_SECONDS
    station = told(open_station(tmp_path, tables=look))
    assert station["raybroker_audit_wrong_ranges", "ztf"] == 2
    assert station["raybroker_audit_wrong_ranges", "rubin"] == 0
    assert station["raybroker_audit_timestamp_seconds", "rubin"] == 100.0
    assert station["raybroker_archive_commits", "ztf/alerts"] == 6
    assert station["raybroker_archive_free_bytes",] > 0


def test_an_archive_that_cannot_be_looked_at_tells_what_it_told(tmp_path: Path) -> None:
    now = [0.0]
    look = tables.Tables(tmp_path, lambda: now[0])
    before = look()
    (tmp_path / "ztf" / "alerts" / "_delta_log").mkdir(parents=True)
    (tmp_path / "ztf" / "alerts" / "_delta_log" / f"{0:020d}.json").write_text("damaged")
    now[0] = tables.LOOK_SECONDS
    assert look() == before


def test_a_made_up_method_makes_no_new_series(station: Station) -> None:
    for i in range(5):
        station.send(f"MADEUP{i}", "/alerts")
    methods = {key[1] for key in told(station) if key[0] == "raybroker_http_requests_total"}
    assert "other" in methods
    assert not any(method.startswith("MADEUP") for method in methods)
