"""What a model's learners have become, on disk: a trainer that comes back, or goes back, learns only what came after.

A file is whole or not there, and its name tells all that is needed to choose it, so there is no row beside it that
could be missing:

    states/MODEL/LESSONS-ORIGIN-MARK-SHA256

ORIGIN is the digest of what a model is made of beside its lessons: settings, versions of packages, code, the sample
that an anomaly forest grew on. MARK is the digest of origin and lessons, in their order, each with the features that
it taught: a state is used only where the labels as they are now begin with just these lessons. SHA256 is of the file.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import logging
import pickle
import platform
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from raybroker.archive import store
from raybroker.errors import ArchiveError, RaybrokerError
from raybroker.pipeline import packages
from raybroker.places import Place

log = logging.getLogger("raybroker")

SECONDS = 0.5  # between two states, at least
WAIT = 30.0  # for the last one, when the trainer leaves
ORPHAN_SECONDS = 600.0  # then a file that was never finished is nobody's
FACTOR = 2  # of two neighbours among the older states, how many times as far back one may lie


# Of marks (of 0, 1, 2 ... lessons) and a number of lessons: the latest state beyond these that begins so.
Older = Callable[[Sequence[str], int], Mapping[str, Any] | None]


def nothing_older(marks: Sequence[str], beyond: int) -> None:
    """Of a pupil of which nobody keeps states."""


class Learnt(Protocol):
    """What is kept: a `raybroker.cluster.pupil.Pupil`. Its marks are of 0, 1, 2 ... lessons; the first is its origin."""

    @property
    def marks(self) -> Sequence[str]: ...
    def state(self) -> bytes: ...


class Name(NamedTuple):
    """What a file's name says."""

    lessons: int
    origin: str
    mark: str
    digest: str

    def __str__(self) -> str:
        return f"{self.lessons:09d}-{self.origin}-{self.mark}-{self.digest}"

    @classmethod
    def of(cls, text: str) -> Name | None:
        """None for what is no state's name."""
        parts = text.split("-")
        return cls(int(parts[0]), *parts[1:]) if len(parts) == 4 and parts[0].isdigit() else None


class States:
    """The states of one model. Writing never makes the trainer wait, and never stops it."""

    def __init__(
        self,
        root: Place,
        model: str,
        clock: Callable[[], float] = time.monotonic,
        seconds: float = SECONDS,
    ) -> None:
        self.folder, self.model, self.clock, self.seconds = root / "states" / model, model, clock, seconds
        self._last = ("", float("-inf"))  # mark of the last that was taken, and when
        self._thread: threading.Thread | None = None
        self._trouble = False

    # Reading.

    def find(self, marks: Sequence[str], beyond: int = 0) -> dict[str, Any] | None:
        """The state of most lessons, more than `beyond`, that begins what `marks` (of 0, 1, 2 ... lessons) tell.

        What is damaged is taken away, with a warning, and the one before it is used.
        """
        try:
            names = sorted(self._names(), reverse=True)
        except (OSError, RaybrokerError) as error:
            log.warning("the states of %s cannot be looked at: %s", self.model, error)
            return None
        for name in names:
            fits = beyond < name.lessons < len(marks) and marks[name.lessons] == name.mark
            if fits and (state := self._read(name)) is not None:
                return state
        if names and not any(name.origin == marks[0] for name in names):
            log.warning(
                "the states of %s are of other packages, code or settings: it learns again", self.model
            )
        return None

    def _read(self, name: Name) -> dict[str, Any] | None:
        """Unpickles only bytes that have the digest by which we stored them."""
        path = self.folder / str(name)
        try:
            content = store.read(path)
            if hashlib.sha256(content).hexdigest() != name.digest:
                store.delete(path)
                raise ArchiveError("it is damaged")
            found: dict[str, Any] = pickle.loads(zlib.decompress(content))
        except Exception as error:  # whatever a class that is no more may raise: there are earlier ones
            log.warning("the state of %s after %d labels is not used: %s", self.model, name.lessons, error)
            return None
        return found

    def _names(self) -> list[Name]:
        return [name for file in store.files(self.folder) if (name := Name.of(file.name))]

    # Writing.

    def offer(self, model: Learnt) -> bool:
        """Keep the state that the model is in now, if it is time; whether it was taken. It is written meanwhile."""
        mark, when = self._last
        if (
            len(model.marks) < 2
            or model.marks[-1] == mark
            or self.clock() - when < self.seconds
            or self._is_busy()
        ):
            return False
        self._take(model)
        return True

    def _take(self, model: Learnt) -> None:
        self._last = (model.marks[-1], self.clock())
        given = (model.state(), tuple(model.marks))
        self._thread = threading.Thread(target=self._write, args=given, name="states", daemon=True)
        self._thread.start()

    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def close(self, model: Learnt) -> None:
        """The last state, on the disk when this returns."""
        self.wait()
        if len(model.marks) > 1 and model.marks[-1] != self._last[0]:
            self._take(model)
            self.wait()

    def wait(self) -> None:
        """For what is being written."""
        if self._thread is not None:
            self._thread.join(WAIT)

    def _write(self, state: bytes, marks: Sequence[str]) -> None:
        content = zlib.compress(state, level=1)
        name = Name(len(marks) - 1, marks[0], marks[-1], hashlib.sha256(content).hexdigest())
        try:
            store.replace(self.folder / str(name), content)
            self._thin(name, marks)
        except (OSError, RaybrokerError) as error:
            if not self._trouble:
                log.warning("no state of %s is kept, learning goes on: %s", self.model, error)
            self._trouble = True
        else:
            self._trouble = False

    def _thin(self, newest: Name, marks: Sequence[str]) -> None:
        """Keep what `kept` says of those that begin our lessons, and no other."""
        ours = {n.lessons: n for n in self._names() if n.lessons < len(marks) and marks[n.lessons] == n.mark}
        staying = {newest, *(ours[lessons] for lessons in kept(ours) - {newest.lessons})}
        for name in self._names():
            if name not in staying:
                store.delete(self.folder / str(name))
        if isinstance(self.folder, Path):
            _tidy(self.folder)


def _tidy(folder: Path) -> None:
    """Without what somebody died over while writing it."""
    for path in folder.glob(".*"):
        if time.time() - path.stat().st_mtime > ORPHAN_SECONDS:
            path.unlink(missing_ok=True)


def kept(lessons: Iterable[int]) -> set[int]:
    """Of states after so many lessons, those to keep: the newest, the one before, and older ones ever farther apart.

    Between two that are kept, the older lies at most `FACTOR` times as far back as the newer, where there was one that
    made this possible: so to go back costs at most about as many lessons again as one goes back.

    >>> sorted(kept(range(1, 101)))
    [1, 37, 69, 85, 93, 97, 99, 100]
    """
    ordered = sorted(lessons, reverse=True)
    if not ordered:
        return set()
    newest, last = ordered[0], 0
    found = {newest}
    for lesson, older in zip(ordered[1:], [*ordered[2:], 0], strict=False):
        if newest - older > FACTOR * last + 1 or older == 0:
            found.add(lesson)
            last = newest - lesson
    return found


def origin_of(made: Mapping[str, Any], members: Iterable[str]) -> str:
    """The digest of what a model is made of: its settings, all packages, the code that learns, members' own included."""
    whole = {
        **made,
        "packages": packages(),
        "python": platform.python_version(),
        "code": _code(tuple(members)),
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _code(members: tuple[str, ...]) -> dict[str, str]:
    """Digests by module: what learns, of ours, and what a dotted member names."""
    here = Path(__file__).parents[1]
    own = [here / "cluster" / name for name in ("pupil.py", "progress.py")]
    sources = {
        path.name: path.read_text(encoding="utf-8") for path in [*(here / "learning").glob("*.py"), *own]
    }
    for module in {name.partition(":")[0] for name in members if ":" in name}:
        with suppress(ImportError, OSError, TypeError):
            sources[module] = inspect.getsource(importlib.import_module(module))
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sources.items()}


def mark_after(mark: str, *lesson: str | None) -> str:
    """The mark of one lesson more."""
    return hashlib.sha256(json.dumps([mark, *lesson]).encode()).hexdigest()[:32]
