"""Drive raybroker with a stream in the rhythm of Rubin's visits, and report lag, workers, nodes, latency, alerts lost.

    python jobs/load_test.py                                   # fake nodes and a Kafka on this machine
    python jobs/load_test.py --address auto --servers kafka:9092 --root /shared/load-test --night night.tar.gz
    ray job submit --working-dir . -- python jobs/load_test.py --address auto --servers kafka:9092 --root /shared/l

Writes load.json and load.html into --report. Exit code: 0 if nothing was lost and everything was read, else 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from raybroker.cluster.load import Rhythm
from raybroker.cluster.loaded import Wish, run


def parsed() -> Wish:
    usual = Rhythm()
    parser = argparse.ArgumentParser(prog="load_test", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", default="", help="a Ray cluster; default: fake nodes on this machine")
    parser.add_argument("--servers", default="", help="Kafka; default: a real one that is started here")
    parser.add_argument(
        "--root", type=Path, help="archive, on a disk that all nodes share; default: temporary"
    )
    parser.add_argument("--night", type=Path, help="real packets of ZTF; default: simulated, without cutouts")
    parser.add_argument("--report", type=Path, default=Path("load-report"), help="the folder for the report")
    parser.add_argument("--visits", type=int, default=usual.visits)
    parser.add_argument("--alerts", type=int, default=usual.alerts, help="of a visit")
    parser.add_argument("--peak", type=int, default=usual.peak, help="alerts of the last visit; 0: none")
    parser.add_argument("--cadence", type=float, default=usual.cadence, help="seconds between visits")
    parser.add_argument("--workers", type=int, default=1, help="at least")
    parser.add_argument("--most-workers", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=4, help="fake nodes at most, one worker each")
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--hold-minutes", type=float, default=0.5, help="before workers leave")
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=20.0,
        help="what waits shall be gone in so long: less asks for more",
    )
    parser.add_argument("--patience", type=float, default=300.0, help="seconds after the last visit")
    given = vars(parser.parse_args())
    sizes = {name: given.pop(name) for name in ("visits", "alerts", "peak", "cadence")}
    return Wish(rhythm=Rhythm(**sizes), **given)


if __name__ == "__main__":
    sys.exit(0 if run(parsed()) else 1)
