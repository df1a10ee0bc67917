"""Files that are there, whole, after the power fails: written under another name, synced, renamed, folder synced."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's list of names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """The folder and its parents, their names synced."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name to write to; when the block ends well, the synced file takes its own name."""
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        sync(partial)
        partial.rename(path)
        sync(path.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process of this machine at a time; the system opens the lock of one that dies."""
    make_folder(path.parent)
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_once(path: Path, content: Callable[[], bytes]) -> None:
    """A file that is named by what it holds: written if it is not there, by as many processes as like."""
    if not path.exists():
        with whole(path) as partial:
            partial.write_bytes(content())
