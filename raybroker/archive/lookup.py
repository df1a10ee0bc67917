"""Reading the archive: any alert, object or packet by id, a cone, the counts, SQL.

DuckDB reads the live Parquet files of the newest version. Files whose statistics exclude an answer are not opened; in
the others the row groups' statistics (HEALPix, night) and Bloom filters (ids) do the same. Ids are bound, never pasted.
A connection may open the files it was given and nothing else.
"""

from __future__ import annotations

import threading
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
from raybroker.archive import columns, delta, events, segments
from raybroker.archive.delta import File
from raybroker.errors import ArchiveError, UnknownError, did_you_mean

CELL_ARCSEC = 58.6 * 3600  # side of a HEALPix cell of order 0
VIEWS = {
    "": "true",  # every received offset
    "_rejected": "outcome = 'rejected'",
    "_dead_letters": "outcome in ('dead', 'failed')",
}
Keep = Callable[[File], bool]
Values = Mapping[str, Any]


class Lookup:
    """The archive under `root`, read only; every call sees what is committed by then. Threads may share it."""

    def __init__(self, root: Path, *, threads: int = 1) -> None:
        self.root, self.threads = root, threads
        self._lock = threading.Lock()
        self._handles: dict[Path, DeltaTable] = {}
        self._live: dict[Path, tuple[int, list[File]]] = {}

    def surveys(self) -> list[str]:
        """The surveys that have a table."""
        return sorted(path.parent.name for path in self.root.glob("*/alerts") if delta.exists(path))

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
        known = delta.schema_of(delta.open_table(self.root / survey / "alerts")).names
        wanted = ", ".join(f'"{name}"' for name in dict.fromkeys(["alert_id", *names]) if name in known)
        query = f'select {wanted} from "{survey}_alerts" where alert_id in (select unnest($ids))'
        found = self.sql(f"{query} order by outcome = 'duplicate', stored", {"ids": list(alert_ids)})
        return list(found.to_pylist())

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
        files = self._paths(self.root / survey / "alerts", keep)
        values = {} if night is None else {"night": night}
        return list(self._ask(files, query, values, "filename = false").to_pylist()) if files else []

    def sql(
        self, query: str, values: Mapping[str, Any] | Sequence[Any] = (), *, from_night: int = 0
    ) -> pa.Table:
        """One SELECT over the views `<survey>_alerts`, `<survey>_alerts_rejected`, `<survey>_alerts_dead_letters` and
        the event logs (`labels`, `queries`, ...). `from_night` leaves the files of earlier nights closed.
        """
        views = self._views(query, from_night)
        with self._connect([path for files in views.values() for path in files]) as connection:
            for name, files in views.items():
                for suffix, where in VIEWS.items() if name.endswith("_alerts") else [("", "true")]:
                    connection.execute(
                        f'create view "{name}{suffix}" as select * from {_scan(files)} where {where}'
                    )
            return _select(connection, query, values)

    def _views(self, query: str, from_night: int) -> dict[str, list[str]]:
        folders = {f"{survey}_alerts": self.root / survey / "alerts" for survey in self.surveys()}
        folders |= {name: self.root / name for name in events.SCHEMAS}
        named = {name: folder for name, folder in folders.items() if name in query and delta.exists(folder)}
        found = {
            name: self._paths(f, lambda file: _not_before(file, from_night)) for name, f in named.items()
        }
        return {name: files for name, files in found.items() if files}

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
        self, folder: Path, clauses: Sequence[str], query: str, values: Values, keep: Keep
    ) -> pa.Table:
        files = self._files_with(clauses, values, self._paths(folder, keep))
        schema = delta.schema_of(self._handles[folder])
        return columns.conform(self._ask(files, query, values), schema) if files else schema.empty_table()

    def _files_with(self, clauses: Sequence[str], values: Values, files: Sequence[str]) -> list[str]:
        if not files:
            return []
        one = " union ".join(f"select distinct filename from {{0}} where {clause}" for clause in clauses)
        return list(self._ask(files, one, values, "filename = true")["filename"].to_pylist())

    def _ask(
        self, files: Sequence[str], query: str, values: Values, option: str = "union_by_name = true"
    ) -> pa.Table:
        with self._connect(files) as connection:
            return connection.sql(query.format(_scan(files, option)), params=dict(values)).to_arrow_table()

    def _paths(self, folder: Path, keep: Keep) -> list[str]:
        with self._lock:
            if folder not in self._handles:
                self._handles[folder] = delta.open_table(folder)
            handle = self._handles[folder]
            handle.update_incremental()
            if self._live.get(folder, (-1, []))[0] != handle.version():
                self._live[folder] = handle.version(), delta.live(handle)
            return [str((folder / file.path).absolute()) for file in self._live[folder][1] if keep(file)]

    def _connect(self, files: Sequence[str]) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(config={"threads": self.threads})
        connection.execute(f"set allowed_paths = {_literal(files)}")
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        return connection


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


def _scan(files: Sequence[str], option: str = "union_by_name = true") -> str:
    return f"read_parquet({_literal(files)}, {option})"


def _literal(texts: Sequence[str]) -> str:
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"


def _select(
    connection: duckdb.DuckDBPyConnection, query: str, values: Mapping[str, Any] | Sequence[Any]
) -> pa.Table:
    try:
        statements = connection.extract_statements(query)
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise ArchiveError("one SELECT statement was expected")
        return connection.sql(query, params=values).to_arrow_table()
    except duckdb.Error as error:
        raise ArchiveError(f"this query cannot be answered: {error}") from error
