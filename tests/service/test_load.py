"""More requests than a server takes: the rest is told at once to come back, and nothing grows."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from raybroker.cluster.replicas import REFUSALS, STREAMS, options
from raybroker.service import feed
from raybroker.service.admission import Admission
from raybroker.settings import ServiceSettings

MOST = 8


class Slow:
    """An app whose endpoint waits until it is let go, and counts how many are in it."""

    def __init__(self, most: int = MOST) -> None:
        self.go, self.inside, self.highest = threading.Event(), 0, 0
        self.lock = threading.Lock()
        self.app = FastAPI()
        self.app.get("/alerts")(self.alerts)
        self.app.get("/queries/events")(self.events)
        self.app.get("/health")(lambda: {"ok": True})
        self.app.get("/broken")(self.broken)
        self.gate = Admission(self.app, most)

    def alerts(self) -> dict[str, str]:
        with self.lock:
            self.inside += 1
            self.highest = max(self.highest, self.inside)
        self.go.wait(30)
        with self.lock:
            self.inside -= 1
        return {"alerts": ""}

    async def events(self) -> StreamingResponse:
        async def frames() -> Any:
            yield "a"
            while not self.go.is_set():
                await asyncio.sleep(0.01)

        return StreamingResponse(frames())

    def broken(self) -> None:
        raise RuntimeError("broken")


def client(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)


async def flood(http: httpx.AsyncClient, count: int, path: str = "/alerts") -> list[httpx.Response]:
    return list(await asyncio.gather(*(http.get(path) for _ in range(count))))


def test_beyond_its_bound_a_server_answers_429_at_once_and_says_when_to_come_back() -> None:
    slow = Slow()

    async def run() -> list[httpx.Response]:
        async with client(slow.gate) as http:
            held = asyncio.create_task(flood(http, MOST))
            while slow.inside < MOST:
                await asyncio.sleep(0.01)
            refused = await flood(http, 200)
            free = await flood(http, 3, "/health")
            slow.go.set()
            return [*await held, *refused, *free, *await flood(http, 2)]

    answers = asyncio.run(run())
    assert Counter(answer.status_code for answer in answers) == {200: MOST + 5, 429: 200}
    assert slow.highest == MOST
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert "come back later" in answer.json()["error"]
    assert slow.gate.inside == 0


def test_streams_of_events_are_not_counted() -> None:
    slow = Slow(most=2)

    async def run() -> list[httpx.Response]:
        async with client(slow.gate) as http:
            streams = asyncio.create_task(flood(http, 5, "/queries/events"))
            slow_ones = asyncio.create_task(flood(http, 2))
            while slow.inside < 2:
                await asyncio.sleep(0.01)
            slow.go.set()
            return [*await slow_ones, *await streams]

    assert [answer.status_code for answer in asyncio.run(run())] == [200] * 7


def test_a_request_that_fails_gives_its_place_back() -> None:
    slow = Slow(most=1)

    async def run() -> list[int]:
        async with client(slow.gate) as http:
            return [(await http.get("/broken")).status_code for _ in range(3)]

    assert asyncio.run(run()) == [500, 500, 500]
    assert slow.gate.inside == 0


def test_the_longer_a_request_takes_the_later_to_come_back() -> None:
    gate = Admission(FastAPI(), 80)
    gate.inside = 80
    said = []
    for seconds in (0.01, 3.0, 400.0):
        gate._seconds = seconds
        said.append(int(gate._refusal().headers["retry-after"]))
    assert said == [1, 6, 30]


def test_the_whole_service_refuses_with_its_headers_and_counts_what_it_refused(station: Any) -> None:
    app = station.app
    gate = find_gate(app)
    gate.inside = gate.most
    refused = asyncio.run(get(app, "/alerts"))
    assert refused.status_code == 429
    assert refused.headers["x-content-type-options"] == "nosniff"
    metrics = asyncio.run(get(app, "/metrics")).text
    assert 'status="429"' in metrics
    gate.inside = 0
    assert asyncio.run(get(app, "/alerts")).status_code == 200


async def get(app: Any, path: str) -> httpx.Response:
    async with client(app) as http:
        return await http.get(path)


def find_gate(app: Any) -> Admission:
    asyncio.run(get(app, "/health"))  # the stack of middlewares is made with the first request
    layer = app.middleware_stack
    while not isinstance(layer, Admission):
        layer = layer.app
    return layer


def test_serve_lets_through_what_a_replica_shall_refuse_itself() -> None:
    found = options(ServiceSettings(requests=50))
    assert found["max_ongoing_requests"] == 50 + STREAMS + REFUSALS
    assert (found["num_replicas"], STREAMS) == (1, feed.LISTENERS)
    grown = options(ServiceSettings(requests=50, replicas=2, most_replicas=5))
    assert "num_replicas" not in grown
    scaling = grown["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 5)
    assert scaling["target_ongoing_requests"] == 25


def test_fewer_replicas_at_most_than_at_least_is_a_wrong_setting() -> None:
    with pytest.raises(ValueError, match="most_replicas = 1 is below replicas = 2"):
        ServiceSettings(replicas=2, most_replicas=1)


def test_a_flood_leaves_the_server_as_quick_as_before() -> None:
    slow = Slow(most=4)
    slow.go.set()

    async def run() -> tuple[Counter[int], float]:
        async with client(slow.gate) as http:
            codes = Counter(answer.status_code for answer in await flood(http, 500))
            begun = time.perf_counter()
            assert (await http.get("/alerts")).status_code == 200
            return codes, time.perf_counter() - begun

    codes, seconds = asyncio.run(run())
    assert set(codes) <= {200, 429}
    assert codes[200] >= 4
    assert seconds < 5.0  # generous: it waits for nobody
