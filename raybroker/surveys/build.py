"""From a survey's columns to the canonical batch, and from its histories back to points: what all decoders share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raybroker import alerts
from raybroker.alerts import Bad, Decoded, Floats, Integers, LightCurves, Packet
from raybroker.errors import PacketError
from raybroker.surveys.avro import Body, Table

MJD_EPOCH = np.datetime64("1858-11-17")
LAST_MJD = 200_000.0  # the year 2406: later times are damage
REASON_LETTERS = 500  # of why a packet is bad: it may quote a schema of a megabyte
NUMBERS = (
    "flux",
    "error",
    "limit",
    "template_flux",
    "template_error",
    "template_distance",
    "total_flux",
    "quality",
)


@dataclass(frozen=True)
class Points:
    """Points of light curves of one kind; `numbers` by the names of `alerts.POINT`, NaN where not known."""

    kind: str
    alert: Integers  # row of the alert
    mjd: Floats
    band: Integers  # place in the survey's bands, −1 where unknown
    numbers: Mapping[str, Floats] = field(default_factory=dict)

    def where(self, kept: Any) -> Points:
        """Some of the points."""
        numbers = {name: column[kept] for name, column in self.numbers.items()}
        return Points(self.kind, self.alert[kept], self.mjd[kept], self.band[kept], numbers)

    def number(self, name: str) -> Floats:
        return self.numbers.get(name, np.full(len(self.mjd), np.nan))


def history(rows: int, parts: Sequence[Points], bands: Sequence[str]) -> pa.ListArray:
    """The `history` column: ascending, each (mjd, band, kind) once; of two, the one with a flux, then the earlier part."""
    parts = [part.where(np.isfinite(part.mjd)) for part in parts]
    alert, mjd, band = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("alert", "mjd", "band")
    )
    kind = np.concatenate([np.full(len(part.mjd), alerts.KINDS.index(part.kind)) for part in parts])
    numbers = {name: np.concatenate([part.number(name) for part in parts]) for name in NUMBERS}
    same = kind * 16 + band
    order = np.lexsort((same * 2 + np.isnan(numbers["flux"]), mjd, alert))
    order = order[_first_of_each(alert[order], mjd[order], same[order])]
    starts = np.concatenate([[0], np.cumsum(np.bincount(alert[order], minlength=rows))]).astype(np.int32)
    columns = [pa.array(mjd[order]), names(band[order], bands), names(kind[order], alerts.KINDS)]
    columns += [floats(numbers[name][order]) for name in NUMBERS]
    points = pa.StructArray.from_arrays(columns, fields=list(alerts.POINT))
    return pa.ListArray.from_arrays(pa.array(starts), points).cast(alerts.HISTORY)


def _first_of_each(*keys: Any) -> Any:
    if len(keys[0]) == 0:
        return np.zeros(0, np.bool_)
    changes = [key[1:] != key[:-1] for key in keys]
    return np.concatenate([[True], np.logical_or.reduce(changes)])


def floats(numbers: Floats) -> pa.Array:
    """float32, with null for what is not finite."""
    with np.errstate(over="ignore"):
        small = numbers.astype(np.float32)
    return pa.array(small, mask=~np.isfinite(small))


def doubles(numbers: Floats) -> pa.Array:
    """float64, with null for what is not finite."""
    return pa.array(numbers, mask=~np.isfinite(numbers))


def names(codes: Integers, of: Sequence[str]) -> pa.StringArray:
    """Strings for places in a list, null for −1."""
    return pa.array(of, pa.string()).take(pa.array(codes, mask=codes < 0))


def ids(survey: str, column: pa.Array) -> pa.StringArray:
    """'ztf:123' for 123; null for null."""
    return pc.binary_join_element_wise(pa.scalar(f"{survey}:"), column.cast(pa.string()), "")


def nights(mjd: Floats) -> Integers:
    """YYYYMMDD of the UTC day of a finite mjd."""
    days = MJD_EPOCH + np.floor(mjd).astype("timedelta64[D]")
    months, years = days.astype("datetime64[M]"), days.astype("datetime64[Y]")
    day = (days - months).astype(np.int64) + 1
    return (years.astype(np.int64) + 1970) * 10_000 + (months.astype(np.int64) % 12 + 1) * 100 + day


class Opened(NamedTuple):
    """Packets whose bodies were found: their rows in the list of packets; and those that were not."""

    rows: list[int]
    bodies: list[Body]
    bad: list[Bad]


def open_packets(packets: Sequence[Packet], open_one: Callable[[Packet], Body]) -> Opened:
    """Every packet opened by itself; one that cannot be becomes bad."""
    opened = Opened([], [], [])
    for row, packet in enumerate(packets):
        try:
            body = open_one(packet)
        except PacketError as error:
            opened.bad.append(Bad(row, told(str(error))))
        else:
            opened.rows.append(row)
            opened.bodies.append(body)
    return opened


def told(reason: str) -> str:
    """A reason that can be stored: of bounded length, and without halves of surrogate pairs, which JSON may hold."""
    short = reason if len(reason) <= REASON_LETTERS else f"{reason[: REASON_LETTERS - 4]} ..."
    return short.encode("utf-8", "replace").decode()


def check(table: Table, required: Mapping[str, Floats], ra: Floats, dec: Floats) -> dict[int, str]:
    """What is wrong with each row: the reader's reason, a required field that is not there, a place off the sky."""
    reasons = dict(table.reasons)
    for name, values in required.items():
        for row in np.flatnonzero(np.isnan(values)):
            reasons.setdefault(int(row), f"it has no '{name}'")
    for row in np.flatnonzero(~_on_sky(ra, dec)):
        reasons.setdefault(int(row), f"its position (ra {ra[row]}, dec {dec[row]}) is not on the sky")
    return reasons


def _on_sky(ra: Floats, dec: Floats) -> npt.NDArray[np.bool_]:
    return (ra >= 0) & (ra <= 360) & (dec >= -90) & (dec <= 90)


def dates(mjd: Floats) -> Floats:
    """Times that can be dates, NaN for the others: packets of early Rubin schemas carry seconds instead of days."""
    return np.where((mjd > 0) & (mjd < LAST_MJD), mjd, np.nan)


def decoded(
    schema: pa.Schema,
    packets: Sequence[Packet],
    opened: Opened,
    table: Table,
    columns: Mapping[str, pa.Array],
    reasons: Mapping[int, str],
) -> Decoded:
    """The batch of the rows that have no reason against them."""
    origin = _origin([packets[row] for row in opened.rows])
    known = origin | dict(columns)
    batch = pa.RecordBatch.from_arrays(
        [known[name].cast(schema.field(name).type) for name in schema.names], schema=schema
    )
    good = np.ones(len(opened.rows), np.bool_)
    good[list(reasons)] = False
    bad = [*opened.bad, *(Bad(opened.rows[row], told(reason)) for row, reason in reasons.items())]
    if not good.all():
        batch = batch.filter(pa.array(good))
    return Decoded(
        batch=batch,
        rows=np.array(opened.rows, dtype=np.int64)[good],
        bodies=[body.data for body, kept in zip(table.bodies, good, strict=True) if kept],
        bad=sorted(bad),
        unknown_fields=table.unknown(),
    )


def _origin(packets: Sequence[Packet]) -> dict[str, pa.Array]:
    return {
        "topic": pa.array([packet.topic for packet in packets], pa.string()),
        "partition": pa.array([packet.partition for packet in packets], pa.int32()),
        "offset": pa.array([packet.offset for packet in packets], pa.int64()),
    }


def place_columns(ra: Floats, dec: Floats, mjd: Floats, night_starts: float) -> dict[str, pa.Array]:
    """ra, dec, healpix, mjd and night, which begins `night_starts` days after midnight UTC.

    Where a position is impossible (its row is bad), another stands in for it.
    """
    on_sky, dated = _on_sky(ra, dec), np.isfinite(mjd)
    ra, dec = np.where(on_sky, ra, 0.0), np.where(on_sky, dec, 0.0)
    night = nights(np.where(dated, mjd - night_starts, 0.0))
    return {
        "ra": pa.array(ra),
        "dec": pa.array(dec),
        "healpix": pa.array(alerts.healpix(ra, dec)),
        "mjd": doubles(mjd),
        "night": pa.array(night.astype(np.int32), mask=~dated),
    }


def cutouts(table: Table, paths: Mapping[str, str]) -> pa.StructArray:
    """Places of the cutouts by kind; null where the packet has none."""
    return pa.StructArray.from_arrays(
        [table.arrow(paths[kind]) for kind in alerts.CUTOUTS], names=list(alerts.CUTOUTS)
    )


def points_by_alert(batch: pa.RecordBatch, bands: Sequence[str]) -> list[list[dict[str, Any]]]:
    """The history of each alert as dictionaries with NaN for null, `band` as its place in `bands`: for encoders."""
    curves = LightCurves.of(batch.column("history"))
    columns: dict[str, list[Any]] = {name: curves.numbers(name).tolist() for name in ("mjd", *NUMBERS)}
    columns["band"] = curves.codes("band", bands).tolist()
    columns["kind"] = curves.codes("kind", alerts.KINDS).tolist()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    starts = curves.starts.tolist()
    return [rows[a:b] for a, b in itertools.pairwise(starts)]
