"""Later alerts of labelled objects: a supernova that was labelled at its first alert is one at its tenth.

People look at an object once, mostly when it is young. A model that learns these alerts alone knows nothing of how
objects grow old: on ZTF's typed objects a forest taught each object's first alert has an AUC of 0.53 on other objects'
alerts, and taught one alert in five days of the same objects, 0.72. So a label teaches later alerts too, unless its
class is said of one alert alone (`of_alert`). Each is an event of the log `later`, and so part of what is replayed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybroker.learning.labels import Label
from raybroker.learning.learner import Thinning
from raybroker.learning.shortlist import Candidate
from raybroker.settings import ModelSettings


@dataclass(frozen=True, slots=True)
class Later:
    """It teaches what is said of alert `of`, as long as that holds."""

    event_id: str
    model: str
    survey: str
    alert_id: str
    object_id: str
    of: str

    @classmethod
    def to(cls, label: Label, alert_id: str, model: str) -> Later:
        """What an alert is to a label of its object."""
        return cls(f"{model}:{alert_id}", model, label.survey, alert_id, str(label.object_id), label.alert_id)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Later:
        """From the event log."""
        return cls(*(row[field.name] for field in dataclasses.fields(cls)))

    def lesson(self, said: Label) -> Label:
        """What is said of the other alert, of this one."""
        return dataclasses.replace(said, event_id=self.event_id, alert_id=self.alert_id, query_id=None)


Told = Label | Later


def new(
    candidates: Sequence[Candidate],
    said: Sequence[Label],
    thinning: Thinning,
    settings: ModelSettings,
    model: str,
) -> list[Later]:
    """Of new alerts, those of labelled objects that were not learned within `thinning_days`; of each object the newest.

    `said` is what the ledger teaches now. Anomaly models ask anew, and without thinning there would be no end.
    """
    if not settings.later_alerts or settings.task != "classify" or thinning.days <= 0:
        return []
    known = {
        label.object_id: label for label in said if label.object_id and label.label not in settings.of_alert
    }
    newest = {one.object_id: one for one in candidates if one.object_id in known}
    return [
        Later.to(known[name], one.alert_id, model)
        for name, one in newest.items()
        if thinning.would_take(name, one.mjd) and one.alert_id != known[name].alert_id
    ]


def with_later(
    said: Sequence[Label], later: Mapping[str, Later], heard: Sequence[str], of_alert: Sequence[str]
) -> list[Label]:
    """All lessons in the order of hearing. A later alert that somebody labelled itself is what that label says.

    Where the first alert's label was revised to a class of `of_alert`, the later ones are taught nothing.
    """
    if not later:
        return list(said)
    labelled = {label.alert_id for label in said}
    known = {label.alert_id: label for label in said if label.label not in of_alert}
    more = [
        one.lesson(known[one.of])
        for one in later.values()
        if one.of in known and one.alert_id not in labelled
    ]
    place = {event_id: number for number, event_id in enumerate(heard)}
    return sorted([*said, *more], key=lambda label: place[label.event_id])
