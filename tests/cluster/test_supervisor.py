import time
from typing import Any

import pytest

from raybroker.cluster import supervisor
from raybroker.cluster.supervisor import Seat, Supervisor
from raybroker.settings import parse


def test_a_trainer_that_learns_all_its_labels_again_is_given_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Supervisor(parse({"surveys": {"ztf": {"workers": 1}}}))
    asked = time.monotonic() - 1_000.0
    worker, trainer = (
        Seat(name, survey, actor=object(), asked=asked, answer=1)
        for name, survey in (("ztf-0", "ztf"), ("trainer", ""))
    )
    made.seats = [worker, trainer]
    killed: list[Any] = []
    monkeypatch.setattr(supervisor.ray, "kill", killed.append)
    made._overdue()
    assert len(killed) == 1
    assert worker.actor is None
    assert trainer.actor is not None
