"""Cuts on the survey's own measures of quality. Each says False only for what is known to be bad.

ZTF: the selection of the Fink broker, Möller et al. 2021 (MNRAS 501, 3272). Rubin: the flags of `diaSource`, chosen
by their descriptions in the survey's alert schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker import alerts
from raybroker.step import cut

# Of the flags of lsst.v9_0.diaSource to v11_1, those that say that the position or the flux of this source was not
# measured on good pixels, or that it is an artefact. Flags of the whole footprint whose centre has a flag of its own
# (cosmic ray, saturated, interpolated, streak) count at the centre only: a large footprint touches such pixels often.
BAD_RUBIN_FLAGS = (
    "centroid_flag",
    "psfFlux_flag",
    "pixelFlags_bad",
    "pixelFlags_edge",
    "pixelFlags_offimage",
    "pixelFlags_nodataCenter",
    "pixelFlags_crCenter",
    "pixelFlags_saturatedCenter",
    "pixelFlags_interpolatedCenter",
    "pixelFlags_streakCenter",
    "pixelFlags_injectedCenter",  # a synthetic source, put in to measure completeness
    "isDipole",  # a badly subtracted star
    "glint_trail",  # a satellite's glint
)


@cut
def real(ztf: pa.Array, *, min_rb: float = 0.55) -> pa.Array:
    """The random-forest real–bogus score is at least `min_rb`."""
    rb = alerts.values(ztf, "rb")
    return _where_known(rb >= min_rb, rb)


@cut
def good_pixels(ztf: pa.Array) -> pa.Array:
    """No bad pixel in the 5 × 5 stamp around the candidate."""
    bad = alerts.values(ztf, "nbad")
    return _where_known(bad == 0, bad)


@cut
def aperture(ztf: pa.Array, *, max_difference: float = 0.1) -> pa.Array:
    """Aperture and PSF magnitudes agree: it looks like a point source."""
    difference = np.abs(alerts.values(ztf, "magap") - alerts.values(ztf, "magpsf"))
    return _where_known(difference < max_difference, difference)


@cut
def rubin_flags(rubin: pa.Array, *, flags: Sequence[str] = BAD_RUBIN_FLAGS) -> pa.Array:
    """None of these flags of `diaSource` is set; a flag that the schema version does not have counts as unknown."""
    found = [alerts.field(rubin, f"diaSource.{flag}") for flag in flags]
    bad: Any = pa.array(np.zeros(len(rubin), bool))
    for flag in found:
        bad = bad if flag is None else pc.or_(bad, pc.fill_null(flag, False))
    return pc.invert(bad)


@cut
def rubin_reliability(rubin: pa.Array, *, min_reliability: float = 0.5) -> pa.Array:
    """The survey's own model finds the source more likely real than not."""
    reliability = alerts.values(rubin, "diaSource.reliability")
    return _where_known(reliability >= min_reliability, reliability)


def _where_known(keep: Any, measured: alerts.Floats) -> pa.Array:
    """The decision, null where what it rests on is not known."""
    return pa.array(keep, mask=np.isnan(measured))
