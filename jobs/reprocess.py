"""Compute steps of stored alerts again with the plan of today: rows of the archive's log `annotations`.

    ray job submit -- python jobs/reprocess.py raybroker.toml ztf 20260901 20260930 --step early

Alerts go through Ray tasks, read from their archived packets. Run again, it computes only what is not stored yet.
Exit code: 0 if every value was had, 1 if some were not (it says which), 2 if a setting is wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from raybroker import settings as settings_file
from raybroker.cli import reprocessing, verbs
from raybroker.errors import RaybrokerError


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="reprocess", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", type=Path, help="the settings file")
    parser.add_argument("survey")
    parser.add_argument("first", type=int, help="the first night, YYYYMMDD")
    parser.add_argument("last", type=int, nargs="?", default=0, help="the last night; default: the first")
    parser.add_argument("--step", action="append", default=[], help="repeatable; default: all but cuts")
    parser.add_argument(
        "--address", default="auto", help="the Ray cluster; default: the one that the job is on"
    )
    given = parser.parse_args(words)
    try:
        wish = reprocessing.wish(given.survey, given.first, given.last, given.step)
        loaded = settings_file.load(given.settings)
        return int(reprocessing.run(loaded, wish, given.address, verbs.out, verbs.err))
    except RaybrokerError as error:
        return verbs.problem(error)


if __name__ == "__main__":
    sys.exit(main())
