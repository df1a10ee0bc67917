"""A pipeline: steps ordered once by what they need, run on one batch at a time.

The same object serves the live stream, reprocessing, tests and notebooks. Its **plan** is plain JSON (steps, versions,
settings, packages), stored once and known by its digest: every archived row names the plan that made it.
"""

from __future__ import annotations

import graphlib
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import distributions
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raybroker import alerts
from raybroker.errors import SettingsError, did_you_mean
from raybroker.step import Step

CUTOUT_COLUMNS = tuple(f"cutout_{kind}" for kind in alerts.CUTOUTS)
SURVEY_COLUMNS = ("ztf", "rubin", "fink")
Bodies = Sequence[bytes | memoryview]


class Failure(NamedTuple):
    """A step that raised on one alert: its row in the batch, the step, and the error."""

    row: int
    step: str
    error: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pipeline makes of a batch of n alerts.

    `kept` holds the columns of all steps for the rows `kept_rows` of the batch; `rejected_by` maps the other rows to
    the first cut that dropped them. A row in `failures` is kept all the same, with null in that step's column.
    """

    kept: pa.RecordBatch
    kept_rows: npt.NDArray[np.int64]
    rejected_by: Mapping[int, str]
    failures: tuple[Failure, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Pipeline:
    """Ordered steps for one survey. Build it with `plan`."""

    survey: str
    steps: tuple[Step, ...]
    schema: pa.Schema = field(repr=False)

    @property
    def columns(self) -> pa.Schema:
        """Schema of the kept rows: the survey's batch and one column per step that is not a cut."""
        made = [pa.field(step.name, step.gives) for step in self.steps if step.kind != "cut"]
        return pa.schema([*self.schema, *made])

    @property
    def filters(self) -> tuple[str, ...]:
        """Names of the boolean columns that decide what leaves."""
        return tuple(step.name for step in self.steps if step.kind == "filter")

    @property
    def plan(self) -> dict[str, Any]:
        """What made the columns, as plain JSON."""
        return {
            "survey": self.survey,
            "steps": [json.loads(json.dumps(step.describe(), default=str)) for step in self.steps],
            "packages": packages(),
        }

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that name the plan."""
        text = json.dumps(
            self.plan, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def replaced(self, steps: Mapping[str, Step]) -> Pipeline:
        """The same pipeline with some steps exchanged for others of the same name, as when a snapshot is pinned."""
        return replace(self, steps=tuple(steps.get(step.name, step) for step in self.steps))

    def without_cuts(self) -> Pipeline:
        """The same columns for alerts that a cut would drop."""
        return replace(self, steps=tuple(step for step in self.steps if step.kind != "cut"))

    def run(self, batch: pa.RecordBatch, bodies: Bodies = ()) -> Outcome:
        """All steps over one batch. Never raises for what a step does: see `Outcome.failures`.

        `bodies` are the decoded bodies of the batch's rows, for steps that ask for cutout bytes.
        """
        work = _Work(_Columns(batch, bodies))
        rejected_by = self._cut(work)
        rows = np.setdiff1d(np.arange(batch.num_rows), list(rejected_by)).astype(np.int64)
        if rejected_by:
            work.keep(rows)
        for step in self.steps:
            if step.kind != "cut":
                work.columns[step.name] = work.do(step, rows)
        kept = pa.RecordBatch.from_arrays([work.columns[n] for n in self.columns.names], schema=self.columns)
        return Outcome(kept, rows, rejected_by, tuple(work.failures), work.seconds)

    def _cut(self, work: _Work) -> dict[int, str]:
        """The rows that a cut knows to be bad, each with the first such cut."""
        rejected_by: dict[int, str] = {}
        every_row = np.arange(work.columns.rows)
        for step in self.steps:
            if step.kind == "cut":
                keep = pc.fill_null(work.do(step, every_row), True).to_numpy(zero_copy_only=False)
                for row in np.flatnonzero(~keep):
                    rejected_by.setdefault(int(row), step.name)
        return rejected_by


class _Columns(dict[str, pa.Array]):
    """A batch's columns by name, with cutout bytes made when they are first asked for."""

    def __init__(self, batch: pa.RecordBatch, bodies: Bodies) -> None:
        super().__init__(zip(batch.schema.names, batch.columns, strict=True))
        self.batch, self.bodies, self.rows = batch, bodies, batch.num_rows

    def __missing__(self, name: str) -> pa.Array:
        if name not in CUTOUT_COLUMNS:
            raise KeyError(name)
        self[name] = cutout_bytes(self["cutouts"], self.bodies, name.removeprefix("cutout_"))
        return self[name]

    def take(self, rows: npt.NDArray[np.int64]) -> _Columns:
        batch = self.batch.take(pa.array(rows))
        return _Columns(batch, [self.bodies[row] for row in rows] if self.bodies else ())


def cutout_bytes(places: pa.StructArray, bodies: Bodies, kind: str) -> pa.Array:
    """The bytes of one cutout per alert (ZTF: gzipped FITS; Rubin: FITS), null where the packet has none."""
    if not bodies:
        return pa.nulls(len(places), pa.large_binary())
    place = pc.struct_field(places, kind).to_pylist()
    found = [
        None if p is None or p["offset"] is None else bytes(body[p["offset"] : p["offset"] + p["length"]])
        for p, body in zip(place, bodies, strict=True)
    ]
    return pa.array(found, pa.large_binary())


class _Work:
    """One run: the columns so far, what failed, and how long each step took."""

    def __init__(self, columns: _Columns) -> None:
        self.columns = columns
        self.failures: list[Failure] = []
        self.seconds: dict[str, float] = {}

    def keep(self, rows: npt.NDArray[np.int64]) -> None:
        """Go on with these rows alone, and forget the failures of the others."""
        kept = set(rows.tolist())
        self.columns = self.columns.take(rows)
        self.failures = [failure for failure in self.failures if failure.row in kept]

    def do(self, step: Step, batch_rows: npt.NDArray[np.int64]) -> pa.Array:
        """The step's column; where it raises, the culprits alone are null and listed by their row in the batch."""
        start = time.perf_counter()
        failures: list[Failure] = []
        needed = {name: self.columns[name] for name in step.needs}
        pieces = _halved(step, needed, 0, self.columns.rows, failures)
        self.failures += [failure._replace(row=int(batch_rows[failure.row])) for failure in failures]
        self.seconds[step.name] = time.perf_counter() - start
        return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)


def _halved(
    step: Step, needed: Mapping[str, pa.Array], start: int, rows: int, failures: list[Failure]
) -> list[pa.Array]:
    try:
        return [step.run({name: column.slice(start, rows) for name, column in needed.items()}, rows)]
    except Exception as error:
        if rows <= 1:
            failures.extend([Failure(start, step.name, f"{type(error).__name__}: {error}")] * rows)
            return [pa.nulls(rows, step.gives)]
    half = rows // 2
    return _halved(step, needed, start, half, failures) + _halved(
        step, needed, start + half, rows - half, failures
    )


def plan(steps: Iterable[Step], schema: pa.Schema, survey: str) -> Pipeline:
    """The pipeline of one survey: cuts first, then every step after those whose columns it needs.

    A step that needs another survey's own column, or a step left out for that reason, is left out. Any other unknown
    need, a name given twice, or a circle raises `SettingsError`.
    """
    named = _distinct(steps, schema)
    named = _for_survey(named, survey)
    known = {*schema.names, *CUTOUT_COLUMNS, *named}
    for step in named.values():
        _check_needs(step, known, named)
    cuts = [step for step in named.values() if step.kind == "cut"]
    return Pipeline(survey, (*cuts, *_in_order([s for s in named.values() if s.kind != "cut"])), schema)


def _distinct(steps: Iterable[Step], schema: pa.Schema) -> dict[str, Step]:
    named: dict[str, Step] = {}
    for step in steps:
        if step.name in named or step.name in schema.names:
            raise SettingsError(f"'{step.name}' names two columns; a step needs a name of its own")
        named[step.name] = step
    return named


def _for_survey(named: Mapping[str, Step], survey: str) -> dict[str, Step]:
    """Without the steps of other surveys, and without those that need them."""
    others = set(SURVEY_COLUMNS) - {survey}
    while out := [name for name, step in named.items() if others & set(step.needs)]:
        named = {name: step for name, step in named.items() if name not in out}
        others |= set(out)
    return dict(named)


def _check_needs(step: Step, known: set[str], named: Mapping[str, Step]) -> None:
    for need in step.needs:
        if need not in known:
            raise SettingsError(
                f"step '{step.name}' needs '{need}'; no column or step gives it{did_you_mean(need, known)}"
            )
        if need in named and (step.kind == "cut" or named[need].kind == "cut"):
            raise SettingsError(f"step '{step.name}' needs '{need}': cuts run first and give no column")


def _in_order(steps: Sequence[Step]) -> list[Step]:
    names = {step.name: step for step in steps}
    graph = {step.name: [need for need in step.needs if need in names] for step in steps}
    try:
        return [names[name] for name in graphlib.TopologicalSorter(graph).static_order()]
    except graphlib.CycleError as error:
        raise SettingsError(f"steps need each other in a circle: {' → '.join(error.args[1])}") from None


def packages() -> dict[str, str]:
    """Versions of all installed packages: part of the plan, since any of them may change a number."""
    global _packages
    if _packages is None:
        found = {(d.metadata["Name"] or "").lower(): d.version for d in distributions()}
        _packages = dict(sorted(found.items()))
    return _packages


_packages: dict[str, str] | None = None
