"""Rows as a worker would archive them, from real packets read by fastavro (not by raybroker's decoders)."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from raybroker import alerts
from raybroker.alerts import Packet
from raybroker.archive import table
from raybroker.places import ObjectUrl, Place, place

from . import s3_server
from .s3_server import S3Server

CANDIDATE = pa.struct(
    [
        ("rb", pa.float32()),
        ("nbad", pa.int32()),
        ("magpsf", pa.float32()),
        ("fid", pa.int32()),
        ("objectId", pa.string()),
    ]
)
SCHEMA = table.row_schema(alerts.schema("ztf", CANDIDATE))
BANDS = {1: "g", 2: "r", 3: "i"}


def header_length(packet: Packet) -> tuple[int, int]:
    """How many bytes of a real packet come before the (random) sync marker that ends its header, and of its key."""
    value = packet.value or b""
    return (value.index(value[-16:]) if value.startswith(b"Obj\x01") else 0), 0


def read_alert(packet: Packet) -> dict[str, object]:
    return next(iter(fastavro.reader(io.BytesIO(packet.value or b""))))  # type: ignore[return-value]


def row(packet: Packet, segment: str, position: int) -> dict[str, object]:
    alert = read_alert(packet)
    candidate = alert["candidate"]
    assert isinstance(candidate, dict)
    mjd = candidate["jd"] - 2400000.5
    return {
        "outcome": "scored" if candidate["rb"] >= 0.55 else "rejected",
        "reason": None if candidate["rb"] >= 0.55 else "real_bogus",
        "segment": segment,
        "position": position,
        "plan": "0123456789abcdef",
        "published": packet.timestamp_ms,
        "stored": 1_700_000_000_000,
        "survey": "ztf",
        "alert_id": f"ztf:{alert['candid']}",
        "object_id": f"ztf:{alert['objectId']}",
        "topic": packet.topic,
        "partition": packet.partition,
        "offset": packet.offset,
        "ra": candidate["ra"],
        "dec": candidate["dec"],
        "mjd": mjd,
        "night": 20181129,
        "band": BANDS[candidate["fid"]],
        "flux": float(alerts.magnitude_to_flux(candidate["magpsf"])),
        "history": [point(epoch) for epoch in [*(alert["prv_candidates"] or []), candidate]],  # type: ignore[misc]
        "ztf": {name: candidate.get(name, alert["objectId"]) for name in CANDIDATE.names},
    }


def point(epoch: dict[str, float]) -> dict[str, object]:
    found = epoch["magpsf"] is not None
    return {
        "mjd": epoch["jd"] - 2400000.5,
        "band": BANDS[int(epoch["fid"])],
        "kind": "detection" if found else "limit",
        "flux": float(alerts.magnitude_to_flux(epoch["magpsf"])) if found else None,
        "limit": float(alerts.magnitude_to_flux(epoch["diffmaglim"])),
    }


def rows_of(packets: Sequence[Packet], segment: str = "20181129/none.arrow") -> pa.Table:
    """A table of `SCHEMA` with a row per packet, at the places it would have in `segment`."""
    made = pa.Table.from_pylist([row(p, segment, i) for i, p in enumerate(packets)], schema=SCHEMA)
    cells = alerts.healpix(made["ra"].to_numpy(), made["dec"].to_numpy())
    where = made.schema.get_field_index("healpix")
    return made.set_column(where, SCHEMA.field("healpix"), [pa.array(np.asarray(cells, dtype=np.int64))])


@pytest.fixture(scope="session")
def night_packets(ztf_packets) -> tuple[Packet, ...]:  # type: ignore[no-untyped-def]
    """The 498 real packets of 2018-11-29."""
    return ztf_packets("public_20181129")


@pytest.fixture(scope="session")
def night_rows(night_packets: tuple[Packet, ...]) -> pa.Table:
    """Their rows."""
    return rows_of(night_packets)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all tests."""
    with s3_server.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectUrl:
    """A place in a bucket of its own, and the environment that leads to it."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    url = s3.make_bucket(f"test-{uuid.uuid4().hex[:20]}")
    found = place(f"{url}/some/archive")
    assert isinstance(found, ObjectUrl)
    return found


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty archive's place, of either kind."""
    return tmp_path / "archive" if request.param == "folder" else request.getfixturevalue("bucket")
