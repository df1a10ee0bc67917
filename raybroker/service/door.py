"""What is said over the API, looked at before it is written: which model a label is for, and whether it may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from raybroker.errors import RaybrokerError, UnknownError, did_you_mean
from raybroker.learning import labels
from raybroker.learning.labels import Label
from raybroker.service.asked import Row
from raybroker.settings import ModelSettings

FUTURE_SECONDS = 60.0  # clocks of two machines differ


class NotAllowedError(RaybrokerError):
    """A class, a model or an event id that cannot be: the message says which could. `field` is what was wrong."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ConflictError(RaybrokerError):
    """The event id was used before, for another label."""


@dataclass(frozen=True)
class Door:
    """Makes labels of what clients send. `raw` is `[labels] classes`; `known` finds the label that is replaced."""

    models: Mapping[str, ModelSettings]
    raw: Sequence[str]
    known: Callable[[str], Label | None]
    clock: Callable[[], float]

    def label(self, given: Mapping[str, Any], who: str, alert_of: Callable[[str], Row]) -> Label:
        """What is given as a label that may be recorded; `alert_of` raises `UnknownError` for an alert unknown."""
        names = ("event_id", "query_id", "comment", "replaces", "withdrawn", "source")
        replaced = self._replaced(given)
        model = self._model_told(given, replaced)
        alert = alert_of(given["alert_id"])
        label = Label(
            survey=alert["survey"],
            alert_id=alert["alert_id"],
            object_id=alert["object_id"],
            model=model,
            who=who,
            when=self._when(given),
            label=given.get("label"),
            **{name: given[name] for name in names if given.get(name) is not None},
        )
        if given.get("object_id") not in (None, alert["object_id"], alert.get("ss_object_id")):
            raise NotAllowedError(
                f"alert '{label.alert_id}' is of object '{label.object_id}', not of '{given['object_id']}'",
                "object_id",
            )
        return self._allowed(label, replaced)

    def _replaced(self, given: Mapping[str, Any]) -> Label | None:
        if given.get("replaces") is None:
            return None
        replaced = self.known(given["replaces"])
        if replaced is None:
            raise UnknownError(f"no label '{given['replaces']}' is known, so that it cannot be replaced")
        return replaced

    def _allowed(self, label: Label, replaced: Label | None) -> Label:
        classes = self.models[label.model].classes if label.model else self.raw
        if replaced and (replaced.alert_id, replaced.model) != (label.alert_id, label.model):
            raise NotAllowedError(
                f"label '{replaced.event_id}' is of alert '{replaced.alert_id}' for model '{replaced.model}', so that "
                "one of another alert or model cannot replace it",
                "replaces",
            )
        try:
            return labels.validate(label, classes)
        except ValueError as error:
            hint = "; it is a raw label: leave 'model' out" if label.model and label.label in self.raw else ""
            raise NotAllowedError(f"{error}{hint}", "label") from error

    def _model_told(self, given: Mapping[str, Any], replaced: Label | None) -> str:
        """The model that a label is for; "" is a raw label: no model is named, and there are raw classes."""
        name, said = given.get("model"), given.get("label")
        if name is None and replaced is not None:
            return replaced.model and self.model(replaced.model)
        several = len(self.models) > 1 or any(own.raw for own in self.models.values())
        if name is not None or not self.raw or not several:
            return self.model(name)
        if len(self.models) == 1 and said not in self.raw and said in self.models[self.model(None)].classes:
            return self.model(None)
        return ""

    def _when(self, given: Mapping[str, Any]) -> float:
        """When it was said: now, or as a file of older labels tells."""
        now, when = self.clock(), given.get("when")
        if when is None:
            return now
        told = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
        if told > now + FUTURE_SECONDS:
            raise NotAllowedError(f"when = {when.isoformat()} lies in the future", "when")
        return float(told)

    def model(self, name: str | None) -> str:
        """The model of that name; where none is named, the only one there is."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models))
        if name is None or name not in self.models:
            near = did_you_mean(name or "", self.models)
            raise NotAllowedError(f"no model '{name or ''}'{near}: there are {sorted(self.models)}", "model")
        return name


def again(known: Label, label: Label) -> Label:
    """The known label of this event id; `ConflictError` if the new one says something else."""
    names = ("alert_id", "model", "label", "replaces", "withdrawn")
    if any(getattr(known, name) != getattr(label, name) for name in names):
        raise ConflictError(f"event id '{label.event_id}' was used before, for another label")
    return known
