"""The last nights in memory."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord

from raybroker.errors import UnknownError
from raybroker.service.view import Cone, Query, View, counts, separation


def rows(count: int, first: int = 0, night: int | list[int | None] = 20181129, **changed: Any) -> pa.Table:
    """Made-up rows as the archive gives them, at offsets from `first`."""
    places = np.arange(first, first + count)
    score = np.asarray(places % 10 / 10, np.float32)
    model = [pa.array(score), pa.array(1 - score), pa.array(np.full(count, 3, np.int32))]
    columns: dict[str, Any] = {
        "alert_id": [f"ztf:{place}" for place in places],
        "object_id": [f"ztf:ZTF{place % 7}" for place in places],
        "ss_object_id": pa.nulls(count, pa.string()),
        "night": pa.array([night] * count if isinstance(night, int) else night, pa.int32()),
        "mjd": 58000 + places / 1000,
        "ra": places % 360 * 1.0,
        "dec": places % 90 * 1.0,
        "band": ["g"] * count,
        "flux": np.ones(count, np.float32),
        "outcome": ["scored"] * count,
        "reason": pa.nulls(count, pa.string()),
        "topic": ["night"] * count,
        "partition": pa.array([0] * count, pa.int32()),
        "offset": places,
        "transients": pa.StructArray.from_arrays(model, ["SN", "AGN", "snapshot"]),
        "young": places % 5 == 0,
        "history": pa.array([[{"flux": 1.0}]] * count),
    }
    return pa.table(columns | changed)


def ids(view: View, **query: Any) -> list[str]:
    return [row["alert_id"] for row in view.alerts(Query(**query)).rows]


def test_the_last_to_arrive_comes_first() -> None:
    view = View()
    view.add_alerts("ztf", rows(5))
    view.add_alerts("ztf", rows(2, 5))
    assert ids(view, limit=4) == ["ztf:6", "ztf:5", "ztf:4", "ztf:3"]


def test_histories_are_not_kept() -> None:
    view = View()
    view.add_alerts("ztf", rows(2))
    assert "history" not in view.alerts(Query()).rows[0]


def test_pages_join_without_gap_or_repeat_while_alerts_arrive() -> None:
    view = View()
    view.add_alerts("ztf", rows(500))
    seen, before = [], None
    for step in range(200):
        page = view.alerts(Query(limit=7, before=before))
        seen += [row["alert_id"] for row in page.rows]
        view.add_alerts("ztf", rows(20, 500 + 20 * step))
        if (before := page.before) is None:
            break
    assert seen == [f"ztf:{place}" for place in range(499, -1, -1)]


def test_a_cursor_that_left_the_memory_says_so() -> None:
    view = View(rows=16)
    view.add_alerts("ztf", rows(10))
    for first in range(10, 100, 10):
        view.add_alerts("ztf", rows(10, first))
    with pytest.raises(UnknownError, match="no longer in memory"):
        view.alerts(Query(before="night:0:3"))


def test_the_memory_is_bounded_by_rows_and_by_nights() -> None:
    view = View(rows=1000, nights=2)
    for first in range(0, 5000, 50):
        view.add_alerts("ztf", rows(50, first))
        assert len(view) <= 1000
    view.add_alerts("ztf", rows(300, 5000, night=20181130))
    view.add_alerts("ztf", rows(300, 5300, night=20181201))
    view.add_alerts("ztf", rows(300, 5600, night=20181202))
    assert {row["night"] for row in view.alerts(Query(limit=1000)).rows} == {20181201, 20181202}


def test_a_replayed_old_night_is_shown() -> None:
    view = View(nights=1)
    view.add_alerts("ztf", rows(10, night=20231018))
    view.add_alerts("ztf", rows(10, 10, night=20181129))
    assert view.alerts(Query()).rows[0]["night"] == 20181129


def test_counts_add_up_and_do_not_fall_when_rows_leave() -> None:
    view = View(rows=20, nights=1)
    outcomes = ["scored", "rejected", "failed", "dead", "duplicate"]
    reasons = [None, "real", "basic: it broke", "no bytes", None]
    for first in range(0, 200, 5):
        night = [20181129, 20181129, 20181129, None, 20181129]
        view.add_alerts("ztf", rows(5, first, outcome=outcomes, reason=reasons, night=night))
    lines = counts(view.totals())
    assert sum(line["received"] for line in lines) == 200
    assert all(line["received"] == sum(line[name] for name in outcomes) for line in lines)
    assert [line["rejected"] for line in lines] == [0, 40]
    assert lines[1]["reasons"]["rejected"] == {"real": 40}


def test_reasons_without_end_are_counted_together() -> None:
    view = View()
    for i in range(600):
        view.add_total("ztf", 20181129, "failed", f"step: value {i}", 1)
    (line,) = counts(view.totals())
    assert line["failed"] == 600
    assert line["reasons"]["failed"]["other reasons"] == 100


def test_filters_narrow_the_list() -> None:
    view = View()
    view.add_alerts("ztf", rows(40))
    view.add_alerts("rubin", rows(3, 40, night=20250905, outcome=["rejected"] * 3))
    assert len(ids(view)) == 40
    assert ids(view, survey="rubin") == []
    assert len(ids(view, survey="rubin", outcomes=())) == 3
    assert len(ids(view, night=20250905, outcomes=("rejected",))) == 3
    assert ids(view, filter="young", limit=2) == ["ztf:35", "ztf:30"]
    assert ids(view, filter="band") == []
    assert ids(view, model="transients", label="SN", min_score=0.85, limit=2) == ["ztf:39", "ztf:29"]
    assert ids(view, model="transients", label="AGN", limit=2) == ["ztf:35", "ztf:34"]
    assert ids(view, model="nobody") == []


def test_a_cone_agrees_with_astropy_also_over_ra_zero_and_the_pole() -> None:
    rng = np.random.default_rng(1)
    for ra, dec in [(0.0, 10.0), (359.9, -60.0), (180.0, 89.95), (20.0, 0.0)]:
        cone = Cone(ra, dec, 3600.0)
        some_ra, some_dec = (
            (ra + rng.normal(0, 1, 3000)) % 360,
            np.clip(dec + rng.normal(0, 0.7, 3000), -90, 90),
        )
        expected = SkyCoord(ra, dec, unit="deg").separation(SkyCoord(some_ra, some_dec, unit="deg")).arcsec
        np.testing.assert_allclose(separation(some_ra, some_dec, cone), expected, rtol=1e-9, atol=1e-6)
        view = View()
        view.add_alerts("ztf", rows(3000, ra=some_ra, dec=some_dec))
        inside = {f"ztf:{i}" for i in np.flatnonzero(expected <= 3600)}
        assert set(ids(view, cone=cone, limit=3000)) == inside
        assert inside


def test_an_alert_that_came_through_two_partitions_is_listed_once() -> None:
    view = View()
    view.add_alerts("ztf", rows(3))
    view.add_alerts("ztf", rows(3, partition=pa.array([1] * 3, pa.int32())))
    assert ids(view) == ["ztf:2", "ztf:1", "ztf:0"]


def test_a_duplicate_does_not_hide_the_alert() -> None:
    view = View()
    view.add_alerts("ztf", rows(1))
    view.add_alerts(
        "ztf", rows(1, offset=[1], outcome=["duplicate"], transients=pa.nulls(1, rows(1)["transients"].type))
    )
    assert view.alert("ztf:0")["scores"]  # type: ignore[index]
    assert [row["outcome"] for row in view.of_object("ztf:ZTF0")] == ["scored"]
    assert len(ids(view, outcomes=())) == 2


def test_columns_of_a_later_plan_are_null_in_earlier_rows() -> None:
    view = View()
    view.add_alerts("ztf", rows(3).drop_columns(["transients", "young"]))
    view.add_alerts("ztf", rows(3, 3))
    assert [row["scores"] != {} for row in view.alerts(Query()).rows] == [True] * 3 + [False] * 3


def test_an_object_finds_its_alerts() -> None:
    view = View()
    view.add_alerts("ztf", rows(20))
    assert [row["alert_id"] for row in view.of_object("ztf:ZTF3")] == ["ztf:17", "ztf:10", "ztf:3"]
    assert view.alert("ztf:17")["object_id"] == "ztf:ZTF3"  # type: ignore[index]
    assert view.alert("ztf:99") is None


def test_a_full_view_answers_in_milliseconds() -> None:
    view = View()
    for first in range(0, 300_000, 3000):
        view.add_alerts("ztf", rows(3000, first).drop_columns(["history"]))
    hard = Query(model="transients", label="SN", min_score=0.99, cone=Cone(1.5, 1.5, 60.0), filter="young")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        view.alerts(hard)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05  # 15 ms on one core; the margin is for a busy machine
