"""The last nights in memory: what the API lists, filters and counts without touching a file.

Rows come from the archive's tail and keep their order of arrival; "newest first" means the last to arrive. Each row
keeps thin columns only: no history, no survey fields. Rows live in blocks that never change, so that a reader never
waits for the writer: small blocks are merged into larger ones as rows come, and whole blocks leave at the old end.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raybroker.errors import UnknownError

Mask = npt.NDArray[np.bool_]
Row = dict[str, Any]
Night = tuple[str, int | None]

KEPT = ("scored", "failed")  # outcomes of alerts that passed the cuts
OUTCOMES = (*KEPT, "rejected", "dead", "duplicate")
PLAIN = (
    *("alert_id", "object_id", "ss_object_id", "night", "mjd", "ra", "dec", "band", "flux", "flux_error"),
    *("reliability", "outcome", "reason", "topic", "partition", "offset", "published", "stored", "plan"),
)
BLOCK_ROWS = 32_768
REASONS = 500  # distinct reasons counted per night and outcome; a step's error may hold a number


class Cone(NamedTuple):
    """A circle on the sky: degrees, degrees, arcseconds."""

    ra: float
    dec: float
    radius_arcsec: float


@dataclass(frozen=True)
class Query:
    """What to list. Empty fields ask nothing; `outcomes` empty means all, dead packets included."""

    survey: str | None = None
    night: int | None = None
    outcomes: tuple[str, ...] = KEPT
    model: str | None = None
    label: str | None = None  # a class of the model; without a least score: where it is the most probable one
    min_score: float | None = None
    cone: Cone | None = None
    filter: str | None = None
    before: str | None = None  # the cursor of an earlier page
    limit: int = 100


class Page(NamedTuple):
    """Rows, newest first, and the cursor of the next page; None where there is no more."""

    rows: list[Row]
    before: str | None


@dataclass(frozen=True)
class _Block:
    table: pa.Table
    nights: frozenset[tuple[str, int]]  # a packet that could not be read has none


class View:
    """An in-memory picture of the newest `rows` alerts of the last `nights` nights of each survey.

    One thread adds; any number of threads read. Nights count by when they last arrived, not by date, since a replay
    of an old night is what its user wants to see.
    """

    def __init__(self, rows: int = 300_000, nights: int = 3, catalogues: Sequence[str] = ()) -> None:
        self.limit, self.nights, self.catalogues = rows, nights, tuple(catalogues)
        self._blocks: tuple[_Block, ...] = ()
        self._recent: dict[str, list[int]] = {}
        self._totals: Counter[tuple[str, int | None, str, str | None]] = Counter()
        self._reasons: Counter[tuple[str, int | None, str]] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(len(block.table) for block in self._blocks)

    def add_alerts(self, survey: str, rows: pa.Table) -> None:
        """Append rows of a survey's `alerts` table, in the order they were stored."""
        if not len(rows):
            return
        groups = rows.group_by(["night", "outcome", "reason"]).aggregate([([], "count_all")]).to_pylist()
        for group in groups:
            self.add_total(survey, group["night"], group["outcome"], group["reason"], group["count_all"])
        self.fill(survey, rows)

    def fill(self, survey: str, rows: pa.Table) -> None:
        """Append rows without counting them: `add_total` has."""
        if not len(rows):
            return
        thin = _thin(survey, rows, self.catalogues)
        nights = frozenset(night for night in rows["night"].unique().to_pylist() if night is not None)
        with self._lock:
            self._remember(survey, nights)
            block = _Block(thin, frozenset((survey, night) for night in nights))
            self._blocks = self._bounded((*self._blocks, block))

    def add_total(self, survey: str, night: int | None, outcome: str, reason: str | None, count: int) -> None:
        """Count alerts; also those that are not kept in memory, as what was stored before this server began."""
        with self._lock:
            if (survey, night, outcome, reason) not in self._totals:
                self._reasons[survey, night, outcome] += 1
                if self._reasons[survey, night, outcome] > REASONS:
                    reason = "other reasons"
            self._totals[survey, night, outcome, reason] += count

    def _remember(self, survey: str, nights: frozenset[int]) -> None:
        earlier = [night for night in self._recent.get(survey, []) if night not in nights]
        self._recent[survey] = (earlier + sorted(nights))[-self.nights :]

    def _bounded(self, blocks: tuple[_Block, ...]) -> tuple[_Block, ...]:
        """Equal neighbours merged, so that there are few blocks; the oldest dropped beyond the limits."""
        most = max(1, min(BLOCK_ROWS, self.limit // 8))
        while len(blocks) > 1 and len(blocks[-2].table) <= min(2 * len(blocks[-1].table), most):
            blocks = (*blocks[:-2], _merged(blocks[-2], blocks[-1]))
        while len(blocks) > 1 and (self._too_many(blocks) or not self._is_recent(blocks[0])):
            blocks = blocks[1:]
        return blocks

    def _too_many(self, blocks: tuple[_Block, ...]) -> bool:
        return sum(len(block.table) for block in blocks) > self.limit

    def _is_recent(self, block: _Block) -> bool:
        return not block.nights or any(night in self._recent[survey] for survey, night in block.nights)

    def alerts(self, query: Query) -> Page:
        """The newest alerts that the query asks for. `UnknownError` if its cursor's row is no longer in memory."""
        rows: list[Row] = []
        for table in self._from_cursor(query.before):
            places = np.flatnonzero(_matching(table, query))[::-1][: query.limit + 1 - len(rows)]
            rows += table.take(pa.array(places)).to_pylist() if len(places) else []
            if len(rows) > query.limit:
                break
        page = rows[: query.limit]
        return Page(
            [_nested(row) for row in _once(page)], cursor(page[-1]) if len(rows) > len(page) else None
        )

    def _from_cursor(self, before: str | None) -> Iterator[pa.Table]:
        """Tables, newest first, of the rows that arrived before the cursor's."""
        started = before is None
        for block in reversed(self._blocks):
            if started:
                yield block.table
            elif (place := _place(block.table, before or "")) is not None:
                started = True
                yield block.table.slice(0, place)
        if not started:
            raise UnknownError(
                f"the alert at cursor '{before}' is no longer in memory; begin again without 'before'"
            )

    def alert(self, alert_id: str) -> Row | None:
        """The newest row of an alert, None if it is not in memory."""
        return next(iter(self._rows_where("alert_id", alert_id)), None)

    def of_object(self, object_id: str) -> list[Row]:
        """The alerts of an object (or of a moving one), newest first, each once."""
        rows = self._rows_where("object_id", object_id) or self._rows_where("ss_object_id", object_id)
        return list(_once(rows))

    def _rows_where(self, column: str, value: str) -> list[Row]:
        tables = (block.table.filter(_equal(block.table, column, value)) for block in reversed(self._blocks))
        rows = [row for table in tables if len(table) for row in reversed(table.to_pylist())]
        return [_nested(row) for row in rows if row["outcome"] != "duplicate"]

    def totals(self) -> dict[tuple[str, int | None, str, str | None], int]:
        """How many alerts were received, by survey, night, outcome and reason. It never falls."""
        with self._lock:
            return dict(self._totals)


def counts(totals: Mapping[tuple[str, int | None, str, str | None], int]) -> list[Row]:
    """One dictionary per survey and night: `received` is the sum of the outcomes, each with its reasons."""
    nights: dict[Night, Row] = {}
    for (survey, night, outcome, reason), count in totals.items():
        empty: Row = {
            "survey": survey,
            "night": night,
            "received": 0,
            **dict.fromkeys(OUTCOMES, 0),
            "reasons": {},
        }
        line = nights.setdefault((survey, night), empty)
        line["received"] += count
        line[outcome] = line.get(outcome, 0) + count
        if reason is not None:
            reasons = line["reasons"].setdefault(outcome, {})
            reasons[reason] = reasons.get(reason, 0) + count
    return [nights[key] for key in sorted(nights, key=lambda key: (key[0], key[1] or 0))]


def cursor(row: Row) -> str:
    """A row's place in the stream: what no other row has."""
    return f"{row['topic']}:{row['partition']}:{row['offset']}"


def separation(ra: Any, dec: Any, cone: Cone) -> npt.NDArray[np.float64]:
    """Arcseconds from the cone's centre (haversine: exact for small angles); NaN for no position."""
    ra0, dec0, ra, dec = (np.radians(angle) for angle in (cone.ra, cone.dec, ra, dec))
    squared = np.sin((dec - dec0) / 2) ** 2 + np.cos(dec) * np.cos(dec0) * np.sin((ra - ra0) / 2) ** 2
    return np.asarray(np.degrees(2 * np.arcsin(np.sqrt(np.clip(squared, 0, 1)))) * 3600)


def _thin(survey: str, rows: pa.Table, catalogues: Sequence[str]) -> pa.Table:
    """The columns kept in memory; fields of scores and catalogues become columns named by their path."""
    columns: dict[str, Any] = {"survey": pa.repeat(pa.scalar(survey), len(rows))}
    for field in rows.schema:
        if field.name in PLAIN or pa.types.is_boolean(field.type):
            columns[field.name] = rows[field.name]
        elif pa.types.is_struct(field.type) and (field.name in catalogues or is_score(field.type)):
            columns |= _flattened(field, rows[field.name])
    return pa.table(columns).combine_chunks()


def is_score(kind: pa.DataType) -> bool:
    """True for a model's column: a number per class and the number of the snapshot that gave it."""
    return pa.types.is_struct(kind) and kind.get_field_index("snapshot") >= 0


def _flattened(field: pa.Field, column: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    prefix = "score" if is_score(field.type) else "catalogue"
    names = [inner.name for inner in field.type if not pa.types.is_nested(inner.type)]
    return {f"{prefix}.{field.name}.{name}": pc.struct_field(column, name) for name in names}


def _nested(row: Row) -> Row:
    """A thin row as the API gives it: scores by model, names of the filters that are true, catalogue matches."""
    plain = {name: row.get(name) for name in ("survey", *PLAIN)}
    scores: dict[str, Row] = {}
    matches: dict[str, Row] = {}
    for name, value in row.items():
        kind, _, path = name.partition(".")
        if path:
            owner, _, inner = path.partition(".")
            (scores if kind == "score" else matches).setdefault(owner, {})[inner] = value
    return {
        **plain,
        "filters": sorted(name for name, value in row.items() if value is True and "." not in name),
        "scores": {
            model: score_of(fields) for model, fields in scores.items() if fields["snapshot"] is not None
        },
        "catalogues": {name: fields for name, fields in matches.items() if set(fields.values()) != {None}},
    }


def summaries(rows: pa.Table, catalogues: Sequence[str]) -> list[Row]:
    """Whole rows of an `alerts` table, all of one survey, as `View.alerts` gives them."""
    survey = rows["survey"][0].as_py() if len(rows) else ""
    return [_nested(row) for row in _thin(survey, rows, catalogues).to_pylist()]


def score_of(fields: Mapping[str, Any]) -> Row:
    """A model's struct as the API gives it."""
    return {
        "snapshot": fields["snapshot"],
        "classes": {k: _short(v) for k, v in fields.items() if k != "snapshot"},
    }


def _short(value: float | None) -> float | None:
    """A float32 in as few digits as say which it is."""
    return None if value is None else float(str(np.float32(value)))


def _merged(older: _Block, newer: _Block) -> _Block:
    table = pa.concat_tables([older.table, newer.table], promote_options="permissive").combine_chunks()
    return _Block(table, older.nights | newer.nights)


def _matching(table: pa.Table, query: Query) -> Mask:
    """The rows that a query asks for, its cheapest question first."""
    mask = np.ones(len(table), bool)
    for name, value in (("survey", query.survey), ("night", query.night), (query.filter, True)):
        if name is not None and value is not None:
            mask &= _mask(_equal(table, name, value))
    if query.outcomes:
        mask &= _mask(pc.is_in(table["outcome"], pa.array(query.outcomes)))
    if query.model is not None and mask.any():
        mask &= _scored(table, query.model, query.label, query.min_score)
    if query.cone is not None and mask.any():
        mask &= _inside(table, query.cone)
    return mask


def _scored(table: pa.Table, model: str, label: str | None, least: float | None) -> Mask:
    prefix = f"score.{model}."
    if label is None:
        return (
            _mask(pc.is_valid(table[f"{prefix}snapshot"]))
            if f"{prefix}snapshot" in table.schema.names
            else _none(table)
        )
    if prefix + label not in table.schema.names:
        return _none(table)
    score = _numbers(table, prefix + label)
    if least is not None:
        return score >= least
    others = [
        n
        for n in table.schema.names
        if n.startswith(prefix) and n not in (prefix + "snapshot", prefix + label)
    ]
    return np.all([score >= _numbers(table, name) for name in others], axis=0) & ~np.isnan(score)


def _inside(table: pa.Table, cone: Cone) -> Mask:
    ra, dec = _numbers(table, "ra"), _numbers(table, "dec")
    near = np.abs(dec - cone.dec) * 3600 <= cone.radius_arcsec  # a cheap strip first
    inside = np.zeros(len(near), bool)
    inside[near] = separation(ra[near], dec[near], cone) <= cone.radius_arcsec
    return inside


def _equal(table: pa.Table, name: str, value: Any) -> Any:
    """Null or False where the row differs, and everywhere if there is no such column of the value's type."""
    if name not in table.schema.names or (value is True) != pa.types.is_boolean(
        table.schema.field(name).type
    ):
        return pa.array(_none(table))
    return pc.equal(table[name], value)


def _none(table: pa.Table) -> Mask:
    return np.zeros(len(table), bool)


def _mask(found: Any) -> Mask:
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), dtype=bool)


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    return np.asarray(table[name].to_numpy(), dtype=np.float64)


def _place(table: pa.Table, before: str) -> int | None:
    """The row of a cursor in a table, None if it is not there."""
    topic, partition, offset = before.rsplit(":", 2)
    same = _mask(pc.equal(table["offset"], int(offset)))
    for row in np.flatnonzero(same)[::-1]:
        if table["topic"][row].as_py() == topic and table["partition"][row].as_py() == int(partition):
            return int(row)
    return None


def _once(rows: Sequence[Row]) -> Iterator[Row]:
    """Each alert once, the newest of it. What counts as a duplicate, or could not be read, stays as it is."""
    seen: set[str] = set()
    for row in rows:
        if row["outcome"] in ("dead", "duplicate"):
            yield row
        elif row["alert_id"] not in seen:
            seen.add(row["alert_id"])
            yield row
