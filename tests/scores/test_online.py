from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from raybroker import checks
from raybroker.errors import SettingsError
from raybroker.scores.online import expand, feature_digest, features_table, pinned, score

CLASSES = ["SN Ia", "AGN?"]


@dataclass(frozen=True)
class Linear:
    """A model whose first class is as likely as the first feature says."""

    def predict(self, features):
        first = np.nan_to_num(features.column(0).to_numpy(zero_copy_only=False), nan=0.5)
        return SimpleNamespace(mixture=np.stack([first, 1 - first], axis=1))


def columns():
    basic = pa.array([{"age": 0.25, "snr": 3.0}, {"age": None, "snr": np.inf}, {"age": 1.0, "snr": None}])
    return {"basic": basic, "ra": pa.array([1.0, 2.0, 3.0])}


def made():
    return score("supernova", ("basic.age", "basic.snr", "ra"), CLASSES)


def test_it_needs_the_columns_its_features_are_in():
    assert made().needs == ("basic", "ra")


def test_without_a_model_all_is_null():
    assert made().run(columns(), 3).to_pylist() == [{"SN Ia": None, "AGN?": None, "snapshot": None}] * 3


def test_with_a_snapshot_it_gives_probabilities_and_its_number():
    scored = pinned(made(), Linear(), 7).run(columns(), 3).to_pylist()
    assert scored == [
        {"SN Ia": 0.25, "AGN?": 0.75, "snapshot": 7},
        {"SN Ia": 0.5, "AGN?": 0.5, "snapshot": 7},
        {"SN Ia": 1.0, "AGN?": 0.0, "snapshot": 7},
    ]


def test_a_pinned_snapshot_leaves_the_plan_as_it_was():
    assert pinned(made(), Linear(), 7).describe() == made().describe()


def test_a_model_of_other_classes_is_an_error():
    other = score("supernova", ("ra",), ["a", "b", "c"])
    with pytest.raises(ValueError, match="3 classes"):
        pinned(other, Linear(), 1).run(columns(), 3)


def test_features_are_float64_and_null_where_unknown_or_infinite():
    table = features_table(columns(), ("basic.snr", "basic.age", "basic.no_such_field"))
    assert table.column_names == ["basic.snr", "basic.age", "basic.no_such_field"]
    assert table.to_pydict()["basic.snr"] == [3.0, None, None]
    assert set(table.schema.types) == {pa.float64()}
    assert table["basic.no_such_field"].null_count == 3


def test_it_keeps_the_rules_for_steps():
    batch = pa.RecordBatch.from_pydict(columns())
    checks.check_step(made(), batch)
    checks.check_step(pinned(made(), Linear(), 3), batch)


def test_patterns_find_the_numbers_in_the_columns():
    types = {"basic": pa.struct([("age", pa.float32()), ("name", pa.string())]), "ra": pa.float64()}
    assert expand(["basic.*", "ra", "r*"], types) == ("basic.age", "ra")
    with pytest.raises(SettingsError, match=r"did you mean 'basic.age'"):
        expand(["basic.agee"], types)


def test_no_features_or_a_class_called_snapshot_are_errors():
    with pytest.raises(SettingsError):
        score("supernova", (), CLASSES)
    with pytest.raises(SettingsError):
        score("supernova", ("ra",), ["a", "snapshot"])


def test_a_feature_digest_knows_one_nan_and_the_order() -> None:
    def from_bits(bits: int) -> float:
        return float(np.array([bits], np.uint64).view(np.float64)[0])

    nans = [None, float("nan"), from_bits(0xFFF8000000000123), float("inf"), -float("inf")]
    assert len({feature_digest([1.5, value, 2.0]) for value in nans}) == 1
    assert feature_digest([1.5, 2.0]) != feature_digest([2.0, 1.5])
    assert feature_digest([1.5]) != feature_digest([1.5, None])
    assert feature_digest([0.1]) != feature_digest([float(np.float32(0.1))])
    little = hashlib.sha256(bytes.fromhex("000000000000f83f000000000000f87f")).hexdigest()
    assert feature_digest(np.array([1.5, np.nan])) == little
