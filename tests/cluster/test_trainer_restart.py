"""What a trainer learns again when it comes back, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raybroker.archive import provenance
from raybroker.archive.events import EventLog, dicts
from raybroker.cluster.trainer import Trainer
from tests.cluster.test_trainer import (
    MODEL,
    answer,
    answered,
    digest,
    night,
    open_queries,
    root,
    trainer,
    truth,
)

__all__ = ["night", "root"]  # fixtures


def keeping(root: Path) -> Trainer:
    """After its first turn; a state is kept at every turn."""
    made = trainer(root)
    made.states[MODEL].seconds = 0.0
    made.turn()
    return made


def lessons_at_start(made: Trainer) -> tuple[int, int]:
    lesson = made._lesson(0, 0.0)
    return lesson.restored[MODEL], lesson.relearned[MODEL]


def test_a_trainer_that_comes_back_learns_only_what_no_state_knows(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "raybroker")
    made = keeping(root)
    answered(root, made, 9)
    made.states[MODEL].close(made.pupils[MODEL])
    made.states[MODEL].offer = lambda pupil: False  # type: ignore[method-assign]
    answered(root, made, 1)  # published, and killed before its state was written
    query = open_queries(root)[0]
    answer(root, query, truth(query))  # heard by nobody
    again = trainer(root)
    assert lessons_at_start(again) == (9, 1)
    assert "restored 9 labels of transient, learned 1 again and 1 that no snapshot names" in caplog.text
    made.turn()
    assert digest(again) == digest(made)
    assert again.pupils[MODEL].marks == made.pupils[MODEL].marks


def test_a_state_that_is_ahead_of_the_last_snapshot_is_published_by_the_next_trainer(root: Path) -> None:
    made = keeping(root)
    answered(root, made, 5)
    number = made.newest[MODEL].number
    made._publish = lambda pupil: None  # type: ignore[method-assign]
    answered(root, made, 1)  # learned and kept, and killed before it was published
    made.states[MODEL].close(made.pupils[MODEL])
    again = trainer(root)
    assert lessons_at_start(again) == (6, 0)
    assert digest(again) == digest(made)
    assert again._lesson(0, 0.0).snapshots[MODEL][0] == number
    assert again.turn().snapshots[MODEL] == (
        number + 1,
        provenance.name_of(made.pupils[MODEL].frozen.snapshot()),
    )
    rows = dicts(EventLog(root, "snapshots").read())
    assert [len(row["learned"]) for row in rows if row["number"] == number + 1] == [1]


def test_whoever_dies_over_many_labels_has_learned_some_of_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = keeping(root)
    pupil, states = made.pupils[MODEL], made.states[MODEL]
    for query in open_queries(root)[:8]:
        answer(root, query, truth(query))
    offer, teach = states.offer, pupil._teach
    monkeypatch.setattr(states, "offer", lambda model: (offer(model), states.wait()))

    def dies(*given: Any) -> None:
        if len(pupil.lessons) == 6:
            raise KeyboardInterrupt
        teach(*given)

    monkeypatch.setattr(pupil, "_teach", dies)
    with pytest.raises(KeyboardInterrupt):
        made.turn()
    again = trainer(root)
    assert lessons_at_start(again) == (6, 0)
    assert len(again.pupils[MODEL].lessons) == 8
