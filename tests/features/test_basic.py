from __future__ import annotations

import time

import astropy.units as u
import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import BarycentricMeanEcliptic, SkyCoord

from raybroker import alerts
from raybroker.features.basic import basic


def point(mjd, band, magnitude=None, *, kind="detection", sign=1, error=100.0, **more):
    flux = None if magnitude is None else sign * float(alerts.magnitude_to_flux(magnitude))
    return {"mjd": mjd, "band": band, "kind": kind, "flux": flux, "error": error, **more}


def columns(*histories, mjd=60010.0, flux=1000.0, band="r", ra=150.0, dec=20.0):
    rows = len(histories)
    return {
        "history": pa.array(histories, alerts.HISTORY),
        "flux": pa.array([flux] * rows, pa.float32()),
        "flux_error": pa.array([100.0] * rows, pa.float32()),
        "band": pa.array([band] * rows, pa.string()),
        "mjd": pa.array([mjd] * rows, pa.float64()),
        "ra": pa.array([ra] * rows, pa.float64()),
        "dec": pa.array([dec] * rows, pa.float64()),
        "reliability": pa.array([0.9] * rows, pa.float32()),
    }


def run(*histories, **given):
    return basic.run(columns(*histories, **given), len(histories)).to_pylist()


LIMIT = point(60000.0, "g", kind="limit")


def random_columns(rows: int) -> dict[str, pa.Array]:
    """Histories of 0 to 40 points of all bands and kinds, some of them null."""
    dice = np.random.default_rng(3)

    def one() -> list[dict] | None:
        if dice.random() < 0.05:
            return None
        times = np.sort(60010 - dice.uniform(0, 30, dice.integers(0, 40)))
        bands, kinds = dice.choice([*"ugrizy", "X"], len(times)), dice.choice(alerts.KINDS, len(times))
        return [
            point(
                t,
                b,
                dice.uniform(16, 21),
                kind=k,
                sign=dice.choice([-1, 1]),
                template_flux=dice.uniform(1, 1e6),
            )
            for t, b, k in zip(times, bands, kinds, strict=True)
        ]

    made = columns(*(one() for _ in range(rows)))
    return made | {"band": pa.array(dice.choice([*"ugrizy", "X"], rows))}


def test_counts_and_times_are_of_the_history() -> None:
    [seen] = run([LIMIT, point(60004, "g", 20), point(60009, "r", 19.5), point(60010, "r", 19)])
    assert (seen["detections"], seen["detections_g"], seen["detections_r"], seen["detections_i"]) == (
        3,
        1,
        2,
        0,
    )
    assert (seen["age"], seen["watched"]) == (6, 10)
    assert seen["snr"] == 10


def test_a_brightening_is_per_band_and_of_the_last_ten_days() -> None:
    [seen] = run(
        [point(59990, "r", 10), point(60002, "r", 20), point(60006, "r", 19.6), point(60010, "r", 19.2)]
    )
    assert seen["brightening_r"] == pytest.approx(0.1, rel=1e-4)
    assert seen["brightening_g"] is None
    assert seen["amplitude_r"] == pytest.approx(10)


def test_reddening_is_what_brightens_faster_in_r() -> None:
    times = (60004, 60007, 60010)
    [seen] = run(
        [point(t, b, 20 + slope * (t - 60004)) for t in times for b, slope in (("g", 0.05), ("r", -0.1))]
    )
    assert seen["reddening"] == pytest.approx(0.15, rel=1e-4)
    [one_band] = run([point(t, "r", 20 - 0.1 * (t - 60004)) for t in times])
    assert one_band["reddening"] is None


def test_two_looks_within_an_hour_give_no_brightening() -> None:
    [seen] = run([point(60009.97, "r", 20), point(60010, "r", 19.6)])
    assert seen["brightening_r"] is None
    assert seen["amplitude_r"] == pytest.approx(0.4, rel=1e-4)


def test_chi2_is_of_a_constant_flux_and_counts_forced_photometry() -> None:
    forced = [{**point(60000 + i, "g", kind="forced"), "flux": 1000.0 + 200 * (i % 2)} for i in range(4)]
    [seen] = run(forced)
    assert seen["chi2_g"] == pytest.approx(np.log10(1 + 4 / 3), rel=1e-5)
    assert seen["detections_g"] == 0


def test_the_colour_is_of_the_latest_pair_within_a_day() -> None:
    [seen] = run(
        [point(60000, "g", 18), point(60000.1, "r", 18), point(60009.3, "r", 19), point(60010, "g", 19.5)]
    )
    assert seen["colour"] == pytest.approx(0.5, abs=1e-5)
    [apart] = run([point(60008.9, "g", 18), point(60010, "r", 18)])
    assert apart["colour"] is None


def test_peak_template_and_sign() -> None:
    near = {"template_flux": 10_000.0, "template_distance": 0.4}
    blue = {"template_flux": 20_000.0}
    [seen] = run(
        [point(60005, "r", 15), point(60007, "g", 10, **blue), point(60010, "r", 20, sign=-1, **near)],
        flux=-1000,
    )
    assert seen["below_peak"] == pytest.approx(float(alerts.flux_to_magnitude(1000)) - 15, rel=1e-5)
    assert seen["template_ratio"] == pytest.approx(-1)
    assert seen["template_distance"] == pytest.approx(0.4)
    assert seen["template_colour"] == pytest.approx(-2.5 * np.log10(2), abs=1e-5)
    assert seen["sign"] == -1
    assert seen["negative_fraction"] == pytest.approx(1 / 3)


def test_latitudes_agree_with_astropy() -> None:
    dice = np.random.default_rng(1)
    ra, dec = dice.uniform(0, 360, 200), np.degrees(np.arcsin(dice.uniform(-1, 1, 200)))
    made = columns(*[[]] * 200) | {"ra": pa.array(ra), "dec": pa.array(dec)}
    seen = basic.run(made, 200)
    sky = SkyCoord(ra * u.deg, dec * u.deg)
    np.testing.assert_allclose(seen.field("galactic_latitude"), np.abs(sky.galactic.b.deg), atol=0.01)
    ecliptic = sky.transform_to(BarycentricMeanEcliptic()).lat.deg
    np.testing.assert_allclose(seen.field("ecliptic_latitude"), np.abs(ecliptic), atol=0.01)


def test_an_unknown_history_is_null_and_an_empty_one_is_zero() -> None:
    unknown, empty = run(None, [])
    assert unknown["detections"] is None
    assert unknown["detections_g"] is None
    assert empty["detections"] == 0
    assert empty["age"] is None
    assert empty["negative_fraction"] is None
    assert unknown["magnitude"] is not None


def test_all_null_gives_nulls() -> None:
    made = {name: pa.nulls(3, column.type) for name, column in columns([]).items()}
    for row in basic.run(made, 3).to_pylist():
        assert set(row.values()) == {None}


def test_the_same_bits_alone_in_a_batch_and_in_a_slice() -> None:
    made = random_columns(150)
    whole = basic.run(made, 150)
    for size in (1, 7, 64):
        parts = [
            basic.run({name: column.slice(at, size) for name, column in made.items()}, min(size, 150 - at))
            for at in range(0, 150, size)
        ]
        assert pa.concat_arrays(parts).equals(whole)
    assert len(basic.run({name: column.slice(0, 0) for name, column in made.items()}, 0)) == 0


def test_nothing_is_infinite() -> None:
    zero = [{**point(60009, "r"), "flux": 0.0}, {**point(60010, "r"), "flux": 0.0, "error": 0.0}]
    for row in run(zero, [point(60010, "r", 19, template_flux=0.0)], flux=0.0):
        assert all(value is None or np.isfinite(value) for value in row.values())


@pytest.mark.benchmark
def test_it_takes_less_than_30_microseconds_an_alert() -> None:
    made = random_columns(400)
    basic.run(made, 400)
    begin = time.process_time()
    for _ in range(10):
        basic.run(made, 400)
    assert (time.process_time() - begin) / 4000 < 30e-6
