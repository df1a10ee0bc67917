"""The label requests for programs: filters, server-sent events, and an Atom feed."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from raybroker.alerts import flux_to_magnitude
from raybroker.cluster.requests import message
from raybroker.errors import did_you_mean
from raybroker.service import messages
from raybroker.service.desk import Desk, NotAllowedError
from raybroker.service.messages import PROBLEM, ModelName

Row = Mapping[str, Any]

HEARTBEAT_SECONDS = 15.0
RETRY_MS = 2_000  # after which a client comes back
LISTENERS = 32  # each holds one of the requests that a server may have under way
MOST = 1_000  # open questions that a list or a feed holds
ATOM = "http://www.w3.org/2005/Atom"
TAG = "tag:raybroker,2026:"  # RFC 4151: ids that stay the same wherever the broker runs
UNPRINTABLE = re.compile(
    "[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)  # what XML 1.0 cannot hold


@dataclass(frozen=True)
class Wanted:
    """Which questions somebody wants to hear of; None asks nothing. What is not known is not within a limit."""

    model: str | None = None
    label: str | None = None  # the most probable class
    dec_min: float | None = None
    dec_max: float | None = None
    brighter_than: float | None = None  # magnitude

    @property
    def narrows(self) -> bool:
        """Whether it asks for more than a model."""
        return self != Wanted(self.model)

    def takes(self, question: Row) -> bool:
        """Whether it is one of them: a question of the API or a message of the feed."""
        return (
            self.model in (None, question["model"])
            and self.label in (None, most_probable(question))
            and _within(self.dec_min, _of(question, "dec"), self.dec_max)
            and (self.brighter_than is None or _is_brighter(magnitude(question), self.brighter_than))
        )

    def query(self) -> str:
        """As the query string that asks for it."""
        names = {"model": self.model, "class": self.label, "dec_min": self.dec_min, "dec_max": self.dec_max}
        given = {**names, "brighter_than": self.brighter_than}
        return urlencode({name: value for name, value in given.items() if value is not None})


def matching(questions: Iterable[Row], wanted: Wanted) -> list[Row]:
    """Those that are wanted, in their order."""
    return [question for question in questions if wanted.takes(question)]


def most_probable(question: Row) -> str | None:
    """The class that the mixture holds for the likeliest, None where it says nothing."""
    mixture = (question.get("probabilities") or {}).get("mixture") or {}
    known = {name: p for name, p in mixture.items() if p is not None}
    return max(known, key=lambda name: known[name]) if known else None


def magnitude(question: Row) -> float | None:
    """Of |flux|, as it was when it was asked, or else of the alert in memory."""
    if question.get("magnitude") is not None:
        return float(question["magnitude"])
    flux = _of(question, "flux")
    return float(flux_to_magnitude(abs(flux))) if flux else None


def _of(question: Row, name: str) -> float | None:
    found = question.get(name)
    return found if found is not None else (question.get("alert") or {}).get(name)


def _within(low: float | None, value: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    return value is not None and (low is None or low <= value) and (high is None or value <= high)


def _is_brighter(value: float | None, limit: float) -> bool:
    return value is not None and value < limit


def wanted(
    request: Request,
    model: ModelName = None,
    label: Annotated[str | None, Query(alias="class", max_length=64, description="the most probable")] = None,
    dec_min: Annotated[float | None, Query(ge=-90, le=90)] = None,
    dec_max: Annotated[float | None, Query(ge=-90, le=90)] = None,
    brighter_than: Annotated[float | None, Query(ge=-30, le=60, description="magnitude")] = None,
) -> Wanted:
    """The query parameters of every list and feed of questions."""
    desk: Desk = request.app.state.desk
    if model is not None:
        desk.model(model)
    _check_class(desk, model, label)
    if dec_min is not None and dec_max is not None and dec_min > dec_max:
        raise NotAllowedError(f"dec_min = {dec_min} is above dec_max = {dec_max}: nothing is there")
    return Wanted(model, label, dec_min, dec_max, brighter_than)


def _check_class(desk: Desk, model: str | None, label: str | None) -> None:
    names = [model] if model is not None else list(desk.models)
    classes = sorted({known for name in names for known in desk.models[name].classes})
    if label is not None and label not in classes:
        near = did_you_mean(label, classes)
        raise NotAllowedError(f"no class '{label}'{near}: the models know {classes}")


Limits = Annotated[Wanted, Depends(wanted)]
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}},
    503: {"model": messages.Problem, "description": "too many listen"},
}
FEED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/atom+xml": {}}},
    304: {"description": "nothing changed since the ETag of If-None-Match"},
}


def add(app: FastAPI, desk: Desk) -> None:
    """`/queries/events` and `/queries/atom.xml`."""

    @app.get("/queries/events", response_class=StreamingResponse, responses=PROBLEM | EVENTS, tags=["label"])
    async def events(limits: Limits, last_event_id: Annotated[str, Header()] = "") -> Response:
        """Server-sent events: what is open (`begin`, then `open` for each), then each question that is opened, answered
        or withdrawn. With Last-Event-ID it goes on from there."""
        if desk.asked.changes.listening >= LISTENERS:
            raise HTTPException(503, f"{LISTENERS} listen already; come back later, or read /queries")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        frames = stream(desk, limits, last_event_id)
        return StreamingResponse(frames, media_type="text/event-stream", headers=headers)

    @app.get("/queries/atom.xml", response_class=Response, responses=PROBLEM | FEED, tags=["label"])
    def feed(request: Request, limits: Limits, if_none_match: Annotated[str, Header()] = "") -> Response:
        """The open questions as an Atom feed, for any feed reader."""
        rows = open_messages(desk, limits)
        content = atom(rows, str(request.base_url), limits.query())
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if _is_known(etag, if_none_match):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="application/atom+xml", headers=headers)


def _is_known(etag: str, given: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in given.split(",")]
    return etag in tags or tags == ["*"]


def open_messages(desk: Desk, limits: Wanted) -> list[Row]:
    """The open questions that are wanted, what to ask first at the top, as messages."""
    return matching(map(message, desk.asked.open(limits.model, MOST)), limits)


# Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html


async def stream(desk: Desk, limits: Wanted, last_event_id: str = "") -> AsyncIterator[str]:
    """The frames for one client, for as long as it stays. It holds no more than its place in what changed."""
    changes, woken, loop = desk.asked.changes, asyncio.Event(), asyncio.get_running_loop()
    stop = changes.listen(lambda: loop.call_soon_threadsafe(woken.set))
    try:
        yield f"retry: {RETRY_MS}\n\n"
        place = changes.number_of(last_event_id) if last_event_id else None
        if place is None:
            place, last_event_id = changes.end()
            for frame in listed(await run_in_threadpool(open_messages, desk, limits), last_event_id):
                yield frame
        while not changes.closed:
            woken.clear()
            news = changes.after(place)
            if news is None:
                break
            for change in news:
                place, last_event_id = change.number, change.row["event_id"]
                if limits.takes(told := message(change.row)):
                    yield frame_of(told["state"], told, last_event_id)
            if not news and not await _soon(woken):
                yield f": nothing new\n{_id(last_event_id)}\n"
        why = "the server goes away" if changes.closed else "you fell behind"
        yield frame_of("reconnect", {"reason": why})
    finally:
        stop()


async def _soon(woken: asyncio.Event) -> bool:
    """Whether it is set before the heartbeat is due."""
    try:
        await asyncio.wait_for(woken.wait(), HEARTBEAT_SECONDS)
    except TimeoutError:
        return False
    return True


def listed(rows: Sequence[Row], last: str) -> list[str]:
    """The list as it stands. Its id comes at the end, so that who was cut off within it is given all of it again."""
    frames = [frame_of("begin", {"open": len(rows)}), *(frame_of("open", row) for row in rows)]
    return [*frames, f"{_id(last)}\n"] if last else frames


def frame_of(event: str, data: Row, event_id: str = "") -> str:
    """One event as it goes over the wire."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"event: {event}\n{_id(event_id)}data: {text}\n\n"


def _id(event_id: str) -> str:
    return f"id: {event_id}\n" if event_id else ""


# Atom: RFC 4287.


def atom(rows: Sequence[Row], base: str, query: str = "") -> bytes:
    """The feed of these questions, for a service at `base` (it ends in '/'), read with that query string."""
    asked = f"?{query}" if query else ""
    feed = ElementTree.Element("feed", {"xmlns": ATOM})
    _put(feed, "id", f"{TAG}queries{asked}")
    _put(feed, "title", "raybroker: alerts worth a label")
    _put(feed, "updated", max((_time(row) for row in rows), default=_time({})))
    _put(_put(feed, "author"), "name", "raybroker")
    _put(feed, "link", rel="self", href=f"{base}queries/atom.xml{asked}", type="application/atom+xml")
    _put(feed, "link", rel="alternate", href=base, type="text/html")
    for row in rows:
        _entry(feed, row, base)
    return ElementTree.tostring(feed, "utf-8", xml_declaration=True)


def _entry(feed: ElementTree.Element, row: Row, base: str) -> None:
    entry, name = _put(feed, "entry"), row["object_id"] or row["alert_id"]
    likely = most_probable(row)
    _put(entry, "id", f"{TAG}query/{quote(row['query_id'], safe='')}")
    _put(entry, "title", f"{name}: {likely}?" if likely else name)
    _put(entry, "updated", _time(row))
    _put(entry, "summary", row["reason"] or "")
    _put(entry, "category", term=row["model"])
    _put(entry, "link", rel="alternate", href=f"{base}?alert={quote(row['alert_id'])}", type="text/html")
    if row["object_id"]:
        _put(
            entry,
            "link",
            rel="related",
            href=f"{base}objects/{quote(row['object_id'])}",
            type="application/json",
        )


def _put(parent: ElementTree.Element, name: str, text: str = "", **attributes: str) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, name, {k: UNPRINTABLE.sub("", v) for k, v in attributes.items()})
    element.text = UNPRINTABLE.sub("", text) or None
    return element


def _time(row: Row) -> str:
    """When it was asked, as RFC 3339; of what has no time, the beginning of time."""
    when = datetime.datetime.fromisoformat(row.get("when") or "1970-01-01T00:00:00+00:00")
    return when.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
