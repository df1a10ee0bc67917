"""The one call: a table in, honest numbers out."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raybroker.errors import SettingsError, did_you_mean
from raybroker.learning import strategies
from raybroker.protocols import active, anomaly, drift, holdout, lightcurves, ranking, streamed, tables
from raybroker.protocols.findings import Findings
from raybroker.protocols.models import Recipe
from raybroker.protocols.report import Evaluation
from raybroker.protocols.stream import Rules
from raybroker.protocols.tables import Labelled, Names

PROTOCOLS = ("stream", "holdout", "active", "drift", "anomaly", "ranking")
TIMED = ("stream", "drift")  # these need a time column
ONE_WANTED = ("anomaly", "ranking")  # these need one wanted class
Progress = Callable[[str, float], None]  # (protocol, share done)


@dataclass(frozen=True)
class Options:
    """How a table is evaluated; every protocol takes what it needs."""

    recipe: Recipe
    rules: Rules
    seeds: tuple[int, ...]
    active: active.Wish
    anomaly: tuple[str, ...]  # the members that are tried, one at a time
    rule: str  # of ranking
    change: str  # of drift


def evaluate(
    table: Any,
    *,
    label: str,
    object: str,
    time: str | None = None,
    protocol: str | Iterable[str] | None = None,
    columns: str | Iterable[str] = "*",
    wanted: str | Iterable[str] = (),
    members: Iterable[str] = (),
    window: int = 10_000,
    seeds: int | Iterable[int] = 5,
    delay: float = 14.0,
    never: float = 0.0,
    thinning: float = 5.0,
    share: float = 1.0,
    history: float = lightcurves.DAYS,
    shuffle: bool = False,
    strategies: Iterable[str] = (),
    noise: Iterable[float] = active.NOISE,
    labels: int = 200,
    anomaly_members: Iterable[str] = ("aad",),
    rule: str = "mean",
    change: str = drift.SWAP,
    output: str | Path | None = None,
    mlflow: str | None = None,
    progress: Progress = lambda protocol, share: None,
) -> Evaluation:
    """Evaluate the learner on any labelled table: see docs/how-to/evaluate.md.

    table: a path of a Parquet or CSV file, an Arrow table, or a data frame; a table of labelled light curves (a column
        `history` of jd, fid, magpsf, sigmapsf) becomes one row per detection first.
    label, object, time: the names of its columns; `time` in days. protocol: some of `PROTOCOLS`; None: all that apply.
    wanted: globs of the class of interest, all others being 'other'. share: use a random share of the objects.
    history: days before an alert that a light curve in it reaches back, where the table has light curves; ZTF's 30.
    shuffle: deal the classes out anew among the objects; every AUC must then be near 0.5.
    output: a folder for evaluation.json and evaluation.html. mlflow: a tracking URI, to log it as a run.
    SettingsError says what of the table or of the options cannot be.
    """
    options = Options(
        recipe=Recipe(tuple(members), window),
        rules=_rules(delay, never, thinning),
        seeds=tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds),
        active=active.Wish(tuple(strategies), tuple(noise), labels),
        anomaly=tuple(anomaly_members),
        rule=rule,
        change=change,
    )
    names = Names(
        label, object, time, as_tuple(columns), None if change in (drift.SWAP, drift.TIME) else change
    )
    data = load(table, names, as_tuple(wanted), share, shuffle, options.seeds, history)
    chosen = choose(data, as_tuple(protocol) if protocol is not None else None, options)
    findings = tuple(_run(name, data, options, progress) for name in chosen)
    made = Evaluation(_about(table, names, data, options, shuffle), findings, data.notes)
    keep(made, Path(output) if output else None, mlflow)
    return made


def as_tuple(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _rules(delay: float, never: float, thinning: float) -> Rules:
    if delay < 0 or thinning < 0 or not 0 <= never < 1:
        raise SettingsError(
            f"delay {delay:g}, thinning {thinning:g}, never {never:g}: days are not negative, and the share of objects "
            "whose labels never come is at least 0 and below 1"
        )
    return Rules(delay, never, thinning)


def load(
    table: Any,
    names: Names,
    wanted: Sequence[str],
    share: float,
    shuffle: bool,
    seeds: Sequence[int],
    history: float = lightcurves.DAYS,
) -> Labelled:
    """The table read and checked; `share` and `shuffle` draw by the first seed."""
    if not seeds or not 0 < share <= 1:
        raise SettingsError(
            f"seeds {list(seeds)}, share {share:g}: one seed at least, and a share above 0, at most 1"
        )
    found, notes = table_of(table, names)
    if lightcurves.are(found):
        found, names, more = lightcurves.table(found, names, history)
        notes = [*notes, *more]
    data = tables.labelled(found, names, wanted, notes)
    rng = np.random.default_rng(seeds[0])
    if share < 1:
        data = data.share(share, rng)
    return data.shuffled(rng) if shuffle else data


def table_of(table: Any, names: Names) -> tuple[pa.Table, list[str]]:
    if isinstance(table, str | Path):
        return tables.read(Path(table), names)
    if isinstance(table, pa.Table):
        return tables.flat(table), []
    if hasattr(table, "__arrow_c_stream__"):
        return tables.flat(pa.table(table)), []
    raise SettingsError(f"a {type(table).__name__} is no table: give a path, an Arrow table or a data frame")


def choose(data: Labelled, wanted: Sequence[str] | None, options: Options) -> list[str]:
    """The protocols to run; one that was asked for and cannot be is an error, with what it lacks."""
    _check_names(options)
    lacks = {name: "a time column (--time)" for name in TIMED if not data.timed}
    lacks |= {name: "one wanted class (--wanted)" for name in ONE_WANTED if not data.binary}
    for name in wanted or ():
        if name not in PROTOCOLS:
            raise SettingsError(
                f"no protocol '{name}'{did_you_mean(name, PROTOCOLS)}: there are {', '.join(PROTOCOLS)}"
            )
        if name in lacks:
            raise SettingsError(f"protocol '{name}' needs {lacks[name]}")
    return [name for name in PROTOCOLS if (name in wanted if wanted else name not in lacks)]


def _check_names(options: Options) -> None:
    """Members, strategies and rules that nobody knows are said before anything runs."""
    if options.rule not in ranking.RULES:
        near = did_you_mean(options.rule, ranking.RULES)
        raise SettingsError(f"no rank rule '{options.rule}'{near}: there are {', '.join(ranking.RULES)}")
    for name in options.active.names:
        strategies.by_name(name)


def _run(name: str, data: Labelled, options: Options, progress: Progress) -> Findings:
    """One protocol."""
    rules, recipe, seeds = options.rules, options.recipe, options.seeds

    def tell(share: float) -> None:
        progress(name, share)

    if name == "stream":
        return streamed.protocol(data, recipe, rules, seeds, tell)
    if name == "holdout":
        return holdout.protocol(data, recipe, seeds, rules.thinning, rules.delay, tell)
    if name == "active":
        return active.protocol(data, recipe, seeds, options.active, tell)
    if name == "drift":
        return drift.protocol(data, recipe, rules, seeds, options.change, tell)
    if name == "anomaly":
        return anomaly.protocol(data, seeds, options.anomaly, progress=tell)
    return ranking.protocol(data, recipe, seeds, options.rule, rules.thinning, tell)


def _about(table: Any, names: Names, data: Labelled, options: Options, shuffle: bool) -> Mapping[str, Any]:
    from raybroker import __version__

    said = replace(options.active, strategies=options.active.names)
    return {
        "table": str(table) if isinstance(table, str | Path) else type(table).__name__,
        "rows": len(data),
        "objects": len(np.unique(data.objects)),
        "classes": ", ".join(data.classes),
        "features": len(data.columns),
        "label": names.label,
        "object": names.object,
        "time": names.time or "",
        "shuffled labels": shuffle,
        "members": ", ".join(options.recipe.names),
        "window": options.recipe.window,
        "seeds": ", ".join(map(str, options.seeds)),
        "delay, days": options.rules.delay,
        "never labelled": options.rules.never,
        "thinning, days": options.rules.thinning,
        "strategies": ", ".join(said.strategies),
        "raybroker": __version__,
        "python": platform.python_version(),
    }


def keep(made: Evaluation, folder: Path | None, tracking_uri: str | None) -> None:
    """The files, and the run."""
    files = made.write(folder) if folder is not None else []
    if tracking_uri is not None:
        from raybroker.learning import registry

        params = {name.replace(", ", "_").replace(" ", "_"): str(value) for name, value in made.about.items()}
        registry.log_evaluation(tracking_uri, "raybroker", "evaluate", params, made.metrics, files)
