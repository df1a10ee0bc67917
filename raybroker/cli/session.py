"""`raybroker label` without arguments: the list to label, one alert at a time, with single keys."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from raybroker.cli.asking import Client, TakenError
from raybroker.errors import RaybrokerError

Row = dict[str, Any]
OWN = {"?": "can't tell", "s": "skip", "u": "undo", "c": "comment", "q": "quit"}
FREE = [letter for letter in "1234567890abcdefghijklmnoprtvwxyz" if letter not in OWN]


def keys_of(classes: Sequence[str]) -> dict[str, str]:
    """A key for each class: digits first, then letters; those beyond have none."""
    return dict(zip(FREE, classes, strict=False))


def key_reader(console: Console) -> Callable[[str], str]:
    """One key press on a terminal, one line where there is none."""
    if not sys.stdin.isatty():
        return lambda prompt: _line(console, prompt)

    def pressed(prompt: str) -> str:
        console.print(prompt, end="")
        try:
            key = typer.getchar()
        except EOFError:  # Ctrl-D
            key = "q"
        console.print(escape(key) if key.isprintable() else "")
        return key

    return pressed


def _line(console: Console, prompt: str) -> str:
    try:
        return console.input(prompt).strip()
    except EOFError:
        console.print()
        return "q"


@dataclass
class Session:
    """One person at work. `ask` shows a prompt and gives a key; `line` gives a line of text."""

    desk: Client
    console: Console
    model: str  # of which questions are asked; "": of all, and the answers are raw labels
    classes: Sequence[str]
    ask: Callable[[str], str]
    line: Callable[[str], str]
    skipped: set[str] = field(default_factory=set)
    given: list[tuple[str, Row]] = field(default_factory=list)  # event id and question, for undo
    again: list[Row] = field(default_factory=list)  # questions whose answer was taken back
    comment: str = ""

    def run(self) -> None:
        """Until nothing is left to ask, or the person leaves."""
        keys = keys_of(self.classes)
        while query := self._next():
            self._show(query)
            if not self._answer(query, keys):
                self._give_back(query)
                break
        else:
            self.console.print("nothing more to label now")
        self.console.print(f"{len(self.given)} labelled, {len(self.skipped)} skipped")

    def _next(self) -> Row | None:
        if self.again:
            return self.again.pop()
        known = self.skipped | {query["query_id"] for _, query in self.given}
        found = self.desk.get("/queries", model=self.model)["queries"]
        return next((query for query in found if query["query_id"] not in known and self._claim(query)), None)

    def _claim(self, query: Row) -> bool:
        """Nobody else is asked this now; False if somebody was faster. Whoever may not claim hears it with the label."""
        try:
            self.desk.post(f"/queries/{query['query_id']}/claim", {})
        except TakenError:
            return False
        except RaybrokerError:
            return True
        return True

    def _give_back(self, query: Row) -> None:
        with suppress(RaybrokerError):
            self.desk.delete(f"/queries/{query['query_id']}/claim")

    def _show(self, query: Row) -> None:
        name = query.get("object_id") or ""
        self.console.print(f"\n[bold]{query['alert_id']}[/]  {name}  {escape(query['reason'] or '')}")
        self.console.print(f"{self.desk.url}/?alert={query['alert_id']}", soft_wrap=True)

    def _answer(self, query: Row, keys: Mapping[str, str]) -> bool:
        """Ask until this question is done with; False: leave."""
        told = "  ".join(f"[bold]{escape(key)}[/] {escape(name)}" for key, name in {**keys, **OWN}.items())
        while True:
            key = self.ask(f"{told} › ")
            if key == "q":
                return False
            if key == "c":
                self.comment = self.line("comment › ")
            elif key in keys or key == "?":
                return self._say(query, keys.get(key))
            elif key == "s":
                self.skipped.add(query["query_id"])
                self._give_back(query)
                return True
            elif key == "u":
                if self._undo(query):
                    return True
            else:
                self.console.print(f"'{escape(key)}' is none of the keys")

    def _say(self, query: Row, label: str | None) -> bool:
        body = {
            "event_id": uuid.uuid4().hex,
            "alert_id": query["alert_id"],
            "label": label,
            "model": self.model or None,
            "query_id": query["query_id"],
            "snapshot": query["snapshot"],
            "comment": self.comment or None,
            "source": "cli",
        }
        try:
            self.desk.post("/labels", body)
        except RaybrokerError as error:
            self.console.print(f"[red]not taken:[/] {escape(str(error))}")
            self.skipped.add(query["query_id"])
            return True
        self.given.append((body["event_id"], query))
        self.comment = ""
        self.console.print(f"{query['alert_id']}: {escape(label or OWN['?'])}")
        return True

    def _undo(self, current: Row) -> bool:
        """Take back the last answer of this session; its question comes next."""
        if not self.given:
            self.console.print(
                "nothing to undo here; `raybroker label --undo` takes back what was said before"
            )
            return False
        event_id, query = self.given.pop()
        body = {"event_id": f"undo-{event_id}", "alert_id": query["alert_id"], "label": None}
        self.desk.post("/labels", body | {"replaces": event_id, "withdrawn": True, "source": "cli"})
        self.console.print(f"{query['alert_id']}: taken back")
        self.again += [current, query]
        return True


def start(desk: Client, model: str, console: Console) -> None:
    """A session about one model, or where there are raw labels and none is named, about all."""
    classes = [] if model else desk.raw_classes()
    if not classes:
        model = model or desk.only_model()
        if model not in (known := desk.models()):
            raise RaybrokerError(f"no model '{model}': there are {', '.join(known) or 'none'}")
        classes = known[model]["classes"]
    lines = lambda prompt: _line(console, prompt)  # noqa: E731
    Session(desk, console, model, classes, key_reader(console), lines).run()
