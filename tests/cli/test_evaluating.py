"""`raybroker evaluate`: what people see, and the status of the program."""

from __future__ import annotations

import json

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from raybroker.cli import verbs
from tests.protocols.tables_for_tests import rows

COLUMNS = ["--label", "kind", "--object", "name", "--time", "mjd"]
QUICK = ["--members", "softmax", "--members", "naive_bayes", "--seeds", "1", "--protocol", "holdout"]


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pq.write_table(rows(), tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


def call(*arguments):
    """The status with which the program ends."""
    try:
        verbs.main(["evaluate", *map(str, arguments)])
    except SystemExit as end:
        return end.code or 0
    return 0


def test_it_shows_tables_and_writes_the_report(table, tmp_path, capsys):
    assert call(table, *COLUMNS, *QUICK, "--wanted", "SN", "--output", tmp_path / "out") == 0
    shown = capsys.readouterr()
    assert "Hold-out by object" in shown.out
    assert "the wanted class is 'SN'" in shown.err
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["about"]["rows"] == 300
    assert (tmp_path / "out" / "evaluation.html").stat().st_size > 1_000_000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--label", "knid", "--object", "name"], "did you mean 'kind'"),
        ([*COLUMNS, "--protocol", "holduot"], "did you mean 'holdout'"),
        ([*COLUMNS, "--members", "forst", "--protocol", "holdout"], "did you mean 'forest'"),
        ([*COLUMNS, "--model", "sn"], "raybroker.toml does not exist"),
        ([*COLUMNS, "--night"], "needs labelled light curves"),
        ([*COLUMNS, "--columns", "x.*"], "names no column"),
    ],
)
def test_a_mistake_is_a_message_and_status_two(table, arguments, said, capsys):
    assert call(table, *arguments) == 2
    shown = capsys.readouterr().err
    assert said in " ".join(shown.split())
    assert "Traceback" not in shown


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert call(tmp_path / "none.csv", *COLUMNS) == 2
    assert "there is no such file" in " ".join(capsys.readouterr().err.split())


def test_a_broken_row_is_named_and_the_rest_is_used(tmp_path, capsys):
    path = tmp_path / "table.csv"
    pyarrow.csv.write_csv(rows(), path)
    lines = path.read_text().splitlines()
    lines[4] = lines[4].rpartition(",")[0] + ",oops"
    path.write_text("\n".join(lines))
    assert call(path, *COLUMNS, *QUICK) == 0
    shown = capsys.readouterr()
    assert "row 5, column 'mood': 'oops' is not a number" in shown.err
    assert "Hold-out by object" in shown.out


def test_members_come_from_a_model_of_the_settings(table, tmp_path, capsys):
    (tmp_path / "raybroker.toml").write_text(
        '[models.sn]\nclasses = ["SN", "other"]\ncolumns = ["rise", "noise"]\nmembers = ["naive_bayes"]\n'
    )
    assert call(table, *COLUMNS, "--model", "sn", "--seeds", "1", "--protocol", "holdout") == 0
    shown = capsys.readouterr().out
    assert "naive_bayes" in shown
    assert "softmax" not in shown
