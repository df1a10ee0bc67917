"""Every kind of failure has its line in the log, with topic, partition, offsets, survey and worker; as JSON too."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raybroker.archive.table import AlertsTable, row_schema
from raybroker.cluster import incidents, logs
from raybroker.cluster.books import Books
from raybroker.cluster.worker import Report
from raybroker.errors import ArchiveError, FencedError, SettingsError
from raybroker.step import enrich
from raybroker.stream.packets import Place
from tests.cluster.worlds import TOPIC, pipeline, placed, worker


@pytest.fixture
def lines() -> Iterator[Any]:
    """What is logged as JSON, line by line."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logs.Json())
    own = logging.getLogger("raybroker")
    own.addHandler(handler)
    level = own.level
    own.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    own.removeHandler(handler)
    own.setLevel(level)


def without_time(line: dict[str, Any]) -> dict[str, Any]:
    assert line.pop("time").endswith("+00:00")
    return line


def test_dead_packets_are_told_with_their_offsets(tmp_path: Path, ztf_packets: Any, lines: Any) -> None:
    packets = list(ztf_packets("public_20191231")[:6])
    broken = dataclasses.replace(packets[0], value=b"Obj\x01broken")
    at_work = worker(tmp_path, placed([*packets, broken, broken, packets[5], broken]))
    report = at_work.turn()
    incidents.tell("ztf", "ztf-1", report.incidents)
    found = {tuple(line["offsets"]): without_time(line) for line in lines()}
    assert set(found) == {(3,), (3, 4)}  # partition 0 has the packets 0, 2, 4, ...
    assert {
        name: found[3, 4][name] for name in ("event", "survey", "worker", "topic", "partition", "count")
    } == {
        "event": "dead",
        "survey": "ztf",
        "worker": "ztf-1",
        "topic": TOPIC,
        "partition": 1,
        "count": 2,
    }
    assert "Avro header" in found[3, 4]["reason"]
    assert found[3, 4]["level"] == "INFO"


def test_failed_steps_are_told_with_their_offsets(tmp_path: Path, ztf_packets: Any, lines: Any) -> None:
    @enrich(gives="float64")
    def always(ra: pa.Array) -> pa.Array:
        raise RuntimeError("not this one")

    packets = placed(ztf_packets("selected_20231018")[:30], partitions=1)
    report = worker(tmp_path, packets, pipeline(always)).turn()
    failed = report.outcomes["failed"]
    assert failed > incidents.OFFSETS
    incidents.tell("ztf", "ztf-0", report.incidents)
    (line,) = lines()
    assert (line["event"], line["count"], len(line["offsets"])) == ("failed", failed, incidents.OFFSETS)
    assert line["reason"] == "always: RuntimeError: not this one"
    assert f"and {failed - incidents.OFFSETS} more" in line["message"]


def test_a_fenced_turn_and_an_archive_that_is_away_are_told(
    tmp_path: Path, ztf_packets: Any, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    packets = placed(ztf_packets("public_20191231")[:6])
    for error, event in [(FencedError("another"), "fenced"), (ArchiveError("the disk is full"), "away")]:
        at_work = worker(tmp_path / event, packets)

        def fails(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(at_work.books, "commit", fails)
        incidents.tell("ztf", "ztf-0", at_work.turn().incidents)
    found = lines()
    assert [(line["event"], line["partition"], line["offsets"], line["level"]) for line in found] == [
        ("fenced", 0, [0, 2], "WARNING"),
        ("fenced", 1, [0, 2], "WARNING"),
        ("away", 0, [0, 2], "WARNING"),
        ("away", 1, [0, 2], "WARNING"),
    ]
    assert "the disk is full" in found[2]["reason"]


def test_a_lost_worker_is_told_with_what_it_had_in_hand(lines: Any) -> None:
    incidents.lost("ztf", "ztf-0", 77, {("t", 3): (10, 19)}, "it was killed")
    incidents.lost("", "trainer", 78, {}, "it was killed")
    worker_line, trainer_line = map(without_time, lines())
    assert worker_line == {
        **{"level": "WARNING", "logger": "raybroker.incidents", "event": "lost", "survey": "ztf"},
        **{"worker": "ztf-0", "process": 77, "topic": "t", "partition": 3, "offsets": [10, 19], "count": 10},
        "reason": "it was killed",
        "message": "ztf-0 (process 77) is lost with t[3] offsets 10 to 19 in hand: it was killed",
    }
    assert trainer_line["message"] == "trainer (process 78) is lost with nothing in hand: it was killed"


def test_the_supervisor_tells_what_reports_bring_and_what_a_lost_worker_had(lines: Any) -> None:
    from raybroker.cluster.supervisor import Supervisor
    from raybroker.settings import parse

    own = Supervisor(parse({"surveys": {"ztf": {"workers": 1}}}))
    (seat,) = own.seats
    own._note(seat, Report(incidents=incidents.of_turn("fenced", "another was first", {("t", 0): (1, 2)})))
    seat.pid = 7
    own._lost(seat, RuntimeError("out of memory"))
    assert [(line["event"], line["worker"]) for line in lines()] == [("fenced", "ztf-0"), ("lost", "ztf-0")]
    assert own.tally.gauges.deaths == {"ztf-0": 1}


def test_text_is_for_people_and_json_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level, own = root.handlers[:], root.level, logging.getLogger("raybroker").level
    try:
        for environment, said in [
            ({}, "WARNING it broke\n"),
            ({logs.FORMAT: "json"}, '"message": "it broke"'),
        ]:
            root.handlers = []
            logs.configure("WARNING", environment)
            logging.getLogger("raybroker.x").warning("it broke")
            logging.getLogger("raybroker.x").info("news")
            told = capsys.readouterr().err
            assert said in told
            assert ("news" in told) == bool(environment)  # as JSON, what is stored elsewhere is told too
    finally:
        root.handlers = before
        root.setLevel(level)
        logging.getLogger("raybroker").setLevel(own)


def test_a_format_or_level_that_is_none_is_said() -> None:
    for environment, said in [
        ({logs.FORMAT: "xml"}, "text, json"),
        ({logs.LEVEL: "LOUD"}, "INFO or WARNING"),
    ]:
        with pytest.raises(SettingsError, match=said):
            logs.configure("WARNING", environment)


def test_an_error_keeps_its_trace(lines: Any) -> None:
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("raybroker").exception("it broke")
    assert "ValueError: inside" in lines()[0]["trace"]


def test_a_topic_made_again_is_told_once_by_whoever_meets_it_first(tmp_path: Path, lines: Any) -> None:
    def books() -> Books:
        return Books(AlertsTable(tmp_path, "ztf", row_schema(pipeline().columns)))

    first, second = books(), books()
    first.start(
        [Place("c", "night", "old", 0), Place("c", "other", "id", 0), Place("another", "night", "x", 0)]
    )
    assert first.news == []
    again = [Place("c", "night", "new", n) for n in range(2)]
    first.start(again)
    second.start(again)
    assert second.news == []
    (told,) = first.news
    assert (told.what, told.topic) == ("recreated", "night")
    assert "its id was old, Kafka now says new" in told.reason
    incidents.tell("ztf", "ztf-0", [told])
    (line,) = lines()
    assert without_time(line) == {
        **{"level": "WARNING", "logger": "raybroker.incidents", "event": "recreated", "survey": "ztf"},
        **{"worker": "ztf-0", "topic": "night", "reason": told.reason},
        "message": f"recreated: ztf-0, night: {told.reason}",
    }
