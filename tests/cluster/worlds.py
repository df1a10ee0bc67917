"""Small worlds for the tests of workers and trainer: real packets, memory streams, an archive in a temporary folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from raybroker import surveys
from raybroker.alerts import Packet
from raybroker.archive.table import AlertsTable, row_schema
from raybroker.cluster.worker import Books, Worker
from raybroker.pipeline import Pipeline, plan
from raybroker.settings import TurnSettings
from raybroker.step import Step, discover
from raybroker.stream.memory import MemorySink, MemorySource

ZTF = surveys.load("ztf")
TOPIC = "ztf_20181129_programid1"


def placed(packets: Iterable[Packet], partitions: int = 2, topic: str = TOPIC) -> list[Packet]:
    """The packets as a topic with some partitions holds them."""
    return [
        replace(packet, topic=topic, partition=i % partitions, offset=i // partitions)
        for i, packet in enumerate(packets)
    ]


def pipeline(*extra: Step, names: Sequence[str] = ("real", "good_pixels", "basic")) -> Pipeline:
    known = discover()
    return plan([*(known[name] for name in names), *extra], ZTF.schema, "ztf")


def worker(
    root: Path,
    packets: Sequence[Packet],
    made: Pipeline | None = None,
    sink: MemorySink | None = None,
    batch: int = 100,
) -> Worker:
    made = made or pipeline()
    table = AlertsTable(root, "ztf", row_schema(made.columns))
    books = Books(table, sink, {name: f"raybroker.{name}" for name in made.filters})
    return Worker(
        ZTF, made, MemorySource(packets, books.start), books, TurnSettings(batch=batch, megabytes=64)
    )
