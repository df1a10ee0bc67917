"""What was opened and closed lately, for whoever listens: one bounded memory that all listeners read at their own pace.

A listener keeps only its place in it. So a slow one costs nothing, and finds out when it fell behind.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]
KEPT = 2_000


class Change(NamedTuple):
    """A row of the `queries` log that opened or closed a question."""

    number: int  # 1, 2, 3 ... in this process
    row: Row


class Changes:
    """The last `kept` changes. Threads may share it."""

    def __init__(self, kept: int = KEPT) -> None:
        self._changes: deque[Change] = deque(maxlen=kept)
        self._newest = 0
        self._listeners: dict[int, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self.closed = False

    @property
    def listening(self) -> int:
        """How many listen."""
        return len(self._listeners)

    def add(self, rows: Iterable[Row]) -> None:
        """Rows as they come; all listeners are woken."""
        with self._lock:
            before = self._newest
            for row in rows:
                self._newest += 1
                self._changes.append(Change(self._newest, row))
            woken = dict(self._listeners) if self._newest > before else {}
        self._wake(woken)

    def _wake(self, listeners: Mapping[int, Callable[[], None]]) -> None:
        for key, wake in listeners.items():
            try:
                wake()
            except RuntimeError:  # its event loop is closed: nobody is there any more
                self._forget(key)

    def after(self, number: int) -> list[Change] | None:
        """The changes since that one; None where some of them are forgotten."""
        with self._lock:
            first = self._changes[0].number if self._changes else self._newest + 1
            if number + 1 < first:
                return None
            return [change for change in self._changes if change.number > number]

    def number_of(self, event_id: str) -> int | None:
        """The number of the change that this event made, None where it is not (or no longer) known."""
        with self._lock:
            return next((c.number for c in reversed(self._changes) if c.row["event_id"] == event_id), None)

    def end(self) -> tuple[int, str]:
        """The number and the event of the last change; 0 and '' before the first."""
        with self._lock:
            return self._newest, str(self._changes[-1].row["event_id"]) if self._changes else ""

    def listen(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Have `wake` called, from any thread, whenever something changed; returns what ends that."""
        key = id(wake)
        with self._lock:
            self._listeners[key] = wake
        return lambda: self._forget(key)

    def _forget(self, key: int) -> None:
        with self._lock:
            self._listeners.pop(key, None)

    def close(self) -> None:
        """Tell the listeners that nothing more will come: the server goes away."""
        with self._lock:
            self.closed = True
            woken = dict(self._listeners)
        self._wake(woken)
