"""The service on Ray Serve: the same app, in replicas."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from raybroker import settings as settings_file
from raybroker.cluster.actors import aside
from raybroker.cluster.replicas import options
from raybroker.service.ports import free_port
from raybroker.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


@contextmanager
def started(settings: Settings) -> Iterator[str]:
    """The service, up while the context is open; gives its URL. A busy port moves on to the next free one."""
    own = settings.service
    port = free_port(own.host, own.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options=HTTPOptions(host=own.host, port=port), logging_config=QUIET)
    serve.run(application(settings), name="raybroker", route_prefix="/", logging_config=QUIET)
    yield f"http://{own.host}:{port}"
    if settings.ray.address != "local":  # a private Ray ends with us, and this with it
        serve.delete("raybroker")
        if not serve.status().applications:  # others may serve on the same cluster
            serve.shutdown()


def from_file(arguments: dict[str, str]) -> serve.Application:
    """The service for Serve's own configuration files: `args: {settings: /path/to/raybroker.toml}`."""
    return application(settings_file.load(Path(arguments["settings"])))


def application(settings: Settings) -> serve.Application:
    """Replicas that each hold the last nights in memory, as many as the load asks for.

    A replica refuses by itself, with 429, what is beyond `service.requests` (see `service.admission`). Serve would
    answer 503 without a word, so it is told that a replica takes more than that.
    """

    def app() -> FastAPI:  # called in each replica
        aside("raybroker.service.server")
        from raybroker.service.server import build

        return build(settings)

    ingress = serve.ingress(app)()
    return serve.deployment(ingress, name="service", **options(settings.service)).bind()
