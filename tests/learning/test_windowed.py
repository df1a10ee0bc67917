"""The refitted member: when it refits, what it forgets, and that nothing a sky gives makes it raise."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from raybroker.learning.windowed import AFTER_CHANGE, BOOSTED_FROM, WindowMember

COLUMNS = 5


def sky(labels: int, seed: int = 0, turned: bool = False) -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(labels, COLUMNS))
    rows[:, 0] += 2.0 * (np.arange(labels) % 2)
    rows[:, 1:][rng.random((labels, COLUMNS - 1)) < 0.1] = np.nan
    return [(row, int(i % 2 != turned)) for i, row in enumerate(rows)]


def taught(lessons: list[tuple[np.ndarray, int]], window: int = 2_000) -> WindowMember:
    member = WindowMember(2, COLUMNS, 0, window)
    for row, label in lessons:
        member.learn(row, label)
    return member


def right(member: WindowMember) -> float:
    """The share of a hundred new rows whose class it knows."""
    asked = sky(100, seed=9)
    found = member.compile().predict(np.array([row for row, _ in asked]))
    return float(np.mean(found.argmax(axis=1) == [label for _, label in asked]))


@pytest.mark.parametrize("labels", [0, 1, 9])
def test_below_ten_labels_it_knows_nothing(labels: int) -> None:
    member = taught(sky(labels))
    assert member.predict_one(np.zeros(COLUMNS)).tolist() == [0, 0]


@pytest.mark.parametrize("labels", [10, 60, BOOSTED_FROM + 20])
def test_it_learns_from_ten_labels_on(labels: int) -> None:
    assert right(taught(sky(labels))) > (0.55 if labels == 10 else 0.7)


def test_boosting_joins_the_forest() -> None:
    few, many = taught(sky(BOOSTED_FROM - 1)).compile(), taught(sky(2 * BOOSTED_FROM)).compile()
    assert not few.logits  # type: ignore[attr-defined]
    assert [part.logits for part in many.parts] == [False, True]  # type: ignore[attr-defined]
    assert sum(many.shares) == 1  # type: ignore[attr-defined]


def test_asking_in_between_does_not_change_what_it_becomes() -> None:
    asked, quiet = WindowMember(2, COLUMNS, 0, 2_000), taught(sky(75))
    for row, label in sky(75):
        asked.predict_one(row)
        asked.learn(row, label)
    rows = np.array([row for row, _ in sky(50, seed=3)])
    assert asked.compile().predict(rows).tobytes() == quiet.compile().predict(rows).tobytes()


def test_a_restored_member_refits_what_is_due_to_the_same_bits() -> None:
    member = taught(sky(40))
    again = pickle.loads(pickle.dumps(member))
    for row, label in sky(33, seed=4):
        member.learn(row, label)
        again.learn(row, label)
    rows = np.array([row for row, _ in sky(50, seed=3)])
    assert member.compile().predict(rows).tobytes() == again.compile().predict(rows).tobytes()


def test_refits_are_due_by_the_number_of_labels() -> None:
    member, due = WindowMember(2, COLUMNS, 0, 2_000), []
    for number, (row, label) in enumerate(sky(80), start=1):
        member.learn(row, label)
        if member.due is not None:
            due.append(number)
            member.due = None
    assert due == [10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 61, 67, 74]


def test_what_is_new_does_not_push_out_what_is_in_the_window() -> None:
    """A model that `fit`s only the newest labels would know but one class here."""
    lessons = sky(100)
    ordered = sorted(lessons, key=lambda lesson: lesson[1])
    assert right(taught(ordered)) > 0.7


def test_what_is_older_than_the_window_is_forgotten() -> None:
    member = taught(sky(100, turned=True) + sky(60, seed=2), window=50)
    assert right(member) > 0.7
    assert len(member.labels) <= 50 + 5
    assert len(member.rows) == COLUMNS * len(member.labels)
    assert right(taught(sky(100, turned=True) + sky(60, seed=2))) < 0.5


def test_a_change_of_the_stream_refits_at_once_on_what_came_after() -> None:
    member = taught(sky(101, turned=True) + sky(60, seed=2))
    assert right(member) < 0.5
    member.changed(60)
    assert member.due is not None
    assert right(member) > 0.7
    for row, label in sky(20, seed=5):
        member.learn(row, label)
    assert member.change == 101


@pytest.mark.parametrize("since", [3, AFTER_CHANGE - 1])
def test_after_a_change_at_least_some_labels_count_in_full(since: int) -> None:
    member = taught(sky(100, turned=True) + sky(since, seed=2))
    member.changed(since)
    assert member.change == 100 + since - AFTER_CHANGE


def test_what_still_tells_the_new_labels_apart_goes_on_to_count_in_full() -> None:
    """Three in four were of one class, now one in four: their shares changed, not what tells them apart."""
    often, rarely = sky(160)[0::2] + sky(160)[1::8], sky(160, seed=2)[0::8] + sky(160, seed=2)[1::2]
    member = taught(often + rarely)
    member.changed(len(rarely))
    assert member.change == 0
    assert member.due is not None


@pytest.mark.parametrize("labels", [12, 200])
def test_one_class_only_is_all_it_says(labels: int) -> None:
    member = taught([(row, 1) for row, _ in sky(labels)])
    assert member.predict_one(np.zeros(COLUMNS)).tolist() == [0, 1]


@pytest.mark.parametrize("value", [np.nan, 7.0])
@pytest.mark.parametrize("labels", [12, 200])
def test_columns_that_tell_nothing_do_not_raise(value: float, labels: int) -> None:
    one = [(np.array([value, *row[1:]]), label) for row, label in sky(labels)]
    none = [(np.full(COLUMNS, value), label) for _, label in sky(labels)]
    for lessons in (one, none):
        found = taught(lessons).predict_one(np.array([1.0, np.nan, 0, 0, 0]))
        assert found.sum() == pytest.approx(1)
    assert taught(none).predict_one(np.zeros(COLUMNS)) == pytest.approx([0.5, 0.5], abs=0.1)
