"""Seconds from the start of `raybroker run` to its first commit and to full speed; from SIGTERM to its end.

    python -m tests.benchmarks.start_stop [--alerts 15000]

The first run sorts a catalogue and compiles; the second is the restart. Packets wait in a real Kafka before each start,
and SIGTERM comes in mid-stream. Full speed is the first second with at least 0.8 of the median rate of those after it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from raybroker.service.ports import free_port
from raybroker.settings import TurnSettings
from tests import delta_log
from tests.benchmarks.end_to_end import DATA
from tests.benchmarks.system import MODEL, PARTITIONS, SETTINGS, Night, Packets, write_catalogue
from tests.kafka.launcher import KafkaServer

COMMAND = [
    sys.executable,
    "-c",
    "from raybroker.cli.verbs import main; main()",
    "run",
    "--report",
    "report.json",
]


def started(folder: Path) -> tuple[subprocess.Popen[bytes], float]:
    """`raybroker run` in the folder, and when it was started."""
    (folder / "report.json").unlink(missing_ok=True)
    with (folder / "log").open("w") as log:
        began = time.time()
        return subprocess.Popen(COMMAND, cwd=folder, stdout=log, stderr=log, start_new_session=True), began


def received(folder: Path) -> int:
    """How many packets this run has archived."""
    try:
        return int(json.loads((folder / "report.json").read_text())["received"])
    except FileNotFoundError:
        return 0


def stopped(process: subprocess.Popen[bytes]) -> float:
    """Seconds from SIGTERM to the end."""
    process.send_signal(signal.SIGTERM)
    began = time.time()
    process.wait(60)
    return time.time() - began


def rates(table: Path, began: float, ended: float) -> tuple[float, list[int]]:
    """Seconds until the first row was stored, and the rows stored in each second since the start."""
    stored = np.array([row["stored"] for row in delta_log.rows(table, ["stored"])]) / 1000 - began
    mine = stored[(stored > 0) & (stored < ended - began)]
    return float(mine.min()), np.bincount(mine.astype(int)).tolist()


def full_speed(by_second: list[int]) -> int | None:
    """The first second at 0.8 of the median of the rest; the last, in which it was stopped, is left out."""
    working = [count for count in by_second[:-1] if count]
    if len(working) < 3:
        return None
    steady = float(np.median(working[1:]))
    return next(second for second, count in enumerate(by_second) if count >= 0.8 * steady)


def measure(folder: Path, table: Path, alerts: int) -> dict[str, Any]:
    """One start, until two thirds of what waits are read, and one stop."""
    process, began = started(folder)
    try:
        while received(folder) < alerts * 2 / 3:
            if process.poll() is not None or time.time() - began > 240:
                raise RuntimeError(
                    f"it did not get there; its log ends:\n{(folder / 'log').read_text()[-3000:]}"
                )
            time.sleep(0.1)
        exit_seconds, ended = stopped(process), time.time()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    first, by_second = rates(table, began, ended)
    return {
        "first_commit_seconds": round(first, 2),
        "full_speed_seconds": full_speed(by_second),
        "stop_seconds": round(exit_seconds, 2),
        "exit_code": process.returncode,
        "alerts_by_second": by_second,
        "unused_segments": unused(table),
        "load_average": os.getloadavg()[0],
    }


def unused(table: Path) -> int:
    """Segments that no row names: turns that were begun and not committed."""
    written = {path.name for path in (table.parent / "segments").rglob("*") if path.is_file()}
    return len(written - {Path(row["segment"]).name for row in delta_log.rows(table, ["segment"])})


def main() -> None:
    parser = argparse.ArgumentParser(prog="start_stop", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--alerts", type=int, default=15_000, help="that wait at each start")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raybroker-start-"))
    packets, turn = Packets(DATA / "ztf" / "ztf_public_20181129.tar.gz"), TurnSettings()
    write_catalogue(folder / "big.parquet", packets.found)
    try:
        with KafkaServer() as kafka:
            topic = kafka.topic(PARTITIONS)
            night = Night(kafka.servers, topic, packets)
            more = {"workers": 2, "consumer": "", "batch": turn.batch, "rows": 30_000}
            turns = {"turn_seconds": turn.seconds, "turn_megabytes": turn.megabytes}
            text = SETTINGS.format(
                servers=kafka.servers,
                topic=topic,
                port=free_port("127.0.0.1", 18_600),
                model=MODEL,
                **more,
                **turns,
            )
            (folder / "raybroker.toml").write_text(text)
            for run in range(options.runs):
                night.write(options.alerts)
                found = measure(folder, folder / "archive" / "ztf" / "alerts", options.alerts)
                print(json.dumps({"run": run, "cores": psutil.cpu_count(), **found}), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
