"""A challenger takes over when it has proven better, and chance alone does not make it so."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from raybroker.learning.compiled import Floats
from raybroker.learning.promotion import Contest

EQUAL = (1.0, 1.0)
BETTER = (1.5, 0.5)  # by 0.13 nats


def losses(seed: int, labels: int, noises: Sequence[float]) -> list[Floats]:
    """The log-losses of configurations that know the true log-odds of a rare class up to some noise."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(-1.5, 1.5, labels)
    truth = rng.random(labels) < 1 / (1 + np.exp(-odds))
    said = [(500 / (1 + np.exp(-odds - rng.normal(0, noise, labels))) + 1) / 502 for noise in noises]
    return [-np.log(np.where(truth, p, 1 - p)) for p in said]


def promoted_at(contest: Contest, own: Floats, other: Floats) -> int | None:
    """After how many labels the challenger is promoted; None: never."""
    for i, (first, second) in enumerate(zip(own, other, strict=True), 1):
        contest.hear({"own": first, "wide": second})
        if contest.verdict():
            return i
    return None


def plainly_at(own: Floats, other: Floats) -> int | None:
    """The same for two standard errors at every label from the 50th: what must not be done."""
    better = own - other
    for n in range(50, len(better)):
        if better[:n].mean() > 2 * better[:n].std(ddof=1) / math.sqrt(n):
            return n
    return None


def test_chance_does_not_promote_though_it_is_asked_at_every_label() -> None:
    nights = [losses(seed, 500, EQUAL) for seed in range(80)]
    promoted = [promoted_at(Contest("own", ["wide"]), *night) for night in nights]
    plainly = [plainly_at(*night) for night in nights]
    assert sum(at is not None for at in promoted) <= 0.05 * len(nights)
    assert sum(at is not None for at in plainly) >= 8


def test_a_better_challenger_is_promoted_and_a_worse_one_never() -> None:
    nights = [losses(seed, 600, BETTER) for seed in range(12)]
    found = [promoted_at(Contest("own", ["wide"]), *night) for night in nights]
    assert all(at is not None and at >= 50 for at in found)
    assert 150 < np.median([at for at in found if at]) < 350
    assert [promoted_at(Contest("own", ["wide"]), worse, good) for good, worse in nights] == [None] * 12


def test_rare_blunders_count_in_full_against_a_challenger() -> None:
    """Better by 0.15 in 49 labels of 50, and sure of the wrong class in the last: the evidence clips, the mean does not."""
    contest = Contest("own", ["wide"], risk=0.5)
    for i in range(3_000):
        contest.hear({"own": 0.5, "wide": 9.0 if i % 50 == 49 else 0.35})
    [duel] = contest.standing()
    assert duel.evidence > duel.wanted
    assert duel.better < 0
    assert contest.verdict() is None


def test_before_the_least_number_of_labels_nothing_is_decided() -> None:
    contest = Contest("own", ["wide"], least=80)
    verdicts = []
    for i in range(100):
        contest.hear({"own": 2.0, "wide": 0.1 + i % 3 / 100})
        verdicts.append(contest.verdict())
    assert verdicts.index("wide") == 79


def test_only_common_labels_count() -> None:
    contest = Contest("own", ["wide", "deep"])
    for _ in range(60):
        contest.hear({"own": 1.0, "wide": math.nan, "deep": 0.9})
        contest.hear({"wide": 0.1, "deep": 0.9})
        contest.hear({"own": 1.0, "wide": math.inf})
    assert [duel.labels for duel in contest.standing()] == [0, 60]
    assert contest.standing()[1].better == pytest.approx(0.1)


def test_of_several_that_won_the_one_with_most_evidence_is_named() -> None:
    contest = Contest("own", ["wide", "deep", "bad"])
    for i in range(300):
        noise = i % 5 / 20
        contest.hear({"own": 1.0, "wide": 0.7 + noise, "deep": 0.3 + noise, "bad": 1.2 + noise})
    assert [duel.won for duel in contest.standing()] == [True, True, False]
    assert contest.verdict() == "deep"


def test_after_a_promotion_the_counts_begin_anew_and_the_old_champion_challenges() -> None:
    contest = Contest("own", ["wide", "deep"])
    for i in range(300):
        contest.hear({"own": 1.0, "wide": 0.3 + i % 2 / 10, "deep": 1.0})
    contest.promote("wide")
    assert (contest.champion, contest.challengers) == ("wide", ("own", "deep"))
    assert [duel.labels for duel in contest.standing()] == [0, 0]
    assert contest.verdict() is None


def test_equals_do_not_swap_back_after_a_promotion() -> None:
    """Hysteresis: the same labels that would be a tie leave whoever serves in place."""
    swaps = 0
    for seed in range(100, 112):
        contest = Contest("own", ["wide"])
        for first, second in zip(*losses(seed, 500, EQUAL), strict=True):
            contest.hear({"own": first, "wide": second})
            if winner := contest.verdict():
                contest.promote(winner)
                swaps += 1
    assert swaps == 0


def test_one_that_becomes_better_late_need_not_pay_for_its_past() -> None:
    good, bad = losses(3, 1_000, (0.5, 1.5))
    late_bad, late_good = losses(4, 1_500, BETTER)
    contest = Contest("own", ["wide"])
    at = promoted_at(contest, np.append(good, late_bad), np.append(bad, late_good))
    assert at is not None
    assert 1_000 < at < 1_800
    [duel] = contest.standing()
    assert duel.labels < 900  # of all 1,700 labels it would not be better


def test_the_same_losses_give_the_same_verdict_bit_for_bit() -> None:
    own, other = losses(1, 400, BETTER)
    first, second = Contest("own", ["wide"]), Contest("own", ["wide"])
    assert promoted_at(first, own, other) == promoted_at(second, own, other)
    assert first.standing() == second.standing()


def test_the_verdict_is_said_with_its_numbers() -> None:
    contest = Contest("own", ["wide"])
    promoted_at(contest, *losses(1, 800, BETTER))
    said = str(contest.standing()[0])
    assert said.startswith("wide is better than own by 0.1")
    assert "labels on unseen objects (evidence 3." in said
    assert said.endswith("of 3.0)")


def test_wrong_names_are_told() -> None:
    with pytest.raises(ValueError, match="different names"):
        Contest("own", ["own"])
    contest = Contest("own", ["wide"])
    with pytest.raises(ValueError, match=r"'wode'.*did you mean 'wide'"):
        contest.hear({"wode": 1.0})
    with pytest.raises(ValueError, match="'own' is no challenger"):
        contest.promote("own")
