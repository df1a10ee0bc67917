"""What an attacker can send, and what answers it. docs/operations.md lists the threats and names these tests."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import pickle
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import fastavro
import httpx
import pytest

from raybroker import settings as settings_file
from raybroker.alerts import Packet
from raybroker.archive import provenance
from raybroker.cluster.assemble import Models
from raybroker.errors import ArchiveError, PacketError, UnknownError
from raybroker.service import cutouts
from raybroker.surveys import containers
from tests.cluster.worlds import placed, worker
from tests.service.conftest import Station, ask, fill, night, open_station, pipeline_of

# Every route, and who may ask it. One that is new must be put here, or a test fails.
PUBLIC = {
    *("GET /", "GET /static/{name}", "GET /static/plotly.min.js", "GET /favicon.ico"),
    *("GET /docs", "GET /docs/oauth2-redirect", "GET /redoc", "GET /openapi.json"),
    *(
        "GET /alerts",
        "GET /alerts/{alert_id}",
        "GET /objects/{object_id:path}",
        "GET /cutouts/{alert_id}/{kind}",
    ),
    *("GET /queries", "GET /queries/events", "GET /queries/atom.xml", "GET /labels", "GET /labels/standing"),
    *("GET /models", "GET /models/{name}/curve", "GET /status", "GET /health", "GET /metrics", "GET /me"),
    "POST /scores",  # computes, and stores nothing
    "GET /open/{token}",  # its signed token is the key, and works once
}
TOKEN = {
    *(
        "POST /labels",
        "POST /labels/batch",
        "POST /queries/{query_id}/claim",
        "DELETE /queries/{query_id}/claim",
    ),
}
STRANGERS = (
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Basic cmlnaHQ6cmlnaHQ="},
    {"Cookie": "raybroker=e30.e30"},
)
GET_ONCE = "/queries/events"  # a stream that does not end


@pytest.fixture(scope="module")
def station(data: Path, ztf_packets: Any, tmp_path_factory: pytest.TempPathFactory) -> Station:
    """A service over 22 real packets, of which one is a bomb in a cutout."""
    root = tmp_path_factory.mktemp("threats")
    packets = list(night(ztf_packets("selected_20231018"), 20))
    packets.append(with_cutout(packets[0], gzip.compress(bytes(64 << 20), 9)))
    fill(root, pipeline_of(data, root / "catalogues"), packets)
    ask(root, open_station(root).desk.view.alerts(alerts_query()).rows[:2])
    return open_station(root)


def alerts_query() -> Any:
    from raybroker.service.view import Query

    return Query()


def with_cutout(packet: Packet, cutout: bytes) -> Packet:
    """The same alert under another id, with this in place of its science cutout."""
    reader = fastavro.reader(io.BytesIO(packet.value or b""))
    record: Any = next(reader)
    record["candid"] = record["candidate"]["candid"] = record["candid"] + 1
    record["cutoutScience"]["stampData"] = cutout
    out = io.BytesIO()
    fastavro.writer(out, reader.writer_schema, [record], sync_interval=1 << 30)
    return Packet(
        out.getvalue(), topic=packet.topic, partition=0, offset=99, timestamp_ms=packet.timestamp_ms
    )


def kept(root: Path) -> dict[str, str]:
    """Every file of an archive and its digest."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Who may write.


def test_every_route_is_known_to_be_public_or_to_need_a_token(station: Station) -> None:
    found = {
        f"{method} {route.path}"
        for route in station.app.routes
        for method in getattr(route, "methods", ())
        if method != "HEAD"
    }
    assert found == PUBLIC | TOKEN


@pytest.mark.parametrize("route", sorted(TOKEN))
def test_what_writes_refuses_whoever_has_no_token(station: Station, route: str) -> None:
    method, path = route.split()
    question = station.get("/queries").json()["queries"][0]
    label = {"event_id": "event-0001", "alert_id": question["alert_id"], "label": "AGN"}
    given = {"json": {"labels": [label]} if "batch" in path else label} if method == "POST" else {}
    before = kept(station.root)
    for headers in STRANGERS:
        answer = station.send(method, path.format(query_id=question["query_id"]), headers=headers, **given)
        assert answer.status_code == 401, headers
    assert kept(station.root) == before


def test_what_needs_no_token_changes_nothing(station: Station) -> None:
    alert = station.get("/alerts?limit=1").json()["alerts"][0]
    names = {
        "name": "transients",
        "kind": "science",
        "token": "forged.forged",
        "object_id:path": alert["object_id"],
    }
    before = kept(station.root)
    for route in sorted(PUBLIC):
        method, path = route.split()
        if path != GET_ONCE:
            for name, value in {**names, "alert_id": alert["alert_id"]}.items():
                path = path.replace(f"{{{name}}}", value)
            answer = station.send(
                method, path, content=b'{"features": {"x": 1}}' if method == "POST" else None
            )
            assert answer.status_code < 500, (path, answer.text)
    assert kept(station.root) == before


def test_it_listens_on_this_machine_alone_unless_told() -> None:
    own = settings_file.parse({})
    assert own.service.host == "127.0.0.1"
    assert own.ray.address == "local"


# Bombs.


def deflated(plain: bytes, schema: bytes, times: int = 1) -> bytes:
    """A container whose body is this, so many times, deflated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = (packer.compress(plain) + packer.flush(zlib.Z_FULL_FLUSH)) * times + packer.flush()
    return containers.write_container(containers.container_header(schema, b"deflate"), b"s" * 16, body)


def schema_of(packet: Packet) -> bytes:
    return containers.read_header(packet.value or b"").schema


def endless(packet: Packet, items: int) -> bytes:
    """An array of so many items that take no bytes, in a schema that the compiled walk leaves to fastavro."""
    schema, record = json.loads(schema_of(packet)), next(fastavro.reader(io.BytesIO(packet.value or b"")))
    for field in schema["fields"]:
        if field["name"] == "publisher":
            field["type"] = {"type": "enum", "name": "publisher", "symbols": ["ZTF"]}
    schema["fields"].append({"name": "endless", "type": {"type": "array", "items": "null"}})
    out = io.BytesIO()
    fastavro.schemaless_writer(
        out,
        fastavro.parse_schema(schema),
        {**record, "publisher": "ZTF", "endless": []},  # type: ignore[dict-item]
    )
    body = out.getvalue()[:-1] + containers.write_long(items) + b"\0"
    return containers.write_container(
        containers.container_header(json.dumps(schema).encode()), b"s" * 16, body
    )


def test_packets_that_unpack_to_gigabytes_are_dead_with_a_reason_and_harm_no_other(
    tmp_path: Path, ztf_packets: Any
) -> None:
    good = list(ztf_packets("selected_20231018")[:4])
    snappy = containers.write_long(1 << 40)[:6] + bytes(16)
    header = containers.container_header(schema_of(good[0]), b"snappy")
    bombs = [
        deflated(bytes(1 << 26), schema_of(good[0]), times=32),
        containers.write_container(header, b"s" * 16, snappy),
        endless(good[0], 1 << 40),
    ]
    assert max(map(len, bombs)) < 2 << 20  # small enough to come through Kafka
    report = worker(tmp_path, placed([good[0], *map(Packet, bombs), *good[1:]])).turn()
    assert report.outcomes == {"scored": 4, "dead": 3}
    reasons = sorted(reason for reason in report.reasons if reason.startswith("dead: "))
    assert "an array 'endless' of items without content" in reasons[0]
    assert [
        part in reason
        for part, reason in zip(("more than 32 times larger", "snappy"), reasons[1:], strict=True)
    ] == [
        True,
        True,
    ]


def test_a_body_that_python_would_blow_up_is_refused(ztf_packets: Any) -> None:
    from raybroker import surveys

    packet = ztf_packets("selected_20231018")[0]
    schema, record = json.loads(schema_of(packet)), next(fastavro.reader(io.BytesIO(packet.value)))
    for field in schema["fields"]:
        if field["name"] == "publisher":
            field["type"] = {"type": "enum", "name": "publisher", "symbols": ["ZTF"]}
    schema["fields"].append({"name": "many", "type": {"type": "array", "items": "int"}})
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), {**record, "publisher": "ZTF", "many": []})
    head, many = out.getvalue()[:-1], 1 << 20
    plain = head + containers.write_long(many) + bytes(many) + b"\0"
    (bad,) = surveys.load("ztf").decode([Packet(deflated(plain, json.dumps(schema).encode()))]).bad
    assert "larger than 1 MB" in bad.reason


def test_a_cutouts_bomb_is_refused_over_http(station: Station) -> None:
    alerts = station.get("/alerts?limit=1000&outcome=any").json()["alerts"]
    bombed = next(alert["alert_id"] for alert in alerts if alert["offset"] == 99)
    for form in ("fits", "png"):
        answer = station.get(f"/cutouts/{bombed}/science?format={form}")
        assert answer.status_code == 422
        assert answer.json() == {"error": "the cutout is larger than 8 MB"}


def test_a_bomb_within_a_bomb_is_not_unpacked_twice() -> None:
    nested = gzip.compress(gzip.compress(bytes(256 << 20), 9), 9)
    tracemalloc.start()
    with pytest.raises(PacketError, match="not a readable FITS"):
        cutouts.pixels(cutouts.plain(nested))
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


def test_a_request_that_is_too_large_is_refused_while_it_is_read(station: Station) -> None:
    sent = []

    async def endless_body() -> Any:
        for i in range(1000):
            sent.append(i)
            yield bytes(1 << 20)

    async def post() -> int:
        transport = httpx.ASGITransport(station.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"Content-Type": "application/octet-stream"}
            return (
                await client.post("/scores?survey=ztf", content=endless_body(), headers=headers)
            ).status_code

    assert asyncio.run(post()) == 413
    assert len(sent) < 10


# Models.


class Evil:
    """What it is unpickled into is a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_a_model_is_unpickled_only_if_its_bytes_have_the_digest_that_names_it(tmp_path: Path) -> None:
    content = pickle.dumps(Evil(tmp_path / "owned"))
    digest = provenance.put(tmp_path, b"the model that was stored")
    (tmp_path / "models" / digest).write_bytes(content)
    with pytest.raises(ArchiveError, match="do not have its digest"):
        Models(tmp_path).load(digest)
    assert not (tmp_path / "owned").exists()
    own = provenance.put(
        tmp_path, content
    )  # whoever may write the archive may run code: so the handbook says
    with pytest.raises(Exception):  # noqa: B017
        Models(tmp_path).load(own).columns  # noqa: B018
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "digest", ["../secret", "/etc/passwd", "..", "", "ABCDEF0123456789", "a" * 65, "a" * 15, "a" * 16 + "/.."]
)
def test_a_digest_leads_nowhere_but_into_its_folder(tmp_path: Path, digest: str) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    with pytest.raises(UnknownError, match="is no digest"):
        Models(tmp_path).load(digest)


def test_nothing_that_is_sent_is_unpickled(station: Station, tmp_path: Path) -> None:
    content = pickle.dumps(Evil(tmp_path / "owned"))
    for path in ("/scores", "/scores?survey=ztf", "/labels", "/labels/batch"):
        for kind in ("application/octet-stream", "application/json", "application/x-pickle"):
            headers = {"Content-Type": kind, "Authorization": "Bearer right"}
            station.post(path, content=content, headers=headers)
    assert not (tmp_path / "owned").exists()


# Paths.


@pytest.mark.parametrize("path", ["/static/", "/objects/", "/models/", "/open/", "/alerts/", "/queries/"])
def test_no_path_leads_out_of_its_folder(station: Station, path: str) -> None:
    for hostile in (
        "../server.py",
        "..%2Fserver.py",
        "%2e%2e/server.py",
        "....//server.py",
        "/etc/passwd",
        "%00",
    ):
        for end in ("", "/curve", "/claim"):
            answer = station.get(path + hostile + end)
            assert answer.status_code in (404, 405, 410, 422), answer.text
            assert "import " not in answer.text


# Labels.


def test_one_person_with_a_token_cannot_outvote_two(tmp_path: Path) -> None:
    from raybroker.learning.labels import Label, Ledger

    def said(who: str, label: str, number: int) -> Label:
        return Label(
            survey="ztf", alert_id="ztf:1", object_id="ztf:a", model="m", who=who, when=float(number), label=label,
            event_id=f"{who}-{number:04d}",
        )  # fmt: skip

    flood = [said("mallory", "AGN", i) for i in range(100)]
    honest = [said("ann", "SN", 1), said("bob", "SN", 2)]
    (lesson,) = Ledger([*honest, *flood], "majority").to_learn("m")
    assert lesson.label == "SN"
    assert Ledger([*honest, *flood], "agreed").to_learn("m") == []
