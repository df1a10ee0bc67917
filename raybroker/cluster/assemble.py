"""From settings to the objects that run. Whoever runs them (Ray, one process, a test, a notebook) builds them here."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybroker import surveys
from raybroker.archive import provenance, store
from raybroker.archive.events import EventLog, dicts, known_topics
from raybroker.archive.table import AlertsTable, row_schema
from raybroker.cluster import catalogues
from raybroker.cluster.worker import Books, Worker
from raybroker.crossmatch import cds, local
from raybroker.errors import SettingsError, did_you_mean
from raybroker.filters import where
from raybroker.learning import compiled
from raybroker.learning.registry import Registry
from raybroker.pipeline import Pipeline, plan
from raybroker.places import Place
from raybroker.scores import online
from raybroker.settings import ModelSettings, Settings, SurveySettings
from raybroker.step import Step, discover
from raybroker.stream.kafka import KafkaSink, KafkaSource
from raybroker.stream.packets import Sink, Source
from raybroker.stream.replay import ReplaySource
from raybroker.surveys import Survey

if TYPE_CHECKING:
    from raybroker.cluster.pupil import Pupil
    from raybroker.cluster.requests import Requests
    from raybroker.cluster.trainer import Trainer

# What learns is imported where it is built: River and scikit-learn take 120 MB and seconds, in every worker too.
log = logging.getLogger("raybroker")

REPLAY = "replay:"


def survey(settings: Settings, name: str) -> Survey:
    """The decoder of a configured survey."""
    own = settings.surveys[name]  # type: ignore[index]
    options = {"schemas": own.schemas, "registry": own.registry} if name == "rubin" else {}
    return surveys.load(name, **{key: value for key, value in options.items() if value})


def steps(settings: Settings) -> list[Step]:
    """All steps that the settings turn on, in no order: written ones, catalogues, models, filters."""
    chosen = _written(settings)
    chosen += [catalogue(settings, name) for name in settings.catalogues]
    if settings.cds.simbad:
        own = settings.cds
        chosen.append(
            cds.step(radius_arcsec=own.radius_arcsec, timeout_seconds=own.timeout_seconds, url=own.url)
        )
    types = {step.name: step.gives for step in chosen}
    for name, model in settings.models.items():
        own, challengers = _columns(name, model, types)
        every = dict.fromkeys([*own, *(path for paths in challengers.values() for path in paths)])
        chosen.append(online.score(name, tuple(every), tuple(model.classes)))
    return chosen + [where.where(name, own.where) for name, own in settings.filters.items() if own.where]


def _written(settings: Settings) -> list[Step]:
    known = discover(settings.steps.paths)
    for name in [*settings.steps.on, *settings.steps.tables]:
        if name not in known:
            raise SettingsError(f"steps.on: there is no step '{name}'{did_you_mean(name, known)}")
    return [known[name].with_settings(settings.steps.of(name)) for name in settings.steps.on]


def catalogue(settings: Settings, name: str) -> Step:
    """The crossmatch of one catalogue, which is sorted into the archive the first time."""
    own = settings.catalogues[name]
    file = catalogues.sorted_file(settings, name)
    return local.step(name, file, radius_arcsec=own.radius_arcsec, columns=tuple(own.columns))


def pipeline(settings: Settings, name: str) -> Pipeline:
    """The pipeline of one survey, with its filters' expressions checked against the columns there are."""
    made = plan(steps(settings), survey(settings, name).schema, name)
    types = {field.name: field.type for field in made.columns}
    for step in made.steps:
        if step.name in settings.filters and settings.filters[step.name].where:
            where.check(step, types)
    return made


def topics(settings: Settings, made: Pipeline) -> dict[str, str]:
    """Where each filter's alerts go: filter → topic."""
    own = settings.filters
    return {name: (own[name].topic if name in own else "") or f"raybroker.{name}" for name in made.filters}


def table(settings: Settings, made: Pipeline) -> AlertsTable:
    """The survey's table, with the plan stored and its columns in place."""
    provenance.store(settings.archive.root, made.plan)
    return AlertsTable(settings.archive.root, made.survey, row_schema(made.columns))


def worker(settings: Settings, name: str, index: int) -> tuple[Worker, Models]:
    """A worker of one survey, and the models that it may score with."""
    made = pipeline(settings, name)
    own = settings.surveys[name]  # type: ignore[index]
    books = Books(table(settings, made), sink(settings, name), topics(settings, made))
    longest = settings.turn.seconds + settings.turn.deadline_seconds
    source = open_source(own, survey(settings, name), books, settings.archive.root, longest)
    return Worker(survey(settings, name), made, source, books, settings.turn), Models(settings.archive.root)


def sink(settings: Settings, name: str) -> Sink | None:
    """Where filtered alerts go, if anywhere."""
    own = settings.output
    if not own.servers:
        return None
    return KafkaSink(own.servers, own.kafka, prefix=f"raybroker/{name}/", transactions=own.transactions)


def open_source(
    own: SurveySettings, survey: Survey, books: Books, root: Place, longest_turn: float = 60.0
) -> Source:
    """Kafka, or for `servers = "replay:PATH"` the packets of a file, without any Kafka.

    The group waits longer for a member than its longest turn (in seconds), and never less than five minutes.
    """
    if own.servers.startswith(REPLAY):
        if own.workers > 1:
            raise SettingsError(
                f"surveys.{survey.name}.workers = {own.workers}: a replay without Kafka has one reader"
            )
        return ReplaySource(own.servers.removeprefix(REPLAY), books.start)
    known: dict[tuple[str, str], list[str]] = {}
    for row in sorted(known_topics(root), key=lambda row: row["first_seen"]):
        known.setdefault((row["cluster"], row["topic"]), []).append(row["topic_id"])
    options = {
        "auto.offset.reset": "earliest" if own.from_start else "latest",
        "max.poll.interval.ms": str(max(300_000, int(2_000 * longest_turn))),
        **own.kafka,
    }
    return KafkaSource(own.servers, own.topics or survey.topics, own.group, books.start, options, known)


def trainer(settings: Settings) -> Trainer:
    """The trainer of all models, over all surveys."""
    from raybroker.cluster.catalogue_labels import Watch
    from raybroker.cluster.rows import Stream
    from raybroker.cluster.trainer import Trainer

    streams = {}
    for name in settings.surveys:
        made = pipeline(settings, name)
        streams[name] = Stream(survey(settings, name), made, table(settings, made))
    return Trainer(
        settings.archive.root,
        streams,
        pupils(settings),
        registry(settings),
        settings.learning,
        requests=requests(settings),
        catalogues=Watch(settings.labels.catalogues) if settings.labels.catalogues else None,
    )


def requests(settings: Settings) -> Requests | None:
    """Where questions are told to other programs, if anywhere."""
    from raybroker.cluster.requests import Requests

    own = settings.output
    if not own.servers:
        return None
    sink = KafkaSink(own.servers, own.kafka, prefix="raybroker/queries/", transactions=own.transactions)
    return Requests(sink, limits=own.requests)


def pupils(settings: Settings) -> list[Pupil]:
    """Every model, knowing nothing yet."""
    from raybroker.cluster.pupil import Pupil

    types = {step.name: step.gives for step in steps(settings)}
    return [
        Pupil(name, own, columns, settings.labels, challengers)
        for name, own in settings.models.items()
        for columns, challengers in [_columns(name, own, types)]
    ]


def _columns(
    name: str, own: ModelSettings, types: Mapping[str, Any]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """The features of a model, and of each challenger that has its own."""
    key = f"models.{name}"
    challengers = {
        other: online.expand(made.columns, types, f"{key}.challengers.{other}.columns")
        for other, made in own.challengers.items()
        if made.columns
    }
    return online.expand(own.columns, types, f"{key}.columns"), challengers


def check(settings: Settings) -> None:
    """Build every plan and every model once, here, so that a wrong setting is said before anything starts."""
    from raybroker.cluster.pupil import Pupil

    check_plans(settings)
    for name, own in settings.models.items():
        try:
            Pupil(name, own, ("a",), settings.labels)
        except (ValueError, SettingsError) as error:
            raise SettingsError(f"models.{name}: {error}") from None
    pupils(settings)


def check_plans(settings: Settings) -> dict[str, Pipeline]:
    """What of it needs nothing that learns (River alone takes seconds to import); the pipeline of each survey."""
    from raybroker.cluster import catalogue_labels

    catalogue_labels.check(settings)
    store.check(settings.archive.root)
    registry(settings)
    types = {step.name: step.gives for step in steps(settings)} if settings.models else {}
    for name, own in settings.models.items():
        _check_raw(name, own, settings.labels.classes)
        _columns(name, own, types)
    return {str(name): pipeline(settings, name) for name in settings.surveys}


def _check_raw(name: str, own: ModelSettings, classes: Sequence[str]) -> None:
    """Every raw label of a model can be given, and means one class."""
    meaning: dict[str, str] = {}
    for target, raws in own.raw.items():
        for raw in raws:
            if raw not in classes:
                near = did_you_mean(raw, classes)
                raise SettingsError(
                    f"models.{name}.raw.{target}: no raw label '{raw}'{near}: [labels] classes are {list(classes)}"
                )
            if meaning.setdefault(raw, target) != target:
                raise SettingsError(f"models.{name}.raw: '{raw}' means both '{meaning[raw]}' and '{target}'")


def registry(settings: Settings) -> Registry | None:
    """MLflow's, if it is wanted."""
    own = settings.mlflow
    if not own.enabled:
        return None
    if own.tracking_uri:
        return Registry(own.tracking_uri, own.experiment)
    if not isinstance(settings.archive.root, Path):
        raise SettingsError(
            f"mlflow.tracking_uri is empty, and the archive at {settings.archive.root} has no folder for SQLite: give "
            "the address of an MLflow server, or set mlflow.enabled = false"
        )
    return Registry.local(settings.archive.root, own.experiment)


def standing(settings: Settings) -> dict[str, tuple[int, str]]:
    """The newest snapshot of each model, number and digest: workers score with it while the trainer is still starting.

    Of a model whose settings changed since there is none: what was stored gives other classes, or takes columns that
    it no longer gets.
    """
    if not settings.models:
        return {}
    names = ["model", "number", "digest"]
    rows = sorted(
        dicts(EventLog(settings.archive.root, "snapshots").read(names)), key=lambda row: row["number"]
    )
    found = {row["model"]: (row["number"], row["digest"]) for row in rows if row["model"] in settings.models}
    types = {step.name: step.gives for step in steps(settings)} if found else {}
    return {name: newest for name, newest in found.items() if _fits(settings, name, newest[1], types)}


def _fits(settings: Settings, name: str, digest: str, types: Mapping[str, Any]) -> bool:
    """Whether a stored model takes what a model of these settings gets, and gives its classes."""
    try:
        model = Models(settings.archive.root).load(digest)
    except Exception as error:  # whatever a class that is no more may raise: the trainer makes another
        log.warning("the newest snapshot of %s cannot be used: %s", name, error)
        return False
    own, challengers = _columns(name, settings.models[name], types)
    known = {*own, *(path for paths in challengers.values() for path in paths)}
    return list(model.classes) == settings.models[name].classes and known.issuperset(model.columns)


class Models:
    """The models that a worker has loaded: only by digest, only from our own store."""

    def __init__(self, root: Place) -> None:
        self.root = root
        self.loaded: dict[str, int] = {}

    def newer(self, snapshots: Mapping[str, tuple[int, str]]) -> dict[str, tuple[int, Any]]:
        """The models among these snapshots that are not loaded yet, by name, with their numbers."""
        fresh = {name: found for name, found in snapshots.items() if self.loaded.get(name, 0) < found[0]}
        self.loaded.update({name: number for name, (number, _) in fresh.items()})
        return {name: (number, self.load(digest)) for name, (number, digest) in fresh.items()}

    def load(self, digest: str) -> Any:
        """A model by the digest of its file: a classifier's mixture, or an anomaly forest."""
        return compiled.restore(provenance.get(self.root, digest))
