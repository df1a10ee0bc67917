"""The surveys, and packets of Rubin in frames."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybroker import surveys
from raybroker.alerts import Packet


@pytest.fixture(scope="session")
def ztf() -> surveys.Survey:
    return surveys.load("ztf")


@pytest.fixture(scope="session")
def rubin(data: Path) -> surveys.Survey:
    return surveys.load("rubin", schemas=data / "rubin" / "schemas")


@pytest.fixture(scope="session")
def framed(data: Path) -> list[Packet]:
    files = sorted((data / "rubin" / "framed").glob("*.bin"))
    return [Packet(file.read_bytes(), topic=file.stem, offset=n) for n, file in enumerate(files)]
