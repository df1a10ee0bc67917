"""The supervisor over a real Ray of two nodes on this machine, with actors that do nothing but what a test asks of them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raybroker.cluster import supervisor
from raybroker.cluster.scaling import State
from raybroker.cluster.seats import Seat
from raybroker.cluster.supervisor import Supervisor
from raybroker.cluster.worker import Report
from raybroker.errors import SettingsError, StreamError
from raybroker.settings import parse

ONE = {"surveys": {"ztf": {"workers": 1}}}
ONE_TO_THREE = {"surveys": {"ztf": {"workers": 1, "most_workers": 3}}, "ray": {"cpus_per_worker": 1.0}}


class Dummy:
    """A worker that takes one packet a turn; files in `folder` tell it what to do, and what it did."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.offset = folder, name, 0

    def placed(self) -> int:
        return os.getpid()

    def ready(self) -> int:
        return os.getpid()

    def take(self, limit: int | None, snapshots: Any) -> dict[tuple[str, int], tuple[int, int]]:
        self.offset += 1
        if (self.folder / f"poison-{self.name}").exists():
            os._exit(1)
        return {("t", 0): (self.offset, self.offset)}

    def finish(self, dead: Any) -> Report:
        time.sleep(0.02)
        trouble = "the disk is full" if (self.folder / "full").exists() else ""
        return Report(
            taken={("t", 0): (self.offset, self.offset)}, outcomes=Counter(scored=1), lag=7, trouble=trouble
        )

    def close(self) -> None:
        (self.folder / f"closed-{self.name}").touch()


@dataclasses.dataclass
class Crew(Supervisor):
    """A supervisor that hires dummies."""

    folder: Path = Path()

    def _hire(self, seat: Seat) -> Any:
        options = {"num_cpus": self.settings.ray.cpus_per_worker, "max_restarts": 0}
        return supervisor.ray.remote(Dummy).options(**options).remote(self.folder, seat.name)

    def until(self, what: Callable[[], bool], seconds: float = 180.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, (self.told(), self.troubles)
            self.step(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and nothing else yet; nodes are added by the tests."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="rb", dir="/tmp")
    system = {
        "health_check_initial_delay_ms": 500,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 5_000,
        "health_check_failure_threshold": 4,
    }
    head = {"num_cpus": 0, "_system_config": system, "include_dashboard": False, "temp_dir": folder}
    os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)
    made = Cluster(initialize_head=True, head_node_args=head)
    supervisor.ray.init(
        address=made.address, namespace="raybroker", log_to_driver=False, logging_level="ERROR"
    )
    yield made
    supervisor.ray.shutdown()
    made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Crew]]:
    made: list[Crew] = []

    def hire(tree: dict[str, Any]) -> Crew:
        made.append(Crew(parse(tree), folder=tmp_path))
        return made[-1]

    yield hire
    for one in made:
        one.stop(5.0)


@pytest.mark.ray
def test_who_waits_for_a_node_has_not_crashed_and_works_when_one_comes(
    cluster: Any, crew: Callable[..., Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "START_SECONDS", 0.5)
    monkeypatch.setattr(supervisor, "TELL_WAITING_SECONDS", 1.0)
    one = crew(ONE)
    one.until(lambda: "ztf-0" in one.troubles)
    assert "waits for a node with room" in one.troubles["ztf-0"]
    assert one.told()["seats"]["ztf-0"]["state"] == "waits for a node with room"
    assert one.tally.deaths == 0
    monkeypatch.setattr(supervisor, "START_SECONDS", 60.0)
    node = cluster.add_node(num_cpus=2)
    one.until(lambda: one.tally.turns > 3)
    assert (one.troubles, one.tally.deaths) == ({}, 0)
    pid = one.seats[0].pid
    other = cluster.add_node(num_cpus=2)
    cluster.remove_node(node, allow_graceful=False)
    one.until(lambda: one.seats[0].pid not in (0, pid))
    turns = one.tally.turns
    one.until(lambda: one.tally.turns > turns + 2)
    assert (one.seats[0].deaths, one.cautions["ztf"].limit) == (0, None)  # the node's fault, no packet's
    assert one.tally.deaths == 1
    cluster.keep = other


@pytest.mark.ray
def test_one_that_dies_again_and_again_is_tried_ever_later_and_a_trouble_outside_kills_nobody(
    cluster: Any, crew: Callable[..., Crew], tmp_path: Path
) -> None:
    one = crew(ONE)
    one.until(lambda: one.tally.turns > 0)
    (tmp_path / "poison-ztf-0").touch()
    one.until(lambda: one.seats[0].deaths >= 3, 120)
    assert "died 3 times in a row" in one.troubles["ztf-0"]
    told = one.told()["seats"]["ztf-0"]
    assert (told["deaths_in_a_row"], told["state"]) == (3, "rests")
    assert 0 < told["next_try_seconds"] <= 2.0
    (tmp_path / "poison-ztf-0").unlink()
    one.until(lambda: not one.seats[0].deaths)
    assert one.troubles == {}
    deaths = one.tally.deaths
    (tmp_path / "full").touch()
    one.until(lambda: bool(one.troubles))
    assert one.troubles == {"ztf-0": "the disk is full"}
    (tmp_path / "full").unlink()
    one.until(lambda: not one.troubles)
    assert one.tally.deaths == deaths  # who met it stays


def test_a_wrong_setting_ends_the_start_and_later_it_is_a_trouble() -> None:
    made = Supervisor(parse({"surveys": {"ztf": {"workers": 2}}}))
    first, second = made.seats
    with pytest.raises(SettingsError, match="wrong"):
        made._lost(second, SettingsError("surveys.ztf: wrong"))
    first.served = True  # the settings are right here: a node lacks something
    made._lost(second, SettingsError("no such file"))
    assert made.troubles == {"ztf-1": "cannot start: no such file"}
    assert (second.deaths, made.tally.deaths) == (1, 1)


def test_what_is_no_packets_fault_suspects_no_packet() -> None:
    made = Supervisor(parse(ONE))
    (seat,) = made.seats
    seat.pid = 17
    made._lost(seat, StreamError("Kafka refuses"))
    assert made.troubles == {"ztf-0": "Kafka refuses"}
    made._lost(seat, StreamError("Kafka refuses"))
    assert "died 2 times in a row" in made.troubles["ztf-0"]
    assert made.cautions["ztf"].limit is None


@pytest.mark.ray
def test_it_grows_and_shrinks_and_who_leaves_closes_first(
    cluster: Any, crew: Callable[..., Crew], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.add_node(num_cpus=2)
    wanted = {"size": 3}
    monkeypatch.setattr(supervisor.scaling, "target", lambda state, seen, limits: State(wanted["size"]))
    monkeypatch.setattr(supervisor, "SCALE_SECONDS", 0.05)
    one = crew(ONE_TO_THREE)
    one.until(lambda: len(one.seats) == 3 and one.ready and one.tally.turns > 5)
    assert one.lag("ztf") == 7 * len(one.tally.lags)
    wanted["size"] = 1
    one.until(lambda: len(one.seats) == 1)
    assert [seat.name for seat in one.seats] == ["ztf-0"]
    assert {path.name for path in tmp_path.glob("closed-*")} == {"closed-ztf-1", "closed-ztf-2"}
    assert set(one.tally.lags) == {"ztf-0"}
    turns = one.tally.turns
    one.until(lambda: one.tally.turns > turns + 2)
    assert one.tally.deaths == 0


def test_a_trainer_that_learns_all_its_labels_again_is_given_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Supervisor(parse(ONE))
    asked = time.monotonic() - 1_000.0
    worker, trainer = (
        Seat(name, survey, actor=object(), asked=asked, answer=1)
        for name, survey in (("ztf-0", "ztf"), ("trainer", ""))
    )
    made.seats = [worker, trainer]
    killed: list[Any] = []
    monkeypatch.setattr(supervisor.ray, "kill", killed.append)
    made._overdue(time.monotonic())
    assert len(killed) == 1
    assert worker.actor is None
    assert trainer.actor is not None


def test_at_the_start_the_workers_come_before_the_trainer(tmp_path: Path) -> None:
    tree = ONE | {"models": {"m": {"classes": ["a", "b"]}}, "archive": {"root": str(tmp_path)}}
    made = Supervisor(parse(tree))
    worker, trainer = made.seats
    now = time.monotonic()
    assert made._may_come(worker, now)
    assert not made._may_come(trainer, now)
    assert made._may_come(trainer, now + supervisor.GATE_SECONDS + 1)
    worker.pid = 17
    assert made._may_come(trainer, now)


def test_a_private_ray_has_room_for_all_that_may_come() -> None:
    tree = {"surveys": {"ztf": {"workers": 2, "most_workers": 40}}, "service": {"most_replicas": 5}}
    assert supervisor.room(parse(tree)) == 22  # 0.5 x 41 + 0.2 x 5
