"""The whole system without Ray, and a person's browser window: what the tests of the page drive."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from raybroker import settings as settings_file
from raybroker.cluster.single import Single
from raybroker.service import server
from raybroker.settings import Settings

MODEL = "transient"
CLASSES = ["supernova", "AGN", "variable star", "bogus"]
TOKENS = {"maria": "first-secret", "tycho": "second-secret"}
OUTPUT = Path(os.environ.get("RAYBROKER_SCREENSHOTS", Path(__file__).parent / "output"))


@dataclass
class System:
    """Workers and trainer turning in a thread, the service in another."""

    url: str
    settings: Settings
    crew: Single
    problems: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def link(self, name: str) -> str:
        return f"{self.url}/open/{server.sessions(self.settings).link(name)}"

    def get(self, path: str, name: str | None = None, **given: Any) -> Any:
        headers = {"Authorization": f"Bearer {TOKENS[name]}"} if name else {}
        answer = httpx.get(f"{self.url}{path}", headers=headers, timeout=30.0, **given)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def snapshot(self) -> int:
        return int(self.get("/models")["models"][0]["snapshot"]["number"])

    def run(self) -> None:
        while not self.ended.is_set():
            try:
                self.crew.step()
            except Exception as error:
                self.problems.append(repr(error))
                return

    def wait(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not true():
            assert not self.problems, self.problems
            assert time.monotonic() < until, "it did not come true"
            time.sleep(0.05)


def settings_of(root: Path, packets: Path, catalogue: Path, **model: Any) -> Settings:
    return settings_file.parse(
        {
            "archive": {"root": str(root)},
            "surveys": {"ztf": {"servers": f"replay:{packets}", "workers": 1}},
            "turn": {"seconds": 0.05, "packets": 40},
            "steps": {"paths": []},
            "catalogues": {
                "mangrove": {"file": str(catalogue), "radius_arcsec": 60, "columns": ["lum_dist"]}
            },
            "models": {MODEL: {"classes": CLASSES, "queries": 12, "oldest_days": 9999, **model}},
            "learning": {"snapshot_seconds": 0.1},
            "mlflow": {"enabled": False},
            "service": {"port": 18620},
        }
    )


@contextlib.contextmanager
def system_of(settings: Settings) -> Iterator[System]:
    """Everything up, with questions open."""
    crew = Single(settings)
    with server.in_thread(settings) as url:
        made = System(url, settings, crew)
        thread = threading.Thread(target=made.run, name="crew", daemon=True)
        thread.start()
        try:
            made.wait(lambda: crew.drained() and len(made.get("/queries")["queries"]) >= 10)
            yield made
        finally:
            made.ended.set()
            thread.join(60.0)
            crew.stop()
    assert made.problems == []


@dataclass
class Visit:
    """A person's browser window. What it asked for and what its console said is kept."""

    page: Any
    system: System
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    forgiven: tuple[str, ...] = ()

    def watch(self) -> None:
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("console", self._hear)

    def _hear(self, message: Any) -> None:
        lost = re.search(r"status of (404|409)", message.text) and message.location.get("url", "").endswith(
            "/claim"
        )
        if message.type in ("error", "warning") and not lost:  # to come too late for a question is no mistake
            self.said.append(f"{message.type}: {message.text} {message.location.get('url', '')}")

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def object(self) -> str:
        """The object on the screen, once it is there."""
        self.page.wait_for_selector("body:not(.old):not(.idle)")
        return self.text("#object")

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)

    def answer(self, key: str) -> str:
        """Answer what is on the screen by a key and wait for the next; the object that was answered."""
        name = self.object()
        self.press(key)
        self.wait(
            "(name) => document.body.classList.contains('idle') || (!document.body.classList.contains('old') "
            "&& document.getElementById('object').textContent !== name)",
            name,
        )
        return name

    def wait(self, true: str, given: Any = None) -> None:
        """Until this JavaScript expression, or function of what is given, is true."""
        self.page.wait_for_function(f"() => {true}" if given is None else true, arg=given)

    def sent(self) -> None:
        """Wait until the server has every answer."""
        self.wait("JSON.parse(localStorage['raybroker.unsent'] ?? '[]').length === 0")

    def picture(self, name: str, **given: Any) -> Path:
        OUTPUT.mkdir(parents=True, exist_ok=True)
        path = OUTPUT / f"{name}.png"
        self.page.screenshot(path=path, **given)
        return path

    def complaints(self) -> list[str]:
        return [said for said in self.said if not any(part in said for part in self.forgiven)]

    def strangers(self) -> list[str]:
        """Addresses that are not of this machine."""
        own = ("http://127.0.0.1:", "data:", "blob:")
        return [url for url in self.asked if not url.startswith(own)]
