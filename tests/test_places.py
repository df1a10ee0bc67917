from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from raybroker import settings
from raybroker.errors import SettingsError
from raybroker.places import ObjectUrl, place


def test_a_url_has_the_arithmetic_of_a_path() -> None:
    root = place("s3://bucket/a/b/")
    assert isinstance(root, ObjectUrl)
    assert str(root) == "s3://bucket/a/b"
    assert str(root / "ztf" / "alerts") == str(root / "ztf/alerts") == "s3://bucket/a/b/ztf/alerts"
    below = root / "ztf" / "alerts"
    assert (below.name, below.parent, below.parent.parent) == ("alerts", root / "ztf", root)
    assert below.relative_to(root) == "ztf/alerts"
    assert str(ObjectUrl("gs", "bucket")) == "gs://bucket"
    assert ObjectUrl("gs", "bucket").parent == ObjectUrl("gs", "bucket")
    assert pickle.loads(pickle.dumps(root)) == root
    assert len({root, place("S3://bucket/a/b"), below}) == 2
    with pytest.raises(ValueError, match="is not below"):
        root.relative_to(below)


@pytest.mark.parametrize("given", ["raybroker-data", "/data/x", "s3", "s3:/bucket", "a//b"])
def test_what_has_no_scheme_is_a_path(given: str) -> None:
    assert place(given) == Path(given)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            "ftp://host/x",
            r"nothing is known of 'ftp://'; give s3://bucket/prefix or gs://bucket/prefix, or the path",
        ),
        ("file:///data", "nothing is known of 'file://'"),
        ("s3://", "a bucket's name"),
        ("s3:///prefix", "a bucket's name"),
        ("s3://key:secret@bucket/x", "credentials do not stand in the URL"),
        ("s3://bucket/x?versionId=1", "plain names between '/'"),
        ("s3://bucket/a//b", "plain names between '/'"),
        ("s3://bucket/a/../b", "plain names between '/'"),
    ],
)
def test_a_wrong_url_says_what_is_wrong(given: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        place(given)
    with pytest.raises(SettingsError, match=rf"archive\.root.*{why}"):
        settings.parse({"archive": {"root": given}})


def test_a_url_stays_what_it_is_where_paths_become_absolute(tmp_path: Path) -> None:
    file = tmp_path / "raybroker.toml"
    file.write_text('[archive]\nroot = "s3://bucket/prefix"\ncache = "cache"\n')
    found = settings.load(file).archive
    assert (found.root, found.cache) == (place("s3://bucket/prefix"), tmp_path / "cache")
    file.write_text('[archive]\nroot = "data"\n')
    assert settings.load(file).archive.root == tmp_path / "data"
