"""How a transient rose, peaked and faded in each band, and how its colour changed: what tells kinds of supernovae apart.

A type Ia turns red within three weeks of its peak, a type II-P stays on a plateau, a type IIn fades slowly, a dwarf nova
jumps up and sits near the galactic plane (`basic.galactic_latitude`). What was measured: docs/decisions/features.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit

from raybroker import alerts
from raybroker.step import enrich

BANDS = ("g", "r")
ERROR_FLOOR = 0.02  # mag: no survey's calibration is better
ERROR_UNKNOWN = 0.2  # mag, of a detection without an error
MAGNITUDES_PER_FLUX = 2.5 / np.log(10)  # of a small relative error
PAIR_DAYS = 1.5  # a colour is of two detections no farther apart
NEAR_DAYS = 3.5  # a magnitude "7 days after the peak" is the mean of those within half a week of that day
COLOUR_DAYS = 3.0  # the colour now is of the pairs of the last days
WEEK, FORTNIGHT, SHORT, LONG = 7.0, 15.0, 8.5, 16.5  # days; slopes reach back over SHORT and LONG
LEAST_SPAN = 3.0  # days that a parabola must cover

OF_BAND = (  # magnitudes and days, all of this band's positive detections
    "detections",
    "latest",  # magnitude
    "since_latest",  # days since then
    "peak",  # the brightest magnitude
    "since_peak",
    "to_peak",  # days from the first detection
    "first",  # magnitude
    "faded",  # magnitudes below the peak
    "risen",  # magnitudes from the first to the peak
    "change",  # magnitudes from the first to the latest
    "scatter",  # standard deviation of the magnitudes, of three and more
    "flux_scatter",  # the same of the flux, over its mean
    "width",  # days between the first and the last above half of the peak's flux
    "slope",  # magnitudes per day, negative while it brightens; weighted, over all
    "slope_8",  # over the last 8 days
    "slope_16",
    "bend",  # of a parabola through all: magnitudes per (10 days)²
    "bend_slope",  # its slope at the latest, magnitudes per 10 days
    "bend_faded",  # its magnitudes below the peak at the latest
    "bend_residual",  # rms of what it leaves
    "after_7",  # magnitudes below the peak 7 days after it
    "after_15",
)
OF_COLOUR = (  # g - r of detections no more than `PAIR_DAYS` apart
    "now",
    "first",
    "bluest",
    "reddest",
    "mean",
    "slope",  # magnitudes per day
    "slope_10",  # over the last 10 days
    "peak",  # at the peak in r
    "after_15",  # 15 days later
    "since",  # days since the newest pair
    "pairs",
)
OF_ALL = (
    "first_gap",  # days between the last image without it and the first detection
    "limits_before",  # images without it before the first detection
    "limits_after",
    "limits_share",  # of the images since the first detection
    "peak_lag",  # days that it peaked later in r than in g
    "peak_colour",  # brightest magnitude in g less that in r
    "width_difference",  # g less r
    "faded_difference",
)
NAMES = (
    *(f"{name}_{band}" for band in BANDS for name in OF_BAND),
    *(f"colour_{name}" for name in OF_COLOUR),
    *OF_ALL,
)
WIDTH = len(OF_BAND)


@enrich(gives=dict.fromkeys(NAMES, "float32"))
def phases(history: pa.Array, mjd: pa.Array) -> Mapping[str, Any]:
    """Brightness, rise, peak and decline per band, colour, and what was not seen; null where it takes more points.

    Difference magnitudes of positive detections in g and r; forced photometry does not count.
    """
    curves = alerts.LightCurves.of(history)
    kind = curves.codes("kind", [alerts.DETECTION, alerts.LIMIT])
    flux = curves.numbers("flux")
    seen = (kind == 0) & (flux > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = np.asarray(alerts.flux_to_magnitude(flux))
        error = MAGNITUDES_PER_FLUX * curves.numbers("error") / flux
    error = np.where(error > 0, np.maximum(error, ERROR_FLOOR), ERROR_UNKNOWN)
    band = np.where(seen, curves.codes("band", BANDS), -1)
    made = np.full((len(history), len(NAMES)), np.nan)
    days = curves.numbers("mjd") - np.repeat(alerts.values(mjd), np.diff(curves.starts))
    _all(curves.starts, days, magnitude, error, band, seen, kind == 1, made)
    made[history.is_null().to_numpy(zero_copy_only=False)] = np.nan
    made = np.where(np.isfinite(made), made, np.nan)
    return {name: made[:, column] for column, name in enumerate(NAMES)}


@njit(cache=True, nogil=True)
def _all(starts, days, magnitude, error, band, seen, limit, made):  # type: ignore[no-untyped-def]
    """Fill `made` [alerts, features] from the points of all alerts; `days` are before the alert, so not positive."""
    for alert in range(len(starts) - 1):
        rows = np.arange(starts[alert], starts[alert + 1])
        first, row = _first(rows, seen), made[alert]
        for code in range(2):
            own = rows[band[rows] == code]
            row[code * WIDTH] = len(own)
            if len(own):
                _of_band(days[own], magnitude[own], error[own], row[code * WIDTH :])
        if first < 0:
            continue
        green, red = rows[band[rows] == 0], rows[band[rows] == 1]
        _of_colour(days, magnitude, error, green, red, row[2 * WIDTH :])
        _of_all(rows, days, first, seen, limit, row, row[2 * WIDTH + 11 :])


@njit(cache=True, nogil=True)
def _first(rows, mask):  # type: ignore[no-untyped-def]
    for row in rows:
        if mask[row]:
            return row
    return -1


@njit(cache=True, nogil=True)
def _of_band(days, magnitude, error, out):  # type: ignore[no-untyped-def]
    """The numbers of one band, in the order of `OF_BAND` after its count."""
    peak = np.argmin(magnitude)
    top, weight = magnitude[peak], 1 / error**2
    out[1], out[2], out[3], out[4] = magnitude[-1], -days[-1], top, -days[peak]
    out[5], out[6], out[7] = days[peak] - days[0], magnitude[0], magnitude[-1] - top
    out[8], out[9] = magnitude[0] - top, magnitude[-1] - magnitude[0]
    flux = 10 ** (-0.4 * (magnitude - top))
    if len(days) > 2:
        out[10], out[11] = magnitude.std(), flux.std() / flux.mean()
    bright = days[flux > 0.5]
    out[12] = bright[-1] - bright[0]
    out[13] = _slope(days, magnitude, weight, -np.inf)
    out[14] = _slope(days, magnitude, weight, -SHORT)
    out[15] = _slope(days, magnitude, weight, -LONG)
    out[16], out[17], out[18], out[19] = _parabola(days, magnitude, weight)
    out[18] -= top
    out[20] = _near(days, magnitude, days[peak] + WEEK) - top
    out[21] = _near(days, magnitude, days[peak] + FORTNIGHT) - top


@njit(cache=True, nogil=True)
def _slope(days, numbers, weight, since):  # type: ignore[no-untyped-def]
    """Weighted least squares over the points since a day; NaN where they are fewer than two, or of one moment."""
    total = mean_day = mean = 0.0
    for i in range(len(days)):
        if days[i] >= since:
            total += weight[i]
            mean_day += weight[i] * days[i]
            mean += weight[i] * numbers[i]
    if total == 0:
        return np.nan
    mean_day, mean, spread, together = mean_day / total, mean / total, 0.0, 0.0
    for i in range(len(days)):
        if days[i] >= since:
            spread += weight[i] * (days[i] - mean_day) ** 2
            together += weight[i] * (days[i] - mean_day) * (numbers[i] - mean)
    return together / spread if spread > 1e-9 * total else np.nan


@njit(cache=True, nogil=True)
def _parabola(days, numbers, weight):  # type: ignore[no-untyped-def]
    """Bend, slope and value at the newest point, and the weighted rms of what is left; time in tens of days."""
    nothing = np.nan, np.nan, np.nan, np.nan
    if len(days) < 4 or days[-1] - days[0] < LEAST_SPAN:
        return nothing
    x = (days - days[-1]) / 10
    w = weight / weight.sum()
    mean_x, mean_y = (w * x).sum(), (w * numbers).sum()
    u = x - mean_x  # about the mean, and the square made orthogonal to the line: no matrix to invert
    s2 = (w * u**2).sum()
    v = u**2 - s2 - (w * u**3).sum() / s2 * u
    norm = (w * v**2).sum()
    if s2 < 1e-9 or norm < 1e-12:
        return nothing
    bend = (w * v * numbers).sum() / norm
    line = (w * u * numbers).sum() / s2
    left = numbers - mean_y - line * u - bend * v
    skew = (w * u**3).sum() / s2
    return bend, line + bend * (2 * u[-1] - skew), numbers[-1] - left[-1], np.sqrt((w * left**2).sum())


@njit(cache=True, nogil=True)
def _near(days, numbers, day):  # type: ignore[no-untyped-def]
    """The mean of the numbers within half a week of a day."""
    total, count = 0.0, 0
    for i in range(len(days)):
        if abs(days[i] - day) < NEAR_DAYS:
            total += numbers[i]
            count += 1
    return total / count if count else np.nan


@njit(cache=True, nogil=True)
def _of_colour(days, magnitude, error, green, red, out):  # type: ignore[no-untyped-def]
    """The numbers of `OF_COLOUR`: each detection in g with the one in r that is nearest in time."""
    when, colour, weight = np.empty(len(green)), np.empty(len(green)), np.empty(len(green))
    pairs = 0
    for one in green:
        if len(red) == 0:
            break
        other = red[np.argmin(np.abs(days[red] - days[one]))]
        if abs(days[other] - days[one]) <= PAIR_DAYS:
            when[pairs], colour[pairs] = days[one], magnitude[one] - magnitude[other]
            weight[pairs] = 1 / (error[one] ** 2 + error[other] ** 2)
            pairs += 1
    out[10] = pairs
    if pairs == 0:
        return
    when, colour, weight = when[:pairs], colour[:pairs], weight[:pairs]
    latest = when >= when[-1] - COLOUR_DAYS
    out[0] = (colour[latest] * weight[latest]).sum() / weight[latest].sum()
    out[1], out[2], out[3], out[4] = colour[0], colour.min(), colour.max(), colour.mean()
    out[5] = _slope(when, colour, weight, -np.inf)
    out[6] = _slope(when, colour, weight, when[-1] - 10)
    peak = days[red[np.argmin(magnitude[red])]]
    out[7], out[8] = _near(when, colour, peak), _near(when, colour, peak + FORTNIGHT)
    out[9] = -when[-1]


@njit(cache=True, nogil=True)
def _of_all(rows, days, first, seen, limit, row, out):  # type: ignore[no-untyped-def]
    """The numbers of `OF_ALL`, from the images without it and from what the bands gave (`row`)."""
    before = after = images = 0
    last = np.nan
    for one in rows:
        if limit[one] and one < first:
            before += 1
            last = days[one]
        if one >= first and (limit[one] or seen[one]):
            images += 1
            after += limit[one]
    out[0], out[1], out[2], out[3] = days[first] - last, before, after, after / images
    green, red = row[:WIDTH], row[WIDTH : 2 * WIDTH]
    out[4], out[5] = green[4] - red[4], green[3] - red[3]
    out[6], out[7] = green[12] - red[12], green[7] - red[7]
