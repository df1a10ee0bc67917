"""Damaged and extreme packets of every survey: what fastavro reads in them, or a reason; never an error, a hang, or much memory."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from raybroker import surveys
from raybroker.alerts import CUTOUTS, Decoded, Packet
from raybroker.checks import same_bits
from raybroker.pipeline import cutout_bytes
from raybroker.surveys import Survey, build, containers, rubin_schemas
from raybroker.surveys import rubin as rubin_module
from raybroker.surveys import ztf as ztf_module
from tests.fuzzing import CHANGES, HARMS, Change, Harm, changed, fuzzed, harmed
from tests.surveys.by_fastavro import container_of
from tests.surveys.test_fink import as_fink

MISSING = ztf_module.MISSING
IDS = (700, 704, 800, 900, 1000, 1101, 0, 699, 901, 65_535, 2**31, 2**32 - 1)


def plain(schema: bytes) -> Any:
    """A schema for fastavro alone, whose numbers stay what was written."""
    return fastavro.parse_schema(json.loads(schema.replace(b'"logicalType"', b'"was"')))


def by_fastavro(schema: bytes, body: bytes) -> dict[str, Any]:
    """What fastavro reads, and that nothing is left."""
    source = io.BytesIO(body)
    record: Any = fastavro.schemaless_reader(source, plain(schema), None)
    assert source.read() == b""
    return record


def known(value: Any, kind: pa.DataType, missing: Sequence[float] = ()) -> Any:
    """A value of a packet as the batch holds it: in the column's type, null where it means nothing."""
    if value is None or (missing and value == "null"):
        return None
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):
            value = float(np.float32(value)) if kind == pa.float32() else float(value)
        return value if np.isfinite(value) and value not in missing else None
    return None if not isinstance(value, str) and value in missing else value


def same_struct(
    found: dict[str, Any], record: dict[str, Any], kinds: pa.StructType, missing: Any = ()
) -> None:
    for kind in kinds:
        value = known(record.get(kind.name), kind.type, missing)
        assert found[kind.name] == value, (kind.name, found[kind.name], value)


def same_rubin(decoded: Decoded, row: int, record: dict[str, Any]) -> None:
    """A row of the batch holds what fastavro read."""
    own = decoded.batch.column("rubin")
    for kind in own.type:
        found, part = own[row].as_py()[kind.name], record.get(kind.name)
        assert (found is None) == (part is None)
        if part is not None:
            same_struct(found, part, kind.type)
    arrays = [record.get(name) or [] for name in ("prvDiaSources", "prvDiaForcedSources")]
    kept = [point for array in arrays for point in array if point.get("timeWithdrawnMjdTai") is None]
    times = {t for p in [record["diaSource"], *kept] for t in _mjd(p["midpointMjdTai"])}
    if "prvDiaNondetectionLimits" not in record:
        points = decoded.batch.column("history")[row].as_py()
        assert {point["mjd"] for point in points} == times
    for kind in CUTOUTS:
        (image,) = cutout_bytes(
            decoded.batch.column("cutouts")[row : row + 1], decoded.bodies[row : row + 1], kind
        )
        assert image.as_py() == record.get(rubin_module.CUTOUT_PATHS[kind])


def _mjd(tai: float | None) -> list[float]:
    found = rubin_module.to_utc(np.array([np.nan if tai is None else tai], np.float64))
    return [float(mjd) for mjd in found if np.isfinite(mjd)]


def same_ztf(decoded: Decoded, row: int, record: dict[str, Any]) -> None:
    """A row of a ZTF or Fink batch holds what fastavro read."""
    name = decoded.batch.schema.names[-1]
    own = decoded.batch.column(name)
    same_struct(own[row].as_py(), record | record["candidate"], own.type, MISSING)
    assert decoded.batch.column("ra")[row].as_py() == record["candidate"]["ra"]
    for kind in CUTOUTS:
        (image,) = cutout_bytes(
            decoded.batch.column("cutouts")[row : row + 1], decoded.bodies[row : row + 1], kind
        )
        cutout = record.get(ztf_module.CUTOUT_PATHS[kind].split(".")[0])
        assert image.as_py() == (None if cutout is None else cutout["stampData"])


def told(decoded: Decoded) -> None:
    """Every reason can be stored, read, and counted."""
    for bad in decoded.bad:
        assert 10 < len(bad.reason) <= build.REASON_LETTERS
        bad.reason.encode()
    for name in decoded.unknown_fields:
        name.encode()


class Bench:
    """A survey with two good packets, between which hostile ones are put."""

    def __init__(self, survey: Survey, good: Sequence[Packet]) -> None:
        self.survey, self.good = survey, good[:2]
        self.alone = survey.decode(self.good).batch
        assert self.alone.num_rows == 2

    def decode(self, value: bytes | None, key: bytes | None = None) -> Decoded:
        """The decoded hostile packet, after seeing that its neighbours are as without it."""
        decoded = self.survey.decode([self.good[0], Packet(value, key=key), self.good[1]])
        told(decoded)
        event("refused" if decoded.bad else "read")
        assert {bad.row for bad in decoded.bad} <= {1}
        assert decoded.batch.num_rows == 3 - len(decoded.bad) == len(decoded.bodies)
        decoded.batch.validate(full=True)
        around = decoded.batch.take(pa.array([0, decoded.batch.num_rows - 1]))
        assert all(same_bits(a, b) for a, b in zip(around.columns, self.alone.columns, strict=True))
        return decoded


@pytest.fixture(scope="module")
def schemas(data: Path) -> rubin_schemas.Schemas:
    return rubin_schemas.Schemas(data / "rubin" / "schemas")


@pytest.fixture(scope="module")
def framed_bench(rubin: Survey, framed: Sequence[Packet]) -> Bench:
    return Bench(rubin, framed)


@pytest.fixture(scope="module")
def rubin_bench(rubin: Survey, rubin_packets: Sequence[Packet]) -> Bench:
    return Bench(rubin, rubin_packets)


@pytest.fixture(scope="module")
def ztf_bench(ztf: Survey, ztf_packets: Callable[[str], Sequence[Packet]]) -> Bench:
    return Bench(ztf, ztf_packets("public_20231012"))


@pytest.fixture(scope="module")
def fink_bench(ztf_packets: Callable[[str], Sequence[Packet]]) -> Bench:
    return Bench(surveys.load("fink"), [as_fink(p) for p in ztf_packets("public_20191231")[:2]])


@fuzzed(70)
@given(
    number=st.integers(0, 10),
    harms=HARMS,
    other=st.integers(0, 10),
    head=st.none() | st.tuples(st.integers(0, 3), st.sampled_from(IDS)),
)
def test_a_damaged_frame_is_read_as_fastavro_reads_it_or_refused(
    framed_bench: Bench, framed: Sequence[Packet], schemas: rubin_schemas.Schemas,
    number: int, harms: list[Harm], other: int, head: tuple[int, int] | None,
) -> None:  # fmt: skip
    start = framed[number].value[:5] if head is None else bytes([head[0]]) + head[1].to_bytes(4, "big")
    value = start + harmed(framed[number].value[5:], harms, framed[other].value[5:])
    decoded = framed_bench.decode(value)
    if not decoded.bad:
        record = by_fastavro(schemas.get(int.from_bytes(value[1:5], "big")), value[5:])
        same_rubin(decoded, 1, record)


@fuzzed(50)
@given(number=st.integers(0, 20), harms=HARMS, other=st.integers(0, 20), inside=st.booleans())
def test_a_damaged_rubin_container_is_read_as_fastavro_reads_it_or_refused(
    rubin_bench: Bench,
    rubin_packets: Sequence[Packet],
    number: int,
    harms: list[Harm],
    other: int,
    inside: bool,
) -> None:
    value, second = rubin_packets[number].value, rubin_packets[other].value
    header = containers.read_header(value)
    if inside:  # the record alone: what is around it fits
        body = harmed(_body(value), harms, _body(second))
        value = containers.write_container(header.raw, value[-16:], body)
    else:
        value = harmed(value, harms, second)
    decoded = rubin_bench.decode(value)
    if not decoded.bad and value.startswith(header.raw) and header.codec == "null":
        same_rubin(decoded, 1, by_fastavro(header.schema, _body(value)))


def _body(value: bytes) -> bytes:
    return bytes(containers.Containers().open(value)[1])


@fuzzed(50)
@given(harms=HARMS, in_key=st.booleans())
def test_a_damaged_fink_packet_is_read_as_fastavro_reads_it_or_refused(
    fink_bench: Bench, harms: list[Harm], in_key: bool
) -> None:
    value, key = fink_bench.good[0].value, fink_bench.good[0].key
    if in_key:
        key = harmed(key, harms, b'{"type": "record", "name": "alert", "fields": []}')
    else:
        value = harmed(value, harms, fink_bench.good[1].value)
    decoded = fink_bench.decode(value, key)
    if not decoded.bad and not in_key:
        same_ztf(decoded, 1, by_fastavro(key, value))


REFUSED = ("is not on the sky", "it has no '", "is too long", "when decompressed")


def _fits(decoded: Decoded) -> bool:
    """Whether it was read; one that was not has a place or an id that no alert has, or texts of 70,000 equal letters."""
    assert all(any(part in bad.reason for part in REFUSED) for bad in decoded.bad), decoded.bad
    return not decoded.bad


@fuzzed(40)
@given(number=st.integers(0, 10), changes=CHANGES)
def test_a_valid_rubin_packet_of_extreme_values_is_read_as_fastavro_reads_it(
    framed_bench: Bench,
    framed: Sequence[Packet],
    schemas: rubin_schemas.Schemas,
    number: int,
    changes: list[Change],
) -> None:
    value = framed[number].value
    schema = schemas.get(int.from_bytes(value[1:5], "big"))
    record = changed(plain(schema), by_fastavro(schema, value[5:]), changes)
    out = io.BytesIO()
    fastavro.schemaless_writer(out, plain(schema), record)
    decoded = framed_bench.decode(value[:5] + out.getvalue())
    if _fits(decoded):
        same_rubin(decoded, 1, by_fastavro(schema, out.getvalue()))


@fuzzed(40)
@given(number=st.integers(0, 23), changes=CHANGES, codec=st.sampled_from(["null", "deflate", "snappy"]))
def test_a_valid_ztf_packet_of_extreme_values_is_read_as_fastavro_reads_it(
    ztf_bench: Bench,
    ztf_packets: Callable[[str], Sequence[Packet]],
    number: int,
    changes: list[Change],
    codec: str,
) -> None:
    value = ztf_packets("public_20231012")[number].value
    schema = containers.read_header(value).schema
    record = changed(plain(schema), by_fastavro(schema, _body(value)), changes)
    made = container_of(record, json.loads(schema), codec)
    decoded = ztf_bench.decode(made)
    if _fits(decoded):
        same_ztf(decoded, 1, by_fastavro(schema, _body(made)))


@fuzzed(25)
@given(
    value=st.none() | st.binary(max_size=300),
    start=st.sampled_from([b"", b"Obj\x01", b"\0\0\0\x03\x84", b"\0\0"]),
    key=st.none() | st.binary(max_size=100),
)
def test_random_bytes_are_refused_by_every_survey(
    rubin_bench: Bench,
    ztf_bench: Bench,
    fink_bench: Bench,
    value: bytes | None,
    start: bytes,
    key: bytes | None,
) -> None:
    value = None if value is None else start + value
    for bench in (rubin_bench, ztf_bench, fink_bench):
        decoded = bench.decode(value, key)
        assert len(decoded.bad) == 1
        assert bench.survey.shared(Packet(value, key=key))[0] <= len(value or b"")
    surveys.detect(Packet(value, key=key))
