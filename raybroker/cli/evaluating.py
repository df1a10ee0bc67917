"""`raybroker evaluate`: any table, honest protocols."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from raybroker import settings as settings_file
from raybroker.errors import SettingsError, did_you_mean
from raybroker.settings import ModelSettings


@dataclass(frozen=True)
class Wish:
    """The options of the verb, by their names."""

    table: Path
    label: str
    object_: str
    time: str
    columns: list[str]
    wanted: list[str]
    protocol: list[str]
    model: str
    members: list[str]
    seeds: int
    seed: int
    delay: float
    never: float
    thinning: float
    history: float
    share: float
    shuffle: bool
    strategy: list[str]
    labels: int
    rule: str
    change: str
    night: bool
    output: Path | None
    mlflow: str
    settings: Path


def run(wish: Wish, out: Console, err: Console) -> None:
    """Evaluate, show, and say where the report is."""
    from raybroker.protocols import report

    with Progress(console=err, transient=True) as progress:
        made = _night(wish, progress) if wish.night else _table(wish, progress)
    for note in made.notes:
        err.print(f"[yellow]·[/] {note}", soft_wrap=True)
    report.show(made, out)
    if wish.output:
        out.print(f"report: [bold]{wish.output / 'evaluation.html'}[/]", soft_wrap=True)


def _table(wish: Wish, progress: Progress) -> Any:
    from raybroker.protocols.evaluate import evaluate

    tasks: dict[str, TaskID] = {}

    def tell(protocol: str, share: float) -> None:
        if protocol not in tasks:
            tasks[protocol] = progress.add_task(protocol, total=1.0)
        progress.update(tasks[protocol], completed=share)

    return evaluate(
        wish.table,
        label=wish.label,
        object=wish.object_,
        time=wish.time or None,
        protocol=wish.protocol or None,
        wanted=wish.wanted,
        seeds=range(wish.seed, wish.seed + wish.seeds),
        delay=wish.delay,
        never=wish.never,
        thinning=wish.thinning,
        history=wish.history,
        share=wish.share,
        shuffle=wish.shuffle,
        strategies=wish.strategy,
        labels=wish.labels,
        rule=wish.rule or (_model(wish).rank if wish.model else "mean"),
        change=wish.change,
        output=wish.output,
        mlflow=wish.mlflow or None,
        progress=tell,
        **_learner(wish),
    )


def _learner(wish: Wish) -> dict[str, Any]:
    """Members, window and columns: of the model that is named, or as the options say."""
    if not wish.model:
        anomaly = {"anomaly_members": wish.members} if wish.protocol == ["anomaly"] and wish.members else {}
        return {"columns": wish.columns, **(anomaly or {"members": wish.members})}
    model = _model(wish)
    columns = wish.columns if wish.columns != ["*"] else model.columns
    made: dict[str, Any] = {"columns": columns, "window": model.window}
    kind = "anomaly_members" if model.task == "anomaly" else "members"
    return made | {kind: wish.members or model.members}


def _model(wish: Wish) -> ModelSettings:
    models = settings_file.load(wish.settings).models
    if wish.model not in models:
        near = did_you_mean(wish.model, models)
        raise SettingsError(
            f"--model {wish.model}: {wish.settings} has no such model{near}; it has {sorted(models)}"
        )
    return models[wish.model]


def _night(wish: Wish, progress: Progress) -> Any:
    from raybroker.protocols import night

    task = progress.add_task("nights", total=1.0)
    return night.evaluate(
        wish.table,
        label=wish.label,
        object=wish.object_,
        wanted=wish.wanted,
        members=wish.members,
        delay=wish.delay,
        seed=wish.seed,
        share=wish.share,
        output=wish.output,
        mlflow=wish.mlflow or None,
        progress=lambda share: progress.update(task, completed=share),
    )
