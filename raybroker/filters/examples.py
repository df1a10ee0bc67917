"""Worked examples of filters, none of them on by default: copy one into a file of your own and change it.

Each gives true where the alert is sent to the topic of its name; null, where something needed is not known, sends
nothing. The columns they need must be on: `early` is a step of raybroker, `ztf` the survey's own fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from astropy import units
from astropy.coordinates import SkyCoord

from raybroker import alerts
from raybroker.step import filter


@filter
def young_extragalactic(
    ra: pa.Array,
    dec: pa.Array,
    early: pa.Array,
    ss_object_id: pa.Array,
    *,
    max_age: float = 2.0,
    min_latitude: float = 20.0,
) -> Any:
    """New within two days, seen at least twice, off the Galactic plane, and no known asteroid.

    After Fink's Rubin filters for new extragalactic candidates and for alerts outside the plane (fink-filters).
    """
    latitude = np.abs(_galactic_latitude(alerts.values(ra), alerts.values(dec)))
    age, detections = alerts.values(early, "age"), alerts.values(early, "detections")
    stays = ss_object_id.is_null().to_numpy(zero_copy_only=False)
    sent = (age < max_age) & (detections >= 2) & (latitude > min_latitude) & stays
    return _where_known(sent, (age, detections, latitude))


@filter
def early_supernova(
    ztf: pa.Array, *, max_detections: int = 20, min_drb: float = 0.5, min_star: float = 0.4
) -> Any:
    """The part of Fink's early supernova filter (fink-filters, early_sn_candidates) that needs no classifier.

    At most 20 detections so far, deep-learning score above 0.5, point-like (classtar above 0.4). Add your own model in
    the settings: `where = "early_supernova and supernova.Ia > 0.5"`.
    """
    detections, drb = alerts.values(ztf, "ndethist"), alerts.values(ztf, "drb")
    star = alerts.values(ztf, "classtar")
    sent = (detections <= max_detections) & (drb > min_drb) & (star > min_star)
    return _where_known(sent, (detections, drb, star))


@filter
def fast_fading(early: pa.Array, *, min_fade: float = 0.3) -> Any:
    """Fades by over 0.3 mag a day in g or r, as a kilonova would: Andreoni et al. 2021 (ApJ 918, 63)."""
    fades = [-alerts.values(early, f"rise_{band}") for band in "gr"]
    fastest = np.fmax(*fades)
    return _where_known(fastest > min_fade, (fastest,))


def _galactic_latitude(ra: alerts.Floats, dec: alerts.Floats) -> alerts.Floats:
    latitude = np.full(len(ra), np.nan)
    known = np.isfinite(ra) & (np.abs(dec) <= 90)
    places = SkyCoord(ra[known] * units.deg, dec[known] * units.deg)
    latitude[known] = places.galactic.b.deg
    return latitude


def _where_known(sent: Any, needed: Sequence[alerts.Floats]) -> pa.Array:
    unknown = np.any([np.isnan(numbers) for numbers in needed], axis=0)
    return pa.array(sent, mask=unknown)
