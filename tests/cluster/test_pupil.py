import dataclasses
import gc
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from raybroker.cluster import pupil as module
from raybroker.cluster.pupil import Asked, Pupil
from raybroker.learning.labels import Label
from raybroker.learning.shortlist import Candidate
from raybroker.settings import ChallengerSettings, LabelsSettings, ModelSettings

COLUMNS = ("rise", "colour")


def made() -> Pupil:
    return Pupil("transient", ModelSettings(classes=["AGN", "SN"], queries=4), COLUMNS)


def candidate(number: int) -> Candidate:
    rise, colour = np.random.default_rng(number).normal(size=2)
    return Candidate("ztf", f"ztf:{number}", f"ztf:object{number}", 60000.0, {"rise": rise, "colour": colour})


def label(number: int, name: str | None, **more: object) -> Label:
    given = {"event_id": f"event-{number}", "survey": "ztf", "alert_id": f"ztf:{number}", "label": name}
    given |= {"object_id": f"ztf:object{number}", "model": "transient", "source": "test", "who": "ann"}
    return Label.of(given | {"when": 0.0} | more)


def asked(number: int) -> Asked:
    return Asked(f"ztf:{number}", candidate(number).features, 60000.0)


def tell(pupil: Pupil, *labels: Label) -> int:
    for one in labels:
        pupil.hear(one, pupil.known(one) or asked(int(one.alert_id.removeprefix("ztf:"))))
    return pupil.study()


def test_a_long_night_of_asking_fits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKED", 12)
    pupil = made()
    for number in range(60):
        pupil.consider([candidate(n) for n in range(5 * number, 5 * number + 5)], 60000.0)
        for query in pupil.choose(number, 0.0).opened[:2]:
            tell(pupil, label(int(query.alert_id.removeprefix("ztf:")), "SN", query_id=query.query_id))
        assert len(pupil.asked) <= 12
        assert {query.query_id for query in pupil.shortlist.open} <= pupil.asked.keys()


def test_what_the_pool_holds_need_not_be_asked_of_the_archive() -> None:
    pupil, one = made(), candidate(1)
    pupil.consider([one], 60000.0)
    assert pupil.known(label(1, "SN")) == Asked(one.alert_id, one.features, one.mjd)
    assert pupil.known(label(1, "SN", alert_id="ztf:older")) is None


def test_the_answer_to_a_question_teaches_what_was_said_when_it_was_asked() -> None:
    pupil = made()
    pupil.consider([candidate(n) for n in range(20)], 60000.0)
    query = pupil.choose(1, 0.0).opened[0]
    found = pupil.known(label(int(query.alert_id.removeprefix("ztf:")), "SN", query_id=query.query_id))
    assert found is not None
    assert found.before.keys() == {"mixture", *pupil.learner.member_names}
    assert found.before["mixture"] == np.float32(query.probabilities["mixture"]).tolist()
    other = label(77, "SN", query_id=query.query_id)  # a query id of another alert says nothing of this one
    assert pupil.known(other) is None


def test_a_withdrawal_leaves_a_model_that_never_saw_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKED", 0)
    for withdrawn in (0, 17, 29):  # before all states that are kept, between two, and the last
        pupil, other = made(), made()
        for number in range(30):
            told = label(number, "AGN" if number % 2 else "SN")
            for one in (pupil, other) if number != withdrawn else (pupil,):
                tell(one, told)
        tell(
            pupil, label(99, None, alert_id=f"ztf:{withdrawn}", replaces=f"event-{withdrawn}", withdrawn=True)
        )
        assert pupil.frozen.digest() == other.frozen.digest()
        assert pupil.progress.losses == other.progress.losses
        assert tell(pupil, label(100, "SN")) == tell(other, label(100, "SN")) == 1
        assert pupil.frozen.digest() == other.frozen.digest()


def test_an_undo_does_not_teach_everything_again() -> None:
    pupil = made()
    tell(pupil, *(label(number, "AGN" if number % 2 else "SN") for number in range(45)))
    tell(pupil, label(99, None, alert_id="ztf:44", replaces="event-44", withdrawn=True))
    assert pupil._states[-1][0] == 40
    assert len(pupil.lessons) == pupil.learner.learned == 44


def test_a_batch_of_labels_is_the_same_as_one_after_the_other() -> None:
    together, one_by_one = made(), made()
    labels = [label(number, "AGN" if number % 3 else "SN") for number in range(25)]
    tell(together, *labels)
    for one in labels:
        tell(one_by_one, one)
    assert together.frozen.digest() == one_by_one.frozen.digest()


def test_a_label_that_comes_twice_is_heard_once() -> None:
    pupil = made()
    tell(pupil, label(1, "SN"), label(1, "SN"), label(2, "AGN"))
    before = pupil.frozen.digest()
    assert tell(pupil, label(1, "SN")) == 0
    assert (pupil.learner.learned, pupil.frozen.digest()) == (2, before)
    assert pupil.heard == ["event-1", "event-2"]


def test_a_raw_label_is_learned_as_the_class_that_it_means() -> None:
    own = ModelSettings(classes=["real", "bogus"], raw={"real": ["galactic", "AGN"], "bogus": ["bogus"]})
    pupil = Pupil("real_bogus", own, COLUMNS)
    assert pupil.concerns(label(1, "AGN", model=""))
    assert not pupil.concerns(label(1, "SN"))
    tell(pupil, label(1, "AGN", model=""), label(2, "bogus", model=""), label(3, "comet", model=""))
    assert pupil.lessons == [("event-1", "real"), ("event-2", "bogus")]


def test_where_people_disagree_the_rule_decides_what_is_learned() -> None:
    pupil = Pupil("transient", ModelSettings(classes=["AGN", "SN"]), COLUMNS, LabelsSettings(rule="majority"))
    tell(pupil, label(1, "SN"), label(2, "AGN"))
    tell(pupil, label(1, "AGN", event_id="second", who="bob"))
    assert pupil.lessons == [("event-2", "AGN")]
    tell(pupil, label(1, "AGN", event_id="third", who="cat"))
    assert dict(pupil.lessons) == {"event-2": "AGN", "second": "AGN"}
    assert pupil.learner.learned == 2


def test_a_nights_budget_closes_the_list_until_the_next_night() -> None:
    own = ModelSettings(classes=["AGN", "SN"], queries=4, budget=3)
    pupil = Pupil("transient", own, COLUMNS)
    pupil.consider([candidate(n) for n in range(20)], 60000.0)
    pupil.choose(1, 1000.0)
    assert len(pupil.shortlist.open) == 3
    for query in pupil.shortlist.open:
        tell(
            pupil, label(int(query.alert_id.removeprefix("ztf:")), "SN", query_id=query.query_id, when=1000.0)
        )
    pupil.choose(2, 1001.0)
    assert len(pupil.shortlist.open) == 0
    pupil.choose(3, 1000.0 + 13 * 3600)
    assert len(pupil.shortlist.open) == 3


def test_a_challenger_that_is_better_takes_over_and_the_questions_name_its_members() -> None:
    better = {"good": ChallengerSettings(members=["naive_bayes"], columns=["colour"])}
    own = ModelSettings(classes=["AGN", "SN"], members=["naive_bayes"], challengers=better, random_share=0.0)
    pupil = Pupil("transient", own, ("rise",), None, {"good": ("colour",)})
    for number in range(400):
        colour = candidate(number).features["colour"]
        tell(pupil, label(number, "SN" if (colour or 0) > 0 else "AGN"))
        if pupil.configuration:
            break
    assert pupil.configuration == "good"
    assert pupil.frozen.columns == ("colour",)
    pupil.consider([candidate(n) for n in range(500, 520)], 60000.0)
    asked_now = pupil.choose(1, 0.0).opened[0]
    assert asked_now.probabilities.keys() == {"mixture", "good/naive_bayes", "naive_bayes"}


def test_an_anomaly_model_grows_on_its_pool_and_asks_for_the_strangest() -> None:
    own = ModelSettings(task="anomaly", queries=3, random_share=0.0)
    pupil = Pupil("odd", own, COLUMNS)
    assert not pupil.outgrown()
    strange = Candidate("ztf", "ztf:9999", "ztf:strange", 60000.0, {"rise": 40.0, "colour": -40.0})
    pupil.consider([*(candidate(n) for n in range(300)), strange], 60000.0)
    assert pupil.outgrown()
    pupil.grow(pupil.shortlist.features(pupil.columns))
    assert not pupil.outgrown()
    assert pupil.choose(1, 0.0).opened[0].alert_id == "ztf:9999"
    before = float(pupil.frozen.predict(_rows(strange)).mixture[0, 0])
    tell(pupil, label(9999, "ordinary", model="odd", object_id="ztf:strange"))
    assert float(pupil.frozen.predict(_rows(strange)).mixture[0, 0]) < before


def _rows(one: Candidate) -> pa.Table:
    return pa.table({name: [one.features[name]] for name in COLUMNS})


def held_by_bob(pupil: Pupil) -> None:
    tell(pupil, label(1, "SN"), label(1, "SN", event_id="bobs", who="bob"))
    tell(pupil, label(1, None, event_id="undo", replaces="event-1", withdrawn=True))


def test_an_undo_opens_nothing_that_somebody_else_has_answered() -> None:
    pupil = made()
    held_by_bob(pupil)
    pupil.consider([candidate(1)], 60000.0)
    assert (
        len(pupil.shortlist) == 0
    )  # the list hides what has an answer: a question about it would stand for ever
    tell(pupil, label(1, None, event_id="undo-2", replaces="bobs", withdrawn=True, who="bob"))
    pupil.consider([candidate(1)], 60000.0)
    assert len(pupil.shortlist) == 1


def test_a_label_that_comes_after_its_own_withdrawal_answers_nothing() -> None:
    pupil = made()
    pupil.consider([candidate(1)], 60000.0)
    tell(pupil, label(1, None, event_id="undo", replaces="event-1", withdrawn=True))
    tell(pupil, label(1, "SN"))
    assert not pupil.is_answered(label(1, "SN"))
    assert len(pupil.shortlist) == 1


def test_a_raw_label_is_not_for_a_model_that_translates_none() -> None:
    assert not made().concerns(label(1, "AGN", model=""))


def test_only_answers_to_questions_that_still_hold_count_for_the_nights_budget() -> None:
    own = ModelSettings(classes=["AGN", "SN"], queries=4, budget=3)
    pupil = Pupil("transient", own, COLUMNS)
    tell(pupil, *(label(n, "SN", source="tns", who="tns", when=1000.0) for n in range(50, 60)))
    tell(pupil, label(1, "SN", query_id="q1", when=1000.0), label(2, "SN", query_id="q2", when=1000.0))
    assert pupil.answered_since(0.0) == 2
    tell(pupil, label(1, "AGN", event_id="again", replaces="event-1", query_id="q1", when=1000.0))
    assert pupil.answered_since(0.0) == 2
    tell(pupil, label(2, None, event_id="undo", replaces="event-2", withdrawn=True, query_id="q2"))
    assert pupil.answered_since(0.0) == 1


def test_no_more_is_wanted_than_the_budget_leaves() -> None:
    pupil = Pupil("transient", ModelSettings(classes=["AGN", "SN"], queries=4, budget=1), COLUMNS)
    assert pupil.wanted(0.0) == 0
    pupil.consider([candidate(n) for n in range(20)], 60000.0)
    assert pupil.wanted(1000.0) == 1
    tell(pupil, label(1, "SN", query_id="q1", when=1000.0))
    assert (pupil.wanted(1000.0), pupil.wanted(1000.0 + 13 * 3600)) == (0, 1)


def test_a_label_is_kept_in_little_memory() -> None:
    """Without its own dict of features, its own copy of every word, its own array, and a share in each kept state."""
    columns = tuple(f"basic.{number}" for number in range(20))
    pupil = Pupil("transient", ModelSettings(classes=["AGN", "SN"], members=["softmax"]), columns)

    def teach(numbers: range) -> int:
        for number in numbers:
            values = np.random.default_rng(number).normal(size=20).tolist()
            features = {f"basic.{column}": value for column, value in enumerate(values)}
            told = label(number, "AGN" if number % 2 else "SN", source=f"{'te'}st")
            pupil.hear(told, Asked(told.alert_id, features, 60000.0))
            pupil.study()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = teach(range(600))  # what is bounded is full
        assert teach(range(600, 900)) - before < 300 * 3_400
    finally:
        tracemalloc.stop()


def test_what_is_kept_of_a_label_teaches_the_same() -> None:
    features = {"rise": -0.0, "colour": None, "unasked": 3.0}
    whole = Asked("ztf:1", features, 60000.0, {"mixture": [0.25, 0.75]}, True)
    kept = whole.kept({"rise": 0, "colour": 1})
    assert dict(kept.features) == {"rise": 0.0, "colour": None}
    assert "unasked" not in kept.features
    assert kept.digest(COLUMNS) == whole.digest(COLUMNS)
    assert kept.digest(COLUMNS) != dataclasses.replace(whole, features={"rise": 0.0}).digest(COLUMNS)
    assert (kept.mjd, kept.before, kept.pick) == (whole.mjd, whole.before, whole.pick)


def test_undo_after_undo_keeps_the_older_states() -> None:
    pupil = made()
    tell(pupil, *(label(number, "AGN" if number % 2 else "SN") for number in range(45)))
    for number in (44, 43, 42, 41):
        undo = {"event_id": f"undo-{number}", "replaces": f"event-{number}", "withdrawn": True}
        tell(pupil, label(number, None, **undo))
    assert [lessons for lessons, _ in pupil._states] == [10, 20, 30, 40]


def test_a_question_asked_twice_of_one_snapshot_is_what_it_was_at_first() -> None:
    pupil = Pupil("transient", ModelSettings(classes=["AGN", "SN"], random_share=0.0), COLUMNS)
    pupil.consider([candidate(1)], 60000.0)
    first = pupil.choose(1, 0.0).opened[0]
    before = pupil.asked[first.query_id]
    tell(pupil, *(label(number, "AGN" if number % 2 else "SN") for number in range(20, 40)))
    pupil.shortlist._slots = []  # it is taken back, and asked anew
    (second,) = pupil.choose(1, 0.0).opened
    assert (second.query_id, second.probabilities != first.probabilities) == (first.query_id, True)
    assert pupil.asked[first.query_id] == before  # as the log has it, which tells whoever resumes


def test_a_forest_that_grows_anew_judges_itself_as_one_that_resumes() -> None:
    own = ModelSettings(task="anomaly", queries=3)
    grown, resumed = (Pupil("odd", own, COLUMNS) for _ in range(2))
    samples = [pa.Table.from_pylist([candidate(n).features for n in range(m)]) for m in (40, 90)]
    grown.grow(samples[0])
    resumed.grow(samples[1])
    for pupil in (grown, resumed):
        tell(pupil, *(label(n, "ordinary" if n % 3 else "interesting", model="odd") for n in range(5)))
    grown.grow(samples[1])
    assert grown.frozen.digest() == resumed.frozen.digest()
    assert grown.progress.losses == resumed.progress.losses


def test_a_small_pool_is_background_enough() -> None:
    pupil = Pupil("odd", ModelSettings(task="anomaly", pool=50), COLUMNS)
    pupil.consider([candidate(n) for n in range(60)], 60000.0)
    assert pupil.outgrown()


def test_split_lets_the_strangest_into_an_anomaly_models_pool() -> None:
    own = ModelSettings(task="anomaly", arrival="split", arrival_share=0.2)
    pupil = Pupil("odd", own, COLUMNS)
    pupil.grow(pa.Table.from_pylist([candidate(n).features for n in range(300)]))
    pupil.consider([candidate(n) for n in range(1000, 3000)], 60000.0)
    inside = [
        float(pupil.frozen.predict(_rows(one)).mixture[0, 0])
        for one in pupil.shortlist.candidates
        if not one.drawn
    ]
    assert np.mean(inside) > 0.7
