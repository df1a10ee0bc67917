from collections.abc import Collection, Mapping

from raybroker.stream.packets import TopicPartition
from raybroker.stream.stuck import Stuck

A, B, C = ("night", 0), ("night", 1), ("night", 2)


def twenty(keys: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
    return dict.fromkeys(keys, 20)


def test_a_partition_that_stands_still_before_its_end_at_two_looks_is_stuck() -> None:
    stuck = Stuck()
    assert stuck.look({A: 10, B: 10, C: 20}, twenty) == set()
    assert stuck.look({A: 10, B: 15, C: 20}, twenty) == set()
    assert stuck.look({A: 10, B: 15, C: 20}, twenty) == {A}
    assert stuck.look({A: 10, B: 15, C: 20}, twenty) == {B}


def test_a_packet_that_comes_to_an_idle_partition_just_before_a_look_is_no_trouble() -> None:
    stuck, end = Stuck(), {A: 10}
    for _ in range(3):
        assert stuck.look({A: 10}, lambda keys: end) == set()
    end[A] = 11
    assert stuck.look({A: 10}, lambda keys: end) == set()
    assert stuck.look({A: 11}, lambda keys: end) == set()


def test_the_brokers_are_asked_of_those_alone_that_stand_still() -> None:
    stuck, asked = Stuck(), list[list[TopicPartition]]()

    def end(keys: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        asked.append(list(keys))
        return dict.fromkeys(keys, 10)

    stuck.look({A: 1, B: 1}, end)
    stuck.look({A: 2, B: 1}, end)
    assert asked == [[B]]


def test_a_partition_that_comes_back_is_looked_at_anew() -> None:
    stuck = Stuck()
    stuck.look({A: 10}, twenty)
    stuck.look({A: 10}, twenty)
    stuck.look({}, twenty)
    assert stuck.look({A: 10}, twenty) == set()
    assert stuck.look({A: 10}, twenty) == set()


def test_brokers_that_do_not_answer_say_nothing_of_it() -> None:
    stuck = Stuck()
    for _ in range(4):
        assert stuck.look({A: 10}, lambda keys: {}) == set()
