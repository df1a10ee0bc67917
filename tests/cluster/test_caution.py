from raybroker.cluster.caution import Caution

PLACE = ("ztf", 0)


def hunt(poison: int, last: int, size: int) -> tuple[Caution, int]:
    """Workers die on one offset; how many deaths it takes until it is known."""
    caution, position, deaths = Caution(), 0, 0
    while position <= last:
        end = min(position + (caution.limit or size) - 1, last)
        taken = {PLACE: (position, end)}
        if position <= poison <= end and (*PLACE, poison) not in caution.dead:
            caution.lost(taken)
            deaths += 1
        else:
            caution.finished(taken)
            position = end + 1
    return caution, deaths


def test_the_packet_that_kills_is_found_in_few_deaths_and_normal_turns_return() -> None:
    for poison in (0, 399, 700, 999):
        caution, deaths = hunt(poison, 1999, 400)
        assert deaths <= 6
        assert caution.limit is None
        assert caution.dead == {}


def test_one_death_alone_condemns_nobody() -> None:
    caution = Caution()
    caution.lost({PLACE: (5, 5)})
    assert caution.dead == {}
    caution.finished({PLACE: (5, 5)})
    assert caution.limit is None
    caution.lost({PLACE: (6, 6)})
    assert caution.dead == {}


def test_a_death_before_anything_was_taken_suspects_nothing() -> None:
    caution = Caution()
    caution.lost({})
    assert (caution.limit, caution.suspects) == (None, {})


def test_the_reason_of_the_second_death_is_kept() -> None:
    caution = Caution()
    caution.lost({PLACE: (5, 5)})
    caution.lost({PLACE: (5, 5)}, "overruns the deadline of 3 s")
    assert caution.dead == {("ztf", 0, 5): "overruns the deadline of 3 s"}
