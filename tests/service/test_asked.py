"""The queue and the labels in memory."""

from __future__ import annotations

import datetime
from typing import Any

from raybroker.service.asked import Asked

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def query(name: str, state: str = "open", **changed: Any) -> dict[str, Any]:
    own = {
        "query_id": name,
        "model": "m",
        "alert_id": f"ztf:{name}",
        "object_id": f"ztf:o{name}",
        "state": state,
    }
    return {**own, "rank": 0, "snapshot": 1, **changed}


def label(event_id: str, name: str, **changed: Any) -> dict[str, Any]:
    own = {
        "event_id": event_id,
        "survey": "ztf",
        "alert_id": f"ztf:{name}",
        "object_id": f"ztf:o{name}",
        "model": "m",
    }
    return {**own, "label": "SN", "who": "maria", "when": NOW, **changed}


def open_ids(asked: Asked, model: str | None = "m") -> list[str]:
    return [row["query_id"] for row in asked.open(model)]


def test_the_list_is_in_the_order_to_ask() -> None:
    asked = Asked()
    asked.add_queries(
        [query("c", rank=2), query("a", rank=0), query("b", rank=1), query("new", rank=0, snapshot=2)]
    )
    assert open_ids(asked) == ["new", "a", "b", "c"]
    assert [row["query_id"] for row in asked.open("m", 1)] == ["new"]
    assert open_ids(asked, "other") == []


def test_a_withdrawn_question_leaves_and_may_come_back() -> None:
    asked = Asked()
    asked.add_queries([query("a"), query("a", "withdrawn")])
    assert open_ids(asked) == []
    asked.add_queries([query("a")])
    assert open_ids(asked) == ["a"]


def test_an_answer_takes_its_object_out_until_it_is_withdrawn() -> None:
    asked = Asked()
    asked.add_queries(
        [query("a"), query("b", object_id="ztf:oa"), query("c", model="other", object_id="ztf:oa")]
    )
    asked.add_labels([label("e1", "a", label=None)])
    assert open_ids(asked, None) == ["c"]
    asked.add_labels([label("e2", "a", label=None, withdrawn=True, replaces="e1")])
    assert sorted(open_ids(asked)) == ["a", "b"]


def test_a_label_that_is_told_twice_counts_once() -> None:
    asked = Asked()
    asked.add_labels([label("e1", "a"), label("e1", "a")])
    asked.add_labels([label("e1", "a")])
    assert asked.progress() == {"m": {"labels": 1, "classes": {"SN": 1}, "people": {"maria": 1}}}


def test_a_revised_label_counts_as_what_it_is_now() -> None:
    asked = Asked()
    asked.add_labels(
        [label("e1", "a"), label("e2", "a", label="AGN", replaces="e1"), label("e3", "b", label=None)]
    )
    assert asked.progress()["m"]["classes"] == {"AGN": 1, "can't tell": 1}
    assert [row["standing"] for row in asked.labels("ztf:oa", [])] == [False, True]


def test_what_nobody_asked_is_not_one_of_the_nights_answers() -> None:
    asked = Asked()
    asked.add_labels([label("l1", "a", query_id="q1"), label("l2", "b", source="tns"), label("l3", "c")])
    assert asked.answers(0.0) == {"m": 1}
    assert asked.answers(NOW.timestamp() + 1) == {}
    asked.add_labels([label("l4", "a", label=None, replaces="l1", withdrawn=True)])
    assert asked.answers(0.0) == {}


def test_progress_of_the_night_leaves_out_what_is_older() -> None:
    asked = Asked()
    asked.add_labels([label("e1", "a"), label("e2", "b", when=NOW - datetime.timedelta(days=1))])
    assert asked.progress(NOW.timestamp() - 3600)["m"]["labels"] == 1


def test_the_newest_snapshot_stands() -> None:
    asked = Asked()
    asked.add_snapshots([{"model": "m", "number": 3}, {"model": "m", "number": 2}])
    assert asked.snapshot("m") == {"model": "m", "number": 3}
