from pathlib import Path

import pytest

from raybroker.cluster.heartbeat import Heartbeat


def test_a_beat_is_read_back_and_an_old_one_is_a_problem(tmp_path: Path) -> None:
    now = [1000.0]
    heart = Heartbeat(tmp_path, lambda: now[0])
    assert heart.problems() == ["the workers' supervisor was never heard"]
    heart.beat({"lag": 3})
    assert heart.read() == {"heartbeat": 1000.0, "lag": 3}
    assert heart.problems() == []
    now[0] += 20
    assert heart.problems() == ["the workers' supervisor was last heard 20 s ago"]


def test_an_archive_that_cannot_be_written_or_read_is_told_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    heart = Heartbeat(tmp_path / "file" / "archive")
    for _ in range(3):
        heart.beat({})
    assert caplog.text.count("the heartbeat could not be written") == 1
    assert heart.read() == {}
    (problem,) = heart.problems()
    assert problem.startswith("the archive cannot be read: ")


def test_what_keeps_a_worker_from_working_is_a_problem(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path)
    heart.beat({"troubles": {"ztf-0": "topic 'x' was made again"}})
    assert heart.problems() == ["ztf-0: topic 'x' was made again"]
