"""Rubin packets: the real ones of 2025, framed ones of every version, and what is written."""

from __future__ import annotations

import http.server
import io
import json
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from astropy.time import Time

from raybroker import alerts, surveys
from raybroker.alerts import Packet
from raybroker.errors import SettingsError, StreamError
from raybroker.surveys import Survey
from raybroker.surveys import rubin as module
from raybroker.surveys.rubin_schemas import Schemas, own_schema
from tests.surveys.by_fastavro import record_of


@pytest.fixture(scope="module")
def decoded(rubin: Survey, rubin_packets: Sequence[Packet]) -> alerts.Decoded:
    return rubin.decode(rubin_packets)


def framed_record(packet: Packet, data: Path) -> dict[str, Any]:
    """A framed record by fastavro, with the schema's own files."""
    version = divmod(int.from_bytes(packet.value[1:5], "big"), 100)
    folder = data / "rubin" / "schemas" / str(version[0]) / str(version[1])
    schema = fastavro.schema.load_schema(str(folder / f"lsst.v{version[0]}_{version[1]}.alert.avsc"))
    return fastavro.schemaless_reader(io.BytesIO(packet.value[5:]), schema, None)


def agree(own: dict[str, Any], record: dict[str, Any]) -> None:
    for name in module.RECORDS:
        expected = record.get(name)
        if expected is None:
            assert own[name] is None
            continue
        for key, value in expected.items():
            if key in ("time_processed", "validityStart"):
                value = None if value is None else round(value.timestamp() * 1e6)
            unknown = isinstance(value, float) and not math.isfinite(value)
            assert own[name][key] == (None if unknown else value), key


def test_every_real_packet_is_read_as_fastavro_reads_it(
    decoded: Any, rubin_packets: Sequence[Packet]
) -> None:
    assert (decoded.bad, decoded.batch.num_rows) == ([], 288)
    decoded.batch.validate(full=True)
    for packet, own in zip(rubin_packets, decoded.batch.column("rubin").to_pylist(), strict=True):
        agree(own, record_of(packet))


def test_histories_hold_sources_and_forced_sources(decoded: Any, rubin_packets: Sequence[Packet]) -> None:
    for packet, points in zip(rubin_packets, decoded.batch.column("history").to_pylist(), strict=True):
        record = record_of(packet)
        sources = [record["diaSource"], *(record["prvDiaSources"] or [])]
        expected = sorted([(s["midpointMjdTai"], "detection", s["psfFlux"]) for s in sources] + [
            (s["midpointMjdTai"], "forced", s["psfFlux"]) for s in record["prvDiaForcedSources"] or []
        ])  # fmt: skip
        assert [(kind, flux) for _, kind, flux in expected] == [(p["kind"], p["flux"]) for p in points]


def test_moving_objects_have_no_object(decoded: Any) -> None:
    pairs = decoded.batch.select(["object_id", "ss_object_id"]).to_pylist()
    moving = [pair for pair in pairs if pair["ss_object_id"]]
    assert len(moving) == 4
    assert all(pair["object_id"] is None for pair in moving)
    assert all(pair["object_id"].startswith("rubin:") for pair in pairs if not pair["ss_object_id"])


def test_cutouts_are_fits_images_in_the_body(decoded: Any) -> None:
    for places, body in zip(decoded.batch.column("cutouts").to_pylist(), decoded.bodies, strict=True):
        for place in places.values():
            assert bytes(body[place["offset"] : place["offset"] + 9]) == b"SIMPLE  ="


def test_times_are_utc_of_their_own_year(decoded: Any) -> None:
    for row, offset in ((0, 37), (200, 36)):
        alert = decoded.batch.slice(row, 1).to_pylist()[0]
        tai = alert["rubin"]["diaSource"]["midpointMjdTai"]
        assert (tai > 60000) == (offset == 37)
        assert (tai - alert["mjd"]) * 86400 == pytest.approx(offset, abs=1e-5)


def test_leap_seconds_are_those_of_astropy() -> None:
    tai = np.linspace(45000, 61000, 5001)
    expected = Time(tai, format="mjd", scale="tai").utc.mjd
    leaps = np.append(module._SINCE, np.nan)  # astropy stretches the day before a leap second
    usual = ~np.isin(np.floor(expected) + 1, leaps)
    assert usual.sum() > 4990
    tai, expected = tai[usual], expected[usual]
    np.testing.assert_allclose(module.to_utc(tai), expected, atol=2e-11, rtol=0)
    np.testing.assert_allclose(module.to_tai(module.to_utc(tai)), tai, atol=2e-11, rtol=0)


def test_a_night_begins_at_noon_utc(rubin: Survey, framed: Sequence[Packet]) -> None:
    (real,) = [packet for packet in framed if "real" in packet.topic]
    batch = rubin.decode([real]).batch
    nights = []
    for mjd in (60961.49, 60961.51):
        moved = batch.set_column(batch.schema.get_field_index("mjd"), "mjd", pa.array([mjd]))
        nights += rubin.decode(rubin.encode(moved)).batch.column("night").to_pylist()
    assert nights == [20251012, 20251013]


def test_every_framed_version_is_read(rubin: Survey, framed: Sequence[Packet], data: Path) -> None:
    decoded = rubin.decode(framed)
    assert (decoded.bad, decoded.batch.num_rows, decoded.unknown_fields) == ([], 11, {})
    for packet, own in zip(framed, decoded.batch.column("rubin").to_pylist(), strict=True):
        agree(own, framed_record(packet, data))
    assert rubin.shared(framed[0]) == (0, 0)


def test_a_time_that_is_no_date_is_null(rubin: Survey, framed: Sequence[Packet]) -> None:
    """The synthetic packets of 7.x carry seconds where days belong."""
    old = [packet for packet in framed if "v7_" in packet.topic]
    batch = rubin.decode(old).batch
    assert (batch.num_rows, batch.column("mjd").null_count, batch.column("night").null_count) == (5, 5, 5)


def test_our_schema_9_0_is_rubins(data: Path) -> None:
    """The same names, order and types, so that the bytes are the same."""

    def bare(schema: Any) -> Any:
        if isinstance(schema, dict) and "fields" in schema:
            return [(item["name"], bare(item["type"])) for item in schema["fields"]]
        if isinstance(schema, dict):
            return bare(schema.get("items", schema["type"]))
        return (
            [bare(branch) for branch in schema]
            if isinstance(schema, list)
            else str(schema).rpartition(".")[2]
        )

    theirs = json.loads(Schemas(data / "rubin" / "schemas").get(900))
    assert bare(own_schema()) == bare(theirs)


def test_without_a_folder_9_0_is_known(framed: Sequence[Packet]) -> None:
    packets = [packet for packet in framed if "v9_0" in packet.topic]
    assert len(surveys.load("rubin").decode(packets).bodies) == 2


def test_an_unknown_schema_is_a_reason_of_its_packet(rubin: Survey, framed: Sequence[Packet]) -> None:
    unknown = Packet(b"\0" + (4711).to_bytes(4, "big") + framed[0].value[5:])
    decoded = rubin.decode([framed[0], unknown, framed[1]])
    assert [row for row, _ in decoded.bad] == [1]
    assert decoded.bad[0].reason.startswith("Rubin schema id 4711 is not known: no schema 47.11 in ")
    assert decoded.rows.tolist() == [0, 2]
    (bad,) = surveys.load("rubin").decode([unknown]).bad
    assert bad.reason == "Rubin schema id 4711 is not known: " + (
        "neither a folder of schemas nor a registry is set, and only 900 is built in"
    )


class Registry(http.server.BaseHTTPRequestHandler):
    """Answers like a Schema Registry, with what the test put into `answers`."""

    answers: dict[str, tuple[int, str]] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        status, text = self.answers.get(self.path, (404, '{"error_code": 40403}'))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[str]:
    Registry.asked.clear()
    Registry.answers.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_registry_is_asked_once_per_schema(registry: str, framed: Sequence[Packet], data: Path) -> None:
    schema = Schemas(data / "rubin" / "schemas").get(1000).decode()
    Registry.answers["/schemas/ids/1000"] = (200, json.dumps({"schema": schema}))
    survey = surveys.load("rubin", registry=registry + "/")
    packets = [packet for packet in framed if "v10_0" in packet.topic] * 3
    assert [len(survey.decode(packets).rows) for _ in range(2)] == [3, 3]
    assert Registry.asked == ["/schemas/ids/1000"]


def test_a_schema_that_the_registry_does_not_have_is_a_reason(
    registry: str, framed: Sequence[Packet]
) -> None:
    survey = surveys.load("rubin", registry=registry)
    decoded = survey.decode([framed[0]] * 5)
    assert f"the registry {registry} does not have it" in decoded.bad[4].reason
    assert len(Registry.asked) == 1
    survey.decode([framed[0]] * 5)
    assert len(Registry.asked) == 2


@pytest.mark.parametrize("answer", [(500, "down"), (200, "<html>"), (200, "[]")])
def test_a_registry_that_fails_blames_no_packet(registry: str, framed: Sequence[Packet], answer: Any) -> None:
    Registry.answers["/schemas/ids/1000"] = answer
    with pytest.raises(StreamError, match="cannot give Rubin schema 1000"):
        surveys.load("rubin", registry=registry).decode([framed[0]])


def test_no_registry_there_blames_no_packet(framed: Sequence[Packet]) -> None:
    with pytest.raises(StreamError, match="cannot give Rubin schema 1000"):
        surveys.load("rubin", registry="http://127.0.0.1:9").decode([framed[0]])


def nearly(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=1e-12, abs_tol=1e-10)
    return bool(old == new)


@pytest.mark.parametrize("version", ["7.4", "8.0", "9.0", "10.0", "11.1"])
def test_what_is_written_is_read_again(
    rubin_packets: Sequence[Packet], decoded: Any, data: Path, version: str
) -> None:
    survey = surveys.load("rubin", schemas=data / "rubin" / "schemas", version=version)
    written = survey.encode(decoded.batch, {"science": [b"SIMPLE"] * 288})
    again = survey.decode(written)
    assert again.bad == []
    assert framed_record(written[0], data)["cutoutScience"] == b"SIMPLE"
    known = {"template_flux", "template_error", "total_flux"} if version == "7.4" else set()
    for old, new in zip(decoded.batch.to_pylist(), again.batch.to_pylist(), strict=True):
        for name in (name for name in alerts.SCHEMA.names if name not in ("history", "cutouts")):
            assert nearly(old[name], new[name]), name
        for before, after in zip(old["history"], new["history"], strict=True):
            assert [n for n in before if not nearly(before[n], after[n]) and n not in known] == []
        if version == "9.0":
            assert old["rubin"] == new["rubin"]


def test_an_unknown_option_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match="no such option"):
        surveys.load("rubin", folder="x")
