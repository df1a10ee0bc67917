import pyarrow as pa

from raybroker.cluster.rows import WILD, Dates, first_night, from_bytes, to_bytes, value_at


class Nights:
    """A table of so many kept alerts by night, and of rejected ones without number."""

    def __init__(self, **counts: int) -> None:
        nights = [int(name[1:]) for name, count in counts.items() for _ in range(count)]
        outcomes = ["scored", "failed"] * len(nights)
        self.rows = pa.table(
            {
                "night": pa.array([*nights, *([20260909] * 50), None], pa.int32()),
                "outcome": [*outcomes[: len(nights)], *(["rejected"] * 50), "scored"],
            }
        )

    def read(self, names: list[str]) -> tuple[pa.Table, int]:
        return self.rows.select(names), 1


def test_a_new_trainer_begins_with_the_night_that_fills_the_pool() -> None:
    table = Nights(n20260901=9, n20260902=4, n20260903=3)
    assert [first_night(table, enough) for enough in (3, 4, 7, 8)] == [20260903, 20260902, 20260902, 20260901]  # type: ignore[arg-type]
    assert first_night(table, 16) is None  # type: ignore[arg-type]


def test_an_infinite_feature_of_the_archive_is_not_known() -> None:
    row = {"basic": {"snr": float("inf"), "age": 3, "rise": None}, "early": None}
    paths = ("basic.snr", "basic.age", "basic.rise", "early.rise", "late.rise")
    assert [value_at(row, path) for path in paths] == [None, 3.0, None, None, None]


def test_a_sample_comes_back_as_it_was() -> None:
    table = pa.table({"a": [1.0, None, 0.1]})
    assert from_bytes(to_bytes(table)).equals(table)


def test_a_few_wild_dates_do_not_say_how_far_the_stream_is() -> None:
    dates = Dates()
    assert dates.newest([]) == 0.0
    assert dates.newest([60000.0]) == 60000.0
    assert dates.newest([99999.0]) == 60000.0
    assert dates.newest([float("nan"), float("inf"), None, 60001.0]) == 60001.0
    assert dates.newest([*(60010.0 + i / 1000 for i in range(200)), *([99999.0] * (WILD - 1))]) < 60011.0
    assert dates.newest([60400.0] * 100) == 60400.0
    assert dates.newest([60010.0] * 100) == 60400.0  # what comes late turns nothing back
