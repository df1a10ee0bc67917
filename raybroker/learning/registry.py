"""Releases to MLflow, behind a queue and a thread: MLflow down, slow or answering 500 costs nothing but late runs.

A release is a run: parameters, metrics, a learning curve, and the frozen model as a pyfunc that
`mlflow.pyfunc.load_model` opens. MLflow has no flavour for River, so the model is our own file and this module its
loader. MLflow is imported in the thread, since that takes seconds.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from raybroker.learning.compiled import Frozen, matrix

log = logging.getLogger(__name__)

METRICS_PER_CALL = 500  # the server takes at most 1,000
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # we retry ourselves; MLflow's own retries hold a close for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Release:
    """One released snapshot of one model, and what is known of how good it is."""

    model: str
    snapshot: int
    digest: str  # of `state`
    plan: str  # digest of the plan that made the features
    state: bytes  # Frozen.snapshot()
    when: float  # seconds since 1970, UTC
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)  # name -> (labels learned, value)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Job:
    """A release on its way; a second try goes on with the run that the first one made."""

    release: Release
    run_id: str = ""


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
        if not job.run_id:
            name = f"{release.model}-{release.snapshot}"
            job.run_id = client.create_run(self._experiment(client), when, _tags(release), name).info.run_id
        for metrics, params in _batches(release):
            client.log_batch(job.run_id, metrics=metrics, params=params)
        with tempfile.TemporaryDirectory() as folder:
            write_files(release, Path(folder))
            client.log_artifacts(job.run_id, folder)
        client.set_terminated(job.run_id, "FINISHED", when)

    def _client(self) -> Any:
        prepare()
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.tracking_uri)

    def _experiment(self, client: Any) -> str:
        found = client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(client.create_experiment(self.experiment, artifact_location=self.artifacts))


def prepare() -> None:
    """MLflow as a quiet library: no retries of its own, no telemetry, no log lines about its database.

    Its own deprecation warnings are not ours to act on.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"(mlflow|alembic)(\.|$)")


def _tags(release: Release) -> dict[str, str]:
    own = {
        "model": release.model,
        "snapshot": release.snapshot,
        "digest": release.digest,
        "plan": release.plan,
    }
    return {**release.tags, **{f"raybroker.{name}": str(value) for name, value in own.items()}}


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
    return [(chunk, params[:100] if i == 0 else []) for i, chunk in enumerate(chunks)]


def write_files(release: Release, folder: Path) -> None:
    """The files of a run: `model/` for `mlflow.pyfunc.load_model`, and `plots/`."""
    from mlflow import pyfunc

    state = folder / "frozen.bin"
    state.write_bytes(release.state)
    pyfunc.save_model(
        str(folder / "model"),
        loader_module=__name__,
        data_path=str(state),
        pip_requirements=["raybroker", "mlflow"],
    )
    state.unlink()
    (folder / "plots").mkdir()
    for name, curve in release.curves.items():
        (folder / "plots" / f"{name}.svg").write_text(svg(name, curve))


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
    return Served(Frozen.restore(Path(path).read_bytes()))


def svg(title: str, curve: Curve, width: int = 640, height: int = 320) -> str:
    """A learning curve as a picture of a kilobyte, which needs nothing to be seen."""
    points = [(float(x), float(y)) for x, y in curve if y == y] or [(0.0, 0.0)]
    (left, right), (low, high) = (_range([p[i] for p in points]) for i in (0, 1))
    placed = " ".join(
        f"{40 + (x - left) / (right - left) * (width - 60):.1f},{height - 30 - (y - low) / (high - low) * (height - 60):.1f}"
        for x, y in points
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/><text x="40" y="18">{_escaped(title)}</text>'
        f'<path d="M40 30V{height - 30}H{width - 20}" fill="none" stroke="#888"/>'
        f'<text x="2" y="36">{high:.3g}</text><text x="2" y="{height - 30}">{low:.3g}</text>'
        f'<text x="40" y="{height - 12}">{left:g}</text>'
        f'<text x="{width - 20}" y="{height - 12}" text-anchor="end">{right:g} labels</text>'
        f'<polyline points="{placed}" fill="none" stroke="#1f77b4" stroke-width="2"/></svg>'
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low, low + 1.0)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
