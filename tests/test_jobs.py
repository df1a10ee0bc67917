"""Every script in `jobs/`, through Ray's job server on a cluster of its own, with a token."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybroker import settings as settings_file
from raybroker.archive.events import EventLog
from raybroker.archive.lookup import Lookup
from raybroker.cluster.single import Single
from tests.kafka.launcher import free_ports

ROOT = Path(__file__).parents[1]
NIGHT = 20231012
TOML = """
[archive]
root = "archive"

[surveys.ztf]
servers = "replay:{packets}"
workers = 1

[steps]
on = ["real", "basic"]

[mlflow]
enabled = false
"""
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Cluster:
    """A Ray that was started by `ray start`, its job server, and what a process needs to be let in."""

    address: str  # of the job server
    control: str  # of Ray itself
    environment: dict[str, str]

    def join(self, **changed: str) -> str:
        """What a driver is told that joins; its raybroker is of the version `RAYBROKER_VERSION`, if that is given."""
        done = subprocess.run(
            [sys.executable, "-c", JOIN, self.control],
            env=self.environment | changed,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return done.stdout.strip() or done.stderr

    def submit(self, script: str, *words: str) -> tuple[int, str]:
        """`ray job submit` to the end: the script's exit code and all that was said."""
        name, entry = _entry(script, words)
        options = ["job", "submit", "--address", self.address, "--submission-id", name]
        done = subprocess.run(
            [sys.executable, "-c", RAY, *options, "--", *entry],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        told = self.get(f"/api/jobs/{name}")
        assert (done.returncode == 0) == (told["status"] == "SUCCEEDED"), done.stdout + done.stderr
        return told["driver_exit_code"], done.stdout + done.stderr

    def post(self, script: str, *words: str) -> tuple[int, str]:
        """The same by what `ray job submit` sends, without the seconds that it takes to start."""
        name, entry = _entry(script, words)
        self.get("/api/jobs/", json.dumps({"entrypoint": shlex.join(entry), "submission_id": name}).encode())
        deadline = time.monotonic() + 400
        while (told := self.get(f"/api/jobs/{name}"))["status"] in ("PENDING", "RUNNING"):
            assert time.monotonic() < deadline, told
            time.sleep(0.2)
        return told["driver_exit_code"], self.get(f"/api/jobs/{name}/logs")["logs"]

    def get(self, path: str, sent: bytes | None = None, token: bool = True) -> Any:
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"} if token else {}
        headers |= {"Content-Type": "application/json"} if sent else {}
        request = urllib.request.Request(self.address + path, sent, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


def _entry(script: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """A name for the job, and its command."""
    return f"{script}-{secrets.token_hex(4)}", [sys.executable, str(ROOT / "jobs" / f"{script}.py"), *words]


RAY = "from ray.scripts.scripts import main; main()"
JOIN = """
import os, sys
import raybroker
from raybroker.cluster import batch
from raybroker.errors import SettingsError

raybroker.__version__ = os.environ.get("RAYBROKER_VERSION", raybroker.__version__)
try:
    batch.join(sys.argv[1])
    print("joined")
except SettingsError as error:
    print(error)
"""
PORTS = (
    *("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"),
    *("metrics-export-port", "ray-client-server-port", "runtime-env-agent-port"),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = tempfile.mkdtemp(prefix="rbj", dir="/tmp")  # sockets have short names
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", RAY, "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", f"--temp-dir={folder}", "--num-cpus=2"]
    command += ["--object-store-memory=100000000", *(f"--{name}={port}" for name, port in ports.items())]
    with (Path(folder) / "start.log").open("wb") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    job_server, control = f"http://127.0.0.1:{ports['dashboard-port']}", f"127.0.0.1:{ports['port']}"
    made = Cluster(job_server, control, environment)
    try:
        _wait(made, head, Path(folder) / "start.log")
        yield made
    finally:
        head.send_signal(signal.SIGTERM)  # `--block` ends all that it started
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(cluster: Cluster, head: subprocess.Popen[bytes], log: Path, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if cluster.get("/nodes?view=summary")["data"]["summary"]:
                return
        except (OSError, ValueError, KeyError):
            pass
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A settings file whose archive holds a real night."""
    folder = tmp_path_factory.mktemp("site")
    packets = data / "ztf" / f"ztf_public_{NIGHT}.tar.gz"
    (folder / "raybroker.toml").write_text(TOML.format(packets=packets))
    crew = Single(settings_file.load(folder / "raybroker.toml"))
    while not crew.drained():
        crew.step()
    crew.stop()
    return folder


def test_reprocess_writes_a_row_for_every_alert_of_the_night(cluster: Cluster, site: Path) -> None:
    code, said = cluster.submit("reprocess", str(site / "raybroker.toml"), "ztf", str(NIGHT))
    assert code == 0, said
    kept = Lookup(site / "archive").counts("ztf", NIGHT)
    (scored,) = [row["alerts"] for row in kept if row["outcome"] == "scored"]
    assert f"{scored} alerts computed again; written to `annotations`: basic {scored}" in said
    assert len(EventLog(site / "archive", "annotations").read()) == scored > 10


def test_a_job_with_a_wrong_setting_fails_with_its_message_and_status_2(cluster: Cluster, site: Path) -> None:
    code, said = cluster.post("reprocess", str(site / "raybroker.toml"), "zft", str(NIGHT))
    assert code == 2
    assert "there is no [surveys.zft] (did you mean 'ztf'?)" in said


def test_compact_tells_each_table(cluster: Cluster, site: Path) -> None:
    code, said = cluster.post("compact", str(site / "raybroker.toml"))
    assert code == 0, said
    assert "ztf/alerts:" in said


def test_audit_holds_for_the_night(cluster: Cluster, site: Path) -> None:
    code, said = cluster.post("audit", "--settings", str(site / "raybroker.toml"), "--no-kafka")
    assert code == 0, said
    assert "the books hold" in said


def test_evaluate_leaves_its_report(cluster: Cluster, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = ["oid,mjd,label,a,b"]
    for i in range(240):
        kind = i // 2 % 2
        a, b = generator.normal(2.0 * kind), generator.normal()
        rows.append(f"o{i // 2},{60000 + i / 10:.2f},{'SN' if kind else 'other'},{a:.4f},{b:.4f}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    words = ["--label", "label", "--object", "oid", "--time", "mjd", "--protocol", "stream", "--seeds", "1"]
    code, said = cluster.post("evaluate", str(tmp_path / "table.csv"), *words, "--output", str(tmp_path))
    assert code == 0, said
    assert (tmp_path / "evaluation.html").exists()


def test_nobody_submits_without_the_token(cluster: Cluster) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        cluster.get("/api/jobs/", token=False)


def test_a_driver_joins_whose_raybroker_is_that_of_the_nodes(cluster: Cluster) -> None:
    assert cluster.join() == "joined"


def test_a_driver_of_another_version_is_told_which_node_differs(cluster: Cluster) -> None:
    said = cluster.join(RAYBROKER_VERSION="9.9")
    assert said.startswith("raybroker is 9.9 here, but on node ")
    assert said.endswith("install one version everywhere (`ray up cluster.yaml` does)")
