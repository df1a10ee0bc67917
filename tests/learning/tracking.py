"""A small MLflow server for tests, which fails when it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl


class Tracking(BaseHTTPRequestHandler):
    """The few calls of MLflow's REST interface that a release makes, or 500 while `server.broken` says so."""

    server: Any

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}"))

    def _answer(self, body: dict[str, Any]) -> None:
        call = self.path.split("?")[0].removeprefix("/api/2.0/mlflow/")
        self.server.calls.append(call)
        failing = self.server.broken(call)
        query = dict(parse_qsl(self.path.partition("?")[2]))
        answer = self.server.refusal if failing else self.server.store.reply(call, body | query)
        failing = failing or self.server.lost(call)
        content = json.dumps(answer).encode()
        self.send_response(404 if failing and self.server.refusal else 500 if failing else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


class Store:
    """What the server remembers: runs, versions and aliases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[str, dict[str, Any]] = {}
        self.versions: list[dict[str, Any]] = []
        self.aliases: dict[str, str] = {}

    def reply(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        return getattr(self, call.replace("/", "_").replace("-", "_"), lambda body: {})(body)

    def experiments_get_by_name(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"experiment": {"experiment_id": "1", "name": "raybroker", "lifecycle_stage": "active"}}

    def runs_create(self, body: dict[str, Any]) -> dict[str, Any]:
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = {"name": body["run_name"], "metrics": 0, "status": "RUNNING"}
        return {"run": self._run(run_id)}

    def runs_get(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"run": self._run(body["run_id"])}

    def runs_search(self, body: dict[str, Any]) -> dict[str, Any]:
        found = [i for i, run in self.runs.items() if f"'{run['name']}'" in body["filter"]]
        return {"runs": [self._run(run_id) for run_id in found]}

    def runs_update(self, body: dict[str, Any]) -> dict[str, Any]:
        self.runs[body["run_id"]]["status"] = body["status"]
        return {"run_info": self._run(body["run_id"])["info"]}

    def runs_log_batch(self, body: dict[str, Any]) -> dict[str, Any]:
        self.runs[body["run_id"]]["metrics"] += len(body["metrics"])
        return {}

    def _run(self, run_id: str) -> dict[str, Any]:
        info = {"run_id": run_id, "run_uuid": run_id, "experiment_id": "1", "status": "RUNNING"}
        return {"info": info | {"artifact_uri": (self.folder / run_id).as_uri()}, "data": {}}

    def registered_models_create(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"registered_model": {"name": body["name"]}}

    def registered_models_get(self, body: dict[str, Any]) -> dict[str, Any]:
        aliases = [{"alias": alias, "version": v} for alias, v in self.aliases.items()]
        return {"registered_model": {"name": body["name"], "aliases": aliases}}

    def registered_models_alias(self, body: dict[str, Any]) -> dict[str, Any]:
        self.aliases[body["alias"]] = body["version"]
        return {}

    def model_versions_search(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"model_versions": [v for v in self.versions if f"'{v['run_id']}'" in body["filter"]]}

    def model_versions_create(self, body: dict[str, Any]) -> dict[str, Any]:
        version = str(len(self.versions) + 1)
        self.versions.append(
            {k: body[k] for k in ("name", "source", "run_id", "tags")} | {"version": version}
        )
        return {"model_version": self.versions[-1]}

    def model_versions_get(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"model_version": self.versions[int(body["version"]) - 1]}

    def told(self, alias: str) -> str:
        """Which run an alias points to."""
        return self.runs[self.versions[int(self.aliases[alias]) - 1]["run_id"]]["name"]


@contextmanager
def tracking(folder: Path) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Tracking)
    server.calls, server.store, server.refusal = [], Store(folder), {}
    server.broken = lambda call: True
    server.lost = lambda call: False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
