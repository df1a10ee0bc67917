"""How much the fuzz tests try, and how they damage packets.

In CI each takes the same few examples every time. `RAYBROKER_FUZZ=5000 pytest --timeout=0 -k fuzz` takes that many of
each, other ones every time; what it finds is printed so that it can be pasted into a regression test.
"""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("RAYBROKER_FUZZ", "0"))


def fuzzed(examples: int) -> Any:
    """Settings for a test that takes so many examples in CI."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


LARGEST = 2**63 - 1
LONGS = (0, 1, -1, 2**31 - 1, -(2**31), 2**31, 2**53 + 1, LARGEST, -(2**63))
INTS = (0, 1, -1, 127, 1 << 20, 2**31 - 1, -(2**31))
NAN, INFINITY = float("nan"), float("inf")
FLOATS = (
    0.0,
    -0.0,
    1.0,
    NAN,
    INFINITY,
    -INFINITY,
    3.4e38,
    -3.4e38,
    1e-45,
    -1e-45,
    -999.0,
    -99999.0,
    1e10,
    -1.0,
)
DOUBLES = (*FLOATS, 1.7e308, -1.7e308, 5e-324, 2**63 * 1.0, 1e300, 60000.0, 2460000.5, 360.0, 90.0)
TEXTS = ("", "null", "g", "r", "t", "\0", "ä" * 9, "\U0010ffff", "x" * 70_000, "' OR 1=1", "ztf:1", "NaN")
CUTOUTS = (b"", b"\x1f\x8b", b"\x1f\x8b\x08" + bytes(40), bytes(4000), b"SIMPLE  =" + bytes(100))
OF_TYPE: dict[str, tuple[Any, ...]] = {
    "long": LONGS, "int": INTS, "float": FLOATS, "double": DOUBLES, "string": TEXTS, "boolean": (False, True),
    "bytes": CUTOUTS,
}  # fmt: skip

PIECES = st.sampled_from(
    [
        b"\xff" * 9 + b"\x01",  # the largest number that Avro can write
        b"\xfe" * 9 + b"\x01",
        b"\x80\x80\x80\x80\x20",  # 4 GB as a length
        b"\xfe\xff\xff\xff\x0f",
        b"\x80" * 12,
        b"\x01",
        b"\x00",
        b"\x02",
        *(struct.pack("<f", number) for number in (NAN, INFINITY, 3.4e38)),
        *(struct.pack("<d", number) for number in (NAN, -INFINITY, 1.7e308, 1e-310)),
        b"Obj\x01",
        b"\xed\xa0\x80",
    ]
) | st.binary(max_size=20)


class Harm(NamedTuple):
    """One thing that happens to bytes: places count round, so that any number is one."""

    what: str
    place: int
    length: int
    piece: bytes


PLACES = st.one_of(st.integers(0, 80), st.integers(0, 3000), st.integers(0, 1 << 20), st.integers(-200, -1))
HARM = st.builds(
    Harm,
    st.sampled_from(["flip", "overwrite", "overwrite", "insert", "drop", "cut", "splice", "repeat"]),
    PLACES,
    st.integers(1, 300),
    PIECES,
)
HARMS = st.lists(HARM, min_size=1, max_size=4)


def harmed(value: bytes, harms: list[Harm], other: bytes = b"") -> bytes:
    """The bytes after all that; `other` is what they are spliced with."""
    for harm in harms:
        at = harm.place % len(value) if value else 0
        head, tail = value[:at], value[at:]
        value = {
            "flip": lambda h=head, t=tail, n=harm.length: h + bytes([t[0] ^ 1 << n % 8]) + t[1:] if t else h,
            "overwrite": lambda h=head, t=tail, p=harm.piece: h + p + t[len(p) :],
            "insert": lambda h=head, t=tail, p=harm.piece: h + p + t,
            "drop": lambda h=head, t=tail, n=harm.length: h + t[n:],
            "cut": lambda h=head: h,
            "splice": lambda h=head, a=at: h + other[a:],
            "repeat": lambda h=head, t=tail, n=harm.length: h + t[:n] + t,
        }[harm.what]()
    return value


PLACE = ("ra", "dec")


class Change(NamedTuple):
    """A field of a record, by number, gets an extreme value of its type, by number; for all fields if `every`."""

    field: int
    value: int
    every: bool


CHANGES = st.lists(
    st.builds(Change, st.integers(0, 500), st.integers(0, 40), st.sampled_from([False] * 9 + [True])),
    max_size=12,
)


def changed(schema: dict[str, Any], record: dict[str, Any], changes: list[Change]) -> dict[str, Any]:
    """The record with some of its fields' values, at any depth, exchanged for extreme ones that the schema allows."""
    for change in changes:
        leaves = list(_leaves(schema, record))
        chosen = leaves if change.every else leaves[change.field % len(leaves) :][:1]
        for kinds, owner, name in chosen:
            pool = [value for kind in kinds for value in (None,) * (kind == "null") + OF_TYPE.get(kind, ())]
            if change.every:  # a number may be absurd everywhere, a list of all fields null says nothing
                pool = [value for value in pool if value is not None] or pool
            if not (change.every and name in PLACE):  # else none would have a place on the sky
                owner[name] = pool[change.value % len(pool)]
    return record


def _leaves(schema: dict[str, Any], record: dict[str, Any], named: dict[str, Any] | None = None) -> Any:
    """(types, owner, field) of all fields of a parsed schema that hold no record; of arrays, of the first 3 items."""
    named = {} if named is None else named
    named[schema["name"]] = schema
    for item in schema["fields"]:
        branches = item["type"] if isinstance(item["type"], list) else [item["type"]]
        plain = [b if isinstance(b, str) else b["type"] for b in branches]
        inner = [_inner(b, named) for b in branches]
        value = record[item["name"]]
        for one in filter(None, inner):
            named.setdefault(one["name"], one)
            values = value if isinstance(value, list) else [value] if value is not None else []
            for each in values[:3]:
                yield from _leaves(one, each, named)
        if not any(inner):
            yield plain, record, item["name"]


def _inner(branch: Any, named: dict[str, Any]) -> Any:
    """The record that a branch is, or that its items are; None where it is none."""
    if isinstance(branch, list):
        return next(filter(None, (_inner(one, named) for one in branch)), None)
    if isinstance(branch, str):
        return named.get(branch)
    if branch["type"] == "array":
        return _inner(branch["items"], named)
    return branch if branch["type"] == "record" else None
