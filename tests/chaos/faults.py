"""One function per fault: it does the harm, waits until the harm is over, and says from when recovery counts.

What belongs to the fault alone is asserted here; that the books hold and that the lag goes is asserted for all of them
in `test_chaos`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import confluent_kafka as ck
from confluent_kafka import TopicPartition

from raybroker.alerts import Packet
from raybroker.errors import FencedError
from raybroker.stream.kafka import KafkaSink
from tests.chaos.ledger import KILLER
from tests.chaos.system import GROUP, NIGHT, PARTITIONS, SENT, SMALL, System, wait

OUT_OF_SIGHT = 8.0  # seconds: longer than the group waits for a silent member (6 s)
COMPACT = """
import sys, time
from pathlib import Path
from raybroker.archive import compact
until, merges, refused = time.time() + float(sys.argv[2]), 0, 0
while time.time() < until + (0 if merges or refused else 30):
    for found in compact.compact_all(Path(sys.argv[1])).values():
        merges, refused = merges + found.merges, refused + found.refused
print(merges, refused)
"""


def _always(system: System) -> bool:
    return True


@dataclass(frozen=True)
class Struck:
    """What was done: when it was over, what else was seen, and what else must be so before all is well."""

    at: float
    note: str = ""
    well: Callable[[System], bool] = _always


@dataclass(frozen=True)
class Fault:
    """A fault by the name that the table shows."""

    name: str
    strike: Callable[[System], Struck]
    seconds: float = 60.0  # the lag must be gone by then
    needs_disk: bool = False


# Processes.


def kill_worker(system: System) -> Struck:
    system.order("die")
    pid = system.taken("die")
    wait(lambda: pid not in {worker.pid for worker in system.processes("WorkerActor")}, 20, "the worker dies")
    return Struck(time.monotonic(), "its packets were polled and stored as a segment, and not committed")


def kill_trainer(system: System) -> Struck:
    """Its state is on the disk: what it had learned in the last second it may have to learn again."""
    (trainer,) = system.processes("TrainerActor")
    came, recorded = len(system.restored()), len(system.labels.recorded)
    trainer.kill()
    killed = time.monotonic()
    told = wait(lambda: system.restored()[came:], 60, "another trainer")
    kept, again, new = told[0]
    assert again <= 2, f"{again} labels were learned again"
    note = (
        f"{kept} labels restored, {again} learned again, {new} learned that the old one had not told of yet"
    )
    return Struck(killed, note, lambda system: system.learned() > recorded)


def kill_supervisor(system: System) -> Struck:
    process, starts = system.keeper.process, system.keeper.starts
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    killed = time.monotonic()
    wait(lambda: system.keeper.starts > starts, 20, "raybroker run is started again")
    return Struck(killed, "started again after a second, as systemd would", System.answers)


def kill_replica(system: System) -> Struck:
    replicas = system.processes("ServeReplica")
    assert replicas, "there is no Serve replica"
    for replica in replicas:
        replica.kill()
    return Struck(time.monotonic(), "", System.answers)


def lose_node(system: System) -> Struck:
    before = {process.pid for process in system.processes("")}
    system.nodes.do("remove")
    removed = time.monotonic()
    gone = before - {process.pid for process in system.processes("")}
    assert gone, "nothing ran on the node that was removed"
    return Struck(removed, f"{len(gone)} actors were on it", System.answers)


def add_node(system: System) -> Struck:
    system.nodes.do("add")
    return Struck(time.monotonic())


def kill_kafka(system: System) -> Struck:
    process = system.kafka.process
    assert process is not None
    process.kill()
    process.wait()
    time.sleep(2.0)
    system.kafka.start()
    return Struck(time.monotonic(), "the stream's and the outputs' broker, two seconds away and its start")


def kill_mlflow(system: System) -> Struck:
    logged = wait(system.mlflow.runs, 90, "a first release")
    system.mlflow.kill()
    stored = sum(system.positions_of(NIGHT).values())
    time.sleep(8.0)
    assert sum(system.positions_of(NIGHT).values()) > stored, "scoring waits for MLflow"
    system.mlflow.start()
    wait(system.mlflow.up, 90, "MLflow")
    return Struck(time.monotonic(), "releases wait for it", lambda s: s.mlflow.runs() > logged)


# The disk.


def fill_disk(system: System) -> Struck:
    ballast = system.disk / "ballast"
    with ballast.open("wb") as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4_000_000)
            file.flush()
    with (system.disk / "ballast-2").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    stored = sum(system.positions_of(NIGHT).values())
    time.sleep(10.0)
    grew = sum(system.positions_of(NIGHT).values()) - stored
    ballast.unlink()
    (system.disk / "ballast-2").unlink()
    return Struck(time.monotonic(), f"full for 10 s; {grew} alerts were still stored", System.answers)


def read_only(system: System) -> Struck:
    def remount(how: str) -> None:
        command = ["mount", "-o", f"remount,{how}", str(system.disk)]
        wait(lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0, 20, how, 0.01)

    remount("ro")
    time.sleep(10.0)
    remount("rw")
    return Struck(time.monotonic(), "for 10 s", System.answers)


# The stream.


def expire(system: System) -> Struck:
    """Both workers stand still while Kafka deletes what they have not read."""
    workers = system.processes("WorkerActor")
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        time.sleep(3.0)
        ends = system.produced.end(time.monotonic())
        stored = system.positions_of(NIGHT)
        admin = system.kafka.admin()
        cut = {n: ends[NIGHT, n] - 2 for n in range(PARTITIONS)}
        asked = admin.delete_records([TopicPartition(NIGHT, n, end) for n, end in cut.items()])
        for done in asked.values():
            done.result(10)
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGCONT)
    at = time.monotonic()
    wait(lambda: all(system.positions_of(NIGHT)[n] >= end for n, end in cut.items()), 60, "reading goes on")
    unread = _without_rows(system, stored, cut)
    assert unread, "nothing was lost: the workers had read all of it"
    system.ledger.expired.update((NIGHT, n, offset) for n, offset in unread)
    return Struck(at, f"{len(unread)} alerts deleted by Kafka unread, all of them reported")


def _without_rows(system: System, stored: dict[int, int], cut: dict[int, int]) -> list[tuple[int, int]]:
    rows = system.ledger.rows()
    known = {(row["partition"], row["offset"]) for row in rows if row["topic"] == NIGHT}
    return [
        (n, offset) for n, end in cut.items() for offset in range(stored[n], end) if (n, offset) not in known
    ]


def rebalance(system: System) -> Struck:
    """A member that takes partitions and gives them back, and so on."""
    times, until = 0, time.monotonic() + 15.0
    while time.monotonic() < until:
        with _member(system) as member:
            wait(lambda member=member: member.poll(0.1) or member.assignment(), 20, "a share", 0.0)  # type: ignore[misc]
        times += 1
        time.sleep(0.5)
    return Struck(time.monotonic(), f"a foreign member came and went {times} times")


@contextmanager
def _member(system: System) -> Iterator[ck.Consumer]:
    settings = {
        "bootstrap.servers": system.kafka.servers,
        "group.id": GROUP,
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 6_000,
        "heartbeat.interval.ms": 500,
        "enable.auto.commit": False,
        "auto.offset.reset": "latest",
        "log_level": 0,
    }
    member = ck.Consumer(settings)
    member.subscribe([NIGHT, SMALL])
    try:
        yield member
    finally:
        member.close()


def poison(system: System) -> Struck:
    """A packet that ends the process of whoever works on it: found by ever smaller turns, then dead."""
    packet, ident = system.load.special()
    system.order("killers", ident)
    system.load.extra.append((packet, KILLER))
    at = time.monotonic()
    wait(lambda: system.dead("kills the worker"), 150, "the packet is found", 1.0)
    (system.orders / "killers").unlink()
    return Struck(at, f"found and dead after {time.monotonic() - at:.0f} s")


def broken_packets(system: System) -> Struck:
    """They come all the time, one in a hundred; here they are counted."""
    wait(lambda: not system.ledger.behind(), 60, "the lag is gone")
    reasons = {row["reason"] for row in system.ledger.rows() if row["outcome"] == "dead"}
    assert reasons
    assert all(reasons), "a packet is dead without a reason"
    count = sum(row["outcome"] == "dead" for row in system.ledger.rows())
    return Struck(time.monotonic(), f"{count} so far, each dead with its reason")


def two_compactors(system: System) -> Struck:
    command = [sys.executable, "-c", COMPACT, str(system.archive), "8"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        said = [process.communicate(timeout=90)[0] for process in both]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert [process.returncode for process in both] == [0, 0], "a compactor failed"
    merges, refused = (sum(column) for column in zip(*(map(int, text.split()) for text in said), strict=True))
    assert merges + refused, "there was nothing to merge"
    return Struck(time.monotonic(), f"{merges} merges, and {refused} refused since the other was first")


def zombie(system: System) -> Struck:
    """A worker stands still in mid-turn until others have its partitions and are past it; then it goes on."""
    before = system.segments()
    system.order("stop")
    pid = system.taken("stop")
    ends = system.produced.end(time.monotonic())
    time.sleep(OUT_OF_SIGHT)
    moved = lambda: all(system.positions_of(NIGHT)[n] > ends[NIGHT, n] for n in range(PARTITIONS))  # noqa: E731
    try:
        wait(moved, 60, "another worker takes its partitions over")
    finally:
        os.kill(pid, signal.SIGCONT)
    at = time.monotonic()
    refused = _refused(system, before)
    return Struck(at, f"{refused} alerts in hand were refused by the archive")


def _refused(system: System, before: set[str]) -> int:
    """Packets in segments that were written since and that no row names: the zombie's, which came too late."""
    wait(lambda: not system.ledger.behind(), 60, "the lag is gone")
    system.ledger.positions()
    named = {row["segment"] for row in system.ledger.rows()}
    young = time.time() - 5.0  # the turns that are going on now
    orphans = [name for name in system.segments() - before - named if system.written(name) < young]
    count = sum(system.packets_of(name) for name in orphans)
    assert count, "the zombie had nothing in hand"
    return count


def fenced_sink(system: System) -> Struck:
    """A second writer of a partition's outputs: the worker takes the place back, and the other can write no more."""
    place = system.place(NIGHT, 0)
    other = KafkaSink(system.kafka.servers, prefix="raybroker/ztf/")
    other.emitted([place])  # the worker is the zombie now: its next transaction is refused
    struck = time.monotonic()
    stored = system.positions_of(NIGHT)[0]
    wait(lambda: system.positions_of(NIGHT)[0] > stored + 30, 60, "the worker takes the place back")
    try:
        other.write(place, {SENT: [Packet(b"", key=b"from a zombie")]}, 0)
    except FencedError:
        return Struck(struck, "both ways: a worker fenced by another, which it fenced in turn")
    finally:
        other.close()
    raise AssertionError("the zombie's transaction was taken")


def recreate_topic(system: System) -> Struck:
    """It has another id: its packets are read from its beginning, and those of the old one stay as they are."""
    system.load.small = False
    system.load.flush()
    wait(lambda: not system.ledger.behind(), 60, "the lag is gone")
    end = system.produced.end(time.monotonic())[SMALL, 0]
    wait(lambda: system.positions_of(SMALL).get(0, 0) >= end, 30, "the small topic is read to its end")
    known = len((system.folder / "log").read_text())
    system.kafka.delete_topic(SMALL)
    system.produced.forget(SMALL)
    system.kafka.topic(1, name=SMALL)
    system.learn_topic_ids()
    system.load.small = True
    struck = time.monotonic()
    wait(lambda: system.said("was deleted and made again", known), 60, "it is said")
    return Struck(struck, f"said; the {end} alerts of the old one stay as they are", System.answers)


FAULTS = [
    Fault("a broken packet in every hundred", broken_packets),
    Fault("kill -9 a worker in mid-turn", kill_worker),
    Fault("kill -9 the trainer", kill_trainer),
    Fault("kill -9 a Serve replica", kill_replica),
    Fault("a worker wakes after its partitions moved (zombie)", zombie),
    Fault("another writer of the outputs (zombie)", fenced_sink),
    Fault("two compactors at once", two_compactors),
    Fault("the group rebalances all the time", rebalance),
    Fault("a partition's old segments expire unread", expire),
    Fault("kill -9 the Kafka broker", kill_kafka),
    Fault("kill -9 MLflow", kill_mlflow),
    Fault("the archive is read-only for ten seconds", read_only, needs_disk=True),
    Fault("the disk is full for ten seconds", fill_disk, needs_disk=True),
    Fault("a Ray node is lost", lose_node),
    Fault("a Ray node comes", add_node),
    Fault("a packet that kills the worker", poison),
    Fault("kill -9 the supervisor", kill_supervisor),
    Fault("a topic is made again", recreate_topic),
]
