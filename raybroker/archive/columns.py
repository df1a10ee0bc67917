"""Columns as Parquet and Delta keep them: which types there are, how schemas grow, how files are encoded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raybroker.errors import ArchiveError, UnknownError, did_you_mean

REPETITIVE = {
    *("survey", "topic", "outcome", "reason", "band", "kind", "plan", "segment", "model", "strategy"),
    *("state", "source", "who", "step", "cluster", "origin"),
}
LOOKED_UP = (
    "alert_id",
    "object_id",
    "ss_object_id",
)  # by exact value: these get a Bloom filter, which DuckDB reads
WITH_STATISTICS = (
    *("night", "healpix", "mjd", "partition", "offset", "published", "stored"),
    *("alert_id", "event_id", "number"),
)
ROW_GROUP = 20_000
_REFUSED = {
    "unsigned": "Delta has no unsigned integers: use the next larger signed one",
    "halffloat": "Delta has no half floats: use float32",
    "null": "a column needs a type: say which",
    "nanoseconds": "times are kept to the microsecond: use timestamp('us', 'UTC')",
}


def normal(schema: pa.Schema) -> pa.Schema:
    """The schema as it comes back from the archive (no dictionaries, no large types), or an ArchiveError."""
    return pa.schema([pa.field(f.name, _normal(f.type, f.name)) for f in schema])


def _normal(kind: pa.DataType, where: str) -> pa.DataType:
    if refusal := _refusal(kind):
        raise ArchiveError(f"column '{where}' is {kind}: {refusal}")
    if pa.types.is_dictionary(kind):
        return _normal(kind.value_type, where)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_map(kind):
        return pa.map_(_normal(kind.key_type, f"{where}.key"), _normal(kind.item_type, f"{where}.value"))
    if is_list(kind):
        return pa.list_(_normal(kind.value_type, f"{where}[]"))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _normal(f.type, f"{where}.{f.name}")) for f in fields(kind)])
    return kind


def _refusal(kind: pa.DataType) -> str:
    if pa.types.is_unsigned_integer(kind):
        return _REFUSED["unsigned"]
    if pa.types.is_float16(kind):
        return _REFUSED["halffloat"]
    if pa.types.is_null(kind) or (pa.types.is_struct(kind) and kind.num_fields == 0):
        return _REFUSED["null"]
    return _REFUSED["nanoseconds"] if pa.types.is_timestamp(kind) and kind.unit == "ns" else ""


def fields(kind: pa.DataType) -> list[pa.Field]:
    """The fields of a struct type."""
    return [kind.field(i) for i in range(kind.num_fields)]


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's lists (a map is not)."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def missing(have: pa.Schema, want: pa.Schema, where: str) -> list[pa.Field]:
    """The fields of `want` that `have` does not hold, whole or in part; a different type is an ArchiveError."""
    new = []
    for field in want:
        at = have.get_field_index(field.name)
        if at < 0 or not _holds(have.field(at).type, field.type, field.name, where):
            new.append(field)
    return new


def _holds(have: pa.DataType, want: pa.DataType, name: str, where: str) -> bool:
    if pa.types.is_struct(have) and pa.types.is_struct(want):
        inner = {f.name: f.type for f in fields(have)}
        held = [
            f.name in inner and _holds(inner[f.name], f.type, f"{name}.{f.name}", where) for f in fields(want)
        ]
        return all(held)
    if is_list(have) and is_list(want):
        return _holds(have.value_type, want.value_type, f"{name}[]", where)
    if have != want:
        raise ArchiveError(
            f"column '{name}' is {want} here, but {have} in the table at {where}: "
            "a step whose types change takes a new name"
        )
    return True


def select(schema: pa.Schema, names: Iterable[str] | None) -> pa.Schema:
    """The schema of some columns; 'ztf.rb' gives the struct `ztf` with that field alone. None is all."""
    if names is None:
        return schema
    wanted: dict[str, list[str]] = {}
    for name in names:
        head, _, rest = name.partition(".")
        if schema.get_field_index(head) < 0:
            raise UnknownError(f"there is no column '{head}'{did_you_mean(head, schema.names)}")
        wanted.setdefault(head, []).append(rest)
    return pa.schema([_narrow(schema.field(head), rests) for head, rests in wanted.items()])


def _narrow(field: pa.Field, rests: Sequence[str]) -> pa.Field:
    if "" in rests or not pa.types.is_struct(field.type):
        return field
    return pa.field(field.name, pa.struct(list(select(pa.schema(fields(field.type)), rests))))


def present(found: pa.Schema, wanted: pa.Schema) -> pa.Schema:
    """The part of `wanted` that a file with the schema `found` has."""
    return pa.schema([f for f in (_present(found, field) for field in wanted) if f is not None])


def _present(found: pa.Schema, field: pa.Field) -> pa.Field | None:
    at = found.get_field_index(field.name)
    if at < 0 or not pa.types.is_struct(field.type):
        return None if at < 0 else field
    inner = present(pa.schema(fields(found.field(at).type)), pa.schema(fields(field.type)))
    return pa.field(field.name, pa.struct(list(inner))) if len(inner) else None


def leaves(schema: pa.Schema) -> list[str]:
    """Dotted paths of a schema's struct fields, as Parquet readers select columns."""
    return [path for field in schema for path in _leaves(field)]


def _leaves(field: pa.Field) -> list[str]:
    if not pa.types.is_struct(field.type):
        return [field.name]
    return [f"{field.name}.{path}" for inner in fields(field.type) for path in _leaves(inner)]


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in exactly these columns: fields that it does not have are null, encodings are undone."""
    return pa.Table.from_arrays([_conform_column(table, field) for field in schema], schema=schema)


def _conform_column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    at = table.schema.get_field_index(field.name)
    if at < 0:
        return pa.chunked_array([pa.nulls(len(table), field.type)])
    return pa.chunked_array(
        [_conform(chunk, field.type) for chunk in table.column(at).chunks], type=field.type
    )


def _conform(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind:
        return array
    if pa.types.is_struct(kind) and pa.types.is_struct(array.type):
        have = {f.name: i for i, f in enumerate(fields(array.type))}
        inner = [
            _conform(pc.struct_field(array, [have[f.name]]), f.type)
            if f.name in have
            else pa.nulls(len(array), f.type)
            for f in fields(kind)
        ]
        return pa.StructArray.from_arrays(inner, fields=fields(kind), mask=array.is_null())
    if pa.types.is_list(kind) and pa.types.is_list(array.type):
        return _conform_list(array, kind)
    return array.cast(kind)


def _conform_list(array: pa.ListArray, kind: pa.DataType) -> pa.Array:
    if array.offset:
        array = pa.concat_arrays([array])  # `offsets` with a mask needs an array that starts at 0
    values = _conform(array.values, kind.value_type)
    return pa.ListArray.from_arrays(array.offsets, values, type=kind, mask=array.is_null())


def parquet_options(schema: pa.Schema, rows_of_group: int) -> dict[str, Any]:
    """How a file is encoded: dictionaries for repetitive strings alone, byte-stream split for floats."""
    paths = [(path, kind) for field in schema for path, kind in _parquet_leaves(field.name, field.type)]
    bloom = {name: {"ndv": max(rows_of_group, 1), "fpp": 0.01} for name in LOOKED_UP if name in schema.names}
    return {
        "use_dictionary": [
            p for p, kind in paths if p.rpartition(".")[2] in REPETITIVE and pa.types.is_string(kind)
        ],
        "use_byte_stream_split": [path for path, kind in paths if pa.types.is_floating(kind)],
        "bloom_filter_options": bloom or None,
        "row_group_size": ROW_GROUP,
    }


def _parquet_leaves(path: str, kind: pa.DataType) -> list[tuple[str, pa.DataType]]:
    if pa.types.is_struct(kind):
        return [leaf for f in fields(kind) for leaf in _parquet_leaves(f"{path}.{f.name}", f.type)]
    if pa.types.is_map(kind):
        inner = {"key": kind.key_type, "value": kind.item_type}
        return [leaf for name, t in inner.items() for leaf in _parquet_leaves(f"{path}.key_value.{name}", t)]
    if is_list(kind):
        return _parquet_leaves(f"{path}.list.element", kind.value_type)
    return [(path, kind)]


def statistics(rows: pa.Table) -> dict[str, Any]:
    """Delta's statistics of a file: its rows, and least and greatest value of the columns that prune."""
    least, most, nulls = {}, {}, {}
    for name in WITH_STATISTICS:
        if name not in rows.schema.names:
            continue
        column = rows[name]
        low, high = pc.min_max(column).as_py().values()
        nulls[name] = column.null_count
        if low is not None and not (isinstance(low, float) and not math.isfinite(low + high)):
            least[name], most[name] = low, high
    return {"numRecords": len(rows), "minValues": least, "maxValues": most, "nullCount": nulls}
