from __future__ import annotations

import numpy as np
import pytest

from raybroker.protocols import holdout
from raybroker.protocols.holdout import Split
from raybroker.protocols.models import Recipe
from tests.protocols.tables_for_tests import small

QUICK = Recipe(("softmax", "naive_bayes"))


@pytest.mark.parametrize("way", ["object", "time"])
@pytest.mark.parametrize("seed", range(3))
def test_no_object_is_on_both_sides(way, seed):
    for rows, split in holdout.splits(small(), way, (seed,)):
        assert not set(rows.objects[split.train]) & set(rows.objects[split.test])
        assert len(split.test) > 20


def test_by_time_nothing_is_learned_from_after_the_edge():
    for rows, split in holdout.splits(small(), "time", (0,)):
        assert rows.times[split.train].max() < rows.times[split.test].min()


def test_every_class_is_on_both_sides():
    for rows, split in holdout.splits(small(), "object", (0, 1, 2)):
        assert set(rows.labels[split.train]) == set(rows.labels[split.test]) == {0, 1}


def test_asking_about_what_was_learned_is_refused():
    data = small()
    rows = np.arange(len(data))
    with pytest.raises(ValueError, match="both learned from and asked about"):
        holdout.ask(data, Split(rows, rows[:50]), QUICK, 5.0, 14.0, 0)
    mixed = Split(rows[data.objects != 3], rows[np.isin(data.objects, (3, 4))])
    with pytest.raises(ValueError, match="o004"):
        holdout.ask(data, mixed, QUICK, 5.0, 14.0, 0)


def test_an_object_is_no_help_for_another():
    """`mood` names the object: on a split by alert a forest tells every class by it, by object it tells nothing."""
    made = holdout.protocol(small(80, told=0.0), QUICK, (0, 1, 2))
    for model in ("mixture", "random_forest"):
        assert 0.3 < made.metrics[f"holdout.object.{model}.auc"] < 0.7


def test_what_can_be_learned_is_learned():
    made = holdout.protocol(small(100, told=2.5), QUICK, (0,))
    assert made.metrics["holdout.object.mixture.auc"] > 0.8
    assert made.metrics["holdout.time.mixture.auc"] > 0.8
    assert [sheet.title for sheet in made.sheets] == ["Hold-out by object", "Hold-out by time"]


def test_a_table_without_time_has_one_hold_out():
    data = small()
    data = type(data)(**{**vars(data), "times": np.full(len(data), np.nan)})
    assert [sheet.title for sheet in holdout.protocol(data, QUICK, (0,)).sheets] == ["Hold-out by object"]
