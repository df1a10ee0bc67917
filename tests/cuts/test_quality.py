from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raybroker import surveys
from raybroker.cuts import quality
from raybroker.cuts.solar_system import not_moving
from raybroker.step import Step


def kept(step: Step, batch: pa.RecordBatch) -> pa.Array:
    columns = {name: batch.column(name) for name in step.needs}
    return pc.fill_null(step.run(columns, batch.num_rows), True)


@pytest.fixture(scope="module")
def night(ztf_packets) -> pa.RecordBatch:
    return surveys.load("ztf").decode(ztf_packets("public_20181129")).batch


@pytest.fixture(scope="module")
def rubin(rubin_packets) -> pa.StructArray:
    return surveys.load("rubin").decode(rubin_packets).batch.column("rubin")


def test_the_cuts_keep_as_many_alerts_of_2018_11_29_as_in_fink(night):
    good = pc.and_(kept(quality.real, night), kept(quality.good_pixels, night))
    assert good.true_count == 291
    assert pc.and_(good, kept(quality.aperture, night)).true_count == 128


def test_a_threshold_can_be_set(night):
    assert kept(quality.real.with_settings({"min_rb": 0.9}), night).true_count < 100
    assert kept(quality.real.with_settings({"min_rb": 0.0}), night).true_count == 498


def test_an_alert_exactly_at_the_threshold_is_kept():
    assert quality.real.run({"ztf": pa.array([{"rb": 0.55}, {"rb": 0.549}])}, 2).to_pylist() == [True, False]


@pytest.mark.parametrize("step", [quality.real, quality.good_pixels, quality.aperture])
def test_an_unknown_value_is_not_a_reason_to_drop(step):
    unknown = pa.array([{"rb": None, "nbad": None, "magap": 17.0, "magpsf": None}])
    assert step.run({"ztf": unknown}, 1).to_pylist() == [None]


def test_rubin_flags_drop_what_is_flagged_and_nothing_else(rubin):
    keep = quality.rubin_flags.run({"rubin": rubin}, len(rubin)).to_pylist()
    flagged = [
        any(source["diaSource"].get(f) for f in quality.BAD_RUBIN_FLAGS) for source in rubin.to_pylist()
    ]
    assert keep == [not bad for bad in flagged]
    assert (sum(keep), len(keep)) == (225, 288)


def test_a_flag_that_is_null_or_missing_keeps_the_alert():
    rubin = pa.array(
        [{"diaSource": {"isDipole": None}}, {"diaSource": {"isDipole": True}}, {"diaSource": None}]
    )
    assert quality.rubin_flags.run({"rubin": rubin}, 3).to_pylist() == [True, False, True]


def test_rubin_reliability_drops_the_unreliable_only(rubin):
    keep = quality.rubin_reliability.run({"rubin": rubin}, len(rubin)).to_pylist()
    for source, kept_one in zip(rubin.to_pylist(), keep, strict=True):
        reliability = source["diaSource"]["reliability"]
        assert kept_one == (None if reliability is None else reliability >= 0.5)


def test_known_asteroids_are_dropped_and_the_others_stay():
    ids = pa.array(["ztf:1234", None], pa.string())
    assert not_moving.run({"ss_object_id": ids}, 2).to_pylist() == [False, True]
