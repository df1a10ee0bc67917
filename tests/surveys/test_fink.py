"""Fink's streams: real ZTF alerts written as Fink does, the schema in the key."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import fastavro
import pytest

from raybroker import surveys
from raybroker.alerts import Packet
from raybroker.surveys import Survey
from tests.surveys.by_fastavro import record_of

ADDED: dict[str, tuple[str, Any]] = {
    "cdsxmatch": ("string", "Unknown"),
    "rf_snia_vs_nonia": ("double", 0.25),
    "snn_snia_vs_nonia": ("double", 0.5),
    "snn_sn_vs_all": ("float", 0.75),
    "mulens": ("double", 0.0),
    "roid": ("int", 3),
    "tracklet": ("string", ""),
    "x4lac": ("string", "null"),
    "brand_new": ("string", "?"),
}


def as_fink(packet: Packet) -> Packet:
    """The alert as Fink sends it."""
    reader = fastavro.reader(io.BytesIO(packet.value))
    record = next(reader) | {name: value for name, (_, value) in ADDED.items()}
    schema = json.loads(reader.metadata["avro.schema"])
    schema["fields"] += [{"name": name, "type": [kind, "null"]} for name, (kind, _) in ADDED.items()]
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return Packet(out.getvalue(), "fink_sn_candidates_ztf", 0, packet.offset, key=json.dumps(schema).encode())


@pytest.fixture(scope="module")
def fink() -> Survey:
    return surveys.load("fink")


@pytest.fixture(scope="module", params=["public_20191231", "public_20231012", "selected_20231018"])
def packets(request: Any, ztf_packets: Callable[[str], Sequence[Packet]]) -> list[tuple[Packet, Packet]]:
    return [(packet, as_fink(packet)) for packet in ztf_packets(request.param)[:60]]


def test_an_alert_by_fink_is_the_alert_of_ztf_and_what_fink_added(
    packets: Any, fink: Survey, ztf: Survey
) -> None:
    found, plain = fink.decode([p for _, p in packets]), ztf.decode([p for p, _ in packets])
    assert found.bad == []
    found.batch.validate(full=True)
    for name in (
        "alert_id",
        "object_id",
        "mjd",
        "night",
        "healpix",
        "band",
        "flux",
        "reliability",
        "history",
    ):
        assert found.batch.column(name).equals(plain.batch.column(name)), name
    for own, candidate in zip(
        found.batch.column("fink").to_pylist(), plain.batch.column("ztf").to_pylist(), strict=True
    ):
        assert own | candidate | {"timestamp": None, "brokerIngestTimestamp": None} == own | {
            "timestamp": None,
            "brokerIngestTimestamp": None,
        }
        assert (own["rf_snia_vs_nonia"], own["snn_sn_vs_all"], own["roid"]) == (0.25, 0.75, 3)
        assert (own["cdsxmatch"], own["tracklet"], own["x4lac"]) == ("Unknown", "", None)
    assert found.unknown_fields == {"brand_new": len(packets)}


def test_cutouts_come_along(packets: Any, fink: Survey) -> None:
    found = fink.decode([p for _, p in packets])
    place = found.batch.column("cutouts")[0].as_py()["template"]
    stamp = bytes(found.bodies[0][place["offset"] : place["offset"] + place["length"]])
    assert stamp == record_of(packets[0][0])["cutoutTemplate"]["stampData"]


def test_the_whole_key_is_shared(packets: Any, fink: Survey) -> None:
    assert fink.shared(packets[0][1]) == (0, len(packets[0][1].key))


def test_what_is_written_is_read_again(packets: Any, fink: Survey) -> None:
    batch = fink.decode([p for _, p in packets]).batch
    again = fink.decode(fink.encode(batch))
    assert again.bad == []
    for name in ("survey", "alert_id", "object_id", "topic", "offset", "night", "ra", "band", "reliability"):
        assert again.batch.column(name).equals(batch.column(name)), name
    own, new = batch.column("fink").to_pylist()[0], again.batch.column("fink").to_pylist()[0]
    assert [new[name] for name in ADDED if name in new] == [own[name] for name in ADDED if name in own]


def test_a_packet_without_its_schema_says_so(packets: Any, fink: Survey) -> None:
    value, key = packets[0][1].value, packets[0][1].key
    bad = fink.decode(
        [Packet(value), Packet(value, key=b"abc"), Packet(b"", key=key), Packet(value[:-9], key=key)]
    ).bad
    assert [b.row for b in bad] == [0, 1, 2, 3]
    assert "has no key" in bad[0].reason
    assert "schema is not valid" in bad[1].reason
    assert "is empty" in bad[2].reason
    assert "ends in the middle of" in bad[3].reason
