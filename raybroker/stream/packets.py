"""Where packets come from and where they go: the contracts of every source and sink.

A position is the *next* offset to read of one topic-partition. The archive keeps the positions; a source asks for them
(`Start`) whenever partitions are assigned to it, and never trusts any other memory of where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from raybroker.alerts import Packet

MAX_BYTES = 64_000_000
TopicPartition = tuple[str, int]


class Place(NamedTuple):
    """One partition of one topic as created once: a recreated topic has another `topic_id`, hence other places."""

    cluster: str
    topic: str
    topic_id: str
    partition: int

    @property
    def app_id(self) -> str:
        """The name under which archive and sinks keep its position."""
        return f"{self.cluster}/{self.topic_id}/{self.partition}"


class Gap(NamedTuple):
    """Offsets `first <= offset < end` that give no packet, and why.

    'expired': Kafka deleted them before they were read, the only permitted loss. 'before': they come before the place
    where reading began. 'no record': a transaction's marker, an aborted or a compacted record.
    """

    place: Place
    first: int
    end: int
    kind: str = "expired"


Start = Callable[[Sequence[Place]], Mapping[Place, int]]
"""Asked on every assignment: the position of each place that the archive knows; the others are left out."""


class Source(Protocol):
    """Gives packets of the places assigned to it, each place in the order of its offsets."""

    @property
    def places(self) -> Mapping[TopicPartition, Place]:
        """The places assigned now; it changes only during `poll` and `rewind`."""

    @property
    def gaps(self) -> list[Gap]:
        """What was skipped ('expired' or 'before'), as it is met; whoever accounts for it takes it off the list."""

    @property
    def reached(self) -> Mapping[Place, int]:
        """How far each place was read by the last `poll`: every offset before it was given since the last `start`, or
        is in `gaps`, or holds no record."""

    def poll(self, limit: int, seconds: float, max_bytes: int = MAX_BYTES) -> list[Packet]:
        """What arrives within `seconds`, or earlier once `limit` packets or `max_bytes` are reached; [] if nothing.

        Raises StreamError where the stream is not what the archive says it must be; after `rewind` it tries again.
        """

    def keep(self) -> None:
        """Called from within a long turn: stay a member of the group, without taking packets.

        Raises FencedError where places that the last `poll` read have moved: the turn is to be dropped.
        """

    def pause(self) -> None:
        """From now on `poll` waits and gives nothing, but the places stay ours; until `resume`."""

    def resume(self) -> None:
        """Give packets again."""

    def commit(self, positions: Mapping[Place, int]) -> None:
        """Tell the stream, as a hint for lag monitors, what the archive holds; it never waits and never raises."""

    def lags(self) -> dict[TopicPartition, int]:
        """How many offsets of each place assigned now wait to be polled, as far as is known without asking."""

    def end_reached(self) -> bool:
        """Whether everything was polled that was there when the places were first assigned (for `run --once`)."""

    def rewind(self) -> None:
        """Forget what was polled since the last `start`, ask `start` again and go on from its answers."""

    def close(self) -> None:
        """Give the places back."""


class Sink(Protocol):
    """Takes what leaves. The outputs of a turn and the position they reach are stored together or not at all."""

    def emitted(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Take these places over from any predecessor, which can write no more; the position each was emitted to."""

    def write(self, place: Place, outputs: Mapping[str, Sequence[Packet]], position: int) -> None:
        """Store packets by topic, and that everything of `place` before `position` has been emitted.

        Raises FencedError where another sink has taken the place over; StreamError where nothing was stored: then
        `emitted` must be asked again.
        """

    def flush(self) -> None:
        """Return when everything written is stored."""

    def close(self) -> None:
        """Flush, and give back what it holds."""
