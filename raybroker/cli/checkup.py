"""`raybroker check`: the plan of each survey, and everything outside that a run will need, tried once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
from rich.table import Table

from raybroker import surveys
from raybroker.archive import store
from raybroker.cluster import assemble
from raybroker.errors import RaybrokerError
from raybroker.settings import TOKENS_VARIABLE, Settings, tokens
from raybroker.stream.kafka import reach

Tell = Callable[[str], None]


def plan_table(settings: Settings, survey: str) -> Table:
    """The steps of one survey in the order in which they run."""
    made = assemble.pipeline(settings, survey)
    table = Table(title=f"plan of {survey}, {made.digest}", title_justify="left")
    for column in ("step", "kind", "version", "needs", "settings"):
        table.add_column(column)
    for step in made.steps:
        own = ", ".join(f"{key}={_short(value)}" for key, value in step.settings.items())
        table.add_row(step.name, step.kind, str(step.version), ", ".join(step.needs), own)
    return table


def _short(value: object, most: int = 40) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}…"


def problems(settings: Settings, tell: Tell) -> list[str]:
    """A sentence per problem, with its mend; `tell` hears of what is well."""
    checks = [
        ("settings", lambda: assemble.check(settings) or "plans and models can be built"),
        *_streams(settings),
        ("archive", lambda: _archive(settings)),
        ("catalogues", lambda: _catalogues(settings)),
    ]
    checks += [
        ("output", lambda: _output(settings)),
        ("mlflow", lambda: _mlflow(settings)),
        ("tokens", _tokens),
    ]
    found = []
    for name, check in checks:
        try:
            if said := check():
                tell(f"{name}: {said}")
        except (RaybrokerError, OSError, httpx.HTTPError) as error:
            found.append(f"{name}: {error}")
    return found


def _streams(settings: Settings) -> Iterator[tuple[str, Callable[[], str]]]:
    for name in settings.surveys:
        yield f"surveys.{name}", lambda name=name: _stream(settings, name)


def _stream(settings: Settings, name: str) -> str:
    own = settings.surveys[name]  # type: ignore[index]
    if own.servers.startswith(assemble.REPLAY):
        return own.servers
    topics = reach(own.servers, own.kafka)
    wanted = own.topics or list(surveys.load(name).topics)
    return f"Kafka at {own.servers} answers and has {len(topics)} topics; subscribed to {', '.join(wanted)}"


def _archive(settings: Settings) -> str:
    root = settings.archive.root
    store.check(root)
    return f"{root} can be written"


def _catalogues(settings: Settings) -> str:
    for name in settings.catalogues:
        assemble.catalogue(settings, name)
    return f"{', '.join(settings.catalogues)} ready" if settings.catalogues else ""


def _output(settings: Settings) -> str:
    own = settings.output
    if not own.servers:
        return (
            "filters are stored in the archive and sent nowhere (no output.servers)"
            if settings.filters
            else ""
        )
    reach(own.servers, own.kafka)
    return f"Kafka at {own.servers} answers"


def _mlflow(settings: Settings) -> str:
    own = settings.mlflow
    if not own.enabled:
        return "off"
    if not own.tracking_uri.startswith("http"):
        return own.tracking_uri or f"SQLite at {settings.archive.root / 'mlflow.db'}"
    httpx.get(f"{own.tracking_uri.rstrip('/')}/health", timeout=5.0).raise_for_status()
    return f"{own.tracking_uri} answers"


def _tokens() -> str:
    names = sorted(set(tokens().values()))
    return (
        f"labels are taken from {', '.join(names)}"
        if names
        else f"none: set {TOKENS_VARIABLE}=name:token to take labels"
    )
