import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raybroker import alerts
from raybroker.alerts import Packet
from raybroker.archive import compact, provenance, segments
from raybroker.archive.events import EventLog
from raybroker.archive.lookup import Lookup
from raybroker.cluster import worker as module
from raybroker.filters.where import where
from raybroker.scores.online import score
from raybroker.step import enrich, filter
from raybroker.stream.memory import MemorySink, MemorySource
from raybroker.stream.packets import Gap, Place
from tests.cluster.worlds import TOPIC, pipeline, placed, worker

NIGHT = "public_20181129"


@pytest.fixture
def packets(ztf_packets):  # type: ignore[no-untyped-def]
    return placed(ztf_packets(NIGHT))


def rows_of(made: module.Worker) -> list[dict]:
    return made.books.table.read()[0].to_pylist()


def offsets(rows: list[dict]) -> Counter:
    return Counter((row["partition"], row["offset"]) for row in rows)


def test_a_night_adds_up_and_the_two_cuts_keep_291(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    made = worker(tmp_path, packets)
    report = made.turn()
    assert report.alerts == 498
    assert report.outcomes == {"scored": 291, "rejected": 207}
    assert report.reasons == {"rejected: real": 207}
    assert report.lag == 0
    assert {"poll", "segment", "decode", "pipeline", "step:basic", "commit"} <= set(report.seconds)
    assert offsets(rows_of(made)) == Counter((p.partition, p.offset) for p in packets)


def test_what_waits_is_told_of_each_partition_with_and_without_packets(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    made = worker(tmp_path, packets)
    report = made.turn(limit=98)
    assert sum(report.lags.values()) == report.lag == 400
    made.turn()
    idle = made.turn()
    assert (report.lags.keys(), idle.lags) == (made.source.places.keys(), {(TOPIC, 0): 0, (TOPIC, 1): 0})


def test_the_aperture_cut_leaves_128(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    made = worker(tmp_path, packets, pipeline(names=("real", "good_pixels", "aperture")))
    assert made.turn().outcomes["scored"] == 128


def test_every_row_finds_its_packet(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    made = worker(tmp_path, packets)
    made.turn(limit=150)
    sent = {(p.partition, p.offset): p for p in packets}
    for row in rows_of(made):
        assert (
            segments.read(tmp_path / "ztf", row["segment"], row["position"])
            == sent[row["partition"], row["offset"]]
        )


def test_a_second_worker_goes_on_where_the_first_stopped(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    first = worker(tmp_path, packets)
    first.turn(limit=37)
    second = worker(tmp_path, packets)
    assert second.turn().alerts == 498 - 37
    assert offsets(rows_of(second)) == Counter((p.partition, p.offset) for p in packets)


def test_a_zombie_drops_its_turn_and_reads_on_from_the_archive(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    zombie = worker(tmp_path, packets)
    zombie.take(37)
    worker(tmp_path, packets).turn(limit=50)
    report = zombie.finish()
    assert report.fenced
    assert report.alerts == 0
    assert zombie.turn().alerts == 448
    assert offsets(rows_of(zombie)) == Counter((p.partition, p.offset) for p in packets)


@pytest.mark.parametrize("after", ["segment", "commit", "send"])
def test_dying_in_mid_turn_loses_nothing_and_repeats_nothing(
    tmp_path: Path, packets, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    sink = MemorySink()
    positive = where("positive", "flux > 0")
    victim = worker(tmp_path, packets, pipeline(positive), sink)

    def die(*arguments: object, **options: object) -> None:
        raise MemoryError("killed")

    if after == "segment":
        monkeypatch.setattr(victim.books, "commit", die)
    elif after == "commit":
        monkeypatch.setattr(victim.books, "route", die)
    else:
        monkeypatch.setattr(victim.source, "commit", die)
    with pytest.raises(MemoryError):
        victim.turn(limit=60)
    survivor = worker(tmp_path, packets, pipeline(positive), sink)
    while survivor.turn(limit=60).alerts:
        pass
    rows = rows_of(survivor)
    assert offsets(rows) == Counter((p.partition, p.offset) for p in packets)
    sent = Counter(packet.key.decode() for packet in sink.written["raybroker.positive"])
    assert sent == Counter(row["alert_id"] for row in rows if row["positive"])


def test_what_cannot_be_decoded_is_dead_with_its_bytes_and_a_reason(
    tmp_path: Path, packets, data: Path
) -> None:  # type: ignore[no-untyped-def]
    broken = [Packet(path.read_bytes()) for path in sorted((data / "broken").iterdir())]
    framed = Packet((data / "rubin" / "framed" / "lsst_v9_0_real_7912941781254298.bin").read_bytes())
    bad = [*broken, Packet(b""), Packet(None), Packet(os.urandom(500)), framed]
    given = placed([*packets[:5], *bad, *packets[5:10]], partitions=1)
    made = worker(tmp_path, given)
    outcomes = made.turn().outcomes
    assert sum(outcomes.values()) == len(given)
    dead = [row for row in rows_of(made) if row["outcome"] == "dead"]
    assert 5 <= len(dead) <= len(bad)
    assert {5 + len(broken) + i for i in range(4)} <= {row["offset"] for row in dead}
    for row in dead:
        assert len(row["reason"]) > 10
        assert segments.read(tmp_path / "ztf", row["segment"], row["position"]) == given[row["offset"]]


def test_a_failing_step_leaves_null_in_one_alert_and_its_reason_in_the_row(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    victim = "ztf:697251921215010004"

    @enrich(gives="float64")
    def touchy(alert_id, ra):  # type: ignore[no-untyped-def]
        if victim in alert_id.to_pylist():
            raise RuntimeError("not this one")
        return alerts.values(ra)

    rows = {r["alert_id"]: r for r in _turned(worker(tmp_path, packets, pipeline(touchy, names=("basic",))))}
    assert victim in rows, sorted(rows)[:5]
    assert (rows[victim]["outcome"], rows[victim]["touchy"]) == ("failed", None)
    assert rows[victim]["reason"] == "touchy: RuntimeError: not this one"
    assert Counter(row["outcome"] for row in rows.values()) == {"scored": 497, "failed": 1}
    assert sum(row["touchy"] is None for row in rows.values()) == 1


def _turned(made: module.Worker) -> list[dict]:
    made.turn()
    return rows_of(made)


def test_an_alert_that_comes_again_is_a_duplicate_and_is_scored_once(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    again = placed([*packets[:40], *packets[:10]], partitions=1)
    made = worker(tmp_path, again)
    assert made.turn(limit=45).outcomes["duplicate"] == 5
    successor = worker(tmp_path, again)
    assert successor.turn().outcomes == {"duplicate": 5}
    assert len({row["alert_id"] for row in rows_of(successor) if row["outcome"] != "duplicate"}) == 40


def test_a_packet_that_kills_workers_is_archived_unread(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    made = worker(tmp_path, packets)
    report = made.turn(limit=20, dead={(TOPIC, 1, 3): "kills the worker"})
    assert report.reasons["dead: kills the worker"] == 1
    dead = [row for row in rows_of(made) if row["outcome"] == "dead"]
    assert [(row["partition"], row["offset"]) for row in dead] == [(1, 3)]


def test_a_pinned_model_scores_with_its_number(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    class Half:
        def predict(self, features: pa.Table):  # type: ignore[no-untyped-def]
            from types import SimpleNamespace

            import numpy as np

            return SimpleNamespace(mixture=np.full((features.num_rows, 2), 0.5))

    made = worker(tmp_path, packets, pipeline(score("m", ("basic.snr",), ("a", "b"))))
    made.turn(limit=20)
    made.pin({"m": (7, Half())})
    report = made.turn()
    assert report.snapshots == {"m": 7}
    scores = Counter((row["m"]["a"], row["m"]["snapshot"]) for row in rows_of(made) if row["m"])
    assert set(scores) == {(None, None), (0.5, 7)}


def test_outputs_carry_what_passed(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    @filter
    def faint(flux):  # type: ignore[no-untyped-def]
        return pc.less(flux, 0)

    sink = MemorySink()
    made = worker(tmp_path, packets, pipeline(faint), sink)
    report = made.turn()
    assert report.sent == {"raybroker.faint": len(sink.written["raybroker.faint"])}
    assert report.sent["raybroker.faint"] == sum(bool(row["faint"]) for row in rows_of(made)) > 0


def test_an_alert_and_its_packet_are_found_by_id(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    made = worker(tmp_path, packets)
    made.turn()
    lookup = Lookup(tmp_path)
    row = rows_of(made)[17]
    assert lookup.alert(row["alert_id"])["offset"] == row["offset"]
    assert lookup.packet(row["alert_id"]).offset == row["offset"]


def test_turns_of_dead_packets_alone_stop_neither_workers_nor_compaction(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    given = placed([Packet(b"junk"), *packets[:20]], partitions=1)
    worker(tmp_path, given).turn(limit=1)
    successor = worker(tmp_path, given)
    assert successor.turn(limit=10).alerts == 10
    compact.compact(tmp_path / "ztf" / "alerts")
    assert worker(tmp_path, given).turn().alerts == 10


def test_the_plan_that_a_row_names_is_the_one_that_is_stored() -> None:
    made = pipeline(where("positive", "flux > 0"))
    assert provenance.digest_of(made.plan) == made.digest


def test_while_nothing_comes_the_hint_is_given_again(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    made = worker(tmp_path, packets[:20])
    made.turn()
    made.source.committed.clear()  # lost, as when partitions change hands
    made.turn()
    assert sorted(made.source.committed.values()) == [10, 10]


def test_a_partition_that_comes_back_is_known_with_what_another_worker_read_of_it(
    tmp_path: Path, packets
) -> None:  # type: ignore[no-untyped-def]
    again = placed([*packets[:30], *packets[20:25]], partitions=1)
    first = worker(tmp_path, again)
    first.turn(limit=10)
    worker(tmp_path, again).turn(limit=20)
    first.source.rewind()
    assert first.turn().outcomes == {"duplicate": 5}


def test_an_alert_in_two_partitions_is_kept_twice_and_read_once(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    one = next(row for row in _turned(worker(tmp_path / "first", packets)) if row["outcome"] == "scored")
    packet = next(p for p in packets if (p.partition, p.offset) == (one["partition"], one["offset"]))
    given = [replace(packet, partition=n, offset=0) for n in (0, 1)]
    rows = _turned(worker(tmp_path, given))
    assert [row["outcome"] for row in rows] == ["scored", "scored"]  # no partition knows of the other
    lookup = Lookup(tmp_path)
    assert len(lookup.object(one["object_id"])) == 1
    assert lookup.alert(one["alert_id"])["partition"] == rows[0]["partition"]
    for row in rows:
        assert segments.read(tmp_path / "ztf", row["segment"], row["position"]).value == packet.value


def test_offsets_that_hold_no_packet_are_noted_once_and_only_where_there_are_any(
    tmp_path: Path, packets
) -> None:  # type: ignore[no-untyped-def]
    given = [replace(packet, partition=0, offset=i + 3 * (i >= 10)) for i, packet in enumerate(packets[:20])]
    made = worker(tmp_path, given)
    assert made.turn(limit=10).no_record == 0
    assert not (tmp_path / "gaps").exists()
    report = made.turn()
    assert (report.no_record, report.expired, report.alerts) == (3, 0, 10)
    (event,) = EventLog(tmp_path, "gaps").read().to_pylist()
    assert (event["first"], event["end"], event["kind"]) == (10, 13, "no record")
    assert event["event_id"] == f"memory/{TOPIC}/0/10-13/no record"


def test_what_the_source_skipped_is_noted_with_its_reason_and_counted_when_it_is_archived(
    tmp_path: Path, packets
) -> None:  # type: ignore[no-untyped-def]
    made = worker(
        tmp_path, [replace(packet, partition=0, offset=i + 7) for i, packet in enumerate(packets[:5])]
    )
    (place,) = made.source.places.values()
    elsewhere = Gap(Place("c", "another", "another", 0), 0, 9)
    made.source.gaps += [Gap(place, 0, 4, "before"), Gap(place, 4, 6), elsewhere]
    report = made.turn()
    assert (report.expired, report.no_record) == (2, 1)
    kinds = {(row["first"], row["end"]): row["kind"] for row in EventLog(tmp_path, "gaps").read().to_pylist()}
    assert kinds == {(0, 4): "before", (4, 6): "expired", (6, 7): "no record"}
    assert made.source.gaps == [elsewhere]  # of a place that this turn did not move


def test_a_partition_without_packets_has_its_position_from_the_first_turn_on(tmp_path: Path, packets) -> None:  # type: ignore[no-untyped-def]
    made = worker(tmp_path, packets[:4])
    empty = Place("memory", "quiet", "quiet", 0)
    made.source.places["quiet", 0] = empty
    made.source._taken["quiet", 0] = 0
    made.source.reached[empty] = 5
    made.books.start([empty])
    made.turn()
    assert made.books.table.positions([empty.app_id]) == {empty.app_id: 5}
    before = made.books.table.read(["offset"])[1]
    made.turn()
    assert made.books.table.read(["offset"])[1] == before  # nothing moved: no commit


def test_only_what_a_place_itself_left_unsent_is_sent_again(
    tmp_path: Path, packets, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    made, sink = pipeline(where("positive", "flux > 0")), MemorySink()

    def reading(given: list[Packet], cluster: str) -> module.Worker:
        one = worker(tmp_path, [], made, sink)
        one.source = MemorySource(given, one.books.start, cluster)  # another cluster: as a topic made again
        return one

    old = reading(placed(packets[:200], partitions=1), "old")
    old.turn()
    sent = len(sink.written["raybroker.positive"])
    victim = reading(placed(packets[200:400], partitions=1), "new")
    victim.turn(limit=50)
    with monkeypatch.context() as dying:
        dying.setattr(victim.books, "route", _die)
        with pytest.raises(MemoryError):
            victim.turn(limit=50)
    reading(placed(packets[200:400], partitions=1), "new")
    rows = rows_of(old)
    passed = sum(bool(row["positive"]) for row in rows)
    assert len(rows) == 300
    assert len(sink.written["raybroker.positive"]) == passed > sent


def _die(*arguments: object, **options: object) -> None:
    raise MemoryError("killed")
