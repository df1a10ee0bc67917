from __future__ import annotations

from pathlib import Path

import pytest

from raybroker.archive import provenance
from raybroker.errors import ArchiveError, UnknownError

PLAN = {"steps": [{"name": "early", "version": 1, "settings": {"b": 2, "a": 1.5}}], "note": "µ"}


def test_equal_plans_share_a_digest_whatever_the_order_of_keys(tmp_path: Path) -> None:
    digest = provenance.store(tmp_path, PLAN)
    assert len(digest) == 16
    assert provenance.store(tmp_path, dict(reversed(PLAN.items()))) == digest
    assert provenance.load(tmp_path, digest) == PLAN
    assert provenance.store(tmp_path, PLAN | {"note": "n"}) != digest


def test_a_models_bytes_come_back(tmp_path: Path) -> None:
    digest = provenance.put(tmp_path, b"state")
    assert provenance.put(tmp_path, b"state") == digest
    assert provenance.get(tmp_path, digest) == b"state"


def test_damage_is_noticed(tmp_path: Path) -> None:
    digest, plan = provenance.put(tmp_path, b"state"), provenance.store(tmp_path, PLAN)
    (tmp_path / "models" / digest).write_bytes(b"other")
    (tmp_path / "plans" / plan).write_text("{}")
    with pytest.raises(ArchiveError, match="damaged"):
        provenance.get(tmp_path, digest)
    with pytest.raises(ArchiveError, match="damaged"):
        provenance.load(tmp_path, plan)


@pytest.mark.parametrize("digest", ["0" * 64, "../../../etc/passwd", ""])
def test_unknown_digests_say_so(tmp_path: Path, digest: str) -> None:
    with pytest.raises(UnknownError):
        provenance.get(tmp_path, digest)
