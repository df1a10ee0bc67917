"""The stream: alerts come in order of time, each is scored at once, its label comes days later, if ever.

A label that is due at the very moment of an alert is learned after it. Numbers are told for all alerts, for alerts of
**unseen objects** (none of the object's labels was learned when it was scored) and for the first alert of each object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raybroker.learning.learner import Thinning
from raybroker.protocols import models
from raybroker.protocols.models import BASELINE, MIXTURE, PLAIN, Recipe, Teachable
from raybroker.protocols.tables import Floats, Integers, Labelled

WEEK = 7.0  # days between two fits of the forest that we are held against
LEAST = 10  # labels before anything counts
SCOPES = ("unseen objects", "first alerts", "all alerts")
Mask = NDArray[np.bool_]
Progress = Callable[[float], None]  # what share is done


@dataclass(frozen=True)
class Rules:
    """When labels come."""

    delay: float = 14.0  # days after the alert
    never: float = 0.0  # share of the objects whose labels never come
    thinning: float = 5.0  # days: at most one label of an object in these


class Due(NamedTuple):
    """The labels that come, in the order in which they do."""

    rows: Integers  # of which alerts
    times: Floats  # when


@dataclass(frozen=True)
class Run:
    """What was said of every alert when it came; `data` is in the order in which they came."""

    data: Labelled
    members: Floats  # [members, rows, classes]
    mixture: Floats  # [rows, classes]
    uncalibrated: Floats  # the mixture by weights alone
    baseline: Floats  # the forest's
    unseen: Mask
    first: Mask
    counts: Mask  # rows that are told about: both models had learned something
    heard: Integers  # [rows] how many labels were learned before
    label_rows: Integers  # the alerts whose labels come, in that order
    weights: Floats  # [members] at the end

    def scope(self, name: str) -> Mask:
        """The rows of one of `SCOPES` that count."""
        return self.counts & {"unseen objects": self.unseen, "first alerts": self.first}.get(name, True)

    def said(self, names: tuple[str, ...]) -> dict[str, Floats]:
        """The answers by model: the mixture, the forest, the mixture as it was before calibration, each member."""
        first = {MIXTURE: self.mixture, BASELINE: self.baseline, PLAIN: self.uncalibrated}
        return first | dict(zip(names, self.members, strict=True))


def due(data: Labelled, rules: Rules, rng: np.random.Generator) -> Due:
    """Which labels come when. `data` is in order of time."""
    thinning = Thinning(rules.thinning)
    silent = _silent(data, rules.never, rng)
    taken = [
        row
        for row, (thing, when) in enumerate(zip(data.objects.tolist(), data.times.tolist(), strict=True))
        if thing not in silent and thinning.take(str(thing), when)
    ]
    rows = np.array(taken, np.int64)
    return Due(rows, data.times[rows] + rules.delay)


def _silent(data: Labelled, share: float, rng: np.random.Generator) -> set[int]:
    present = np.unique(data.objects)
    return set(rng.choice(present, round(share * len(present)), replace=False).tolist())


def steps(times: Floats, labels: Due) -> Iterator[tuple[Integers, slice]]:
    """The stream as steps: labels to learn, then the alerts that come before the next label is due."""
    places = np.searchsorted(times, labels.times, side="right")  # the first alert after it
    edges = np.unique(np.concatenate([[0], places[places < len(times)], [len(times)]]))
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        yield labels.rows[places == begin], slice(begin, end)


def run(
    data: Labelled, recipe: Recipe, rules: Rules, seed: int, progress: Progress = lambda share: None
) -> Run:
    """One pass through the stream with one seed, which draws ties, silent objects and members."""
    rng = np.random.default_rng(seed)
    data = data.in_time(rng)
    labels = due(data, rules, rng)
    return listen(data, recipe.learner(data, seed), labels, seed, progress)


def listen(
    data: Labelled, learner: Teachable, labels: Due, seed: int, progress: Progress = lambda share: None
) -> Run:
    """Score what comes and learn what is due. `data` is in order of time."""
    features, members = models.numbers(data), np.empty((0, 0, 0))
    shape = (len(data), len(data.classes))
    mixture, plain, heard = np.empty(shape), np.empty(shape), np.zeros(len(data), np.int64)
    seen, unseen, learned = np.zeros(len(data.object_names), bool), np.zeros(len(data), bool), 0
    for rows, alerts in steps(data.times, labels):
        if len(rows):
            models.teach(learner, data, rows, members[:, rows], unseen[rows])
            learned += len(rows)
            seen[data.objects[rows]] = True
        answer = learner.frozen().predict_matrix(features[alerts])
        if not members.size:
            members = np.empty((len(answer.members), *shape))
        members[:, alerts], mixture[alerts] = answer.members, answer.mixture
        plain[alerts] = models.uncalibrated(learner, answer)
        heard[alerts], unseen[alerts] = learned, ~seen[data.objects[alerts]]
        progress(alerts.stop / len(data))
    baseline, fitted = weekly(data, features, labels, seed)
    first = np.zeros(len(data), bool)
    first[np.unique(data.objects, return_index=True)[1]] = True
    counts = fitted & (heard >= LEAST)
    said = (members, mixture, plain, baseline)
    return Run(data, *said, unseen, first, counts, heard, labels.rows, learner.weights)


def weekly(data: Labelled, features: Floats, labels: Due, seed: int) -> tuple[Floats, Mask]:
    """A random forest fitted every week on all labels known by then, and where it could say something."""
    said = np.full((len(data), len(data.classes)), 1 / len(data.classes))
    fitted = np.zeros(len(data), bool)
    week = np.floor((data.times - data.times[0]) / WEEK)
    for number in np.unique(week):
        mine = np.flatnonzero(week == number)
        known = labels.rows[labels.times < data.times[0] + number * WEEK]
        if len(known) < LEAST or len(np.unique(data.labels[known])) < 2:
            continue
        predict = models.forest(features[known], data.labels[known], len(data.classes), seed)
        said[mine], fitted[mine] = predict(features[mine]), True
    return said, fitted
