"""The rows of a turn: every packet becomes exactly one, whatever became of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker.alerts import Packet
from raybroker.pipeline import Outcome


class Rows:
    """Collects the archive's rows of one batch of packets: every packet becomes exactly one."""

    def __init__(
        self, schema: pa.Schema, packets: list[Packet], plan: str, origins: Mapping[str, str]
    ) -> None:
        self.schema, self.packets, self.plan, self.origins = schema, packets, plan, origins
        self.unread: set[int] = set()
        self._tables: list[pa.Table] = []
        self._dead: list[tuple[int, str]] = []

    def dead(self, place: int, reason: str) -> None:
        self.unread.add(place)
        self._dead.append((place, reason))

    def duplicates(self, batch: pa.RecordBatch, places: np.ndarray) -> None:
        self._add(batch, places, ["duplicate"] * len(places), [None] * len(places))

    def outcome(self, batch: pa.RecordBatch, places: np.ndarray, outcome: Outcome) -> None:
        rejected = sorted(outcome.rejected_by)
        names = [outcome.rejected_by[row] for row in rejected]
        self._add(
            batch.take(pa.array(rejected, pa.int64())), places[rejected], ["rejected"] * len(names), names
        )
        said: dict[int, list[str]] = {}
        for failure in outcome.failures:
            said.setdefault(failure.row, []).append(f"{failure.step}: {failure.error}")
        reasons = ["; ".join(said[row]) if row in said else None for row in outcome.kept_rows.tolist()]
        results = ["scored" if reason is None else "failed" for reason in reasons]
        self._add(outcome.kept, places[outcome.kept_rows], results, reasons)

    def _add(
        self, batch: pa.RecordBatch, places: np.ndarray, outcomes: Sequence[str], reasons: Sequence[Any]
    ) -> None:
        if len(places):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            self._tables.append(self._table(columns, places.tolist(), outcomes, reasons))

    def _table(
        self, columns: Mapping[str, Any], places: list[int], outcomes: Sequence[str], reasons: Sequence[Any]
    ) -> pa.Table:
        packets = [self.packets[place] for place in places]
        own = {
            "outcome": outcomes,
            "reason": reasons,
            "position": places,
            "plan": [self.plan] * len(places),
            "published": [packet.timestamp_ms for packet in packets],
            "stored": [int(time.time() * 1000)] * len(places),
            "origin": [self.origins.get(packet.topic) for packet in packets],
            "topic": [packet.topic for packet in packets],
            "partition": [packet.partition for packet in packets],
            "offset": [packet.offset for packet in packets],
        }
        arrays = [_array(own.get(f.name, columns.get(f.name)), f.type, len(places)) for f in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def add(self, segment: str, first: int) -> pa.Table:
        """The finished rows, in the order of the packets; `first` is the batch's place in the segment."""
        if self._dead:
            places, reasons = zip(*self._dead, strict=True)
            self._tables.append(self._table({}, list(places), ["dead"] * len(places), reasons))
        table = pa.concat_tables(self._tables).sort_by("position")
        position = pc.add(table["position"], pa.scalar(first, pa.int32()))
        names = table.schema.names
        table = table.set_column(names.index("position"), self.schema.field("position"), position)
        column = pa.chunked_array([pa.repeat(pa.scalar(segment), len(table))])
        return table.set_column(names.index("segment"), self.schema.field("segment"), column)


def _array(given: Any, kind: pa.DataType, rows: int) -> pa.Array:
    if given is None:
        return pa.nulls(rows, kind)
    return given if isinstance(given, pa.Array) else pa.array(given, kind)
