"""Raw labels, labels of another time, and many at once."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from raybroker.archive.events import EventLog
from raybroker.service import bulk
from raybroker.service.asked import Asked
from raybroker.settings import ModelSettings

TOKEN = {"Authorization": "Bearer right"}
RAW = ["extragal", "agn", "varstar", "bogus"]
REAL = ModelSettings(classes=["yes", "no"], raw={"yes": ["extragal", "agn", "varstar"], "no": ["bogus"]})


@pytest.fixture
def raw(service: Any, archive: Path, tmp_path: Path) -> Any:
    """Two models, one of which learns from raw labels."""
    models = service.MODELS | {"real": REAL}
    logs = {"labels": EventLog(tmp_path, "labels"), "questions": EventLog(tmp_path, "queries")}
    made = service.open_station(archive, models=models, raw=RAW, **logs)
    made.desk.asked._raws = {"real": REAL.raw}
    return made


def alerts(station: Any, count: int = 3) -> list[dict[str, Any]]:
    found = station.get("/alerts", params={"limit": 60}).json()["alerts"]
    return [row for row in found if row["object_id"]][:count]


def say(station: Any, **given: Any) -> Any:
    return station.post("/labels", json=given, headers=TOKEN)


def send(station: Any, *given: Any) -> list[dict[str, Any]]:
    answer = station.post("/labels/batch", json={"labels": list(given)}, headers=TOKEN)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["results"])


def test_a_label_without_a_model_is_a_raw_label_where_there_are_raw_classes(raw: Any) -> None:
    alert = alerts(raw)[0]["alert_id"]
    answer = say(raw, event_id="event-0001", alert_id=alert, label="bogus")
    assert (answer.status_code, answer.json()["model"]) == (201, "")
    assert say(raw, event_id="event-0002", alert_id=alert, label=None).json()["model"] == ""
    models = {one["name"]: one for one in raw.get("/models").json()["models"]}
    assert models["real"]["raw"] == RAW
    assert models["transients"]["raw"] == []
    assert models["real"]["labels"]["classes"] == {"can't tell": 1}


def test_a_raw_class_that_is_not_there_is_refused_with_the_nearest(raw: Any) -> None:
    alert = alerts(raw)[0]["alert_id"]
    answer = say(raw, event_id="event-0001", alert_id=alert, label="bogos")
    assert answer.status_code == 422
    assert "no class 'bogos' (did you mean 'bogus'?): raw labels are" in answer.json()["error"]
    own = say(raw, event_id="event-0001", alert_id=alert, label="bogus", model="real")
    assert "it is a raw label: leave 'model' out" in own.json()["error"]


def test_one_model_with_raw_classes_takes_both_its_own_and_raw_ones(
    service: Any, archive: Path, tmp_path: Path
) -> None:
    log = EventLog(tmp_path, "labels")
    one = service.open_station(archive, models={"real": REAL}, raw=RAW, labels=log)
    alert = alerts(one)[0]["alert_id"]
    assert say(one, event_id="event-0001", alert_id=alert, label="agn").json()["model"] == ""
    assert say(one, event_id="event-0002", alert_id=alert, label="yes").json()["model"] == "real"


def test_a_withdrawal_needs_no_model(raw: Any) -> None:
    alert = alerts(raw)[0]["alert_id"]
    say(raw, event_id="event-0001", alert_id=alert, label="AGN", model="transients")
    answer = say(
        raw, event_id="event-0002", alert_id=alert, label=None, replaces="event-0001", withdrawn=True
    )
    assert (answer.status_code, answer.json()["model"]) == (201, "transients")


def test_a_label_of_another_alert_or_model_cannot_be_replaced(raw: Any) -> None:
    first, second, _ = (row["alert_id"] for row in alerts(raw))
    say(raw, event_id="event-0001", alert_id=first, label="AGN", model="transients")
    for other in ({"alert_id": second, "model": "transients"}, {"alert_id": first, "model": "real"}):
        answer = say(raw, event_id="event-0002", label=None, replaces="event-0001", **other)
        assert answer.status_code == 422
        assert "cannot replace it" in answer.json()["error"]


def test_when_it_was_said_may_be_told_but_not_the_future(raw: Any) -> None:
    alert = alerts(raw)[0]["alert_id"]
    given = {"alert_id": alert, "label": "AGN", "model": "transients"}
    say(raw, event_id="event-0001", when="2025-06-02T10:11:12.345678", **given)
    assert raw.desk.asked.label("event-0001").when == pytest.approx(1748859072.345678, abs=1e-6)
    late = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    answer = say(raw, event_id="event-0002", when=late.isoformat(), **given)
    assert (answer.status_code, "lies in the future" in answer.json()["error"]) == (422, True)


def test_an_object_that_the_alert_is_not_of_is_refused(raw: Any) -> None:
    alert = alerts(raw)[0]
    given = {"alert_id": alert["alert_id"], "label": "AGN", "model": "transients"}
    answer = say(raw, event_id="event-0001", object_id="ztf:ZTF99other", **given)
    assert "is of object" in answer.json()["error"]
    assert say(raw, event_id="event-0002", object_id=alert["object_id"], **given).status_code == 201


def test_of_many_labels_the_good_are_recorded_and_the_others_say_why(raw: Any) -> None:
    one, two, three = ({"alert_id": row["alert_id"], "model": "transients"} for row in alerts(raw))
    results = send(
        raw,
        {"event_id": "event-0001", "label": "AGN", **one},
        {"event_id": "event-0001", "label": "AGN", **one},
        {"event_id": "event-0001", "label": "supernova", **one},
        {"event_id": "event-0002", "label": "ANG", **two},
        {"event_id": "event-0003", "label": "AGN", "alert_id": "ztf:1", "model": "transients"},
        {"event_id": "x", "label": "AGN", **three},
        {"event_id": "event-0005", "label": "AGN", "who": "tycho", **three},
        {"event_id": "event-0006", "label": "AGN", **three},
        {},
    )
    assert [(one.get("repeated", False), bool(one.get("error")), one.get("field")) for one in results] == [
        (False, False, None),
        (True, False, None),
        (False, True, ""),
        (False, True, "label"),
        (False, True, "alert_id"),
        (False, True, "event_id"),
        (False, True, "who"),
        (False, False, None),
        (False, True, "event_id"),
    ]
    assert [row["event_id"] for row in raw.desk.labels.read().to_pylist()] == ["event-0001", "event-0006"]
    assert {row["who"] for row in raw.get("/labels/standing").json()["labels"]} == {"maria"}
    assert [one["repeated"] for one in send(raw, {"event_id": "event-0006", "label": "AGN", **three})] == [
        True
    ]


def test_many_labels_need_a_token_and_are_no_more_than_a_thousand(raw: Any) -> None:
    assert raw.post("/labels/batch", json={"labels": []}).status_code == 401
    assert raw.post("/labels/batch", json={"labels": [{}] * 1001}, headers=TOKEN).status_code == 422
    assert send(raw) == []


def test_standing_labels_are_all_that_hold_in_order_of_arrival(raw: Any) -> None:
    one, two, _ = (row["alert_id"] for row in alerts(raw))
    say(raw, event_id="event-0001", alert_id=two, label="AGN", model="transients")
    say(raw, event_id="event-0002", alert_id=one, label="bogus")
    say(raw, event_id="event-0003", alert_id=two, label=None, replaces="event-0001", withdrawn=True)
    say(raw, event_id="event-0004", alert_id=two, label="supernova", model="transients")
    names = [row["event_id"] for row in raw.get("/labels/standing").json()["labels"]]
    assert names == ["event-0002", "event-0004"]
    own = raw.get("/labels/standing", params={"model": "transients"}).json()["labels"]
    assert [row["event_id"] for row in own] == ["event-0004"]


def test_alerts_are_looked_up_in_the_survey_of_their_prefix(raw: Any, tmp_path: Path) -> None:
    row = alerts(raw, 1)[0]
    found = bulk.known_alerts(raw.desk.lookup, [row["alert_id"], "ztf:1"])
    assert {key: one["object_id"] for key, one in found.items()} == {row["alert_id"]: row["object_id"]}
    assert bulk.known_alerts(type(raw.desk.lookup)(tmp_path / "empty"), ["ztf:1"]) == {}


def test_a_raw_answer_takes_its_object_out_of_the_questions_of_models_with_raw_labels() -> None:
    asked = Asked({"real": REAL.raw, "plain": {}})
    own = {"alert_id": "ztf:1", "object_id": "ztf:o1", "rank": 0, "snapshot": 1}
    asked.add_queries([{**own, "query_id": f"q-{name}", "model": name} for name in ("real", "plain")])
    said = {"event_id": "event-0001", "survey": "ztf", "model": "", "label": "agn", "who": "maria"}
    asked.add_labels([{**said, **own, "when": datetime.datetime.now(datetime.UTC)}])
    assert [row["query_id"] for row in asked.open()] == ["q-plain"]
    assert asked.progress()["real"]["classes"] == {"yes": 1}
    assert set(asked.progress()) == {"real"}


def test_a_line_that_cannot_be_is_left_out_and_the_others_count(caplog: pytest.LogCaptureFixture) -> None:
    asked = Asked()
    now = datetime.datetime.now(datetime.UTC)
    own = {"survey": "ztf", "object_id": None, "model": "m", "label": "SN", "who": "maria", "when": now}
    rows = [("e1", "ztf:1", None), ("e2", "ztf:2", "e1"), ("e3", "ztf:3", None)]
    asked.add_labels([{**own, "event_id": e, "alert_id": a, "replaces": r} for e, a, r in rows])
    assert [row["event_id"] for row in asked.standing()] == ["e1", "e3"]
    assert "a label is left out" in caplog.text
