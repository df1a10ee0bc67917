"""Reading the archive: any alert, object or packet by id, a cone, the counts, SQL.

DuckDB reads the live Parquet files of the newest version (`scan`). Files whose statistics exclude an answer are not opened; in
the others the row groups' statistics (HEALPix, night) and Bloom filters (ids) do the same. Ids are bound, never pasted.
A connection may open the files it was given and nothing else. In an object store there are no Bloom filters to use, and the
list of surveys may be some seconds old.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cdshealpix.nested
import duckdb
import numpy as np
import pyarrow as pa
from astropy.coordinates import Angle, Latitude, Longitude
from deltalake import DeltaTable

from raybroker.alerts import HEALPIX_ORDER, Packet
from raybroker.archive import columns, delta, events, scan, segments, store
from raybroker.archive.delta import File
from raybroker.archive.scan import Files
from raybroker.errors import UnknownError, did_you_mean
from raybroker.places import Place

CELL_ARCSEC = 58.6 * 3600  # side of a HEALPix cell of order 0
LISTED_SECONDS = 10.0  # a list of surveys in an object store is some requests: it holds so long
VIEWS = {
    "": "true",  # every received offset
    "_rejected": "outcome = 'rejected'",
    "_dead_letters": "outcome in ('dead', 'failed')",
}
Keep = Callable[[File], bool]
Values = Mapping[str, Any]


class Lookup:
    """The archive under `root`, read only; every call sees what is committed by then. Threads may share it."""

    def __init__(self, root: Place, *, threads: int = 1) -> None:
        self.root, self.threads = root, threads
        self._lock = threading.Lock()
        self._handles: dict[Place, DeltaTable] = {}
        self._live: dict[Place, tuple[int, list[File]]] = {}
        self._surveys: tuple[float, list[str]] = (0.0, [])
        self._engines: dict[Place, duckdb.DuckDBPyConnection] = {}

    def surveys(self) -> list[str]:
        """The surveys that have a table."""
        listed, known = self._surveys
        if known and not isinstance(self.root, Path) and time.monotonic() - listed < LISTED_SECONDS:
            return known
        found = [folder.name for folder in store.folders(self.root) if delta.exists(folder / "alerts")]
        self._surveys = time.monotonic(), found
        return found

    def alert(self, alert_id: str) -> dict[str, Any]:
        """The row of an alert; of several (a duplicate, another survey's stream of it) the first that was archived."""
        found = self._by_id(["alert_id = $id"], alert_id, lambda file: _may_hold(file, "alert_id", alert_id))
        if not len(found):
            raise UnknownError(f"no alert '{alert_id}' is in the archive")
        return dict(found.slice(0, 1).to_pylist()[0])

    def alerts(self, alert_ids: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """These columns of many alerts by id, in one scan; an alert that nobody knows is left out, and so is a column
        that its survey has not."""
        home: dict[str, dict[str, Any]] = {}
        elsewhere: dict[str, dict[str, Any]] = {}  # Fink's rows have ZTF's ids
        for survey in self.surveys():
            for row in self._narrow(survey, alert_ids, names):
                at_home = row["alert_id"].startswith(f"{survey}:")
                (home if at_home else elsewhere).setdefault(row["alert_id"], row)
        return elsewhere | home

    def _narrow(self, survey: str, alert_ids: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
        files = self._files(
            self.root / survey / "alerts",
            lambda file: any(_may_hold(file, "alert_id", one) for one in alert_ids),
        )
        known, clause = files.schema.names, "alert_id in (select unnest($ids))"
        wanted = ", ".join(f'"{name}"' for name in dict.fromkeys(["alert_id", *names]) if name in known)
        query = f"select {wanted} from {{}} where {clause} order by outcome = 'duplicate', stored"
        values = {"ids": list(alert_ids)}
        with self._cursor(files.folder) as cursor:
            files = scan.holding(cursor, files, [clause], values)
            return list(scan.ask(cursor, files, query, values).to_pylist()) if files.found else []

    def object(self, object_id: str) -> pa.Table:
        """All rows of an object, moving ones too, by time, each alert once."""
        found = self._by_id(["object_id = $id", "ss_object_id = $id"], object_id, _any)
        if not len(found):
            raise UnknownError(f"no object '{object_id}' is in the archive")
        return _each_alert_once(found)

    def packet(self, alert_id: str) -> Packet:
        """The raw packet of an alert, byte for byte."""
        row = self.alert(alert_id)
        return segments.read(self.root / row["survey"], row["segment"], row["position"])

    def cone(self, ra: float, dec: float, radius_arcsec: float, *, names: Sequence[str] = ()) -> pa.Table:
        """Alerts within a radius of a position (degrees), each once, by time; `names` limits the columns."""
        ranges = cells_of_cone(ra, dec, radius_arcsec)
        within = " or ".join(f"healpix between {low} and {high}" for low, high in ranges)
        where = f"({within}) and {DISTANCE} <= $radius"
        values = {"ra": ra, "dec": dec, "radius": radius_arcsec}
        found = self._rows(self.surveys(), [where], values, lambda file: _may_touch(file, ranges))
        once = _each_alert_once(found)
        return once.select(list(names)) if names else once

    def counts(self, survey: str, night: int | None = None) -> list[dict[str, Any]]:
        """How many offsets have each outcome and reason: of a night, or of all (only then are the dead in it)."""
        self._check_survey(survey)
        where = "true" if night is None else "night = $night"
        query = f"select outcome, reason, count(*)::bigint as alerts from {{}} where {where} group by all order by all"
        keep = _any if night is None else (lambda file: _may_hold(file, "night", night))
        files = self._files(self.root / survey / "alerts", keep)
        values = {} if night is None else {"night": night}
        if not files.found:
            return []
        with self._cursor(files.folder) as cursor:
            return list(scan.ask(cursor, files, query, values, "filename = false").to_pylist())

    def sql(
        self, query: str, values: Mapping[str, Any] | Sequence[Any] = (), *, from_night: int = 0
    ) -> pa.Table:
        """One SELECT over the views `<survey>_alerts`, `<survey>_alerts_rejected`, `<survey>_alerts_dead_letters` and
        the event logs (`labels`, `queries`, ...). `from_night` leaves the files of earlier nights closed.
        """
        views = self._views(query, from_night)
        with scan.connect(views.values(), self.threads) as connection:
            for name, files in views.items():
                rows = scan.source(connection, files)
                for suffix, where in VIEWS.items() if name.endswith("_alerts") else [("", "true")]:
                    connection.execute(f'create view "{name}{suffix}" as select * from {rows} where {where}')
            return scan.select(connection, query, values)

    def _views(self, query: str, from_night: int) -> dict[str, Files]:
        folders = {f"{survey}_alerts": self.root / survey / "alerts" for survey in self.surveys()}
        folders |= {name: self.root / name for name in events.SCHEMAS}
        named = {name: folder for name, folder in folders.items() if name in query and delta.exists(folder)}
        found = {
            name: self._files(f, lambda file: _not_before(file, from_night)) for name, f in named.items()
        }
        return {name: files for name, files in found.items() if files.found}

    def _check_survey(self, survey: str) -> None:
        if survey not in (known := self.surveys()):
            raise UnknownError(f"no survey '{survey}' is in the archive{did_you_mean(survey, known)}")

    def _by_id(self, clauses: Sequence[str], identifier: str, keep: Keep) -> pa.Table:
        """Rows by an id, in the survey of its prefix first, then in the others (Fink's rows have ZTF's ids)."""
        prefix = identifier.partition(":")[0]
        first = sorted(self.surveys(), key=lambda survey: (survey != prefix, survey))
        return self._rows(first, clauses, {"id": identifier}, keep)

    def _rows(self, surveys: Iterable[str], clauses: Sequence[str], values: Values, keep: Keep) -> pa.Table:
        """Whole rows where one of the clauses is true. Two steps: few files hold any, and only they are read widely."""
        # one scan per clause: an `or` would switch the pruning off
        each = " union all ".join(f"select * from {{0}} where {clause}" for clause in clauses)
        query = f"select * from ({each}) order by outcome = 'duplicate', stored"
        parts = [
            self._rows_of(self.root / survey / "alerts", clauses, query, values, keep) for survey in surveys
        ]
        return pa.concat_tables(parts or [pa.table({})], promote_options="permissive")

    def _rows_of(
        self, folder: Place, clauses: Sequence[str], query: str, values: Values, keep: Keep
    ) -> pa.Table:
        with self._cursor(folder) as cursor:
            files = scan.holding(cursor, self._files(folder, keep), clauses, values)
            if not files.found:
                return files.schema.empty_table()
            return columns.conform(scan.ask(cursor, files, query, values), files.schema)

    def _cursor(self, folder: Place) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if folder not in self._engines:
                self._engines[folder] = scan.engine(folder, self.threads)
            return self._engines[folder].cursor()

    def _files(self, folder: Place, keep: Keep) -> Files:
        with self._lock:
            if folder not in self._handles:
                self._handles[folder] = delta.open_table(folder)
            handle = self._handles[folder]
            delta.update(handle)
            if self._live.get(folder, (-1, []))[0] != handle.version():
                self._live[folder] = handle.version(), delta.live(handle)
            return Files(folder, handle, [file for file in self._live[folder][1] if keep(file)])


DISTANCE = """2 * degrees(asin(sqrt(least(1.0,
    sin(radians(dec - $dec) / 2) ** 2
    + cos(radians(dec)) * cos(radians($dec)) * sin(radians(ra - $ra) / 2) ** 2)))) * 3600"""


def cells_of_cone(ra: float, dec: float, radius_arcsec: float) -> list[tuple[int, int]]:
    """Ranges of HEALPix cells (order 29, both ends included) that cover a cone; few, so some cover a little more."""
    order = int(np.clip(np.log2(CELL_ARCSEC / max(radius_arcsec, 1e-3)), 0, HEALPIX_ORDER))
    centre, radius = (
        (Longitude(ra, unit="deg"), Latitude(dec, unit="deg")),
        Angle(radius_arcsec, unit="arcsec"),
    )
    cells, orders, _ = cdshealpix.nested.cone_search(*centre, radius, order)
    shifts = 2 * (HEALPIX_ORDER - orders.astype(np.int64))
    lows = cells.astype(np.int64) << shifts
    return _joined(sorted(zip(lows.tolist(), (lows + (1 << shifts) - 1).tolist(), strict=True)))


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for low, high in ranges:
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        else:
            joined.append((low, high))
    return joined


def _any(file: File) -> bool:
    return True


def _may_hold(file: File, name: str, value: Any) -> bool:
    return name not in file.least or bool(file.least[name] <= value <= file.most[name])


def _may_touch(file: File, ranges: Sequence[tuple[int, int]]) -> bool:
    if "healpix" not in file.least:
        return True
    return any(low <= file.most["healpix"] and file.least["healpix"] <= high for low, high in ranges)


def _not_before(file: File, night: int) -> bool:
    return bool(file.most.get("night", night) >= night)


def _each_alert_once(rows: pa.Table) -> pa.Table:
    """The first row of each alert id, by time."""
    if not len(rows):
        return rows
    return rows.take(events.first_of_each(rows["alert_id"])).sort_by("mjd")
