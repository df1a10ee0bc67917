"""ZTF packets of five real nights, against fastavro; what is written is read again."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from raybroker import alerts
from raybroker.alerts import LightCurves, Packet
from raybroker.surveys import Survey, containers, fields
from raybroker.surveys import ztf as module
from tests.surveys.by_fastavro import NIGHTS, container_of, record_of

Packets = Callable[[str], Sequence[Packet]]
MISSING = (-999.0, -99999.0, "null")


@pytest.fixture(scope="module", params=NIGHTS)
def night(request: Any, ztf: Survey, ztf_packets: Packets) -> tuple[Sequence[Packet], Any]:
    packets = ztf_packets(request.param)
    return packets, ztf.decode(packets)


def near(one: Any, two: Any, relative: float, absolute: float = 0.0) -> bool:
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=relative, abs_tol=absolute)
    return bool(one == two)


def expected_history(record: dict[str, Any]) -> dict[tuple[float, Any, str], float | None]:
    """(mjd, band, kind) to flux, one point at a time; of two detections in one image the first is kept."""
    bands = {1: "g", 2: "r", 3: "i"}
    found: dict[tuple[float, Any, str], float | None] = {}
    for point in [record["candidate"], *(record.get("prv_candidates") or [])]:
        kind = "limit" if point["magpsf"] is None else "detection"
        mjd = point["jd"] - 2400000.5 + 15 / 86400
        sign = {"t": 1, "1": 1, "f": -1, "0": -1, None: math.nan}[point["isdiffpos"]]
        flux = None if kind == "limit" else sign * 10 ** (0.4 * (31.4 - point["magpsf"]))
        found.setdefault((round(mjd, 7), bands[point["fid"]], kind), flux)
    for point in record.get("fp_hists") or []:
        mjd = point["jd"] - 2400000.5 + point["exptime"] / 2 / 86400
        known = point["forcediffimflux"] not in (None, *MISSING)
        flux = point["forcediffimflux"] * 10 ** (0.4 * (31.4 - point["magzpsci"])) if known else None
        key = round(mjd, 7), bands[point["fid"]], "forced"
        found[key] = flux if found.get(key) is None else found[key]
    return found


def test_every_real_packet_is_read_as_fastavro_reads_it(night: Any) -> None:
    packets, decoded = night
    assert (len(decoded.bad), decoded.batch.num_rows) == (0, len(packets))
    decoded.batch.validate(full=True)
    for packet, own in zip(packets, decoded.batch.column("ztf").to_pylist(), strict=True):
        record = record_of(packet)
        expected = record["candidate"] | {name: record[name] for name in module.TOP}
        expected = {name: None if value in MISSING else value for name, value in expected.items()}
        assert own == dict.fromkeys(own) | expected


def test_every_history_is_complete_and_ascending(night: Any) -> None:
    packets, decoded = night
    for packet, points in zip(packets, decoded.batch.column("history").to_pylist(), strict=True):
        expected = expected_history(record_of(packet))
        found = {(round(p["mjd"], 7), p["band"], p["kind"]): p["flux"] for p in points}
        assert found.keys() == expected.keys()
        assert [key for key in found if not near(found[key], expected[key], 1e-5)] == []
        assert len(points) == len(expected)
        times = [point["mjd"] for point in points]
        assert times == sorted(times)


def test_this_alert_is_in_its_history(night: Any) -> None:
    _, decoded = night
    for alert in decoded.batch.drop_columns(["ztf"]).to_pylist():
        (this,) = [p for p in alert["history"] if p["mjd"] == alert["mjd"] and p["kind"] == "detection"]
        assert (this["band"], this["flux"], this["error"]) == (
            alert["band"],
            alert["flux"],
            alert["flux_error"],
        )


def test_cutouts_are_places_in_the_body(night: Any) -> None:
    packets, decoded = night
    for packet, places, body in zip(
        packets, decoded.batch.column("cutouts").to_pylist(), decoded.bodies, strict=True
    ):
        record = record_of(packet)
        for kind, place in places.items():
            stamp = record[f"cutout{kind.capitalize()}"]["stampData"]
            assert bytes(body[place["offset"] : place["offset"] + place["length"]]) == stamp


def test_the_repeated_header_ends_before_the_sync_marker(night: Any, ztf: Survey) -> None:
    packets, _ = night
    for packet in packets[:20]:
        length, key = ztf.shared(packet)
        header = fastavro.reader(io.BytesIO(packet.value))._header
        assert packet.value[length : length + 16] == header["sync"]
        assert key == 0


def test_the_facts_of_the_night_of_2018(ztf: Survey, ztf_packets: Packets) -> None:
    batch = ztf.decode(ztf_packets("public_20181129")).batch
    assert (batch.num_rows, len(set(batch.column("object_id").to_pylist()))) == (498, 497)
    numbers = {n: alerts.values(batch.column("ztf"), n) for n in ("rb", "nbad", "magap", "magpsf")}
    good = (numbers["rb"] >= 0.55) & (numbers["nbad"] == 0)
    assert good.sum() == 291
    assert (good & (np.abs(numbers["magap"] - numbers["magpsf"]) < 0.1)).sum() == 128
    assert set(batch.column("night").to_pylist()) == {20181129}


def test_the_canonical_columns_of_one_alert(ztf: Survey, ztf_packets: Packets) -> None:
    alert = ztf.decode(ztf_packets("public_20181129")[:1]).batch.drop_columns(["history"]).to_pylist()[0]
    assert alert["alert_id"] == "ztf:697251920015010010"
    assert alert["object_id"] == "ztf:ZTF18abyouwp"
    assert (alert["ss_object_id"], alert["band"], alert["night"]) == (None, "g", 20181129)
    assert alert["mjd"] == pytest.approx(2458451.7519213 - 2400000.5 + 15 / 86400, abs=1e-9)
    assert alert["flux"] == pytest.approx(-(10 ** (0.4 * (31.4 - 14.283452987670898))), rel=1e-6)
    assert alert["flux_error"] == pytest.approx(
        -alert["flux"] * 0.038736678659915924 * math.log(10) / 2.5, rel=1e-6
    )
    assert alert["reliability"] == np.float32(0.61)  # no drb in 2018
    assert alert["healpix"] == alerts.healpix(np.array([26.8566983]), np.array([-26.9677112]))[0]


def test_a_reference_source_is_added_where_it_is_this_source(ztf: Survey, ztf_packets: Packets) -> None:
    curves = LightCurves.of(ztf.decode(ztf_packets("public_20231012")).batch.column("history"))
    near, total = curves.numbers("template_distance"), curves.numbers("total_flux")
    summed = curves.numbers("template_flux") + curves.numbers("flux")
    known = (near < 1.5) & np.isfinite(summed)
    assert 50 < known.sum() < len(near)
    np.testing.assert_allclose(total[known], summed[known], rtol=1e-4, atol=1.0)
    assert np.isnan(total[~known]).all()


def test_a_batch_does_not_depend_on_how_it_was_cut(ztf: Survey, ztf_packets: Packets) -> None:
    packets = [
        *ztf_packets("public_20231012"),
        *ztf_packets("selected_20231018")[:60],
        *ztf_packets("public_20200202"),
    ]
    whole = ztf.decode(packets).batch
    for size in (1, 7):
        parts = [ztf.decode(packets[n : n + size]).batch for n in range(0, len(packets), size)]
        assert pa.Table.from_batches(parts).combine_chunks().equals(pa.Table.from_batches([whole]))


def test_no_packets_are_an_empty_batch(ztf: Survey) -> None:
    decoded = ztf.decode([])
    assert (decoded.batch.num_rows, decoded.batch.schema, list(decoded.bodies)) == (0, ztf.schema, [])


def test_fields_that_nobody_knows_are_counted(ztf: Survey, ztf_packets: Packets) -> None:
    decoded = ztf.decode(ztf_packets("selected_20231018"))
    assert decoded.unknown_fields == {"timestamp": 81, "brokerIngestTimestamp": 1}


def made(ztf: Survey, change: Callable[[dict[str, Any]], None], source: Packet) -> dict[str, Any]:
    """One real alert with a change, decoded."""
    record = record_of(source)
    change(record)
    decoded = ztf.decode([Packet(container_of(record, module.record_schema({})))])
    assert decoded.bad == []
    return dict(decoded.batch.to_pylist()[0])


@pytest.fixture
def one(ztf: Survey, ztf_packets: Packets) -> Callable[..., dict[str, Any]]:
    source = ztf_packets("public_20231012")[0]
    return lambda **candidate: made(ztf, lambda record: record["candidate"].update(candidate), source)


@pytest.mark.parametrize(("flag", "sign"), [("t", 1), ("1", 1), ("f", -1), ("0", -1)])
def test_the_sign_is_written_in_four_ways(one: Any, flag: str, sign: int) -> None:
    assert math.copysign(1, one(isdiffpos=flag)["flux"]) == sign


def test_a_sign_that_is_not_known_leaves_the_flux_unknown(one: Any) -> None:
    assert one(isdiffpos="x")["flux"] is None


@pytest.mark.parametrize("magnitude", [-3e38, 3e38, float("nan"), float("-inf"), None])
def test_a_magnitude_that_is_none_leaves_the_flux_unknown(one: Any, magnitude: float | None) -> None:
    alert = one(magpsf=magnitude, sigmapsf=magnitude, magnr=magnitude, diffmaglim=magnitude)
    assert alert["flux"] in (None, 0.0)
    assert len(alert["history"]) > 5


def test_an_unknown_band_is_null(one: Any) -> None:
    alert = one(fid=9)
    assert (alert["band"], alert["ztf"]["fid"]) == (None, 9)
    assert [p["band"] for p in alert["history"] if p["mjd"] == alert["mjd"]] == [None]


def test_the_middle_of_the_exposure_follows_its_length(one: Any) -> None:
    assert (one(exptime=300.0)["mjd"] - one(exptime=30.0)["mjd"]) * 86400 == pytest.approx(135, abs=1e-3)
    assert one(exptime=None)["mjd"] == one(exptime=30.0)["mjd"]


def test_a_moving_object_keeps_its_object_id(one: Any) -> None:
    near = one(ssnamenr="2015RA37", ssdistnr=4.9)
    assert (near["ss_object_id"], near["object_id"]) == ("ztf:2015RA37", "ztf:ZTF17aadcvhq")
    assert one(ssnamenr="2015RA37", ssdistnr=5.1)["ss_object_id"] is None
    assert one(ssnamenr="null", ssdistnr=-999.0)["ss_object_id"] is None


def test_a_night_begins_at_midnight_utc(one: Any) -> None:
    assert [one(jd=jd)["night"] for jd in (2460310.4993, 2460310.5007)] == [20231231, 20240101]


def test_every_field_may_be_absent(ztf: Survey) -> None:
    record = {"candid": 5, "candidate": {"candid": 5, "ra": 1.0, "dec": 2.0}}
    decoded = ztf.decode([Packet(container_of(record, module.record_schema({})))])
    alert = decoded.batch.to_pylist()[0]
    assert (decoded.bad, alert["mjd"], alert["night"], alert["history"], alert["object_id"]) == (
        [],
        None,
        None,
        [],
        None,
    )


def test_a_history_of_two_record_types_is_read(ztf: Survey, ztf_packets: Packets) -> None:
    """As in schema 1.1: previous candidates are a detection or an upper limit, each with its own record."""
    limit = fields.record("limit", {"jd": "double", "fid": "int", "diffmaglim": "float"})
    schema = module.record_schema({})
    places = {item["name"]: item for item in schema["fields"]}
    items = places["prv_candidates"]["type"][1]
    items["items"] = [items["items"], limit]
    record = record_of(ztf_packets("public_20231012")[0])
    previous = [p for p in record["prv_candidates"] if p["magpsf"] is not None]
    record["prv_candidates"] = [
        *(("ztf.prv_candidate", p) for p in previous),
        ("ztf.limit", {"jd": 2460000.5, "fid": 1, "diffmaglim": 20.0}),
    ]
    decoded = ztf.decode([Packet(container_of(record, schema))])
    kinds = [point["kind"] for point in decoded.batch.column("history")[0].as_py()]
    assert (kinds.count("limit"), kinds.count("detection")) == (1, len(previous) + 1)


CANONICAL = [name for name in alerts.SCHEMA.names if name not in ("history", "cutouts")]


def test_what_is_written_is_read_again(night: Any, ztf: Survey) -> None:
    packets, decoded = night
    stamps = {
        kind: [
            bytes(b[p[kind]["offset"] :][: p[kind]["length"]])
            for b, p in zip(decoded.bodies, decoded.batch.column("cutouts").to_pylist(), strict=True)
        ]
        for kind in alerts.CUTOUTS
    }
    written = ztf.encode(decoded.batch, stamps)
    again = ztf.decode(written)
    assert again.bad == []
    assert (
        record_of(written[0])["cutoutScience"]["stampData"]
        == record_of(packets[0])["cutoutScience"]["stampData"]
    )
    for old, new in zip(decoded.batch.to_pylist(), again.batch.to_pylist(), strict=True):
        for name in CANONICAL:
            assert near(old[name], new[name], 3e-6, 1e-6), name
        assert len(old["history"]) == len(new["history"])
        for before, after in zip(old["history"], new["history"], strict=True):
            assert [n for n in before if not near(before[n], after[n], 1e-5, allowed(before, n))] == []


def allowed(point: dict[str, Any], name: str) -> float:
    """A sum is as exact as the larger of what was added."""
    return 1e-5 * abs(point["template_flux"] or 0.0) if name == "total_flux" else 1e-9


def test_what_is_written_has_a_small_schema_of_its_own(ztf: Survey, ztf_packets: Packets) -> None:
    (written,) = ztf.encode(ztf.decode(ztf_packets("public_20231012")[:1]).batch)
    reader = fastavro.reader(io.BytesIO(written.value))
    assert reader.writer_schema["version"] == "4.02"
    assert containers.read_header(written.value).codec == "null"
