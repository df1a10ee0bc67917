"""Every endpoint, with real alerts."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from raybroker.errors import ArchiveError, PacketError
from raybroker.scores.online import feature_digest
from raybroker.settings import ModelSettings

TOKEN = {"Authorization": "Bearer right"}
OTHER = {"Authorization": "Bearer other"}


@pytest.fixture
def question(station: Any) -> dict[str, Any]:
    """The first open question."""
    found: dict[str, Any] = station.get("/queries").json()["queries"][0]
    return found


def body(question: dict[str, Any], event_id: str = "event-0001", **changed: Any) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "alert_id": question["alert_id"],
        "label": "AGN",
        "query_id": question["query_id"],
    } | changed


def strict(response: Any) -> Any:
    """The JSON of a response, refused if it has NaN or an integer that JavaScript cannot hold."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    def integer(text: str) -> int:
        assert abs(int(text)) <= 2**53, text
        return int(text)

    return json.loads(response.content, parse_constant=refuse, parse_int=integer)


# Reading.


def test_alerts_are_listed_newest_first_with_scores(station: Any) -> None:
    page = strict(station.get("/alerts", params={"limit": 3}))
    assert [alert["offset"] for alert in page["alerts"]] == [119, 118, 117]
    alert = page["alerts"][0]
    assert alert["outcome"] == "scored"
    assert alert["scores"]["transients"]["snapshot"] == 7
    assert sum(alert["scores"]["transients"]["classes"].values()) == pytest.approx(1, abs=1e-6)
    following = station.get("/alerts", params={"limit": 3, "before": page["before"]}).json()
    assert [alert["offset"] for alert in following["alerts"]] == [116, 115, 114]


def test_alerts_are_narrowed_by_the_parameters(station: Any) -> None:
    everything = station.get("/alerts?limit=1000&outcome=any").json()["alerts"]
    assert len(everything) == 122
    kept = [alert for alert in everything if alert["outcome"] == "scored"]
    for parameters, chosen in [
        ("night=20231019", lambda a: a["night"] == 20231019),
        ("filter=northern", lambda a: a["dec"] > 0),
        ("class=AGN&min_score=0.5", lambda a: a["scores"]["transients"]["classes"]["AGN"] >= 0.5),
    ]:
        found = station.get(f"/alerts?limit=1000&{parameters}").json()["alerts"]
        assert [a["alert_id"] for a in found] == [a["alert_id"] for a in kept if chosen(a)]
        assert 0 < len(found) < len(kept)
    (dead,) = station.get("/alerts?outcome=dead").json()["alerts"]
    assert (dead["alert_id"], dead["offset"]) == (None, 120)


def test_a_cone_finds_the_alert_at_its_centre(station: Any, question: dict[str, Any]) -> None:
    alert = question["alert"]
    cone = {"ra": alert["ra"], "dec": alert["dec"], "radius_arcsec": 2}
    found = station.get("/alerts", params=cone).json()["alerts"]
    assert alert["alert_id"] in [one["alert_id"] for one in found]
    cone["dec"] += 5 / 3600
    assert alert["alert_id"] not in [
        one["alert_id"] for one in station.get("/alerts", params=cone).json()["alerts"]
    ]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("limit=1001", "limit"),
        ("limit=0", "limit"),
        ("night=yesterday", "yesterday"),
        ("class=nova", "no class 'nova'"),
        ("class=supernove", "did you mean 'supernova'"),
        ("model=transient&class=AGN", "did you mean 'transients'"),
        ("survey=rubi", "no survey 'rubi'"),
        ("min_score=0.5", "needs a class"),
        ("class=AGN&min_score=2", "min_score"),
        ("ra=10", "all of ra, dec and radius_arcsec"),
        ("ra=10&dec=91&radius_arcsec=1", "dec"),
        ("ra=nan&dec=1&radius_arcsec=1", "ra"),
        ("before=../etc", "before"),
        ("filter=a;drop table", "filter"),
        ("outcome=lost", "outcome"),
    ],
)
def test_a_wrong_parameter_is_named(station: Any, parameters: str, said: str) -> None:
    answer = station.get(f"/alerts?{parameters}")
    assert answer.status_code == 422
    assert said in strict(answer)["error"]


def test_a_cursor_that_is_gone_is_410(station: Any) -> None:
    answer = station.get("/alerts?before=night:0:999999")
    assert answer.status_code == 410
    assert "begin again" in answer.json()["error"]


def test_an_alert_has_all_that_is_known(station: Any, question: dict[str, Any]) -> None:
    alert = strict(station.get(f"/alerts/{question['alert_id']}"))
    assert alert["alert_id"] == question["alert_id"]
    assert alert["object_id"].removeprefix("ztf:") == alert["ztf"]["objectId"]
    assert alert["history"][-1]["mjd"] <= alert["mjd"] + 1
    assert alert["columns"]["basic"]
    (score,) = alert["scores"].values()
    assert len(score.pop("features")) == 64
    assert alert["scores"] == question["alert"]["scores"]
    assert "galaxies" in alert["catalogues"]


def test_an_object_has_one_light_curve_and_its_scores(station: Any) -> None:
    listed = station.get("/alerts?limit=1000").json()["alerts"]
    names = [alert["object_id"] for alert in listed]
    often = max(set(names), key=names.count)
    found = strict(station.get(f"/objects/{often}"))
    assert len(found["alerts"]) == names.count(often)
    assert all(alert["scores"]["transients"]["snapshot"] == 7 for alert in found["alerts"])
    keys = [(round(p["mjd"], 4), p["band"], p["kind"]) for p in found["light_curve"]]
    assert len(set(keys)) == len(keys)
    assert [key[0] for key in keys] == sorted(key[0] for key in keys)
    times = {round(alert["mjd"], 4) for alert in found["alerts"]}
    assert times <= {key[0] for key in keys if key[2] == "detection"}


def test_a_cutout_is_fits_or_a_picture(station: Any, question: dict[str, Any]) -> None:
    path = f"/cutouts/{question['alert_id']}/science"
    file = station.get(path)
    assert file.headers["content-type"] == "image/fits"
    shape = fits.getdata(
        io.BytesIO(file.content.replace(b"SIMPLE  =  T" + b" " * 18, b"SIMPLE  =" + b" " * 20 + b"T"))
    ).shape
    for asked in ({"params": {"format": "png"}}, {"headers": {"Accept": "image/avif,image/png,*/*"}}):
        answer = station.get(path, **asked)
        assert answer.headers["content-type"] == "image/png"
        assert np.asarray(Image.open(io.BytesIO(answer.content))).shape[:2] == shape
    pictures = {
        station.get(path, params={"format": "png", "stretch": stretch, "limits": limits}).content
        for stretch in ("asinh", "linear", "log")
        for limits in ("zscale", "percentile", "minmax")
    }
    assert len(pictures) == 9
    assert station.get(path, params={"format": "png", "stretch": "cubic"}).status_code == 422
    assert station.get(path, params={"format": "gif"}).status_code == 422
    assert station.get(path.replace("science", "secret")).status_code == 422


@pytest.mark.parametrize(
    "path", ["/alerts/ztf:1", "/objects/ztf:ZTF00nobody", "/cutouts/ztf:1/science", "/nothing"]
)
def test_what_nobody_knows_is_404_with_a_sentence(station: Any, path: str) -> None:
    answer = station.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]


@pytest.mark.parametrize(
    "hostile",
    [
        "..%2F..%2Fetc%2Fpasswd",
        "ztf:..%2F..%2Fx",
        "ztf:1'or'1'='1",
        "ztf:%00",
        "ztf:" + "9" * 400,
        "%E2%98%83:1",
        ":",
        "ztf:",
    ],
)
def test_hostile_ids_are_refused(station: Any, hostile: str) -> None:
    for path in (f"/alerts/{hostile}", f"/objects/{hostile}", f"/cutouts/{hostile}/science"):
        assert station.get(path).status_code in (404, 422)


def test_questions_say_why(station: Any) -> None:
    found = strict(station.get("/queries?model=transients&limit=2"))["queries"]
    assert [one["rank"] for one in found] == [0, 1]
    assert "margin" in found[0]["reason"]
    assert set(found[0]["probabilities"]) == {"mixture", "softmax", "naive_bayes", "forest"}
    assert found[0]["alert"]["alert_id"] == found[0]["alert_id"]
    assert station.get("/queries?model=nobody").status_code == 422


# Labels.


def test_a_label_is_on_the_disk_and_leaves_the_queue(
    desk_to_write: Any, question: dict[str, Any], tmp_path: Path
) -> None:
    answer = desk_to_write.post("/labels", json=body(question, snapshot=7, source="page"), headers=TOKEN)
    assert answer.status_code == 201
    assert strict(answer) == {
        **{name: body(question)[name] for name in ("event_id", "alert_id", "label")},
        **{"model": "transients", "who": "maria", "repeated": False},
    }
    (row,) = desk_to_write.desk.labels.read().to_pylist()
    assert (row["who"], row["label"], row["query_id"], row["snapshot"]) == (
        "maria",
        "AGN",
        question["query_id"],
        7,
    )
    assert row["object_id"] == question["object_id"]
    open_now = [one["query_id"] for one in desk_to_write.get("/queries").json()["queries"]]
    assert question["query_id"] not in open_now
    assert len(open_now) == 4
    known = desk_to_write.get(f"/objects/{question['object_id']}").json()["labels"]
    assert [(one["label"], one["who"], one["standing"]) for one in known] == [("AGN", "maria", True)]


def test_the_same_event_changes_nothing(desk_to_write: Any, question: dict[str, Any]) -> None:
    codes = [desk_to_write.post("/labels", json=body(question), headers=TOKEN) for _ in range(3)]
    assert [(answer.status_code, answer.json()["repeated"]) for answer in codes] == [
        (201, False),
        (200, True),
        (200, True),
    ]
    assert len(desk_to_write.desk.labels.read()) == 1


def test_the_same_event_that_another_server_took_changes_nothing(
    desk_to_write: Any, question: dict[str, Any]
) -> None:
    desk_to_write.post("/labels", json=body(question), headers=TOKEN)
    desk_to_write.desk.asked.__init__()  # this server has not heard of it
    answer = desk_to_write.post("/labels", json=body(question), headers=TOKEN)
    assert (answer.status_code, answer.json()["repeated"]) == (200, True)
    assert len(desk_to_write.desk.labels.read()) == 1


def test_an_event_id_cannot_say_two_things(desk_to_write: Any, question: dict[str, Any]) -> None:
    desk_to_write.post("/labels", json=body(question), headers=TOKEN)
    answer = desk_to_write.post("/labels", json=body(question, label="supernova"), headers=TOKEN)
    assert answer.status_code == 409
    assert "used before" in answer.json()["error"]


def test_undo_brings_the_question_back(desk_to_write: Any, question: dict[str, Any]) -> None:
    desk_to_write.post("/labels", json=body(question), headers=TOKEN)
    undo = body(question, "event-0002", label=None, withdrawn=True, replaces="event-0001")
    assert desk_to_write.post("/labels", json=undo, headers=TOKEN).status_code == 201
    assert desk_to_write.get("/queries").json()["queries"][0]["query_id"] == question["query_id"]
    assert desk_to_write.get("/status").json()["tonight"] == {}
    labels = desk_to_write.desk.labels.read().to_pylist()
    assert [(row["label"], row["withdrawn"]) for row in labels] == [("AGN", False), (None, True)]


def test_cant_tell_is_an_answer(desk_to_write: Any, question: dict[str, Any]) -> None:
    assert desk_to_write.post("/labels", json=body(question, label=None), headers=TOKEN).status_code == 201
    assert desk_to_write.get("/status").json()["tonight"]["transients"]["classes"] == {"can't tell": 1}


@pytest.mark.parametrize(
    ("changed", "headers", "code", "said"),
    [
        ({}, {}, 401, "need a token"),
        ({}, {"Authorization": "Bearer wrong"}, 401, "need a token"),
        ({}, {"Cookie": "raybroker=forged.forged"}, 401, "need a token"),
        ({"alert_id": "ztf:1"}, TOKEN, 404, "no alert 'ztf:1'"),
        ({"alert_id": "../../etc/passwd"}, TOKEN, 422, "alert_id"),
        ({"label": "supernove"}, TOKEN, 422, "did you mean 'supernova'"),
        ({"label": "nova"}, TOKEN, 422, "['supernova', 'AGN', 'variable star']"),
        ({"model": "nobody"}, TOKEN, 422, "no model 'nobody'"),
        ({"who": "somebody else"}, TOKEN, 422, "who"),
        ({"event_id": "short"}, TOKEN, 422, "event_id"),
        ({"replaces": "never-seen"}, TOKEN, 404, "no label 'never-seen'"),
        ({"withdrawn": True, "label": None}, TOKEN, 422, "replaces"),
        ({"source": "magic"}, TOKEN, 422, "source"),
        ({"comment": "x" * 3000}, TOKEN, 422, "comment"),
        ({"comment": "x" * 100_000}, TOKEN, 413, "larger than"),
    ],
)
def test_a_wrong_label_is_refused_with_a_sentence(
    desk_to_write: Any, question: dict[str, Any], changed: Any, headers: Any, code: int, said: str
) -> None:
    answer = desk_to_write.post("/labels", json=body(question, **changed), headers=headers)
    assert answer.status_code == code
    assert said in strict(answer)["error"]
    assert len(desk_to_write.desk.labels.read()) == 0


def test_a_label_without_a_class_is_not_cant_tell(desk_to_write: Any, question: dict[str, Any]) -> None:
    given = body(question)
    del given["label"]
    assert desk_to_write.post("/labels", json=given, headers=TOKEN).status_code == 422


def test_labels_are_listed_newest_first_and_say_which_hold(
    desk_to_write: Any, question: dict[str, Any]
) -> None:
    desk_to_write.post("/labels", json=body(question, comment="blended"), headers=TOKEN)
    desk_to_write.post("/labels", json=body(question, "event-0002", label="supernova"), headers=OTHER)
    revised = body(question, "event-0003", label=None, replaces="event-0001")
    desk_to_write.post("/labels", json=revised, headers=TOKEN)
    found = strict(desk_to_write.get("/labels"))["labels"]
    assert [(one["label"], one["who"], one["standing"]) for one in found] == [
        (None, "maria", True),
        ("supernova", "tycho", True),
        ("AGN", "maria", False),
    ]
    assert found[2]["comment"] == "blended"
    assert [one["event_id"] for one in desk_to_write.get("/labels?who=tycho").json()["labels"]] == [
        "event-0002"
    ]
    assert len(desk_to_write.get("/labels?model=transients&limit=2").json()["labels"]) == 2
    assert desk_to_write.get("/labels?model=nobody").status_code == 422


# The page and its link.


def test_a_link_opens_the_page_once(desk_to_write: Any, question: dict[str, Any]) -> None:
    link = f"/open/{desk_to_write.desk.sessions.link('maria')}"
    answer = desk_to_write.get(link)
    assert (answer.status_code, answer.headers["location"]) == (303, "../")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    cookies = {"Cookie": cookie.split(";")[0]}
    assert desk_to_write.get("/me", headers=cookies).json() == {"name": "maria"}
    assert desk_to_write.post("/labels", json=body(question), headers=cookies).status_code == 201
    assert desk_to_write.get("/me").json() == {"name": None}
    again = desk_to_write.get(link)
    assert again.status_code == 410
    assert "used before" in again.json()["error"]
    assert "used before" in desk_to_write.get(link, headers={"Accept": "text/html"}).text
    assert desk_to_write.get("/open/nonsense").status_code == 410


def test_the_page_and_its_files_are_served(station: Any) -> None:
    page = station.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name, kind in (
        ("page.css", "text/css"),
        ("page.js", "text/javascript"),
        ("curve.js", "text/javascript"),
    ):
        assert station.get(f"/static/{name}").headers["content-type"].startswith(kind)
    for hostile in ("index.html", "..%2Fapi.py", "%2e%2e/api.py", "nothing.js"):
        assert station.get(f"/static/{hostile}").status_code == 404


def test_plotly_comes_from_here_packed(station: Any) -> None:
    packed = station.get("/static/plotly.min.js", headers={"Accept-Encoding": "gzip"})
    plain = station.get("/static/plotly.min.js", headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content  # httpx unpacks
    assert len(plain.content) > 1_000_000


# Scores.


def test_features_and_packets_are_scored(station: Any) -> None:
    features = station.post("/scores", json={"features": {"x": 0.25, "y": None}})
    assert strict(features) == {"model": "transients", "snapshot": 7, "classes": {"AGN": 0.25}}
    kind = {"Content-Type": "application/octet-stream"}
    packet = station.post("/scores?survey=ztf", content=b"0123", headers=kind)
    assert strict(packet) == {"survey": "ztf", "bytes": 4}
    assert station.post("/scores", content=b"0123", headers=kind).status_code == 422
    assert station.post("/scores?survey=lsst", content=b"0123", headers=kind).status_code == 422
    assert station.post("/scores?survey=ztf", content=bytes(5 << 20), headers=kind).status_code == 413


@pytest.mark.parametrize(
    "wrong",
    [b"", b"{", b"[]", b'{"features": 3}', b'{"features": {"x": "a"}}', b'{"model": "x", "features": {}}'],
)
def test_features_that_are_none_are_refused(station: Any, wrong: bytes) -> None:
    answer = station.post("/scores", content=wrong, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert strict(answer)["error"]


# Watching.


def test_the_counts_of_the_status_add_up(station: Any) -> None:
    status = strict(station.get("/status"))
    outcomes = ("scored", "failed", "rejected", "dead", "duplicate")
    assert status["total"] == {
        "received": 122,
        "scored": 120,
        "failed": 0,
        "rejected": 0,
        "dead": 1,
        "duplicate": 1,
    }
    for night in [status["total"], *status["nights"]]:
        assert night["received"] == sum(night[name] for name in outcomes)
    assert sum(night["received"] for night in status["nights"]) == 122


def test_health_goes_the_way_an_alert_goes(archive: Path, service: Any) -> None:
    well = service.open_station(archive)
    assert strict(well.get("/health")) == {"ok": True, "problems": []}
    late = service.open_station(archive, problems=lambda: ["no turn of ztf-0 for 90 s"])
    assert late.get("/health").status_code == 503
    assert strict(late.get("/health"))["problems"] == ["no turn of ztf-0 for 90 s"]
    unreadable = service.open_station(archive, lookup=Broken())
    assert unreadable.get("/health").status_code == 503
    assert "file is gone" in unreadable.get("/health").json()["problems"][0]
    assert unreadable.get(f"/alerts/{well.get('/alerts').json()['alerts'][0]['alert_id']}").status_code == 503


class Broken:
    """An archive whose files went away."""

    def alert(self, alert_id: str) -> None:
        raise ArchiveError("file is gone")


def test_models_say_where_they_stand(station: Any) -> None:
    (model,) = strict(station.get("/models"))["models"]
    assert (model["name"], model["classes"]) == ("transients", ["supernova", "AGN", "variable star"])
    assert model["open_queries"] == 5


def test_a_learning_curve_has_the_measures_of_every_snapshot(archive: Path, service: Any) -> None:
    own = service.open_station(archive)
    assert strict(own.get("/models/transients/curve")) == {"model": "transients", "snapshots": []}
    when = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    rows = [
        {
            "model": "transients",
            "number": n,
            "labels": n - 1,
            "when": when,
            "digest": "d",
            "metrics": {"auc": n / 100},
        }
        for n in (3, 1, 2, *range(4, 101))
    ]
    own.desk.asked.add_snapshots([*rows, {"model": "other", "number": 1}])
    whole = strict(own.get("/models/transients/curve"))["snapshots"]
    assert [one["number"] for one in whole] == list(range(1, 101))
    assert whole[1] == {"number": 2, "labels": 1, "when": when.isoformat(), "metrics": {"auc": 0.02}}
    few = own.get("/models/transients/curve?limit=10").json()["snapshots"]
    assert [one["number"] for one in few] == list(range(10, 101, 10))
    missing = own.get("/models/transient/curve")
    assert (missing.status_code, "did you mean 'transients'" in missing.json()["error"]) == (404, True)


def test_a_score_names_its_snapshot_and_the_digest_of_its_features(
    station: Any, question: dict[str, Any]
) -> None:
    alert = station.get(f"/alerts/{question['alert_id']}").json()
    age = station.desk.lookup.alert(question["alert_id"])["basic"]["age"]
    assert alert["scores"]["transients"]["snapshot"] == 7
    assert alert["scores"]["transients"]["features"] == feature_digest([age])
    unknown = dataclasses.replace(station.desk, columns=lambda model, number: None)
    assert unknown.alert(question["alert_id"])["scores"]["transients"]["features"] is None


def test_the_status_says_how_many_answers_of_the_nights_budget_are_given(
    desk_to_write: Any, question: dict[str, Any]
) -> None:
    budget = {"transients": ModelSettings(classes=["supernova", "AGN"], budget=10)}
    desk = dataclasses.replace(desk_to_write.desk, models=budget)
    assert desk.report()["progress"] == {"transients": {"answered": 0, "budget": 10}}
    desk_to_write.post("/labels", json=body(question), headers=TOKEN)
    assert desk.report()["progress"] == {"transients": {"answered": 1, "budget": 10}}
    assert desk_to_write.get("/status").json()["progress"]["transients"] == {"answered": 1, "budget": None}


def test_metrics_are_prometheus_text(station: Any) -> None:
    station.get("/alerts/ztf:1")
    text = station.get("/metrics").text
    assert 'raybroker_archived_alerts{outcome="scored",survey="ztf"} 120.0' in text
    assert re.search(r'path="/alerts/{alert_id}",replica="[^"]+",status="404"', text)
    assert "raybroker_http_seconds_bucket" in text


def test_an_error_inside_is_a_sentence_too(archive: Path, service: Any) -> None:
    def fail(survey: str, packet: bytes) -> None:
        raise PacketError("its Avro header is damaged")

    own = service.open_station(archive, score_packet=fail)
    answer = own.post(
        "/scores?survey=ztf", content=b"x", headers={"Content-Type": "application/octet-stream"}
    )
    assert (answer.status_code, answer.json()) == (422, {"error": "its Avro header is damaged"})


def test_the_api_describes_itself(station: Any) -> None:
    paths = station.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        *(
            "/alerts",
            "/alerts/{alert_id}",
            "/objects/{object_id}",
            "/cutouts/{alert_id}/{kind}",
            "/queries",
            "/labels",
        ),
        *("/scores", "/models", "/models/{name}/curve", "/status", "/health", "/metrics", "/me"),
        *("/queries/{query_id}/claim", "/queries/events", "/queries/atom.xml"),
        *("/labels/batch", "/labels/standing"),
    }
    assert all(operation.get("description") for path in paths.values() for operation in path.values())
    assert station.get("/docs").status_code == 200
