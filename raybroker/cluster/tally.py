"""Running totals of the turns' reports: the progress line and the summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raybroker.cluster.gauges import Gauges

if TYPE_CHECKING:
    from raybroker.cluster.worker import Report

OUTCOMES = ("scored", "rejected", "failed", "dead", "duplicate")


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

    def add(self, worker: str, report: Report) -> None:
        """Count one turn of one worker."""
        self.outcomes.update(report.outcomes)
        self.reasons.update(report.reasons)
        self.sent.update(report.sent)
        self.seconds.update(report.seconds)
        self.cpu_seconds.update(report.cpu_seconds)
        self.outcomes.update({"expired": report.expired} if report.expired else {})
        self.lags[worker] = report.lag
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
