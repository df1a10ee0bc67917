"""The labelling page's files, and Plotly's JavaScript out of the installed Python package."""

from __future__ import annotations

import gzip
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Header, HTTPException, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse

from raybroker.errors import UnknownError

PAGE = Path(__file__).parent / "page"
KINDS = {".css": "text/css", ".js": "text/javascript"}
STATIC = {file.name: KINDS[file.suffix] for file in PAGE.iterdir() if file.suffix in KINDS}
FRESH = {"Cache-Control": "no-cache"}


def add(app: FastAPI) -> None:
    """`/`, `/static/...`."""

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(PAGE / "index.html", headers=FRESH)

    @app.get("/static/plotly.min.js", include_in_schema=False)
    def plotly(accept_encoding: Annotated[str, Header()] = "") -> Response:
        headers = {"Cache-Control": "public, max-age=86400", "Vary": "Accept-Encoding"}
        if "gzip" not in accept_encoding:
            return FileResponse(_plotly(), media_type="text/javascript", headers=headers)
        headers |= {"Content-Encoding": "gzip"}
        return Response(_plotly_gzip(), media_type="text/javascript", headers=headers)

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: Annotated[str, InPath(max_length=64)]) -> Response:
        if name not in STATIC:
            raise HTTPException(404, "there is no such file")
        return FileResponse(PAGE / name, media_type=STATIC[name], headers=FRESH)

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
