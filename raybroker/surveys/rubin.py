"""Rubin: packets framed as Confluent does (a zero byte, the schema's id, the record), or Avro containers.

Fluxes are nJy already; `midpointMjdTai` is the middle of the exposure in TAI; ids that are 0 mean none.
Schemas: https://github.com/lsst/alert_packet. A schema's id is 100 × major + minor.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import erfa
import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker import alerts
from raybroker.alerts import DETECTION, FORCED, LIMIT, Decoded, Floats, Packet
from raybroker.errors import PacketError
from raybroker.surveys import avro, build, fields
from raybroker.surveys.avro import Body, Reader, Table
from raybroker.surveys.build import Points
from raybroker.surveys.containers import MAGIC, Containers
from raybroker.surveys.rubin_schemas import Schemas
from raybroker.surveys.schema import Wanted
from raybroker.surveys.ztf import not_a

BANDS = tuple(fields.BANDS)
FRAME = 5  # bytes before the record
DAY = 86_400.0
DAY_OBS = 0.5  # days: the observatory's day begins at noon UTC

CUTOUT_PATHS = {kind: f"cutout{kind.capitalize()}" for kind in alerts.CUTOUTS}
RECORDS = {
    "diaSource": fields.RUBIN_SOURCE,
    "diaObject": fields.RUBIN_OBJECT,
    "ssSource": fields.RUBIN_MOVING,
}
_FORCED = ("midpointMjdTai", "band", "psfFlux", "psfFluxErr", "scienceFlux", "timeWithdrawnMjdTai")
_PREVIOUS = (*_FORCED, "templateFlux", "templateFluxErr", "reliability")
_LIMITS = {"midpointMjdTai": "double", "band": "string", "diaNoise": "float"}
_KNOWN = ("alertId", "diaSourceId", "observation_reason", "target_name", "ssObject", "MPCORB", "mpc_orbits")


def _wanted() -> Wanted:
    columns: dict[str, str] = dict.fromkeys(RECORDS, "record")
    for name, record in RECORDS.items():
        columns |= fields.kinds(record, f"{name}.")
    source, forced = fields.kinds(fields.RUBIN_SOURCE), fields.kinds(fields.RUBIN_FORCED)
    passed = [f"prvDiaSources.{name}" for name in source] + [f"prvDiaForcedSources.{name}" for name in forced]
    return Wanted(
        columns=columns | dict.fromkeys(CUTOUT_PATHS.values(), "bytes"),
        arrays={
            "prvDiaSources": {name: source[name] for name in _PREVIOUS},
            "prvDiaForcedSources": {name: forced[name] for name in _FORCED},
            "prvDiaNondetectionLimits": _LIMITS,
        },
        known=frozenset([*passed, *_KNOWN, "prvDiaNondetectionLimits.ccdVisitId"]),
    )


def own_fields() -> pa.StructType:
    """The own struct: diaSource, diaObject and ssSource over all known versions."""
    return pa.struct(
        [
            (name, pa.struct([(key, avro.arrow_type(kind)) for key, kind in fields.kinds(record).items()]))
            for name, record in RECORDS.items()
        ]
    )


class Rubin:
    """The Rubin survey; see `surveys.Survey`.

    `schemas` is a folder of `.avsc` files (`MAJOR/MINOR/`), `registry` the URL of a Schema Registry; both are optional.
    `version` is the schema that `encode` writes. Raises StreamError where the registry cannot be reached: the packets
    are not to blame.
    """

    name = "rubin"
    topics: tuple[str, ...] = (r"^lsst-alerts-v\d+\.\d+$",)

    def __init__(self, schemas: str | Path | None = None, registry: str | None = None, version: str = "9.0"):
        self.schema = alerts.schema(self.name, own_fields())
        self._schemas = Schemas(Path(schemas) if schemas else None, registry)
        self._containers = Containers()
        self._reader = Reader(_wanted())
        self._version = version

    def decode(self, packets: Sequence[Packet]) -> Decoded:
        self._schemas.ask_again()
        opened = build.open_packets(packets, self._open)
        table = self._reader.read(opened.bodies)
        return _decoded(self.schema, packets, opened, table)

    def encode(
        self, batch: pa.RecordBatch, cutouts: Mapping[str, Sequence[bytes]] | None = None
    ) -> list[Packet]:
        """Framed packets of schema `version`.

        Limits of the history are lost (the schema has none since 8.0), and fields that may not be null are 0 where
        the batch does not know them.
        """
        major, minor = map(int, self._version.split("."))
        schema_id = 100 * major + minor
        writer = _Writer(schema_id, self._schemas.get(schema_id))
        return [
            Packet(value, topic or "", partition or 0, offset or 0)
            for value, topic, partition, offset in zip(
                writer.values(batch, cutouts or {}),
                *(batch.column(name).to_pylist() for name in ("topic", "partition", "offset")),
                strict=True,
            )
        ]

    def shared(self, packet: Packet) -> tuple[int, int]:
        try:
            return len(self._containers.header(packet.value or b"").raw), 0
        except PacketError:
            return 0, 0

    def _open(self, packet: Packet) -> Body:
        if not packet.value:
            raise PacketError("the packet is empty" if packet.value == b"" else "the packet has no value")
        schema, data = self._parts(packet.value)
        program = self._reader.program(schema)
        if "diaSource" not in program.top:
            raise PacketError(not_a(program.top, "Rubin", "diaSource"))
        return self._reader.translated(Body(program, data))

    def _parts(self, value: bytes) -> tuple[bytes, bytes | memoryview]:
        if value.startswith(MAGIC):
            header, data = self._containers.open(value)
            return header.schema, data
        if value[0] != 0:
            start = value[:4].hex(" ")
            raise PacketError(
                f"it is neither a framed Rubin packet nor an Avro container: it starts with {start}"
            )
        if len(value) < FRAME:
            raise PacketError(
                f"it is cut short: a framed packet has a head of {FRAME} bytes, this has {len(value)}"
            )
        return self._schemas.get(int.from_bytes(value[1:FRAME], "big")), memoryview(value)[FRAME:]


def _decoded(schema: pa.Schema, packets: Sequence[Packet], opened: build.Opened, table: Table) -> Decoded:
    ra, dec = table.numbers("diaSource.ra"), table.numbers("diaSource.dec")
    mjd = to_utc(table.numbers("diaSource.midpointMjdTai"))
    required = {"diaSource.diaSourceId": table.numbers("diaSource.diaSourceId")}
    reasons = build.check(table, required, ra, dec)
    this = _detections(table, "", "diaSource.")
    moving = pc.coalesce(_id(table, "diaSource.ssObjectId"), _id(table, "ssSource.ssObjectId"))
    columns = build.place_columns(ra, dec, mjd, DAY_OBS) | {
        "survey": pa.array(["rubin"] * len(table), pa.string()),
        "alert_id": build.ids("rubin", table.arrow("diaSource.diaSourceId")),
        "object_id": build.ids("rubin", _id(table, "diaSource.diaObjectId")),
        "ss_object_id": build.ids("rubin", moving),
        "band": build.names(this.band, BANDS),
        "flux": build.floats(this.numbers["flux"]),
        "flux_error": build.floats(this.numbers["error"]),
        "reliability": table.arrow("diaSource.reliability"),
        "history": build.history(len(table), [this, *_previous(table)], BANDS),
        "cutouts": build.cutouts(table, CUTOUT_PATHS),
        "rubin": _own(table),
    }
    return build.decoded(schema, packets, opened, table, columns, reasons)


def _own(table: Table) -> pa.StructArray:
    parts = [table.struct(f"{name}.", list(record)) for name, record in RECORDS.items()]
    return pa.StructArray.from_arrays(parts, names=list(RECORDS))


def _id(table: Table, path: str) -> pa.Array:
    column = table.arrow(path)
    return pc.if_else(pc.equal(column, 0), None, column)


def _bands(table: Table, path: str, array: str) -> Any:
    found = pc.index_in(table.arrow(path, array), value_set=pa.array(BANDS))
    return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _points(table: Table, kind: str, array: str, prefix: str, names: Mapping[str, str]) -> Points:
    return Points(
        kind,
        table.owners(array),
        to_utc(table.numbers(prefix + "midpointMjdTai", array)),
        _bands(table, prefix + "band", array),
        {name: table.numbers(prefix + field, array) for name, field in names.items()},
    )


_DETECTED = {
    "flux": "psfFlux",
    "error": "psfFluxErr",
    "template_flux": "templateFlux",  # forced at this place, hence without a distance
    "template_error": "templateFluxErr",
    "total_flux": "scienceFlux",
    "quality": "reliability",
}
_MEASURED = {"flux": "psfFlux", "error": "psfFluxErr", "total_flux": "scienceFlux"}


def _detections(table: Table, array: str, prefix: str) -> Points:
    return _points(table, DETECTION, array, prefix, _DETECTED)


def _previous(table: Table) -> list[Points]:
    """Earlier detections and forced photometry that were not withdrawn since, and 7.x's limits (of one sigma)."""
    seen = _detections(table, "prvDiaSources", "")
    forced = _points(table, FORCED, "prvDiaForcedSources", "", _MEASURED)
    limits = _points(table, LIMIT, "prvDiaNondetectionLimits", "", {"limit": "diaNoise"})
    limits = Points(LIMIT, limits.alert, limits.mjd, limits.band, {"limit": 5 * limits.numbers["limit"]})
    withdrawn = {
        name: table.known("timeWithdrawnMjdTai", name) for name in ("prvDiaSources", "prvDiaForcedSources")
    }
    return [
        seen.where(~withdrawn["prvDiaSources"]),
        forced.where(~withdrawn["prvDiaForcedSources"]),
        limits,
    ]


def _leap_seconds() -> tuple[Floats, Floats]:
    """(UTC mjd from which on, TAI − UTC in days), ascending."""
    table = erfa.leap_seconds.get()
    months = (table["year"].astype(np.int64) - 1970) * 12 + table["month"].astype(np.int64) - 1
    days = months.astype("datetime64[M]").astype("datetime64[D]") - build.MJD_EPOCH
    return days.astype(np.float64), table["tai_utc"].astype(np.float64) / DAY


_SINCE, _OFFSET = _leap_seconds()


def to_utc(mjd_tai: Floats) -> Floats:
    """TAI to UTC; NaN where it is no date."""
    place = np.searchsorted(_SINCE + _OFFSET, mjd_tai, side="right") - 1
    return build.dates(mjd_tai - _OFFSET[np.clip(place, 0, None)])


def to_tai(mjd: Floats) -> Floats:
    """UTC to TAI; NaN stays."""
    place = np.searchsorted(_SINCE, mjd, side="right") - 1
    return mjd + _OFFSET[np.clip(place, 0, None)]


class _Writer:
    """Canonical batches to framed records of one schema."""

    def __init__(self, schema_id: int, schema: bytes):
        self._parsed = fastavro.parse_schema(json.loads(schema))
        self._frame = b"\x00" + schema_id.to_bytes(4, "big")
        named: dict[str, Any] = {}
        _collect(self._parsed, named)
        self._source, self._forced = named["diaSource"], named["diaForcedSource"]
        self._named = named

    def values(self, batch: pa.RecordBatch, cutouts: Mapping[str, Sequence[bytes]]) -> list[bytes]:
        thin = batch.drop_columns(["history", "cutouts"])
        tai = to_tai(alerts.values(batch.column("mjd"))).tolist()
        rows = zip(thin.to_pylist(), build.points_by_alert(batch, BANDS), tai, strict=True)
        return [
            self._value(
                alert, history, mjd, {CUTOUT_PATHS[kind]: images[n] for kind, images in cutouts.items()}
            )
            for n, (alert, history, mjd) in enumerate(rows)
        ]

    def _value(self, alert: Any, history: list[Any], tai: float, images: Mapping[str, bytes]) -> bytes:
        own = alert["rubin"] or {}
        ids = {name: _number(alert[name]) for name in ("alert_id", "object_id", "ss_object_id")}
        this: dict[str, Any] = next((p for p in history if _is_this(p, alert)), {})
        source = (own.get("diaSource") or {}) | _source(alert, this, ids, tai)
        old = [p for p in history if p is not this]
        record = {
            "alertId": ids["alert_id"],
            "diaSourceId": ids["alert_id"],
            "diaSource": _filled(self._source, source),
            "prvDiaSources": [_filled(self._source, _point(p, _DETECTED)) for p in old if p["kind"] == 0],
            "prvDiaForcedSources": [
                _filled(self._forced, _point(p, _MEASURED)) for p in old if p["kind"] == 1
            ],
            **{name: self._part(name, own) for name in ("diaObject", "ssSource")},
            **images,
        }
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self._parsed, record)
        return self._frame + out.getvalue()

    def _part(self, name: str, own: Any) -> Any:
        return _filled(self._named[name], own[name]) if own.get(name) and name in self._named else None


def _collect(schema: Any, named: dict[str, Any]) -> None:
    """Record definitions by their short name."""
    if isinstance(schema, list):
        for branch in schema:
            _collect(branch, named)
    elif isinstance(schema, dict) and schema["type"] == "record":
        named[schema["name"].rpartition(".")[2]] = schema
        for item in schema["fields"]:
            _collect(item["type"], named)
    elif isinstance(schema, dict):
        _collect(schema.get("items", "null"), named)


_ZEROS = {"long": 0, "int": 0, "float": 0.0, "double": 0.0, "boolean": False, "string": ""}


def _filled(schema: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with a zero for each field that is not known and may not be null."""
    needed = {item["name"]: item["type"] for item in schema["fields"] if not isinstance(item["type"], list)}
    zeros = {name: _zero(kind) for name, kind in needed.items() if record.get(name) is None}
    return dict(record) | zeros


def _zero(kind: Any) -> Any:
    return _ZEROS.get(kind["type"] if isinstance(kind, dict) else kind)


def _number(identifier: str | None) -> int | None:
    return None if identifier is None else int(identifier.partition(":")[2])


def _is_this(point: Any, alert: Any) -> bool:
    return bool(
        point["kind"] == 0
        and point["mjd"] == alert["mjd"]
        and (BANDS[point["band"]] if point["band"] >= 0 else None) == alert["band"]
    )


def _known(number: float) -> float | None:
    return number if np.isfinite(number) else None


def _point(point: Any, names: Mapping[str, str]) -> dict[str, Any]:
    return {field: _known(point[name]) for name, field in names.items()} | {
        "midpointMjdTai": float(to_tai(np.asarray(point["mjd"]))),
        "band": BANDS[point["band"]] if point["band"] >= 0 else None,
    }


def _source(alert: Any, this: Any, ids: Mapping[str, int | None], tai: float) -> dict[str, Any]:
    known = (_point(this, _DETECTED) if this else {}) | {
        "diaSourceId": ids["alert_id"],
        "diaObjectId": ids["object_id"],
        "ssObjectId": ids["ss_object_id"],
        "midpointMjdTai": tai,
        "ra": alert["ra"],
        "dec": alert["dec"],
        "band": alert["band"],
        "psfFlux": alert["flux"],
        "psfFluxErr": alert["flux_error"],
        "reliability": alert["reliability"],
    }
    return {name: value for name, value in known.items() if value is not None}
