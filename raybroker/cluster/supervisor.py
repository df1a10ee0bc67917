"""Ray around workers and trainer: one turn outstanding per actor, and what to do when one dies.

The supervisor lives in the process of `raybroker run`. It asks each worker for a turn, waits for any, and asks again;
a turn is heartbeat, metrics, back-pressure and crash detection in one. Scaling in is not asking for another turn.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

# Ray reads these once, when it is imported; its defaults differ from one entry point to the next.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")

import ray
from ray.exceptions import RayActorError, RayError

from raybroker.cluster import assemble
from raybroker.cluster.caution import Caution, Taken
from raybroker.cluster.lesson import Lesson
from raybroker.cluster.tally import Tally
from raybroker.cluster.worker import Report
from raybroker.errors import RaybrokerError
from raybroker.settings import Settings

log = logging.getLogger("raybroker")

# Libraries run single-threaded inside an actor; glibc keeps the memory of one turn for the next (page faults cost
# more than the decoding does).
ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "RAYON_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "POLARS_MAX_THREADS",
    ),
    "1",
)
MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_ARENA_MAX": "2",
}
START_SECONDS = 180.0
LEARN_SECONDS = 3600.0  # a trainer that comes back learns all labels again: 2,000 of them in about a minute
BACK_OFF = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)


def start_ray(settings: Settings, cpus: int | None = None) -> None:
    """A private Ray on this machine, or the cluster at `ray.address`; always with a token."""
    own = settings.ray
    if own.address != "local":
        ray.init(address=own.address, namespace="raybroker", log_to_driver=False)
        return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    ray.init(
        address="local",
        namespace="raybroker",
        num_cpus=cpus or max(4, os.cpu_count() or 1),
        object_store_memory=own.object_store_megabytes * 1_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )


@ray.remote(max_restarts=0)
class WorkerActor:
    """A worker in a process of its own."""

    def __init__(self, settings: Settings, survey: str, index: int) -> None:
        logging.basicConfig(level=logging.INFO)
        self.worker, self.models = assemble.worker(settings, survey, index)

    def ready(self) -> int:
        return os.getpid()

    def take(self, limit: int | None, snapshots: Mapping[str, tuple[int, str]]) -> Taken:
        self.worker.pin(self.models.newer(snapshots))
        return self.worker.take(limit)

    def finish(self, dead: Mapping[tuple[str, int, int], str]) -> Report:
        return self.worker.finish(dead)

    def close(self) -> None:
        self.worker.close()


@ray.remote(max_restarts=0)
class TrainerActor:
    """The trainer in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        logging.basicConfig(level=logging.INFO)
        self.trainer = assemble.trainer(settings)

    def ready(self) -> int:
        return os.getpid()

    def turn(self) -> Lesson:
        return self.trainer.turn()

    def close(self) -> None:
        self.trainer.close()


@dataclass
class Seat:
    """A place for one actor: who sits there now, what it was asked, and how often it died."""

    name: str
    survey: str = ""  # empty: the trainer's
    index: int = 0
    actor: Any = None
    pid: int = 0
    asked: float = 0.0
    taken: Any = None  # reference to what the turn took
    answer: Any = None  # reference to what we wait for
    deaths: int = 0
    free_from: float = 0.0
    drained: bool = False


@dataclass
class Supervisor:
    """Keeps the workers of every survey, and the trainer, at their turns."""

    settings: Settings
    tally: Tally = field(default_factory=Tally)
    snapshots: dict[str, tuple[int, str]] = field(default_factory=dict)
    lesson: Lesson | None = None
    troubles: dict[str, str] = field(default_factory=dict)  # by seat: what keeps it from working

    def __post_init__(self) -> None:
        self.cautions = {name: Caution() for name in self.settings.surveys}
        self.seats = [
            Seat(f"{name}-{index}", name, index)
            for name, own in self.settings.surveys.items()
            for index in range(own.workers)
        ]
        if self.settings.models:
            self.seats.append(Seat("trainer"))

    def step(self, seconds: float = 0.2) -> list[Report]:
        """Ask whoever is free, wait for any answer at most this long, and deal with what came."""
        now = time.monotonic()
        for seat in self.seats:
            if seat.answer is None and now >= seat.free_from:
                self._ask(seat)
        waiting = {seat.answer: seat for seat in self.seats if seat.answer is not None}
        if not waiting:
            time.sleep(seconds)
            return []
        done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        if not done:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=seconds)
        reports = [report for answer in done for report in self._receive(waiting[answer])]
        self._overdue()
        return reports

    def _ask(self, seat: Seat) -> None:
        seat.asked = time.monotonic()
        if seat.actor is None:
            seat.actor = self._hire(seat)
            seat.taken, seat.answer = None, seat.actor.ready.remote()
        elif not seat.survey:
            seat.answer = seat.actor.turn.remote()
        else:
            caution = self.cautions[seat.survey]  # type: ignore[index]
            seat.taken = seat.actor.take.remote(caution.limit, self.snapshots)
            seat.answer = seat.actor.finish.remote(caution.dead)

    def _hire(self, seat: Seat) -> Any:
        options = {
            "num_cpus": self.settings.ray.cpus_per_worker,
            "runtime_env": {"env_vars": ONE_THREAD | MEMORY},
        }
        if not seat.survey:
            return TrainerActor.options(**options).remote(self.settings)
        return WorkerActor.options(**options).remote(self.settings, seat.survey, seat.index)

    def _receive(self, seat: Seat) -> Iterator[Report]:
        answer, seat.answer = seat.answer, None
        try:
            if seat.taken is not None:
                ray.get(seat.taken)
            result = ray.get(answer)
        except (RayError, RaybrokerError) as error:
            self._lost(seat, error)
            return
        if isinstance(result, int):
            seat.pid = result
        elif isinstance(result, Lesson):
            self.lesson = result
            self.snapshots.update(result.snapshots)
        else:
            self.cautions[seat.survey].finished(result.taken)  # type: ignore[index]
            self.tally.add(seat.name, result)
            seat.drained = result.drained
            yield result
        seat.deaths = 0 if not isinstance(result, int) else seat.deaths
        self.troubles.pop(seat.name, None)

    def _lost(self, seat: Seat, error: Exception, reason: str = "kills the worker") -> None:
        """An actor died or raised: note what it had in hand, and start another after a while."""
        died = isinstance(error, RayActorError)
        taken = _ready(seat.taken)
        if isinstance(error, RaybrokerError):  # the stream or the archive, not a packet
            self.troubles[seat.name] = _last_line(error)
        elif not seat.pid:
            self.troubles[seat.name] = f"cannot start: {_last_line(error)}"
        elif seat.survey:
            why = reason if died else f"stops the worker: {_last_line(error)}"
            self.cautions[seat.survey].lost(taken, why)  # type: ignore[index]
        log.warning(
            "%s (process %d) is lost with %s in hand: %s", seat.name, seat.pid, taken, _last_line(error)
        )
        if not died and seat.actor is not None:
            ray.kill(seat.actor)
        self.tally.deaths += 1
        wait = BACK_OFF[min(seat.deaths, len(BACK_OFF) - 1)]
        seat.deaths += 1
        seat.drained, seat.pid = False, 0
        seat.actor, seat.taken, seat.answer, seat.free_from = None, None, None, time.monotonic() + wait

    def _overdue(self) -> None:
        limit = self.settings.turn.seconds + self.settings.turn.deadline_seconds
        for seat in self.seats:
            starting = START_SECONDS if seat.survey else LEARN_SECONDS
            allowed = limit if seat.taken is not None else starting
            if seat.answer is not None and time.monotonic() - seat.asked > allowed:
                ray.kill(seat.actor)
                reason = f"overruns the deadline of {self.settings.turn.deadline_seconds:g} s"
                self._lost(seat, RayActorError(error_msg=reason), reason)

    @property
    def ready(self) -> bool:
        """Whether every actor has started."""
        return all(seat.pid for seat in self.seats)

    def drained(self) -> bool:
        """Whether every worker has polled all that was there when its partitions were assigned."""
        return all(seat.drained for seat in self.seats if seat.survey)

    def stop(self, seconds: float = 8.0) -> list[Report]:
        """Let every turn end, then let the actors leave."""
        until = time.monotonic() + seconds
        busy = {seat.answer: seat for seat in self.seats if seat.answer is not None and seat.pid}
        done, _ = ray.wait(list(busy), num_returns=len(busy), timeout=seconds) if busy else ([], [])
        reports = [report for answer in done for report in self._receive(busy[answer])]
        closing = [seat.actor.close.remote() for seat in self.seats if seat.actor is not None and seat.pid]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=max(0.5, until - time.monotonic()))
        for seat in self.seats:
            if seat.actor is not None:
                ray.kill(seat.actor)
        return reports


def _ready(reference: Any) -> Taken:
    """What a lost worker had taken, if it got that far."""
    if reference is None or not ray.wait([reference], timeout=0)[0]:
        return {}
    try:
        return ray.get(reference)
    except RayError:
        return {}


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def stop_ray() -> None:
    """Leave the cluster; a private one ends with us."""
    ray.shutdown()
