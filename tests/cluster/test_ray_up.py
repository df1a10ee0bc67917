"""`ray up cluster.yaml`, for real: two machines with sshd each, and raybroker reading from Kafka on both.

Asked for by RAYBROKER_RAY_UP=1, since it needs root, sshd and some minutes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import pytest
import yaml

from raybroker.archive.lookup import Lookup
from tests.cluster import machines
from tests.kafka.launcher import KafkaServer, available

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "how-to" / "cluster.md"
ENVIRONMENT = "RAYBROKER_TOKENS=tester:secret\n"
NODES = """
import json, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
print(json.dumps([node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]))
"""
pytestmark = [pytest.mark.kafka, pytest.mark.ray, pytest.mark.timeout(1200)]
STEP = '''
"""A step of one's own: which machine it ran on, by its address."""
import socket

import pyarrow as pa

from raybroker.step import enrich


@enrich(pa.string(), name="machine")
def machine(mjd):
    return pa.array([socket.gethostname()] * len(mjd))
'''
TOML = """
[archive]
root = "{shared}/archive"

[surveys.ztf]
servers = "{servers}"
topics = ["{topic}"]
workers = 4

[steps]
on = ["real", "basic", "machine"]
paths = ["steps"]

[mlflow]
enabled = false

[ray]
cpus_per_worker = {cpus}
"""


class Reachable(KafkaServer):
    """A Kafka at an address that other machines reach."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address, self.servers = address, f"{address}:{self.broker}"

    def _format(self) -> None:
        place = self.folder / "server.properties"
        place.write_text(place.read_text().replace("127.0.0.1", self.address))
        super()._format()


@dataclass(frozen=True)
class Up:
    """A cluster that is up, as the laptop sees it."""

    file: Path
    home: Path
    shared: Path
    net: machines.Network

    def ray(self, *words: str, seconds: float = 300.0) -> str:
        return ray(self.home, *words, seconds=seconds)


def ray(home: Path, *words: str, seconds: float = 600.0) -> str:
    """What `ray` says on the laptop, whose home is a folder."""
    own = {"HOME": str(home), "RAY_TMPDIR": str(home / "tmp"), "RAY_AUTH_MODE": "token"}
    unset = ("RAY_AUTH_TOKEN", "RAY_ADDRESS")
    environment = {key: value for key, value in os.environ.items() if key not in unset} | own
    done = subprocess.run(
        [sys.executable, "-c", "from ray.scripts.scripts import main; main()", *words],
        **{
            "cwd": ROOT,
            "env": environment,
            "capture_output": True,
            "text": True,
            "timeout": seconds,
            "check": False,
        },
    )
    assert done.returncode == 0, f"ray {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not os.environ.get("RAYBROKER_RAY_UP"):
        pytest.skip(
            "`ray up` for real is tested where RAYBROKER_RAY_UP=1 asks for it (root, sshd, rsync; minutes)"
        )
    if reason := machines.missing() or available():
        pytest.fail(f"RAYBROKER_RAY_UP is set, but: {reason}")
    return tmp_path_factory.mktemp("up")


@pytest.fixture(scope="module")
def net(asked: Path) -> Iterator[machines.Network]:
    with machines.network(asked, ("head", "second")) as made:
        yield made


@pytest.fixture(scope="module")
def reachable(net: machines.Network) -> Iterator[Reachable]:
    with Reachable(net.outside) as server:
        yield server


@pytest.fixture(scope="module")
def up(asked: Path, net: machines.Network, reachable: Reachable) -> Iterator[Up]:
    """cluster.yaml with the addresses, the user and the key filled in, and pip replaced; all else is as it is sent."""
    home, shared = asked / "laptop", asked / "shared"
    (home / "tmp").mkdir(parents=True)
    shared.mkdir()
    (home / ".ray").mkdir()
    ray(home, "get-auth-token", "--generate")
    site = _site(home, reachable, shared)
    tree = filled(net, site)
    file = home / "cluster.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    ray(home, "up", str(file), "--yes", "--no-config-cache")
    made = Up(file, home, shared, net)
    yield made
    made.ray("down", str(file), "--yes")


def _site(home: Path, kafka: Reachable, shared: Path) -> Path:
    site = home / "site"
    (site / "steps").mkdir(parents=True)
    (site / "steps" / "machine.py").write_text(STEP)
    text = TOML.format(
        shared=shared,
        servers=kafka.servers,
        topic=kafka.topic(4, "alerts"),
        cpus=0.4 * (os.cpu_count() or 1),  # so that one machine has room for two of the four
    )
    (site / "raybroker.toml").write_text(text)
    (site / "raybroker.env").write_text(ENVIRONMENT)
    (site / "raybroker.env").chmod(0o600)
    return site


def filled(net: machines.Network, site: Path) -> dict[str, Any]:
    """The lines that are marked CHANGE."""
    tree: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    head, *workers = [machine.address for machine in net.machines]
    tree["cluster_name"] = f"raybroker-{os.getpid()}"
    tree["provider"] |= {"head_ip": head, "worker_ips": workers}
    tree["auth"] = {"ssh_user": "root", "ssh_private_key": str(net.key)}
    tree["file_mounts"]["~/raybroker/site"] = str(site)
    pip = [command for command in tree["setup_commands"] if "/venv" in command and "bashrc" not in command]
    assert len(pip) == 3
    kept = [command for command in tree["setup_commands"] if command not in pip]
    tree["setup_commands"] = machines.python_as_here("~/raybroker/source") + kept
    return tree


def until(found: Callable[[], Any], seconds: float = 300.0) -> Any:
    """What `found` gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (answer := found()):
        assert time.monotonic() < deadline, f"{found} waited for in vain"
        time.sleep(1.0)
    return answer


def test_ray_up_brings_up_both_machines_with_one_token(up: Up) -> None:
    head, second = up.net.machines
    until(lambda: head.run("ray status").count(" local.cluster.node") and len(_nodes(head)) == 2)
    assert _nodes(head) == {machine.address for machine in up.net.machines}
    tokens = {machine.run("cat ~/.ray/auth_token") for machine in up.net.machines}
    assert tokens == {(up.home / ".ray" / "auth_token").read_text()}
    with pytest.raises(RuntimeError, match=r"(?i)auth|token"):
        second.run(f"RAY_AUTH_TOKEN={'0' * 64} ray status --address {head.address}:6379")


def _nodes(head: machines.Machine) -> set[str]:
    """The addresses of the nodes that are alive."""
    told = json.loads(head.run(f"python - <<'END'\n{NODES}\nEND"))
    return set(told)


def test_the_service_answers_on_the_head_and_only_there(up: Up) -> None:
    head, _ = up.net.machines
    until(lambda: _asked(head, "http://127.0.0.1:8000/status"))
    with pytest.raises(OSError, match=r"refused|timed out"):
        urllib.request.urlopen(f"http://{head.address}:8000/status", timeout=5)


def _asked(machine: machines.Machine, url: str) -> str:
    try:
        return machine.run(
            f"curl -sf {url} || python -c 'import urllib.request as u; print(u.urlopen(\"{url}\").read())'"
        )
    except RuntimeError:
        return ""


def test_workers_on_both_machines_read_from_kafka(up: Up, reachable: Reachable, ztf_packets: Any) -> None:
    addresses = [machine.address for machine in up.net.machines]
    until(lambda: _readers(reachable) == dict.fromkeys(addresses, 2))
    packets = ztf_packets("public_20181129")
    producer = ck.Producer({"bootstrap.servers": reachable.servers, "message.max.bytes": 16_000_000})
    for i, packet in enumerate(packets):
        producer.produce("alerts", packet.value, partition=i % 4)
        producer.flush(30)
    lookup = Lookup(up.shared / "archive")

    def counted() -> int:
        return sum(row["alerts"] for row in lookup.counts("ztf")) if lookup.surveys() else 0

    until(lambda: counted() == len(packets))
    rows = lookup.sql("select machine from ztf_alerts where outcome = 'scored'")
    said = up.net.machines[0].run("ray job logs raybroker")
    assert set(rows["machine"].to_pylist()) == {"head", "second"}, said


def _readers(kafka: Reachable) -> dict[str, int]:
    """How many members of the group have partitions, by their address."""
    admin = kafka.admin()
    told = admin.describe_consumer_groups(["raybroker"])["raybroker"].result(30)
    hosts = [member.host.strip("/") for member in told.members if member.assignment.topic_partitions]
    return dict(Counter(hosts))


def test_what_listens_beyond_loopback_is_what_the_docs_list(up: Up) -> None:
    listed = {int(port) for port in re.findall(r"^\| (\d+) ", GUIDE.read_text(), re.MULTILINE)}
    for machine in up.net.machines:
        lines = [line for line in machine.run("ss -Hltnp").splitlines() if "ray::ServeRepl" not in line]
        places = [line.split()[3].rpartition(":") for line in lines]
        beyond = {int(port) for host, _, port in places if host not in ("127.0.0.1", "[::1]")}
        processes = {port for port in beyond if 10_100 <= port <= 10_999}
        assert beyond - processes <= listed - {8000, 8265}, machine.name


def test_the_job_can_be_stopped_and_finishes_its_turns(up: Up) -> None:
    head, _ = up.net.machines
    head.run("ray job stop raybroker", seconds=180)
    until(lambda: "was stopped" in head.run("ray job status raybroker"))
    assert "498 alerts received" in head.run("ray job logs raybroker")
