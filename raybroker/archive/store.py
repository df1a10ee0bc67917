"""Files of the archive where they are: the few verbs that a folder of this machine and an object store share.

In a folder a file is written under another name, synced and renamed (`durable`). In an object store one PUT is atomic
and kept when it returns; `write_new` is a PUT with `If-None-Match: *`, which the store refuses where the name is taken.
Credentials come from the environment (`AWS_*`, `GOOGLE_*`), a profile of the machine, or nowhere else.
A file that is not there is a FileNotFoundError in both; anything else that an object store says is an ArchiveError.
"""

from __future__ import annotations

import datetime
import functools
import io
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from raybroker.archive import durable
from raybroker.errors import ArchiveError
from raybroker.places import ObjectUrl, Place

AT_ONCE = 8  # requests of one reader beside one another: a round trip to S3 is tens of milliseconds
TAIL_BYTES = 1 << 20  # the first read of a file, from its end: the whole of a turn's rows, or a footer
ONE_PUT_BYTES = 64 << 20  # above it a file goes up in parts, which a kill may leave behind, unseen
RETRY = {"max_retries": 5, "retry_timeout": datetime.timedelta(seconds=20)}
T = TypeVar("T")
R = TypeVar("R")


class Stored(NamedTuple):
    """A file in a listing."""

    name: str
    size: int
    written_ms: int


def options(place: Place) -> dict[str, str] | None:
    """What deltalake needs beside the environment: a commit is a PUT that is refused where its version is taken."""
    if isinstance(place, Path):
        return None
    safe = {"aws_conditional_put": "etag"} if place.scheme == "s3" else {}
    return {**safe, **_plain_http(place)}


def exists(place: Place) -> bool:
    """Whether there is a file, or a folder with anything in it."""
    if isinstance(place, Path):
        return place.exists()
    with _explained(place):
        below = obstore.list(_client(place), prefix=place.key or None, chunk_size=1)
        return bool(next(iter(below), [])) or has(place)


def has(place: Place) -> bool:
    """Whether there is a file of this name."""
    if isinstance(place, Path):
        return place.is_file()
    with _explained(place):
        try:
            obstore.head(_client(place), place.key)
        except FileNotFoundError:
            return False
    return True


def read(place: Place) -> bytes:
    """The whole file."""
    if isinstance(place, Path):
        return place.read_bytes()
    with _explained(place):
        return bytes(obstore.get(_client(place), place.key).bytes())


def open_file(place: Place) -> Any:
    """A file for pyarrow to read at any position: mapped from a folder; from a store its end comes with the first
    request, so that a small file is one, and the rest by ranges. An empty file cannot be opened."""
    if isinstance(place, Path):
        return pa.memory_map(str(place))
    with _explained(place):
        found = obstore.get(_client(place), place.key, options={"range": {"suffix": TAIL_BYTES}})
        size, tail = found.meta["size"], found.bytes()
    if len(tail) == size:
        return pa.BufferReader(pa.py_buffer(tail))
    return pa.PythonFile(_Ranged(place, size, bytes(tail)), mode="r")


def fetch(place: ObjectUrl, path: Path) -> Path:
    """The file as one of this machine, fetched unless it is there; many processes may ask at once."""
    if path.exists():
        return path
    with durable.locked(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            with durable.whole(path) as partial, partial.open("wb") as file, _explained(place):
                for chunk in obstore.get(_client(place), place.key):
                    file.write(chunk)
    return path


def write_new(place: Place, content: bytes) -> bool:
    """Write a file if its name is free; of several processes at once one is told True. In a folder it is its owner's
    alone, and another process may meet it half written."""
    if isinstance(place, Path):
        return _create(place, content)
    with _explained(place), _written(place):
        try:
            obstore.put(_client(place), place.key, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
    return True


def write_once(place: Place, content: Callable[[], bytes]) -> None:
    """A file that is named by what it holds: written if it is not there, by as many processes as like."""
    if isinstance(place, Path):
        durable.write_once(place, content)
    elif place not in _known():
        write_new(place, content())
        _known()[place] = None


def replace(place: Place, content: bytes) -> None:
    """Write a file, over what was there; no reader sees half of it."""
    if isinstance(place, Path):
        with durable.whole(place) as partial:
            partial.write_bytes(content)
    else:
        _put(place, content)


def upload(path: Path, place: ObjectUrl) -> None:
    """A file of this machine into the store, in parts if it is large."""
    with _explained(place), _written(place):
        obstore.put(_client(place), place.key, path, use_multipart=path.stat().st_size > ONE_PUT_BYTES)


@contextmanager
def sink(place: Place) -> Iterator[Any]:
    """What pyarrow writes a file to; when the block ends well, the file is there, whole."""
    if isinstance(place, Path):
        with durable.whole(place) as partial, pa.OSFile(str(partial), "wb") as file:
            yield file
    else:
        buffer = pa.BufferOutputStream()
        yield buffer
        _put(place, buffer.getvalue().to_pybytes())


def delete(place: Place) -> None:
    """Delete a file; one that is not there is no error."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
    else:
        with _explained(place):
            obstore.delete(_client(place), place.key)


def files(place: Place) -> list[Stored]:
    """The files of a folder, not those of folders in it."""
    if isinstance(place, Path):
        found = (path for path in place.glob("[!.]*") if path.is_file()) if place.is_dir() else ()
        return [Stored(p.name, p.stat().st_size, int(p.stat().st_mtime * 1000)) for p in found]
    return [
        Stored(m["path"].rpartition("/")[2], m["size"], int(m["last_modified"].timestamp() * 1000))
        for m in _listed(place)["objects"]
    ]


def folders(place: Place) -> list[Place]:
    """The folders in a folder, by name; none where there is none."""
    if isinstance(place, Path):
        return sorted(path for path in place.glob("[!.]*") if path.is_dir())
    return [place / prefix.rpartition("/")[2] for prefix in sorted(_listed(place)["common_prefixes"])]


def check(root: Place) -> None:
    """Write and delete a file; an ArchiveError if the store lets two writers both be first, as some do."""
    probe = root / f".check-{uuid.uuid4().hex}"
    try:
        first, second = write_new(probe, b""), write_new(probe, b"")
        delete(probe)
    except OSError as error:
        raise ArchiveError(f"the archive at {root} cannot be written: {error}") from error
    if not first or second:
        raise ArchiveError(
            f"the object store of {root} does not heed 'If-None-Match: *': two workers would overwrite each other's "
            "commits, so the archive cannot be there"
        )


def at_once(place: Place, work: Callable[[T], R], each: Iterable[T]) -> list[R]:
    """`work` on each: in order in a folder, `AT_ONCE` beside one another in a store, where the wait is the network's."""
    wanted = list(each)
    if isinstance(place, Path) or len(wanted) < 2:
        return [work(one) for one in wanted]
    with ThreadPoolExecutor(min(AT_ONCE, len(wanted))) as pool:
        return list(pool.map(work, wanted))


class _Ranged(io.RawIOBase):
    """A file in a store that is read by ranges; its end is here already."""

    def __init__(self, place: ObjectUrl, size: int, tail: bytes) -> None:
        self.place, self.length, self.tail, self.at = place, size, tail, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.length)[whence]
        return self.at

    def read(self, size: int = -1) -> bytes:
        start, end = self.at, self.length if size < 0 else min(self.at + size, self.length)
        self.at = max(start, end)
        begins = self.length - len(self.tail)
        if start >= begins or start >= end:
            return self.tail[max(start - begins, 0) : max(end - begins, 0)]
        with _explained(self.place):
            return bytes(obstore.get_range(_client(self.place), self.place.key, start=start, end=end))


def _create(path: Path, content: bytes) -> bool:
    durable.make_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    durable.sync(path)
    durable.sync(path.parent)
    return True


def _put(place: ObjectUrl, content: bytes) -> None:
    with _explained(place), _written(place):
        obstore.put(_client(place), place.key, content, use_multipart=len(content) > ONE_PUT_BYTES)


def _listed(place: ObjectUrl) -> Any:
    with _explained(place):
        return obstore.list_with_delimiter(_client(place), prefix=place.key or None)


def _client(place: ObjectUrl) -> Any:
    return _client_of(place.scheme, place.bucket)


@functools.lru_cache(maxsize=16)
def _client_of(scheme: str, bucket: str) -> Any:
    there = ObjectUrl(scheme, bucket)
    given: dict[str, Any] = {"conditional_put": "etag"} if scheme == "s3" else {}
    return from_url(
        str(there),
        config=given,
        client_options=_plain_http(there),
        retry_config=RETRY,  # type: ignore[call-overload]
    )


def _plain_http(place: ObjectUrl) -> dict[str, str]:
    """An endpoint that is named with http:// is meant so; a store of one's own often has no certificate."""
    plain = place.scheme == "s3" and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    return {"allow_http": "true"} if plain else {}


@functools.lru_cache(maxsize=1)
def _known() -> dict[ObjectUrl, None]:
    """Files named by their content that this process has written or met: schemas, above all, once a turn."""
    return {}


@contextmanager
def _written(place: ObjectUrl) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:  # no bucket
        raise ArchiveError(f"{place} cannot be written: {error}") from error


@contextmanager
def _explained(place: ObjectUrl) -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ArchiveError(f"the object store did not answer for {place}: {error}") from error
