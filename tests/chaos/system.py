"""A whole raybroker under load, as it stands in an observatory: Kafka, Ray on two nodes, MLflow, something that starts
`raybroker run` again when it ends, an archive on a disk of its own, people who label, and a reader of what is sent out.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import httpx
import psutil
import pyarrow as pa
from confluent_kafka import TopicCollection

from raybroker import simulate
from raybroker.alerts import Packet
from raybroker.cuts.quality import real
from raybroker.pipeline import plan
from raybroker.stream import replay
from raybroker.stream.packets import Place
from raybroker.surveys import load
from tests.chaos.ledger import BROKEN, PLAIN, Ledger, Log, Outputs, Produced
from tests.chaos.nodes import Nodes
from tests.chaos.steps import MISCHIEF
from tests.kafka.launcher import KafkaServer, free_ports

RATE = float(os.environ.get("RAYBROKER_CHAOS_RATE", "60"))  # alerts per second
PATIENCE = float(os.environ.get("RAYBROKER_CHAOS_PATIENCE", "1"))  # more than 1 for a machine with other work
PARTITIONS = 4
NIGHT, SMALL, SENT, GROUP = "night", "small", "chaos.sent", "chaos"
TOKEN = "chaos"
MODEL = "transient"
DISK = "3g"
SETTINGS = """
[archive]
root = "disk/archive"
[surveys.ztf]
servers = "{servers}"
topics = ["{night}", "{small}"]
group = "{group}"
workers = 2
kafka = {{ "session.timeout.ms" = 6000, "heartbeat.interval.ms" = 500 }}
[turn]
packets = 100
[steps]
on = ["real", "basic", "mischief"]
[filters.sent]
where = "ztf.rb > 0.7"
topic = "{sent}"
[output]
servers = "{servers}"
[models.{model}]
classes = ["real", "bogus"]
columns = ["basic.*"]
members = ["softmax", "naive_bayes"]
[learning]
release_minutes = 0.25
[mlflow]
tracking_uri = "http://127.0.0.1:{mlflow}"
[service]
port = {port}
"""


def wait(
    what: Callable[[], Any],
    seconds: float,
    name: str,
    every: float = 0.2,
    told: Callable[[], object] = lambda: "",
) -> Any:
    """Until something is true, `PATIENCE` times as long at most; what it gave. The error ends with what is `told` then."""
    seconds *= PATIENCE
    until = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > until:
            raise TimeoutError(f"{name}: not within {seconds:g} s {told()}".rstrip())
        time.sleep(every)
    return found


class Load(threading.Thread):
    """Alerts at a steady rate, every hundredth of them broken; one in ten goes to the small topic."""

    def __init__(self, servers: str, night: Path, broken: list[bytes], produced: Produced) -> None:
        super().__init__(daemon=True, name="load")
        self.produced, self.broken = produced, itertools.cycle(broken)
        found = list(replay.packets(night))
        self.packets: Iterator[Packet] = simulate.multiply(found, 10**9, seed=1)
        options = {"enable.idempotence": True, "message.max.bytes": 16_000_000, "linger.ms": 5}
        retry = {"reconnect.backoff.max.ms": 1_000, "topic.metadata.refresh.interval.ms": 2_000}
        self.producer = ck.Producer({"bootstrap.servers": servers, "log_level": 0, **options, **retry})
        self._lock = threading.Lock()
        self.extra: list[tuple[bytes, str]] = []  # to be sent next, with their kind
        self.small = True  # whether the small topic is there
        self.sent = 0
        self._stop_asked = threading.Event()

    def run(self) -> None:
        start = time.monotonic()
        for number in itertools.count():
            while (ahead := start + number / RATE - time.monotonic()) > 0:
                self.producer.poll(min(ahead, 0.01))
            if self._stop_asked.is_set():
                return
            self._send(number)

    def _send(self, number: int) -> None:
        value, kind = self._next().value, PLAIN
        if self.extra:
            value, kind = self.extra.pop()
        elif number % 100 == 99:
            value, kind = next(self.broken), BROKEN
        topic, partition = (SMALL, 0) if self.small and number % 10 == 5 else (NIGHT, number % PARTITIONS)
        self.producer.produce(
            topic,
            value,
            partition=partition,
            on_delivery=lambda error, message: self.produced.delivered(kind, error, message),
        )
        self.sent += 1

    def special(self) -> tuple[bytes, str]:
        """A packet that is not sent, and that every cut keeps; and its alert id."""
        packets = [self._next() for _ in range(200)]
        made = plan([real], load("ztf").schema, "ztf")
        decoded = load("ztf").decode(packets)
        kept = made.run(decoded.batch, decoded.bodies)
        first = int(kept.kept_rows[0])
        return packets[first].value or b"", str(kept.kept["alert_id"][0].as_py())

    def _next(self) -> Packet:
        with self._lock:
            return next(self.packets)

    def flush(self) -> None:
        self.producer.flush(30)

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(20)
        self.flush()


class Keeper(threading.Thread):
    """Starts `raybroker run` again whenever it ends, as systemd would; until it is told to stop."""

    def __init__(self, folder: Path, environment: dict[str, str], address: str) -> None:
        super().__init__(daemon=True, name="keeper")
        main = "from raybroker.cli.verbs import main; main()"
        self.command = [sys.executable, "-c", main, "run", "--address", address, "--report", "report.json"]
        self.folder, self.environment = folder, environment
        self.process: subprocess.Popen[bytes] | None = None
        self.starts, self.ends = 0, list[int]()
        self.held = threading.Event()  # set: do not start it again
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.is_set():
            if self.held.is_set():
                time.sleep(0.1)
                continue
            self._start()
            assert self.process is not None
            self.ends.append(self.process.wait())
            self._stop_asked.wait(1.0)

    def _start(self) -> None:
        with (self.folder / "log").open("a") as log:
            print(f"--- start {self.starts}, {time.strftime('%H:%M:%S')}", file=log, flush=True)
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.starts += 1

    def restart(self) -> float:
        """SIGTERM, as an upgrade does; how long it took to leave."""
        assert self.process is not None
        process, start = self.process, time.monotonic()
        process.send_signal(signal.SIGTERM)
        wait(lambda: process.poll() is not None, 60, "raybroker run leaves after SIGTERM")
        return time.monotonic() - start

    def stop(self) -> None:
        self._stop_asked.set()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        self.join(10)


class Mlflow:
    """An MLflow tracking server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.port,) = free_ports(1)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        files = ["--artifacts-destination", str(self.folder / "mlflow")]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / "mlflow.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *files, *where],
                cwd=self.folder,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def up(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=2).status_code == 200
        return False

    def runs(self) -> int:
        """Releases logged; 0 while it is away."""
        with suppress(httpx.HTTPError, KeyError):
            url = f"http://127.0.0.1:{self.port}/api/2.0/mlflow"
            found = httpx.get(f"{url}/experiments/get-by-name?experiment_name=raybroker", timeout=5).json()
            wanted = {"experiment_ids": [found["experiment"]["experiment_id"]], "max_results": 1000}
            return len(httpx.post(f"{url}/runs/search", json=wanted, timeout=5).json().get("runs", []))
        return 0

    def kill(self) -> None:
        """It and what it started, at once."""
        if self.process is not None:
            kill_tree(self.process.pid)
            self.process.wait()
            self.process = None


def kill_tree(pid: int) -> None:
    """SIGKILL for a process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


class Labels(threading.Thread):
    """Somebody who labels one alert a second, and says it again until it is recorded."""

    def __init__(self, http: httpx.Client) -> None:
        super().__init__(daemon=True, name="labels")
        self.http = http
        self.recorded: list[str] = []  # the ids of those that the service has answered for
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(1.0):
            with suppress(httpx.HTTPError, KeyError, IndexError, ValueError):
                alert = self.http.get("/alerts", params={"limit": 1}).json()["alerts"][0]
                self._say(alert)

    def _say(self, alert: dict[str, Any]) -> None:
        label = "real" if (alert["reliability"] or 0) > 0.8 else "bogus"
        ident = uuid.uuid4().hex
        body = {"event_id": ident, "alert_id": alert["alert_id"], "model": MODEL, "label": label}
        while not self._stop_asked.is_set():
            with suppress(httpx.HTTPError):
                if self.http.post("/labels", json=body).status_code in (200, 201):
                    self.recorded.append(ident)
                    return
            time.sleep(0.3)

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(20)


class System:
    """All of it. `start` and `stop`; between them, handles on everything that can be hurt."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.disk, self.archive = self.folder / "disk", self.folder / "disk" / "archive"
        self.orders = self.folder / "orders"
        self.kafka = KafkaServer()
        self.mlflow = Mlflow(self.folder)
        self.produced = Produced()
        (self.port,) = free_ports(1)
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10
        )
        self._started: list[Callable[[], Any]] = []  # how to stop what was started, in order

    def start(self) -> None:
        """Everything, until alerts are in the archive, a label is learned and a release is logged."""
        for folder in (self.disk, self.orders, self.folder / "steps", self.folder / "ray"):
            folder.mkdir()
        self._started.append(lambda: shutil.rmtree(self.folder, ignore_errors=True))
        self._mount()
        self.mlflow.start()
        self._started.append(self.mlflow.kill)
        self._start_kafka()
        (self.folder / "steps" / "mischief.py").write_text(MISCHIEF.format(orders=self.orders))
        self.write_settings()
        self._start_run()
        self._start_people()

    def _mount(self) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(self.disk)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.mounted = done.returncode == 0
        self.unmounted = done.stderr.strip()
        if self.mounted:
            self._started.append(lambda: subprocess.run(["umount", "-l", str(self.disk)], check=False))

    def _start_kafka(self) -> None:
        self.kafka.__enter__()
        self._started.append(lambda: self.kafka.__exit__(None, None, None))
        for name, partitions in ((NIGHT, PARTITIONS), (SMALL, 1), (SENT, 2)):
            self.kafka.topic(partitions, name=name)
        self.outputs = Outputs(self.kafka.servers, SENT)
        self.ledger = Ledger(self.produced, Log(self.archive / "ztf" / "alerts"), self.outputs, "sent")
        self.learn_topic_ids()
        broken = [path.read_bytes() for path in sorted((self.data / "broken").glob("*ztf*"))]
        night = self.data / "ztf" / "ztf_public_20181129.tar.gz"
        self.load = Load(self.kafka.servers, night, broken, self.produced)

    def learn_topic_ids(self) -> None:
        """As Kafka has them now: a topic that is made again has another."""
        admin = self.kafka.admin()
        for name, asked in admin.describe_topics(TopicCollection([NIGHT, SMALL])).items():
            text = str(asked.result(10).topic_id)  # librdkafka writes + and / where Kafka writes - and _
            self.ledger.topic_ids[name] = text.replace("+", "-").replace("/", "_")

    def write_settings(self) -> None:
        text = SETTINGS.format(
            servers=self.kafka.servers,
            night=NIGHT,
            small=SMALL,
            sent=SENT,
            group=GROUP,
            model=MODEL,
            mlflow=self.mlflow.port,
            port=self.port,
        )
        (self.folder / "raybroker.toml").write_text(text)

    def _start_run(self) -> None:
        token = secrets.token_hex(32)
        self.nodes = Nodes(  # a Serve replica has the environment of its node, not that of `raybroker run`
            self.folder, token, RAYBROKER_TOKENS=f"chaos:{TOKEN}", RAYBROKER_LOG="INFO"
        )
        self._started.append(self.nodes.stop)
        self.keeper = Keeper(self.folder, self.nodes.environment, self.nodes.address)
        self.keeper.start()
        self._started.append(self.keeper.stop)

    def _start_people(self) -> None:
        self.labels = Labels(self.http)
        wait(lambda: len(self.heartbeat().get("workers", [])) == 2, 240, "two workers")
        for thread in (self.load, self.outputs, self.labels):
            thread.start()
            self._started.append(thread.stop)
        wait(lambda: len(self.positions_of(NIGHT)) == PARTITIONS, 180, "alerts in the archive")
        wait(lambda: self.learned(), 90, "a label is learned")

    def stop(self) -> None:
        """Everything that was started, the last first, whatever fails."""
        for stop in reversed(self._started):
            try:
                stop()
            except Exception as error:
                print(f"while stopping: {error}")
        self._started.clear()
        self.http.close()

    # What can be looked at, and hurt.

    def positions_of(self, topic: str) -> dict[int, int]:
        return {key[1]: position for key, position in self.ledger.positions().items() if key[0] == topic}

    def processes(self, name: str) -> list[psutil.Process]:
        """Ray's processes of an actor class, such as 'WorkerActor'."""
        found = []
        for process in psutil.Process(self.nodes.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if f"ray::{name}" in " ".join(process.cmdline()[:1]):
                    found.append(process)
        return found

    def place(self, topic: str, partition: int) -> Place:
        """What the archive calls this partition."""
        ident = self.ledger.topic_ids[topic]
        cluster = next(name.split("/")[0] for name in self.ledger.log.positions if f"/{ident}/" in name)
        return Place(cluster, topic, ident, partition)

    def dead(self, reason: str) -> int:
        """How many packets are dead for this reason."""
        return sum(row["reason"] == reason for row in self.ledger.rows())

    def segments(self) -> set[str]:
        """Every segment on the disk, by the name that rows have for it."""
        found = (self.archive / "ztf" / "segments").glob("*/[!.]*.arrow")
        return {f"{path.parent.name}/{path.name}" for path in found}

    def written(self, segment: str) -> float:
        return (self.archive / "ztf" / "segments" / segment).stat().st_mtime

    def packets_of(self, segment: str) -> int:
        """How many packets a segment holds."""
        with pa.ipc.open_file(self.archive / "ztf" / "segments" / segment) as file:
            return sum(file.get_batch(i).num_rows for i in range(file.num_record_batches))

    def order(self, what: str, text: str = "") -> Path:
        """Have a worker do harm to itself in mid-turn; see `steps`."""
        path = self.orders / what
        path.with_name(f".{what}").write_text(text)
        path.with_name(f".{what}").rename(path)
        return path

    def taken(self, what: str, seconds: float = 30.0) -> int:
        """Wait until a worker has obeyed; its process id."""
        found = wait(
            lambda: list(self.orders.glob(f"{what}.*")), seconds, f"a worker takes the order '{what}'"
        )
        pid = int(found[0].suffix[1:])
        found[0].unlink()
        return pid

    def answers(self) -> bool:
        """Whether the service does."""
        with suppress(httpx.HTTPError):
            return self.http.get("/status").status_code == 200
        return False

    def learned(self) -> int:
        """Labels in the newest snapshot, as the service says."""
        with suppress(httpx.HTTPError, KeyError, IndexError, ValueError):
            snapshot = self.http.get("/models").json()["models"][0]["snapshot"]
            return int(snapshot["labels"]) if snapshot else 0
        return 0

    def heard(self) -> list[str]:
        """Ids of the labels that snapshots say were learned since the one before, over all snapshots."""
        log = Log(self.archive / "snapshots")
        log.follow()
        rows = log.rows(["event_id", "learned"]).to_pylist()
        return [ident for row in rows for ident in row["learned"] or ()]

    def restored(self) -> list[tuple[int, int, int]]:
        """What trainers said when they came: labels restored, learned again, and learned that no snapshot names."""
        logs = (self.folder / "ray").glob("session_2*/logs/worker-*.err")
        text = "".join(
            log.read_text(errors="replace") for log in sorted(logs, key=lambda log: log.stat().st_mtime)
        )
        found = re.findall(
            r"restored (\d+) labels of \S+ learned (\d+) again and (\d+) that no snapshot", text
        )
        return [(int(kept), int(again), int(new)) for kept, again, new in found]

    def heartbeat(self) -> dict[str, Any]:
        """The supervisor's sign of life."""
        with suppress(FileNotFoundError, ValueError):
            return dict(json.loads((self.archive / "running.json").read_text()))
        return {}

    def report(self) -> dict[str, Any]:
        """The supervisor's totals since it was started."""
        with suppress(FileNotFoundError, ValueError):
            return dict(json.loads((self.folder / "report.json").read_text()))
        return {}

    def said(self, text: str, since: int = 0) -> bool:
        """Whether the log of `raybroker run` has this after so many characters."""
        return text in (self.folder / "log").read_text()[since:]
