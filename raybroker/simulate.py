"""A night of the synthetic sky, written as valid ZTF and Rubin packets with the truth beside them.

>>> sky = Sky.for_night(seed=1, alerts=20)
>>> exposures = list(night(sky, 20, "20260901"))
>>> sum(len(exposure.packets) for exposure in exposures)
20
>>> told = exposures[0].truth.to_pylist()[0]
>>> truth(sky, told["alert_id"]) == truth(sky, told["object_id"]) == told["class"]
True
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import itertools
import json
import random
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date as Date
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa

from raybroker import surveys, synthetic
from raybroker.alerts import (
    CUTOUTS,
    HISTORY,
    Floats,
    Integers,
    Packet,
    flux_to_magnitude,
    healpix,
    magnitude_to_flux,
)
from raybroker.errors import UnknownError
from raybroker.surveys import containers
from raybroker.synthetic import CLASSES, LOOKS, Epochs, Measured, Sky, normal, uniform

CHUNK = 400  # alerts made and encoded together
MJD_OF_1858 = Date(1858, 11, 17).toordinal()
FIRST_NIGHT = 57754  # ZTF counts its nights from 2017-01-01
TURNS = 200  # of a place, at most
OBJECT_LETTERS = 7
TAI_MINUS_UTC = 37 / 86400


@dataclass(frozen=True)
class Exposure:
    """What one look at one field gives: packets, and alert_id, object_id and class of each."""

    mjd: float
    packets: Sequence[Packet]
    truth: pa.Table


# --- nights ---------------------------------------------------------------------------------------------------


def night(
    sky: Sky, alerts: int, date: str, survey: str = "ztf", *, cutouts: bool = True, broken: float = 0.0
) -> Iterator[Exposure]:
    """The first `alerts` alerts of a night (YYYYMMDD, by the survey's own rule), exposure by exposure, in order.

    Fewer, if the sky is too small (`Sky.for_night` makes one that is not). A share `broken` of the packets has lost
    a byte or its end.
    """
    found = synthetic.tonight(sky, LOOKS[survey], _mjd(date))
    return _exposures(sky, survey, found.take(slice(0, alerts)), cutouts, broken)


def visits(
    sky: Sky, after: str, survey: str = "ztf", *, cutouts: bool = True, broken: float = 0.0
) -> Iterator[Exposure]:
    """What follows a night, for ever: the exposures of the nights after it."""
    for number in itertools.count(_mjd(after) + 1):
        yield from _exposures(sky, survey, synthetic.tonight(sky, LOOKS[survey], number), cutouts, broken)


def truth(sky: Sky, identifier: str) -> str:
    """The class of an alert or an object by its id, with or without the survey's name before it."""
    name = identifier.split(":")[-1]
    place = _place_of_letters(name) if name.startswith("ZTF") else _place_of_number(name)
    if not 0 <= place < sky.places:
        raise UnknownError(f"'{identifier}' is not an alert or an object of this synthetic sky")
    return CLASSES[sky.kind[place]]


def _mjd(date: str) -> int:
    return Date.fromisoformat(date).toordinal() - MJD_OF_1858


def _exposures(sky: Sky, survey: str, found: Measured, cutouts: bool, broken: float) -> Iterator[Exposure]:
    starts = np.flatnonzero(np.diff(found.epochs.mjd, prepend=-1.0))
    for chunk in _chunks(starts, len(found.flux)):
        batch = columns(sky, survey, found.take(slice(chunk[0], chunk[-1])))
        stamps = _stamps(sky, survey, found.take(slice(chunk[0], chunk[-1]))) if cutouts else None
        packets = surveys.load(survey).encode(batch, stamps)
        packets = [_maybe_broken(sky, packet, broken) for packet in packets]
        told = _told(sky, batch)
        for begin, end in itertools.pairwise(np.array(chunk) - chunk[0]):
            yield Exposure(
                found.epochs.mjd[chunk[0] + begin], packets[begin:end], told.slice(begin, end - begin)
            )


def _chunks(starts: Integers, rows: int) -> Iterator[list[int]]:
    """Edges of neighbouring exposures, as many as make about CHUNK alerts."""
    edges = [*starts.tolist(), rows]
    group = [0]
    for edge in edges[1:]:
        group.append(edge)
        if edge - group[0] >= CHUNK or edge == rows:
            yield group
            group = [edge]


def _told(sky: Sky, batch: pa.RecordBatch) -> pa.Table:
    ids = batch["alert_id"].to_pylist()
    classes = pa.array([truth(sky, name) for name in ids], pa.string())
    return pa.table({"alert_id": batch["alert_id"], "object_id": batch["object_id"], "class": classes})


def _maybe_broken(sky: Sky, packet: Packet, share: float) -> Packet:
    value = packet.value or b""
    dice = random.Random(f"{sky.seed} {len(value)} {value[-40:].hex()}") if share else None
    if dice is None or dice.random() >= share:
        return packet
    cut = dice.randrange(len(value) // 2, len(value) - 1)
    return Packet(
        value[:cut] + (value[cut + 1 :] if dice.random() < 0.5 else b""), packet.topic, key=packet.key
    )


# --- ids ------------------------------------------------------------------------------------------------------


def _alert_numbers(found: Measured) -> Integers:
    """19 digits as ZTF's: night, millionth of the day, and what is there."""
    epochs = found.epochs
    moment = ((epochs.mjd % 1) * 1e6).astype(np.int64)
    return ((epochs.night - FIRST_NIGHT) * 10**6 + moment) * 10**9 + epochs.place * 10 + epochs.visit


def _object_numbers(found: Measured) -> Integers:
    return found.epochs.place * TURNS + found.epochs.turn


def _letters(number: int) -> str:
    """ZTF's way to name an object."""
    letters = [chr(97 + number // 26**power % 26) for power in reversed(range(OBJECT_LETTERS))]
    return "ZTF18" + "".join(letters)


def _place_of_letters(name: str) -> int:
    number = functools.reduce(lambda total, letter: total * 26 + ord(letter) - 97, name[5:], 0)
    return number // TURNS


def _place_of_number(name: str) -> int:
    number = int(name) if name.isdecimal() else -1
    return number % 10**9 // 10 if number > 10**15 else (number - 10**12) // TURNS


# --- columns --------------------------------------------------------------------------------------------------


def columns(sky: Sky, survey: str, found: Measured) -> pa.RecordBatch:
    """The canonical batch of some detections, with the survey's own struct filled as far as packets need."""
    look, epochs = LOOKS[survey], found.epochs
    ra, dec = _positions(sky, epochs)
    numbers, objects = _alert_numbers(found), _object_numbers(found)
    names = [_letters(n) for n in objects.tolist()] if survey == "ztf" else objects + 10**12
    given = {
        "survey": survey,
        "alert_id": [f"{survey}:{n}" for n in numbers],
        "object_id": [f"{survey}:{n}" for n in names],
        "ra": ra,
        "dec": dec,
        "healpix": healpix(ra, dec),
        "mjd": epochs.mjd,
        "night": [int(Date.fromordinal(n + MJD_OF_1858).strftime("%Y%m%d")) for n in epochs.night.tolist()],
        "band": np.array(look.bands)[epochs.band],
        "flux": found.flux,
        "flux_error": found.error,
        "reliability": synthetic.reliability(sky, epochs)[0],
        "history": _history(sky, survey, found),
    }
    own = _ztf if survey == "ztf" else _rubin
    own_fields = own(sky, found, {**given, "number": numbers, "object": names})
    given |= {f"{survey}.{name}": column for name, column in own_fields.items()}
    shape = surveys.load(survey).schema
    return pa.RecordBatch.from_struct_array(_struct(pa.struct(list(shape)), given, len(numbers)))


def _positions(sky: Sky, epochs: Epochs) -> tuple[Floats, Floats]:
    """As measured: 0.1 arcsec of jitter about the place."""
    ra, dec = (axis[epochs.place] for axis in sky.positions)
    jitter = [normal(sky.seed, stream, *epochs.keys) * 0.1 / 3600 for stream in (60, 61)]
    return (ra + jitter[0] / np.cos(np.radians(dec))) % 360, np.clip(dec + jitter[1], -90, 90)


def _struct(kind: pa.DataType, given: Mapping[str, Any], rows: int, prefix: str = "") -> pa.StructArray:
    """A struct column of dotted fields; NaN is null, and so is a field that is not given."""
    arrays = [_field(part, given, rows, prefix + part.name) for part in kind]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _field(part: pa.Field, given: Mapping[str, Any], rows: int, name: str) -> pa.Array:
    if name not in given:
        nested = pa.types.is_struct(part.type) and any(key.startswith(f"{name}.") for key in given)
        return _struct(part.type, given, rows, f"{name}.") if nested else pa.nulls(rows, part.type)
    made = given[name]
    if not isinstance(made, pa.Array):
        made = pa.array(np.full(rows, made) if np.ndim(made) == 0 else made, from_pandas=True)
    return made if made.type == part.type else made.cast(part.type, safe=False)


def _history(sky: Sky, survey: str, alerts: Measured) -> pa.ListArray:
    look, (points, alert) = LOOKS[survey], synthetic.past(sky, LOOKS[survey], alerts.epochs)
    nearest, distance = synthetic.template(sky, look, points.epochs)
    flux, seen = magnitude_to_flux(nearest), points.seen
    known = seen | (look.unseen == "forced")
    given = {
        "mjd": points.epochs.mjd,
        "band": np.array(look.bands)[points.epochs.band],
        "kind": np.where(seen, "detection", look.unseen),
        "flux": np.where(known, points.flux, np.nan),
        "error": np.where(known, points.error, np.nan),
        "limit": 5 * points.epochs.sigma,
        "template_flux": np.where(seen, flux, np.nan),
        "template_error": np.where(seen, 0.02 * flux, np.nan),
        "template_distance": np.where(seen, distance, np.nan),
        "quality": np.where(seen, synthetic.reliability(sky, points.epochs)[int(survey == "ztf")], np.nan),
    }
    starts = np.searchsorted(alert, np.arange(len(alerts.flux) + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(starts), _struct(HISTORY.value_type, given, len(flux)), type=HISTORY
    )


def _ztf(sky: Sky, found: Measured, given: Mapping[str, Any]) -> dict[str, Any]:
    """What of a candidate the canonical columns do not say."""
    epochs = found.epochs
    drb, rb = synthetic.reliability(sky, epochs)
    magnitude = flux_to_magnitude(np.abs(found.flux))
    aperture = 0.06 * normal(sky.seed, 65, *epochs.keys)
    bad = uniform(sky.seed, 63, *epochs.keys)
    return {
        "publisher": "raybroker simulator",
        "pid": given["number"] // 10**6,
        "nid": epochs.night - FIRST_NIGHT,
        "field": sky.field[epochs.place],
        "programid": 1,
        "magpsf": magnitude,
        "magap": magnitude + aperture,
        "sigmagap": 1.4 * found.error / np.abs(found.flux),
        "magdiff": aperture,
        "fwhm": 1.8 + 1.5 * uniform(sky.seed, 62, *epochs.keys),
        "nbad": np.where(bad < 0.04, 1 + 100 * bad, 0).astype(np.int64),
        "rb": rb,
        "drb": drb,
        "scorr": np.abs(found.flux) / found.error,
        "magzpsci": 26.2,
        "exptime": 30.0,
    }


def _rubin(sky: Sky, found: Measured, given: Mapping[str, Any]) -> dict[str, Any]:
    """The source and the object, as far as anyone reads them."""
    epochs = found.epochs
    flux = magnitude_to_flux(synthetic.template(sky, LOOKS["rubin"], epochs)[0])
    tai = epochs.mjd + TAI_MINUS_UTC
    source = {
        "diaSourceId": given["number"],
        "visit": given["number"] // 10**9,
        "detector": epochs.place % 189,
        "parentDiaSourceId": 0,
        "ssObjectId": 0,
        "midpointMjdTai": tai,
        "timeProcessedMjdTai": tai + 60 / 86400,
        "x": 4000 * uniform(sky.seed, 62, *epochs.keys),
        "y": 4000 * uniform(sky.seed, 63, *epochs.keys),
        "psfFlux": found.flux,
        "psfFluxErr": found.error,
        "apFlux": found.flux,
        "snr": np.abs(found.flux) / found.error,
        "isNegative": found.flux < 0,
        "scienceFlux": flux + found.flux,
        "templateFlux": flux,
        "templateFluxErr": 0.02 * flux,
        "reliability": synthetic.reliability(sky, epochs)[0],
        "band": given["band"],
    }
    place = {"diaObjectId": given["object"], "ra": given["ra"], "dec": given["dec"]}
    dia_object = {"validityStartMjdTai": tai, "nDiaSources": 1}
    return {f"diaSource.{name}": column for name, column in (source | place).items()} | {
        f"diaObject.{name}": column for name, column in (dia_object | place).items()
    }


def _stamps(sky: Sky, survey: str, found: Measured) -> dict[str, list[bytes]]:
    files = [_stamp_files(key, survey == "ztf") for key in synthetic.stamp_keys(sky, found)]
    return {kind: [file[kind] for file in files] for kind in CUTOUTS}


@functools.cache
def _stamp_files(key: tuple[int, int, int, int], zipped: bool) -> dict[str, bytes]:
    """ZTF zips its cutouts, Rubin does not."""
    return {
        name: gzip.compress(image, 6, mtime=0) if zipped else image
        for name, image in synthetic.stamps(key).items()
    }


# --- files ----------------------------------------------------------------------------------------------------


def write_night(folder: Path, exposures: Iterable[Exposure], name: str = "packets") -> tuple[Path, Path]:
    """`name`.tar.gz, a file per packet as in ZTF's public nightly archive, and truth.csv beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    archive, table = folder / f"{name}.tar.gz", folder / "truth.csv"
    with gzip.GzipFile(archive, "wb", 1, mtime=0) as zipped, table.open("w", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(["alert_id", "object_id", "class"])
        with tarfile.open(fileobj=zipped, mode="w|") as tar:
            for exposure in exposures:
                told = exposure.truth.to_pylist()
                rows.writerows(row.values() for row in told)
                for packet, row in zip(exposure.packets, told, strict=True):
                    _add(tar, row["alert_id"].split(":")[1] + ".avro", packet.value or b"")
    return archive, table


def _add(tar: tarfile.TarFile, name: str, value: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(value)
    tar.addfile(member, io.BytesIO(value))


# --- many from few --------------------------------------------------------------------------------------------


def multiply(packets: Sequence[Packet], n: int, seed: int = 0) -> Iterator[Packet]:
    """`n` packets from a few real ones of ZTF: each with a candid and an object of its own and noise of its own.

    Noise is 1 arcsec on the position, 0.1 on the magnitude. Only the front of a record, up to the candidate, is
    written again; its history and its cutouts are as they were.
    """
    dice = np.random.default_rng(seed)
    fronts = [_Front.of(packet) for packet in packets]
    for number in range(n):
        yield fronts[number % len(fronts)].packet(number, dice.normal(0, 1, 3))


@dataclass(frozen=True)
class _Front:
    """A packet in three: its container's header, the fields up to the candidate as a record, all bytes after it."""

    header: bytes
    schema: Any
    record: Mapping[str, Any]
    rest: bytes
    topic: str

    @classmethod
    def of(cls, packet: Packet) -> _Front:
        header, body = containers.Containers().open(packet.value or b"")
        whole = json.loads(header.schema)
        names = [field["name"] for field in whole["fields"]]
        front = {**whole, "fields": whole["fields"][: names.index("candidate") + 1]}
        schema = fastavro.parse_schema(front)
        data = io.BytesIO(bytes(body))
        record: Any = fastavro.schemaless_reader(data, schema, None)
        return cls(containers.container_header(header.schema), schema, record, data.read(), packet.topic)

    def packet(self, number: int, noise: Floats) -> Packet:
        candidate = dict(self.record["candidate"])
        candid = 3 * 10**18 + number
        candidate |= {"candid": candid, "magpsf": candidate["magpsf"] + 0.1 * noise[0]}
        candidate |= {
            "ra": (candidate["ra"] + noise[1] / 3600) % 360,
            "dec": min(candidate["dec"] + noise[2] / 3600, 90.0),
        }
        record = {**self.record, "objectId": _letters(number), "candid": candid, "candidate": candidate}
        written = io.BytesIO()
        fastavro.schemaless_writer(written, self.schema, record)
        value = containers.write_container(
            self.header, candid.to_bytes(16, "big"), written.getvalue() + self.rest
        )
        return Packet(value, self.topic, offset=number)
