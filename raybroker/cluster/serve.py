"""The service on Ray Serve: the same app, in replicas."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from raybroker.service.server import build, free_port
from raybroker.settings import Settings

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
        serve.shutdown()


def application(settings: Settings) -> serve.Application:
    """One replica to begin with: it holds the last nights in memory. Requests beyond the queue get 503 at once."""

    def app() -> FastAPI:  # called in each replica
        return build(settings)

    ingress = serve.ingress(app)()
    return serve.deployment(
        ingress,
        name="service",
        num_replicas=1,
        max_ongoing_requests=64,
        max_queued_requests=256,
        ray_actor_options={"num_cpus": 0.2},
    ).bind()
