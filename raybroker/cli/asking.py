"""`raybroker status` and `raybroker label`: the service's HTTP API from the command line."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raybroker import settings as settings_file
from raybroker.archive.lookup import Lookup
from raybroker.errors import RaybrokerError, SettingsError, UnknownError
from raybroker.service.view import OUTCOMES, counts


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

    def _answer(self, ask: Any) -> Any:
        try:
            response = ask()
        except httpx.TransportError as error:
            raise RaybrokerError(f"nothing answers at {self.url} ({error}); is `raybroker run` on?") from None
        if response.is_error:
            raise RaybrokerError(_message(response))
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
        model = model or self._only_model()
        body = {"event_id": uuid.uuid4().hex, "alert_id": alert_id, "model": model, "source": source}
        body["label"] = None if label == "?" else label
        if query:
            body |= {"query_id": query["query_id"], "snapshot": query["snapshot"]}
        answer = self.post("/labels", body)
        return f"{alert_id} is {label if label != '?' else 'not told'} for {model}, says {answer.get('who', 'you')}"

    def _only_model(self) -> str:
        names = [model["name"] for model in self.get("/models")["models"]]
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


def session(desk: Client, model: str, console: Console) -> None:
    """Ask about the list to label, one by one, until it is empty or the person leaves."""
    model = model or desk._only_model()
    classes = next(found["classes"] for found in desk.get("/models")["models"] if found["name"] == model)
    keys = {str(i): name for i, name in enumerate(classes, 1)} | {"?": "?"}
    told = "  ".join(f"[bold]{key}[/] {name}" for key, name in keys.items() if key != "?")
    skipped: set[str] = set()
    while query := next(
        (q for q in desk.get("/queries", model=model)["queries"] if q["query_id"] not in skipped), None
    ):
        console.print(
            f"\n[bold]{query['alert_id']}[/]  {query['reason']}\n{desk.url}/?alert={query['alert_id']}"
        )
        answer = console.input(f"{told}  [bold]?[/] can't tell  [bold]s[/] skip  [bold]q[/] quit › ").strip()
        if answer == "q":
            return
        if answer in keys:
            console.print(desk.label(query["alert_id"], keys[answer], model, query))
        elif answer == "s":
            skipped.add(query["query_id"])
        else:
            console.print(f"'{answer}' is none of the keys")
    console.print("nothing more to label now")


def status(url: str, settings: Path) -> dict[str, Any]:
    """What the service says, or if it does not answer, what the archive holds."""
    try:
        return dict(Client(url).get("/status"))
    except RaybrokerError:
        if not settings.exists():
            raise
    return archived(settings_file.load(settings).archive.root)


def archived(root: Path) -> dict[str, Any]:
    """The same counts by survey, outcome and reason, read from the archive."""
    lookup = Lookup(root)
    names = lookup.surveys() if root.exists() else []
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
