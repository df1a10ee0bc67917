from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raybroker import alerts, surveys
from raybroker.features.early import early


def point(mjd, band, magnitude=None, kind="detection", limit=20.0, sign=1):
    flux = None if magnitude is None else sign * float(alerts.magnitude_to_flux(magnitude))
    return {"mjd": mjd, "band": band, "kind": kind, "flux": flux, "error": 100.0, "limit": limit}


def run(*histories, mjd=60010.0):
    rows = len(histories)
    columns = {
        "history": pa.array(histories, alerts.HISTORY),
        "mjd": pa.array([mjd] * rows),
        "flux": pa.array([1000.0] * rows, pa.float32()),
        "flux_error": pa.array([100.0] * rows, pa.float32()),
    }
    return early.run(columns, rows).to_pylist()


def limit(mjd, band="g"):
    return point(mjd, band, kind="limit")


def test_a_rising_transient():
    [seen] = run(
        [
            limit(60000),
            point(60008, "g", 20.0),
            point(60008.1, "r", 19.5),
            limit(60009),
            point(60010, "g", 19.0),
        ]
    )
    assert seen["age"] == 2
    assert seen["rise_g"] == pytest.approx(0.5)
    assert seen["rise_r"] is None
    assert seen["colour_g_r"] == pytest.approx(0.5)
    assert (seen["detections"], seen["limits"], seen["since_limit"]) == (3, 2, 1)
    assert seen["peak_flux"] == pytest.approx(float(alerts.magnitude_to_flux(19.0)), rel=1e-6)
    assert seen["signal_to_noise"] == 10


def test_two_detections_of_one_night_give_no_rise():
    [seen] = run([point(60009.9, "g", 20.0), point(60010, "g", 19.0)])
    assert seen["rise_g"] is None


def test_a_rise_skips_detections_of_the_same_night():
    [seen] = run([point(60008, "g", 20.0), point(60009.9, "g", 15.0), point(60010, "g", 19.0)])
    assert seen["rise_g"] == pytest.approx(0.5)


def test_bands_more_than_half_a_day_apart_give_no_colour():
    [seen] = run([point(60009, "r", 19.0), point(60010, "g", 19.0)])
    assert seen["colour_g_r"] is None


def test_the_newest_pair_makes_the_colour():
    [seen] = run(
        [
            point(60000, "g", 20.0),
            point(60000.1, "r", 18.0),
            point(60009, "r", 19.0),
            point(60009.2, "g", 20.0),
        ]
    )
    assert seen["colour_g_r"] == pytest.approx(1.0)


def test_negative_detections_count_but_have_no_magnitude():
    [seen] = run([point(60000, "g", 20.0, sign=-1), point(60009, "g", 20.0, sign=-1)])
    assert seen["detections"] == 2
    assert seen["rise_g"] is None
    assert seen["peak_flux"] < 0


def test_an_alert_never_borrows_from_its_neighbour():
    alone = run([point(60009, "g", 20.0)])
    neighbour = [limit(60008), point(60008.9, "g", 18.0), point(60008.9, "r", 17.0)]
    among = run(neighbour, [point(60009, "g", 20.0)], [], neighbour)
    assert among[1] == alone[0]


def test_no_history_is_not_the_same_as_an_empty_one():
    unknown, empty = run(None, [])
    assert unknown["detections"] is None
    assert (empty["detections"], empty["age"], empty["peak_flux"]) == (0, None, None)


def test_it_agrees_with_a_loop_over_real_alerts(ztf_packets):
    batch = surveys.load("ztf").decode(ztf_packets("public_20181129")).batch
    columns = {name: batch.column(name) for name in early.needs}
    for history, mjd, seen in zip(
        batch.column("history").to_pylist(),
        batch.column("mjd").to_pylist(),
        early.run(columns, batch.num_rows).to_pylist(),
        strict=True,
    ):
        found = [p for p in history if p["kind"] == "detection"]
        limits = [p["mjd"] for p in history if p["kind"] == "limit"]
        assert seen["age"] == np.float32(mjd - found[0]["mjd"])
        assert (seen["detections"], seen["limits"]) == (len(found), len(limits))
        assert seen["since_limit"] == (np.float32(mjd - limits[-1]) if limits else None)
        assert seen["peak_flux"] == max(p["flux"] for p in found)
        rise = slow_rise(found, "g")
        assert seen["rise_g"] == (None if rise is None else pytest.approx(rise, rel=1e-5))


def slow_rise(found, band):
    mine = [p for p in found if p["band"] == band and p["flux"] > 0]
    before = [p for p in mine if p["mjd"] <= mine[-1]["mjd"] - 0.5]
    if not before:
        return None
    faded = alerts.flux_to_magnitude(before[-1]["flux"]) - alerts.flux_to_magnitude(mine[-1]["flux"])
    return float(faded / (mine[-1]["mjd"] - before[-1]["mjd"]))
