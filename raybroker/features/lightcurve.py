"""The 26 light-curve features per band of the Fink broker, by the `light-curve` package.

The list is that of the module `ad_features` of fink-science; the features are defined in Malanchev et al. 2021
(MNRAS 502, 5147; arXiv:2012.01419), appendix A. The package is an extra, since its wheel is GPL-3.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raybroker import alerts
from raybroker.errors import SettingsError
from raybroker.features.early import Mask, Points
from raybroker.step import Step

MAX_TEMPLATE_DISTANCE = 1.5  # arcsec: the template's source is the same star or galaxy nucleus
MAGNITUDES_PER_LN = 2.5 / np.log(10)
NAMES = (
    "mean",
    "weighted_mean",
    "standard_deviation",
    "median",
    "amplitude",
    "beyond_1_std",
    "cusum",
    "inter_percentile_range_10",
    "kurtosis",
    "linear_trend",
    "linear_trend_sigma",
    "linear_trend_noise",
    "linear_fit_slope",
    "linear_fit_slope_sigma",
    "linear_fit_reduced_chi2",
    "magnitude_percentage_ratio_40_5",
    "magnitude_percentage_ratio_20_10",
    "maximum_slope",
    "median_absolute_deviation",
    "median_buffer_range_percentage_10",
    "percent_amplitude",
    "mean_variance",
    "anderson_darling_normal",
    "chi2",
    "skew",
    "stetson_K",
)


@functools.cache
def extractor() -> Any:
    """The 26 features, in the order of `NAMES`."""
    lc = _package()
    return lc.Extractor(
        lc.Mean(),
        lc.WeightedMean(),
        lc.StandardDeviation(),
        lc.Median(),
        lc.Amplitude(),
        lc.BeyondNStd(nstd=1),
        lc.Cusum(),
        lc.InterPercentileRange(quantile=0.1),
        lc.Kurtosis(),
        lc.LinearTrend(),
        lc.LinearFit(),
        lc.MagnitudePercentageRatio(quantile_numerator=0.4, quantile_denominator=0.05),
        lc.MagnitudePercentageRatio(quantile_numerator=0.2, quantile_denominator=0.1),
        lc.MaximumSlope(),
        lc.MedianAbsoluteDeviation(),
        lc.MedianBufferRangePercentage(quantile=0.1),
        lc.PercentAmplitude(),
        lc.MeanVariance(),
        lc.AndersonDarlingNormal(),
        lc.ReducedChi2(),
        lc.Skew(),
        lc.StetsonK(),
    )


def _package() -> Any:
    if importlib.util.find_spec("light_curve") is None:
        raise SettingsError(
            "step 'lightcurve' needs the package light-curve: pip install raybroker[features] "
            "(or take 'lightcurve' out of steps.on)"
        )
    return importlib.import_module("light_curve")


@dataclasses.dataclass(frozen=True)
class PerBand(Step):
    """A step whose fields follow from its setting `bands`."""

    def with_settings(self, given: Mapping[str, Any]) -> Step:
        """The same step for other bands; says so now if the package it needs is not there."""
        _package()
        step = super().with_settings(given)
        return dataclasses.replace(step, gives=fields(step.settings["bands"]))


def fields(bands: Sequence[str]) -> pa.DataType:
    """The struct of features: `amplitude_g`, and so on."""
    return pa.struct([(f"{name}_{band}", pa.float32()) for band in bands for name in NAMES])


def features(history: pa.Array, *, bands: Sequence[str] = ("g", "r")) -> Mapping[str, Any]:
    """26 features of the magnitudes in each band; null where there are too few points for one.

    Magnitudes are apparent where, at the newest detection in the band, the template has a source within 1.5 arcsec,
    and difference magnitudes elsewhere: one light curve is never a mixture of both.
    """
    curves = alerts.LightCurves.of(history)
    points = Points(curves, "".join(bands))
    found: dict[str, Any] = {}
    for code, band in enumerate(bands):
        mine = points.detected & (points.band == code)
        flux, error = _photometry(curves, points, mine)
        numbers = _extract(points, mine & (flux > 0) & (error > 0), flux, error)
        found |= {f"{name}_{band}": numbers[:, i] for i, name in enumerate(NAMES)}
    return found


def _photometry(
    curves: alerts.LightCurves, points: Points, mine: Mask
) -> tuple[alerts.Floats, alerts.Floats]:
    """Flux and error per point: total where the light curve lies on a source of the template, else difference."""
    distance = curves.numbers("template_distance")
    newest = points.last(mine & ~np.isnan(distance))
    apparent = (points.at(distance, newest) < MAX_TEMPLATE_DISTANCE)[points.alert]
    error = curves.numbers("error")
    template, template_error = curves.numbers("template_flux"), curves.numbers("template_error")
    total = curves.numbers("total_flux")
    total = np.where(np.isnan(total), template + points.flux, total)
    total_error = np.hypot(error, np.nan_to_num(template_error))
    return np.where(apparent, total, points.flux), np.where(apparent, total_error, error)


def _extract(points: Points, good: Mask, flux: alerts.Floats, error: alerts.Floats) -> alerts.Floats:
    """Features [alerts, 26] of the good points, NaN where they cannot be told."""
    offsets = np.concatenate([[0], np.cumsum(points.count(good))]).astype(np.int32)
    first = points.at(points.mjd, points.first(good))
    columns = [
        (points.mjd - first[points.alert])[
            good
        ],  # days since the first: slopes lose no digits to a large mjd
        np.asarray(alerts.flux_to_magnitude(flux[good])),
        MAGNITUDES_PER_LN * error[good] / flux[good],
    ]
    curves = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, names=["t", "m", "sigma"]))
    numbers = np.full((len(offsets) - 1, len(NAMES)), np.nan)
    some = np.diff(offsets) > 0
    if some.any():
        numbers[some] = _many(curves.filter(pa.array(some)))
    with np.errstate(over="ignore"):
        small = numbers.astype(np.float32)
    return np.where(np.isfinite(small), small, np.nan)


def _many(curves: pa.ListArray) -> alerts.Floats:
    names = {"t": "t", "m": "m", "sigma": "sigma"}
    # light_curve takes all cores unless told otherwise
    made = extractor().many(curves, arrow_fields=names, fill_value=np.nan, sorted=True, check=False, n_jobs=1)
    return np.asarray(made, dtype=np.float64)


def step(bands: Sequence[str] = ("g", "r")) -> Step:
    """The step for these bands."""
    about = features.__doc__ or ""
    settings = {"bands": list(bands)}
    return PerBand(
        "lightcurve", "enrich", features, ("history",), fields(bands), settings=settings, about=about
    )


lightcurve = step()
