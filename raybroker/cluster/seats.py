"""A place for one actor, without Ray: who sits there, what it was asked, how often it died, and when it is tried again."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

BACK_OFF = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
TELL_WAITING_SECONDS = 180.0  # a cluster that grows needs a minute or two for a node


@dataclass
class Seat:
    """A worker's place, or the trainer's. `actor`, `placed`, `taken` and `answer` are Ray's."""

    name: str
    survey: str = ""  # empty: the trainer's
    index: int = 0
    actor: Any = None
    pid: int = 0  # of the actor that is ready; 0: none is
    asked: float = 0.0
    placed: Any = None  # reference that answers as soon as the actor has a process
    taken: Any = None  # reference to what the turn took
    answer: Any = None  # reference to what we wait for
    deaths: int = 0  # in a row: since a turn was finished
    error: str = ""  # the last
    free_from: float = 0.0
    waits_since: float | None = None  # for a node with room
    served: bool = False  # an actor was ready here once
    drained: bool = False
    leaving: bool = False  # is asked no more turns

    def hired(self, actor: Any, now: float) -> None:
        """Somebody sits down; it is asked whether it is ready."""
        self.actor, self.asked, self.waits_since = actor, now, now
        self.placed, self.taken, self.answer = actor.placed.remote(), None, actor.ready.remote()

    def ready(self, pid: int) -> None:
        """It can work. That alone forgives no deaths: a worker may die in its first turn, again and again."""
        self.pid, self.served, self.placed, self.waits_since = pid, True, None, None

    def worked(self) -> None:
        """A turn is finished."""
        self.deaths, self.error = 0, ""

    def lost(self, now: float, error: str, counts: bool) -> None:
        """It is gone. The next try comes later with every death in a row; what was not its fault does not count."""
        wait = BACK_OFF[min(self.deaths, len(BACK_OFF) - 1)] if counts else 0.0
        self.deaths += counts
        self.error, self.free_from = error, now + wait
        self.drained, self.pid, self.waits_since = False, 0, None
        self.actor = self.placed = self.taken = self.answer = None

    def crashes(self) -> str:
        """What to tell of deaths in a row."""
        wait = BACK_OFF[min(self.deaths - 1, len(BACK_OFF) - 1)]
        return f"died {self.deaths} times in a row, each next try comes later, now after {wait:g} s: {self.error}"

    def told(self, now: float) -> dict[str, Any]:
        """As the heartbeat tells it."""
        state = "works" if self.pid else "starts"
        if self.actor is None:
            state = "rests"
        elif self.waits_since is not None:
            state = "waits for a node with room"
        next_try = max(0.0, self.free_from - now) if self.actor is None else 0.0
        return {
            "state": "leaves" if self.leaving else state,
            "process": self.pid,
            "deaths_in_a_row": self.deaths,
            "next_try_seconds": round(next_try, 1),
            "last_error": self.error,
        }


def resize(seats: Iterable[Seat], survey: str, size: int) -> tuple[list[Seat], list[Seat]]:
    """New seats, and those that shall leave, so that the survey has `size`: who has not begun leaves first, then the
    last to have come."""
    mine = [seat for seat in seats if seat.survey == survey]
    staying = sorted((seat for seat in mine if not seat.leaving), key=lambda seat: (not seat.pid, seat.index))
    free = _free_indices({seat.index for seat in mine}, size - len(staying))
    return [Seat(f"{survey}-{index}", survey, index) for index in free], staying[size:]


def _free_indices(used: Collection[int], count: int) -> list[int]:
    most = len(used) + max(0, count)
    return [index for index in range(most) if index not in used][: max(0, count)]
