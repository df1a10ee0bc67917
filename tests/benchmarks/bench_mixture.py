"""Rows a second of the default mixture after 2,000 labels, in batches of 1,000, on one core: whole and by member.

    python -m tests.benchmarks.bench_mixture [FOLDER]

Seconds are of this process's CPU, so that a busy machine does not change them. JSON and Markdown go to `results/`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from raybroker.learning.compiled import Frozen, matrix
from raybroker.learning.learner import MEMBERS, Learner
from tests.benchmarks.tables import Sheet, machine, markdown, show

COLUMNS = tuple(f"f{i}" for i in range(60))
CLASSES = ("SN", "other")
LABELS, ROWS = 2_000, 1_000
LEAST = 50_000  # rows/s
RESULTS = Path(__file__).parent / "results"


def table(rows: int, seed: int) -> tuple[pa.Table, list[str]]:
    """Twelve of sixty features tell a little; one value in ten is not known."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(CLASSES), rows)
    values = rng.normal(size=(rows, len(COLUMNS))) + 0.4 * truth[:, None] * (np.arange(len(COLUMNS)) < 12)
    values[rng.random(values.shape) < 0.1] = np.nan
    columns = [pa.array(values[:, i], from_pandas=True) for i in range(len(COLUMNS))]
    return pa.table(columns, names=list(COLUMNS)), [CLASSES[i] for i in truth]


def spent(call: Callable[[], object], times: int = 1) -> float:
    """Median CPU seconds of one call."""
    found = []
    for _ in range(times):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return float(np.median(found))


def rate(call: Callable[[], object]) -> float:
    call()  # what Numba compiles is no part of it
    return ROWS / spent(call, 30)


def measure() -> dict[str, Any]:
    """All that the tables show."""
    learner = Learner("bench", CLASSES, COLUMNS, seed=1)
    features, truth = table(LABELS, 0)
    known = np.full((len(MEMBERS), LABELS, len(CLASSES)), 0.5)
    learning = spent(lambda: learner.learn(features, truth, before=known))
    refit = spent(learner.frozen)
    frozen = learner.frozen()
    return {
        "machine": machine(),
        "labels": LABELS,
        "columns": len(COLUMNS),
        "rows_per_second": _rates(frozen),
        "ms_per_label": 1e3 * learning / LABELS,
        "refit_seconds": refit,
        "frozen_kb": len(frozen.snapshot()) / 1e3,
        "learner_kb": len(learner.snapshot()) / 1e3,
    }


def _rates(frozen: Frozen) -> dict[str, float]:
    batch = table(ROWS, 1)[0]
    values = matrix(batch, COLUMNS)
    scaled = frozen.scale.apply(values)
    found = {
        "the whole mixture": rate(lambda: frozen.predict(batch)),
        "reading the columns": rate(lambda: matrix(batch, COLUMNS)),
        "scaling": rate(lambda: frozen.scale.apply(values)),
    }
    for name, part in zip(frozen.members, frozen.parts, strict=True):
        found[f"member {name}"] = rate(lambda part=part: part.predict(scaled))  # type: ignore[misc]
    return found


def sheets(found: dict[str, Any]) -> list[Sheet]:
    rates = [(name, f"{value:,.0f}") for name, value in found["rows_per_second"].items()]
    costs = [
        ("CPU ms to learn a label, refits apart", f"{found['ms_per_label']:.1f}"),
        ("CPU s of a refit of the window, and to compile all", f"{found['refit_seconds']:.2f}"),
        ("kB of a snapshot for workers", f"{found['frozen_kb']:,.0f}"),
        ("kB of the whole learner", f"{found['learner_kb']:,.0f}"),
    ]
    title = f"Default mixture, {found['labels']:,} labels, {found['columns']} features, batches of {ROWS:,}"
    return [
        Sheet(title, ("what", "rows per CPU second"), rates),
        Sheet("What learning costs", ("what", "value"), costs),
    ]


@pytest.mark.benchmark
def test_the_default_mixture_scores_fast_enough() -> None:
    assert measure()["rows_per_second"]["the whole mixture"] >= LEAST


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    found = measure()
    made = sheets(found)
    for sheet in made:
        show(sheet, Console())
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-mixture"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / f"{name}.md").write_text("\n".join(markdown(sheet) for sheet in made))


if __name__ == "__main__":
    main()
