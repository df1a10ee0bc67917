"""What a release says of a model: its numbers, what it was taught, how good it was, and where it was made.

Nothing here knows MLflow; `registry` carries it there.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import raybroker
from raybroker.learning import plots
from raybroker.learning.plots import Curve
from raybroker.pipeline import packages


class Taught(NamedTuple):
    """One label as it was learned."""

    event_id: str
    alert_id: str
    label: str


class Forecast(NamedTuple):
    """What was said of an alert of an unseen object before its label was known, and what it turned out to be."""

    label: str
    probabilities: tuple[float, ...]  # in the order of the model's classes


@dataclass(frozen=True)
class Release:
    """One released snapshot of one model, and what is known of how good it is."""

    model: str
    snapshot: int
    digest: str  # of `state`
    plan: str  # digest of the plan that made the features
    state: bytes  # as `compiled.restore` reads it
    when: float  # seconds since 1970, UTC
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)  # name -> (labels learned, value)
    tags: Mapping[str, str] = field(default_factory=dict)
    parents: Sequence[int] = ()  # snapshots that it was learned from, the newest first
    configuration: str = ""  # which challenger's; empty: the model's own
    alias: str = "champion"  # of the newest release with this alias: champion, challenger; empty: none
    classes: Sequence[str] = ()
    taught: Sequence[Taught] = ()  # in the order in which it learned them
    unseen: Sequence[Forecast] = ()
    example: Mapping[str, float | None] = field(default_factory=dict)  # features of one alert

    @property
    def order(self) -> tuple[int, int]:
        """Of two releases the one with the greater order is the newer, whenever they arrive."""
        return self.snapshot, int(self.when * 1000)

    @property
    def name(self) -> str:
        """What people call it."""
        return "-".join(filter(None, (self.model, str(self.snapshot), self.configuration)))


def ledger_hash(taught: Iterable[Taught]) -> str:
    """SHA-256 over the event ids and classes that a model learned, in that order: equal ledgers, equal models."""
    found = hashlib.sha256()
    for one in taught:
        found.update(json.dumps([one.event_id, one.label], ensure_ascii=False).encode() + b"\n")
    return found.hexdigest()


def tags(release: Release) -> dict[str, str]:
    """All that names the release and what it came from."""
    own = {
        "model": release.model,
        "snapshot": release.snapshot,
        "digest": release.digest,
        "plan": release.plan,
        "parents": ", ".join(map(str, release.parents)),
        "configuration": release.configuration or "own",
        "alias": release.alias,
        "when": release.order[1],
    }
    made = environment()
    own |= {key: made[key] for key in ("python", "lock", "packages_digest")}
    if release.taught:
        own["ledger"] = ledger_hash(release.taught)
    return {**release.tags, **{f"raybroker.{name}": str(value) for name, value in own.items()}}


@functools.cache
def environment() -> dict[str, Any]:
    """What this process runs on; `lock` is the SHA-256 of requirements.lock, empty where there is none beside us."""
    found = packages()
    lock = Path(raybroker.__file__).parents[1] / "requirements.lock"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "",
        "packages_digest": hashlib.sha256(json.dumps(found).encode()).hexdigest(),
        "packages": found,
    }


def write(release: Release, folder: Path) -> None:
    """The files of a run, but for the model: what it learned, what it runs on, and its pictures."""
    (folder / "environment.json").write_text(json.dumps(environment(), indent=1))
    write_rows(folder / "training.csv", Taught._fields, release.taught)
    if release.unseen:
        rows = [(one.label, *one.probabilities) for one in release.unseen]
        write_rows(folder / "unseen.csv", ("label", *release.classes), rows)
    if pictures := drawn(release):
        (folder / "plots").mkdir()
        for name, picture in pictures.items():
            (folder / "plots" / f"{name}.svg").write_text(picture)


def write_rows(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def drawn(release: Release) -> dict[str, str]:
    """Learning curves, and one picture of calibration per class (of two classes, the first says it all)."""
    found = {}
    for name, curve in release.curves.items():
        found[name] = plots.learning_curve(f"{release.name}: {name}", {name: curve}, up=name)
    for c, label in enumerate(release.classes[: 1 if len(release.classes) == 2 else None]):
        if release.unseen:
            said = np.array([one.probabilities[c] for one in release.unseen])
            came = np.array([one.label == label for one in release.unseen])
            title = f"{release.name}: calibration of '{label}', unseen objects"
            found[f"calibration_{key(label)}"] = plots.calibration(title, said, came)
    return found


def balance(taught: Iterable[Taught]) -> dict[str, int]:
    """How many labels of each class were learned."""
    return dict(sorted(Counter(one.label for one in taught).items()))


def key(name: str) -> str:
    """A class as part of a metric's or a file's name.

    >>> key("SN Ia?")
    'SN_Ia_'
    """
    return "".join(letter if letter.isalnum() else "_" for letter in name)
