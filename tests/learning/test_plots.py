"""Any numbers make a picture that a browser can show."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from raybroker.learning.plots import MOST_POINTS, Axis, around, calibration, learning_curve

SVG = "{http://www.w3.org/2000/svg}"
NAN = float("nan")


def texts(picture: str) -> list[str]:
    return [str(node.text) for node in ET.fromstring(picture).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    "curve",
    [[], [(1, 0.5)], [(1, 0.5), (2, 0.5)], [(0, NAN), (5, 1.0)], [(1, math.inf), (2, -3.0), (9, 1e9)]],
)
def test_any_curve_makes_a_picture(curve: list[tuple[float, float]]) -> None:
    drawn = learning_curve("a < b & c", {"log-loss <": curve})
    assert texts(drawn)[0] == "a < b & c"
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_the_axes_have_round_numbers_and_say_what_they_are() -> None:
    drawn = learning_curve("losses", {"loss": [(1, 0.31), (500, 0.72)]}, up="nats")
    assert {"100", "400", "0.4", "0.7", "labels learned", "nats"} <= set(texts(drawn))


def test_several_curves_have_a_legend_and_one_has_none() -> None:
    curve = [(1.0, 0.5), (2.0, 0.6)]
    assert {"own", "wide"} <= set(texts(learning_curve("t", {"own": curve, "wide": curve})))
    assert "own" not in texts(learning_curve("t", {"own": curve}))


def test_a_point_that_is_not_known_leaves_a_gap() -> None:
    drawn = learning_curve("t", {"a": [(1, 1.0), (2, 2.0), (3, NAN), (4, 1.0), (5, 2.0)]})
    assert drawn.count("<polyline") == 2


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    drawn = learning_curve("t", {"a": [(i, i) for i in range(50_000)]})
    [line] = ET.fromstring(drawn).iter(f"{SVG}polyline")
    points = line.attrib["points"].split()
    assert len(points) == MOST_POINTS
    assert (points[0], points[-1]) == ("64.0,348.0", "620.0,44.0")


def test_the_picture_of_calibration_puts_each_bin_where_it_belongs() -> None:
    said = np.array([0.25] * 4 + [0.75] * 8 + [1.0])
    came = np.array([1, 0, 0, 0] + [1] * 6 + [0] * 2 + [1])
    drawn = calibration("t", said, came)
    circles = [
        (float(c.attrib["cx"]), float(c.attrib["cy"])) for c in ET.fromstring(drawn).iter(f"{SVG}circle")
    ]
    across, up = Axis(0, 1, 64, 620), Axis(0, 1, 348, 44)
    assert circles == [(round(across(p), 1), round(up(p), 1)) for p in (0.25, 0.75, 1.0)]
    assert {"4", "8", "1"} <= set(texts(drawn))
    assert "nan" not in calibration("t", np.array([]), np.array([]))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3, 3), (-1e-9, 1e-9), (-5, 1e6), (0.31, 0.33)])
def test_ticks_are_few_and_within(low: float, high: float) -> None:
    axis = around([low, NAN, high], 0, 100)
    assert 2 <= len(axis.ticks) <= 11
    assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in axis.ticks)


def test_equal_numbers_give_equal_bytes() -> None:
    curve = [(float(i), 1 / (i + 1)) for i in range(100)]
    assert learning_curve("t", {"a": curve}) == learning_curve("t", {"a": list(curve)})
