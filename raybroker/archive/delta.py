"""How the archive talks to Delta Lake: our own Parquet files, committed by one transaction.

What was measured with deltalake 1.6.6, and is relied on here:

- A commit does not move its own handle: `update_incremental` first, then check, then commit on the same handle.
- A commit is refused when, since the version of its handle, another one used one of its application ids, or changed the
  schema. It is not refused for other appends, nor for a file that somebody else has removed meanwhile.
- A commit lists the whole log folder (10 µs per file), so logs are kept for a quarter of an hour only.
- Cleaning the log after a commit raises `FileNotFoundError` where another process cleans too, and the commit stands:
  so commits leave it to compaction. Whatever else raises after a commit, we look whether it stands.
- deltalake does not sync files: we do.
- In an object store a commit is one PUT with `If-None-Match: *`: of two for one version the second is told so.
"""

from __future__ import annotations

import itertools
import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import (
    AddAction,
    CommitProperties,
    PostCommitHookProperties,
    RemoveAction,
    Transaction,
)

from raybroker.archive import columns, durable, store
from raybroker.errors import ArchiveError
from raybroker.places import Place

CONFIGURATION = {
    "delta.checkpointInterval": "50",
    "delta.logRetentionDuration": "interval 15 minutes",
    "delta.deletedFileRetentionDuration": "interval 1 hours",
}
ATTEMPTS = 50
# Compaction cleans the log, once a minute: in a store that is a request for each thousand names.
LATER = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
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


def exists(folder: Place) -> bool:
    """Whether there is a table."""
    return store.has(folder / LOG / f"{0:020d}.json") or store.has(folder / LOG / "_last_checkpoint")


def open_table(folder: Place) -> DeltaTable:
    """A fresh handle."""
    try:
        return DeltaTable(str(folder), storage_options=store.options(folder))
    except TableNotFoundError:
        raise ArchiveError(f"there is no table at {folder}") from None
    except DeltaError as error:
        raise _unreadable(str(folder), error) from error


def update(handle: DeltaTable) -> None:
    """Bring a handle to the newest version."""
    try:
        handle.update_incremental()
    except DeltaError as error:
        raise _unreadable(handle.table_uri, error) from error


def _unreadable(where: str, error: DeltaError) -> ArchiveError:
    said = str(error).partition("\n")[0]  # a backtrace follows
    return ArchiveError(f"the log of the table at {where} cannot be read: {said}")


def create(folder: Place, schema: pa.Schema) -> DeltaTable:
    """The table of a folder, made if it is not there; of several processes at once one makes it."""
    if not exists(folder):
        if isinstance(folder, Path):
            durable.make_folder(folder)
        try:
            DeltaTable.create(
                str(folder),
                schema=Schema.from_arrow(schema),
                configuration=CONFIGURATION,
                storage_options=store.options(folder),
            )
            _sync_log(folder, -1, 0)
        except DeltaError as error:
            if not exists(folder):
                raise ArchiveError(f"the table at {folder} cannot be made: {error}") from error
    return open_table(folder)


def schema_of(handle: DeltaTable) -> pa.Schema:
    """The table's schema at the handle's version."""
    return pa.schema(handle.schema().to_arrow())


def grow(folder: Place, handle: DeltaTable, schema: pa.Schema) -> None:
    """Add what `schema` has and the table has not, fields of structs too; a different type is refused."""

    def attempt() -> None:
        if new := columns.missing(schema_of(handle), schema, str(folder)):
            before = handle.version()
            try:
                fields = list(Schema.from_arrow(pa.schema(new)).fields)
                handle.alter.add_columns(fields, post_commithook_properties=LATER)
            except CommitFailedError as error:
                raise Conflict(str(error)) from error
            except DeltaError as error:  # as for two names that differ in case alone
                names = ", ".join(f"'{field.name}'" for field in new)
                raise ArchiveError(f"the table at {folder} cannot take column {names}: {error}") from error
            update(handle)
            _sync_log(folder, before, handle.version())

    repeat(folder, handle, attempt)


def write_file(
    folder: Place, rows: pa.Table, *, prefix: str = "", data_change: bool = True, compression: str = "lz4"
) -> AddAction:
    """Write rows as a Parquet file that is kept when this returns; the action makes it part of a commit."""
    name = f"{prefix}{uuid.uuid4().hex}.parquet"
    options = columns.parquet_options(rows.schema, min(len(rows), columns.ROW_GROUP))
    size = _write_parquet(folder / name, rows, compression=compression, **options)
    stats = json.dumps(columns.statistics(rows))
    return AddAction(name, size, {}, int(time.time() * 1000), data_change, stats)


def _write_parquet(place: Place, rows: pa.Table, **options: Any) -> int:
    """Under its own name at once: nobody looks at it before a commit names it."""
    if isinstance(place, Path):
        pq.write_table(rows, place, **options)
        durable.sync(place)
        durable.sync(place.parent)
        return place.stat().st_size
    with store.sink(place) as file:
        pq.write_table(rows, file, **options)
        return int(file.tell())


def repeat(folder: Place, handle: DeltaTable, attempt: Callable[[], T]) -> T:
    """Reload, check, commit, until no other commit comes between; `attempt` does the last two on the handle as it is."""
    longest = 0.005 if isinstance(folder, Path) else 0.05  # about the time that a commit takes
    for number in range(ATTEMPTS):
        update(handle)
        try:
            return attempt()
        except Conflict:
            time.sleep(random.uniform(0, longest * number))
    raise ArchiveError(f"the table at {folder} took no commit: other writers always came first")


def commit(
    folder: Place,
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
            list(actions),
            "append",
            handle.schema(),
            commit_properties=properties,
            post_commithook_properties=LATER,
        )
    except CommitFailedError as error:
        raise Conflict(str(error)) from error
    except (DeltaError, OSError) as error:  # a disk that is full, a store that is away
        if not _stands(handle, actions, transactions):
            raise ArchiveError(f"the table at {folder} took no commit: {error}") from error
    update(handle)
    _sync_log(folder, before, handle.version())
    return int(handle.version())


def transaction(handle: DeltaTable, app_id: str) -> int | None:
    """The position of an application id as of the handle's version, None if it has none.

    Raises `Conflict` where the log was cleaned away under the handle: deltalake reads it only now.
    """
    try:
        return handle.transaction_version(app_id)
    except DeltaError as error:
        raise Conflict(str(error)) from error


def _stands(
    handle: DeltaTable, actions: Sequence[AddAction | RemoveAction], transactions: Mapping[str, int]
) -> bool:
    """Whether a commit that raised is in the table after all, as where only its checkpoint could not be written."""
    with suppress(DeltaError, OSError):
        handle.update_incremental()
        if new := {action.path for action in actions if isinstance(action, AddAction)}:
            return new <= {file.path for file in live(handle)}
        return all(handle.transaction_version(app) == version for app, version in transactions.items())
    return False


class Positions:
    """A table's application transactions as of a handle's version.

    To find one, deltalake reads the log back to where it stands, or to the last checkpoint: up to fifty files for each
    id. From a disk that is nothing. From a store, ids that were asked before are kept up with the commits that came since.
    """

    def __init__(self, folder: Place) -> None:
        self.folder, self._version = folder, -1
        self._known: dict[str, int | None] = {}

    def of(self, handle: DeltaTable, app_id: str) -> int | None:
        """The position of an id, None if it has none; `Conflict` as `transaction`."""
        if isinstance(self.folder, Path):
            return transaction(handle, app_id)
        if self._version < handle.version():
            self._follow(range(self._version + 1, handle.version() + 1))
        if app_id not in self._known:
            self._known[app_id] = transaction(handle, app_id)
        return self._known[app_id]

    def _follow(self, versions: range) -> None:
        texts = store.at_once(
            self.folder, lambda one: _read_commit(self.folder, one), versions if self._known else ()
        )
        if None in texts:  # cleaned away since
            self._known.clear()
        for text in texts if self._known else ():
            lines = (
                json.loads(line)["txn"] for line in (text or "").splitlines() if line.startswith('{"txn"')
            )
            self._known.update({one["appId"]: one["version"] for one in lines})
        self._version = versions[-1]


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


def added(folder: Place, since: int) -> tuple[list[str], int] | None:
    """Paths of the files that commits after version `since` added as new rows, and the newest version.

    None where the log does not reach back so far. It reads the commits' own files: without news it costs two looks.
    """
    if since < 0:
        return None
    version, paths = since, []
    for text in _commits(folder, since + 1):
        version += 1
        actions = (json.loads(line).get("add") for line in text.splitlines() if line.startswith('{"add"'))
        paths += [add["path"] for add in actions if add["dataChange"]]
    if version == since and _checkpoint_version(folder) > since:
        return None
    return paths, version


def read(folder: Place, paths: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Rows of some files in the columns of `schema`; a column that a file does not have is null."""
    parts = store.at_once(folder, lambda path: read_file(folder / path, schema), paths)
    return pa.concat_tables(parts) if parts else schema.empty_table()


def read_file(place: Place, schema: pa.Schema) -> pa.Table:
    """One file's rows in the columns of `schema`; from a store, only the bytes of these columns."""
    source = place if isinstance(place, Path) else store.open_file(place)
    with pq.ParquetFile(source, pre_buffer=source is not place) as file:
        found = columns.present(file.schema_arrow, schema)
        return columns.conform(file.read(columns=columns.leaves(found), use_threads=False), schema)


def _commits(folder: Place, first: int) -> Iterator[str]:
    """The commits from a version on. From a store one is asked for, and if it is there, ever more at once."""
    many = 1
    while True:
        texts = store.at_once(
            folder, lambda version: _read_commit(folder, version), range(first, first + many)
        )
        yield from itertools.takewhile(lambda text: text is not None, texts)
        if None in texts:
            return
        first, many = first + many, 1 if isinstance(folder, Path) else min(2 * many, store.AT_ONCE)


def _read_commit(folder: Place, version: int) -> str | None:
    try:
        return store.read(folder / LOG / f"{version:020d}.json").decode()
    except FileNotFoundError:
        return None


def _checkpoint_version(folder: Place) -> int:
    try:
        return int(json.loads(store.read(folder / LOG / "_last_checkpoint"))["version"])
    except (FileNotFoundError, ValueError):  # being replaced at this moment: the next look finds it
        return -1


def _sync_log(folder: Place, after: int, to: int) -> None:
    if not isinstance(folder, Path):
        return
    for version in range(after + 1, to + 1):
        with suppress(FileNotFoundError):
            durable.sync(folder / LOG / f"{version:020d}.json")
    durable.sync(folder / LOG)
