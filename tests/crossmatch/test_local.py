from __future__ import annotations

import pickle

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord, match_coordinates_sky
from astropy.table import Table

from raybroker import alerts, checks, surveys
from raybroker.crossmatch import local
from raybroker.errors import SettingsError

ARCSEC = 1 / 3600


def sky(rows, seed=0):
    """Positions spread over the whole sphere."""
    dice = np.random.default_rng(seed)
    return dice.random(rows) * 360, np.degrees(np.arcsin(dice.random(rows) * 2 - 1))


def moved(ra, dec, arcsec, seed=1):
    """The same positions, each shifted by up to so many arcseconds in some direction, also over a pole."""
    dice = np.random.default_rng(seed)
    places = SkyCoord(ra, dec, unit="deg")
    there = places.directional_offset_by(
        dice.random(len(ra)) * 360 * u.deg, dice.random(len(ra)) * arcsec * u.arcsec
    )
    return there.ra.deg, there.dec.deg


def prepared(folder, ra, dec, **columns):
    pq.write_table(pa.table({"ra": ra, "dec": dec, **columns}), folder / "in.parquet")
    return local.prepare(folder / "in.parquet", folder / "out.arrow")


def run(step, ra, dec):
    return step.run(
        {"ra": pa.array(ra, pa.float64()), "dec": pa.array(dec, pa.float64())}, len(ra)
    ).to_pylist()


def agrees_with_astropy(folder, ra, dec, at_ra, at_dec, radius):
    catalogue = prepared(folder, ra, dec, row=np.arange(len(ra)))
    made = run(local.step("x", catalogue.file, radius, ["row"]), at_ra, at_dec)
    near, apart, _ = match_coordinates_sky(SkyCoord(at_ra, at_dec, unit="deg"), SkyCoord(ra, dec, unit="deg"))
    matched = 0
    for one, row, distance in zip(made, near, apart.arcsec, strict=True):
        if distance > radius:
            assert one == {"distance": None, "row": None}
        else:
            matched += 1
            assert one["row"] == row
            assert one["distance"] == pytest.approx(distance, rel=1e-5, abs=1e-6)
    return matched


def test_it_agrees_with_astropy_all_over_the_sky(tmp_path):
    ra, dec = sky(20_000)
    at_ra, at_dec = moved(ra[:5000], dec[:5000], 6.0)
    assert 1000 < agrees_with_astropy(tmp_path, ra, dec, at_ra, at_dec, 3.0) < 4000


@pytest.mark.parametrize("pole", [-90, 90])
def test_it_agrees_with_astropy_at_the_poles(tmp_path, pole):
    dice = np.random.default_rng(2)
    ra, dec = dice.random(3000) * 360, pole * (1 - dice.random(3000) ** 2 * 2e-4)
    at_ra, at_dec = moved(ra, dec, 30.0)
    assert agrees_with_astropy(tmp_path, ra, dec, at_ra, at_dec, 10.0) > 1000


def test_it_agrees_with_astropy_across_zero_hours(tmp_path):
    dice = np.random.default_rng(3)
    ra, dec = dice.normal(0, 2 * ARCSEC, 500) % 360, dice.normal(0, 10 * ARCSEC, 500)
    at_ra, at_dec = moved(ra, dec, 3.0)
    assert agrees_with_astropy(tmp_path, ra, dec, at_ra, at_dec, 2.0) > 400


@pytest.mark.parametrize("order", [7, 12, 16])
def test_a_cell_and_its_neighbours_hold_all_within_the_widest_radius_of_their_order(order):
    radius = np.degrees(local.WIDTH / 2**order) * 3600 * (1 - 1e-9)
    ra, dec = corners(300_000, 60 / 2**order)
    places = SkyCoord(ra, dec, unit="deg")
    there = places.directional_offset_by(
        np.random.default_rng(5).random(len(ra)) * 360 * u.deg, radius * u.arcsec
    )
    used, near = local._cells(ra, dec, radius)
    assert used == order
    cells = alerts.healpix(there.ra.deg, there.dec.deg) >> (2 * (alerts.HEALPIX_ORDER - order))
    assert (near == cells[:, None]).any(axis=1).all()


def corners(rows, degrees):
    """Positions about the eight points of the sphere where a cell has seven neighbours, and the poles."""
    dice = np.random.default_rng(4)
    corner = np.degrees(np.arcsin(2 / 3))
    places = np.array([(ra, dec) for ra in (0, 90, 180, 270) for dec in (corner, -corner, 90, -90)])
    ra, dec = places[dice.integers(len(places), size=rows)].T + dice.normal(0, degrees, (2, rows))
    return np.where(np.abs(dec) > 80, dice.random(rows) * 360, ra % 360), np.clip(dec, -90, 90)


def test_two_alerts_of_one_source_both_match(tmp_path):
    catalogue = prepared(tmp_path, [10.0], [20.0])
    made = run(local.step("x", catalogue.file, 1.5), [10.0, 10.0], [20.0, 20.0 + ARCSEC])
    assert [one["distance"] for one in made] == [0, pytest.approx(1, rel=1e-5)]


def test_an_unknown_or_impossible_position_matches_nothing(tmp_path):
    catalogue = prepared(tmp_path, [10.0], [20.0])
    made = run(local.step("x", catalogue.file, 1.5), [None, np.nan, 10.0, 10.0], [20.0, 20.0, 200.0, 20.0])
    assert [one["distance"] for one in made] == [None, None, None, 0]


def test_an_empty_catalogue_matches_nothing(tmp_path):
    catalogue = prepared(tmp_path, np.array([]), np.array([]), name=pa.array([], pa.string()))
    assert run(local.step("x", catalogue.file, 1.5, ["name"]), [1.0], [2.0]) == [
        {"distance": None, "name": None}
    ]


def test_rows_without_a_position_are_dropped_and_counted(tmp_path):
    catalogue = prepared(tmp_path, [10.0, None, 30.0], [20.0, 20.0, np.nan])
    assert (catalogue.rows, catalogue.dropped) == (1, 2)


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("gcvs.parquet", 59_099, ["VarType"]),
        ("spicy.parquet", 117_446, ["class"]),
        ("mangrove.parquet", 295_341, ["HyperLEDA_name", "lum_dist"]),
        ("symbiotic_and_cataclysmic.parquet", 2_857, ["Name", "source"]),
        ("tde_44.parquet", 44, ["name"]),
        ("3hsp.csv", 2_013, ["3HSP Source name", "FOM"]),
        ("table-4LAC-DR3-h.fits", 3_407, ["Source_Name", "Redshift"]),
    ],
)
def test_real_catalogues_find_their_own_sources(data, tmp_path, name, rows, columns):
    catalogue = local.prepare(data / "catalogues" / name, tmp_path / "sorted.arrow")
    assert (catalogue.rows, catalogue.dropped) == (rows, 0)
    sorted_one = local._mapped(str(catalogue.file), catalogue.digest)
    step = local.step("x", catalogue.file, 1.5, columns)
    some = sorted_one.take(pa.array(np.linspace(0, rows - 1, 40).astype(int)))
    made = run(step, some.column("_ra").to_numpy(), some.column("_dec").to_numpy())
    for column in columns:
        wanted = some.column(column).to_pylist()
        assert (
            sum(one[column] == value for one, value in zip(made, wanted, strict=True)) >= 38
        )  # a few are pairs
    assert max(one["distance"] for one in made) < 1e-3


def test_sexagesimal_positions_are_read(data, tmp_path):
    catalogue = local.prepare(
        data / "catalogues" / "symbiotic_and_cataclysmic.parquet", tmp_path / "out.arrow"
    )
    [made] = run(
        local.step("x", catalogue.file, 1.5, ["Name"]), [15 * (20 / 60 + 33.59 / 3600)], [59 + 18.765 / 60]
    )
    assert made["Name"] == "IC10 SySt-1"


def test_fits_text_and_missing_values_are_plain(tmp_path):
    Table({"RAJ2000": [1.0], "DEJ2000": [2.0], "name": [b"a "], "z": np.array([np.nan], ">f4")}).write(
        tmp_path / "c.fits"
    )
    catalogue = local.prepare(tmp_path / "c.fits", tmp_path / "c.arrow")
    assert run(local.step("x", catalogue.file, 1.5, ["name", "z"]), [1.0], [2.0]) == [
        {"distance": 0.0, "name": "a", "z": None}
    ]


def test_an_unknown_position_column_says_which_there_are(tmp_path):
    pq.write_table(pa.table({"lon": [1.0], "lat": [2.0]}), tmp_path / "c.parquet")
    with pytest.raises(SettingsError, match=r"name it with `ra` and `dec`"):
        local.prepare(tmp_path / "c.parquet", tmp_path / "c.arrow")
    assert local.prepare(tmp_path / "c.parquet", tmp_path / "c.arrow", ra="lon", dec="lat").rows == 1
    with pytest.raises(SettingsError, match="did you mean 'lon'"):
        local.prepare(tmp_path / "c.parquet", tmp_path / "c.arrow", ra="lo", dec="lat")


def test_wrong_settings_are_refused(tmp_path):
    catalogue = prepared(tmp_path, [10.0], [20.0], name=["a"])
    with pytest.raises(SettingsError, match="did you mean 'name'"):
        local.step("x", catalogue.file, 1.5, ["nam"])
    with pytest.raises(SettingsError, match="radius_arcsec"):
        local.step("x", catalogue.file, 0)
    with pytest.raises(SettingsError, match="not a prepared catalogue"):
        local.step("x", tmp_path / "in.parquet", 1.5)
    with pytest.raises(SettingsError, match="not a prepared catalogue"):
        local.step("x", tmp_path / "nowhere.arrow", 1.5)


def test_a_catalogue_is_prepared_once_and_its_version_is_in_the_plan(data, tmp_path):
    source = data / "catalogues" / "tde_44.parquet"
    file = local.prepared(source, tmp_path / "catalogues")
    changed = file.stat().st_mtime_ns
    assert local.prepared(source, tmp_path / "catalogues") == file
    assert file.stat().st_mtime_ns == changed
    step = local.step("tde", file, 1.5, ["name"])
    assert step.describe()["settings"]["digest"] in file.name


def test_a_catalogue_that_changed_under_a_plan_is_refused(tmp_path):
    step = local.step("x", prepared(tmp_path, [10.0], [20.0]).file, 1.5)
    again = local.step("x", prepared(tmp_path, [11.0], [20.0]).file, 1.5)
    assert step.settings["digest"] != again.settings["digest"]
    with pytest.raises(SettingsError, match="has changed"):
        run(step, [10.0], [20.0])


def test_it_keeps_the_rules_for_steps(data, tmp_path, ztf_packets):
    batch = surveys.load("ztf").decode(ztf_packets("public_20181129")[:60]).batch
    catalogue = local.prepare(data / "catalogues" / "mangrove.parquet", tmp_path / "mangrove.arrow")
    step = local.step("mangrove", catalogue.file, 600.0, ["lum_dist", "HyperLEDA_name"])
    checks.check_step(step, batch)
    assert (
        sum(
            one["distance"] is not None
            for one in run(step, *(batch.column(n).to_numpy() for n in ("ra", "dec")))
        )
        > 5
    )
    assert len(pickle.dumps(step)) < 2000
