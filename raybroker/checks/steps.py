"""The rules for steps."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker.checks.bits import SEED, raising, same_bits
from raybroker.step import Step

Columns = Mapping[str, pa.Array]
LARGE = 1000  # rows of the largest batch that answers are compared with


def check_step(step: Step, batch: pa.RecordBatch) -> None:
    """Every rule for steps. `batch` holds the columns that the step needs; a few dozen real alerts do."""
    missing = [name for name in step.needs if name not in batch.schema.names]
    assert not missing, f"the batch has no column '{missing[0]}', which step '{step.name}' needs"
    assert batch.num_rows, f"step '{step.name}' cannot be checked on an empty batch"
    columns = {name: batch.column(name) for name in step.needs}
    for rule, keeps in STEP_RULES.items():
        with raising(f"step '{step.name}'", rule):
            assert keeps(step, columns), f"step '{step.name}' breaks a rule: {rule}"


def _run(step: Step, columns: Columns) -> pa.Array:
    return step.run(columns, _rows(columns))


def _rows(columns: Columns) -> int:
    return len(next(iter(columns.values()))) if columns else 0


def _each(columns: Columns, change: Callable[[pa.Array], pa.Array]) -> dict[str, pa.Array]:
    return {name: change(column) for name, column in columns.items()}


def _is_repeatable(step: Step, columns: Columns) -> bool:
    return same_bits(_run(step, columns), _run(step, columns))


def _leaves_inputs(step: Step, columns: Columns) -> bool:
    before = _each(columns, _copied)
    given = _each(columns, _copied)
    _run(step, given)
    return all(same_bits(given[name], before[name]) for name in columns)


def _copied(column: pa.Array) -> pa.Array:
    """The same column in memory of its own."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("column", column.type)])) as stream:
        stream.write_batch(pa.record_batch([column], names=["column"]))
    return pa.ipc.open_stream(pa.py_buffer(bytearray(sink.getvalue()))).read_all().column(0).combine_chunks()


def _takes_empty(step: Step, columns: Columns) -> bool:
    made = _run(step, _each(columns, lambda column: column.slice(0, 0)))
    return len(made) == 0 and made.type == step.gives


def _takes_slices(step: Step, columns: Columns) -> bool:
    rows = _rows(columns)
    start, whole = rows // 3, _run(step, columns)  # a slice has an offset into the buffers of the whole
    return same_bits(whole.slice(start), _run(step, _each(columns, lambda column: column.slice(start))))


def _takes_nulls(step: Step, columns: Columns) -> bool:
    return len(_run(step, _each(columns, _unknown))) == _rows(columns)


def _keeps_unknown(step: Step, columns: Columns) -> bool:
    made = _run(step, _each(columns, _unknown))
    return step.kind != "cut" or bool(pc.all(pc.fill_null(made, True)).as_py())


def _unknown(column: pa.Array) -> pa.Array:
    return pa.nulls(len(column), column.type)


def _ignores_order(step: Step, columns: Columns) -> bool:
    order = pa.array(np.random.default_rng(SEED).permutation(_rows(columns)))
    shuffled = _run(step, _each(columns, lambda column: column.take(order)))
    return same_bits(_run(step, columns).take(order), shuffled)


def _takes_constants(step: Step, columns: Columns) -> bool:
    first = pa.array(np.zeros(_rows(columns), np.int64))
    same = _run(step, _each(columns, lambda column: column.take(first)))
    return same_bits(same, _run(step, columns).take(first))


def _ignores_batch_size(step: Step, columns: Columns) -> bool:
    rows = _rows(columns)
    many = _each(columns, lambda column: column.take(pa.array(np.arange(LARGE) % rows)))
    whole = _run(step, many)
    return all(
        same_bits(whole.slice(start, size), _run(step, {n: c.slice(start, size) for n, c in many.items()}))
        for size, end in ((1, min(rows, LARGE)), (7, LARGE))
        for start in range(0, end, size)
    )


def _pickles(step: Step, columns: Columns) -> bool:
    return same_bits(_run(step, columns), _run(pickle.loads(pickle.dumps(step)), columns))


STEP_RULES: dict[str, Callable[[Step, Columns], bool]] = {
    "it does not change its inputs": _leaves_inputs,  # first, since the others hand it the caller's columns
    "asked twice, it gives the same answer": _is_repeatable,
    "an empty batch gives an empty column of the declared type": _takes_empty,
    "a slice of a batch gives that slice of the answer": _takes_slices,
    "it takes columns of nothing but nulls": _takes_nulls,
    "a cut keeps what it knows nothing of": _keeps_unknown,
    "a row's answer does not depend on the order of the rows": _ignores_order,
    "a batch of one alert repeated gives that alert's answer": _takes_constants,
    f"an alert has the same bits in batches of 1, 7 and {LARGE}": _ignores_batch_size,
    "it can be pickled, and gives the same answer after": _pickles,
}


def check_fresh_process(steps: Sequence[Step], batch: pa.RecordBatch) -> None:
    """The steps arrive in a new process, as in a worker, and give the same bits there."""
    wanted = [_run(step, {name: batch.column(name) for name in step.needs}) for step in steps]
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder, "task")
        task.write_bytes(pickle.dumps((list(sys.path), pickle.dumps(steps), batch)))
        done = subprocess.run([sys.executable, "-c", _ELSEWHERE, str(task)], capture_output=True, check=False)
        assert done.returncode == 0, f"steps do not run in a fresh process: {done.stderr.decode()[-2000:]}"
        made = pickle.loads(task.read_bytes())
    for step, here, there in zip(steps, wanted, made, strict=True):
        assert same_bits(here, there), f"step '{step.name}' gives another answer in a fresh process"


_ELSEWHERE = """
import pathlib, pickle, sys
task = pathlib.Path(sys.argv[1])
sys.path, steps, batch = pickle.loads(task.read_bytes())
steps = pickle.loads(steps)
made = [s.run({n: batch.column(n) for n in s.needs}, batch.num_rows) for s in steps]
task.write_bytes(pickle.dumps(made))
"""
