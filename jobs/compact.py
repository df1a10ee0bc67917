"""Merge the small files of every table of an archive, and delete what is no longer part of any.

    ray job submit -- python jobs/compact.py raybroker.toml

`raybroker run` does the same once a minute; this is for an archive that nobody runs on. Safe beside it.
Exit code: 0 if all is well, 1 if a table could not be compacted, 2 if a setting is wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from raybroker import settings as settings_file
from raybroker.archive.compact import compact_all
from raybroker.cli import verbs
from raybroker.errors import RaybrokerError


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="compact", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", type=Path, help="the settings file")
    given = parser.parse_args(words)
    try:
        done = compact_all(settings_file.load(given.settings).archive.root)
    except RaybrokerError as error:
        return verbs.problem(error)
    for table, result in done.items():
        print(f"{table}: {result}")
    if not done:
        print("the archive has no tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
