"""Releases to MLflow, behind a queue and a thread: MLflow down, slow or answering 500 costs nothing but late runs.

A release is a run (see `release`) with the frozen model as a pyfunc, and a version of the registered model
`raybroker.MODEL`, which `mlflow.pyfunc.load_model("models:/raybroker.MODEL@champion")` opens. MLflow has no flavour for
River, so the model is our own file and this module its loader. MLflow is imported in the thread, since that takes
seconds.
"""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raybroker.errors import RaybrokerError
from raybroker.learning import release as releases
from raybroker.learning.compiled import Frozen, matrix, restore
from raybroker.learning.release import Release

log = logging.getLogger(__name__)

METRICS_PER_CALL = 500  # the server takes at most 1,000
PARAMS_PER_CALL = 100
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # we retry ourselves; MLflow's own retries hold a close for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
SQLITE = "sqlite:///"
# what a server without a model registry says, or one that does not take our files as a version's source
UNREGISTERED = {"INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND", "FEATURE_DISABLED", "NOT_IMPLEMENTED"}


@dataclass
class Job:
    """A release on its way; a second try goes on with the run that the first one made."""

    release: Release
    run_id: str = ""
    tried: bool = False  # then a run may be there of which we never heard


class Registry:
    """Takes releases without ever blocking or raising, and logs them one after the other.

    While MLflow does not answer, the last `keep` releases of each model wait; older ones are dropped, and counted.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment: str = "raybroker",
        *,
        artifacts: str | None = None,
        keep: int = 20,
        first_pause: float = 1.0,
        longest_pause: float = 60.0,
    ) -> None:
        self.tracking_uri, self.experiment, self.artifacts = tracking_uri, experiment, artifacts
        self.keep, self.first_pause, self.longest_pause = keep, first_pause, longest_pause
        self.logged = self.dropped = 0
        self.last_error = ""
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    @classmethod
    def local(cls, root: Path, experiment: str = "raybroker", **options: Any) -> Registry:
        """The store of an archive's folder: ROOT/mlflow.db, with the files of its runs in ROOT/mlflow."""
        root = root.resolve()
        return cls(
            f"sqlite:///{root / 'mlflow.db'}", experiment, artifacts=(root / "mlflow").as_uri(), **options
        )

    @property
    def pending(self) -> int:
        """Releases not logged yet."""
        return len(self._jobs)

    @property
    def counts(self) -> dict[str, int]:
        """How many releases were logged, wait, and were dropped, so far."""
        return {"logged": self.logged, "waiting": self.pending, "dropped": self.dropped}

    def release(self, release: Release) -> None:
        """Queue it and return at once."""
        with self._changed:
            if self._closing:
                self._drop(1, "the registry is closed")
                return
            self._jobs.append(Job(release))
            of_model = [job for job in self._jobs if job.release.model == release.model]
            for job in of_model[: -self.keep]:
                self._jobs.remove(job)
                self._drop(1, self.last_error or "MLflow is slow")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _drop(self, count: int, why: str) -> None:
        self.dropped += count
        log.warning("%d releases were not logged to MLflow at %s: %s", count, self.tracking_uri, why)

    def close(self, timeout: float = 10.0) -> int:
        """Wait up to `timeout` seconds for what is queued; how many releases were given up."""
        end = time.monotonic() + timeout
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs, max(0.0, end - time.monotonic()))
            self._closing = True
            given_up, self._jobs = len(self._jobs), []
            if given_up:
                self._drop(given_up, self.last_error or "MLflow is slow")
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(max(0.0, end - time.monotonic()))
        return given_up

    def _work(self) -> None:
        pause = self.first_pause
        while (job := self._next()) is not None:
            try:
                self._log(job)
                pause = self.first_pause
                self._done(job)
            except (
                Exception
            ) as error:  # whatever MLflow, its store or its server do, the next try may go well
                if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                    self._refused(job, error)
                    continue
                self._failed(error, pause)
                pause = min(2 * pause, self.longest_pause)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closing)
            return self._jobs[0] if self._jobs and not self._closing else None

    def _done(self, job: Job) -> None:
        with self._changed:
            self.logged, self.last_error = self.logged + 1, ""
            self._jobs = [other for other in self._jobs if other is not job]
            self._changed.notify_all()

    def _refused(self, job: Job, error: Exception) -> None:
        """The release itself is wrong: the ones behind it do not wait for it."""
        with self._changed:
            self._drop(1, str(error)[:500])
            self._jobs = [other for other in self._jobs if other is not job]
            self._changed.notify_all()

    def _failed(self, error: Exception, pause: float) -> None:
        reason = f"{type(error).__name__}: {error}"[:500]
        if not self.last_error:
            log.warning("MLflow at %s does not answer; releases wait: %s", self.tracking_uri, reason)
        with self._changed:
            self.last_error = reason
            self._changed.wait_for(lambda: self._closing, pause)

    def _log(self, job: Job) -> None:
        client, release = self._client(), job.release
        when = int(release.when * 1000)
        job.run_id = job.run_id or self._run(client, job)
        for metrics, params in _batches(release):
            client.log_batch(job.run_id, metrics=metrics, params=params)
        with tempfile.TemporaryDirectory() as folder:
            write_files(release, Path(folder))
            client.log_artifacts(job.run_id, folder)
        _register(client, release, job.run_id)
        client.set_terminated(job.run_id, "FINISHED", when)

    def _run(self, client: Any, job: Job) -> str:
        """The run's id: a new one, or one that an answer lost on its way did not tell of."""
        release, experiment = job.release, self._experiment(client)
        again, job.tried = job.tried, True
        if again:
            same = (
                f"attributes.run_name = '{release.name}' and tags.`raybroker.when` = '{release.order[1]}' "
                f"and tags.`raybroker.digest` = '{release.digest}'"
            )
            if found := client.search_runs([experiment], same, max_results=1):
                return str(found[0].info.run_id)
        made = client.create_run(experiment, int(release.when * 1000), releases.tags(release), release.name)
        return str(made.info.run_id)

    def _client(self) -> Any:
        return _client(self.tracking_uri)

    def _experiment(self, client: Any) -> str:
        return _experiment(client, self.experiment, self.artifacts)


def _client(tracking_uri: str) -> Any:
    prepare()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(name, artifact_location=artifacts))


def _register(client: Any, release: Release, run_id: str) -> None:
    """Make the run a version of its registered model and point the alias to it, unless a newer release has it.

    A server that keeps no registered models loses nothing else: the run is whole.
    """
    from mlflow.exceptions import MlflowException

    name = registered_name(release.model)
    try:
        version = _version(client, name, run_id, release)
        if release.alias and release.order >= _holder(client, name, release.alias, version):
            client.set_registered_model_alias(name, release.alias, version)
    except MlflowException as error:
        if error.error_code not in UNREGISTERED:
            raise
        log.warning("run %s of %s is logged, but not as a model version: %s", run_id, release.name, error)


def registered_name(model: str) -> str:
    """A model's name in MLflow's model registry."""
    return f"raybroker.{model}"


def _version(client: Any, name: str, run_id: str, release: Release) -> str:
    """The run's version, made now or by a try whose answer was lost."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if found:
        return str(found[0].version)
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    made = client.create_model_version(name, source, run_id, releases.tags(release), await_creation_for=0)
    return str(made.version)


def _holder(client: Any, name: str, alias: str, ours: str) -> tuple[int, int]:
    """The order of the release that has the alias now; the least of all where none, or no release of ours, has it."""
    held = client.get_registered_model(name).aliases.get(alias)
    if held is None or str(held) == ours:
        return -1, -1
    told = client.get_model_version(name, held).tags
    try:
        return int(told["raybroker.snapshot"]), int(told["raybroker.when"])
    except (KeyError, ValueError):
        return -1, -1


def log_evaluation(
    tracking_uri: str,
    experiment: str,
    name: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    files: Iterable[Path] = (),
) -> str:
    """A finished run of an evaluation with its files; returns its id, or raises a RaybrokerError where MLflow is away.

    Signs that MLflow does not take in a name become '_'; what is not finite is left out.
    """
    release = Release(
        name, 0, "", "", b"", time.time(), params, {_plain(key): v for key, v in metrics.items()}
    )
    try:
        client = _client(tracking_uri)
        place = _experiment(client, experiment, _beside(tracking_uri))
        run_id = str(
            client.create_run(place, run_name=name, tags={"raybroker.kind": "evaluation"}).info.run_id
        )
        for batch, given in _batches(release):
            client.log_batch(run_id, metrics=batch, params=given)
        for file in files:
            client.log_artifact(run_id, str(file))
        client.set_terminated(run_id)
    except Exception as error:  # MLflow, its store, its server, the network: all the same to who asked
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise RaybrokerError(f"MLflow at {tracking_uri} did not take the run '{name}': {reason}") from error
    return run_id


def _beside(tracking_uri: str) -> str | None:
    """Where a local store's files go: into `mlflow` beside its database, not into the folder we happen to be in."""
    if not tracking_uri.startswith(SQLITE):
        return None
    return (Path(tracking_uri.removeprefix(SQLITE)).resolve().parent / "mlflow").as_uri()


def _plain(name: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", name)


def prepare() -> None:
    """MLflow as a quiet library: no retries of its own, no telemetry, no lines about its database and about each run.

    Its own deprecation warnings are not ours to act on.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(mlflow|alembic)(\.|$)")


def _batches(release: Release) -> list[tuple[list[Any], list[Any]]]:
    """The calls of `log_batch`: `log_metric` alone does 49 a second."""
    from mlflow.entities import Metric, Param

    when = int(release.when * 1000)
    named = [(name, float(value), 0) for name, value in release.metrics.items()]
    for name, curve in release.curves.items():
        named += [(f"curve.{name}", float(value), int(labels)) for labels, value in curve]
    metrics = [Metric(name, value, when, step) for name, value, step in named if math.isfinite(value)]
    params = [Param(name, str(value)[:6000]) for name, value in release.params.items()]
    chunks = [metrics[i : i + METRICS_PER_CALL] for i in range(0, len(metrics), METRICS_PER_CALL)] or [[]]
    return [(chunk, params[:PARAMS_PER_CALL] if i == 0 else []) for i, chunk in enumerate(chunks)]


def write_files(release: Release, folder: Path) -> None:
    """The files of a run: those of `release.write`, and `model/` for `mlflow.pyfunc.load_model`."""
    from mlflow import pyfunc

    releases.write(release, folder)
    state = folder / "frozen.bin"
    state.write_bytes(release.state)
    frozen = restore(release.state)
    signature, example = _described(frozen, release.example)
    pyfunc.save_model(
        str(folder / "model"),
        loader_module=__name__,
        data_path=str(state),
        pip_requirements=_pinned(),
        signature=signature,
        input_example=example,
    )
    state.unlink()


def _pinned() -> list[str]:
    """What opens the model again, in the versions that are here."""
    found = releases.environment()["packages"]
    return [f"{name}=={found[name]}" if name in found else name for name in ("raybroker", "mlflow")]


def _described(frozen: Frozen, given: Mapping[str, float | None]) -> tuple[Any, Any]:
    """The model's signature, and a row that it takes: one double per column, NaN where it is not known."""
    import pandas
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = Schema([ColSpec("double", name) for name in frozen.columns])
    outputs = Schema([ColSpec("double", name) for name in frozen.classes])
    row = {name: [math.nan if given.get(name) is None else given[name]] for name in frozen.columns}
    return ModelSignature(inputs, outputs), pandas.DataFrame(row, dtype="float64")


class Served:
    """What `mlflow.pyfunc.load_model` wraps: a pandas frame of features in, probabilities by class out."""

    def __init__(self, frozen: Frozen) -> None:
        self.frozen = frozen

    # without type hints: MLflow would check the frame against them, and warns of Any
    def predict(self, frame):  # type: ignore[no-untyped-def]
        table = pa.Table.from_pandas(frame, preserve_index=False)
        mixture = self.frozen.predict_matrix(matrix(table, self.frozen.columns)).mixture
        return type(frame)(mixture, columns=list(self.frozen.classes), index=frame.index)


def _load_pyfunc(path: str) -> Served:
    """MLflow's hook: the name is theirs."""
    return Served(restore(Path(path).read_bytes()))
