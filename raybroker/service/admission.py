"""How many requests a replica takes at once: the next is told at once to come back, with 429 and Retry-After.

Endpoints run in a pool of threads (40, as Starlette has it); what is let in beyond that waits for a thread. What is
not let in costs next to nothing, so a replica answers however many ask.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FREE = ("/queries/events", "/health", "/metrics")  # streams are bounded by themselves; who watches is let in
THREADS = 40
LONGEST_SECONDS = 30


class Admission:
    """ASGI middleware: at most `most` requests are worked on or wait."""

    def __init__(self, app: ASGIApp, most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.app, self.most, self.clock = app, most, clock
        self.inside = 0
        self._seconds = 0.0  # that a request takes, as a running mean

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["path"] in FREE:
            await self.app(scope, receive, send)
        elif self.inside >= self.most:
            await self._refusal()(scope, receive, send)
        else:
            await self._admitted(scope, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside += 1
        began = self.clock()
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= 1
            self._seconds += 0.05 * (self.clock() - began - self._seconds)

    def _refusal(self) -> JSONResponse:
        """Come back when those that are inside will be done, as far as the last ones tell."""
        wait = min(LONGEST_SECONDS, max(1, math.ceil(self._seconds * self.inside / THREADS)))
        sentence = (
            f"{self.inside} requests are being answered, as many as one server takes at once; come back later"
        )
        return JSONResponse({"error": sentence}, 429, {"Retry-After": str(wait)})
