"""Evaluate the learner on a labelled table by honest protocols, or replay its light curves as nights with an oracle.

    ray job submit -- python jobs/evaluate.py table.parquet --label class --object oid --time mjd --output report
    ray job submit -- python jobs/evaluate.py curves.parquet --label class --object oid --night --output report

The same options as `raybroker evaluate`, on whatever machine of the cluster the job runs on.
Exit code: 0 if it was evaluated, 1 if something is not well, 2 if an option is wrong.
"""

from __future__ import annotations

import sys

from raybroker.cli import verbs

if __name__ == "__main__":
    sys.exit(verbs.main(["evaluate", *sys.argv[1:]]))
