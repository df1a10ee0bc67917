"""Labelled light curves to a table with a row per detection, each with the features of what was known by then.

A light curve is a list `history` of (jd, fid, magpsf, sigmapsf), as ZTF's alerts have them: a null magnitude is an image
in which nothing was seen. An alert carries the history of the `DAYS` before it, as ZTF's does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raybroker import alerts
from raybroker.errors import SettingsError
from raybroker.protocols.tables import Names
from raybroker.scores.online import expand, features_table
from raybroker.step import Step, discover

BANDS = {1: "g", 2: "r", 3: "i"}  # of ZTF's fid
JD_OF_MJD = 2_400_000.5
MID_EXPOSURE = 15 / 86_400  # days: jd is the start of 30 s
MAGNITUDE_ERROR = 2.5 / np.log(10)  # of a relative flux error of 1
STEPS = ("basic", "early", "phases", "lightcurve")
DAYS = 30.0
FIELDS = ("jd", "fid", "magpsf", "sigmapsf")
Point = dict[str, Any]


def are(table: pa.Table) -> bool:
    """Whether it is a table of light curves."""
    if "history" not in table.column_names:
        return False
    kind = table.schema.field("history").type
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    return (
        inner is not None and pa.types.is_struct(inner) and all(inner.get_field_index(n) >= 0 for n in FIELDS)
    )


def table(curves: pa.Table, names: Names, days: float = DAYS) -> tuple[pa.Table, Names, list[str]]:
    """A row per detection: the label, the object, `mjd`, and the features of our own steps."""
    rows = known(curves, names)
    batch, origin = batch_of(rows, names.object, days)
    labels = [rows[i][names.label] for i in origin]
    head = {
        names.label: pa.array(labels),
        names.object: batch.column("object_id"),
        "mjd": batch.column("mjd"),
    }
    made = features(batch)
    note = f"{len(rows):,} light curves became {batch.num_rows:,} alerts, one for each detection"
    return pa.table({**head, **{n: made[n] for n in made.column_names}}), replace(names, time="mjd"), [note]


def known(curves: pa.Table, names: Names) -> list[dict[str, Any]]:
    """The light curves that have a label and points; SettingsError where there is none."""
    for what, name in (("label", names.label), ("object", names.object)):
        if name not in curves.column_names:
            raise SettingsError(
                f"--{what} {name}: the table has no such column; it has {', '.join(curves.column_names)}"
            )
    rows = [row for row in curves.to_pylist() if row[names.label] is not None and row["history"]]
    if not any(p["magpsf"] is not None for row in rows for p in row["history"]):
        raise SettingsError("no light curve of the table has both a label and a detection")
    return rows


def batch_of(
    rows: Sequence[Mapping[str, Any]], object_name: str, days: float = DAYS
) -> tuple[pa.RecordBatch, list[int]]:
    """The canonical batch of all detections in order of time, and the light curve that each is of."""
    made = [(alert, i) for i, row in enumerate(rows) for alert in _alerts(row, object_name, days)]
    made.sort(key=lambda pair: (pair[0]["mjd"], pair[0]["alert_id"]))
    return pa.RecordBatch.from_pylist([alert for alert, _ in made], schema=alerts.SCHEMA), [
        i for _, i in made
    ]


def _alerts(row: Mapping[str, Any], object_name: str, days: float) -> Iterator[dict[str, Any]]:
    history = points(row["history"])
    begin = 0
    for i, point in enumerate(history):
        if point["kind"] != alerts.DETECTION:
            continue
        while point["mjd"] - history[begin]["mjd"] > days:
            begin += 1
        name = str(row[object_name])
        yield {
            "survey": "ztf",
            "alert_id": f"{name}-{i}",
            "object_id": name,
            "ra": row.get("ra"),
            "dec": row.get("dec"),
            "mjd": point["mjd"],
            "band": point["band"],
            "flux": point["flux"],
            "flux_error": point["error"],
            "history": history[begin : i + 1],
        }


def points(history: Iterable[Mapping[str, Any]]) -> list[Point]:
    """A light curve as points of `alerts.POINT`: ascending, each (mjd, band, kind) once."""
    made: dict[tuple[Any, ...], Point] = {}
    for one in sorted(history, key=lambda one: float(one["jd"])):
        point = _point(one)
        made.setdefault((point["mjd"], point["band"], point["kind"]), point)
    return list(made.values())


def _point(one: Mapping[str, Any]) -> Point:
    mjd, band = one["jd"] - JD_OF_MJD + MID_EXPOSURE, BANDS.get(one["fid"])
    if one["magpsf"] is None:
        return {"mjd": mjd, "band": band, "kind": alerts.LIMIT}
    flux = float(alerts.magnitude_to_flux(one["magpsf"]))
    error = None if one["sigmapsf"] is None else flux * one["sigmapsf"] / MAGNITUDE_ERROR
    return {"mjd": mjd, "band": band, "kind": alerts.DETECTION, "flux": flux, "error": error}


def steps() -> list[Step]:
    """The steps whose features are used."""
    known = discover()
    return [known[name] for name in STEPS]


def features(batch: pa.RecordBatch) -> pa.Table:
    """The numbers of our own steps as float64 columns with dotted names."""
    found: dict[str, pa.Array] = {}
    for step in steps():
        found[step.name] = step.run({name: batch.column(name) for name in step.needs}, batch.num_rows)
    types = {name: column.type for name, column in found.items()}
    return features_table(found, expand([f"{name}.*" for name in found], types))
