"""What a worker does while the archive or the output Kafka is away: it waits with its partitions, and blames no packet."""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raybroker.cluster import books as books_module
from raybroker.cluster import worker as module
from raybroker.cluster.audit import audit
from raybroker.errors import ArchiveError, FencedError, StreamError
from raybroker.filters.where import where
from raybroker.settings import parse
from raybroker.stream.memory import MemorySink
from tests.cluster.worlds import pipeline, placed, worker

FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")
OTHERS_FIRST = ArchiveError("the table took no commit: other writers always came first")


@pytest.fixture
def packets(ztf_packets):  # type: ignore[no-untyped-def]
    return placed(ztf_packets("public_20181129")[:60])


class World:
    """A worker with a clock of its own, and a sink."""

    def __init__(self, root: Path, packets: Any) -> None:
        self.root, self.packets, self.time, self.sink = root, packets, 100.0, MemorySink()
        made = pipeline(where("positive", "flux > 0"))
        self.worker = worker(root, packets, made, self.sink)
        self.worker._now = lambda: self.time

    def check(self) -> None:
        """Everything is archived once and sent once."""
        rows = self.worker.books.table.read(["partition", "offset", "positive", "alert_id", "outcome"])[0]
        found = Counter(zip(rows["partition"].to_pylist(), rows["offset"].to_pylist(), strict=True))
        assert found == Counter((packet.partition, packet.offset) for packet in self.packets)
        assert set(rows["outcome"].to_pylist()) == {"scored", "rejected"}
        passed = sorted(row["alert_id"] for row in rows.to_pylist() if row["positive"])
        assert sorted(p.key.decode() for p in self.sink.written["raybroker.positive"]) == passed != []
        stream = {"ztf": {"servers": "replay:none"}}
        assert audit(parse({"archive": {"root": str(self.root)}, "surveys": stream})).wrong == []


@pytest.fixture
def world(tmp_path: Path, packets: Any) -> World:
    return World(tmp_path, packets)


def failing(error: Exception) -> Any:
    def fail(*given: object, **named: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        ("segment", FULL, "the archive cannot be written: [Errno 28] No space left on device"),
        ("commit", READ_ONLY, "the archive cannot be written: [Errno 30] Read-only file system"),
        ("commit", OTHERS_FIRST, "other writers always came first"),
        ("recent", READ_ONLY, "the archive cannot be read"),
        ("send", StreamError("Kafka is away"), "outputs cannot be sent: Kafka is away"),
    ],
)
def test_what_is_away_is_waited_for_and_no_packet_is_to_blame(
    world: World, place: str, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = world.worker
    owner, name = {
        "segment": (module.segments, "write"),
        "commit": (made.books.table, "append"),
        "recent": (made.books.table, "read"),
        "send": (world.sink, "write"),
    }[place]
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, failing(error))
        report = made.turn(limit=20)
        assert said in report.trouble
        assert not report.drained
        assert report.alerts == (20 if place == "send" else 0)  # archived is archived
        for _ in range(3):  # it does not poll, decode and fail in a tight loop
            again = made.turn(limit=20)
            assert (again.trouble, again.taken, again.drained) == (report.trouble, {}, False)
        assert made.source.paused
    world.time += 10.0
    report = made.turn()
    assert report.trouble == ""
    assert report.alerts == (40 if place == "send" else 60)
    world.check()


def test_tries_come_at_growing_distances_of_a_few_seconds_at_most(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []

    def full(*given: object) -> str:
        tries.append(world.time)
        raise FULL

    with monkeypatch.context() as broken:
        broken.setattr(module.segments, "write", full)
        for _ in range(100):
            assert world.worker.turn(limit=20).trouble
            world.time += 0.25
    waits = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    world.time += 10.0
    assert world.worker.turn().alerts == 60
    monkeypatch.setattr(module.segments, "write", full)
    world.worker.source.append(placed(world.packets[:2], topic="another"))
    world.worker.turn()
    assert world.worker._again_at == world.time + 0.5  # after a turn that went well it begins anew
    monkeypatch.undo()
    world.time += 1.0
    world.worker.turn()


def test_an_archive_that_is_away_when_partitions_are_taken_over_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.worker.turn(limit=20)
    with monkeypatch.context() as broken:
        broken.setattr(books_module, "note_topics", failing(READ_ONLY))
        broken.setattr(module.segments, "write", failing(READ_ONLY))
        assert world.worker.turn(limit=20).trouble
        world.time += 1.0
        report = world.worker.turn(limit=20)  # beginning again needs the archive too
        assert "the archive cannot be used" in report.trouble
    world.time += 10.0
    assert world.worker.turn().alerts == 40
    world.check()


def test_a_fenced_turn_whose_positions_cannot_be_read_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(world.worker.books.table, "append", failing(FencedError("another")))
        broken.setattr(books_module, "note_topics", failing(READ_ONLY))
        report = world.worker.turn(limit=20)
        assert (report.fenced, bool(report.trouble), report.alerts) == (True, True, 0)
    world.time += 10.0
    assert world.worker.turn().alerts == 60
    world.check()


def test_a_long_turn_whose_partitions_moved_is_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []

    def moved() -> None:
        kept.append(1)
        raise FencedError("moved")

    monkeypatch.setattr(world.worker.source, "keep", moved)
    report = world.worker.turn()
    assert (report.fenced, report.alerts, kept) == (True, 0, [1])
    monkeypatch.undo()
    assert world.worker.turn().alerts == 60
    world.check()


def test_an_error_of_our_own_is_not_hidden_as_trouble(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.worker.books.table, "append", failing(KeyError("a bug")))
    with pytest.raises(KeyError):
        world.worker.turn()


def test_a_worker_fenced_while_it_is_assigned_is_assigned_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are assigned at once: what `start` raises comes out of every `poll` until the source begins again."""
    source = world.worker.source
    with monkeypatch.context() as broken:
        broken.setattr(source, "poll", failing(FencedError("another worker writes the outputs")))
        for _ in range(5):  # each says so again, and none puts the next try off
            assert "another worker writes" in world.worker.turn().trouble
            world.time += 0.09
    rewound: list[float] = []
    rewind = source.rewind
    monkeypatch.setattr(source, "rewind", lambda: (rewound.append(world.time), rewind()))
    world.time = 100.55
    assert world.worker.turn().alerts == 60
    assert rewound == [100.55]
    world.check()
