"""The numbers of docs/learning.md: `python -m tests.benchmarks.learning [PART ...] [--seeds N] [--data FOLDER]`.

Each part is kept in tests/benchmarks/results/learning/ when it is done, and the page is written from all that are there.
So the parts may be measured one after the other, and side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

import raybroker
from raybroker.learning.learner import Learner
from raybroker.protocols import night, report
from raybroker.protocols.anomaly import GREEDY, ISOLATION, OURS
from raybroker.protocols.findings import Findings, Line, Plot, Sheet, key
from raybroker.protocols.report import Evaluation
from tests.benchmarks import tables
from tests.benchmarks.drawing import svg
from tests.conftest import DATA

DOCS = Path(__file__).parents[2] / "docs"
KEPT = Path(__file__).parent / "results" / "learning"
TRANSIENTS = ("phases.*", "basic.galactic_latitude")  # docs/decisions/features.md
SHOWN_PLOTS = 2  # of each part
console = Console()


@dataclass(frozen=True)
class Job:
    """What every part is given."""

    data: Path
    seeds: int

    def supernovae(self, **options: Any) -> Evaluation:
        """SN Ia or not, one alert per detection."""
        table = self.data / "labelled" / "ztf_tns_lightcurves.parquet"
        given = {"label": "tns_type", "object": "objectId", "wanted": "SN Ia*", "seeds": self.seeds}
        given["columns"] = ("basic.*", "early.*")
        return raybroker.evaluate(table, **given | options)

    def kilonovae(self, **options: Any) -> Evaluation:
        """A random fifth of simulated transients, one in a hundred a kilonova."""
        table = self.data / "labelled" / "kilonova_simulated_ztf.csv.gz"
        given = {"label": "type", "object": "SNID", "wanted": "51", "share": 0.2, "seeds": self.seeds}
        return raybroker.evaluate(table, **given | options)


Part = Callable[[Job], list[Findings]]


def stream(job: Job) -> list[Findings]:
    """Labels 14 days late."""
    return list(job.supernovae(protocol="stream").findings)


def delays(job: Job) -> list[Findings]:
    """The same with labels at once, after 2 and 30 days, and for half of the objects never: one seed."""
    rules = {
        "0 days": {"delay": 0.0},
        "2 days": {"delay": 2.0},
        "30 days": {"delay": 30.0},
        "14 days, half never": {"never": 0.5},
    }
    rows = []
    for name, rule in rules.items():
        found = job.supernovae(protocol="stream", seeds=1, **rule).metrics
        rows.append(
            (
                name,
                *(
                    _number(found, f"stream.{s}.{m}.auc")
                    for s in ("unseen_objects", "all_alerts")
                    for m in ("mixture", "random_forest")
                ),
            )
        )
    columns = (
        "labels come after",
        "unseen: mixture",
        "unseen: random forest",
        "all: mixture",
        "all: random forest",
    )
    note = "AUC, one seed. What is good on all alerts and not on unseen objects remembers objects."
    return [Findings("delays", {}, (Sheet("Other delays", columns, tuple(rows), note),))]


def shuffled(job: Job) -> list[Findings]:
    """The control: labels dealt out anew among the objects."""
    rows = []
    for protocol, where in (("stream", "stream.unseen_objects"), ("holdout", "holdout.object")):
        found = [
            job.supernovae(protocol=protocol, seeds=[seed], shuffle=True).metrics for seed in range(job.seeds)
        ]
        aucs = [[one[f"{where}.{model}.auc"] for one in found] for model in ("mixture", "random_forest")]
        rows.append(
            (
                where.replace("_", " ").replace(".", ", "),
                *(f"{np.mean(a):.3f} ± {np.std(a, ddof=1):.3f}" for a in aucs),
            )
        )
    sheet = Sheet(
        "Shuffled labels: AUC", ("protocol", "mixture", "random forest"), tuple(rows), "must be 0.50 ± 0.03"
    )
    return [Findings("shuffled", {}, (sheet,))]


def holdout(job: Job) -> list[Findings]:
    """Objects that were kept back; with the step for transients, and with the history that an alert carries or with all."""
    found = []
    for name, days in (("30 days of history", 30.0), ("all the history", 1e5)):
        made = job.supernovae(protocol="holdout", columns=TRANSIENTS, history=days).findings
        found += [_titled(one, name) for one in made]
    return found


def _titled(one: Findings, more: str) -> Findings:
    """The same, with something more in the titles."""
    sheets = tuple(replace(sheet, title=f"{sheet.title}, {more}") for sheet in one.sheets)
    return replace(one, sheets=sheets, plots=tuple(replace(p, title=f"{p.title}, {more}") for p in one.plots))


def active(job: Job) -> list[Findings]:
    """Strategies against random."""
    return list(job.supernovae(protocol="active").findings)


def drift(job: Job) -> list[Findings]:
    """The classes are exchanged halfway."""
    return list(job.supernovae(protocol="drift").findings)


def ranking(job: Job) -> list[Findings]:
    """Human queues."""
    return list(job.supernovae(protocol="ranking").findings)


def anomaly(job: Job) -> list[Findings]:
    """Kilonovae among other transients: every seed draws a fifth of its own."""
    seeds = range(100, 100 + 2 * job.seeds)
    runs = [job.kilonovae(protocol="anomaly", seeds=[seed]).metrics for seed in seeds]
    rows = []
    for name in (OURS, ISOLATION, GREEDY):
        hits = [int(run[key("anomaly", name, "hits_50")]) for run in runs]
        rows.append((name, " ".join(map(str, hits)), f"{np.median(hits):g}", sum(hit >= 35 for hit in hits)))
    columns = ("way", f"hits in 50 looks, in each of {len(runs)} fifths", "median", "runs of 35 and more")
    return [Findings("anomaly", {}, (Sheet("Kilonovae among other transients", columns, tuple(rows)),))]


def speed(job: Job) -> list[Findings]:
    """Rows per second and core of the default mixture, in batches of 1,000."""
    rng = np.random.default_rng(0)
    columns = [f"f{i}" for i in range(20)]
    truth = rng.integers(0, 2, 2_500)
    rows = rng.normal(0, 1, (2_500, 20)) + 0.5 * truth[:, None]
    table = pa.table(dict(zip(columns, rows.T, strict=True)))
    learner = Learner("speed", ("a", "b"), columns)
    learner.learn(table, [("a", "b")[one] for one in truth.tolist()])
    frozen, batch = learner.frozen(), rows[:1_000]
    frozen.predict_matrix(batch)
    found = []
    for _ in range(20):
        start = time.process_time()
        frozen.predict_matrix(batch)
        found.append(1_000 / (time.process_time() - start))
    line = ("default mixture, 20 features, 2,500 labels", f"{np.median(found):,.0f}")
    return [
        Findings("speed", {}, (Sheet("Scoring", ("what", "rows/s per core"), (line,), "batches of 1,000"),))
    ]


def whole_night(job: Job) -> list[Findings]:
    """Through the whole pipeline."""
    table = job.data / "labelled" / "ztf_tns_lightcurves.parquet"
    return list(night.evaluate(table, label="tns_type", object="objectId", wanted="SN Ia*").findings)


PARTS: dict[str, Part] = {
    "stream": stream,
    "delays": delays,
    "shuffled": shuffled,
    "holdout": holdout,
    "anomaly": anomaly,
    "active": active,
    "drift": drift,
    "ranking": ranking,
    "speed": speed,
    "night": whole_night,
}
ABOUT = {
    "stream": "SN Ia or not, on 1,034 typed objects of ZTF (2019-11 to 2020-09), one alert per detection, labels 14 days late, one label per "
    "object in 5 days. An object is unseen until one of its labels was learned. The random forest is refitted every week on the same labels "
    "in the same run.",
    "delays": "",
    "shuffled": "Classes dealt out anew among the objects. Whoever has more than one half here has seen what it must not. One deal scatters by some 0.03.",
    "holdout": "30 % of the objects kept back; by time, what came in the last 30 % of the alerts, of objects not met before. With the columns of the step `phases` and the galactic "
    "latitude ([decisions/features.md](decisions/features.md)); once with the 30 days of history that ZTF's alerts carry, once with all since the discovery (Rubin's carry a year).",
    "anomaly": "A random fifth of the simulated transients (10,516, of which some 110 are kilonovae), drawn anew for every run. The loop looks at one object after "
    "the other and is told what it was; [decisions/anomaly.md](decisions/anomaly.md) has more runs.",
    "active": "One alert per object in the pool; ten labels at a time; the curve is the AUC on objects that nobody can choose.",
    "drift": "Labels 14 days late. What comes before the first label of the new kind is judged by the old. An object is unseen until one of its labels was learned; on all alerts, "
    "one that knows the objects again does well too.",
    "ranking": "How soon people meet the wanted class when they read a queue from its top.",
    "speed": "",
    "night": "The same light curves as ZTF packets through decoding, cuts, features, scores and archive. An oracle answers ten questions a night, "
    "14 days later, and of each object once; later alerts of the object are then learned too (`later_alerts`). Without that the AUC was 0.540 on unseen objects and 0.578 on all alerts, "
    "since most questions are of an object's first alert. The numbers are of the scores in the archive.",
}


def _number(found: dict[str, float], name: str) -> str:
    return f"{found[name]:.3f}"


def keep(name: str, found: Sequence[Findings], when: str = "") -> None:
    """A part as JSON, with the day on which it was measured."""
    kept = {"when": when or time.strftime("%Y-%m-%d", time.gmtime()), "found": [asdict(one) for one in found]}
    (KEPT / f"{name}.json").write_text(json.dumps(kept, indent=1, default=float) + "\n", encoding="utf-8")


def recall(name: str) -> tuple[str, list[Findings]]:
    """When a part was measured, and what was found."""
    kept = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    return kept["when"], [_findings_of(one) for one in kept["found"]]


def _findings_of(row: dict[str, Any]) -> Findings:
    sheets = [
        Sheet(one["title"], tuple(one["columns"]), tuple(map(tuple, one["rows"])), one["note"])
        for one in row["sheets"]
    ]
    plots = [
        Plot(one["title"], one["x"], one["y"], tuple(Line(**line) for line in one["lines"]))
        for one in row["plots"]
    ]
    return Findings(row["protocol"], row["metrics"], tuple(sheets), tuple(plots), tuple(row["notes"]))


def page(parts: Sequence[str]) -> str:
    """docs/learning.md from what is kept."""
    machine = tables.machine()
    lines = [
        "# How well it learns",
        "",
        "Written by `python -m tests.benchmarks.learning`, which anyone can run; the data are described in `../shared/data/README.md`. "
        "Every number is the mean over the seeds with its standard deviation. A seed draws ties in time, splits and the members' own chance. "
        "Numbers on **unseen objects** count; those on all alerts flatter, since other alerts of the same object were learned.",
        "",
        f"Measured on {machine['processor']}, Python {machine['python']}.",
        "",
    ]
    if missing := [name for name in PARTS if name not in parts]:
        lines += [f"Not measured since what they measure changed: {', '.join(missing)}.", ""]
    for name in parts:
        when, found = recall(name)
        lines += [f"## {name.capitalize()}", "", f"{ABOUT[name]} Measured on {when}.".strip(), ""]
        for number, one in enumerate(found):
            lines += _findings(name, number, one)
    return "\n".join(lines).rstrip() + "\n"


def _findings(name: str, number: int, one: Findings) -> list[str]:
    lines = []
    for sheet in one.sheets:
        shown = tables.Sheet(sheet.title, sheet.columns, sheet.rows)
        lines += [tables.markdown(shown), *([f"{sheet.note}.", ""] if sheet.note else [])]
    lines += [f"- {note}" for note in one.notes] + ([""] if one.notes else [])
    for i, plot in enumerate(one.plots[:SHOWN_PLOTS]):
        file = DOCS / "learning" / f"{name}{number or ''}-{i + 1}.svg"
        file.parent.mkdir(exist_ok=True)
        file.write_text(svg(plot), encoding="utf-8")
        lines += [f"![{plot.title}](learning/{file.name})", ""]
    return lines


def main() -> None:
    """Measure the parts that are named, or all; write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--page", action="store_true", help="only write the page, from what is kept")
    wish = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in () if wish.page else wish.parts or PARTS:
        start = time.perf_counter()
        found = PARTS[name](Job(wish.data, wish.seeds))
        keep(name, found)
        report.show(Evaluation({}, tuple(found)), console)
        console.print(f"{name}: {time.perf_counter() - start:.0f} s\n")
    kept = [name for name in PARTS if (KEPT / f"{name}.json").exists()]
    (DOCS / "learning.md").write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
