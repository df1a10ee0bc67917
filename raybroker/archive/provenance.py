"""Where numbers come from: plans and model files, each kept for ever under the digest of its content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from raybroker.archive.store import read, write_once
from raybroker.errors import ArchiveError, UnknownError
from raybroker.places import Place

PLAN_DIGITS = 16  # of the sha256 in hex: short enough for a column, 64 bits


def digest_of(plan: Mapping[str, Any]) -> str:
    """A plan's digest: equal plans have equal ones, whatever the order of their keys."""
    return hashlib.sha256(_canonical(plan)).hexdigest()[:PLAN_DIGITS]


def store(root: Place, plan: Mapping[str, Any]) -> str:
    """Keep a plan; returns its digest. Storing it again changes nothing."""
    digest = digest_of(plan)
    write_once(_path(root, "plans", digest), lambda: _canonical(plan))
    return digest


def load(root: Place, digest: str) -> dict[str, Any]:
    """The plan of a digest, as a row of `alerts` names it."""
    found: dict[str, Any] = json.loads(_read(_path(root, "plans", digest)))
    if digest_of(found) != digest:
        raise ArchiveError(f"plan {_path(root, 'plans', digest)} is damaged: its content has another digest")
    return found


def name_of(content: bytes) -> str:
    """What a model's state is kept under: its sha256 in hex."""
    return hashlib.sha256(content).hexdigest()


def put(root: Place, content: bytes) -> str:
    """Keep a model's state; returns its sha256 in hex. It is on the disk when this returns."""
    digest = name_of(content)
    write_once(_path(root, "models", digest), lambda: content)
    return digest


def get(root: Place, digest: str) -> bytes:
    """A model's state, its bytes checked against the digest."""
    content = _read(_path(root, "models", digest))
    if name_of(content) != digest:
        raise ArchiveError(
            f"model {_path(root, 'models', digest)} is damaged: its bytes do not have its digest"
        )
    return content


def _canonical(plan: Mapping[str, Any]) -> bytes:
    return json.dumps(
        plan, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _path(root: Place, kind: str, digest: str) -> Place:
    if not re.fullmatch("[0-9a-f]{16,64}", digest):
        raise UnknownError(f"'{digest}' is no digest: 16 to 64 hexadecimal digits were expected")
    return root / kind / digest


def _read(path: Place) -> bytes:
    try:
        return read(path)
    except FileNotFoundError:
        raise UnknownError(f"nothing is stored in {path.parent} under the digest {path.name}") from None
