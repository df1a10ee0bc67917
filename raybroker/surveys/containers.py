"""Avro containers: a schema, one record, two sync markers. Opened with every check that there is, and written."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import cramjam

from raybroker.errors import PacketError

MAGIC = b"Obj\x01"
SYNC = 16  # bytes of the marker between blocks
BODY_LIMIT = 64 << 20  # bytes, decompressed
SMALL, RATIO = 1 << 20, 32  # ... and of a larger block, so many times what it was: alerts have 6 at most


class Header(NamedTuple):
    """The part of a container that repeats in every packet: magic and metadata, before the sync marker."""

    raw: bytes
    schema: bytes
    codec: str


def read_long(value: bytes, at: int) -> tuple[int, int]:
    """Avro's variable-length number at a place, and the place after it."""
    number = shift = 0
    while at < len(value) and shift < 64:
        byte = value[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return (number >> 1) ^ -(number & 1), at
        shift += 7
    raise PacketError("it is cut short inside its Avro header")


def write_long(number: int) -> bytes:
    """A number as Avro writes it."""
    number, written = (number << 1) ^ (number >> 63), bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


def read_header(value: bytes) -> Header:
    """A container's header; raises PacketError."""
    if not value.startswith(MAGIC):
        raise PacketError(f"it is not an Avro container: it starts with {value[:4].hex(' ')}, not with 'Obj'")
    metadata: dict[bytes, bytes] = {}
    count, at = read_long(value, len(MAGIC))
    while count:
        if count < 0:
            count, (_, at) = -count, read_long(value, at)
        if count > len(value):
            raise PacketError("its Avro header is damaged")
        for _ in range(count):
            key, at = _read_bytes(value, at)
            metadata[key], at = _read_bytes(value, at)
            if not key.isascii():
                raise PacketError("its Avro header is damaged")
        count, at = read_long(value, at)
    codec = metadata.get(b"avro.codec", b"null").decode("utf-8", "replace")
    return Header(value[:at], metadata.get(b"avro.schema", b""), codec)


def _read_bytes(value: bytes, at: int) -> tuple[bytes, int]:
    length, at = read_long(value, at)
    if not 0 <= length <= len(value) - at:
        raise PacketError("it is cut short inside its Avro header")
    return value[at : at + length], at + length


def container_header(schema: bytes, codec: bytes = b"null") -> bytes:
    """A new container's header, up to the sync marker."""
    metadata = {b"avro.schema": schema, b"avro.codec": codec}
    pairs = [write_long(len(part)) + part for pair in metadata.items() for part in pair]
    return MAGIC + write_long(len(metadata)) + b"".join(pairs) + write_long(0)


def write_container(header: bytes, sync: bytes, body: bytes) -> bytes:
    """A container of one record."""
    return b"".join((header, sync, write_long(1), write_long(len(body)), body, sync))


class Containers:
    """Opens containers; the headers met last are known by their bytes."""

    def __init__(self, remembered: int = 16):
        self._headers: list[Header] = []
        self._remembered = remembered

    def header(self, value: bytes) -> Header:
        for place, header in enumerate(self._headers):
            if value.startswith(header.raw):
                if place:
                    self._headers.insert(0, self._headers.pop(place))
                return header
        header = read_header(value)
        self._headers = [header, *self._headers[: self._remembered - 1]]
        return header

    def open(self, value: bytes) -> tuple[Header, bytes | memoryview]:
        """A container's header and its one record's body; raises PacketError."""
        header = self.header(value)
        start = len(header.raw) + SYNC
        count, at = read_long(value, start)
        size, at = read_long(value, at)
        _check_block(value, count, size, at)
        if value[start - SYNC : start] != value[-SYNC:]:
            raise PacketError("its two sync markers differ: bytes were lost or changed on the way")
        block = memoryview(value)[at : at + size]
        return header, block if header.codec == "null" else decompress(header.codec, block)


def _check_block(value: bytes, count: int, size: int, at: int) -> None:
    if count != 1:
        raise PacketError(f"it holds {count} records in its first block; an alert is one")
    missing = at + size + SYNC - len(value)
    if missing > 0:
        raise PacketError(f"it is {_bytes(missing)} shorter than its header says")
    if size < 0 or missing < 0:
        raise PacketError(f"it has {_bytes(-missing)} more than its header says")


def _bytes(count: int) -> str:
    return f"{count} byte{'s' * (count != 1)}"


def decompress(codec: str, block: memoryview) -> bytes:
    """A block's bytes; raises PacketError where it is damaged, too large, or of another codec."""
    known = {"deflate": _inflate, "snappy": _unsnap}
    if codec not in known:
        raise PacketError(f"its codec '{codec}' is none of null, deflate, snappy")
    try:
        return known[codec](block)
    except PacketError:
        raise
    except Exception as error:
        raise PacketError(f"its {codec} block is damaged: {error}") from error


def body_limit(packed: int) -> int:
    """Bytes to which a block of so many may be decompressed: a turn of many small bombs is bounded as one large one."""
    return min(BODY_LIMIT, max(SMALL, RATIO * packed))


def _too_large(limit: int) -> PacketError:
    if limit in (SMALL, BODY_LIMIT):
        return PacketError(f"its block is larger than {limit >> 20} MB when decompressed")
    return PacketError(f"its block is more than {RATIO} times larger when decompressed")


def _inflate(block: memoryview) -> bytes:
    inflater, limit = zlib.decompressobj(-zlib.MAX_WBITS), body_limit(len(block))
    data = inflater.decompress(block, limit + 1)
    if len(data) > limit:
        raise _too_large(limit)
    # fastavro leaves bytes of zlib's checksum behind the block
    if not inflater.eof or len(inflater.unused_data) > 4:
        raise PacketError("its deflate block does not end where it should")
    return data


def _unsnap(block: memoryview) -> bytes:
    packed, check = bytes(block[:-4]), bytes(block[-4:])
    limit = body_limit(len(packed))
    if cramjam.snappy.decompress_raw_len(packed) > limit:
        raise _too_large(limit)
    data = bytes(cramjam.snappy.decompress_raw(packed))
    if zlib.crc32(data).to_bytes(4, "big") != check:
        raise PacketError("its snappy block does not fit its checksum")
    return data
