"""The anomaly learner: it goes where the labels say, is what its background and labels are, and survives bad columns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pytest
from coniferest.isoforest import IsolationForest
from coniferest.pineforest import PineForest
from pyarrow import csv

from raybroker import checks
from raybroker.learning import compiled, outliers
from raybroker.learning.grove import EDGE, Outliers, Ranks
from raybroker.learning.outliers import CLASSES, OutlierLearner
from tests.conftest import DATA

COLUMNS = ("a", "b", "c")


def to_table(values: np.ndarray, columns: Sequence[str] = COLUMNS) -> pa.Table:
    return pa.table([pa.array(column, from_pandas=True) for column in values.T], names=list(columns))


def sky(rows: int = 600, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """A cloud with a long tail of junk on one side, and 2 % of wanted ones, close together on the other side."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, 3))
    junk, wanted = np.arange(rows) % 10 == 1, np.arange(rows) % 50 == 0
    values[junk] += rng.exponential(8, (junk.sum(), 3))
    values[wanted] = [-2.2, -2.2, 0] + 0.2 * rng.normal(size=(wanted.sum(), 3))
    return to_table(values), wanted


def grown(
    members: Sequence[str] = ("aad",), rows: int = 600, columns: Sequence[str] = COLUMNS, seed: int = 1
) -> OutlierLearner:
    learner = OutlierLearner("odd", CLASSES, columns, members, seed=seed)
    learner.background(sky(rows)[0])
    return learner


def taught(
    members: Sequence[str] = ("aad",), wanted: Sequence[int] = (0, 50), other: Sequence[int] = (1, 11, 2, 3)
) -> OutlierLearner:
    learner = grown(members)
    learner.learn(sky()[0].take([*wanted, *other]), ["interesting"] * len(wanted) + ["ordinary"] * len(other))
    return learner


def said(learner: OutlierLearner, table: pa.Table) -> np.ndarray:
    return learner.predict(table).mixture[:, 0]


def hits(learner: OutlierLearner, table: pa.Table, wanted: np.ndarray, looks: int) -> int:
    """Ask the top one not asked yet, answer, learn."""
    asked: list[int] = []
    for _ in range(looks):
        utility = said(learner, table)
        utility[asked] = -1
        asked.append(int(np.argmax(utility)))
        learner.learn(table.slice(asked[-1], 1), [CLASSES[0] if wanted[asked[-1]] else CLASSES[1]])
    return int(wanted[asked].sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_it_finds_what_an_isolation_forest_does_not(seed: int) -> None:
    table, wanted = sky()
    learner = OutlierLearner("odd", CLASSES, COLUMNS, seed=seed)
    learner.background(table)
    alone = np.argsort(-said(learner, table), kind="stable")[:20]
    assert wanted[alone].sum() == 0
    assert hits(learner, table, wanted, 20) >= 6


def kilonovae() -> tuple[pa.Table, np.ndarray]:
    """Simulated ZTF transients: one in thirty, and one in six of the kilonovae."""
    file = DATA / "labelled" / "kilonova_simulated_ztf.csv.gz"
    if not file.exists():
        pytest.skip(f"no survey data at {DATA} (set RAYBROKER_DATA)")
    table = csv.read_csv(file)
    wanted, row = table.column("type").to_numpy() == 51, np.arange(table.num_rows)
    kept = np.flatnonzero(np.where(wanted, row % 6 == 0, row % 30 == 0))
    return table.drop_columns(["SNID", "type"]).take(kept), wanted[kept]


def test_it_finds_kilonovae_where_an_isolation_forest_finds_few() -> None:
    table, wanted = kilonovae()
    learner = OutlierLearner("kilonova", CLASSES, table.column_names, seed=0)
    learner.background(table)
    alone = int(wanted[np.argsort(-said(learner, table), kind="stable")[:40]].sum())
    assert alone <= 2
    assert hits(learner, table, wanted, 40) >= alone + 15


def test_without_labels_it_is_the_isolation_forest() -> None:
    table, _ = sky()
    rows = compiled.matrix(table, COLUMNS)
    forest = IsolationForest(n_jobs=1, random_seed=1).fit(rows)
    alone = set(np.argsort(forest.score_samples(rows))[:60].tolist())
    assert len(alone & set(np.argsort(-said(grown(), table))[:60].tolist())) > 40


def test_before_a_background_it_knows_nothing() -> None:
    learner = OutlierLearner("odd", CLASSES, COLUMNS)
    prediction = learner.predict(sky()[0])
    assert prediction.members.shape == (1, 600, 2)
    assert (prediction.members == 0.5).all()
    assert (prediction.mixture == 0.5).all()
    assert learner.sample is None
    assert learner.reference == ""


def test_labels_before_the_background_are_learned_with_it() -> None:
    early, late = OutlierLearner("odd", CLASSES, COLUMNS, seed=1), grown()
    table, lesson = sky()[0], ["interesting", "ordinary"]
    losses = early.learn(table.take([0, 1]), lesson).losses
    assert losses == pytest.approx(np.log(2))
    early.background(table)
    late.learn(table.take([0, 1]), lesson)
    assert early.frozen().digest() == late.frozen().digest()


@pytest.mark.parametrize("members", [["aad"], ["pine"]])
def test_the_compiled_trees_say_what_coniferest_says(members: list[str]) -> None:
    learner, table = taught(members), sky()[0]
    rows = compiled.matrix(table, COLUMNS)
    known, labels = rows[[0, 50, 1, 11, 2, 3]], np.array([-1, -1, 1, 1, 1, 1])
    if members == ["aad"]:
        forest = outliers.aad_forest(rows, known, labels, 1)
    else:
        own = {
            "n_trees": outliers.TREES,
            "n_spare_trees": outliers.SPARE_TREES,
            "n_jobs": 1,
            "random_seed": 1,
        }
        forest = PineForest(**own).fit_known(rows, known, labels)
    wanted = forest.score_samples(rows)
    found = learner.frozen().trees.scores(rows)  # type: ignore[union-attr]
    assert np.ptp(wanted) > 0.1
    assert np.abs(found - wanted).max() < 1e-9


@pytest.mark.parametrize("size", [1, 7, 64, 65])
def test_same_bits_alone_as_in_a_batch(size: int) -> None:
    frozen, table = taught().frozen(), sky()[0]
    whole = frozen.predict(table).mixture
    pieces = [frozen.predict(table.slice(i, size)).mixture for i in range(0, 600, size)]
    assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_the_top_keeps_its_order_as_float32() -> None:
    scores = np.random.default_rng(0).exponential(size=10_000)
    ranks = Ranks.of(scores)
    beyond = np.linspace(scores.min() - 3, scores.max() + 3, 1_000)
    for ascending in (np.sort(scores)[-256:], beyond):
        found = ranks.probabilities(ascending)
        assert (np.diff(found[:, 0].astype(np.float32)) > 0).all()
        assert (np.diff(found[:, 1].astype(np.float32)) < 0).all()
        assert ((found > 0) & (found < 1)).all()
        assert np.allclose(found.sum(axis=1), 1, atol=1e-15)
    assert len(ranks.knots) <= 1_000


def test_a_probability_is_the_share_of_the_background_that_is_less_anomalous() -> None:
    found = Ranks.of(np.arange(100.0)).probabilities(np.array([0.0, 49.5, 99.0]))[:, 0]
    assert found == pytest.approx([0.005, 0.5, 0.995], abs=EDGE)
    assert Ranks.of(np.array([1.0, 1.0, 2.0, 2.0])).shares == pytest.approx([0.25, 0.75], abs=EDGE)


def test_a_background_of_equal_scores_still_has_an_order() -> None:
    found = Ranks.of(np.full(9, 3.0)).probabilities(np.array([2.0, 3.0, 4.0]))[:, 0]
    assert found[0] < found[1] < found[2]
    assert found[1] == pytest.approx(0.5)


@pytest.mark.parametrize("members", [["aad"], ["pine"]])
def test_what_was_called_ordinary_falls_and_what_was_called_interesting_rises(members: list[str]) -> None:
    table = sky()[0]
    learner = grown(members)
    top = int(np.argmax(said(learner, table)))
    first = said(learner, table)
    learner.learn(table.take([0, top]), ["interesting", "ordinary"])
    assert said(learner, table)[top] < first[top]
    assert said(learner, table)[100] > first[100]  # wanted too, and not labelled


def test_one_alert_called_both_ways_is_borne() -> None:
    learner, table = grown(), sky()[0]
    learner.learn(table.take([0, 0, 0, 0]), ["interesting", *["ordinary"] * 3])
    assert np.isfinite(said(learner, table)).all()


@pytest.mark.parametrize("label", CLASSES)
@pytest.mark.parametrize("members", [["aad"], ["pine"]])
def test_one_class_only_is_learned(members: list[str], label: str) -> None:
    learner, table = grown(members), sky()[0]
    learner.learn(table.slice(0, 5), [label] * 5)
    found = said(learner, table)
    assert np.isfinite(found).all()
    assert len(np.unique(found)) > 10


@pytest.mark.parametrize("members", [["aad"], ["pine"]])
def test_labels_in_one_batch_or_one_by_one_make_the_same_model(members: list[str]) -> None:
    table, labels = sky()[0].slice(0, 6), ["interesting", *["ordinary"] * 5]
    together, single = grown(members), grown(members)
    whole = together.learn(table, labels)
    alone = [single.learn(table.slice(i, 1), [label]) for i, label in enumerate(labels)]
    assert together.frozen().digest() == single.frozen().digest()
    assert np.concatenate([one.losses for one in alone], axis=1).tobytes() == whole.losses.tobytes()
    assert np.concatenate([one.mixture_losses for one in alone]).tobytes() == whole.mixture_losses.tobytes()


def test_it_tests_before_it_trains() -> None:
    learner, table = grown(), sky()[0]
    before = learner.predict(table.slice(7, 1))
    learned = learner.learn(table.slice(7, 1), ["ordinary"])
    assert learned.prediction.mixture.tobytes() == before.mixture.tobytes()
    assert learned.losses[0, 0] == -np.log(before.mixture[0, 1])
    assert learned.mixture_losses[0] == learned.losses[0, 0]


def test_what_was_said_when_it_was_asked_is_what_is_judged() -> None:
    learner, other, table = grown(), grown(), sky()[0].slice(0, 2)
    before = np.array([[[0.25, 0.75], [np.nan, np.nan]]])
    learned = learner.learn(table, ["interesting", "ordinary"], before=before, picks=[True, False])
    now = other.learn(table, ["interesting", "ordinary"])
    assert learned.losses[0, 0] == -np.log(0.25)
    assert learned.losses[0, 1] == now.losses[0, 1]
    assert learner.frozen().digest() == other.frozen().digest()
    with pytest.raises(ValueError, match=r"`before` has shape \(1, 1, 2\), not \(1, 2, 2\)"):
        learner.learn(table, ["ordinary"] * 2, before=before[:, :1])


@pytest.mark.parametrize("members", [["aad"], ["pine"]])
def test_a_restored_learner_goes_on_bit_for_bit(members: list[str]) -> None:
    learner, table = taught(members), sky()[0]
    again = OutlierLearner.restore(learner.snapshot())
    for each in (learner, again):
        each.learn(table.slice(20, 3), ["ordinary"] * 3)
    assert again.learned == learner.learned == 9
    assert again.frozen().digest() == learner.frozen().digest()


def test_the_kept_sample_makes_the_same_forest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outliers, "BACKGROUND", 400)
    learner, again = grown(), OutlierLearner("odd", CLASSES, COLUMNS, seed=1)
    assert learner.sample is not None
    assert learner.sample.num_rows == 400
    again.background(learner.sample)
    assert again.reference == learner.reference
    assert again.frozen().digest() == learner.frozen().digest()


def test_another_background_keeps_the_labels() -> None:
    learner = taught()
    first, reference = learner.frozen().digest(), learner.reference
    learner.background(sky(seed=5)[0])
    assert learner.learned == 6
    assert learner.reference != reference
    assert said(learner, sky()[0])[[0, 50, 100]].min() > 0.9
    learner.background(sky()[0])
    assert learner.frozen().digest() == first


def test_the_seed_decides_the_trees() -> None:
    assert grown(seed=1).frozen().digest() == grown(seed=1).frozen().digest()
    assert grown(seed=1).frozen().digest() != grown(seed=2).frozen().digest()


def changed(column: str, values: pa.Array) -> pa.Table:
    table = sky()[0]
    return table.set_column(table.schema.names.index(column), column, values)


@pytest.mark.parametrize("members", [["aad"], ["pine"]])
@pytest.mark.parametrize(
    "values", [pa.nulls(600, pa.float64()), pa.array([7.0] * 600), pa.array([np.inf] * 600)]
)
def test_a_column_that_says_nothing_does_no_harm(members: list[str], values: pa.Array) -> None:
    table = changed("c", values)
    learner = OutlierLearner("odd", CLASSES, COLUMNS, members)
    learner.background(table)
    learner.learn(table.take([0, 1]), ["interesting", "ordinary"])
    without = OutlierLearner("odd", CLASSES, COLUMNS[:2], members)
    without.background(table)
    without.learn(table.take([0, 1]), ["interesting", "ordinary"])
    assert said(learner, table).tobytes() == said(without, table).tobytes()


def test_where_no_column_says_anything_nothing_is_known() -> None:
    learner = OutlierLearner("odd", CLASSES, COLUMNS)
    table = pa.table({name: pa.nulls(10, pa.float64()) for name in COLUMNS})
    learner.background(table)
    learner.learn(table.slice(0, 1), ["interesting"])
    assert (said(learner, sky()[0]) == 0.5).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, None])
def test_what_is_not_known_is_the_median(value: float | None) -> None:
    learner, table = taught(), sky()[0]
    middle = float(np.median(table.column("a").to_numpy()))
    found = said(learner, changed("a", pa.array([value] * 600, pa.float64())))
    assert found.tobytes() == said(learner, changed("a", pa.array([middle] * 600))).tobytes()


@pytest.mark.parametrize("members", [["aad"], ["pine"]])
def test_five_rows_are_a_background(members: list[str]) -> None:
    learner = grown(members, rows=5)
    learner.learn(sky()[0].take([0, 1, 2]), ["interesting", "ordinary", "ordinary"])
    found = said(learner, sky()[0])
    assert ((found > 0) & (found < 1)).all()
    assert found[0] > max(found[1], found[2])


def test_numbers_beyond_all_measure_are_borne() -> None:
    table = changed("a", pa.array([1e308, -1e308] * 300))
    learner = OutlierLearner("odd", CLASSES, COLUMNS)
    learner.background(table)
    learner.learn(table.take([0, 1]), ["interesting", "ordinary"])
    assert np.isfinite(said(learner, table)).all()


@pytest.mark.parametrize("members", [("aad",), ("pine",)])
def test_it_keeps_the_rules_for_learners(members: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outliers, "TREES", 20)
    monkeypatch.setattr(outliers, "SPARE_TREES", 20)
    background, _ = checks.lesson(CLASSES, COLUMNS)

    def make() -> OutlierLearner:
        learner = OutlierLearner("odd", CLASSES, COLUMNS, members, seed=3)
        learner.background(background)
        return learner

    checks.check_learner(make, CLASSES, COLUMNS)


def test_a_snapshot_is_read_by_what_scores_and_is_small() -> None:
    frozen = taught().frozen()
    again = compiled.restore(frozen.snapshot())
    assert isinstance(again, Outliers)
    assert again.digest() == frozen.digest()
    assert again.predict(sky()[0]).mixture.tobytes() == frozen.predict(sky()[0]).mixture.tobytes()
    assert len(frozen.snapshot()) < 400_000


def test_foreign_bytes_are_refused() -> None:
    learner = taught()
    with pytest.raises(ValueError, match="not an anomaly learner's snapshot"):
        OutlierLearner.restore(learner.frozen().snapshot())
    with pytest.raises(ValueError, match=r"not a model that scores|not a frozen"):
        Outliers.restore(learner.snapshot())


def test_what_scores_does_not_import_what_learns() -> None:
    code = "import sys, raybroker.learning.grove; print([n for n in sys.modules if n in BAD])".replace(
        "BAD", "('coniferest', 'sklearn', 'river', 'modAL', 'mlflow')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


WRONG: dict[str, Callable[[], object]] = {
    "has two classes, the wanted one first": lambda: OutlierLearner("odd", ("a", "b", "c"), COLUMNS),
    "needs at least 1 columns": lambda: OutlierLearner("odd", CLASSES, ()),
    r"one member, of \['aad', 'pine'\]; it got \['pines'\] \(did you mean 'pine'": lambda: OutlierLearner(
        "odd", CLASSES, COLUMNS, ("pines",)
    ),
    "a background needs at least 2 rows; it got 1": lambda: grown(rows=1),
    "has no class 'interestin'.*did you mean 'interesting'": lambda: grown().learn(
        sky()[0].slice(0, 1), ["interestin"]
    ),
    "2 rows of features for 1 labels": lambda: grown().learn(sky()[0].slice(0, 2), ["ordinary"]),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_said(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
