from __future__ import annotations

import importlib.util
import pickle

import numpy as np
import pyarrow as pa
import pytest

from raybroker import alerts, surveys
from raybroker.errors import SettingsError
from raybroker.features import lightcurve
from raybroker.features.lightcurve import NAMES, extractor, step

installed = importlib.util.find_spec("light_curve") is not None
needs_package = pytest.mark.skipif(not installed, reason="needs light-curve: pip install raybroker[features]")


def point(mjd, magnitude, band="g", **more):
    flux = float(alerts.magnitude_to_flux(magnitude))
    return {"mjd": mjd, "band": band, "kind": "detection", "flux": flux, "error": flux / 50, **more}


def run(*histories, of=lightcurve.lightcurve):
    return of.run({"history": pa.array(histories, alerts.HISTORY)}, len(histories)).to_pylist()


@needs_package
def test_the_names_are_those_of_the_package():
    assert tuple(extractor().names) == NAMES
    assert len(NAMES) == 26


@needs_package
def test_it_agrees_with_the_package_one_light_curve_at_a_time(ztf_packets):
    batch = surveys.load("ztf").decode(ztf_packets("selected_20231018")[:150]).batch
    histories = batch.column("history").to_pylist()
    compared = 0
    for history, seen in zip(histories, run(*histories), strict=True):
        mine = [p for p in history if p["kind"] == "detection" and p["band"] == "r"]
        if len(mine) < 5 or any(p["flux"] <= 0 for p in mine) or (mine[-1]["template_distance"] or 9) < 1.5:
            continue
        flux, error = np.array([p["flux"] for p in mine]), np.array([p["error"] for p in mine])
        magnitude, sigma = alerts.flux_to_magnitude(flux), 2.5 / np.log(10) * error / flux
        days = np.array([p["mjd"] for p in mine])
        wanted = extractor()(days - days[0], magnitude, sigma, fill_value=np.nan)
        made = [np.nan if seen[f"{name}_r"] is None else seen[f"{name}_r"] for name in NAMES]
        np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-6)
        compared += 1
    assert compared > 10


@needs_package
def test_a_star_of_the_template_makes_magnitudes_apparent():
    star = {"template_flux": 1e6, "template_error": 100.0, "template_distance": 0.3}
    [on_star] = run([point(i, 20.0, **star, total_flux=2e6) for i in range(5)])
    [far_star] = run([point(i, 20.0, **{**star, "template_distance": 1.6}) for i in range(5)])
    assert on_star["mean_g"] == pytest.approx(float(alerts.flux_to_magnitude(2e6)), abs=1e-4)
    assert far_star["mean_g"] == pytest.approx(20.0, abs=1e-4)


@needs_package
def test_one_light_curve_is_never_a_mixture_of_apparent_and_difference_magnitudes():
    star = {"template_flux": 1e6, "template_error": 100.0}
    distances = [0.3, 1.6, 0.3, 1.7, 0.4]
    points = [point(i, 20.0, **star, template_distance=d) for i, d in enumerate(distances)]
    [seen] = run(points)
    assert seen["amplitude_g"] == pytest.approx(0, abs=1e-6)
    assert seen["mean_g"] < 17


@needs_package
def test_a_band_without_points_is_null_and_never_copied():
    [seen] = run([point(i, 20.0 - i, band="r") for i in range(6)])
    assert all(seen[f"{name}_g"] is None for name in NAMES)
    assert seen["amplitude_r"] == pytest.approx(2.5)


@needs_package
def test_too_few_points_for_a_feature_leave_that_one_null():
    [seen] = run([point(0, 20.0), point(2, 19.0)])
    assert seen["mean_g"] == pytest.approx(19.5)
    assert seen["kurtosis_g"] is None


@needs_package
def test_limits_forced_and_negative_points_are_left_out():
    clean = [point(i, 20.0 - 0.1 * i) for i in range(5)]
    forced, negative = point(5, 12.0) | {"kind": "forced"}, point(6, 12.0)
    negative["flux"] *= -1
    limit = {"mjd": 7.0, "band": "g", "kind": "limit", "limit": 1e3}
    assert run([*clean, forced, negative, limit]) == run(clean)


@needs_package
def test_other_bands_are_a_setting():
    rubin = step().with_settings({"bands": ["i", "z"]})
    [seen] = run([point(i, 20.0 - i, band="z") for i in range(4)], of=rubin)
    assert len(seen) == 52
    assert seen["mean_z"] == pytest.approx(18.5)
    assert pickle.loads(pickle.dumps(rubin)).gives == rubin.gives


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install raybroker\[features\]"):
        lightcurve.lightcurve.with_settings({})
