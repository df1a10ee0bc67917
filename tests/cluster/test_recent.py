import numpy as np

from raybroker.cluster.recent import Recent


def ids(*numbers: int) -> list[str]:
    return [f"ztf:{number}" for number in numbers]


def test_an_id_is_new_once() -> None:
    recent = Recent()
    assert recent.add(ids(1, 2, 1, 3)).tolist() == [True, True, False, True]
    assert recent.add(ids(3, 4, 1)).tolist() == [False, True, False]
    assert recent.add([]).tolist() == []


def test_what_the_archive_knew_is_not_new() -> None:
    assert Recent(ids(1, 2)).add(ids(2, 3)).tolist() == [False, True]


def test_ids_in_any_order_are_found_again() -> None:
    numbers = np.random.default_rng(1).permutation(5_000)
    recent = Recent()
    for part in np.array_split(numbers, 13):
        assert recent.add(ids(*part)).all()
    assert not recent.add(ids(*numbers)).any()


def test_it_remembers_at_least_half_its_size_and_never_more_than_all() -> None:
    recent = Recent(size=1000)
    for first in range(0, 10_000, 100):
        assert recent.add(ids(*range(first, first + 100))).all()
        assert not recent.add(ids(*range(max(0, first - 400), first))).any()
        assert len(recent._newer) + len(recent._older) <= 1000
    assert recent.add(ids(*range(100))).all()  # forgotten long ago


def test_more_known_ids_than_it_holds_keep_the_last() -> None:
    recent = Recent(ids(*range(1500)), size=1000)
    assert not recent.add(ids(*range(1000, 1500))).any()
