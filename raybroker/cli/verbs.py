"""The verbs of `raybroker`."""

from __future__ import annotations

import logging
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from raybroker import settings as settings_file
from raybroker.cli.template import template
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
) -> None:
    """Run against the Kafka in the settings, until Ctrl-C."""
    from raybroker.cli import running

    loaded = settings_file.load(settings)
    if address:
        loaded = loaded.model_copy(update={"ray": loaded.ray.model_copy(update={"address": address})})
    running.run(loaded, once=once, local=local, console=out, report=report)


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
def status(settings: SettingsPath = SETTINGS, url: Url = DEFAULT_URL) -> None:
    """What was received and what became of it, by survey."""
    from raybroker.cli import asking

    out.print(asking.status_table(asking.status(url, settings)))


@app.command()
def label(
    alert: Annotated[
        str | None, typer.Argument(help="an alert id; without it, the list to label, one by one")
    ] = None,
    class_: Annotated[
        str | None, typer.Argument(metavar="CLASS", help="its class, or '?' for can't tell")
    ] = None,
    model: Annotated[str, typer.Option(help="which model; default: the only one")] = "",
    url: Url = DEFAULT_URL,
    token: Annotated[str, typer.Option(envvar="RAYBROKER_TOKEN", help="your token")] = "",
) -> None:
    """Label one alert, or those that the model asks for."""
    from raybroker.cli import asking

    desk = asking.Client(url, token)
    if alert and not class_:
        raise SettingsError(f"label {alert}: which class? Give it after the id, '?' for can't tell")
    if alert and class_:
        out.print(desk.label(alert, class_, model))
    else:
        asking.session(desk, model, out)


def problem(error: Exception) -> int:
    """Print an error as a person wants it, and give the exit status."""
    for line in str(error).splitlines():
        err.print(f"[red]raybroker:[/] {line}", markup=True, soft_wrap=True)
    return 2 if isinstance(error, SettingsError) else 1


def main(arguments: list[str] | None = None) -> Any:
    """The program: `RaybrokerError`s become messages, everything else is ours to mend and shows its trace."""
    logging.basicConfig(level=os.environ.get("RAYBROKER_LOG", "WARNING"), format="%(levelname)s %(message)s")
    sys.path.insert(0, os.getcwd())  # for strategies and models of one's own, as `python -m` does
    try:
        app(arguments)
    except RaybrokerError as error:
        sys.exit(problem(error))
    except KeyboardInterrupt:
        sys.exit(130)
