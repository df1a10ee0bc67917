"""What the trainer asks and takes back, as JSON to Kafka: one topic per model, one key per question.

A reader that knows an `event_id` already has seen that message: a message can come twice, since what Kafka may or may
not have stored is sent again. The last message of a key says how its question stands.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from raybroker.alerts import Packet
from raybroker.errors import RaybrokerError
from raybroker.settings import RequestsSettings
from raybroker.stream.packets import Place, Sink

log = logging.getLogger("raybroker")

PREFIX = "raybroker.queries."
TOLD = ("open", "answered", "withdrawn")  # a claim is between the people at the page
FIELDS = (
    *("event_id", "query_id", "state", "when", "model", "survey", "alert_id", "object_id"),
    *("mjd", "ra", "dec", "magnitude", "strategy", "reason", "rank", "snapshot"),
)
PLACE = Place("archive", "queries", "queries", 0)  # what the sink keeps our position under
KEPT = 10_000
BATCH = 500
PAUSE_SECONDS = 5.0  # between an attempt that failed and the next


def message(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the `queries` log as every channel tells it: probabilities by member and class; null is not known."""
    classes = row.get("classes") or ()
    said = {
        one["member"]: dict(zip(classes, one["probabilities"], strict=False))
        for one in row.get("probabilities") or ()
    }
    plain: dict[str, Any] = _plain({**{name: row.get(name) for name in FIELDS}, "probabilities": said})
    return plain | {"state": row.get("state") or "open"}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_within(row: Mapping[str, Any], limits: RequestsSettings) -> bool:
    """Whether a question is one that the limits let through; its end is judged as its beginning was."""
    dec, magnitude = row.get("dec"), row.get("magnitude")
    south = limits.dec_min is not None and (dec is None or dec < limits.dec_min)
    north = limits.dec_max is not None and (dec is None or dec > limits.dec_max)
    faint = limits.brighter_than is not None and (magnitude is None or magnitude >= limits.brighter_than)
    return not (south or north or faint) and (not limits.classes or _likeliest(row) in limits.classes)


def _likeliest(row: Mapping[str, Any]) -> str | None:
    said = {one["member"]: one["probabilities"] for one in row.get("probabilities") or ()}
    mixture, classes = said.get("mixture"), row.get("classes")
    return classes[max(range(len(classes)), key=mixture.__getitem__)] if mixture and classes else None


class Requests:
    """Sends without ever making the trainer wait: a thread of its own writes, and while Kafka is away things queue.

    Of what queues the newest `keep` are kept, and `dropped` counts the others. `send` is called at every turn, also
    with nothing: what failed is tried again then, at most every `pause` seconds.
    """

    def __init__(
        self,
        sink: Sink,
        prefix: str = PREFIX,
        keep: int = KEPT,
        pause: float = PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        limits: RequestsSettings | None = None,
    ) -> None:
        self.limits = limits or RequestsSettings()
        self.sink, self.prefix, self.keep, self.pause, self.clock = sink, prefix, keep, pause, clock
        self.dropped = self.sent = 0
        self._unsent: deque[Mapping[str, Any]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._position: int | None = None  # None: the sink is to be taken over first
        self._failed = -math.inf

    @property
    def unsent(self) -> int:
        """How many messages wait."""
        return len(self._unsent)

    def send(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Rows of the `queries` log, in their order. It returns at once."""
        with self._lock:
            told = (row for row in events if (row.get("state") or "open") in TOLD)
            self._unsent.extend(row for row in told if is_within(row, self.limits))
            self._drop()
            if not self._unsent or self._is_busy() or self.clock() - self._failed < self.pause:
                return
            self._thread = threading.Thread(target=self._work, name="requests", daemon=True)
            self._thread.start()

    def _drop(self) -> None:
        if (extra := len(self._unsent) - self.keep) > 0:
            if not self.dropped:
                log.warning("more than %d label requests wait for Kafka: the oldest are dropped", self.keep)
            self.dropped += extra
            for _ in range(extra):
                self._unsent.popleft()

    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Give the attempt that is under way so long; whether everything is sent."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self._unsent and not self._is_busy()

    def _work(self) -> None:
        while batch := self._take():
            try:
                self._write(batch)
            except Exception as error:  # whatever it is, asking goes on
                self._give_back(batch, error)
                return

    def _take(self) -> list[Mapping[str, Any]]:
        with self._lock:
            return [self._unsent.popleft() for _ in range(min(BATCH, len(self._unsent)))]

    def _write(self, batch: list[Mapping[str, Any]]) -> None:
        if self._position is None:
            self._position = self.sink.emitted([PLACE]).get(PLACE, 0)
        outputs: dict[str, list[Packet]] = {}
        for row in batch:
            outputs.setdefault(self.prefix + row["model"], []).append(packet(row))
        self.sink.write(PLACE, outputs, self._position + len(batch))
        self.sink.flush()
        self._position += len(batch)
        self.sent += len(batch)
        if self._failed > -math.inf:
            log.warning("label requests reach Kafka again")
            self._failed = -math.inf

    def _give_back(self, batch: list[Mapping[str, Any]], error: Exception) -> None:
        with self._lock:
            if self._failed == -math.inf:
                known = isinstance(error, RaybrokerError)
                log.warning("label requests wait, since %s", error, exc_info=None if known else error)
            self._failed, self._position = self.clock(), None
            self._unsent.extendleft(reversed(batch))
            self._drop()

    def close(self, seconds: float = 5.0) -> bool:
        """Try what is left, for so long at most; whether everything was sent."""
        self._failed = min(self._failed, self.clock() - self.pause)
        self.send(())
        sent = self.wait(seconds)
        if sent:
            self.sink.close()
        else:
            log.warning("%d label requests did not reach Kafka", self.unsent)
        return sent


def packet(row: Mapping[str, Any]) -> Packet:
    """One message: key the question, value JSON."""
    text = json.dumps(message(row), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Packet(text.encode(), key=row["query_id"].encode())
