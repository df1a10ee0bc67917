from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raybroker
from raybroker.errors import SettingsError
from tests.protocols.tables_for_tests import rows

QUICK = {"members": ("softmax", "naive_bayes"), "seeds": 1, "delay": 2.0}
COLUMNS = {"label": "kind", "object": "name", "time": "mjd"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    told = []
    found = raybroker.evaluate(
        rows(),
        **COLUMNS,
        **QUICK,
        wanted="SN",
        protocol=["ranking", "holdout"],
        output=folder,
        progress=lambda *x: told.append(x),
    )
    return found, folder, told


def test_the_call_gives_numbers_a_table_and_a_notebook_page(made):
    found, _, told = made
    assert found.metrics["holdout.object.mixture.auc"] > 0.6
    assert found.table.schema.names == ["protocol", "metric", "value"]
    assert found.table.num_rows == len(found.metrics)
    assert "Hold-out by object" in found._repr_html_()
    assert {name for name, _ in told} == {"ranking", "holdout"}
    assert told[-1] == ("ranking", 1.0)
    with pytest.raises(AttributeError):
        found.notes = ()


def test_the_page_needs_no_network(made):
    page = (made[1] / "evaluation.html").read_text()
    tags = re.findall(
        r"<(?:script|link|img)[^>]*(?:src|href)=[\"']?(\S+?)[\"'> ]", page.split("</script>", 1)[0][:5000]
    )
    assert not tags
    assert not re.findall(
        r"<(?:script|link|img|iframe)[^>]*\s(?:src|href)=", page.rsplit("plotly.js v", 1)[0][:4000]
    )
    assert "Plotly.newPlot" in page
    assert page.count("<script") >= 3
    assert not re.search(r"<script[^>]*\ssrc=", page)


def test_the_json_holds_every_number_and_no_nan(made):
    found, folder, _ = made
    told = json.loads((folder / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert told["metrics"].keys() == found.metrics.keys()
    assert told["about"]["objects"] == 60


def test_the_same_call_gives_the_same_numbers(made):
    again = raybroker.evaluate(rows(), **COLUMNS, **QUICK, wanted="SN", protocol=["holdout"])
    for name, value in again.metrics.items():
        assert made[0].metrics[name] == value or np.isnan(value)


def test_files_and_frames_are_taken(tmp_path):
    pq.write_table(rows(), tmp_path / "t.parquet")
    frame = rows().to_pandas()
    frame.to_csv(tmp_path / "t.csv", index=False)
    given = [
        raybroker.evaluate(t, **COLUMNS, **QUICK, protocol="holdout").metrics
        for t in (tmp_path / "t.parquet", str(tmp_path / "t.csv"), frame)
    ]
    assert given[0]["holdout.object.mixture.auc"] == pytest.approx(given[2]["holdout.object.mixture.auc"])
    assert given[0]["holdout.object.mixture.auc"] == pytest.approx(
        given[1]["holdout.object.mixture.auc"], abs=0.02
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": "steam"}, r"no protocol 'steam' \(did you mean 'stream'\?\)"),
        ({"protocol": "stream", "time": None}, r"protocol 'stream' needs a time column"),
        ({"rule": "median"}, r"no rank rule 'median'"),
        ({"strategies": ["margn"]}, r"no strategy 'margn' \(did you mean 'margin'\?\)"),
        ({"members": ["sofmax"]}, r"no member 'sofmax' \(did you mean 'softmax'\?\)"),
        ({"delay": -1.0}, r"days are not negative"),
        ({"share": 0.0}, r"share 0"),
        ({"seeds": ()}, r"one seed at least"),
        ({"label": "knid"}, r"did you mean 'kind'"),
        ({"change": "bnad"}, r"--change bnad: the table has no such column"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(options, said):
    with pytest.raises(SettingsError, match=said):
        raybroker.evaluate(rows(), **{**COLUMNS, **QUICK, **options})


def test_ranking_needs_one_wanted_class():
    table = rows()
    kinds = pa.array([f"k{int(name[1:]) % 3}" for name in table["name"].to_pylist()])
    with pytest.raises(SettingsError, match=r"protocol 'ranking' needs one wanted class \(--wanted\)"):
        raybroker.evaluate(table.set_column(0, "kind", kinds), **COLUMNS, **QUICK, protocol="ranking")


def test_a_thing_that_is_no_table_is_said():
    with pytest.raises(SettingsError, match="a list is no table"):
        raybroker.evaluate([1, 2], **COLUMNS)


def test_three_classes_and_ten_labels_go_through():
    table = rows(objects=12, alerts=1)
    kinds = pa.array([f"k{i % 3}" for i in range(12)])
    found = raybroker.evaluate(table.set_column(0, "kind", kinds), **COLUMNS, **QUICK, protocol="holdout")
    assert "holdout.object.mixture.auc" in found.metrics


def test_a_run_is_logged(tmp_path):
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    found = raybroker.evaluate(
        rows(), **COLUMNS, **QUICK, protocol="holdout", output=tmp_path / "out", mlflow=store
    )
    client = MlflowClient(store)
    [run] = client.search_runs([client.get_experiment_by_name("raybroker").experiment_id])
    assert run.data.metrics["holdout.object.mixture.auc"] == pytest.approx(
        found.metrics["holdout.object.mixture.auc"]
    )
    assert run.data.params["label"] == "kind"


@pytest.fixture(scope="module")
def real(data):
    """A fifth of the real light curves, as a table."""
    import pyarrow.compute as pc

    from raybroker.protocols import lightcurves
    from raybroker.protocols.tables import Names

    curves = pq.read_table(data / "labelled" / "ztf_tns_lightcurves.parquet")
    kind = pc.if_else(pc.starts_with(curves["tns_type"], "SN Ia"), "Ia", "other")
    curves = curves.set_column(curves.column_names.index("tns_type"), "tns_type", kind)
    return lightcurves.table(curves, Names("tns_type", "objectId"))[0]


def test_shuffled_labels_of_real_alerts_are_worth_nothing(real):
    """By object: whoever splits by alert, or learns from what it is asked about, has far more than one half."""
    options = {"label": "tns_type", "object": "objectId", "time": "mjd", "wanted": "Ia", "share": 0.3}
    found = raybroker.evaluate(
        real,
        **options,
        members=("softmax", "naive_bayes"),
        seeds=6,
        shuffle=True,
        protocol="holdout",
        columns=["basic.*", "early.*"],
    )
    for model in ("mixture", "random_forest"):
        assert found.metrics[f"holdout.object.{model}.auc"] == pytest.approx(0.5, abs=0.05)
