"""How many workers a survey needs: a pure function of what is seen, and of what was seen before.

A worker's worth of work is the unit. `demand` is how many workers the stream asks for: its mean rate, and whatever
waits, to be gone within `drain_seconds`, times the seconds that one worker takes for an alert. Up is fast: what was
asked for `patience_seconds` on end is granted at once, in one step. Down is slow: to what the highest demand of the
last `hold_seconds` asks for, and a margin. So a stream that comes in bursts (a visit of Rubin every 39 s) is given what
its bursts need, and keeps it until an hour and a half has passed without one.

>>> limits = Limits(least=2, most=8)
>>> state = State(workers=2)
>>> for second in range(21):                   # 40,000 alerts wait; a worker takes 2 ms for each
...     state = target(state, Seen(second, lag=40_000, rate=256.0, seconds_per_alert=0.002), limits)
>>> state.workers                              # 2 ms x (256/s + 40,000 / 20 s) = 4.5 workers
5
>>> for second in range(21, 7000, 3):
...     state = target(state, Seen(second, lag=0, rate=256.0, seconds_per_alert=0.002), limits)
>>> state.workers
2
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

Peak = tuple[float, float]  # when, demand


@dataclass(frozen=True)
class Limits:
    """What bounds the size, and how fast it follows."""

    least: int
    most: int
    drain_seconds: float = 20.0  # half the time between two visits of Rubin
    patience_seconds: float = 5.0  # a burst that is gone in less asks for nobody
    settle_seconds: float = 20.0  # after a change: what it does to the lag is not seen earlier
    hold_seconds: float = 5400.0  # with 900 a night of varied fields changes the size 40 times
    margin: float = 1.3  # what stays beside the highest demand when some leave


@dataclass(frozen=True)
class Seen:
    """One look at a survey's stream."""

    now: float  # seconds, of any clock that does not go back
    lag: int  # packets that wait
    rate: float  # packets per second that were done, as a mean over some minutes
    seconds_per_alert: float  # of one worker; 0: not known yet
    partitions: int | None = None  # that give packets; None: not known yet


@dataclass(frozen=True)
class State:
    """How many workers there shall be, and what the next look must know of those before."""

    workers: int
    changed: float | None = None  # when the size last changed; the first look counts as one
    above: tuple[
        tuple[float, float], ...
    ] = ()  # (when, demand): since when it is above `workers`, and the highest
    peaks: tuple[
        tuple[float, float], ...
    ] = ()  # (when, demand), falling: the highest of the last hold_seconds


def target(state: State, seen: Seen, limits: Limits) -> State:
    """The next state; its `workers` is the size. Never below `least`, never above `most` or, where that is known, above
    the number of partitions, as far as `least` allows."""
    state = _remembered(state, seen.now, demand(seen, limits), limits)
    size = min(max(_wanted(state, seen.now, limits), limits.least), ceiling(seen, limits))
    return state if size == state.workers else replace(state, workers=size, above=(), changed=seen.now)


def demand(seen: Seen, limits: Limits) -> float:
    """How many workers the stream asks for, as a fraction."""
    return seen.seconds_per_alert * (seen.rate + seen.lag / limits.drain_seconds)


def ceiling(seen: Seen, limits: Limits) -> int:
    """The most that could have something to do."""
    most = max(limits.least, limits.most)
    return most if seen.partitions is None else min(most, max(limits.least, seen.partitions))


def _remembered(state: State, now: float, needed: float, limits: Limits) -> State:
    above: tuple[Peak, ...] = ()
    if needed > state.workers:
        began = state.above[0] if state.above else (now, needed)
        above = (began, max([(now, needed), *state.above], key=lambda peak: peak[1]))
    recent = [peak for peak in state.peaks if now - peak[0] < limits.hold_seconds and peak[1] > needed]
    if not recent or now - recent[-1][0] >= limits.hold_seconds / 60:  # else the one before stands for it
        recent.append((now, needed))
    changed = now if state.changed is None else state.changed
    return replace(state, above=above, peaks=tuple(recent), changed=changed)


def _wanted(state: State, now: float, limits: Limits) -> int:
    """Up, if it was asked for long enough; down, if for long enough nothing near the size was asked for."""
    still = now - (state.changed or 0.0)
    if state.above and now - state.above[0][0] >= limits.patience_seconds and still >= limits.settle_seconds:
        return max(state.workers, math.ceil(state.above[1][1]))
    if still >= limits.hold_seconds:
        return min(state.workers, math.ceil(state.peaks[0][1] * limits.margin))
    return state.workers


class Meter:
    """What a survey's turns tell, as means that forget: half of what was is forgotten in `half_life` seconds."""

    def __init__(self, now: float, half_life: float = 120.0, alive_seconds: float = 3600.0) -> None:
        self.half_life, self.alive_seconds = half_life, alive_seconds
        self._began = self._last = now
        self._alerts = self._seconds = self._cost = 0.0
        self._partitions: dict[tuple[str, int], float] = {}

    def add(
        self,
        now: float,
        taken: Mapping[tuple[str, int], tuple[int, int]],
        alerts: int,
        seconds: Mapping[str, float],
        cpu_seconds: Mapping[str, float],
    ) -> None:
        """One turn: what it took, how many alerts, and its seconds by stage. Of polling, only the CPU's count."""
        self._forget(now)
        self._partitions.update(dict.fromkeys(taken, now))
        if alerts:
            stages = sum(spent for stage, spent in seconds.items() if not stage.startswith(("poll", "step:")))
            self._alerts += alerts
            self._seconds += stages + cpu_seconds.get("poll", 0.0)
            self._cost = self._seconds / self._alerts

    def seen(self, now: float, lag: int) -> Seen:
        """One look, for `target`. Partitions are those that gave something within the last hour."""
        self._forget(now)
        if any(now - at >= self.alive_seconds for at in self._partitions.values()):
            alive = {key: at for key, at in self._partitions.items() if now - at < self.alive_seconds}
            self._partitions = alive
        known = 1 - 0.5 ** (max(now - self._began, 1.0) / self.half_life)
        rate = self._alerts * math.log(2) / self.half_life / known
        return Seen(now, lag, rate, self._cost, len(self._partitions) or None)

    def _forget(self, now: float) -> None:
        kept = 0.5 ** ((now - self._last) / self.half_life)
        self._alerts, self._seconds, self._last = self._alerts * kept, self._seconds * kept, now
