"""The lag of every topic and partition: as its last reader said, of what is read now, and never without end."""

from __future__ import annotations

import json
from collections.abc import Mapping

from raybroker.cluster.tally import PARTITIONS, Tally
from raybroker.cluster.worker import Report

Lags = Mapping[tuple[str, int], int]


def told(tally: Tally, worker: str, lags: Lags) -> None:
    tally.add(worker, Report(lag=sum(lags.values()), lags=lags))


def test_partitions_of_all_workers_stand_beside_each_other_those_without_lag_too() -> None:
    tally = Tally()
    told(tally, "ztf-0", {("tonight", 0): 5, ("last night", 0): 0})
    told(tally, "ztf-1", {("tonight", 1): 7})
    told(tally, "rubin-0", {("tonight", 0): 9})
    assert tally.partition_lags() == {
        "ztf": {"tonight": {"0": 5, "1": 7}, "last night": {"0": 0}},
        "rubin": {"tonight": {"0": 9}},
    }


def test_a_partition_that_moved_is_counted_once_as_its_new_reader_says() -> None:
    tally = Tally()
    told(tally, "ztf-0", {("t", 0): 50, ("t", 1): 1})
    told(tally, "ztf-1", {("t", 0): 60})
    assert tally.partition_lags() == {"ztf": {"t": {"0": 60, "1": 1}}}
    told(tally, "ztf-0", {("t", 1): 2})
    assert tally.partition_lags() == {"ztf": {"t": {"0": 60, "1": 2}}}
    told(tally, "ztf-0", {("t", 1): 2, ("t", 0): 40})  # and back again
    assert tally.partition_lags() == {"ztf": {"t": {"0": 40, "1": 2}}}


def test_what_nobody_reads_any_more_disappears() -> None:
    tally = Tally()
    told(tally, "ztf-0", {("t", 0): 50, ("t", 1): 1})
    told(tally, "ztf-0", {("t", 1): 1})
    assert tally.partition_lags() == {"ztf": {"t": {"1": 1}}}
    told(tally, "ztf-1", {("t", 2): 3})
    tally.lost("ztf-0")
    assert tally.partition_lags() == {"ztf": {"t": {"2": 3}}}
    tally.lags.pop("ztf-1")  # as the supervisor does where a worker leaves
    assert tally.partition_lags() == {}


def test_of_very_many_partitions_the_fullest_are_told_and_nothing_that_waits_is_left_out() -> None:
    tally = Tally()
    many = {(f"ztf_{night:08}", n): n % 7 for night in range(500) for n in range(16)}
    told(tally, "ztf-0", many)
    found = tally.partition_lags()["ztf"]
    rows = [lag for topic, parts in found.items() if topic != "other" for lag in parts.values()]
    assert len(rows) == PARTITIONS
    assert set(rows) == {6}
    assert sum(rows) + found["other"]["other"] == sum(many.values())
    assert len(json.dumps(found)) < 10_000


def test_where_equally_many_wait_the_latest_night_is_told() -> None:
    tally = Tally()
    told(tally, "ztf-0", {("ztf_20231017", 0): 0, ("ztf_20231018", 0): 0, ("ztf_20231016", 0): 2})
    assert tally.partition_lags(most=2) == {
        "ztf": {"ztf_20231016": {"0": 2}, "ztf_20231018": {"0": 0}, "other": {"other": 0}}
    }


def test_a_topic_called_other_keeps_its_partitions() -> None:
    tally = Tally()
    told(tally, "ztf-0", {("other", 0): 5, ("t", 0): 1})
    assert tally.partition_lags(most=1) == {"ztf": {"other": {"0": 5, "other": 1}}}
