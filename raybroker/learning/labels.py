"""What people said: one label, its rules, and the ledger that reads the same however often it is delivered.

A line is **void** where a withdrawal that is itself not void names it: it is as if it had never been said, and what it
revised holds again. A line **stands** if it is neither void, nor a withdrawal, nor revised by a line that is not void,
nor by a later one of the same person about the same alert and model.
"""

from __future__ import annotations

import dataclasses
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybroker.errors import SettingsError, UnknownError, did_you_mean

PEOPLE = frozenset({"", "page", "cli", "api", "csv", "oracle"})  # other sources are catalogues
Raw = Mapping[str, Sequence[str]]  # a model's class: the raw classes that mean it
NO_RAW: Raw = {}


@dataclass(frozen=True, slots=True)
class Label:
    """One line of the ledger. It names an alert: the learner trains on what was known when the question was asked.

    `event_id` is made by the client and is the idempotency key; `who` comes from the token, never from the body.
    `model` "" is a raw label, of a class of `[labels] classes`: every model whose `raw` map knows the class learns it.
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
    source: str = "api"  # one of PEOPLE, or a catalogue: tns, simbad ...
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
        known |= {name: sys.intern(str(known[name])) for name in REPEATED if known.get(name) is not None}
        return cls(**{name: value for name, value in known.items() if value is not None or name in NULLABLE})

    @property
    def from_catalogue(self) -> bool:
        """Whether a catalogue says so, and no person."""
        return self.source not in PEOPLE


NULLABLE = frozenset({"object_id", "label", "query_id", "replaces"})
REPEATED = ("survey", "model", "label", "who", "source")  # few words that all labels share: each is kept once


def new_event_id() -> str:
    """An idempotency key for a client that has none."""
    return uuid.uuid4().hex


def validate(label: Label, classes: Sequence[str]) -> Label:
    """The label, or a ValueError that says what is wrong with it and what would be right.

    `classes` are those of its model, or for a raw label those of `[labels] classes`.
    """
    for field in ("event_id", "survey", "alert_id"):
        if not getattr(label, field):
            raise ValueError(f"a label needs '{field}'")
    if label.label is not None and label.label not in classes:
        near = did_you_mean(label.label, classes)
        knows = f"model '{label.model}' knows" if label.model else "raw labels are"
        raise ValueError(f"no class '{label.label}'{near}: {knows} {list(classes)}")
    if label.withdrawn and (label.replaces is None or label.label is not None):
        raise ValueError("a withdrawn label needs 'replaces', the event id it withdraws, and no class")
    if label.replaces == label.event_id:
        raise ValueError(f"label '{label.event_id}' cannot replace itself")
    return label


def translate(label: Label, model: str, classes: Sequence[str] | None, raw: Raw) -> str | None:
    """The class of `model` that a label names, None where it names none: another model's, can't tell, not in `raw`.

    `classes` None: whatever the model's own labels name is a class of it.
    """
    if label.label is None or label.model not in ("", model):
        return None
    if label.model:
        return label.label if classes is None or label.label in classes else None
    names = raw if classes is None else classes
    return next((name for name in names if label.label in raw.get(name, ())), None)


Votes = Sequence[str | None]  # one per person, in the order of `when`; None is "can't tell"


def _newest(votes: Votes) -> str | None:
    return votes[-1]


def _first(votes: Votes) -> str | None:
    return votes[0]


def _majority(votes: Votes) -> str | None:
    """More than half of all; "can't tell" is in the number of all."""
    name, count = Counter(votes).most_common(1)[0]
    return name if 2 * count > len(votes) else None


def _agreed(votes: Votes) -> str | None:
    return votes[0] if len(set(votes)) == 1 else None


RULES: Mapping[str, Callable[[Votes], str | None]] = {
    "newest": _newest,
    "first": _first,
    "majority": _majority,
    "agreed": _agreed,
}


class Ledger:
    """All labels in the order they came. It is never rewritten: a revision is one more line.

    A line that is delivered twice (the same event id) changes nothing. Where standing labels of one alert disagree,
    `rule` decides which class a model learns: the newest word, the first, that of more than half of the people, or
    that on which all agree. Each person has one vote, and "can't tell" is a vote for nothing. Catalogues are asked
    only where no person names a class.
    """

    def __init__(self, labels: Iterable[Label] = (), rule: str = "newest") -> None:
        if rule not in RULES:
            raise SettingsError(
                f"labels.rule = '{rule}'{did_you_mean(rule, RULES)}: it is one of {', '.join(RULES)}"
            )
        self.rule = rule
        self._labels: dict[str, Label] = {}
        self._arrival: dict[str, int] = {}
        self._alerts: dict[str, list[Label]] = {}  # by alert id, in order of arrival
        # kept by alert id until a line about it is added: what stands, and what each reader learns
        self._holding: dict[str, list[Label]] = {}
        self._lessons: dict[Reader, dict[str, Label | None]] = {}
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
        self._arrival[label.event_id] = len(self._labels)
        self._labels[label.event_id] = label
        self._alerts.setdefault(label.alert_id, []).append(label)
        self._holding.pop(label.alert_id, None)
        for kept in self._lessons.values():
            kept.pop(label.alert_id, None)
        return True

    def _check_replaced(self, label: Label) -> None:
        """Against what it replaces, and against what came before it and replaces it."""
        replaced = self._labels.get(label.replaces or "")
        beside = [one for one in self._alerts.get(label.alert_id, ()) if one.replaces == label.event_id]
        for later, earlier in [(label, replaced), *((one, label) for one in beside)]:
            if earlier and (earlier.alert_id, earlier.model) != (later.alert_id, later.model):
                raise ValueError(
                    f"label '{later.event_id}' is of {later.alert_id} for model '{later.model}', but replaces one "
                    f"of {earlier.alert_id} for '{earlier.model}'"
                )
        while replaced is not None and replaced.replaces is not None:
            if replaced.replaces == label.event_id:
                raise ValueError(f"label '{label.event_id}' replaces itself, by way of '{replaced.event_id}'")
            replaced = self._labels.get(replaced.replaces)

    def get(self, event_id: str) -> Label:
        """The line of that event id."""
        if event_id not in self._labels:
            raise UnknownError(f"no label '{event_id}'{did_you_mean(event_id, self._labels)}")
        return self._labels[event_id]

    def stands(self, event_id: str) -> bool:
        """Whether this line holds: known, no withdrawal, and neither revised nor withdrawn."""
        known = self._labels.get(event_id)
        return known is not None and known in self._held(known.alert_id)

    def _held(self, alert_id: str) -> list[Label]:
        if alert_id not in self._holding:
            self._holding[alert_id] = _standing(self._alerts[alert_id])
        return self._holding[alert_id]

    def standing(self, model: str | None = None) -> list[Label]:
        """What holds now, "can't tell" included, in order of arrival; of one model ("" is raw labels), or of all."""
        found = [label for alert_id in self._alerts for label in self._held(alert_id)]
        return sorted(
            (label for label in found if model in (None, label.model)),
            key=lambda label: self._arrival[label.event_id],
        )

    def lesson(
        self, alert_id: str, model: str, raw: Raw = NO_RAW, classes: Sequence[str] | None = None
    ) -> Label | None:
        """The one label of an alert that a model learns, its class translated; None: nothing, by the rule."""
        return self._lesson(self._alerts.get(alert_id, ()), model, raw, classes)

    def to_learn(self, model: str, raw: Raw = NO_RAW, classes: Sequence[str] | None = None) -> list[Label]:
        """What a model learns from the beginning: one label per alert at most, its class translated.

        The order is that of arrival of the line that gave each its class, so that a new line that undoes nothing adds
        at the end, if it adds at all. With `classes`, those of the model's own labels that it no longer knows are left out.
        """
        kept = self._lessons.setdefault(_reader(model, raw, classes), {})
        for alert_id in self._alerts.keys() - kept.keys():
            kept[alert_id] = self._lesson(self._alerts[alert_id], model, raw, classes)
        return sorted(
            (label for label in kept.values() if label), key=lambda label: self._arrival[label.event_id]
        )

    def undoes(
        self, label: Label, model: str = "", raw: Raw = NO_RAW, classes: Sequence[str] | None = None
    ) -> bool:
        """Whether what a model learned changes by this line, known already or not: then it must be rebuilt.

        So it is with a revision, a withdrawal, and where the verdict of the rule flips. Without `model`, the label's own.
        """
        lines = [one for one in self._alerts.get(label.alert_id, ()) if one.event_id != label.event_id]
        model = model or label.model
        before = self._lesson(lines, model, raw, classes)
        return _undone(before, self._lesson([*lines, label], model, raw, classes), label)

    def labelled_objects(self, model: str, raw: Raw = NO_RAW) -> frozenset[str]:
        """Objects somebody has answered about, "can't tell" included: they are not asked again."""
        known = {name for names in raw.values() for name in names}
        return frozenset(
            label.object_id
            for label in self.standing()
            if label.object_id is not None
            and (label.model == model or (not label.model and (label.label in known or label.label is None)))
        )

    def _lesson(
        self, lines: Iterable[Label], model: str, raw: Raw, classes: Sequence[str] | None
    ) -> Label | None:
        own = [label for label in lines if label.model in ("", model)]
        classed = {label.event_id: translate(label, model, classes, raw) for label in own}
        concern = [one for one in own if classed[one.event_id] or (not one.label and (one.model or raw))]
        votes = _votes(concern, _standing(own), classed)
        verdict = RULES[self.rule](list(votes.values())) if votes else None
        if verdict is None:
            return None
        void = _void_and_revised(own)[0]
        agreeing = [
            one
            for one in concern
            if classed[one.event_id] == verdict == votes.get(_voter(one)) and one.event_id not in void
        ]
        first = min(agreeing, key=lambda one: self._arrival.get(one.event_id, len(self._labels)))
        return first if first.label == verdict else dataclasses.replace(first, label=verdict)


Reader = tuple[Any, ...]
Voter = tuple[bool, str]


def _reader(model: str, raw: Raw, classes: Sequence[str] | None) -> Reader:
    """A model with its `raw` map and its classes, as a key."""
    own = tuple((name, *meant) for name, meant in raw.items())
    return model, own, None if classes is None else tuple(classes)


def _voter(label: Label) -> Voter:
    return label.from_catalogue, label.who


def _time(label: Label) -> tuple[float, str]:
    return label.when, label.event_id


def _votes(
    concern: Sequence[Label], standing: Sequence[Label], classed: Mapping[str, str | None]
) -> dict[Voter, str | None]:
    """Each person's last word, in the order of time; the catalogues' where no person names a class."""
    holds = {label.event_id for label in standing}
    last = {_voter(one): one for one in sorted(concern, key=_time) if one.event_id in holds}
    ordered = sorted(last, key=lambda voter: _time(last[voter]))
    votes = {voter: classed[last[voter].event_id] for voter in ordered}
    people = {voter: vote for voter, vote in votes.items() if not voter[0]}
    catalogues = {voter: vote for voter, vote in votes.items() if voter[0]}
    return people if any(people.values()) else catalogues or people


def _standing(lines: Iterable[Label]) -> list[Label]:
    """Of lines about one alert, those that hold."""
    known = sorted(lines, key=_time)
    void, revised = _void_and_revised(known)
    holding = [one for one in known if not one.withdrawn and one.event_id not in void | revised]
    return list({(_voter(one), one.model): one for one in holding}.values())


def _void_and_revised(lines: Sequence[Label]) -> tuple[set[str], set[str]]:
    """Event ids of lines about one alert: what is withdrawn, and what is revised by a line that is not.

    What replaces a line is looked at before it, however long the chain is.
    """
    by_id = {label.event_id: label for label in lines}
    replacing = Counter(label.replaces for label in lines)
    ready = [label for label in lines if not replacing[label.event_id]]
    void: set[str] = set()
    revised: set[str] = set()
    while ready:
        label = ready.pop()
        if label.replaces is None:
            continue
        if label.event_id not in (void | revised if label.withdrawn else void):
            (void if label.withdrawn else revised).add(label.replaces)
        replacing[label.replaces] -= 1
        if label.replaces in by_id and not replacing[label.replaces]:
            ready.append(by_id[label.replaces])
    return void, revised


def _undone(before: Label | None, after: Label | None, new: Label) -> bool:
    """Whether to learn `new` last, or nothing, is not enough."""
    if before is None:
        return after is not None and after.event_id != new.event_id
    return after is None or (after.event_id, after.label) != (before.event_id, before.label)


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
