from __future__ import annotations

from raybroker.cluster.seats import BACK_OFF, Seat, resize


def test_the_next_try_comes_later_with_every_death_in_a_row() -> None:
    seat, waits = Seat("ztf-0", "ztf"), []
    for _ in range(8):
        seat.lost(100.0, "boom", counts=True)
        waits.append(seat.free_from - 100.0)
    assert tuple(waits) == (*BACK_OFF, BACK_OFF[-1], BACK_OFF[-1])
    assert seat.crashes() == "died 8 times in a row, each next try comes later, now after 30 s: boom"
    told = seat.told(110.0)
    assert (told["deaths_in_a_row"], told["next_try_seconds"], told["last_error"]) == (8, 20.0, "boom")
    assert told["state"] == "rests"


def test_only_a_finished_turn_forgives_deaths() -> None:
    seat = Seat("ztf-0", "ztf")
    seat.lost(0.0, "boom", counts=True)
    seat.ready(17)
    assert seat.deaths == 1
    seat.worked()
    assert (seat.deaths, seat.error, seat.pid) == (0, "", 17)


def test_what_was_not_its_fault_is_tried_again_at_once_and_not_counted() -> None:
    seat = Seat("ztf-0", "ztf", pid=17, deaths=3)
    seat.lost(5.0, "its node has died", counts=False)
    assert (seat.deaths, seat.free_from, seat.pid, seat.actor) == (3, 5.0, 0, None)


def test_growing_takes_the_lowest_free_numbers() -> None:
    seats = [Seat("ztf-0", "ztf", 0), Seat("ztf-2", "ztf", 2, leaving=True), Seat("trainer")]
    new, leaving = resize(seats, "ztf", 3)
    assert [seat.name for seat in new] == ["ztf-1", "ztf-3"]
    assert leaving == []
    assert [seat.name for seat in resize([], "ztf", 2)[0]] == ["ztf-0", "ztf-1"]


def test_who_has_not_begun_leaves_first_then_the_last_to_have_come() -> None:
    seats = [Seat(f"ztf-{i}", "ztf", i, pid=0 if i == 1 else 10 + i) for i in range(4)] + [
        Seat("fink-0", "fink")
    ]
    assert [seat.name for seat in resize(seats, "ztf", 2)[1]] == ["ztf-3", "ztf-1"]
    assert resize(seats, "ztf", 4) == ([], [])
