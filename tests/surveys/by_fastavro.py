"""What fastavro, which shares no code with the compiled reader, makes of packets."""

from __future__ import annotations

import io
from typing import Any

import fastavro

from raybroker.alerts import Packet

NIGHTS = ("public_20181129", "public_20191231", "public_20200202", "public_20231012", "selected_20231018")


def record_of(packet: Packet) -> dict[str, Any]:
    """A container's one record, by fastavro."""
    (record,) = fastavro.reader(io.BytesIO(packet.value))
    return record


def container_of(record: dict[str, Any], schema: dict[str, Any], codec: str = "null") -> bytes:
    """A record in a container, by fastavro."""
    out = io.BytesIO()
    fastavro.writer(out, fastavro.parse_schema(schema), [record], codec=codec)
    return out.getvalue()
