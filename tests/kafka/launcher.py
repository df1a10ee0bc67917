"""A real Apache Kafka for tests: one KRaft node from Maven Central's jars, on free ports of 127.0.0.1.

>>> with KafkaServer() as kafka:            # doctest: +SKIP
...     name = kafka.topic(partitions=4)
...     ck.Consumer({"bootstrap.servers": kafka.servers, ...})
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient, NewTopic

HERE = Path(__file__).parent
LIB = HERE / "lib"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
SETTINGS = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{broker}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.quorum.voters=1@127.0.0.1:{controller}
log.dirs={data}
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
message.max.bytes=16777216
auto.create.topics.enable=false
"""


def available() -> str | None:
    """None where Kafka can run here, else the reason why not."""
    if not shutil.which("mvn"):
        return "mvn is not installed: Kafka's jars cannot be fetched"
    if not shutil.which("java"):
        return "java is not installed: Kafka needs 17 or newer"
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if not version or int(version[1]) < 17:
        return f"Kafka needs java 17 or newer, found: {said.splitlines()[0] if said else 'nothing'}"
    return None


def fetch_jars() -> Path:
    """Kafka's jars in `tests/kafka/lib`, fetched again only when the pom changed; safe to call from many processes."""
    wanted = hashlib.sha256((HERE / "pom.xml").read_bytes()).hexdigest()
    LIB.mkdir(exist_ok=True)
    with (LIB / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = LIB / ".pom"
        if not stamp.exists() or stamp.read_text() != wanted:
            for old in LIB.glob("*.jar"):
                old.unlink()
            run_maven()
            stamp.write_text(wanted)
    return LIB


def run_maven() -> None:
    command = ["mvn", "-B", "-q", "-f", HERE / "pom.xml", COPY]
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={LIB}"]
    done = subprocess.run(command + options, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(f"mvn could not fetch Kafka's jars:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for held in sockets:
        held.bind(("127.0.0.1", 0))
    ports: list[int] = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def cluster_id() -> str:
    """Kafka's form of a random UUID; a leading '-' would be read as an option."""
    made = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    return "A" + made[1:] if made.startswith("-") else made


class KafkaServer:
    """One Kafka, up while the context is open. `servers` is its bootstrap address; it survives `restart`.

    Data and log live in a temporary folder, deleted at the end, kept (and named) where the start failed.
    """

    def __init__(self, heap: str = "512m") -> None:
        self.heap = heap
        self.broker, self.controller = free_ports(2)
        self.servers = f"127.0.0.1:{self.broker}"
        self.folder = Path(tempfile.mkdtemp(prefix="raybroker-kafka-"))
        self.log = self.folder / "kafka.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count()

    def __enter__(self) -> KafkaServer:
        fetch_jars()
        settings = SETTINGS.format(broker=self.broker, controller=self.controller, data=self.folder / "data")
        (self.folder / "server.properties").write_text(settings)
        self._format()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, seconds: float = 120.0) -> None:
        """Start and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._java("kafka.Kafka", str(self.folder / "server.properties")),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + seconds
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"Kafka did not start; {self.log} ends:\n{self.log.read_text()[-3000:]}")

    def stop(self, seconds: float = 20.0) -> None:
        """Ask it to end, then make it."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def restart(self) -> None:
        """The same cluster again, at the same address, with its data."""
        self.stop()
        self.start()

    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.servers, "log_level": 0})

    def topic(self, partitions: int = 1, name: str | None = None, **config: str) -> str:
        """A new topic, ready to be written to; its name. Settings with '_' for '.'."""
        name = name or f"topic-{os.getpid()}-{next(self._names)}"
        wanted = NewTopic(name, partitions, 1, config={key.replace("_", "."): v for key, v in config.items()})
        admin = self.admin()  # held: a client that is collected gives up what it was asked
        admin.create_topics([wanted])[name].result(30)
        self._wait_for_leaders(name, partitions)
        return name

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until the cluster has forgotten it."""
        admin = self.admin()
        admin.delete_topics([name])[name].result(30)
        while name in admin.list_topics(timeout=10).topics:
            time.sleep(0.05)

    def _wait_for_leaders(self, name: str, partitions: int) -> None:
        admin = self.admin()
        while True:
            found = admin.list_topics(timeout=10).topics.get(name)
            leaders = [partition.leader for partition in found.partitions.values()] if found else []
            if len(leaders) == partitions and min(leaders) >= 0:
                return
            time.sleep(0.02)

    def _format(self) -> None:
        arguments = ["format", "-t", cluster_id(), "-c", str(self.folder / "server.properties")]
        command = self._java("kafka.tools.StorageTool", *arguments)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise RuntimeError(f"Kafka's storage could not be formatted:\n{done.stdout}{done.stderr}")

    def _java(self, main: str, *arguments: str) -> list[str]:
        options = [f"-Xmx{self.heap}", f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}"]
        return ["java", *options, "-cp", f"{LIB}/*", main, *arguments]

    def _answers(self) -> bool:
        try:
            return bool(self.admin().list_topics(timeout=1).brokers)
        except ck.KafkaException:
            return False
