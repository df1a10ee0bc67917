"""The supervisor's sign of life, as a small file in the archive: the service shows it, and misses it.

It never stops what it tells of: where it cannot be written, it is missed, and that is its message.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raybroker.archive import store
from raybroker.errors import ArchiveError
from raybroker.places import Place

LATE_SECONDS = 15.0
FRESH_SECONDS = 1.0  # a beat that was read from an object store holds so long
STORE_SECONDS = 5.0  # between beats in an object store, where each is a request that costs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heartbeat:
    """`running.json` below `root`; written about once a second, in an object store every five."""

    root: Place
    clock: Callable[[], float] = time.time
    _last: dict[str, Any] = field(default_factory=lambda: {"at": -1e9, "troubles": None, "error": ""})
    _seen: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)

    @property
    def path(self) -> Place:
        return self.root / "running.json"

    def beat(self, told: Mapping[str, Any]) -> None:
        """Write it whole: no reader sees half of it. News of troubles are told at once, the rest when it is due."""
        now, troubles = self.clock(), told.get("troubles")
        recent = abs(now - self._last["at"]) < STORE_SECONDS and troubles == self._last["troubles"]
        if recent and not isinstance(self.root, Path):
            return
        self._last.update(at=now, troubles=troubles)
        try:
            self._write(json.dumps({"heartbeat": now, **told}).encode())
        except (OSError, ArchiveError) as error:
            if str(error) != self._last["error"]:
                logger.warning("the heartbeat could not be written: %s", error)
            self._last["error"] = str(error)
        else:
            self._last["error"] = ""

    def _write(self, content: bytes) -> None:
        if not isinstance(self.root, Path):
            store.replace(self.path, content)
            return
        self.root.mkdir(parents=True, exist_ok=True)
        partial = self.root / ".running.json.partial"
        partial.write_bytes(content)
        partial.replace(self.root / "running.json")

    def read(self) -> dict[str, Any]:
        """The last beat; empty if there was none, or it cannot be read."""
        try:
            return self._read()
        except (OSError, ArchiveError):
            return {}

    def _read(self) -> dict[str, Any]:
        """In an object store it may be a second old: each request to the service may ask."""
        at, found = self._seen.get("beat", (-1e9, {}))
        if isinstance(self.root, Path) or abs(self.clock() - at) >= FRESH_SECONDS:
            try:
                found = dict(json.loads(store.read(self.path)))
            except (FileNotFoundError, ValueError):
                found = {}
            self._seen["beat"] = self.clock(), found
        return dict(found)

    def problems(self) -> list[str]:
        """Why alerts may not be arriving; empty if the supervisor was heard a moment ago and is well."""
        try:
            last = self._read()
        except (OSError, ArchiveError) as error:
            return [f"the archive cannot be read: {error}"]
        if not last:
            return ["the workers' supervisor was never heard"]
        age = self.clock() - last["heartbeat"]
        late = [f"the workers' supervisor was last heard {age:.0f} s ago"] if age > LATE_SECONDS else []
        return late + [f"{name}: {trouble}" for name, trouble in last.get("troubles", {}).items()]
