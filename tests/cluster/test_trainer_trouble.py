"""What may go wrong beside the trainer, and what it must not read again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raybroker.archive.table import AlertsTable
from raybroker.cluster.pupil import Pupil
from raybroker.cluster.rows import Stream
from raybroker.cluster.trainer import Trainer
from raybroker.errors import ArchiveError
from raybroker.scores import online
from raybroker.settings import LearningSettings, ModelSettings
from raybroker.synthetic import CLASSES
from tests.cluster.test_trainer import (
    BASIC,
    MODEL,
    Clock,
    _row_schema,
    answer,
    answered,
    claimed,
    night,
    open_queries,
    root,
    trainer,
    truth,
)
from tests.cluster.worlds import ZTF, pipeline

__all__ = ["night", "root"]  # fixtures
RAW = {"here": [CLASSES[0]], "there": list(CLASSES[1:])}


def rejected(made: Trainer) -> dict[str, Any]:
    rows, _ = made.streams["ztf"].table.read(["outcome", "alert_id", "object_id"])
    return next(row for row in rows.to_pylist() if row["outcome"] == "rejected")


def test_a_packet_that_cannot_be_read_any_more_costs_its_label_and_not_the_trainer(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer(root)
    made.turn()
    lost = rejected(made)

    def gone(alert_id: str) -> Any:
        raise ArchiveError("its segment is gone")

    monkeypatch.setattr(made.lookup, "packet", gone)
    answer(root, lost, CLASSES[0])
    query = open_queries(root)[0]
    answer(root, query, truth(query))
    assert made.turn().labels[MODEL] == 1
    assert f"no features of alert '{lost['alert_id']}'" in caplog.text
    assert "its segment is gone" in caplog.text


def test_an_anomaly_model_with_other_columns_grows_anew(root: Path) -> None:
    settings = {"task": "anomaly", "classes": ["interesting", "ordinary"]}
    made = trainer(root, columns=["basic.snr", "basic.magnitude"], **settings)
    made.turn()
    answer(root, open_queries(root)[0], "ordinary")
    made.turn()
    again = trainer(root, columns=["basic.snr", "basic.magnitude", "basic.age"], **settings)
    assert again.turn().labels[MODEL] == 1
    assert set(again.pupils[MODEL].background.column_names) == {"basic.snr", "basic.magnitude", "basic.age"}  # type: ignore[union-attr]


def both(root: Path) -> Trainer:
    """Two models that learn from raw labels."""
    made, columns = pipeline(), online.expand(["basic.*"], BASIC)
    raws = {"where": RAW, MODEL: {name: [name] for name in CLASSES}}
    pupils = [
        Pupil(name, ModelSettings(classes=list(raw), raw=raw, members=["naive_bayes"]), columns)
        for name, raw in raws.items()
    ]
    streams = {"ztf": Stream(ZTF, made, AlertsTable(root, "ztf", _row_schema(made)))}
    return Trainer(root, streams, pupils, None, LearningSettings(), Clock())


def test_the_answer_to_another_models_question_is_learned_without_reading_the_whole_log(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = both(root)
    made.turn()
    query = next(one for one in open_queries(root) if one["model"] == MODEL)
    monkeypatch.setattr(made.questions.log, "read", lambda names=None: pytest.fail("reads the log"))
    answer(root, query, truth(query), model="")
    assert made.turn().labels == {"where": 1, MODEL: 1}
    again = both(root)
    for name, pupil in made.pupils.items():
        assert again.pupils[name].frozen.digest() == pupil.frozen.digest()


def test_a_spent_budget_is_not_asked_about_every_second(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    made = trainer(root, clock, budget=2)
    made.turn()
    answered(root, made, 2)
    monkeypatch.setattr(Clock, "__call__", lambda self: self.now)
    chosen: list[float] = []
    choose = made.pupils[MODEL].choose
    monkeypatch.setattr(
        made.pupils[MODEL], "choose", lambda *given: chosen.append(clock.now) or choose(*given)
    )
    for _ in range(20):
        clock.now += 1.0
        made.turn()
    assert len(chosen) <= 4
    assert open_queries(root) == []


def test_a_new_trainer_reads_the_last_nights_and_not_the_whole_archive(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(root, pool=10)
    nights: list[int | None] = []
    tail = AlertsTable.tail

    def watched(self: AlertsTable, since: int, names: Any = None, from_night: int | None = None) -> Any:
        if self is made.streams["ztf"].table:  # threads of other tests may still look at tables of theirs
            nights.append(from_night)
        return tail(self, since, names, from_night)

    monkeypatch.setattr(AlertsTable, "tail", watched)
    made.turn()
    newest = max(
        night for night in made.streams["ztf"].table.read(["night"])[0]["night"].to_pylist() if night
    )
    assert nights == [newest]
    assert len(made.pupils[MODEL].shortlist) == 10
    made.turn()
    assert nights[1:] == [None]


def test_one_wild_date_withdraws_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(root)
    made.turn()
    before = [query["query_id"] for query in open_queries(root)]
    table = made.streams["ztf"].table
    wild = table.read(made._columns(made.streams["ztf"]))[0].slice(0, 1)
    names = {"mjd": pa.array([99999.0]), "alert_id": pa.array(["ztf:7"]), "outcome": pa.array(["scored"])}
    for name, column in names.items():
        wild = wild.set_column(wild.column_names.index(name), name, column)
    monkeypatch.setattr(table, "tail", lambda since, names, first=None: (wild, since))
    made.turn()
    assert before
    assert [query["query_id"] for query in open_queries(root)] == before


def test_a_claim_holds_what_every_model_asks_of_the_object(root: Path) -> None:
    clock = Clock()
    made = trainer(root, clock)
    made.turn()
    held = open_queries(root)[-1]
    claimed(root, held, clock.now + 1e6, model="another", query_id="theirs")
    made.turn()
    shortlist = made.pupils[MODEL].shortlist
    assert [q.key for q in shortlist.expire(1e6, clock.now) if q.key == held["object_id"]] == []
    assert [query.key for query in shortlist.open] == [held["object_id"]]
