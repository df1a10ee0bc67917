"""Small packets that ask for much: each is refused or read, in little memory, and the batches after it are as before."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raybroker import surveys
from raybroker.alerts import Packet
from raybroker.surveys import Survey, build, containers, kernel, schema
from raybroker.surveys.avro import Reader
from tests.surveys.by_fastavro import container_of
from tests.surveys.test_avro import record

LONG = containers.write_long
NOISE = random.Random(1).randbytes(2 << 20)  # a block that holds it may grow to 64 MB
CANDIDATE = record(("candid", "long"), ("ra", "double"), ("dec", "double"), name="candidate")
IT = LONG(7) + struct.pack("<dd", 10.0, 20.0)  # a candidate
NOTHING: dict[str, Any] = {"type": "fixed", "name": "nothing", "size": 0}


def alert(*fields: tuple[str, Any]) -> dict[str, Any]:
    return record(("candidate", CANDIDATE), *fields, name="alert")


def packed(kind: Any, body: bytes) -> Packet:
    """A container whose block is deflated, so that it may be a thousand times smaller."""
    squeezed = zlib.compress(IT + body, 9, wbits=-15)
    text = kind if isinstance(kind, bytes) else json.dumps(kind).encode()
    header = containers.container_header(text, b"deflate")
    return Packet(containers.write_container(header, bytes(16), squeezed))


def unfolding(leaf: Any, levels: int) -> Any:
    """A record of 2^levels leaves, written in a few hundred letters."""
    parts = record(("a", leaf), ("b", leaf if isinstance(leaf, str) else leaf["name"]), name="r0")
    for n in range(1, levels):
        parts = record(("a", parts), ("b", f"r{n - 1}"), name=f"r{n}")
    return parts


def points(count: int, *fields: tuple[str, Any], item: bytes = b"\0") -> Packet:
    items = {"type": "array", "items": record(*fields, name="point")}
    return packed(alert(("prv_candidates", items)), LONG(count) + item * count + LONG(0))


def with_enum(*fields: tuple[str, Any]) -> dict[str, Any]:
    """A schema that only fastavro can read."""
    return alert(("objectId", {"type": "enum", "name": "e", "symbols": ["x"]}), *fields)


def listed(item: Any) -> tuple[str, Any]:
    return "x", {"type": "array", "items": record(("y", ["null", "int"]), ("z", item), name="item")}


def named(name: str, fields: int) -> dict[str, Any]:
    return alert((name, record(*((f"f{n}", "int") for n in range(fields)), name="r")))


MILLION = 1_000_000
BOMBS: Mapping[str, tuple[Callable[[], Packet], str]] = {  # what it is, and what its reason says
    "points of a byte": (lambda: points(MILLION, ("jd", ["null", "double"])), "too long"),
    "more points than are allowed": (
        lambda: points(kernel.MAX_ROWS + 1, ("jd", "double"), item=bytes(8)),
        "too long",
    ),
    "all points that are allowed": (lambda: points(kernel.MAX_ROWS, ("jd", "double"), item=bytes(8)), ""),
    "items that claim terabytes": (
        lambda: packed(alert(("x", {"type": "array", "items": "long"})), LONG(1 << 40)),
        "too long",
    ),
    "a text that claims gigabytes": (lambda: packed(alert(("objectId", "string")), LONG(1 << 33)), "ends in"),
    "a negative length": (lambda: packed(alert(("objectId", "string")), LONG(-5)), "negative length"),
    "parts without end": (lambda: packed(alert(("x", unfolding("int", 40))), b""), "parts"),
    "nulls without end": (lambda: packed(alert(("x", unfolding("null", 40))), b""), "parts"),
    "parts of no bytes": (
        lambda: packed(alert(listed(unfolding(NOTHING, 13))), LONG(MILLION) + bytes(MILLION) + LONG(0)),
        "",
    ),
    "the same for fastavro": (
        lambda: packed(with_enum(listed(unfolding(NOTHING, 12))), LONG(0) + LONG(9) + bytes(9) + LONG(0)),
        "without content",
    ),
    "objects for fastavro": (
        lambda: packed(with_enum(listed("boolean")), LONG(0) + LONG(MILLION) + bytes(2 * MILLION) + LONG(0)),
        "larger than 1 MB",
    ),
    "objects that are allowed": (
        lambda: packed(with_enum(listed("boolean")), LONG(0) + LONG(300_000) + bytes(600_000) + LONG(0)),
        "",
    ),
    "long names": (lambda: packed(named("n" * 300_000, 10_000), bytes(10_000)), "longer than 1000"),
    "a long reason": (
        lambda: packed(
            b'{"type":"record","name":"a","fields":[{"name":"x","type":"int","default":"'
            + b"x" * 500_000
            + b'"}]}',
            b"",
        ),
        "Default value",
    ),
    "half a character in a name": (
        lambda: packed(b'{"type":"record","name":"a","fields":[{"name":"\\ud800","type":"int"}]}', b""),
        "not valid",
    ),
    "half a character in a reason": (
        lambda: packed(
            b'{"type":"record","name":"a","fields":[{"name":"x","type":"int","default":"\\udfff"}]}', b""
        ),
        "not valid",
    ),
    "a schema 5,000 deep": (lambda: packed(b'{"type":' * 5000 + b'"int"' + b"}" * 5000, b""), "not valid"),
    "lists 5,000 deep": (lambda: packed(b"[" * 5000 + b"]" * 5000, b""), "not valid"),
    "a block of 64 MB": (
        lambda: packed(alert(("x", "bytes")), LONG(60 << 20) + NOISE + bytes(58 << 20)),
        "",
    ),
    "a block of 64 MB in 60 kB": (
        lambda: packed(alert(("x", "bytes")), LONG(60 << 20) + bytes(60 << 20)),
        "more than 32 times larger",
    ),
    "a block of a gigabyte": (
        lambda: packed(alert(("x", "bytes")), NOISE + bytes(65 << 20)),
        "larger than 64 MB",
    ),
}
MEGABYTES = 400  # that any of them may take, for as long as it is read


def memory() -> tuple[int, int]:
    """(resident now, at most since the last call), MB; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {
        name: int(rest.split()[0]) >> 10
        for name, _, rest in (line.partition(":") for line in lines if line.startswith("Vm"))
    }
    Path("/proc/self/clear_refs").write_text("5")
    return found["VmRSS"], found["VmHWM"]


@pytest.fixture(scope="module")
def survey() -> Survey:
    return surveys.load("ztf")


GOOD = Packet(container_of({"candidate": {"candid": 1, "ra": 10.0, "dec": 20.0}}, alert()))


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_or_read_in_a_bounded_memory(survey: Survey, name: str) -> None:
    make, reason = BOMBS[name]
    packet, before = make(), memory()[0]
    assert len(packet.value) < 4 << 20  # small enough to come through Kafka
    decoded = survey.decode([GOOD, packet, GOOD])
    assert memory()[1] - before < MEGABYTES
    assert decoded.batch.num_rows == 3 - len(decoded.bad)
    assert [reason in bad.reason and len(bad.reason) <= build.REASON_LETTERS for bad in decoded.bad] == [
        True
    ] * bool(reason)
    pa.array([bad.reason for bad in decoded.bad], pa.string()).validate(full=True)


def test_one_packet_of_many_points_makes_no_later_batch_ask_for_more(survey: Survey) -> None:
    reader = survey._reader  # type: ignore[attr-defined]
    survey.decode([points(kernel.MAX_ROWS, ("jd", "double"), item=bytes(8))])
    memory_of_400 = len(reader._layout.arena(400, reader._layout.rows_per_alert * 0).memory)
    assert memory_of_400 < 200_000_000  # 400 times that packet's would be 3.6 GB


def test_fields_of_no_bytes_are_no_work() -> None:
    program = Reader(schema.Wanted({})).program(json.dumps(alert(listed(unfolding(NOTHING, 13)))).encode())
    assert len(program.operations) < 20


def test_unknown_fields_are_told_up_to_a_hundred(survey: Survey) -> None:
    decoded = survey.decode([packed(alert(*((f"new{n}", "boolean") for n in range(500))), bytes(500))])
    assert (decoded.bad, len(decoded.unknown_fields)) == ([], schema.MAX_UNKNOWN)


def test_a_refused_schema_is_remembered_without_what_was_made_of_it() -> None:
    reader = Reader(schema.Wanted({}))
    found = reader._try_compile(json.dumps(alert(("x", unfolding("int", 20)))).encode())
    assert isinstance(found, Exception)
    assert found.__traceback__ is None
    assert found.__context__ is None


def test_programs_are_forgotten_when_they_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(schema.Wanted({}))
    monkeypatch.setattr(Reader, "REMEMBERED_BYTES", 200_000)
    for n in range(20):
        reader.program(json.dumps({**alert(("x", unfolding("int", 9))), "doc": str(n)}).encode())
        assert len(reader._programs) < 8
