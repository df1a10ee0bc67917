"""Fink's streams of ZTF alerts: the value is a record without a schema, and its schema (JSON) is the message key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raybroker import alerts
from raybroker.alerts import Decoded, Packet
from raybroker.errors import PacketError
from raybroker.surveys import fields, ztf
from raybroker.surveys.avro import Body, Reader

ADDED = fields.kinds(fields.FINK_ADDED)


class Fink:
    """ZTF alerts as the Fink broker sends them, with the scalars that it added; see `surveys.Survey`."""

    name = "fink"
    topics: tuple[str, ...] = (r"^fink_.*_ztf$",)

    def __init__(self) -> None:
        self.schema = alerts.schema(self.name, ztf.own_fields(ADDED))
        self._reader = Reader(ztf.wanted(ADDED), ztf.MISSING, b"null")
        self._writer = ztf.Writer(ADDED)
        self._key = b""

    def decode(self, packets: Sequence[Packet]) -> Decoded:
        return ztf.decode(self.name, self.schema, self._reader, packets, self._open)

    def encode(
        self, batch: pa.RecordBatch, cutouts: Mapping[str, Sequence[bytes]] | None = None
    ) -> list[Packet]:
        """Records without a schema, keyed by it."""
        records = self._writer.records(batch, self.name, cutouts or {})
        origins = ztf.origins(batch)
        return [
            Packet(self._writer.body(record), *origin, key=self._writer.schema)
            for record, origin in zip(records, origins, strict=True)
        ]

    def shared(self, packet: Packet) -> tuple[int, int]:
        return 0, len(packet.key or b"")

    def _open(self, packet: Packet) -> Body:
        if not packet.value:
            raise PacketError("the packet is empty" if packet.value == b"" else "the packet has no value")
        if not packet.key:
            raise PacketError("the packet has no key: Fink sends the schema of an alert as its key")
        # one key object for equal keys: hashing 41 kB per packet costs more than comparing them
        self._key = self._key if self._key == packet.key else packet.key
        return ztf.checked(self._reader, self._reader.program(self._key), memoryview(packet.value))


def looks_like(packet: Packet) -> bool:
    """Whether the key is a schema of ZTF's record."""
    key: Any = packet.key or b""
    return key.lstrip().startswith(b"{") and b'"candidate"' in key
