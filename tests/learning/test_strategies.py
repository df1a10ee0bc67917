"""Strategies: best first, each row once, seeded, and blind to labels."""

from __future__ import annotations

import dataclasses
import gc
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raybroker.errors import SettingsError
from raybroker.learning import strategies
from raybroker.learning.compiled import Prediction
from raybroker.learning.labels import Label, Ledger
from raybroker.learning.shortlist import Candidate, Shortlist
from raybroker.learning.strategies import BUILT_IN, Pool, banded, by_name, reason


def pool(mixture: list[list[float]]) -> Pool:
    found = np.array(mixture, float).reshape(-1, 3)
    ids = tuple(f"ztf:{i}" for i in range(len(found)))
    return Pool(ids, ids, found[None].copy(), found)


CLEAR = pool([[0.9, 0.1, 0.0], [0.5, 0.495, 0.005], [0.34, 0.33, 0.33], [0.6, 0.2, 0.2]])
EXPECTED = {
    "uncertainty": [2, 1, 3, 0],
    "margin": [1, 2, 3, 0],
    "entropy": [2, 3, 1, 0],
    "consensus_entropy": [2, 3, 1, 0],  # of one member, its entropy
    "top": [0, 3, 1, 2],
    "band": [0, 1, 3, 2],
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_best_comes_first(name: str) -> None:
    expected = EXPECTED[name]
    for n in range(5):
        assert by_name(name)(CLEAR, n, rng()).tolist() == expected[:n]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
@pytest.mark.parametrize("n", [0, 1, 50, 5_000])
def test_rows_are_distinct_and_no_more_than_there_are(name: str, n: int) -> None:
    many = pool(np.random.default_rng(1).dirichlet([1, 1, 1], 300).tolist())
    rows = by_name(name)(many, n, rng())
    assert len(rows) == len(set(rows.tolist())) == min(n, 300)
    assert by_name(name)(pool([]), n, rng()).tolist() == []


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_ties_are_broken_by_the_seed_alone(name: str) -> None:
    equal = pool([[0.5, 0.3, 0.2]] * 50)
    np.random.seed(1)
    first = by_name(name)(equal, 10, rng(3)).tolist()
    np.random.seed(2)
    assert by_name(name)(equal, 10, rng(3)).tolist() == first
    assert by_name(name)(equal, 10, rng(4)).tolist() != first
    assert first != list(range(10))


def test_not_known_probabilities_come_last() -> None:
    rows = by_name("margin")(pool([[np.nan] * 3, [0.9, 0.1, 0.0]]), 2, rng())
    assert rows.tolist() == [1, 0]


def shuffled(given: Pool, order: np.ndarray) -> Pool:
    """The same alerts in another order."""
    return Pool(
        tuple(given.alert_ids[i] for i in order),
        tuple(given.object_ids[i] for i in order),
        given.probabilities[:, order],
        given.mixture[order],
        given.features.take(pa.array(order)) if given.features is not None else None,
    )


def crowd(rows: int = 400, members: int = 3, seed: int = 1) -> Pool:
    """A pool of many alerts with features, some of which are not known, infinite, constant or null everywhere."""
    chance = np.random.default_rng(seed)
    said = chance.dirichlet([1, 1, 1], (members, rows))
    found = chance.normal(size=(rows, 6))
    found[chance.random(found.shape) < 0.2] = np.nan
    found[0, 0], found[1, 0], found[:, 1], found[:, 2] = np.inf, 1e300, np.nan, 7.0
    features = {str(i): pa.array(found[:, i], from_pandas=True) for i in range(6)}
    ids = tuple(f"ztf:{i}" for i in range(rows))
    return Pool(ids, ids, said, said.mean(axis=0), pa.table(features))


UTILITY = {
    "uncertainty": lambda p: 1 - p.mixture.max(axis=1),
    "margin": lambda p: -np.diff(np.sort(p.mixture, axis=1)[:, -2:], axis=1)[:, 0],
    "entropy": lambda p: -(p.mixture * np.log(p.mixture)).sum(axis=1),
    "vote_entropy": lambda p: _vote_entropy(p.probabilities),
    "consensus_entropy": lambda p: -(p.probabilities.mean(0) * np.log(p.probabilities.mean(0))).sum(axis=1),
    "max_disagreement": lambda p: (
        (p.probabilities * np.log(p.probabilities / p.probabilities.mean(0))).sum(axis=2).max(axis=0)
    ),
    "top": lambda p: p.mixture[:, 0],
}


def _vote_entropy(said: np.ndarray) -> np.ndarray:
    shares = np.stack([(said.argmax(axis=2) == c).mean(axis=0) for c in range(said.shape[2])], axis=1)
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1)


@pytest.mark.parametrize("name", sorted(UTILITY))
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_best_of_a_shuffled_pool_come_first_and_in_order(name: str, seed: int) -> None:
    given = shuffled(crowd(), np.random.default_rng(seed).permutation(400))
    utility = UTILITY[name](given)
    rows = by_name(name)(given, 50, rng(seed))
    asked = utility[rows]
    assert (np.diff(asked) <= 1e-12).all()
    assert asked[-1] >= np.sort(utility)[-50] - 1e-12
    assert rows.tolist() != sorted(rows.tolist())  # a walk through the pool would be


@pytest.mark.parametrize("name", ["ranked_batch", "band"])
def test_the_same_alerts_are_asked_in_whatever_order_the_pool_is(name: str) -> None:
    given, order = crowd(), np.random.default_rng(9).permutation(400)
    mixed = shuffled(given, order)
    first = [given.alert_ids[row] for row in by_name(name)(given, 20, rng())]
    assert [mixed.alert_ids[row] for row in by_name(name)(mixed, 20, rng())] == first
    assert first != sorted(first)


def test_the_band_takes_turns_between_the_highest_and_the_unsure() -> None:
    given = pool([[p, 1 - p, 0] for p in (0.1, 0.5, 0.95, 0.45, 0.99, 0.58, 0.7, 0.3)])
    assert by_name("band")(given, 8, rng()).tolist() == [4, 1, 2, 3, 6, 5, 7, 0]
    assert banded(share=0.25)(given, 4, rng()).tolist() == [1, 4, 3, 5]
    assert banded(share=1.0)(given, 3, rng()).tolist() == [4, 2, 6]
    assert banded(0.2, 0.35, share=0.0)(given, 2, rng()).tolist() == [7, 4]


def test_a_ranked_batch_does_not_ask_the_same_thing_twice_where_uncertainty_would() -> None:
    near = np.repeat([[0.5, 0.5, 0.0]], 30, axis=0)
    said = np.vstack([near, [[0.52, 0.48, 0.0]] * 10])
    places = pa.table({"x": pa.array([0.0] * 30 + [5.0] * 10), "y": pa.array([0.0] * 30 + [3.0] * 10)})
    ids = tuple(f"ztf:{i}" for i in range(40))
    given = Pool(ids, ids, said[None], said, places)
    asked = by_name("ranked_batch")(given, 2, rng()).tolist()
    assert asked[0] < 30 <= asked[1]
    assert (by_name("uncertainty")(given, 2, rng()) < 30).all()


def test_a_ranked_batch_begins_with_the_least_certain_and_goes_on_alike_for_any_number() -> None:
    given = crowd()
    whole = by_name("ranked_batch")(given, 400, rng()).tolist()
    assert whole[0] == by_name("uncertainty")(given, 1, rng())[0]
    for n in (1, 2, 15):
        assert by_name("ranked_batch")(given, n, rng()).tolist() == whole[:n]


def test_a_ranked_batch_of_a_full_pool_looks_at_the_least_certain_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def spy(classifier: Any, unlabeled: np.ndarray, uncertainty: np.ndarray, n: int, *rest: Any) -> Any:
        seen.append((len(unlabeled), n))
        return np.arange(n), None

    monkeypatch.setattr(strategies, "cardoso", spy)
    rows = by_name("ranked_batch")(crowd(5_000), 300, rng())
    assert seen == [(strategies.LEAST_CERTAIN - 1, strategies.BATCH)]
    assert len(set(rows.tolist())) == 300


def test_a_member_that_knows_nothing_of_a_row_does_not_disagree() -> None:
    said = np.array([[[0.9, 0.1], [0.9, 0.1]], [[np.nan, np.nan], [0.2, 0.8]]])
    mixture = np.array([[0.9, 0.1], [0.6, 0.4]])
    given = Pool(("a", "b"), ("a", "b"), said, mixture)
    for name in ("vote_entropy", "max_disagreement"):
        assert by_name(name)(given, 1, rng()).tolist() == [1]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_an_object_is_asked_once_whatever_the_strategy(name: str) -> None:
    alerts = [
        Candidate("ztf", f"ztf:{i}", f"ztf:O{i % 40}", 100.0 + i, {"x": float(i % 7), "y": None})
        for i in range(200)
    ]
    made = Shortlist("m", ("a", "b"), ("one", "two"), budget=15, random_share=0.3)
    made.add(alerts)
    said = np.random.default_rng(0).dirichlet([1, 1], (2, len(made)))
    given = made.pool(Prediction(said, said.mean(axis=0)), made.features(["x", "y"]))
    assert len(set(given.object_ids)) == len(given) == 40
    made.choose(name, by_name(name), given, 1, rng())
    asked = [query.object_id for query in made.open]
    assert len(asked) == len(set(asked)) == 15
    assert {int(query.alert_id[4:]) for query in made.open} <= set(range(160, 200))  # the newest of each


def test_an_unknown_strategy_is_named_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"no strategy 'margn' \(did you mean 'margin'\?\)"):
        by_name("margn")
    with pytest.raises(SettingsError, match="cannot be loaded"):
        by_name("no.such.module:function")


def last_first(pool: Pool, n: int, rng: np.random.Generator) -> list[int]:
    return list(range(len(pool)))[::-1][:n]


def repeats(pool: Pool, n: int, rng: np.random.Generator) -> list[int]:
    return [0, 0]


def beyond(pool: Pool, n: int, rng: np.random.Generator) -> list[int]:
    return [len(pool)]


def scores(pool: Pool, n: int, rng: np.random.Generator) -> list[float]:
    return [0.3]


def test_a_users_strategy_is_found_by_its_dotted_path() -> None:
    assert by_name(f"{__name__}:last_first")(CLEAR, 2, rng()).tolist() == [3, 2]


@pytest.mark.parametrize("name", ["repeats", "beyond", "scores"])
def test_a_users_strategy_is_held_to_the_contract(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}' "):
        by_name(f"{__name__}:{name}")(CLEAR, 2, rng())


# The trap: a strategy that looks for labels.


class Secret(str):
    """A label that is told from every other string."""


def reachable(*roots: Any) -> Iterator[Any]:
    """Everything that can be got at from these: attributes, items, what functions close over, bases of arrays."""
    seen: set[int] = set()
    queue = list(roots)
    while queue:
        found = queue.pop()
        if id(found) in seen or isinstance(found, (type, types.ModuleType, types.FrameType)):
            continue
        seen.add(id(found))
        yield found
        if isinstance(found, types.FunctionType):
            queue += [*(found.__closure__ or ()), *(found.__defaults__ or ())]
        else:
            queue += gc.get_referents(found)
        if isinstance(found, np.ndarray) and found.base is not None:
            queue.append(found.base)


def trapped(search: Callable[[Pool], object]) -> Shortlist:
    """The loop as it is, with labels in the ledger and one among the features; `search` is the strategy's look."""
    ledger, made = Ledger(), Shortlist("m", ("SN", "AGN"), ("one",), budget=3, random_share=0.3)
    for i in range(20):
        object_id, label = f"ztf:O{i}", Secret("SN" if i % 2 else "AGN")
        features: dict[str, Any] = {"x": float(i), "label": label, "tns.type": label}
        made.add([Candidate("ztf", f"ztf:{i}", object_id, 100.0, features)])
        ledger.add(Label(f"e{i}", "ztf", f"ztf:{i}", object_id, "m", label, "test", "ann", 0.0))
        if i < 5:
            made.answered(f"ztf:{i}", object_id)
    said = np.full((len(made), 2), 0.5)

    def strategy(pool: Pool, n: int, rng: np.random.Generator) -> np.ndarray:
        search(pool)
        return np.arange(n)[: len(pool)]

    given = made.pool(Prediction(said[None], said), made.features(["x"]))
    made.choose("spy", strategy, given, 1, rng())
    assert len(ledger.standing()) == 20
    return made


def test_a_strategy_that_looks_for_labels_finds_none() -> None:
    found: list[Any] = []

    def search(pool: Pool) -> None:
        found.extend(reachable(pool))

    trapped(search)
    assert len(found) > 30  # it did get somewhere: ids, arrays, the features' columns
    assert not [one for one in found if isinstance(one, (Secret, Label, Ledger, Shortlist, Candidate))]
    columns = [one for one in found if isinstance(one, pa.Table)]
    assert [table.column_names for table in columns] == [["x"]]
    assert "SN" not in [one for one in found if isinstance(one, str)]


def test_the_trap_would_see_a_label_in_the_pool() -> None:
    def leak(secret: Secret) -> Callable[[], Secret]:
        return lambda: secret

    ids: Any = ("a", leak(Secret("SN")))
    given = Pool(ids, ("x", "y"), np.full((1, 2, 2), 0.5), np.full((2, 2), 0.5))
    assert [one for one in reachable(given) if isinstance(one, Secret)] == ["SN"]


WRITES: dict[str, Callable[[Pool], object]] = {
    "into the mixture": lambda pool: pool.mixture.__setitem__((0, 0), 1.0),
    "into the members": lambda pool: pool.probabilities.fill(1.0),
    "after unlocking": lambda pool: pool.mixture.setflags(write=True),
    "behind the view": lambda pool: pool.mixture.base.__setitem__(0, 1),  # type: ignore[union-attr]
    "into the features": lambda pool: pool.features["x"].to_numpy().__setitem__(0, 1.0),
    "a new attribute": lambda pool: object.__setattr__(pool, "labels", ["SN"]),
    "another mixture": lambda pool: setattr(pool, "mixture", np.ones((1, 2))),
    "into the ids": lambda pool: pool.alert_ids.__setitem__(0, "b"),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("how", sorted(WRITES))
def test_a_strategy_that_writes_into_the_pool_raises(how: str) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        trapped(WRITES[how])


def test_the_pool_is_not_the_predictions_it_was_made_from() -> None:
    said = np.full((1, 2, 2), 0.5)
    given = Pool(("a", "b"), ("x", "y"), said, said[0])
    said[:] = 1.0
    assert (given.mixture == 0.5).all()
    assert (given.probabilities == 0.5).all()
    assert {field.name for field in dataclasses.fields(Pool)} == {
        *("alert_ids", "object_ids", "probabilities", "mixture", "features"),
    }


# The reason, for a person.

MEMBERS = {"forest": (0.1, 0.9), "softmax": (0.7, 0.3), "silent": (np.nan, np.nan)}


@pytest.mark.parametrize(
    ("name", "mixture", "words"),
    [
        ("margin", [0.46, 0.54], "margin 0.08 between SN (0.54) and AGN (0.46), snapshot 12"),
        ("uncertainty", [0.47, 0.53], "uncertainty 0.47, most likely SN (0.53), snapshot 12"),
        ("entropy", [0.5, 0.5], "entropy 0.69 of at most 0.69, most likely AGN (0.50), snapshot 12"),
        ("entropy", [0.0, 1.0], "entropy 0.00 of at most 0.69, most likely SN (1.00), snapshot 12"),
        (
            "consensus_entropy",
            [0.2, 0.8],
            "members' mean: entropy 0.67 of at most 0.69, most likely SN (0.60), snapshot 12",
        ),
        (
            "vote_entropy",
            [0.4, 0.6],
            "members disagree: forest says SN (0.90), softmax says AGN (0.70), snapshot 12",
        ),
        (
            "max_disagreement",
            [0.4, 0.6],
            "members disagree: forest says SN (0.90), softmax says AGN (0.70), snapshot 12",
        ),
        (
            "ranked_batch",
            [0.47, 0.53],
            "uncertainty 0.47, most likely SN (0.53), and unlike what is asked before it, snapshot 12",
        ),
        ("band", [0.55, 0.45], "AGN (0.55) is between 0.4 and 0.6, snapshot 12"),
        ("band", [0.97, 0.03], "among the highest: AGN (0.97), snapshot 12"),
        ("top", [0.3, 0.7], "among the highest: AGN (0.30), snapshot 12"),
        ("random", [0.3, 0.7], "random pick, most likely SN (0.70), snapshot 12"),
        ("mine:own", [0.3, 0.7], "mine:own, between SN (0.70) and AGN (0.30), snapshot 12"),
    ],
)
def test_the_reason_gives_the_strategys_numbers(name: str, mixture: list[float], words: str) -> None:
    assert reason(name, ("AGN", "SN"), np.array(mixture), 12, MEMBERS) == words


def test_members_that_say_the_same_are_said_to_agree() -> None:
    said = reason("vote_entropy", ("AGN", "SN"), np.array([0.1, 0.9]), 1, {"a": (0.2, 0.8), "b": (0.0, 1.0)})
    assert said == "members agree: a says SN (0.80), b says SN (1.00), snapshot 1"


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_strategy_has_words_of_its_own(name: str) -> None:
    assert not reason(name, ("AGN", "SN"), np.array([0.4, 0.6]), 1).startswith(f"{name}, between")
