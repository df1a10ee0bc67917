"""Champion and challengers: configurations of one model that learn the same labels, and a rule for who serves.

They are compared by the log-loss of what each said of a label's alert before that label was known, on objects that none
of them had learned from. The rule must hold at every label, since it is asked at every label: a plain test at two
standard errors, asked from the 50th to the 1,000th, promotes a challenger that is only as good in one contest of five.
So evidence is wealth: each challenger bets on its next difference, and where it is not better no betting can be
expected to win. By Ville's inequality wealth reaches 1 / risk with a probability of at most `risk`, ever, whatever the
losses are and however the models change (Waudby-Smith and Ramdas 2024, JRSSB 86, 1: "Estimating means of bounded random
variables by betting").

Simulated, 300 contests of equals over 1,000 labels: one promotion (0.3 %). A challenger better by 0.13 nats (spread of
the difference 0.6) serves after 275 labels in the median, by 0.06 (0.4) after 590, by 0.03 (0.5) after 1,200.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raybroker.errors import did_you_mean
from raybroker.learning.compiled import Floats

LEAST = 50
RISK = 0.05  # that a contest ever promotes a challenger that is not better
WORST = math.log(100.0)  # nats: for the evidence, a probability below 1 in 100 counts as that
BETS = (
    0.95 / WORST * 0.5 ** np.arange(6)
)  # shares of the wealth per nat: from bold to careful, all tried at once
EVERY = 100  # labels; so often the evidence also begins afresh, for a challenger that becomes better late
ERRORS = 2.0


@dataclass(frozen=True)
class Duel:
    """How a challenger stands against the champion, over the latest `labels` that speak most for it."""

    champion: str
    challenger: str
    labels: int
    better: float  # mean of the champion's log-loss less the challenger's, nats; above 0: the challenger is better
    error: float  # its standard error
    evidence: float  # log of the wealth
    wanted: float  # log of the wealth that promotes
    least: int  # labels before which nothing is decided

    @property
    def won(self) -> bool:
        """Enough labels, enough wealth, and better by more than two standard errors."""
        proven = self.labels >= self.least and self.evidence >= self.wanted
        return proven and self.better > ERRORS * self.error

    def __str__(self) -> str:
        word = "better" if self.better >= 0 else "worse"
        return (
            f"{self.challenger} is {word} than {self.champion} by {abs(self.better):.3f} ± {self.error:.3f} nats "
            f"over {self.labels} labels on unseen objects (evidence {self.evidence:.1f} of {self.wanted:.1f})"
        )


class Contest:
    """One model's configurations; the same losses in the same order give the same verdicts, on any day.

    >>> contest = Contest("own", ["wide"])
    >>> for i in range(200):
    ...     contest.hear({"own": 0.7, "wide": 0.3 + i % 2 / 10})
    >>> contest.verdict()
    'wide'
    >>> contest.promote("wide")
    >>> contest.champion, contest.challengers, contest.verdict()
    ('wide', ('own',), None)
    """

    def __init__(
        self, champion: str, challengers: Sequence[str], *, least: int = LEAST, risk: float = RISK
    ) -> None:
        if len({champion, *challengers}) != 1 + len(challengers):
            raise ValueError(f"configurations need different names; given were {[champion, *challengers]}")
        self.least, self.risk = least, risk
        self._begin(champion, tuple(challengers))

    def _begin(self, champion: str, challengers: tuple[str, ...]) -> None:
        self.champion, self.challengers = champion, challengers
        self._evidence = {name: Evidence() for name in challengers}

    def hear(self, losses: Mapping[str, float]) -> None:
        """One label's delayed log-losses (nats) by configuration, for an object that was not learned from before.

        A configuration that is missing, or NaN, had not been asked: its pair is left out.
        """
        for name in losses:
            if name not in (known := (self.champion, *self.challengers)):
                raise ValueError(f"no configuration '{name}' is in this contest{did_you_mean(name, known)}")
        champion = losses.get(self.champion, math.nan)
        for name in self.challengers:
            challenger = losses.get(name, math.nan)
            if math.isfinite(champion) and math.isfinite(challenger):
                self._evidence[name].add(champion, challenger)

    def standing(self) -> list[Duel]:
        """Every challenger's duel, in the order of the challengers."""
        wanted = math.log(max(len(self.challengers), 1) / self.risk)
        found = [(name, self._evidence[name].best(self.least)) for name in self.challengers]
        return [Duel(self.champion, name, *best, wanted, self.least) for name, best in found]

    def verdict(self) -> str | None:
        """The challenger that should serve from now on, or None; ask after each label, then `promote` it."""
        won = [duel for duel in self.standing() if duel.won]
        return max(won, key=lambda duel: duel.evidence).challenger if won else None

    def promote(self, winner: str) -> None:
        """The winner is the champion, who was becomes a challenger, and all counts begin anew."""
        if winner not in self.challengers:
            near = did_you_mean(winner, self.challengers)
            raise ValueError(f"'{winner}' is no challenger{near}: there are {list(self.challengers)}")
        others = tuple(self.champion if name == winner else name for name in self.challengers)
        self._begin(winner, others)


class Evidence:
    """What one challenger has won by betting; a row per beginning, 1 / (k (k + 1)) of the wealth laid on the k-th."""

    def __init__(self) -> None:
        self.count = 0
        self._sums = np.zeros((0, 3))  # [beginnings]: labels, mean of the difference, sum of squares about it
        self._wealth = np.zeros((0, len(BETS)))  # logs

    def add(self, champion: float, challenger: float) -> None:
        """One more pair of losses."""
        if self.count % EVERY == 0:
            self._sums = np.vstack([self._sums, np.zeros(3)])
            self._wealth = np.vstack([self._wealth, np.zeros(len(BETS))])
        self.count += 1
        self._wealth += np.log1p(BETS * (min(champion, WORST) - min(challenger, WORST)))
        difference = champion - challenger
        away = difference - self._sums[:, 1]
        self._sums[:, 0] += 1
        self._sums[:, 1] += away / self._sums[:, 0]
        self._sums[:, 2] += away * (difference - self._sums[:, 1])

    def best(self, least: int) -> tuple[int, float, float, float]:
        """Labels, mean difference and its error since the beginning that won most; the log of all wealth.

        Beginnings with fewer than `least` labels cannot be that one; before `least`, the first is.
        """
        if not self.count:
            return 0, 0.0, math.inf, 0.0
        k = np.arange(1, len(self._sums) + 1)
        won: Floats = _log_sum(self._wealth) - math.log(len(BETS)) - np.log(k * (k + 1))
        total = float(_log_sum(np.append(won, -math.log(len(k) + 1))[None, :])[0])
        old = self._sums[:, 0] >= least
        labels, mean, squares = self._sums[int(np.argmax(np.where(old, won, -np.inf)))].tolist()
        error = math.sqrt(squares / (labels - 1) / labels) if labels > 1 else math.inf
        return int(labels), mean, error, total


def _log_sum(logs: Floats) -> Floats:
    """The log of the sum of each row's exponentials."""
    most = logs.max(axis=1, keepdims=True)
    found: Floats = most[:, 0] + np.log(np.exp(logs - most).sum(axis=1))
    return found
