"""The pure parts of the page's JavaScript, in the browser that runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import Galactic, SkyCoord

from tests.browser.world import Visit

PLACES = [(0.0, 0.0), (266.4051, -28.9362), (83.633, 22.0145), (359.9, 89.0), (180.0, -60.0), (12.3, -89.9)]


@pytest.fixture
def call(visit: Callable[..., Visit]) -> Callable[..., Any]:
    """`call(module, function, *arguments)`."""
    page = visit().page

    def called(module: str, name: str, *given: Any) -> Any:
        script = "([module, name, given]) => import(`/static/${module}.js`).then((m) => m[name](...given))"
        return page.evaluate(script, [module, name, list(given)])

    page.wait_for_selector("body:not(.idle)")
    return called


def test_galactic_coordinates_are_those_of_astropy(call: Callable[..., Any]) -> None:
    for ra, dec in PLACES:
        there = SkyCoord(ra * u.deg, dec * u.deg).galactic
        place = call("numbers", "galactic", ra, dec)
        found = SkyCoord(*place, unit="deg", frame=Galactic())
        assert found.separation(there).arcsec < 1
        back = SkyCoord(*call("numbers", "fromGalactic", *place), unit="deg")
        assert back.separation(SkyCoord(ra, dec, unit="deg")).arcsec < 1


def test_ecliptic_latitudes_are_those_of_astropy(call: Callable[..., Any]) -> None:
    for ra, dec in PLACES:
        there = SkyCoord(ra, dec, unit="deg").barycentricmeanecliptic.lat.deg
        assert call("numbers", "ecliptic", ra, dec)[1] == pytest.approx(there, abs=0.001)


def test_the_map_keeps_areas_and_has_east_on_the_left(call: Callable[..., Any]) -> None:
    assert call("numbers", "mollweide", 0, 0) == pytest.approx([0, 0])
    assert call("numbers", "mollweide", 90, 0) == pytest.approx([-90, 0])
    assert call("numbers", "mollweide", 270, 0) == pytest.approx([90, 0])
    for dec in (-90, -60, -10, 30, 75, 90):
        x, y = call("numbers", "mollweide", 179.99, dec)
        assert (x / 180) ** 2 + (y / 90) ** 2 == pytest.approx(1, abs=1e-3)
        below = np.degrees(np.arcsin(-y / 90))  # the share of the sky south of it is the share of the ellipse
        share = 0.5 + (np.radians(2 * below) + np.sin(np.radians(2 * below))) / (2 * np.pi)
        assert share == pytest.approx((1 + np.sin(np.radians(dec))) / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("ra", "dec"), [(0.0, 0.0), (97.63507, 3.96707), (359.99999, -0.00001), (12.0, -45.5), (150.0, 89.99999)]
)
def test_sexagesimal_is_that_of_astropy(call: Callable[..., Any], ra: float, dec: float) -> None:
    there = SkyCoord(ra, dec, unit="deg")
    hours = there.ra.to_string(unit=u.hourangle, sep=":", precision=2, pad=True)
    degrees = there.dec.to_string(sep=":", precision=1, pad=True, alwayssign=True)
    found = call("numbers", "sexagesimal", ra, dec)
    assert found.replace("−", "-") == f"{hours} {degrees}"


def test_magnitudes_and_dates(call: Callable[..., Any]) -> None:
    assert call("numbers", "magnitude", 3631e9, 31.4) == pytest.approx(0, abs=1e-3)
    assert call("numbers", "calendar", 60235.25) == "2023-10-18 06:00 UT"


@pytest.mark.parametrize(
    ("object_id", "hosts"),
    [
        ("ztf:ZTF18abcdefg", ["alerce.online", "lasair-ztf.lsst.ac.uk", "ztf.fink-portal.org"]),
        ("fink:ZTF18abcdefg", ["alerce.online", "lasair-ztf.lsst.ac.uk", "ztf.fink-portal.org"]),
        (
            "rubin:170059286935240883",
            ["lsst.alerce.online", "lasair-lsst.lsst.ac.uk", "lsst.fink-portal.org"],
        ),
        (None, []),
        ("ztf:javascript:alert(1)", []),
    ],
)
def test_brokers_by_what_the_id_is(call: Callable[..., Any], object_id: str | None, hosts: list[str]) -> None:
    links = call("links", "linksOf", object_id, 10.5, -20.25)
    assert [url.split("/")[2] for _, url in links][:-3] == hosts
    positions = [url for name, url in links if name in ("TNS", "SIMBAD", "Legacy Survey")]
    assert all("10.500000" in url and "-20.250000" in url for url in positions)
    assert all(url.startswith("https://") for _, url in links)


def test_a_class_has_its_own_letter_unless_a_key_or_another_class_does(call: Callable[..., Any]) -> None:
    classes = ["AGN", "asteroid", "supernova", "bogus", "variable star", "9th"]
    assert [call("question", "letterOf", name, classes) for name in classes] == ["", "", "", "b", "v", ""]


def test_measures_that_say_most_come_first(call: Callable[..., Any]) -> None:
    snapshots = [{"metrics": {}}, {"metrics": {"weight.forest": 0.5, "log_loss": 1, "drift": 0, "auc": 0.6}}]
    assert call("scores", "metricsOf", snapshots) == ["auc", "log_loss", "drift"]
