"""`raybroker explain`, as a person calls it."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from raybroker import settings as settings_file
from raybroker.archive import provenance
from raybroker.archive.events import EventLog
from raybroker.archive.lookup import Lookup
from raybroker.cli import explaining, verbs
from raybroker.cluster import assemble
from raybroker.cluster.explain import Effect, Explanation, Say
from raybroker.learning.learner import Learner
from raybroker.scores.online import expand
from raybroker.stream.memory import MemorySource
from tests.cluster.worlds import ZTF, placed

FILE = """
[archive]
root = "archive"
[surveys.ztf]
[steps]
on = ["real", "good_pixels", "basic"]
paths = []
[models.transient]
classes = ["SN", "AGN", "other"]
columns = ["basic.*"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ztf_packets) -> Path:  # type: ignore[no-untyped-def]
    """A settings file, and beside it the archive of 120 real packets that one snapshot scored."""
    place = tmp_path_factory.mktemp("here")
    (place / "raybroker.toml").write_text(FILE)
    settings = settings_file.load(place / "raybroker.toml")
    root = settings.archive.root
    own = assemble.pipeline(settings, "ztf")
    books = assemble.Books(assemble.table(settings, own))
    source = MemorySource(placed(ztf_packets("public_20181129")[:120]), books.start)
    running = assemble.Worker(ZTF, own, source, books, settings.turn)
    columns = expand(["basic.*"], {step.name: step.gives for step in own.steps})
    learner = Learner("transient", ("SN", "AGN", "other"), columns, ("softmax", "naive_bayes"))
    rows = {name: pa.array([float(i) for i in range(6)]) for name in columns}
    learner.learn(pa.table(rows), ["SN", "AGN", "other"] * 2)
    frozen = learner.frozen()
    row: dict[str, Any] = {"event_id": "transient-1", "model": "transient", "number": 1, "labels": 6}
    row |= {"digest": provenance.put(root, frozen.snapshot()), "when": datetime.now(UTC)}
    EventLog(root, "snapshots").append([row])
    running.pin({"transient": (1, frozen)})
    running.turn()
    return place


def alert(folder: Path, outcome: str) -> str:
    query = "select alert_id from ztf_alerts where outcome = $outcome limit 1"
    return str(Lookup(folder / "archive").sql(query, {"outcome": outcome})["alert_id"][0].as_py())


def said(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit status, output and errors of the program."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    console = Console(width=140, highlight=False)
    monkeypatch.setattr(verbs, "out", console)
    with pytest.raises(SystemExit) as left:
        verbs.main(arguments)
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_a_score_is_found_again_and_shown(folder: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["explain", alert(folder, "scored"), "-s", str(folder / "raybroker.toml"), "--top", "3"]
    status, shown, _ = said(arguments, monkeypatch, capsys)
    assert status == 0
    assert "the score is found again bit for bit, from its packet" in shown
    assert "snapshot 1, which had learned 6 labels" in shown
    assert "softmax" in shown
    assert shown.count("basic.") == 3
    assert "more (--top)" in shown


def test_json_holds_all_of_it(folder: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["explain", alert(folder, "scored"), "-s", str(folder / "raybroker.toml"), "--json"]
    status, shown, _ = said(arguments, monkeypatch, capsys)
    told = json.loads(shown)
    assert status == 0
    assert told["reproduced"] is True
    assert told["stored"] == told["computed"]
    assert set(told["effects"][0]["moved"]) == {"SN", "AGN", "other"}
    assert len(told["feature_digest"]) == 64


def test_a_rejected_alert_is_told_and_is_no_failure(folder: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["explain", alert(folder, "rejected"), "-s", str(folder / "raybroker.toml")]
    status, shown, _ = said(arguments, monkeypatch, capsys)
    assert (status, "the cut 'real' rejected it" in shown) == (0, True)


def test_an_unknown_alert_is_an_error(folder: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    status, _, wrong = said(["explain", "ztf:1", "-s", str(folder / "raybroker.toml")], monkeypatch, capsys)
    assert (status, "no alert 'ztf:1' is in the archive" in wrong) == (1, True)


def test_a_score_that_is_not_found_again_has_status_1(folder: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    [path] = (folder / "archive" / "models").iterdir()
    content = path.read_bytes()
    alert_id = alert(folder, "scored")
    path.unlink()
    try:
        status, shown, _ = said(
            ["explain", alert_id, "-s", str(folder / "raybroker.toml")], monkeypatch, capsys
        )
    finally:
        path.write_bytes(content)
    assert status == 1
    assert "the score cannot be found again: nothing is stored in" in shown


def test_numbers_that_json_has_not_are_null_and_names_are_not_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    effect = Effect("[b]x", None, {"a": float("nan"), "b": 0.0}, None)
    found = Explanation(
        "ztf:1", "[o]", "ztf", "m", "scored", "[s]", None, stored={"a": 0.5, "b": None}, computed={"a": 0.5, "b": 0.5},
        members=(Say("[m]", None, {"a": 0.5, "b": 0.5}),), effects=(effect,),
    )  # fmt: skip
    assert json.loads(explaining.as_json(found))["effects"][0]["moved"]["a"] is None
    explaining.show(found, Console(width=140))
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[b]x", "[o]", "[s]", "[m]", "not known"))
