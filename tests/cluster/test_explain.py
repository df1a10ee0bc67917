"""Every score is found again bit for bit, and what stands in the way is told."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raybroker import pipeline as pipelines
from raybroker.archive import provenance
from raybroker.archive.events import EventLog
from raybroker.archive.lookup import Lookup
from raybroker.cluster.explain import Explanation, effects, explain
from raybroker.errors import SettingsError, UnknownError
from raybroker.learning.compiled import Frozen, matrix
from raybroker.learning.learner import Learner
from raybroker.learning.outliers import OutlierLearner
from raybroker.pipeline import Pipeline
from raybroker.scores.online import expand, feature_digest, features_table, score
from raybroker.step import Step, discover
from tests.cluster.worlds import ZTF, pipeline, placed, worker

NIGHT = "public_20181129"
MODEL, CLASSES = "transient", ("SN", "other")
NAMES = ("real", "good_pixels", "basic", "early")
COLUMNS = expand(["basic.*", "early.*"], {name: discover()[name].gives for name in NAMES})
WHEN = datetime(2026, 9, 1, tzinfo=UTC)


@functools.cache
def made(*extra: Step, columns: Sequence[str] = COLUMNS) -> Pipeline:
    return pipeline(score(MODEL, columns, CLASSES), *extra, names=NAMES)


def taught(rows: pa.Table, labels: int, seed: int = 0) -> Frozen:
    """A model that learned some of these rows; which class is told by their magnitude."""
    columns = {name: rows[name].combine_chunks() for name in ("basic", "early")}
    features = features_table(columns, COLUMNS).slice(0, labels)
    bright = pc.fill_null(pc.less(features["basic.magnitude"], 18.5), False).to_pylist()
    learner = Learner(MODEL, CLASSES, COLUMNS, ("softmax", "naive_bayes", "forest"), seed=seed)
    learner.learn(features, [CLASSES[0] if one else CLASSES[1] for one in bright])
    return learner.frozen()


def published(root: Path, number: int, model: Any) -> None:
    digest = provenance.put(root, model.snapshot())
    row = {"event_id": f"{model.name}-{number}", "model": model.name, "number": number, "digest": digest}
    row |= {"parent": number - 1, "labels": model.learned, "learned": [], "when": WHEN}
    EventLog(root, "snapshots").append([row])


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, ztf_packets) -> Path:  # type: ignore[no-untyped-def]
    """A real night: 100 packets before any snapshot, 200 scored with the first, the rest with the second."""
    root = tmp_path_factory.mktemp("archive")
    own = made()
    provenance.store(root, own.plan)
    running = worker(root, placed(ztf_packets(NIGHT)), own)
    running.turn(limit=100)
    rows = running.books.table.read()[0].filter(pc.field("outcome") == "scored")
    for number, labels in ((1, 15), (2, 30)):
        model = taught(rows, labels)
        published(root, number, model)
        running.pin({MODEL: (number, model)})
        running.turn(limit=200)
    assert running.turn().alerts == 0
    return root


@pytest.fixture
def root(night: Path, tmp_path: Path) -> Path:
    """The night again, to be damaged."""
    return Path(shutil.copytree(night, tmp_path / "archive"))


def found(root: Path, alert_id: str, own: Pipeline | None = None, model: str = "") -> Explanation:
    return explain(root, lambda survey: (ZTF, own or made()), alert_id, model)


def rows_of(root: Path, where: str) -> list[dict[str, Any]]:
    return Lookup(root).sql(f"select * from ztf_alerts where {where} order by alert_id").to_pylist()


def scored(root: Path, number: int = 2) -> dict[str, Any]:
    return rows_of(root, f"{MODEL}.snapshot = {number}")[0]


def test_every_score_of_a_real_night_is_found_again_bit_for_bit(night: Path) -> None:
    rows = rows_of(night, f"{MODEL}.snapshot is not null")
    assert len(rows) > 200
    for row in rows[::16]:
        told = found(night, row["alert_id"])
        assert told.reproduced is True, told.sentence
        assert (told.source, told.differences) == ("packet", ())
        assert told.computed == told.stored == {name: row[MODEL][name] for name in CLASSES}
        assert told.snapshot == row[MODEL]["snapshot"]
    assert {row[MODEL]["snapshot"] for row in rows[::16]} == {1, 2}


def test_all_of_a_night_at_once_are_the_same_bits_as_one_by_one(night: Path) -> None:
    """What the worker scored in batches of 100, recomputed in one batch: the stored features suffice."""
    rows = pa.Table.from_pylist(rows_of(night, f"{MODEL}.snapshot = 2"))
    whole = {name: rows[name].combine_chunks() for name in ("basic", "early")}
    digest = Lookup(night).sql("select digest from snapshots where number = 2")["digest"][0].as_py()
    model = Frozen.restore(provenance.get(night, digest))
    again = model.predict(features_table(whole, COLUMNS)).mixture.astype(np.float32)
    stored = np.array([[row[name] for name in CLASSES] for row in rows[MODEL].to_pylist()], np.float32)
    assert again.tobytes() == stored.tobytes()


def test_it_names_what_the_score_came_from(night: Path) -> None:
    row = scored(night)
    told = found(night, row["alert_id"])
    assert (told.plan, told.labels, told.published) == (row["plan"], 30, WHEN)
    features = [row[path.split(".")[0]][path.split(".")[1]] for path in COLUMNS]
    assert told.feature_digest == feature_digest(features)
    assert told.sentence == "the score is found again bit for bit, from its packet"


def test_members_and_effects_say_what_the_model_says(night: Path) -> None:
    told = found(night, scored(night)["alert_id"])
    assert [say.member for say in told.members] == ["softmax", "naive_bayes", "forest"]
    assert sum(say.weight or 0 for say in told.members) == pytest.approx(1)
    assert all(sum(say.probabilities.values()) == pytest.approx(1) for say in told.members)
    assert len(told.effects) == len(COLUMNS)
    sizes = [max(map(abs, effect.moved.values())) for effect in told.effects]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0.01


@dataclasses.dataclass(frozen=True)
class Sum:
    """A model whose first class is as likely as the sum of what is known; without a middle."""

    columns: tuple[str, ...] = ("a", "b", "c")
    classes: tuple[str, ...] = ("yes", "no")
    members: tuple[str, ...] = ("sum",)

    def predict_matrix(self, features):  # type: ignore[no-untyped-def]
        yes = np.nansum(features, axis=1)
        mixture = np.stack([yes, 1 - yes], axis=1)
        return type("P", (), {"mixture": mixture, "members": mixture[None]})


def test_an_effect_is_what_goes_when_the_feature_is_not_known() -> None:
    first, second, last = effects(Sum(), np.array([[0.125, 0.5, np.nan]]))
    assert (first.feature, first.value, first.moved) == ("b", 0.5, {"yes": 0.5, "no": -0.5})
    assert (second.feature, second.moved["yes"]) == ("a", 0.125)
    assert (last.value, last.moved["yes"]) == (None, 0.0)
    assert first.from_centre is None


def test_the_middle_of_a_feature_is_the_models_own(night: Path) -> None:
    told = found(night, scored(night)["alert_id"])
    model = Frozen.restore(provenance.get(night, told.digest))
    row = matrix(pa.table({e.feature: pa.array([e.value], pa.float64()) for e in told.effects}), COLUMNS)
    i = COLUMNS.index("basic.magnitude")
    middle = row.copy()
    middle[0, i] = model.scale.center[i]
    change = model.predict_matrix(row).mixture - model.predict_matrix(middle).mixture
    effect = next(e for e in told.effects if e.feature == "basic.magnitude")
    assert effect.from_centre == dict(zip(CLASSES, change[0].tolist(), strict=True))


def test_a_model_of_anomalies_is_explained_too(tmp_path: Path, ztf_packets) -> None:  # type: ignore[no-untyped-def]
    columns = expand(["basic.*"], {"basic": discover()["basic"].gives})
    own = pipeline(score("odd", columns, ("interesting", "ordinary")), names=("real", "basic"))
    provenance.store(tmp_path, own.plan)
    running = worker(tmp_path, placed(ztf_packets(NIGHT)[:160]), own)
    running.turn(limit=100)
    rows = running.books.table.read()[0].filter(pc.field("outcome") == "scored")
    seen = features_table({"basic": rows["basic"].combine_chunks()}, columns)
    learner = OutlierLearner("odd", columns=columns)
    learner.background(seen)
    learner.learn(seen.slice(0, 4), ["interesting", "ordinary", "ordinary", "interesting"])
    published(tmp_path, 1, learner.frozen())
    running.pin({"odd": (1, learner.frozen())})
    running.turn()
    rows_scored = rows_of(tmp_path, "odd.snapshot = 1")
    assert len(rows_scored) > 10
    for row in rows_scored[::5]:
        told = found(tmp_path, row["alert_id"], own)
        assert (told.reproduced, told.source, told.labels) == (True, "packet", 4), told.sentence
        assert [(say.member, say.weight) for say in told.members] == [("aad", None)]
        assert all(effect.from_centre == effect.moved for effect in told.effects if effect.value is not None)
        assert max(abs(effect.moved["interesting"]) for effect in told.effects) > 0


def test_an_alert_scored_before_any_snapshot_has_nothing_to_find_again(night: Path) -> None:
    row = rows_of(night, f"outcome = 'scored' and {MODEL}.snapshot is null")[0]
    told = found(night, row["alert_id"])
    assert told.reproduced is None
    assert told.sentence == f"{MODEL} has no score of it: no snapshot was published when it was archived"


def test_a_rejected_alert_names_its_cut(night: Path) -> None:
    told = found(night, rows_of(night, "outcome = 'rejected'")[0]["alert_id"])
    assert told.reproduced is None
    assert told.sentence == f"the cut 'real' rejected it, so {MODEL} did not score it"


def test_unknown_alerts_and_models_are_errors(night: Path) -> None:
    with pytest.raises(UnknownError, match="no alert 'ztf:0'"):
        found(night, "ztf:0")
    with pytest.raises(UnknownError, match=r"no score of 'transiemt' \(did you mean 'transient'\?\)"):
        found(night, scored(night)["alert_id"], model="transiemt")


def model_file(root: Path, alert_id: str) -> Path:
    return root / "models" / found(root, alert_id).digest


def test_a_changed_byte_in_the_models_file_is_told(root: Path) -> None:
    alert_id = scored(root)["alert_id"]
    path = model_file(root, alert_id)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    told = found(root, alert_id)
    assert told.reproduced is False
    assert "is damaged: its bytes do not have its digest" in told.sentence


def test_a_lost_models_file_is_told(root: Path) -> None:
    alert_id = scored(root)["alert_id"]
    model_file(root, alert_id).unlink()
    told = found(root, alert_id)
    assert told.reproduced is False
    assert "nothing is stored in" in told.sentence


def test_a_removed_snapshot_is_told(root: Path) -> None:
    shutil.rmtree(root / "snapshots")
    told = found(root, scored(root)["alert_id"])
    assert told.reproduced is False
    assert "snapshot 2 of transient is not recorded" in told.sentence
    EventLog(root, "snapshots").append([{"event_id": "x", "model": MODEL, "number": 1, "digest": "0" * 64}])
    assert "snapshot 2 of transient is not recorded" in found(root, scored(root)["alert_id"]).sentence


def test_a_file_that_this_version_cannot_open_is_told(root: Path) -> None:
    alert_id = scored(root)["alert_id"]
    digest = provenance.put(root, b"not a model")
    EventLog(root, "snapshots").append(
        [{"event_id": "other", "model": MODEL, "number": 3, "digest": digest, "labels": 1, "when": WHEN}]
    )
    shutil.rmtree(root / "snapshots")
    EventLog(root, "snapshots").append(
        [{"event_id": "other", "model": MODEL, "number": 2, "digest": digest, "labels": 1, "when": WHEN}]
    )
    told = found(root, alert_id)
    assert told.reproduced is False
    assert "this version cannot open it" in told.sentence


def test_another_models_file_under_the_number_does_not_pass_for_it(root: Path) -> None:
    row = scored(root)
    shutil.rmtree(root / "snapshots")
    rows = pa.Table.from_pylist(rows_of(root, f"{MODEL}.snapshot = 1"))
    published(root, 2, taught(rows, 20, seed=5))
    told = found(root, row["alert_id"])
    assert told.reproduced is False
    assert told.sentence.startswith("the score is NOT found again: SN is 0.")
    assert repr(row[MODEL]["SN"]) in told.sentence


def with_version(own: Pipeline, name: str, **changes: Any) -> Pipeline:
    step = next(step for step in own.steps if step.name == name)
    return own.replaced({name: dataclasses.replace(step, **changes)})


def test_another_step_is_told_and_the_stored_columns_are_taken(night: Path) -> None:
    told = found(night, scored(night)["alert_id"], with_version(made(), "early", version=7))
    assert (told.reproduced, told.source) == (True, "columns")
    assert told.differences == ("step 'early': version is 7 here, was 2",)
    without = pipeline(score(MODEL, ["basic.snr"], CLASSES), names=("real", "basic"))
    told = found(night, scored(night)["alert_id"], without)
    assert (told.reproduced, told.source) == (True, "columns")
    assert told.differences == ("step 'early' is not on here; the row was made with its version 2",)


def test_a_step_that_the_model_does_not_need_makes_no_difference(night: Path) -> None:
    told = found(night, scored(night)["alert_id"], with_version(made(), "good_pixels", version=7))
    assert (told.reproduced, told.source, told.differences) == (True, "packet", ())


def test_another_package_is_told(night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages: Mapping[str, str] = pipelines.packages()
    monkeypatch.setattr(pipelines, "_packages", {**packages, "numpy": "9.9", "a-new-one": "1"})
    told = found(night, scored(night)["alert_id"])
    assert (told.reproduced, told.source) == (True, "columns")
    assert told.differences == (f"package numpy is 9.9 here, was {packages['numpy']}",)


def test_a_step_that_computes_something_else_under_the_same_version_is_found_out(night: Path) -> None:
    """The plan cannot see it; the features can."""
    own = made()
    basic = next(step for step in own.steps if step.name == "basic")

    def other(*columns: Any, **settings: Any) -> dict[str, Any]:
        return {**basic.call(*columns, **settings), "magnitude": np.full(len(columns[0]), 17.0)}

    told = found(night, scored(night)["alert_id"], with_version(own, "basic", call=other))
    assert told.reproduced is False
    assert "basic.magnitude is 17.0 from its packet, but " in told.sentence


def test_a_lost_packet_or_plan_leaves_the_stored_columns(root: Path) -> None:
    row = scored(root)
    (root / "ztf" / "segments" / row["segment"]).unlink()
    told = found(root, row["alert_id"])
    assert (told.reproduced, told.source) == (True, "columns")
    assert told.differences[0].startswith("its packet cannot be read")
    plan = root / "plans" / row["plan"]
    plan.unlink()
    told = found(root, row["alert_id"])
    assert (told.reproduced, told.source) == (True, "columns")
    assert told.differences[0].startswith("the plan of the row cannot be read: nothing is stored")


def test_settings_that_cannot_be_built_leave_the_stored_columns(night: Path) -> None:
    def parts(survey: str) -> Any:
        raise SettingsError("there is no [surveys.ztf]")

    told = explain(night, parts, scored(night)["alert_id"])
    assert (told.reproduced, told.source) == (True, "columns")
    assert "cannot be built from the settings here: there is no [surveys.ztf]" in told.differences[0]


def test_it_changes_nothing(night: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in night.rglob("*")}
    json.dumps(found(night, scored(night)["alert_id"]).stored)
    assert {path: path.stat().st_mtime_ns for path in night.rglob("*")} == before
