"""Packets from Kafka: where to read comes from the archive, and nothing is skipped or read again in silence."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import confluent_kafka as ck

from raybroker.alerts import Packet
from raybroker.errors import FencedError, StreamError
from raybroker.stream.client import (
    LOG,
    OURS,
    READING,
    REFUSALS,
    SECONDS,
    Cluster,
    Producer,
    Quiet,
    Topics,
    Trouble,
    beyond,
    ends,
    hint_refused,
    kafka_error,
    packet_of,
    posix,
    reach,
    unreachable,
)
from raybroker.stream.fair import Fair
from raybroker.stream.packets import MAX_BYTES, Gap, Place, Start, TopicPartition
from raybroker.stream.sink import KafkaSink
from raybroker.stream.skipped import Holes
from raybroker.stream.stuck import Stuck

__all__ = ["KafkaSink", "KafkaSource", "Producer", "reach"]

AT_ONCE = 400  # messages per call: more of them starve the callbacks
FIRST_SECONDS = 0.5  # how long those that were passed over may be waited for


class KafkaSource:
    """Packets of the topics (a name with '^' in front is a pattern) that the group gives to this member.

    On every assignment `start` is asked where to read. Where the archive knows nothing, `auto.offset.reset` in
    `options` decides: 'earliest' (the default), 'latest', or 'error', which demands every offset from 0 on.
    `options` are librdkafka's, as strings; `known_topics` are the archive's topic ids by (cluster, topic), the oldest first.
    The constructor does not wait for Kafka: while it is away, `poll` gives nothing and one log line says so.
    """

    def __init__(
        self,
        servers: str,
        topics: Sequence[str],
        group: str,
        start: Start,
        options: Mapping[str, str] | None = None,
        known_topics: Mapping[tuple[str, str], Sequence[str]] | None = None,
        check_seconds: float = 10.0,
    ) -> None:
        given = dict(options or {})
        self.servers, self.topics = servers, tuple(topics)
        self.places: dict[TopicPartition, Place] = {}
        self.gaps: list[Gap] = []
        self.reached: dict[Place, int] = {}
        self._start = start
        self._reset = given.pop("auto.offset.reset", "earliest")
        self._known = Topics(known_topics)
        self._check_seconds, self._checked = check_seconds, time.monotonic()
        self._stuck, self._fair, self._holes = Stuck(), Fair(), Holes(servers, given)
        self._granted: set[TopicPartition] | None = None  # None: the group has not answered yet
        self._next: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._failure: Exception | None = None
        self._pending: list[Packet] = []  # polled and not given yet
        self._pending_bytes = 0
        self._moved = False  # since the last poll something that it read was given back
        self._paused = self._held = False  # asked to pause; paused within a turn
        self._mean_size = 80_000.0
        self._trouble = Trouble(servers)
        self._cluster = Cluster(servers, given)
        settings = self._settings(group, given)
        self._patience = int(settings["max.poll.interval.ms"]) / 4000.0
        self._polled = time.monotonic()
        self._cooperative = "cooperative" in settings["partition.assignment.strategy"]
        self._settled = settings
        self._join()

    def _join(self) -> None:
        wanted = [posix(topic) for topic in self.topics]
        self._consumer = ck.Consumer(self._settled)
        self._consumer.subscribe(wanted, on_assign=self._on_assign, on_revoke=self._on_revoke)

    def _settings(self, group: str, given: Mapping[str, str]) -> dict[str, Any]:
        callbacks = {"error_cb": self._trouble, "logger": Quiet(), "on_commit": hint_refused}
        ours = {**OURS, **callbacks, "bootstrap.servers": self.servers, "group.id": group}
        return {**READING, **given, **ours}

    def poll(self, limit: int, seconds: float, max_bytes: int = MAX_BYTES) -> list[Packet]:
        """See `Source`. At most one packet's worth over `max_bytes`, as far as sizes can be foreseen."""
        if self._failure is not None:  # the group still hears from us, and we hear what it decides
            self._take(self._consumer.consume(1, timeout=seconds))
        self._raise_failure()
        self._check_topics()
        self._let_go()
        deadline = time.monotonic() + seconds
        self._passed_over_first(limit, max_bytes)
        while room := self._room(limit, max_bytes):
            left = deadline - time.monotonic()
            self._take(self._consumer.consume(room, timeout=max(left, 0.0)))
            self._raise_failure()
            if left <= 0:
                break
        self._read_skipped()
        packets = self._pending
        self._fair.polled(self._next, full=not room)
        self._keep([])
        self._moved, self._polled = False, time.monotonic()
        self.reached = {place: self._next[key] for key, place in self.places.items()}
        return packets

    def _passed_over_first(self, limit: int, max_bytes: int) -> None:
        """Pause the others, which drops what was fetched of them, until each of these gave something or had the time."""
        room = min(limit, int(max_bytes / self._mean_size))
        if self._held or not (first := self._fair.first(self._next, self._now_at, room)):
            return
        LOG.debug("%s first: others' backlog keeps them waiting", sorted(first))
        before = {key: self._next[key] for key in first}
        others = [ck.TopicPartition(*key) for key in self.places if key not in first]
        until = time.monotonic() + FIRST_SECONDS
        self._consumer.pause(others)
        try:
            while (room := self._room(limit, max_bytes)) and time.monotonic() < until:
                self._take(self._consumer.consume(room, timeout=0.02))
                self._raise_failure()
                if all(self._next.get(key) != position for key, position in before.items()):
                    break
        finally:
            self._consumer.resume([one for one in others if (one.topic, one.partition) in self.places])

    def keep(self) -> None:
        """See `Source`. It does nothing but in turns so long that the group would think us dead."""
        if time.monotonic() - self._polled < self._patience:
            return
        self._hold()
        self._take(self._consumer.consume(1, timeout=0.0))  # what slips through is given by the next poll
        self._polled = time.monotonic()
        if self._moved:
            raise FencedError("partitions went to another worker while a long turn worked on them")

    def pause(self) -> None:
        """See `Source`. Paused rather than slept: a member that does not poll is put out of the group."""
        self._paused = True
        self._hold()

    def resume(self) -> None:
        """See `Source`."""
        self._paused = False

    def _hold(self) -> None:
        self._held = True
        self._consumer.pause([ck.TopicPartition(*key) for key in self.places])

    def _let_go(self) -> None:
        if self._held and not self._paused:
            self._held = False
            self._consumer.resume([ck.TopicPartition(*key) for key in self.places])

    def commit(self, positions: Mapping[Place, int]) -> None:
        """See `Source`."""
        ours = {
            place: n
            for place, n in positions.items()
            if self.places.get((place.topic, place.partition)) == place
        }
        offsets = [ck.TopicPartition(place.topic, place.partition, n) for place, n in ours.items()]
        try:
            if offsets:
                self._consumer.commit(offsets=offsets, asynchronous=True)
        except ck.KafkaException as error:
            LOG.debug("the hint of positions was refused: %s", error)

    def lags(self) -> dict[TopicPartition, int]:
        """See `Source`; what librdkafka last heard with a fetch."""
        return {key: max(0, self._high(key) - position) for key, position in self._next.items()}

    def _high(self, key: TopicPartition) -> int:
        found = self._consumer.get_watermark_offsets(ck.TopicPartition(*key), cached=True)
        return max(found[1] if found else 0, self._ends.get(key, 0))

    def end_reached(self) -> bool:
        """See `Source`. A member without partitions is at the end; so is one whose topics do not exist."""
        if self._failure is not None:
            return False
        if self._granted is None:
            return not self._cluster.has_any(self.topics)
        return all(self._next.get(key, -1) >= self._ends[key] for key in self._granted)

    def rewind(self) -> None:
        """See `Source`."""
        self._failure = None
        if self._granted:
            self._begin(self._granted)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()
        self._holes.close()

    # What the group decides; librdkafka calls these inside `consume`.

    def _on_assign(self, consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        keys = _keys(partitions)
        self._granted = (self._granted or set()) | keys
        self._begin(keys)

    def _on_revoke(self, consumer: ck.Consumer, partitions: list[ck.TopicPartition]) -> None:
        keys = _keys(partitions)
        self._granted = (self._granted or set()) - keys
        self._stop(keys)

    def _begin(self, keys: set[TopicPartition], positions: Mapping[Place, int] | None = None) -> None:
        """Read these partitions from `positions`, or else from where the archive says."""
        self._stop(keys)
        if positions is None:  # else what was skipped since the archive's positions stays skipped
            self.gaps = [gap for gap in self.gaps if (gap.place.topic, gap.place.partition) not in keys]
        try:
            places = self._cluster.places(keys)
            wanted = self._start(list(places.values())) if positions is None else positions
            wanted = dict.fromkeys(self._known.again(places.values()), 0) | dict(wanted)
            offsets = {key: self._offset(place, wanted.get(place)) for key, place in places.items()}
        except Exception as error:  # raised by `poll`: out of a callback, librdkafka would assign by itself
            LOG.debug("reading cannot begin: %s", error)
            self._failure, places, offsets = error, {}, {}
        self.places.update(places)
        self._next.update(offsets)
        self._read(offsets)
        if self._held:
            self._hold()

    def _read(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Set the offsets with the assignment itself: `seek` fails here and consumption would start at 0."""
        assign = self._consumer.incremental_assign if self._cooperative else self._consumer.assign
        assign([ck.TopicPartition(*key, offset) for key, offset in offsets.items()])

    def _stop(self, keys: Iterable[TopicPartition]) -> None:
        """Forget these partitions and what was polled of them."""
        reading = [key for key in keys if key in self.places]
        if self._cooperative:
            self._consumer.incremental_unassign([ck.TopicPartition(*key) for key in reading])
        elif reading:
            self._consumer.unassign()
        self._moved |= bool(reading)
        self._holes.forget(reading)
        for key in reading:
            del self.places[key], self._next[key]
        self._keep([packet for packet in self._pending if (packet.topic, packet.partition) in self.places])

    def _offset(self, place: Place, wanted: int | None) -> int:
        """Where to read: the position, if Kafka still has it; what it deleted before is recorded as expired."""
        low, high = self._watermarks(place)
        self._ends.setdefault((place.topic, place.partition), high)
        if wanted is None:
            return self._first(place, low, high)
        if wanted > high:
            raise StreamError(beyond(place, wanted, high))
        if wanted < low:
            self._expire(Gap(place, wanted, low))
        return max(wanted, low)

    def _watermarks(self, place: Place) -> tuple[int, int]:
        partition = ck.TopicPartition(place.topic, place.partition)
        try:
            found = self._consumer.get_watermark_offsets(partition, timeout=SECONDS)
        except ck.KafkaException as error:
            raise StreamError(unreachable(self.servers, kafka_error(error) or error)) from None
        return found

    def _first(self, place: Place, low: int, high: int) -> int:
        if self._reset == "error" and low > 0:
            self._expire(Gap(place, 0, low))
        first = high if self._reset == "latest" else low
        if first:
            self.gaps.append(Gap(place, 0, first, "before"))
        return first

    def _expire(self, lost: Gap) -> None:
        place = lost.place
        text = f"{place.topic} [{place.partition}]: Kafka deleted offsets {lost.first} to {lost.end - 1} before they were read"
        if self._reset == "error":
            raise StreamError(text)
        LOG.error("%s; they are lost, going on at %d", text, lost.end)
        self.gaps.append(lost)

    # What arrives.

    def _room(self, limit: int, max_bytes: int) -> int:
        """How many messages to ask for next; 0 when the poll is full."""
        left = max_bytes - self._pending_bytes
        foreseen = max(1, int(left / self._mean_size)) if left > 0 else 0
        return max(0, min(AT_ONCE, limit - len(self._pending), foreseen))

    def _keep(self, packets: list[Packet]) -> None:
        self._pending = packets
        self._pending_bytes = sum(len(packet.value or b"") for packet in packets)

    def _take(self, messages: Iterable[Any]) -> None:
        for message in messages:
            error = message.error()
            key = message.topic(), message.partition()
            if error is None:
                self._add(key, message)
            elif error.code() == ck.KafkaError._PARTITION_EOF:
                self._reached(key, message.offset())
            elif self._met(key, error):
                return  # what follows was fetched before everything began again

    def _add(self, key: TopicPartition, message: Any) -> None:
        self._trouble.over()
        if message.offset() < (expected := self._next.get(key, message.offset() + 1)):
            return  # of a partition given back, or fetched before a rewind
        self._holes.note(key, expected, message.offset())
        packet = packet_of(message)
        size = len(packet.value or b"")
        self._next[key] = packet.offset + 1
        self._mean_size += 0.02 * (size - self._mean_size)
        self._pending_bytes += size
        self._pending.append(packet)

    def _reached(self, key: TopicPartition, offset: int) -> None:
        """The end of a partition, where `offset` counts transaction markers, which are no records."""
        self._trouble.over()
        if key in self._next:
            self._holes.note(key, self._next[key], offset)
            self._next[key] = max(self._next[key], offset)

    def _met(self, key: TopicPartition, error: ck.KafkaError) -> bool:
        """An error in place of a message; True where everything begins again. librdkafka mends most by itself."""
        if error.code() == ck.KafkaError._AUTO_OFFSET_RESET:
            self._begin_again()
            return True
        if error.code() in REFUSALS or error.fatal():
            self._failure = StreamError(
                f"Kafka at {self.servers} refuses {key[0] or self.topics}: {error.str()}"
            )
        elif error.code() in (ck.KafkaError.UNKNOWN_TOPIC_OR_PART, ck.KafkaError._UNKNOWN_TOPIC):
            self._checked = -math.inf  # it may be made again: before anything is taken from it
            LOG.warning("topic '%s' does not exist at %s; waiting for it", key[0], self.servers)
        else:
            LOG.warning("Kafka at %s: %s", self.servers, error.str())
        return False

    def _read_skipped(self) -> None:
        """Read again what librdkafka passed over, if it holds records after all."""
        if skipped := self._holes.records(self.places):
            LOG.warning("librdkafka passed over records, from %s on; reading them again", skipped)
            self._begin_again(skipped)

    def _begin_again(self, earlier: Mapping[TopicPartition, int] | None = None) -> None:
        """Read on where we are, or `earlier`, so that every offset is judged again; what was polled and not given yet
        comes again."""
        keys = set(self.places)
        positions = {self.places[key]: (earlier or {}).get(key, self._next[key]) for key in keys}
        for packet in self._pending:
            place = self.places[packet.topic, packet.partition]
            positions[place] = min(positions[place], packet.offset)
        self._begin(keys, positions)

    def _now_at(self, keys: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return ends(self._consumer, keys)

    def _check_topics(self) -> None:
        """A topic made again while we read would go on at the same offset, of other packets."""
        if time.monotonic() - self._checked < self._check_seconds or self._trouble.away or not self.places:
            return
        self._checked = time.monotonic()
        try:
            found = self._cluster.places(self.places)
            moving = {} if self._held else self._fair.could_come(self._next)
            stuck = self._stuck.look(moving, self._now_at)
        except StreamError as error:
            LOG.debug("topics not checked: %s", error)
            return
        if stuck:
            LOG.warning("%s: there is more, but librdkafka does not fetch it; joining anew", sorted(stuck))
        if stuck or self._known.again(found.values()) - set(self.places.values()):
            self._consumer.close()  # assigning these partitions anew does not help
            self._join()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _keys(partitions: Iterable[ck.TopicPartition]) -> set[TopicPartition]:
    return {(partition.topic, partition.partition) for partition in partitions}
