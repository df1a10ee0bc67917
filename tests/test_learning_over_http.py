"""A hundred labels through the HTTP API, with the simulator's truth as oracle, from packets to better scores."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sklearn.metrics import roc_auc_score

from raybroker import settings as settings_file
from raybroker import simulate
from raybroker.cluster.single import Single
from raybroker.service import server
from raybroker.synthetic import Sky

SKY = Sky.for_night(5, 900)
DATE = "20260901"
MODEL = "transient"
CLASSES = ["supernova", "other"]
PROBES = 80

pytestmark = pytest.mark.timeout(600)


@dataclass
class World:
    """A run of everything in this process, and its API."""

    crew: Single
    http: httpx.Client
    folder: Path

    def label(self, query: dict[str, Any], label: str) -> httpx.Response:
        names = ("alert_id", "model", "query_id", "snapshot")
        body = {name: query[name] for name in names} | {"event_id": uuid.uuid4().hex, "label": label}
        return self.http.post("/labels", json=body)

    def queries(self) -> list[dict[str, Any]]:
        return self.http.get("/queries").json()["queries"]

    def score(self, features: dict[str, float | None]) -> float:
        answer = self.http.post("/scores", json={"model": MODEL, "features": features})
        assert answer.status_code == 200, answer.text
        return answer.json()["classes"]["supernova"]

    def turn(self, wanted: Callable[[], bool]) -> None:
        for _ in range(200):
            self.crew.step()
            if wanted():
                return
        raise AssertionError("two hundred turns were not enough")


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate.write_night(
        tmp_path_factory.mktemp("night"), simulate.night(SKY, 900, DATE, cutouts=False)
    )[0]


@contextmanager
def world(night: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv(settings_file.TOKENS_VARIABLE, "ann:secret")
    settings = settings_file.parse(
        {
            "archive": {"root": str(folder)},
            "surveys": {"ztf": {"servers": f"replay:{night}", "workers": 1}},
            "turn": {"seconds": 0.05},
            "steps": {"paths": []},
            "models": {MODEL: {"classes": CLASSES}},
            "learning": {"snapshot_seconds": 0.01},
            "service": {"port": 18500},
        }
    )
    crew = Single(settings)
    with server.in_thread(settings) as url:
        headers = {"Authorization": "Bearer secret"}
        with httpx.Client(base_url=url, headers=headers, timeout=30.0) as http:
            made = World(crew, http, folder)
            made.turn(lambda: crew.drained() and len(made.queries()) == 10)
            yield made
        crew.stop()


def truth(alert_id: str) -> str:
    return "supernova" if simulate.truth(SKY, alert_id) == "supernova" else "other"


def probes(made: World) -> dict[str, tuple[str, dict[str, float | None]]]:
    """Objects with features, that nobody will label: by alert id, the object and its features."""
    rows = made.http.get("/alerts", params={"limit": 600}).json()["alerts"]
    chosen = {row["object_id"]: row["alert_id"] for row in rows}
    found = {}
    for object_id, alert_id in list(chosen.items())[: PROBES + 100]:
        basic = made.http.get(f"/alerts/{alert_id}").json()["columns"]["basic"]
        found[alert_id] = (object_id, {f"basic.{name}": value for name, value in basic.items()})
    return found


def teach(made: World, oracle: Callable[[str], str], labels: int = 100) -> set[str]:
    """Label what is asked, ten at a time; the objects that were labelled."""
    seen: set[str] = set()
    while len(seen) < labels:
        asked = made.queries()
        assert not seen & {query["object_id"] for query in asked}, "what was labelled must leave the list"
        for query in asked[: labels - len(seen)]:
            assert made.label(query, oracle(query["alert_id"])).status_code == 201
            seen.add(query["object_id"])
        made.turn(
            lambda: bool({q["object_id"] for q in made.queries()} - seen) and learned(made) >= len(seen)
        )
    return seen


def learned(made: World) -> int:
    assert made.crew.lesson is not None
    return made.crew.lesson.labels[MODEL]


def auc(made: World, fixed: dict[str, tuple[str, dict[str, float | None]]], without: set[str]) -> float:
    unseen = {alert: features for alert, (name, features) in fixed.items() if name not in without}
    assert len(unseen) >= PROBES
    scores = [made.score(features) for features in unseen.values()]
    return float(roc_auc_score([truth(alert) == "supernova" for alert in unseen], scores))


def test_a_hundred_labels_lift_the_auc_on_unseen_objects(
    night: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(night, tmp_path, monkeypatch) as made:
        fixed = probes(made)
        assert auc(made, fixed, set()) == pytest.approx(0.5, abs=0.05)
        probe = made.queries()[0]
        features = fixed.get(probe["alert_id"], (None, None))[1] or features_of(made, probe["alert_id"])
        before = made.score(features)
        seen = teach(made, truth)
        assert auc(made, fixed, seen) >= 0.85
        towards = 1 if truth(probe["alert_id"]) == "supernova" else -1
        assert towards * (made.score(features) - before) > 0.1
        model = made.http.get("/models").json()["models"][0]
        assert model["labels"]["labels"] == 100
        assert model["snapshot"]["number"] >= 10
    assert released(tmp_path) == {"snapshot": str(model["snapshot"]["number"]), "labels": 100.0}


def features_of(made: World, alert_id: str) -> dict[str, float | None]:
    basic = made.http.get(f"/alerts/{alert_id}").json()["columns"]["basic"]
    return {f"basic.{name}": value for name, value in basic.items()}


def released(folder: Path) -> dict[str, Any]:
    """What MLflow shows of the last release."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raybroker")
    run = client.search_runs([experiment.experiment_id])[0]
    return {"snapshot": run.data.tags["raybroker.snapshot"], "labels": run.data.metrics["labels"]}


def test_flipped_labels_bring_the_auc_under_one_half(
    night: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(night, tmp_path, monkeypatch) as made:
        fixed = probes(made)
        seen = teach(made, lambda alert: CLASSES[1 - CLASSES.index(truth(alert))])
        assert auc(made, fixed, seen) < 0.5


def test_labels_that_cannot_be_taken_say_why(
    night: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(night, tmp_path, monkeypatch) as made:
        query = made.queries()[0]
        assert made.label(query | {"alert_id": "ztf:1"}, "other").status_code == 404
        refused = made.label(query, "quasar")
        assert refused.status_code == 422
        assert "supernova" in refused.json()["error"]
        made.http.headers.pop("Authorization")
        assert made.label(query, "other").status_code == 401
        assert made.queries()[0]["alert_id"] == query["alert_id"]
