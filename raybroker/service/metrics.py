"""What `GET /metrics` tells Prometheus: of the stream, the stages, the models, the archive, and this replica's requests.

Counters are the supervisor's, from `running.json`: they begin anew when it does, never fall otherwise, and are the same
at every replica, whichever a scrape reaches. HTTP requests are a replica's own, and name it. What a replica finds out by
itself, and may be a moment behind with (archive, models), is a gauge: a counter that falls looks like a restart.
Labels are bounded: reasons are classes (see `cluster.gauges`), paths are the routes'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from raybroker.cluster.gauges import class_of, survey_of
from raybroker.errors import RaybrokerError
from raybroker.service.desk import Desk

Row = tuple[Any, ...]  # the labels' values, then the number
Told = Mapping[str, Any]
SUMS = {  # of one survey: key in `running.json` → metric, what it counts
    "turns": ("raybroker_turns", "Turns of workers"),
    "fenced": ("raybroker_turns_fenced", "Turns dropped since another worker was first"),
    "troubled": ("raybroker_turns_troubled", "Turns that met something that is away"),
    "expired": ("raybroker_expired", "Offsets that Kafka deleted before they were read: lost"),
    "no_record": ("raybroker_no_record", "Offsets that never held a packet"),
    "unknown_fields": ("raybroker_unknown_fields", "Fields of packets that nobody knows"),
}
PARTS = {  # the same, one level deeper: metric, label, what it counts
    "outcomes": ("raybroker_alerts", "outcome", "Alerts received, by what became of them"),
    "sent": ("raybroker_sent", "topic", "Outputs sent"),
    "seconds": ("raybroker_stage_seconds", "stage", "Seconds in a stage of the turns, over all workers"),
    "cpu_seconds": ("raybroker_stage_cpu_seconds", "stage", "Seconds of CPU of the workers' own threads"),
    "step_seconds": ("raybroker_step_seconds", "step", "Seconds in a step, a part of the stage 'pipeline'"),
}
TABLE = {  # of a table's log: key → metric, what it is
    "commits": ("raybroker_archive_commits", "Commits to a table so far"),
    "merges": ("raybroker_archive_merges", "Merges of small files so far: commits of compaction"),
    "files": ("raybroker_archive_live_files", "Live files of a table"),
    "bytes": ("raybroker_archive_bytes", "Bytes in the live files of a table"),
}
RELEASES = {
    "logged": ("raybroker_releases_logged", "Releases logged to MLflow", True),
    "dropped": ("raybroker_releases_dropped", "Releases given up", True),
    "waiting": ("raybroker_releases_waiting", "Releases that wait for MLflow", False),
}


class Numbers:
    """A Prometheus collector of what the desk knows; `collect` is called at every scrape."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def collect(self) -> Iterable[Metric]:
        """All but the HTTP requests, which `Guard` counts."""
        told = self._told()
        yield from self._alerts()
        yield from self._here()
        yield from self._models()
        yield from supervisor(told)
        yield from workers(told)
        yield from trainer(told.get("numbers", {}).get("trainer", {}))
        yield from archive(self.desk.tables())

    def _told(self) -> Told:
        """The supervisor's last word; none where it cannot be read: what is served here is told all the same."""
        try:
            return self.desk.status()
        except (RaybrokerError, OSError):
            return {}

    def _alerts(self) -> Iterator[Metric]:
        sums: dict[tuple[str, str], int] = {}
        for (survey, _, outcome, _), count in self.desk.view.totals().items():
            sums[survey, outcome] = sums.get((survey, outcome), 0) + count
        about, rows = "Alerts in the archive", [(*key, count) for key, count in sums.items()]
        yield _gauge("raybroker_archived_alerts", about, ("survey", "outcome"), rows)

    def _here(self) -> Iterator[Metric]:
        yield _gauge("raybroker_alerts_in_memory", "Rows that /alerts lists", (), [(len(self.desk.view),)])
        yield _gauge("raybroker_problems", "Sentences of /health", (), [(len(self.desk.problems()),)])
        about = "From an alert's publication until it could be read here"
        yield _gauge("raybroker_delay_seconds", about, (), _known(self.desk.delay()))
        about = "When the archive was last followed to its end"
        yield _gauge("raybroker_followed_timestamp_seconds", about, (), _known(self.desk.followed()))

    def _models(self) -> Iterator[Metric]:
        infos = self.desk.model_infos()
        new = {info["name"]: info["snapshot"] or {} for info in infos}
        numbers = [(name, row.get("number", 0)) for name, row in new.items()]
        yield _gauge("raybroker_snapshot", "Number of the newest snapshot", ("model",), numbers)
        about = "When the newest snapshot was made"
        made = [(name, row["when"].timestamp()) for name, row in new.items() if row.get("when")]
        yield _gauge("raybroker_snapshot_timestamp_seconds", about, ("model",), made)
        waiting = [(info["name"], info["open_queries"]) for info in infos]
        yield _gauge("raybroker_open_queries", "Questions that stand open", ("model",), waiting)
        labels = [(info["name"], info["labels"]["labels"]) for info in infos]
        yield _gauge("raybroker_labels", "Standing labels", ("model",), labels)


def supervisor(told: Told) -> Iterator[Metric]:
    """Whether it lives, and what it says of its seats."""
    seats, numbers = told.get("seats", {}), told.get("numbers", {})
    about = "When the supervisor last wrote running.json"
    yield _gauge("raybroker_supervisor_timestamp_seconds", about, (), _known(told.get("heartbeat")))
    about = "When it started: its sums begin there"
    yield _gauge("raybroker_supervisor_start_timestamp_seconds", about, (), _known(numbers.get("started")))
    deaths = numbers.get("deaths", {}).items()
    yield _counter("raybroker_deaths", "Deaths of workers and trainer", ("seat",), deaths)
    row = [(name, seat["deaths_in_a_row"]) for name, seat in seats.items()]
    yield _gauge("raybroker_deaths_in_a_row", "Since a turn was finished", ("seat",), row)
    troubles = {(seat, class_of(what)): 1 for seat, what in told.get("troubles", {}).items()}
    rows = [(*key, one) for key, one in troubles.items()]
    yield _gauge("raybroker_troubles", "What keeps a seat from working", ("seat", "reason"), rows)
    here, wanted = _sizes(told)
    yield _gauge("raybroker_workers", "Workers there are", ("survey",), here.items())
    yield _gauge("raybroker_workers_wanted", "Workers there should be", ("survey",), wanted.items())


def _sizes(told: Told) -> tuple[dict[str, int], dict[str, int]]:
    """Workers that are there, and that are wanted, by survey; without a supervisor, those that told their lag."""
    here = dict.fromkeys([*told.get("sizes", {}), *told.get("numbers", {}).get("surveys", {})], 0)
    seats = told.get("seats", {})
    working = [name for name, seat in seats.items() if seat["process"]] if seats else told.get("workers", [])
    for name in working:
        if survey_of(name) in here:
            here[survey_of(name)] += 1
    sizes = {name: {"workers": count} for name, count in here.items()} | dict(told.get("sizes", {}))
    return here, {name: size["workers"] for name, size in sizes.items()}


def workers(told: Told) -> Iterator[Metric]:
    """The turns of every survey's workers, summed, and their lag."""
    surveys = told.get("numbers", {}).get("surveys", {})
    for key, (name, about) in SUMS.items():
        sums = ((survey, own.get(key, 0)) for survey, own in surveys.items())
        yield _counter(name, about, ("survey",), sums)
    for key, (name, label, about) in PARTS.items():
        rows = ((survey, *pair) for survey, own in surveys.items() for pair in own.get(key, {}).items())
        yield _counter(name, about, ("survey", label), rows)
    reasons = (
        (survey, outcome, *pair)
        for survey, own in surveys.items()
        for outcome, counts in own.get("reasons", {}).items()
        for pair in counts.items()
    )
    about = "Why: the cut that rejected, the step that failed, the kind of a dead packet's fault"
    yield _counter("raybroker_reasons", about, ("survey", "outcome", "reason"), reasons)
    rates = ((survey, own.get("rate", 0.0)) for survey, own in surveys.items())
    yield _gauge("raybroker_alerts_per_second", "Over the last ten seconds", ("survey",), rates)
    lags = ((survey_of(worker), worker, lag) for worker, lag in told.get("lags", {}).items())
    yield _gauge("raybroker_lag", "Packets that wait in a worker's partitions", ("survey", "worker"), lags)
    yield partition_lag(told.get("partition_lags", {}))


def partition_lag(told: Told) -> Metric:
    """What waits in every partition that is read now; of very many, the sum of the emptier ones as 'other'."""
    rows = (
        (survey, topic, *pair)
        for survey, topics in told.items()
        for topic, partitions in topics.items()
        for pair in partitions.items()
    )
    about = "Packets that wait in a partition"
    return _gauge("raybroker_partition_lag", about, ("survey", "topic", "partition"), rows)


def trainer(told: Told) -> Iterator[Metric]:
    """Its turns, its pools, and what waits for MLflow."""
    names = {"turns": "The trainer's turns", "seconds": "Seconds in them", "learned": "Labels learned"}
    for key, about in names.items():
        yield _counter(f"raybroker_trainer_{key}", about, (), _known(told.get(key)))
    pools = told.get("pool", {}).items()
    yield _gauge("raybroker_pool", "Alerts that a model may ask about", ("model",), pools)
    for key, (name, about, rises) in RELEASES.items():
        rows = _known(told.get("releases", {}).get(key))
        yield (_counter if rises else _gauge)(name, about, (), rows)


def archive(told: Told) -> Iterator[Metric]:
    """The tables, the disk, and the last audits."""
    tables, audits = told.get("tables", {}), told.get("audits", {})
    for key, (name, about) in TABLE.items():
        yield _gauge(name, about, ("table",), [(table, own[key]) for table, own in tables.items()])
    free = _known(told.get("free_bytes"))
    yield _gauge("raybroker_archive_free_bytes", "Room on the archive's disk", (), free)
    when = [(survey, own["when"]) for survey, own in audits.items()]
    yield _gauge("raybroker_audit_timestamp_seconds", "When it was last audited", ("survey",), when)
    wrong = [(survey, own["wrong"]) for survey, own in audits.items()]
    about = "Ranges of offsets about which the books do not hold"
    yield _gauge("raybroker_audit_wrong_ranges", about, ("survey",), wrong)


def _known(value: float | None) -> list[Row]:
    """One number without labels; none where it is not known."""
    return [] if value is None else [(value,)]


def _counter(name: str, about: str, labels: Iterable[str], rows: Iterable[Row]) -> Metric:
    return _filled(CounterMetricFamily(name, about, labels=list(labels)), rows)


def _gauge(name: str, about: str, labels: Iterable[str], rows: Iterable[Row]) -> Metric:
    return _filled(GaugeMetricFamily(name, about, labels=list(labels)), rows)


def _filled(family: Any, rows: Iterable[Row]) -> Metric:
    for *labels, number in rows:
        family.add_metric([str(label) for label in labels], number)
    return family
