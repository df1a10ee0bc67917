"""Rows of the archive as the trainer takes them, and the sample that it keeps there."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker.alerts import flux_to_magnitude, values
from raybroker.archive.lookup import Lookup
from raybroker.archive.table import AlertsTable
from raybroker.errors import RaybrokerError
from raybroker.learning.shortlist import Candidate
from raybroker.pipeline import Pipeline
from raybroker.scores.online import features_table
from raybroker.surveys import Survey

log = logging.getLogger("raybroker")

LATEST, WILD = 1_000, 25  # alerts whose dates are looked at, and how many of these may be wrong
KEPT = pa.array(["scored", "failed"])  # outcomes of what may be asked about


@dataclass(frozen=True)
class Stream:
    """How the trainer reads one survey: its table, and how to compute a rejected alert's features again."""

    survey: Survey
    pipeline: Pipeline
    table: AlertsTable


def kept(rows: pa.Table) -> pa.Table:
    """Without what was rejected, dead or a duplicate."""
    return rows.filter(pc.is_in(rows["outcome"], KEPT))


def first_night(table: AlertsTable, enough: int) -> int | None:
    """The night from which on there are so many rows: a new trainer reads no older ones. None: there are not more."""
    rows, _ = table.read(["night", "outcome"])
    nights = kept(rows)["night"].drop_null().to_numpy()
    return int(np.sort(nights)[-enough]) if len(nights) > enough else None


def candidates(rows: pa.Table, columns: Iterable[str]) -> list[Candidate]:
    """Rows of the archive as candidates for a pool."""
    whole = {name: rows[name].combine_chunks() for name in rows.schema.names}
    features = features_table(whole, columns).to_pylist()
    magnitudes = flux_to_magnitude(np.abs(values(whole["flux"])))
    names = ("survey", "alert_id", "object_id", "mjd", "ra", "dec")
    head = zip(*(rows[name].to_pylist() for name in names), magnitudes.tolist(), features, strict=True)
    return [
        Candidate(
            survey, alert_id, object_id, mjd, found, ra, dec, None if magnitude != magnitude else magnitude
        )
        for survey, alert_id, object_id, mjd, ra, dec, magnitude, found in head
    ]


def whole(row: Mapping[str, Any], streams: Mapping[str, Stream], lookup: Lookup) -> Mapping[str, Any] | None:
    """A row with its features: a rejected alert's are computed now from its packet, with the cuts left out."""
    if row["outcome"] in ("scored", "failed"):
        return row
    stream = streams.get(row["survey"])
    if stream is None:
        return None
    try:
        decoded = stream.survey.decode([lookup.packet(row["alert_id"])])
    except (RaybrokerError, OSError) as error:
        log.warning("the packet of %s cannot be read: %s", row["alert_id"], error)
        return None
    made = stream.pipeline.without_cuts().run(decoded.batch, decoded.bodies).kept.to_pylist()
    return made[0] if made else None


class Dates:
    """How far the stream is, by the dates of its alerts, of which some may be far off.

    >>> dates = Dates()
    >>> dates.newest([60000.0, 60001.0, 99999.0])
    60001.0
    """

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=LATEST)

    def newest(self, mjds: Iterable[float | None]) -> float:
        """After these alerts: the newest date but `WILD` of the latest, or the median where there are not twice so many.

        One that says 99999 must not make all others look old. 0 where no alert came.
        """
        self._latest.extend(mjd for mjd in mjds if mjd is not None and math.isfinite(mjd))
        if not self._latest:
            return 0.0
        ordered = sorted(self._latest)
        return ordered[-min(WILD, len(ordered) // 2) - 1]


def to_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def from_bytes(content: bytes) -> pa.Table:
    """The table of an Arrow stream."""
    return pa.ipc.open_stream(content).read_all()


def value_at(row: Mapping[str, Any], path: str) -> float | None:
    """One number of a row by dotted path; None where it, or a parent, is not known, or infinite."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None or not math.isfinite(value) else float(value)
