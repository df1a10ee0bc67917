"""What the endpoints do, without HTTP: look up, gather, record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from raybroker import alerts
from raybroker.archive import segments
from raybroker.archive.lookup import Lookup
from raybroker.errors import RaybrokerError, UnknownError, did_you_mean
from raybroker.learning import labels
from raybroker.learning.labels import Label
from raybroker.service import asked, curve, cutouts, view
from raybroker.service.asked import Asked
from raybroker.service.sessions import Sessions
from raybroker.service.view import Row, View
from raybroker.settings import ModelSettings
from raybroker.surveys import Survey

TONIGHT = 12 * 3600.0
INTERNAL = ("segment", "position", "healpix", "cutouts")
CUTOUTS_KEPT = 64  # alerts whose cutouts are remembered: the page asks for three, one after the other


class NotAllowedError(RaybrokerError):
    """A class, a model or an event id that cannot be: the message says which could."""


class ConflictError(RaybrokerError):
    """The event id was used before, for another label."""


class Log(Protocol):
    """The `labels` event log: see `raybroker.archive.events.EventLog`."""

    def append_new(self, events: Sequence[Mapping[str, Any]]) -> list[str]: ...


def _nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Desk:
    """What the endpoints need.

    `score(model, features)` and `score_packet(survey, value)` give plain dictionaries; `problems()` says in sentences
    why the path from Kafka to here is not well; `status()` adds to `GET /status`, as the supervisor sees it.
    """

    view: View
    asked: Asked
    lookup: Lookup
    labels: Log
    sessions: Sessions
    models: Mapping[str, ModelSettings]
    surveys: Mapping[str, Survey]
    score: Callable[[str, Mapping[str, float | None]], Mapping[str, Any]]
    score_packet: Callable[[str, bytes], Mapping[str, Any]]
    problems: Callable[[], Sequence[str]] = list
    status: Callable[[], Mapping[str, Any]] = _nothing
    delay: Callable[[], float | None] = lambda: (
        None
    )  # seconds from publication until readable here, of the newest
    clock: Callable[[], float] = time.time
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cutouts", lru_cache(CUTOUTS_KEPT)(self._read_cutouts))

    def alert(self, alert_id: str) -> Row:
        """Everything known of an alert: history, the survey's fields, every step's column, questions and labels."""
        row = {key: value for key, value in self.lookup.alert(alert_id).items() if key not in INTERNAL}
        columns = {key: row.pop(key) for key in list(row) if isinstance(row[key], (dict, bool))}
        own = columns.pop(row["survey"], None)
        scores = {
            name: columns[name]
            for name in self.models
            if (columns.get(name) or {}).get("snapshot") is not None
        }
        catalogues = [name for name in self.view.catalogues if name in columns]
        steps = {
            k: v
            for k, v in columns.items()
            if isinstance(v, dict) and k not in self.models and k not in catalogues
        }
        return {
            **row,
            "scores": {name: view.score_of(value) for name, value in scores.items()},
            "catalogues": {name: _match(columns[name]) for name in catalogues},
            "filters": sorted(name for name, value in columns.items() if value is True),
            "columns": steps,
            row["survey"]: own,
            "labels": self.asked.labels(None, [alert_id]),
        }

    def object(self, object_id: str) -> Row:
        """An object's light curve, what it was scored at each alert, and its labels."""
        rows = self.lookup.object(object_id)
        summaries = view.summaries(rows, self.view.catalogues)
        return {
            "object_id": object_id,
            "alerts": summaries,
            "light_curve": curve.merged(rows["history"]).to_pylist(),
            "zero_point": alerts.AB_ZERO_POINT,
            "labels": self.asked.labels(object_id, [row["alert_id"] for row in summaries]),
        }

    def cutout(self, alert_id: str, kind: str) -> bytes:
        """One cutout as plain FITS."""
        with self._reading:  # three come at once: the packet is read for the first
            found: bytes | None = self._cutouts(alert_id)[kind]  # type: ignore[attr-defined]
        if found is None:
            raise UnknownError(f"the packet of alert '{alert_id}' has no {kind} cutout")
        return cutouts.plain(found)

    def _read_cutouts(self, alert_id: str) -> dict[str, bytes | None]:
        row = self.lookup.alert(alert_id)
        survey = row["survey"]
        if survey not in self.surveys:
            raise UnknownError(
                f"survey '{survey}' is not configured here, so that its packets cannot be read"
            )
        packet = segments.read(self.lookup.root / survey, row["segment"], row["position"])
        return cutouts.of(self.surveys[survey], packet)

    def queries(self, model: str | None, limit: int) -> list[Row]:
        """The open questions with why each was asked, what to ask first at the top."""
        return [_question(row, self.view.alert(row["alert_id"])) for row in self.asked.open(model, limit)]

    def record(self, given: Mapping[str, Any], who: str) -> tuple[Label, bool]:
        """The label, on the disk, and whether it was there before.

        `UnknownError` for an alert, or an earlier label, that nobody knows.
        """
        label = self._label(given, who)
        if known := self.asked.label(label.event_id):
            return self._again(known, label), True
        row = asked.row_of(label, given.get("snapshot"))
        with self._writing:
            new = self.labels.append_new([row])
        if new:
            self.asked.add_labels([row])
        return label, not new

    def _again(self, known: Label, label: Label) -> Label:
        if any(
            getattr(known, name) != getattr(label, name)
            for name in ("alert_id", "model", "label", "replaces")
        ):
            raise ConflictError(f"event id '{label.event_id}' was used before, for another label")
        return known

    def _label(self, given: Mapping[str, Any], who: str) -> Label:
        names = ("event_id", "label", "query_id", "comment", "replaces", "withdrawn", "source")
        model = self.model(given.get("model"))
        alert = self._known_alert(given["alert_id"])
        label = Label(
            survey=alert["survey"],
            alert_id=alert["alert_id"],
            object_id=alert["object_id"],
            model=model,
            who=who,
            when=self.clock(),
            **{name: given[name] for name in names if given.get(name) is not None}
            | {"label": given.get("label")},
        )
        if label.replaces is not None and self.asked.label(label.replaces) is None:
            raise UnknownError(f"no label '{label.replaces}' is known, so that it cannot be replaced")
        try:
            return labels.validate(label, self.models[model].classes)
        except ValueError as error:
            raise NotAllowedError(str(error)) from error

    def _known_alert(self, alert_id: str) -> Row:
        return self.view.alert(alert_id) or self.lookup.alert(alert_id)

    def model(self, name: str | None) -> str:
        """The model of that name; where none is named, the only one there is."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models))
        if name is None or name not in self.models:
            near = did_you_mean(name or "", self.models)
            raise NotAllowedError(f"no model '{name or ''}'{near}: there are {sorted(self.models)}")
        return name

    def model_infos(self) -> list[Row]:
        """Every model: its classes, where it stands, and how many questions are open."""
        progress = self.asked.progress()
        return [
            {
                "name": name,
                **own.model_dump(include={"task", "classes", "columns", "members", "strategy"}),
                "snapshot": self.asked.snapshot(name),
                "open_queries": len(self.asked.open(name, 1_000)),
                "labels": progress.get(name, {"labels": 0, "classes": {}, "people": {}}),
            }
            for name, own in self.models.items()
        ]

    def report(self) -> Row:
        """Counts that add up: by survey and night, received is the sum of what became of it."""
        nights = view.counts(self.view.totals())
        total = {name: sum(night[name] for night in nights) for name in ("received", *view.OUTCOMES)}
        now = self.clock()
        return {
            "time": now,
            "total": total,
            "nights": nights,
            "in_memory": len(self.view),
            "delay_seconds": self.delay(),
            "tonight": self.asked.progress(now - TONIGHT),
            "models": {name: self.asked.snapshot(name) for name in self.models},
            **self.status(),
        }

    def troubles(self) -> list[str]:
        """Why an alert that is published now may not be readable here; empty if it will be."""
        found = list(self.problems())
        newest = self.view.alerts(view.Query(limit=1)).rows
        try:
            if newest:
                self.lookup.alert(newest[0]["alert_id"])
            else:
                self.lookup.surveys()
        except (RaybrokerError, OSError) as error:
            found.append(f"the archive cannot be read: {error}")
        return found


def _match(found: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """None where the catalogue has nothing there."""
    return None if found is None or all(value is None for value in found.values()) else found


def _question(row: Row, alert: Row | None) -> Row:
    """A query as the API gives it: what each member and the mixture said, by class."""
    classes = row.get("classes") or []
    members = {
        one["member"]: dict(zip(classes, one["probabilities"], strict=False))
        for one in row.get("probabilities") or []
    }
    names = (
        "query_id",
        "model",
        "survey",
        "alert_id",
        "object_id",
        "strategy",
        "reason",
        "rank",
        "snapshot",
        "when",
    )
    return {**{name: row.get(name) for name in names}, "probabilities": members, "alert": alert}
