"""What no survey can read: a reason for each packet, and the rest of the batch goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybroker import surveys
from raybroker.alerts import Packet
from raybroker.surveys import Survey, containers
from raybroker.surveys import ztf as module
from tests.surveys.by_fastavro import container_of, record_of

Packets = Callable[[str], Sequence[Packet]]


def reasons(survey: Survey, *values: bytes | None) -> list[str]:
    decoded = survey.decode([Packet(value) for value in values])
    assert [bad.row for bad in decoded.bad] == list(range(len(values)))
    return [bad.reason for bad in decoded.bad]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "invalid_schema_turbo",
            "its Avro schema is not valid: Default value <None> must match schema type: int",
        ),
        ("lost_byte_ztf_v1_3", "it is 1 byte shorter than its header says"),
        ("lost_byte_ztf_v1_8", "it is 1 byte shorter than its header says"),
        ("bad_sync_marker_ztf_v1_8", "it is 1 byte shorter than its header says"),
        ("trailing_garbage_ztf_v4_02", "bytes more than its header says"),
    ],
)
def test_broken_packets_say_what_is_broken(ztf: Survey, data: Path, name: str, reason: str) -> None:
    (found,) = reasons(ztf, (data / "broken" / f"{name}.avro").read_bytes())
    assert found.endswith(reason)


def test_one_bad_packet_does_not_harm_the_others(ztf: Survey, ztf_packets: Packets, data: Path) -> None:
    good = list(ztf_packets("public_20191231"))
    broken = [Packet(file.read_bytes()) for file in sorted((data / "broken").iterdir())]
    mixed = [*good[:20], *broken, Packet(None), *good[20:]]
    decoded = ztf.decode(mixed)
    assert [bad.row for bad in decoded.bad] == [20, 21, 22, 23, 24, 25]
    assert decoded.rows.tolist() == [*range(20), *range(26, 56)]
    assert len(decoded.bodies) == 50
    assert decoded.batch.equals(ztf.decode(good).batch)


def test_empty_and_absent_values_are_told_apart(ztf: Survey, rubin: Survey) -> None:
    for survey in (ztf, rubin):
        assert reasons(survey, b"", None) == ["the packet is empty", "the packet has no value"]


def test_random_bytes_are_refused_by_every_survey(ztf: Survey, rubin: Survey) -> None:
    chance = random.Random(1)
    values = [chance.randbytes(chance.randrange(1, 300)) for _ in range(300)]
    for survey in (ztf, rubin):
        assert all(len(reason) > 20 for reason in reasons(survey, *values))


def test_a_packet_of_another_survey_says_which(
    ztf: Survey, rubin: Survey, ztf_packets: Packets, rubin_packets: Sequence[Packet]
) -> None:
    (found,) = reasons(ztf, rubin_packets[0].value)
    assert found == "it is a Rubin alert, not a ZTF alert: it has no 'candidate'"
    (found,) = reasons(rubin, ztf_packets("public_20191231")[0].value)
    assert found == "it is a ZTF alert, not a Rubin alert: it has no 'diaSource'"


def test_every_truncation_is_refused(
    ztf: Survey, rubin: Survey, ztf_packets: Packets, framed: Sequence[Packet]
) -> None:
    whole = ztf_packets("public_20231012")[0].value
    assert len(reasons(ztf, *(whole[:n] for n in range(0, len(whole), 97)))) == -(-len(whole) // 97)
    (real,) = [packet for packet in framed if "real" in packet.topic]
    for n in (*range(1, len(real.value), 997), len(real.value) - 1):
        (reason,) = reasons(rubin, real.value[:n])
        assert "cut short" in reason or "ends in the middle of field" in reason


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({"dec": float("nan")}, "its position (ra 10.0, dec nan) is not on the sky"),
        ({"ra": 400.5}, "its position (ra 400.5, dec 20.0) is not on the sky"),
        ({"dec": -90.1}, "its position (ra 10.0, dec -90.1) is not on the sky"),
        ({"candid": None}, "it has no 'candidate.candid'"),
    ],
)
def test_impossible_numbers_are_named(ztf: Survey, candidate: dict[str, Any], reason: str) -> None:
    record = {"candid": 1, "candidate": {"candid": 1, "ra": 10.0, "dec": 20.0, "jd": 2460000.5} | candidate}
    assert reasons(ztf, container_of(record, module.record_schema({}))) == [reason]


@pytest.mark.parametrize("jd", [float("nan"), float("inf"), 1e300, -1e300, 0.0, None])
def test_an_impossible_time_is_not_known(ztf: Survey, jd: float | None) -> None:
    record = {"candid": 1, "candidate": {"candid": 1, "ra": 10.0, "dec": 20.0, "jd": jd}}
    decoded = ztf.decode([Packet(container_of(record, module.record_schema({})))])
    assert decoded.batch.column("mjd").to_pylist() == [None]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(draw=st.data())
def test_changed_bytes_are_read_as_fastavro_reads_them_or_refused(
    draw: Any, ztf: Survey, ztf_packets: Packets
) -> None:
    packets = ztf_packets("public_20231012")
    good = packets[draw.draw(st.integers(0, 23))]
    start, _ = ztf.shared(good)
    changed = bytearray(good.value)
    for _ in range(draw.draw(st.integers(1, 3))):
        place = draw.draw(st.one_of(st.integers(0, 200), st.integers(start, start + 4000)))
        changed[place] = draw.draw(st.integers(0, 255))
    decoded = ztf.decode([good, Packet(bytes(changed)), good])
    assert (
        decoded.batch.slice(0, 1)
        .drop_columns(["offset"])
        .equals(ztf.decode([good]).batch.drop_columns(["offset"]))
    )
    assert {bad.row for bad in decoded.bad} <= {1}
    if not decoded.bad:
        decoded.batch.validate(full=True)
        record = record_of(Packet(bytes(changed)))
        assert decoded.batch.column("alert_id")[1].as_py() == f"ztf:{record['candidate']['candid']}"
        assert decoded.batch.column("ra")[1].as_py() == record["candidate"]["ra"]


def test_what_is_not_a_container_shares_nothing(ztf: Survey, rubin: Survey) -> None:
    for survey in (ztf, rubin):
        assert [survey.shared(Packet(value)) for value in (None, b"", b"x" * 99, b"Obj\x01\x04")] == [
            (0, 0)
        ] * 4


def test_the_survey_of_a_packet_is_told(
    ztf_packets: Packets, rubin_packets: Sequence[Packet], framed: Sequence[Packet]
) -> None:
    fink = surveys.load("fink")
    alert = ztf_packets("public_20191231")[0]
    assert surveys.detect(alert) == "ztf"
    assert {surveys.detect(packet) for packet in (rubin_packets[0], *framed)} == {"rubin"}
    ztf = surveys.load("ztf")
    batch = ztf.decode([alert]).batch
    (sent,) = fink.encode(batch.rename_columns([n if n != "ztf" else "fink" for n in batch.schema.names]))
    assert surveys.detect(sent) == "fink"
    assert {surveys.detect(Packet(value)) for value in (None, b"", b"hello", containers.MAGIC)} == {None}
