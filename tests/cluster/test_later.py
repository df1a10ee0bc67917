"""A label teaches later alerts of its object: over two nights through worker and trainer, and by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybroker import simulate
from raybroker.archive.events import EventLog
from raybroker.archive.table import AlertsTable
from raybroker.cluster.later import Later
from raybroker.cluster.trainer import Trainer
from tests.cluster.test_trainer import DATE, MODEL, SKY, answer, digest, open_queries, trainer, truth
from tests.cluster.worlds import placed, worker

LABELS = 12


def a_night(root: Path, date: str) -> None:
    packets = [p for exposure in simulate.night(SKY, 600, date, cutouts=False) for p in exposure.packets]
    worker(root, placed(packets, topic=f"ztf_{date}_programid1")).turn()


def of_second_night(root: Path) -> dict[str, set[str]]:
    """Alert ids by object, as scored in the second night."""
    rows, _ = AlertsTable(root, "ztf").read(["alert_id", "object_id", "outcome", "topic"])
    found: dict[str, set[str]] = {}
    for row in rows.to_pylist():
        if row["outcome"] == "scored" and DATE not in row["topic"]:
            found.setdefault(row["object_id"], set()).add(row["alert_id"])
    return found


def taught(root: Path, second: str, **settings: object) -> tuple[Trainer, dict[str, dict]]:
    """A trainer that was told some labels in one night, and has seen another; the questions by object."""
    a_night(root, DATE)
    made = trainer(root, queries=LABELS, **settings)
    made.turn()
    questions = {query["object_id"]: query for query in open_queries(root)}
    for query in questions.values():
        answer(root, query, truth(query), event_id=f"said-of-{query['object_id']}")
    made.turn()
    a_night(root, second)
    made.turn()
    return made, questions


def later(root: Path) -> dict[str, dict]:
    rows = EventLog(root, "later").read().to_pylist()
    assert len({row["object_id"] for row in rows}) == len(rows)
    return {row["object_id"]: row for row in rows}


@pytest.fixture(scope="module")
def two_nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer, dict[str, dict]]:
    root = tmp_path_factory.mktemp("two")
    return root, *taught(root, "20260907")


def test_each_object_that_comes_again_teaches_once_what_was_said_of_it(two_nights: tuple) -> None:
    root, made, questions = two_nights
    again = {name: ids for name, ids in of_second_night(root).items() if name in questions}
    kinds = {name: truth(questions[name]) for name in again}
    expected = {name for name, kind in kinds.items() if kind != "bogus"}
    assert expected
    found = later(root)
    assert set(found) == expected
    assert all(row["alert_id"] in again[name] for name, row in found.items())
    lessons = dict(made.pupils[MODEL].lessons)
    assert len(lessons) == LABELS + len(expected)
    assert all(lessons[row["event_id"]] == kinds[name] for name, row in found.items())
    assert {one.alert_id for one in made.pupils[MODEL].taken} >= {row["alert_id"] for row in found.values()}


def test_whoever_comes_back_has_learned_the_same(two_nights: tuple) -> None:
    root, made, _ = two_nights
    again = trainer(root, queries=LABELS)
    again.turn()
    assert again.pupils[MODEL].lessons == made.pupils[MODEL].lessons
    assert digest(again) == digest(made)


def test_what_is_withdrawn_of_the_first_alert_is_withdrawn_of_the_later_ones(tmp_path: Path) -> None:
    made, questions = taught(tmp_path, "20260907")
    one = next(iter(later(tmp_path).values()))
    query = questions[one["object_id"]]
    answer(tmp_path, query, None, replaces=f"said-of-{one['object_id']}", withdrawn=True)
    made.turn()
    left = dict(made.pupils[MODEL].lessons)
    assert not {one["event_id"], f"said-of-{one['object_id']}"} & set(left)
    assert len(left) == LABELS + len(later(tmp_path)) - 2


def test_a_revision_is_taught_of_the_later_ones_too_unless_it_is_said_of_one_alert(tmp_path: Path) -> None:
    made, questions = taught(tmp_path, "20260907")
    one = next(iter(later(tmp_path).values()))
    query, first = questions[one["object_id"]], f"said-of-{one['object_id']}"
    other = "agn" if truth(query) != "agn" else "supernova"
    answer(tmp_path, query, other, event_id="revised-once", replaces=first)
    made.turn()
    assert dict(made.pupils[MODEL].lessons)[one["event_id"]] == other
    answer(tmp_path, query, "bogus", event_id="revised-twice", replaces="revised-once")
    made.turn()
    lessons = dict(made.pupils[MODEL].lessons)
    assert (lessons["revised-twice"], one["event_id"] in lessons) == ("bogus", False)


@pytest.mark.parametrize(
    ("second", "settings"),
    [
        ("20260903", {}),  # within five days
        ("20260907", {"later_alerts": False}),
        ("20260907", {"thinning_days": 0.0}),
        ("20260907", {"of_alert": ["supernova", "agn", "variable_star", "bogus"]}),
    ],
)
def test_none_is_taught(tmp_path: Path, second: str, settings: dict) -> None:
    made, questions = taught(tmp_path, second, **settings)
    assert questions.keys() & of_second_night(tmp_path).keys()
    assert later(tmp_path) == {}
    assert len(made.pupils[MODEL].lessons) == LABELS


def test_an_alert_that_was_labelled_itself_is_what_that_label_says(two_nights: tuple) -> None:
    root, made, questions = two_nights
    pupil = made.pupils[MODEL]
    one = Later.of_row(next(iter(later(root).values())))
    assert not pupil.concerns(one)
    said = pupil.ledger.lesson(one.of, MODEL)
    assert said is not None
    assert one.lesson(said).alert_id == one.alert_id
    wrong = "agn" if said.label != "agn" else "supernova"
    query = {**questions[one.object_id], "alert_id": one.alert_id, "query_id": None}
    answer(root, query, wrong, event_id="of-the-later-one")
    made.turn()
    lessons = dict(pupil.lessons)
    assert (lessons["of-the-later-one"], one.event_id in lessons) == (wrong, False)
