"""Who is looking at what: for as long as a claim holds, nobody else is asked the same.

A claim is of an object and a model, not of one question: a question that is withdrawn and asked anew is still held.
Claims are events of the `queries` log. The id of each is made from the id of the one before it, so that of two servers
that follow one archive, one only can take the next.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]
KEPT = 20_000  # the newest; whoever meets a forgotten one is told by the log

TOLD = (
    *("query_id", "model", "survey", "alert_id", "object_id", "strategy", "reason", "rank", "snapshot"),
    *("mjd", "ra", "dec", "magnitude", "classes", "probabilities"),
)


class Claim(NamedTuple):
    """The last that was claimed of an object: it holds until then (seconds since 1970)."""

    event_id: str
    who: str
    until: float


class Claims:
    """The last claim of each object, as the log tells it."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], Claim] = {}

    def add(self, row: Row) -> None:
        """A row of the `queries` log whose state is claimed. One that is told twice changes nothing."""
        until = row["until"].timestamp()
        known = self._last.get(_key(row))
        if known is None or (until, row["event_id"]) >= (known.until, known.event_id) or _follows(row, known):
            self._last.pop(_key(row), None)  # so that the newest is the last
            self._last[_key(row)] = Claim(row["event_id"], row["claim"], until)
        while len(self._last) > KEPT:
            self._last.pop(next(iter(self._last)))

    def last(self, row: Row) -> Claim | None:
        """The last claim of the object that this question is about."""
        return self._last.get(_key(row))

    def holder(self, row: Row, now: float) -> Claim | None:
        """The claim that holds now."""
        last = self.last(row)
        return last if last is not None and last.until > now else None


def event(row: Row, who: str, now: float, until: float, last: Claim | None) -> dict[str, Any]:
    """The row of the `queries` log by which `who` takes this question after the `last` claim of it."""
    return {
        **{name: row[name] for name in TOLD if name in row},
        "event_id": _next_id(row, last.event_id if last else ""),
        "state": "claimed",
        "claim": who,
        "until": _time(until),
        "when": _time(now),
    }


def _next_id(row: Row, last: str) -> str:
    return "claim-" + hashlib.sha256("|".join((*_key(row), last)).encode()).hexdigest()[:24]


def _follows(row: Row, known: Claim) -> bool:
    """A claim that was given back ends earlier than the one before it."""
    return bool(row["event_id"] == _next_id(row, known.event_id))


def _key(row: Row) -> tuple[str, str]:
    return row["model"], row.get("object_id") or row["alert_id"]


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
