"""Avro bodies to columns: by the compiled walk, and by fastavro first where that cannot read a schema."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybroker.alerts import PLACE, Floats, Integers
from raybroker.errors import PacketError
from raybroker.surveys import kernel
from raybroker.surveys.schema import (
    Columns,
    Program,
    UnsupportedError,
    Wanted,
    compile_schema,
    parse,
    top_fields,
)

Booleans = npt.NDArray[np.bool_]
NOTHING = Wanted({})
FALLBACK_BYTES = 1 << 20  # of a body that fastavro reads: as Python objects it takes up to 200 times that
EXPECTED_ROWS = 1_000  # of an array per alert, for which room is made before it is known

_REASONS = {
    kernel.ENDS_EARLY: "it ends in the middle of field '{}'",
    kernel.BAD_NUMBER: "field '{}' holds a number that is too large for its type",
    kernel.BAD_BRANCH: "field '{}' is of none of the types that its schema allows",
    kernel.BAD_LENGTH: "field '{}' has a negative length",
    kernel.BAD_TEXT: "field '{}' is not valid UTF-8 text",
    kernel.LEFT_OVER: "bytes are left over after its last field",
    kernel.TOO_MANY: "field '{}' is too long",
    kernel.BAD_BOOLEAN: "field '{}' is neither true nor false",
}


class Body(NamedTuple):
    """The decoded Avro body of one packet and how to read it."""

    program: Program
    data: bytes | memoryview


class Reader:
    """Reads bodies of any number of writer schemas into the columns of one `Wanted`.

    Numbers in `missing` and the string `missing_text` mean null, as do NaN and infinity.
    """

    REMEMBERED = 256  # programs, before all are forgotten
    REMEMBERED_BYTES = 64 << 20  # that they and their schemas take

    def __init__(self, wanted: Wanted, missing: Sequence[float] = (), missing_text: bytes = b""):
        self.wanted = wanted
        self.columns = Columns.of(wanted)
        self.missing = np.asarray(missing, dtype=np.float64)
        self.missing_text = np.frombuffer(missing_text, dtype=np.uint8)
        self._programs: dict[bytes, Program | PacketError] = {}
        self._remembered = 0  # bytes
        self._own: Program | None = None
        self.own_schema = wanted.schema()
        self._layout = _Layout.of(wanted)

    def program(self, schema: bytes) -> Program:
        """How to read bodies that were written with this schema (JSON); raises PacketError."""
        found = self._programs.get(schema)
        if found is None:
            if len(self._programs) >= self.REMEMBERED or self._remembered >= self.REMEMBERED_BYTES:
                self._programs.clear()
                self._remembered = 0
            found = self._programs[schema] = self._try_compile(schema)
            self._remembered += len(schema) + (0 if isinstance(found, PacketError) else found.nbytes)
        if isinstance(found, PacketError):
            raise PacketError(str(found))
        return found

    def _try_compile(self, schema: bytes) -> Program | PacketError:
        try:
            return self._compile(parse(schema))
        except PacketError as error:
            return PacketError(str(error))  # without the traceback, which holds all that was made until then
        except Exception as error:
            return PacketError(f"its Avro schema cannot be used: {error!r}")

    def _compile(self, parsed: Any) -> Program:
        try:
            return compile_schema(parsed, self.wanted, self.columns)
        except UnsupportedError:
            return self._by_fastavro(parsed)

    def _by_fastavro(self, parsed: Any) -> Program:
        compile_schema(
            parsed, NOTHING, Columns.of(NOTHING), solid=True
        )  # refuses what fastavro would blow up
        if self._own is None:
            self._own = compile_schema(self.own_schema, self.wanted, self.columns)
        return replace(self._own, fallback=parsed, top=top_fields(parsed))

    def translated(self, body: Body) -> Body:
        """A body in a form that the compiled walk can read: itself, or rewritten by fastavro; raises PacketError."""
        if body.program.fallback is None:
            return body
        if len(body.data) > FALLBACK_BYTES:
            raise PacketError(
                f"it is larger than {FALLBACK_BYTES >> 20} MB, which is too much for its kind of schema"
            )
        try:
            source, out = io.BytesIO(body.data), io.BytesIO()
            record = fastavro.schemaless_reader(source, body.program.fallback, None)
            fastavro.schemaless_writer(out, self.own_schema, record)
        except Exception as error:
            raise PacketError(f"it cannot be read with its own schema: {error!r}") from error
        if source.read(1):
            raise PacketError(_REASONS[kernel.LEFT_OVER])
        return body._replace(data=out.getvalue())

    def read(self, bodies: Sequence[Body]) -> Table:
        """The columns of these (translated) bodies; a body that cannot be read has all nulls and a reason."""
        addresses = np.array([pa.py_buffer(body.data).address for body in bodies], dtype=np.int64)
        lengths = np.array([len(body.data) for body in bodies], dtype=np.int64)
        operations, entries = _joined([body.program for body in bodies])
        starts = np.zeros((len(self.wanted.arrays) + 1, len(bodies) + 1), np.int64)
        status = np.zeros((len(bodies), 2), np.int64)
        used = starts[:, -1]
        while True:
            arena = self._layout.arena(len(bodies), used)
            walked = (addresses, lengths, entries, operations, arena.columns, self.missing, self.missing_text)
            kernel.walk(*walked, starts, status)
            used = starts[:, -1].copy()
            if not self._layout.short(used, arena.capacity, len(bodies)):
                break
        failed: list[int] = np.flatnonzero(status[:, 0]).tolist()
        reasons = {row: _reason(bodies[row].program, *status[row]) for row in failed}
        return Table(self, arena, starts, reasons, bodies, addresses)


def _reason(program: Program, code: int, operation: int) -> str:
    return _REASONS[int(code)].format(program.names[operation])


def _joined(programs: Sequence[Program]) -> tuple[npt.NDArray[np.int64], Integers]:
    """One table of operations for programs, and where in it each of them starts."""
    distinct = {id(program): program for program in programs}
    sizes = [len(program.operations) for program in distinct.values()]
    starts = dict(zip(distinct, np.cumsum([0, *sizes]).tolist(), strict=False))
    tables = [np.zeros((0, 4), np.int64), *(program.operations for program in distinct.values())]
    return np.concatenate(tables), np.array([starts[id(program)] for program in programs], np.int64)


class _Layout:
    """Where each column lies in the arena, and how many rows an array needs per alert, as learned so far."""

    def __init__(self, wanted: Wanted):
        kinds = [(level, kind) for level, columns in enumerate(wanted.levels()) for kind in columns.values()]
        self.level = np.array([level for level, _ in kinds], np.int64)
        self.kind = np.array([kernel.KINDS[kind] for _, kind in kinds], np.int64)
        self.width = np.array([kernel.WIDTHS[kind] for _, kind in kinds], np.int64)
        self.rows_per_alert = np.full(len(wanted.arrays) + 1, 32.0)
        self.rows_per_alert[0] = 1.0

    @classmethod
    def of(cls, wanted: Wanted) -> _Layout:
        return cls(wanted)

    def short(self, used: Integers, capacity: Integers, alerts: int) -> bool:
        """Whether there was too little room for so many rows per level; if so, expect more from now on.

        What is expected has a bound, or one absurd packet would ask for gigabytes in every batch to come.
        """
        short = used > capacity
        short[0] = False
        self.rows_per_alert[short] = np.minimum(1.25 * used[short] / alerts, EXPECTED_ROWS)
        return bool(short.any())

    def arena(self, alerts: int, least: Integers) -> _Arena:
        """Memory for the rows that are expected, and for `least` of them per level."""
        rows = np.maximum(np.ceil(self.rows_per_alert * alerts).astype(np.int64), least)
        capacity = np.maximum((rows + 63) // 64 * 64, 64)
        rows = capacity[self.level]
        valid = np.concatenate([[0], np.cumsum(rows)])
        cells = valid[-1] + np.concatenate([[0], np.cumsum(rows * self.width)])
        memory = np.zeros(int(cells[-1]), np.uint8)
        start = memory.ctypes.data
        columns = np.stack([self.kind, self.level, start + cells[:-1], start + valid[:-1], rows], axis=1)
        return _Arena(memory, columns, cells[:-1], valid[:-1], capacity)


class _Arena(NamedTuple):
    """One block of memory for all columns: their cells and validity at these places in it."""

    memory: npt.NDArray[np.uint8]
    columns: Integers  # as the kernel wants them, with addresses
    cells: Integers
    valid: Integers
    capacity: Integers  # rows, per level


_TYPES = {
    "boolean": (np.uint8, pa.bool_()),
    "record": (np.uint8, pa.bool_()),
    "int": (np.int32, pa.int32()),
    "long": (np.int64, pa.int64()),
    "float": (np.float32, pa.float32()),
    "double": (np.float64, pa.float64()),
    "string": (np.int32, pa.string()),
    "bytes": (np.int32, PLACE),
}


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type of a column of an Avro type; bytes become their place."""
    return _TYPES[kind][1]


class Table:
    """What was read: columns by path, of the alerts or of the items of one of their arrays."""

    def __init__(
        self,
        reader: Reader,
        arena: _Arena,
        starts: Integers,
        reasons: Mapping[int, str],
        bodies: Sequence[Body],
        addresses: Integers,
    ):
        self.reasons, self.bodies = reasons, bodies
        self._reader, self._arena, self._starts, self._addresses = reader, arena, starts, addresses
        self._bits: dict[int, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.bodies)

    def owners(self, array: str = "") -> Integers:
        """The alert of each row."""
        level = self._level(array)
        if level == 0:
            return np.arange(len(self))
        return np.repeat(np.arange(len(self)), np.diff(self._starts[level]))

    def unknown(self) -> dict[str, int]:
        """How many packets have each field that nobody knows."""
        counts = Counter(body.program.unknown for body in self.bodies)
        found: Counter[str] = Counter()
        for names, count in counts.items():
            found.update(dict.fromkeys(names, count))
        return dict(found)

    def known(self, path: str, array: str = "") -> Booleans:
        """Where a value is known."""
        column, rows = self._column(path, array)
        start = self._arena.valid[column]
        return self._arena.memory[start : start + rows].view(np.bool_)

    def numbers(self, path: str, array: str = "") -> Floats:
        """A numeric column, with NaN where it is not known."""
        found = self._cells(path, array).astype(np.float64)
        found[~self.known(path, array)] = np.nan
        return found

    def arrow(self, path: str, array: str = "") -> pa.Array:
        """A column as Arrow."""
        kind = self._kind(path, array)
        cells = self._cells(path, array)
        if kind == "string":
            return self._text(path, array, cells.reshape(-1, 2))
        if kind == "bytes":
            return self._places(path, array, cells.reshape(-1, 2))
        if kind in ("boolean", "record"):
            cells = np.packbits(cells, bitorder="little")
        return pa.Array.from_buffers(_TYPES[kind][1], *self._rows_and(path, array, cells))

    def struct(self, prefix: str, names: Sequence[str]) -> pa.StructArray:
        """The record at `prefix` with these fields; null where the record is."""
        arrays = [self.arrow(prefix + name) for name in names]
        absent = None
        if prefix and (0, prefix[:-1]) in self._reader.columns.number:
            absent = pa.array(~self.known(prefix[:-1]))
        return pa.StructArray.from_arrays(arrays, names=list(names), mask=absent)

    def _rows_and(self, path: str, array: str, cells: Any) -> tuple[int, list[pa.Buffer]]:
        _, rows = self._column(path, array)
        return rows, [self._validity(path, array), pa.py_buffer(np.ascontiguousarray(cells))]

    def _validity(self, path: str, array: str) -> pa.Buffer:
        """A column's bitmap; all of a level's are packed at once."""
        level, (column, rows) = self._level(array), self._column(path, array)
        columns = np.flatnonzero(self._arena.columns[:, 1] == level)
        if level not in self._bits:
            start, capacity = self._arena.valid[columns[0]], self._arena.capacity[level]
            cells = self._arena.memory[start : start + capacity * len(columns)].reshape(
                len(columns), capacity
            )
            self._bits[level] = np.packbits(cells[:, :rows], axis=1, bitorder="little")
        return pa.py_buffer(self._bits[level][column - columns[0]])

    def _text(self, path: str, array: str, places: npt.NDArray[np.int32]) -> pa.StringArray:
        known = self.known(path, array)
        offsets = np.zeros(len(places) + 1, np.int32)
        np.cumsum(np.where(known, places[:, 1], 0), out=offsets[1:])
        text = np.empty(int(offsets[-1]), np.uint8)
        kernel.gather(self._addresses, self.owners(array), places, known, offsets, text)
        buffers = [self._validity(path, array), pa.py_buffer(offsets), pa.py_buffer(text)]
        return pa.StringArray.from_buffers(len(places), buffers[1], buffers[2], buffers[0])

    def _places(self, path: str, array: str, places: npt.NDArray[np.int32]) -> pa.StructArray:
        known = self.known(path, array)
        parts = [pa.array(np.ascontiguousarray(places[:, k]), mask=~known) for k in (0, 1)]
        return pa.StructArray.from_arrays(parts, names=["offset", "length"], mask=pa.array(~known))

    def _level(self, array: str) -> int:
        return self._reader.columns.array_levels[array] if array else 0

    def _kind(self, path: str, array: str) -> str:
        return self._reader.wanted.levels()[self._level(array)][path]

    def _column(self, path: str, array: str) -> tuple[int, int]:
        level = self._level(array)
        rows = len(self) if level == 0 else int(self._starts[level, -1])
        return self._reader.columns.number[level, path], rows

    def _cells(self, path: str, array: str) -> npt.NDArray[Any]:
        column, rows = self._column(path, array)
        kind = self._kind(path, array)
        start = int(self._arena.cells[column])
        return self._arena.memory[start : start + rows * kernel.WIDTHS[kind]].view(_TYPES[kind][0])
