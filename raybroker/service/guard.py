"""What stands before every endpoint: bounded requests, headers for browsers, and the numbers for Prometheus."""

from __future__ import annotations

import os
import platform
import time

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 64 << 10
PACKET_BYTES = 4 << 20
CSP = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
METHODS = (
    "GET",
    "HEAD",
    "POST",
    "DELETE",
    "OPTIONS",
)  # others, which a client may make up, are counted as one
DOCS = ("/docs", "/redoc")  # FastAPI's own pages load their scripts from a CDN


class Guard:
    """ASGI middleware: refuses what is too large while it is read, counts and times what is answered."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self.app = app
        names = ["method", "path", "status", "replica"]
        self.replica = f"{platform.node()}-{os.getpid()}"  # a scrape reaches any of several
        self.requests = Counter("raybroker_http_requests", "HTTP requests", names, registry=registry)
        self.seconds = Histogram(
            "raybroker_http_seconds", "Seconds until answered", ["path", "replica"], registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_headers(scope["path"])]
            await send(message)

        try:
            await self.app(scope, _bounded(receive, _limit(scope)), answer)
        finally:
            path = getattr(scope.get("route"), "path", "unknown")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.requests.labels(method, path, str(status), self.replica).inc()
            self.seconds.labels(path, self.replica).observe(time.perf_counter() - start)


def _headers(path: str) -> list[tuple[bytes, bytes]]:
    skipped = {"content-security-policy"} if path.startswith(DOCS) else set()
    return [(name.encode(), value.encode()) for name, value in HEADERS.items() if name not in skipped]


def _limit(scope: Scope) -> int:
    return PACKET_BYTES if scope["path"].endswith(("/scores", "/labels/batch")) else BODY_BYTES


def _bounded(receive: Receive, limit: int) -> Receive:
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, f"the request is larger than {limit:,} bytes")
        return message

    return bounded
