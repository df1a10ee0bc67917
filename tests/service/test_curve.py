"""One light curve from many histories."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from raybroker.alerts import HISTORY
from raybroker.service import curve


def merged(*histories: Any) -> list[dict[str, Any]]:
    names = ("mjd", "band", "kind", "flux", "limit")
    lists = [
        None if history is None else [dict(zip(names, point, strict=True)) for point in history]
        for history in histories
    ]
    points = curve.merged(pa.chunked_array([pa.array(lists, HISTORY)])).to_pylist()
    return [{name: point[name] for name in names} for point in points]


def test_each_measurement_comes_once_as_the_newest_alert_has_it() -> None:
    found = merged(
        [(1.0, "g", "detection", 5.0, None)],
        [(1.0 + 1e-6, "g", "detection", 6.0, None), (2.0, "r", "detection", 7.0, None)],
    )
    assert [(round(p["mjd"], 3), p["flux"]) for p in found] == [(1.0, 6.0), (2.0, 7.0)]


def test_bands_and_kinds_of_one_time_are_apart_and_in_order_of_time() -> None:
    points = [
        (3.0, "r", "detection", 1.0, None),
        (3.0, "g", "forced", 2.0, None),
        (3.0, "g", "detection", 3.0, None),
    ]
    found = merged(points, [(1.0, "g", "detection", 4.0, None)])
    assert sorted(p["flux"] for p in found) == [1.0, 2.0, 3.0, 4.0]
    assert found[0]["mjd"] == 1.0


def test_a_limit_gives_way_to_a_detection_of_the_same_exposure_alone() -> None:
    limits = [(1.0, "g", "limit", None, 9.0), (1.0, "r", "limit", None, 9.0), (2.0, "g", "limit", None, 9.0)]
    found = merged(limits, [(1.0, "g", "detection", 5.0, None), (2.0, "g", "forced", 1.0, None)])
    assert [(p["mjd"], p["band"]) for p in found if p["kind"] == "limit"] == [(1.0, "r"), (2.0, "g")]


def test_no_history_is_an_empty_curve() -> None:
    assert merged(None, []) == []
