import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybroker import simulate
from raybroker.archive import provenance
from raybroker.archive.events import EventLog, dicts
from raybroker.archive.table import AlertsTable, row_schema
from raybroker.cluster.catalogue_labels import Watch
from raybroker.cluster.pupil import Pupil
from raybroker.cluster.requests import Requests
from raybroker.cluster.rows import Stream
from raybroker.cluster.trainer import Trainer
from raybroker.learning.compiled import Frozen
from raybroker.scores import online
from raybroker.settings import LabelsSettings, LearningSettings, ModelSettings
from raybroker.step import discover
from raybroker.stream.memory import MemorySink
from raybroker.synthetic import CLASSES, Sky
from tests.cluster.worlds import ZTF, pipeline, placed, worker

MODEL = "transient"
DATE = "20260901"
SKY = Sky.for_night(3, 600)
BASIC = {"basic": discover()["basic"].gives}


class Clock:
    def __init__(self) -> None:
        self.now = 1_780_000_000.0

    def __call__(self) -> float:
        self.now += 10.0  # so that no pause is ever waited for
        return self.now


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with a simulated night in it."""
    root = tmp_path_factory.mktemp("archive")
    packets = [p for exposure in simulate.night(SKY, 600, DATE) for p in exposure.packets]
    made = worker(root, placed(packets))
    made.turn()
    return root


@pytest.fixture
def root(night: Path, tmp_path: Path) -> Path:
    """The night's table, with event logs of its own."""
    (tmp_path / "ztf").symlink_to(night / "ztf")
    return tmp_path


def trainer(
    root: Path,
    clock: Clock | None = None,
    labels: LabelsSettings | None = None,
    registry: Any = None,
    requests: Any = None,
    **settings: object,
) -> Trainer:
    own = ModelSettings(**{"classes": list(CLASSES)} | settings)
    made = pipeline()
    table = AlertsTable(root, "ztf", _row_schema(made))
    challengers = {
        key: online.expand(other.columns, BASIC) for key, other in own.challengers.items() if other.columns
    }
    pupil = Pupil(MODEL, own, online.expand(own.columns, BASIC), labels, challengers)
    watch = Watch(labels.catalogues) if labels else None
    streams = {"ztf": Stream(ZTF, made, table)}
    now = clock or Clock()
    return Trainer(root, streams, [pupil], registry, LearningSettings(), now, requests, watch)


def _row_schema(made):  # type: ignore[no-untyped-def]
    return row_schema(made.columns)


class Questions:
    """What is open, by the log; each time only what is new of it is read."""

    def __init__(self, root: Path) -> None:
        self.log, self.seen = EventLog(root, "queries"), -1
        self.last: dict[str, dict] = {}

    def open(self) -> list[dict]:
        rows, self.seen = self.log.tail(self.seen)
        self.last |= {row["query_id"]: row for row in dicts(rows)}
        return sorted((r for r in self.last.values() if r["state"] == "open"), key=lambda r: r["rank"])


def open_queries(root: Path) -> list[dict]:
    return Questions(root).open()


def answer(root: Path, query: dict, label: str | None, event_id: str = "", **more: object) -> str:
    row = {
        "event_id": event_id or uuid.uuid4().hex,
        "model": MODEL,
        "survey": "ztf",
        "label": label,
        "source": "test",
        "who": "ann",
        "when": datetime.now(UTC),
        **{key: query.get(key) for key in ("alert_id", "object_id", "query_id", "snapshot")},
        **more,
    }
    EventLog(root, "labels").append([row])
    return str(row["event_id"])


def truth(query: dict) -> str:
    return simulate.truth(SKY, query["alert_id"])


def digest(made: Trainer) -> str:
    return made.pupils[MODEL].frozen.digest()


def taught(root: Path, labels: int) -> Trainer:
    made = trainer(root)
    made.turn()
    answered(root, made, labels)
    return made


def answered(root: Path, made: Trainer, labels: int) -> None:
    questions = Questions(root)
    for _ in range(labels):
        query = questions.open()[0]
        answer(root, query, truth(query))
        made.turn()


def test_the_first_turn_publishes_and_asks_before_any_label(root: Path) -> None:
    lesson = trainer(root).turn()
    number, name = lesson.snapshots[MODEL]
    assert number == 1
    model = Frozen.restore(provenance.get(root, name))
    assert model.learned == 0
    queries = open_queries(root)
    assert len(queries) == lesson.open[MODEL] == 10
    assert len({query["object_id"] for query in queries}) == 10
    assert all(query["features"] and query["mjd"] and query["reason"] for query in queries)


def test_labels_are_learned_published_and_leave_the_queue(root: Path) -> None:
    made = trainer(root)
    made.turn()
    query = open_queries(root)[0]
    answer(root, query, truth(query))
    lesson = made.turn()
    assert (lesson.learned, lesson.labels[MODEL], lesson.snapshots[MODEL][0]) == (1, 1, 2)
    assert query["object_id"] not in {other["object_id"] for other in open_queries(root)}
    rows = dicts(EventLog(root, "snapshots").read())
    assert [row["number"] for row in rows] == [1, 2]
    assert [len(row["learned"]) for row in rows] == [0, 1]


def test_cannot_tell_leaves_the_queue_and_teaches_nothing(root: Path) -> None:
    made = trainer(root)
    made.turn()
    query = open_queries(root)[0]
    before = digest(made)
    answer(root, query, None)
    made.turn()
    assert digest(made) == before
    assert query["object_id"] not in {other["object_id"] for other in open_queries(root)}


def test_a_label_that_comes_twice_is_learned_once(root: Path) -> None:
    made = trainer(root)
    made.turn()
    query = open_queries(root)[0]
    for _ in range(2):
        answer(root, query, truth(query), event_id="same")
    assert made.turn().labels[MODEL] == 1


def test_a_trainer_that_comes_back_is_the_same_bit_for_bit(root: Path) -> None:
    made = taught(root, 25)
    again = trainer(root)
    assert digest(again) == digest(made)
    assert again.newest[MODEL].number == made.newest[MODEL].number
    lesson = again.turn()
    assert lesson.snapshots == made._lesson(0, 0).snapshots
    assert len(open_queries(root)) == 10


def test_a_withdrawn_label_leaves_no_trace_in_the_model(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = trainer(root)
    made.turn()
    first, second, third = open_queries(root)[:3]
    answer(root, first, truth(first))
    wrong = answer(root, second, truth(second))
    answer(root, third, truth(third))
    made.turn()
    with_it = digest(made)
    answer(root, second, None, replaces=wrong, withdrawn=True)
    made.turn()
    assert made.pupils[MODEL].learner.learned == 2
    assert digest(made) != with_it
    never = trainer(root)  # comes back, and must not learn it again
    never.turn()
    assert digest(never) == digest(made)


def test_an_alert_never_asked_is_learned_from_the_archive_and_a_rejected_one_from_its_packet(
    root: Path,
) -> None:
    made = trainer(root)
    made.turn()
    rows, _ = made.streams["ztf"].table.read(["outcome", "alert_id", "object_id"])
    asked = {query["object_id"] for query in open_queries(root)}
    by_outcome = {row["outcome"]: row for row in rows.to_pylist() if row["object_id"] not in asked}
    for i, outcome in enumerate(("scored", "rejected"), 1):
        answer(root, by_outcome[outcome], truth(by_outcome[outcome]))
        assert made.turn().labels[MODEL] == i
        features = list(made.pupils[MODEL].taught.values())[-1].features
        assert np.isfinite(features["basic.snr"])


def test_a_label_for_an_alert_nobody_knows_stops_nothing(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer(root)
    made.turn()
    answer(root, {"alert_id": "ztf:1"}, "agn")
    assert made.turn().labels[MODEL] == 0
    assert "ztf:1 is not learned" in caplog.text


def test_a_hundred_labels_tell_supernovae_from_the_rest_on_objects_never_labelled(root: Path) -> None:
    from sklearn.metrics import roc_auc_score

    made = taught(root, 100)
    pupil = made.pupils[MODEL]
    labelled = pupil.ledger.labelled_objects(MODEL)
    rest = [one for one in pupil.shortlist.candidates if one.object_id not in labelled]
    features = pupil.shortlist.features(pupil.columns)
    scores = pupil.frozen.predict(features).mixture[:, 0]
    supernova = [simulate.truth(SKY, one.alert_id) == "supernova" for one in rest]
    assert len(rest) == len(scores)
    assert roc_auc_score(supernova, scores) >= 0.85


def test_a_label_withdrawn_before_any_snapshot_is_not_learned_by_the_next_trainer(root: Path) -> None:
    made = trainer(root)
    made.turn()
    before = digest(made)
    query = open_queries(root)[0]
    wrong = answer(root, query, truth(query))
    answer(root, query, None, replaces=wrong, withdrawn=True)
    made.turn()
    assert digest(made) == before
    again = trainer(root)
    again.turn()
    assert digest(again) == before


CHALLENGERS = {"bayes": {"members": ["naive_bayes"], "columns": ["basic.snr", "basic.magnitude"]}}


def test_with_challengers_and_at_any_point_a_trainer_that_comes_back_is_the_same(root: Path) -> None:
    made = trainer(root, challengers=CHALLENGERS)
    made.turn()
    for labels in (3, 9, 10):
        answered(root, made, labels)
        again = trainer(root, challengers=CHALLENGERS)
        ours, theirs = (one.pupils[MODEL] for one in (made, again))
        for key in ("own", "bayes"):
            assert ours.learners[key].frozen().digest() == theirs.learners[key].frozen().digest()
        assert [str(duel) for duel in ours.contest.standing()] == [str(d) for d in theirs.contest.standing()]
        assert ours.progress.metrics("bayes") == theirs.progress.metrics("bayes")
        made = again
        made.turn()


def test_what_was_said_when_it_was_asked_survives_the_trainer(root: Path) -> None:
    made = trainer(root)
    made.turn()
    answered(root, made, 12)
    query = open_queries(root)[-1]
    again = trainer(root)  # withdraws the question; whoever saw it answers all the same
    for one in (made, again):
        answer(root, query, truth(query), event_id="late-answer")
        one.turn()
    assert digest(made) == digest(again)
    assert again.pupils[MODEL].taught["late-answer"].before == made.pupils[MODEL].taught["late-answer"].before
    assert again.pupils[MODEL].taught["late-answer"].before["mixture"]


def test_an_anomaly_forest_comes_back_as_it_was(root: Path) -> None:
    settings = {"task": "anomaly", "classes": ["interesting", "ordinary"]}
    made = trainer(root, **settings)
    lesson = made.turn()
    assert lesson.pool[MODEL] >= 200
    assert made.pupils[MODEL].background is not None
    for label in ("interesting", "ordinary", "ordinary"):
        query = open_queries(root)[0]
        assert "snapshot" in query["reason"]
        answer(root, query, label)
        made.turn()
    again = trainer(root, **settings)
    assert digest(again) == digest(made)
    assert again._lesson(0, 0).snapshots == made._lesson(0, 0).snapshots


def claimed(root: Path, query: dict, until: float, **more: object) -> None:
    row = {
        "event_id": "claim",
        "claim": "ann",
        "until": datetime.fromtimestamp(until, UTC),
        "state": "claimed",
    }
    row |= {key: query[key] for key in ("query_id", "model", "survey", "alert_id", "object_id")}
    EventLog(root, "queries").append([{**row, "when": datetime.now(UTC), **more}])


def test_what_somebody_looks_at_keeps_its_place(root: Path) -> None:
    clock = Clock()
    made = trainer(root, clock)
    made.turn()
    held = open_queries(root)[-1]
    claimed(root, held, clock.now + 1e6)
    for _ in range(15):
        query = next(one for one in open_queries(root) if one["query_id"] != held["query_id"])
        answer(root, query, truth(query))
        made.turn()
    assert held["query_id"] in {query.query_id for query in made.pupils[MODEL].shortlist.open}


def test_a_catalogue_teaches_after_its_delay(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = dicts(
        AlertsTable(root, "ztf", _row_schema(pipeline())).read(["object_id", "outcome", "ra", "dec"])[0]
    )
    known = [row for row in rows if row["outcome"] == "scored"][:3]
    tns = tmp_path_factory.mktemp("tns") / "tns.csv"
    lines = [f"x{i},{r['ra']},{r['dec']},SN Ia,{r['object_id'][4:]}" for i, r in enumerate(known)]
    tns.write_text("\n".join(["name,ra,declination,type,internal_names", *lines]))
    own = {"file": tns, "delay_days": 10, "classes": {"SN Ia": CLASSES[0]}, "model": MODEL}
    clock = Clock()
    clock.now = (61284.5 - 40587) * 86400  # the night itself
    made = trainer(root, clock, LabelsSettings(catalogues={"tns": own}), oldest_days=1000.0)
    for _ in range(4):
        made.turn()
    assert made.pupils[MODEL].learner.learned == 0
    clock.now += 11 * 86400
    for _ in range(4):
        made.turn()
    labels = dicts(EventLog(root, "labels").read())
    assert {(row["who"], row["label"]) for row in labels} == {("tns", CLASSES[0])}
    assert made.pupils[MODEL].learner.learned == len({row["object_id"] for row in labels}) == 3


class Kept:
    """Takes releases."""

    def __init__(self) -> None:
        self.releases: list[Any] = []

    @property
    def counts(self) -> dict[str, int]:
        return {"logged": len(self.releases), "waiting": 0, "dropped": 0}

    def release(self, release: Any) -> None:
        self.releases.append(release)

    def close(self, timeout: float) -> int:
        return 0


def test_a_release_tells_of_the_champion_and_of_its_challengers(root: Path) -> None:
    registry = Kept()
    made = trainer(root, registry=registry, challengers=CHALLENGERS)
    made.turn()
    answered(root, made, 25)
    made.release("now")
    released = len(registry.releases)
    made.release("again")  # nothing has changed
    assert len(registry.releases) == released
    champion, challenger = registry.releases[-2:]
    assert (champion.configuration, champion.alias) == ("", "champion")
    assert (challenger.configuration, challenger.alias) == ("bayes", "challenger")
    assert (champion.model, champion.digest) == (MODEL, made.newest[MODEL].digest)
    assert len(champion.taught) == made.pupils[MODEL].learner.learned
    assert 0 < len(champion.unseen) <= 25
    assert champion.metrics["labels"] == len(champion.taught)


def test_each_question_and_its_end_is_told_to_other_programs(root: Path) -> None:
    sink = MemorySink()
    made = trainer(root, requests=Requests(sink))
    made.turn()
    query = open_queries(root)[0]
    answer(root, query, truth(query))
    made.turn()
    made.close()
    told = [json.loads(packet.value or b"") for packet in sink.written[f"raybroker.queries.{MODEL}"]]
    assert [one["state"] for one in told if one["query_id"] == query["query_id"]] == ["open", "answered"]
    assert sum(one["state"] == "open" for one in told) >= 10
