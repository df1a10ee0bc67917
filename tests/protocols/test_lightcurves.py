from __future__ import annotations

import importlib.util

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybroker import alerts, surveys
from raybroker.errors import SettingsError
from raybroker.protocols import lightcurves, night
from raybroker.protocols.tables import Names

NAMES = Names("tns_type", "objectId")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("light_curve") is None,
    reason="needs light-curve: pip install raybroker[features]",
)


@pytest.fixture(scope="module")
def curves(data):
    return pq.read_table(data / "labelled" / "ztf_tns_lightcurves.parquet").slice(0, 25)


@pytest.fixture(scope="module")
def made(curves):
    return lightcurves.table(curves, NAMES)[0]


def test_there_is_one_alert_for_each_detection(curves, made):
    seen = [p for row in curves["history"].to_pylist() for p in row if p["magpsf"] is not None]
    assert made.num_rows == len(seen)
    assert (np.diff(made["mjd"].to_numpy()) >= 0).all()


def test_an_alert_knows_nothing_of_later(curves):
    """The features of the first half of every light curve are the same when the second half is not there."""
    rows = lightcurves.known(curves, NAMES)
    edge = np.median([p["jd"] for row in rows for p in row["history"]])
    cut = [row | {"history": [p for p in row["history"] if p["jd"] <= edge]} for row in rows]
    early = [lightcurves.features(lightcurves.batch_of(part, "objectId")[0]) for part in (cut, rows)]
    both = [table.slice(0, early[0].num_rows) for table in early]
    assert 50 < both[0].num_rows < early[1].num_rows
    assert both[0].equals(both[1])


def test_histories_reach_back_thirty_days(curves):
    batch, _ = lightcurves.batch_of(lightcurves.known(curves, NAMES), "objectId")
    reach = [row["mjd"] - row["history"][0]["mjd"] for row in batch.to_pylist()]
    assert max(reach) <= 30.0
    assert max(reach) > 25.0


def test_a_point_keeps_its_magnitude(curves):
    row = next(row for row in curves.to_pylist() if row["history"])
    wanted = [p["magpsf"] for p in sorted(row["history"], key=lambda p: p["jd"]) if p["magpsf"] is not None]
    found = [
        float(alerts.flux_to_magnitude(p["flux"]))
        for p in lightcurves.points(row["history"])
        if p["kind"] == "detection"
    ]
    assert found == pytest.approx(wanted)


def test_packets_carry_what_the_table_says(curves):
    rows = lightcurves.known(curves, NAMES)
    batch, _ = lightcurves.batch_of(rows, "objectId")
    decoded = surveys.load("ztf").decode(night.packets(batch.slice(0, 200)))
    assert not decoded.bad
    back, whole = lightcurves.features(decoded.batch), lightcurves.features(batch.slice(0, 200))
    for name in (
        "early.age",
        "early.rise_r",
        "early.colour_g_r",
        "early.detections",
        "early.limits",
        "lightcurve.amplitude_r",
    ):
        ours, theirs = (
            np.asarray(table[name].combine_chunks().to_numpy(zero_copy_only=False)) for table in (back, whole)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_table_without_light_curves_is_said(curves):
    assert lightcurves.are(curves)
    assert not lightcurves.are(pa.table({"history": [1.0]}))
    with pytest.raises(SettingsError, match="--label kind: the table has no such column"):
        lightcurves.table(curves, Names("kind", "objectId"))
    limits = [[{"jd": 2458846.7, "fid": 1, "magpsf": None, "sigmapsf": None}]] * curves.num_rows
    place = curves.column_names.index("history")
    dark = curves.set_column(place, "history", pa.array(limits, curves.schema.field("history").type))
    with pytest.raises(SettingsError, match="no light curve"):
        lightcurves.table(dark, NAMES)
