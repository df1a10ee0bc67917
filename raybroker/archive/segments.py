"""Segments: the raw packets of one turn as one immutable file, each given back byte for byte.

A segment is an Arrow IPC file `FOLDER/segments/<yyyymmdd>/<uuid>.arrow`, where FOLDER is the survey's folder in the
archive; its name in the tables is `<yyyymmdd>/<uuid>.arrow`. The schema that a survey repeats at the head of each value
(or key) is stored once, as `FOLDER/schemas/<sha256>`; a segment holds its digest and the rest.
The file is on the disk when `write` returns, so that a commit may name it. A file that no row names is harmless.
"""

from __future__ import annotations

import bisect
import datetime
import functools
import hashlib
import itertools
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raybroker.alerts import Packet
from raybroker.archive import store
from raybroker.errors import ArchiveError
from raybroker.places import Place

Shared = Callable[[Packet], tuple[int, int]]

HEADER = pa.struct([("name", pa.string()), ("value", pa.binary())])
SCHEMA = pa.schema(
    [
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("timestamp_ms", pa.int64()),
        ("headers", pa.list_(HEADER)),
        ("key_schema", pa.string()),  # digest of the key's leading bytes; null where they are not shared
        ("key", pa.binary()),  # what follows them; null where the packet has no key
        ("value_schema", pa.string()),
        ("value", pa.large_binary()),
    ]
)
STARTS = b"starts"  # in the file's metadata: the first position of each record batch
BATCH_BYTES = 1 << 20  # of values in a record batch: what one read decompresses at most, or one packet
MOST_SCHEMAS = (
    16  # stored apart by one segment: a stream of ever new heads must not make a file for each packet
)
WORTH_COMPRESSING = 0.8  # lz4 halves Rubin's FITS cutouts; ZTF's are gzipped, and it would only cost time


def write(folder: Place, packets: Sequence[Packet], shared: Shared, *, day: str = "") -> str:
    """Store packets; returns the segment's name. `shared` gives the length of the repeated head of value and key.

    `day` (YYYYMMDD, UTC today if empty) only names the folder.
    """
    day = day or datetime.datetime.now(datetime.UTC).strftime("%Y%m%d")
    name = f"{day}/{uuid.uuid4().hex}.arrow"
    heads, starts = _Heads(folder), _batch_starts(packets)
    schema = SCHEMA.with_metadata({STARTS: json.dumps(starts)})
    options = pa.ipc.IpcWriteOptions(compression=_codec(packets))
    with (
        store.sink(folder / "segments" / name) as file,
        pa.ipc.new_file(file, schema, options=options) as writer,
    ):
        for start, end in itertools.pairwise([*starts, len(packets)]):
            chunk = packets[start:end]
            writer.write_batch(_batch(chunk, [shared(packet) for packet in chunk], heads))
    return name


def read(folder: Place, segment: str, position: int) -> Packet:
    """The packet at `position` of a segment, as it came: value, key, headers, place, timestamp."""
    reader = _open(folder, segment)
    starts = json.loads(reader.schema.metadata[STARTS])
    index = bisect.bisect_right(starts, position) - 1
    rows = (
        _get_batch(reader, index, segment).slice(position - starts[index], 1).to_pylist()
        if index >= 0
        else []
    )
    if not rows:
        raise ArchiveError(
            f"segment {segment} has no packet at position {position}: the row that names it is wrong"
        )
    return _packet(folder, rows[0])


def scan(folder: Place, segment: str) -> Iterator[Packet]:
    """All packets of a segment, in order."""
    reader = _open(folder, segment)
    for index in range(reader.num_record_batches):
        for row in _get_batch(reader, index, segment).to_pylist():
            yield _packet(folder, row)


def names(folder: Place) -> list[str]:
    """Every segment there is, by day; some may be orphans of a turn that did not commit."""
    days = store.folders(folder / "segments")
    return sorted(
        f"{day.name}/{file.name}" for day in days for file in store.files(day) if file.name[-6:] == ".arrow"
    )


class _Heads:
    """Digests of repeated heads: packets of one turn share few, so the last one is nearly always the next."""

    def __init__(self, folder: Place) -> None:
        self.folder, self.last, self.digest = folder, b"", ""
        self.met: set[str] = set()

    def cut(self, message: bytes | None, length: int) -> tuple[str | None, bytes | memoryview | None]:
        if message is None or not length:
            return None, message
        if len(self.last) != length or not message.startswith(self.last):
            self._meet(message[:length])
        return (self.digest, memoryview(message)[length:]) if self.digest else (None, message)

    def _meet(self, head: bytes) -> None:
        digest = hashlib.sha256(head).hexdigest()
        if digest not in self.met and len(self.met) < MOST_SCHEMAS:
            self.met.add(digest)
            store.write_once(self.folder / "schemas" / digest, lambda: head)
        self.last, self.digest = head, digest if digest in self.met else ""


def _batch(packets: Sequence[Packet], lengths: Sequence[tuple[int, int]], heads: _Heads) -> pa.RecordBatch:
    values = [heads.cut(p.value, of_value) for p, (of_value, _) in zip(packets, lengths, strict=True)]
    keys = [heads.cut(p.key, of_key) for p, (_, of_key) in zip(packets, lengths, strict=True)]
    columns = [
        pa.array([p.topic for p in packets], pa.string()),
        pa.array([p.partition for p in packets], pa.int32()),
        pa.array([p.offset for p in packets], pa.int64()),
        pa.array([p.timestamp_ms for p in packets], pa.int64()),
        pa.array([[{"name": n, "value": v} for n, v in p.headers] for p in packets], pa.list_(HEADER)),
        pa.array([digest for digest, _ in keys], pa.string()),
        pa.array([None if rest is None else bytes(rest) for _, rest in keys], pa.binary()),
        pa.array([digest for digest, _ in values], pa.string()),
        _binary([rest for _, rest in values]),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def _binary(parts: Sequence[bytes | memoryview | None]) -> pa.Array:
    """A large_binary array with one copy of the bytes; `pa.array` needs two."""
    lengths = [0, *(len(part) if part is not None else 0 for part in parts)]
    ends = pc.cumulative_sum(pa.array(lengths, pa.int64()))
    known = pa.array([part is not None for part in parts], pa.bool_())
    joined = pa.py_buffer(b"".join(part for part in parts if part is not None))
    return pa.Array.from_buffers(
        pa.large_binary(), len(parts), [known.buffers()[1], ends.buffers()[1], joined]
    )


def _batch_starts(packets: Sequence[Packet]) -> list[int]:
    """At which packets a record batch starts, so that one read touches `BATCH_BYTES` and not the whole turn."""
    starts, size = [], BATCH_BYTES
    for i, packet in enumerate(packets):
        if size >= BATCH_BYTES:
            starts.append(i)
            size = 0
        size += len(packet.value or b"")
    return starts


def _codec(packets: Sequence[Packet]) -> str | None:
    """lz4 where it makes the first packet's tail (past any schema) clearly smaller, else nothing."""
    sample = next((packet.value for packet in packets if packet.value), b"")
    tail = sample[len(sample) // 2 :]
    smaller = (
        len(pa.compress(tail, "lz4_raw", asbytes=True)) < WORTH_COMPRESSING * len(tail) if tail else False
    )
    return "lz4" if smaller else None


@functools.lru_cache(maxsize=256)
def _load_schema(folder: Place, digest: str) -> bytes:
    try:
        head = store.read(folder / "schemas" / digest)
    except FileNotFoundError:
        raise ArchiveError(
            f"schema {digest} is missing from {folder / 'schemas'}: its packets are not whole"
        ) from None
    if hashlib.sha256(head).hexdigest() != digest:
        raise ArchiveError(
            f"schema {folder / 'schemas' / digest} is damaged: its bytes do not have its digest"
        )
    return head


def _open(folder: Place, segment: str) -> pa.RecordBatchFileReader:
    path = folder / "segments" / segment
    try:
        return pa.ipc.open_file(store.open_file(path))
    except FileNotFoundError:
        raise ArchiveError(f"segment {segment} is missing from {folder / 'segments'}") from None
    except (pa.ArrowException, OSError) as error:
        raise ArchiveError(f"segment {path} cannot be read, it is damaged: {error}") from error


def _get_batch(reader: pa.RecordBatchFileReader, index: int, segment: str) -> pa.RecordBatch:
    try:
        batch = reader.get_batch(index)
        batch.validate()
    except (pa.ArrowException, OSError) as error:
        raise ArchiveError(f"segment {segment} cannot be read, it is damaged: {error}") from error
    return batch


def _packet(folder: Place, row: dict[str, Any]) -> Packet:
    return Packet(
        value=_whole(folder, row["value_schema"], row["value"]),
        topic=row["topic"],
        partition=row["partition"],
        offset=row["offset"],
        timestamp_ms=row["timestamp_ms"],
        key=_whole(folder, row["key_schema"], row["key"]),
        headers=tuple((header["name"], header["value"]) for header in row["headers"]),
    )


def _whole(folder: Place, digest: str | None, rest: bytes | None) -> bytes | None:
    return rest if digest is None or rest is None else _load_schema(folder, digest) + rest
