"""The learner: it tests before it trains, does not depend on batches, and survives what a sky gives."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from river import naive_bayes
from sklearn.metrics import roc_auc_score

from raybroker.errors import SettingsError
from raybroker.learning.compiled import Frozen, restore
from raybroker.learning.learner import MEMBERS, Learner, Thinning

CLASSES = ("AGN", "SN")
ONLINE = ("softmax", "naive_bayes", "forest")
COLUMNS = tuple(f"f{i}" for i in range(20))


def sky(objects: int, seed: int, flip: float = 0.0) -> tuple[pa.Table, list[str], np.ndarray]:
    """Two alerts of each object. Six features tell the classes apart, each with an AUC of 0.75; units differ wildly."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.integers(0, 2, objects), 2)
    of_object = rng.normal(size=(objects, len(COLUMNS)))
    values = np.repeat(of_object, 2, axis=0) * 0.95 + 0.3 * rng.normal(size=(2 * objects, len(COLUMNS)))
    values[:, :6] += 0.95 * truth[:, None]
    values = values * np.array([1, 1e6, 30, 1, 0.01, 100] + [1e5] * 14) + np.array(
        [18, 0, 6e4, 0, 0, 5e3] + [0] * 14
    )
    values[:, 3] = np.exp(3 * values[:, 3])
    values[rng.random(values.shape) < 0.1] = np.nan
    said = np.where(rng.random(len(truth)) < flip, 1 - truth, truth)
    return to_table(values), [CLASSES[i] for i in said], truth


def to_table(values: np.ndarray) -> pa.Table:
    return pa.table(
        [pa.array(column, from_pandas=True) for column in values.T], names=list(COLUMNS[: values.shape[1]])
    )


def taught(labels: int = 100, seed: int = 1, flip: float = 0.0, members: tuple[str, ...] = ONLINE) -> Learner:
    learner = Learner("m", CLASSES, COLUMNS, members, seed=seed)
    features, said, _ = sky(labels, seed, flip)
    every_other = np.arange(0, 2 * labels, 2)
    learner.learn(features.take(every_other), said[::2])
    return learner


def auc(learner: Learner, seed: int = 99) -> float:
    features, _, truth = sky(1_000, seed)
    return float(roc_auc_score(truth, learner.predict(features).mixture[:, 1]))


@pytest.fixture(scope="module")
def learner() -> Learner:
    """Of 100 labels, with all default members; tests must not teach it."""
    return taught(members=MEMBERS)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_hundred_labels_are_enough_for_objects_never_seen(seed: int) -> None:
    features, _, truth = sky(1_000, 99)
    singles = [np.nan_to_num(features.column(i).to_numpy(), nan=0) for i in range(6)]
    assert max(roc_auc_score(truth, single) for single in singles) < 0.8
    assert auc(taught(seed=seed)) >= 0.85


def test_flipped_labels_teach_the_opposite() -> None:
    assert auc(taught(flip=1.0)) < 0.2


def test_shuffled_labels_teach_nothing() -> None:
    assert np.mean([auc(taught(seed=seed, flip=0.5)) for seed in range(4)]) == pytest.approx(0.5, abs=0.1)


def test_before_any_label_all_classes_are_equal() -> None:
    prediction = Learner("m", CLASSES, COLUMNS).predict(sky(3, 0)[0])
    assert prediction.members.shape == (len(MEMBERS), 6, 2)
    assert (prediction.members == 0.5).all()
    assert (prediction.mixture == 0.5).all()


def test_probabilities_sum_to_one(learner: Learner) -> None:
    prediction = learner.predict(sky(200, 5)[0])
    assert np.allclose(prediction.members.sum(axis=2), 1, atol=1e-12)
    assert np.allclose(prediction.mixture.sum(axis=1), 1, atol=1e-12)
    assert (prediction.members > 0).all()


def test_it_tests_before_it_trains() -> None:
    features, said, _ = sky(30, 3)
    tested, reference = (Learner("m", CLASSES, COLUMNS, ONLINE, seed=4) for _ in range(2))
    learned = tested.learn(features, said)
    for row, label in enumerate(said):
        before = reference.predict(features.slice(row, 1))
        assert np.allclose(learned.prediction.members[:, row], before.members[:, 0], atol=1e-9)
        assert np.allclose(learned.prediction.mixture[row], before.mixture[0], atol=1e-9)
        assert np.allclose(
            learned.losses[:, row], -np.log(before.members[:, 0, CLASSES.index(label)]), atol=1e-7
        )
        reference.learn(features.slice(row, 1), [label])
    assert learned.losses[:, 0] == pytest.approx(np.log(2))


def test_labels_in_one_batch_or_one_by_one_make_the_same_model() -> None:
    features, said, _ = sky(15, 3)
    together, single = Learner("m", CLASSES, COLUMNS, seed=4), Learner("m", CLASSES, COLUMNS, seed=4)
    together.learn(features, said)
    for row, label in enumerate(said):
        single.learn(features.slice(row, 1), [label])
    assert together.frozen().digest() == single.frozen().digest()


@pytest.mark.parametrize("labels", [1, 7, 100, 400])
def test_the_compiled_members_say_what_river_says(labels: int) -> None:
    learner = taught(labels)
    features, _, _ = sky(100, 8)
    rows = np.column_stack([column.to_numpy() for column in features.columns])
    compiled = learner.frozen().predict_matrix(rows)
    for i, row in enumerate(rows):
        river = learner._said(row, np.full((len(ONLINE), 2), np.nan))
        assert np.abs(river[:, 0] - compiled.members[:, i]).max() < 1e-9
        assert np.abs(learner.weights @ river[:, 0] - compiled.mixture[i]).max() < 1e-9


def test_the_compiled_forest_has_split_and_meets_missing_features() -> None:
    forest = taught(400).frozen().parts[2]
    assert (forest.feature >= 0).sum() >= 5
    assert set(forest.bayes.tolist()) == {True, False}
    assert np.isfinite(forest.predict(np.full((1, len(COLUMNS)), np.nan))).all()


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_same_bits_alone_as_in_a_batch(learner: Learner, size: int) -> None:
    features = sky(500, 6)[0]
    whole = learner.predict(features)
    parts = [learner.predict(features.slice(i, size)) for i in range(0, 1_000, size)]
    assert (np.concatenate([part.mixture for part in parts]) == whole.mixture).all()
    assert (np.concatenate([part.members for part in parts], axis=1) == whole.members).all()


def test_a_restored_learner_goes_on_bit_for_bit(learner: Learner) -> None:
    features, said, _ = sky(40, 7)
    one, other = Learner.restore(learner.snapshot()), Learner.restore(learner.snapshot())
    one.learn(features, said)
    middle = Learner.restore(other.snapshot())
    for row, label in enumerate(said):
        middle.learn(features.slice(row, 1), [label])
    assert (one.predict(features).mixture == middle.predict(features).mixture).all()
    assert one.frozen().digest() == middle.frozen().digest() != learner.frozen().digest()


def test_the_same_seed_and_order_make_the_same_model_in_every_process() -> None:
    code = "from tests.learning.test_learner import taught; print(taught(40).frozen().digest())"
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout.strip())
    assert digests == {taught(40).frozen().digest()}
    assert taught(40, seed=2).frozen().digest() not in digests


def test_a_frozen_learner_does_not_follow_later_labels(learner: Learner) -> None:
    moving = Learner.restore(learner.snapshot())
    features, said, _ = sky(40, 7)
    frozen = Frozen.restore(moving.frozen().snapshot())
    same = moving.frozen()
    before = moving.predict(features)
    moving.learn(features, said)
    assert (frozen.predict(features).mixture == before.mixture).all()
    assert (same.predict(features).mixture == before.mixture).all()
    assert (moving.predict(features).mixture != before.mixture).any()


def test_a_label_moves_the_score_of_its_alert_towards_it(learner: Learner) -> None:
    features = sky(1, 12)[0].slice(0, 1)
    for label, column in (("AGN", 0), ("SN", 1)):
        pushed = Learner.restore(learner.snapshot())
        pushed.learn(features, [label])
        assert pushed.predict(features).mixture[0, column] > learner.predict(features).mixture[0, column]


def test_the_mixture_leaves_a_member_that_loses() -> None:
    path = f"{__name__}:contrary"
    learner = taught(members=("naive_bayes", path))
    assert learner.weights[0] > 0.9
    assert learner.weights.sum() == pytest.approx(1)


class Contrary(naive_bayes.GaussianNB):  # type: ignore[misc]
    """Always wrong, and in a hurry."""

    def learn_one(self, x: dict[str, float], y: str) -> None:
        assert set(x) <= set(COLUMNS)
        super().learn_one(x, {"AGN": "SN", "SN": "AGN"}[y])


def contrary(seed: int) -> Contrary:
    return Contrary()


def test_a_users_river_model_goes_row_by_row_with_the_same_bits() -> None:
    learner = taught(30, members=("softmax", f"{__name__}:contrary"))
    frozen = Frozen.restore(learner.frozen().snapshot())
    features = sky(5, 2)[0]
    alone = [frozen.predict(features.slice(i, 1)).mixture[0] for i in range(10)]
    assert (np.array(alone) == learner.predict(features).mixture).all()


@pytest.mark.parametrize("name", ["sofmax", "no.such.module:make", "math:nothing", "random:Random"])
def test_an_unknown_member_is_named_with_what_there_is(name: str) -> None:
    with pytest.raises(SettingsError, match=name.replace(".", r"\.")):
        Learner("m", CLASSES, COLUMNS, (name,))


def test_an_unknown_class_is_refused_before_anything_is_learned(learner: Learner) -> None:
    fresh = Learner("m", CLASSES, COLUMNS)
    with pytest.raises(ValueError, match=r"no class 'AGM' \(did you mean 'AGN'\?\).*'AGN', 'SN'"):
        fresh.learn(sky(1, 0)[0], ["SN", "AGM"])
    assert fresh.learned == 0


def test_a_missing_column_is_named(learner: Learner) -> None:
    with pytest.raises(ValueError, match="needs column 'f3'"):
        learner.predict(sky(2, 0)[0].drop_columns(["f3"]))


def test_as_many_labels_as_rows() -> None:
    with pytest.raises(ValueError, match="2 rows of features for 1 labels"):
        Learner("m", CLASSES, COLUMNS).learn(sky(1, 0)[0], ["SN"])


@pytest.mark.parametrize(
    ("classes", "columns"), [(("SN",), ("a",)), (("SN", "SN"), ("a",)), (("SN", "AGN"), ())]
)
def test_too_few_classes_or_columns_are_refused(classes: tuple[str, ...], columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="needs at least"):
        Learner("m", classes, columns)


def wild(rows: int) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(rows, 8))
    values[:, 0] = np.nan  # never known
    values[:, 1] = 7.0  # constant
    values[:, 2] = np.inf
    values[::3, 3] = -np.inf
    values[::4, 4] = 1e300
    values[:, 5] *= 1e-300
    values[1:, 6] = np.nan  # known once
    return values


@pytest.mark.parametrize("rows", [1, 2, 10, 300])
def test_wild_features_do_no_harm(rows: int) -> None:
    learner = Learner("m", ("a", "b", "c"), COLUMNS[:8])
    features = to_table(wild(rows))
    said = ["ab"[i % 2] for i in range(rows)]
    learned = learner.learn(features, said)
    found = learner.predict(features)
    for values in (learned.losses, found.members, found.mixture):
        assert np.isfinite(values).all()
    assert (found.mixture[:, 2] < 0.5).all()


@pytest.mark.parametrize("labels", [1, 5, 10, 300])
def test_one_class_only_is_learned_and_the_other_stays_possible(labels: int) -> None:
    learner = Learner("m", CLASSES, COLUMNS)
    learner.learn(sky(labels, 1)[0].slice(0, labels), ["SN"] * labels)
    found = learner.predict(sky(5, 2)[0])
    assert (found.mixture[:, 1] > 0.5).all()
    assert (found.members > 1e-4).all()


def test_a_column_of_nulls_without_a_type_and_integers_are_read(learner: Learner) -> None:
    features = sky(5, 2)[0].set_column(0, "f0", pa.nulls(10)).set_column(1, "f1", pa.array(range(10)))
    assert np.isfinite(learner.predict(features).mixture).all()
    assert np.isfinite(learner.predict(features.to_batches()[0]).mixture).all()


def test_an_empty_table_gives_no_rows(learner: Learner) -> None:
    empty = sky(1, 0)[0].slice(0, 0)
    assert learner.predict(empty).mixture.shape == (0, 2)
    assert learner.predict(empty).members.shape == (len(learner.member_names), 0, 2)
    learned = Learner("m", CLASSES, COLUMNS).learn(empty, [])
    assert learned.losses.shape == (len(MEMBERS), 0)


def test_a_feature_that_comes_late_is_used() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 1_100)
    values = rng.normal(size=(1_100, 2))
    values[:, 1] = 1e5 * (rng.normal(size=1_100) + 2 * truth)
    values[:300, 1] = np.nan
    learner = Learner("m", CLASSES, COLUMNS[:2], ONLINE)
    learner.learn(to_table(values[:1_030]), [CLASSES[i] for i in truth[:1_030]])
    found = learner.predict(to_table(values[1_030:])).mixture[:, 1]
    assert roc_auc_score(truth[1_030:], found) > 0.8


def test_foreign_bytes_are_refused(learner: Learner) -> None:
    with pytest.raises(ValueError, match="not a learner's snapshot"):
        Learner.restore(learner.frozen().snapshot())
    with pytest.raises(ValueError, match="not a frozen learner"):
        Frozen.restore(learner.snapshot())


def test_thinning_lets_one_alert_per_object_and_five_days_through() -> None:
    thinning = Thinning(5)
    taken = [thinning.take("ztf:a", mjd) for mjd in (10.0, 10.0, 14.9, 15.0, 8.0, 4.9)]
    assert taken == [True, False, False, True, False, True]
    assert thinning.take("ztf:b", 10.0)
    assert thinning.take(None, 10.0)
    assert thinning.take(None, 10.0)
    thinning.forget("ztf:a", 15.0)
    assert thinning.take("ztf:a", 15.5)
    assert all(Thinning(0).take("x", 1.0) for _ in range(3))


@pytest.mark.parametrize("labels", [1, 5, 64, 300])
def test_every_label_counts_once_however_often_the_scale_was_measured(labels: int) -> None:
    counts = taught(labels, members=("naive_bayes",))._members[0].model.class_counts  # type: ignore[attr-defined]
    assert sum(counts.values()) == labels + 4  # two made-up rows for each of two classes


def test_what_is_infinite_is_not_known(learner: Learner) -> None:
    features = sky(5, 2)[0]
    without = learner.predict(features.set_column(1, "f1", pa.nulls(10, pa.float64())))
    for value in (np.inf, -np.inf, np.nan):
        found = learner.predict(features.set_column(1, "f1", pa.array([value] * 10)))
        assert (found.mixture == without.mixture).all()


def test_the_default_members_include_the_window() -> None:
    assert MEMBERS == ("softmax", "naive_bayes", "window")


def test_a_snapshot_for_workers_stays_small() -> None:
    learner = Learner("m", CLASSES, COLUMNS)
    features, said, _ = sky(500, 3)
    learner.learn(features, said, before=np.full((len(MEMBERS), 1_000, 2), 0.5))
    assert len(learner.frozen().snapshot()) < 400_000
    assert Frozen.restore(learner.frozen().snapshot()).digest() == learner.frozen().digest()


def test_whatever_scores_is_restored_by_one_function(learner: Learner) -> None:
    frozen = learner.frozen()
    assert restore(frozen.snapshot()).digest() == frozen.digest()
    assert restore(pickle.dumps(frozen)).digest() == frozen.digest()
    with pytest.raises(ValueError, match="hold a dict, not a model that scores"):
        restore(learner.snapshot())


@pytest.mark.parametrize("name", ["bagging", "patches"])
def test_more_of_rivers_ensembles_go_by_name(name: str) -> None:
    learner = taught(60, members=("softmax", name))
    again = taught(60, members=("softmax", name))
    features, _, truth = sky(50, 5)
    found = learner.predict(features)
    assert roc_auc_score(truth, found.members[1, :, 1]) > 0.6
    assert found.mixture.tobytes() == again.predict(features).mixture.tobytes()
