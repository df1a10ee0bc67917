"""What was said before counts: weights, calibration and a change of the stream, by the delayed test."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from raybroker.learning.compiled import matrix
from raybroker.learning.learner import Learner
from tests.learning.test_learner import CLASSES, COLUMNS, sky


def delayed(rows: int, truth: list[str], sure: tuple[float, ...]) -> np.ndarray:
    """What members said before: member m gave the right class `sure[m]`."""
    right = np.array([CLASSES.index(label) for label in truth])
    said = np.empty((len(sure), rows, 2))
    for m, share in enumerate(sure):
        said[m, np.arange(rows), right] = share
        said[m, np.arange(rows), 1 - right] = 1 - share
    return said


PAIR = ("softmax", "naive_bayes")


def test_what_was_said_before_is_what_counts() -> None:
    features, said, _ = sky(15, 3)
    learner = Learner("m", CLASSES, COLUMNS, PAIR)
    learned = learner.learn(features, said, before=delayed(30, said, (0.9, 0.4)))
    assert np.allclose(learned.losses, -np.log([[0.9], [0.4]]))
    assert learner.weights[0] > 0.8 > 0.2 > learner.weights[1]


def test_a_member_that_adds_what_the_others_lack_keeps_its_share() -> None:
    """Two that say the same share what one alone would have; who is right where they are wrong has more than they."""
    features, truth, _ = sky(100, 3)
    said = delayed(200, truth, (0.8, 0.8, 0.7))
    wrong = np.arange(200) % 4 == 0
    said[:2, wrong] = said[:2, wrong, ::-1]
    learner = Learner("m", CLASSES, COLUMNS, (*PAIR, "forest"))
    learner.learn(features, truth, before=said)
    assert learner.weights[2] > learner.weights[0] == pytest.approx(learner.weights[1])
    assert np.log(said[0, np.arange(200), [CLASSES.index(t) for t in truth]]).mean() < 0
    assert learner.weights.min() > 0.001 / 3


def test_a_member_that_was_not_asked_before_is_asked_now() -> None:
    features, said, _ = sky(15, 3)
    before = delayed(30, said, (0.9, 0.4))
    before[1, 20:] = np.nan
    told, now = (Learner("m", CLASSES, COLUMNS, PAIR) for _ in range(2))
    learned, tested = told.learn(features, said, before=before), now.learn(features, said)
    assert np.allclose(learned.prediction.members[0], before[0])
    assert np.allclose(learned.prediction.members[1, :20], before[1, :20])
    assert (learned.prediction.members[1, 20:] == tested.prediction.members[1, 20:]).all()


def test_objects_that_were_learned_before_do_not_count() -> None:
    """Of objects it knows, a member that memorizes says wonders."""
    features, said, _ = sky(50, 3)
    known = np.arange(100) % 2 == 1
    before = delayed(100, said, (0.6, 0.5))
    before[:, known] = delayed(100, said, (0.5, 0.99))[:, known]
    learner, flattered = (Learner("m", CLASSES, COLUMNS, PAIR) for _ in range(2))
    learner.learn(features, said, before=before, picks=[True] * 100, unseen=(~known).tolist())
    flattered.learn(features, said, before=before, picks=[True] * 100)
    assert learner.weights[0] > 0.55
    assert flattered.weights[1] > 0.55
    assert len(learner._calibrator.picks) == 50


def test_calibration_learns_from_random_picks_only() -> None:
    features, said, _ = sky(50, 3)
    before = delayed(100, said, (0.55, 0.55))
    picked, chosen = (Learner("m", CLASSES, COLUMNS, PAIR) for _ in range(2))
    picked.learn(features, said, before=before, picks=[True] * 100)
    chosen.learn(features, said, before=before, picks=[i < 29 for i in range(100)])
    assert chosen.frozen().calibration.slope == 1
    assert picked.frozen().calibration.slope > 1.2  # it was always right, and said so too softly
    assert picked.frozen().digest() != chosen.frozen().digest()
    one, other = picked.predict(features), chosen.predict(features)
    assert (one.members == other.members).all()
    assert (np.argsort(one.mixture[:, 1]) == np.argsort(other.mixture[:, 1])).all()


@pytest.mark.parametrize(
    "wrong",
    [{"before": np.zeros((3, 2, 2))}, {"picks": [True]}, {"unseen": [True, False, True]}],
)
def test_what_does_not_fit_the_rows_is_refused_before_anything_is_learned(wrong: dict[str, object]) -> None:
    learner = Learner("m", CLASSES, COLUMNS, PAIR)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        learner.learn(sky(1, 0)[0], ["SN", "SN"], **wrong)  # type: ignore[arg-type]
    assert learner.learned == 0


def turned_sky() -> tuple[pa.Table, list[str], np.ndarray]:
    """300 labels, then 130 of a sky where the classes have changed places; what was said before knew the old sky."""
    old, said, _ = sky(150, 3)
    new, other, _ = sky(65, 4)
    flipped = ["AGN" if label == "SN" else "SN" for label in other]
    before = np.concatenate([delayed(300, said, (0.8, 0.8)), delayed(130, flipped, (0.2, 0.2))], axis=1)
    return pa.concat_tables([old, new]), said + flipped, before


def test_after_a_change_of_the_stream_the_window_follows_what_is_new() -> None:
    features, said, before = turned_sky()
    learner = Learner("m", CLASSES, COLUMNS, ("softmax", "window"))
    learner.learn(features.slice(0, 300), said[:300], before=before[:, :300])
    assert learner._change.since == 0
    learner.learn(features.slice(300), said[300:], before=before[:, 300:])
    assert 290 <= learner._change.since <= 300
    test, truth, _ = sky(200, 8)
    found = learner.predict(test).members[1, :, 1]
    assert roc_auc_score(np.array(truth) == "SN", found) < 0.47  # in the new sky they changed places
    learner._change.since = 0
    window = learner._members[1]
    window.change = 0  # had it not noticed
    window._refit_here()
    assert (
        roc_auc_score(np.array(truth) == "SN", window.compile().predict(_scaled(learner, test))[:, 1]) > 0.6
    )


def _scaled(learner: Learner, features: pa.Table) -> np.ndarray:
    return learner._scale.apply(matrix(features, COLUMNS))


def test_a_loss_that_falls_is_no_change() -> None:
    features, said, before = turned_sky()
    learner = Learner("m", CLASSES, COLUMNS, ("softmax", "window"))
    learner.learn(features, said, before=before[:, ::-1])
    assert learner._change.since == 0


def test_everything_goes_on_bit_for_bit_after_a_change_and_with_calibration() -> None:
    features, said, before = turned_sky()
    one = Learner("m", CLASSES, COLUMNS, ("softmax", "window"), seed=2)
    picks = [i % 2 == 0 for i in range(430)]
    other = one
    for start in range(0, 430, 86):
        part = slice(start, start + 86)
        lesson = {"before": before[:, part], "picks": picks[part]}
        one.learn(features.slice(start, 86), said[part], **lesson)
        if other is not one:
            other.learn(features.slice(start, 86), said[part], **lesson)
        other = Learner.restore(other.snapshot())
    assert one._change.since > 0
    assert one.frozen().calibration.slope != 1
    assert one.frozen().digest() == other.frozen().digest()
    test = sky(20, 9)[0]
    assert one.predict(test).mixture.tobytes() == other.predict(test).mixture.tobytes()
