"""Files of labels through the service and straight into the archive."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from raybroker import settings as settings_file
from raybroker.archive.events import EventLog
from raybroker.cli import exchanging, verbs
from raybroker.cli.exchanging import Archive, Service, give_out, take_in, undo
from raybroker.errors import RaybrokerError
from tests.cli.conftest import Town

DEAD = "http://127.0.0.1:9"  # the discard port: nothing answers


def rows_of(town: Town, count: int) -> list[dict[str, str]]:
    found = town.client.get("/alerts", limit=100)["alerts"]
    return [row for row in found if row["alert_id"] and row["object_id"]][:count]


def finkvra(town: Town, path: Path, count: int = 3, label: str = "AGN") -> Path:
    lines = [
        f"{row['alert_id'][4:]},{row['object_id'][4:]},{label},2025-06-02T10:11:{i:02d}.250000"
        for i, row in enumerate(rows_of(town, count))
    ]
    path.write_text("\n".join(["candid,objectId,label,timestamp", *lines]) + "\n")
    return path


def errors() -> Console:
    return Console(record=True, width=200, file=io.StringIO())


def test_a_file_comes_in_and_goes_out_byte_for_byte(town: Town, tmp_path: Path) -> None:
    path = finkvra(town, tmp_path / "labels.csv")
    door = Service(town.client)
    assert take_in(door, path, "", town.console, errors()) == 0
    assert "3 new, 0 known before, 0 broken" in town.said()
    assert {one["who"] for one in town.labels()} == {"maria"}
    give_out(door, tmp_path / "out.csv", "", town.console)
    assert (tmp_path / "out.csv").read_text() == path.read_text()


def test_the_same_file_again_changes_nothing(town: Town, tmp_path: Path) -> None:
    path = finkvra(town, tmp_path / "labels.csv")
    door = Service(town.client)
    take_in(door, path, "", town.console, errors())
    before = town.labels()
    assert take_in(door, path, "", town.console, errors()) == 0
    assert "0 new, 3 known before" in town.said()
    assert town.labels() == before
    give_out(door, tmp_path / "copy.parquet", "", town.console)
    take_in(door, tmp_path / "copy.parquet", "", town.console, errors())
    assert town.labels() == before


def test_broken_rows_are_named_and_the_rest_comes_in(town: Town, tmp_path: Path) -> None:
    path = finkvra(town, tmp_path / "labels.csv", 4)
    head, one, two, three, four = path.read_text().splitlines()
    broken = [
        head,
        one,
        "123,ZTF1,AGN,2025-06-02T10:11:00",  # an alert that nobody knows
        two.replace("AGN", "ANG"),
        three.replace("ZTF", "XYZ"),
        "1,2",
        four.replace("2025", "2925"),
        four,
    ]
    path.write_text("\n".join(broken))
    said = errors()
    assert take_in(Service(town.client), path, "", town.console, said) == 5
    lines = said.export_text().splitlines()
    assert "labels.csv: row 2, column 'candid': no alert 'ztf:123' is in the archive" in lines
    assert any(
        line.startswith("labels.csv: row 3, column 'label': no class 'ANG' (did you mean 'AGN'?)")
        for line in lines
    )
    assert any(line.startswith("labels.csv: row 4, column 'objectId': alert 'ztf:") for line in lines)
    assert "labels.csv: row 5: 2 values where the header has 4" in lines
    assert any(
        line.startswith("labels.csv: row 6, column 'timestamp': ") and "future" in line for line in lines
    )
    assert len(town.labels()) == 2
    assert "2 new, 0 known before, 5 broken" in town.said()


def test_many_broken_rows_are_counted_beyond_the_first(town: Town, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("candid,label\n" + "1,\n" * 50)
    said = errors()
    assert take_in(Service(town.client), path, "", town.console, said) == 50
    text = said.export_text()
    assert text.count("column 'label'") == exchanging.SHOWN
    assert "30 more broken rows" in text


def test_a_file_of_raw_labels_needs_no_model(raw_town: Town, tmp_path: Path) -> None:
    path = finkvra(raw_town, tmp_path / "labels.csv", label="bogus")
    assert take_in(Service(raw_town.client), path, "", raw_town.console, errors()) == 0
    assert {one["model"] for one in raw_town.labels()} == {""}
    assert raw_town.client.get("/models")["models"][1]["labels"]["classes"] == {"no": 3}
    give_out(Service(raw_town.client), tmp_path / "out.csv", "", raw_town.console)
    assert (tmp_path / "out.csv").read_text() == path.read_text()


def test_a_batch_that_is_repeated_within_itself_counts_once(town: Town, tmp_path: Path) -> None:
    path = finkvra(town, tmp_path / "labels.csv", 1)
    path.write_text(path.read_text() + path.read_text().splitlines()[1])
    take_in(Service(town.client), path, "", town.console, errors())
    assert "1 new, 1 known before" in town.said()


def test_undo_takes_back_ones_own_last_labels_only(town: Town, tmp_path: Path) -> None:
    door = Service(town.client)
    take_in(door, finkvra(town, tmp_path / "labels.csv"), "", town.console, errors())
    last = town.labels()[0]["alert_id"]
    other = Console(record=True, file=io.StringIO())
    undo(door, 1, "", town.console)
    assert f"{last}, AGN: taken back" in town.said()
    assert len(door.standing("")) == 2
    undo(door, 9, "", town.console)
    assert door.standing("") == []
    undo(door, 1, "", other)
    assert "no label of maria stands" in other.export_text()


def test_a_stranger_cannot_send_a_file(town: Town, tmp_path: Path) -> None:
    path = finkvra(town, tmp_path / "labels.csv")
    del town.client._http.headers["Authorization"]
    with pytest.raises(RaybrokerError, match="labels need a token"):
        take_in(Service(town.client), path, "", town.console, errors())
    with pytest.raises(RaybrokerError, match="whose labels"):
        undo(Service(town.client), 1, "", town.console)


@pytest.fixture
def alone(small_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file of an archive that no service reads."""
    shutil.copytree(small_archive, tmp_path / "archive")
    monkeypatch.setenv(settings_file.TOKENS_VARIABLE, "ann:secret")
    monkeypatch.setattr(exchanging.getpass, "getuser", lambda: "root")
    path = tmp_path / "raybroker.toml"
    path.write_text(
        '[archive]\nroot = "archive"\n[models.transients]\nclasses = ["supernova", "AGN", "variable star"]\n'
    )
    return path


def cli(*arguments: str | Path) -> int:
    """The exit status of `raybroker label ...`."""
    try:
        verbs.main(["label", *map(str, arguments)])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def logged(settings: Path) -> list[dict[str, object]]:
    return list(EventLog(settings.parent / "archive", "labels").read().to_pylist())


def test_without_a_service_a_file_goes_straight_into_the_archive(
    alone: Path, town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finkvra(town, alone.parent / "labels.csv")
    here = ("--url", DEAD, "--settings", alone)
    assert cli("--from", path, *here, "--token", "secret") == 0
    said = capsys.readouterr().out
    assert f"nothing answers at {DEAD}: labels go straight into the archive as ann's" in said
    assert "3 new" in said
    assert {(row["who"], row["label"], row["source"]) for row in logged(alone)} == {("ann", "AGN", "csv")}
    assert cli("--from", path, *here) == 0
    assert "0 new, 3 known before" in capsys.readouterr().out
    assert cli("--to", alone.parent / "out.parquet", *here) == 0
    assert pq.read_table(alone.parent / "out.parquet")["label"].to_pylist() == ["AGN"] * 3
    assert cli("--undo", "--last", "2", *here, "--token", "secret") == 0
    assert [row["withdrawn"] for row in logged(alone)].count(True) == 2


def test_broken_rows_make_the_exit_status_one(
    alone: Path, town: Town, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finkvra(town, alone.parent / "labels.csv")
    path.write_text(path.read_text() + "17,ZTF17,AGN,\n")
    assert cli("--from", path, "--url", DEAD, "--settings", alone) == 1
    captured = capsys.readouterr()
    assert "labels.csv: row 4, column 'candid': no alert 'ztf:17' is in the archive" in captured.err
    assert "3 new, 0 known before, 1 broken" in captured.out


def test_without_service_and_settings_it_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("--undo", "--url", DEAD, "--settings", tmp_path / "no.toml") == 1
    assert "--settings must name the archive" in capsys.readouterr().err


def test_one_thing_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("--undo", "--from", tmp_path / "labels.csv") == 2
    assert "one of an alert, --from, --to and --undo" in capsys.readouterr().err


def test_the_archive_knows_raw_labels_too(small_archive: Path, tmp_path: Path) -> None:
    tree = {
        "archive": {"root": str(tmp_path / "archive")},
        "labels": {"classes": ["agn"]},
        "models": {"m": {"classes": ["a", "b"], "raw": {"a": ["agn"]}}},
    }
    shutil.copytree(small_archive, tmp_path / "archive")
    door = Archive(settings_file.parse(tree), "ann")
    alert = door.desk.lookup.sql("select alert_id from ztf_alerts where object_id is not null limit 1")[
        "alert_id"
    ][0].as_py()
    assert door.send([{"event_id": "event-0001", "alert_id": alert, "label": "agn"}]) == [
        {"event_id": "event-0001", "repeated": False}
    ]
    assert door.standing("")[0]["model"] == ""
