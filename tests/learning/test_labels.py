"""Labels: checked at the door, counted once, revised without being rewritten."""

from __future__ import annotations

import dataclasses

import pytest

from raybroker.errors import UnknownError
from raybroker.learning.labels import Label, Ledger, new_event_id, validate

CLASSES = ("AGN", "SN")


def label(event_id: str, said: str | None = "SN", alert: str = "ztf:1", **more: object) -> Label:
    given = {"survey": "ztf", "object_id": "ztf:ZTF1", "model": "m", **more}
    return Label(event_id=event_id, alert_id=alert, label=said, **given)  # type: ignore[arg-type]


def learned(ledger: Ledger) -> list[tuple[str, str | None]]:
    return [(found.event_id, found.label) for found in ledger.to_learn("m")]


def test_a_label_delivered_twice_counts_once() -> None:
    ledger = Ledger()
    assert ledger.add(label("a", when=1.0))
    assert not ledger.add(label("a", when=2.0))
    assert learned(ledger) == [("a", "SN")]
    assert len(ledger) == 1
    assert "a" in ledger


def test_an_event_id_cannot_be_used_for_another_label() -> None:
    ledger = Ledger([label("a")])
    with pytest.raises(ValueError, match="event id 'a' was used before"):
        ledger.add(label("a", "AGN"))
    assert learned(ledger) == [("a", "SN")]


def test_a_revision_takes_the_place_of_what_it_replaces() -> None:
    ledger = Ledger([label("a"), label("b", alert="ztf:2"), label("c", "AGN", replaces="a")])
    assert learned(ledger) == [("b", "SN"), ("c", "AGN")]
    assert ledger.get("a").label == "SN"
    assert ledger.undoes(ledger.get("c"))
    assert not ledger.undoes(ledger.get("b"))


def test_a_withdrawn_label_is_as_if_never_given_and_stays_in_the_ledger() -> None:
    ledger = Ledger(
        [label("a"), label("b", "AGN", replaces="a"), label("c", None, replaces="b", withdrawn=True)]
    )
    assert learned(ledger) == []
    assert ledger.standing() == []
    assert ledger.labelled_objects("m") == frozenset()
    assert len(ledger) == 3


def test_a_revision_that_arrives_first_still_wins() -> None:
    ledger = Ledger([label("b", "AGN", replaces="a"), label("a")])
    assert learned(ledger) == [("b", "AGN")]


def test_cannot_tell_is_an_answer_but_not_a_lesson() -> None:
    ledger = Ledger([label("a", None)])
    assert learned(ledger) == []
    assert ledger.labelled_objects("m") == {"ztf:ZTF1"}


def test_models_learn_their_own_labels() -> None:
    ledger = Ledger([label("a"), label("b", model="other")])
    assert learned(ledger) == [("a", "SN")]
    assert len(ledger.standing()) == 2


def test_a_label_cannot_replace_one_of_another_alert() -> None:
    with pytest.raises(ValueError, match="replaces one of"):
        Ledger([label("a"), label("b", alert="ztf:2", replaces="a")])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (label("a", "AGM"), r"no class 'AGM' \(did you mean 'AGN'\?\): model 'm' knows \['AGN', 'SN'\]"),
        (label(""), "needs 'event_id'"),
        (label("a", alert=""), "needs 'alert_id'"),
        (label("a", None, withdrawn=True), "needs 'replaces'"),
        (label("a", replaces="a"), "cannot replace itself"),
    ],
)
def test_a_wrong_label_is_refused_with_what_would_be_right(wrong: Label, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(wrong, CLASSES)


def test_right_labels_pass() -> None:
    for right in (label("a"), label("a", None), label("b", None, replaces="a", withdrawn=True)):
        assert validate(right, CLASSES) is right


def test_a_label_comes_back_from_its_row() -> None:
    one = label(new_event_id(), None, query_id="q", comment="faint", when=3.5)
    assert Label.of({**one.row(), "version": 3}) == one
    assert Label.of({**one.row(), "comment": None}) == dataclasses.replace(one, comment="")


def test_an_unknown_event_id_says_so() -> None:
    with pytest.raises(UnknownError, match="no label 'x'"):
        Ledger().get("x")
