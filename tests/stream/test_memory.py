"""The stream in memory keeps the contracts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from raybroker.alerts import Packet
from raybroker.errors import StreamError
from raybroker.stream.memory import MemorySink, MemorySource
from raybroker.stream.packets import Place


def stream(count: int, partitions: int = 2) -> list[Packet]:
    return [Packet(b"%d" % i, "t", i % partitions, i // partitions) for i in range(count)]


def test_every_packet_comes_once_and_in_order_within_a_partition() -> None:
    source = MemorySource(stream(10))
    got = source.poll(3, 0.0) + source.poll(100, 0.0)
    assert sorted(int(p.value or b"") for p in got) == list(range(10))
    assert [p.offset for p in got if p.partition == 1] == [0, 1, 2, 3, 4]
    assert source.poll(1, 0.0) == []
    assert source.end_reached()


def test_positions_come_from_start_also_where_offsets_have_gaps() -> None:
    packets = [Packet(b"x", "t", 0, offset) for offset in (0, 1, 5, 9)]

    def start(places: Sequence[Place]) -> Mapping[Place, int]:
        return dict.fromkeys(places, 2)

    assert [p.offset for p in MemorySource(packets, start).poll(9, 0.0)] == [5, 9]


def test_rewind_asks_start_again() -> None:
    positions: dict[Place, int] = {}
    source = MemorySource(stream(6, partitions=1), lambda places: positions)
    source.poll(4, 0.0)
    positions[source.places["t", 0]] = 3
    source.rewind()
    assert [p.offset for p in source.poll(9, 0.0)] == [3, 4, 5]
    assert source.rewinds == 1


def test_a_poll_ends_at_the_bytes() -> None:
    source = MemorySource([Packet(bytes(10), "t", 0, i) for i in range(9)])
    assert len(source.poll(9, 0.0, max_bytes=25)) == 3
    assert source.lags() == {("t", 0): 6}


def test_what_is_appended_later_is_read() -> None:
    source = MemorySource([])
    assert source.end_reached()
    source.append(stream(3))
    assert len(source.poll(9, 0.0)) == 3
    source.commit({source.places["t", 0]: 2})
    assert source.committed == {source.places["t", 0]: 2}


def test_the_sink_keeps_outputs_and_position() -> None:
    sink, place = MemorySink(), Place("c", "t", "id", 0)
    with pytest.raises(StreamError, match="emitted"):
        sink.write(place, {}, 1)
    assert sink.emitted([place]) == {}
    sink.write(place, {"out": [Packet(b"x")]}, 4)
    assert sink.emitted([place]) == {place: 4}
    assert sink.written["out"] == [Packet(b"x")]
    assert place.app_id == "c/id/0"
