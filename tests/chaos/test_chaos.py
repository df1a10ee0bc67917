"""The whole of raybroker, broken in one place after another under steady load: nothing is lost, nothing comes twice.

One system for all faults, since its start is most of a minute; so the order is that of `FAULTS`, and each fault is a
test of its own. The table of what was measured is written to `output/chaos.md`, and with `RAYBROKER_CHAOS_REPORT=docs/chaos.md` there.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from raybroker import settings
from raybroker.cluster import audit
from tests.chaos.faults import FAULTS, Fault, Struck
from tests.chaos.report import Line, Report
from tests.chaos.system import PATIENCE, RATE, System, wait
from tests.kafka.launcher import available

pytestmark = [pytest.mark.kafka, pytest.mark.ray, pytest.mark.timeout(600 * PATIENCE)]


@pytest.fixture(scope="module")
def report() -> Report:
    return Report()


@pytest.fixture(scope="module")
def system(data: Path, report: Report) -> Iterator[System]:
    """Everything, up and learning; killed by process id at the end."""
    if reason := available():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    made = System(data)
    try:
        made.start()
        report.remarks.append(
            f"{RATE:g} alerts/s; the system was up after {time.monotonic() - report.start:.0f} s."
        )
        yield made
        report.remarks.append(
            f"{made.produced.count():,} alerts were sent, {len(made.labels.recorded)} labels given."
        )
        report.write()
    finally:
        made.stop()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_nothing_is_lost_and_nothing_comes_twice(fault: Fault, system: System, report: Report) -> None:
    if fault.needs_disk and not system.mounted:
        pytest.skip(f"no disk of its own can be mounted here: {system.unmounted}")
    start = time.monotonic()
    struck = fault.strike(system)
    seconds = recovery(system, fault, struck)
    verdict = system.ledger.check()
    counts = verdict.lost, verdict.repeated
    took = time.monotonic() - start
    report.add(Line(fault.name, *counts, seconds, fault.seconds, struck.note, took, verdict.rows))
    assert verdict.problems == []
    assert audited(system) == []


def recovery(system: System, fault: Fault, struck: Struck) -> float:
    """Seconds until all is as before: every partition has gone on, nothing old waits, and what the fault hurt is well."""

    def ills() -> dict[str, object]:
        wanted, stored = system.produced.end(struck.at + 1.0), system.ledger.positions()
        found = {
            "not gone on": {key: end for key, end in wanted.items() if stored.get(key, 0) <= end},
            "waits": system.ledger.behind(),
            "not well": not struck.well(system),
        }
        return {name: ill for name, ill in found.items() if ill}

    def recovered() -> bool:
        return time.monotonic() > struck.at + 1.0 and not ills()

    def told() -> object:
        said = (system.folder / "log").read_text().splitlines()[-40:]
        return "\n".join([str(ills()), *said])

    wait(recovered, fault.seconds, f"all is well again after: {fault.name}", told=told)
    return time.monotonic() - struck.at


def audited(system: System) -> list[str]:
    """What the product's own audit says is wrong, apart from what Kafka deleted when we told it to."""
    own = settings.load(system.folder / "raybroker.toml")
    return [str(one) for one in audit.audit(own).wrong]


def test_every_label_that_was_recorded_is_learned_once(system: System, report: Report) -> None:
    system.labels.stop()
    recorded = set(system.labels.recorded)
    assert recorded
    wait(lambda: recorded <= set(system.heard()), 60, "all labels are learned")
    heard = Counter(system.heard())
    report.remarks.append(
        f"{len(recorded)} labels were recorded, 0 lost; all of them were learned, each once."
    )
    assert [ident for ident, times in heard.items() if times > 1] == []
