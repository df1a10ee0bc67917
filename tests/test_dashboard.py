"""Every query of the dashboard and of the alert rules names metrics, labels and values that a real run gives."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests import watched

OPERATIONS = Path(__file__).parents[1] / "docs" / "operations"
OWN = {"job", "instance"}  # labels that Prometheus adds
NAME = re.compile(r"\braybroker_[a-z_]+\b")
SELECTOR = re.compile(r"\b(raybroker_[a-z_]+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\bby\s*\(([^)]*)\)")
SHOWN = re.compile(r"\{\{\s*(?:\$labels\.)?([a-z_]+)\s*\}\}")
Samples = dict[str, list[dict[str, str]]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads((OPERATIONS / "grafana.json").read_text())["panels"])


def rules() -> list[dict[str, Any]]:
    return list(yaml.safe_load((OPERATIONS / "alerts.yaml").read_text())["groups"][0]["rules"])


def queries() -> Iterator[tuple[str, str, str]]:
    """Where a query stands, the query, and the text that shows its labels."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield f"panel '{panel['title']}'", target["expr"], target["legendFormat"]
    for rule in rules():
        yield f"rule {rule['alert']}", rule["expr"], rule["annotations"]["summary"]


def problems(query: str, shown: str, samples: Samples) -> list[str]:
    """What a query asks for that is not there."""
    names = set(NAME.findall(query))
    bad = [f"no metric {name}" for name in sorted(names - set(samples))]
    known = [sample for name in names & set(samples) for sample in samples[name]]
    labels = {label for sample in known for label in sample} | OWN
    asked = [label.strip() for group in GROUPING.findall(query) for label in group.split(",")]
    bad += [f"no label {label}" for label in [*asked, *SHOWN.findall(shown)] if label not in labels]
    grouped = set(asked) if asked else labels
    bad += [f"{label} is shown but not kept" for label in SHOWN.findall(shown) if label not in grouped | OWN]
    for name, matchers in SELECTOR.findall(query):
        for label, value in MATCHER.findall(matchers):
            if not any(sample.get(label) == value for sample in samples.get(name, ())):
                bad.append(f"{name} has no {label}={value}")
    return bad


def text_of(app: Any, *paths: str) -> str:
    async def ask() -> str:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [(await client.get(path)).text for path in paths][-1]

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def samples(ztf_packets: Any, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """The labels of every sample that a real run gives, by the sample's name."""
    settings = watched.settings_of(tmp_path_factory.mktemp("watched"), ztf_packets("public_20191231"))
    app = watched.served(settings)
    app.get("/broken")(lambda: 1 / 0)
    text = text_of(app, "/alerts", "/broken", "/metrics")
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


@pytest.mark.parametrize(
    ("where", "query", "shown"), [pytest.param(*one, id=f"{i}: {one[0]}") for i, one in enumerate(queries())]
)
def test_what_is_asked_is_there(where: str, query: str, shown: str, samples: Samples) -> None:
    if query.startswith("up{"):
        assert query == 'up{job="raybroker"} == 0'  # Prometheus's own; the job is prometheus.yaml's
        return
    assert NAME.findall(query), f"{where} asks for nothing of ours"
    assert not problems(query, shown, samples), f"{where}: {query}"


def test_a_renamed_metric_label_or_value_is_seen(samples: Samples) -> None:
    query = 'sum by (survey) (rate(raybroker_alerts_total{outcome="dead"}[5m]))'
    assert not problems(query, "{{ $labels.survey }}", samples)
    for wrong, said in [
        (query.replace("alerts_total", "alert_total"), "no metric raybroker_alert_total"),
        (query.replace("(survey)", "(name)"), "no label name"),
        (query.replace("dead", "died"), "raybroker_alerts_total has no outcome=died"),
    ]:
        assert said in problems(wrong, "", samples)
    assert "outcome is shown but not kept" in problems(query, "{{outcome}}", samples)


def test_every_number_of_ours_is_on_the_dashboard_or_in_a_rule(samples: Samples) -> None:
    asked = {name for _, query, _ in queries() for name in NAME.findall(query)}
    plain = {name for name in samples if name.startswith("raybroker_")}
    beside = {"raybroker_http_seconds_sum", "raybroker_http_seconds_count", "raybroker_http_seconds_created"}
    beside |= {"raybroker_http_requests_created", "raybroker_supervisor_start_timestamp_seconds"}
    assert plain - asked == beside & plain


def test_every_rule_has_its_line_in_the_handbook() -> None:
    text = (OPERATIONS.parent / "operations.md").read_text()
    assert [rule["alert"] for rule in rules() if f"`{rule['alert']}`" not in text] == []
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_prometheus_is_told_of_the_rules_and_of_the_job_that_they_name() -> None:
    told = yaml.safe_load((OPERATIONS / "prometheus.yaml").read_text())
    assert told["rule_files"] == ["alerts.yaml"]
    assert [job["job_name"] for job in told["scrape_configs"]] == ["raybroker"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())
