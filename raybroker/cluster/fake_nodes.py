"""A Ray cluster whose nodes come and go with the load, all on this machine: Ray's own fake multi-node provider.

`ray.cluster_utils.AutoscalingCluster` is not used: in Ray 2.60 the wheel lacks its example file, and it calls `ray stop`,
which ends every Ray on the machine. No Ray is imported here; `ray start` runs as a process of its own.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from raybroker.errors import RaybrokerError
from raybroker.service.ports import free_port

LOOPBACK = "127.0.0.1"
PORTS = {"ray-client-server-port": 26_600, "dashboard-port": 26_700}
ATTEMPTS = 4
LISTS = (  # Ray's autoscaler wants these to be there
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude"),
    "rsync_filter",
)
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"


def configuration(address: str, cpus: float, most: int, idle_minutes: float) -> dict[str, Any]:
    """What `ray start --autoscaling-config` reads: nodes of so many CPUs, none at first, `most` at most."""
    node = {"CPU": cpus, "object_store_memory": 100_000_000}
    return {
        "cluster_name": "load-test",
        "max_workers": most,
        "upscaling_speed": 10,
        "idle_timeout_minutes": idle_minutes,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": address,
            "use_node_id_as_ip": True,  # all have one address, so that none would ever be idle
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "fake": {"resources": node, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        "head_node_type": "ray.head.default",
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in LISTS},
        "file_mounts_sync_continuously": False,
    }


@contextmanager
def cluster(
    head_cpus: float, cpus: float, most: int, idle_minutes: float = 0.2, seconds: float = 120.0
) -> Iterator[str]:
    """The address of the cluster; it and all its processes end with the context. The token is in RAY_AUTH_TOKEN."""
    port = free_port("127.0.0.1", 26_400)
    address = f"{own_address()}:{port}"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with tempfile.TemporaryDirectory(prefix="rf", dir="/tmp", ignore_cleanup_errors=True) as folder:
        made = configuration(address, cpus, most, idle_minutes)
        process = _start(Path(folder), address, head_cpus, made)
        try:
            for attempt in range(ATTEMPTS):  # Ray gives its own node 30 s, which a busy machine may not keep
                if _is_up(process, Path(folder), seconds):
                    break
                _end(process, folder)
                if attempt + 1 == ATTEMPTS:
                    said = (Path(folder) / "log").read_text(errors="replace")[-2000:]
                    raise RaybrokerError(f"Ray's head at {address} did not start; it said:\n{said}")
                process = _start(Path(folder), address, head_cpus, made)
            yield address
        finally:
            _end(process, folder)
            shutil.rmtree(folder, ignore_errors=True)


def own_address() -> str:
    """This machine's address as Ray finds it: it takes 127.0.0.1 for that too. A UDP socket that sends nothing tells."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 53))
            return str(probe.getsockname()[0])
        except OSError:
            return LOOPBACK


def _start(folder: Path, address: str, cpus: float, config: dict[str, Any]) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    (folder / "autoscaling.json").write_text(json.dumps(config))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--include-dashboard=false", f"--port={address.rpartition(':')[2]}"),
        *(f"--num-cpus={cpus:g}", f"--temp-dir={folder}", f"--autoscaling-config={folder}/autoscaling.json"),
        *(
            "--object-store-memory=200000000",
            *(f"--{name}={free_port(LOOPBACK, first)}" for name, first in PORTS.items()),
        ),
    ]
    more = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0"}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, env=os.environ | more, stdout=log, stderr=log, start_new_session=True
        )


def _is_up(process: subprocess.Popen[bytes], folder: Path, seconds: float) -> bool:
    """Whether the head says so before it ends, or the time is over."""
    until = time.monotonic() + seconds
    while "Ray runtime started" not in (folder / "log").read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    """The head, and the nodes that its autoscaler started: all whose command line names their common folder."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for other in psutil.process_iter():
        try:
            if any(folder in word for word in other.cmdline()):
                other.kill()
        except psutil.Error:  # it is gone, or not ours to look at
            continue
