"""The endpoints by which people label: what is asked, who looks at it, what was said, and who one is."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, RedirectResponse

from raybroker.service import feed, messages
from raybroker.service.desk import Desk
from raybroker.service.messages import PROBLEM, Json, ModelName, NewLabel
from raybroker.service.sessions import COOKIE, COOKIE_SECONDS, LinkError

REFUSED = PROBLEM | {code: {"model": messages.Problem} for code in (401, 409)}
Limit = Annotated[int, Query(ge=1, le=1000)]
QueryId = Annotated[str, InPath(pattern=messages.QUERY_ID)]


def someone(request: Request) -> str | None:
    """The name of whoever asks, None if it is not said."""
    desk: Desk = request.app.state.desk
    return desk.sessions.who(request.headers.get("authorization"), request.cookies.get(COOKIE))


def who(name: Annotated[str | None, Depends(someone)]) -> str:
    """The name of whoever may label; 401 without one."""
    if name is None:
        sentence = "labels need a token: 'Authorization: Bearer ...', or open the page by its link"
        raise HTTPException(401, sentence, {"WWW-Authenticate": "Bearer"})
    return name


Someone = Annotated[str | None, Depends(someone)]
Who = Annotated[str, Depends(who)]


def add(app: FastAPI, desk: Desk) -> None:
    """`/queries`, `/labels`, `/open`, `/me`."""
    _asking(app, desk)
    _saying(app, desk)
    _entering(app, desk)


def _asking(app: FastAPI, desk: Desk) -> None:
    @app.get("/queries", response_model=messages.Questions, tags=["label"])
    def queries(name: Someone, limits: feed.Limits, limit: Limit = 100) -> Response:
        """The list to label, what to ask first at the top, and why each was chosen.

        With a token, without what others have claimed; without one, all, and who holds it.
        """
        found = desk.queries(limits.model, feed.MOST if limits.narrows else limit, name)
        return Json({"queries": feed.matching(found, limits)[:limit]})

    @app.post(
        "/queries/{query_id}/claim", response_model=messages.Claim, responses=REFUSED | HELD, tags=["label"]
    )
    def claim(name: Who, query_id: QueryId) -> Response:
        """Nobody else is asked this for a while (`claim_minutes` of the model). To claim one's own again is fine."""
        return Json(desk.claim(query_id, name))

    @app.delete(
        "/queries/{query_id}/claim", response_model=messages.Claim, responses=REFUSED | HELD, tags=["label"]
    )
    def give_back(name: Who, query_id: QueryId) -> Response:
        """Let others be asked again."""
        return Json(desk.claim(query_id, name, give_back=True))


HELD: dict[int | str, dict[str, Any]] = {
    409: {
        "model": messages.Problem,
        "description": "somebody else holds it: `who`, `until`; or it is answered",
    }
}


def _saying(app: FastAPI, desk: Desk) -> None:
    answers = REFUSED | {200: {"model": messages.Recorded, "description": "it was here before"}}

    @app.post("/labels", status_code=201, response_model=messages.Recorded, responses=answers, tags=["label"])
    def label(name: Who, given: NewLabel) -> Response:
        """Record a label. It is on the disk when this answers, whether or not the trainer is up."""
        found, repeated = desk.record(given.model_dump(), name)
        fields = {key: getattr(found, key) for key in ("event_id", "alert_id", "model", "label", "who")}
        return Json({**fields, "repeated": repeated}, 200 if repeated else 201)

    @app.get("/labels", response_model=messages.KnownLabels, responses=PROBLEM, tags=["label"])
    def labels(
        model: ModelName = None,
        who: Annotated[str | None, Query(max_length=64, description="the labeller's name")] = None,
        limit: Limit = 100,
    ) -> Response:
        """What was said, newest first; `standing` says which labels hold."""
        return Json({"labels": desk.asked.recent(desk.model(model) if model else None, who, limit)})


def _entering(app: FastAPI, desk: Desk) -> None:
    @app.get("/open/{token}", include_in_schema=False)
    def open_page(
        token: Annotated[str, InPath(max_length=1_000)], accept: Annotated[str, Header()] = ""
    ) -> Response:
        try:
            cookie = desk.sessions.redeem(token)
        except LinkError as error:
            if "text/html" in accept:
                return HTMLResponse(f"<!doctype html><title>raybroker</title><p>{error}.", 410)
            raise
        answer = RedirectResponse("../", 303, {"Cache-Control": "no-store"})
        answer.set_cookie(COOKIE, cookie, max_age=COOKIE_SECONDS, path="/", httponly=True, samesite="strict")
        return answer

    @app.get("/me", tags=["label"])
    def me(name: Someone) -> Response:
        """As whom this browser, or this token, labels: `name`, null if it may not."""
        return Json({"name": name})
