"""The short list: one look per object, an honest share of random picks, and reasons with numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from raybroker.learning.compiled import Prediction
from raybroker.learning.shortlist import Candidate, Choice, Query, Shortlist
from raybroker.learning.strategies import Pool, by_name

CLASSES = ("AGN", "SN")


def candidate(alert: int, obj: int | None = None, mjd: float = 100.0, p: float = 0.5) -> Candidate:
    object_id = None if obj is None else f"ztf:O{obj}"
    return Candidate("ztf", f"ztf:{alert}", object_id, mjd, {"p": p, "gap": None})


def shortlist(candidates: Iterable[Candidate] = (), **options: object) -> Shortlist:
    made = Shortlist("m", CLASSES, ("one",), **options)  # type: ignore[arg-type]
    made.add(candidates)
    return made


def pool_of(made: Shortlist) -> Pool:
    p = made.features(["p"]).column("p").to_numpy()
    mixture = np.column_stack([1 - p, p])
    return made.pool(Prediction(mixture[None], mixture))


def choose(made: Shortlist, snapshot: int = 1, seed: int = 0, name: str = "margin") -> Choice:
    return made.choose(name, by_name(name), pool_of(made), snapshot, np.random.default_rng(seed))


def spread(count: int, first: int = 0) -> list[Candidate]:
    """Objects ever further from the margin."""
    return [
        candidate(i, i, 100.0 + i * 1e-6, 0.5 + i / (2.1 * (first + count)))
        for i in range(first, first + count)
    ]


def ids(queries: Iterable[Query]) -> list[str]:
    return [query.alert_id for query in queries]


def test_the_strategys_best_are_open_with_rank_and_reason() -> None:
    made = shortlist(spread(30)[::-1], budget=3, random_share=0)
    opened = choose(made, snapshot=12).opened
    assert ids(opened) == ids(made.open) == ["ztf:0", "ztf:1", "ztf:2"]
    assert [query.rank for query in made.open] == [0, 1, 2]
    assert opened[2].reason == "margin 0.06 between SN (0.53) and AGN (0.47), snapshot 12"
    assert opened[2].features == {"p": pytest.approx(0.5317, abs=1e-4), "gap": None}
    assert opened[2].probabilities["one"] == opened[2].probabilities["mixture"]
    assert opened[0].row()["snapshot"] == 12


def test_an_object_has_one_pending_look() -> None:
    made = shortlist([candidate(i, i % 2, 100.0 + i) for i in range(10)], budget=5, random_share=0.5)
    choose(made)
    assert sorted(ids(made.open)) == ["ztf:8", "ztf:9"]


def test_the_newest_alert_of_an_object_stands_for_it_in_any_order() -> None:
    made = shortlist([candidate(1, 1, 102.0), candidate(2, 1, 101.0), candidate(3, None), candidate(4, None)])
    assert sorted(pool_of(made).alert_ids) == ["ztf:1", "ztf:3", "ztf:4"]


def test_a_labelled_object_leaves_and_does_not_come_back() -> None:
    made = shortlist(spread(30), budget=3, random_share=0)
    choose(made)
    made.answered("ztf:0", "ztf:O0")
    made.add([candidate(99, 0, 200.0)])
    assert ids(made.open) == ["ztf:1", "ztf:2"]
    assert ids(choose(made, 2).opened) == ["ztf:3"]
    made.reopen("ztf:0", "ztf:O0")
    made.add([candidate(99, 0, 200.0)])
    assert ids(choose(made, 3).opened) == ["ztf:99"]


def test_a_question_chosen_again_keeps_its_id() -> None:
    made = shortlist(spread(30), budget=3, random_share=0)
    first = choose(made).opened
    made.add([candidate(77, 2, 101.0, 0.501)])  # a newer alert of an object that is open
    assert choose(made, 2) == Choice([], [])
    assert {query.query_id for query in made.open} == {query.query_id for query in first}


def test_what_is_no_longer_among_the_best_is_withdrawn() -> None:
    made = shortlist(spread(30), budget=3, random_share=0)
    choose(made)
    made.add([candidate(100 + i, 100 + i, 101.0, 0.4999) for i in range(2)])
    choice = choose(made, 2)
    assert ids(choice.withdrawn) == ["ztf:1", "ztf:2"]
    assert sorted(ids(choice.opened)) == ["ztf:100", "ztf:101"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
def test_the_answers_hold_the_share_of_random_picks(share: float) -> None:
    made = shortlist(spread(3_000), budget=10, random_share=share, pool=3_000)
    rng, answers, random_rows = np.random.default_rng(5), 600, []
    for snapshot in range(answers):
        made.choose("margin", by_name("margin"), pool_of(made), snapshot, rng)
        asked = made.open[0]
        random_rows += [int(asked.alert_id[4:])] if asked.strategy == "random" else []
        made.answered(asked.alert_id, asked.object_id)
    assert len(random_rows) / answers == pytest.approx(share, abs=0.035)
    if share:
        assert np.mean(random_rows) > 1_200  # from anywhere, not from near the margin
        assert len(set(random_rows)) == len(random_rows)


def test_random_picks_stay_until_they_are_answered() -> None:
    made = shortlist(spread(200), budget=10, random_share=0.5)
    choose(made)
    before = [query.query_id for query in made.open if query.strategy == "random"]
    for snapshot in range(2, 6):
        made.add(spread(20, 200 * snapshot))
        choose(made, snapshot, seed=snapshot)
    assert [query.query_id for query in made.open if query.strategy == "random"] == before
    assert 1 <= len(before) <= 9
    assert all("random pick" in query.reason for query in made.open if query.strategy == "random")


def test_old_alerts_expire_and_their_questions_are_withdrawn() -> None:
    made = shortlist([candidate(1, 1, 100.0), candidate(2, 2, 110.0)], max_age_days=5, random_share=0)
    choose(made)
    assert ids(made.expire(111.0)) == ["ztf:1"]
    assert ids(made.open) == ["ztf:2"]
    assert len(made) == 1


def test_the_pool_is_bounded_to_the_newest_and_keeps_what_is_open() -> None:
    made = shortlist([candidate(0, 0, 50.0)], budget=1, random_share=0, pool=100)
    choose(made)
    made.add(candidate(i, i, 100.0 + i, 0.9) for i in range(1, 501))
    assert len(made) == 101
    assert ids(made.open) == ["ztf:0"]
    assert set(pool_of(made).alert_ids) == {"ztf:0", *(f"ztf:{i}" for i in range(401, 501))}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_small_or_empty_pool_is_fine(share: float) -> None:
    made = shortlist(budget=5, random_share=share)
    assert choose(made) == Choice([], [])
    made.add(spread(2))
    assert len(choose(made, 2).opened) == 2
    made.add(spread(9))
    assert len(choose(made, 3).opened) == 3
    assert len(made.open) == 5


def test_the_same_seed_asks_the_same() -> None:
    def asked(seed: int) -> list[str]:
        made = shortlist([candidate(i, i) for i in range(100)], budget=10, random_share=0.3)
        return [query.query_id for query in choose(made, seed=seed).opened]

    assert asked(1) == asked(1) != asked(2)


@pytest.mark.parametrize(
    ("name", "words"),
    [("uncertainty", "uncertainty 0.47, most likely SN (0.53)"), ("entropy", "entropy 0.69 of at")],
)
def test_each_strategy_gives_its_own_number(name: str, words: str) -> None:
    made = shortlist([candidate(1, 1, p=0.53)], random_share=0)
    assert words in choose(made, name=name).opened[0].reason


def test_predictions_of_another_pool_are_refused() -> None:
    made = shortlist(spread(3))
    with pytest.raises(ValueError, match="2 predictions for a pool of 3"):
        made.pool(Prediction(np.ones((1, 2, 2)), np.ones((2, 2))))
