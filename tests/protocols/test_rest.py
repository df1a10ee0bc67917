"""Anomaly, ranking, drift."""

from __future__ import annotations

import numpy as np
import pytest

from raybroker.learning.compiled import Prediction
from raybroker.protocols import anomaly, drift, ranking, stream
from raybroker.protocols.models import Recipe
from raybroker.protocols.stream import Rules
from tests.protocols.tables_for_tests import rows, small

QUICK = Recipe(("softmax", "naive_bayes"))


class Sure:
    """Looks at the rows with the highest `rise` first, whatever it is told; remembers what it was told."""

    def __init__(self) -> None:
        self.told, self.grown = [], 0

    def background(self, features):
        self.grown = features.num_rows

    def learn(self, features, labels, *, before=None, picks=None, unseen=None):
        self.told += labels

    def frozen(self):
        return self

    def predict_matrix(self, features):
        said = np.stack([features[:, 0], -features[:, 0]], axis=1)
        return Prediction(said[None], said)


def test_the_loop_looks_at_the_likeliest_that_is_left_and_is_told_what_it_was():
    data, learner = anomaly.sample(small(), 0), Sure()
    hits = anomaly.loop(data, learner, 20)
    order = np.argsort(-data.features["rise"].to_numpy())[:20]
    assert hits == (data.labels[order] == 0).tolist()
    assert learner.told == data.said(order)
    assert learner.grown == len(data) == 60


def test_a_sample_has_the_newest_alert_of_each_object():
    data, made = small(), anomaly.sample(small(), 3)
    newest = [data.times[data.objects == thing].max() for thing in range(60)]
    assert sorted(made.times.tolist()) == sorted(newest)


def test_the_strong_baseline_beats_the_isolation_forest_on_what_can_be_told():
    data = anomaly.sample(small(300, told=3.0), 0)
    order = anomaly.isolation(np.stack([data.features[n].to_numpy() for n in data.columns], axis=1), 0)
    hits = anomaly.greedy(data, order, 60, 0)
    assert len(hits) == 60
    assert sum(hits) > (data.labels[order[:60]] == 0).sum() + 10


def test_the_anomaly_report_counts_hits():
    made = anomaly.protocol(small(), (0, 1), makes=[lambda data, seed: Sure()])
    assert [row[0] for row in made.sheets[0].rows][:3] == [anomaly.OURS, anomaly.ISOLATION, anomaly.GREEDY]
    assert made.metrics["anomaly.the_loop.hits_10"] <= 10


def test_a_perfect_queue_has_area_one_and_a_random_one_about_a_half():
    wanted = np.arange(1000) < 20
    assert ranking.area(ranking.recall_at(wanted, -np.arange(1000.0)), 20) == pytest.approx(1.0)
    drawn = np.random.default_rng(0).random(1000)
    assert ranking.area(ranking.recall_at(wanted, drawn), 20) == pytest.approx(0.5, abs=0.12)
    assert ranking.recall_at(wanted, -np.arange(1000.0))[:2].tolist() == [0.05, 0.1]


def test_the_rank_rules():
    data = small()
    score = np.arange(len(data), dtype=float)[::-1].copy()
    for rule, wanted in (("mean", 297.0), ("latest", 295.0), ("max", 299.0)):
        objects, made = ranking.of_objects(data, score, rule)
        assert objects[0] == 0
        assert made[0] == wanted


def test_the_queue_is_made_by_models_that_never_saw_the_object(monkeypatch):
    asked = []
    whole = ranking.holdout.ask

    def spy(data, split, *rest):
        asked.append((set(data.objects[split.train].tolist()), set(data.objects[split.test].tolist())))
        return whole(data, split, *rest)

    monkeypatch.setattr(ranking.holdout, "ask", spy)
    made = ranking.protocol(small(told=2.5), QUICK, (0,))
    assert all(not train & test for train, test in asked)
    assert set.union(*(test for _, test in asked)) == set(range(60))
    assert made.metrics["ranking.mixture.area"] > 0.8


@pytest.mark.parametrize("seed", range(4))
def test_a_swap_exchanges_the_classes_from_a_day_of_the_middle_third_on(seed):
    data = small()
    made, edge = drift.changed(data, drift.SWAP, seed)
    plain = data.in_time(np.random.default_rng(seed))
    assert made.labels[:edge].tolist() == plain.labels[:edge].tolist()
    assert made.labels[edge:].tolist() == (1 - plain.labels[edge:]).tolist()
    days = plain.times[-1] - plain.times[0]
    assert days / 3 <= plain.times[edge] - plain.times[0] <= days * 2 / 3 + np.diff(plain.times).max()


def test_every_seed_draws_its_day_and_the_middle_of_the_days_is_the_change_where_time_is():
    assert len({drift.changed(small(), drift.SWAP, seed)[1] for seed in range(4)}) == 4
    made, edge = drift.changed(small(), drift.TIME, 3)
    middle = (made.times[0] + made.times[-1]) / 2
    assert made.times[edge - 1] < middle <= made.times[edge]


@pytest.mark.parametrize("values", [["g", "r", "g"] * 100, [0.1, 5.0, 0.2] * 100])
def test_a_change_by_column_brings_the_other_side_later(values):
    data = small()
    data = type(data)(**{**vars(data), "change": tuple(map(str, values))})
    made, edge = drift.changed(data, "band", 0)
    assert len(set(made.change[:edge]) & set(made.change[edge:])) == 0
    assert (np.diff(made.times) >= 0).all()
    assert edge == 200


def test_labels_are_counted_from_the_change():
    made, edge = drift.changed(small(), drift.SWAP, 0)
    run = stream.listen(
        made, QUICK.learner(made, 0), stream.due(made, Rules(2.0), np.random.default_rng(0)), 0
    )
    count = drift.since(run, edge)
    assert (count[:edge] == -1).all()
    assert count[edge] == 0
    late = run.data.times[run.label_rows]
    for row in (edge + 10, len(made) - 1):
        due = (late + 2.0 < made.times[row]) & (run.label_rows >= edge)
        assert count[row] == due.sum()


def test_the_drift_report_has_every_member():
    made = drift.protocol(small(250, told=2.5), QUICK, Rules(10.0), (0,))
    unseen, everything = made.sheets
    assert unseen.columns == ("labels", "alerts", "mixture", "random forest", *QUICK.names)
    before, after = (made.metrics[f"drift.mixture.auc_{part}"] for part in ("before", "0_to_50"))
    assert before > 0.7 > after
    alerts = [{row[0]: int(row[1]) for row in sheet.rows} for sheet in (unseen, everything)]
    assert 30 <= alerts[0]["before"] < alerts[1]["before"]
    assert made.metrics["drift.all_alerts.mixture.auc_before"] > 0.7


def test_tables_of_tests_are_what_they_say():
    assert rows().num_rows == 300
