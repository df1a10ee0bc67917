"""The service put together from the settings: the app that Ray Serve runs in its replicas, or this process in a thread."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import uvicorn
from fastapi import FastAPI

from raybroker import settings as settings_file
from raybroker.alerts import Packet
from raybroker.archive import store
from raybroker.archive.events import EventLog
from raybroker.archive.lookup import Lookup
from raybroker.cluster import assemble
from raybroker.cluster.assemble import Models
from raybroker.cluster.heartbeat import Heartbeat
from raybroker.cluster.tables import Tables
from raybroker.errors import ArchiveError, PacketError, SettingsError
from raybroker.pipeline import Pipeline
from raybroker.places import Place
from raybroker.scores.online import pinned
from raybroker.service import api
from raybroker.service.asked import Asked
from raybroker.service.desk import Desk
from raybroker.service.door import NotAllowedError
from raybroker.service.follow import Follower
from raybroker.service.ports import free_port as free_port  # others know it from here
from raybroker.service.sessions import Sessions
from raybroker.service.view import View, score_of
from raybroker.settings import Settings


def build(settings: Settings) -> FastAPI:
    """The whole app, following the archive from now on."""
    root = settings.archive.root
    catalogues = [*settings.catalogues, *(["simbad"] if settings.cds.simbad else [])]
    view = View(settings.service.rows, settings.service.nights, catalogues)
    asked = Asked({name: own.raw for name, own in settings.models.items()})
    follower = Follower(root, list(settings.surveys), view, asked)
    scorer, heartbeat = Scorer(settings, asked), Heartbeat(root)
    desk = Desk(
        view=view,
        asked=asked,
        lookup=Lookup(root),
        labels=EventLog(root, "labels"),
        questions=EventLog(root, "queries"),
        sessions=sessions(settings),
        models=settings.models,
        raw=settings.labels.classes,
        surveys={name: assemble.survey(settings, name) for name in settings.surveys},
        score=scorer.score,
        score_packet=scorer.score_packet,
        columns=scorer.columns,
        problems=lambda: [*follower.problems(), *heartbeat.problems()],
        status=heartbeat.read,
        delay=lambda: follower.delay,
        followed=lambda: follower.last_look or None,
        refresh=follower.refresh,
        tables=Tables(root),
    )
    follower.start()
    app = api.create(desk, settings.service.requests)
    app.state.follower = follower
    return app


def sessions(settings: Settings) -> Sessions:
    """Who may label: tokens from the environment, and one-time links signed with the archive's secret."""
    root = settings.archive.root
    return Sessions(settings_file.tokens(), secret(root), root / "links")


def secret(root: Place) -> bytes:
    """The archive's own secret, made once; in a folder readable by its owner alone, in a store by whom the store lets."""
    path = root / "secret"
    if not store.has(path):
        store.write_new(path, secrets.token_bytes(32))
    return _complete(path)


def _complete(path: Place) -> bytes:
    """The 32 bytes; another process may be just writing them."""
    for _ in range(100):
        if len(found := store.read(path)) == 32:
            return found
        time.sleep(0.01)
    raise SettingsError(
        f"{path} is damaged: it should hold 32 bytes; delete it, and old links and cookies end"
    )


class Scorer:
    """Scores on demand, with the newest snapshots."""

    def __init__(self, settings: Settings, asked: Asked) -> None:
        self.asked, self.models = asked, Models(settings.archive.root)
        self.settings = settings
        self.pipelines: dict[str, Pipeline] = {}
        self._loaded: dict[str, tuple[int, Any]] = {}
        self._columns: dict[str, tuple[str, ...]] = {}
        self._lock = threading.Lock()

    def score(self, model: str, features: Mapping[str, float | None]) -> dict[str, Any]:
        """Class probabilities for one alert's features, by member and mixed."""
        number, frozen = self._newest(model)
        if unknown := [name for name in features if name not in frozen.columns]:
            raise NotAllowedError(
                f"model '{model}' has no feature '{unknown[0]}'; it has {', '.join(frozen.columns)}"
            )
        row = pa.table({name: pa.array([features.get(name)], pa.float64()) for name in frozen.columns})
        found = frozen.predict(row)
        members = {
            name: _named(frozen.classes, p[0]) for name, p in zip(frozen.members, found.members, strict=True)
        }
        classes = _named(frozen.classes, found.mixture[0])
        return {"model": model, "snapshot": number, "classes": classes, "members": members}

    def columns(self, model: str, number: int) -> tuple[str, ...] | None:
        """The features of a snapshot in their order; None if it is not known here."""
        point = self.asked.point(model, number)
        if point is None:
            return None
        digest = point["digest"]
        if digest not in self._columns:
            self._columns[digest] = tuple(self.models.load(digest).columns)
        return self._columns[digest]

    def score_packet(self, survey: str, value: bytes) -> dict[str, Any]:
        """What the pipeline makes of one raw packet: rejected by which cut, or all columns and scores."""
        decoded = assemble.survey(self.settings, survey).decode([Packet(value)])
        if decoded.bad:
            raise PacketError(f"the packet cannot be decoded: {decoded.bad[0].reason}")
        outcome = self._pipeline(survey).run(decoded.batch, decoded.bodies)
        alert_id = decoded.batch["alert_id"][0].as_py()
        if outcome.rejected_by:
            return {"alert_id": alert_id, "outcome": "rejected", "reason": outcome.rejected_by[0]}
        row = outcome.kept.to_pylist()[0]
        failed = [f"{failure.step}: {failure.error}" for failure in outcome.failures]
        scores = {name: score_of(row[name]) for name in self.settings.models if row.get(name)}
        steps = {step.name: row[step.name] for step in self._pipeline(survey).steps if step.kind != "cut"}
        reason = "; ".join(failed) or None
        return {
            "alert_id": alert_id,
            "outcome": "failed" if failed else "scored",
            "reason": reason,
            "scores": scores,
            "columns": steps,
        }

    def _pipeline(self, survey: str) -> Pipeline:
        if survey not in self.pipelines:
            self.pipelines[survey] = assemble.pipeline(self.settings, survey)
        made = self.pipelines[survey]
        known = [name for name in self.settings.models if self.asked.snapshot(name)]
        newest = {name: self._newest(name) for name in known}
        steps = {step.name: step for step in made.steps if step.name in newest}
        return made.replaced({name: pinned(step, *reversed(newest[name])) for name, step in steps.items()})

    def _newest(self, model: str) -> tuple[int, Any]:
        row = self.asked.snapshot(model)
        if row is None:
            raise ArchiveError(f"model '{model}' has no snapshot yet: the trainer has not started")
        with self._lock:
            if self._loaded.get(model, (0, None))[0] != row["number"]:
                self._loaded[model] = (row["number"], self.models.load(row["digest"]))
            return self._loaded[model]


def _named(classes: tuple[str, ...], probabilities: Any) -> dict[str, float]:
    return dict(zip(classes, probabilities.tolist(), strict=True))


@contextmanager
def in_thread(settings: Settings) -> Iterator[str]:
    """The service in a thread of this process; gives its URL."""
    own = settings.service
    port = free_port(own.host, own.port)
    app = build(settings)
    server = uvicorn.Server(uvicorn.Config(app, host=own.host, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, name="service", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    try:
        yield f"http://{own.host}:{port}"
    finally:
        app.state.desk.asked.changes.close()  # an open stream of events would hold it
        server.should_exit = True
        thread.join(5.0)
        app.state.follower.stop()
