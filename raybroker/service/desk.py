"""What the endpoints do, without HTTP: look up, gather, record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import pyarrow as pa

from raybroker import alerts
from raybroker.archive import segments
from raybroker.archive.lookup import Lookup
from raybroker.errors import ArchiveError, RaybrokerError, UnknownError, did_you_mean
from raybroker.learning.labels import Label
from raybroker.scores.online import feature_digest
from raybroker.service import asked, claims, curve, cutouts, view
from raybroker.service.asked import Asked
from raybroker.service.claims import Claim
from raybroker.service.door import ConflictError, Door, again
from raybroker.service.door import NotAllowedError as NotAllowedError  # others know it from here
from raybroker.service.sessions import Sessions
from raybroker.service.view import Row, View
from raybroker.settings import ModelSettings
from raybroker.surveys import Survey

TONIGHT = 12 * 3600.0
INTERNAL = ("segment", "position", "healpix", "cutouts")
CLAIM_ATTEMPTS = 3
CUTOUTS_KEPT = 64  # alerts whose cutouts are remembered: the page asks for three, one after the other


class HeldError(ConflictError):
    """Somebody else looks at it: `facts` says who, and until when (seconds since 1970)."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(f"{claim.who} is looking at this; ask GET /queries for what is free")
        self.facts = {"who": claim.who, "until": claim.until}


class Log(Protocol):
    """An event log: see `raybroker.archive.events.EventLog`."""

    def append_new(self, events: Sequence[Mapping[str, Any]]) -> list[str]: ...

    def tail(self, since: int, names: Iterable[str] | None = None) -> tuple[pa.Table, int]: ...


def _unknown(model: str, number: int) -> None:
    return None


def _nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Desk:
    """What the endpoints need.

    `score(model, features)` and `score_packet(survey, value)` give plain dictionaries; `columns(model, number)` the
    features of a snapshot in their order, None if it is not known; `problems()` says in sentences why the path from
    Kafka to here is not well; `status()` adds to `GET /status`, as the supervisor sees it.
    """

    view: View
    asked: Asked
    lookup: Lookup
    labels: Log
    questions: Log
    sessions: Sessions
    models: Mapping[str, ModelSettings]
    surveys: Mapping[str, Survey]
    score: Callable[[str, Mapping[str, float | None]], Mapping[str, Any]]
    score_packet: Callable[[str, bytes], Mapping[str, Any]]
    columns: Callable[[str, int], Sequence[str] | None] = _unknown
    raw: Sequence[str] = ()  # `[labels] classes`: what may be said of an alert for several models at once
    problems: Callable[[], Sequence[str]] = list
    status: Callable[[], Mapping[str, Any]] = _nothing
    delay: Callable[[], float | None] = lambda: (
        None
    )  # seconds from publication until readable here, of the newest
    followed: Callable[[], float | None] = lambda: None  # when the archive was last followed to its end
    refresh: Callable[[], None] = lambda: None  # looks now at what other servers have recorded
    tables: Callable[[], Mapping[str, Any]] = _nothing  # of the archive's log: `cluster.tables.Tables`
    clock: Callable[[], float] = time.time
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _claiming: threading.Lock = field(default_factory=threading.Lock)
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cutouts", lru_cache(CUTOUTS_KEPT)(self._read_cutouts))

    @property
    def door(self) -> Door:
        """What may be recorded."""
        return Door(self.models, self.raw, self._label, self.clock)

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
            "scores": {name: self._score(name, value, columns) for name, value in scores.items()},
            "catalogues": {name: _match(columns[name]) for name in catalogues},
            "filters": sorted(name for name, value in columns.items() if value is True),
            "columns": steps,
            row["survey"]: own,
            "labels": self.asked.labels(None, [alert_id]),
        }

    def _score(self, model: str, value: Mapping[str, Any], row: Mapping[str, Any]) -> Row:
        """A score with the digest of the features that it was made from; null if its snapshot is not known here."""
        paths = self.columns(model, value["snapshot"])
        digest = None if paths is None else feature_digest(_at(row, path) for path in paths)
        return view.score_of(value) | {"features": digest}

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

    def queries(self, model: str | None, limit: int, who: str | None = None) -> list[Row]:
        """The open questions with why each was asked, what to ask first at the top; without what others than `who`
        have claimed."""
        now = self.clock()
        return [
            _question(row, self.view.alert(row["alert_id"]), self.asked.held(row, "", now))
            for row in self.asked.open(model, limit, who, now)
        ]

    def claim(self, query_id: str, who: str, give_back: bool = False) -> Row:
        """Who holds the question from now, and until when: `who`, or nobody if it was given back.

        `HeldError` if somebody else does; `ConflictError` if it is answered.
        """
        row = self._question(query_id)
        if row is None or row["model"] not in self.models:
            raise UnknownError(f"no question '{query_id}' is open; GET /queries lists those that are")
        if self.asked.is_answered(row):
            raise ConflictError(f"question '{query_id}' is answered")
        with self._claiming:
            held = self._claimed(row, who, give_back)
        return {"query_id": query_id} | _holding(held)

    def _question(self, query_id: str) -> Row | None:
        """An open question, by whichever server it was heard of first."""
        if (known := self.asked.query(query_id)) is None:
            self.refresh()
            known = self.asked.query(query_id)
        return known

    def _label(self, event_id: str) -> Label | None:
        """A label, by whichever server it was recorded."""
        if (known := self.asked.label(event_id)) is None:
            self.refresh()
            known = self.asked.label(event_id)
        return known

    def _claimed(self, row: Row, who: str, give_back: bool) -> Claim | None:
        length = 60 * self.models[row["model"]].claim_minutes
        for _ in range(CLAIM_ATTEMPTS):
            now = self.clock()
            if (other := self.asked.held(row, who, now)) is not None:
                raise HeldError(other)
            holder = self.asked.claims.holder(row, now)
            left = holder.until - now if holder else 0.0
            if left == 0 if give_back else left > length / 2:
                return holder
            until = now if give_back else now + length
            told = claims.event(row, who, now, until, self.asked.claims.last(row))
            new = self.questions.append_new([told])
            self.asked.add_queries([told] if new else self._claims_on_disk())
            if new:
                return self.asked.claims.holder(row, now)
        raise ArchiveError(f"question '{row['query_id']}' is claimed again and again by others; try later")

    def _claims_on_disk(self) -> list[Row]:
        """All claims, since another server was faster than what is followed here."""
        names = ("event_id", "model", "alert_id", "object_id", "claim", "until", "state", "query_id")
        rows: list[Row] = self.questions.tail(-1, names)[0].to_pylist()
        return [row for row in rows if row["state"] == "claimed"]

    def record(self, given: Mapping[str, Any], who: str) -> tuple[Label, bool]:
        """The label, on the disk, and whether it was there before.

        `UnknownError` for an alert, or an earlier label, that nobody knows.
        """
        label = self.door.label(given, who, self._known_alert)
        known = self.asked.label(label.event_id)
        if known is None:
            if self.write([asked.row_of(label, given.get("snapshot"))]):
                return label, False
            known = self._label(label.event_id) or label  # another server has recorded it
        return again(known, label), True

    def write(self, rows: Sequence[Row]) -> int:
        """Rows of the `labels` log onto the disk; how many of them were not there before."""
        if not rows:
            return 0
        with self._writing:
            new = set(self.labels.append_new(rows))
        self.asked.add_labels([row for row in rows if row["event_id"] in new])
        return len(new)

    def _known_alert(self, alert_id: str) -> Row:
        return self.view.alert(alert_id) or self.lookup.alert(alert_id)

    def model(self, name: str | None) -> str:
        """The model of that name; where none is named, the only one there is."""
        return self.door.model(name)

    def model_infos(self) -> list[Row]:
        """Every model: its classes, where it stands, and how many questions are open."""
        progress = self.asked.progress()
        return [
            {
                "name": name,
                **own.model_dump(include={"task", "classes", "columns", "members", "strategy"}),
                "raw": list(self.raw) if own.raw else [],  # what to offer instead of the classes, if anything
                "snapshot": self.asked.snapshot(name),
                "open_queries": len(self.asked.open(name, 1_000)),
                "labels": progress.get(name, {"labels": 0, "classes": {}, "people": {}}),
            }
            for name, own in self.models.items()
        ]

    def curve(self, model: str, limit: int) -> list[Row]:
        """The snapshots of a model; `UnknownError` if there is no such model."""
        if model not in self.models:
            raise UnknownError(f"no model '{model}'{did_you_mean(model, self.models)}")
        names = ("number", "labels", "when", "metrics")
        return [{name: row[name] for name in names} for row in self.asked.curve(model, limit)]

    def report(self) -> Row:
        """Counts that add up: by survey and night, received is the sum of what became of it."""
        nights = view.counts(self.view.totals())
        total = {name: sum(night[name] for night in nights) for name in ("received", *view.OUTCOMES)}
        now = self.clock()
        answers = self.asked.answers(now - TONIGHT)
        return {
            "time": now,
            "total": total,
            "nights": nights,
            "in_memory": len(self.view),
            "delay_seconds": self.delay(),
            "tonight": self.asked.progress(now - TONIGHT),
            "progress": {
                name: {"answered": answers[name], "budget": own.budget or None}
                for name, own in self.models.items()
            },
            "models": {name: self.asked.snapshot(name) for name in self.models},
            "open_queries": {name: len(self.asked.open(name, 1_000)) for name in self.models},
            "archive": self.tables(),
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


def _at(row: Mapping[str, Any], path: str) -> float | None:
    """One number of a row by dotted path; None where it is not known."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _holding(claim: Claim | None) -> Row:
    return {"who": claim.who, "until": claim.until} if claim else {"who": None, "until": None}


def _question(row: Row, alert: Row | None, claim: Claim | None) -> Row:
    """A query as the API gives it: what each member and the mixture said, by class, and who looks at it."""
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
        "ra",
        "dec",
        "magnitude",
    )
    return {
        **{name: row.get(name) for name in names},
        "probabilities": members,
        "claimed": _holding(claim) if claim else None,
        "alert": alert,
    }
