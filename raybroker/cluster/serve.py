"""The service on Ray Serve: the same app, in replicas."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import LoggingConfig

from raybroker import settings as settings_file
from raybroker.cluster.actors import aside
from raybroker.cluster.replicas import options
from raybroker.service.ports import free_port
from raybroker.settings import TOKENS_VARIABLE, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


@contextmanager
def started(settings: Settings) -> Iterator[str]:
    """The service, up while the context is open; gives its URL. A busy port moves on to the next free one.

    Where Serve is up already, as after a run on a cluster was killed, it keeps the port that it has.
    """
    own = settings.service
    port = _port_in_use() or free_port(own.host, own.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options=HTTPOptions(host=own.host, port=port), logging_config=QUIET)
    serve.run(application(settings), name="raybroker", route_prefix="/", logging_config=QUIET)
    yield f"http://{own.host}:{port}"
    if settings.ray.address != "local":  # a private Ray ends with us, and this with it
        serve.delete("raybroker")
        if not serve.status().applications:  # others may serve on the same cluster
            serve.shutdown()


def _port_in_use() -> int | None:
    """Where the Serve of this cluster listens; None where there is none."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else int(client.http_config.port)


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
    made = options(settings.service)
    if TOKENS_VARIABLE in os.environ:  # the nodes of a cluster have an environment of their own
        made["ray_actor_options"]["runtime_env"] = {
            "env_vars": {TOKENS_VARIABLE: os.environ[TOKENS_VARIABLE]}
        }
    return serve.deployment(ingress, name="service", **made).bind()
