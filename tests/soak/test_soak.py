"""Three minutes at a steady rate: nothing grows, nothing waits, nothing is lost. Half an hour: docs/soak.md."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from tests.benchmarks.soak import Limits, soak
from tests.kafka.launcher import available

# In three minutes memory has not settled: this sees what keeps a batch per turn, not what the half hour sees.
SHORT = Limits(growth=25.0, lag=30.0)


@pytest.mark.ray
@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_three_minutes_are_flat(data: Path, tmp_path: Path) -> None:
    if reason := available():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    found = soak(tmp_path, rate=100.0, minutes=3.0, console=Console(quiet=True))
    assert found.sent == 2_000 + 18_000
    assert found.problems(SHORT) == []
