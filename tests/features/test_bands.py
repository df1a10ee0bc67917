"""On real data, what is measured in r is measured in r: a feature copied from one band into another breaks these."""

from __future__ import annotations

import importlib.util

import numpy as np
import pyarrow as pa
import pytest

from raybroker import alerts, surveys
from raybroker.step import discover

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("light_curve") is None,
    reason="needs light-curve: pip install raybroker[features]",
)
STEPS = ["basic", "early", "phases", pytest.param("lightcurve", marks=needs_package)]


@pytest.fixture(scope="module")
def batch(ztf_packets):
    return surveys.load("ztf").decode(ztf_packets("selected_20231018")).batch


def measured(step, batch):
    """[alerts] of every feature of the step."""
    made = discover()[step].run({name: batch.column(name) for name in discover()[step].needs}, batch.num_rows)
    kinds = [field for field in made.type if not pa.types.is_string(field.type)]
    return {field.name: alerts.values(made, field.name) for field in kinds}


def pairs(found):
    """The features that exist for both bands."""
    names = [name[:-2] for name in found if name.endswith("_g") and f"{name[:-2]}_r" in found]
    return [(name, found[f"{name}_g"], found[f"{name}_r"]) for name in names]


@pytest.mark.parametrize("step", STEPS)
def test_features_of_two_bands_differ(step, batch):
    found = pairs(measured(step, batch))
    assert found
    for name, green, red in found:
        both = np.isfinite(green) & np.isfinite(red)
        if both.sum() >= 20 and len(np.unique(green[both])) > 5:
            assert (green[both] != red[both]).mean() > 0.5, f"{step}.{name}_r looks like {name}_g"


def without(batch, band):
    """The same alerts with nothing seen in one band: a history without its points."""
    histories = [[p for p in history if p["band"] != band] for history in batch.column("history").to_pylist()]
    place = batch.schema.get_field_index("history")
    return batch.set_column(place, "history", pa.array(histories, alerts.HISTORY))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("gone", "left"), [("g", "r"), ("r", "g")])
def test_a_band_is_measured_from_its_own_points_alone(step, gone, left, batch):
    other = "r" if gone == "g" else "g"
    mine = batch.filter(pa.compute.equal(batch.column("band"), other)).slice(0, 150)
    before, after = measured(step, mine), measured(step, without(mine, gone))
    own = [name for name in before if name.endswith(f"_{left}") and f"{name[:-2]}_{gone}" in before]
    assert own
    for name in own:
        np.testing.assert_array_equal(after[name], before[name], err_msg=f"{step}.{name} follows band {gone}")
