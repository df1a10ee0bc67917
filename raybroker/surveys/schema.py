"""Avro schemas to programs for the compiled walk: what is wanted of a record, and where in the bytes it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import fastavro
import numpy as np
import numpy.typing as npt

from raybroker.errors import PacketError
from raybroker.surveys import fields, kernel

Operation = list[int]
MAX_PARTS = 20_000  # of a schema, unfolded; of Rubin's, 7.0 has the most, 444
MAX_PATH = 1_000  # letters: every operation keeps its path
MAX_UNKNOWN = 100  # names of unknown fields that are told of one schema
_CODES = {
    "boolean": kernel.BOOLEAN,
    "int": kernel.INT,
    "long": kernel.LONG,
    "float": kernel.FLOAT,
    "double": kernel.DOUBLE,
    "bytes": kernel.BYTES,
    "string": kernel.STRING,
    "fixed": kernel.FIXED,
    "enum": kernel.ENUM,
}
_LEAST = {"float": 4, "double": 8}  # bytes; of the others 1
_NUMBERS = ("int", "long", "float", "double")
_FITS = {  # written type to the kinds of columns that hold it
    "boolean": ("boolean",),
    "int": _NUMBERS,
    "long": _NUMBERS,
    "float": ("float", "double"),
    "double": ("float", "double"),
    "string": ("string",),
    "bytes": ("bytes",),
    "enum": ("string",),
}


class UnsupportedError(Exception):
    """The compiled walk cannot read this schema; fastavro can."""


@dataclass(frozen=True)
class Wanted:
    """What to read of a record, whatever the version of its schema.

    `columns` maps dotted paths to Avro types ('record' asks whether a record is there); `arrays` does so for the items
    of arrays; paths in `known` are passed over. Any other field is unknown, and is counted.
    """

    columns: Mapping[str, str]
    arrays: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    known: frozenset[str] = frozenset()

    def levels(self) -> list[Mapping[str, str]]:
        """The columns of the record itself, then of each array's items."""
        return [self.columns, *self.arrays.values()]

    def schema(self) -> Any:
        """An Avro schema of just what is wanted, all of it nullable; parsed."""
        tree = _tree(self.columns)
        for path, columns in self.arrays.items():
            tree[path] = [_tree(columns)]
        return fastavro.parse_schema(_record("wanted", tree))


def _tree(columns: Mapping[str, str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, kind in columns.items():
        *parents, name = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        if kind != "record":
            branch[name] = f"{kind}?"
    return tree


def _record(name: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    return fields.record(name, {key: _nullable(f"{name}_{key}", value) for key, value in tree.items()})


def _nullable(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return ["null", {"type": "array", "items": _record(name, value[0])}]
    return ["null", _record(name, value)] if isinstance(value, dict) else value


class Columns(NamedTuple):
    """The columns of a `Wanted` in one row of numbers: their place is their number in the kernel."""

    number: dict[tuple[int, str], int]  # (level, path)
    prefixes: list[set[str]]  # by level, every path that leads to something wanted
    array_levels: dict[str, int]

    @classmethod
    def of(cls, wanted: Wanted) -> Columns:
        pairs = [(level, path) for level, columns in enumerate(wanted.levels()) for path in columns]
        prefixes = [set().union(*map(_prefixes, columns)) for columns in wanted.levels()]
        prefixes[0].update(wanted.arrays)
        return cls(
            {pair: n for n, pair in enumerate(pairs)},
            prefixes,
            {p: n + 1 for n, p in enumerate(wanted.arrays)},
        )


def _prefixes(path: str) -> set[str]:
    words = path.split(".")
    return {".".join(words[: n + 1]) for n in range(len(words))}


@dataclass(frozen=True, eq=False)
class Program:
    """How to read bodies of one writer schema."""

    operations: npt.NDArray[np.int64]
    names: Sequence[str]  # the field that each operation reads, for messages
    unknown: tuple[str, ...]  # fields that nobody knows
    top: frozenset[str]  # names of the record's own fields
    fallback: Any = None  # the parsed writer schema, where fastavro has to read it first

    @property
    def nbytes(self) -> int:
        """About what it takes in memory."""
        return self.operations.nbytes + sum(map(len, self.names)) + 50 * len(self.names)


def compile_schema(parsed: Any, wanted: Wanted, columns: Columns, solid: bool = False) -> Program:
    """The program for a parsed writer schema; raises UnsupportedError or PacketError.

    With `solid`, fields that take no bytes are refused: for readers that make an object of each.
    """
    compiler = _Compiler(wanted, columns, solid)
    compiler.compile(parsed)
    operations = np.array(compiler.operations, dtype=np.int64)
    return Program(operations, compiler.names, tuple(compiler.unknown)[:MAX_UNKNOWN], top_fields(parsed))


def parse(schema: bytes) -> Any:
    """A schema's JSON checked and with full names; raises PacketError."""
    try:
        read = json.loads(schema)
        json.dumps(read, ensure_ascii=False).encode()  # halves of surrogate pairs are valid JSON, but no text
        return fastavro.parse_schema(_plain(read))
    except Exception as error:
        raise PacketError(f"its Avro schema is not valid: {str(error) or type(error).__name__}") from error


def _plain(schema: Any) -> Any:
    """Without logical types (a time stays the number that was written) and without another program's marks."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if isinstance(schema, dict):
        return {
            k: v if k in ("default", "doc") else _plain(v)
            for k, v in schema.items()
            if k != "logicalType" and not k.startswith("__")
        }
    return schema


def top_fields(schema: Any) -> frozenset[str]:
    """Names of a parsed record schema's own fields; empty where it is no record."""
    known = schema.get("fields", ()) if isinstance(schema, dict) else ()
    return frozenset(item["name"] for item in known)


class _Compiler:
    """One walk over one schema."""

    def __init__(self, wanted: Wanted, columns: Columns, solid: bool):
        self.wanted, self.columns, self.solid = wanted, columns, solid
        self.kinds = [dict(level) for level in wanted.levels()]
        self.operations: list[Operation] = []
        self.parts = 0
        self.names: list[str] = []
        self.unknown: dict[str, None] = {}
        self._named: dict[str, Any] = {}
        self._open: list[str] = []
        self._arrays: dict[int, str] = {0: ""} | {n: path for path, n in columns.array_levels.items()}
        self._slots = 0

    def compile(self, schema: Any) -> None:
        self._value(schema, "", 0)
        self._emit(kernel.END, name="the end")

    def _emit(self, code: int, column: int = -1, a: int = -1, b: int = 0, name: str = "") -> int:
        self.operations.append([code, column, a, b])
        self.names.append(name)
        return len(self.operations) - 1

    def _here(self) -> int:
        return len(self.operations)

    def _aim(self, operation: int, target: int) -> None:
        self.operations[operation][2] = target

    def _full(self, path: str, level: int) -> str:
        return ".".join(filter(None, (self._arrays.get(level, ""), path)))

    def _value(self, schema: Any, path: str, level: int) -> int:
        """Operations for one value; gives the least number of bytes that it takes. Level −1 skips it."""
        self.parts += 1  # also those that make no operation: records without fields unfold without end too
        if self.parts > MAX_PARTS:
            raise PacketError(f"its Avro schema has more than {MAX_PARTS} parts")
        if isinstance(schema, list):
            return self._union(schema, path, level)
        kind = schema["type"] if isinstance(schema, dict) else schema
        if isinstance(kind, (list, dict)):
            return self._value(kind, path, level)
        if kind == "null":
            return 0
        if kind in _CODES:
            return self._leaf(schema, kind, path, level, -1)
        if kind in ("array", "map"):
            return self._array(schema, kind, path, level)
        return self._record(self._definition(schema, kind), path, level)

    def _definition(self, schema: Any, kind: str) -> Any:
        if kind in ("record", "error"):
            return schema
        if kind not in self._named:
            raise PacketError(f"its Avro schema has an unknown type '{kind}'")
        return self._named[kind]

    def _record(self, schema: Any, path: str, level: int) -> int:
        if schema["type"] not in ("record", "error"):
            return self._leaf(schema, schema["type"], path, level, -1)
        name = schema["name"]
        if name in self._open:
            raise PacketError(f"its Avro schema refers to itself in '{name}', which no alert does")
        self._named[name] = schema
        self._open.append(name)
        if (level, path) in self.columns.number:
            self._emit(kernel.MARK, self._column(path, level, "record"), name=path)
        least = sum(self._field(item, path, level) for item in schema["fields"])
        self._open.pop()
        return least

    def _field(self, item: Any, parent: str, level: int) -> int:
        path = f"{parent}.{item['name']}" if parent else item["name"]
        if len(path) > MAX_PATH:
            raise PacketError(f"its Avro schema has a field whose path is longer than {MAX_PATH} letters")
        if level >= 0 and path not in self.columns.prefixes[level]:
            if self._full(path, level) not in self.wanted.known:
                self.unknown[self._full(path, level)] = None
            level = -1
        least = self._value(item["type"], path, level)
        if self.solid and least == 0:
            raise PacketError(f"its kind of schema may have no field without content, as '{path}'")
        return least

    def _column(self, path: str, level: int, kind: str) -> int:
        if level < 0:
            return -1
        kept = self.kinds[level].get(path)
        if kept == "record" == kind or kept in _FITS.get(kind, ()):
            if kind == "enum":
                raise UnsupportedError(f"enumeration '{path}'")
            return self.columns.number[level, path]
        self.unknown[f"{self._full(path, level)} ({kind})"] = None
        return -1

    def _leaf(self, schema: Any, kind: str, path: str, level: int, null_branch: int) -> int:
        size = 0
        if kind in ("fixed", "enum"):
            self._named[schema["name"]] = schema
            size = schema["size"] if kind == "fixed" else len(schema["symbols"])
            if not 0 <= size < 1 << 31:
                raise PacketError(f"its Avro schema has a field '{path}' of {size} bytes")
        if kind == "fixed" and size == 0 and null_branch < 0:
            return 0  # nothing to read: an operation that takes no bytes could be asked for without end
        column = self._column(path, level, kind)
        self._emit(_CODES[kind], column, null_branch, size, name=self._full(path, level) or path)
        return size if kind == "fixed" else _LEAST.get(kind, 1)

    def _union(self, branches: list[Any], path: str, level: int) -> int:
        if len(branches) == 2 and "null" in branches:
            other = branches[1 - branches.index("null")]
            kind = other["type"] if isinstance(other, dict) else other
            if isinstance(kind, str) and kind in _CODES:
                self._leaf(other, kind, path, level, branches.index("null"))
                return 1
        self._emit(kernel.UNION, a=len(branches), name=self._full(path, level))
        jumps = [self._emit(kernel.JUMP) for _ in branches]
        ends = []
        for jump, branch in zip(jumps, branches, strict=True):
            self._aim(jump, self._here())
            self._value(branch, path, level)
            ends.append(self._emit(kernel.JUMP))
        for end in ends:
            self._aim(end, self._here())
        return 1

    def _array(self, schema: Any, kind: str, path: str, level: int) -> int:
        inner = self.columns.array_levels.get(path, -1) if level == 0 and kind == "array" else -1
        if level >= 0 and inner < 0:
            self.unknown[f"{self._full(path, level)} ({kind})"] = None
        slot, self._slots = self._slots, self._slots + 1
        if slot >= kernel.MAX_SLOTS:
            raise PacketError(f"its Avro schema has more than {kernel.MAX_SLOTS} arrays")
        self._emit(kernel.ARRAY, slot)
        items = self._emit(kernel.ITEMS, slot, b=max(inner, 0), name=path)
        if kind == "map":
            self._emit(kernel.STRING, name=path)
        least = self._value(schema["values" if kind == "map" else "items"], path if inner < 0 else "", inner)
        if least == 0 and kind == "array":
            raise PacketError(f"its Avro schema has an array '{path}' of items without content")
        self._aim(self._emit(kernel.JUMP), items)
        self._aim(items, self._here())
        return 1
