"""Imports go down the floors only, and each outside package stays where it belongs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"alerts", "step", "settings", "errors", "places"},
    {"surveys", "cuts", "crossmatch", "features", "scores", "filters"},
    {"pipeline", "checks", "simulate", "synthetic"},
    {"stream", "archive", "learning"},
    {"cluster", "service", "protocols"},
    {"cli"},
]
STRANGERS = [1, 3]  # floors whose rooms do not know each other
HOMES = {
    "confluent_kafka": {"stream"},
    "mlflow": {"learning/registry.py"},
    "modAL": {"learning/strategies.py"},
    "river": {"learning", "scores"},
    "coniferest": {"learning/outliers.py"},
    "sklearn": {"learning", "protocols"},
    "deltalake": {"archive"},
    "obstore": {"archive/store.py"},
    "ray": {"cluster/supervisor.py", "cluster/serve.py", "cluster/batch.py"},
}
FILES = sorted((ROOT / "raybroker").rglob("*.py"))


def floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def problems(file: Path, found: set[str]) -> list[str]:
    path = file.relative_to(ROOT / "raybroker")
    room = path.parts[0].removesuffix(".py")
    bad = []
    for name in sorted(found):
        package, _, rest = name.partition(".")
        if package in HOMES and not any(str(path).startswith(home) for home in HOMES[package]):
            bad.append(f"{path} imports {package}, which belongs to {HOMES[package]}")
        other = rest.partition(".")[0]
        if package == "raybroker" and other and other != room and any(other in rooms for rooms in FLOORS):
            here, there = floor(room), floor(other)
            if there > here or (there == here and here in STRANGERS):
                bad.append(f"{path} (floor {here}) imports {other} (floor {there})")
    return bad


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down_only(file: Path) -> None:
    if file.name == "__init__.py" and file.parent.name == "raybroker":
        return
    assert problems(file, imports(file)) == []


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("alerts.py", {"raybroker.pipeline"}),
        ("cuts/quality.py", {"raybroker.features.basic"}),
        ("archive/table.py", {"raybroker.stream.kafka"}),
        ("cluster/worker.py", {"ray"}),
        ("learning/learner.py", {"mlflow.pyfunc"}),
    ],
)
def test_the_floors_test_sees_an_import_that_goes_wrong(path: str, found: set[str]) -> None:
    assert problems(ROOT / "raybroker" / path, found)
