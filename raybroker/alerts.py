"""The canonical batch: what the alerts of every survey become, and the words for it.

A **batch** is a `pyarrow.RecordBatch` whose columns are `SCHEMA` plus one struct column named after the survey
(`ztf`, `rubin`, `fink`) that holds the survey's own fields. It is never mutated. Null always means *not known*;
an empty list means *known to be none*.

Units, here once for the whole project: fluxes and their errors and limits are difference fluxes in nJy on the AB
system (zero point 31.4 mag), signed; `ra` and `dec` in degrees (ICRS); `template_distance` in arcseconds; `mjd` in
days, UTC, at mid-exposure; `night` is YYYYMMDD by the survey's own rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cdshealpix.nested
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from astropy.coordinates import Latitude, Longitude

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Strings = npt.NDArray[np.object_]

HEALPIX_ORDER = 29
AB_ZERO_POINT = 31.4  # magnitude of 1 nJy
CUTOUTS = ("science", "template", "difference")
DETECTION, FORCED, LIMIT = "detection", "forced", "limit"
KINDS = (DETECTION, FORCED, LIMIT)

POINT = pa.struct(
    [
        ("mjd", pa.float64()),
        ("band", pa.string()),
        ("kind", pa.string()),  # detection, forced or limit
        ("flux", pa.float32()),  # null for a limit
        ("error", pa.float32()),  # one sigma; null for a limit
        ("limit", pa.float32()),  # 5-sigma limiting flux of the image
        ("template_flux", pa.float32()),  # of the nearest source of the reference image
        ("template_error", pa.float32()),
        ("template_distance", pa.float32()),  # arcsec, to that source
        ("total_flux", pa.float32()),  # template + difference, where the template source is this one
        ("quality", pa.float32()),  # the survey's own reliability of this detection, 0 to 1
    ]
)
HISTORY = pa.list_(POINT)
PLACE = pa.struct([("offset", pa.int32()), ("length", pa.int32())])

SCHEMA = pa.schema(
    [
        ("survey", pa.string()),
        ("alert_id", pa.string()),  # 'ztf:2481121706115015011'
        ("object_id", pa.string()),  # null where the survey gives none, as for moving objects
        ("ss_object_id", pa.string()),  # set for moving objects
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("ra", pa.float64()),
        ("dec", pa.float64()),
        ("healpix", pa.int64()),  # nested, order 29
        ("mjd", pa.float64()),
        ("night", pa.int32()),
        ("band", pa.string()),
        ("flux", pa.float32()),
        ("flux_error", pa.float32()),
        (
            "reliability",
            pa.float32(),
        ),  # 0 (bogus) to 1 (real): ZTF drb, or rb before it existed; Rubin reliability
        ("history", HISTORY),  # ascending in mjd, this alert included, each (mjd, band, kind) once
        ("cutouts", pa.struct([(kind, PLACE) for kind in CUTOUTS])),  # places in the decoded body
    ]
)


@dataclass(frozen=True, slots=True)
class Packet:
    """One message as it came: nothing decoded, nothing lost.

    `value` and `key` are None where Kafka had a null; `headers` keep their order and repeats.
    """

    value: bytes | None
    topic: str = ""
    partition: int = 0
    offset: int = 0
    timestamp_ms: int | None = None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class Bad(NamedTuple):
    """A packet that cannot be decoded: its place in the list of packets, and why, for a person."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a survey makes of a list of packets.

    `batch` has a row per readable packet, in the order of the packets; `rows[i]` is the place of row i in that list;
    `bodies[i]` is its decoded Avro body, into which the cutouts' places point; `bad` are the others;
    `unknown_fields` counts, by name, fields that the survey's union of schemas does not have (they stay in the packet).
    """

    batch: pa.RecordBatch
    rows: Integers
    bodies: Sequence[bytes | memoryview]
    bad: Sequence[Bad]
    unknown_fields: Mapping[str, int]


def schema(survey: str, own_fields: pa.StructType) -> pa.Schema:
    """The schema of a survey's batches: `SCHEMA` and the survey's own struct column."""
    return SCHEMA.append(pa.field(survey, own_fields))


def healpix(ra: Floats, dec: Floats) -> Integers:
    """HEALPix cells (nested, order 29) of positions in degrees; positions must be finite."""
    cells = cdshealpix.nested.lonlat_to_healpix(
        Longitude(ra, unit="deg"), Latitude(dec, unit="deg"), HEALPIX_ORDER, num_threads=1
    )
    return np.asarray(cells, dtype=np.int64)


def magnitude_to_flux(magnitude: Any) -> Any:
    """AB magnitude to nJy."""
    return 10.0 ** (0.4 * (AB_ZERO_POINT - np.asarray(magnitude, dtype=np.float64)))


def flux_to_magnitude(flux: Any) -> Any:
    """nJy to AB magnitude; NaN where the flux is not positive."""
    flux = np.asarray(flux, dtype=np.float64)
    return AB_ZERO_POINT - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))


def values(column: pa.Array, path: str = "") -> Floats:
    """Numbers of a column, or of a dotted path of struct fields in it, as float64 with NaN for null.

    A path that the column does not have gives all NaN, since a survey's schema versions differ.

    >>> values(pa.array([{"rb": 0.5}, {"rb": None}]), "rb")
    array([0.5, nan])
    """
    found = field(column, path)
    if found is None:
        return np.full(len(column), np.nan)
    return np.asarray(found.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def field(column: pa.Array, path: str) -> pa.Array | None:
    """A struct column's field by dotted path, null where any parent is null; None where there is no such field."""
    for name in filter(None, path.split(".")):
        if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
            return None
        column = pc.struct_field(column, name)
    return column


@dataclass(frozen=True, slots=True)
class LightCurves:
    """The histories of a batch as flat arrays: alert i owns the points `starts[i]:starts[i + 1]`.

    Floats are float64 with NaN for null, in nJy and days; `band` and `kind` are object arrays of strings.
    """

    starts: Integers
    history: pa.StructArray

    @classmethod
    def of(cls, history: pa.ListArray) -> LightCurves:
        """From the `history` column; a null history counts as empty. Slices are handled."""
        lengths = pc.fill_null(pc.list_value_length(history), 0).to_numpy(zero_copy_only=False)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(starts, history.flatten())

    def numbers(self, name: str) -> Floats:
        """One numeric field of every point."""
        return values(self.history, name)

    def codes(self, name: str, of: Sequence[str]) -> Integers:
        """Places of a string field ('band', 'kind') in `of`, −1 where it is none of them."""
        found = pc.index_in(pc.struct_field(self.history, name), value_set=pa.array(of, pa.string()))
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)

    def alert_of_point(self) -> Integers:
        """The row of the alert that each point belongs to."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
