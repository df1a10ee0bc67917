"""Steps that kill their worker, or never end, on one alert: that packet is dead, everything else is scored."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import delta_log

KILLER, SLEEPER, FRAGILE = "ztf:1095578115815010037", "ztf:1095578115915010045", "ztf:1095578116315015001"
STEP = f'''
import os
import time

from raybroker import alerts
from raybroker.step import enrich


@enrich(gives="float64")
def poison(alert_id, ra):
    names = alert_id.to_pylist()
    if "{KILLER}" in names:
        os._exit(1)
    if "{SLEEPER}" in names:
        time.sleep(1000)
    if "{FRAGILE}" in names:
        raise RuntimeError("not this one")
    return alerts.values(ra)
'''
SETTINGS = """
[archive]
root = "archive"
[surveys.ztf]
servers = "replay:{night}"
workers = 1
[turn]
packets = 8
deadline_seconds = 10.0
[steps]
on = ["basic", "poison"]
"""

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_the_packet_at_fault_is_dead_and_everything_else_is_scored(data: Path, tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "poison.py").write_text(STEP)
    night = data / "ztf" / "ztf_public_20191231.tar.gz"
    (tmp_path / "raybroker.toml").write_text(SETTINGS.format(night=night))
    command = [sys.executable, "-c", "from raybroker.cli.verbs import main; main()", "run", "--once"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    rows = delta_log.rows(
        tmp_path / "archive" / "ztf" / "alerts", ["alert_id", "outcome", "reason", "offset", "poison"]
    )
    assert Counter(row["offset"] for row in rows) == Counter(range(50))
    assert Counter(row["outcome"] for row in rows) == {"scored": 47, "dead": 2, "failed": 1}
    dead = {row["reason"] for row in rows if row["outcome"] == "dead"}
    assert dead == {"kills the worker", "overruns the deadline of 10 s"}
    alive = {row["alert_id"] for row in rows}
    assert not {KILLER, SLEEPER} & alive
    (failed,) = [row for row in rows if row["outcome"] == "failed"]
    assert (failed["alert_id"], failed["poison"]) == (FRAGILE, None)
    assert "not this one" in failed["reason"]
    assert "kills the worker" in run.stdout
