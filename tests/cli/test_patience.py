"""A run for cron waits for what is away, and not for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from raybroker.cli.running import ONCE_SECONDS, Patience


def crew(received: int, **troubles: str) -> Any:
    return SimpleNamespace(troubles=troubles, tally=SimpleNamespace(received=received))


def test_a_trouble_that_lasts_ends_the_run_and_is_told() -> None:
    now = [0.0]
    patience = Patience(lambda: now[0])
    assert not patience.over(crew(5, ztf="disk full"))
    now[0] = ONCE_SECONDS - 1
    assert not patience.over(crew(5, ztf="disk full"))
    now[0] = ONCE_SECONDS
    assert patience.over(crew(5, ztf="disk full"))
    assert patience.trouble == "ztf: disk full"


def test_who_receives_or_has_no_trouble_is_given_time() -> None:
    now = [0.0]
    patience = Patience(lambda: now[0])
    for received, troubles in ((5, {"ztf": "disk full"}), (6, {"ztf": "disk full"}), (6, {})):
        assert not patience.over(crew(received, **troubles))
        now[0] += ONCE_SECONDS
    assert not patience.over(crew(6, ztf="disk full"))
