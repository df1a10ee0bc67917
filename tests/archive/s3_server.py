"""An S3 server of this machine for tests: moto's, in a process of its own, on a free port.

`python s3_server.py PORT` serves until it is killed. One request changes the store at a time: moto looks whether a key
is there and writes it in two steps, so two writers at once would both be told that they were first.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
SECONDS = 60.0  # to start; it takes about two


def _one_at_a_time(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """The app, for which each request is one step; the bodies are read before, beside one another."""
    lock = threading.Lock()

    def served(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        length = environ.get("CONTENT_LENGTH")
        if length:
            environ["wsgi.input"] = BytesIO(environ["wsgi.input"].read(int(length)))
        with lock:
            return app(environ, start)

    return served


def serve(port: int) -> None:
    """Serve until killed; request lines go to standard output, for tests that count them."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, run_simple

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open, as S3's do

        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            sys.stdout.write(
                f"{self.command} {self.path} {int(code)}\n"
            )  # in one piece, beside other threads'
            sys.stdout.flush()

    app = _one_at_a_time(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", port, app, threaded=True, request_handler=Handler)


class S3Server:
    """The server as its test sees it: the environment that leads to it, and the requests that it had."""

    def __init__(self, port: int, log: Path) -> None:
        self.url, self.log = f"http://127.0.0.1:{port}", log
        self.environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}

    def make_bucket(self, name: str) -> str:
        """A new bucket's URL."""
        request = urllib.request.Request(f"{self.url}/{name}", data=b"", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        return f"s3://{name}"

    def requests(self) -> list[str]:
        """Every request so far: method, path, status."""
        return self.log.read_text().splitlines()


@contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """The server, started and at the end killed; its log is in `folder`."""
    port = _free_port()
    with (folder / "s3.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, str(port)], stdout=log, stderr=subprocess.STDOUT, env={**os.environ}
        )
    try:
        _wait(port, process, folder / "s3.log")
        yield S3Server(port, folder / "s3.log")
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the S3 server did not start:\n{log.read_text()}")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
