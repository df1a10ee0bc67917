from raybroker.stream.stuck import Stuck

A, B, C = ("night", 0), ("night", 1), ("night", 2)


def test_a_partition_that_stands_still_before_its_end_is_stuck() -> None:
    stuck, ends = Stuck(), {A: 20, B: 20, C: 10}
    assert stuck.look({A: 10, B: 10, C: 10}, ends.__getitem__) == set()
    assert stuck.look({A: 10, B: 15, C: 10}, ends.__getitem__) == {A}


def test_the_broker_is_asked_of_those_alone_that_stand_still() -> None:
    stuck, asked = Stuck(), list[tuple[str, int]]()

    def end(key: tuple[str, int]) -> int:
        asked.append(key)
        return 10

    stuck.look({A: 1, B: 1}, end)
    stuck.look({A: 2, B: 1}, end)
    assert asked == [B]


def test_a_partition_that_comes_back_is_looked_at_anew() -> None:
    stuck = Stuck()
    stuck.look({A: 10}, lambda key: 20)
    stuck.look({}, lambda key: 20)
    assert stuck.look({A: 10}, lambda key: 20) == set()
