"""The HTTP endpoints. `create(desk)` gives the FastAPI application; whoever serves it (Ray Serve, uvicorn) wraps it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NoReturn

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
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
from raybroker.service import bulk, cutouts, feed, files, labelling, messages, view
from raybroker.service.admission import Admission
from raybroker.service.desk import Desk
from raybroker.service.door import ConflictError, NotAllowedError
from raybroker.service.guard import Guard
from raybroker.service.messages import BUSY, GONE, PROBLEM, Features, Json, ModelName
from raybroker.service.metrics import Numbers
from raybroker.service.sessions import LinkError
from raybroker.service.view import Cone

ABOUT = """An alert broker that learns: alerts with scores, light curves, cutouts, and the few that are worth a label.

Fluxes are difference fluxes in nJy (AB), times are MJD in UTC, positions are ICRS degrees. **null is not known.**
Integers beyond 2⁵³ are strings. An error is `{"error": "one sentence"}`. To label, and to
claim a question, needs a token, as `Authorization: Bearer ...` or in the page's cookie."""
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
AlertId = Annotated[str, InPath(pattern=messages.ALERT_ID, examples=["ztf:2481121706115015011"])]
ObjectId = Annotated[str, InPath(pattern=messages.OBJECT_ID, examples=["ztf:ZTF18abcdefg"])]
TEXT = "text/plain; version=0.0.4; charset=utf-8"


def create(desk: Desk, requests: int = 64) -> FastAPI:
    """All endpoints over one desk; so many requests at once, the next is answered with 429."""
    app = FastAPI(
        title="raybroker", description=ABOUT, version="1", license_info={"name": "Apache-2.0"}, responses=BUSY
    )
    app.state.desk = desk
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Numbers(desk))
    app.add_middleware(Admission, most=requests)  # inside the guard, which counts the refused too
    app.add_middleware(Guard, registry=registry)
    _errors(app)
    _reading(app, desk)
    labelling.add(app, desk)
    feed.add(app, desk)
    bulk.add(app, desk)
    _scoring(app, desk)
    _watching(app, desk, registry)
    files.add(app)
    return app


def _errors(app: FastAPI) -> None:
    @app.exception_handler(AnyHTTPException)
    async def http(request: Request, error: AnyHTTPException) -> Response:
        unread = error.status_code == 400  # FastAPI's, for a body that is not UTF-8
        return Json({"error": str(error.detail)}, 422 if unread else error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return Json({"error": "; ".join(_sentence(detail) for detail in error.errors())}, 422)

    @app.exception_handler(RaybrokerError)
    async def ours(request: Request, error: RaybrokerError) -> Response:
        code = next(code for kind, code in STATUS.items() if isinstance(error, kind))
        return Json({"error": str(error), **getattr(error, "facts", {})}, code)


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


async def body(request: Request) -> bytes:
    """The whole body; `Guard` bounds it."""
    return await request.body()


AskedFor = Annotated[view.Query, Depends(asked_for)]
Body = Annotated[bytes, Depends(body)]


def _reading(app: FastAPI, desk: Desk) -> None:
    @app.get("/alerts", response_model=messages.Alerts, responses=PROBLEM | GONE, tags=["read"])
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
        stretch: Literal["asinh", "linear", "log"] = "asinh",
        limits: Annotated[
            Literal["zscale", "percentile", "minmax"], Query(description="what is black and what is white")
        ] = "zscale",
        accept: Annotated[str, Header()] = "",
    ) -> Response:
        """A cutout as it was in the packet (FITS), or as a picture (PNG; for it are stretch and limits)."""
        found = desk.cutout(alert_id, kind)
        headers = {"Cache-Control": "private, max-age=86400", "Vary": "Accept"}
        if (format or ("png" if "image/" in accept else "fits")) == "png":
            picture = cutouts.png(cutouts.pixels(found), stretch, limits)
            return Response(picture, media_type="image/png", headers=headers)
        name = f"{alert_id.replace(':', '-')}-{kind}.fits"
        return Response(
            found,
            media_type="image/fits",
            headers=headers | {"Content-Disposition": f'attachment; filename="{name}"'},
        )

    @app.get("/models", tags=["read"])
    def models() -> Response:
        """Every model: classes, newest snapshot, labels, open questions."""
        return Json({"models": desk.model_infos()})

    @app.get("/models/{name}/curve", response_model=messages.Curve, responses=PROBLEM, tags=["read"])
    def model_curve(
        name: Annotated[str, InPath(pattern=messages.NAME)],
        limit: Annotated[int, Query(ge=2, le=10_000, description="of more, evenly chosen ones")] = 500,
    ) -> Response:
        """How a model learned: every snapshot with its number, its labels, when it was made, and its metrics."""
        return Json({"model": name, "snapshots": desk.curve(name, limit)})


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

    @app.get("/metrics", response_class=PlainTextResponse, tags=["watch"])
    def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(registry), media_type=TEXT)
