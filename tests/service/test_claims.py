"""Nobody is asked what somebody else looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raybroker.archive.events import EventLog
from raybroker.service.asked import Asked
from raybroker.service.claims import Claims, event

MARIA, TYCHO = {"Authorization": "Bearer right"}, {"Authorization": "Bearer other"}
NOW = 1_800_000_000.0


def query(name: str, **changed: Any) -> dict[str, Any]:
    own = {"query_id": name, "model": "m", "survey": "ztf", "alert_id": f"ztf:{name}", "object_id": "ztf:o"}
    return {**own, "event_id": f"e-{name}", "rank": 0, "snapshot": 1, "state": "open", **changed}


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def desk(archive: Path, tmp_path: Path, service: Any) -> Any:
    """The archive's questions for two people, and a clock."""
    people = service.Sessions({"right": "maria", "other": "tycho"}, b"s", tmp_path)
    logs = {"labels": EventLog(tmp_path, "labels"), "questions": EventLog(tmp_path, "queries")}
    return service.open_station(archive, **logs, sessions=people, clock=Clock())


def ids(desk: Any, headers: Any = None) -> list[str]:
    return [one["query_id"] for one in desk.get("/queries", headers=headers or {}).json()["queries"]]


def claim(desk: Any, query_id: str, headers: Any, method: str = "POST") -> Any:
    return desk.send(method, f"/queries/{query_id}/claim", headers=headers)


def test_what_one_claims_another_is_not_asked(desk: Any) -> None:
    first, *others = ids(desk)
    answer = claim(desk, first, MARIA)
    assert answer.status_code == 200
    assert answer.json() == {"query_id": first, "who": "maria", "until": NOW + 600}
    assert ids(desk, TYCHO) == others
    assert ids(desk, MARIA) == ids(desk) == [first, *others]
    shown = {one["query_id"]: one["claimed"] for one in desk.get("/queries").json()["queries"]}
    assert shown[first] == {"who": "maria", "until": NOW + 600}
    assert shown[others[0]] is None


def test_a_held_question_is_409_and_says_by_whom(desk: Any) -> None:
    first = ids(desk)[0]
    claim(desk, first, MARIA)
    answer = claim(desk, first, TYCHO)
    assert answer.status_code == 409
    assert answer.json() == {
        "error": "maria is looking at this; ask GET /queries for what is free",
        "who": "maria",
        "until": NOW + 600,
    }


def test_a_claim_ends_by_its_time(desk: Any) -> None:
    first = ids(desk)[0]
    claim(desk, first, MARIA)
    desk.desk.clock.now += 599.0
    assert claim(desk, first, TYCHO).status_code == 409
    desk.desk.clock.now += 1.0
    assert first in ids(desk, TYCHO)
    assert claim(desk, first, TYCHO).json()["who"] == "tycho"
    assert claim(desk, first, MARIA).status_code == 409


def test_one_may_renew_and_nothing_is_written_before_half_of_the_time(desk: Any) -> None:
    first = ids(desk)[0]
    claim(desk, first, MARIA)
    desk.desk.clock.now += 100.0
    assert claim(desk, first, MARIA).json()["until"] == NOW + 600
    desk.desk.clock.now += 250.0
    assert claim(desk, first, MARIA).json()["until"] == NOW + 350 + 600
    rows = desk.desk.questions.read().to_pylist()
    assert [(row["state"], row["claim"], row["until"].timestamp()) for row in rows] == [
        ("claimed", "maria", NOW + 600),
        ("claimed", "maria", NOW + 950),
    ]


def test_a_claim_given_back_is_free_at_once(desk: Any) -> None:
    first = ids(desk)[0]
    claim(desk, first, MARIA)
    assert claim(desk, first, TYCHO, "DELETE").status_code == 409
    assert claim(desk, first, MARIA, "DELETE").json() == {"query_id": first, "who": None, "until": None}
    assert claim(desk, first, MARIA, "DELETE").status_code == 200
    assert first in ids(desk, TYCHO)
    assert claim(desk, first, TYCHO).status_code == 200


def test_a_claim_needs_a_token_and_an_open_question(desk: Any) -> None:
    first = ids(desk)[0]
    assert claim(desk, first, {}).status_code == 401
    assert claim(desk, "never-asked", MARIA).status_code == 404
    assert claim(desk, "..%2F..%2Fetc", MARIA).status_code in (404, 422)
    alert = next(one for one in desk.get("/queries").json()["queries"] if one["query_id"] == first)
    label = {"event_id": "event-0001", "alert_id": alert["alert_id"], "label": "AGN"}
    assert desk.post("/labels", json=label, headers=MARIA).status_code == 201
    answered = claim(desk, first, TYCHO)
    assert (answered.status_code, "answered" in answered.json()["error"]) == (409, True)


def test_of_two_servers_one_gives_the_claim(desk: Any, archive: Path, service: Any) -> None:
    """The other has not heard of it yet when it is asked."""
    other = service.open_station(
        archive,
        labels=desk.desk.labels,
        questions=EventLog(desk.desk.questions.folder.parent, "queries"),
        sessions=desk.desk.sessions,
        clock=desk.desk.clock,
    )
    first = ids(desk)[0]
    assert claim(desk, first, MARIA).status_code == 200
    refused = claim(other, first, TYCHO)
    assert (refused.status_code, refused.json()["who"]) == (409, "maria")
    desk.desk.clock.now += 601.0
    assert claim(other, first, TYCHO).status_code == 200
    assert claim(desk, first, MARIA).json()["who"] == "tycho"


def test_two_people_never_get_the_same_alert_while_claims_hold(desk: Any) -> None:
    """Each takes the first that is free, answers or not, and time goes on by less than a claim."""
    looked: dict[str, list[tuple[float, str]]] = {"maria": [], "tycho": []}
    for i in range(40):
        name, headers = [("maria", MARIA), ("tycho", TYCHO)][i % 2]
        free = desk.get("/queries", headers=headers).json()["queries"]
        wanted = free[i % max(1, len(free))]
        assert claim(desk, wanted["query_id"], headers).status_code == 200
        other = "tycho" if name == "maria" else "maria"
        held = {alert for then, alert in looked[other] if then + 600 > desk.desk.clock.now}
        assert wanted["alert_id"] not in held
        looked[name].append((desk.desk.clock.now, wanted["alert_id"]))
        desk.desk.clock.now += 150.0


def test_an_object_that_is_asked_anew_is_still_held() -> None:
    asked = Asked()
    asked.add_queries([query("a"), event(query("a"), "maria", NOW, NOW + 60, None)])
    asked.add_queries([query("a", state="withdrawn"), query("b", snapshot=2)])
    assert asked.open("m", who="tycho", now=NOW) == []
    assert [row["query_id"] for row in asked.open("m", who="maria", now=NOW)] == ["b"]
    assert [row["query_id"] for row in asked.open("m", who="tycho", now=NOW + 61)] == ["b"]


def test_where_raw_labels_answer_all_models_a_claim_is_of_the_object_for_all() -> None:
    asked = Asked({"m": {"SN": ["sn"]}, "n": {"real": ["sn"]}})
    asked.add_queries([query("a"), query("b", model="n"), query("c", model="own")])
    asked.add_queries([event(query("a"), "maria", NOW, NOW + 60, None)])
    assert [row["query_id"] for row in asked.open(who="tycho", now=NOW)] == ["c"]
    assert {row["query_id"] for row in asked.open(who="maria", now=NOW)} == {"a", "b", "c"}
    other = asked.held(query("b", model="n"), "tycho", NOW)
    assert other is not None
    assert other.who == "maria"
    assert asked.held(query("b", model="n"), "maria", NOW) is None


def test_a_question_of_a_model_that_is_gone_cannot_be_claimed(desk: Any) -> None:
    desk.desk.asked.add_queries([query("old", model="gone")])
    assert claim(desk, "old", MARIA).status_code == 404


def test_a_claim_does_not_open_what_is_gone() -> None:
    asked = Asked()
    asked.add_queries(
        [query("a"), query("a", state="withdrawn"), event(query("a"), "maria", NOW, NOW + 60, None)]
    )
    assert asked.open("m") == []


def test_a_log_that_is_told_again_ends_with_the_last_claim() -> None:
    claims = Claims()
    first = event(query("a"), "maria", NOW, NOW + 600, None)
    claims.add(first)
    back = event(query("a"), "maria", NOW + 5, NOW + 5, claims.last(query("a")))
    claims.add(back)
    assert claims.holder(query("a"), NOW + 6) is None
    last = event(query("a"), "tycho", NOW + 7, NOW + 607, claims.last(query("a")))
    for row in (last, first, back, last):
        claims.add(row)
    holder = claims.holder(query("a"), NOW + 8)
    assert (holder and holder.who, claims.holder(query("a", object_id="ztf:p"), NOW + 8)) == ("tycho", None)
    again = Claims()
    for row in (first, back, first, back):
        again.add(row)
    assert again.holder(query("a"), NOW + 6) is None
