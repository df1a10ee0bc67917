"""What is known of a transient in its first days, from the alert's own history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybroker import alerts
from raybroker.features.basic import finite
from raybroker.step import enrich

Mask = npt.NDArray[np.bool_]
RISE_BANDS = "griz"
NIGHT = 0.5  # days: two detections at least this far apart are of different nights, in any survey

FIELDS: dict[str, str] = {
    "age": "float32",  # days since the first detection in the history (ZTF: of the last 30 days)
    **{f"rise_{band}": "float32" for band in RISE_BANDS},  # mag/day, positive while it brightens
    "colour_g_r": "float32",  # difference magnitudes, newest pair at most half a day apart
    "detections": "int32",
    "limits": "int32",
    "since_limit": "float32",  # days since the last image in which it was not detected
    "peak_flux": "float32",  # nJy, the largest detection in any band
    "signal_to_noise": "float32",  # of this alert; negative where it is fainter than the template
}


@enrich(gives=FIELDS, version=2)
def early(history: pa.Array, mjd: pa.Array, flux: pa.Array, flux_error: pa.Array) -> Mapping[str, Any]:
    """Age, rise, colour and counts. A colour or a rise needs its own two detections, else it is null."""
    points = Points(alerts.LightCurves.of(history))
    now = alerts.values(mjd)
    detections, limits = points.count(points.detected), points.count(points.limit)
    unknown = history.is_null().to_numpy(zero_copy_only=False)
    rises = {f"rise_{band}": points.rise(code) for code, band in enumerate(RISE_BANDS)}
    return {
        "age": now - points.at(points.mjd, points.first(points.detected)),
        **rises,
        "colour_g_r": points.colour(RISE_BANDS.index("g"), RISE_BANDS.index("r")),
        "detections": pa.array(detections, pa.int32(), mask=unknown),
        "limits": pa.array(limits, pa.int32(), mask=unknown),
        "since_limit": now - points.at(points.mjd, points.last(points.limit)),
        "peak_flux": points.peak(),
        "signal_to_noise": finite(_ratio(alerts.values(flux), alerts.values(flux_error))),
    }


class Points:
    """The points of all histories of a batch, ascending in time within each alert, and questions to ask of them.

    A row of a point is its place in these flat arrays; −1 stands for none, and `at` turns it into NaN.
    """

    def __init__(self, curves: alerts.LightCurves, bands: str = RISE_BANDS) -> None:
        self.starts, self.alert = curves.starts, curves.alert_of_point()
        self.mjd, self.flux = curves.numbers("mjd"), curves.numbers("flux")
        self.band = curves.codes("band", list(bands))
        kind = curves.codes("kind", alerts.KINDS)
        self.detected = (kind == alerts.KINDS.index(alerts.DETECTION)) & ~np.isnan(self.flux)
        self.limit = kind == alerts.KINDS.index(alerts.LIMIT)

    def count(self, mask: Mask) -> alerts.Integers:
        """How many points of each alert."""
        total = np.concatenate([[0], np.cumsum(mask)])
        return np.asarray(total[self.starts[1:]] - total[self.starts[:-1]], dtype=np.int64)

    def newest(self, mask: Mask) -> alerts.Integers:
        """For each point, the row of the newest point of the same alert up to and including it."""
        rows = np.maximum.accumulate(np.where(mask, np.arange(len(mask)), -1))
        return np.where(rows >= self.starts[self.alert], rows, -1)

    def last(self, mask: Mask) -> alerts.Integers:
        """For each alert, the row of its newest point."""
        rows = np.append(self.newest(mask), -1)
        return np.where(np.diff(self.starts) > 0, rows[self.starts[1:] - 1], -1)

    def first(self, mask: Mask) -> alerts.Integers:
        """For each alert, the row of its oldest point."""
        places = np.append(np.flatnonzero(mask), len(mask))
        rows = places[np.searchsorted(places[:-1], self.starts[:-1])]
        return np.where(rows < self.starts[1:], rows, -1)

    @staticmethod
    def at(numbers: alerts.Floats, rows: alerts.Integers) -> alerts.Floats:
        """The numbers of these rows, NaN for −1."""
        return np.append(numbers, np.nan)[rows]

    def magnitude(self, rows: alerts.Integers) -> alerts.Floats:
        """Difference magnitudes of these rows."""
        return np.asarray(alerts.flux_to_magnitude(self.at(self.flux, rows)), dtype=np.float64)

    def rise(self, band: int) -> alerts.Floats:
        """Magnitudes per day between the last two detections in a band that are of different nights."""
        mine = self.detected & (self.flux > 0) & (self.band == band)
        last = self.last(mine)
        newest = self.at(self.mjd, last)
        before = self.last(mine & (self.mjd <= newest[self.alert] - NIGHT))
        return (self.magnitude(before) - self.magnitude(last)) / (newest - self.at(self.mjd, before))

    def colour(self, blue: int, red: int) -> alerts.Floats:
        """Magnitude in one band less that in another, for the newest two detections within half a day."""
        bright = self.detected & (self.flux > 0)
        newest_blue = self.newest(bright & (self.band == blue))
        newest_red = self.newest(bright & (self.band == red))
        apart = np.abs(self.at(self.mjd, newest_blue) - self.at(self.mjd, newest_red))
        pair = self.last(apart <= NIGHT)
        blues, reds = np.append(newest_blue, -1)[pair], np.append(newest_red, -1)[pair]
        return self.magnitude(blues) - self.magnitude(reds)

    def peak(self) -> alerts.Floats:
        """The largest detected flux of each alert."""
        peaks = np.full(len(self.starts) - 1, -np.inf)
        np.maximum.at(peaks, self.alert[self.detected], self.flux[self.detected])
        return np.where(np.isfinite(peaks), peaks, np.nan)


def _ratio(flux: alerts.Floats, error: alerts.Floats) -> alerts.Floats:
    return np.divide(flux, error, out=np.full(len(flux), np.nan), where=error > 0)
