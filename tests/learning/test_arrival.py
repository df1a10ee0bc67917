"""What may enter: a share of the stream and no more, by chance and by uncertainty, through a drift."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from raybroker.errors import SettingsError
from raybroker.learning.arrival import MEMORY, RANDOM_PART, All, Floats, Split, by_name

PART = 8_000


def drifting(seed: int = 0) -> Floats:
    """The uncertainties of a stream that is half known, then all new to the model, then well known."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.beta(1, 6, PART), rng.beta(2, 2, PART), rng.beta(1, 30, PART)]) / 2


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("stream", ["drifting", "always unsure", "always sure", "not known", "rising"])
def test_no_more_than_the_share_enters_whatever_comes(share: float, stream: str) -> None:
    uncertainty = {
        "drifting": drifting(),
        "always unsure": np.full(PART, 0.5),
        "always sure": np.zeros(PART),
        "not known": np.full(PART, np.nan),
        "rising": np.linspace(0, 0.5, PART),
    }[stream]
    split = Split(share, 3)
    taken = split.take(uncertainty)
    so_far = np.arange(1, len(taken) + 1)
    assert (np.cumsum(taken) <= share * (so_far + split.memory)).all()
    assert split.memory == max(MEMORY, round(10 / share))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_the_share_is_used_before_and_after_each_drift(share: float) -> None:
    taken = Split(share, 1).take(drifting())
    for part in np.split(taken, 3):
        assert 0.7 * share <= part.mean() <= 1.05 * share


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_what_enters_is_what_the_model_is_least_sure_of_in_each_part_of_a_drift(share: float) -> None:
    stream = drifting()
    taken = Split(share, 1).take(stream)
    for uncertainty, entered in zip(np.split(stream, 3), np.split(taken, 3), strict=True):
        best = np.sort(uncertainty)[-int(share * PART) :].mean()
        by_chance = uncertainty.mean()
        assert uncertainty[entered].mean() > by_chance + 0.65 * (best - by_chance)


def test_a_random_part_enters_however_sure_the_model_is() -> None:
    stream = drifting()
    entry = Split(0.1, 5).decide(stream)
    assert (entry.drawn <= entry.taken).all()
    assert entry.drawn.sum() / entry.taken.sum() == pytest.approx(RANDOM_PART, abs=0.04)
    for uncertainty, drawn in zip(np.split(stream, 3), np.split(entry.drawn, 3), strict=True):
        assert uncertainty[drawn].mean() == pytest.approx(uncertainty.mean(), rel=0.25)
    sure = Split(0.1, 5).decide(np.zeros(PART))
    assert sure.drawn.sum() > 50


def test_what_is_not_known_enters_by_chance_only() -> None:
    split = Split(0.1, 2)
    entry = split.decide(np.full(PART, np.nan))
    assert (entry.drawn == entry.taken).all()
    assert entry.taken.sum() > 50
    assert split.threshold == 1.0


@pytest.mark.parametrize("step", [1, 7, 1_000])
def test_it_does_not_matter_how_the_stream_is_cut(step: int) -> None:
    stream = drifting()[: 3 * PART // 2]
    whole, cut = Split(0.1, 4), Split(0.1, 4)
    parts = [cut.take(stream[i : i + step]) for i in range(0, len(stream), step)]
    assert np.array_equal(np.concatenate(parts), whole.take(stream))


def test_it_goes_on_from_where_it_was_pickled() -> None:
    stream = drifting()
    split = Split(0.1, 4)
    split.take(stream[:PART])
    again = pickle.loads(pickle.dumps(split))
    assert np.array_equal(again.take(stream[PART:]), split.take(stream[PART:]))


def test_the_seed_decides_and_numpys_global_state_does_not() -> None:
    stream = drifting()
    np.random.seed(1)
    first = Split(0.1, 7).take(stream)
    np.random.seed(2)
    assert np.array_equal(Split(0.1, 7).take(stream), first)
    assert not np.array_equal(Split(0.1, 8).take(stream), first)


def test_all_lets_everything_in_as_a_possible_random_pick() -> None:
    entry = by_name("all").decide([0.1, np.nan])
    assert entry.taken.tolist() == entry.drawn.tolist() == [True, True]
    assert isinstance(by_name("all"), All)
    assert by_name("split", 0.2, 3).take([]).tolist() == []


def test_a_wrong_name_or_share_is_said() -> None:
    with pytest.raises(SettingsError, match=r"no arrival 'spilt' \(did you mean 'split'\?\)"):
        by_name("spilt")
    for share in (0.0, 1.5, -0.1):
        with pytest.raises(SettingsError, match="above 0 and at most 1"):
            by_name("split", share)
