"""Nights from files, in order and at a pace."""

from __future__ import annotations

import hashlib
import itertools
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from raybroker.alerts import Packet
from raybroker.errors import StreamError
from raybroker.stream.packets import Place
from raybroker.stream.replay import ReplaySource, at_once, files, packets, replay, steady, visits

NIGHT = "ztf/ztf_public_20200202.tar.gz"


class Clock:
    """A clock that moves only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Topic:
    """A producer that notes when each packet was sent."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.sent, self.flushed = clock, list[tuple[float, Packet]](), 0

    def send(self, topic: str, packet: Packet) -> None:
        self.sent.append((self.clock(), packet))

    def flush(self) -> None:
        self.flushed = len(self.sent)


def nothing(places: Sequence[Place]) -> Mapping[Place, int]:
    return {}


def digests(found: Sequence[Packet]) -> list[str]:
    return [hashlib.sha256(packet.value or b"").hexdigest() for packet in found]


def test_a_tarball_gives_its_packets_in_its_order(data: Path) -> None:
    with tarfile.open(data / NIGHT) as archive:
        members = [archive.extractfile(member) for member in archive if member.isfile()]
        wanted = [hashlib.sha256(member.read()).hexdigest() for member in members if member]
    assert digests(list(packets(data / NIGHT))) == wanted
    assert len(wanted) == 12


def test_a_folder_and_a_glob_give_framed_packets(data: Path) -> None:
    folder = data / "rubin" / "framed"
    by_folder = list(packets(folder))
    assert len(by_folder) == len([name for name in folder.iterdir() if name.suffix in (".avro", ".bin")]) > 5
    assert digests(list(packets(folder / "*"))) == digests(by_folder)


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    for name in ("10.avro", "9.avro", "100.avro", "readme.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [place.name for place in files(tmp_path)] == ["9.avro", "10.avro", "100.avro"]


def test_nothing_to_replay_and_a_broken_tarball_are_said(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="nothing to replay at"):
        list(packets(tmp_path / "none*"))
    (tmp_path / "night.tar.gz").write_bytes(b"not a tarball")
    with pytest.raises(StreamError, match="cannot be read as a tarball"):
        list(packets(tmp_path / "night.tar.gz"))


def test_a_steady_pace_spreads_packets_evenly() -> None:
    clock = Clock()
    topic = Topic(clock)
    said: list[int] = []
    sent = replay([Packet(b"x")] * 10, topic, "t", steady(5), said.append, clock, clock.sleep)
    assert sent == 10
    assert [when for when, _ in topic.sent] == pytest.approx([i / 5 for i in range(10)])
    assert said[-1] == topic.flushed == 10


def test_visits_come_in_bursts_within_three_seconds() -> None:
    pace = visits(1000, every=39)
    times = [pace(i) for i in range(2500)]
    assert all(times[i] <= 3 for i in range(1000))
    assert all(39 <= times[i] <= 42 for i in range(1000, 2000))
    assert times[2000] == 78
    assert len(set(times[:1000])) == 189
    assert all(later >= earlier for earlier, later in itertools.pairwise(times))


def test_a_short_visit_keeps_to_its_time() -> None:
    pace = visits(10, every=1)
    assert [pace(i) for i in (0, 9, 10)] == pytest.approx([0, 0.9, 1.0], abs=0.01)


def test_the_source_splits_a_night_over_partitions(data: Path) -> None:
    source = ReplaySource(data / NIGHT, nothing, "ztf", partitions=5)
    got = source.poll(100, 5.0)
    assert [(p.partition, p.offset) for p in got] == [(i % 5, i // 5) for i in range(12)]
    assert digests(got) == digests(list(packets(data / NIGHT)))
    assert source.end_reached()
    assert all(p.topic == "ztf" and p.timestamp_ms for p in got)


def test_the_source_resumes_and_rewinds_from_the_archives_positions(data: Path) -> None:
    positions: dict[Place, int] = {}
    source = ReplaySource(data / NIGHT, lambda places: positions, partitions=2)
    source.poll(5, 5.0)
    positions |= {source.places["replay", 0]: 4, source.places["replay", 1]: 1}
    source.rewind()
    wanted = [(i % 2, i // 2) for i in range(12) if i // 2 >= (4, 1)[i % 2]]
    assert [(p.partition, p.offset) for p in source.poll(100, 5.0)] == wanted


def test_another_night_or_another_split_is_another_place(data: Path) -> None:
    night = ReplaySource(data / NIGHT, nothing)
    other = ReplaySource(data / "ztf/ztf_public_20231012.tar.gz", nothing)
    split = ReplaySource(data / NIGHT, nothing, partitions=2)
    again = ReplaySource(data / NIGHT, nothing)
    ids = [source.places["replay", 0].app_id for source in (night, other, split)]
    assert len(set(ids)) == 3
    assert again.places == night.places
    for source in (night, other, split, again):
        source.close()
        assert source.end_reached()


def test_the_source_keeps_the_pace_and_polls_end_in_time(data: Path) -> None:
    clock = Clock()
    source = ReplaySource(data / NIGHT, nothing, pace=steady(2), clock=clock, sleep=clock.sleep)
    assert [len(source.poll(100, 1.0)) for _ in range(3)] == [3, 2, 2]
    assert clock.now == pytest.approx(3.0)
    source.rewind()
    assert len(source.poll(100, 0.0)) == 7  # what was due comes at once
    assert len(source.poll(2, 100.0)) == 2
    assert at_once(10**9) == 0
    source.close()


def test_what_waits_is_told_where_the_next_packet_is_of(data: Path) -> None:
    source = ReplaySource(data / NIGHT, nothing, partitions=2)
    assert source.lags() == {("replay", 0): 1, ("replay", 1): 0}
    source.poll(1, 60.0)
    assert source.lags() == {("replay", 0): 0, ("replay", 1): 1}
    source.close()
    assert source.lags() == {("replay", 0): 0, ("replay", 1): 0}
