"""The service's HTTP API from the command line, and the counts that `raybroker status` shows."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
from rich.markup import escape
from rich.table import Table

from raybroker.archive import store
from raybroker.archive.lookup import Lookup
from raybroker.errors import RaybrokerError, SettingsError, UnknownError
from raybroker.places import Place
from raybroker.service.view import OUTCOMES, counts


class SilentError(RaybrokerError):
    """Nothing answers there."""


class TakenError(RaybrokerError):
    """HTTP 409: somebody else has it, or it is answered."""


class Client:
    """The service at one URL, with one person's token."""

    def __init__(self, url: str, token: str = "", http: httpx.Client | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = http or httpx.Client(base_url=self.url, headers=headers, timeout=30.0)

    def get(self, path: str, **query: Any) -> Any:
        """The JSON that a GET gives."""
        return self._answer(
            lambda: self._http.get(path, params={k: v for k, v in query.items() if v not in ("", None)})
        )

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that a POST gives."""
        return self._answer(lambda: self._http.post(path, json=body))

    def delete(self, path: str) -> Any:
        """The JSON that a DELETE gives."""
        return self._answer(lambda: self._http.delete(path))

    def problems(self) -> list[str]:
        """What `GET /health` says is wrong; then it answers 503, which is no error here."""
        response = self._response(lambda: self._http.get("/health"))
        try:
            return list(response.json()["problems"])
        except (ValueError, KeyError):  # somebody before the service says it, such as a proxy
            return [_message(response)]

    def _response(self, ask: Any) -> httpx.Response:
        try:
            return ask()
        except httpx.TransportError as error:
            raise SilentError(f"nothing answers at {self.url} ({error}); is `raybroker run` on?") from None

    def _answer(self, ask: Any) -> Any:
        response = self._response(ask)
        if response.is_error:
            kind = TakenError if response.status_code == 409 else RaybrokerError
            raise kind(_message(response))
        return response.json()

    def label(
        self,
        alert_id: str,
        label: str,
        model: str = "",
        query: dict[str, Any] | None = None,
        source: str = "cli",
    ) -> str:
        """Send one label; a sentence about what became of it."""
        if not model and not self.raw_classes():
            model = self.only_model()
        body: dict[str, Any] = {"event_id": uuid.uuid4().hex, "alert_id": alert_id, "source": source}
        body |= {"model": model or None, "label": None if label == "?" else label}
        if query:
            body |= {"query_id": query["query_id"], "snapshot": query["snapshot"]}
        answer = self.post("/labels", body)
        said = label if label != "?" else "not told"
        of_model = f" for {answer['model']}" if answer["model"] else ""
        return f"{alert_id} is {said}{of_model}, says {answer.get('who', 'you')}"

    def models(self) -> dict[str, dict[str, Any]]:
        """What `GET /models` tells, by name."""
        return {model["name"]: model for model in self.get("/models")["models"]}

    def raw_classes(self) -> list[str]:
        """What may be said of an alert for several models at once; empty: each has its own classes."""
        return next((model["raw"] for model in self.models().values() if model.get("raw")), [])

    def only_model(self) -> str:
        """The model, where there is one."""
        names = list(self.models())
        if len(names) != 1:
            raise SettingsError(f"which model? --model is one of {', '.join(names) or 'none'}")
        return names[0]


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        body = {}
    said = body.get("error") or body.get("detail") or response.text[:200]
    return f"{said} (HTTP {response.status_code})"


def archived(root: Place) -> dict[str, Any]:
    """The same counts by survey, outcome and reason, read from the archive."""
    lookup = Lookup(root)
    names = lookup.surveys() if store.exists(root) else []
    if not names:
        raise UnknownError(f"nothing runs, and the archive at {root} is empty")
    totals = {
        (name, None, row["outcome"], row["reason"]): row["alerts"]
        for name in names
        for row in lookup.counts(name)
    }
    return {"nights": counts(totals)}


def status_table(found: dict[str, Any]) -> Table:
    """The counts as a table: by survey and night, what was received and what became of it."""
    table = Table()
    for column in ("survey", "night", "outcome", "reason"):
        table.add_column(column)
    table.add_column("alerts", justify="right")
    for line in found["nights"]:
        night = str(line["night"] or ("unknown" if "total" in found else "all"))
        table.add_row(line["survey"], night, "[bold]received[/]", "", f"[bold]{line['received']:,}[/]")
        for outcome in OUTCOMES:
            if line[outcome]:
                table.add_row("", "", outcome, "", f"{line[outcome]:,}")
            for reason, count in line["reasons"].get(outcome, {}).items():
                table.add_row("", "", "", escape(reason[:90]), f"{count:,}")
    return table
