"""Cutouts: from a packet's bytes to FITS, and to a picture for the page. The bytes come from outside: all sizes are bounded."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.visualization import AsinhStretch, BaseStretch, LinearStretch, LogStretch, ZScaleInterval
from PIL import Image

from raybroker.alerts import CUTOUTS, Packet
from raybroker.errors import PacketError
from raybroker.pipeline import cutout_bytes
from raybroker.surveys import Survey

FITS_BYTES = 8 << 20
PIXELS = 1 << 20
GZIP = b"\x1f\x8b"
SIMPLE = re.compile(rb"SIMPLE  = +T *$")  # ZTF's first card has its T where FITS wants a space

STRETCHES: Mapping[str, BaseStretch] = {
    "asinh": AsinhStretch(0.3),
    "linear": LinearStretch(),
    "log": LogStretch(1000.0),
}

Pixels = npt.NDArray[np.float64]


def of(survey: Survey, packet: Packet) -> dict[str, bytes | None]:
    """The cutouts of a packet as they are in it, None where it has none. `PacketError` if it cannot be read."""
    decoded = survey.decode([packet])
    if decoded.bad:
        raise PacketError(decoded.bad[0].reason)
    places = decoded.batch["cutouts"]
    return {kind: cutout_bytes(places, decoded.bodies, kind)[0].as_py() or None for kind in CUTOUTS}


def plain(cutout: bytes) -> bytes:
    """FITS without its gzip (ZTF's come with, Rubin's without)."""
    if not cutout.startswith(GZIP):
        found = cutout
    else:
        try:
            found = zlib.decompressobj(wbits=31).decompress(cutout, FITS_BYTES + 1)
        except zlib.error as error:
            raise PacketError(f"the cutout's gzip is damaged: {error}") from error
    if len(found) > FITS_BYTES:
        raise PacketError(f"the cutout is larger than {FITS_BYTES >> 20} MB")
    return found


def pixels(found: bytes) -> Pixels:
    """The first image of a FITS file, its first row at the bottom of the sky picture; NaN where there is no data."""
    try:
        with fits.open(io.BytesIO(_standard(found)), memmap=False) as units:
            unit = next((one for one in units if one.header.get("NAXIS") == 2), None)
            if unit is None:
                raise PacketError("the cutout's FITS file holds no image")
            if unit.header["NAXIS1"] * unit.header["NAXIS2"] > PIXELS:
                raise PacketError(f"the cutout has more than {PIXELS:,} pixels")
            return np.asarray(unit.data, dtype=np.float64)
    except (OSError, ValueError, TypeError, KeyError, fits.VerifyError) as error:
        raise PacketError(f"the cutout is not a readable FITS file: {error}") from error


def _standard(found: bytes) -> bytes:
    return b"SIMPLE  =".ljust(29) + b"T".ljust(51) + found[80:] if SIMPLE.match(found[:80]) else found


def png(image: Pixels, stretch: str = "asinh", limits: str = "zscale") -> bytes:
    """A grey picture, one pixel per pixel, transparent where there is no data.

    `limits` says what is black and what is white: zscale, the inner 99 % of the pixels, or all (minimum to maximum).
    """
    known = np.isfinite(image)
    grey = np.zeros(image.shape)
    if known.any():
        low, high = _limits(image[known], limits)
        scaled = np.clip((image[known] - low) / ((high - low) or 1.0), 0.0, 1.0)
        grey[known] = STRETCHES[stretch](scaled)
    layers = np.stack([np.round(255 * grey), 255 * known], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(layers[::-1].copy()).save(file, "png", optimize=True)
    return file.getvalue()


def _limits(values: Pixels, limits: str) -> tuple[float, float]:
    if limits == "zscale":
        low, high = ZScaleInterval().get_limits(values)
    else:
        low, high = np.percentile(values, (0.5, 99.5) if limits == "percentile" else (0, 100))
    return float(low), float(high)
