"""One frozen, typed tree of settings, read from `raybroker.toml`.

Paths are relative to the file's folder. Secrets never stand in the file: a string such as `"${KAFKA_PASSWORD}"` is
filled from the environment, and the API's tokens come from `RAYBROKER_TOKENS` (`name:token,name:token`) alone.
A wrong setting raises `SettingsError` with the key, the value, the rule, and the nearest known key.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from raybroker.errors import SettingsError, did_you_mean
from raybroker.places import ObjectUrl, place

SurveyName = Literal["ztf", "rubin", "fink"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
TOKENS_VARIABLE = "RAYBROKER_TOKENS"


def _text_options(given: Any) -> Any:
    return {key: str(value) for key, value in given.items()} if isinstance(given, Mapping) else given


Options = Annotated[dict[str, str], BeforeValidator(_text_options)]


class Table(BaseModel):
    """A frozen table of the file; keys that nobody reads are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ArchiveSettings(Table):
    """Where everything is kept."""

    # or s3://bucket/prefix
    root: Annotated[Path | ObjectUrl, BeforeValidator(place)] = Path("raybroker-data")
    live_files: Count = 500  # compaction keeps each table below this
    cache: Path | None = None  # object stores: each machine's folder for catalogues; null: ~/.cache/raybroker


class SurveySettings(Table):
    """One survey's stream: where it is and how many workers read it."""

    servers: str = "localhost:9092"
    topics: list[str] = []  # empty: the survey's own; '^' starts a regular expression
    group: str = "raybroker"
    workers: Count = 2
    most_workers: Count | None = None  # more come with the load, up to so many; None: always `workers`
    drain_seconds: Positive = 20.0  # more come if what waits would not be gone in so long
    hold_minutes: Positive = 90.0  # for so long nobody leaves who was needed
    kafka: Options = {}  # more librdkafka options, such as security.protocol
    schemas: Path | None = None  # rubin: a folder of .avsc files
    registry: str = ""  # rubin: the URL of a Schema Registry
    from_start: bool = True  # of a topic never read before: from its oldest packet, not from now

    @property
    def most(self) -> int:
        """The most workers that there may be."""
        return self.most_workers or self.workers

    @model_validator(mode="after")
    def _room_to_grow(self) -> SurveySettings:
        if self.most < self.workers:
            raise ValueError(f"most_workers = {self.most_workers} is below workers = {self.workers}")
        return self


class TurnSettings(Table):
    """When a turn ends: the first of these that is reached."""

    seconds: Positive = 0.5
    megabytes: Positive = 16.0
    packets: Count = 10_000
    batch: Count = 400  # packets decoded together
    deadline_seconds: Positive = 60.0


class StepsSettings(BaseModel):
    """Which steps run; every other table below `[steps]` holds the settings of the step of that name."""

    model_config = ConfigDict(frozen=True, extra="allow")
    on: list[str] = ["real", "good_pixels", "rubin_flags", "basic"]
    paths: list[Path] = [Path("steps")]  # folders or files with the user's own steps
    __pydantic_extra__: dict[str, dict[str, Any]]

    def of(self, step: str) -> dict[str, Any]:
        """The settings of one step."""
        return (self.__pydantic_extra__ or {}).get(step, {})

    @property
    def tables(self) -> Mapping[str, dict[str, Any]]:
        """All `[steps.NAME]` tables."""
        return self.__pydantic_extra__ or {}


class CatalogueSettings(Table):
    """A local catalogue; CSV, Parquet and FITS are sorted once into the archive's folder."""

    file: Path
    radius_arcsec: Positive = 1.5
    columns: list[str] = []  # to be given beside the distance; empty: none
    ra: str = ""  # the names of its position columns, where they cannot be guessed
    dec: str = ""


class CdsSettings(Table):
    """SIMBAD through the CDS X-match service: off unless asked for."""

    simbad: bool = False
    radius_arcsec: Positive = 1.5
    timeout_seconds: Positive = 5.0
    url: str = "http://cdsxmatch.u-strasbg.fr/xmatch/api/v1/sync"


class FilterSettings(Table):
    """A filter without code, and where its alerts go."""

    where: str = ""  # SQL over columns; empty for a filter written as a step
    topic: str = ""  # default: raybroker.NAME


class RequestsSettings(Table):
    """Which label requests go to the topics `raybroker.queries.MODEL`; what is not known is not within a limit."""

    dec_min: float | None = None  # degrees
    dec_max: float | None = None
    brighter_than: float | None = None  # magnitude
    classes: list[str] = []  # only those whose likeliest class is one of these; empty: all


class OutputSettings(Table):
    """The Kafka cluster of ours that filters write to."""

    servers: str = ""  # empty: filters are stored in the archive and sent nowhere
    transactions: bool = True
    kafka: Options = {}
    requests: RequestsSettings = RequestsSettings()


class ChallengerSettings(Table):
    """Another configuration of a model, which learns the same labels and takes over if it proves better."""

    members: Annotated[list[str], Field(min_length=1)]
    columns: list[str] = []  # empty: the model's own
    window: Count = 10_000
    seed: int = 0


class ModelSettings(Table):
    """One model that learns from labels."""

    task: Literal["classify", "anomaly"] = "classify"
    classes: Annotated[list[str], Field(min_length=2)] = ["interesting", "ordinary"]  # of "anomaly"
    raw: dict[str, list[str]] = {}  # class: the raw labels ([labels] classes) that mean it
    columns: list[str] = ["basic.*"]
    members: Annotated[list[str], Field(min_length=1)] = ["softmax", "naive_bayes", "window"]
    window: Count = 10_000  # labels that the refitted member learns from
    strategy: str = "margin"
    queries: Count = 10  # how many stand open
    budget: Annotated[int, Field(ge=0)] = 0  # answers asked for in one night; 0: as many as people give
    random_share: Share = 0.1
    pool: Count = 5_000
    arrival: str = "all"  # what may enter the pool: all, or "split", which decides when an alert arrives
    arrival_share: Share = 0.1  # of the stream that "split" lets in
    oldest_days: Positive = 30.0  # older alerts are not asked
    faintest: float | None = None  # magnitude; fainter alerts are not asked
    claim_minutes: Positive = 10.0  # for so long nobody else is asked what somebody looks at
    thinning_days: Annotated[float, Field(ge=0)] = 5.0
    later_alerts: bool = True  # a label teaches later alerts of its object too, one in `thinning_days`
    of_alert: list[str] = ["bogus"]  # classes that are said of one alert, and not of its object
    seed: int = 0
    challengers: dict[Name, ChallengerSettings] = {}
    rank: Literal["mean", "latest", "max"] = "mean"  # of an object's scores: as `raybroker evaluate` queues

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str]) -> list[str]:
        if len({name.lower() for name in classes}) < len(classes) or "snapshot" in classes:
            raise ValueError("classes must differ by more than case, and none may be called 'snapshot'")
        return classes

    @model_validator(mode="before")
    @classmethod
    def _of_task(cls, given: Any) -> Any:
        """An anomaly model has defaults of its own; a classifier must name its classes."""
        if isinstance(given, Mapping) and given.get("task") == "anomaly":
            return {"members": ["aad"], "strategy": "top", **given}
        if isinstance(given, Mapping) and "classes" not in given:
            raise ValueError('classes: a model needs at least two, such as ["SN", "other"]')
        return given

    @model_validator(mode="after")
    def _known_targets(self) -> ModelSettings:
        if unknown := [name for name in self.raw if name not in self.classes]:
            near = did_you_mean(unknown[0], self.classes)
            raise ValueError(f"raw.{unknown[0]}: no class '{unknown[0]}'{near}; there are {self.classes}")
        if self.task == "anomaly" and len(self.classes) != 2:
            raise ValueError("classes: an anomaly model has two, the wanted one first")
        return self


class CatalogueLabelsSettings(Table):
    """Labels that come from a catalogue instead of a person."""

    file: Path | None = None  # TNS: its public objects as CSV; none: `column` is read from the alerts
    column: str = ""  # such as "simbad.main_type"
    radius_arcsec: Positive = 2.0
    delay_days: Annotated[float, Field(ge=0)] = 0.0  # after the alert, before the label is given
    # the catalogue's type: a raw label, or a model's class
    classes: Annotated[dict[str, str], Field(min_length=1)]
    model: str = ""  # empty: raw labels, for every model that knows them


class LabelsSettings(Table):
    """What people may say, and whose word holds."""

    classes: list[str] = []  # raw labels, which models translate by `raw`; empty: each model has its own
    rule: Literal["newest", "first", "majority", "agreed"] = "newest"  # where people disagree
    catalogues: dict[Name, CatalogueLabelsSettings] = {}


class LearningSettings(Table):
    """When the trainer publishes."""

    snapshot_seconds: Positive = 2.0
    release_minutes: Positive = 30.0


class MlflowSettings(Table):
    """Where releases are logged."""

    enabled: bool = True
    tracking_uri: str = ""  # empty: sqlite in the archive's folder
    experiment: str = "raybroker"


class ServiceSettings(Table):
    """The HTTP endpoint."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    nights: Count = 3  # kept in memory; older ones are read from the archive
    rows: Count = 300_000
    requests: Count = 64  # that one replica works on or lets wait; the next is answered with 429
    replicas: Count = 1
    most_replicas: Count | None = None  # more come with the load, up to so many; None: always `replicas`

    @property
    def most(self) -> int:
        """The most replicas that there may be."""
        return self.most_replicas or self.replicas

    @model_validator(mode="after")
    def _room_to_grow(self) -> ServiceSettings:
        if self.most < self.replicas:
            raise ValueError(f"most_replicas = {self.most_replicas} is below replicas = {self.replicas}")
        return self


class RaySettings(Table):
    """How Ray is started or found."""

    address: str = "local"
    cpus_per_worker: Positive = 0.5
    object_store_megabytes: Count = 200


class Settings(Table):
    """The whole tree."""

    archive: ArchiveSettings = ArchiveSettings()
    surveys: dict[SurveyName, SurveySettings] = {}
    turn: TurnSettings = TurnSettings()
    steps: StepsSettings = StepsSettings()
    catalogues: dict[Name, CatalogueSettings] = {}
    cds: CdsSettings = CdsSettings()
    filters: dict[Name, FilterSettings] = {}
    output: OutputSettings = OutputSettings()
    models: dict[Name, ModelSettings] = {}
    labels: LabelsSettings = LabelsSettings()
    learning: LearningSettings = LearningSettings()
    mlflow: MlflowSettings = MlflowSettings()
    service: ServiceSettings = ServiceSettings()
    ray: RaySettings = RaySettings()

    @model_validator(mode="after")
    def _names_differ(self) -> Settings:
        seen: dict[str, str] = {}
        for kind in ("catalogues", "filters", "models"):
            for name in getattr(self, kind):
                if name in seen:
                    raise ValueError(
                        f"'{name}' is both under [{seen[name]}] and [{kind}]; every column has one name"
                    )
                seen[name] = kind
        return self


def load(path: Path) -> Settings:
    """Settings from a TOML file; `SettingsError` says what to mend."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist; `raybroker init ztf` writes one") from None
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    return _absolute(parse(tree), path.parent.resolve())


def parse(tree: Mapping[str, Any]) -> Settings:
    """Settings from a tree of plain values, as TOML gives it."""
    try:
        return Settings.model_validate(_filled(tree, ()))
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(detail) for detail in error.errors())) from None


def tokens(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Who each API token belongs to: token → name, from `RAYBROKER_TOKENS`."""
    pairs = [pair.partition(":") for pair in environment.get(TOKENS_VARIABLE, "").split(",") if pair.strip()]
    if bad := [name for name, _, token in pairs if not token]:
        raise SettingsError(
            f"{TOKENS_VARIABLE}: '{bad[0]}' has no token; it is written name:token,name:token"
        )
    return {token.strip(): name.strip() for name, _, token in pairs}


def _filled(value: Any, key: tuple[str, ...]) -> Any:
    """The tree with ${NAME} replaced from the environment."""
    if isinstance(value, Mapping):
        return {name: _filled(inner, (*key, name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, key) for inner in value]
    return re.sub(r"\$\{(\w+)\}", lambda m: _variable(m[1], key), value) if isinstance(value, str) else value


def _variable(name: str, key: tuple[str, ...]) -> str:
    if name not in os.environ:
        raise SettingsError(f"{'.'.join(key)}: the environment variable {name} is not set")
    return os.environ[name]


def _explain(detail: ErrorDetails) -> str:
    place = [str(part) for part in detail["loc"] if part != "[key]"]
    key = ".".join(place) or "raybroker.toml"
    if detail["type"] == "extra_forbidden":
        return f"{key} = {detail['input']!r}: there is no such setting{_near_key(place)}"
    rule = detail["msg"].removeprefix("Value error, ")
    return f"{key} = {detail['input']!r}: {rule}" if detail["type"] != "value_error" else f"{key}: {rule}"


def _near_key(place: list[str]) -> str:
    table: Any = Settings
    for part in place[:-1]:
        fields = getattr(table, "model_fields", {})
        table = fields[part].annotation if part in fields else table
        table = next((inner for inner in get_args(table) if hasattr(inner, "model_fields")), table)
    return did_you_mean(place[-1], getattr(table, "model_fields", {}))


def _absolute(settings: Settings, folder: Path) -> Settings:
    """The same settings with every path made absolute from the file's folder."""

    def fixed(value: Any) -> Any:
        if isinstance(value, Path):
            return folder / value
        if isinstance(value, BaseModel):
            names = [*type(value).model_fields, *(value.model_extra or {})]
            return value.model_copy(update={name: fixed(getattr(value, name)) for name in names})
        if isinstance(value, dict):
            return {name: fixed(inner) for name, inner in value.items()}
        return [fixed(inner) for inner in value] if isinstance(value, list) else value

    return fixed(settings)
