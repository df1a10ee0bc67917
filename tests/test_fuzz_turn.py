"""Whole turns over good, damaged and extreme packets: every packet has one outcome, its bytes are kept, and no good one suffers."""

from __future__ import annotations

import functools
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from raybroker import surveys
from raybroker.alerts import Packet
from raybroker.archive import segments
from raybroker.archive.table import AlertsTable, row_schema
from raybroker.checks import same_bits
from raybroker.cluster.audit import audit
from raybroker.cluster.worker import Books, Worker
from raybroker.crossmatch import local
from raybroker.filters.where import where
from raybroker.learning.learner import Learner
from raybroker.pipeline import Pipeline, plan
from raybroker.scores.online import expand, features_table, score
from raybroker.settings import Settings, TurnSettings, parse
from raybroker.step import Step, discover
from raybroker.stream.memory import MemorySink, MemorySource
from raybroker.surveys import Survey, containers
from tests.cluster.worlds import placed
from tests.fuzzing import CHANGES, HARMS, Change, Harm, changed, fuzzed, harmed
from tests.surveys.by_fastavro import container_of, record_of
from tests.surveys.test_fuzz_bombs import BOMBS

CUTS = {
    "ztf": ("good_pixels", "not_moving"),
    "rubin": ("rubin_flags",),
}  # few: what is cut meets no other step
FEATURES = ("basic", "early", "phases", "young_extragalactic", "fast_fading")
CLASSES = ("SN", "AGN", "other")
OF_ROWS = ("topic", "partition", "offset", "segment", "position", "stored", "published", "origin")


class World(NamedTuple):
    """A survey's whole pipeline, good packets, packets to be damaged, and the rows of the good ones taken alone."""

    survey: Survey
    pipeline: Pipeline
    model: Any
    good: Sequence[Packet]
    others: Sequence[Packet]
    alone: pa.Table | None


def steps(survey: Survey, catalogue: Path) -> list[Step]:
    known = discover()
    features = [known[name] for name in (*CUTS[survey.name], *FEATURES)]
    if find_spec("light_curve"):  # an extra
        features.append(known["lightcurve"])
    near = local.step("near", catalogue, 2.0, ["row"])
    types = {step.name: step.gives for step in features}
    made = score("transient", expand(["basic.*", "early.*", "phases.*"], types), CLASSES)
    chosen = where("chosen", "transient.SN > 0.2 or early.detections > 3 and near.distance is null")
    return [*features, near, made, chosen]


def catalogued(folder: Path, packets: Sequence[Packet], survey: Survey) -> Path:
    """A catalogue of the places of half the packets."""
    places = survey.decode(packets[::2]).batch
    table = pa.table({"ra": places["ra"], "dec": places["dec"], "row": np.arange(places.num_rows)})
    pq.write_table(table, folder / "in.parquet")
    return local.prepare(folder / "in.parquet", folder / "out.arrow").file


def taught(pipeline: Pipeline, batch: pa.RecordBatch) -> Any:
    """A model that has learned something of these alerts."""
    (step,) = [step for step in pipeline.steps if step.name == "transient"]
    columns = step.settings["columns"]
    made = pipeline.without_cuts().run(batch).kept
    learner = Learner("transient", CLASSES, columns, ("softmax", "naive_bayes", "forest"))
    table = features_table({name: made.column(name) for name in made.schema.names}, columns)
    learner.learn(table, [CLASSES[n % 3] for n in range(len(table))])
    return learner.frozen()


def world(folder: Path, survey: Survey, good: Sequence[Packet], others: Sequence[Packet]) -> World:
    made = plan(steps(survey, catalogued(folder, good, survey)), survey.schema, survey.name)
    model = taught(made, survey.decode(good).batch)
    here = World(survey, made, model, good, others, None)
    rows = turn(here, folder / "alone", good, 100).rows
    return here._replace(alone=rows.sort_by("alert_id").combine_chunks())


class Turned(NamedTuple):
    report: Any
    rows: pa.Table
    sink: MemorySink
    packets: Sequence[Packet]


def turn(here: World, root: Path, packets: Sequence[Packet], batch: int) -> Turned:
    """One turn over these packets, into a new archive."""
    given = placed(packets, topic=f"{here.survey.name}_20231012")
    table = AlertsTable(root, here.survey.name, row_schema(here.pipeline.columns))
    sink = MemorySink()
    books = Books(table, sink, {name: f"raybroker.{name}" for name in here.pipeline.filters})
    limits = TurnSettings(batch=batch, megabytes=64)
    worker = Worker(here.survey, here.pipeline, MemorySource(given, books.start), books, limits)
    worker.pin({"transient": (1, here.model)})
    report = worker.turn()
    return Turned(report, table.read()[0], sink, given)


@pytest.fixture(scope="module")
def worlds(data: Path, ztf_packets: Any, rubin_packets: Any, tmp_path_factory: Any) -> Callable[[str], World]:
    """A function from a survey's name to its world."""

    @functools.cache
    def one(name: str) -> World:
        folder = tmp_path_factory.mktemp(name)
        if name == "ztf":
            good, others = ztf_packets("public_20231012")[:8], ztf_packets("public_20200202")
            return world(folder, surveys.load(name), good, others)
        survey = surveys.load(name, schemas=data / "rubin" / "schemas")
        return world(folder, survey, rubin_packets[40:48], rubin_packets[100:112])

    return one


Trouble = tuple[
    int, int, list[Harm] | list[Change], bool
]  # which packet, where it is put, what happens to it


def troubled(packet: Packet, harms: list[Any], valid: bool, other: Packet) -> Packet:
    """The packet with changed bytes, or (valid) with extreme values."""
    if not valid:
        return Packet(harmed(packet.value, harms, other.value))
    written = json.loads(containers.read_header(packet.value).schema.replace(b'"logicalType"', b'"was"'))
    body = containers.Containers().open(packet.value)[1]
    parsed = fastavro.parse_schema(written)
    record = fastavro.schemaless_reader(io.BytesIO(bytes(body)), parsed, None)
    return Packet(container_of(changed(parsed, record, harms), written))


BROKEN = st.tuples(st.integers(0, 11), st.integers(0, 8), HARMS, st.just(False))
EXTREME = st.tuples(st.integers(0, 11), st.integers(0, 8), CHANGES, st.just(True))


@pytest.mark.parametrize("name", ["ztf", "rubin"])
@fuzzed(12)
@given(
    troubles=st.lists(BROKEN | EXTREME | EXTREME, min_size=1, max_size=5), batch=st.sampled_from([2, 5, 100])
)
def test_every_packet_has_one_outcome_and_the_good_ones_are_as_alone(
    worlds: Callable[[str], World], name: str, troubles: list[Trouble], batch: int
) -> None:
    here = worlds(name)
    packets = list(here.good)
    for number, place, harms, valid in troubles:
        other = here.others[(number + 1) % len(here.others)]
        packets.insert(place, troubled(here.others[number], harms, valid, other))
    with tempfile.TemporaryDirectory() as folder:
        turned = turn(here, Path(folder), packets, batch)
        each_once(turned)
        bytes_kept(turned, Path(folder))
        as_alone(turned, here)
        finite(turned.rows, here.pipeline)
        sent(turned)
        found = audit(settings(Path(folder), name), kafka=False)
        assert found.wrong == []
        assert sum(found.counts.values()) == len(packets)
    for outcome in turned.report.outcomes:
        event(outcome)


def test_bombs_are_dead_and_the_good_ones_are_as_alone(
    worlds: Callable[[str], World], tmp_path: Path
) -> None:
    here = worlds("ztf")
    bombs = [make() for make, reason in BOMBS.values() if reason]
    turned = turn(here, tmp_path, [*here.good[:3], *bombs, *here.good[3:]], 100)
    assert turned.report.outcomes["dead"] == len(bombs)
    each_once(turned)
    bytes_kept(turned, tmp_path)
    as_alone(turned, here)
    assert audit(settings(tmp_path, "ztf"), kafka=False).wrong == []


def settings(root: Path, name: str) -> Settings:
    return parse({"archive": {"root": str(root)}, "surveys": {name: {"servers": "replay:nowhere"}}})


def each_once(turned: Turned) -> None:
    """Every packet is one row with one outcome, none of which is a failure of a built-in step."""
    rows, expected = turned.rows, Counter((p.partition, p.offset) for p in turned.packets)
    found = Counter(zip(rows["partition"].to_pylist(), rows["offset"].to_pylist(), strict=True))
    assert found == expected
    assert turned.report.alerts == sum(turned.report.outcomes.values()) == len(turned.packets)
    outcomes = Counter(rows["outcome"].to_pylist())
    assert outcomes == Counter(turned.report.outcomes)
    reasons = zip(rows["outcome"].to_pylist(), rows["reason"].to_pylist(), strict=True)
    for outcome, reason in reasons:
        assert outcome in ("scored", "rejected", "dead", "duplicate"), reason
        assert (reason is None) == (outcome in ("scored", "duplicate"))
    for reason in turned.report.reasons:
        reason.encode()


def bytes_kept(turned: Turned, root: Path) -> None:
    sent = {(packet.partition, packet.offset): packet for packet in turned.packets}
    names = ("partition", "offset", "segment", "position")
    for partition, offset, segment, position in zip(
        *(turned.rows[n].to_pylist() for n in names), strict=True
    ):
        folder = root / turned.rows["survey"].drop_null()[0].as_py()
        assert segments.read(folder, segment, position) == sent[partition, offset]


def as_alone(turned: Turned, here: World) -> None:
    """Bit for bit the same columns, whatever came with them."""
    assert here.alone is not None
    assert len(here.alone) == len(here.good)
    mine = turned.rows.filter(pc.is_in(turned.rows["alert_id"], here.alone["alert_id"].combine_chunks()))
    found = mine.sort_by("alert_id").combine_chunks()
    for column in set(found.schema.names) - set(OF_ROWS):
        one, other = (table[column].combine_chunks() for table in (found, here.alone))
        assert same_bits(one, other), (column, one, other)


def finite(rows: pa.Table, pipeline: Pipeline) -> None:
    """Whatever steps and surveys gave is a number or null."""
    for column in pipeline.columns.names:
        for numbers in floats(rows[column].combine_chunks()):
            values = numbers.drop_null().to_numpy(zero_copy_only=False)
            assert np.isfinite(values).all(), (column, values)


def floats(column: pa.Array) -> Iterator[pa.Array]:
    """All arrays of floating-point numbers in a column."""
    if pa.types.is_struct(column.type):
        for inner in column.flatten():
            yield from floats(inner)
    elif pa.types.is_list(column.type):
        yield from floats(column.flatten())
    elif pa.types.is_floating(column.type):
        yield column


def sent(turned: Turned) -> None:
    """What the filters let through left, each as a packet that fastavro opens."""
    for topic, packets in turned.sink.written.items():
        column = turned.rows[topic.removeprefix("raybroker.")]
        ids = turned.rows["alert_id"].to_pylist()
        passed = [name for name, true in zip(ids, column.to_pylist(), strict=True) if true]
        assert Counter(packet.key.decode() for packet in packets) == Counter(passed)
        for packet in packets:
            assert record_of(packet)["alert_id"] == packet.key.decode()
