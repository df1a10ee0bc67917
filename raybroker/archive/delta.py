"""How the archive talks to Delta Lake: our own Parquet files, committed by one transaction.

What was measured with deltalake 1.6.6, and is relied on here:

- A commit does not move its own handle: `update_incremental` first, then check, then commit on the same handle.
- A commit is refused when, since the version of its handle, another one used one of its application ids, or changed the
  schema. It is not refused for other appends, nor for a file that somebody else has removed meanwhile.
- A commit lists the whole log folder (10 µs per file), so logs are kept for a quarter of an hour only.
- deltalake does not sync files: we do.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, RemoveAction, Transaction

from raybroker.archive import columns, durable
from raybroker.errors import ArchiveError

CONFIGURATION = {
    "delta.checkpointInterval": "50",
    "delta.logRetentionDuration": "interval 15 minutes",
    "delta.deletedFileRetentionDuration": "interval 1 hours",
}
ATTEMPTS = 50
LOG = "_delta_log"
T = TypeVar("T")


class Conflict(Exception):
    """Another commit came between, or retries ran out: reload, check, repeat. Never leaves the archive."""


class File(NamedTuple):
    """A live Parquet file and what its statistics say; a missing one is not known."""

    path: str
    size: int
    written_ms: int
    rows: int
    least: Mapping[str, Any]
    most: Mapping[str, Any]


def exists(folder: Path) -> bool:
    """Whether there is a table."""
    return (folder / LOG / f"{0:020d}.json").exists() or (folder / LOG / "_last_checkpoint").exists()


def open_table(folder: Path) -> DeltaTable:
    """A fresh handle."""
    try:
        return DeltaTable(str(folder))
    except TableNotFoundError:
        raise ArchiveError(f"there is no table at {folder}") from None


def create(folder: Path, schema: pa.Schema) -> DeltaTable:
    """The table of a folder, made if it is not there; of several processes at once one makes it."""
    if not exists(folder):
        durable.make_folder(folder)
        try:
            DeltaTable.create(str(folder), schema=Schema.from_arrow(schema), configuration=CONFIGURATION)
            _sync_log(folder, -1, 0)
        except DeltaError as error:
            if not exists(folder):
                raise ArchiveError(f"the table at {folder} cannot be made: {error}") from error
    return open_table(folder)


def schema_of(handle: DeltaTable) -> pa.Schema:
    """The table's schema at the handle's version."""
    return pa.schema(handle.schema().to_arrow())


def grow(folder: Path, handle: DeltaTable, schema: pa.Schema) -> None:
    """Add what `schema` has and the table has not, fields of structs too; a different type is refused."""

    def attempt() -> None:
        if new := columns.missing(schema_of(handle), schema, str(folder)):
            before = handle.version()
            try:
                handle.alter.add_columns(list(Schema.from_arrow(pa.schema(new)).fields))
            except CommitFailedError as error:
                raise Conflict(str(error)) from error
            except DeltaError as error:  # as for two names that differ in case alone
                names = ", ".join(f"'{field.name}'" for field in new)
                raise ArchiveError(f"the table at {folder} cannot take column {names}: {error}") from error
            handle.update_incremental()
            _sync_log(folder, before, handle.version())

    repeat(folder, handle, attempt)


def write_file(
    folder: Path, rows: pa.Table, *, prefix: str = "", data_change: bool = True, compression: str = "lz4"
) -> AddAction:
    """Write rows as a Parquet file that is on the disk when this returns; the action makes it part of a commit."""
    name = f"{prefix}{uuid.uuid4().hex}.parquet"
    path = folder / name
    options = columns.parquet_options(rows.schema, min(len(rows), columns.ROW_GROUP))
    pq.write_table(rows, path, compression=compression, **options)
    durable.sync(path)
    durable.sync(folder)
    stats = json.dumps(columns.statistics(rows))
    return AddAction(name, path.stat().st_size, {}, int(time.time() * 1000), data_change, stats)


def repeat(folder: Path, handle: DeltaTable, attempt: Callable[[], T]) -> T:
    """Reload, check, commit, until no other commit comes between; `attempt` does the last two on the handle as it is."""
    for number in range(ATTEMPTS):
        handle.update_incremental()
        try:
            return attempt()
        except Conflict:
            time.sleep(random.uniform(0, 0.005 * number))
    raise ArchiveError(f"the table at {folder} took no commit: other writers always came first")


def commit(
    folder: Path,
    handle: DeltaTable,
    actions: Sequence[AddAction | RemoveAction],
    transactions: Mapping[str, int],
) -> int:
    """One commit on this handle as it stands; returns a version that holds it, the handle's afterwards.

    Raises `Conflict` if another commit used one of the application ids, or changed the schema, since the handle's
    version. When it returns the commit is on the disk.
    """
    before = handle.version()
    properties = CommitProperties(
        app_transactions=[Transaction(app, version) for app, version in transactions.items()]
    )
    try:
        handle.create_write_transaction(
            list(actions), "append", handle.schema(), commit_properties=properties
        )
    except CommitFailedError as error:
        raise Conflict(str(error)) from error
    handle.update_incremental()
    _sync_log(folder, before, handle.version())
    return int(handle.version())


def live(handle: DeltaTable) -> list[File]:
    """The files of the handle's version."""
    actions = pa.table(handle.get_add_actions()).select(
        ["path", "size_bytes", "modification_time", "num_records", "min", "max"]
    )
    return [_file(*row.values()) for row in actions.to_pylist()]


def _file(
    path: str, size: int, written_ms: int, rows: int, least: Mapping[str, Any], most: Mapping[str, Any]
) -> File:
    return File(path, size, written_ms, rows, _known(least), _known(most))


def _known(bounds: Mapping[str, Any] | None) -> dict[str, Any]:
    """Without the columns that are null in the whole file, as the night is where all packets are dead."""
    return {name: bound for name, bound in (bounds or {}).items() if bound is not None}


def added(folder: Path, since: int) -> tuple[list[str], int] | None:
    """Paths of the files that commits after version `since` added as new rows, and the newest version.

    None where the log does not reach back so far. It reads the commits' own files: without news it costs two looks.
    """
    if since < 0:
        return None
    version, paths = since, []
    while (text := _read_commit(folder, version + 1)) is not None:
        version += 1
        actions = (json.loads(line).get("add") for line in text.splitlines() if line.startswith('{"add"'))
        paths += [add["path"] for add in actions if add["dataChange"]]
    if version == since and _checkpoint_version(folder) > since:
        return None
    return paths, version


def read(folder: Path, paths: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Rows of some files in the columns of `schema`; a column that a file does not have is null."""
    parts = [columns.conform(_read_file(folder / path, schema), schema) for path in paths]
    return pa.concat_tables(parts) if parts else schema.empty_table()


def _read_file(path: Path, schema: pa.Schema) -> pa.Table:
    with pq.ParquetFile(path) as file:
        found = columns.present(file.schema_arrow, schema)
        return file.read(columns=columns.leaves(found), use_threads=False)


def _read_commit(folder: Path, version: int) -> str | None:
    try:
        return (folder / LOG / f"{version:020d}.json").read_text()
    except FileNotFoundError:
        return None


def _checkpoint_version(folder: Path) -> int:
    try:
        return int(json.loads((folder / LOG / "_last_checkpoint").read_text())["version"])
    except (FileNotFoundError, ValueError):  # being replaced at this moment: the next look finds it
        return -1


def _sync_log(folder: Path, after: int, to: int) -> None:
    for version in range(after + 1, to + 1):
        with suppress(FileNotFoundError):
            durable.sync(folder / LOG / f"{version:020d}.json")
    durable.sync(folder / LOG)
