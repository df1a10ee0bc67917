"""Why an alert has its score: found again from what is stored, bit for bit, and taken apart feature by feature.

The row names a snapshot, whose row in `snapshots` names a file by its digest, and a plan. Where the plan that is
installed here would make the same columns, the features are computed again from the archived packet and must equal the
stored ones; else the stored columns are taken, and it is said what differs. Nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from raybroker.archive import delta, provenance, segments
from raybroker.archive.lookup import Lookup
from raybroker.cluster.plans import differences, upstream
from raybroker.errors import RaybrokerError, SettingsError, UnknownError, did_you_mean
from raybroker.learning.compiled import Floats, matrix, restore
from raybroker.pipeline import Pipeline
from raybroker.places import Place
from raybroker.scores.online import SNAPSHOT, feature_digest, features_table
from raybroker.surveys import Survey

Parts = Callable[[str], tuple[Survey, Pipeline]]  # of a survey's name, as they are installed here
ByClass = Mapping[str, float]


@dataclass(frozen=True)
class Effect:
    """What one feature does to a score, all others left as they are."""

    feature: str
    value: float | None  # None: not known, as the model sees it
    moved: ByClass  # the probability less what it is when this feature is not known
    from_centre: ByClass | None  # less what it is at the model's centre of this feature; None: it has none


@dataclass(frozen=True)
class Say:
    """What one member of the mixture says."""

    member: str
    weight: float | None  # None: the model weighs them in another way
    probabilities: ByClass


@dataclass(frozen=True)
class Explanation:
    """`reproduced` is None where there is no score to find again; `sentence` says it all in a line."""

    alert_id: str
    object_id: str | None
    survey: str
    model: str
    outcome: str
    sentence: str
    reproduced: bool | None = None
    plan: str = ""
    source: str = ""  # of the features: packet, or columns
    differences: tuple[str, ...] = ()  # between the plan that made the row and the one that is installed here
    snapshot: int | None = None
    digest: str = ""  # of the model's file
    labels: int | None = None  # that the snapshot had learned
    published: datetime | None = None
    configuration: str = ""
    feature_digest: str = ""
    stored: Mapping[str, float | None] = field(default_factory=dict)
    computed: Mapping[str, float | None] = field(default_factory=dict)
    members: tuple[Say, ...] = ()
    effects: tuple[Effect, ...] = ()  # those that moved it most first


def explain(root: Place, parts: Parts, alert_id: str, model: str = "") -> Explanation:
    """Find the score of an alert again. `model` may be left out where the alert has one score.

    UnknownError for an alert that is not archived or a model that it has no score of; whatever else is missing or
    damaged is told in the explanation, which then is not `reproduced`.
    """
    lookup = Lookup(root)
    row = lookup.alert(alert_id)
    plan, untold = _plan(root, row["plan"])
    told = Explanation(
        row["alert_id"],
        row["object_id"],
        row["survey"],
        _model(row, plan, model),
        row["outcome"],
        "",
        plan=row["plan"],
    )
    score = row.get(told.model) or {}
    number = score.get(SNAPSHOT)
    if number is None:
        return replace(told, sentence=_no_score(row, told.model))
    stored = {name: value for name, value in score.items() if name != SNAPSHOT}
    told = replace(told, snapshot=number, stored=stored)
    try:
        return _found_again(told, lookup, row, plan, untold, parts)
    except (RaybrokerError, ValueError) as error:
        sentence = f"the score cannot be found again: {error}"
        return replace(told, reproduced=False, sentence=sentence, differences=untold)


def _plan(root: Place, digest: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The stored plan; where it is lost or damaged, an empty one and what is wrong."""
    try:
        return provenance.load(root, digest), ()
    except (RaybrokerError, ValueError) as error:
        return {}, (f"the plan of the row cannot be read: {error}",)


def _model(row: Mapping[str, Any], plan: Mapping[str, Any], wanted: str) -> str:
    """The model that is asked for, or the only one."""
    known = [step["name"] for step in plan.get("steps", ()) if step["kind"] == "score"]
    known += [name for name, value in row.items() if isinstance(value, dict) and SNAPSHOT in value]
    known = list(dict.fromkeys(known))
    if not known:
        raise UnknownError(f"no model scored alert '{row['alert_id']}': its plan has none")
    if wanted and wanted not in known:
        near = did_you_mean(wanted, known)
        raise UnknownError(f"alert '{row['alert_id']}' has no score of '{wanted}'{near}: {', '.join(known)}")
    if not wanted and len(known) > 1:
        raise SettingsError(f"which model? --model is one of {', '.join(known)}")
    return wanted or known[0]


def _no_score(row: Mapping[str, Any], model: str) -> str:
    if row["outcome"] == "rejected":
        return f"the cut '{row['reason']}' rejected it, so {model} did not score it"
    if row["outcome"] == "duplicate":
        return f"it is a duplicate of an alert archived before, so {model} did not score it"
    if row["outcome"] == "failed":
        return f"{model} has no score of it, since a step failed: {row['reason']}"
    return f"{model} has no score of it: no snapshot was published when it was archived"


def _found_again(
    told: Explanation,
    lookup: Lookup,
    row: Mapping[str, Any],
    plan: Mapping[str, Any],
    untold: tuple[str, ...],
    parts: Parts,
) -> Explanation:
    """The score computed anew, and what moved it."""
    snapshot = _snapshot(lookup, told.model, told.snapshot or 0)
    told = replace(
        told,
        digest=snapshot["digest"],
        labels=snapshot["labels"],
        published=snapshot["when"],
        configuration=snapshot.get("configuration") or "",
    )
    model = _restored(lookup.root, told.digest)
    different = untold or _different(plan, row["survey"], told.model, parts)
    columns = {name: pa.array([value]) for name, value in _needed(row, model.columns).items()}
    stored = matrix(features_table(columns, model.columns), model.columns)
    features, source = stored, "columns"
    if not different:
        features, source, different = _from_packet(lookup, row, told.model, model.columns, parts, stored)
    told = replace(told, source=source, differences=different, feature_digest=feature_digest(features[0]))
    told = _taken_apart(told, model, features)
    return _judged(told, model.columns, features[0], stored[0])


def _snapshot(lookup: Lookup, model: str, number: int) -> dict[str, Any]:
    """The snapshot's row."""
    lost = UnknownError(f"snapshot {number} of {model} is not recorded in {lookup.root / 'snapshots'}")
    if not delta.exists(lookup.root / "snapshots"):
        raise lost
    query = "select * from snapshots where model = $model and number = $number"
    found = lookup.sql(query, {"model": model, "number": number}).to_pylist()
    if not found:
        raise lost
    return dict(found[0])


def _restored(root: Place, digest: str) -> Any:
    """The model from its file, whose bytes are checked; one that this version cannot open is told as such."""
    content = provenance.get(root, digest)
    try:
        return restore(content)
    except Exception as error:  # a pickle of classes that have changed since raises whatever it likes
        reason = f"{type(error).__name__}: {error}"
        raise UnknownError(
            f"the model file {digest} is whole, but this version cannot open it: {reason}"
        ) from error


def _different(plan: Mapping[str, Any], survey: str, model: str, parts: Parts) -> tuple[str, ...]:
    """What would make other columns here than made the row."""
    try:
        _, pipeline = parts(survey)
    except (SettingsError, KeyError) as error:
        return (f"the pipeline of '{survey}' cannot be built from the settings here: {error}",)
    return tuple(differences(plan, pipeline.plan, upstream(plan, model)))


def _needed(row: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """The row's columns that hold these features."""
    return {name: row.get(name) for name in dict.fromkeys(path.partition(".")[0] for path in paths)}


def _from_packet(
    lookup: Lookup, row: Mapping[str, Any], model: str, paths: Sequence[str], parts: Parts, stored: Floats
) -> tuple[Floats, str, tuple[str, ...]]:
    """The features computed again from the packet; if it is gone, the stored ones, and why."""
    survey, pipeline = parts(row["survey"])
    needed = upstream(pipeline.plan, model)
    try:
        packet = segments.read(lookup.root / row["survey"], row["segment"], row["position"])
        decoded = survey.decode([packet])
    except (RaybrokerError, OSError) as error:
        return stored, "columns", (f"its packet cannot be read: {error}",)
    if decoded.bad:
        return stored, "columns", (f"its packet cannot be decoded: {decoded.bad[0].reason}",)
    steps = tuple(step for step in pipeline.steps if step.name in needed)
    batch = replace(pipeline, steps=steps).run(decoded.batch, decoded.bodies).kept
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    return matrix(features_table(columns, paths), paths), "packet", ()


def _taken_apart(told: Explanation, model: Any, features: Floats) -> Explanation:
    """The score, the members' say, and what each feature does."""
    said = model.predict_matrix(features)
    classes = tuple(model.classes)
    weights = getattr(model, "weights", None)
    members = tuple(
        Say(
            name,
            None if weights is None else float(weights[m]),
            dict(zip(classes, said.members[m, 0].tolist(), strict=True)),
        )
        for m, name in enumerate(model.members)
    )
    computed = dict(zip(classes, (_float32(p) for p in said.mixture[0]), strict=True))
    return replace(told, computed=computed, members=members, effects=effects(model, features))


def effects(model: Any, features: Floats) -> tuple[Effect, ...]:
    """Each feature's effect on a row [1, columns], those that move any class most first."""
    here = model.predict_matrix(features).mixture[0]
    unknown = _one_by_one(features, np.full(features.shape[1], math.nan))
    without = here - model.predict_matrix(unknown).mixture
    centre = _centre(model)
    central: Floats | None = None
    if centre is not None:
        central = here - model.predict_matrix(_one_by_one(features, centre)).mixture
    found = [
        Effect(
            name,
            float(features[0, i]) if math.isfinite(features[0, i]) else None,
            dict(zip(model.classes, without[i].tolist(), strict=True)),
            None if central is None else dict(zip(model.classes, central[i].tolist(), strict=True)),
        )
        for i, name in enumerate(model.columns)
    ]
    return tuple(sorted(found, key=lambda effect: -max(map(abs, effect.moved.values()))))


def _centre(model: Any) -> Floats | None:
    """The middle of each feature: what a `Frozen` scales about, NaN where it cannot; what `Outliers` fill in."""
    scale = getattr(model, "scale", None)
    if scale is not None:
        return np.where(scale.spread > 0, scale.center, math.nan)
    return getattr(model, "filling", None)


def _one_by_one(features: Floats, values: Floats) -> Floats:
    """As many copies of the row as it has features, each with one of them replaced."""
    rows = np.repeat(features, features.shape[1], axis=0)
    np.fill_diagonal(rows, values)
    return rows


def _float32(probability: float) -> float | None:
    """As the archive keeps it."""
    return float(np.float32(probability)) if not math.isnan(probability) else None


def _judged(told: Explanation, names: Sequence[str], features: Floats, stored: Floats) -> Explanation:
    """Whether all is as it was, bit for bit, and the sentence that says so."""
    wrong = [
        f"{name} is {float(features[i])!r} from its packet, but {float(stored[i])!r} is stored"
        for i, name in enumerate(names)
        if features[i : i + 1].tobytes() != stored[i : i + 1].tobytes()
    ]
    wrong += [
        f"{name} is {told.computed.get(name)!r} now, but {value!r} is stored"
        for name, value in told.stored.items()
        if _bits(told.computed.get(name)) != _bits(value)
    ]
    wrong += [f"the model has no class {name}" for name in told.stored if name not in told.computed]
    origin = "its packet" if told.source == "packet" else "the stored columns"
    if not wrong:
        sentence = f"the score is found again bit for bit, from {origin}"
        return replace(told, reproduced=True, sentence=sentence)
    more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return replace(
        told, reproduced=False, sentence=f"the score is NOT found again: {'; '.join(wrong[:3])}{more}"
    )


def _bits(value: float | None) -> bytes | None:
    return None if value is None else np.float32(value).tobytes()
