"""Enriched alerts as packets for the output topics: Avro containers that any reader of the field opens.

The key is the alert id, so that a consumer (or a compacted topic) can drop a repeat. Cutouts stay in the archive.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.compute as pc

from raybroker.alerts import Packet

LEFT_OUT = {"cutouts", "segment", "position", "outcome", "reason", "stored", "published", "origin"}
PRIMITIVES = {
    pa.bool_(): "boolean",
    pa.int8(): "int",
    pa.int16(): "int",
    pa.int32(): "int",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.string(): "string",
    pa.large_string(): "string",
    pa.binary(): "bytes",
    pa.large_binary(): "bytes",
}


def route(rows: pa.Table, topics: Mapping[str, str]) -> dict[str, list[Packet]]:
    """Packets by topic: the rows in which the filter column of that name is true. `topics` maps filter to topic."""
    outputs: dict[str, list[Packet]] = {}
    for name, topic in topics.items():
        passed = rows.filter(pc.fill_null(rows[name], False))
        outputs.setdefault(topic, []).extend(packets(passed))
    return {topic: found for topic, found in outputs.items() if found}


def packets(rows: pa.Table) -> list[Packet]:
    """Each row as one packet: key alert id, value an Avro container of its columns."""
    kept = rows.select([name for name in rows.schema.names if name not in LEFT_OUT])
    parsed = _parsed(kept.schema)
    return [
        Packet(_container(parsed, row), key=row["alert_id"].encode()) for row in _renamed(kept.to_pylist())
    ]


def _container(parsed: Any, row: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.writer(out, parsed, [row], validator=False)
    return out.getvalue()


@cache
def _parsed(schema: pa.Schema) -> Any:
    fields = [_field(field, "alert") for field in schema]
    return fastavro.parse_schema({"type": "record", "name": "raybroker.alert", "fields": fields})


def _field(field: pa.Field, path: str) -> dict[str, Any]:
    return {
        "name": _name(field.name),
        "type": ["null", _type(field.type, f"{path}_{_name(field.name)}")],
        "default": None,
    }


def _type(kind: pa.DataType, path: str) -> Any:
    if pa.types.is_struct(kind):
        return {
            "type": "record",
            "name": path,
            "fields": [_field(kind.field(i), path) for i in range(kind.num_fields)],
        }
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return {"type": "array", "items": ["null", _type(kind.value_type, path)]}
    return PRIMITIVES[kind]


@cache
def _name(name: str) -> str:
    """An Avro name: letters, digits and underscores ('SN Ia' becomes 'SN_Ia')."""
    clean = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
    return f"_{clean}" if clean[:1].isdigit() else clean


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {_name(key): _renamed(inner) for key, inner in value.items()}
    return [_renamed(inner) for inner in value] if isinstance(value, list) else value
