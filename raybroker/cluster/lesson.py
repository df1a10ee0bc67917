"""What the trainer answers after a turn; apart from it, since whoever hears it need not load what it learns with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Lesson:
    """What a trainer's turn did."""

    snapshots: Mapping[str, tuple[int, str]]  # newest number and digest by model
    labels: Mapping[str, int]  # learned so far, by model
    open: Mapping[str, int]  # questions that stand open
    pool: Mapping[str, int]
    learned: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    releases: Mapping[str, int] = field(default_factory=dict)  # to MLflow: logged, waiting, dropped
    restored: Mapping[str, int] = field(
        default_factory=dict
    )  # labels that a kept state knew at the start, by model
    relearned: Mapping[str, int] = field(default_factory=dict)  # labels that were learned again at the start
