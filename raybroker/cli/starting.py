"""How a run begins: the settings are checked, then Ray starts, the workers go first, the service comes beside them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from raybroker.settings import Settings

if TYPE_CHECKING:
    from raybroker.cli.running import Crew

log = logging.getLogger("raybroker")

AGAIN_SECONDS = 10.0  # until a service that could not start is tried again
GATE_SECONDS = 60.0  # workers that are not there by then have other troubles


@contextmanager
def started(
    settings: Settings,
    local: bool,
    console: Console,
    prepare: Callable[[], None],
    heard: Callable[[], None] = lambda: None,
) -> Iterator[Crew]:
    """A crew that is hired; what `prepare` raises ends it at once. `heard` is called when Ray is up: it takes SIGTERM."""
    if local:
        from raybroker.cluster.single import Single

        prepare()
        yield Single(settings)
        return
    workers = sum(own.workers for own in settings.surveys.values())
    console.print(f"starting Ray, {workers} worker{'s' if workers > 1 else ''}, and the trainer")
    prepare()
    with _ray(settings) as supervisor:
        heard()
        supervisor.ask()
        yield supervisor


@contextmanager
def _ray(settings: Settings) -> Iterator[Any]:
    """Ray, and the supervisor over it.

    In the main thread, and with no other at work: Ray's processes die with the *thread* that started them, and the fork
    before each can hang on a lock that another thread holds.
    """
    from raybroker.cluster import supervisor

    supervisor.start_ray(settings)
    try:
        yield supervisor.Supervisor(settings)
    finally:
        supervisor.stop_ray()


class Serving:
    """The service, started in a thread once the workers are ready, and tried again where it cannot start."""

    def __init__(self, settings: Settings, local: bool, console: Console, crew: Crew) -> None:
        self.settings, self.local, self.console, self.crew = settings, local, console, crew
        self._up, self._stop = threading.Event(), threading.Event()
        self._eager = threading.Event()
        self._open: AbstractContextManager[str] | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="serving", daemon=True)

    def __enter__(self) -> Serving:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._up.is_set():
            self._thread.join()
            if self._open is not None:
                self._open.__exit__(None, None, None)

    def wait(self) -> None:
        """Until it is up, whether or not the workers are ready; what keeps it from that is raised."""
        self._eager.set()
        while not self._up.wait(0.1):
            if self._error is not None:
                raise self._error

    def _run(self) -> None:
        self._gate()
        while not self._stop.is_set():
            try:
                self._start()
                return
            except Exception as error:  # whatever it is, the workers go on
                if self._stop.is_set():
                    return
                self._error = error
                log.warning("the service cannot start: %s", error)
                self.crew.troubles["service"] = f"cannot start, trying again: {error}"
            self._stop.wait(AGAIN_SECONDS)

    def _gate(self) -> None:
        until = time.monotonic() + GATE_SECONDS
        while not self._stop.is_set() and not self._eager.is_set() and time.monotonic() < until:
            if getattr(self.crew, "reading", True):
                return
            self._stop.wait(0.05)

    def _start(self) -> None:
        if self.local:
            from raybroker.service.server import in_thread as start
        else:
            from raybroker.cluster.serve import started as start
        opened = start(self.settings)
        url = opened.__enter__()
        self._open = opened
        self.crew.troubles.pop("service", None)
        self._up.set()
        if not url.endswith(f":{self.settings.service.port}"):
            self.console.print(f"[yellow]port {self.settings.service.port} is taken[/]")
        self.console.print(f"serving at [bold]{url}[/] (API: {url}/docs)")
