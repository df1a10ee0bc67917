"""`raybroker reprocess`: what is asked for, and what is told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from raybroker.cli import reprocessing, verbs
from raybroker.cluster.recompute import Done, Wish
from raybroker.errors import SettingsError


def test_one_night_is_the_first_and_the_last() -> None:
    assert reprocessing.wish("ztf", 20260901) == Wish("ztf", 20260901, 20260901)
    assert reprocessing.wish("ztf", 20260901, 20260902, ["a"]) == Wish("ztf", 20260901, 20260902, ("a",))


@pytest.mark.parametrize("night", [0, 2026, 61284, 202609010])
def test_what_is_not_a_night_is_refused(night: int) -> None:
    with pytest.raises(SettingsError, match=f"{night} is not a night; it is written YYYYMMDD"):
        reprocessing.wish("ztf", night)


def test_the_line_names_each_step_with_its_values() -> None:
    done = Done(1200, Counter(early=1199, basic=1200))
    assert reprocessing.line(done) == (
        "1,200 alerts computed again; written to `annotations`: basic 1,200, early 1,199"
    )
    assert reprocessing.line(Done()).startswith("nothing to compute")
    assert reprocessing.line(Done(3, troubles=Counter(lost=3))).endswith("no values")


def test_a_survey_that_there_is_not_ends_with_status_2_and_is_told_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "raybroker.toml"
    file.write_text('[surveys.ztf]\nservers = "replay:none"\nworkers = 1\n[mlflow]\nenabled = false\n')
    with pytest.raises(SystemExit) as ended:
        verbs.main(["reprocess", "zft", "20260901", "--settings", str(file)])
    assert ended.value.code == 2
    assert "reprocess: there is no [surveys.zft] (did you mean 'ztf'?)" in capsys.readouterr().err
