"""`raybroker replay` and `raybroker simulate`: packets into Kafka, and packets out of nothing."""

from __future__ import annotations

import itertools
from datetime import date as Date
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from raybroker import simulate as sky
from raybroker.errors import SettingsError
from raybroker.stream import replay as night
from raybroker.stream.client import Cluster
from raybroker.stream.kafka import Producer
from raybroker.synthetic import LOOKS, Sky

VISIT_SECONDS = 39.0  # Rubin's cadence


def pace(rate: float, visits: int) -> night.Pace:
    """When packet i is due: at once, steadily, or in visits."""
    if rate and visits:
        raise SettingsError("--rate and --visits exclude each other")
    if visits:
        return night.visits(visits, VISIT_SECONDS)
    return night.steady(rate) if rate else night.at_once


def replay(
    paths: list[str], servers: str, topic: str, pace: night.Pace, partitions: int, console: Console
) -> None:
    """All packets of all paths, in order, into one topic."""
    for path in paths:
        night.files(path)  # said before a topic is made
    Cluster(servers, {}).create([topic], partitions)
    producer = Producer(servers)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"to {topic}", total=None)
        packets = itertools.chain.from_iterable(night.packets(path) for path in paths)
        sent = night.replay(packets, producer, topic, pace, tell=lambda n: progress.update(task, completed=n))
    console.print(f"{sent:,} packets are in topic [bold]{topic}[/] at {servers}")


def simulate(
    folder: Path, alerts: int, survey: str, date: str, seed: int, bad: float, console: Console
) -> None:
    """A night of packets and its truth."""
    if survey not in LOOKS:
        raise SettingsError(f"--survey {survey}: packets are simulated for {', '.join(LOOKS)}")
    try:
        Date.fromisoformat(date)
    except ValueError as error:
        raise SettingsError(f"--date {date}: a night is written YYYYMMDD; {error}") from None
    night_of = sky.night(Sky.for_night(seed, alerts), alerts, date, survey, broken=bad)
    with console.status("simulating"):
        packets, truth = sky.write_night(folder, night_of)
    console.print(f"{alerts:,} packets of {survey} in [bold]{packets}[/], the truth in [bold]{truth}[/]")
