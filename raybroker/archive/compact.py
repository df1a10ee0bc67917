"""Compaction: many small files become few, while turns go on. Old nights are laid out by HEALPix.

`optimize.compact` and `z_order` of deltalake 1.6.6 double every row when two run at once. Here one transaction adds the
merged file and removes its sources (`data_change=False`, so that no tail reads the rows again) under the application id
`compact`, on the handle from which the sources were listed: of two compactors that start from one version the second is
refused. `docs/decisions/compaction.md` has what was measured.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from raybroker.archive import delta, store
from raybroker.archive.delta import File
from raybroker.errors import ArchiveError
from raybroker.places import ObjectUrl, Place

APP_ID = "compact"
SORTED = "healpix-"  # the name of a file whose rows are in the order of HEALPix starts so
FEWEST = 8  # files of about one size that are worth a merge: each row is rewritten log8(rows / turn) times
MOST_ROWS = 100_000  # of a merge; about 2 KB of memory each, and 0.8 KB on disk
TABLELESS = {"models", "plans", "states", "catalogues", "links", "mlflow"}  # of an archive's folders
QUIET_MS = 3_600_000  # an old night is sorted once no turn has written into it for an hour


@dataclass(frozen=True)
class Group:
    """Files to merge, and whether their rows are laid out by HEALPix."""

    files: tuple[File, ...]
    sort: bool


@dataclass(frozen=True)
class Compacted:
    """What a call of `compact` did."""

    merges: int
    rows: int
    removed: int
    refused: bool  # another compactor (or a new column) was first: ours stopped there
    live: int


def compact(folder: Place, *, now_ms: int | None = None, limit: int = 1000) -> Compacted:
    """Merge what is worth it, one commit per group, `limit` groups at most. Safe beside turns and other compactors."""
    now_ms = int(time.time() * 1000) if now_ms is None else now_ms
    merges = rows = removed = 0
    handle = delta.open_table(folder)
    while merges < limit and (group := next(plan(delta.live(handle), now_ms), None)) is not None:
        try:
            merge(folder, handle, group)
        except delta.Conflict:
            return Compacted(merges, rows, removed, True, len(delta.live(handle)))
        merges += 1
        rows += sum(file.rows for file in group.files)
        removed += len(group.files)
        handle = delta.open_table(folder)
    return Compacted(merges, rows, removed, False, len(delta.live(handle)))


def plan(files: Sequence[File], now_ms: int) -> Iterator[Group]:
    """The merges that are worth it now: by size within the last two nights, old nights once whole, then by size too."""
    newest = max((file.most["night"] for file in files if "night" in file.most), default=None)
    fresh = [file for file in files if not _is_old(file, newest)]
    old = [file for file in files if _is_old(file, newest)]
    yield from _nights([file for file in old if not file.path.startswith(SORTED)], now_ms)
    yield from _by_size(fresh, sort=False)
    yield from _by_size([file for file in old if file.path.startswith(SORTED)], sort=True)


def merge(folder: Place, handle: DeltaTable, group: Group) -> None:
    """One commit: the group's rows in new files, its files removed. `handle` is the one that listed them."""
    paths = [file.path for file in group.files]
    rows = delta.read(folder, paths, delta.schema_of(handle))
    if len(rows) != sum(file.rows for file in group.files):
        raise ArchiveError(
            f"{folder}: {len(rows)} rows were read where the log counts others; nothing was merged"
        )
    new = _write(folder, rows, group)
    now_ms = int(time.time() * 1000)
    gone = [RemoveAction(file.path, False, now_ms, file.size, {}) for file in group.files]
    if isinstance(folder, Path):
        for path in paths:
            os.utime(folder / path)  # `vacuum` counts from the removal: readers may be in them
    version = (delta.transaction(handle, APP_ID) or 0) + 1
    delta.commit(folder, handle, [*new, *gone], {APP_ID: version})


def vacuum(folder: Place, *, older_than_hours: float = 1.0) -> int:
    """Delete Parquet files that are not live and have not been for so long, and old commit files; returns how many of
    the first."""
    _clean(folder)
    if not isinstance(folder, Path):
        return _vacuum_store(folder, math.ceil(older_than_hours))
    before = time.time() - 3600 * older_than_hours
    found = [path for path in folder.glob("*.parquet") if path.stat().st_mtime < before]
    keep = {
        file.path for file in delta.live(delta.open_table(folder))
    }  # listed after: what was committed since is in
    gone = [path for path in found if path.name not in keep]
    for path in gone:
        with suppress(FileNotFoundError):
            path.unlink()
    return len(gone)


def _clean(folder: Place) -> None:
    """Delete commit files that a checkpoint stands for, a quarter of an hour later: commits do not."""
    with suppress(FileNotFoundError):  # another compactor deletes them just now
        delta.open_table(folder).cleanup_metadata()


def _vacuum_store(folder: ObjectUrl, hours: int) -> int:
    """Files there cannot be dated anew, but the log's tombstones say when each was removed."""
    handle = delta.open_table(folder)
    gone = handle.vacuum(hours, dry_run=True, enforce_retention_duration=False, full=True)
    store.at_once(folder, lambda name: store.delete(folder / name), gone)
    return len(gone)


def tables(root: Place) -> list[Place]:
    """Every table of an archive: `alerts` of each survey, and the event logs."""
    first = store.folders(root)
    second = [folder / "alerts" for folder in first if folder.name not in TABLELESS]
    return sorted(folder for folder in [*first, *second] if delta.exists(folder))


def compact_all(root: Place) -> dict[str, Compacted]:
    """Compact and vacuum every table of an archive; by its path under the root."""
    found = tables(root)
    done = {str(folder.relative_to(root)): compact(folder) for folder in found}  # type: ignore[arg-type]
    for folder in found:
        vacuum(folder)
    return done


def compact_aside(root: Place) -> None:
    """`compact_all` as the whole work of a process, which gives way to others and leaves Ctrl-C to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)
    compact_all(root)


def _write(folder: Place, rows: pa.Table, group: Group) -> list[AddAction]:
    if group.sort:
        rows = rows.sort_by([("healpix", "ascending")])
    prefix = SORTED if group.sort else ""
    parts = [rows.slice(start, MOST_ROWS) for start in range(0, len(rows), MOST_ROWS)]
    new = [delta.write_file(folder, p, prefix=prefix, data_change=False, compression="zstd") for p in parts]
    for action in new:  # event logs are read in this order
        action.modification_time = max(file.written_ms for file in group.files)
    return new


def _nights(files: Iterable[File], now_ms: int) -> Iterator[Group]:
    by_night = sorted(files, key=lambda file: file.most["night"])
    for _, night in itertools.groupby(by_night, key=lambda file: file.most["night"]):
        group = list(night)
        if now_ms - max(file.written_ms for file in group) >= QUIET_MS:
            yield from (Group(tuple(part), sort=True) for part in _limited(group))


def _by_size(files: Sequence[File], sort: bool) -> Iterator[Group]:
    """Runs of `FEWEST` files or more whose rows are alike to a factor of eight, oldest first."""
    for _, alike in itertools.groupby(sorted(files, key=_size_and_age), key=_tier):
        for part in _limited([file for file in alike if file.rows <= MOST_ROWS // 2]):
            if len(part) >= FEWEST or (len(part) > 1 and sum(file.rows for file in part) > MOST_ROWS // 2):
                yield Group(tuple(part), sort)


def _limited(files: Sequence[File]) -> Iterator[list[File]]:
    part: list[File] = []
    for file in files:
        if part and sum(f.rows for f in part) + file.rows > MOST_ROWS:
            yield part
            part = []
        part.append(file)
    if part:
        yield part


def _is_old(file: File, newest: int | None) -> bool:
    return newest is not None and file.most.get("night", newest) < newest - 1


def _tier(file: File) -> int:
    return int(math.log(max(file.rows, 1), FEWEST))


def _size_and_age(file: File) -> tuple[int, int, int]:
    return _tier(file), file.most.get("night", 0), file.written_ms
