"""Light curves that no star has, through every feature step: no error, and only finite numbers or null."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybroker import alerts
from raybroker.checks import same_bits
from raybroker.features.basic import basic
from raybroker.features.early import early
from raybroker.features.lightcurve import lightcurve
from raybroker.features.phases import phases
from raybroker.step import Step
from tests.fuzzing import fuzzed

STEPS = [basic, early, phases, *([lightcurve] if find_spec("light_curve") else [])]
NOW = 60_000.0
LARGE, SMALL, TINY = 3.4028235e38, 1.1754944e-38, 1e-45  # of float32
SIZES = st.sampled_from([0.0, -0.0, 1.0, -1.0, LARGE, -LARGE, SMALL, -SMALL, TINY, -TINY, 1e20, -1e20, 1e-20])
FLUXES = st.none() | SIZES | st.floats(width=32, allow_nan=False, allow_infinity=False)
DAYS = st.one_of(
    st.sampled_from([0.0, 0.0, -1e-9, -0.02, -0.5, -1.0, -7.0, -30.0, 1.0, -59_999.0, 139_999.0]),
    st.floats(-40, 0, allow_nan=False),
)
POINT = st.fixed_dictionaries(
    {
        "mjd": DAYS.map(lambda day: NOW + day),
        "band": st.none() | st.sampled_from(["g", "g", "r", "r", *"uizyX", ""]),
        "kind": st.sampled_from([*alerts.KINDS, alerts.DETECTION, alerts.DETECTION]),
        "flux": FLUXES,
        "error": FLUXES,
    },
    optional=dict.fromkeys(
        ("limit", "template_flux", "template_error", "template_distance", "total_flux", "quality"), FLUXES
    ),
)
HISTORY = st.none() | st.lists(POINT, max_size=12).map(
    lambda points: sorted(points, key=lambda point: point["mjd"])
)
PLAIN = {"mjd": NOW, "band": "g", "kind": "detection", "flux": 1000.0, "error": 10.0}
ALERT = st.fixed_dictionaries(
    {
        "history": HISTORY,
        "mjd": st.none() | DAYS.map(lambda day: NOW + day),
        "flux": FLUXES,
        "flux_error": FLUXES,
        "band": st.none() | st.sampled_from(["g", "r", "y", "X"]),
        "reliability": FLUXES,
        "ra": st.sampled_from([0.0, 360.0, 192.85948, 5e-324]) | st.floats(0, 360),
        "dec": st.sampled_from([-90.0, 90.0, 27.12825, -0.0]) | st.floats(-90, 90),
    }
)
NORMAL = {"history": [PLAIN], "mjd": NOW, "flux": 1000.0, "flux_error": 10.0, "band": "g", "reliability": 1.0, "ra": 1.0, "dec": 2.0}  # fmt: skip


def columns(given: list[dict[str, Any]], step: Step) -> dict[str, pa.Array]:
    return {
        name: pa.array([one[name] for one in given], alerts.SCHEMA.field(name).type) for name in step.needs
    }


def finite(step: Step, made: pa.Array) -> None:
    for field, numbers in zip(step.gives, made.flatten(), strict=True):
        values = numbers.drop_null().to_numpy(zero_copy_only=False)
        assert np.isfinite(values).all(), (step.name, field.name, values)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
@fuzzed(100)
@given(given=st.lists(ALERT, min_size=1, max_size=3))
def test_an_absurd_light_curve_gives_finite_numbers_or_null(step: Step, given: list[dict[str, Any]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # as where it runs
        made = step.run(columns([*given, NORMAL], step), len(given) + 1)
    made.validate(full=True)
    finite(step, made)
    alone = step.run(columns([NORMAL], step), 1)
    assert same_bits(made.slice(len(given)), alone)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
@pytest.mark.parametrize("flux", [0.0, 1.0, -1.0, LARGE, TINY], ids=str)
@pytest.mark.parametrize("error", [0.0, 1.0, LARGE, TINY, None], ids=str)
def test_a_long_light_curve_of_one_value_gives_finite_numbers_or_null(
    step: Step, flux: float, error: float | None
) -> None:
    one = {"flux": flux, "error": error, "template_flux": flux, "template_distance": 0.0, "total_flux": flux}
    points = [PLAIN | one | {"mjd": NOW - n / 7, "band": "gr"[n % 2]} for n in range(3_000, -1, -1)]
    made = step.run(columns([NORMAL | {"history": points, "flux": flux, "flux_error": error}], step), 1)
    finite(step, made)
