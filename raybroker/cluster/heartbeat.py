"""The supervisor's sign of life, as a small file in the archive's folder: the service shows it, and misses it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LATE_SECONDS = 15.0


@dataclass(frozen=True)
class Heartbeat:
    """`running.json` below `root`; written about once a second."""

    root: Path
    clock: Callable[[], float] = time.time

    @property
    def path(self) -> Path:
        return self.root / "running.json"

    def beat(self, told: Mapping[str, Any]) -> None:
        """Write it whole: no reader sees half of it."""
        self.root.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(".running.json.partial")
        partial.write_text(json.dumps({"heartbeat": self.clock(), **told}), encoding="utf-8")
        partial.replace(self.path)

    def read(self) -> dict[str, Any]:
        """The last beat; empty if there was none."""
        try:
            return dict(json.loads(self.path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return {}

    def problems(self) -> list[str]:
        """Why alerts may not be arriving; empty if the supervisor was heard a moment ago and is well."""
        last = self.read()
        if not last:
            return ["the workers' supervisor was never heard"]
        age = self.clock() - last["heartbeat"]
        late = [f"the workers' supervisor was last heard {age:.0f} s ago"] if age > LATE_SECONDS else []
        return late + [f"{name}: {trouble}" for name, trouble in last.get("troubles", {}).items()]
