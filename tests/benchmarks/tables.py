"""What was measured, as tables for a terminal and as Markdown for the documentation."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

Row = Sequence[Any]


class Sheet(NamedTuple):
    """A table: its title, its columns, its rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]


def machine() -> dict[str, Any]:
    """What it ran on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "java": java.splitlines()[0] if java else "",
    }


def sheets(found: dict[str, Any]) -> list[Sheet]:
    """All that the result holds."""
    made = {"throughput": _throughput, "latency": _latency, "soak": _soak}
    return [sheet for name, make in made.items() if name in found for sheet in make(found[name])]


def _throughput(found: dict[str, Any]) -> list[Sheet]:
    alerts = found["alerts"]
    head = [
        ("alerts", f"{alerts:,}"),
        ("seconds", f"{found['seconds']:.1f}"),
        ("alerts/s, end to end", f"{found['alerts_per_second']:,.0f}"),
        ("CPU ms per alert, all processes", f"{found['cpu_ms_per_alert']:.2f}"),
        ("alerts/s that two whole cores could do", f"{found['alerts_per_second_of_two_cores']:,.0f}"),
        ("MB/s of packets", f"{found['megabytes_per_second']:.0f}"),
        ("most memory of a worker, MB (RSS)", f"{found['worker_rss']:,.0f}"),
        ("labels learned before", f"{found['labels_before']:,}"),
        ("labels posted meanwhile", f"{found['labels_posted']:,}"),
    ]
    return [
        Sheet("Throughput", ("what", "value"), head),
        _cpu("CPU by process", "process", found["cpu_by_process"]),
        _cpu("CPU by stage, of the workers", "stage", found["cpu_by_stage"]),
    ]


def _cpu(title: str, what: str, ms: dict[str, float]) -> Sheet:
    total = sum(value for name, value in ms.items() if not name.startswith("step:"))
    rows = [(name, f"{value:.3f}", f"{100 * value / total:.0f} %") for name, value in ms.items()]
    return Sheet(title, (what, "ms per alert", "share"), rows)


def _latency(found: dict[str, Any]) -> list[Sheet]:
    rows = [
        ("alerts/s sent", f"{found['rate']:g}"),
        ("seconds", f"{found['seconds']:.0f}"),
        ("scored alerts seen over HTTP", f"{found['seen']:,} of {found['kept']:,}"),
        *((f"{name}, s", f"{found[name]:.2f}") for name in ("p50", "p95", "p99", "worst")),
        ("CPU ms per alert, all processes", f"{found['cpu_ms_per_alert']:.2f}"),
        ("most memory of a worker, MB (RSS)", f"{found['worker_rss']:,.0f}"),
    ]
    return [
        Sheet("From the producer's timestamp until read over HTTP", ("what", "value"), rows),
        _cpu("CPU by process at that rate", "process", found["cpu_by_process"]),
    ]


def _soak(found: dict[str, Any]) -> list[Sheet]:
    columns = ("process", "RSS first", "RSS last", "RSS most", "USS last", "USS growth/min", "RSS growth/min")
    rows = [
        (
            row["role"],
            *(f"{row[key]:,.0f}" for key in ("rss_first", "rss_last", "rss_most", "uss_last")),
            *(f"{row[key]:+.2f}" for key in ("uss_growth", "rss_growth")),
        )
        for row in found["processes"]
    ]
    rows += [
        (f"{role}, for seconds", "", "", f"{most:,.0f}", "", "", "") for role, most in found["brief"].items()
    ]
    title = f"Memory in MB over {found['minutes']:g} minutes at {found['rate']:g} alerts/s"
    return [Sheet(f"{title}; growth after the first {found['settle_minutes']:g}", columns, rows)]


def show(sheet: Sheet, console: Console) -> None:
    """On a terminal."""
    table = Table(title=sheet.title, title_justify="left")
    for number, column in enumerate(sheet.columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in sheet.rows:
        table.add_row(*map(str, row))
    console.print(table)


def markdown(sheet: Sheet) -> str:
    """For the documentation."""
    lines = [f"### {sheet.title}", "", "| " + " | ".join(sheet.columns) + " |"]
    lines.append("|" + "|".join("---" if n == 0 else "--:" for n in range(len(sheet.columns))) + "|")
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in sheet.rows]
    return "\n".join(lines) + "\n"
