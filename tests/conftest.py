"""Fixtures that every test may use: real packets, read once."""

from __future__ import annotations

import functools
import os
import tarfile
from pathlib import Path

import pytest

from raybroker.alerts import Packet

pytest_plugins = ["tests.kafka.fixtures"]

DATA = Path(os.environ.get("RAYBROKER_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real survey data, or a skip that says where it was looked for."""
    if not DATA.is_dir():
        pytest.skip(f"no survey data at {DATA} (set RAYBROKER_DATA)")
    return DATA


@functools.cache
def tarball(path: Path) -> tuple[Packet, ...]:
    """The packets of a nightly archive, in its order, with offsets 0, 1, 2 ..."""
    with tarfile.open(path) as archive:
        values = [archive.extractfile(member).read() for member in archive if member.isfile()]  # type: ignore[union-attr]
    return tuple(Packet(value, topic=path.stem, offset=i) for i, value in enumerate(values))


@pytest.fixture(scope="session")
def ztf_packets(data: Path):  # type: ignore[no-untyped-def]
    """A function from a night's name ('public_20181129') to its packets."""
    return lambda night: tarball(data / "ztf" / f"ztf_{night}.tar.gz")


@pytest.fixture(scope="session")
def rubin_packets(data: Path) -> tuple[Packet, ...]:
    """The 288 real v9.0 containers."""
    return tarball(data / "rubin" / "lsst_v9_0_20250905.tar.gz")
