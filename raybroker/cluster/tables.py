"""What the archive's own log tells whoever watches: commits, live files, merges, room on the disk, and the last audits."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybroker.archive import compact, delta, store
from raybroker.errors import RaybrokerError
from raybroker.places import Place

if TYPE_CHECKING:
    from raybroker.cluster.audit import Audit

LOOK_SECONDS = 15.0
AUDITED = "audited.json"  # what the last audit of each survey found

logger = logging.getLogger(__name__)


class Tables:
    """What the archive's own log tells: commits, live files and merges of every table. Looked at now and then."""

    def __init__(self, root: Place, clock: Callable[[], float] = time.monotonic) -> None:
        self.root, self.clock = root, clock
        self._handles: dict[Place, Any] = {}  # of deltalake
        self._looked = -LOOK_SECONDS
        self._looking = threading.Lock()  # one thread looks, the others are told what was known
        self._known: dict[str, Any] = {}

    def __call__(self) -> dict[str, Any]:
        """By table; `free_bytes` of the disk, None in an object store; `audits` by survey."""
        if self.clock() - self._looked >= LOOK_SECONDS and self._looking.acquire(blocking=False):
            try:
                self._known = self._look_or_known()
                self._looked = self.clock()
            finally:
                self._looking.release()
        return self._known

    def _look_or_known(self) -> dict[str, Any]:
        try:
            return self._look()
        except Exception as error:  # damage as deltalake tells it too: whoever watches is told the rest
            logger.warning("the archive's tables could not be looked at: %s", error)
            return self._known

    def _look(self) -> dict[str, Any]:
        found = compact.tables(self.root) if store.exists(self.root) else []
        return {
            "tables": {str(f.relative_to(self.root)): self._table(f) for f in found},  # type: ignore[arg-type]
            "free_bytes": shutil.disk_usage(self.root).free if _is_there(self.root) else None,
            "audits": audits(self.root),
        }

    def _table(self, folder: Place) -> dict[str, int]:
        if folder not in self._handles:
            self._handles[folder] = delta.open_table(folder)
        handle = self._handles[folder]
        delta.update(handle)
        files = delta.live(handle)
        return {
            "commits": handle.version() + 1,
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "merges": handle.transaction_version(compact.APP_ID) or 0,
        }


def _is_there(root: Place) -> bool:
    return isinstance(root, Path) and root.exists()


def audited(root: Place, found: Audit, surveys: Iterable[str], now: float) -> None:
    """Note what an audit of these surveys found, for whoever watches. It never stops the audit."""
    wrong = Counter(one.survey for one in found.wrong)
    news = {name: {"when": now, "wrong": wrong[name]} for name in surveys}
    try:
        store.replace(root / AUDITED, json.dumps(audits(root) | news).encode())
    except (OSError, RaybrokerError) as error:
        logger.warning("what the audit found could not be noted: %s", error)


def audits(root: Place) -> dict[str, Any]:
    """By survey: when it was audited last, and how many ranges were wrong; empty if never."""
    try:
        return dict(json.loads(store.read(root / AUDITED)))
    except (FileNotFoundError, ValueError):
        return {}
