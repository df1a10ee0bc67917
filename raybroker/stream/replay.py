"""Nights from files: packets of a tarball, a folder or a glob, in the order of the archive and at a chosen pace."""

from __future__ import annotations

import glob
import hashlib
import re
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from raybroker.alerts import Packet
from raybroker.errors import StreamError
from raybroker.stream.packets import MAX_BYTES, Gap, Place, Start, TopicPartition

SUFFIXES = (".avro", ".bin")
TARBALLS = (".tar", ".tar.gz", ".tgz")
BURSTS = 189  # a Rubin visit arrives detector by detector
BURSTS_SECONDS = 3.0

Pace = Callable[[int], float]
"""When the i-th packet may go, in seconds since the first."""


def at_once(i: int) -> float:
    """As fast as possible."""
    return 0.0


def steady(rate: float) -> Pace:
    """`rate` packets per second."""
    return lambda i: i / rate


def visits(packets: int = 10_000, every: float = 39.0) -> Pace:
    """The rhythm of Rubin: so many packets every so many seconds, each visit in 189 bursts within 3 s."""
    burst_seconds = min(BURSTS_SECONDS, every)

    def pace(i: int) -> float:
        visit, nth = divmod(i, packets)
        return visit * every + nth * BURSTS // packets / BURSTS * burst_seconds

    return pace


def files(path: str | Path) -> list[Path]:
    """The tarballs and packet files behind a path or glob, in their order: numbers in names count as numbers."""
    found = [Path(name) for name in glob.glob(str(path))]
    found = [inner for place in found for inner in (place.iterdir() if place.is_dir() else [place])]
    readable = [place for place in found if place.name.endswith(SUFFIXES + TARBALLS)]
    if not readable:
        raise StreamError(f"nothing to replay at '{path}': no {', '.join(SUFFIXES + TARBALLS)} there")
    return sorted(readable, key=lambda place: _numbers(place.name))


def _numbers(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def packets(path: str | Path) -> Iterator[Packet]:
    """The packets of a night, one at a time, never all in memory; places and times are for whoever sends them."""
    for place in files(path):
        if place.name.endswith(TARBALLS):
            yield from _members(place)
        else:
            yield Packet(place.read_bytes())


def _members(path: Path) -> Iterator[Packet]:
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name.endswith(SUFFIXES) else None
                if content is not None:
                    yield Packet(content.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise StreamError(f"'{path}' cannot be read as a tarball: {error}") from None


class Taker(Protocol):
    """A producer: Kafka's, or the paced one of the embedded Kafka."""

    def send(self, topic: str, packet: Packet) -> None: ...
    def flush(self) -> None: ...


def replay(
    found: Iterable[Packet],
    producer: Taker,
    topic: str,
    pace: Pace = at_once,
    tell: Callable[[int], None] = lambda sent: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Send packets into a topic at a pace; how many. `tell` is called with the count at each pause and the end."""
    started, sent = clock(), 0
    for sent, packet in enumerate(found, start=1):
        wait = started + pace(sent - 1) - clock()
        if wait > 0:
            producer.flush()
            tell(sent - 1)
            sleep(max(0.0, started + pace(sent - 1) - clock()))
        producer.send(topic, packet)
    producer.flush()
    tell(sent)
    return sent


class ReplaySource:
    """A night read directly, with no Kafka: packet i is offset i // partitions of partition i % partitions.

    The places are known by the files' names and sizes, so that another night under the same topic is another stream.
    """

    def __init__(
        self,
        path: str | Path,
        start: Start,
        topic: str = "replay",
        partitions: int = 1,
        pace: Pace = at_once,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path, self._start, self._pace, self._clock, self._sleep = path, start, pace, clock, sleep
        self._partitions = partitions
        self._left: Iterator[tuple[int, Packet]]
        self._head: tuple[int, Packet] | None
        identity = f"{_identity(path)}-{partitions}"  # offsets mean nothing under another split
        keys = [(topic, n) for n in range(partitions)]
        self.places: dict[TopicPartition, Place] = {
            key: Place("replay", key[0], identity, key[1]) for key in keys
        }
        self.gaps: list[Gap] = []
        self.reached: dict[Place, int] = {}
        self._paused = False
        self._topic = topic
        self._started: float | None = None
        self.rewind()

    def poll(self, limit: int, seconds: float, max_bytes: int = MAX_BYTES) -> list[Packet]:
        """See `Source`; packets are stamped with the time of the poll."""
        deadline = self._clock() + seconds
        polled: list[Packet] = []
        size = 0
        if self._paused:
            self._sleep(seconds)
            return polled
        while len(polled) < limit and size < max_bytes and not (polled and self.end_reached()):
            packet = self._due(deadline)
            if packet is None:
                break
            polled.append(replace(packet, timestamp_ms=int(time.time() * 1000)))
            size += len(packet.value or b"")
            self.reached[self.places[packet.topic, packet.partition]] = packet.offset + 1
            if self._clock() > deadline:
                break
        return polled

    def _due(self, deadline: float) -> Packet | None:
        """The next packet if its time comes before the deadline, else None at the deadline."""
        if self._head is None or self._due_at(self._head[0]) > deadline:
            self._sleep(max(0.0, deadline - self._clock()))
            return None
        i, packet = self._head
        self._sleep(max(0.0, self._due_at(i) - self._clock()))
        self._head = next(self._left, None)
        return packet

    def _due_at(self, i: int) -> float:
        if self._started is None:
            self._started = self._clock() - self._pace(i)
        return self._started + self._pace(i)

    def keep(self) -> None:
        """See `Source`; places never move."""

    def pause(self) -> None:
        """See `Source`."""
        self._paused = True

    def resume(self) -> None:
        """See `Source`."""
        self._paused = False

    def commit(self, positions: Mapping[Place, int]) -> None:
        """See `Source`; nobody listens."""

    def lags(self) -> dict[TopicPartition, int]:
        """1 where the next packet is of, else 0: a tarball does not say how many it holds."""
        head = None if self._head is None else (self._head[1].topic, self._head[1].partition)
        return {key: int(key == head) for key in self.places}

    def end_reached(self) -> bool:
        """See `Source`."""
        return self._head is None

    def rewind(self) -> None:
        """See `Source`; the file is read again from its beginning, the pace goes on."""
        positions = self._start(list(self.places.values()))
        self.reached = {place: positions.get(place, 0) for place in self.places.values()}
        first = {n: self.reached[place] for (_, n), place in self.places.items()}
        self._left = self._numbered(first)
        self._head = next(self._left, None)

    def close(self) -> None:
        """See `Source`."""
        self._left = iter(())
        self._head = None

    def _numbered(self, first: Mapping[int, int]) -> Iterator[tuple[int, Packet]]:
        for i, packet in enumerate(packets(self._path)):
            offset, partition = divmod(i, self._partitions)
            if offset >= first[partition]:
                yield i, replace(packet, topic=self._topic, partition=partition, offset=offset)


def _identity(path: str | Path) -> str:
    listed = [f"{place.name} {place.stat().st_size}" for place in files(path)]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:22]
