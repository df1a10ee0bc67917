"""The short list: one look per object, an honest share of random picks, and reasons with numbers."""

from __future__ import annotations

import dataclasses
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


def choose(
    made: Shortlist, snapshot: int = 1, seed: int = 0, name: str = "margin", **more: float | None
) -> Choice:
    rng = np.random.default_rng(seed)
    return made.choose(name, by_name(name), pool_of(made), snapshot, rng, **more)  # type: ignore[arg-type]


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
    made.answered("ztf:1", "ztf:O1")
    assert ids(choose(made, 3).opened) == ["ztf:99"]


def test_a_question_chosen_again_keeps_its_id() -> None:
    made = shortlist(spread(30), budget=3, random_share=0)
    first = choose(made).opened
    made.add([candidate(77, 2, 101.0, 0.501)])  # a newer alert of an object that is open
    assert choose(made, 2) == Choice([], [])
    assert {query.query_id for query in made.open} == {query.query_id for query in first}


def test_a_standing_question_keeps_its_slot_while_it_is_among_twice_the_slots() -> None:
    made = shortlist(spread(30), budget=3, random_share=0)
    first = choose(made).opened
    made.add([candidate(100 + i, 100 + i, 101.0, 0.4999) for i in range(3)])
    assert choose(made, 2) == Choice([], [])  # the three stand at places 4, 5 and 6 (0 at place 1)
    assert made.open == first


def better(made: Shortlist, count: int = 20, mjd: float = 101.0) -> None:
    """Alerts of other objects, each nearer the margin than whatever stands, the last the nearest."""
    first = int(1_000 * mjd)
    made.add([candidate(first + i, first + i, mjd, 0.49999 + i * 1e-7) for i in range(count)])


def test_what_falls_behind_twice_the_slots_is_withdrawn_and_its_slot_is_filled() -> None:
    made = shortlist(spread(30)[1:], budget=3, random_share=0)
    choose(made)
    better(made, 5)  # 1 is the sixth, 2 and 3 fell behind
    choice = choose(made, 2)
    assert ids(choice.withdrawn) == ["ztf:3"]
    assert ids(choice.opened) == ["ztf:101004"]
    assert ids(made.open) == ["ztf:1", "ztf:2", "ztf:101004"]


def test_one_question_is_taken_back_in_as_many_snapshots_as_there_are_slots() -> None:
    made = shortlist(spread(30)[1:], budget=3, random_share=0)
    choose(made)
    better(made)
    assert [len(choose(made, snapshot).withdrawn) for snapshot in (2, 2, 3, 4, 5, 5, 6, 7, 8, 9, 15)] == [
        *(1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0),
    ]
    assert all(query.alert_id.startswith("ztf:101") for query in made.open)


def test_the_list_does_not_jump_while_the_model_knows_nothing() -> None:
    made = shortlist([candidate(i, i) for i in range(300)], budget=10, random_share=0.2)
    first = choose(made).opened
    for snapshot in range(2, 8):
        assert choose(made, snapshot, seed=snapshot) == Choice([], [])
    assert made.open == first


def test_with_the_strategy_random_every_question_stays_until_it_is_answered() -> None:
    made = shortlist(spread(300), budget=10, random_share=0)
    first = choose(made, name="random").opened
    assert choose(made, 2, seed=2, name="random") == Choice([], [])
    made.answered(first[4].alert_id, first[4].object_id)
    assert len(choose(made, 3, seed=3, name="random").opened) == 1
    assert {query.strategy for query in made.open} == {"random"}


def test_the_rank_a_question_is_logged_with_stays_the_order_to_ask() -> None:
    made, rng = shortlist(spread(500), budget=8, random_share=0.3), np.random.default_rng(3)
    logged: dict[str, int] = {}
    for snapshot in range(60):
        choice = made.choose("margin", by_name("margin"), pool_of(made), snapshot, rng)
        logged |= {query.query_id: query.rank for query in choice.opened}
        order = [query.query_id for query in made.open]
        assert sorted(order, key=lambda query_id: logged[query_id]) == order
        made.answered(made.open[snapshot % 3].alert_id, made.open[snapshot % 3].object_id)
        made.add(spread(5, 1_000 + 5 * snapshot))


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
    made = shortlist([candidate(1, 1, 100.0), candidate(2, 2, 110.0)], oldest_days=5, random_share=0)
    choose(made)
    assert ids(made.expire(111.0)) == ["ztf:1"]
    assert ids(made.open) == ["ztf:2"]
    assert len(made) == 1


def faint(alert: int, obj: int, magnitude: float | None, mjd: float = 100.0) -> Candidate:
    return dataclasses.replace(candidate(alert, obj, mjd), magnitude=magnitude)


def test_what_is_too_faint_is_not_asked_and_what_is_not_known_is() -> None:
    made = shortlist([faint(1, 1, 19.9), faint(2, 2, 20.1), faint(3, 3, None)], faintest=20.0, random_share=0)
    choose(made)
    assert sorted(ids(made.open)) == ["ztf:1", "ztf:3"]
    assert len(made) == 2


def test_a_question_whose_object_faded_is_withdrawn_and_returned() -> None:
    made = shortlist([faint(1, 1, 19.9), faint(2, 2, 19.0)], faintest=20.0, random_share=0)
    choose(made)
    assert made.expire(100.0) == []
    made.add([faint(11, 1, 20.5, 101.0)])
    assert ids(made.expire(101.0)) == ["ztf:1"]
    assert ids(made.open) == ["ztf:2"]
    assert len(made) == 1


def test_a_question_carries_where_and_how_bright_its_alert_was() -> None:
    one = dataclasses.replace(candidate(1, 1), ra=210.8, dec=54.3, magnitude=18.2)
    query = choose(shortlist([one, candidate(2, 2)], random_share=0), seed=1).opened
    found = {q.alert_id: (q.ra, q.dec, q.magnitude) for q in query}
    assert found == {"ztf:1": (210.8, 54.3, 18.2), "ztf:2": (None, None, None)}
    assert query[0].row().keys() >= {"ra", "dec", "magnitude", "mjd"}
    assert query[0].mjd == 100.0


# A night's budget.


@pytest.mark.parametrize(("allowance", "open_then"), [(None, 8), (100, 8), (8, 8), (3, 3), (0, 0)])
def test_no_more_questions_stand_open_than_the_night_allows(allowance: int | None, open_then: int) -> None:
    made = shortlist(spread(100), budget=8, random_share=0.3)
    assert len(choose(made, allowance=allowance).opened) == open_then == len(made.open)


def test_a_night_of_twelve_answers_asks_twelve_and_withdraws_none() -> None:
    made, asked, withdrawn = shortlist(spread(200), budget=5, random_share=0.3), 0, 0
    for answered in range(13):
        choice = choose(made, answered, seed=answered, allowance=12 - answered)
        asked, withdrawn = asked + len(choice.opened), withdrawn + len(choice.withdrawn)
        if made.open:
            made.answered(made.open[0].alert_id, made.open[0].object_id)
    assert (asked, withdrawn) == (12, 0)
    assert len(choose(made, 14, allowance=12).opened) == 5  # the next night


def test_a_smaller_allowance_withdraws_from_the_end() -> None:
    made = shortlist(spread(100), budget=6, random_share=0.3)
    first = choose(made).opened
    choice = choose(made, 2, allowance=2)
    assert choice.withdrawn == first[2:]
    assert made.open == first[:2]


# Claims.


def test_what_somebody_looks_at_stays_until_the_claim_ends() -> None:
    made = shortlist(spread(30)[5:], budget=3, random_share=0)
    held = choose(made, now=1_000.0).opened[2]
    assert made.hold(held.query_id, 1_600.0)
    better(made)
    for snapshot in range(2, 20):
        assert held not in choose(made, snapshot, now=1_599.0).withdrawn
    assert made.open[2] == held
    assert choose(made, 30, now=1_600.0).withdrawn == [held]


def test_a_claim_can_be_given_back() -> None:
    made = shortlist(spread(30)[5:], budget=3, random_share=0)
    held = choose(made).opened[2]
    made.hold(held.query_id, 600.0)
    made.hold(held.query_id, 0)
    better(made)
    assert choose(made, 2, now=1.0).withdrawn == [held]


def test_what_is_held_neither_expires_nor_falls_to_the_budget_but_counts() -> None:
    made = shortlist(spread(30), budget=4, random_share=0, oldest_days=5)
    opened = choose(made).opened
    made.hold(opened[3].query_id, 600.0)
    assert choose(made, 2, allowance=2, now=100.0).withdrawn == opened[1:3]
    assert made.expire(200.0, now=100.0) == opened[:1]
    assert made.open == [opened[3]]
    assert made.expire(200.0, now=601.0) == [opened[3]]


def test_an_object_that_is_held_is_not_asked_a_second_time_at_random() -> None:
    made = shortlist([candidate(i, i) for i in range(4)], budget=4, random_share=0)
    held = choose(made).opened[0]
    made.hold(held.query_id, 600.0)
    made.random_share, made.budget = 1.0, 8
    choose(made, 2)
    assert [query for query in made.open if query.key == held.key] == [held]


def test_a_claim_of_what_is_not_open_is_refused() -> None:
    made = shortlist(spread(5))
    held = choose(made).opened[0]
    made.answered(held.alert_id, held.object_id)
    assert not made.hold(held.query_id, 600.0)
    assert not made.hold("no such question", 600.0)


# What came in by chance.


def test_random_picks_are_of_what_came_in_by_chance() -> None:
    alerts = [dataclasses.replace(one, drawn=int(one.alert_id[4:]) % 10 == 0) for one in spread(200)]
    made = shortlist(alerts, budget=10, random_share=0.5)
    choose(made)
    picks = [int(query.alert_id[4:]) for query in made.open if query.strategy == "random"]
    assert picks
    assert all(pick % 10 == 0 for pick in picks)
    assert {int(a[4:]) % 10 for a in ids(made.open)} != {0}


def test_an_object_that_came_in_by_chance_stays_so_with_its_next_alert() -> None:
    made = shortlist([dataclasses.replace(candidate(i, i), drawn=i == 1) for i in range(3)], random_share=1)
    made.add([dataclasses.replace(candidate(10 + i, i, 101.0), drawn=False) for i in range(3)])
    assert ids(choose(made).opened) == ["ztf:11"]


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
