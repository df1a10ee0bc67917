from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from raybroker.learning import metrics
from raybroker.learning.compiled import Prediction, matrix
from raybroker.protocols import stream, streamed
from raybroker.protocols.models import BASELINE, MIXTURE, Recipe
from raybroker.protocols.stream import Due, Rules
from raybroker.protocols.tables import Labelled
from tests.protocols.tables_for_tests import small

QUICK = Recipe(("softmax", "naive_bayes"))


class Trap:
    """A learner whose features are the clock and the object: it sees what it is told when, and what it is asked."""

    weights = np.ones(1)

    def __init__(self) -> None:
        self.told: list[tuple[float, float]] = []  # (when the alert came, its object)
        self.before: list[np.ndarray] = []
        self.unseen: list[bool] = []
        self.asked: list[tuple[float, float, int]] = []  # (when, object, labels known by then)

    def learn(self, features, labels, *, before=None, picks=None, unseen=None):
        self.told += [tuple(row) for row in matrix(features, ("clock", "thing"))]
        self.before += list(np.swapaxes(before, 0, 1))
        self.unseen += unseen

    def frozen(self):
        return self

    def predict_matrix(self, features):
        self.asked += [(row[0], row[1], len(self.told)) for row in features]
        said = np.stack([np.full(len(features), 0.25), np.full(len(features), 0.75)], axis=1)
        said[:, 0] += features[:, 0] * 1e-9  # what was said of an alert names it
        return Prediction(said[None], said)


def clocked(objects: int = 40) -> Labelled:
    """A table whose features are its own times and objects."""
    data = small(objects)
    features = pa.table({"clock": data.times, "thing": data.objects.astype(float)})
    return Labelled(**{**vars(data), "features": features}).in_time(np.random.default_rng(0))


@pytest.mark.parametrize("delay", [0.0, 2.0, 14.0, 30.0])
def test_no_label_is_learned_before_its_delay(delay):
    data, trap = clocked(), Trap()
    labels = stream.due(data, Rules(delay), np.random.default_rng(0))
    stream.listen(data, trap, labels, 0)
    assert len(trap.asked) == len(data)
    for when, _, known in trap.asked:
        assert all(came + delay < when for came, _ in trap.told[:known]), "a label was used before its time"
        late = [came for came, _ in trap.told if came + delay < when]
        assert len(late) == known, "a label that was due was not learned"


def test_every_alert_is_asked_once_in_order_of_time():
    data, trap = clocked(), Trap()
    stream.listen(data, trap, stream.due(data, Rules(14.0), np.random.default_rng(0)), 0)
    assert [when for when, _, _ in trap.asked] == sorted(data.times.tolist())


def test_a_label_is_tested_on_what_was_said_when_its_alert_came():
    data, trap = clocked(), Trap()
    run = stream.listen(data, trap, stream.due(data, Rules(14.0), np.random.default_rng(0)), 0)
    rows = {
        (when, thing): row for row, (when, thing) in enumerate(zip(data.times, data.objects, strict=True))
    }
    for told, before, unseen in zip(trap.told, trap.before, trap.unseen, strict=True):
        row = rows[told]
        assert before.tolist() == run.members[:, row].tolist()
        assert unseen == run.unseen[row]


@pytest.mark.parametrize("delay", [2.0, 14.0])
def test_an_object_is_unseen_until_one_of_its_labels_was_learned(delay):
    data, trap = clocked(), Trap()
    run = stream.listen(data, trap, stream.due(data, Rules(delay), np.random.default_rng(0)), 0)
    for row, (_, thing, known) in enumerate(trap.asked):
        assert run.unseen[row] == (thing not in {other for _, other in trap.told[:known]})
    assert run.unseen.any()
    assert not run.unseen.all()


def test_first_alerts_are_one_for_each_object():
    run = stream.run(small(40), QUICK, Rules(), 0)
    assert run.first.sum() == 40
    assert run.unseen[run.first].all()


def test_labels_are_thinned_by_object():
    data = clocked()
    labels = stream.due(data, Rules(0.0, thinning=5.0), np.random.default_rng(0))
    for thing in range(40):
        times = data.times[labels.rows[data.objects[labels.rows] == thing]]
        assert (np.diff(times) >= 5.0).all()
    assert len(labels.rows) < len(data)


def test_a_share_of_the_objects_never_gets_a_label():
    data = clocked()
    labels = stream.due(data, Rules(0.0, never=0.5), np.random.default_rng(0))
    assert len(np.unique(data.objects[labels.rows])) == 20


def test_the_forest_that_we_are_held_against_knows_no_label_too_early(monkeypatch):
    data, seen = clocked(), []

    def spy(features, labels, classes, seed):
        seen.append(("fit", features[:, 0].max()))
        return lambda asked: seen.append(("asked", asked[:, 0].min())) or np.full((len(asked), 2), 0.5)

    monkeypatch.setattr(stream.models, "forest", spy)
    labels = stream.due(data, Rules(14.0), np.random.default_rng(0))
    _, fitted = stream.weekly(data, np.stack([data.times, data.times], axis=1), labels, 0)
    assert fitted.any()
    for (_, newest), (_, oldest) in zip(seen[::2], seen[1::2], strict=True):
        assert newest + 14.0 < oldest


def test_a_label_due_at_the_moment_of_an_alert_is_learned_after_it():
    steps = list(stream.steps(np.array([0.0, 1.0, 1.0, 2.0]), Due(np.array([0, 1]), np.array([1.0, 2.5]))))
    assert [(rows.tolist(), alerts.start, alerts.stop) for rows, alerts in steps] == [([], 0, 3), ([0], 3, 4)]


def test_the_same_seed_gives_the_same_bits_and_another_another_order():
    one, again, other = (stream.run(small(30), QUICK, Rules(), seed) for seed in (1, 1, 2))
    assert one.mixture.tobytes() == again.mixture.tobytes()
    assert one.baseline.tobytes() == again.baseline.tobytes()
    assert one.baseline.tobytes() != other.baseline.tobytes()


def test_what_can_be_learned_is_learned_and_shuffled_labels_are_not():
    data = small(100, told=2.0)
    told, dealt = (
        stream.run(d, QUICK, Rules(2.0), 0) for d in (data, data.shuffled(np.random.default_rng(5)))
    )
    found = [
        metrics.class_auc(
            run.data.labels[run.scope("unseen objects")], run.mixture[run.scope("unseen objects")]
        )
        for run in (told, dealt)
    ]
    assert found[0] > 0.75
    assert found[1] < 0.65


def test_the_report_puts_unseen_objects_first_and_pairs_with_the_forest():
    rules = Rules(2.0)
    made = streamed.protocol(small(), QUICK, rules, (0, 1))
    assert next(sheet.title for sheet in made.sheets) == "Stream, unseen objects"
    rows = {row[0]: row[1:] for row in made.sheets[0].rows}
    assert {MIXTURE, BASELINE, *QUICK.names} <= set(rows)
    runs = [stream.run(small(), QUICK, rules, seed) for seed in (0, 1)]
    gaps = []
    for run in runs:
        mask = run.scope("unseen objects")
        ours, theirs = (
            metrics.class_auc(run.data.labels[mask], said[mask]) for said in (run.mixture, run.baseline)
        )
        gaps.append(ours - theirs)
    assert made.metrics["stream.unseen_objects.mixture_less_forest.auc.mean"] == pytest.approx(np.mean(gaps))
    assert made.metrics["stream.unseen_objects.mixture_less_forest.auc.worst"] == pytest.approx(min(gaps))
