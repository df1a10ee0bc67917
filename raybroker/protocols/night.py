"""End to end: labelled light curves as ZTF packets through the whole pipeline, night by night, with an oracle.

Everything is what `raybroker run` does, in one process: packets are decoded, cut, measured, scored and archived by a
worker; the trainer asks, an oracle answers its questions some days later, the labels are learned, the next night is
scored with the new snapshot. The numbers come from the scores that the archive holds.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raybroker import settings as settings_file
from raybroker import surveys
from raybroker.alerts import Packet
from raybroker.archive.events import EventLog
from raybroker.cluster import assemble
from raybroker.cluster.worker import Books, Worker
from raybroker.errors import SettingsError
from raybroker.learning import metrics
from raybroker.protocols import compared, findings, lightcurves, tables
from raybroker.protocols import evaluate as evaluation
from raybroker.protocols.findings import Findings, Sheet
from raybroker.protocols.report import Evaluation
from raybroker.protocols.tables import Floats, Integers, Names
from raybroker.settings import Settings
from raybroker.stream.memory import MemorySource

MODEL, TOPIC = "evaluated", "ztf_night"
FIRST_CANDID = 10**18
UNIX_EPOCH = 40_587  # MJD
DAY = 86_400.0
COLUMNS = ["basic.*", "early.*", "lightcurve.*"]
LEAST = 10  # labels before anything counts


@dataclass(frozen=True)
class Sky:
    """What is to be replayed: packets in order of time, the night of each, and the truth."""

    packets: Sequence[Packet]
    nights: Integers  # [packets] whole days
    truth: Mapping[str, str]  # object -> class
    classes: tuple[str, ...]


@dataclass
class Oracle:
    """Answers what is asked, `delay` days later, at most `looks` questions a night, each object once."""

    truth: Mapping[str, str]
    delay: float
    looks: int
    waiting: list[tuple[float, Any]] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    learned: dict[str, float] = field(default_factory=dict)  # object -> the night after which it was known

    def look(self, questions: Iterable[Any], night: float) -> None:
        """Take the night's questions from the top."""
        new = [one for one in questions if one.object_id not in self.taken][: self.looks]
        self.taken |= {one.object_id for one in new}
        self.waiting += [(night + self.delay, one) for one in new]

    def answers(self, night: float) -> list[dict[str, Any]]:
        """The labels that are due, as rows of the event log."""
        due = [one for when, one in self.waiting if when <= night]
        self.waiting = [(when, one) for when, one in self.waiting if when > night]
        self.learned |= {one.object_id: night for one in due}
        return [_label(one, self.truth[one.object_id], night) for one in due]


def _label(question: Any, said: str, night: float) -> dict[str, Any]:
    copied = ("model", "survey", "alert_id", "object_id", "query_id", "snapshot")
    return {name: getattr(question, name) for name in copied} | {
        "event_id": f"oracle-{question.query_id}",
        "label": said,
        "source": "oracle",
        "who": "oracle",
        "when": datetime.fromtimestamp(_seconds(night), UTC),
        "withdrawn": False,
    }


def _seconds(mjd: float) -> float:
    return (mjd - UNIX_EPOCH) * DAY


def sky(curves: pa.Table, names: Names, wanted: Sequence[str], said: list[str]) -> Sky:
    """Light curves as packets; the classes as the other protocols make them."""
    if not lightcurves.are(curves):
        raise SettingsError(
            "--night needs labelled light curves: a column 'history' of (jd, fid, magpsf, sigmapsf)"
        )
    data = lightcurves.known(curves, names)
    texts = [str(row[names.label]) for row in data]
    codes, classes = tables.classes_of(texts, wanted, said)
    if len(classes) < 2:
        raise SettingsError(f"all light curves have the class '{classes[0]}': at least two are needed")
    truth = {
        f"ztf:{row[names.object]}": classes[code] for row, code in zip(data, codes.tolist(), strict=True)
    }
    batch, _ = lightcurves.batch_of(data, names.object)
    nights = np.floor(np.asarray(batch.column("mjd"))).astype(np.int64)
    return Sky(packets(batch), nights, truth, classes)


def packets(batch: pa.RecordBatch) -> list[Packet]:
    """The alerts as ZTF wrote them, one after the other in one partition."""
    ztf = surveys.load("ztf")
    rows = batch.num_rows
    numbers = pa.array([f"ztf:{FIRST_CANDID + i}" for i in range(rows)])
    objects = pa.array([f"ztf:{name}" for name in batch.column("object_id").to_pylist()])
    columns = {name: batch.column(name) for name in batch.schema.names} | {
        "alert_id": numbers,
        "object_id": objects,
    }
    own = pa.nulls(rows, ztf.schema.field("ztf").type)
    whole = pa.RecordBatch.from_arrays(
        [columns.get(name, own) for name in ztf.schema.names], schema=ztf.schema
    )
    return [replace(p, topic=TOPIC, offset=i) for i, p in enumerate(ztf.encode(whole))]


@dataclass
class Crew:
    """A worker, the trainer and an oracle, and the clock of the replay."""

    settings: Settings
    oracle: Oracle
    snapshots: dict[str, tuple[int, str]] = field(default_factory=dict)
    now: float = 0.0  # MJD

    def __post_init__(self) -> None:
        made = assemble.pipeline(self.settings, "ztf")
        self.table = assemble.table(self.settings, made)
        books = Books(self.table, None, {})
        self.source = MemorySource([], books.start)
        self.worker = Worker(
            assemble.survey(self.settings, "ztf"), made, self.source, books, self.settings.turn
        )
        self.models = assemble.Models(self.settings.archive.root)
        self.trainer = assemble.trainer(self.settings)
        self.trainer.clock = lambda: _seconds(self.now)
        self.labels = EventLog(self.settings.archive.root, "labels")

    def night(self, packets: Sequence[Packet], night: int) -> None:
        """Score the night, learn what is due at its end, ask."""
        self.now = night + 1.0
        self.source.append(packets)
        while not self.source.end_reached():
            self.worker.pin(self.models.newer(self.snapshots))
            self.worker.turn()
        if answers := self.oracle.answers(float(night)):
            self.labels.append(answers)
        self.snapshots.update(self.trainer.turn().snapshots)
        self.oracle.look(self.trainer.pupils[MODEL].shortlist.open, float(night))

    def close(self) -> None:
        """Everyone leaves."""
        self.trainer.close()
        self.worker.close()


def settings(
    root: Path, sky: Sky, members: Sequence[str], strategy: str, seed: int, open_questions: int
) -> Settings:
    """Those of an ordinary run."""
    model: dict[str, Any] = {
        "classes": list(sky.classes),
        "columns": COLUMNS,
        "strategy": strategy,
        "queries": open_questions,
        "seed": seed,
    }
    return settings_file.parse(
        {
            "archive": {"root": str(root)},
            "surveys": {"ztf": {"servers": "memory", "workers": 1}},
            "steps": {"on": ["real", "good_pixels", *lightcurves.STEPS], "paths": []},
            "models": {MODEL: model | ({"members": list(members)} if members else {})},
            "learning": {"snapshot_seconds": 0.01},
            "mlflow": {"enabled": False},
        }
    )


def replay(
    found: Sky,
    root: Path,
    members: Sequence[str],
    oracle: Oracle,
    strategy: str,
    seed: int,
    tell: Callable[[float], None],
) -> tuple[pa.Table, Crew]:
    """All nights; what the archive holds of the scored alerts at the end."""
    waiting = oracle.looks * (math.ceil(oracle.delay) + 1)  # so many answers are under way at most
    crew = Crew(settings(root, found, members, strategy, seed, waiting), oracle)
    for night, chosen, share in _nights(found):
        crew.night(chosen, night)
        tell(share)
    crew.close()
    rows = crew.table.tail(-1, ["outcome", "object_id", "mjd", MODEL])[0]
    return rows.filter(pa.compute.equal(rows["outcome"], "scored")), crew


def _nights(found: Sky) -> Iterator[tuple[int, Sequence[Packet], float]]:
    edges = [*np.flatnonzero(np.diff(found.nights, prepend=-1)).tolist(), len(found.packets)]
    for begin, end in itertools.pairwise(edges):
        yield int(found.nights[begin]), found.packets[begin:end], end / len(found.packets)


def report(rows: pa.Table, found: Sky, oracle: Oracle) -> Findings:
    """The archive's scores, unseen objects first. Alerts before the first `LEAST` labels do not count."""
    said = _scores(rows, found.classes)
    truth = np.array(
        [found.classes.index(found.truth[name]) for name in rows["object_id"].to_pylist()], np.int64
    )
    numbers, table = {"night.labels": float(len(oracle.learned))}, []
    for name, scope in scopes(rows, said, oracle).items():
        told = metrics.summary(truth[scope], said[scope])
        numbers |= {
            findings.key("night", name.replace(" ", "_"), metric): value for metric, value in told.items()
        }
        table.append((name, f"{int(scope.sum()):,}", *(f"{told[metric]:.3f}" for metric in compared.SHOWN)))
    columns = ("alerts", "count", "AUC", "log-loss", "balanced accuracy", "calibration error")
    note = (
        f"{len(found.packets):,} packets of {len(np.unique(found.nights))} nights, {len(rows):,} of them scored; "
        f"{len(oracle.taken)} questions taken, {len(oracle.learned)} labels learned, {oracle.delay:g} days late"
    )
    sheet = Sheet("End to end: scores in the archive", columns, tuple(table), note)
    return Findings("night", numbers, (sheet,))


def scopes(rows: pa.Table, said: Floats, oracle: Oracle) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """The rows that count: of objects that no label was learned of, first of their object, all."""
    objects, nights = rows["object_id"].to_pylist(), np.floor(np.asarray(rows["mjd"]))
    known_after = np.array([oracle.learned.get(name, math.inf) for name in objects])
    begun = sorted(oracle.learned.values())[LEAST - 1] if len(oracle.learned) >= LEAST else math.inf
    counts = (nights > begun) & np.isfinite(said).all(axis=1)
    order = np.lexsort((np.asarray(rows["mjd"]), np.array(objects)))
    _, first = np.unique(np.array(objects)[order], return_index=True)
    is_first = np.isin(np.arange(len(objects)), order[first])
    return {
        "unseen objects": counts & (nights <= known_after),
        "first alerts": counts & is_first,
        "all alerts": counts,
    }


def _scores(rows: pa.Table, classes: Sequence[str]) -> Floats:
    column = rows[MODEL].combine_chunks()
    return np.stack([tables.array(pa.compute.struct_field(column, name)) for name in classes], axis=1)


def _some(curves: pa.Table, share: float, seed: int) -> pa.Table:
    """A random share of the light curves, ten at least."""
    order = np.random.default_rng(seed).permutation(curves.num_rows)
    return curves.take(pa.array(np.sort(order[: max(10, round(share * curves.num_rows))])))


def evaluate(
    table: Any,
    *,
    label: str,
    object: str,
    wanted: str | Iterable[str] = (),
    members: Iterable[str] = (),
    delay: float = 14.0,
    seed: int = 0,
    share: float = 1.0,
    looks: int = 10,
    strategy: str = "margin",
    output: str | Path | None = None,
    mlflow: str | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Evaluation:
    """Replay labelled light curves through the whole pipeline; with `output`, the archive stays in its folder."""
    names, said, chosen = Names(label, object), list[str](), tuple(members)
    curves, notes = evaluation.table_of(table, names)
    curves = _some(curves, share, seed)
    found = sky(curves, names, evaluation.as_tuple(wanted), said)
    oracle = Oracle(found.truth, delay, looks)
    with tempfile.TemporaryDirectory(prefix="raybroker-night-") as scratch:
        root = Path(output) / "archive" if output else Path(scratch)
        if root.exists() and any(root.iterdir()):
            raise SettingsError(f"{root} holds an archive already; give another --output")
        rows, _ = replay(found, root, chosen, oracle, strategy, seed, progress)
    about = {"table": str(table), "objects": len(found.truth), "classes": ", ".join(found.classes)}
    about |= {"delay, days": delay, "members": ", ".join(chosen) or "the settings' default"}
    about |= {"looks a night": looks, "strategy": strategy, "seed": seed}
    made = Evaluation(about, (report(rows, found, oracle),), (*notes, *said))
    evaluation.keep(made, Path(output) if output else None, mlflow)
    return made
