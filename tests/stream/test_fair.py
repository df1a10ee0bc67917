from collections.abc import Collection, Mapping

import pytest

from raybroker.stream.fair import ASK_SECONDS, FULL_POLLS, LONG_POLLS, Fair
from raybroker.stream.packets import TopicPartition

BACKLOG, TONIGHT, OLD = ("last night", 0), ("tonight", 0), ("last week", 0)


class World:
    """A backlog that fills polls, a partition where little waits, and one at its end."""

    def __init__(self) -> None:
        self.now = 100.0
        self.fair = Fair(lambda: self.now)
        self.positions = {BACKLOG: 0, TONIGHT: 10, OLD: 7}
        self.ends = {BACKLOG: 10**6, TONIGHT: 13, OLD: 7}
        self.asked: list[set[TopicPartition]] = []

    def poll(self, times: int = 1, full: bool = True) -> None:
        for _ in range(times):
            self.positions[BACKLOG] += 100
            self.fair.polled(self.positions, full)

    def end(self, keys: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        self.asked.append(set(keys))
        return {key: self.ends[key] for key in keys}

    def first(self, room: int = 100) -> set[TopicPartition]:
        return self.fair.first(self.positions, self.end, room)


@pytest.fixture
def world() -> World:
    made = World()
    made.poll(full=False)
    return made


def test_who_has_packets_and_got_none_in_full_polls_goes_first(world: World) -> None:
    world.poll(FULL_POLLS - 1)
    assert world.first() == set()
    world.poll()
    assert world.first() == {TONIGHT}
    assert world.asked == [{TONIGHT, OLD}]


def test_a_poll_that_gave_it_something_or_had_room_left_begins_anew(world: World) -> None:
    del world.positions[OLD]
    for full in (True, False):
        world.poll(FULL_POLLS - 1)
        world.positions[TONIGHT] += full
        world.poll(full=full)
        world.poll(FULL_POLLS - 1)
        assert world.first() == set()
    assert world.asked == []


def test_the_brokers_are_asked_seldom(world: World) -> None:
    world.poll(FULL_POLLS)
    world.first()
    world.poll(FULL_POLLS)
    assert world.first() == set()
    world.now += ASK_SECONDS
    assert world.first() == {TONIGHT}
    assert len(world.asked) == 2


def test_the_shortest_go_first_as_many_as_fill_half_a_poll() -> None:
    world = World()
    short = {("new", n): n for n in range(1, 20)}
    world.positions |= dict.fromkeys(short, 0)
    world.ends |= short
    world.poll()
    world.poll(FULL_POLLS)
    assert world.first(room=21) == {("new", n) for n in (1, 2, 3)} | {TONIGHT}  # 1 + 2 + 3 + 3, of 10


def test_where_all_have_a_backlog_nobody_goes_first_but_who_waited_very_long(world: World) -> None:
    world.ends[TONIGHT] = 1000
    world.poll(LONG_POLLS - 1)
    assert world.first() == set()
    world.poll()
    world.now += ASK_SECONDS
    assert world.first() == {TONIGHT}


def test_what_the_brokers_do_not_tell_and_what_went_away_does_not_go_first(world: World) -> None:
    world.poll(FULL_POLLS)
    assert world.fair.first(world.positions, lambda keys: {}, 100) == set()
    world.now += ASK_SECONDS
    del world.positions[TONIGHT]
    assert world.first() == set()


def test_while_polls_are_full_only_who_went_first_could_come(world: World) -> None:
    assert world.fair.could_come(world.positions) == world.positions
    world.poll(FULL_POLLS)
    assert world.fair.could_come(world.positions) == {}
    assert world.first() == {TONIGHT}
    assert world.fair.could_come(world.positions) == {TONIGHT: 10}
    assert world.fair.could_come(world.positions) == {}
    world.poll(full=False)
    assert world.fair.could_come(world.positions) == world.positions
