"""A stream in memory, for tests and notebooks: no network, no threads, the same contracts as Kafka."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from raybroker.alerts import Packet
from raybroker.errors import StreamError
from raybroker.stream.packets import MAX_BYTES, Gap, Place, Start, TopicPartition


def nothing_known(places: Sequence[Place]) -> Mapping[Place, int]:
    """The `start` of an empty archive."""
    return {}


class MemorySource:
    """Gives `packets` by their topic, partition and offset, round the partitions.

    `committed` and `rewinds` record what the reader did; `append` adds packets while it reads.
    """

    def __init__(
        self, packets: Iterable[Packet], start: Start = nothing_known, cluster: str = "memory"
    ) -> None:
        self.places: dict[TopicPartition, Place] = {}
        self.gaps: list[Gap] = []
        self.reached: dict[Place, int] = {}
        self.paused = False
        self.committed: dict[Place, int] = {}
        self.rewinds = 0
        self.closed = False
        self._start, self._cluster = start, cluster
        self._packets: dict[TopicPartition, list[Packet]] = defaultdict(list)
        self._taken: dict[TopicPartition, int] = {}
        self.append(packets)

    def append(self, packets: Iterable[Packet]) -> None:
        """Add packets; offsets rise within a partition. A new partition is assigned at once."""
        for packet in packets:
            self._packets[packet.topic, packet.partition].append(packet)
        self._assign([key for key in self._packets if key not in self.places])

    def poll(self, limit: int, seconds: float, max_bytes: int = MAX_BYTES) -> list[Packet]:
        """See `Source`; it never waits."""
        polled: list[Packet] = []
        size = 0
        while not self.paused and len(polled) < limit and size < max_bytes and (key := self._fullest()):
            polled.append(self._packets[key][self._taken[key]])
            self._taken[key] += 1
            self.reached[self.places[key]] = polled[-1].offset + 1
            size += len(polled[-1].value or b"")
        return polled

    def keep(self) -> None:
        """See `Source`; places never move."""

    def pause(self) -> None:
        """See `Source`."""
        self.paused = True

    def resume(self) -> None:
        """See `Source`."""
        self.paused = False

    def commit(self, positions: Mapping[Place, int]) -> None:
        """See `Source`."""
        self.committed.update(positions)

    def lags(self) -> dict[TopicPartition, int]:
        """See `Source`."""
        return {key: self._left(key) for key in self.places}

    def end_reached(self) -> bool:
        """See `Source`."""
        return not any(self.lags().values())

    def rewind(self) -> None:
        """See `Source`."""
        self.rewinds += 1
        self._assign(list(self._packets))

    def close(self) -> None:
        """See `Source`."""
        self.closed = True

    def _assign(self, keys: Sequence[TopicPartition]) -> None:
        self.places |= {(topic, n): Place(self._cluster, topic, topic, n) for topic, n in keys}
        positions = self._start([self.places[key] for key in keys]) if keys else {}
        for key in keys:
            first = self.reached[self.places[key]] = positions.get(self.places[key], 0)
            self._taken[key] = sum(packet.offset < first for packet in self._packets[key])

    def _left(self, key: TopicPartition) -> int:
        return len(self._packets[key]) - self._taken[key]

    def _fullest(self) -> TopicPartition | None:
        key = max(self.places, key=self._left, default=None)
        return key if key is not None and self._left(key) else None


class MemorySink:
    """Keeps what was written: `written` by topic, `positions` by place.."""

    def __init__(self) -> None:
        self.written: dict[str, list[Packet]] = defaultdict(list)
        self.positions: dict[Place, int] = {}
        self._taken_over: set[Place] = set()

    def emitted(self, places: Sequence[Place]) -> dict[Place, int]:
        """See `Sink`."""
        self._taken_over |= set(places)
        return {place: self.positions[place] for place in places if place in self.positions}

    def write(self, place: Place, outputs: Mapping[str, Sequence[Packet]], position: int) -> None:
        """See `Sink`."""
        if place not in self._taken_over:
            raise StreamError(
                f"`emitted` must be asked before outputs of {place.topic} [{place.partition}] are written"
            )
        for topic, packets in outputs.items():
            self.written[topic].extend(packets)
        self.positions[place] = position

    def flush(self) -> None:
        """See `Sink`."""

    def close(self) -> None:
        """See `Sink`."""
