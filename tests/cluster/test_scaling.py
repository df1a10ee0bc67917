"""How many workers there are, over simulated days: a queue of alerts, workers that take a while to start, visits, clouds."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybroker.cluster.scaling import Limits, Meter, Seen, State, ceiling, demand, target

CHANGES_A_NIGHT = 12  # the most that a night of visits may change the size, documented in docs/operations.md
VISIT_SECONDS, DAY_SECONDS, NIGHT_SECONDS = 39, 86_400, 36_000
TICK = 3
START_SECONDS = 12  # from asking for a worker until it works
LIMITS = Limits(least=2, most=8)


@dataclass
class World:
    """Workers that take so many seconds for an alert, and what waits for them; a look every three seconds."""

    seconds_per_alert: float
    limits: Limits = LIMITS
    partitions: int | None = 16
    noise: float = 0.2  # of what is measured of the seconds per alert
    seed: int = 0
    now: int = 0
    waiting: float = 0.0
    sizes: list[int] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state, self.meter = State(self.limits.least), Meter(0.0)
        self.dice = random.Random(self.seed)
        self.working = self.limits.least
        self.coming: list[int] = []

    def run(self, arrivals: Callable[[int], float], seconds: int, tick: int = TICK) -> World:
        """`arrivals(second)` are the alerts per second from then until the next tick."""
        for _ in range(0, seconds, tick):
            self._pass(tick * arrivals(self.now), tick)
        return self

    def _pass(self, arriving: float, tick: int) -> None:
        self.now += tick
        self.waiting += arriving
        self.working += sum(when <= self.now for when in self.coming)
        self.coming = [when for when in self.coming if when > self.now]
        done = min(self.waiting, tick * self.working / self.seconds_per_alert)
        self.waiting -= done
        self._measure(int(done))
        self._resize()
        self.sizes.append(self.state.workers)
        self.lags.append(self.waiting)

    def _measure(self, done: int) -> None:
        spent = done * self.seconds_per_alert * (1 + self.noise * self.dice.uniform(-1, 1))
        taken = {("t", p): (0, 0) for p in range(self.partitions or 0)} if done else {}
        self.meter.add(self.now, taken, done, {"commit": spent, "poll": 9.0, "step:x": 9.0}, {})

    def _resize(self) -> None:
        before = self.state.workers
        self.state = target(self.state, self.meter.seen(self.now, int(self.waiting)), self.limits)
        more = self.state.workers - before
        self.coming += [self.now + START_SECONDS] * more
        if more < 0:
            leaving = min(-more, len(self.coming))
            self.coming = self.coming[leaving:]
            self.working += more + leaving

    def changes(self, first: int = 0, end: int | None = None) -> int:
        sizes = self.sizes[first:end]
        return sum(a != b for a, b in itertools.pairwise(sizes))


def visits(size: Callable[[int], float]) -> Callable[[int], float]:
    """A visit every 39 s, within 3 s."""
    return lambda second: size(second // VISIT_SECONDS) / 3 if second % VISIT_SECONDS < 3 else 0.0


def nothing(_: int) -> float:
    return 0.0


def steady(_: int) -> float:
    return 10_000.0


def varied(visit: int) -> float:
    """Fields differ, one visit in twenty is of the plane of the Galaxy, and clouds come for half an hour."""
    dice = random.Random(visit // 4)
    if random.Random(visit // 46).random() < 0.1:
        return 0.0
    return 40_000.0 if dice.random() < 0.05 else 10_000 * dice.lognormvariate(-0.08, 0.4)


@pytest.mark.parametrize(
    ("size", "seconds_per_alert"), [(steady, 0.004), (varied, 0.0008), (varied, 0.004), (varied, 0.012)]
)
def test_a_week_of_visits_changes_the_size_a_few_times_a_night(
    seconds_per_alert: float, size: Callable[[int], float]
) -> None:
    world, nights = World(seconds_per_alert), []
    for _ in range(7):
        before = len(world.sizes)
        world.run(visits(size), NIGHT_SECONDS).run(nothing, DAY_SECONDS - NIGHT_SECONDS, tick=60)
        nights.append(world.changes(before))
    assert max(nights) <= CHANGES_A_NIGHT, nights
    if size is steady:
        assert max(nights[1:]) <= 6


@pytest.mark.parametrize("seconds_per_alert", [0.0008, 0.004, 0.012])
def test_the_lag_of_every_visit_is_gone_before_the_next(seconds_per_alert: float) -> None:
    world = World(seconds_per_alert).run(visits(steady), NIGHT_SECONDS)
    ends = world.lags[VISIT_SECONDS // TICK - 1 :: VISIT_SECONDS // TICK]
    assert len(ends) == NIGHT_SECONDS // VISIT_SECONDS
    assert max(ends[15:]) == 0  # after ten minutes


def test_workers_are_there_within_half_a_minute_of_a_burst_and_leave_only_after_an_hour_and_a_half() -> None:
    world = World(0.004)
    world.run(nothing, 16 * VISIT_SECONDS).run(visits(lambda _: 40_000.0), 9)
    assert world.state.workers > 2
    grown = world.state.workers
    world.run(nothing, 5_300)
    assert world.state.workers == grown
    world.run(nothing, 1_000)
    assert world.state.workers == 2


def test_a_peak_visit_is_drained_and_costs_two_changes() -> None:
    world = World(0.004).run(visits(lambda visit: 40_000.0 if visit == 50 else 5_000.0), 2 * 3600)
    peak, visit = 50 * VISIT_SECONDS // TICK, VISIT_SECONDS // TICK
    assert max(world.sizes) > world.sizes[peak - 1]
    assert world.changes(peak) <= 3
    assert world.lags[peak + 10 * visit - 1] == 0


@settings(max_examples=10, deadline=None)
@given(load=st.floats(0, 0.9), seed=st.integers(0, 1000))
def test_a_constant_load_that_the_least_can_carry_changes_nothing(load: float, seed: int) -> None:
    world = World(0.004, seed=seed, noise=0.1)
    world.run(lambda _: load * 2 / 0.004, 4_000)
    assert set(world.sizes) == {2}


@settings(max_examples=10, deadline=None)
@given(load=st.floats(0.9, 7.5), seed=st.integers(0, 1000))
def test_a_constant_load_changes_the_size_only_until_it_fits(load: float, seed: int) -> None:
    world = World(0.004, seed=seed)
    world.run(lambda _: load / 0.004, 12_000)
    assert world.changes(6_000 // TICK) == 0  # by then an overshoot is given back
    assert world.state.workers >= load
    assert world.waiting < 10_000


@settings(max_examples=100, deadline=None)
@given(
    least=st.integers(1, 6),
    more=st.integers(0, 10),
    partitions=st.none() | st.integers(1, 20),
    looks=st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 5000), st.floats(0, 1)), min_size=1),
    step=st.floats(0.1, 2000),
)
def test_the_size_stays_within_its_limits(
    least: int, more: int, partitions: int | None, looks: list[tuple[int, float, float]], step: float
) -> None:
    limits, state = Limits(least, least + more), State(least)
    for number, (lag, rate, cost) in enumerate(looks):
        state = target(state, Seen(number * step, lag, rate, cost, partitions), limits)
        assert least <= state.workers <= least + more
        assert partitions is None or state.workers <= max(least, partitions)


def test_there_are_never_more_workers_than_partitions_that_give_something() -> None:
    world = World(0.05, partitions=3).run(visits(steady), 300)
    assert world.state.workers == 3
    assert ceiling(Seen(0, 0, 0, 0, partitions=1), LIMITS) == LIMITS.least
    assert ceiling(Seen(0, 0, 0, 0), LIMITS) == LIMITS.most


def test_a_partition_that_is_quiet_for_an_hour_counts_no_more() -> None:
    meter = Meter(0.0)
    meter.add(1.0, {("old", 0): (1, 2), ("new", 0): (1, 2)}, 4, {}, {})
    meter.add(3000.0, {("new", 0): (3, 4)}, 2, {}, {})
    assert meter.seen(3000.0, 0).partitions == 2
    assert meter.seen(3700.0, 0).partitions == 1
    assert meter.seen(9000.0, 0).partitions is None


def test_the_meter_tells_the_rate_and_what_an_alert_costs() -> None:
    meter = Meter(0.0)
    for second in range(1, 601):
        meter.add(
            second, {}, 100, {"decode": 0.1, "pipeline": 0.2, "step:basic": 0.1, "poll": 5.0}, {"poll": 0.1}
        )
    seen = meter.seen(600.0, 7)
    assert seen.rate == pytest.approx(100, rel=0.02)
    assert seen.seconds_per_alert == pytest.approx(0.004)
    assert (seen.lag, seen.now) == (7, 600.0)
    assert demand(seen, LIMITS) == pytest.approx(0.004 * (seen.rate + 7 / 20))


def test_what_an_alert_costs_is_remembered_through_the_day() -> None:
    meter = Meter(0.0)
    meter.add(1.0, {}, 1000, {"pipeline": 4.0}, {})
    meter.add(200_000.0, {}, 0, {"pipeline": 0.0}, {})
    seen = meter.seen(200_001.0, 0)
    assert seen.seconds_per_alert == pytest.approx(0.004)
    assert seen.rate == 0.0


def test_a_burst_that_is_gone_within_seconds_asks_for_nobody() -> None:
    state, high, none = State(2, changed=0.0), 10**6, 0
    for now, lag, size in [(100, high, 2), (103, none, 2), (106, high, 2), (110, high, 2), (111, high, 8)]:
        state = target(state, Seen(now, lag, 0.0, 0.004), LIMITS)
        assert state.workers == size


def test_after_a_change_nothing_is_added_for_twenty_seconds() -> None:
    state = State(2, changed=0.0)
    sizes = []
    for now, lag in [(3, 10**6), (9, 10**6), (15, 10**6), (20, 10**6)]:
        state = target(state, Seen(now, lag, 0.0, 0.004), LIMITS)
        sizes.append(state.workers)
    assert sizes == [2, 2, 2, 8]
