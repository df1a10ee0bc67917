"""The table of what was measured: one line per fault, written after each, so that a failure leaves what there was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent / "output"
VARIABLE = "RAYBROKER_CHAOS_REPORT"  # a file: write the table there too, such as docs/chaos.md
HEAD = """\
# What was broken, and what came of it

`tests/chaos` starts the whole of raybroker on one machine: Kafka, Ray on two nodes, MLflow, `raybroker run` with two workers, a
trainer and the service, an archive on a small disk of its own, somebody who labels an alert a second, and a reader of what a filter
sends. Real packets come all the time. Then one thing after another is broken. After each, every offset that Kafka acknowledged must be
exactly one row of the archive, and every output must be seen exactly once by a `read_committed` reader; and `raybroker audit` must agree.
The test wrote this page; every number was measured.

- *Lost*: offsets without a row, and outputs never sent. What Kafka deleted before it was read is counted apart.
- *Repeated*: rows too many, and outputs sent twice.
- *Seconds*: from the end of the fault until every partition has gone on, and nothing waits that came more than five seconds before. Where
  nothing has to recover it is about two, the least that is measured. At most 60 are allowed.

Nobody does anything by hand: what systemd would do, starting `raybroker run` again after it was killed, the test does too.

"""


@dataclass(frozen=True)
class Line:
    """What was measured of one fault."""

    fault: str
    lost: int
    repeated: int
    seconds: float
    limit: float
    note: str
    took: float  # the whole test of it, with its checks
    rows: int


class Report:
    """The lines so far."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.remarks: list[str] = []
        self.start = time.monotonic()

    def add(self, line: Line) -> None:
        """One more, and all of them onto the disk."""
        self.lines.append(line)
        self.write()

    def write(self) -> None:
        HERE.mkdir(exist_ok=True)
        text = HEAD + table(self.lines) + "\n" + "".join(f"- {remark}\n" for remark in self._told())
        (HERE / "chaos.md").write_text(text, encoding="utf-8")
        lines = [asdict(line) for line in self.lines]
        (HERE / "chaos.json").write_text(json.dumps({"lines": lines, "remarks": self._told()}, indent=1))
        if wanted := os.environ.get(VARIABLE):
            Path(wanted).write_text(text, encoding="utf-8")

    def _told(self) -> list[str]:
        return [*self.remarks, f"All of it took {time.monotonic() - self.start:.0f} s."]


def table(lines: Sequence[Line]) -> str:
    """As Markdown."""
    head = "| fault | lost | repeated | seconds | what else |\n|---|---|---|---|---|\n"
    return head + "".join(
        f"| {line.fault} | {line.lost} | {line.repeated} | {line.seconds:.1f} | {line.note} |\n"
        for line in lines
    )
