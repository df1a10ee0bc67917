"""A Ray cluster of several nodes on this machine, in a process of its own: Ray reads its environment when imported.

One JSON object per line: `{"do": "add"}`, `{"do": "remove"}` (abruptly, the youngest) on the input; the answer on the
output. The head has two processors and the others one, so that the workers do not all fit on one node.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_scheduler_spread_threshold": "0",  # a worker on each node, not all on the first
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_DISABLE_MEMORY_MONITOR": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
HEALTH = {  # a node that is gone is missed within five seconds instead of thirty
    "health_check_initial_delay_ms": 2_000,
    "health_check_period_ms": 1_000,
    "health_check_timeout_ms": 3_000,
    "health_check_failure_threshold": 5,
}
START_SECONDS = 120.0


class Nodes:
    """The cluster, as the test's own process talks to it."""

    def __init__(self, folder: Path, token: str, **environment: str) -> None:
        self.environment = os.environ | ENVIRONMENT | {"RAY_AUTH_TOKEN": token} | environment
        self.log = folder / "nodes.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.nodes", str(folder)],
                cwd=Path(__file__).parents[2],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.address = str(self._answer()["address"])

    def do(self, what: str) -> dict[str, Any]:
        """Tell it, and wait until it is done."""
        assert self.process.stdin is not None
        print(json.dumps({"do": what}), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError(
                f"the Ray cluster did not start, or has ended:\n{self.log.read_text()[-2000:]}"
            )
        return dict(json.loads(line))

    def stop(self) -> None:
        """All nodes, gently, and then the process."""
        mine = (
            psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        )
        try:
            self.process.communicate('{"do": "stop"}\n', timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        for left in psutil.wait_procs(mine, timeout=2)[1]:
            with suppress(psutil.NoSuchProcess):
                left.kill()


def main(folder: Path) -> None:
    """Serve orders until the input ends."""
    from ray.cluster_utils import Cluster

    own = {"node_ip_address": "127.0.0.2", "object_store_memory": 100_000_000}
    head = own | {"num_cpus": 2, "temp_dir": str(folder / "ray"), "include_dashboard": False}
    cluster = Cluster()
    cluster.add_node(wait=False, **head, _system_config=HEALTH)
    cluster.wait_for_nodes(START_SECONDS)
    young = [cluster.add_node(wait=False, num_cpus=1, **own)]
    cluster.wait_for_nodes(START_SECONDS)
    _say(address=cluster.address)
    for line in sys.stdin:
        order = json.loads(line)["do"]
        if order == "add":
            young.append(cluster.add_node(wait=False, num_cpus=1, **own))
            cluster.wait_for_nodes(START_SECONDS)
        elif order == "remove":
            cluster.remove_node(young.pop(), allow_graceful=False)
        else:
            break
        _say(nodes=len(young) + 1)
    cluster.shutdown()


def _say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
