"""Many labels at once: one look into the archive and one commit for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Response
from pydantic import ValidationError

from raybroker.archive import delta, store
from raybroker.archive.lookup import Lookup
from raybroker.errors import RaybrokerError
from raybroker.service import asked, messages
from raybroker.service.desk import Desk
from raybroker.service.door import NotAllowedError, again
from raybroker.service.labelling import REFUSED, Who
from raybroker.service.messages import Json, NewLabel, NewLabels

Row = dict[str, Any]
KNOWN = """select survey, alert_id, object_id, ss_object_id from "{}_alerts"
    where alert_id in (select unnest($ids)) order by outcome = 'duplicate', stored"""


def add(app: FastAPI, desk: Desk) -> None:
    """`/labels/batch`, `/labels/standing`."""

    @app.post("/labels/batch", response_model=messages.Results, responses=REFUSED, tags=["label"])
    def batch(name: Who, given: NewLabels) -> Response:
        """Record up to a thousand labels. Those that can be are on the disk when this answers; the others say why not."""
        return Json({"results": record(desk, given.labels, name)})

    @app.get("/labels/standing", tags=["label"])
    def standing(
        model: Annotated[
            str | None, Query(max_length=64, description="its own labels; empty: raw labels")
        ] = None,
    ) -> Response:
        """All labels that hold, in order of arrival."""
        return Json({"labels": desk.asked.standing(desk.model(model) if model else model)})


def record(desk: Desk, given: Sequence[Mapping[str, Any]], who: str) -> list[Row]:
    """What became of each: `event_id` with `repeated`, or with `error`."""
    known = known_alerts(desk.lookup, [str(one.get("alert_id")) for one in given])

    def alert_of(alert_id: str) -> Row:
        if alert_id not in known:
            raise NotAllowedError(f"no alert '{alert_id}' is in the archive", "alert_id")
        return known[alert_id]

    rows: dict[str, Row] = {}
    results: list[Row] = []
    for one in given:
        try:
            told = NewLabel.model_validate(one).model_dump()
            label = desk.door.label(told, who, alert_of)
            before = desk.asked.label(label.event_id) or _label(rows.get(label.event_id))
            repeated = before is not None and again(before, label) is before
            if not repeated:
                rows[label.event_id] = asked.row_of(label, told["snapshot"])
            results.append({"event_id": label.event_id, "repeated": repeated})
        except (RaybrokerError, ValidationError) as error:
            results.append(
                {"event_id": one.get("event_id"), "field": _field(error), "error": _sentence(error)}
            )
    desk.write(list(rows.values()))
    return results


def _label(row: Row | None) -> Any:
    return None if row is None else asked.label_of(row)


def _field(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return str(next(iter(error.errors()[0]["loc"]), ""))
    return getattr(error, "field", "")


def _sentence(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc']) or 'the label'}: {detail['msg']}"
        for detail in error.errors()
    )


def known_alerts(lookup: Lookup, alert_ids: Iterable[str]) -> dict[str, Row]:
    """Survey and object of each of these alerts that is in the archive; the survey of its prefix goes first."""
    ids = sorted(set(alert_ids))
    found: dict[str, Row] = {}
    for survey in lookup.surveys() if store.exists(lookup.root) else ():
        if not delta.live(delta.open_table(lookup.root / survey / "alerts")):
            continue
        for row in lookup.sql(KNOWN.format(survey), {"ids": ids}).to_pylist():
            own = row["alert_id"].partition(":")[0] == survey
            if row["alert_id"] not in found or (own and found[row["alert_id"]]["survey"] != survey):
                found[row["alert_id"]] = row
    return found
