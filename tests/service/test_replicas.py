"""Several servers over one archive: what one has recorded, another knows when it is asked about it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from raybroker import settings as settings_file
from raybroker.archive.events import EventLog
from raybroker.archive.lookup import Lookup

MARIA, TYCHO = {"Authorization": "Bearer right"}, {"Authorization": "Bearer other"}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(archive: Path, tmp_path: Path) -> Path:
    """The archive of the night, to write to."""
    return Path(shutil.copytree(archive, tmp_path / "archive"))


@pytest.fixture
def two(root: Path, service: Any) -> list[Any]:
    """Two servers that look at the archive only when they must."""
    people = service.Sessions({"right": "maria", "other": "tycho"}, b"s", root / "links")
    made = []
    for _ in range(2):
        station = service.open_station(root, sessions=people)
        object.__setattr__(station.desk, "refresh", station.follower.refresh)
        made.append(station)
    return made


def label_of(question: Any, event_id: str, **more: Any) -> dict[str, Any]:
    names = ("alert_id", "model", "query_id")
    return {name: question[name] for name in names} | {"event_id": event_id, "label": "AGN", **more}


def test_a_label_is_undone_by_the_server_that_has_not_heard_of_it(two: list[Any]) -> None:
    one, other = two
    question = one.get("/queries").json()["queries"][0]
    assert one.post("/labels", json=label_of(question, "first-label"), headers=MARIA).status_code == 201
    undo = label_of(question, "undo-label", label=None, replaces="first-label", withdrawn=True)
    assert other.post("/labels", json=undo, headers=MARIA).status_code == 201
    one.desk.refresh()
    assert one.desk.asked.standing("transients") == []


def test_a_label_sent_again_to_another_server_is_the_same_label_and_another_of_its_id_is_a_conflict(
    two: list[Any],
) -> None:
    one, other = two
    question = one.get("/queries").json()["queries"][0]
    told = label_of(question, "first-label")
    assert one.post("/labels", json=told, headers=MARIA).status_code == 201
    conflict = other.post("/labels", json=told | {"label": "supernova"}, headers=MARIA)
    assert conflict.status_code == 409
    again = other.post("/labels", json=told, headers=MARIA)
    assert (again.status_code, again.json()["repeated"]) == (200, True)
    assert len(one.desk.labels.read()) == 1


def test_a_question_is_claimed_at_the_server_that_has_not_heard_of_it(two: list[Any], root: Path) -> None:
    one, other = two
    (row,) = Lookup(root).sql("select * from queries order by rank limit 1").to_pylist()
    new = row | {"event_id": "e-new", "query_id": "q-new"}
    EventLog(root, "queries").append([new])
    assert other.post("/queries/q-new/claim", headers=TYCHO).status_code == 200
    assert one.post("/queries/q-new/claim", headers=MARIA).status_code == 409


# On Ray Serve.

SETTINGS = """
[archive]
root = "archive"
[surveys.ztf]
workers = 1
[models.transients]
classes = ["supernova", "AGN", "variable star"]
[service]
port = 18700
replicas = 2
requests = 8
"""
SERVER = """
import pathlib, sys
from raybroker import settings
from raybroker.cluster import supervisor  # first: it sets how Ray starts
from raybroker.cluster import serve
given = settings.load(pathlib.Path(sys.argv[1]))
supervisor.start_ray(given)
with serve.started(given) as url:
    print(url, flush=True)
    sys.stdin.read()
supervisor.stop_ray()
"""


@pytest.fixture(scope="module")
def served(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Two replicas; where they listen, and their archive."""
    root = Path(shutil.copytree(archive, tmp_path_factory.mktemp("replicas") / "archive"))
    settings = root.parent / "raybroker.toml"
    settings.write_text(SETTINGS)
    tokens = ",".join(f"p{i}:t{i}" for i in range(8))
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(settings)],
        env=os.environ | {settings_file.TOKENS_VARIABLE: tokens, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().strip(), root
        process.stdin.close()  # it leaves
        process.wait(60)


def token(number: int) -> dict[str, str]:
    return {"Authorization": f"Bearer t{number}"}


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_two_replicas_give_no_question_to_two_people_and_show_each_others_labels(
    served: tuple[str, Path],
) -> None:
    url, _ = served
    with httpx.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(8) as pool:
        assert _replicas(http) == 2
        questions = http.get("/queries").json()["queries"]

        def take(number: int) -> list[str]:
            answers = [http.post(f"/queries/{q['query_id']}/claim", headers=token(number)) for q in questions]
            assert {answer.status_code for answer in answers} <= {200, 409}
            return [answer.json()["query_id"] for answer in answers if answer.status_code == 200]

        taken = [query_id for mine in pool.map(take, range(8)) for query_id in mine]
        assert sorted(taken) == sorted(question["query_id"] for question in questions)
        body = label_of(questions[0], "by-p0-label")
        assert http.post("/labels", json=body, headers=token(0)).status_code == 201
        _until(lambda: all(_has(http, "by-p0-label") for _ in range(12)))
        undo = label_of(questions[0], "undo-p0-label", label=None, replaces="by-p0-label", withdrawn=True)
        assert http.post("/labels", json=undo, headers=token(0)).status_code == 201


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_listener_goes_on_at_whichever_replica_it_comes_back_to(served: tuple[str, Path]) -> None:
    url, root = served
    (row,) = Lookup(root).sql("select * from queries where state = 'open' order by rank limit 1").to_pylist()
    log = EventLog(root, "queries")
    log.append([row | {"event_id": f"e-{i}", "query_id": f"q-{i}"} for i in range(3)])
    with httpx.Client(base_url=url, timeout=60) as http:
        _until(lambda: all(_asks(http, "q-2") for _ in range(12)))
        for _ in range(6):  # each time at either of the two
            heard = _heard(http, "e-0", 2)
            assert [told["query_id"] for told in heard] == ["q-1", "q-2"]


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_what_is_beyond_their_bound_is_told_to_come_back_by_serve_too(served: tuple[str, Path]) -> None:
    url, _ = served

    async def flood(count: int) -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
            return list(await asyncio.gather(*(http.get("/alerts") for _ in range(count))))

    answers = asyncio.run(flood(400))
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(int(one.headers["retry-after"]) >= 1 for one in answers if one.status_code == 429)
    assert [answer.status_code for answer in asyncio.run(flood(4))] == [200] * 4


def _replicas(http: httpx.Client) -> int:
    """How many have answered: each counts its own requests, under its own name."""
    found: set[str] = set()

    def look() -> bool:
        found.update(
            re.findall(r'raybroker_http_requests_total{[^}]*replica="([^"]+)"', http.get("/metrics").text)
        )
        return len(found) == 2

    _until(look)
    return len(found)


def _has(http: httpx.Client, event_id: str) -> bool:
    return any(one["event_id"] == event_id for one in http.get("/labels").json()["labels"])


def _asks(http: httpx.Client, query_id: str) -> bool:
    return any(one["query_id"] == query_id for one in http.get("/queries").json()["queries"])


def _heard(http: httpx.Client, after: str, count: int) -> list[dict[str, Any]]:
    """The first events after that one."""
    found: list[dict[str, Any]] = []
    with http.stream("GET", "/queries/events", headers={"Last-Event-ID": after}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                found.append(json.loads(line.removeprefix("data:")))
            if len(found) == count:
                break
    return found


def _until(what: Any, seconds: float = 60.0) -> None:
    end, pause = time.monotonic() + seconds, threading.Event()
    while not what():
        assert time.monotonic() < end
        pause.wait(0.05)
