"""The documentation tells the truth: its links lead somewhere, its settings are those of the code, its blocks run."""

from __future__ import annotations

import json
import re
import tomllib
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import numpy as np
import pyarrow as pa
import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from raybroker import checks, simulate, surveys
from raybroker import settings as settings_file
from raybroker.cli.template import template
from raybroker.cluster.single import Single
from raybroker.filters import where
from raybroker.learning import strategies
from raybroker.pipeline import plan
from raybroker.settings import Settings
from raybroker.step import Step, discover
from raybroker.stream.replay import packets
from raybroker.synthetic import Sky

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `([\w.]+)` \| (?:`(.*?)`|required) \|", re.MULTILINE)
FILE = re.compile(r"\A# (\S+\.py)\n")


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=name_of(page)) for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text)
    local = [target for pair in targets for target in pair if target and not target.startswith("http")]
    missing = [target for target in local if not (page.parent / target.partition("#")[0]).exists()]
    assert missing == []


def inner(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The table behind an annotation, and whether it is one of many, by name."""
    if get_origin(annotation) is Annotated:
        return inner(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return inner(get_args(annotation)[1])[0], True
    if get_origin(annotation) in (types.UnionType, list):
        return None, False
    return (
        (annotation, False)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel)
        else (None, False)
    )


def keys(table: type[BaseModel], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its default."""
    for name, field in table.model_fields.items():
        below, named = inner(field.annotation)
        if below:
            yield from keys(below, f"{before}{name}.{'NAME.' if named else ''}")
        else:
            yield before + name, field.default


def shown(default: Any) -> str:
    """A default as the page writes it; empty where the key is required."""
    return "" if default is PydanticUndefined else json.dumps(default, default=str)


def test_the_settings_page_has_every_key_with_its_default() -> None:
    told = dict(ROW.findall((DOCS / "settings.md").read_text(encoding="utf-8")))
    assert told == {key: shown(default) for key, default in keys(Settings)}


def test_the_settings_page_has_every_step_with_its_settings() -> None:
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:cut|enrich|filter) \| (.*?) \|", text, re.MULTILINE))
    known = discover()
    assert set(rows) == set(known)
    assert {name: set(re.findall(r"`(\w+) =", row)) for name, row in rows.items()} == {
        name: set(step.settings) for name, step in known.items()
    }


@pytest.mark.parametrize("page", pages_with("toml"))
def test_settings_in_the_pages_are_accepted(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", "secret")
    for text in blocks(page, "toml"):
        settings_file.parse(tomllib.loads(text))


def steps_of(page: Path, folder: Path) -> dict[str, Step]:
    """The steps that a page writes into files: its Python blocks that begin with the name of one."""
    for text in blocks(page, "python"):
        if found := FILE.match(text):
            path = folder / found[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    built_in = discover()
    return {name: step for name, step in discover([folder / "steps"]).items() if name not in built_in}


def with_columns(batch: pa.RecordBatch, needed: Step, steps: dict[str, Step]) -> pa.RecordBatch:
    """The batch and what the steps before this one add to it."""
    known = discover() | steps
    before = [known[name] for name in needed.needs if name in known]
    return plan(before, batch.schema, "ztf").run(batch).kept if before else batch


PAGES_WITH_STEPS = [page for page in PAGES if "\n# steps/" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES_WITH_STEPS, ids=name_of)
def test_steps_in_the_pages_conform(page: Path, tmp_path: Path, ztf_packets) -> None:  # type: ignore[no-untyped-def]
    batch = surveys.load("ztf").decode(ztf_packets("selected_20231018")[:60]).batch
    steps = steps_of(page, tmp_path)
    assert steps
    for step in steps.values():
        checks.check_step(step, with_columns(batch, step, steps))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the tutorial leaves it: a simulated night in sky/, and the archive of a run over it."""
    place = tmp_path_factory.mktemp("docs")
    simulate.write_night(place / "sky", simulate.night(Sky.for_night(1, 120), 120, "20260901"))
    tree = {
        "archive": {"root": str(place / "raybroker-data")},
        "surveys": {"ztf": {"servers": f"replay:{place / 'sky'}", "workers": 1}},
        "steps": {"paths": []},
    }
    crew = Single(settings_file.parse(tree))
    while not crew.drained():
        crew.step()
    crew.stop()
    return place


NEEDS_A_RUN = ("httpx", "confluent_kafka")


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_in_the_pages_runs(
    page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sky", "raybroker-data"):
        (tmp_path / name).symlink_to(folder / name)
    steps_of(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for text in blocks(page, "python"):
        code = compile(text, f"{name_of(page)}", "exec")
        if not text.startswith("# steps/") and not any(f"import {name}" in text for name in NEEDS_A_RUN):
            exec(code, {"__name__": "page"})


def test_the_archive_page_gives_every_packet_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(blocks(DOCS / "archive.md", "python")[0], found)
    sent = Counter(packet.value for packet in packets(folder / "sky"))
    assert Counter(found["packet_of"](found["ztf"], row) for row in found["rows"]) == sent
    assert "'scored'" in capsys.readouterr().out


def test_the_strategy_of_the_page_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps_of(DOCS / "how-to" / "strategy.md", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    mixture = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]])
    features = pa.table({"basic.magnitude": [18.0, 18.0, 20.0]})
    pool = strategies.Pool(("a", "b", "c"), ("x", "y", "z"), mixture[None], mixture, features)
    ask = strategies.by_name("strategies:bright_and_unsure")
    assert ask(pool, 2, np.random.default_rng(0)).tolist() == [1, 0]


@pytest.mark.parametrize("page", pages_with("toml"))
def test_filters_in_the_pages_fit_the_columns(page: Path, tmp_path: Path) -> None:
    known = discover() | steps_of(page, tmp_path)
    parsed = [settings_file.parse(tomllib.loads(text)) for text in blocks(page, "toml")]
    types_of = {f.name: f.type for f in surveys.load("ztf").schema} | {n: s.gives for n, s in known.items()}
    catalogues = {name for one in parsed for name in (*one.catalogues, *one.models)}
    for name, own in [(n, f) for one in parsed for n, f in one.filters.items() if f.where]:
        step = where.where(name, own.where)
        if not catalogues & set(step.needs):
            where.check(step, types_of)


@pytest.mark.parametrize("survey", ["ztf", "rubin", "fink"])
def test_what_init_writes_is_accepted(survey: str) -> None:
    settings_file.parse(tomllib.loads(template(survey)))
