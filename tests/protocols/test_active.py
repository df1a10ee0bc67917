from __future__ import annotations

import numpy as np
import pytest

from raybroker.learning import strategies
from raybroker.protocols import active
from raybroker.protocols.active import Wish
from raybroker.protocols.findings import Line
from raybroker.protocols.models import Recipe
from tests.protocols.tables_for_tests import small

QUICK = Recipe(("softmax", "naive_bayes"))


def test_objects_asked_about_are_in_neither_pool_nor_start():
    made = active.field(small(), 0.0, 0)
    learned = set(made.data.objects[np.concatenate([made.pool, made.start])].tolist())
    assert not learned & set(made.data.objects[made.test].tolist())


def test_the_pool_has_one_alert_of_an_object():
    made = active.field(small(), 0.0, 0)
    objects = made.data.objects[np.concatenate([made.pool, made.start])]
    assert len(set(objects.tolist())) == len(objects)


@pytest.mark.parametrize("share", [0.1, 0.2])
def test_noise_changes_the_answers_of_some_objects_and_never_the_truth(share):
    data = small(400)
    clean, noisy = active.field(data, 0.0, 4), active.field(data, share, 4)
    assert clean.truth.tolist() == noisy.truth.tolist() == clean.data.labels.tolist()
    wrong = noisy.data.labels != noisy.truth
    assert wrong.mean() == pytest.approx(share, abs=0.05)
    assert all(len(set(wrong[noisy.data.objects == thing])) == 1 for thing in range(400))
    assert noisy.start.tolist() == clean.start.tolist()


def test_a_strategy_sees_no_labels_and_all_have_the_same_start(monkeypatch):
    seen = []

    def trap(pool, n, rng):
        assert not any("label" in name or "truth" in name for name in dir(pool))
        assert set(pool.features.column_names) == {"rise", "noise", "mood"}
        seen.append((pool.mixture.copy(), pool.alert_ids))
        return np.arange(n)

    monkeypatch.setitem(strategies.BUILT_IN, "trap", trap)
    made = active.field(small(), 0.0, 0)
    wish = Wish(labels=30)
    first = [active.learn(made, QUICK, name, wish, 0)[0] for name in ("random", "trap")]
    assert first[0] == first[1]
    assert len(seen[0][1]) - len(seen[1][1]) == wish.batch


def test_labels_to_target():
    line = Line("margin", (10.0, 20.0, 30.0), (0.5, 0.7, 0.6))
    assert active.labels_to(line, 0.65) == 20.0
    assert np.isnan(active.labels_to(line, 0.8))


def test_the_start_has_two_classes():
    data = small()
    rows = np.concatenate([np.flatnonzero(data.labels == 1), np.flatnonzero(data.labels == 0)])
    assert set(data.labels[active.first_labels(data, rows)]) == {0, 1}


def test_the_report_compares_with_random():
    made = active.protocol(small(), QUICK, (0,), Wish(("margin",), (0.0,), 30))
    assert [row[0] for row in made.sheets[0].rows] == ["random", "margin"]
    assert made.sheets[0].rows[0][3] == "+0.000 ± 0.000"
    assert len(made.plots[0].lines[0].x) == 3
