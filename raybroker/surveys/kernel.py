"""The compiled walk over Avro bodies: a table of operations in, cells of columns out.

A **program** is rows `(code, column, a, b)`, made from a writer schema by `schema.compile_schema`; its jumps count from
its first row. The walk runs each body's program and puts the values that have a column into one block of memory (the
arena). Every read is checked against the end of the body, so any bytes are safe; what is wrong becomes the body's
status.

Inside, arrays are plain addresses: Numba counts references to arrays on every call, which took nine times as long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

# operations; those from BOOLEAN on read one value: a is the branch of null in ["null", x], or −1; b a size
END, JUMP, UNION, ARRAY, ITEMS, MARK = range(6)
BOOLEAN, INT, LONG, FLOAT, DOUBLE, BYTES, STRING, FIXED, ENUM = range(6, 15)
# kinds of columns, by their Avro name
KINDS = {"record": 0, "boolean": 1, "int": 2, "long": 3, "float": 4, "double": 5, "string": 6, "bytes": 7}
WIDTHS = {"record": 1, "boolean": 1, "int": 4, "long": 8, "float": 4, "double": 8, "string": 8, "bytes": 8}
_INT, _LONG, _FLOAT = KINDS["int"], KINDS["long"], KINDS["float"]
# what can be wrong with a body
ENDS_EARLY, BAD_NUMBER, BAD_BRANCH, BAD_LENGTH, BAD_TEXT, LEFT_OVER, TOO_MANY, BAD_BOOLEAN = range(-1, -9, -1)

MAX_ITEMS = 1_000_000  # of one block of an array
MAX_ROWS, ROW_BYTES, FEW_ROWS = 100_000, 8, 64  # of points: at most; bytes of each on average; but of these
MAX_TEXT = 1 << 16  # bytes of a string that becomes a value
MAX_SLOTS = 64  # arrays and maps of one schema
_POSITIVE = np.int64(0x7FFF_FFFF_FFFF_FFFF)

OPTIONS: dict[str, Any] = {"cache": True, "nogil": True}


class Store(NamedTuple):
    """Addresses of where the values go, and of what means null."""

    columns: int  # int64 (kind, level, address of cells, address of validity, rows) per column
    rows: int  # int64 per level: the row that is being read
    missing: int  # float64
    missing_count: int
    missing_text: int
    missing_length: int


def _loader(kind: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def load(_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            place = builder.inttoptr(arguments[0], context.get_data_type(kind).as_pointer())
            return builder.load(place, align=1)

        return kind(types.int64), generate

    return load


def _storer(kind: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def store(_context: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            place = builder.inttoptr(arguments[0], context.get_data_type(kind).as_pointer())
            builder.store(arguments[1], place, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, kind), generate

    return store


_byte, _int64, _float32, _float64 = map(_loader, (types.uint8, types.int64, types.float32, types.float64))
_put_uint8, _put_int32, _put_int64 = map(_storer, (types.uint8, types.int32, types.int64))
_put_float32, _put_float64 = map(_storer, (types.float32, types.float64))


@njit(**OPTIONS)
def _long(data, at, end):  # type: ignore[no-untyped-def]
    number = np.int64(0)
    for shift in range(0, 70, 7):
        if at >= end:
            return number, ENDS_EARLY
        byte = np.int64(_byte(data + at))
        at += 1
        if shift == 63 and byte > 1:
            break
        number |= (byte & 127) << shift
        if byte < 128:
            return ((number >> 1) & _POSITIVE) ^ -(number & 1), at
    return number, BAD_NUMBER


@njit(**OPTIONS)
def _length(data, at, end):  # type: ignore[no-untyped-def]
    length, at = _long(data, at, end)
    if at < 0:
        return length, at
    if length < 0:
        return length, BAD_LENGTH
    if length > end - at:
        return length, ENDS_EARLY
    return length, at


@njit(**OPTIONS)
def _following(first):  # type: ignore[no-untyped-def]
    """Bytes that follow the first byte of a UTF-8 character; 0 where none can start with it."""
    if 0xC2 <= first <= 0xDF:
        return 1
    if 0xE0 <= first <= 0xEF:
        return 2
    return 3 if 0xF0 <= first <= 0xF4 else 0


@njit(**OPTIONS)
def _is_utf8(at, end):  # type: ignore[no-untyped-def]
    while at < end:
        first = _byte(at)
        at += 1
        if first < 0x80:
            continue
        more = _following(first)
        if more == 0 or at + more > end:
            return False
        low = 0xA0 if first == 0xE0 else 0x90 if first == 0xF0 else 0x80
        high = 0x9F if first == 0xED else 0x8F if first == 0xF4 else 0xBF
        if _byte(at) < low or _byte(at) > high:
            return False
        for k in range(1, more):
            if _byte(at + k) & 0xC0 != 0x80:
                return False
        at += more
    return True


@njit(**OPTIONS)
def _is_missing(store, value):  # type: ignore[no-untyped-def]
    for k in range(store.missing_count):
        if value == _float64(store.missing + 8 * k):
            return True
    return not np.isfinite(value)


@njit(**OPTIONS)
def _is_missing_text(store, place, length):  # type: ignore[no-untyped-def]
    if length != store.missing_length or length == 0:
        return False
    same = True
    for k in range(length):
        same &= _byte(place + k) == _byte(store.missing_text + k)
    return same


@njit(**OPTIONS)
def _cell(store, column):  # type: ignore[no-untyped-def]
    """(kind, address of the cells, address of the validity, row) of a column's cell; row −1 where there is no room."""
    table = store.columns + 40 * column
    row = _int64(store.rows + 8 * _int64(table + 8))
    if row >= _int64(table + 32):
        row = np.int64(-1)
    return _int64(table), _int64(table + 16), _int64(table + 24), row


@njit(**OPTIONS)
def _put_integer(store, column, value):  # type: ignore[no-untyped-def]
    kind, cells, valid, row = _cell(store, column)
    if row < 0:
        return
    if kind == _LONG:
        _put_int64(cells + 8 * row, value)
    elif kind == _INT:
        _put_int32(cells + 4 * row, np.int32(value))
    elif kind == _FLOAT:
        _put_float32(cells + 4 * row, np.float32(value))
    else:
        _put_float64(cells + 8 * row, np.float64(value))
    _put_uint8(valid + row, np.uint8(not _is_missing(store, np.float64(value))))


@njit(**OPTIONS)
def _put_float(store, column, value):  # type: ignore[no-untyped-def]
    kind, cells, valid, row = _cell(store, column)
    if row < 0:
        return
    if kind == _FLOAT:
        value = np.float64(np.float32(value))
        _put_float32(cells + 4 * row, np.float32(value))
    else:
        _put_float64(cells + 8 * row, value)
    _put_uint8(valid + row, np.uint8(not _is_missing(store, value)))


@njit(**OPTIONS)
def _put_place(store, column, at, length, known):  # type: ignore[no-untyped-def]
    _, cells, valid, row = _cell(store, column)
    if row >= 0:
        _put_int32(cells + 8 * row, np.int32(at))
        _put_int32(cells + 8 * row + 4, np.int32(length))
        _put_uint8(valid + row, np.uint8(known))


@njit(**OPTIONS)
def _put_byte(store, column, value):  # type: ignore[no-untyped-def]
    _, cells, valid, row = _cell(store, column)
    if row >= 0:
        _put_uint8(cells + row, np.uint8(value))
        _put_uint8(valid + row, np.uint8(1))


@njit(**OPTIONS)
def _read_integer(data, at, end, code, column, size, store):  # type: ignore[no-untyped-def]
    value, at = _long(data, at, end)
    if at < 0:
        return at
    if code == ENUM:
        return at if 0 <= value < size else BAD_BRANCH
    small = code == INT or (column >= 0 and _int64(store.columns + 40 * column) == _INT)
    if small and not (-2147483648 <= value <= 2147483647):
        return BAD_NUMBER
    if column >= 0:
        _put_integer(store, column, value)
    return at


@njit(**OPTIONS)
def _read_float(data, at, end, code, column, store):  # type: ignore[no-untyped-def]
    size = 4 if code == FLOAT else 8
    if size > end - at:
        return ENDS_EARLY
    if column >= 0:
        value = np.float64(_float32(data + at)) if code == FLOAT else _float64(data + at)
        _put_float(store, column, value)
    return at + size


@njit(**OPTIONS)
def _read_bytes(data, at, end, code, column, store):  # type: ignore[no-untyped-def]
    length, at = _length(data, at, end)
    if at < 0:
        return at
    if code == STRING and not _is_utf8(data + at, data + at + length):
        return BAD_TEXT
    if column >= 0:
        if code == STRING and length > MAX_TEXT:
            return TOO_MANY
        known = not (code == STRING and _is_missing_text(store, data + at, length))
        _put_place(store, column, at, length, known)
    return at + length


@njit(**OPTIONS)
def _read_boolean(data, at, end, column, store):  # type: ignore[no-untyped-def]
    if at >= end:
        return ENDS_EARLY
    value = _byte(data + at)
    if value > 1:
        return BAD_BOOLEAN
    if column >= 0:
        _put_byte(store, column, value)
    return at + 1


@njit(**OPTIONS)
def _value(data, at, end, op, store):  # type: ignore[no-untyped-def]
    code, column, null_branch, size = _int64(op), _int64(op + 8), _int64(op + 16), _int64(op + 24)
    if null_branch >= 0:
        branch, at = _long(data, at, end)
        if at < 0 or branch == null_branch:
            return at
        if branch != 1 - null_branch:
            return BAD_BRANCH
    if code in (FLOAT, DOUBLE):
        return _read_float(data, at, end, code, column, store)
    if code in (INT, LONG, ENUM):
        return _read_integer(data, at, end, code, column, size, store)
    if code in (STRING, BYTES):
        return _read_bytes(data, at, end, code, column, store)
    if code == BOOLEAN:
        return _read_boolean(data, at, end, column, store)
    return at + size if size <= end - at else ENDS_EARLY


@njit(**OPTIONS)
def _block(data, at, end):  # type: ignore[no-untyped-def]
    """Items of an array's next block, 0 at its end; a negative count is followed by a size in bytes."""
    count, at = _long(data, at, end)
    if at >= 0 and count < 0:
        count = -count
        _, at = _length(data, at, end)
    if at >= 0 and (count > MAX_ITEMS or count < 0):
        return count, TOO_MANY
    if at >= 0 and count > end - at:
        return count, ENDS_EARLY
    return count, at


@njit(**OPTIONS)
def _next_item(data, at, end, op, store, state):  # type: ignore[no-untyped-def]
    """On to an array's next item: (where in the body, whether there is one)."""
    slot, level = _int64(op + 8), _int64(op + 24)
    counts, first, left = state[0], state[1], state[2] + 8 * slot
    if _int64(left) == 0:
        count, at = _block(data, at, end)
        if at < 0 or count == 0:
            return at, False
        _put_int64(left, count)
    _put_int64(left, _int64(left) - 1)
    if level > 0:
        row = _int64(counts + 8 * level)
        _put_int64(store.rows + 8 * level, row)
        _put_int64(counts + 8 * level, row + 1)
        if row - _int64(first + 8 * level) >= min(MAX_ROWS, FEW_ROWS + end // ROW_BYTES):
            return TOO_MANY, False
    return at, True


@njit(**OPTIONS)
def _walk_one(data, end, operations, store, state):  # type: ignore[no-untyped-def]
    """(the end of the body or what is wrong, operation)."""
    at, pc = np.int64(0), np.int64(0)
    while at >= 0:
        op = operations + 32 * pc
        code = _int64(op)
        if code >= BOOLEAN:
            at = _value(data, at, end, op, store)
            if at < 0:
                break
            pc += 1
        elif code == JUMP:
            pc = _int64(op + 16)
        elif code == UNION:
            branch, at = _long(data, at, end)
            if at >= 0 and not 0 <= branch < _int64(op + 16):
                return BAD_BRANCH, pc
            if at >= 0:
                pc += 1 + branch
        elif code == ITEMS:
            at, more = _next_item(data, at, end, op, store, state)
            if at >= 0:
                pc = pc + 1 if more else _int64(op + 16)
        elif code == ARRAY:
            _put_int64(state[2] + 8 * _int64(op + 8), np.int64(0))
            pc += 1
        elif code == MARK:
            _put_byte(store, _int64(op + 8), 1)
            pc += 1
        else:
            return (at if at == end else LEFT_OVER), pc
    return at, pc


@njit(**OPTIONS)
def _forget(columns, level, first, last):  # type: ignore[no-untyped-def]
    """Takes back the rows of a body that turned out to be bad."""
    for column in range(len(columns)):
        if columns[column, 1] == level:
            for row in range(first, min(last, columns[column, 4])):
                _put_uint8(columns[column, 3] + row, np.uint8(0))


@njit(**OPTIONS)
def walk(addresses, lengths, entries, operations, columns, missing, missing_text, starts, status):  # type: ignore[no-untyped-def]
    """Read every body; `starts[level, row]` is its first row in a level, `status[row]` (0 or what is wrong, operation).

    Rows beyond a level's capacity are counted in `starts` but not written: the caller then gives more room and walks
    again.
    """
    levels = len(starts)
    counts, rows, first = np.zeros(levels, np.int64), np.zeros(levels, np.int64), np.zeros(levels, np.int64)
    left = np.zeros(MAX_SLOTS, np.int64)
    store = Store(
        columns.ctypes.data, rows.ctypes.data, missing.ctypes.data, len(missing), missing_text.ctypes.data,
        len(missing_text),
    )  # fmt: skip
    state = (counts.ctypes.data, first.ctypes.data, left.ctypes.data)
    for row in range(len(addresses)):
        rows[0] = row
        first[:] = counts
        starts[:, row] = counts
        program = operations.ctypes.data + 32 * entries[row]
        at, pc = _walk_one(addresses[row], lengths[row], program, store, state)
        status[row, 0], status[row, 1] = min(at, 0), pc
        if at < 0:
            _forget(columns, 0, row, row + 1)
            for level in range(1, levels):
                _forget(columns, level, first[level], counts[level])
            counts[:] = first
    starts[:, len(addresses)] = counts


@njit(**OPTIONS)
def gather(addresses, owners, places, valid, offsets, text):  # type: ignore[no-untyped-def]
    """Copy the strings at `places` (offset, length) in the bodies of `owners` one behind the other into `text`."""
    for k in range(len(owners)):
        if valid[k]:
            source = addresses[owners[k]] + places[k, 0]
            for j in range(places[k, 1]):
                text[offsets[k] + j] = _byte(source + j)
