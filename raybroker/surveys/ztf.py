"""ZTF: one Avro container per alert, of schema versions 1.3 to 4.02, as the survey or a broker wrote it.

Units and rules (ZTF Alert Stream: https://github.com/ZwickyTransientFacility/ztf-avro-alert): `jd` is the start of the
exposure in UTC; magnitudes are AB, of the difference image; −999 and −99999 and the string 'null' mean null.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker import alerts
from raybroker.alerts import DETECTION, FORCED, LIMIT, Decoded, Floats, Integers, Packet
from raybroker.errors import PacketError
from raybroker.surveys import avro, build, containers, fields
from raybroker.surveys.avro import Body, Reader, Table
from raybroker.surveys.build import Points
from raybroker.surveys.containers import Containers
from raybroker.surveys.schema import Program, Wanted

BANDS = ("g", "r", "i")  # of fid 1, 2, 3
JD_OF_MJD = 2_400_000.5
EXPOSURE = 30.0  # seconds, where the packet does not say
DAY = 86_400.0
SAME_SOURCE = 1.5  # arcsec: a reference source this near is the alert's own
MOVING = 5.0  # arcsec: a known solar-system object this near is the alert
MAGNITUDE_ERROR = 2.5 / np.log(10)  # of a relative flux error of 1
ENCODED_ZERO_POINT = (
    26.25  # of the forced photometry that we write; any will do, this one is exact in float32
)

MISSING = (-999.0, -99999.0)
CUTOUT_PATHS = {kind: f"cutout{kind.capitalize()}.stampData" for kind in alerts.CUTOUTS}
_CUTOUT_NAMES = {"science": "targ_sci", "template": "ref", "difference": "targ_refmsci"}
TOP = {"objectId": "string", "publisher": "string", "schemavsn": "string"}
CANDIDATE = fields.ZTF_CANDIDATE | fields.ZTF_CANDIDATE_1_3
_STAMP = ("jd", "fid", "diffmaglim", "distnr", "magnr", "sigmagnr")
_PREVIOUS = (*_STAMP, "isdiffpos", "magpsf", "sigmapsf", "rb")
_FORCED = (*_STAMP, "exptime", "forcediffimflux", "forcediffimfluxunc", "magzpsci")


def wanted(added: Mapping[str, str] | None = None) -> Wanted:
    """What is read of a ZTF record, and of the fields that a broker added to it."""
    names = [f"prv_candidates.{name}" for name in fields.ZTF_PREVIOUS]
    names += [f"fp_hists.{name}" for name in fields.ZTF_FORCED]
    names += [path.replace("stampData", "fileName") for path in CUTOUT_PATHS.values()]
    previous, forced = fields.kinds(fields.ZTF_PREVIOUS), fields.kinds(fields.ZTF_FORCED)
    return Wanted(
        columns=TOP
        | fields.kinds(CANDIDATE, "candidate.")
        | dict.fromkeys(CUTOUT_PATHS.values(), "bytes")
        | dict(added or {}),
        arrays={
            "prv_candidates": {name: previous[name] for name in _PREVIOUS},
            "fp_hists": {name: forced[name] for name in _FORCED},
        },
        known=frozenset([*names, "candid"]),
    )


def own_fields(added: Mapping[str, str] | None = None) -> pa.StructType:
    """The own struct: the candidate record's fields, the names of the packet, and what a broker added."""
    kinds = TOP | fields.kinds(CANDIDATE) | dict(added or {})
    return pa.struct([(name, avro.arrow_type(kind)) for name, kind in kinds.items()])


class Ztf:
    """The ZTF survey; see `surveys.Survey`."""

    name = "ztf"
    topics: tuple[str, ...] = (r"^ztf_\d{8}_programid1$",)

    def __init__(self) -> None:
        self.schema = alerts.schema(self.name, own_fields())
        self._containers = Containers()
        self._reader = Reader(wanted(), MISSING, b"null")
        self._writer = Writer({})

    def decode(self, packets: Sequence[Packet]) -> Decoded:
        return decode(self.name, self.schema, self._reader, packets, self._open)

    def encode(
        self, batch: pa.RecordBatch, cutouts: Mapping[str, Sequence[bytes]] | None = None
    ) -> list[Packet]:
        """Containers of schema 4.02's fields, all nullable; detections without a flux cannot be written as such."""
        values = map(self._writer.container, self._writer.records(batch, self.name, cutouts or {}))
        return [Packet(value, *origin) for value, origin in zip(values, origins(batch), strict=True)]

    def shared(self, packet: Packet) -> tuple[int, int]:
        try:
            return len(self._containers.header(packet.value or b"").raw), 0
        except PacketError:
            return 0, 0

    def _open(self, packet: Packet) -> Body:
        if not packet.value:
            raise PacketError("the packet is empty" if packet.value == b"" else "the packet has no value")
        header, data = self._containers.open(packet.value)
        return checked(self._reader, self._reader.program(header.schema), data)


def checked(reader: Reader, program: Program, data: bytes | memoryview) -> Body:
    """A body that is a ZTF record by its schema, ready to be read; raises PacketError."""
    if "candidate" not in program.top:
        raise PacketError(not_a(program.top, "ZTF", "candidate"))
    return reader.translated(Body(program, data))


def not_a(top: frozenset[str], survey: str, missing: str) -> str:
    """Why a record of another survey is refused."""
    other = "Rubin" if "diaSource" in top else "ZTF" if "candidate" in top else None
    kind = f"a {other} alert" if other else f"a record of {', '.join(sorted(top)[:5]) or 'nothing'}"
    return f"it is {kind}, not a {survey} alert: it has no '{missing}'"


def decode(
    survey: str, schema: pa.Schema, reader: Reader, packets: Sequence[Packet], open_one: Any
) -> Decoded:
    """The batch of ZTF records, whoever wrapped them."""
    with np.errstate(over="ignore", invalid="ignore"):  # damaged magnitudes become null fluxes
        return _decode(survey, schema, reader, packets, open_one)


def _decode(
    survey: str, schema: pa.Schema, reader: Reader, packets: Sequence[Packet], open_one: Any
) -> Decoded:
    opened = build.open_packets(packets, open_one)
    table = reader.read(opened.bodies)
    ra, dec = table.numbers("candidate.ra"), table.numbers("candidate.dec")
    mjd = _mid_exposure(table.numbers("candidate.jd"), table.numbers("candidate.exptime"))
    reasons = build.check(table, {"candidate.candid": table.numbers("candidate.candid")}, ra, dec)
    this = _detections(table, "", "candidate.")
    columns = build.place_columns(ra, dec, mjd, 0.0) | {
        "survey": pa.array([survey] * len(table), pa.string()),
        "alert_id": build.ids("ztf", table.arrow("candidate.candid")),
        "object_id": build.ids("ztf", table.arrow("objectId")),
        "ss_object_id": _moving(table),
        "band": build.names(this.band, BANDS),
        "flux": build.floats(this.numbers["flux"]),
        "flux_error": build.floats(this.numbers["error"]),
        "reliability": pc.coalesce(table.arrow("candidate.drb"), table.arrow("candidate.rb")),
        "history": build.history(len(table), [this, *_previous(table), _forced(table)], BANDS),
        "cutouts": build.cutouts(table, CUTOUT_PATHS),
        survey: _own(table, schema.field(survey).type),
    }
    return build.decoded(schema, packets, opened, table, columns, reasons)


def _own(table: Table, kind: pa.StructType) -> pa.StructArray:
    paths = [item.name if item.name not in CANDIDATE else f"candidate.{item.name}" for item in kind]
    return pa.StructArray.from_arrays([table.arrow(path) for path in paths], fields=list(kind))


def _mid_exposure(jd: Floats, exposure: Floats) -> Floats:
    seconds = np.where(np.isfinite(exposure), exposure, EXPOSURE)
    return build.dates(jd - JD_OF_MJD + seconds / 2 / DAY)


def _band(fid: Floats) -> Integers:
    return np.where((fid >= 1) & (fid <= 3), np.nan_to_num(fid) - 1, -1).astype(np.int64)


def _moving(table: Table) -> pa.StringArray:
    near = table.numbers("candidate.ssdistnr")
    with np.errstate(invalid="ignore"):
        matched = (near >= 0) & (near < MOVING)
    return pc.if_else(pa.array(matched), build.ids("ztf", table.arrow("candidate.ssnamenr")), None)


def _sign(flag: pa.StringArray) -> Floats:
    """+1, −1, or NaN of isdiffpos, which is written t, f, 1 or 0."""
    positive = np.select(
        [pc.is_in(flag, pa.array(said)).to_numpy(zero_copy_only=False) for said in (["t", "1"], ["f", "0"])],
        [1.0, -1.0],
        np.nan,
    )
    return np.asarray(positive, dtype=np.float64)


def _stamps(table: Table, array: str, prefix: str) -> dict[str, Floats]:
    """Limit and reference source of every row, in flux."""
    numbers = {n: table.numbers(prefix + n, array) for n in ("diffmaglim", "magnr", "sigmagnr", "distnr")}
    template = alerts.magnitude_to_flux(numbers["magnr"])
    return {
        "limit": alerts.magnitude_to_flux(numbers["diffmaglim"]),
        "template_flux": template,
        "template_error": template * numbers["sigmagnr"] / MAGNITUDE_ERROR,
        "template_distance": numbers["distnr"],
    }


def _with_total(numbers: dict[str, Floats]) -> dict[str, Floats]:
    with np.errstate(invalid="ignore"):
        own = numbers["template_distance"] < SAME_SOURCE
    return numbers | {"total_flux": np.where(own, numbers["template_flux"] + numbers["flux"], np.nan)}


def _detections(table: Table, array: str, prefix: str) -> Points:
    flux = alerts.magnitude_to_flux(table.numbers(prefix + "magpsf", array))
    numbers = _stamps(table, array, prefix) | {
        "flux": flux * _sign(table.arrow(prefix + "isdiffpos", array)),
        "error": flux * table.numbers(prefix + "sigmapsf", array) / MAGNITUDE_ERROR,
        "quality": table.numbers(prefix + "rb", array),
    }
    exposure = table.numbers(prefix + "exptime", array) if prefix else np.nan
    mjd = _mid_exposure(table.numbers(prefix + "jd", array), np.asarray(exposure))
    return Points(
        DETECTION, table.owners(array), mjd, _band(table.numbers(prefix + "fid", array)), _with_total(numbers)
    )


def _previous(table: Table) -> list[Points]:
    points = _detections(table, "prv_candidates", "")
    seen = table.known("magpsf", "prv_candidates")
    limits = points.where(~seen)
    limits = Points(LIMIT, limits.alert, limits.mjd, limits.band, {"limit": limits.numbers["limit"]})
    return [points.where(seen), limits]


def _forced(table: Table) -> Points:
    """Forced photometry of the last thirty days: counts, turned to flux by each image's zero point."""
    array = "fp_hists"
    scale = alerts.magnitude_to_flux(table.numbers("magzpsci", array))
    numbers = _stamps(table, array, "") | {
        "flux": table.numbers("forcediffimflux", array) * scale,
        "error": table.numbers("forcediffimfluxunc", array) * scale,
    }
    mjd = _mid_exposure(table.numbers("jd", array), table.numbers("exptime", array))
    return Points(FORCED, table.owners(array), mjd, _band(table.numbers("fid", array)), _with_total(numbers))


def origins(batch: pa.RecordBatch) -> list[tuple[str, int, int]]:
    columns = [batch.column(name).to_pylist() for name in ("topic", "partition", "offset")]
    return [(topic or "", part or 0, offset or 0) for topic, part, offset in zip(*columns, strict=True)]


def record_schema(added: Mapping[str, str]) -> dict[str, Any]:
    """The Avro schema that we write: 4.02's records with every field nullable."""
    cutout = fields.record("cutout", fields.read("fileName:string? stampData:bytes?"))
    previous = fields.record("prv_candidate", fields.ZTF_PREVIOUS)
    forced = fields.record("fp_hist", fields.ZTF_FORCED)
    parts: dict[str, Any] = dict(fields.nullable(TOP)) | {"candid": "long"}
    parts["candidate"] = fields.record("candidate", fields.ZTF_CANDIDATE)
    parts["prv_candidates"] = ["null", {"type": "array", "items": previous}]
    parts["fp_hists"] = ["null", {"type": "array", "items": forced}]
    parts["cutoutScience"] = ["null", cutout]
    parts["cutoutTemplate"] = parts["cutoutDifference"] = ["null", "cutout"]
    return {
        **fields.record("alert", parts | fields.nullable(dict(added))),
        "namespace": "ztf",
        "version": "4.02",
    }


class Writer:
    """Canonical batches to ZTF records, and those to bytes."""

    def __init__(self, added: Mapping[str, str]):
        self._added = tuple(added)
        self._parsed = fastavro.parse_schema(record_schema(added))
        self.schema = json.dumps(record_schema(added)).encode()
        self._header = containers.container_header(self.schema)
        self._sync = hashlib.md5(self.schema, usedforsecurity=False).digest()

    def body(self, record: Mapping[str, Any]) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self._parsed, record)
        return out.getvalue()

    def container(self, record: Mapping[str, Any]) -> bytes:
        return containers.write_container(self._header, self._sync, self.body(record))

    def records(
        self, batch: pa.RecordBatch, survey: str, cutouts: Mapping[str, Sequence[bytes]]
    ) -> Iterator[dict[str, Any]]:
        """A record per alert; what the batch does not know is null."""
        thin = batch.drop_columns(["history", "cutouts"]).to_pylist()
        points = build.points_by_alert(batch, BANDS)
        for row, (alert, history) in enumerate(zip(thin, points, strict=True)):
            images = {kind: images[row] for kind, images in cutouts.items()}
            yield self._record(alert, alert[survey] or {}, history, images)

    def _record(
        self, alert: Any, own: Any, history: list[Any], images: Mapping[str, bytes]
    ) -> dict[str, Any]:
        band = BANDS.index(alert["band"]) if alert["band"] in BANDS else -1
        this: dict[str, Any] = next(
            (p for p in history if (p["mjd"], p["band"], p["kind"]) == (alert["mjd"], band, 0)), {}
        )
        candidate = own | _drop_null(_candidate(alert, own, this | {"band": band}))
        old = [p for p in history if p is not this]
        return {
            **{name: own.get(name) for name in self._added},
            "objectId": _bare(alert["object_id"]),
            "publisher": own.get("publisher"),
            "schemavsn": "4.02",
            "candid": candidate["candid"],
            "candidate": candidate,
            "prv_candidates": [_previous_record(p) for p in old if p["kind"] != 1] or None,
            "fp_hists": [_forced_record(p) for p in old if p["kind"] == 1] or None,
            **{
                CUTOUT_PATHS[kind].split(".")[0]: _cutout(alert, kind, image)
                for kind, image in images.items()
            },
        }


def _drop_null(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value is not None}


def _bare(identifier: str | None) -> str | None:
    return None if identifier is None else identifier.partition(":")[2]


def _cutout(alert: Any, kind: str, image: bytes) -> dict[str, Any]:
    return {"fileName": f"candid{_bare(alert['alert_id'])}_{_CUTOUT_NAMES[kind]}.fits.gz", "stampData": image}


def _candidate(alert: Any, own: Any, this: Any) -> dict[str, Any]:
    bogus = own.get("rb") is None or own.get("drb") is not None
    moving = _bare(alert["ss_object_id"])
    return {
        **(_stamp(this, own.get("exptime") or EXPOSURE) if "mjd" in this else {}),
        **_brightness(alert["flux"], alert["flux_error"]),
        "jd": _start(alert["mjd"], own.get("exptime") or EXPOSURE),
        "fid": this["band"] + 1 or None,
        "candid": int(_bare(alert["alert_id"]) or 0),
        "ra": alert["ra"],
        "dec": alert["dec"],
        "drb": alert["reliability"] if bogus else None,
        "rb": _known(this.get("quality")),
        "ssnamenr": moving,
        "ssdistnr": own.get("ssdistnr") if moving is None else own.get("ssdistnr") or 0.0,
    }


def _known(number: float | None) -> float | None:
    return None if number is None or math.isnan(number) else number


def _start(mjd: float, exposure: float) -> float:
    return mjd + JD_OF_MJD - exposure / 2 / DAY


def _magnitude(flux: float | None) -> float | None:
    return None if flux is None or not flux > 0 else alerts.AB_ZERO_POINT - 2.5 * math.log10(flux)


def _brightness(flux: float | None, error: float | None) -> dict[str, Any]:
    if flux is None or math.isnan(flux) or flux == 0:
        return {}
    sigma = None if error is None else _known(error / abs(flux) * MAGNITUDE_ERROR)
    return {"magpsf": _magnitude(abs(flux)), "sigmapsf": sigma, "isdiffpos": "t" if flux > 0 else "f"}


def _stamp(point: Any, exposure: float = EXPOSURE) -> dict[str, Any]:
    template = _magnitude(point["template_flux"])
    relative = point["template_error"] / point["template_flux"] if template is not None else math.nan
    return {
        "jd": _start(point["mjd"], exposure),
        "fid": point["band"] + 1 or None,
        "diffmaglim": _magnitude(point["limit"]),
        "magnr": template,
        "sigmagnr": _known(relative * MAGNITUDE_ERROR),
        "distnr": _known(point["template_distance"]),
    }


def _previous_record(point: Any) -> dict[str, Any]:
    return _stamp(point) | _brightness(point["flux"], point["error"]) | {"rb": _known(point["quality"])}


def _forced_record(point: Any) -> dict[str, Any]:
    scale = float(alerts.magnitude_to_flux(ENCODED_ZERO_POINT))
    return _stamp(point) | {
        "exptime": EXPOSURE,
        "magzpsci": ENCODED_ZERO_POINT,
        "forcediffimflux": _known(point["flux"] / scale),
        "forcediffimfluxunc": _known(point["error"] / scale),
    }
