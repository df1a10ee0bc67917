"""How fast a frozen default mixture scores, in batches of 1,000, on one core; and what learning and snapshots cost."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from raybroker.learning.learner import Learner

COLUMNS = tuple(f"f{i}" for i in range(25))
CLASSES = ("AGN", "SN", "VS")
ROWS = 1_000


def table(rows: int, seed: int) -> tuple[pa.Table, list[str]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(CLASSES), rows)
    values = rng.normal(size=(rows, len(COLUMNS))) + 0.8 * truth[:, None] * (np.arange(len(COLUMNS)) < 6)
    values[rng.random(values.shape) < 0.1] = np.nan
    columns = [pa.array(values[:, i], from_pandas=True) for i in range(len(COLUMNS))]
    return pa.table(columns, names=list(COLUMNS)), [CLASSES[i] for i in truth]


def seconds(call: Callable[[], object], times: int) -> float:
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))


@pytest.mark.benchmark
@pytest.mark.parametrize("labels", [200, 2_000])
def test_the_default_mixture_scores_fast(labels: int) -> None:
    learner = Learner("bench", CLASSES, COLUMNS, seed=1)
    features, truth = table(labels, 0)
    began = time.perf_counter()
    learner.learn(features, truth)
    learning = time.perf_counter() - began
    frozen, batch = learner.frozen(), table(ROWS, 1)[0]
    frozen.predict(batch)
    rate = ROWS / seconds(lambda: frozen.predict(batch), 50)
    parts = {
        name: ROWS / seconds(lambda part=part: part.predict(frozen.scale.apply(np.ones((ROWS, 25)))), 20)  # type: ignore[misc]
        for name, part in zip(frozen.members, frozen.parts, strict=True)
    }
    print(f"\n{labels} labels: learned {labels / learning:,.0f}/s; mixture {rate:,.0f} rows/s")
    print("  " + ", ".join(f"{name} {speed:,.0f}" for name, speed in parts.items()))
    print(f"  compile {seconds(lambda: [m.compile() for m in learner._members], 3) * 1e3:.1f} ms", end=", ")
    print(
        f"snapshot {len(learner.snapshot()) / 1e6:.2f} MB in {seconds(learner.snapshot, 3) * 1e3:.0f} ms",
        end=", ",
    )
    print(f"frozen {len(frozen.snapshot()) / 1e3:.0f} kB")
    assert rate >= 50_000
