"""A model's states on disk: with them or without, at whatever point the trainer died, the model is the same."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybroker.archive import store
from raybroker.cluster import pupil as pupils
from raybroker.cluster import states as module
from raybroker.cluster.pupil import Pupil
from raybroker.cluster.states import ORPHAN_SECONDS, Name, States, kept, origin_of
from raybroker.cluster.teaching import Asked
from raybroker.learning.labels import Label
from raybroker.settings import ChallengerSettings, ModelSettings

COLUMNS = ("rise", "colour")
QUICK = ModelSettings(classes=["AGN", "SN"], members=["naive_bayes", "softmax"])


def lesson(number: int, name: str = "", **more: Any) -> tuple[Label, Asked]:
    rise, colour = np.random.default_rng(number).normal(size=2).tolist()
    given = {
        "event_id": f"event-{number}",
        "survey": "ztf",
        "alert_id": f"ztf:{number}",
        "model": "transient",
    }
    given |= {"object_id": f"ztf:o{number}", "label": name or ("SN" if rise + colour > 0 else "AGN"), **more}
    return Label.of(given), Asked(f"ztf:{number}", {"rise": rise, "colour": colour}, 60000.0)


def made(root: Path | None, settings: ModelSettings = QUICK, columns: Any = COLUMNS) -> tuple[Pupil, States]:
    pupil = Pupil("transient", settings, columns)
    states = States(root or Path("nowhere"), "transient", seconds=0.0)
    if root is not None:
        pupil.older = states.find
    return pupil, states


def tell(pupil: Pupil, *told: tuple[Label, Asked], states: States | None = None) -> int:
    for label, asked in told:
        pupil.hear(label, asked)
    return pupil.study(lambda: states and keep(states, pupil))


def keep(states: States, pupil: Pupil) -> None:
    states.offer(pupil)
    states.wait()


def whole(pupil: Pupil) -> tuple[Any, ...]:
    """All that a pupil has become."""
    snapshots = {key: learner.frozen().snapshot() for key, learner in pupil.learners.items()}
    duels = [str(duel) for duel in pupil.contest.standing()]
    return snapshots, duels, pupil.progress.losses, pupil.metrics(), pupil.taken, pupil.lessons, pupil.marks


def files(root: Path) -> list[Path]:
    return sorted((root / "states" / "transient").iterdir())


def test_a_name_tells_what_it_was_made_of() -> None:
    name = Name(12, "a" * 16, "b" * 32, "c" * 64)
    assert Name.of(str(name)) == name
    assert Name.of("notes.txt") is None


BANDS = {"g": 1, "r": 2}
SHAPE = [f"{band}.{what}" for band in BANDS for what in ("brightest", "spread", "rise", "count")]


def measured(history: list[dict[str, Any]]) -> dict[str, float | None]:
    """A few numbers of a light curve; None where a band has no two detections."""
    found: dict[str, float | None] = dict.fromkeys(SHAPE)
    for band, fid in BANDS.items():
        points = [(p["jd"], p["magpsf"]) for p in history if p["fid"] == fid and p["magpsf"] is not None]
        if len(points) > 1:
            days, magnitudes = np.array(sorted(points)).T
            rise = float(magnitudes[0] - magnitudes.min()) / max(
                1.0, float(days[magnitudes.argmin()] - days[0])
            )
            numbers = (float(magnitudes.min()), float(magnitudes.std()), rise, float(len(points)))
            found |= dict(zip((name for name in SHAPE if name[0] == band), numbers, strict=True))
    return found


@pytest.fixture(scope="module")
def real(data: Path) -> list[tuple[Label, Asked]]:
    """One lesson for each of 160 objects that TNS has typed."""
    rows = pq.read_table(data / "labelled" / "ztf_tns_lightcurves.parquet").slice(0, 160).to_pylist()
    told = []
    for number, row in enumerate(rows):
        kind = "SN" if row["tns_type"].startswith("SN Ia") else "AGN"
        label, asked = lesson(number, kind, object_id=f"ztf:{row['objectId']}")
        told.append((label, Asked(asked.alert_id, measured(row["history"]), 59000.0, pick=number % 5 == 0)))
    return told


def test_over_real_labels_whoever_is_killed_at_any_point_becomes_the_same(
    real: list[tuple[Label, Asked]], tmp_path: Path
) -> None:
    own = ModelSettings(
        classes=["AGN", "SN"], challengers={"bayes": ChallengerSettings(members=["naive_bayes"])}
    )
    never, _ = made(None, own, SHAPE)
    written = 0
    for number in (31, 66, 152):  # a change of scale, a refit and another kind of refit are among them
        killed, states = made(tmp_path, own, SHAPE)  # begins with what the one before left
        for label, asked in real[:number]:
            killed.hear(label, asked)
        assert killed.study(lambda: len(killed.lessons) % 10 or keep(states, killed)) == number - written  # noqa: B023
        written = number // 10 * 10
        tell(never, *real[:number])
        assert whole(killed) == whole(never)


def test_a_trainer_that_died_between_two_states_learns_only_what_came_after(tmp_path: Path) -> None:
    pupil, states = made(tmp_path)
    tell(pupil, *map(lesson, range(40)), states=states)
    tell(pupil, *map(lesson, range(40, 43)))  # learned, and no state written
    again, _ = made(tmp_path)
    assert tell(again, *map(lesson, range(50))) == 10
    tell(pupil, *map(lesson, range(43, 50)))
    assert whole(again) == whole(pupil)


def test_what_was_half_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pupil, states = made(tmp_path)
    tell(pupil, *map(lesson, range(20)), states=states)
    known = files(tmp_path)

    def dies(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(os, "fsync", dies)
    tell(pupil, *map(lesson, range(20, 30)))
    with pytest.raises(SystemExit):
        states._write(pupil.state(), pupil.marks)
    monkeypatch.undo()
    assert files(tmp_path) == known
    again, _ = made(tmp_path)
    assert tell(again, *map(lesson, range(30))) == 10
    assert whole(again) == whole(pupil)


@pytest.mark.parametrize("damage", [b"", b"\x00" * 900])
def test_a_damaged_state_is_said_and_the_one_before_it_used(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    pupil, states = made(tmp_path)
    tell(pupil, *map(lesson, range(40)), states=states)
    newest, before = sorted(files(tmp_path))[-1:-3:-1]
    newest.write_bytes(damage)
    again, _ = made(tmp_path)
    assert tell(again, *map(lesson, range(40))) == 40 - Name.of(before.name).lessons == 1  # type: ignore[union-attr]
    assert whole(again) == whole(pupil)
    assert "after 40 labels is not used: it is damaged" in caplog.text
    assert newest not in files(tmp_path)


def test_without_any_state_all_is_learned_again(tmp_path: Path) -> None:
    pupil, states = made(tmp_path)
    tell(pupil, *map(lesson, range(20)), states=states)
    for file in files(tmp_path):
        file.unlink()
    again, _ = made(tmp_path)
    assert tell(again, *map(lesson, range(20))) == 20
    assert whole(again) == whole(pupil)


def test_only_bytes_with_the_digest_of_their_name_are_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pupil, states = made(tmp_path)
    tell(pupil, *map(lesson, range(10)), states=states)
    for file in files(tmp_path):
        file.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    monkeypatch.setattr(module.pickle, "loads", lambda _: pytest.fail("unpickles what nobody vouches for"))
    again, _ = made(tmp_path)
    assert tell(again, *map(lesson, range(10))) == 10


OTHERS = {
    "seed": QUICK.model_copy(update={"seed": 1}),
    "members": QUICK.model_copy(update={"members": ["naive_bayes"]}),
    "thinning": QUICK.model_copy(update={"thinning_days": 1.0}),
    "challenger": QUICK.model_copy(update={"challengers": {"b": ChallengerSettings(members=["softmax"])}}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_state_of_other_settings_is_not_used(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    pupil, states = made(tmp_path)
    tell(pupil, *map(lesson, range(10)), states=states)
    other, _ = made(tmp_path, OTHERS[what])
    assert tell(other, *map(lesson, range(10))) == 10
    assert "of other packages, code or settings: it learns again" in caplog.text


@pytest.mark.parametrize("package", ["river", "scikit-learn", "raybroker"])
def test_a_state_of_another_version_is_not_used(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pupil, states = made(tmp_path)
    tell(pupil, *map(lesson, range(10)), states=states)
    installed = module.packages()
    assert package in installed
    monkeypatch.setattr(module, "packages", lambda: {**installed, package: "0.0.1"})
    again, _ = made(tmp_path)
    assert tell(again, *map(lesson, range(10))) == 10
    assert "of other packages" in caplog.text


def test_a_members_own_code_is_part_of_what_a_model_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_member_of_a_test.py").write_text("def make(seed): return seed\n")
    first = origin_of({}, ["own_member_of_a_test:make"])
    (tmp_path / "own_member_of_a_test.py").write_text("def make(seed): return seed + 1\n")
    module._code.cache_clear()
    module.inspect.linecache.clearcache()  # type: ignore[attr-defined]
    assert origin_of({}, ["own_member_of_a_test:make"]) != first != origin_of({}, [])


def test_other_features_of_the_same_label_make_another_mark(tmp_path: Path) -> None:
    pupil, states = made(tmp_path)
    tell(pupil, *map(lesson, range(10)), states=states)
    again, _ = made(tmp_path)
    label, asked = lesson(6)
    changed = (label, Asked(asked.alert_id, {**asked.features, "rise": 9.0}, asked.mjd))
    assert 10 > tell(again, *map(lesson, range(6)), changed, *map(lesson, range(7, 10))) >= 10 - 6


def test_a_deep_undo_goes_back_to_the_nearest_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pupil, states = made(tmp_path)
    tell(pupil, *map(lesson, range(200)), states=states)
    monkeypatch.setattr(pupil, "_states", [])
    undo = Label.of(
        {
            **lesson(120)[0].row(),
            "event_id": "undo",
            "label": None,
            "replaces": "event-120",
            "withdrawn": True,
        }
    )
    pupil.hear(undo, None)
    taught = pupil.study()
    assert 79 <= taught <= 2 * 79 + 2
    never, _ = made(None)
    tell(never, *(lesson(number) for number in range(200) if number != 120))
    assert whole(never) == whole(pupil)


def test_states_grow_apart_and_stay_few(tmp_path: Path) -> None:
    held: set[int] = set()
    rng, number = random.Random(1), 0
    for _ in range(2_000):
        number += rng.choice([1, 1, 1, 5, 50])
        held = kept({*held, number})
        back = [number - lessons for lessons in sorted(held, reverse=True)]
        assert back[0] == 0
        assert len(held) <= 30
    pupil, states = made(tmp_path)
    tell(pupil, *map(lesson, range(60)), states=states)
    found = [Name.of(file.name).lessons for file in files(tmp_path)]  # type: ignore[union-attr]
    assert len(found) <= 9
    assert found[-2:] == [59, 60]


def test_what_nobody_can_use_any_more_is_deleted(tmp_path: Path) -> None:
    pupil, states = made(tmp_path)
    tell(pupil, *map(lesson, range(20)), states=states)
    orphan, fresh = (files(tmp_path)[0].with_name(name) for name in (".old", ".new"))
    for file in (orphan, fresh):
        file.write_bytes(b"half")
    os.utime(orphan, (0, 0))
    assert ORPHAN_SECONDS < 3600
    other, others = made(tmp_path, OTHERS["seed"])
    tell(other, *map(lesson, range(5)), states=others)
    names = [Name.of(file.name) for file in files(tmp_path) if file != fresh]
    assert {name and name.origin for name in names} == {other.marks[0]}
    assert fresh.exists()
    assert not orphan.exists()


def test_a_full_disk_stops_no_learning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pupil, states = made(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "replace", full)
    tell(pupil, *map(lesson, range(10)), states=states)
    assert caplog.text.count("no state of transient is kept, learning goes on") == 1
    monkeypatch.undo()
    tell(pupil, lesson(10), states=states)
    assert len(files(tmp_path)) == 1


def test_it_is_not_written_more_often_than_it_may_be(tmp_path: Path) -> None:
    now = [0.0]
    pupil, _ = made(None)
    states = States(tmp_path, "transient", clock=lambda: now[0], seconds=0.5)
    assert not states.offer(pupil)  # nothing learned, nothing to keep
    tell(pupil, lesson(0))
    assert states.offer(pupil)
    states.wait()
    now[0] = 5.0
    assert not states.offer(pupil)  # the same again
    tell(pupil, lesson(1))
    assert states.offer(pupil)
    states.wait()
    tell(pupil, lesson(2))
    now[0] = 5.4
    assert not states.offer(pupil)
    states.close(pupil)  # the last is written all the same
    assert len(pupil.lessons) in [Name.of(file.name).lessons for file in files(tmp_path)]  # type: ignore[union-attr]


def test_an_anomaly_model_comes_back_on_its_background_only(tmp_path: Path) -> None:
    own = ModelSettings(task="anomaly")
    samples = [pa.Table.from_pylist([lesson(n)[1].features for n in range(m)]) for m in (40, 90)]
    told = [lesson(n, "interesting" if n % 4 else "ordinary", model="transient") for n in range(12)]
    pupil, states = made(tmp_path, own)
    pupil.grow(samples[0])
    tell(pupil, *told, states=states)
    assert b"_background" not in pupil.state()  # it is kept elsewhere, once
    again, _ = made(tmp_path, own)
    again.grow(samples[0])
    assert tell(again, *told) == 0
    assert whole(again) == whole(pupil)
    other, _ = made(tmp_path, own)
    other.grow(samples[1])
    assert tell(other, *told) == 12


def test_a_few_labels_are_learned_without_a_look_at_the_disk(tmp_path: Path) -> None:
    pupil, _ = made(None)
    pupil.older = lambda marks, beyond: pytest.fail("looks")
    assert tell(pupil, *map(lesson, range(pupils.FEW))) == pupils.FEW
