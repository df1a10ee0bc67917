"""Phases of made-up and of real light curves, against loops that a reader can check."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raybroker import alerts, surveys
from raybroker.features.phases import phases


def point(mjd, band, magnitude=None, kind="detection", error=0.05, sign=1):
    if magnitude is None:
        return {"mjd": mjd, "band": band, "kind": "limit", "limit": 20.0}
    flux = float(alerts.magnitude_to_flux(magnitude))
    return {
        "mjd": mjd,
        "band": band,
        "kind": kind,
        "flux": sign * flux,
        "error": error * flux / (2.5 / np.log(10)),
    }


def run(*histories, mjd=60030.0):
    columns = {
        "history": pa.array(histories, alerts.HISTORY),
        "mjd": pa.array([mjd] * len(histories), pa.float64()),
    }
    return phases.run(columns, len(histories)).to_pylist()


def rise_and_fall():
    """Peak of 18 mag on day 10 in g and of 17.8 on day 12 in r, falling by a parabola of 1 mag in 10 days."""
    days = np.arange(0.0, 31.0, 3.0)
    g = [point(60000 + d, "g", 18 + ((d - 10) / 10) ** 2) for d in days]
    r = [point(60000.1 + d, "r", 17.8 + ((d - 11.9) / 10) ** 2) for d in days]
    return sorted(g + r, key=lambda p: p["mjd"])


def test_a_parabola_is_found_again():
    [seen] = run(rise_and_fall(), mjd=60030.1)
    assert seen["bend_g"] == pytest.approx(1, abs=1e-5)
    assert seen["bend_slope_g"] == pytest.approx(4, abs=1e-5)  # 2 (d - 10) / 10 at day 30
    assert seen["bend_residual_g"] == pytest.approx(0, abs=1e-5)
    assert seen["bend_faded_g"] == pytest.approx(4 - 0.01, abs=1e-5)  # the peak that was seen is day 9's
    assert seen["bend_r"] == pytest.approx(1, abs=1e-5)


def test_peak_decline_and_width_of_each_band():
    [seen] = run(rise_and_fall(), mjd=60030.1)
    assert seen["detections_g"] == 11
    assert seen["peak_g"] == pytest.approx(18.01)
    assert seen["since_peak_g"] == pytest.approx(21.1, abs=1e-4)
    assert seen["to_peak_r"] == pytest.approx(12, abs=1e-4)
    assert seen["faded_g"] == pytest.approx(4 - 0.01, abs=1e-5)
    assert seen["after_7_g"] == pytest.approx(np.mean([0.25, 0.64]) - 0.01, abs=1e-5)  # days 15 and 18
    assert seen["width_g"] == pytest.approx(15, abs=1e-4)  # days 3 to 18: less than 0.753 mag below
    assert seen["peak_lag"] == pytest.approx(3.1, abs=1e-4)
    assert seen["slope_8_g"] == pytest.approx((4.0 - 1.96) / 6, abs=1e-4)  # days 24, 27 and 30


def test_a_colour_needs_two_detections_within_a_day_and_a_half():
    pair = [point(60020, "g", 19.0), point(60021.4, "r", 18.5)]
    [close, apart] = run(pair, [pair[0], point(60021.6, "r", 18.5)])
    assert close["colour_now"] == pytest.approx(0.5, abs=1e-5)
    assert close["colour_since"] == pytest.approx(10, abs=1e-4)
    assert (apart["colour_now"], apart["colour_pairs"]) == (None, 0)


def test_images_without_it_are_counted_before_and_after():
    history = [point(60010, "g"), point(60014, "r"), point(60016, "g", 19.0), point(60020, "g")]
    [seen] = run([*history, point(60030, "r", 18.0)])
    assert (seen["limits_before"], seen["limits_after"], seen["first_gap"]) == (2, 1, 2)
    assert seen["limits_share"] == pytest.approx(1 / 3)


def test_what_is_not_a_positive_detection_has_no_magnitude():
    forced = point(60029, "g", 15.0, kind="forced")
    fading = point(60028, "g", 15.0, sign=-1)
    [seen] = run([forced, fading, point(60030, "g", 19.0)])
    assert (seen["detections_g"], seen["peak_g"]) == (1, 19)


def test_no_history_is_not_the_same_as_an_empty_one():
    unknown, empty, limits = run(None, [], [point(60029, "g")])
    assert unknown["detections_g"] is None
    assert (empty["detections_g"], empty["peak_g"]) == (0, None)
    assert (limits["detections_r"], limits["first_gap"]) == (0, None)


def test_one_point_has_no_slope_and_no_bend():
    [seen] = run([point(60030, "r", 19.0)])
    assert (seen["slope_r"], seen["bend_r"], seen["scatter_r"], seen["peak_g"]) == (None,) * 4


def test_it_agrees_with_a_loop_over_real_alerts(ztf_packets):
    batch = surveys.load("ztf").decode(ztf_packets("public_20181129")).batch
    columns = {name: batch.column(name) for name in phases.needs}
    found = phases.run(columns, batch.num_rows).to_pylist()
    fitted = 0
    for history, seen in zip(batch.column("history").to_pylist(), found, strict=True):
        for band in "gr":
            days, magnitude, error = curve(history, band)
            assert seen[f"detections_{band}"] == len(days)
            if len(days):
                assert seen[f"peak_{band}"] == pytest.approx(magnitude.min(), abs=1e-5)
                assert seen[f"change_{band}"] == pytest.approx(magnitude[-1] - magnitude[0], abs=1e-5)
            if seen[f"bend_{band}"] is not None:
                fitted += 1
                x = (days - days[-1]) / 10
                bend, slope, _ = np.polyfit(x, magnitude, 2, w=1 / error)
                assert seen[f"bend_{band}"] == pytest.approx(bend, rel=1e-3, abs=1e-3)
                assert seen[f"bend_slope_{band}"] == pytest.approx(slope, rel=1e-3, abs=1e-3)
    assert fitted > 10


def curve(history, band):
    mine = [p for p in history if p["kind"] == "detection" and p["band"] == band and p["flux"] > 0]
    flux, error = (np.array([p[name] for p in mine], float) for name in ("flux", "error"))
    magnitude = alerts.flux_to_magnitude(flux)
    return np.array([p["mjd"] for p in mine]), magnitude, np.maximum(2.5 / np.log(10) * error / flux, 0.02)
