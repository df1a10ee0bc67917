"""The HTTP endpoints. `create(desk)` gives the FastAPI application; whoever serves it (Ray Serve, uvicorn) wraps it."""

from __future__ import annotations

import gzip
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException as AnyHTTPException

from raybroker.errors import (
    ArchiveError,
    PacketError,
    RaybrokerError,
    SettingsError,
    StreamError,
    UnknownError,
    did_you_mean,
)
from raybroker.service import cutouts, messages, view
from raybroker.service.desk import ConflictError, Desk, NotAllowedError
from raybroker.service.guard import Guard, Numbers
from raybroker.service.messages import Features, Json, NewLabel
from raybroker.service.sessions import COOKIE, COOKIE_SECONDS, LinkError
from raybroker.service.view import Cone

ABOUT = """An alert broker that learns: alerts with scores, light curves, cutouts, and the few that are worth a label.

Fluxes are difference fluxes in nJy (AB), times are MJD in UTC, positions are ICRS degrees. **null is not known.**
Integers beyond 2⁵³ are strings. An error is `{"error": "one sentence"}`. Only `POST /labels` needs a token, as
`Authorization: Bearer ...` or in the page's cookie."""
PAGE = Path(__file__).parent / "page"
STATIC = {"page.css": "text/css"} | dict.fromkeys(("page.js", "curve.js", "dom.js"), "text/javascript")
STATUS = {  # the most special first
    ConflictError: 409,
    NotAllowedError: 422,
    UnknownError: 404,
    PacketError: 422,
    LinkError: 410,
    ArchiveError: 503,
    StreamError: 503,
    SettingsError: 500,
    RaybrokerError: 422,
}
PROBLEM: dict[int | str, dict[str, Any]] = {code: {"model": messages.Problem} for code in (404, 422)}
AlertId = Annotated[str, InPath(pattern=messages.ALERT_ID, examples=["ztf:2481121706115015011"])]
ObjectId = Annotated[str, InPath(pattern=messages.OBJECT_ID, examples=["ztf:ZTF18abcdefg"])]
ModelName = Annotated[str | None, Query(pattern=messages.NAME)]
TEXT = "text/plain; version=0.0.4; charset=utf-8"


def create(desk: Desk) -> FastAPI:
    """All endpoints over one desk."""
    app = FastAPI(title="raybroker", description=ABOUT, version="1", license_info={"name": "Apache-2.0"})
    app.state.desk = desk
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Numbers(desk))
    app.add_middleware(Guard, registry=registry)
    _errors(app)
    _reading(app, desk)
    _labelling(app, desk)
    _scoring(app, desk)
    _watching(app, desk, registry)
    _page(app, desk)
    return app


def _errors(app: FastAPI) -> None:
    @app.exception_handler(AnyHTTPException)
    async def http(request: Request, error: AnyHTTPException) -> Response:
        return Json({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return Json({"error": "; ".join(_sentence(detail) for detail in error.errors())}, 422)

    @app.exception_handler(RaybrokerError)
    async def ours(request: Request, error: RaybrokerError) -> Response:
        code = next(code for kind, code in STATUS.items() if isinstance(error, kind))
        return Json({"error": str(error)}, code)


def _sentence(detail: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in detail["loc"][1:]) or "the request"
    given = detail.get("input")
    shown = f" (given: {str(given)[:80]!r})" if given is not None and not isinstance(given, dict) else ""
    return f"{place}: {detail['msg']}{shown}"


def _refuse(sentence: str) -> NoReturn:
    raise HTTPException(422, sentence)


def asked_for(
    request: Request,
    survey: Annotated[str | None, Query(pattern=messages.NAME)] = None,
    night: Annotated[int | None, Query(ge=19000101, le=99991231, description="YYYYMMDD")] = None,
    outcome: Annotated[
        Literal["kept", "any", "scored", "failed", "rejected", "dead", "duplicate"],
        Query(description="kept: scored or failed, what passed the cuts"),
    ] = "kept",
    model: ModelName = None,
    label: Annotated[
        str | None, Query(alias="class", max_length=64, description="a class of the model")
    ] = None,
    min_score: Annotated[float | None, Query(ge=0, le=1, description="needs a class")] = None,
    ra: Annotated[float | None, Query(ge=0, lt=360)] = None,
    dec: Annotated[float | None, Query(ge=-90, le=90)] = None,
    radius_arcsec: Annotated[float | None, Query(gt=0, le=36_000)] = None,
    filter: Annotated[str | None, Query(pattern=messages.NAME)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[
        str | None, Query(pattern=messages.CURSOR, description="cursor of an earlier page")
    ] = None,
) -> view.Query:
    """The query parameters of a list of alerts."""
    desk: Desk = request.app.state.desk
    cone = _cone(ra, dec, radius_arcsec)
    model = _model_of(desk, model, label, min_score)
    _check_survey(desk, survey)
    outcomes = {"kept": view.KEPT, "any": ()}.get(outcome, (outcome,))
    return view.Query(survey, night, outcomes, model, label, min_score, cone, filter, before, limit)


def who(request: Request) -> str:
    """The name of whoever may label; 401 without one."""
    desk: Desk = request.app.state.desk
    name = desk.sessions.who(request.headers.get("authorization"), request.cookies.get(COOKIE))
    if name is None:
        sentence = "labels need a token: 'Authorization: Bearer ...', or open the page by its link"
        raise HTTPException(401, sentence, {"WWW-Authenticate": "Bearer"})
    return name


async def body(request: Request) -> bytes:
    """The whole body; `Guard` bounds it."""
    return await request.body()


AskedFor = Annotated[view.Query, Depends(asked_for)]
Who = Annotated[str, Depends(who)]
Body = Annotated[bytes, Depends(body)]


def _reading(app: FastAPI, desk: Desk) -> None:
    @app.get("/alerts", response_model=messages.Alerts, responses=PROBLEM, tags=["read"])
    def list_alerts(query: AskedFor) -> Response:
        """The newest alerts of the last nights, the last to arrive first."""
        try:
            page = desk.view.alerts(query)
        except UnknownError as error:
            raise HTTPException(410, str(error)) from error
        return Json({"alerts": page.rows, "before": page.before})

    @app.get("/alerts/{alert_id}", responses=PROBLEM, tags=["read"])
    def one_alert(alert_id: AlertId) -> Response:
        """Everything known of one alert, from the whole archive: history, survey fields, columns of every step."""
        return Json(desk.alert(alert_id))

    @app.get("/objects/{object_id:path}", responses=PROBLEM, tags=["read"])
    def one_object(object_id: ObjectId) -> Response:
        """An object's merged light curve, its scores over time, and its labels."""
        return Json(desk.object(object_id))

    @app.get("/cutouts/{alert_id}/{kind}", responses=PROBLEM | CUTOUT, tags=["read"])
    def one_cutout(
        alert_id: AlertId,
        kind: Literal["science", "template", "difference"],
        format: Annotated[
            Literal["fits", "png"] | None, Query(description="default: what Accept asks for")
        ] = None,
        accept: Annotated[str, Header()] = "",
    ) -> Response:
        """A cutout as it was in the packet (FITS), or as a picture (PNG; zscale, asinh)."""
        found = desk.cutout(alert_id, kind)
        headers = {"Cache-Control": "private, max-age=86400", "Vary": "Accept"}
        if (format or ("png" if "image/" in accept else "fits")) == "png":
            return Response(cutouts.png(cutouts.pixels(found)), media_type="image/png", headers=headers)
        name = f"{alert_id.replace(':', '-')}-{kind}.fits"
        return Response(
            found,
            media_type="image/fits",
            headers=headers | {"Content-Disposition": f'attachment; filename="{name}"'},
        )

    @app.get("/queries", response_model=messages.Questions, tags=["label"])
    def queries(model: ModelName = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Response:
        """The list to label, what to ask first at the top, and why each was chosen."""
        return Json({"queries": desk.queries(desk.model(model) if model else None, limit)})

    @app.get("/models", tags=["read"])
    def models() -> Response:
        """Every model: classes, newest snapshot, labels, open questions."""
        return Json({"models": desk.model_infos()})


CUTOUT: dict[int | str, dict[str, Any]] = {200: {"content": {"image/fits": {}, "image/png": {}}}}


def _cone(ra: float | None, dec: float | None, radius_arcsec: float | None) -> Cone | None:
    if ra is None and dec is None and radius_arcsec is None:
        return None
    if ra is None or dec is None or radius_arcsec is None:
        _refuse("a cone needs all of ra, dec and radius_arcsec")
    return Cone(ra, dec, radius_arcsec)


def _model_of(desk: Desk, model: str | None, label: str | None, min_score: float | None) -> str | None:
    if min_score is not None and label is None:
        _refuse("min_score needs a class whose score it limits")
    if model is None and label is None:
        return None
    name = desk.model(model)
    classes = desk.models[name].classes
    if label is not None and label not in classes:
        _refuse(f"model '{name}' has no class '{label}'{did_you_mean(label, classes)}: it knows {classes}")
    return name


def _check_survey(desk: Desk, survey: str | None) -> None:
    if survey is not None and survey not in desk.surveys:
        _refuse(f"no survey '{survey}'{did_you_mean(survey, desk.surveys)}: there are {sorted(desk.surveys)}")


def _labelling(app: FastAPI, desk: Desk) -> None:
    answers = PROBLEM | {code: {"model": messages.Problem} for code in (401, 409)}
    answers |= {200: {"model": messages.Recorded, "description": "it was here before"}}

    @app.post("/labels", status_code=201, response_model=messages.Recorded, responses=answers, tags=["label"])
    def label(name: Who, given: NewLabel) -> Response:
        """Record a label. It is on the disk when this answers, whether or not the trainer is up."""
        found, repeated = desk.record(given.model_dump(), name)
        fields = {key: getattr(found, key) for key in ("event_id", "alert_id", "model", "label", "who")}
        return Json({**fields, "repeated": repeated}, 200 if repeated else 201)

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
    def me(request: Request) -> Response:
        """As whom this browser, or this token, labels: `name`, null if it may not."""
        return Json(
            {"name": desk.sessions.who(request.headers.get("authorization"), request.cookies.get(COOKIE))}
        )


SCORES_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": Features.model_json_schema()},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def _scoring(app: FastAPI, desk: Desk) -> None:
    @app.post("/scores", responses=PROBLEM, openapi_extra=SCORES_BODY, tags=["read"])
    def scores(
        content: Body,
        survey: Annotated[str | None, Query(pattern=messages.NAME, description="of a raw packet")] = None,
        content_type: Annotated[str, Header()] = "",
    ) -> Response:
        """Scores for features (JSON), or for a raw packet of `survey` (application/octet-stream). Nothing is stored."""
        if not content_type.startswith("application/octet-stream"):
            given = _features(content)
            return Json(desk.score(desk.model(given.model), given.features))
        if survey is None:
            _refuse("a raw packet needs ?survey=")
        _check_survey(desk, survey)
        return Json(desk.score_packet(survey, content))


def _features(content: bytes) -> Features:
    try:
        return Features.model_validate_json(content)
    except ValidationError as error:
        _refuse(
            "; ".join(_sentence({**detail, "loc": ("body", *detail["loc"])}) for detail in error.errors())
        )


def _watching(app: FastAPI, desk: Desk, registry: CollectorRegistry) -> None:
    @app.get("/status", tags=["watch"])
    def status() -> Response:
        """Counts that add up: received is scored + failed + rejected + dead + duplicate, by survey and night."""
        return Json(desk.report())

    @app.get(
        "/health", responses={503: {"description": "not well; the reasons are in `problems`"}}, tags=["watch"]
    )
    def health() -> Response:
        """Whether an alert published now would be readable here: reads the archive, looks at the turns' age."""
        problems = desk.troubles()
        return Json({"ok": not problems, "problems": problems}, 503 if problems else 200)

    @app.get("/metrics", tags=["watch"])
    def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(registry), media_type=TEXT)


def _page(app: FastAPI, desk: Desk) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/static/plotly.min.js", include_in_schema=False)
    def plotly(accept_encoding: Annotated[str, Header()] = "") -> Response:
        headers = {"Cache-Control": "public, max-age=86400", "Vary": "Accept-Encoding"}
        if "gzip" not in accept_encoding:
            return FileResponse(_plotly(), media_type="text/javascript", headers=headers)
        return Response(
            _plotly_gzip(), media_type="text/javascript", headers=headers | {"Content-Encoding": "gzip"}
        )

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: Annotated[str, InPath(max_length=64)]) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "there is no such file")
        return FileResponse(PAGE / name, media_type=STATIC[name], headers={"Cache-Control": "no-cache"})

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(status_code=204)


def _plotly() -> Path:
    """Plotly's JavaScript in the installed Python package, so that the page needs no outside network."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise UnknownError("the plotly package is not installed: the page has no light curve")
    return Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js"


@lru_cache(1)
def _plotly_gzip() -> bytes:
    return gzip.compress(_plotly().read_bytes(), 6)
