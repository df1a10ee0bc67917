"""The small set of features of our own that is always there: it needs no package beyond NumPy.

All numbers are of this alert and its own history, for every survey alike. A band's number comes from that band
alone: nothing is copied from one band to another, and what is not known is null.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybroker.alerts import AB_ZERO_POINT, Floats, Integers, LightCurves, values
from raybroker.step import enrich

BANDS = ("u", "g", "r", "i", "z", "y")
MEASURED = ("g", "r", "i")  # the bands that have columns of their own
MAGNITUDE_FLOOR = 0.02  # no survey's calibration is better, so no point of a fit weighs more
SLOPE_DAYS = 10.0  # brightening is measured over this many days before the alert
COLOUR_DAYS = 1.0  # a colour is of two detections no farther apart
GALACTIC_POLE = (192.85948, 27.12825)  # ICRS, degrees
ECLIPTIC_POLE = (270.0, 66.560709)

OF_BAND = ("detections", "brightening", "amplitude", "chi2")
GIVES = {
    "detections": "float32",  # in the history, this alert included
    **{f"{what}_{band}": "float32" for what in OF_BAND for band in MEASURED},
    "age": "float32",  # days since the first detection of the history
    "watched": "float32",  # days since the first point of any kind
    "magnitude": "float32",  # of |flux|
    "snr": "float32",
    "sign": "float32",  # 1, or -1 where it is fainter than the template
    "below_peak": "float32",  # magnitudes below the brightest detection in the alert's band
    "colour": "float32",  # g - r of the latest such pair of detections within a day
    "reddening": "float32",  # magnitudes of g - r per day: what brightens faster in r
    "template_ratio": "float32",  # log10 of |flux| over the flux of the template's nearest source
    "template_distance": "float32",  # arcsec, to that source
    "template_colour": "float32",  # g - r of that source
    "negative_fraction": "float32",  # of the detections
    "galactic_latitude": "float32",  # degrees, without sign
    "ecliptic_latitude": "float32",  # degrees, without sign
    "reliability": "float32",
}


def finite(numbers: Floats) -> npt.NDArray[np.float32]:
    """As float32, NaN where that is not finite: a flux over an error of 0, or of 1e-45, says nothing."""
    with np.errstate(over="ignore"):
        small = numbers.astype(np.float32)
    return np.where(np.isfinite(small), small, np.float32(np.nan))


@enrich(gives=GIVES, version=2)
def basic(
    history: pa.Array,
    flux: pa.Array,
    flux_error: pa.Array,
    band: pa.Array,
    mjd: pa.Array,
    ra: pa.Array,
    dec: pa.Array,
    reliability: pa.Array,
) -> dict[str, Any]:
    """Counts, times, brightness, change per band, colour, template source and place of an alert.

    `brightening_*` is in magnitudes per day (positive: getting brighter) over the last 10 days; `amplitude_*` is
    the range of magnitudes; `chi2_*` is log10(1 + reduced chi-squared of a constant flux). All three use |flux|
    of detections, but chi2, which is of signed flux and counts forced photometry too.
    """
    curves = LightCurves.of(history)
    now = values(mjd)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        made = {
            **_now(values(flux), values(flux_error)),
            **_whole(curves, now),
            **_per_band(_Points(curves, now), values(flux), band),
            "colour": _colour(curves),
            **_template(curves, values(flux)),
        }
    unknown = history.is_null().to_numpy(zero_copy_only=False)
    for name in ("detections", *(f"detections_{b}" for b in MEASURED)):
        made[name][unknown] = np.nan
    made |= _place(values(ra), values(dec)) | {"reliability": values(reliability)}
    return {name: finite(numbers) for name, numbers in made.items()}


def _now(flux: Floats, error: Floats) -> dict[str, Floats]:
    return {"magnitude": _magnitude(flux), "snr": np.abs(flux) / error, "sign": np.sign(flux)}


def _magnitude(flux: Floats) -> Floats:
    """AB magnitude of |flux|, NaN where there is none."""
    return AB_ZERO_POINT - 2.5 * np.log10(np.where(flux == 0, np.nan, np.abs(flux)))


def _whole(curves: LightCurves, now: Floats) -> dict[str, Floats]:
    """Numbers of the whole history, whatever the band."""
    mjd, flux, alert = curves.numbers("mjd"), curves.numbers("flux"), curves.alert_of_point()
    detected = curves.codes("kind", ["detection"]) == 0
    count = np.bincount(alert[detected], minlength=len(now)).astype(float)
    negative = np.bincount(alert[detected & (flux < 0)], minlength=len(now))
    first = _reduce(np.fmin, np.where(detected, mjd, np.inf), curves.starts)
    watched = _reduce(np.fmin, mjd, curves.starts)
    return {
        "detections": count,
        "negative_fraction": negative / count,
        "age": now - np.where(np.isfinite(first), first, np.nan),
        "watched": now - watched,
    }


def _reduce(function: np.ufunc, numbers: Floats, starts: Integers) -> Floats:
    """`function` over the points of each alert, NaN where it has none."""
    found = function.reduceat(np.append(numbers, np.nan), starts)[:-1]
    return np.where(np.diff(starts) > 0, found, np.nan)


class _Points:
    """Points that have a flux, sorted by alert and band: `cells` says in which (alert, band) each one is."""

    def __init__(self, curves: LightCurves, now: Floats) -> None:
        place = curves.codes("band", BANDS)
        flux, error = curves.numbers("flux"), curves.numbers("error")
        kind = curves.codes("kind", ["detection", "forced"])
        good = np.flatnonzero((place >= 0) & (kind >= 0) & np.isfinite(flux) & (error > 0))
        cells = curves.alert_of_point()[good] * len(BANDS) + place[good]
        order = np.argsort(cells, kind="stable")
        self.alerts = len(now)
        self.cells, good = cells[order], good[order]
        self.flux, self.error, self.detected = flux[good], error[good], kind[good] == 0
        self.magnitude = _magnitude(self.flux)
        self.template = curves.numbers("template_flux")[good]
        self.days = curves.numbers("mjd")[good] - now[self.cells // len(BANDS)]
        sizes = np.bincount(self.cells, minlength=len(now) * len(BANDS))
        self.starts = np.concatenate([[0], np.cumsum(sizes)])

    def sum(self, numbers: Floats) -> Floats:
        return np.asarray(
            np.bincount(self.cells, numbers, minlength=self.alerts * len(BANDS)), dtype=np.float64
        )

    def of_band(self, numbers: Floats, band: str) -> Floats:
        """The column of one band, of numbers by alert and band."""
        return numbers.reshape(self.alerts, len(BANDS))[:, BANDS.index(band)].copy()

    def last(self, numbers: Floats, use: npt.NDArray[np.bool_]) -> Floats:
        """The latest of some points, by alert and band."""
        found = np.full(self.alerts * len(BANDS), np.nan)
        found[self.cells[use]] = numbers[use]  # ascending in time, so the latest one stays
        return found

    def extreme(self, function: np.ufunc) -> Floats:
        """The least or greatest magnitude of the detections, NaN where there are none."""
        nothing = np.inf if function is np.fmin else -np.inf
        found = _reduce(function, np.where(self.detected, self.magnitude, nothing), self.starts)
        return np.where(np.isfinite(found), found, np.nan)


def _per_band(points: _Points, flux: Floats, band: pa.Array) -> dict[str, Floats]:
    bright, faint = points.extreme(np.fmin), points.extreme(np.fmax)
    count = points.sum(points.detected.astype(float))
    found = {
        "detections": count,
        "brightening": _brightening(points),
        "amplitude": np.where(count > 1, faint - bright, np.nan),
        "chi2": _chi2(points),
    }
    columns = {
        f"{what}_{name}": points.of_band(numbers, name)
        for what, numbers in found.items()
        for name in MEASURED
    }
    template = points.last(_magnitude(points.template), points.detected & (points.template > 0))
    return columns | {
        "reddening": columns["brightening_r"] - columns["brightening_g"],
        "template_colour": points.of_band(template, "g") - points.of_band(template, "r"),
        "below_peak": _below_peak(bright.reshape(points.alerts, len(BANDS)), flux, band),
    }


def _brightening(points: _Points) -> Floats:
    """Minus the slope of a straight line through the magnitudes, weighted; NaN for points of one moment."""
    error = 1.0857 * points.error / np.abs(points.flux)
    used = points.detected & (points.flux != 0) & (points.days > -SLOPE_DAYS)
    weight = np.where(used, 1 / (error**2 + MAGNITUDE_FLOOR**2), 0.0)
    total = points.sum(weight)
    middle = points.sum(weight * points.days) / total
    days = points.days - middle[points.cells]
    spread = points.sum(weight * days**2)
    long_enough = spread / total > 0.01  # 0.1 day, rms
    return np.where(
        long_enough, -points.sum(weight * days * np.where(used, points.magnitude, 0)) / spread, np.nan
    )


def _chi2(points: _Points) -> Floats:
    weight = 1 / points.error**2
    mean = points.sum(weight * points.flux) / points.sum(weight)
    chi2 = points.sum(weight * (points.flux - mean[points.cells]) ** 2)
    freedom = points.sum(np.ones_like(weight)) - 1
    return np.where(freedom > 0, np.log10(1 + chi2 / freedom), np.nan)


def _below_peak(bright: Floats, flux: Floats, band: pa.Array) -> Floats:
    place = np.array([BANDS.index(b) if b in BANDS else -1 for b in band.to_pylist()], dtype=np.int64)
    peak = bright[np.arange(len(place)), place] if len(place) else np.empty(0)
    return np.where(place >= 0, _magnitude(flux) - peak, np.nan)


def _colour(curves: LightCurves) -> Floats:
    """g - r of the last neighbours in time, among the detections in g and r, that are within a day.

    The nearest detection in the other band is always a neighbour.
    """
    band = curves.codes("band", ["g", "r"])
    use = np.flatnonzero((curves.codes("kind", ["detection"]) == 0) & (band >= 0))
    alert, band, mjd = curves.alert_of_point()[use], band[use], curves.numbers("mjd")[use]
    magnitude = _magnitude(curves.numbers("flux")[use])
    pair = (alert[1:] == alert[:-1]) & (band[1:] != band[:-1]) & (np.diff(mjd) <= COLOUR_DAYS)
    first = np.flatnonzero(pair)
    difference = np.where(band[first] == 0, 1, -1) * (magnitude[first] - magnitude[first + 1])
    colour = np.full(len(curves.starts) - 1, np.nan)
    colour[alert[first]] = difference  # ascending in time, so the latest one stays
    return colour


def _template(curves: LightCurves, flux: Floats) -> dict[str, Floats]:
    """Of the last detection, which is this alert."""
    detected = np.flatnonzero(curves.codes("kind", ["detection"]) == 0)
    last = np.full(len(flux), -1)
    last[curves.alert_of_point()[detected]] = detected
    template = np.append(curves.numbers("template_flux"), np.nan)[last]
    distance = np.append(curves.numbers("template_distance"), np.nan)[last]
    ratio = np.log10(np.where(template > 0, np.abs(flux) / template, np.nan))
    return {"template_ratio": np.where(np.isfinite(ratio), ratio, np.nan), "template_distance": distance}


def _place(ra: Floats, dec: Floats) -> dict[str, Floats]:
    return {
        "galactic_latitude": np.abs(_latitude(ra, dec, GALACTIC_POLE)),
        "ecliptic_latitude": np.abs(_latitude(ra, dec, ECLIPTIC_POLE)),
    }


def _latitude(ra: Floats, dec: Floats, pole: tuple[float, float]) -> Floats:
    """Degrees above the equator that belongs to a pole."""
    dec, pole_dec, away = np.radians(dec), np.radians(pole[1]), np.radians(ra - pole[0])
    sine = np.sin(dec) * np.sin(pole_dec) + np.cos(dec) * np.cos(pole_dec) * np.cos(away)
    return np.degrees(np.arcsin(np.clip(sine, -1, 1)))
