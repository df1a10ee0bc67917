"""What changes, as it is heard: by whoever listens in the process, and over HTTP from a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from raybroker.service import feed
from raybroker.service.asked import Asked
from raybroker.service.changes import Changes
from raybroker.service.feed import Wanted
from tests.service.rows import NOW, row

# What changed, for whoever listens.


def test_what_opens_and_what_closes_is_told_once() -> None:
    asked = Asked()
    asked.add_queries([row("a"), row("b")])
    asked.add_queries([row("a"), row("a", "claimed", claim="ann", until=NOW), row("gone", "withdrawn")])
    asked.add_queries([row("a", "withdrawn"), row("a", "withdrawn"), row("b", "answered", reason=None)])
    found = asked.changes.after(0)
    assert found is not None
    assert [(one.number, one.row["event_id"]) for one in found] == [
        *((1, "a-open"), (2, "b-open")),
        *((3, "a-withdrawn"), (4, "b-answered")),
    ]
    assert found[-1].row["reason"].startswith("margin")  # what it was asked with


def test_a_listener_that_fell_behind_finds_out() -> None:
    changes = Changes(kept=3)
    changes.add({"event_id": str(i)} for i in range(5))
    assert changes.after(1) is None
    assert [one.number for one in changes.after(2) or ()] == [3, 4, 5]
    assert changes.after(5) == []
    assert (changes.number_of("1"), changes.number_of("4"), changes.end()) == (None, 5, (5, "4"))


def test_listeners_are_woken_by_changes_only_and_until_they_stop() -> None:
    changes, woken = Changes(), []
    stop = changes.listen(lambda: woken.append(1))
    changes.add([])
    assert woken == []
    changes.add([{"event_id": "1"}, {"event_id": "2"}])
    assert woken == [1]
    stop()
    changes.add([{"event_id": "3"}])
    assert (woken, changes.listening) == ([1], 0)


def test_a_listener_whose_loop_is_gone_harms_nobody() -> None:
    asked, woken, loop = Asked(), [], asyncio.new_event_loop()
    asked.changes.listen(lambda: loop.call_soon_threadsafe(print) and None)
    asked.changes.listen(lambda: woken.append(1))
    loop.close()
    asked.add_queries([row("a")])
    assert (woken, asked.changes.listening) == ([1], 1)


# Server-sent events, from a real server.


class Events:
    """What a client heard, frame by frame."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()
        self.last_id = ""

    def frame(self) -> dict[str, str]:
        """The next block of lines, comments under ''."""
        found: dict[str, str] = {}
        for line in self._lines:
            if not line:
                self.last_id = found.get("id", self.last_id)
                return found
            name, _, value = line.partition(":")
            found[name] = value.removeprefix(" ")
        return {"event": "the end"}

    def event(self) -> tuple[str, Any]:
        """The next event, past comments and ids."""
        while "event" not in (found := self.frame()):
            pass
        return found["event"], json.loads(found["data"]) if "data" in found else None

    def names(self, count: int) -> list[tuple[str, str]]:
        return [(name, data["query_id"]) for name, data in (self.event() for _ in range(count))]


@contextmanager
def serving(station: Any) -> Iterator[str]:
    """The real app on a real port. It ends although somebody listens."""
    server = uvicorn.Server(uvicorn.Config(station.app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        station.desk.asked.changes.close()
        server.should_exit = True
        thread.join(20.0)
        assert not thread.is_alive()


def until(done: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@contextmanager
def listening(url: str, last_id: str = "", **limits: Any) -> Iterator[Events]:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with httpx.stream("GET", f"{url}/queries/events", params=limits, headers=headers, timeout=20) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response)


@pytest.fixture
def fresh(service: Any, tmp_path: Any) -> Any:
    """A service over an empty archive, with two open questions."""
    station = service.open_station(tmp_path)
    station.desk.asked.add_queries([row("a", rank=1), row("b", rank=0, dec=-20.0)])
    return station


def test_a_listener_hears_what_is_open_and_then_what_changes(fresh: Any) -> None:
    with serving(fresh) as url, listening(url) as events:
        assert events.event() == ("begin", {"open": 2})
        assert events.names(2) == [("open", "b"), ("open", "a")]
        fresh.desk.asked.add_queries([row("c"), row("a", "withdrawn"), row("b", "answered")])
        name, opened = events.event()
        assert (name, opened) == ("open", feed.message(row("c")))
        assert events.names(2) == [("withdrawn", "a"), ("answered", "b")]
        assert events.last_id == "b-answered"


def test_what_the_trainer_writes_to_the_log_is_heard(fresh: Any) -> None:
    with serving(fresh) as url, listening(url) as events:
        events.event(), events.names(2)
        fresh.desk.questions.append([row("logged")])
        fresh.follower.step()
        name, opened = events.event()
        assert (name, opened["query_id"], opened["event_id"]) == ("open", "logged", "logged-open")
        assert opened["probabilities"]["mixture"]["AGN"] == pytest.approx(0.6)


def test_who_comes_back_goes_on_where_it_stopped(fresh: Any) -> None:
    asked = fresh.desk.asked
    with serving(fresh) as url:
        with listening(url) as events:
            events.event(), events.names(2), events.frame()
            assert events.last_id == "b-open"
        asked.add_queries([row("c"), row("a", "withdrawn")])
        with listening(url, "b-open") as events:
            assert events.names(2) == [("open", "c"), ("withdrawn", "a")]
        with listening(url, "of-long-ago") as events:
            assert events.event() == ("begin", {"open": 2})


def test_only_what_is_wanted_is_heard(fresh: Any) -> None:
    with serving(fresh) as url, listening(url, dec_min=0, brighter_than=19) as events:
        assert events.event() == ("begin", {"open": 1})
        assert events.names(1) == [("open", "a")]
        fresh.desk.asked.add_queries(
            [
                row("c", dec=-1.0),
                row("d", magnitude=19.5),
                row("b", "withdrawn", dec=-20.0),
                row("a", "withdrawn"),
            ]
        )
        assert events.names(1) == [("withdrawn", "a")]


def test_silence_is_filled_with_comments_that_keep_the_place(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "HEARTBEAT_SECONDS", 0.02)
    with serving(fresh) as url, listening(url, dec_min=0) as events:
        events.event(), events.names(1)
        fresh.desk.asked.add_queries([row("c", dec=-1.0)])  # not wanted: its id is told all the same
        beats = []
        while events.last_id != "c-open":
            beats.append(events.frame())
        assert beats[-1] == {"": "nothing new", "id": "c-open"}


def test_a_listener_that_goes_is_forgotten(fresh: Any) -> None:
    changes = fresh.desk.asked.changes
    with serving(fresh) as url:
        with listening(url) as events:
            events.event()
            assert changes.listening == 1
        until(lambda: changes.listening == 0)


def test_listeners_are_told_when_the_server_goes(fresh: Any) -> None:
    with serving(fresh) as url, listening(url) as events:
        events.event(), events.names(2)
        fresh.desk.asked.changes.close()
        assert events.event() == ("reconnect", {"reason": "the server goes away"})
        assert events.event() == ("the end", None)


def test_too_many_listeners_are_refused(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "LISTENERS", 1)
    with serving(fresh) as url, listening(url) as events:
        events.event()
        answer = httpx.get(f"{url}/queries/events")
        assert answer.status_code == 503
        assert "1 listen already" in answer.json()["error"]


async def until_caught_up(frames: AsyncIterator[str]) -> None:
    while "id:" not in await anext(frames):
        pass


def test_a_client_that_fell_behind_is_told_to_come_back(fresh: Any) -> None:
    fresh.desk.asked.changes = Changes(kept=3)
    fresh.desk.asked.add_queries([row("x")])

    async def slow() -> list[str]:
        frames = feed.stream(fresh.desk, Wanted())
        await until_caught_up(frames)
        fresh.desk.asked.add_queries([row(f"c{i}") for i in range(4)])
        return [frame async for frame in frames]

    heard = asyncio.run(slow())
    assert heard == ['event: reconnect\ndata: {"reason":"you fell behind"}\n\n']
    assert fresh.desk.asked.changes.listening == 0


def test_a_client_that_reads_nothing_does_not_hold_up_others_nor_fill_the_memory(fresh: Any) -> None:
    fresh.desk.asked.changes = Changes(kept=20)
    with serving(fresh) as url, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        slow.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        slow.sendall(b"GET /queries/events HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: fresh.desk.asked.changes.listening == 1)
        for i in range(300):
            fresh.desk.asked.add_queries([row(f"c{i}", reason="x" * 64_000)])
        assert httpx.get(f"{url}/me").status_code == 200
        heard, tail = 0, b""
        while b"you fell behind" not in tail and (got := slow.recv(1 << 20)):
            heard, tail = heard + len(got), (tail + got)[-1_000:]
        assert b"you fell behind" in tail
        assert heard < 150 * 64_000
