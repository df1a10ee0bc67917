"""A small archive of real ZTF packets, made by a real worker, and a desk over it."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from raybroker import surveys
from raybroker.alerts import Packet
from raybroker.archive.events import EventLog
from raybroker.archive.lookup import Lookup
from raybroker.archive.table import AlertsTable, row_schema
from raybroker.cluster.worker import Books, Worker
from raybroker.crossmatch import local
from raybroker.cuts.quality import good_pixels, real
from raybroker.features.basic import basic
from raybroker.filters.where import where
from raybroker.pipeline import Pipeline, plan
from raybroker.scores import online
from raybroker.service import api
from raybroker.service.asked import Asked
from raybroker.service.desk import Desk
from raybroker.service.follow import Follower
from raybroker.service.sessions import Sessions
from raybroker.service.view import View
from raybroker.settings import ModelSettings, TurnSettings
from raybroker.stream.memory import MemorySource

CLASSES = ["supernova", "AGN", "variable star"]
MODELS = {"transients": ModelSettings(classes=CLASSES)}
TOKEN = {"Authorization": "Bearer right"}


@dataclasses.dataclass(frozen=True)
class Prediction:
    mixture: np.ndarray


class Guess:
    """A model whose answer differs from alert to alert."""

    def predict(self, features: Any) -> Prediction:
        raw = np.abs(np.nan_to_num(features.column(0).to_numpy())) % 7 + 1.0
        mixture = np.stack([raw, 8 - raw, np.full(len(raw), 2.0)], axis=1)
        return Prediction(mixture / mixture.sum(axis=1, keepdims=True))


def pipeline_of(data: Path, folder: Path) -> Pipeline:
    prepared = local.prepared(data / "catalogues" / "mangrove.parquet", folder)
    score = online.score("transients", ["basic.age"], CLASSES)
    steps = [
        *(real, good_pixels, basic, where("northern", "dec > 0")),
        online.pinned(score, Guess(), 7),
        local.step("galaxies", prepared, 60.0),
    ]
    return plan(steps, surveys.load("ztf").schema, "ztf")


def fill(root: Path, made: Pipeline, packets: list[Packet], limit: int = 50) -> None:
    """Take all packets through a worker, in turns of `limit`."""
    table = AlertsTable(root, "ztf", row_schema(made.columns))
    books = Books(table)
    source = MemorySource(packets, books.start)
    worker = Worker(surveys.load("ztf"), made, source, books, TurnSettings(packets=limit))
    while not source.end_reached():
        worker.turn()


def ask(root: Path, rows: list[dict[str, Any]]) -> None:
    """Write open questions about these alerts, the first to be asked first."""
    now = datetime.datetime.now(datetime.UTC)
    EventLog(root, "queries").append([question(row, rank, now) for rank, row in enumerate(rows)])


def question(row: dict[str, Any], rank: int, now: datetime.datetime) -> dict[str, Any]:
    mixture = [row["scores"]["transients"]["classes"][name] for name in CLASSES]
    members = {
        "mixture": mixture,
        "softmax": mixture,
        "naive_bayes": [0.2, 0.5, 0.3],
        "forest": [0.6, 0.1, 0.3],
    }
    return {
        **{name: row[name] for name in ("survey", "alert_id", "object_id")},
        "event_id": f"e-{row['alert_id']}",
        "query_id": f"q-{row['alert_id']}",
        "model": "transients",
        "strategy": "margin",
        "reason": "margin 0.04 between AGN (0.41) and supernova (0.37), snapshot 7",
        "rank": rank,
        "snapshot": 7,
        "features": {"basic.age": 3.5},
        "classes": CLASSES,
        "probabilities": [{"member": name, "probabilities": p} for name, p in members.items()],
        "when": now,
        "state": "open",
    }


@dataclasses.dataclass
class Station:
    """A desk over an archive, its follower, and an HTTP client."""

    root: Path
    desk: Desk
    follower: Follower
    app: FastAPI

    def send(self, method: str, path: str, **given: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **given)

        return asyncio.run(once())

    def get(self, path: str, **given: Any) -> httpx.Response:
        return self.send("GET", path, **given)

    def post(self, path: str, **given: Any) -> httpx.Response:
        return self.send("POST", path, **given)


def open_station(root: Path, **changed: Any) -> Station:
    """A fresh server's picture of an archive."""
    view, asked = View(catalogues=["galaxies"]), Asked()
    follower = Follower(root, ["ztf"], view, asked)
    follower.step()
    given = {
        "view": view,
        "asked": asked,
        "lookup": Lookup(root),
        "labels": EventLog(root, "labels"),
        "questions": EventLog(root, "queries"),
        "sessions": Sessions({"right": "maria"}, b"secret", root / "links"),
        "models": MODELS,
        "surveys": {"ztf": surveys.load("ztf")},
        "score": lambda model, features: {
            "model": model,
            "snapshot": 7,
            "classes": {"AGN": features.get("x")},
        },
        "score_packet": lambda survey, packet: {"survey": survey, "bytes": len(packet)},
        "columns": lambda model, number: ("basic.age",) if number == 7 else None,
        "problems": follower.problems,
        "delay": lambda: follower.delay,
    }
    desk = Desk(**{**given, **changed})
    return Station(root, desk, follower, api.create(desk))


def night(packets: tuple[Packet, ...], count: int = 120) -> list[Packet]:
    """Real packets with a broken one and a repeated one among them, a millisecond apart."""
    first = min(count, 120)
    chosen = [*packets[:first], Packet(b"Obj\x01broken"), packets[3], *packets[first:count]]
    stamped = [
        dataclasses.replace(p, topic="night", offset=i, timestamp_ms=1_700_000_000_000 + i)
        for i, p in enumerate(chosen)
    ]
    return stamped


@pytest.fixture(scope="session")
def archive(data: Path, ztf_packets: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """122 received packets of 2023-10-18 and questions about five of them; tests do not write to it."""
    root = tmp_path_factory.mktemp("archive")
    fill(root, pipeline_of(data, root / "catalogues"), night(ztf_packets("selected_20231018")))
    view = View()
    Follower(root, ["ztf"], view, Asked()).step()
    ask(root, [row for row in view.alerts(api.view.Query()).rows if row["object_id"]][:5])
    return root


@pytest.fixture(scope="session")
def service() -> Any:
    """The functions above, for tests that build their own."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def station(archive: Path) -> Station:
    """For tests that only read."""
    return open_station(archive)


@pytest.fixture
def desk_to_write(archive: Path, tmp_path: Path) -> Station:
    """The same archive with logs of labels and questions of its own, for two people."""
    people = Sessions({"right": "maria", "other": "tycho"}, b"s", tmp_path)
    logs = {"labels": EventLog(tmp_path, "labels"), "questions": EventLog(tmp_path, "queries")}
    return open_station(archive, **logs, sessions=people)
