"""Workers and trainer one after the other in one process, without Ray: for cron, a notebook, a look inside.

The same turns as with Ray. What it cannot do is survive a packet that kills the process, or a step that never ends.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from raybroker.cluster import assemble, incidents
from raybroker.cluster.lesson import Lesson
from raybroker.cluster.tally import Tally
from raybroker.cluster.worker import Report
from raybroker.settings import Settings

log = logging.getLogger("raybroker")


@dataclass
class Single:
    """One worker per survey, and the trainer; the face of `Supervisor`."""

    settings: Settings
    tally: Tally = field(default_factory=Tally)
    snapshots: dict[str, tuple[int, str]] = field(default_factory=dict)
    lesson: Lesson | None = None
    troubles: dict[str, str] = field(default_factory=dict)  # by survey: what is away and waited for

    def __post_init__(self) -> None:
        self.snapshots = {**assemble.standing(self.settings), **self.snapshots}
        self.workers = {name: assemble.worker(self.settings, name, 0) for name in self.settings.surveys}
        self.trainer = assemble.trainer(self.settings) if self.settings.models else None
        self.ready = True

    def step(self, seconds: float = 0.2) -> list[Report]:
        """A turn of everyone."""
        if self.trainer is not None:
            self.lesson = self.trainer.turn()
            self.snapshots.update(self.lesson.snapshots)
            self.tally.gauges.taught(self.lesson)
        reports = []
        for name, (worker, models) in self.workers.items():
            worker.pin(models.newer(self.snapshots))
            reports.append(worker.turn())
            self.tally.add(name, reports[-1])
            incidents.tell(name, name, reports[-1].incidents)
        told = zip(self.workers, reports, strict=True)
        self.troubles = {name: report.trouble for name, report in told if report.trouble}
        return reports

    def drained(self) -> bool:
        """Whether all is polled that was there when the partitions were assigned."""
        ended = all(worker.source.end_reached() for worker, _ in self.workers.values())
        return ended and not self.troubles

    def told(self) -> dict[str, Any]:
        """Nothing: nobody sits elsewhere."""
        return {}

    def stop(self, seconds: float = 6.0) -> list[Report]:
        """A last lesson, and everyone leaves."""
        if self.trainer is not None:
            self.lesson = self.trainer.turn()
            self.trainer.close()
        for worker, _ in self.workers.values():
            worker.close()
        return []
