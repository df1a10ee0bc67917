"""`alerts`: one table per survey, one row per received offset, one commit per turn. The archive's truth.

A commit carries, as application transactions, the position that each topic-partition has reached. `append` commits
only if the stored positions are those that the worker itself read or committed last; else another worker owns the
partition now, and the turn is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

from raybroker.archive import columns, delta
from raybroker.errors import ArchiveError, FencedError
from raybroker.places import Place

ROW = pa.schema(
    [
        ("outcome", pa.string()),  # scored, rejected, failed, dead or duplicate
        ("reason", pa.string()),  # the cut's name, or why for a person; null where it was scored
        ("segment", pa.string()),
        ("position", pa.int32()),  # of the packet in the segment
        ("plan", pa.string()),  # digest
        ("published", pa.int64()),  # Kafka's timestamp, ms
        ("stored", pa.int64()),  # when the turn wrote it, ms
        ("origin", pa.string()),  # the topic as made once: its `event_id` in the log `topics`
    ]
)


def row_schema(batch: pa.Schema) -> pa.Schema:
    """The archive's columns for rows of a batch: `ROW`, then the batch's."""
    return pa.schema([*ROW, *batch])


class AlertsTable:
    """The table of one survey, as one worker, or one reader, has it open.

    `schema` is all columns of the plan's rows (`row_schema`): the table is made, or grown to hold them, at once. Columns
    that only another plan gives are null in what this one appends. Without `schema` (a reader) it is the table's, as
    it is now; there must be one.
    """

    def __init__(self, root: Place, survey: str, schema: pa.Schema | None = None) -> None:
        self.folder = root / survey / "alerts"
        self._positions = delta.Positions(self.folder)
        self._lock = threading.Lock()  # between check and commit nobody may move the handle
        if schema is None:
            self._handle = delta.open_table(self.folder)
            self.schema = delta.schema_of(self._handle)
        else:
            self.schema = columns.normal(schema)
            self._handle = delta.create(self.folder, self.schema)
            delta.grow(self.folder, self._handle, self.schema)

    def positions(self, app_ids: Iterable[str], *, fresh: bool = True) -> dict[str, int]:
        """The stored position of each partition that has one; not `fresh`: as of the version that was read last."""
        wanted = list(app_ids)

        def look() -> dict[str, int | None]:
            return {app_id: self._positions.of(self._handle, app_id) for app_id in wanted}

        try:
            found = delta.repeat(self.folder, self._handle, look) if fresh else look()
        except delta.Conflict as error:
            raise ArchiveError(
                f"the log of {self.folder} was cleaned away under its reader: {error}"
            ) from error
        return {app_id: position for app_id, position in found.items() if position is not None}

    def append(self, rows: pa.Table, expected: Mapping[str, int | None], new: Mapping[str, int]) -> int:
        """Commit a turn: its rows and the new positions, all or nothing, on the disk when this returns.

        `expected` is what this worker read or committed last (None: nothing is stored yet), for the same partitions as
        `new`. Raises FencedError where the table says otherwise, ArchiveError for rows of another schema; nothing is
        in the table then. Returns the table's version.
        """
        _check_positions(expected, new)
        files = [delta.write_file(self.folder, self._conform(rows))] if len(rows) else []

        def attempt() -> int:
            self._check_owner(expected)
            self._check_schema()
            return delta.commit(self.folder, self._handle, files, new)

        with self._lock:
            return delta.repeat(self.folder, self._handle, attempt)

    def tail(
        self, since: int, names: Iterable[str] | None = None, from_night: int | None = None
    ) -> tuple[pa.Table, int]:
        """Rows that commits after version `since` added, and the version up to which they reach.

        Rows that compaction rewrote do not come again. If the log does not reach back to `since` (it keeps a quarter of
        an hour) or `since` is -1, all rows of the table come. `names` may hold struct fields: 'ztf.rb'. With
        `from_night`, rows of earlier nights are left out (those of no night, the dead, are not).
        """
        news = delta.added(self.folder, since)
        if news is not None:
            with suppress(FileNotFoundError):  # compacted and cleaned away since
                return self._read(news[0], names, from_night), news[1]
        return self.read(names, from_night)

    def read(self, names: Iterable[str] | None = None, from_night: int | None = None) -> tuple[pa.Table, int]:
        """All rows, or those from a night on, and the version that was read."""
        with self._lock:
            delta.update(self._handle)
            files, version = delta.live(self._handle), self._handle.version()
        kept = [f.path for f in files if from_night is None or f.most.get("night", from_night) >= from_night]
        return self._read(kept, names, from_night), version

    def pieces(self, names: Iterable[str]) -> Iterator[pa.Table]:
        """All rows of one version, a file at a time, for whoever looks through millions of them."""
        with self._lock:
            delta.update(self._handle)
            paths = [file.path for file in delta.live(self._handle)]
        wanted = list(names)
        return (self._read([path], wanted, None) for path in paths)

    def _read(self, paths: Sequence[str], names: Iterable[str] | None, from_night: int | None) -> pa.Table:
        wanted = columns.select(self.schema, names)
        if from_night is None:
            return delta.read(self.folder, paths, wanted)
        extra = [] if "night" in wanted.names else [self.schema.field("night")]
        rows = delta.read(self.folder, paths, pa.schema([*wanted, *extra]))
        night = pc.field("night")
        return rows.filter((night >= from_night) | night.is_null()).select(wanted.names)

    def _conform(self, rows: pa.Table) -> pa.Table:
        given = columns.normal(rows.schema)
        if extra := columns.missing(self.schema, given, str(self.folder)):
            raise ArchiveError(
                f"column '{extra[0].name}' ({extra[0].type}) is not in the plan that opened {self.folder}"
            )
        if lost := columns.missing(given, self.schema, str(self.folder)):
            raise ArchiveError(
                f"rows for {self.folder} lack column '{lost[0].name}' ({lost[0].type}), or a part of it"
            )
        return columns.conform(rows, self.schema)

    def _check_owner(self, expected: Mapping[str, int | None]) -> None:
        for app_id, position in expected.items():
            stored = self._positions.of(self._handle, app_id)
            if stored != position:
                raise FencedError(
                    f"partition {app_id} is at {stored} in {self.folder}, this worker left it at {position}: "
                    "another worker has it now"
                )

    def _check_schema(self) -> None:
        """deltalake would drop a column that the table lacks without a word, and take a wrong type."""
        if new := columns.missing(delta.schema_of(self._handle), self.schema, str(self.folder)):
            raise ArchiveError(f"the table at {self.folder} has no column '{new[0].name}' ({new[0].type})")


def _check_positions(expected: Mapping[str, int | None], new: Mapping[str, int]) -> None:
    if expected.keys() != new.keys():
        raise ArchiveError(f"positions were expected of {sorted(expected)} but are given for {sorted(new)}")
    for app_id, position in new.items():
        last = expected[app_id]
        if last is not None and position <= last:
            raise ArchiveError(f"partition {app_id}: position {position} does not come after {last}")
