"""The nearest source of a local catalogue, for each alert.

A catalogue is sorted once (`prepare`) by HEALPix cell of order 29 into an uncompressed Arrow file: the sort is the
index. Workers map the file read-only, so the page cache is the memory that they share. Each alert is matched to the
catalogue, never the other way, which would lose the second alert of one source.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cdshealpix.nested
import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from astropy import units
from astropy.coordinates import Angle
from astropy.table import Column, Table

from raybroker import alerts
from raybroker.errors import SettingsError, did_you_mean
from raybroker.step import Step

ARCSEC = math.radians(1 / 3600)
MAX_RADIUS_ARCSEC = 3600.0
CELL, RA, DEC = "_healpix", "_ra", "_dec"  # the columns of ours in a prepared file
METADATA = b"raybroker.catalogue"
# A cell of an order is at least WIDTH / 2^order radians wide between opposite edges, so that a cell and its neighbours
# hold all that is nearer than this. Measured: 0.49 for the narrowest, at the corners of the polar caps (|dec| 41.8).
WIDTH = 0.48
RA_NAMES = ("ra", "raj2000", "radeg", "ra_deg", "_raj2000", "ra_icrs", "ra(j2000)", "r.a.", "right_ascension")
DEC_NAMES = (
    "dec",
    "dej2000",
    "dedeg",
    "dec_deg",
    "_dej2000",
    "de_icrs",
    "dec(j2000)",
    "decj2000",
    "declination",
)


class Catalogue(NamedTuple):
    """A prepared catalogue: `dropped` rows had no position; `digest` names its version in the plan."""

    file: Path
    digest: str
    rows: int
    dropped: int


def prepared(path_in: Path, folder: Path, *, ra: str = "", dec: str = "") -> Path:
    """The sorted form of a catalogue, made in `folder` unless it is there; a file already sorted is its own."""
    if path_in.suffix == ".arrow":
        return path_in
    path_out = folder / f"{path_in.stem}-{_digest(path_in, ra, dec, ())}.arrow"
    if not path_out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        prepare(path_in, path_out, ra=ra, dec=dec)
    return path_out


def version_of(file: Path) -> str:
    """The name of a sorted catalogue's file, with its digest."""
    digest = _digest_of(_schema(file.stem, file))
    return file.name if file.stem.endswith(f"-{digest}") else f"{file.stem}-{digest}.arrow"


def prepare(
    path_in: Path, path_out: Path, *, ra: str = "", dec: str = "", columns: Sequence[str] = ()
) -> Catalogue:
    """Sort a CSV, Parquet or FITS catalogue into `path_out`.

    Positions are degrees, or sexagesimal text with the right ascension in hours. `columns` are kept beside the
    position; none named keeps all.
    """
    table = _read(path_in)
    ra_name, dec_name = _position(table, ra, RA_NAMES, path_in), _position(table, dec, DEC_NAMES, path_in)
    longitude = _degrees(table[ra_name], units.hourangle) % 360.0
    latitude = _degrees(table[dec_name], units.deg)
    rows = np.flatnonzero(np.isfinite(longitude) & (np.abs(latitude) <= 90))
    cells = alerts.healpix(longitude[rows], latitude[rows])
    order = np.argsort(cells, kind="stable")
    rows, cells = rows[order], cells[order]
    digest = _digest(path_in, ra, dec, columns)
    payload = _select(table, columns, path_in).take(pa.array(rows))
    _write(path_out, {CELL: cells, RA: longitude[rows], DEC: latitude[rows]}, payload, digest)
    return Catalogue(path_out, digest, len(rows), table.num_rows - len(rows))


def _digest(path: Path, ra: str, dec: str, columns: Sequence[str]) -> str:
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256")
    content.update(json.dumps([ra, dec, list(columns)]).encode())
    return content.hexdigest()[:16]


def _read(path: Path) -> pa.Table:
    readers = {
        ".csv": _read_csv,
        ".parquet": pyarrow.parquet.read_table,
        ".fits": _read_fits,
        ".fit": _read_fits,
    }
    if path.suffix.lower() not in readers:
        raise SettingsError(f"catalogue {path}: cannot read '{path.suffix}', only {', '.join(readers)}")
    if not path.exists():
        raise SettingsError(f"catalogue {path} does not exist")
    return readers[path.suffix.lower()](path)


def _read_csv(path: Path) -> pa.Table:
    """Text and names without the blanks and quotes that some catalogues put around them; empty text is unknown."""
    table = pyarrow.csv.read_csv(path)
    table = table.rename_columns([name.strip(' "') for name in table.column_names])
    return _mapped_columns(table, pa.types.is_string, lambda text: pc.utf8_trim(text, ' "'))


def _read_fits(path: Path) -> pa.Table:
    read = Table.read(path)
    columns = {name: _from_astropy(read[name]) for name in read.colnames if read[name].ndim == 1}
    return _mapped_columns(pa.table(columns), pa.types.is_string, lambda text: pc.utf8_trim(text, " "))


def _from_astropy(column: Column) -> pa.Array:
    values = np.asarray(column)
    values = values.astype(str) if values.dtype.kind == "S" else values.astype(values.dtype.newbyteorder("="))
    mask = np.broadcast_to(np.asarray(getattr(column, "mask", False)), values.shape)
    return pa.array(values, mask=mask, from_pandas=True)


def _mapped_columns(table: pa.Table, which: Any, change: Any) -> pa.Table:
    arrays = [change(column) if which(column.type) else column for column in table.columns]
    return pa.table(arrays, names=table.column_names)


def _position(table: pa.Table, given: str, usual: Sequence[str], path: Path) -> str:
    if given:
        return _known(given, table, path)
    found = [name for name in table.column_names if name.lower() in usual]
    if not found:
        raise SettingsError(
            f"catalogue {path}: no position column called {usual[0]}; name it with `ra` and `dec`. "
            f"It has: {', '.join(table.column_names)}"
        )
    return min(found, key=lambda name: usual.index(name.lower()))


def _known(name: str, table: pa.Table, path: Path) -> str:
    if name not in table.column_names:
        near = did_you_mean(name, table.column_names) or f"; it has {', '.join(table.column_names)}"
        raise SettingsError(f"catalogue {path} has no column '{name}'{near}")
    return name


def _degrees(column: pa.ChunkedArray, text_unit: Any) -> alerts.Floats:
    """Degrees, NaN where unknown. Text such as '00 20 33.59' or '5:35:17' is in `text_unit`, a plain number is degrees."""
    if not pa.types.is_string(column.type):
        return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    return np.array([_angle(text or "", text_unit) for text in column.to_pylist()], dtype=np.float64)


def _angle(text: str, unit: Any) -> float:
    if not re.search(r"\d", text):
        return math.nan
    if re.fullmatch(r"\s*[-+]?[\d.]+(e[-+]?\d+)?\s*", text, re.IGNORECASE):
        return float(text)
    return float(Angle(text.strip(), unit=unit).deg)


def _select(table: pa.Table, columns: Sequence[str], path: Path) -> pa.Table:
    names = [_known(name, table, path) for name in columns] or table.column_names
    chosen = table.select([name for name in names if not name.startswith("__index_level")])
    # 64-bit offsets: one chunk must hold the text of all rows, which may be more than 2 GB
    return _mapped_columns(chosen, pa.types.is_string, lambda text: text.cast(pa.large_string()))


def _write(path: Path, position: Mapping[str, Any], payload: pa.Table, digest: str) -> None:
    """One record batch, never seen half written: a step maps it and fetches rows by number."""
    arrays = [pa.array(values) for values in position.values()]
    arrays += [pa.concat_arrays(c.chunks) if c.chunks else pa.nulls(0, c.type) for c in payload.columns]
    schema = pa.schema(
        [*((name, array.type) for name, array in zip(position, arrays, strict=False)), *payload.schema],
        metadata={METADATA: json.dumps({"digest": digest}).encode()},
    )
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with pa.ipc.new_file(str(part), schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    os.replace(part, path)


def step(name: str, file: Path, radius_arcsec: float, columns: Sequence[str] = ()) -> Step:
    """A step that gives `distance` (arcsec) to the nearest source within the radius, and these columns of it.

    All are null where there is none. `file` is a prepared catalogue; its digest is part of the plan, and a worker
    that finds another catalogue under the same name refuses it.
    """
    if not 0 < radius_arcsec <= MAX_RADIUS_ARCSEC:
        raise SettingsError(
            f"catalogues.{name}.radius_arcsec = {radius_arcsec}: must be over 0, at most {MAX_RADIUS_ARCSEC:.0f}"
        )
    schema = _schema(name, file)
    digest = _digest_of(schema)
    known = [field for field in schema.names if field not in (CELL, RA, DEC)]
    for column in columns:
        if column not in known or column == "distance":
            why = "names two columns" if column == "distance" else f"is unknown{did_you_mean(column, known)}"
            raise SettingsError(f"catalogues.{name}.columns: '{column}' {why}; there are {', '.join(known)}")
    gives = [("distance", pa.float32()), *((c, _plain(schema.field(c).type)) for c in columns)]
    settings = {
        "file": str(file),
        "digest": digest,
        "radius_arcsec": float(radius_arcsec),
        "columns": list(columns),
    }
    return Step(
        name, "enrich", nearest, ("ra", "dec"), pa.struct(gives), settings=settings, about=step.__doc__ or ""
    )


def _schema(name: str, file: Path) -> pa.Schema:
    try:
        with pa.memory_map(str(file)) as source:
            schema = pa.ipc.open_file(source).schema
    except (OSError, pa.ArrowInvalid) as error:
        raise SettingsError(f"catalogues.{name}.file = {file}: not a prepared catalogue: {error}") from error
    if METADATA not in (schema.metadata or {}):
        raise SettingsError(f"catalogues.{name}.file = {file}: not a prepared catalogue; prepare it first")
    return schema


def _digest_of(schema: pa.Schema) -> str:
    return str(json.loads(schema.metadata[METADATA])["digest"])


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_large_string(kind) else kind


def nearest(
    ra: pa.Array, dec: pa.Array, *, file: str, digest: str, radius_arcsec: float, columns: Sequence[str]
) -> Mapping[str, pa.Array]:
    """The call of the step: see `step`."""
    catalogue = _mapped(file, digest)
    rows, distance = match(catalogue, alerts.values(ra), alerts.values(dec), radius_arcsec)
    found = pa.array(rows, mask=rows < 0)
    payload = {name: catalogue.column(name).take(found) for name in columns}
    payload = {name: column.cast(_plain(column.type)) for name, column in payload.items()}
    return {"distance": pa.array(distance, mask=rows < 0).cast(pa.float32()), **payload}


@functools.lru_cache(maxsize=64)
def _mapped(file: str, digest: str) -> pa.RecordBatch:
    """The catalogue's only record batch, mapped once per process."""
    reader = pa.ipc.open_file(pa.memory_map(file))
    found = _digest_of(reader.schema)
    if found != digest:
        raise SettingsError(
            f"catalogue {file} has changed: the plan has version {digest}, the file is {found}"
        )
    return reader.get_batch(0)


def match(
    catalogue: pa.RecordBatch, ra: alerts.Floats, dec: alerts.Floats, radius_arcsec: float
) -> tuple[alerts.Integers, alerts.Floats]:
    """For each position the row of the nearest source within the radius, −1 where there is none, and arcseconds."""
    rows, distance = np.full(len(ra), -1), np.full(len(ra), np.nan)
    known = np.isfinite(ra) & (np.abs(dec) <= 90)
    if known.any():
        order, near = _cells(ra[known], dec[known], radius_arcsec)
        sky = (catalogue.column(name).to_numpy() for name in (CELL, RA, DEC))
        shift = 2 * (alerts.HEALPIX_ORDER - order)
        found = _nearest(near, ra[known], dec[known], *sky, shift, radius_arcsec * ARCSEC)
        rows[known], distance[known] = found[0], found[1] / ARCSEC
    return rows, distance


def _cells(ra: alerts.Floats, dec: alerts.Floats, radius_arcsec: float) -> tuple[int, alerts.Integers]:
    """An order whose cells are wider than the radius, and for each position its cell and the eight around it."""
    order = min(alerts.HEALPIX_ORDER, math.floor(math.log2(WIDTH / (radius_arcsec * ARCSEC))))
    cells = alerts.healpix(ra, dec) >> (2 * (alerts.HEALPIX_ORDER - order))
    near = cdshealpix.nested.neighbours(cells.astype(np.uint64), order, num_threads=1)
    return order, np.asarray(near, dtype=np.int64)


@numba.njit(cache=True, nogil=True)
def _nearest(near, ra, dec, cells, cell_ra, cell_dec, shift, radius):  # type: ignore[no-untyped-def]
    rows = np.full(len(ra), -1, np.int64)
    distance = np.full(len(ra), np.nan)
    for i in range(len(ra)):
        here = _vector(ra[i], dec[i])
        best = (2 * math.sin(radius / 2)) ** 2
        for cell in near[i]:
            if cell < 0:  # at eight corners of the sphere a cell has seven neighbours
                continue
            row = np.searchsorted(cells, cell << shift)
            while row < len(cells) and cells[row] >> shift == cell:
                there = _vector(cell_ra[row], cell_dec[row])
                chord = (here[0] - there[0]) ** 2 + (here[1] - there[1]) ** 2 + (here[2] - there[2]) ** 2
                if chord < best or (chord == best and rows[i] < 0):
                    best, rows[i] = chord, row
                row += 1
        if rows[i] >= 0:
            distance[i] = 2 * math.asin(math.sqrt(best) / 2)
    return rows, distance


@numba.njit(cache=True, nogil=True, inline="always")
def _vector(ra, dec):  # type: ignore[no-untyped-def]
    longitude, latitude = math.radians(ra), math.radians(dec)
    return (
        math.cos(latitude) * math.cos(longitude),
        math.cos(latitude) * math.sin(longitude),
        math.sin(latitude),
    )
