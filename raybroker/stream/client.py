"""What every Kafka client here shares: settings, quiet logs, who a cluster and its topics are, a producer that waits."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import confluent_kafka as ck
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from raybroker.alerts import Packet
from raybroker.errors import StreamError
from raybroker.stream.packets import Place, TopicPartition

LOG = logging.getLogger("raybroker.stream")
MAX_MESSAGE = 16_777_216
SECONDS = 10.0  # how long a question to the cluster may take
REPEAT = 30.0  # seconds between two lines about the same trouble
NO_TOPIC_ID = "AAAAAAAAAAAAAAAAAAAAAA"  # what brokers before 2.8 say
CLIENT_KEYS = ("client.", "security.", "sasl.", "ssl.", "enable.ssl", "socket.", "broker.address")

READING: dict[str, Any] = {
    "fetch.queue.backoff.ms": 20,  # the default of 1 s starves a bounded queue: 410 messages/s against 7,000
    "queued.max.messages.kbytes": 16_384,  # 65_536 is not faster and takes 40 MB more
    "topic.metadata.refresh.interval.ms": 30_000,  # how soon a pattern sees the new night's topic
    "partition.assignment.strategy": "cooperative-sticky",
    "session.timeout.ms": 10_000,  # how long the partitions of a killed worker wait for another
    "heartbeat.interval.ms": 1_000,
    "reconnect.backoff.max.ms": 2_000,
    "max.poll.interval.ms": 300_000,  # how long a turn may take before its partitions go to another
}
OURS: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",  # positions out of range are ours to judge, see `KafkaSource`
}
REFUSALS = (
    ck.KafkaError.TOPIC_AUTHORIZATION_FAILED,
    ck.KafkaError.GROUP_AUTHORIZATION_FAILED,
    ck.KafkaError._AUTHENTICATION,
)


class Quiet:
    """librdkafka's log lines as debug: what matters comes through the error callback, as one line."""

    def log(self, level: int, text: str, *arguments: Any) -> None:
        LOG.debug(text, *arguments)


class Trouble:
    """librdkafka's error callback: one line when Kafka goes away, one every half minute, one when it is back."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.away = False
        self._reason: ck.KafkaError | None = None
        self._said = -REPEAT

    def __call__(self, error: ck.KafkaError) -> None:
        if error.code() == ck.KafkaError._ALL_BROKERS_DOWN:
            self._is_away(self._reason or error)
        elif error.code() in (ck.KafkaError._TRANSPORT, ck.KafkaError._RESOLVE):
            self._reason = error  # of one broker; the others may be there
        else:
            LOG.warning("Kafka at %s: %s", self.servers, error.str())

    def _is_away(self, reason: ck.KafkaError) -> None:
        self.away = True
        if time.monotonic() - self._said >= REPEAT:
            self._said = time.monotonic()
            LOG.warning("%s Trying again.", unreachable(self.servers, reason))

    def over(self) -> None:
        """Something arrived."""
        if self.away:
            LOG.warning("Kafka at %s answers again", self.servers)
        self.away, self._reason, self._said = False, None, -REPEAT


def unreachable(servers: str, error: object) -> str:
    """One line for a person."""
    reason = error.str() if isinstance(error, ck.KafkaError) else str(error)
    return f"Kafka at {servers} cannot be reached: {reason}. Is it running, and is the address right?"


def common(servers: str, options: Mapping[str, str]) -> dict[str, Any]:
    """The settings that any client takes from the user's options: addresses, security, sockets."""
    shared = {key: value for key, value in options.items() if key.startswith(CLIENT_KEYS)}
    return {"bootstrap.servers": servers, "logger": Quiet(), **shared}


def kafka_error(error: BaseException) -> ck.KafkaError | None:
    """The KafkaError inside an exception of confluent_kafka."""
    found = error.args[0] if error.args else None
    return found if isinstance(found, ck.KafkaError) else None


class Cluster:
    """Questions to a cluster: is it there, which topics, and who they are. Every answer within ten seconds."""

    def __init__(self, servers: str, options: Mapping[str, str]) -> None:
        self.servers = servers
        self._admin = AdminClient(common(servers, options))
        self._cluster_id = ""

    def topics(self, seconds: float = SECONDS) -> dict[str, int]:
        """The number of partitions by topic; StreamError in one line where Kafka does not answer."""
        try:
            found = self._admin.list_topics(timeout=seconds)
        except ck.KafkaException as error:
            raise StreamError(unreachable(self.servers, kafka_error(error) or error)) from None
        self._cluster_id = found.cluster_id or "unknown"
        return {name: len(topic.partitions) for name, topic in found.topics.items()}

    def has_any(self, wanted: Iterable[str]) -> bool:
        """Whether there is a topic, with partitions, of these names or patterns ('^' starts one)."""
        names = [name for name, partitions in self.topics().items() if partitions]
        patterns = [topic if topic.startswith("^") else re.escape(topic) + "$" for topic in wanted]
        return any(re.match(pattern, name) for pattern in patterns for name in names)

    def cluster_id(self) -> str:
        """The cluster's own id."""
        if not self._cluster_id:
            self.topics()
        return self._cluster_id

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """The id of each topic, which changes when it is deleted and made again; the name where Kafka has none.

        librdkafka's mock has no admin: there a topic is known by its name and the address of the cluster.
        """
        names = sorted(set(topics))
        if self.cluster_id().startswith("mockCluster"):
            return {name: f"{name}-mock-{self.servers.rpartition(':')[2]}" for name in names}
        asked = (
            self._admin.describe_topics(ck.TopicCollection(names), request_timeout=SECONDS) if names else {}
        )
        try:
            return {name: self._topic_id(name, answer.result(SECONDS + 1)) for name, answer in asked.items()}
        except (ck.KafkaException, TimeoutError) as error:
            raise StreamError(f"Kafka at {self.servers} does not describe {names}: {error}") from None

    @staticmethod
    def _topic_id(name: str, described: Any) -> str:
        text = str(described.topic_id).replace("+", "-").replace("/", "_")  # as Kafka's own tools write it
        return name if text in (NO_TOPIC_ID, "None") else text

    def places(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Place]:
        """The place of each (topic, partition)."""
        keys = list(partitions)
        ids = self.topic_ids(topic for topic, _ in keys)
        return {(topic, n): Place(self.cluster_id(), topic, ids[topic], n) for topic, n in keys}

    def create(self, topics: Sequence[str], partitions: int, config: Mapping[str, str] | None = None) -> None:
        """Make the topics that are missing; where the cluster has no admin, they come with the first message."""
        missing = sorted(set(topics) - set(self.topics()))
        if not missing or self.cluster_id().startswith("mockCluster"):
            return
        wanted = [NewTopic(name, partitions, -1, config=dict(config or {})) for name in missing]
        for name, made in self._admin.create_topics(wanted, request_timeout=SECONDS).items():
            try:
                made.result(SECONDS + 1)
            except ck.KafkaException as error:
                found = kafka_error(error)
                if found is None or found.code() != ck.KafkaError.TOPIC_ALREADY_EXISTS:
                    raise StreamError(f"topic '{name}' cannot be made at {self.servers}: {error}") from None


def reach(servers: str, options: Mapping[str, str] | None = None, seconds: float = 5.0) -> dict[str, int]:
    """The partitions by topic, or a StreamError in one line: what `raybroker check` asks."""
    return Cluster(servers, options or {}).topics(seconds)


class Topics:
    """The ids under which topics were known, so that one that was deleted and made again is noticed.

    Such a topic is read from its beginning. Its packets and the old one's cannot be taken for each other: a `Place` has
    the id.
    """

    def __init__(self, known: Mapping[tuple[str, str], Sequence[str]] | None = None) -> None:
        self._ids = {key: list(ids) for key, ids in (known or {}).items()}

    def again(self, places: Iterable[Place]) -> set[Place]:
        """Those whose topic was known under another id before. One that is new to us is known from now on."""
        found = set()
        for place in places:
            ids = self._ids.setdefault((place.cluster, place.topic), [place.topic_id])
            if place.topic_id not in ids:
                LOG.debug(recreated(place.topic, ids[-1], place.topic_id))
                ids.append(place.topic_id)
            if place.topic_id != ids[0]:
                found.add(place)
        return found


def posix(topic: str) -> str:
    r"""A topic's pattern as librdkafka takes it: POSIX has no `\d`, and such a pattern would match nothing, in silence.

    >>> posix(r"^ztf_\d{8}_[\da-f]$")
    '^ztf_[0-9]{8}_[0-9a-f]$'
    """
    if not topic.startswith("^"):
        return topic
    inside = {True: "0-9", False: "[0-9]"}
    return re.sub(r"\[[^]]*\]|\\d", lambda found: found[0].replace("\\d", inside[found[0] != "\\d"]), topic)


def ends(
    consumer: ck.Consumer, keys: Collection[TopicPartition], seconds: float = 1.0
) -> dict[TopicPartition, int]:
    """One past the last offset of each as the brokers say now, in one question; {} where one does not answer in time."""
    wanted = [ck.TopicPartition(*key, ck.OFFSET_END) for key in keys]
    try:
        found = consumer.offsets_for_times(wanted, timeout=seconds) if wanted else []
    except ck.KafkaException as error:
        LOG.debug("ends not known: %s", error)
        return {}
    return {(one.topic, one.partition): one.offset for one in found if one.error is None}


def hint_refused(error: ck.KafkaError | None, partitions: list[ck.TopicPartition]) -> None:
    if error is not None:
        LOG.debug("the hint of positions was refused: %s", error)


def recreated(topic: str, old: str, new: str) -> str:
    return (
        f"topic '{topic}' was deleted and made again (its id was {old}, Kafka now says {new}): the new one is read from "
        "its beginning, beside what the archive has; what the old one still held is lost"
    )


def beyond(place: Place, wanted: int, high: int) -> str:
    return (
        f"{place.topic} [{place.partition}]: the archive holds everything before offset {wanted}, but Kafka has only "
        f"{high} offsets. Its log was cut, or this is another cluster under the same id. Nothing is read; "
        "use another archive, or a group of topics that fits this one"
    )


class Producer:
    """Writes packets: `send` waits while the local queue is full, `flush` raises where one could not be stored."""

    def __init__(self, servers: str, options: Mapping[str, str] | None = None, **settings: Any) -> None:
        self.servers = servers
        self._refused: ck.KafkaError | None = None
        self._trouble = Trouble(servers)
        self.raw = ck.Producer(producer_settings(servers, options or {}, self._trouble) | settings)

    def send(self, topic: str, packet: Packet, partition: int = -1, timestamp_ms: int = 0) -> None:
        """Queue one packet, stamped with the time given or else with now; by default its key picks the partition."""
        while True:
            try:
                self._produce(topic, packet, partition, timestamp_ms)
                self.raw.poll(0)
                return
            except BufferError:
                self.raw.poll(0.1)
                self._raise()

    def flush(self, seconds: float = 60.0) -> None:
        """Return when all that was sent is stored."""
        left = self.raw.flush(seconds)
        self._raise()
        if left:
            raise StreamError(f"Kafka at {self.servers} has not taken {left} packets within {seconds:g} s")

    def forget_refusals(self) -> None:
        """After an aborted transaction: its packets are meant not to be stored."""
        self._refused = None

    def _produce(self, topic: str, packet: Packet, partition: int, timestamp_ms: int) -> None:
        self.raw.produce(
            topic,
            packet.value,
            packet.key,
            partition,
            self._delivered,
            timestamp=timestamp_ms,
            headers=list(packet.headers) or None,
        )

    def _delivered(self, error: ck.KafkaError | None, message: Any) -> None:
        if error is not None and self._refused is None:
            self._refused = error

    def _raise(self) -> None:
        if self._refused is not None:
            error, self._refused = self._refused, None
            raise StreamError(f"Kafka at {self.servers} did not store a packet: {error.str()}")


def producer_settings(servers: str, options: Mapping[str, str], trouble: Trouble) -> dict[str, Any]:
    """Every copy acknowledged, no repeats by retries, and a queue of 64 MB at most."""
    return {
        **common(servers, options),
        "error_cb": trouble,
        "enable.idempotence": True,
        "message.max.bytes": MAX_MESSAGE,
        "queue.buffering.max.kbytes": 65_536,
        "linger.ms": 5,
        "delivery.report.only.error": True,
    }


def packet_of(message: Any) -> Packet:
    """What was consumed, as it came."""
    kind, stamp = message.timestamp()
    return Packet(
        message.value(),
        message.topic(),
        message.partition(),
        message.offset(),
        stamp if kind != ck.TIMESTAMP_NOT_AVAILABLE else None,
        message.key(),
        tuple(message.headers() or ()),
    )
