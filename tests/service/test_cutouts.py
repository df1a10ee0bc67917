"""Cutouts of real packets, and of hostile ones."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zlib
from typing import Any

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from raybroker import surveys
from raybroker.alerts import Packet
from raybroker.errors import PacketError
from raybroker.service import cutouts

truncated = pytest.mark.filterwarnings("ignore:File may have been truncated")


def picture(found: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cutouts.png(cutouts.pixels(found)))))


def image_file(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    fits.PrimaryHDU(image).writeto(file)
    return file.getvalue()


def test_a_ztf_cutout_is_the_packets_own_without_its_gzip(ztf_packets: Any) -> None:
    packet = ztf_packets("public_20181129")[0]
    alert = next(iter(fastavro.reader(io.BytesIO(packet.value))))
    found = cutouts.of(surveys.load("ztf"), packet)
    for kind, raw in found.items():
        stamp = alert[f"cutout{kind.capitalize()}"]["stampData"]
        assert raw == stamp
        assert cutouts.plain(raw) == gzip.decompress(stamp)


def test_every_real_cutout_becomes_a_picture(ztf_packets: Any, rubin_packets: Any) -> None:
    drawn = 0
    for survey, packets in (("ztf", ztf_packets("public_20181129")[:40]), ("rubin", rubin_packets[:15])):
        decoder = surveys.load(survey)
        for packet in packets:
            for raw in cutouts.of(decoder, packet).values():
                if raw:
                    shades = picture(cutouts.plain(raw))
                    assert shades.shape[2] == 2
                    assert np.ptp(shades[..., 0]) > 100
                    drawn += 1
    assert drawn > 120


def test_the_first_row_of_the_image_is_at_the_bottom() -> None:
    image = np.random.default_rng(0).normal(0, 1, (20, 20)).astype(np.float32)
    image[0, 5] = 50
    assert picture(image_file(image))[-1, 5, 0] == 255


@pytest.mark.parametrize(("limits", "low", "high"), [("minmax", 0, 1000), ("percentile", 5, 995)])
def test_the_range_says_what_is_black_and_what_is_white(limits: str, low: int, high: int) -> None:
    ramp = np.arange(1001, dtype=np.float64).reshape(7, 143)
    shades = np.asarray(Image.open(io.BytesIO(cutouts.png(ramp, "linear", limits))))[::-1, :, 0].reshape(-1)
    assert (shades[: low + 1] == 0).all()
    assert (shades[high:] == 255).all()
    assert shades[500] == 128
    assert shades[low + 10] > 0


def test_stretches_lift_what_is_faint() -> None:
    ramp = np.linspace(0, 1, 100).reshape(10, 10)
    middle = {name: cutouts.png(ramp, name, "minmax") for name in ("linear", "asinh", "log")}
    grey = {name: int(np.asarray(Image.open(io.BytesIO(found)))[-1, 5, 0]) for name, found in middle.items()}
    assert grey["linear"] < grey["asinh"] < grey["log"]


def test_pixels_without_data_are_transparent() -> None:
    image = np.ones((4, 4), np.float32)
    image[1, 2] = np.nan
    assert picture(image_file(image))[2, 2].tolist() == [0, 0]
    assert picture(image_file(np.full((4, 4), np.nan, np.float32)))[..., 1].max() == 0


@truncated
def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = gzip.compress(bytes(200 << 20), 9)
    tracemalloc.start()
    with pytest.raises(PacketError, match="larger than 8 MB"):
        cutouts.plain(bomb)
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()
    tall = image_file(np.zeros((2, 2), np.float32)).replace(
        b"NAXIS1  =                    2", b"NAXIS1  =           4000000000"[:30]
    )
    with pytest.raises(PacketError):
        cutouts.pixels(tall)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"no fits",
        b"SIMPLE  =",
        gzip.compress(b"abc", mtime=0)[:-9],
        zlib.compress(b"abc"),
        bytes(2880),
        b"\x1f\x8b",
    ],
)
def test_what_is_no_image_says_so(broken: bytes) -> None:
    with pytest.raises(PacketError):
        cutouts.pixels(cutouts.plain(broken))


@truncated
def test_a_cut_short_image_is_an_error() -> None:
    whole = image_file(np.ones((63, 63), np.float32))
    with pytest.raises(PacketError):
        cutouts.pixels(whole[:6000])


def test_an_unreadable_packet_gives_its_reason() -> None:
    with pytest.raises(PacketError):
        cutouts.of(surveys.load("ztf"), Packet(b"Obj\x01broken"))
