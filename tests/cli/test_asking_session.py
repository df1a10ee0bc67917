"""Labelling one at a time, by keys."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console

from raybroker.cli import session
from raybroker.cli.session import Session, keys_of
from raybroker.errors import RaybrokerError, SettingsError
from tests.cli.conftest import RAW, Town, client_of
from tests.service.conftest import CLASSES


def work(town: Town, keys: Iterable[str], lines: Iterable[str] = (), **given: Any) -> Session:
    """A session in which these keys are pressed, until they run out."""
    pressed, written = iter(keys), iter(lines)
    own = {"model": "transients", "classes": CLASSES, **given}
    made = Session(
        town.client,
        town.console,
        ask=lambda prompt: next(pressed, "q"),
        line=lambda prompt: next(written),
        **own,
    )
    made.run()
    return made


def told(town: Town) -> list[tuple[str, str | None, bool]]:
    return [(one["alert_id"], one["label"], one["standing"]) for one in reversed(town.labels())]


def asked(town: Town) -> list[str]:
    return [query["alert_id"] for query in town.client.get("/queries")["queries"]]


def test_a_key_labels_what_is_asked_and_goes_on_to_the_next(town: Town) -> None:
    first, second, third = asked(town)[:3]
    work(town, ["1", "?", "3"])
    assert told(town) == [(first, "supernova", True), (second, None, True), (third, "variable star", True)]
    assert "margin 0.04" in town.said()
    assert town.labels()[0]["source"] == "cli"
    assert town.labels()[0]["query_id"] == f"q-{third}"


def test_skipped_is_not_asked_again_and_nothing_is_recorded(town: Town) -> None:
    work(town, ["s"] * 9)
    assert town.labels() == []
    assert "nothing more to label now" in town.said()


def test_undo_takes_the_last_answer_back_and_asks_it_again(town: Town) -> None:
    first, second = asked(town)[:2]
    work(town, ["1", "u", "2", "1"])
    standing = [(alert, label) for alert, label, holds in told(town) if holds]
    assert standing == [(first, "AGN"), (second, "supernova")]


def test_undo_may_go_back_several_answers(town: Town) -> None:
    first, second, third = asked(town)[:3]
    work(town, ["1", "1", "u", "u", "2", "2", "3"])
    standing = [(alert, label) for alert, label, holds in told(town) if holds]
    assert standing == [(first, "AGN"), (second, "AGN"), (third, "variable star")]


def test_undo_with_nothing_to_undo_stays_where_it_is(town: Town) -> None:
    work(town, ["u", "1"])
    assert [label for _, label, _ in told(town)] == ["supernova"]
    assert "nothing to undo here" in town.said()


def test_a_comment_goes_with_the_next_label_only(town: Town) -> None:
    work(town, ["c", "1", "2"], lines=["near a bright star"])
    assert [one["comment"] for one in reversed(town.labels())] == ["near a bright star", ""]


def test_two_people_at_work_do_not_get_the_same_alert(town: Town) -> None:
    second, third = asked(town)[1:3]
    tycho = Town(town.station, client_of(town.station, "other"), town.console)
    pressed = iter(["1", "s", "q"])
    seen: list[str] = []

    def ask(prompt: str) -> str:
        work(tycho, ["q"])  # comes, looks at the next one that is free, and leaves
        seen.append(asked(tycho)[0])
        return next(pressed)

    Session(town.client, town.console, "transients", CLASSES, ask, lambda prompt: "").run()
    assert seen == [second, third, second]  # what was skipped is free again
    assert asked(tycho)[0] == second  # and so is what was left


def test_what_somebody_else_took_meanwhile_is_passed_over(town: Town) -> None:
    first, second = asked(town)[:2]
    claimed = town.client.get("/queries")["queries"]
    client_of(town.station, "other").post(f"/queries/q-{first}/claim", {})
    made = Session(town.client, town.console, "transients", CLASSES, lambda p: "q", lambda p: "")
    town.client.get = lambda path, **query: {"queries": claimed}  # type: ignore[method-assign]
    found = made._next()
    assert found is not None
    assert found["alert_id"] == second


def test_another_key_is_said_to_be_none(town: Town) -> None:
    work(town, ["9", "[", "1"])
    assert "'9' is none of the keys" in town.said()
    assert len(town.labels()) == 1


def test_a_refused_label_is_said_and_the_next_is_asked(town: Town) -> None:
    made = work(town, ["1", "2"], classes=["quasar", "AGN"])
    assert "not taken" in town.said()
    assert len(made.skipped) == 1
    assert [label for _, label, _ in told(town)] == ["AGN"]


def test_raw_classes_are_offered_and_one_answer_does_for_all_models(raw_town: Town) -> None:
    first = asked(raw_town)[0]
    work(raw_town, ["2"], model="", classes=RAW)
    assert [(one["model"], one["label"]) for one in raw_town.labels()] == [("", "agn")]
    assert first not in asked(raw_town)
    counted = {
        model["name"]: model["labels"]["classes"] for model in raw_town.client.get("/models")["models"]
    }
    assert counted == {"transients": {"AGN": 1}, "real": {"yes": 1}}
    work(raw_town, ["1", "u"], model="", classes=RAW)
    assert [one["label"] for one in raw_town.labels() if one["standing"]] == ["agn"]


def test_keys_are_digits_then_letters_that_are_free() -> None:
    keys = keys_of([f"class {i}" for i in range(20)])
    assert list(keys)[:11] == [*"1234567890", "a"]
    assert not set(keys) & set("su?cq")


def test_start_asks_what_the_models_say(town: Town, raw_town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "key_reader", lambda console: lambda prompt: console.print(prompt) or "q")
    session.start(town.client, "", town.console)
    assert "1 supernova" in town.said()
    session.start(raw_town.client, "", raw_town.console)
    assert "4 bogus" in raw_town.said()
    session.start(raw_town.client, "real", raw_town.console)
    with pytest.raises(RaybrokerError, match="no model 'rael'"):
        session.start(raw_town.client, "rael", raw_town.console)


def test_one_label_names_its_model_or_is_raw(town: Town, raw_town: Town) -> None:
    alert = asked(town)[0]
    assert town.client.label(alert, "AGN") == f"{alert} is AGN for transients, says maria"
    assert raw_town.client.label(alert, "agn") == f"{alert} is agn, says maria"
    assert raw_town.client.label(alert, "no", "real") == f"{alert} is no for real, says maria"
    with pytest.raises(RaybrokerError, match=r"no class 'ang' \(did you mean 'agn'\?\): raw labels are"):
        raw_town.client.label(alert, "ang")


def test_several_models_without_raw_labels_must_be_named(raw_town: Town) -> None:
    object.__setattr__(raw_town.station.desk, "raw", ())
    with pytest.raises(SettingsError, match="which model"):
        raw_town.client.label("ztf:1", "AGN")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_key_press_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    pressed = iter("1?")

    def getchar() -> str:
        for key in pressed:
            return key
        raise EOFError  # Ctrl-D

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(session.typer, "getchar", getchar)
    read = session.key_reader(Console(file=io.StringIO()))
    assert [read("> ") for _ in range(3)] == ["1", "?", "q"]


def test_without_a_terminal_a_line_is_read_and_its_end_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n ? \n"))
    read = session.key_reader(Console(file=io.StringIO()))
    assert [read("> ") for _ in range(3)] == ["1", "?", "q"]
