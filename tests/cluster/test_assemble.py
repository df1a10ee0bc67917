from pathlib import Path
from typing import Any

import pytest

from raybroker.archive import provenance
from raybroker.archive.events import EventLog
from raybroker.cluster import assemble
from raybroker.cluster.supervisor import Supervisor
from raybroker.errors import SettingsError
from raybroker.learning.learner import Learner
from raybroker.settings import parse


def with_raw(raw: dict[str, list[str]], classes: list[str]) -> Any:
    model = {"classes": ["yes", "no"], "raw": raw, "members": ["naive_bayes"]}
    return parse({"labels": {"classes": classes}, "models": {"real": model}})


def test_a_raw_label_that_nobody_can_give_is_said_before_anything_starts() -> None:
    assemble.check(with_raw({"yes": ["agn"], "no": ["bogus"]}, ["agn", "bogus", "comet"]))
    with pytest.raises(
        SettingsError, match=r"models.real.raw.no: no raw label 'bogsu' \(did you mean 'bogus'\?\)"
    ):
        assemble.check(with_raw({"yes": ["agn"], "no": ["bogsu"]}, ["agn", "bogus"]))
    with pytest.raises(SettingsError, match="no raw label 'agn'"):
        assemble.check(with_raw({"yes": ["agn"]}, []))


def test_a_raw_label_means_one_class() -> None:
    with pytest.raises(SettingsError, match="'agn' means both 'yes' and 'no'"):
        assemble.check(with_raw({"yes": ["agn"], "no": ["bogus", "agn"]}, ["agn", "bogus"]))


def stored(
    root: Path, number: int, columns: tuple[str, ...], classes: tuple[str, ...] = ("AGN", "SN")
) -> str:
    """A snapshot of the model `transient` in the archive's log; the digest of its file."""
    made = Learner("transient", classes, columns, ("naive_bayes",)).frozen()
    digest = provenance.put(root, made.snapshot())
    row = {"event_id": f"transient-{number}", "model": "transient", "number": number, "digest": digest}
    EventLog(root, "snapshots").append([row])
    return digest


def of_transients(root: Path, *columns: str) -> Any:
    model = {"classes": ["AGN", "SN"], "columns": list(columns) or ["basic.snr", "basic.age"]}
    return parse({"archive": {"root": str(root)}, "steps": {"on": ["basic"]}, "models": {"transient": model}})


def test_the_newest_snapshots_are_known_before_the_trainer_has_started(tmp_path: Path) -> None:
    settings = of_transients(tmp_path)
    assert assemble.standing(settings) == {}
    wanted = stored(tmp_path, 10, ("basic.snr", "basic.age"))
    stored(tmp_path, 9, ("basic.snr",))
    assert assemble.standing(settings) == {"transient": (10, wanted)}
    assert assemble.standing(parse({"archive": {"root": str(tmp_path)}})) == {}
    assert Supervisor(settings).snapshots == {"transient": (10, wanted)}


def test_a_snapshot_that_does_not_fit_the_settings_any_more_scores_nothing(tmp_path: Path) -> None:
    digest = stored(tmp_path, 1, ("basic.snr", "basic.age"))
    assert assemble.standing(of_transients(tmp_path, "basic.snr")) == {}
    stored(tmp_path, 2, ("basic.snr", "basic.age"), ("SN", "AGN"))
    assert assemble.standing(of_transients(tmp_path)) == {}
    stored(tmp_path, 3, ("basic.snr", "basic.age"))
    (tmp_path / "models" / digest).write_bytes(b"damaged")
    assert assemble.standing(of_transients(tmp_path)) == {}
