"""CPU time and memory of every process of a running raybroker and its Kafka, by what each one does."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

ROLES = (  # the first that a command line contains
    ("ray::WorkerActor", "worker"),
    ("ray::TrainerActor", "trainer"),
    ("ray::ServeReplica", "serve replica"),
    ("ray::ProxyActor", "serve proxy"),
    ("ray::ServeController", "serve controller"),
    ("ray::", "ray, idle workers"),
    ("gcs_server", "ray gcs"),
    ("raylet/raylet", "raylet"),
    ("dashboard", "ray agents"),
    ("runtime_env", "ray agents"),
    ("log_monitor", "ray agents"),
    ("multiprocessing.resource_tracker", "other"),
    ("multiprocessing.spawn", "compaction"),
    ("raybroker.cli", "supervisor"),
    ("kafka.Kafka", "kafka"),
)
SECONDS = 5.0  # between two looks
MB = 1e6


def role_of(command: str) -> str:
    """What a process does, by its command line."""
    return next((role for mark, role in ROLES if mark in command), "other")


@dataclass
class Memory:
    """One process over time: seconds since the first look, and MB.

    `uss` counts a library's pages too while no other process has them; `dirty` is what the process itself wrote.
    """

    role: str
    seconds: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    uss: list[float] = field(default_factory=list)
    pss: list[float] = field(default_factory=list)
    dirty: list[float] = field(default_factory=list)

    def growth(self, numbers: Sequence[float], after: float) -> float:
        """MB per minute after so many seconds, by least squares; NaN where there are too few looks."""
        seconds = np.array(self.seconds)
        late = seconds >= after
        if late.sum() < 3:
            return float("nan")
        return float(np.polyfit(seconds[late] / 60, np.array(numbers)[late], 1)[0])


def _private_dirty(pid: int) -> int:
    """Bytes; Linux alone tells them, elsewhere 0."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


class Watch:
    """Looks at the processes below some roots, in a thread, while the context is open."""

    def __init__(
        self, roots: Iterable[psutil.Process], seconds: float = SECONDS, memory: bool = False
    ) -> None:
        self.roots, self.every = list(roots), seconds
        self.memory: dict[int, Memory] = {}
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}
        self._roles: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self.began = time.monotonic()
        self._look(first=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self.seconds = time.monotonic() - self.began

    def _run(self) -> None:
        while not self._stop.wait(self.every):
            self._look()

    def _processes(self) -> list[psutil.Process]:
        return [found for root in self.roots for found in (root, *root.children(recursive=True))]

    def _look(self, first: bool = False) -> None:
        for process in self._processes():
            try:
                with process.oneshot():
                    self._note(process, first)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue

    def _note(self, process: psutil.Process, first: bool) -> None:
        times = process.cpu_times()
        spent = times.user + times.system
        command = " ".join(process.cmdline())
        if role_of(command) != "other" or process.pid not in self._roles:
            self._roles[process.pid] = role_of(command)
        self._first.setdefault(process.pid, spent if first else 0.0)
        self._last[process.pid] = spent
        self._note_memory(process)

    def _note_memory(self, process: psutil.Process) -> None:
        found = process.memory_full_info()
        memory = self.memory.setdefault(process.pid, Memory(""))
        memory.role = self._roles[process.pid]
        memory.seconds.append(time.monotonic() - self.began)
        memory.rss.append(found.rss / MB)
        memory.uss.append(found.uss / MB)
        memory.pss.append(found.pss / MB)
        memory.dirty.append(_private_dirty(process.pid) / MB)

    def cpu_seconds(self) -> dict[str, list[float]]:
        """CPU seconds spent while watched, by role, one number per process."""
        found: dict[str, list[float]] = defaultdict(list)
        for pid, last in self._last.items():
            found[self._roles[pid]].append(last - self._first[pid])
        return dict(found)
