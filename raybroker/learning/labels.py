"""What people said: one label, its rules, and the ledger that reads the same however often it is delivered."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybroker.errors import UnknownError, did_you_mean


@dataclass(frozen=True)
class Label:
    """One line of the ledger. It names an alert: the learner trains on what was known when the question was asked.

    `event_id` is made by the client and is the idempotency key; `who` comes from the token, never from the body.
    `label` None means "can't tell", or with `withdrawn` that what `replaces` names no longer holds.
    """

    event_id: str
    survey: str
    alert_id: str
    object_id: str | None
    model: str
    label: str | None
    query_id: str | None = None
    who: str = ""
    when: float = 0.0  # seconds since 1970, UTC
    source: str = "api"  # page, cli, api, csv, tns, simbad ...
    comment: str = ""
    replaces: str | None = None  # the event id of the label that this one revises or withdraws
    withdrawn: bool = False

    def row(self) -> dict[str, Any]:
        """The row of the `labels` event log."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Label:
        """The label in a row of the event log; columns that it does not know are left out."""
        known = {field.name: row[field.name] for field in dataclasses.fields(cls) if field.name in row}
        return cls(**{name: value for name, value in known.items() if value is not None or name in NULLABLE})


NULLABLE = frozenset({"object_id", "label", "query_id", "replaces"})


def new_event_id() -> str:
    """An idempotency key for a client that has none."""
    return uuid.uuid4().hex


def validate(label: Label, classes: Sequence[str]) -> Label:
    """The label, or a ValueError that says what is wrong with it and what would be right."""
    for field in ("event_id", "survey", "alert_id", "model"):
        if not getattr(label, field):
            raise ValueError(f"a label needs '{field}'")
    if label.label is not None and label.label not in classes:
        near = did_you_mean(label.label, classes)
        raise ValueError(f"no class '{label.label}'{near}: model '{label.model}' knows {list(classes)}")
    if label.withdrawn and (label.replaces is None or label.label is not None):
        raise ValueError("a withdrawn label needs 'replaces', the event id it withdraws, and no class")
    if label.replaces == label.event_id:
        raise ValueError(f"label '{label.event_id}' cannot replace itself")
    return label


class Ledger:
    """All labels in the order they came. It is never rewritten: a revision is one more line.

    One that is delivered twice (the same event id) changes nothing.
    """

    def __init__(self, labels: Iterable[Label] = ()) -> None:
        self._labels: dict[str, Label] = {}
        self._replaced_by: dict[str, str] = {}
        for label in labels:
            self.add(label)

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, event_id: object) -> bool:
        return event_id in self._labels

    def add(self, label: Label) -> bool:
        """True if it is new. The same event id with another content keeps the first and raises ValueError."""
        known = self._labels.get(label.event_id)
        if known is not None:
            if _said(known) != _said(label):
                raise ValueError(f"event id '{label.event_id}' was used before, for another label")
            return False
        self._check_replaced(label)
        self._labels[label.event_id] = label
        if label.replaces is not None:
            self._replaced_by[label.replaces] = label.event_id
        return True

    def _check_replaced(self, label: Label) -> None:
        replaced = self._labels.get(label.replaces or "")
        if replaced is not None and (replaced.alert_id, replaced.model) != (label.alert_id, label.model):
            raise ValueError(
                f"label '{label.event_id}' is of {label.alert_id} for model '{label.model}', but replaces one of "
                f"{replaced.alert_id} for '{replaced.model}'"
            )

    def get(self, event_id: str) -> Label:
        """The line of that event id."""
        if event_id not in self._labels:
            raise UnknownError(f"no label '{event_id}'{did_you_mean(event_id, self._labels)}")
        return self._labels[event_id]

    def stands(self, event_id: str) -> bool:
        """Whether this line holds: known, and neither replaced nor a withdrawal."""
        known = self._labels.get(event_id)
        return known is not None and not known.withdrawn and event_id not in self._replaced_by

    def standing(self, model: str | None = None) -> list[Label]:
        """What holds now, "can't tell" included, in order of arrival: replaced and withdrawn lines are left out."""
        return [
            label
            for label in self._labels.values()
            if label.event_id not in self._replaced_by
            and not label.withdrawn
            and model in (None, label.model)
        ]

    def to_learn(self, model: str) -> list[Label]:
        """The standing labels that name a class, in the order in which a rebuilt model learns them."""
        return [label for label in self.standing(model) if label.label is not None]

    def labelled_objects(self, model: str) -> frozenset[str]:
        """Objects somebody has answered about, "can't tell" included: they are not asked again."""
        return frozenset(label.object_id for label in self.standing(model) if label.object_id is not None)

    def undoes(self, label: Label) -> bool:
        """True if this line revises or withdraws one that a model may have learned: it must be rebuilt."""
        replaced = self._labels.get(label.replaces or "")
        return replaced is not None and replaced.label is not None


def _said(label: Label) -> tuple[Any, ...]:
    """What makes two deliveries the same label: not the time of arrival."""
    return (
        label.survey,
        label.alert_id,
        label.model,
        label.label,
        label.replaces,
        label.withdrawn,
        label.who,
    )
