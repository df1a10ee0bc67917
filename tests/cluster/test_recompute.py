"""Steps computed again for archived alerts: the same values, one row each, and told what could not be had."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raybroker import settings as settings_file
from raybroker.archive import segments
from raybroker.archive.events import EventLog
from raybroker.archive.lookup import Lookup
from raybroker.cluster import recompute
from raybroker.cluster.recompute import Done, Job, Wish
from raybroker.cluster.single import Single
from raybroker.errors import SettingsError
from raybroker.settings import Settings

NIGHT = 20231012
WHEN = datetime.datetime(2026, 9, 1, tzinfo=datetime.UTC)
LATER = """
import pyarrow as pa
import pyarrow.compute as pc

from raybroker.step import enrich


@enrich({"rounded": pa.float64()}, name="later", version=2)
def later(basic, *, places=1):
    if pc.any(pc.less(pc.struct_field(basic, "magnitude"), 17.0)).as_py():
        raise ValueError("too bright")
    return {"rounded": pc.round(pc.struct_field(basic, "magnitude").cast("float64"), places)}
"""


def settings(folder: Path, data: Path, *steps: str) -> Settings:
    tree = {
        "archive": {"root": str(folder / "archive")},
        "surveys": {"ztf": {"servers": f"replay:{data}/ztf/ztf_public_{NIGHT}.tar.gz", "workers": 1}},
        "steps": {"on": ["real", "basic", *steps], "paths": [str(folder / "steps")]},
        "mlflow": {"enabled": False},
    }
    return settings_file.parse(tree)


@pytest.fixture
def archived(tmp_path: Path, data: Path) -> Path:
    """A real night, archived with `basic`; the step `later` was written afterwards."""
    crew = Single(settings(tmp_path, data))
    while not crew.drained():
        crew.step()
    crew.stop()
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "later.py").write_text(LATER)
    return tmp_path


def everything(job: Job, size: int = recompute.ALERTS) -> Done:
    total = Done()
    for piece in recompute.pieces(job, size):
        total.add(recompute.compute(job, piece, WHEN))
    return total


def job(archived: Path, data: Path, steps: Sequence[str] = (), last: int = NIGHT) -> Job:
    own = settings(archived, data, *(["later"] if (archived / "steps").exists() else []))
    return recompute.prepare(own, Wish("ztf", NIGHT, last, tuple(steps)))


def kept(archived: Path) -> list[dict[str, Any]]:
    query = "select * from ztf_alerts where outcome in ('scored', 'failed') order by alert_id"
    return Lookup(archived / "archive").sql(query).to_pylist()


def annotations(archived: Path) -> list[dict[str, Any]]:
    return EventLog(archived / "archive", "annotations").read().sort_by("alert_id").to_pylist()


def test_an_old_step_gives_the_values_that_the_stream_gave(archived: Path, data: Path) -> None:
    done = everything(job(archived, data, ["basic"]), size=5)
    rows = kept(archived)
    assert done.alerts == done.values["basic"] == len(rows) > 10
    assert not done.troubles
    stored = {row["alert_id"]: json.dumps(row["basic"]) for row in rows}
    assert {row["alert_id"]: row["value"] for row in annotations(archived)} == stored


def test_a_step_written_later_gets_its_row_and_where_it_raises_the_alert_is_told(
    archived: Path, data: Path
) -> None:
    done = everything(job(archived, data, ["later"]))
    rows = kept(archived)
    bright = [row for row in rows if row["basic"]["magnitude"] < 17.0]
    found = annotations(archived)
    assert 0 < len(bright) < len(rows)
    assert done.troubles == {"later: ValueError: too bright": len(bright)}
    assert {row["alert_id"] for row in found} == {r["alert_id"] for r in rows} - {
        r["alert_id"] for r in bright
    }
    first = found[0]
    (alert,) = [row for row in rows if row["alert_id"] == first["alert_id"]]
    assert json.loads(first["value"]) == {"rounded": round(alert["basic"]["magnitude"], 1)}
    assert (first["survey"], first["night"], first["step"], first["version"]) == ("ztf", NIGHT, "later", 2)
    assert (first["snapshot"], first["when"]) == (None, WHEN)


def test_what_is_stored_is_not_computed_again(archived: Path, data: Path) -> None:
    own = job(archived, data, ["basic"])
    first, *others = recompute.pieces(own, 5)
    recompute.compute(own, first)
    assert sum(map(len, recompute.pieces(own, 5))) == sum(map(len, others))
    everything(own)
    assert list(recompute.pieces(own)) == []


def test_a_piece_that_is_computed_twice_counts_once(archived: Path, data: Path) -> None:
    own = job(archived, data, ["basic"])
    (piece,) = recompute.pieces(own)
    for _ in range(2):
        recompute.compute(own, piece)
    assert len(annotations(archived)) == len(piece) == len(kept(archived))


def test_other_nights_are_left_alone(archived: Path, data: Path) -> None:
    own = settings(archived, data)
    assert list(recompute.pieces(recompute.prepare(own, Wish("ztf", NIGHT + 1, NIGHT + 9)))) == []
    assert list(recompute.pieces(recompute.prepare(own, Wish("ztf", NIGHT - 9, NIGHT - 1)))) == []


def test_a_segment_that_is_gone_is_told_with_its_alerts(archived: Path, data: Path) -> None:
    own = job(archived, data, ["basic"])
    lost, *others = segments.names(archived / "archive" / "ztf")
    (archived / "archive" / "ztf" / "segments" / lost).unlink()
    done = everything(own)
    rows = kept(archived)
    gone = [row for row in rows if row["segment"] == lost]
    assert gone
    assert done.troubles == {f"segment {lost} is missing from {archived}/archive/ztf/segments": len(gone)}
    assert done.alerts == len(rows) - len(gone)
    assert len(others) == len({row["segment"] for row in rows}) - 1


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish("zft", NIGHT, NIGHT), r"there is no \[surveys.zft\] \(did you mean 'ztf'\?\)"),
        (Wish("ztf", NIGHT, NIGHT - 1), f"night {NIGHT} comes after {NIGHT - 1}"),
        (Wish("ztf", NIGHT, NIGHT, ("basics",)), r"no step 'basics' \(did you mean 'basic'\?\)"),
        (Wish("ztf", NIGHT, NIGHT, ("real",)), "no step 'real'"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_before_anything_runs(
    tmp_path: Path, data: Path, wish: Wish, said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        recompute.prepare(settings(tmp_path, data), wish)
    assert not (tmp_path / "archive").exists()


def test_another_plan_on_the_machine_that_computes_is_refused(
    archived: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = job(archived, data, ["basic"])
    (piece,) = recompute.pieces(own)
    (archived / "steps" / "later.py").write_text(LATER.replace("version=2", "version=3"))
    monkeypatch.delitem(sys.modules, "raybroker_steps_later")  # as another process would
    monkeypatch.setattr(recompute, "_made", {})
    with pytest.raises(SettingsError, match="have the same packages, catalogues and steps on every machine"):
        recompute.compute(own, piece)


def test_values_that_json_has_not_become_null_or_text() -> None:
    given = {"a": float("nan"), "b": [1, float("inf")], "c": WHEN, "d": b"\x01", "e": True}
    told = recompute._plain(given)
    assert told == {"a": None, "b": [1, None], "c": "2026-09-01T00:00:00+00:00", "d": "01", "e": True}


def test_a_value_that_is_not_known_is_null(archived: Path, data: Path) -> None:
    row = recompute._row(job(archived, data), "ztf:1", NIGHT, "basic", 1, None, WHEN)
    assert row["value"] == "null"
