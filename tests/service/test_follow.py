"""From the archive's tail to the view."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raybroker.archive.events import EventLog
from raybroker.archive.lookup import Lookup
from raybroker.service.asked import Asked
from raybroker.service.follow import Follower
from raybroker.service.view import Query, View, counts


@pytest.fixture
def copy(archive: Path, tmp_path: Path) -> Path:
    """An archive to write to."""
    return Path(shutil.copytree(archive, tmp_path / "copy"))


def follower(root: Path, **limits: Any) -> Follower:
    return Follower(root, ["ztf"], View(catalogues=["galaxies"], **limits), Asked())


def more(root: Path, data: Path, packets: list[Any], service: Any) -> None:
    """The same night goes on."""
    service.fill(root, service.pipeline_of(data, root / "catalogues"), packets)


def received(view: View) -> int:
    return sum(line["received"] for line in counts(view.totals()))


def test_an_archive_that_is_there_is_counted_and_listed_at_once(archive: Path) -> None:
    own = follower(archive)
    own.step()
    assert received(own.view) == len(own.view) == 122
    stored = {(row["outcome"], row["reason"]): row["alerts"] for row in Lookup(archive).counts("ztf")}
    assert {key: sum(n for k, n in own.view.totals().items() if k[2:] == key) for key in stored} == stored
    assert own.view.alerts(Query()).rows[0]["offset"] == 119


def test_the_counts_reach_further_back_than_the_rows(archive: Path) -> None:
    own = follower(archive, rows=30)
    own.step()
    assert (received(own.view), len(own.view)) == (122, 30)
    one_night = follower(archive, nights=1)
    one_night.step()
    nights = {row["night"] for row in one_night.view.alerts(Query(outcomes=(), limit=500)).rows}
    assert (received(one_night.view), len(nights - {None})) == (122, 1)


def test_what_is_committed_later_comes_once(copy: Path, data: Path, ztf_packets: Any, service: Any) -> None:
    own = follower(copy)
    own.step()
    longer = service.night(ztf_packets("selected_20231018"), 150)
    more(copy, data, longer, service)
    assert own.step() == 30
    assert own.step() == 0
    assert received(own.view) == len(own.view) == 152
    assert [row["offset"] for row in own.view.alerts(Query(limit=3)).rows] == [151, 150, 149]


def test_a_tail_that_begins_again_counts_nothing_twice(
    copy: Path, data: Path, ztf_packets: Any, service: Any
) -> None:
    own = follower(copy)
    own.step()
    own.surveys["ztf"]._since = -1
    more(copy, data, service.night(ztf_packets("selected_20231018"), 150), service)
    assert own.step() == 30
    assert received(own.view) == 152


def test_a_table_that_is_made_later_is_found(
    tmp_path: Path, data: Path, ztf_packets: Any, service: Any
) -> None:
    own = follower(tmp_path)
    assert own.step() == 0
    more(tmp_path, data, service.night(ztf_packets("selected_20231018"), 60), service)
    own.step()
    assert len(own.view) == 62


def test_a_commit_between_counting_and_reading_comes_once(
    copy: Path, data: Path, ztf_packets: Any, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = service.night(ztf_packets("selected_20231018"), 150)
    asked_sql = Lookup.sql

    def sql(self: Lookup, query: str, *values: Any) -> pa.Table:
        if "limit" in query:
            more(copy, data, longer, service)
        return asked_sql(self, query, *values)

    monkeypatch.setattr(Lookup, "sql", sql)
    own = follower(copy)
    own.step()
    assert received(own.view) == len(own.view) == 152


def test_questions_and_labels_are_followed(copy: Path) -> None:
    own = follower(copy)
    own.step()
    first = own.asked.open("transients")
    assert len(first) == 5
    assert "features" not in first[0]
    alert = {name: first[0][name] for name in ("survey", "alert_id", "object_id", "model")}
    EventLog(copy, "labels").append(
        [{**alert, "event_id": "e1", "label": "AGN", "who": "tns", "when": first[0]["when"]}]
    )
    own.step()
    assert [row["query_id"] for row in own.asked.open("transients")] == [row["query_id"] for row in first[1:]]


def test_the_delay_is_from_publication_until_readable(
    copy: Path, data: Path, ztf_packets: Any, service: Any
) -> None:
    own = follower(copy)
    own.clock = lambda: 1_700_000_002.0
    own.step()
    more(copy, data, service.night(ztf_packets("selected_20231018"), 150), service)
    own.step()
    assert own.delay == pytest.approx(2.0 - 0.151)


def test_the_thread_survives_an_archive_that_fails_and_says_so(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = follower(copy)
    own.start()
    try:
        wait_for(lambda: len(own.view) == 122 and own.problems() == [])
        monkeypatch.setattr(own.surveys["ztf"], "step", broken)
        wait_for(lambda: own.problems() != [])
        assert "disk is gone" in own.problems()[0]
        monkeypatch.undo()
        wait_for(lambda: own.problems() == [])
    finally:
        own.stop()


def broken() -> None:
    raise OSError("disk is gone")


def wait_for(true: Any, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_follower_that_stands_still_is_a_problem(archive: Path) -> None:
    own = follower(archive)
    own.step()
    own.last_look -= 60
    assert "60 s ago" in own.problems()[0]
