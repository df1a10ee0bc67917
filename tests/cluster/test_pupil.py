import numpy as np
import pytest

from raybroker.cluster import pupil as module
from raybroker.cluster.pupil import Asked, Pupil
from raybroker.learning.labels import Label
from raybroker.learning.shortlist import Candidate
from raybroker.settings import ModelSettings

COLUMNS = ("rise", "colour")


def made() -> Pupil:
    return Pupil("transient", ModelSettings(classes=["AGN", "SN"], queries=4), COLUMNS)


def candidate(number: int) -> Candidate:
    rise, colour = np.random.default_rng(number).normal(size=2)
    return Candidate("ztf", f"ztf:{number}", f"ztf:object{number}", 60000.0, {"rise": rise, "colour": colour})


def label(number: int, name: str | None, **more: object) -> Label:
    given = {"event_id": f"event-{number}", "survey": "ztf", "alert_id": f"ztf:{number}", "label": name}
    given |= {"object_id": f"ztf:object{number}", "model": "transient", "source": "test", "who": "ann"}
    return Label.of(given | {"when": 0.0} | more)


def test_a_long_night_of_asking_fits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKED", 12)
    pupil = made()
    for number in range(60):
        pupil.consider([candidate(n) for n in range(5 * number, 5 * number + 5)], 60000.0)
        for query in pupil.choose(number).opened[:2]:
            answer = label(int(query.alert_id.removeprefix("ztf:")), "SN")
            asked = pupil.known(answer)
            assert asked is not None
            pupil.hear(answer)
            pupil.learn(answer, asked)
        assert len(pupil.asked) <= 12
        assert {query.alert_id for query in pupil.shortlist.open} <= pupil.asked.keys()


def test_what_the_pool_holds_need_not_be_asked_of_the_archive() -> None:
    pupil, one = made(), candidate(1)
    pupil.consider([one], 60000.0)
    assert pupil.known(label(1, "SN")) == Asked(one.features, one.mjd)
    assert pupil.known(label(1, "SN", alert_id="ztf:older")) is None


def test_relearning_finds_the_features_of_what_was_learned_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKED", 0)
    pupil, other = made(), made()
    for number in range(30):
        told = label(number, "AGN" if number % 2 else "SN")
        asked = Asked(candidate(number).features, 60000.0)
        for one in (pupil, other) if number else (pupil,):
            one.hear(told)
            one.learn(told, asked)
    withdrawal = label(99, None, alert_id="ztf:0", replaces="event-0", withdrawn=True)
    pupil.hear(withdrawal)
    pupil.relearn(withdrawal, pupil.taught["ztf:0"])
    assert pupil.frozen.digest() == other.frozen.digest()
