from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybroker.errors import SettingsError
from raybroker.protocols.tables import Names, labelled, read
from tests.protocols.tables_for_tests import NAMES, rows, small


def put(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def said(table, names=NAMES, wanted=()):
    with pytest.raises(SettingsError) as caught:
        labelled(table, names, wanted)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "wanted", "text"),
    [
        (Names("knid", "name", "mjd"), (), r"--label knid.*did you mean 'kind'"),
        (Names("kind", "nam"), (), r"--object nam: .*did you mean 'name'"),
        (Names("kind", "name", "time"), (), r"--time time: the table has no such column.*it has kind"),
        (Names("kind", "name", None, ("raise",)), (), r"--columns raise.*did you mean 'rise'"),
        (Names("kind", "name", "kind"), (), r"--time kind: .*no time"),
        (Names("kind", "name"), ("AGM",), r"--wanted AGM: no such class.*did you mean 'AGN'"),
    ],
)
def test_a_wrong_name_says_what_is_there(names, wanted, text):
    with pytest.raises(SettingsError, match=text):
        labelled(rows(), names, wanted)


def test_one_class_only_is_said():
    table = put(rows(), "kind", ["SN"] * 300)
    assert "all 300 rows have the class 'SN'" in said(table)


def test_too_few_rows_are_said():
    assert "too few" in said(rows(objects=4))


def test_an_infinite_value_is_not_known_and_counted():
    table = rows()
    rise = table["rise"].to_numpy().copy()
    rise[[3, 5]] = np.inf, -np.inf
    made = labelled(put(table, "rise", rise), NAMES)
    assert made.features["rise"].null_count == 2
    assert "column 'rise': 2 infinite values count as not known" in made.notes


@pytest.mark.parametrize(
    ("values", "word"), [([None] * 300, "empty"), ([4.0] * 300, "constant"), ([np.nan] * 300, "empty")]
)
def test_a_column_that_says_nothing_is_left_out_and_named(values, word):
    table = rows().append_column("flat", pa.array(values, pa.float64()))
    made = labelled(table, NAMES)
    assert "flat" not in made.columns
    assert f"column 'flat' is {word}: left out" in made.notes


def test_a_column_of_ids_is_left_out_unless_it_is_named():
    table = rows(objects=300).append_column("candid", pa.array(range(1500)))
    assert "candid" not in labelled(table, NAMES).columns
    assert "candid" in labelled(table, Names("kind", "name", "mjd", ("candid", "rise"))).columns


def test_rows_without_label_object_or_time_are_counted():
    table = put(rows(), "kind", [None, *rows()["kind"].to_pylist()[1:]])
    table = put(table, "mjd", [*rows()["mjd"].to_pylist()[:-2], None, None])
    made = labelled(table, NAMES)
    assert len(made) == 297
    assert "1 rows without label ('kind' is null) were left out" in made.notes
    assert "2 rows without time ('mjd' is null) were left out" in made.notes


def test_label_object_and_time_are_never_features():
    table = (
        rows()
        .append_column("number", pa.array(np.arange(300) // 5))
        .append_column("band", pa.array(["g"] * 300))
    )
    made = labelled(table, Names("kind", "number", "mjd"))
    assert made.columns == ("rise", "noise", "mood")


def test_wanted_globs_make_two_classes_with_the_wanted_first():
    table = put(rows(), "kind", [["SN Ia", "SN Iax", "SN II", "AGN"][i // 5 % 4] for i in range(300)])
    made = labelled(table, NAMES, ["SN Ia*"])
    assert made.classes == ("SN Ia*", "other")
    assert (made.labels == 0).sum() == 150


def test_a_class_of_one_object_is_left_out():
    kinds = [
        "odd" if name == "o000" else kind
        for name, kind in zip(rows()["name"].to_pylist(), rows()["kind"].to_pylist(), strict=True)
    ]
    made = labelled(put(rows(), "kind", kinds), NAMES)
    assert "odd" not in made.classes
    assert len(made) == 295
    assert made.objects.max() == len(made.object_names) - 1 == 58


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.date32(), pa.string()])
def test_dates_become_days(kind):
    days = pa.array([i // 5 for i in range(300)], pa.int32()).cast(pa.date32())
    made = labelled(put(rows(), "mjd", days.cast(pa.timestamp("us")).cast(kind)), NAMES)
    assert made.times[-1] - made.times[0] == pytest.approx(59)


def test_numeric_labels_are_the_same_from_any_file():
    numbers = [51.0 if kind == "SN" else 64.0 for kind in rows()["kind"].to_pylist()]
    texts = [str(number) for number in numbers]
    for values in (numbers, texts, [int(number) for number in numbers]):
        assert set(labelled(put(rows(), "kind", values), NAMES).classes) == {"51", "64"}


def test_structs_in_parquet_become_dotted_columns(tmp_path):
    table = rows()
    nested = pa.table(
        {
            "kind": table["kind"],
            "name": table["name"],
            "early": pa.array([{"age": float(i % 9)} for i in range(300)]),
        }
    )
    pq.write_table(nested, tmp_path / "t.parquet")
    assert labelled(read(tmp_path / "t.parquet", NAMES)[0], Names("kind", "name")).columns == ("early.age",)


@pytest.mark.parametrize("name", ["t.parquet", "none.parquet"])
def test_a_file_that_is_no_table_is_said(tmp_path, name):
    (tmp_path / "t.parquet").write_text("hello")
    with pytest.raises(SettingsError, match=r"cannot be read as Parquet|no such file"):
        read(tmp_path / name, NAMES)


def test_shuffled_labels_stay_with_their_objects():
    data = small()
    dealt = data.shuffled(np.random.default_rng(1))
    assert all(len(set(dealt.labels[data.objects == thing].tolist())) == 1 for thing in range(60))
    assert sorted(dealt.labels.tolist()) == sorted(data.labels.tolist())
    assert dealt.labels.tolist() != data.labels.tolist()


def test_a_share_keeps_whole_objects():
    part = small().share(0.25, np.random.default_rng(0))
    assert len(np.unique(part.objects)) == 15
    assert len(part) == 75
