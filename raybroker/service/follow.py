"""Follows the archive: what a worker or the trainer commits is in the `View` a fraction of a second later.

A row is told from one that was seen by its offset, so that a tail which begins again (the log keeps a quarter of an
hour) counts nothing twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker.archive import delta
from raybroker.archive.events import EventLog, dicts
from raybroker.archive.lookup import Lookup
from raybroker.archive.table import AlertsTable
from raybroker.places import Place
from raybroker.service.asked import Asked
from raybroker.service.view import PLAIN, View, is_score

SECONDS = 0.2  # between looks; without news a look costs two failed opens per table
STORE_SECONDS = 1.0  # the same in an object store, where they are two requests
LOGS = ("labels", "queries", "snapshots")
HEAVY = ("features",)  # of a query: the trainer's, not shown
BEFORE = """select night, outcome, reason, topic, "partition" as "partition",
    count(*)::bigint as alerts, max("offset") as last, max(stored) as stored from {} group by all"""
NEWEST = """select {} from {} where night is null or list_contains($nights, night)
    order by stored desc, topic, "partition", "offset" desc limit $rows"""

logger = logging.getLogger(__name__)


class Follower:
    """Polls the tails of the archive under `root` and fills `view` and `asked`, in a thread of its own or by `step`."""

    def __init__(
        self,
        root: Place,
        surveys: Sequence[str],
        view: View,
        asked: Asked,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.root, self.view, self.asked, self.clock = root, view, asked, clock
        self.surveys = {name: _SurveyTail(root, name, view) for name in surveys}
        self._logs = {name: _LogTail(root, name) for name in LOGS}
        self._reading = threading.Lock()  # of the logs
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.last_look = 0.0
        self.delay: float | None = (
            None  # seconds from the newest packet's publication until it could be read here
        )
        self.error = ""

    def step(self) -> int:
        """One look at everything; returns how many rows of alerts were new."""
        new = 0
        for tail in self.surveys.values():
            rows = tail.step()
            if rows is not None and len(rows):
                new += len(rows)
                self._measure(rows)
        self.refresh()
        self.last_look, self.error = self.clock(), ""
        return new

    def refresh(self) -> None:
        """One look at the logs now: what another server has just recorded may be asked about here."""
        with self._reading:
            for name, log in self._logs.items():
                if rows := log.step():
                    getattr(self.asked, f"add_{name}")(rows)

    def _measure(self, rows: pa.Table) -> None:
        newest = pc.max(rows["published"]).as_py()
        self.delay = None if newest is None else self.clock() - newest / 1000

    def start(self) -> None:
        """Look every fifth of a second until `stop`."""
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.step()
            except (
                Exception
            ) as error:  # whatever it is, serving what is in memory goes on, and /health says it
                if str(error) != self.error:
                    logger.exception("the archive at %s could not be followed; trying on", self.root)
                self.error = str(error) or type(error).__name__
            self._stop.wait(SECONDS if isinstance(self.root, Path) else STORE_SECONDS)

    def problems(self) -> list[str]:
        """Why the view may be behind the archive; empty if it is not."""
        if self.error:
            return [f"the archive cannot be followed: {self.error}"]
        if not self.last_look:
            return ["the archive was not looked at yet"]
        age = self.clock() - self.last_look
        return [f"the archive was last looked at {age:.0f} s ago"] if age > 5 else []


class _SurveyTail:
    """One survey's `alerts`: first what is there, newest nights only, then what comes."""

    def __init__(self, root: Place, survey: str, view: View) -> None:
        self.root, self.survey, self.view = root, survey, view
        self._table: AlertsTable | None = None
        self._since = -1
        self._next: dict[tuple[str, int], int] = {}
        self._plans: set[str] = set()

    def step(self) -> pa.Table | None:
        """New rows, already in the view; None as long as there is no table."""
        if self._table is None and not self._open():
            return None
        rows, version = self._tail()
        if new_plans := set(rows["plan"].unique().to_pylist()) - self._plans:
            self._plans |= new_plans  # a plan may have added columns to the table since it was opened
            self._table = self._reader()
            rows, version = self._tail()
        rows = self._unseen(rows)
        self.view.add_alerts(self.survey, rows)
        self._since = version
        return rows

    def _tail(self) -> tuple[pa.Table, int]:
        assert self._table is not None
        return self._table.tail(self._since, _thin_names(self._table.schema, self.view))

    def _open(self) -> bool:
        folder = self.root / self.survey / "alerts"
        if not delta.exists(folder):
            return False
        self._table = self._reader()
        since = delta.open_table(folder).version()
        self._fill(Lookup(self.root))
        self._since = since
        return True

    def _reader(self) -> AlertsTable:
        folder = self.root / self.survey / "alerts"
        return AlertsTable(self.root, self.survey, delta.schema_of(delta.open_table(folder)))

    def _fill(self, lookup: Lookup) -> None:
        """Counts of all that is stored, and the rows of the last nights to have arrived."""
        assert self._table is not None
        view_name = f'"{self.survey}_alerts"'
        groups = self._groups(lookup, view_name)
        for group in groups:
            self.view.add_total(
                self.survey, group["night"], group["outcome"], group["reason"], group["alerts"]
            )
            key = group["topic"], group["partition"]
            self._next[key] = max(self._next.get(key, 0), group["last"] + 1)
        if groups:
            names = ", ".join(f'"{name}"' for name in _thin_names(self._table.schema, self.view))
            bounds = {"nights": _last_nights(groups, self.view.nights), "rows": self.view.limit}
            rows = lookup.sql(NEWEST.format(names, view_name), bounds)
            self.view.fill(self.survey, self._seen(rows.take(pa.array(np.arange(len(rows))[::-1]))))

    def _groups(self, lookup: Lookup, view_name: str) -> list[dict[str, Any]]:
        if not delta.live(delta.open_table(self.root / self.survey / "alerts")):
            return []
        return list(lookup.sql(BEFORE.format(view_name)).to_pylist())

    def _unseen(self, rows: pa.Table) -> pa.Table:
        """The rows beyond what was seen of their partition, which is then seen too."""
        known = self._positions(rows)
        offsets = rows["offset"].to_numpy()
        new = rows.filter(pa.array(offsets >= known))
        for group in new.group_by(["topic", "partition"]).aggregate([("offset", "max")]).to_pylist():
            self._next[group["topic"], group["partition"]] = group["offset_max"] + 1
        return new.sort_by("stored")

    def _seen(self, rows: pa.Table) -> pa.Table:
        """Without what was committed between the counting and the reading: the tail brings it."""
        return rows.filter(pa.array(rows["offset"].to_numpy() < self._positions(rows)))

    def _positions(self, rows: pa.Table) -> Any:
        """The next offset to be seen, for the partition of each row."""
        keys = zip(rows["topic"].to_pylist(), rows["partition"].to_pylist(), strict=True)
        return np.fromiter((self._next.get(key, 0) for key in keys), np.int64, len(rows))


class _LogTail:
    """One event log."""

    def __init__(self, root: Place, name: str) -> None:
        self._log = EventLog(root, name)
        self._names = [column for column in self._log.schema.names if column not in HEAVY]
        self._since = -1

    def step(self) -> list[dict[str, Any]]:
        rows, self._since = self._log.tail(self._since, self._names)
        return dicts(rows) if len(rows) else []


def _thin_names(schema: pa.Schema, view: View) -> list[str]:
    """The columns that the view keeps."""
    plain = [name for name in schema.names if name in PLAIN or name in view.catalogues]
    return plain + [f.name for f in schema if pa.types.is_boolean(f.type) or is_score(f.type)]


def _last_nights(groups: Sequence[dict[str, Any]], count: int) -> list[int]:
    """The nights whose alerts arrived last."""
    arrived: dict[int, int] = {}
    for group in groups:
        if group["night"] is not None:
            arrived[group["night"]] = max(arrived.get(group["night"], 0), group["stored"] or 0)
    return sorted(arrived, key=lambda night: (arrived[night], night))[-count:]
