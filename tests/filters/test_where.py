from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from raybroker import checks, surveys
from raybroker.errors import SettingsError
from raybroker.features.early import early
from raybroker.filters.where import check, where


@pytest.fixture(scope="module")
def batch(ztf_packets) -> pa.RecordBatch:
    found = surveys.load("ztf").decode(ztf_packets("public_20181129")[:120]).batch
    column = early.run({name: found.column(name) for name in early.needs}, found.num_rows)
    return found.append_column("early", column)


@pytest.fixture(scope="module")
def types(batch):
    return {field.name: field.type for field in batch.schema}


def run(expression, **columns):
    arrays = {name: pa.array(values) for name, values in columns.items()}
    step = where("f", expression)
    return step.run(arrays, len(next(iter(arrays.values())))).to_pylist()


def test_it_needs_the_columns_that_the_expression_names():
    assert where("f", "early.age < 2 and gaia.distance is null and early.rise_g > 0").needs == (
        "early",
        "gaia",
    )
    assert where("f", "rubin.diaSource.psfFlux > 3").needs == ("rubin",)
    assert where("f", '"type Ia"."SN Ia" > 0.2').needs == ("type Ia",)
    assert where("f", "len(list_filter(history, lambda p: p.flux > 0)) > 1").needs == ("history",)


def test_it_answers_for_real_alerts(batch, types):
    step = where("f", "early.age < 10 and ztf.rb > 0.6 and band = 'g'")
    check(step, types)
    made = step.run({name: batch.column(name) for name in step.needs}, batch.num_rows).to_pylist()
    wanted = [
        age < 10 and alert["rb"] > 0.6
        for age, alert in zip(
            batch.column("early").field("age").to_pylist(), batch.column("ztf").to_pylist(), strict=True
        )
    ]
    assert made == wanted
    assert 0 < sum(wanted) < len(wanted)


def test_what_is_not_known_is_null():
    assert run("a > 1", a=[2.0, None, 0.5]) == [True, None, False]
    assert run("s.x > 1", s=[{"x": 2.0}, {"x": None}, None]) == [True, None, None]
    assert run("s is null", s=[{"x": 2.0}, None]) == [False, True]


def test_nan_is_not_known_either():
    assert run("a > 1 or s.x > 1", a=[np.nan], s=[{"x": np.nan}]) == [None]


def test_nested_fields_and_lists_can_be_asked_for():
    rubin = [
        {"diaSource": {"psfFlux": 3.0, "isDipole": False}},
        {"diaSource": {"psfFlux": 1.0, "isDipole": True}},
    ]
    assert run("rubin.diaSource.psfFlux > 2 and not rubin.diaSource.isDipole", rubin=rubin) == [True, False]
    assert run("len(list_filter(h, lambda p: p.flux > 1)) >= 2", h=[[{"flux": 2.0}, {"flux": 3.0}], []]) == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    "expression",
    [
        "ra in (select 1)",
        "exists(select 1)",
        "ra > 1) FROM a UNION SELECT (ra",
        "ra, dec",
        "ra as b",
        "ra > 1; drop table x",
        "ra > 1 order by 1",
        "ra > 1 limit 1",
        "ra > 1 group by 1",
        "distinct ra",
        "read_csv('/etc/passwd') > ra",
        "ra > random()",
        "count(*) > 1",
        "max(ra) > 1",
        "row_number() over () = 1",
        "getenv('HOME') = band",
        "current_setting('threads') = band",
        "*",
        "columns('r.*') > 1",
        "$1 > ra",
        "#1 > 2",
        "true",
        "",
        "ra >",
    ],
)
def test_only_an_expression_may_stand_there(expression):
    with pytest.raises(SettingsError, match=r"filters\.f\.where: "):
        where("f", expression)


def test_an_unknown_function_names_the_nearest():
    with pytest.raises(SettingsError, match=r"'list_summ' is not for filters \(did you mean 'list_sum'\?\)"):
        where("f", "list_summ(a) > 1")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("erly.age < 2", r"there is no column 'erly' \(did you mean 'early'\?\)"),
        ("early.aeg < 2", r"'early' has no field 'aeg' \(did you mean 'age'\?\)"),
        ("ra.x < 2", "'ra' has no field 'x'"),
        ("early < 2", "early < 2"),
        ("ra + dec", "gives double, not true or false"),
        ("'abc' > ra", "Could not convert"),
    ],
)
def test_a_filter_is_checked_against_the_columns_before_it_runs(types, expression, message):
    with pytest.raises(SettingsError, match=message):
        check(where("f", expression), types)


def test_its_connection_can_reach_nothing_outside(tmp_path):
    import duckdb

    from raybroker.filters.where import _connection

    (tmp_path / "a.csv").write_text("a\n1\n")
    for query in (
        f"FROM read_csv('{tmp_path}/a.csv')",
        "SET threads = 2",
        f"ATTACH '{tmp_path}/x.db'",
        "INSTALL httpfs",
    ):
        with pytest.raises(duckdb.Error):
            _connection().sql(query).fetchall()


def test_it_keeps_the_rules_for_steps(batch):
    step = where("f", "early.age < 10 and ztf.rb > 0.6 and log10(abs(flux)) > 4")
    checks.check_step(step, batch.slice(0, 40))
    assert pickle.loads(pickle.dumps(step)).describe() == step.describe()
    assert step.describe()["settings"] == {
        "where": "early.age < 10 and ztf.rb > 0.6 and log10(abs(flux)) > 4"
    }
