from __future__ import annotations

import datetime
import itertools
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raybroker.archive import compact, delta, events
from raybroker.archive.events import EventLog
from raybroker.errors import ArchiveError, UnknownError

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
spawn = multiprocessing.get_context("spawn")


def label(event_id: str, **more: object) -> dict[str, object]:
    return {"event_id": event_id, "model": "m", "alert_id": "ztf:1", "label": "SN Ia", "when": NOW} | more


def test_an_appended_label_is_there_for_the_next_reader(tmp_path: Path) -> None:
    EventLog(tmp_path, "labels").append([label("a", label=None, who="me")])
    (found,) = events.dicts(EventLog(tmp_path, "labels").read())
    assert (found["event_id"], found["label"], found["who"], found["when"]) == ("a", None, "me", NOW)


def test_a_query_keeps_its_features_and_probabilities(tmp_path: Path) -> None:
    query = {
        "event_id": "q",
        "query_id": "q",
        "features": {"age": 1.5, "rate": None},
        "classes": ["a", "b"],
        "probabilities": [{"member": "tree", "probabilities": [0.25, 0.75]}],
        "state": "open",
    }
    log = EventLog(tmp_path, "queries")
    log.append_new([query])
    (found,) = events.dicts(log.read())
    assert {key: found[key] for key in query} == query


def test_an_event_id_is_added_once(tmp_path: Path) -> None:
    one, other = EventLog(tmp_path, "labels"), EventLog(tmp_path, "labels")
    assert one.append_new([label("a"), label("b"), label("a", label="AGN")]) == ["a", "b"]
    assert other.append_new([label("b"), label("c")]) == ["c"]
    assert one.append_new([label("c")]) == []
    assert sorted(one.read(["event_id"])["event_id"].to_pylist()) == ["a", "b", "c"]


def test_readers_drop_what_was_appended_twice(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "labels")
    log.append([label("a", label="first")])
    log.append([label("a", label="second")])
    assert log.read(["label"])["label"].to_pylist() == ["first"]


def add_ids(root: Path, ids: list[str], added: object) -> None:
    log = EventLog(root, "labels")
    for event_id in ids:
        added.put(log.append_new([label(event_id)]))  # type: ignore[attr-defined]


def test_of_several_processes_one_adds_an_id(tmp_path: Path) -> None:
    ids = [f"e{i}" for i in range(15)]
    added = spawn.Queue()
    orders = [ids, ids[::-1], ids]
    workers = [spawn.Process(target=add_ids, args=(tmp_path, order, added)) for order in orders]
    for worker in workers:
        worker.start()
    taken = [event_id for _ in range(45) for event_id in added.get(timeout=60)]
    for worker in workers:
        worker.join(60)
    assert sorted(taken) == sorted(ids)
    log = delta.open_table(tmp_path / "labels")
    assert sum(file.rows for file in delta.live(log)) == 15


def test_an_id_that_another_adds_between_check_and_commit_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = EventLog(tmp_path, "labels"), EventLog(tmp_path, "labels")
    learn = slow._learn_known

    def learn_then_lose_the_race() -> None:
        learn()
        quick.append_new([label("a")])

    monkeypatch.setattr(slow, "_learn_known", learn_then_lose_the_race)
    assert slow.append_new([label("a"), label("b")]) == ["b"]
    assert sum(file.rows for file in delta.live(delta.open_table(slow.folder))) == 2


def test_threads_may_share_a_log(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "labels")
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda i: log.append_new([label(f"e{i % 10}")]), range(30)))
    assert sorted(itertools.chain.from_iterable(added)) == sorted(f"e{i}" for i in range(10))


def test_numbers_are_never_given_twice(tmp_path: Path) -> None:
    one, other = EventLog(tmp_path, "snapshots"), EventLog(tmp_path, "snapshots")
    assert [one.take_number("m"), other.take_number("m"), one.take_number("m")] == [1, 2, 3]
    assert other.take_number("another") == 1
    assert EventLog(tmp_path, "snapshots").take_number("m") == 4


def test_the_tail_skips_compaction_and_ids_stay_known(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "labels")
    for i in range(10):
        log.append_new([label(f"e{i}")])
    _, version = log.tail(-1)
    done = compact.compact(log.folder)
    assert (done.merges, done.live) == (1, 1)
    assert len(log.tail(version)[0]) == 0
    assert log.append_new([label("e3"), label("new")]) == ["new"]
    assert EventLog(tmp_path, "labels").append_new([label("e3")]) == []
    assert log.tail(version, ["event_id"])[0]["event_id"].to_pylist() == ["new"]
    assert log.read(["event_id"])["event_id"].to_pylist() == [*(f"e{i}" for i in range(10)), "new"]


def test_an_event_needs_an_id_and_known_keys(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "labels")
    with pytest.raises(ArchiveError, match="no 'event_id'"):
        log.append([{"label": "x"}])
    with pytest.raises(ArchiveError, match="did you mean 'label'"):
        log.append([label("a", lable="x")])
    with pytest.raises(UnknownError, match="did you mean 'labels'"):
        EventLog(tmp_path, "label")


def test_topics_are_known_from_their_first_sight(tmp_path: Path) -> None:
    assert events.note_topics(tmp_path, [("c", "ztf_1", "id1")], NOW) == ["c/id1"]
    later = NOW + datetime.timedelta(days=1)
    assert events.note_topics(tmp_path, [("c", "ztf_1", "id1"), ("c", "ztf_1", "id2")], later) == ["c/id2"]
    assert [(t["topic_id"], t["first_seen"]) for t in events.known_topics(tmp_path)] == [
        ("id1", NOW),
        ("id2", later),
    ]
