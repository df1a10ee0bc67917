"""`raybroker status`: the same numbers that Prometheus gets, as tables or JSON, with or without a service."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from raybroker.cli import asking, watching
from raybroker.cluster import tables
from raybroker.cluster.heartbeat import Heartbeat
from raybroker.cluster.tally import Tally
from raybroker.cluster.worker import Report
from tests.cli.conftest import Bridge
from tests.service.conftest import Station, open_station

TURN = Report(
    outcomes={"scored": 75, "rejected": 25},
    reasons={"rejected: real": 25},
    sent={"raybroker.northern": 1234},
    expired=56,
    lag=789,
    seconds={"commit": 0.1, "pipeline": 0.3, "step:basic": 0.2},
    cpu_seconds={"pipeline": 0.25},
)


@pytest.fixture
def station(small_archive: Path, tmp_path: Path) -> Station:
    """A service beside a supervisor that is well."""
    tally = Tally()
    tally.add("ztf-0", TURN)
    seats = {"ztf-0": {"process": 7, "deaths_in_a_row": 0}, "ztf-1": {"process": 0, "deaths_in_a_row": 2}}
    told = {
        "numbers": tally.gauges.told(),
        "lags": tally.lags,
        "partition_lags": {
            "ztf": {"ztf_20231018": {str(n): 1000 + n for n in range(7)}, "ztf_20231017": {"0": 0}}
        },
        "seats": seats,
        "sizes": {"ztf": {"workers": 2}},
    }
    heart = Heartbeat(tmp_path)
    heart.beat({**told, "troubles": {"ztf-1": "died 2 times"}})
    return open_station(
        small_archive, status=heart.read, problems=heart.problems, tables=tables.Tables(small_archive)
    )


def looked(station: Station, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is found through the service."""
    client = asking.Client(
        "http://test", http=httpx.Client(transport=Bridge(station), base_url="http://test")
    )
    monkeypatch.setattr(asking, "Client", lambda url: client)
    return watching.look("http://test", Path("nowhere.toml"))


def shown(told: dict[str, Any], **how: bool) -> str:
    out = Console(file=io.StringIO(), width=200)
    watching.show(lambda: told, out, **how)
    return out.file.getvalue()  # type: ignore[attr-defined]


def line_of(text: str, *words: str) -> str:
    """The line that has all these words."""
    (found,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return found


def test_every_table_is_there_with_its_numbers(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(looked(station, monkeypatch))
    for number in ("10.0", "789", "1 of 2", "56", "1,234"):
        assert number in line_of(text, "ztf", "1 of 2")
    assert [word for word in line_of(text, "pipeline").split() if word[0].isdigit()] == ["3.000", "2.500"]
    assert "2.000" in line_of(text, "  basic")
    assert "5" in line_of(text, "transients")  # open questions; there is no snapshot
    assert line_of(text, "ztf/alerts")
    assert "ztf-1: died 2 times" in text
    assert text.count("scored") == 2  # nights


def test_the_fullest_partitions_are_there_and_no_others(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(looked(station, monkeypatch))
    found = [line.split() for line in text.splitlines() if "ztf_2023" in line]
    assert [(row[3], row[5], row[7]) for row in found] == [
        ("ztf_20231018", str(n), f"1,00{n}") for n in (6, 5, 4, 3, 2)
    ]
    nobody_reads = shown({"partition_lags": {"ztf": {"ztf_20231017": {"0": 0}}}, "nights": []})
    assert "where packets wait" not in nobody_reads


def test_json_has_all_of_it_on_one_line(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads(shown(looked(station, monkeypatch), as_json=True))
    assert told["numbers"]["surveys"]["ztf"]["sent"] == {"raybroker.northern": 1234}
    assert told["problems"] == ["ztf-1: died 2 times"]
    assert told["archive"]["tables"]["ztf/alerts"]["files"] > 0


def test_where_nothing_answers_the_archive_is_read(small_archive: Path, tmp_path: Path) -> None:
    settings = tmp_path / "raybroker.toml"
    settings.write_text(f'[archive]\nroot = "{small_archive}"\n')
    told = watching.look("http://127.0.0.1:9", settings)
    assert "nothing answers" in told["problems"][0]
    assert "never heard" in told["problems"][1]
    text = shown(told)
    assert "120" in line_of(text, "scored")
    assert line_of(text, "ztf/alerts")
    with pytest.raises(asking.SilentError):
        watching.look("http://127.0.0.1:9", tmp_path / "nowhere.toml")


def test_a_proxys_own_error_is_a_problem() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(502, text="bad gateway"))
    client = asking.Client("http://test", http=httpx.Client(transport=transport, base_url="http://test"))
    assert client.problems() == ["bad gateway (HTTP 502)"]


def test_who_watches_goes_on_when_the_service_is_away_for_a_moment() -> None:
    def away() -> dict[str, Any]:
        raise asking.SilentError("nothing answers")

    assert watching._again(away).plain == "nothing answers"
