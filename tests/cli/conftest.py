"""A service over a small archive of real ZTF packets, and a client of it that needs no network."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from raybroker.archive.events import EventLog
from raybroker.cli.asking import Client
from raybroker.service.asked import Asked
from raybroker.service.follow import Follower
from raybroker.service.sessions import Sessions
from raybroker.service.view import Query, View
from raybroker.settings import ModelSettings
from tests.service.conftest import CLASSES, MODELS, Station, ask, fill, night, open_station, pipeline_of

RAW = ["extragal", "agn", "varstar", "bogus"]
RAW_MODELS = {
    "transients": ModelSettings(
        classes=CLASSES, raw={"supernova": ["extragal"], "AGN": ["agn"], "variable star": ["varstar"]}
    ),
    "real": ModelSettings(
        classes=["yes", "no"], raw={"yes": ["extragal", "agn", "varstar"], "no": ["bogus"]}
    ),
}


class Bridge(httpx.BaseTransport):
    """Takes requests to the application in this process."""

    def __init__(self, station: Station) -> None:
        self.station = station

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        given = {"headers": dict(request.headers), "content": request.read()}
        answer = self.station.send(request.method, request.url.raw_path.decode(), **given)
        return httpx.Response(answer.status_code, content=answer.content)


@dataclasses.dataclass
class Town:
    """A service, its archive, and one person's client."""

    station: Station
    client: Client
    console: Console

    def said(self) -> str:
        """What was printed."""
        return self.console.export_text()

    def labels(self, **query: Any) -> list[dict[str, Any]]:
        return list(self.client.get("/labels", limit=1000, **query)["labels"])


@pytest.fixture(scope="session")
def small_archive(data: Path, ztf_packets: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """122 received packets and questions about five of them; tests do not write to it."""
    root = tmp_path_factory.mktemp("archive")
    fill(root, pipeline_of(data, root / "catalogues"), night(ztf_packets("selected_20231018")))
    view = open_station(root).desk.view
    ask(root, [row for row in view.alerts(Query()).rows if row["object_id"]][:5])
    return root


def town_of(root: Path, folder: Path, models: Mapping[str, ModelSettings], raw: Sequence[str]) -> Town:
    people = Sessions({"right": "maria", "other": "tycho"}, b"s", folder)
    view, asked = View(catalogues=["galaxies"]), Asked({name: own.raw for name, own in models.items()})
    Follower(root, ["ztf"], view, asked).step()
    changed = {"view": view, "asked": asked, "models": models, "raw": raw, "sessions": people}
    logs = {name: EventLog(folder, log) for name, log in (("labels", "labels"), ("questions", "queries"))}
    station = open_station(root, **logs, **changed)
    console = Console(record=True, width=200, file=io.StringIO())
    return Town(station, client_of(station, "right"), console)


def client_of(station: Station, token: str) -> Client:
    headers = {"Authorization": f"Bearer {token}"}
    http = httpx.Client(base_url="http://test", headers=headers, transport=Bridge(station))
    return Client("http://test", http=http)


@pytest.fixture
def town(small_archive: Path, tmp_path: Path) -> Town:
    """One model."""
    return town_of(small_archive, tmp_path, MODELS, [])


@pytest.fixture
def raw_town(small_archive: Path, tmp_path: Path) -> Town:
    """Two models that learn from raw labels."""
    return town_of(small_archive, tmp_path, RAW_MODELS, RAW)
