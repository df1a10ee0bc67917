"""Numbers for Prometheus and `raybroker status`, gathered where the turns' reports arrive.

They ride in `running.json` (`heartbeat.py`), so that every replica of the service tells the same, and a restart of the
service sets none of them back. They are sums since the supervisor started.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raybroker.cluster.lesson import Lesson
    from raybroker.cluster.worker import Report

CLASSES = 40  # of reasons, per survey and outcome: what comes beyond is "other"
CLASS_LETTERS = 60
RATE_SECONDS = 10.0
STEP = "step:"


def class_of(reason: str) -> str:
    """What reasons have in common: the part before the first colon, every number as N, at most 60 letters."""
    return re.sub(r"\d+", "N", reason.partition(":")[0])[:CLASS_LETTERS].strip() or "unknown"


@dataclass
class Sums:
    """One survey's sums over its workers' reports, and its rate."""

    clock: Callable[[], float] = time.monotonic
    turns: int = 0
    fenced: int = 0
    troubled: int = 0
    expired: int = 0
    no_record: int = 0
    unknown_fields: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(default_factory=dict)  # outcome → class of reason, cut or step
    sent: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    cpu_seconds: Counter[str] = field(default_factory=Counter)
    _recent: list[tuple[float, int]] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Count one turn."""
        self.turns += 1
        self.fenced += report.fenced
        self.troubled += bool(report.trouble)
        self.expired += report.expired
        self.no_record += report.no_record
        self.unknown_fields += sum(report.unknown_fields.values())
        for name in ("outcomes", "sent", "seconds", "cpu_seconds"):
            getattr(self, name).update(getattr(report, name))
        for told, count in report.reasons.items():
            outcome, _, reason = told.partition(": ")
            self._count(self.reasons.setdefault(outcome, Counter()), class_of(reason), count)
        self._recent.append((self.clock(), report.alerts))

    def _count(self, known: Counter[str], name: str, count: int) -> None:
        known[name if name in known or len(known) < CLASSES else "other"] += count

    def rate(self) -> float:
        """Packets per second over the last ten seconds."""
        now = self.clock()
        self._recent = [(when, count) for when, count in self._recent if now - when < RATE_SECONDS]
        return sum(count for _, count in self._recent) / RATE_SECONDS

    def told(self) -> dict[str, Any]:
        """As plain JSON; a step's seconds apart from the stages', since they are part of one."""
        plain = ("turns", "fenced", "troubled", "expired", "no_record", "unknown_fields")
        steps = {name.removeprefix(STEP): s for name, s in self.seconds.items() if name.startswith(STEP)}
        return {
            **{name: getattr(self, name) for name in plain},
            "rate": round(self.rate(), 2),
            "outcomes": dict(self.outcomes),
            "reasons": {outcome: dict(counts) for outcome, counts in self.reasons.items()},
            "sent": dict(self.sent),
            "seconds": {name: s for name, s in self.seconds.items() if not name.startswith(STEP)},
            "step_seconds": steps,
            "cpu_seconds": dict(self.cpu_seconds),
        }


@dataclass
class Gauges:
    """All that the supervisor counts beside the `Tally`'s sums over everybody."""

    surveys: dict[str, Sums] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)  # by seat
    trainer: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    def add(self, worker: str, report: Report) -> None:
        """One turn of one worker, whose name begins with its survey's."""
        self.surveys.setdefault(survey_of(worker), Sums()).add(report)

    def taught(self, lesson: Lesson) -> None:
        """One turn of the trainer."""
        before = self.trainer
        self.trainer = {
            "turns": before.get("turns", 0) + 1,
            "seconds": before.get("seconds", 0.0) + sum(lesson.seconds.values()),
            "learned": before.get("learned", 0) + lesson.learned,
            "pool": dict(lesson.pool),
            "releases": dict(lesson.releases),
        }

    def told(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "started": self.started,
            "surveys": {name: sums.told() for name, sums in self.surveys.items()},
            "deaths": dict(self.deaths),
            "trainer": self.trainer,
        }


def survey_of(worker: str) -> str:
    """The survey of a worker's seat: `ztf` of `ztf-0`."""
    return worker.partition("-")[0]
