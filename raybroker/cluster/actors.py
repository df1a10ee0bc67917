"""What runs in a process of its own, as plain classes: the supervisor makes actors of them.

An actor is made at once and builds itself when it is asked whether it is `ready`: so an actor that waits for a node and
one that cannot start are told apart. Nothing heavy is imported above, because what limits threads and memory must be
set before.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from raybroker.cluster import logs

if TYPE_CHECKING:
    from raybroker.cluster.caution import Taken
    from raybroker.cluster.lesson import Lesson
    from raybroker.cluster.worker import Report
    from raybroker.settings import Settings

# Libraries run single-threaded inside an actor.
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
# glibc keeps the memory of one turn for the next: page faults cost more than the decoding does. See mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8
MEMORY = {
    MMAP_THRESHOLD: 33_554_432,  # the highest that glibc takes
    TRIM_THRESHOLD: 2_000_000_000,
    TOP_PAD: 67_108_864,
    ARENA_MAX: 2,
}


def settle() -> None:
    """Make this process an actor's."""
    logs.configure("INFO")
    os.environ.update(ONE_THREAD)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    for key, value in MEMORY.items() if mallopt else ():
        mallopt(key, value)


def aside(*modules: str) -> None:
    """Import these in a thread that gives way to other processes: the workers are at work already."""
    thread = threading.Thread(target=_imported, args=(modules,), name="imports")
    thread.start()
    thread.join()


def _imported(modules: Sequence[str]) -> None:
    with suppress(OSError, AttributeError):  # where a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    for name in modules:
        importlib.import_module(name)


class WorkerActor:
    """A worker of one survey."""

    def __init__(self, settings: Settings, survey: str, index: int) -> None:
        settle()
        self.wanted = settings, survey, index
        self.worker: Any = None

    def placed(self) -> int:
        """The actor has a process: its id."""
        return os.getpid()

    def ready(self) -> int:
        """Build the worker."""
        from raybroker.cluster import assemble

        self.worker, self.models = assemble.worker(*self.wanted)
        return os.getpid()

    def take(self, limit: int | None, snapshots: Mapping[str, tuple[int, str]]) -> Taken:
        """The first half of a turn."""
        self.worker.pin(self.models.newer(snapshots))
        return self.worker.take(limit)

    def finish(self, dead: Mapping[tuple[str, int, int], str]) -> Report:
        """The second half of a turn."""
        return self.worker.finish(dead)

    def close(self) -> None:
        """Leave the group: others take its partitions over at once."""
        if self.worker is not None:
            self.worker.close()


class TrainerActor:
    """The trainer."""

    def __init__(self, settings: Settings) -> None:
        settle()
        self.settings = settings
        self.trainer: Any = None

    def placed(self) -> int:
        """The actor has a process: its id."""
        return os.getpid()

    def ready(self) -> int:
        """Build the trainer."""
        aside("raybroker.cluster.trainer", "raybroker.cluster.pupil")
        from raybroker.cluster import assemble

        self.trainer = assemble.trainer(self.settings)
        return os.getpid()

    def turn(self) -> Lesson:
        """One turn."""
        return self.trainer.turn()

    def close(self) -> None:
        """Publish what was learned, and leave."""
        if self.trainer is not None:
            self.trainer.close()
