"""The compiled Avro reader, against fastavro and against hostile bytes."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybroker.errors import PacketError
from raybroker.surveys import containers, kernel
from raybroker.surveys.avro import Body, Reader, Table
from raybroker.surveys.containers import Containers
from raybroker.surveys.schema import Wanted

ITEM = {
    "type": "record",
    "name": "item",
    "fields": [{"name": "jd", "type": "double"}, {"name": "note", "type": ["string", "null"]}],
}
EVERYTHING: dict[str, Any] = {
    "type": "record",
    "name": "everything",
    "fields": [
        {"name": "flag", "type": ["null", "boolean"]},
        {"name": "small", "type": "int"},
        {"name": "large", "type": ["long", "null"]},
        {"name": "single", "type": ["null", "float"]},
        {"name": "double", "type": "double"},
        {"name": "text", "type": ["string", "null"]},
        {"name": "skipped", "type": {"type": "map", "values": ["null", "string", "long"]}},
        {"name": "digest", "type": {"type": "fixed", "name": "md5", "size": 16}},
        {"name": "level", "type": {"type": "enum", "name": "level", "symbols": ["low", "high"]}},
        {"name": "items", "type": ["null", {"type": "array", "items": ITEM}]},
        {"name": "others", "type": {"type": "array", "items": {"type": "array", "items": ["item", "null"]}}},
        {
            "name": "inner",
            "type": ["null", {"type": "record", "name": "deep", "fields": [{"name": "it", "type": "item"}]}],
        },
        {"name": "stamp", "type": ["bytes", "null"]},
    ],
}
WANTED = Wanted(
    columns={
        "flag": "boolean",
        "small": "int",
        "large": "long",
        "single": "float",
        "double": "double",
        "text": "string",
        "inner": "record",
        "inner.it.jd": "double",
        "stamp": "bytes",
    },
    arrays={"items": {"jd": "double", "note": "string"}},
    known=frozenset({"skipped", "digest"}),
)


def body(schema: dict[str, Any], record: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return out.getvalue()


def read(reader: Reader, schema: dict[str, Any], *bodies: bytes) -> Table:
    program = reader.program(json.dumps(schema).encode())
    return reader.read([reader.translated(Body(program, data)) for data in bodies])


def record(*fields: tuple[str, Any], name: str = "r") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": key, "type": kind} for key, kind in fields]}


TEXT = st.text(max_size=20)
ITEMS = st.fixed_dictionaries(
    {"jd": st.floats(allow_nan=False, allow_infinity=False), "note": st.none() | TEXT}
)
RECORDS = st.fixed_dictionaries(
    {
        "flag": st.none() | st.booleans(),
        "small": st.integers(-(2**31), 2**31 - 1),
        "large": st.none() | st.integers(-(2**63), 2**63 - 1),
        "single": st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
        "double": st.floats(allow_nan=False, allow_infinity=False),
        "text": st.none() | TEXT,
        "skipped": st.dictionaries(TEXT, st.none() | TEXT | st.integers(-9, 9), max_size=3),
        "digest": st.binary(min_size=16, max_size=16),
        "level": st.sampled_from(["low", "high"]),
        "items": st.none() | st.lists(ITEMS, max_size=40),
        "others": st.lists(st.lists(st.none() | ITEMS, max_size=3), max_size=3),
        "inner": st.none() | ITEMS.map(lambda item: {"it": item}),
        "stamp": st.none() | st.binary(max_size=50),
    }
)
READER = Reader(WANTED)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(RECORDS, min_size=1, max_size=5))
def test_values_are_those_that_were_written(records: list[dict[str, Any]]) -> None:
    table = read(READER, EVERYTHING, *(body(EVERYTHING, item) for item in records))
    assert table.reasons == {}
    for name in ("flag", "small", "large", "single", "double", "text"):
        assert table.arrow(name).to_pylist() == [item[name] for item in records]
    assert table.arrow("inner.it.jd").to_pylist() == [
        (i["inner"] or {"it": {"jd": None}})["it"]["jd"] for i in records
    ]
    assert table.known("inner").tolist() == [item["inner"] is not None for item in records]
    for stamp, data, item in zip(table.arrow("stamp").to_pylist(), table.bodies, records, strict=True):
        found = (
            None if stamp is None else bytes(data.data[stamp["offset"] : stamp["offset"] + stamp["length"]])
        )
        assert found == item["stamp"]
    expected = [(n, i["jd"], i["note"]) for n, item in enumerate(records) for i in item["items"] or []]
    columns = [table.arrow(name, "items").to_pylist() for name in ("jd", "note")]
    assert list(zip(table.owners("items").tolist(), *columns, strict=True)) == expected


@settings(deadline=None, derandomize=True, max_examples=150)
@given(RECORDS, st.data())
def test_damaged_bytes_are_read_as_fastavro_reads_them_or_refused(item: dict[str, Any], draw: Any) -> None:
    damaged = bytearray(body(EVERYTHING, item))
    for _ in range(draw.draw(st.integers(1, 4))):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))
    good = body(EVERYTHING, item)
    table = read(READER, EVERYTHING, good, bytes(damaged), good)
    assert set(table.reasons) <= {1}
    assert table.arrow("double").to_pylist()[::2] == [item["double"]] * 2
    if not table.reasons:
        other = fastavro.schemaless_reader(
            io.BytesIO(bytes(damaged)), fastavro.parse_schema(EVERYTHING), None
        )
        for name in ("flag", "small", "large", "text"):
            assert table.arrow(name).to_pylist()[1] == other[name]
        assert table.numbers("double")[1] == other["double"] or not math.isfinite(other["double"])
        assert np.sum(table.owners("items") == 1) == len(other["items"] or [])


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes_are_survived(data: bytes) -> None:
    read(READER, EVERYTHING, data).arrow("text").validate(full=True)


def test_every_truncation_is_refused() -> None:
    item = {"jd": 1.5, "note": "ä"}
    full = {
        "flag": True, "small": 1, "large": 2, "single": 1.0, "double": 2.0, "text": "x", "skipped": {"a": 1},
        "digest": bytes(16), "level": "low", "items": [item] * 3, "others": [[item, None]], "inner": {"it": item},
        "stamp": b"12345",
    }  # fmt: skip
    whole = body(EVERYTHING, full)
    table = read(READER, EVERYTHING, *(whole[:n] for n in range(len(whole))), whole, whole + b"\0")
    assert set(table.reasons) == {*range(len(whole)), len(whole) + 1}
    assert table.reasons[len(whole) - 1] == "it ends in the middle of field 'stamp'"
    assert table.reasons[len(whole) + 1] == "bytes are left over after its last field"
    assert table.owners("items").tolist() == [len(whole)] * 3


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("float", b"\0\0\0"),
        ("double", b"\0" * 7),
        ({"type": "fixed", "name": "f", "size": 9}, b"\0" * 8),
        ("string", b"\x04a"),
        ("long", b"\x80"),
        ("boolean", b""),
        ({"type": "array", "items": "long"}, b"\x02"),
    ],
)
def test_no_value_is_read_beyond_the_end(kind: Any, data: bytes) -> None:
    schema = record(("a", "int"), ("last", kind))
    table = read(Reader(Wanted({"a": "int", "last": "double"})), schema, b"\x02" + data)
    assert table.reasons == {0: "it ends in the middle of field 'last'"}


def test_numbers_that_mean_missing_are_null() -> None:
    reader = Reader(Wanted({"a": "float", "b": "int", "c": "string"}), (-999.0, -99999.0), b"null")
    schema = record(("a", "float"), ("b", "int"), ("c", "string"))
    rows = [(-999.0, 1, "null"), (float("nan"), -999, "nul"), (1.0, -99999, "nulls"), (math.inf, -99998, "")]
    table = read(reader, schema, *(body(schema, dict(zip("abc", row, strict=True))) for row in rows))
    assert table.arrow("a").to_pylist() == [None, None, 1.0, None]
    assert table.arrow("b").to_pylist() == [1, None, None, -99998]
    assert table.arrow("c").to_pylist() == [None, "nul", "nulls", ""]


def test_a_type_that_changed_is_converted_where_it_fits_and_unknown_where_it_does_not() -> None:
    reader = Reader(Wanted({"a": "float", "b": "double", "c": "int", "d": "long"}))
    schema = record(("a", "double"), ("b", "long"), ("c", "long"), ("d", "string"))
    table = read(reader, schema, body(schema, {"a": 0.1, "b": 2**40, "c": 7, "d": "x"}))
    assert table.arrow("a").to_pylist() == [np.float32(0.1)]
    assert (table.numbers("b")[0], table.numbers("c")[0]) == (2**40, 7)
    assert table.arrow("d").to_pylist() == [None]
    assert table.unknown() == {"d (string)": 1}
    too_large = read(reader, schema, body(schema, {"a": 0.1, "b": 1, "c": 2**31, "d": "x"}))
    assert too_large.reasons == {0: "field 'c' holds a number that is too large for its type"}


def test_unknown_fields_are_counted_and_passed_over() -> None:
    table = read(
        Reader(Wanted({"b": "int"})),
        record(("a", ITEM), ("b", "int")),
        body(record(("a", ITEM), ("b", "int")), {"a": {"jd": 1.0, "note": None}, "b": 3}),
    )
    assert table.unknown() == {"a": 1}
    assert table.arrow("b").to_pylist() == [3]


def test_a_union_of_two_records_fills_the_same_columns() -> None:
    one, two = (
        record(("jd", "double"), ("mag", "float"), name="one"),
        record(("lim", "float"), ("jd", "double"), name="two"),
    )
    schema = record(("points", {"type": "array", "items": [one, two]}), ("x", [one, "two", "null"]))
    schema["fields"][1]["type"] = ["one", "two", "null"]
    reader = Reader(Wanted({"x.jd": "double"}, {"points": {"jd": "double", "lim": "float", "mag": "float"}}))
    points = [("one", {"jd": 1.0, "mag": 2.0}), ("two", {"jd": 3.0, "lim": 4.0})]
    table = read(reader, schema, body(schema, {"points": points, "x": ("two", {"lim": 0.0, "jd": 9.0})}))
    assert table.arrow("jd", "points").to_pylist() == [1.0, 3.0]
    assert table.arrow("lim", "points").to_pylist() == [None, 4.0]
    assert table.arrow("mag", "points").to_pylist() == [2.0, None]
    assert table.numbers("x.jd")[0] == 9.0


def test_blocks_with_a_size_are_read() -> None:
    schema = record(("items", {"type": "array", "items": "int"}), ("b", "int"))
    reader = Reader(Wanted({"b": "int"}, {}))
    sized = b"".join(map(containers.write_long, (-2, 2, 5, 6, 1, 7, 0, 42)))
    assert read(reader, schema, sized).arrow("b").to_pylist() == [42]


@pytest.mark.parametrize("count", [2**62, -(2**63), kernel.MAX_ITEMS + 1])
def test_an_array_that_claims_too_much_is_refused(count: int) -> None:
    schema = record(("items", {"type": "array", "items": "int"}))
    reader = Reader(Wanted({}, {"items": {}}))
    claim = containers.write_long(count) if count > -(2**63) else b"\xff" * 9 + b"\x01"
    assert set(read(reader, schema, claim + b"\0" * 50).reasons) == {0}


def test_a_schema_that_needs_fastavro_is_read_by_it() -> None:
    level = {"type": "enum", "name": "level", "symbols": ["low", "high"]}
    schema = record(("a", ["null", level]), ("b", "int"), ("items", {"type": "array", "items": ITEM}))
    reader = Reader(Wanted({"a": "string", "b": "int"}, {"items": {"jd": "double"}}))
    assert reader.program(json.dumps(schema).encode()).fallback is not None
    items = [{"jd": 1.0, "note": "x"}, {"jd": 2.0, "note": None}]
    table = read(reader, schema, body(schema, {"a": "high", "b": 5, "items": items}))
    assert (table.arrow("a").to_pylist(), table.arrow("b").to_pylist()) == (["high"], [5])
    assert table.arrow("jd", "items").to_pylist() == [1.0, 2.0]
    with pytest.raises(PacketError, match="cannot be read with its own schema"):
        reader.translated(Body(reader.program(json.dumps(schema).encode()), b"\x02\x09"))


NOTHING: dict[str, Any] = record()
NODE = record(("next", ["null", "node"]), name="node")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (b"{", "is not valid"),
        (b"", "is not valid"),
        (json.dumps(record(("a", "integer"))).encode(), "is not valid"),
        (b"[" * 100_000, "is not valid"),
        (json.dumps(NODE).encode(), "refers to itself"),
        (json.dumps(record(("a", {"type": "array", "items": "null"}))).encode(), "without content"),
        (
            json.dumps(record(("a", {"type": "array", "items": {**NOTHING, "name": "e"}}))).encode(),
            "without content",
        ),
        (
            json.dumps(record(*((f"a{n}", {"type": "array", "items": "int"}) for n in range(70)))).encode(),
            "arrays",
        ),
    ],
)
def test_a_schema_that_cannot_be_used_says_why(schema: bytes, reason: str) -> None:
    for _ in range(2):
        with pytest.raises(PacketError, match=reason):
            READER.program(schema)


def test_a_schema_that_unfolds_without_end_is_refused() -> None:
    parts: Any = "int"
    for n in range(30):
        parts = record(("a", parts), ("b", f"r{n - 1}" if n else "int"), name=f"r{n}")
    with pytest.raises(PacketError, match="parts"):
        READER.program(json.dumps(parts).encode())


SIMPLE = record(("a", "string"))


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy"])
def test_codecs(codec: str) -> None:
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(SIMPLE), [{"a": "x" * 1000}], codec=codec)
    header, data = Containers().open(out.getvalue())
    assert (header.codec, bytes(data)) == (codec, body(SIMPLE, {"a": "x" * 1000}))


def packed(codec: str, block: bytes) -> bytes:
    header = containers.container_header(json.dumps(SIMPLE).encode(), codec.encode())
    return containers.write_container(header, bytes(range(16)), block)


def zeros(codec: str, size: int) -> bytes:
    import zlib

    import cramjam

    if codec == "deflate":
        return zlib.compress(bytes(size), wbits=-15)
    return bytes(cramjam.snappy.compress_raw(bytes(size))) + zlib.crc32(bytes(size)).to_bytes(4, "big")


@pytest.mark.parametrize("codec", ["deflate", "snappy"])
def test_a_block_that_explodes_is_refused(codec: str) -> None:
    said = {"deflate": "more than 32 times larger", "snappy": "larger than 64 MB"}[codec]
    with pytest.raises(PacketError, match=said):
        Containers().open(packed(codec, zeros(codec, containers.BODY_LIMIT + 1)))


def test_a_small_block_may_become_a_megabyte_and_no_more() -> None:
    Containers().open(packed("deflate", zeros("deflate", containers.SMALL)))
    with pytest.raises(PacketError, match="larger than 1 MB"):
        Containers().open(packed("deflate", zeros("deflate", containers.SMALL + 1)))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (packed("zstandard", b"x"), "codec 'zstandard' is none of"),
        (packed("deflate", b"\xff\xff\xff"), "deflate block is damaged"),
        (packed("deflate", zeros("deflate", 99)[:-2]), "does not end where it should"),
        (packed("snappy", b"\xff\xff\xff\xff\xff\xff\xff\xff"), "snappy block is damaged"),
        (packed("snappy", zeros("snappy", 99)[:-1] + b"?"), "checksum"),
        (packed("null", b"\x02x")[:-1], "1 byte shorter than its header says"),
        (packed("null", b"\x02x") + b"??", "2 bytes more than its header says"),
        (packed("null", b"\x02x")[:-1] + b"?", "sync markers differ"),
        (packed("null", b"\x02x")[:60], "cut short"),
        (b"Obj\x01" + b"\xff" * 20, "cut short|damaged"),
        (b"", "not an Avro container"),
        (b"GIF89a", "not an Avro container: it starts with 47 49 46 38"),
    ],
)
def test_a_bad_container_says_what_is_wrong(value: bytes, reason: str) -> None:
    with pytest.raises(PacketError, match=reason):
        Containers().open(value)


def test_a_container_of_two_records_is_refused() -> None:
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(SIMPLE), [{"a": "x"}, {"a": "y"}])
    with pytest.raises(PacketError, match="holds 2 records"):
        Containers().open(out.getvalue())


def test_more_items_than_expected_are_all_read() -> None:
    schema = record(("items", {"type": "array", "items": ITEM}))
    reader = Reader(Wanted({}, {"items": {"jd": "double"}}))
    many = [{"jd": float(n), "note": "x"} for n in range(5000)]
    table = read(reader, schema, body(schema, {"items": many}), body(schema, {"items": many[:3]}))
    assert table.numbers("jd", "items").tolist() == [*map(float, range(5000)), 0.0, 1.0, 2.0]
