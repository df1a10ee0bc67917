"""Ray around workers and trainer: one turn outstanding per actor, and what to do when one dies.

The supervisor lives in the process of `raybroker run`. It asks each worker for a turn, waits for any, and asks again;
a turn is heartbeat, metrics, back-pressure and crash detection in one. Scaling in is not asking for another turn.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

# Ray reads these once, when it is imported; its defaults differ from one entry point to the next.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayActorError, RayError

from raybroker.cluster import actors, incidents, scaling
from raybroker.cluster.caution import Caution, Taken
from raybroker.cluster.lesson import Lesson
from raybroker.cluster.seats import TELL_WAITING_SECONDS, Seat, resize
from raybroker.cluster.tally import Tally
from raybroker.errors import RaybrokerError, SettingsError
from raybroker.settings import Settings

if TYPE_CHECKING:
    from raybroker.cluster.worker import Report

log = logging.getLogger("raybroker")

START_ATTEMPTS = 3  # of a private Ray
START_SECONDS = 180.0
LEARN_SECONDS = 3600.0  # a trainer without states of its own learns all labels again: 2,000 in about a minute
GATE_SECONDS = 60.0  # workers that are not there by then have other troubles
CLOSE_SECONDS = 10.0  # for a worker that leaves
SCALE_SECONDS = 1.0  # between two looks at the load
NODE_DIED = (
    "its node has died",
    "node was terminated",
    "node is dead",
)  # what Ray says; the worker is not to blame


def start_ray(settings: Settings, cpus: int | None = None) -> None:
    """A private Ray on this machine, or the cluster at `ray.address`; always with a token."""
    own = settings.ray
    if own.address != "local":
        from raybroker.cluster import batch

        batch.join(own.address)
        return
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    for attempt in range(START_ATTEMPTS):
        try:
            _start_private(settings, cpus or room(settings))
            return
        except (
            Exception
        ) as error:  # Ray raises a plain one where its node takes more than 30 s: a busy machine
            if "timed out during startup" not in str(error) or attempt + 1 == START_ATTEMPTS:
                raise
            log.warning("Ray did not start in time; trying again")
            ray.shutdown()


def _start_private(settings: Settings, cpus: int) -> None:
    ray.init(
        address="local",
        namespace="raybroker",
        num_cpus=cpus,
        object_store_memory=settings.ray.object_store_megabytes * 1_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )


def room(settings: Settings) -> int:
    """The CPUs that a private Ray counts on: at least what every actor together asks for. They need not be there."""
    workers = sum(own.most for own in settings.surveys.values())
    asked = settings.ray.cpus_per_worker * (workers + 1) + 0.2 * settings.service.most
    return max(4, os.cpu_count() or 1, math.ceil(asked))


@dataclass
class Supervisor:
    """Keeps the workers of every survey, and the trainer, at their turns."""

    settings: Settings
    tally: Tally = field(default_factory=Tally)
    snapshots: dict[str, tuple[int, str]] = field(default_factory=dict)
    lesson: Lesson | None = None
    troubles: dict[str, str] = field(default_factory=dict)  # by seat: what keeps it from working

    def __post_init__(self) -> None:
        from raybroker.cluster import assemble

        self.snapshots = {**assemble.standing(self.settings), **self.snapshots}
        now, surveys = time.monotonic(), self.settings.surveys
        self.cautions = {str(name): Caution() for name in surveys}
        self.sizes = {str(name): scaling.State(own.workers) for name, own in surveys.items()}
        self.meters = {str(name): scaling.Meter(now) for name in surveys}
        self.seats = [seat for name, own in surveys.items() for seat in resize((), name, own.workers)[0]]
        if self.settings.models:
            self.seats.append(Seat("trainer"))
        self._closing: dict[Any, Seat] = {}  # by the answer to `close`
        self._began = self._scaled = now

    def step(self, seconds: float = 0.2) -> list[Report]:
        """Ask whoever is free, wait for any answer at most this long, and deal with what came."""
        self._scale(time.monotonic())
        self.ask()
        waiting = {seat.answer: seat for seat in self.seats if seat.answer is not None}
        if not waiting:
            time.sleep(seconds)
            return []
        done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        if not done:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=seconds)
        reports = [report for answer in done for report in self._receive(waiting[answer])]
        self._overdue(time.monotonic())
        return reports

    def ask(self) -> None:
        """Ask every free seat for its next turn, hire where nobody sits; nothing is waited for."""
        now = time.monotonic()
        for seat in self.seats:
            if (
                seat.answer is None
                and not seat.leaving
                and now >= seat.free_from
                and self._may_come(seat, now)
            ):
                self._ask(seat, now)

    def _may_come(self, seat: Seat, now: float) -> bool:
        """At the start the workers go first: the trainer's imports would cost them seconds."""
        first = not seat.survey and not seat.served and not seat.deaths
        return not first or self.reading or now - self._began > GATE_SECONDS

    def _ask(self, seat: Seat, now: float) -> None:
        if seat.actor is None:
            seat.hired(self._hire(seat), now)
            return
        seat.asked = now
        if not seat.survey:
            seat.answer = seat.actor.turn.remote()
        else:
            caution = self.cautions[seat.survey]
            seat.taken = seat.actor.take.remote(caution.limit, self.snapshots)
            seat.answer = seat.actor.finish.remote(caution.dead)

    def _hire(self, seat: Seat) -> Any:
        options = {"num_cpus": self.settings.ray.cpus_per_worker, "max_restarts": 0}
        if not seat.survey:
            return ray.remote(actors.TrainerActor).options(**options).remote(self.settings)
        worker = ray.remote(actors.WorkerActor).options(**options)
        return worker.remote(self.settings, seat.survey, seat.index)

    # How many workers there are.

    def _scale(self, now: float) -> None:
        """Follow the load, where the settings allow it; let those go that are not needed."""
        if now - self._scaled >= SCALE_SECONDS:
            self._scaled = now
            for name, own in self.settings.surveys.items():
                if own.most > own.workers:
                    self._follow(name, now)
        self._see_off(now)

    def _follow(self, survey: str, now: float) -> None:
        own = self.settings.surveys[survey]  # type: ignore[index]
        seen = self.meters[survey].seen(now, self.lag(survey))
        before = self.sizes[survey].workers
        limits = scaling.Limits(
            own.workers, own.most, drain_seconds=own.drain_seconds, hold_seconds=60 * own.hold_minutes
        )
        self.sizes[survey] = scaling.target(self.sizes[survey], seen, limits)
        size = self.sizes[survey].workers
        if size == before:
            return
        log.info(
            "%s: %d workers instead of %d: lag %d, %.0f alerts/s, %.2f ms each",
            *(survey, size, before, seen.lag, seen.rate, 1000 * seen.seconds_per_alert),
        )
        new, leaving = resize(self.seats, survey, size)
        self.seats += new
        for seat in leaving:
            seat.leaving = True

    def lag(self, survey: str) -> int:
        """Packets of this survey that wait, as its workers last said."""
        return sum(self.tally.lags.get(seat.name, 0) for seat in self.seats if seat.survey == survey)

    def _see_off(self, now: float) -> None:
        """Who leaves is asked no more turns, gives its partitions back and ends."""
        closing = set(map(id, self._closing.values()))
        for seat in [seat for seat in self.seats if seat.leaving and id(seat) not in closing]:
            if seat.actor is None or not seat.pid:
                self._gone(seat)
            elif seat.answer is None:
                seat.asked = now
                self._closing[seat.actor.close.remote()] = seat
        done = set(
            ray.wait(list(self._closing), num_returns=len(self._closing), timeout=0)[0]
            if self._closing
            else ()
        )
        for answer, seat in list(self._closing.items()):
            if answer in done or now - seat.asked > CLOSE_SECONDS:
                del self._closing[answer]
                self._gone(seat)

    def _gone(self, seat: Seat) -> None:
        if seat.actor is not None:
            ray.kill(seat.actor)
        self.seats.remove(seat)
        self.tally.lags.pop(seat.name, None)
        self.troubles.pop(seat.name, None)

    # What comes back.

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
            seat.ready(result)
            return
        seat.worked()
        self.troubles.pop(seat.name, None)
        if isinstance(result, Lesson):
            self.lesson = result
            self.tally.gauges.taught(result)
            self.snapshots.update(result.snapshots)
        else:
            self._note(seat, result)
            yield result

    def _note(self, seat: Seat, report: Report) -> None:
        """A worker's turn is done. What kept it from working, such as a full disk, is told; the worker waits by itself."""
        now = time.monotonic()
        self.cautions[seat.survey].finished(report.taken)
        self.tally.add(seat.name, report)
        incidents.tell(seat.survey, seat.name, report.incidents)
        self.meters[seat.survey].add(now, report.taken, report.alerts, report.seconds, report.cpu_seconds)
        seat.drained = report.drained
        if report.trouble:
            self.troubles[seat.name] = report.trouble

    def _lost(self, seat: Seat, error: Exception, reason: str = "kills the worker") -> None:
        """An actor died or raised: note what it had in hand, and start another after a while."""
        died, said = isinstance(error, RayActorError), _last_line(error)
        if isinstance(error, SettingsError) and not self._any_served(seat.survey):
            raise error  # nothing can start: that is for whoever wrote the settings
        blameless = died and any(words in str(error) for words in NODE_DIED)
        taken = _ready(seat.taken)
        incidents.lost(seat.survey, seat.name, seat.pid, taken, said)
        starting = not seat.pid
        if not blameless and seat.survey and not starting and not isinstance(error, RaybrokerError):
            why = reason if died else f"stops the worker: {said}"
            self.cautions[seat.survey].lost(taken, why)
        if not died and seat.actor is not None:
            ray.kill(seat.actor)
        self.tally.lost(seat.name)
        seat.lost(time.monotonic(), said, counts=not blameless)
        if seat.deaths > 1:
            self.troubles[seat.name] = seat.crashes()
        elif starting or isinstance(error, RaybrokerError):  # the stream or the archive, not a packet
            self.troubles[seat.name] = f"cannot start: {said}" if starting else said

    def _any_served(self, survey: str) -> bool:
        return any(seat.served for seat in self.seats if seat.survey == survey)

    def _overdue(self, now: float) -> None:
        """Who takes too long is replaced; who waits for a node does not, since the cluster has no room for it yet."""
        turn = self.settings.turn.deadline_seconds
        for seat in self.seats:
            if seat.answer is None or self._waits(seat, now):
                continue
            starting = START_SECONDS if seat.survey else LEARN_SECONDS
            allowed = self.settings.turn.seconds + turn if seat.taken is not None else starting
            if now - seat.asked > allowed:
                ray.kill(seat.actor)
                reason = (
                    f"overruns the deadline of {turn:g} s" if seat.pid else f"did not start in {allowed:g} s"
                )
                self._lost(seat, RayActorError(error_msg=reason), reason)

    def _waits(self, seat: Seat, now: float) -> bool:
        """Whether its actor has no process yet; the clock runs from when it has one."""
        if seat.placed is None:
            return False
        if ray.wait([seat.placed], timeout=0)[0]:
            seat.placed, seat.waits_since, seat.asked = None, None, now
            self.troubles.pop(seat.name, None)
            return False
        if seat.waits_since is not None and now - seat.waits_since > TELL_WAITING_SECONDS:
            self.troubles[seat.name] = "waits for a node with room: the cluster has no CPUs left"
        return True

    @property
    def ready(self) -> bool:
        """Whether every actor has started."""
        return all(seat.pid for seat in self.seats)

    @property
    def reading(self) -> bool:
        """Whether every worker has started, or is on its second try: what else there is may start now."""
        return all(seat.pid or seat.deaths for seat in self.seats if seat.survey)

    def drained(self) -> bool:
        """Whether every worker has polled all that was there when its partitions were assigned."""
        return all(seat.drained for seat in self.seats if seat.survey)

    def told(self) -> dict[str, Any]:
        """The seats, and how many workers each survey has and may have, for the heartbeat."""
        now = time.monotonic()
        sizes = {name: {"workers": own.workers} for name, own in self.sizes.items()}
        return {"seats": {seat.name: seat.told(now) for seat in self.seats}, "sizes": sizes}

    def stop(self, seconds: float = 6.0) -> list[Report]:
        """Let every turn end, and everybody leave after it: a trainer at work does not keep the workers."""
        here = [seat for seat in self.seats if seat.actor is not None and seat.pid]
        busy = {seat.answer: seat for seat in here if seat.answer is not None}
        waited = [*busy, *(seat.actor.close.remote() for seat in here)]
        done = set(ray.wait(waited, num_returns=len(waited), timeout=seconds)[0] if waited else ())
        reports = [report for answer in busy if answer in done for report in self._receive(busy[answer])]
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


def nodes() -> int:
    """How many nodes the cluster has now."""
    return sum(node["Alive"] for node in ray.nodes())


def stop_ray() -> None:
    """Leave the cluster; a private one ends with us."""
    ray.shutdown()
