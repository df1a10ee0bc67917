"""A copy of an archive that is being written: the log of each table first, then what it refers to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raybroker.archive import compact, delta, segments
from raybroker.archive.lookup import Lookup
from tests.service.conftest import fill, night, pipeline_of

Copy = Callable[[Path, Path], None]


def logs(root: Path, copy: Path) -> None:
    """The folders `_delta_log`."""
    for log in root.rglob("_delta_log"):
        shutil.copytree(log, copy / log.relative_to(root), dirs_exist_ok=True)


def rest(root: Path, copy: Path) -> None:
    """Everything else."""
    shutil.copytree(root, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("_delta_log"))


@pytest.mark.parametrize(("first", "second", "whole"), [(logs, rest, True), (rest, logs, False)])
def test_a_copy_during_turns_and_merges_is_whole_if_the_log_is_copied_first(
    data: Path, ztf_packets: Any, tmp_path: Path, first: Copy, second: Copy, whole: bool
) -> None:
    root, copy = tmp_path / "archive", tmp_path / "copy"
    made = pipeline_of(data, tmp_path / "catalogues")
    packets = night(ztf_packets("selected_20231018"), 60)
    fill(root, made, packets[:50], 5)
    first(root, copy)
    fill(root, made, packets[50:], 5)
    assert compact.compact(root / "ztf" / "alerts").merges
    second(root, copy)
    assert is_whole(copy) == whole
    if whole:
        assert rows_of(copy) == 50  # as it was when the log was copied
        assert rows_of(root) == 62


def rows_of(root: Path) -> int:
    return sum(file.rows for file in delta.live(delta.open_table(root / "ztf" / "alerts")))


def is_whole(copy: Path) -> bool:
    """Whether every file and every packet that the log names is there."""
    folder = copy / "ztf" / "alerts"
    if not all((folder / file.path).exists() for file in delta.live(delta.open_table(folder))):
        return False
    rows = Lookup(copy).sql("select segment, position from ztf_alerts").to_pylist()
    return all(segments.read(copy / "ztf", row["segment"], row["position"]).value for row in rows)
