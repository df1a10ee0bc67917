"""Labels: checked at the door, counted once, revised without being rewritten."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybroker.errors import SettingsError, UnknownError
from raybroker.learning.labels import RULES, Label, Ledger, new_event_id, translate, validate

CLASSES = ("AGN", "SN")
RAW = {"SN": ["extragal"], "AGN": ["agn", "galactic"]}


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
    ledger = Ledger([label("a"), label("b", None, replaces="a", withdrawn=True)])
    assert learned(ledger) == []
    assert ledger.standing() == []
    assert ledger.labelled_objects("m") == frozenset()
    assert len(ledger) == 2


def test_a_withdrawn_revision_brings_back_what_it_revised() -> None:
    ledger = Ledger(
        [label("a"), label("b", "AGN", replaces="a"), label("c", None, replaces="b", withdrawn=True)]
    )
    assert learned(ledger) == [("a", "SN")]
    assert ledger.stands("a")
    assert not ledger.stands("b")


def test_a_withdrawal_can_be_withdrawn() -> None:
    lines = [label("a"), label("b", None, replaces="a", withdrawn=True)]
    ledger = Ledger([*lines, label("c", None, replaces="b", withdrawn=True)])
    assert learned(ledger) == [("a", "SN")]


def test_a_chain_of_revisions_may_be_long() -> None:
    chain = [label("0"), *(label(f"{i}", CLASSES[i % 2], replaces=f"{i - 1}") for i in range(1, 1_500))]
    assert [one.event_id for one in Ledger(chain).standing()] == ["1499"]


def test_labels_cannot_replace_each_other_in_a_circle() -> None:
    with pytest.raises(ValueError, match="replaces itself, by way of"):
        Ledger([label("a", replaces="b"), label("b", replaces="a")])


def test_a_later_label_of_the_same_person_revises_the_earlier_without_saying_so() -> None:
    lines = [label("a", when=1.0), label("b", "AGN", when=2.0)]
    for order in (lines, lines[::-1]):
        assert learned(Ledger(order, rule="first")) == [("b", "AGN")]


def people(*said: str | None, source: str = "api") -> list[Label]:
    """One label by each person, one second after the other."""
    return [label(f"e{i}", c, who=f"p{i}", when=float(i), source=source) for i, c in enumerate(said)]


@pytest.mark.parametrize(
    ("rule", "said", "verdict"),
    [
        ("newest", ["SN", "AGN"], "AGN"),
        ("newest", ["SN", None], None),
        ("first", ["SN", "AGN", "AGN"], "SN"),
        ("first", [None, "SN"], None),
        ("majority", ["SN"], "SN"),
        ("majority", ["SN", "AGN"], None),
        ("majority", ["SN", "AGN", "AGN"], "AGN"),
        ("majority", ["AGN", None], None),
        ("majority", ["AGN", "AGN", None], "AGN"),
        ("majority", ["AGN", "AGN", "SN", None], None),
        ("agreed", ["SN", "SN"], "SN"),
        ("agreed", ["SN", "SN", "AGN"], None),
        ("agreed", ["SN", None], None),
    ],
)
def test_the_rule_decides_where_people_disagree(
    rule: str, said: Sequence[str | None], verdict: str | None
) -> None:
    ledger = Ledger(people(*said), rule=rule)
    assert [one.label for one in ledger.to_learn("m")] == ([verdict] if verdict else [])
    assert len(ledger.standing()) == len(said)


def test_an_unknown_rule_names_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"'newst' \(did you mean 'newest'\?\)"):
        Ledger(rule="newst")


def test_a_person_has_one_vote_however_often_they_say_it() -> None:
    again = [label(f"x{i}", "SN", who="p0", when=10.0 + i) for i in range(5)]
    ledger = Ledger([*people("SN", "AGN", "AGN"), *again], rule="majority")
    assert [one.label for one in ledger.to_learn("m")] == ["AGN"]


def test_an_agreeing_label_changes_nothing_and_rebuilds_nothing() -> None:
    ledger = Ledger(people("SN"))
    for agreeing in (label("b", "SN", who="p1", when=5.0), label("c", "SN", who="p0", when=6.0)):
        assert not ledger.undoes(agreeing)
        ledger.add(agreeing)
    assert [one.event_id for one in ledger.to_learn("m")] == ["e0"]


def test_a_verdict_that_flips_is_learned_from_the_beginning() -> None:
    ledger = Ledger(people("SN", "AGN"), rule="majority")
    third = label("b", "AGN", who="p2", when=5.0)
    assert ledger.undoes(third)  # the class was first said by the second line: its place is not the end
    ledger.add(third)
    assert [(one.event_id, one.label) for one in ledger.to_learn("m")] == [("e1", "AGN")]
    assert ledger.undoes(label("c", "SN", who="p3", when=6.0))


def test_a_catalogue_gives_way_to_a_person_who_names_a_class() -> None:
    tns = label("t", "SN", who="tns", source="tns", when=9.0)
    assert [one.label for one in Ledger([tns]).to_learn("m")] == ["SN"]
    for lines in ([*people("AGN"), tns], [tns, *people("AGN")]):
        assert [one.label for one in Ledger(lines).to_learn("m")] == ["AGN"]
    assert [one.label for one in Ledger([*people(None), tns]).to_learn("m")] == ["SN"]
    withdrawn = label("w", None, who="p0", replaces="e0", withdrawn=True)
    assert [one.label for one in Ledger([*people("AGN"), tns, withdrawn]).to_learn("m")] == ["SN"]


def test_a_raw_label_teaches_every_model_that_knows_its_class() -> None:
    ledger = Ledger([label("a", "galactic", model=""), label("b", "bogus", model="", alert="ztf:2")])
    assert [(one.event_id, one.label) for one in ledger.to_learn("m", RAW)] == [("a", "AGN")]
    real = {"real": ["galactic", "agn"], "bogus": ["bogus"]}
    assert [one.label for one in ledger.to_learn("real", real)] == ["real", "bogus"]
    assert ledger.to_learn("m") == []
    assert ledger.labelled_objects("m", RAW) == {"ztf:ZTF1"}
    assert ledger.labelled_objects("m") == frozenset()


def test_a_raw_label_that_a_model_does_not_know_revises_one_that_it_does() -> None:
    ledger = Ledger([label("a", "agn", model="", when=1.0)])
    other = label("b", "bogus", model="", when=2.0)
    assert ledger.undoes(other, "m", RAW)
    ledger.add(other)
    assert ledger.to_learn("m", RAW) == []


def test_translate_says_what_a_label_means_to_a_model() -> None:
    assert translate(label("a", "galactic", model=""), "m", CLASSES, RAW) == "AGN"
    assert translate(label("a", "bogus", model=""), "m", CLASSES, RAW) is None
    assert translate(label("a", None, model=""), "m", CLASSES, RAW) is None
    assert translate(label("a", "SN"), "m", CLASSES, RAW) == "SN"
    assert translate(label("a", "gone"), "m", CLASSES, RAW) is None
    assert translate(label("a", "SN"), "other", CLASSES, RAW) is None


def test_a_class_that_the_model_no_longer_has_is_not_learned() -> None:
    ledger = Ledger([label("a", "gone"), label("b", alert="ztf:2")])
    assert [one.event_id for one in ledger.to_learn("m", classes=CLASSES)] == ["b"]


@st.composite
def histories(draw: st.DrawFn) -> list[Label]:
    """What three people and a catalogue may say of two alerts: labels, revisions, withdrawals, raw ones."""
    lines: list[Label] = []
    for i in range(draw(st.integers(1, 12))):
        who = draw(st.sampled_from(["ann", "bob", "tns"]))
        source = "tns" if who == "tns" else "page"
        when = float(draw(st.integers(0, 4)))
        replaced = draw(st.none() | st.sampled_from(lines)) if lines else None
        if replaced is not None:
            gone = draw(st.booleans())
            said = (
                None if gone else draw(st.sampled_from([*CLASSES, None] if replaced.model else [*RAW_SAID]))
            )
            own = {"model": replaced.model, "replaces": replaced.event_id, "withdrawn": gone}
            alert = replaced.alert_id
        else:
            model = draw(st.sampled_from(["m", ""]))
            said = draw(st.sampled_from([*CLASSES, None] if model else [*RAW_SAID]))
            own, alert = {"model": model}, draw(st.sampled_from(["ztf:1", "ztf:2"]))
        lines.append(label(f"e{i}", said, alert, who=who, source=source, when=when, **own))
    return lines


RAW_SAID = ("extragal", "agn", "galactic", "bogus", None)


def verdicts(ledger: Ledger) -> dict[str, str | None]:
    return {one.alert_id: one.label for one in ledger.to_learn("m", RAW)}


@given(histories(), st.sampled_from(sorted(RULES)), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_the_same_lines_in_any_order_and_however_often_teach_the_same(
    lines: list[Label], rule: str, random: object
) -> None:
    mixed = [*lines, *lines]
    random.shuffle(mixed)  # type: ignore[attr-defined]
    once, often = Ledger(lines, rule), Ledger([*lines, *lines], rule)
    assert often.to_learn("m", RAW) == once.to_learn("m", RAW)
    shuffled = Ledger(mixed, rule)
    assert verdicts(shuffled) == verdicts(once)
    assert {one.event_id for one in shuffled.standing()} == {one.event_id for one in once.standing()}


@given(histories(), st.sampled_from(sorted(RULES)), st.data())
@settings(max_examples=300, deadline=None)
def test_a_withdrawn_label_leaves_what_a_ledger_that_never_saw_it_has(
    lines: list[Label], rule: str, data: st.DataObject
) -> None:
    leaves = [one for one in lines if not any(other.replaces == one.event_id for other in lines)]
    gone = data.draw(st.sampled_from(leaves))
    withdrawal = label("w", None, gone.alert_id, model=gone.model, replaces=gone.event_id, withdrawn=True)
    with_it = Ledger([*lines, withdrawal], rule)
    without = Ledger([one for one in lines if one is not gone], rule)
    assert with_it.to_learn("m", RAW) == without.to_learn("m", RAW)
    assert with_it.standing() == without.standing()
    assert with_it.labelled_objects("m", RAW) == without.labelled_objects("m", RAW)


@given(histories(), st.sampled_from(sorted(RULES)))
@settings(max_examples=300, deadline=None)
def test_learning_line_by_line_ends_where_learning_from_the_beginning_does(
    lines: list[Label], rule: str
) -> None:
    ledger, learned_so_far = Ledger(rule=rule), []
    for line in lines:
        undoes = ledger.undoes(line, "m", RAW)
        ledger.add(line)
        assert ledger.undoes(line, "m", RAW) == undoes
        lesson = ledger.lesson(line.alert_id, "m", RAW)
        if undoes:
            learned_so_far = ledger.to_learn("m", RAW)
        elif lesson and lesson.event_id == line.event_id:
            learned_so_far.append(lesson)
        assert learned_so_far == ledger.to_learn("m", RAW)


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
