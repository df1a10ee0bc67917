"""Releases reach MLflow when they can; when they cannot, nobody waits."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raybroker.learning.learner import Learner
from raybroker.learning.registry import Registry, Release, svg

pytestmark = pytest.mark.filterwarnings(r"ignore:::mlflow(\.|$)", r"ignore:::alembic(\.|$)")
WHEN = 1_700_000_000.0


@pytest.fixture(scope="module")
def learner() -> Learner:
    made = Learner("transients", ("AGN", "SN"), ("x", "y"), seed=1)
    made.learn(pa.table({"x": [1.0, 2.0, 3.0], "y": [1.0, None, 2.0]}), ["AGN", "SN", "AGN"])
    return made


def release(learner: Learner, snapshot: int = 1, **more: Any) -> Release:
    frozen = learner.frozen()
    given = {
        "params": {"members": learner.member_names},
        "metrics": {"auc": 0.9, "unknown": float("nan")},
        "curves": {"auc": [(i, i / 1_000) for i in range(1_200)]},
        **more,
    }
    return Release(learner.name, snapshot, frozen.digest(), "plan1", frozen.snapshot(), WHEN, **given)


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_release_becomes_a_run_of_the_local_store(tmp_path: Path, learner: Learner) -> None:
    registry = Registry.local(tmp_path)
    registry.release(release(learner, 7))
    assert registry.close(120) == 0
    assert (registry.logged, registry.dropped, registry.last_error) == (1, 0, "")
    from mlflow import MlflowClient, pyfunc

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("raybroker").experiment_id])
    assert run.info.run_name == "transients-7"
    assert (run.info.status, run.info.start_time) == ("FINISHED", int(WHEN * 1000))
    assert run.data.tags["raybroker.snapshot"] == "7"
    assert run.data.tags["raybroker.digest"] == learner.frozen().digest()
    assert run.data.tags["raybroker.plan"] == "plan1"
    assert run.data.params["members"] == "('softmax', 'naive_bayes', 'forest')"
    assert run.data.metrics == {"auc": 0.9, "curve.auc": pytest.approx(1.199)}
    assert len(client.get_metric_history(run.info.run_id, "curve.auc")) == 1_200
    files = tmp_path / "mlflow" / run.info.run_id / "artifacts"
    assert (files / "plots" / "auc.svg").read_text().startswith("<svg")
    pandas = pytest.importorskip("pandas")
    served = pyfunc.load_model(str(files / "model")).predict(
        pandas.DataFrame({"x": [1.5, 2.5], "y": [1.0, None]})
    )
    expected = learner.predict(pa.table({"x": [1.5, 2.5], "y": [1.0, None]})).mixture
    assert (served[["AGN", "SN"]].to_numpy() == expected).all()


def test_a_refused_release_does_not_hold_up_the_next(tmp_path: Path, learner: Learner) -> None:
    registry = Registry.local(tmp_path)
    registry.release(release(learner, 1, metrics={"no*such?name": 1.0}))
    registry.release(release(learner, 2))
    assert registry.close(120) == 0
    assert (registry.logged, registry.dropped) == (1, 1)


def test_an_unreachable_server_costs_the_caller_nothing(learner: Learner) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        registry = Registry(f"http://127.0.0.1:{unused.getsockname()[1]}", keep=3, first_pause=0.05)
        one = release(learner)
        began = time.monotonic()
        for _ in range(10):
            registry.release(one)
        assert time.monotonic() - began < 0.5
        wait_for(lambda: registry.last_error)
    assert registry.pending == 3
    assert registry.dropped == 7
    began = time.monotonic()
    assert registry.close(0.2) == 3
    assert time.monotonic() - began < 1.5
    registry.release(one)
    assert registry.dropped == 11


def test_a_server_that_never_answers_does_not_hold_up_the_caller(learner: Learner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        registry = Registry(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        registry.release(release(learner))
        assert time.monotonic() - began < 0.2
        assert registry.close(0.3) == 1
        assert time.monotonic() - began < 2


class Tracking(BaseHTTPRequestHandler):
    """The few calls of MLflow's REST interface that a release makes, or 500 while `server.broken` says so."""

    server: Any

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}"))

    def _answer(self, body: dict[str, Any]) -> None:
        call = self.path.split("?")[0].removeprefix("/api/2.0/mlflow/")
        self.server.calls.append(call)
        failing = self.server.broken(call)
        content = json.dumps({} if failing else self.server.reply(call, body)).encode()
        self.send_response(500 if failing else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def tracking(folder: Path) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Tracking)
    server.calls, server.runs = [], {}
    server.broken = lambda call: True

    def reply(call: str, body: dict[str, Any]) -> dict[str, Any]:
        if call == "experiments/get-by-name":
            return {"experiment": {"experiment_id": "1", "name": "raybroker", "lifecycle_stage": "active"}}
        if call == "runs/create":
            run_id = f"run{len(server.runs)}"
            server.runs[run_id] = {"name": body["run_name"], "metrics": 0}
        elif call == "runs/log-batch":
            server.runs[body["run_id"]]["metrics"] += len(body["metrics"])
            return {}
        else:
            run_id = body.get("run_id", "run0")
        info = {"run_id": run_id, "run_uuid": run_id, "experiment_id": "1", "status": "RUNNING"}
        info |= {"artifact_uri": (folder / run_id).as_uri(), "lifecycle_stage": "active"}
        return {"run": {"info": info, "data": {}}, "run_info": info}

    server.reply = reply
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_that_recovers_gets_the_late_run_once(tmp_path: Path, learner: Learner) -> None:
    with tracking(tmp_path) as server:
        registry = Registry(f"http://127.0.0.1:{server.server_port}", first_pause=0.05, longest_pause=0.1)
        registry.release(release(learner, 1))
        registry.release(release(learner, 2))
        wait_for(lambda: "500" in registry.last_error)
        server.broken = lambda call: call == "runs/log-batch" and server.calls.count(call) < 3
        assert registry.close(60) == 0
    assert [run["name"] for run in server.runs.values()] == ["transients-1", "transients-2"]
    assert [run["metrics"] for run in server.runs.values()] == [1_201, 1_201]
    assert registry.logged == 2
    assert (tmp_path / "run0" / "model" / "MLmodel").exists()


@pytest.mark.parametrize("curve", [[], [(1, 0.5)], [(1, 0.5), (2, 0.5)], [(0, float("nan")), (5, 1.0)]])
def test_any_curve_makes_a_picture(curve: list[tuple[float, float]]) -> None:
    drawn = svg("a < b", curve)
    assert "nan" not in drawn
    assert "a &lt; b" in drawn
    assert np.char.count(drawn, "<svg") == 1
