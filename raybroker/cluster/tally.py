"""Running totals of the turns' reports: the progress line and the summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raybroker.cluster.gauges import Gauges, survey_of

if TYPE_CHECKING:
    from raybroker.cluster.worker import Report

OUTCOMES = ("scored", "rejected", "failed", "dead", "duplicate")
PARTITIONS = 200  # of a survey, whose lag is told by itself: what waits in more of them is under "other"
OTHER = "other"


@dataclass
class Tally:
    """Sums over reports, and the rate over the last seconds."""

    clock: Callable[[], float] = time.monotonic
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)  # by stage, over all workers
    cpu_seconds: Counter[str] = field(default_factory=Counter)
    lags: dict[str, int] = field(default_factory=dict)
    turns: int = 0
    deaths: int = 0
    gauges: Gauges = field(default_factory=Gauges)  # the same by survey, and more, for Prometheus
    _recent: list[tuple[float, int]] = field(default_factory=list)
    _parts: dict[str, Mapping[tuple[str, int], int]] = field(default_factory=dict)  # who told last is last

    def add(self, worker: str, report: Report) -> None:
        """Count one turn of one worker."""
        self.outcomes.update(report.outcomes)
        self.reasons.update(report.reasons)
        self.sent.update(report.sent)
        self.seconds.update(report.seconds)
        self.cpu_seconds.update(report.cpu_seconds)
        self.outcomes.update({"expired": report.expired} if report.expired else {})
        self.lags[worker] = report.lag
        self._parts.pop(worker, None)
        self._parts[worker] = report.lags
        self.turns += 1
        self.gauges.add(worker, report)
        self._recent.append((self.clock(), report.alerts))

    def lost(self, worker: str) -> None:
        """A worker died: what it said of its lag holds no longer."""
        self.deaths += 1
        self.gauges.deaths[worker] += 1
        self.lags.pop(worker, None)

    @property
    def received(self) -> int:
        """All packets, whatever became of them; not those that expired before they were read."""
        return sum(self.outcomes[name] for name in OUTCOMES)

    @property
    def lag(self) -> int:
        """Packets that wait, as the workers last said."""
        return sum(self.lags.values())

    def partition_lags(self, most: int = PARTITIONS) -> dict[str, dict[str, dict[str, int]]]:
        """Packets that wait by survey, topic and partition, for JSON, where somebody reads them now.

        A partition that moved is told as its last reader said. Beyond `most` of a survey, the fullest stand for
        themselves, and the sum of all others under the topic and the partition 'other'.
        """
        merged: dict[str, dict[tuple[str, int], int]] = {}
        for worker, lags in self._parts.items():
            if worker in self.lags:  # else it has left
                merged.setdefault(survey_of(worker), {}).update(lags)
        return {survey: _by_topic(lags, most) for survey, lags in merged.items()}

    def rate(self, window: float = 5.0) -> float:
        """Packets per second over the last seconds."""
        now = self.clock()
        self._recent = [(when, count) for when, count in self._recent if now - when < window]
        return sum(count for _, count in self._recent) / window

    def totals(self) -> dict[str, Any]:
        """Everything, as plain JSON."""
        return {
            "received": self.received,
            **{name: dict(getattr(self, name)) for name in ("outcomes", "reasons", "sent", "lags")},
            "turns": self.turns,
            "deaths": self.deaths,
            "seconds": dict(self.seconds),
            "cpu_seconds": dict(self.cpu_seconds),
        }

    def line(self, snapshots: Mapping[str, int]) -> str:
        """The progress line."""
        counts = " · ".join(
            f"{self.outcomes[name]:,} {name}" for name in (*OUTCOMES, "expired") if self.outcomes[name]
        )
        models = " · ".join(f"{name} #{number}" for name, number in snapshots.items())
        return f"{self.received:,} in · {counts or 'waiting'} · {self.rate():,.0f}/s · lag {self.lag:,}" + (
            f" · {models}" if models else ""
        )


def _by_topic(lags: Mapping[tuple[str, int], int], most: int) -> dict[str, dict[str, int]]:
    """Where equally many wait, the later topic first: its name ends in the night."""
    fullest = sorted(lags.items(), key=lambda item: (item[1], item[0]), reverse=True)
    found: dict[str, dict[str, int]] = {}
    for (topic, partition), lag in fullest[:most]:
        found.setdefault(topic, {})[str(partition)] = lag
    if rest := fullest[most:]:
        found.setdefault(OTHER, {})[OTHER] = sum(lag for _, lag in rest)
    return found
