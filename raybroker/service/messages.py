"""What goes in and out over HTTP: request bodies, the shapes in the OpenAPI pages, and JSON as everybody reads it."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

SAFE_INTEGER = 1 << 53  # JavaScript reads larger ones wrongly
ALERT_ID = r"^[a-z][a-z0-9_]{1,15}:[A-Za-z0-9_.+-]{1,64}$"
OBJECT_ID = r"^[a-z][a-z0-9_]{1,15}:[A-Za-z0-9_.+/ -]{1,64}$"  # comets have names such as C/2019 Y4
NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
EVENT_ID = r"^[A-Za-z0-9_.:-]{8,64}$"
QUERY_ID = r"^[A-Za-z0-9_.:-]{1,128}$"
CURSOR = r"^[A-Za-z0-9._-]{1,249}:\d{1,9}:\d{1,18}$"


def clean(value: Any) -> Any:
    """The value as JSON can say it: NaN and infinity are null, large integers are strings, times are ISO 8601."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return value if abs(value) <= SAFE_INTEGER else str(value)
    if isinstance(value, Mapping):
        return {str(key): clean(inner) for key, inner in value.items() if not isinstance(inner, bytes)}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [clean(inner) for inner in value]
    if isinstance(value, np.generic):
        return clean(value.item())
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)


class Json(Response):
    """A JSON response through `clean`."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """As bytes."""
        text = json.dumps(clean(content), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()


class NewLabel(BaseModel):
    """What a person says of an alert. *Who* says it comes from the token and cannot be given here."""

    model_config = ConfigDict(extra="forbid")
    event_id: Annotated[str, Field(pattern=EVENT_ID)] = Field(
        description="Made by the client, for instance a UUID: a second POST of it changes nothing."
    )
    alert_id: Annotated[str, Field(pattern=ALERT_ID)]
    label: str | None = Field(description='A class of the model; null says "can\'t tell".', max_length=64)
    model: str | None = Field(
        None,
        pattern=NAME,
        description="Needed where there are several models; left out, `label` is one of `[labels] classes`, for all.",
    )
    query_id: str | None = Field(None, max_length=64, description="The question that this answers.")
    snapshot: int | None = Field(None, ge=0, lt=SAFE_INTEGER, description="Of the score that was shown.")
    comment: str | None = Field(None, max_length=2_000)
    replaces: str | None = Field(
        None, pattern=EVENT_ID, description="The event id of the label that this revises."
    )
    withdrawn: bool = Field(
        False, description="Undo: what `replaces` names no longer holds; `label` is null."
    )
    object_id: str | None = Field(None, pattern=OBJECT_ID, description="Refused if the alert is of another.")
    when: datetime.datetime | None = Field(
        None, description="When it was said, where that is not now (UTC if no offset is given)."
    )
    source: Literal["page", "cli", "api", "oracle", "tns", "simbad", "csv"] = "api"


class NewLabels(BaseModel):
    """Many labels in one request."""

    labels: list[dict[str, Any]] = Field(max_length=1_000, description="Each as in `POST /labels`.")


class Result(BaseModel):
    """What became of one label of many: recorded, or `error` says why not."""

    event_id: str | None
    repeated: bool = False
    error: str | None = None
    field: str | None = Field(None, description="of the label: what is wrong")


class Results(BaseModel):
    """One for each label, in their order."""

    results: list[Result]


class Recorded(BaseModel):
    """The label is on the disk."""

    event_id: str
    alert_id: str
    model: str
    label: str | None
    who: str
    repeated: bool = Field(description="True if this event id was here before; nothing was changed.")


class Features(BaseModel):
    """Feature values to be scored; one that is missing or null is not known."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, pattern=NAME)
    features: dict[str, float | None] = Field(max_length=2_000)


class Score(BaseModel):
    """What one snapshot of a model says."""

    snapshot: int
    classes: dict[str, float | None]


class Alert(BaseModel):
    """An alert in a list. Fluxes are difference fluxes in nJy; null is not known."""

    model_config = ConfigDict(extra="allow")
    survey: str
    alert_id: str | None = Field(description="null for a packet that could not be read")
    object_id: str | None
    ss_object_id: str | None = Field(description="set for moving objects")
    night: int | None
    mjd: float | None
    ra: float | None
    dec: float | None
    band: str | None
    flux: float | None
    flux_error: float | None
    reliability: float | None
    outcome: Literal["scored", "failed", "rejected", "dead", "duplicate"]
    reason: str | None
    filters: list[str] = Field(description="names of the filters that it passed")
    scores: dict[str, Score]
    catalogues: dict[str, dict[str, Any]] = Field(description="matches, by catalogue")


class Alerts(BaseModel):
    """A page of alerts, newest first."""

    alerts: list[Alert]
    before: str | None = Field(description="pass it as `before` for the next page; null: there is no more")


class Claim(BaseModel):
    """Who looks at a question, and until when (seconds since 1970); nulls: nobody."""

    query_id: str
    who: str | None
    until: float | None


class Question(BaseModel):
    """An alert to be looked at, and why."""

    query_id: str
    model: str
    survey: str
    alert_id: str
    object_id: str | None
    strategy: str | None
    reason: str | None
    rank: int | None
    snapshot: int | None
    probabilities: dict[str, dict[str, float]] = Field(description="by member, and of the mixture, by class")
    ra: float | None
    dec: float | None
    magnitude: float | None = Field(description="of the alert, AB")
    claimed: dict[str, Any] | None = Field(description="who looks at it, until when; null: nobody")
    alert: Alert | None


class Questions(BaseModel):
    """The list to label."""

    queries: list[Question]


class Known(BaseModel):
    """A label as it stands in the log."""

    model_config = ConfigDict(extra="allow")
    event_id: str
    model: str
    alert_id: str
    object_id: str | None
    label: str | None = Field(description="null: can't tell, or withdrawn")
    who: str | None
    when: str
    source: str | None
    comment: str | None
    replaces: str | None
    withdrawn: bool | None
    standing: bool = Field(description="whether it holds: neither replaced nor withdrawn")


class KnownLabels(BaseModel):
    """Labels, newest first."""

    labels: list[Known]


class Point(BaseModel):
    """One snapshot of a model; `metrics` were measured before it learned."""

    number: int
    labels: int | None
    when: str | None
    metrics: dict[str, float | None]


class Curve(BaseModel):
    """The learning curve of a model, by snapshot number."""

    model: str
    snapshots: list[Point]


class Problem(BaseModel):
    """Every error is one sentence."""

    error: str


PROBLEM: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (404, 422)}
GONE: dict[int | str, dict[str, Any]] = {410: {"model": Problem}}
BUSY: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (429, 503)}  # of every endpoint
ModelName = Annotated[str | None, Query(pattern=NAME)]
