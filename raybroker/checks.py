"""Conformance checks: what every step, survey and learner must keep to, for our tests and for our users'.

>>> from raybroker import checks
>>> checks.check_step(my_step, batch)  # doctest: +SKIP

Each check raises `AssertionError` with one sentence: what was checked, and which rule it breaks.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybroker import alerts
from raybroker.step import Step

Columns = Mapping[str, pa.Array]
LARGE = 1000  # rows of the largest batch that answers are compared with
SEED = 20_260_101


def check_step(step: Step, batch: pa.RecordBatch) -> None:
    """Every rule for steps. `batch` holds the columns that the step needs; a few dozen real alerts do."""
    missing = [name for name in step.needs if name not in batch.schema.names]
    assert not missing, f"the batch has no column '{missing[0]}', which step '{step.name}' needs"
    assert batch.num_rows, f"step '{step.name}' cannot be checked on an empty batch"
    columns = {name: batch.column(name) for name in step.needs}
    for rule, keeps in STEP_RULES.items():
        with _raising(f"step '{step.name}'", rule):
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


def same_bits(one: pa.Array, other: pa.Array) -> bool:
    """Whether two columns hold the same type, the same nulls and, bit for bit, the same values (NaN and −0 too)."""
    if one.type != other.type or len(one) != len(other) or not one.is_null().equals(other.is_null()):
        return False
    if pa.types.is_struct(one.type):
        names = [field.name for field in one.type]
        return all(
            same_bits(pc.struct_field(one, [i]), pc.struct_field(other, [i])) for i in range(len(names))
        )
    if pa.types.is_list(one.type):
        lengths = pc.list_value_length(one).equals(pc.list_value_length(other))
        return lengths and same_bits(one.flatten(), other.flatten())
    if pa.types.is_floating(one.type):
        return np.array_equal(_bits(one), _bits(other))
    return bool(one.equals(other))


def _bits(column: pa.Array) -> Any:
    numbers = column.drop_null().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(numbers).view(f"u{numbers.itemsize}")


@contextmanager
def _raising(who: str, rule: str) -> Iterator[None]:
    """Any error inside becomes an `AssertionError` that names the rule."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(
            f"{who} raises where a rule is checked: {rule}: {type(error).__name__}: {error}"
        ) from error


def check_survey(survey: Any, packets: Sequence[alerts.Packet]) -> None:
    """Every rule for surveys, on real packets that it can read."""
    for rule, keeps in SURVEY_RULES.items():
        with _raising(f"survey '{survey.name}'", rule):
            assert keeps(survey, packets), f"survey '{survey.name}' breaks a rule: {rule}"


def _has_schema(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    batch = survey.decode(packets).batch
    batch.validate(full=True)
    return bool(batch.schema.equals(survey.schema) and survey.decode([]).batch.schema.equals(survey.schema))


def _accounts_for_all(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    decoded = survey.decode([*packets, *_garbage(packets[0])])
    rows = [*map(int, decoded.rows), *(bad.row for bad in decoded.bad)]
    reasons = all(bad.reason for bad in decoded.bad)
    return (
        sorted(rows) == list(range(len(packets) + 4))
        and reasons
        and len(decoded.rows) == decoded.batch.num_rows
    )


def _goes_on(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    decoded = survey.decode([*_garbage(packets[0]), *packets])
    alone = survey.decode(packets).batch
    return [bad.row for bad in decoded.bad] == [0, 1, 2, 3] and _same(decoded.batch, alone)


def _garbage(packet: alerts.Packet) -> list[alerts.Packet]:
    value = packet.value or b""
    noise = np.random.default_rng(SEED).bytes(200)
    return [alerts.Packet(bad, key=packet.key) for bad in (None, b"", noise, value[: len(value) // 2])]


def _decodes_one_by_one(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    singles = [survey.decode([packet]).batch for packet in packets]
    together = pa.Table.from_batches(singles).combine_chunks().to_batches()[0]
    return _same(survey.decode(packets).batch, together)


def _same(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    columns = zip(one.columns, other.columns, strict=True)
    return one.schema.equals(other.schema) and all(same_bits(a, b) for a, b in columns)


def _has_ids(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    batch = survey.decode(packets).batch
    ids = batch.column("alert_id")
    known = pc.or_(batch.column("object_id").is_valid(), batch.column("ss_object_id").is_valid())
    return ids.null_count == 0 and bool(pc.all(pc.match_substring(ids, ":")).as_py()) and known.true_count > 0


def _histories_ascend(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    batch = survey.decode(packets).batch
    curves = alerts.LightCurves.of(batch.column("history"))
    mjd, owner = curves.numbers("mjd"), curves.alert_of_point()
    own = np.isin(alerts.values(batch.column("mjd")), mjd)
    return bool((np.diff(mjd)[np.diff(owner) == 0] >= 0).all() and own.all())


def _history_is_distinct(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    curves = alerts.LightCurves.of(survey.decode(packets).batch.column("history"))
    points = {name: pc.struct_field(curves.history, name) for name in ("mjd", "band", "kind")}
    table = pa.table({"alert": curves.alert_of_point(), **points})
    return table.group_by(table.column_names).aggregate([]).num_rows == table.num_rows


def _places_agree(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    batch = survey.decode(packets).batch
    cells = alerts.healpix(batch.column("ra").to_numpy(), batch.column("dec").to_numpy())
    return bool((cells == batch.column("healpix").to_numpy()).all())


def _shares_within(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    for packet in [*packets, *_garbage(packets[0])]:
        value, key = survey.shared(packet)
        if not (0 <= value <= len(packet.value or b"") and 0 <= key <= len(packet.key or b"")):
            return False
    return True


def _encodes_what_it_decodes(survey: Any, packets: Sequence[alerts.Packet]) -> bool:
    batch = survey.decode(packets).batch
    again = survey.decode(survey.encode(batch)).batch
    names = ("alert_id", "object_id", "ra", "dec", "band", "night")
    same = all(same_bits(batch.column(name), again.column(name)) for name in names)
    late = np.abs(alerts.values(batch.column("mjd")) - alerts.values(again.column("mjd")))
    return same and bool((late < 1e-6).all())


SURVEY_RULES: dict[str, Callable[[Any, Sequence[alerts.Packet]], bool]] = {
    "its batches have its schema, the empty one too": _has_schema,
    "each packet is a row or is bad, with a reason": _accounts_for_all,
    "bad packets do not disturb the others": _goes_on,
    "a packet gives the same bits alone as among others": _decodes_one_by_one,
    "alerts have ids": _has_ids,
    "a history ascends and holds the alert itself": _histories_ascend,
    "a history has each time, band and kind once": _history_is_distinct,
    "the HEALPix cell is that of the position": _places_agree,
    "the shared part lies within the packet": _shares_within,
    "what it encodes it can decode": _encodes_what_it_decodes,
}


Make = Callable[[], Any]


def check_learner(make: Make, classes: Sequence[str], columns: Sequence[str] = ("a", "b", "c")) -> None:
    """Every rule for learners. `make` gives a new one for these classes and feature columns, the same each time."""
    for rule, keeps in LEARNER_RULES.items():
        with _raising("the learner", rule):
            assert keeps(make, classes, columns), f"the learner breaks a rule: {rule}"


def _lesson(classes: Sequence[str], columns: Sequence[str], rows: int = 60) -> tuple[pa.Table, list[str]]:
    """Features that tell the classes apart; the last column is constant, and one value in ten is unknown."""
    dice = np.random.default_rng(SEED)
    truth = np.arange(rows) % len(classes)
    numbers = truth[:, None] + dice.normal(0, 0.3, (rows, len(columns)))
    numbers[:, -1] = 1.0
    unknown = dice.random(numbers.shape) < 0.1
    arrays = [pa.array(numbers[:, i], mask=unknown[:, i]) for i in range(len(columns))]
    return pa.table(arrays, names=list(columns)), [classes[int(i)] for i in truth]


def _taught(make: Make, classes: Sequence[str], columns: Sequence[str]) -> tuple[Any, pa.Table]:
    learner = make()
    features, labels = _lesson(classes, columns)
    learner.learn(features, labels)
    return learner, features


def _is_probability(prediction: Any, rows: int, classes: Sequence[str]) -> bool:
    members, mixture = np.asarray(prediction.members), np.asarray(prediction.mixture)
    shapes = members.ndim == 3 and members.shape[1:] == mixture.shape == (rows, len(classes))
    within = bool((mixture >= 0).all() and (members >= 0).all() and np.allclose(mixture.sum(axis=-1), 1))
    return shapes and within and bool(np.allclose(members.sum(axis=-1), 1))


def _starts_untaught(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    features, _ = _lesson(classes, columns)
    return _is_probability(make().predict(features), features.num_rows, classes)


def _predicts_probabilities(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    learner, features = _taught(make, classes, columns)
    unknown = pa.table({name: pa.nulls(3, pa.float64()) for name in columns})
    tables = (features, features.slice(0, 0), features.slice(3, 5), unknown)
    return all(_is_probability(learner.predict(each), each.num_rows, classes) for each in tables)


def _learns(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    return _learned_well(make(), classes, columns)


def _remembers(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    """What is taught only the newest labels, all of one class, must not forget the others."""
    learner = make()
    _learned_well(learner, classes, columns)
    few, labels = _lesson(classes, columns, 10 * len(classes))
    new = [i for i, label in enumerate(labels) if label == classes[0]]
    learner.learn(few.take(new), [classes[0]] * len(new))
    return _learned_well(learner, classes, columns, rows=0)


def _learned_well(learner: Any, classes: Sequence[str], columns: Sequence[str], rows: int = 240) -> bool:
    """Teach so many rows, 40 at a time; whether what tells classes apart is known afterwards."""
    features, labels = _lesson(classes, columns, 240)
    for start in range(0, rows, 40):
        learner.learn(features.slice(start, 40), labels[start : start + 40])
    best = np.asarray(learner.predict(features).mixture).argmax(axis=1)
    right = np.mean(np.array(classes)[best] == np.array(labels))
    return bool(right > min(0.8, 1.5 / len(classes)))


def _predicting_changes_nothing(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    learner, features = _taught(make, classes, columns)
    before, after = (learner.predict(features).mixture.tobytes() for _ in range(2))
    return bool(before == after)


def _predicts_one_by_one(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    learner, features = _taught(make, classes, columns)
    together = np.asarray(learner.predict(features).mixture)
    for size in (1, 7):
        pieces = [learner.predict(features.slice(i, size)).mixture for i in range(0, len(together), size)]
        if np.concatenate(pieces).tobytes() != together.tobytes():
            return False
    return True


def _survives_its_snapshot(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    learner, features = _taught(make, classes, columns)
    again = type(learner).restore(learner.snapshot())
    more, labels = _lesson(classes, columns, 30)
    for each in (learner, again):
        each.learn(more, labels)
    return bool(learner.predict(features).mixture.tobytes() == again.predict(features).mixture.tobytes())


def _is_reproducible(make: Make, classes: Sequence[str], columns: Sequence[str]) -> bool:
    one, features = _taught(make, classes, columns)
    other, _ = _taught(make, classes, columns)
    return bool(one.predict(features).mixture.tobytes() == other.predict(features).mixture.tobytes())


LEARNER_RULES: dict[str, Callable[[Make, Sequence[str], Sequence[str]], bool]] = {
    "it predicts before it has learned anything": _starts_untaught,
    "it gives probabilities per member and in the mixture, for unknown features too": _predicts_probabilities,
    "it learns what tells classes apart, a constant column notwithstanding": _learns,
    "it remembers what it learned when it is taught only what is new": _remembers,
    "predicting changes nothing": _predicting_changes_nothing,
    "an alert has the same bits in batches of 1, 7 and more": _predicts_one_by_one,
    "a restored snapshot learns and predicts as the original": _survives_its_snapshot,
    "the same lessons give the same learner": _is_reproducible,
}
