"""The verbs of `raybroker`."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from raybroker import settings as settings_file
from raybroker.cli.template import template
from raybroker.cluster import logs
from raybroker.errors import RaybrokerError, SettingsError

app = typer.Typer(
    help="An alert broker that learns.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

SettingsPath = Annotated[Path, typer.Option("--settings", "-s", help="the settings file")]
Url = Annotated[str, typer.Option(help="where the service runs")]
DEFAULT_URL = "http://127.0.0.1:8000"
SETTINGS = Path("raybroker.toml")


class SurveyName(StrEnum):
    """The surveys that can be read."""

    ztf = "ztf"
    rubin = "rubin"
    fink = "fink"


@app.command()
def init(
    survey: SurveyName,
    settings: SettingsPath = SETTINGS,
    force: Annotated[bool, typer.Option(help="write over an existing file")] = False,
) -> None:
    """Write a commented settings file."""
    if settings.exists() and not force:
        raise SettingsError(f"{settings} exists already; --force writes over it")
    settings.write_text(template(survey.value), encoding="utf-8")
    out.print(f"wrote [bold]{settings}[/]; next: [bold]raybroker check[/], then [bold]raybroker run[/]")


@app.command()
def check(settings: SettingsPath = SETTINGS) -> None:
    """Load the settings, print the plan, try Kafka, catalogues and MLflow: a line per problem and its mend."""
    from raybroker.cli import checkup

    loaded = settings_file.load(settings)
    for name in loaded.surveys:
        out.print(checkup.plan_table(loaded, name))
    problems = checkup.problems(loaded, lambda what: out.print(f"[green]✓[/] {what}"))
    for problem in problems:
        err.print(f"[red]✗[/] {problem}")
    if problems:
        raise typer.Exit(1)


@app.command()
def run(
    settings: SettingsPath = SETTINGS,
    once: Annotated[bool, typer.Option(help="read what is there now and exit, for cron")] = False,
    local: Annotated[bool, typer.Option(help="one process, without Ray")] = False,
    address: Annotated[str, typer.Option(help="an existing Ray cluster")] = "",
    report: Annotated[
        Path | None,
        typer.Option(help="keep the totals, and the seconds by stage, in this file as JSON, once a second"),
    ] = None,
    service: Annotated[bool, typer.Option(help="serve the API and the page too")] = True,
) -> None:
    """Run against the Kafka in the settings, until Ctrl-C."""
    from raybroker.cli import running

    loaded = settings_file.load(settings)
    if address:
        loaded = loaded.model_copy(update={"ray": loaded.ray.model_copy(update={"address": address})})
    running.run(loaded, once=once, local=local, console=out, report=report, service=service)


@app.command()
def demo(
    night: Annotated[
        Path | None, typer.Option(help="real packets: a nightly tarball; default: a simulated night")
    ] = None,
    alerts: Annotated[int, typer.Option(help="how many alerts to simulate")] = 3000,
    oracle: Annotated[bool, typer.Option(help="label by itself, from the simulator's truth")] = False,
    exit_: Annotated[bool, typer.Option("--exit", help="stop after the night")] = False,
    port: Annotated[int, typer.Option(help="of the page; a busy one moves on")] = 8000,
    folder: Annotated[Path, typer.Option(help="where runs are kept")] = Path("demo-data"),
) -> None:
    """The main job end to end on this machine, with an embedded Kafka."""
    from raybroker.cli import demo as demonstration

    demonstration.run(demonstration.Wish(night, alerts, oracle, exit_, port, folder), out)


@app.command()
def replay(
    packets: Annotated[list[str], typer.Argument(help="a ZTF nightly tarball, a folder, or a glob")],
    topic: Annotated[str, typer.Option(help="the topic to write to")],
    servers: Annotated[str, typer.Option(help="Kafka bootstrap servers")] = "localhost:9092",
    rate: Annotated[float, typer.Option(help="alerts per second; 0: as fast as possible")] = 0.0,
    visits: Annotated[
        int, typer.Option(help="instead: in the rhythm of visits, this many alerts every 39 s")
    ] = 0,
    partitions: Annotated[int, typer.Option(help="of the topic, where it must be made")] = 4,
) -> None:
    """Write packets to a Kafka topic."""
    from raybroker.cli import replaying

    replaying.replay(packets, servers, topic, replaying.pace(rate, visits), partitions, out)


@app.command()
def simulate(
    folder: Annotated[Path, typer.Argument(help="gets packets.tar.gz and truth.csv")],
    alerts: Annotated[int, typer.Option(help="how many")] = 1000,
    survey: SurveyName = SurveyName.ztf,
    date: Annotated[str, typer.Option(help="the night, YYYYMMDD")] = "20260901",
    seed: int = 0,
    bad: Annotated[float, typer.Option(help="share of broken packets")] = 0.0,
) -> None:
    """Write a night of simulated packets, with the truth beside them."""
    from raybroker.cli import replaying

    replaying.simulate(folder, alerts, survey.value, date, seed, bad, out)


@app.command()
def status(
    settings: SettingsPath = SETTINGS,
    url: Url = DEFAULT_URL,
    watch: Annotated[bool, typer.Option("--watch", help="again every two seconds, until Ctrl-C")] = False,
    json: Annotated[bool, typer.Option("--json", help="all of it, as JSON")] = False,
) -> None:
    """How it goes: rates, lag, outcomes, stages, models, archive and troubles. Where nothing answers: the archive's."""
    from raybroker.cli import watching

    watching.show(lambda: watching.look(url, settings), out, watch, json)


@app.command()
def audit(
    survey: Annotated[str, typer.Option(help="one survey of the settings; default: all")] = "",
    night: Annotated[int | None, typer.Option(help="the counts of one night, YYYYMMDD")] = None,
    kafka: Annotated[bool, typer.Option(help="compare with what Kafka still has")] = True,
    json: Annotated[bool, typer.Option("--json", help="all of it, as JSON")] = False,
    settings: SettingsPath = SETTINGS,
) -> None:
    """Prove that each offset read is exactly one thing: scored, rejected, ..., expired. Status 1 where one is not."""
    from raybroker.cli import auditing

    loaded = settings_file.load(settings)
    found = auditing.looked(loaded, survey, kafka)
    auditing.note(loaded, survey, found)
    if json:
        typer.echo(auditing.as_json(found, night))
    else:
        auditing.show(found, out, night)
    if found.wrong:
        raise typer.Exit(1)


@app.command()
def reprocess(
    survey: Annotated[str, typer.Argument(help="a survey of the settings")],
    first: Annotated[int, typer.Argument(help="the first night, YYYYMMDD")],
    last: Annotated[int, typer.Argument(help="the last night; default: the first")] = 0,
    step: Annotated[list[str], typer.Option(help="repeatable; default: all of the plan but cuts")] = [],  # noqa: B006
    address: Annotated[str, typer.Option(help="an existing Ray cluster")] = "",
    settings: SettingsPath = SETTINGS,
) -> None:
    """Compute steps of stored alerts again: rows of `annotations`. Status 1 where a value could not be had."""
    from raybroker.cli import reprocessing

    wish = reprocessing.wish(survey, first, last, step)
    if reprocessing.run(settings_file.load(settings), wish, address, out, err):
        raise typer.Exit(1)


@app.command()
def explain(
    alert: Annotated[str, typer.Argument(help="an alert id")],
    model: Annotated[str, typer.Option(help="whose score; default: the only one")] = "",
    top: Annotated[int, typer.Option(min=1, help="how many features to show")] = 12,
    json: Annotated[bool, typer.Option("--json", help="all of it, as JSON")] = False,
    settings: SettingsPath = SETTINGS,
) -> None:
    """Find an alert's score again, bit for bit, and show the features that moved it. Status 1 if it is not found."""
    from raybroker.cli import explaining

    found = explaining.explained(settings_file.load(settings), alert, model)
    if json:
        typer.echo(explaining.as_json(found))
    else:
        explaining.show(found, out, top)
    if found.reproduced is False:
        raise typer.Exit(1)


@app.command()
def label(
    alert: Annotated[
        str | None, typer.Argument(help="an alert id; without it, the list to label, one by one")
    ] = None,
    class_: Annotated[
        str | None, typer.Argument(metavar="CLASS", help="its class, or '?' for can't tell")
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="take labels from this file, CSV or Parquet")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="write the labels that hold to this file")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="take back your last label")] = False,
    last: Annotated[int, typer.Option(min=1, help="with --undo: so many of them")] = 1,
    model: Annotated[str, typer.Option(help="which model; default: the only one, or raw labels")] = "",
    settings: SettingsPath = SETTINGS,
    url: Url = DEFAULT_URL,
    token: Annotated[str, typer.Option(envvar="RAYBROKER_TOKEN", help="your token")] = "",
) -> None:
    """Label one alert, or those that the models ask for, or take labels from a file.

    Files, and --undo, go straight into the archive of the settings where no service answers.
    """
    from raybroker.cli import asking, exchanging, session

    desk = asking.Client(url, token)
    if alert and not class_:
        raise SettingsError(f"label {alert}: which class? Give it after the id, '?' for can't tell")
    if sum(map(bool, (alert, from_, to, undo))) > 1:
        raise SettingsError("label: one of an alert, --from, --to and --undo at a time")
    if alert and class_:
        out.print(desk.label(alert, class_, model))
    elif from_:
        if exchanging.take_in(exchanging.door(url, token, settings, out), from_, model, out, err):
            raise typer.Exit(1)
    elif to:
        exchanging.give_out(exchanging.door(url, token, settings, out, write=False), to, model, out)
    elif undo:
        exchanging.undo(exchanging.door(url, token, settings, out), last, model, out)
    else:
        session.start(desk, model, out)


@app.command()
def evaluate(
    table: Annotated[Path, typer.Argument(help="Parquet or CSV: features, a label, an object, a time")],
    label: Annotated[str, typer.Option(help="the column with the class")],
    object_: Annotated[str, typer.Option("--object", help="the column with the object's name")],
    time: Annotated[str, typer.Option(help="the column with the time, in days")] = "",
    columns: Annotated[list[str], typer.Option(help="features, as globs; repeatable")] = ["*"],  # noqa: B006
    wanted: Annotated[list[str], typer.Option(help="the class of interest, as a glob; repeatable")] = [],  # noqa: B006
    protocol: Annotated[
        list[str],
        typer.Option(
            help="stream, holdout, active, drift, anomaly, ranking; repeatable; default: all that apply"
        ),
    ] = [],  # noqa: B006
    model: Annotated[
        str, typer.Option(help="take members, window and columns from this model of the settings")
    ] = "",
    members: Annotated[
        list[str], typer.Option(help="of the mixture, or of the anomaly loop; repeatable")
    ] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(min=1, help="how many")] = 5,
    seed: Annotated[int, typer.Option(help="the first of them")] = 0,
    delay: Annotated[float, typer.Option(help="days until a label comes")] = 14.0,
    never: Annotated[float, typer.Option(help="share of the objects whose labels never come")] = 0.0,
    thinning: Annotated[float, typer.Option(help="days between two labels of an object")] = 5.0,
    history: Annotated[
        float, typer.Option(help="days of light curve in an alert, where the table has light curves")
    ] = 30.0,
    share: Annotated[float, typer.Option(help="use a random share of the objects")] = 1.0,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="control: deal the labels out anew")] = False,
    strategy: Annotated[
        list[str], typer.Option(help="of the active protocol; repeatable; default: all")
    ] = [],  # noqa: B006
    labels: Annotated[int, typer.Option(min=20, help="of the active protocol: where its curves end")] = 200,
    rule: Annotated[
        str,
        typer.Option(
            help="an object's rank: mean, latest or max of its alerts; default: the model's, or mean"
        ),
    ] = "",
    change: Annotated[str, typer.Option(help="of the drift protocol: swap, time, or a column")] = "swap",
    night: Annotated[
        bool, typer.Option("--night", help="replay light curves as packets through the whole pipeline")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="a folder for evaluation.json and .html")] = None,
    mlflow: Annotated[str, typer.Option(help="log a run to this tracking URI")] = "",
    settings: SettingsPath = SETTINGS,
) -> None:
    """Evaluate the learner on any labelled table, by honest protocols: unseen objects first."""
    given = dict(locals())
    from raybroker.cli import evaluating

    evaluating.run(evaluating.Wish(**given), out, err)


def problem(error: Exception) -> int:
    """Print an error as a person wants it, and give the exit status."""
    for line in str(error).splitlines():
        err.print(f"[red]raybroker:[/] {escape(line)}", markup=True, soft_wrap=True)
    return 2 if isinstance(error, SettingsError) else 1


def main(arguments: list[str] | None = None) -> Any:
    """The program: `RaybrokerError`s become messages, everything else is ours to mend and shows its trace."""
    sys.path.insert(0, os.getcwd())  # for strategies and models of one's own, as `python -m` does
    try:
        logs.configure()
        app(arguments)
    except RaybrokerError as error:
        sys.exit(problem(error))
    except KeyboardInterrupt:
        sys.exit(130)
