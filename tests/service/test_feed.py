"""The label requests for programs: the filters, and an Atom feed that readers accept."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from raybroker.learning.shortlist import Candidate, Shortlist
from raybroker.learning.strategies import Pool, by_name
from raybroker.service import feed
from raybroker.service.asked import Asked
from raybroker.service.feed import Wanted, atom, matching
from tests.service.rows import row

ATOM = f"{{{feed.ATOM}}}"


@pytest.fixture
def fresh(service: Any, tmp_path: Any) -> Any:
    """A service over an empty archive, with two open questions."""
    station = service.open_station(tmp_path)
    station.desk.asked.add_queries([row("a", rank=1), row("b", rank=0, dec=-20.0)])
    return station


def told(*rows: dict[str, Any]) -> list[Any]:
    return [feed.message(one) for one in rows]


# The filters.


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), "abcd"),
        (Wanted(dec_min=0.0), "ac"),
        (Wanted(dec_max=0.0), "b"),
        (Wanted(dec_min=20.0, dec_max=20.0), "a"),
        (Wanted(brighter_than=18.5), "ac"),
        (Wanted(brighter_than=18.0), "c"),
        (Wanted(model="other"), "c"),
        (Wanted(label="supernova"), "b"),
        (Wanted(label="AGN", dec_min=-90.0, brighter_than=30.0), "ac"),
    ],
)
def test_a_limit_takes_what_is_known_to_be_within(wanted: Wanted, expected: str) -> None:
    questions = told(
        row("a"),
        row("b", likely="supernova", dec=-20.0, magnitude=19.0),
        row("c", model="other", dec=40.0, magnitude=17.0),
        row("d", dec=None, magnitude=None, likely="nothing", probabilities=None),
    )
    assert "".join(one["query_id"] for one in matching(questions, wanted)) == expected


def test_what_a_question_does_not_say_its_alert_in_memory_may() -> None:
    alert = {"dec": 20.0, "flux": -3630.8}  # 22.5 mag
    question = {"model": "m", "probabilities": {}, "alert": alert}
    assert matching([question], Wanted(dec_min=10.0, brighter_than=22.6)) == [question]
    assert matching([question], Wanted(brighter_than=22.4)) == []
    assert matching([{**question, "alert": None}], Wanted(brighter_than=22.6)) == []


def test_the_list_is_limited_by_the_same_parameters(station: Any) -> None:
    everything = station.get("/queries").json()["queries"]
    assert len(everything) == 5
    decs = sorted(one["alert"]["dec"] for one in everything)
    likely = everything[0]
    name = max(likely["probabilities"]["mixture"], key=likely["probabilities"]["mixture"].get)
    for parameters, chosen in [
        ({"dec_min": decs[2]}, lambda q: q["alert"]["dec"] >= decs[2]),
        ({"dec_max": decs[1]}, lambda q: q["alert"]["dec"] <= decs[1]),
        ({"class": name}, lambda q: feed.most_probable(q) == name),
        ({"brighter_than": 18.5}, lambda q: feed.magnitude(q) < 18.5),
        ({"model": "transients"}, lambda q: True),
        ({"dec_min": decs[2], "limit": 1}, lambda q: q["alert"]["dec"] >= decs[2]),
    ]:
        found = station.get("/queries", params=parameters).json()["queries"]
        expected = [q["query_id"] for q in everything if chosen(q)]
        assert [q["query_id"] for q in found] == expected[: parameters.get("limit", 100)]
        assert expected


@pytest.mark.parametrize("path", ["/queries", "/queries/events", "/queries/atom.xml"])
@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("class=supernove", "did you mean 'supernova'"),
        ("model=transient", "did you mean 'transients'"),
        ("dec_min=91", "dec_min"),
        ("dec_min=nan", "dec_min"),
        ("dec_min=5&dec_max=4", "nothing is there"),
        ("brighter_than=bright", "brighter_than"),
    ],
)
def test_a_wrong_limit_is_named(station: Any, path: str, parameters: str, said: str) -> None:
    answer = station.get(f"{path}?{parameters}")
    assert answer.status_code == 422
    assert said in answer.json()["error"]


def test_models_take_turns_and_the_place_in_the_list_is_the_rank() -> None:
    asked = Asked()
    asked.add_queries([row(f"a{rank}", rank=rank) for rank in (512, 510, 511)])
    asked.add_queries([row(f"b{rank}", rank=rank, model="other") for rank in (4, 3)])
    found = [(one["query_id"], one["rank"]) for one in asked.open()]
    assert sorted(found[:2]) == [("a510", 0), ("b3", 0)]
    assert sorted(found[2:4]) == [("a511", 1), ("b4", 1)]
    assert found[4] == ("a512", 2)


def test_whoever_works_down_the_list_answers_the_share_of_random_picks() -> None:
    """The whole way: what the shortlist opens, as the log tells it, in the order that the service shows."""
    chance, asked = np.random.default_rng(3), Asked()
    made = Shortlist("transients", ("a", "b"), ("one",), budget=10, random_share=0.2, pool=1_000)
    made.add(Candidate("ztf", f"ztf:{i}", f"ztf:o{i}", 100.0, {}) for i in range(1_000))
    said = {one.key: chance.dirichlet([1, 1]) for one in made.candidates}
    picks = []
    for snapshot in range(400):
        mixture = np.array([said[one.key] for one in made.candidates])
        pool = Pool(
            *zip(*((c.alert_id, c.object_id) for c in made.candidates), strict=True), mixture[None], mixture
        )  # type: ignore[arg-type]
        choice = made.choose("margin", by_name("margin"), pool, snapshot, chance)
        asked.add_queries(
            {**one.row(), "event_id": f"o{one.query_id}", "state": "open"} for one in choice.opened
        )
        asked.add_queries(
            {**one.row(), "event_id": f"w{one.query_id}", "state": "withdrawn"} for one in choice.withdrawn
        )
        first = asked.open("transients")[0]
        picks.append(first["strategy"] == "random")
        made.answered(first["alert_id"], first["object_id"])
        asked.add_queries([{**first, "event_id": f"a{snapshot}", "state": "answered"}])
    assert np.mean(picks) == pytest.approx(0.2, abs=0.04)
    assert np.mean(picks[200:]) == pytest.approx(0.2, abs=0.06)


# Atom.


def checked(content: bytes) -> ElementTree.Element:
    """The feed, held to what RFC 4287 demands of the elements that are here."""
    root = ElementTree.fromstring(content)
    assert root.tag == f"{ATOM}feed"
    for holder in (root, *root.findall(f"{ATOM}entry")):
        for name in ("id", "title", "updated"):
            (only,) = holder.findall(f"{ATOM}{name}")
            assert only.text
        assert holder.findtext(f"{ATOM}id").startswith("tag:raybroker,2026:")  # type: ignore[union-attr]
        when = holder.findtext(f"{ATOM}updated") or ""
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", when)
        links = [(link.get("rel"), link.get("type")) for link in holder.findall(f"{ATOM}link")]
        assert ("alternate", "text/html") in links
        assert len(links) == len(set(links))
    assert root.findtext(f"{ATOM}author/{ATOM}name")
    assert ("self", "application/atom+xml") in [
        (x.get("rel"), x.get("type")) for x in root.iter(f"{ATOM}link")
    ]
    ids = [one.text for one in root.iter(f"{ATOM}id")]
    assert len(ids) == len(set(ids))
    return root


def test_the_feed_says_what_is_asked_why_and_where(fresh: Any) -> None:
    answer = fresh.get("/queries/atom.xml")
    assert answer.headers["content-type"] == "application/atom+xml"
    root = checked(answer.content)
    first, second = root.findall(f"{ATOM}entry")
    assert first.findtext(f"{ATOM}title") == "ztf:ZTF18b: AGN?"
    assert second.findtext(f"{ATOM}summary") == row("a")["reason"]
    assert second.findtext(f"{ATOM}updated") == "2026-01-02T03:04:05.000000Z"
    assert [link.get("href") for link in second.findall(f"{ATOM}link")] == [
        "http://test/?alert=ztf%3Aa",
        "http://test/objects/ztf%3AZTF18a",
    ]


def test_the_real_questions_make_a_feed_that_holds(station: Any) -> None:
    root = checked(station.get("/queries/atom.xml").content)
    assert len(root.findall(f"{ATOM}entry")) == 5
    known = root.find(f"{ATOM}entry/{ATOM}link[@rel='related']")
    assert known is not None
    assert station.get(known.get("href").removeprefix("http://test")).status_code == 200


def test_the_feed_can_be_limited_and_says_so_in_its_id(fresh: Any) -> None:
    whole, north = (checked(fresh.get(f"/queries/atom.xml{q}").content) for q in ("", "?dec_min=0&class=AGN"))
    assert [e.findtext(f"{ATOM}title") for e in north.findall(f"{ATOM}entry")] == ["ztf:ZTF18a: AGN?"]
    assert north.findtext(f"{ATOM}id") == f"{whole.findtext(f'{ATOM}id')}?class=AGN&dec_min=0.0"


def test_the_feed_is_sent_again_only_if_it_changed(fresh: Any) -> None:
    first = fresh.get("/queries/atom.xml")
    etag = first.headers["etag"]
    for given in (etag, f'"other", W/{etag}', "*"):
        again = fresh.get("/queries/atom.xml", headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert fresh.get("/queries/atom.xml", headers={"If-None-Match": '"other"'}).status_code == 200
    fresh.desk.asked.add_queries([row("a", "answered")])
    changed = fresh.get("/queries/atom.xml", headers={"If-None-Match": etag})
    assert (changed.status_code, len(checked(changed.content).findall(f"{ATOM}entry"))) == (200, 1)


def test_an_empty_feed_is_a_feed() -> None:
    assert checked(atom([], "https://x/")).findtext(f"{ATOM}updated") == "1970-01-01T00:00:00.000000Z"


def test_signs_that_xml_cannot_hold_are_left_out_and_the_others_kept() -> None:
    odd = row("q", reason='a<b & "c"\x0b\ud800 ü', object_id=None, alert_id="ztf:<&>", query_id="a b/\x01é")
    entry = checked(atom(told(odd), "https://x/y/")).find(f"{ATOM}entry")
    assert entry is not None
    assert entry.findtext(f"{ATOM}summary") == 'a<b & "c" ü'
    assert entry.findtext(f"{ATOM}title") == "ztf:<&>: AGN?"
    assert [link.get("href") for link in entry.findall(f"{ATOM}link")] == [
        "https://x/y/?alert=ztf%3A%3C%26%3E"
    ]
