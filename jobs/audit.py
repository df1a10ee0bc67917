"""Prove that each offset read is exactly one thing: scored, rejected, ..., expired. The same as `raybroker audit`.

    ray job submit -- python jobs/audit.py --settings raybroker.toml --json

Exit code: 0 if the books hold, 1 if a range is wrong or something is not well, 2 if a setting is wrong.
"""

from __future__ import annotations

import sys

from raybroker.cli import verbs

if __name__ == "__main__":
    sys.exit(verbs.main(["audit", *sys.argv[1:]]))
