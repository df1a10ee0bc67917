"""End to end on a few real light curves."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybroker.archive.events import EventLog, dicts
from raybroker.errors import SettingsError
from raybroker.protocols import night
from raybroker.protocols.night import Oracle, Sky

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("light_curve") is None,
    reason="needs light-curve: pip install raybroker[features]",
)


def question(name):
    return SimpleNamespace(
        model="evaluated", survey="ztf", alert_id=f"ztf:{name}", object_id=name, query_id=name, snapshot=1
    )


def test_the_oracle_answers_after_its_delay_and_each_object_once():
    oracle = Oracle(dict.fromkeys("abcd", "SN"), delay=3.0, looks=2)
    asked = [question(name) for name in "abcd"]
    oracle.look(asked, 10.0)
    oracle.look(asked, 11.0)
    assert [row["object_id"] for night_ in (12.0, 13.0, 14.0) for row in oracle.answers(night_)] == [
        "a",
        "b",
        "c",
        "d",
    ]
    assert oracle.learned == {"a": 13.0, "b": 13.0, "c": 14.0, "d": 14.0}


def test_an_object_is_unseen_up_to_the_night_after_which_it_was_learned():
    nights = np.arange(40) % 20
    names = ["a"] * 20 + ["b"] * 20
    said = pa.array(
        [{"SN": 0.9 if name == "a" else 0.2, "other": 0.1 if name == "a" else 0.8} for name in names]
    )
    rows = pa.table({"object_id": names, "mjd": nights + 0.5, "evaluated": said})
    sky = Sky([], nights, {"a": "SN", "b": "other"}, ("SN", "other"))
    oracle = Oracle(sky.truth, 0.0, 1, learned={"a": 7.0} | {f"x{i}": 0.0 for i in range(10)})
    table = {row[0]: row[1] for row in night.report(rows, sky, oracle).sheets[0].rows}
    assert table["unseen objects"] == str(7 + 19)  # nights 1 to 7 of a, 1 to 19 of b
    assert table["all alerts"] == str(19 + 19)


@needs_package
def test_light_curves_go_through_the_whole_pipeline(data, tmp_path):
    curves = pq.read_table(data / "labelled" / "ztf_tns_lightcurves.parquet")
    short = [i for i, history in enumerate(curves["history"].to_pylist()) if 6 < len(history) < 20][:24]
    told = []
    made = night.evaluate(
        curves.take(short),
        label="tns_type",
        object="objectId",
        wanted="SN Ia*",
        members=("softmax", "naive_bayes"),
        delay=3.0,
        output=tmp_path,
        progress=told.append,
    )
    assert told[-1] == 1.0
    labels = dicts(EventLog(tmp_path / "archive", "labels").read())
    queries = dicts(EventLog(tmp_path / "archive", "queries").read())
    assert len(labels) == made.metrics["night.labels"] >= 10
    assert {row["query_id"] for row in labels} <= {row["query_id"] for row in queries}
    asked = {row["query_id"]: row["mjd"] for row in queries}
    for row in labels:
        answered = row["when"].timestamp() / 86_400 + 40_587
        assert answered >= asked[row["query_id"]] // 1 + 3.0, "a label came before its delay"
    assert (tmp_path / "evaluation.html").exists()
    with pytest.raises(SettingsError, match="holds an archive already"):
        night.evaluate(
            curves.take(short), label="tns_type", object="objectId", wanted="SN Ia*", output=tmp_path
        )


def test_another_table_is_refused():
    with pytest.raises(SettingsError, match="--night needs labelled light curves"):
        night.evaluate(pa.table({"kind": ["a"], "name": ["b"]}), label="kind", object="name")
