"""Releases reach MLflow when they can; when they cannot, nobody waits."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raybroker.errors import RaybrokerError
from raybroker.learning.learner import Learner
from raybroker.learning.registry import Registry, Release, log_evaluation
from raybroker.learning.release import Forecast, Taught, ledger_hash
from tests.learning.tracking import tracking

pytestmark = pytest.mark.filterwarnings(r"ignore:::mlflow(\.|$)", r"ignore:::alembic(\.|$)")
WHEN = 1_700_000_000.0


@pytest.fixture(scope="module")
def learner() -> Learner:
    made = Learner("transients", ("AGN", "SN"), ("x", "y"), seed=1)
    made.learn(pa.table({"x": [1.0, 2.0, 3.0], "y": [1.0, None, 2.0]}), ["AGN", "SN", "AGN"])
    return made


TAUGHT = [Taught("e1", "ztf:1", "AGN"), Taught("e2", "ztf:2", "SN"), Taught("e3", "ztf:3", "AGN")]
UNSEEN = [Forecast("AGN", (0.8, 0.2)), Forecast("SN", (0.4, 0.6)), Forecast("AGN", (0.3, 0.7))]


def release(learner: Learner, snapshot: int = 1, **more: Any) -> Release:
    frozen = learner.frozen()
    given = {
        "params": {"members": learner.member_names},
        "metrics": {"auc": 0.9, "unknown": float("nan")},
        "curves": {"auc": [(i, i / 1_000) for i in range(1_200)]},
        "classes": learner.classes,
        "taught": TAUGHT,
        "unseen": UNSEEN,
        "example": {"x": 1.5},
        **more,
    }
    return Release(learner.name, snapshot, frozen.digest(), "plan1", frozen.snapshot(), WHEN, **given)


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, learner: Learner) -> Path:
    """A local store with four releases: two of them late, and one of a challenger."""
    root = tmp_path_factory.mktemp("store")
    registry = Registry.local(root)
    registry.release(release(learner, 7, parents=(6, 5), tags={"why": "clock"}))
    registry.release(release(learner, 9, configuration="wide", alias="challenger"))
    registry.release(release(learner, 8, alias="challenger", configuration="wide"))
    registry.release(release(learner, 6))
    registry.release(release(learner, 5, alias=""))
    assert registry.close(200) == 0
    assert (registry.logged, registry.dropped, registry.last_error) == (5, 0, "")
    return root


def client_of(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def run_of(root: Path, name: str) -> Any:
    client = client_of(root)
    experiment = client.get_experiment_by_name("raybroker").experiment_id
    [run] = client.search_runs([experiment], f"attributes.run_name = '{name}'")
    return run


def test_a_release_becomes_a_run_of_the_local_store(store: Path, learner: Learner) -> None:
    run, client = run_of(store, "transients-7"), client_of(store)
    assert (run.info.status, run.info.start_time) == ("FINISHED", int(WHEN * 1000))
    assert run.data.params["members"] == str(learner.member_names)
    assert run.data.metrics == {"auc": 0.9, "curve.auc": pytest.approx(1.199)}
    assert len(client.get_metric_history(run.info.run_id, "curve.auc")) == 1_200


def test_a_run_names_all_that_it_came_from(store: Path, learner: Learner) -> None:
    tags = run_of(store, "transients-7").data.tags
    own = {name.partition(".")[2]: tags[name] for name in tags if name.startswith("raybroker.")}
    assert own["snapshot"] == "7"
    assert own["parents"] == "6, 5"
    assert own["digest"] == learner.frozen().digest()
    assert own["plan"] == "plan1"
    assert own["ledger"] == ledger_hash(TAUGHT)
    assert own["configuration"] == "own"
    assert own["python"].startswith("3.")
    assert len(own["lock"]) in (0, 64)
    assert tags["why"] == "clock"
    assert run_of(store, "transients-9-wide").data.tags["raybroker.configuration"] == "wide"


def test_a_run_holds_what_was_taught_and_the_pictures(store: Path) -> None:
    files = store / "mlflow" / run_of(store, "transients-7").info.run_id / "artifacts"
    assert (files / "training.csv").read_text().splitlines()[:2] == [
        "event_id,alert_id,label",
        "e1,ztf:1,AGN",
    ]
    assert (files / "unseen.csv").read_text().splitlines()[:2] == ["label,AGN,SN", "AGN,0.8,0.2"]
    packages = json.loads((files / "environment.json").read_text())["packages"]
    assert {"river", "numpy", "raybroker"} <= set(packages)
    for name in ("auc", "calibration_AGN"):
        assert (files / "plots" / f"{name}.svg").read_text().startswith("<svg")
    example = json.loads((files / "model" / "input_example.json").read_text())
    assert example["columns"] == ["x", "y"]
    assert str(example["data"]) == "[[1.5, nan]]"


def test_the_champion_loads_by_its_alias_and_gives_the_same_bits(store: Path, learner: Learner) -> None:
    pandas = pytest.importorskip("pandas")
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{store / 'mlflow.db'}")
    loaded = mlflow.pyfunc.load_model("models:/raybroker.transients@champion")
    frame = pandas.DataFrame({"x": [1.5, 2.5], "y": [1.0, None]})
    expected = learner.predict(pa.table({"x": [1.5, 2.5], "y": [1.0, None]})).mixture
    assert (loaded.predict(frame)[["AGN", "SN"]].to_numpy() == expected).all()
    assert [column.name for column in loaded.metadata.signature.inputs] == ["x", "y"]
    assert loaded.metadata.signature.outputs.input_names() == ["AGN", "SN"]


def test_a_late_release_does_not_take_the_alias_from_a_newer_one(store: Path) -> None:
    client = client_of(store)
    found = client.get_registered_model("raybroker.transients").aliases
    tags = {alias: client.get_model_version("raybroker.transients", v).tags for alias, v in found.items()}
    assert {alias: told["raybroker.snapshot"] for alias, told in tags.items()} == {
        "champion": "7",
        "challenger": "9",
    }
    assert len(client.search_model_versions("name = 'raybroker.transients'")) == 5


def test_equal_ledgers_have_equal_hashes_and_the_order_counts() -> None:
    assert ledger_hash(TAUGHT) == ledger_hash([one._replace(alert_id="other") for one in TAUGHT])
    assert ledger_hash(TAUGHT) != ledger_hash(TAUGHT[::-1])
    assert ledger_hash(TAUGHT) != ledger_hash([TAUGHT[0]._replace(label="SN"), *TAUGHT[1:]])
    assert ledger_hash([Taught("a", "", "bc")]) != ledger_hash([Taught("ab", "", "c")])


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


def quick(server: Any, **more: Any) -> Registry:
    """A registry that hardly pauses."""
    return Registry(f"http://127.0.0.1:{server.server_port}", first_pause=0.02, longest_pause=0.05, **more)


def test_a_server_that_recovers_gets_the_late_runs_once(tmp_path: Path, learner: Learner) -> None:
    with tracking(tmp_path) as server:
        registry = quick(server)
        registry.release(release(learner, 1))
        registry.release(release(learner, 2))
        wait_for(lambda: "500" in registry.last_error)
        server.broken = lambda call: call == "runs/log-batch" and server.calls.count(call) < 3
        assert registry.close(60) == 0
    assert [run["name"] for run in server.store.runs.values()] == ["transients-1", "transients-2"]
    assert [run["metrics"] for run in server.store.runs.values()] == [1_201, 1_201]
    assert [run["status"] for run in server.store.runs.values()] == ["FINISHED", "FINISHED"]
    assert registry.logged == 2
    assert (tmp_path / "run0" / "model" / "MLmodel").exists()


def test_whichever_call_fails_and_whichever_answer_is_lost_each_release_is_there_once(
    tmp_path: Path, learner: Learner
) -> None:
    """Every call answers 500 the first time it is made, and of every second one the answer is lost though it was done."""
    with tracking(tmp_path) as server:
        registry = quick(server)
        server.broken = lambda call: server.calls.count(call) == 1
        server.lost = lambda call: server.calls.count(call) == 2
        for snapshot in (1, 2, 3):
            registry.release(release(learner, snapshot, curves={}))
        assert registry.close(60) == 0
    store = server.store
    assert [run["name"] for run in store.runs.values()] == ["transients-1", "transients-2", "transients-3"]
    assert [version["run_id"] for version in store.versions] == ["run0", "run1", "run2"]
    assert {run["status"] for run in store.runs.values()} == {"FINISHED"}
    assert store.told("champion") == "transients-3"


def test_after_a_long_absence_the_kept_releases_come_and_the_aliases_end_right(
    tmp_path: Path, learner: Learner
) -> None:
    with tracking(tmp_path) as server:
        registry = quick(server, keep=4)
        for snapshot in (1, 2, 3, 6, 5, 4):
            registry.release(
                release(learner, snapshot, curves={}, configuration="wide" if snapshot == 6 else "")
            )
        registry.release(release(learner, 3, curves={}, alias="challenger"))
        wait_for(lambda: "500" in registry.last_error)
        assert (registry.pending, registry.dropped) == (4, 3)
        server.broken = lambda call: False
        assert registry.close(60) == 0
    names = [run["name"] for run in server.store.runs.values()]
    assert names == ["transients-6-wide", "transients-5", "transients-4", "transients-3"]
    assert server.store.told("champion") == "transients-6-wide"
    assert server.store.told("challenger") == "transients-3"


def test_a_server_without_registered_models_still_gets_the_runs(tmp_path: Path, learner: Learner) -> None:
    with tracking(tmp_path) as server:
        registry = quick(server)
        server.broken = lambda call: call.startswith("registered-models")
        server.refusal = {"error_code": "ENDPOINT_NOT_FOUND", "message": "there are none here"}
        registry.release(release(learner, 1, curves={}))
        assert registry.close(60) == 0
    assert (registry.logged, registry.dropped) == (1, 0)
    assert [run["status"] for run in server.store.runs.values()] == ["FINISHED"]


def test_a_server_that_hangs_and_comes_back_loses_nothing(
    tmp_path: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    silent = threading.Event()
    with tracking(tmp_path) as server:
        registry = quick(server)
        server.broken = lambda call: not silent.is_set() and silent.wait(3.0)
        registry.release(release(learner, 1, curves={}))
        wait_for(lambda: "timed out" in registry.last_error.lower())
        assert registry.pending == 1
        silent.set()
        server.broken = lambda call: False
        assert registry.close(60) == 0
    assert (registry.logged, registry.dropped) == (1, 0)
    assert {run["status"] for run in server.store.runs.values()} == {"FINISHED"}


def test_an_evaluation_is_a_run_with_files(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<p>good</p>")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_id = log_evaluation(
        uri, "evaluations", "stream", {"delay": 14}, {"auc (all)": 0.71, "none": float("nan")}, [report]
    )
    run = client_of(tmp_path).get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "stream")
    assert run.data.metrics == {"auc _all_": 0.71}
    assert run.data.params == {"delay": "14"}
    assert (tmp_path / "mlflow" / run_id / "artifacts" / "report.html").read_text() == "<p>good</p>"


def test_an_evaluation_says_that_the_server_is_away() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(RaybrokerError, match=f"MLflow at {uri} did not take the run 'stream'"):
            log_evaluation(uri, "evaluations", "stream", {}, {})
