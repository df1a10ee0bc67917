"""Where an archive is: a folder of this machine, or a prefix in an object store. What reads and writes is `archive.store`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SCHEMES = ("s3", "gs")


@dataclass(frozen=True, order=True)
class ObjectUrl:
    """`s3://bucket/key`, with the arithmetic of a `Path`; making one asks nobody anything."""

    scheme: str
    bucket: str
    key: str = ""

    def __truediv__(self, part: str) -> ObjectUrl:
        return ObjectUrl(self.scheme, self.bucket, f"{self.key}/{part}".strip("/"))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    @property
    def name(self) -> str:
        """What follows the last `/`."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> ObjectUrl:
        """What comes before the last `/`; the bucket is its own parent."""
        return ObjectUrl(self.scheme, self.bucket, self.key.rpartition("/")[0])

    def relative_to(self, other: ObjectUrl) -> str:
        """The rest of this URL below another; a ValueError if it is not below."""
        head = f"{other}/"
        if not str(self).startswith(head):
            raise ValueError(f"{self} is not below {other}")
        return str(self).removeprefix(head)


Place = Path | ObjectUrl


def place(given: str | Path | ObjectUrl) -> Place:
    """A path, or the URL of an object store; a ValueError says what is wrong with a URL."""
    found = (
        re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", given, re.DOTALL) if isinstance(given, str) else None
    )
    if found is None or not isinstance(given, str):
        return given if isinstance(given, ObjectUrl) else Path(given)
    scheme, (bucket, _, key) = found[1].lower(), found[2].partition("/")
    if scheme not in SCHEMES:
        known = " or ".join(f"{name}://bucket/prefix" for name in SCHEMES)
        raise ValueError(f"nothing is known of '{scheme}://'; give {known}, or the path of a folder")
    if "@" in bucket:
        raise ValueError(
            "credentials do not stand in the URL; give them in the environment, as AWS_* variables"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", bucket) or re.search(
        r"//|[?#%\\]|(^|/)\.\.?(/|$)", key
    ):
        raise ValueError(
            f"{scheme}://bucket/prefix was expected: a bucket's name, then plain names between '/'"
        )
    return ObjectUrl(scheme, bucket, key.strip("/"))
