"""What was produced, and what came of it: books of our own, which share no code with those that they check.

The archive is read from its log and its Parquet files, without any Delta library; the outputs by a `read_committed`
reader; what was produced stands in the delivery reports of the producer.
"""

from __future__ import annotations

import json
import threading
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import confluent_kafka as ck
import pyarrow as pa
import pyarrow.parquet as pq

Key = tuple[str, int]
COLUMNS = ["topic", "partition", "offset", "outcome", "reason", "alert_id", "segment"]
PLAIN, BROKEN, KILLER = "plain", "broken", "killer"
EXPECTED = {PLAIN: {"scored", "rejected"}, BROKEN: {"dead"}, KILLER: {"dead"}}
CATCH_UP = 5.0  # seconds: an alert that was delivered so long ago should be in the archive


class Produced:
    """What Kafka has acknowledged: offset, kind and when, by topic-partition."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kinds: dict[Key, list[tuple[int, str]]] = defaultdict(list)
        self.times: dict[Key, tuple[list[float], list[int]]] = defaultdict(lambda: ([], []))
        self.past: list[tuple[str, int, int, str]] = []  # of topics that were made again since
        self.refused: list[str] = []

    def delivered(self, kind: str, error: ck.KafkaError | None, message: ck.Message) -> None:
        """The producer's callback."""
        if error is not None:
            self.refused.append(error.str())
            return
        key, offset = (message.topic(), message.partition()), message.offset()
        with self.lock:
            self.kinds[key].append((offset, kind))
            self.times[key][0].append(time.monotonic())
            self.times[key][1].append(offset)

    def end(self, when: float) -> dict[Key, int]:
        """By topic-partition, the offset after the last one that was delivered by then."""
        with self.lock:
            found = {key: bisect_right(times, when) for key, (times, _) in self.times.items()}
            return {key: self.times[key][1][n - 1] + 1 for key, n in found.items() if n}

    def forget(self, topic: str) -> None:
        """A topic is made again: its offsets start anew, its packets stay in the books."""
        with self.lock:
            for key in [key for key in self.times if key[0] == topic]:
                del self.times[key]
                self.past += [(*key, offset, kind) for offset, kind in self.kinds.pop(key)]

    def places(self) -> list[tuple[str, int, int, str, bool]]:
        """All of them: topic, partition, offset, kind, and whether the topic is still that one."""
        with self.lock:
            now = [(*key, *one, True) for key, told in self.kinds.items() for one in told]
            return [(*one, False) for one in self.past] + now

    def count(self) -> int:
        with self.lock:
            return sum(map(len, self.kinds.values())) + len(self.past)


class Log:
    """The table of alerts, followed commit by commit: its live files, and the position of each topic-partition."""

    def __init__(self, table: Path) -> None:
        self.table, self.version = table, -1
        self.files: dict[str, None] = {}
        self.positions: dict[str, int] = {}  # by the name of the application transaction
        self.backwards: list[str] = []
        self._rows: dict[str, pa.Table] = {}

    def follow(self) -> None:
        """Read what was committed since."""
        while (path := self.table / "_delta_log" / f"{self.version + 1:020d}.json").exists():
            self.version += 1
            for action in map(json.loads, path.read_text().splitlines()):
                self._apply(action)

    def _apply(self, action: Mapping[str, dict]) -> None:
        if "add" in action:
            self.files[action["add"]["path"]] = None
        elif "remove" in action:
            self.files.pop(action["remove"]["path"], None)
        elif "txn" in action:
            name, position = action["txn"]["appId"], action["txn"]["version"]
            if position <= self.positions.get(name, -1):
                self.backwards.append(f"{name} went from {self.positions[name]} to {position}")
            self.positions[name] = position

    def rows(self, names: Iterable[str]) -> pa.Table:
        """These columns of all live rows; a file is read once, for it never changes."""
        for path in [path for path in self._rows if path not in self.files]:
            del self._rows[path]
        for path in [path for path in self.files if path not in self._rows]:
            self._rows[path] = pq.ParquetFile(self.table / path).read(list(names))
        return pa.concat_tables(self._rows.values())


class Outputs(threading.Thread):
    """Everything that a `read_committed` reader sees of one topic: how often each key."""

    def __init__(self, servers: str, topic: str) -> None:
        super().__init__(daemon=True, name="outputs")
        self.servers, self.topic, self.seen = servers, topic, Counter[str]()
        self._stop_asked = threading.Event()

    def run(self) -> None:
        reader = ck.Consumer(
            {
                "bootstrap.servers": self.servers,
                "group.id": "chaos-outputs",
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "topic.metadata.refresh.interval.ms": 2_000,
                "reconnect.backoff.max.ms": 1_000,
                "session.timeout.ms": 60_000,
                "log_level": 0,
            }
        )
        reader.subscribe([self.topic])
        while not self._stop_asked.is_set():
            messages = reader.consume(500, timeout=0.2)
            self.seen.update(m.key().decode() for m in messages if m.error() is None)
        reader.close()

    def stop(self) -> None:
        self._stop_asked.set()
        self.join(20)


@dataclass(frozen=True)
class Verdict:
    """What the books say: empty lists where all is well."""

    rows: int
    outcomes: Mapping[str, int]
    unstored: list[tuple[str, int, int]]  # offsets without a row
    unsent: list[str]  # outputs never seen
    stored_twice: list[tuple[str, int, int]]
    sent_twice: list[str]
    wrong: list[str]

    @property
    def lost(self) -> int:
        return len(self.unstored) + len(self.unsent)

    @property
    def repeated(self) -> int:
        return len(self.stored_twice) + len(self.sent_twice)

    @property
    def problems(self) -> list[str]:
        """Sentences, with examples."""
        return [
            *_said("offsets have no row", self.unstored),
            *_said("outputs were not sent", self.unsent),
            *_said("rows are too many", self.stored_twice),
            *_said("outputs were sent twice", self.sent_twice),
            *self.wrong,
        ]


class Ledger:
    """Compares all that was produced with the archive and with the outputs."""

    def __init__(self, produced: Produced, log: Log, outputs: Outputs, filtered: str) -> None:
        self.produced, self.log, self.outputs, self.filtered = produced, log, outputs, filtered
        self.expired: Counter[tuple[str, int, int]] = Counter()  # offsets that we had Kafka delete unread
        self.topic_ids: dict[str, str] = {}

    def positions(self) -> dict[Key, int]:
        """Where each topic-partition stands in the archive."""
        self.log.follow()
        topics = {ident: topic for topic, ident in self.topic_ids.items()}
        found = {}
        for name, position in self.log.positions.items():  # cluster/topic id/partition, or compaction's
            place = name.split("/")[-2:]
            if place[0] in topics:
                found[topics[place[0]], int(place[1])] = position
        return found

    def behind(self) -> dict[Key, int]:
        """How many offsets wait that were delivered more than `CATCH_UP` seconds ago; {} when the lag is gone."""
        wanted, stored = self.produced.end(time.monotonic() - CATCH_UP), self.positions()
        return {key: end - stored.get(key, 0) for key, end in wanted.items() if end > stored.get(key, 0)}

    def rows(self) -> list[dict]:
        """The archive's rows, as they are now."""
        self.log.follow()
        found: list[dict] = self.log.rows([*COLUMNS, self.filtered]).to_pylist()
        return found

    def check(self, seconds: float = 30.0) -> Verdict:
        """Every offset before the archive's position exactly one row; every output once."""
        seen = Counter(self.outputs.seen)  # before the rows, which are therefore the newer
        positions = self.positions()
        rows: list[dict] = self.log.rows([*COLUMNS, self.filtered]).to_pylist()
        found = Counter((row["topic"], row["partition"], row["offset"]) for row in rows)
        unstored, twice = self._compare(found, positions)
        passed = {row["alert_id"] for row in rows if row[self.filtered]}
        missing = self._missing(passed, seconds)
        strange = [key for key in seen if key not in passed]
        return Verdict(
            len(rows),
            Counter(row["outcome"] for row in rows),
            unstored,
            missing,
            twice,
            [key for key, times in self.outputs.seen.items() if times > 1],
            self._wrong(rows)
            + _said("outputs are of alerts that did not pass", strange)
            + self.log.backwards,
        )

    def _compare(
        self, found: Counter[tuple[str, int, int]], positions: Mapping[Key, int]
    ) -> tuple[list[tuple[str, int, int]], list[tuple[str, int, int]]]:
        places = self.produced.places()
        everything = Counter(place[:3] for place in places)
        due = Counter(p[:3] for p in places if not p[4] or p[2] < positions.get(p[:2], 0))
        return list((due - found - self.expired).elements()), list((found - everything).elements())

    def _missing(self, passed: set[str], seconds: float) -> list[str]:
        until = time.monotonic() + seconds
        while (
            missing := [key for key in passed if key not in self.outputs.seen]
        ) and time.monotonic() < until:
            time.sleep(0.2)
        return missing

    def _wrong(self, rows: list[dict]) -> list[str]:
        """Outcomes that the packet's kind does not explain: an honest alert is never dead."""
        kinds: dict[tuple[str, int, int], set[str]] = defaultdict(set)
        for topic, partition, offset, kind, _ in self.produced.places():
            kinds[topic, partition, offset].add(kind)
        bad: Counter[str] = Counter()
        for row in rows:
            allowed = kinds.get((row["topic"], row["partition"], row["offset"]), {PLAIN})
            if not any(row["outcome"] in EXPECTED[kind] for kind in allowed):
                bad[f"{'/'.join(allowed)} packets are {row['outcome']}: {row['reason']}"] += 1
        return [f"{count} {what}" for what, count in bad.items()]


def _said(what: str, which: list) -> list[str]:
    return [f"{len(which)} {what}, such as {sorted(which)[:5]}"] if which else []
