from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raybroker.alerts import Packet
from raybroker.archive import segments
from raybroker.errors import ArchiveError

from .conftest import header_length

KEYS = (None, b"", b"key")
HEADERS = ((), (("a", b"1"), ("a", None), ("b", b"")))


@pytest.fixture(scope="module")
def packets(night_packets: tuple[Packet, ...]) -> list[Packet]:
    """Every real packet with each kind of key, headers and timestamp that Kafka knows."""
    return [
        Packet(
            p.value,
            p.topic,
            i % 4,
            i,
            None if i % 5 == 0 else 1_543_000_000_000 + i,
            KEYS[i % 3],
            HEADERS[i % 2],
        )
        for i, p in enumerate(night_packets)
    ]


def test_every_packet_comes_back_byte_for_byte(tmp_path: Path, packets: list[Packet]) -> None:
    name = segments.write(tmp_path, packets, header_length)
    assert list(segments.scan(tmp_path, name)) == packets
    assert [segments.read(tmp_path, name, i) for i in range(len(packets))] == packets


def test_the_repeated_schema_is_stored_once(tmp_path: Path, packets: list[Packet]) -> None:
    name = segments.write(tmp_path, packets, header_length)
    segments.write(tmp_path, packets, header_length)
    assert len(list((tmp_path / "schemas").iterdir())) == 1
    heads = sum(header_length(packet)[0] for packet in packets)
    raw = sum(len(packet.value or b"") for packet in packets)
    assert (tmp_path / "segments" / name).stat().st_size < raw - 0.95 * heads


def test_a_shared_key_is_stored_once(tmp_path: Path) -> None:
    packets = [Packet(b"%d" % i, key=b"schema" * 100 + b"%d" % i) for i in range(3)]
    name = segments.write(tmp_path, packets, lambda packet: (0, 600))
    assert list(segments.scan(tmp_path, name)) == packets
    assert len(list((tmp_path / "schemas").iterdir())) == 1


def test_null_and_empty_values_stay_apart(tmp_path: Path) -> None:
    packets = [Packet(None), Packet(b""), Packet(b"x"), Packet(None, key=b"")]
    name = segments.write(tmp_path, packets, lambda packet: (0, 0))
    assert [segments.read(tmp_path, name, i) for i in range(4)] == packets


def test_no_packets_make_an_empty_segment(tmp_path: Path) -> None:
    assert list(segments.scan(tmp_path, segments.write(tmp_path, [], header_length))) == []


def test_rubin_packets_come_back_compressed_or_not(tmp_path: Path, rubin_packets: tuple[Packet, ...]) -> None:
    some = rubin_packets[:40]
    name = segments.write(tmp_path, some, header_length)
    assert list(segments.scan(tmp_path, name)) == list(some)
    assert segments.read(tmp_path, name, 39) == some[39]
    assert (tmp_path / "segments" / name).stat().st_size < 0.6 * sum(len(p.value or b"") for p in some)


def test_a_new_head_in_every_packet_does_not_make_a_file_for_each(tmp_path: Path) -> None:
    packets = [Packet(b"%08d rest" % i) for i in range(100)]
    name = segments.write(tmp_path, packets, lambda packet: (8, 0))
    assert list(segments.scan(tmp_path, name)) == packets
    assert len(list((tmp_path / "schemas").iterdir())) == segments.MOST_SCHEMAS


def test_a_missing_segment_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"20181129/gone\.arrow is missing"):
        segments.read(tmp_path, "20181129/gone.arrow", 0)


def test_a_position_past_the_end_says_so(tmp_path: Path) -> None:
    name = segments.write(tmp_path, [Packet(b"a")], header_length)
    for position in (1, -1):
        with pytest.raises(ArchiveError, match=f"no packet at position {position}"):
            segments.read(tmp_path, name, position)


def test_a_truncated_segment_says_so(tmp_path: Path, packets: list[Packet]) -> None:
    name = segments.write(tmp_path, packets[:20], header_length)
    path = tmp_path / "segments" / name
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ArchiveError, match="damaged"):
        segments.read(tmp_path, name, 0)


def test_a_damaged_schema_says_so(tmp_path: Path, packets: list[Packet]) -> None:
    name = segments.write(tmp_path, packets[:2], header_length)
    (schema,) = (tmp_path / "schemas").iterdir()
    schema.write_bytes(b"something else")
    with pytest.raises(ArchiveError, match="do not have its digest"):
        segments.read(tmp_path, name, 0)


def test_a_writer_that_dies_leaves_no_segment(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from raybroker.alerts import Packet
from raybroker.archive import segments
def shared(packet):
    if packet.offset == 3: os._exit(9)
    return 0, 0
segments.write(Path({str(tmp_path)!r}), [Packet(b"x" * 1000, offset=i) for i in range(5)], shared)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert segments.names(tmp_path) == []
