"""Strategies: best first, each row once, seeded, and blind to labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from raybroker.errors import SettingsError
from raybroker.learning.strategies import BUILT_IN, Pool, by_name


def pool(mixture: list[list[float]]) -> Pool:
    found = np.array(mixture, float).reshape(-1, 3)
    ids = tuple(f"ztf:{i}" for i in range(len(found)))
    return Pool(ids, ids, found[None].copy(), found)


CLEAR = pool([[0.9, 0.1, 0.0], [0.5, 0.495, 0.005], [0.34, 0.33, 0.33], [0.6, 0.2, 0.2]])
EXPECTED = {"uncertainty": [2, 1, 3, 0], "margin": [1, 2, 3, 0], "entropy": [2, 3, 1, 0]}


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


def test_a_pool_holds_no_labels_and_cannot_be_written() -> None:
    fields = {field.name for field in dataclasses.fields(Pool)}
    assert fields == {"alert_ids", "object_ids", "probabilities", "mixture", "features"}
    with pytest.raises(ValueError, match="read-only"):
        CLEAR.mixture[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        CLEAR.mixture = None  # type: ignore[assignment,misc]


def test_not_known_probabilities_come_last() -> None:
    rows = by_name("margin")(pool([[np.nan] * 3, [0.9, 0.1, 0.0]]), 2, rng())
    assert rows.tolist() == [1, 0]


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
