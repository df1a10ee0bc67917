"""Steps computed again for alerts that are archived, from their packets: rows of the event log `annotations`.

The stored rows never change. A value computed later is a row of `annotations`, whose id is made of the alert, the step,
its version, the plan and the snapshot: computing it twice gives the same row. Nothing here knows Ray.
"""

from __future__ import annotations

import datetime
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raybroker.alerts import Packet
from raybroker.archive import delta, provenance, segments
from raybroker.archive.events import EventLog
from raybroker.archive.lookup import Lookup
from raybroker.archive.table import AlertsTable
from raybroker.cluster import assemble
from raybroker.cluster.plans import upstream
from raybroker.errors import RaybrokerError, SettingsError, did_you_mean
from raybroker.pipeline import Pipeline
from raybroker.scores.online import Score, pinned
from raybroker.settings import Settings
from raybroker.surveys import Survey

LOG = "annotations"
ALERTS = 2_000  # in one piece of work: at 40 KB each, what a worker holds
BATCH = 400  # decoded and computed together
KEPT = ["scored", "failed"]  # the others have no columns that could be computed anew
COLUMNS = ("segment", "position", "alert_id", "night", "outcome")
Snapshots = Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class Wish:
    """What to compute again. Nights are YYYYMMDD, both ends included; no steps: all of the plan but cuts."""

    survey: str
    first_night: int
    last_night: int
    steps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Alerts of one survey, by the segment that their packets are in: (position, alert id, night)."""

    alerts: Mapping[str, tuple[tuple[int, str, int], ...]]

    def __len__(self) -> int:
        return sum(map(len, self.alerts.values()))


@dataclass
class Done:
    """What became of the alerts: so many values written, by step; what could not be had, by reason."""

    alerts: int = 0
    values: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)

    def add(self, other: Done) -> None:
        """Both together."""
        self.alerts += other.alerts
        self.values += other.values
        self.troubles += other.troubles


@dataclass(frozen=True)
class Job:
    """Everything a piece needs, the same for all of them: any process computes the same from it."""

    settings: Settings
    wish: Wish
    steps: tuple[str, ...]
    snapshots: Snapshots
    plan: str

    def event_id(self, alert_id: str, step: str, version: int) -> str:
        """The same for the same value."""
        number = self.snapshots.get(step, (0, ""))[0]
        return f"{alert_id}/{step}/{version}/{self.plan}/{number}"


def prepare(settings: Settings, wish: Wish) -> Job:
    """The job, with the newest snapshots of the models. SettingsError for a survey or a step that there is not."""
    if wish.survey not in settings.surveys:
        near = did_you_mean(wish.survey, settings.surveys)
        raise SettingsError(f"reprocess: there is no [surveys.{wish.survey}]{near}")
    if wish.first_night > wish.last_night:
        raise SettingsError(f"reprocess: night {wish.first_night} comes after {wish.last_night}")
    pipeline = assemble.pipeline(settings, wish.survey)
    known = [step.name for step in pipeline.steps if step.kind != "cut"]
    for name in wish.steps:
        if name not in known:
            raise SettingsError(f"reprocess: the plan has no step '{name}'{did_you_mean(name, known)}")
    snapshots = assemble.standing(settings)
    learned = {step.name for step in pipeline.steps if isinstance(step.call, Score)}
    chosen = wish.steps or tuple(name for name in known if name not in learned or name in snapshots)
    for name in learned.intersection(wish.steps).difference(snapshots):
        raise SettingsError(f"reprocess: model '{name}' has published no snapshot yet")
    EventLog(settings.archive.root, LOG)  # made here once, so that no two tasks race for it
    provenance.store(settings.archive.root, pipeline.plan)
    return Job(settings, wish, tuple(chosen), snapshots, pipeline.digest)


def pieces(job: Job, size: int = ALERTS) -> Iterator[Piece]:
    """The alerts that lack a value, as work of about `size` each."""
    root, wish = job.settings.archive.root, job.wish
    if not delta.exists(root / wish.survey / "alerts"):
        return
    there = _there(job)
    versions = {step.name: step.version for step in _parts(job)[1].steps if step.name in job.steps}
    found: dict[str, tuple[tuple[int, str, int], ...]] = {}
    for rows in AlertsTable(root, wish.survey).pieces(COLUMNS):
        for segment, alerts in _by_segment(rows, wish).items():
            lacking = tuple(alert for alert in alerts if not _complete(job, alert[1], versions, there))
            if lacking:
                found[segment] = found.get(segment, ()) + lacking
            if sum(map(len, found.values())) >= size:
                yield Piece(found)
                found = {}
    if found:
        yield Piece(found)


def _there(job: Job) -> set[str]:
    """The ids of the values that are stored already."""
    wish = job.wish
    asked = "survey = $survey and night between $first and $last"
    values = {"survey": wish.survey, "first": wish.first_night, "last": wish.last_night}
    lookup = Lookup(job.settings.archive.root)
    try:
        return set(lookup.sql(f"select event_id from {LOG} where {asked}", values)["event_id"].to_pylist())
    except RaybrokerError:  # a log without a row has no files to ask
        return set()


def _complete(job: Job, alert_id: str, versions: Mapping[str, int], there: set[str]) -> bool:
    return all(job.event_id(alert_id, name, version) in there for name, version in versions.items())


def _by_segment(rows: pa.Table, wish: Wish) -> dict[str, list[tuple[int, str, int]]]:
    night = pc.field("night")
    within = (night >= wish.first_night) & (night <= wish.last_night)
    rows = rows.filter(within & pc.field("outcome").isin(KEPT))
    by_segment: dict[str, list[tuple[int, str, int]]] = {}
    names = ("segment", "position", "alert_id", "night")
    for segment, *alert in zip(*(rows[name].to_pylist() for name in names), strict=True):
        by_segment.setdefault(segment, []).append((alert[0], alert[1], alert[2]))
    return by_segment


def compute(job: Job, piece: Piece, now: datetime.datetime | None = None) -> Done:
    """Read the packets of a piece, compute its steps, append the values. What cannot be read or computed is counted."""
    done, rows = Done(), []
    for segment, alerts in piece.alerts.items():
        wanted = {position: (alert_id, night) for position, alert_id, night in alerts}
        try:
            packets = _packets(job, segment, wanted)
        except (RaybrokerError, OSError) as error:
            done.troubles[str(error)] += len(wanted)
            continue
        for start in range(0, len(packets), BATCH):
            rows += _values(job, packets[start : start + BATCH], wanted, done, now or _now())
    if rows:
        EventLog(job.settings.archive.root, LOG).append(rows)
    return done


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _packets(job: Job, segment: str, wanted: Mapping[int, Any]) -> list[tuple[int, Packet]]:
    folder = job.settings.archive.root / job.wish.survey
    return [found for found in enumerate(segments.scan(folder, segment)) if found[0] in wanted]


def _values(
    job: Job,
    packets: Sequence[tuple[int, Packet]],
    wanted: Mapping[int, tuple[str, int]],
    done: Done,
    now: datetime.datetime,
) -> list[dict[str, Any]]:
    """The rows of some packets."""
    survey, pipeline = _parts(job)
    decoded = survey.decode([packet for _, packet in packets])
    for bad in decoded.bad:
        done.troubles[f"its packet cannot be decoded: {bad.reason}"] += 1
    unread = {bad.row for bad in decoded.bad}
    alerts = [wanted[position] for i, (position, _) in enumerate(packets) if i not in unread]
    outcome = pipeline.run(decoded.batch, decoded.bodies)
    failed = {(failure.row, failure.step) for failure in outcome.failures}
    for failure in outcome.failures:
        done.troubles[f"{failure.step}: {failure.error}"] += 1
    done.alerts += len(alerts)
    rows = []
    for step in (step for step in pipeline.steps if step.name in job.steps):
        column = outcome.kept.column(step.name).to_pylist()
        for i, ((alert_id, night), value) in enumerate(zip(alerts, column, strict=True)):
            if (i, step.name) not in failed:
                rows.append(_row(job, alert_id, night, step.name, step.version, value, now))
                done.values[step.name] += 1
    return rows


def _row(
    job: Job, alert_id: str, night: int, step: str, version: int, value: Any, now: datetime.datetime
) -> dict[str, Any]:
    return {
        "event_id": job.event_id(alert_id, step, version),
        "survey": job.wish.survey,
        "alert_id": alert_id,
        "night": night,
        "step": step,
        "version": version,
        "snapshot": job.snapshots[step][0] if step in job.snapshots else None,
        "when": now,
        "value": json.dumps(_plain(value), ensure_ascii=False, allow_nan=False),
    }


def _plain(value: Any) -> Any:
    """As JSON can hold it: what is not finite is null, dates are text."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parts(job: Job) -> tuple[Survey, Pipeline]:
    """The decoder, and the pipeline of the wanted steps and those that they need; built once in a process."""
    key = (
        str(job.settings.archive.root),
        job.wish.survey,
        job.plan,
        job.steps,
        tuple(sorted(job.snapshots.items())),
    )
    if key not in _made:
        _made.clear()
        _made[key] = _build(job)
    return _made[key]


_made: dict[Any, tuple[Survey, Pipeline]] = {}


def _build(job: Job) -> tuple[Survey, Pipeline]:
    whole = assemble.pipeline(job.settings, job.wish.survey)
    if whole.digest != job.plan:
        raise SettingsError(
            f"the plan is {whole.digest} on this machine and {job.plan} where the job was started: have the same "
            "packages, catalogues and steps on every machine"
        )
    needed = set(job.steps).union(*(upstream(whole.plan, name) for name in job.steps))
    models = assemble.Models(job.settings.archive.root)
    steps = []
    for step in (step for step in whole.steps if step.name in needed):
        number, digest = job.snapshots.get(step.name, (0, ""))
        steps.append(pinned(step, models.load(digest), number) if number else step)
    return assemble.survey(job.settings, job.wish.survey), replace(whole, steps=tuple(steps))
