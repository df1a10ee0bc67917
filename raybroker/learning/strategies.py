"""What to ask next: a strategy ranks the rows of a pool, best first.

>>> pool = Pool(("a", "b"), ("x", "y"), np.full((1, 2, 2), 0.5), np.array([[0.9, 0.1], [0.5, 0.5]]))
>>> by_name("margin")(pool, 1, np.random.default_rng(0)).tolist()
[1]
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from modAL.batch import ranked_batch as cardoso
from modAL.disagreement import KL_max_disagreement
from modAL.disagreement import consensus_entropy as modal_consensus_entropy
from modAL.disagreement import vote_entropy as modal_vote_entropy
from modAL.uncertainty import classifier_entropy, classifier_margin, classifier_uncertainty
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from raybroker.errors import SettingsError, did_you_mean

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

BAND = (0.4, 0.6)  # scores of the first class that FinkVRA's band asks besides the highest
LEAST_CERTAIN = 500  # rows among which a ranked batch is looked for: with 40 features thirty take 0.06 s, a hundred 0.16 s
BATCH = 100  # the most rows that are ranked by what was chosen before them


@dataclass(frozen=True, slots=True)
class Pool:
    """What may be asked: a view that holds no labels, takes no new attribute, and whose arrays cannot be written."""

    alert_ids: tuple[str, ...]
    object_ids: tuple[str | None, ...]
    probabilities: Floats  # [members, rows, classes]
    mixture: Floats  # [rows, classes]
    features: pa.Table | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "probabilities", _sealed(self.probabilities))
        object.__setattr__(self, "mixture", _sealed(self.mixture))

    def __len__(self) -> int:
        return len(self.alert_ids)


def _sealed(array: Floats) -> Floats:
    """A copy over bytes: nobody can make it writable again, nor find the original behind it."""
    values = np.ascontiguousarray(array, np.float64)
    return np.ndarray(values.shape, np.float64, buffer=values.tobytes())


# (pool, n, rng) -> at most n different rows, best first. All chance comes from `rng`.
Strategy = Callable[[Pool, int, np.random.Generator], Rows]


@dataclass(frozen=True)
class Committee:
    """What modAL's measures ask of a model, or of a committee of models that has spoken already."""

    pool: Pool

    def __len__(self) -> int:
        return len(self.pool.probabilities)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    @property
    def classes_(self) -> range:
        """The classes, by their place."""
        return range(self.pool.mixture.shape[1])

    def predict_proba(self, rows: Floats) -> Floats:
        """Of the mixture, [rows, classes]."""
        return self.pool.mixture

    def vote_proba(self, rows: Floats) -> Floats:
        """By member, [rows, members, classes]; a member that knows nothing of a row says what the mixture says."""
        said = self.pool.probabilities
        return np.where(np.isnan(said), self.pool.mixture[None], said).transpose(1, 0, 2)

    def vote(self, rows: Floats) -> Rows:
        """The most probable class by member, [rows, members]."""
        return np.argmax(self.vote_proba(rows), axis=2)


@dataclass(frozen=True)
class Consensus(Committee):
    """A committee whose common word is the mean of its members, whatever their weights."""

    def predict_proba(self, rows: Floats) -> Floats:
        """The mean over the members, [rows, classes]."""
        mean: Floats = self.vote_proba(rows).mean(axis=1)
        return mean


def ranked(utility: Floats, n: int, rng: np.random.Generator) -> Rows:
    """The n rows of highest utility, highest first; equals in an order drawn from `rng`. NaN comes last."""
    # modAL's own n-best are in no order, and its tie-break draws from NumPy's global state
    order = rng.permutation(len(utility))
    lowest_last = np.argsort(-np.nan_to_num(utility[order], nan=-np.inf), kind="stable")
    return order[lowest_last][: max(n, 0)]


def measured(
    measure: Callable[..., Floats], sign: float = 1.0, committee: type[Committee] = Committee
) -> Strategy:
    """A strategy from one of modAL's measures; sign -1 where the least is asked first."""

    def strategy(pool: Pool, n: int, rng: np.random.Generator) -> Rows:
        if not len(pool):
            return np.empty(0, np.intp)
        utility = sign * measure(committee(pool), pool.mixture)
        return ranked(np.where(np.isnan(pool.mixture).any(axis=1), np.nan, utility), n, rng)

    return strategy


uncertainty = measured(classifier_uncertainty)
margin = measured(classifier_margin, -1.0)
entropy = measured(classifier_entropy)
vote_entropy = measured(modal_vote_entropy)
consensus_entropy = measured(modal_consensus_entropy, committee=Consensus)
max_disagreement = measured(KL_max_disagreement)


def random(pool: Pool, n: int, rng: np.random.Generator) -> Rows:
    """Any row: the honest test set, and what the others are compared with."""
    return rng.permutation(len(pool))[: max(n, 0)]


def top(pool: Pool, n: int, rng: np.random.Generator) -> Rows:
    """The most probable of the first class: of an anomaly model, what is expected to be interesting."""
    return ranked(_of_first_class(pool), n, rng)


def banded(low: float = BAND[0], high: float = BAND[1], share: float = 0.5) -> Strategy:
    """FinkVRA's mix: in turns one of the highest scores of the first class, and one from `low` to `high`.

    `share` is that of the highest. Where a kind runs out the other goes on.
    """

    def strategy(pool: Pool, n: int, rng: np.random.Generator) -> Rows:
        scores = _of_first_class(pool)
        highest = ranked(scores, len(pool), rng)
        nearest = ranked(-np.abs(scores - (low + high) / 2), len(pool), rng)
        unsure = nearest[(scores[nearest] >= low) & (scores[nearest] <= high)]
        turns = np.concatenate([_turns(len(highest), share), _turns(len(unsure), 1 - share)])
        rows = np.concatenate([highest, unsure])[np.argsort(turns, kind="stable")]
        return _once(rows)[: max(n, 0)]

    return strategy


def _turns(count: int, share: float) -> Floats:
    """When each of a list's rows has its turn, if the list is given that share of all turns."""
    return np.asarray((np.arange(count) + 0.5) / max(share, 1e-9), np.float64)


def _once(rows: Rows) -> Rows:
    """Each row where it comes first."""
    return rows[np.sort(np.unique(rows, return_index=True)[1])]


def _of_first_class(pool: Pool) -> Floats:
    return pool.mixture[:, 0]


@dataclass(frozen=True)
class Untaught:
    """What modAL's ranked batch asks of a learner: here what it should keep away from is the row asked first."""

    X_training: Floats
    on_transformed: bool = False


def ranked_batch(pool: Pool, n: int, rng: np.random.Generator) -> Rows:
    """The least certain first, then by modAL's ranked batch: uncertain, and unlike what comes before (Cardoso 2017).

    Chosen among the `LEAST_CERTAIN` rows, and at most `BATCH` so; the others follow by uncertainty. Rows are compared
    by their features, or without any by what the members say.
    """
    least_certain = uncertainty(pool, len(pool), rng)
    near = least_certain[:LEAST_CERTAIN]
    if min(n, len(near)) < 2:
        return least_certain[: max(n, 0)]
    places, unsure = _places(pool, near), np.nan_to_num(1 - pool.mixture[near].max(axis=1))
    with threadpool_limits(1, "openmp"):  # so few rows are ten times slower with threads that wait for a core
        first = Untaught(places[:1])
        found, _ = cardoso(first, places[1:], unsure[1:], min(n - 1, BATCH), "euclidean", None)
    return _once(np.concatenate([near[:1], near[1:][found], least_certain]))[:n]


def _places(pool: Pool, rows: Rows) -> Floats:
    """Where these rows lie [rows, columns]: features scaled so that none outweighs; unknown ones in the middle."""
    if pool.features is None or not pool.features.num_columns:
        return np.nan_to_num(pool.probabilities[:, rows].transpose(1, 0, 2).reshape(len(rows), -1))
    taken = pool.features.take(pa.array(rows))
    found = np.column_stack([column.to_numpy() for column in taken.itercolumns()]).astype(np.float64)
    found = np.clip(np.where(np.isfinite(found), found, np.nan), -1e100, 1e100)  # whose square is a number
    found[:, np.isnan(found).all(axis=0)] = 0.0
    center, spread = np.nanmedian(found, axis=0), np.nanstd(found, axis=0)
    # asinh, since one far outlier would else be unlike everything and asked first
    return np.nan_to_num(np.arcsinh((found - center) / np.where(spread > 0, spread, 1.0)))


BUILT_IN: dict[str, Strategy] = {
    "uncertainty": uncertainty,
    "margin": margin,
    "entropy": entropy,
    "vote_entropy": vote_entropy,
    "consensus_entropy": consensus_entropy,
    "max_disagreement": max_disagreement,
    "ranked_batch": ranked_batch,
    "band": banded(),
    "top": top,
    "random": random,
}


def by_name(name: str) -> Strategy:
    """A built-in strategy, or the user's by its dotted path 'package.module:function'."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        near = did_you_mean(name, BUILT_IN)
        raise SettingsError(
            f"no strategy '{name}'{near}: give one of {sorted(BUILT_IN)} or 'package.module:function'"
        )
    module, _, function = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"strategy '{name}' cannot be loaded: {error}") from error
    return checked(name, found)


def checked(name: str, strategy: Strategy) -> Strategy:
    """A user's strategy whose answer is held to the contract: rows of the pool, each once, at most n."""

    def call(pool: Pool, n: int, rng: np.random.Generator) -> Rows:
        rows = np.asarray(strategy(pool, n, rng))
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise ValueError(
                f"strategy '{name}' must return row numbers, not {rows.dtype} of shape {rows.shape}"
            )
        rows = rows.astype(np.intp)
        if len(np.unique(rows)) < len(rows) or ((rows < 0) | (rows >= len(pool))).any():
            raise ValueError(
                f"strategy '{name}' returned a row twice or one that the pool of {len(pool)} does not have"
            )
        return rows[: max(n, 0)]

    return call


def reason(
    strategy: str,
    classes: Sequence[str],
    mixture: Floats,
    snapshot: int,
    members: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """Why it is asked, with its numbers, for a person. `members`: what each member said.

    >>> reason("margin", ("AGN", "SN"), np.array([0.46, 0.54]), 12)
    'margin 0.08 between SN (0.54) and AGN (0.46), snapshot 12'
    >>> reason("vote_entropy", ("AGN", "SN"), np.array([0.4, 0.6]), 3, {"forest": (0, 1), "softmax": (0.7, 0.3)})
    'members disagree: forest says SN (1.00), softmax says AGN (0.70), snapshot 3'
    """
    words = WORDS.get(strategy)
    said = words(classes, mixture, members or {}) if words else f"{strategy}, {_between(classes, mixture)}"
    return f"{said}, snapshot {snapshot}"


Words = Callable[[Sequence[str], Floats, Mapping[str, Sequence[float]]], str]


def _named(classes: Sequence[str], mixture: Any, place: int = 0) -> str:
    """The most probable class, or the one in that place, with its probability."""
    found = np.argsort(-np.asarray(mixture), kind="stable")[place]
    return f"{classes[found]} ({mixture[found]:.2f})"


def _between(classes: Sequence[str], mixture: Floats) -> str:
    return f"between {_named(classes, mixture)} and {_named(classes, mixture, 1)}"


def _margin(classes: Sequence[str], mixture: Floats, members: Mapping[str, Sequence[float]]) -> str:
    first, second = np.sort(mixture)[::-1][:2]
    return f"margin {first - second:.2f} {_between(classes, mixture)}"


def _uncertainty(classes: Sequence[str], mixture: Floats, members: Mapping[str, Sequence[float]]) -> str:
    return f"uncertainty {1 - mixture.max():.2f}, most likely {_named(classes, mixture)}"


def _entropy(classes: Sequence[str], mixture: Floats, members: Mapping[str, Sequence[float]]) -> str:
    number = max(0.0, -sum(p * math.log(p) for p in mixture.tolist() if p > 0))
    return f"entropy {number:.2f} of at most {math.log(len(classes)):.2f}, most likely {_named(classes, mixture)}"


def _consensus(classes: Sequence[str], mixture: Floats, members: Mapping[str, Sequence[float]]) -> str:
    known = [said for said in members.values() if not np.isnan(said).any()]
    mean = np.mean(known, axis=0) if known else mixture
    return f"members' mean: {_entropy(classes, mean, members)}"


def _votes(classes: Sequence[str], mixture: Floats, members: Mapping[str, Sequence[float]]) -> str:
    votes = {name: said for name, said in members.items() if not np.isnan(said).any()}
    words = ", ".join(f"{name} says {_named(classes, said)}" for name, said in votes.items())
    agree = len({int(np.argmax(said)) for said in votes.values()}) < 2
    return f"members {'agree' if agree else 'disagree'}: {words or _named(classes, mixture)}"


def _batch(classes: Sequence[str], mixture: Floats, members: Mapping[str, Sequence[float]]) -> str:
    return f"{_uncertainty(classes, mixture, members)}, and unlike what is asked before it"


def _band(classes: Sequence[str], mixture: Floats, members: Mapping[str, Sequence[float]]) -> str:
    found = f"{classes[0]} ({mixture[0]:.2f})"
    inside = BAND[0] <= mixture[0] <= BAND[1]
    return f"{found} is between {BAND[0]} and {BAND[1]}" if inside else f"among the highest: {found}"


WORDS: dict[str, Words] = {
    "margin": _margin,
    "uncertainty": _uncertainty,
    "entropy": _entropy,
    "vote_entropy": _votes,
    "consensus_entropy": _consensus,
    "max_disagreement": _votes,
    "ranked_batch": _batch,
    "band": _band,
    "top": lambda classes, mixture, members: f"among the highest: {classes[0]} ({mixture[0]:.2f})",
    "random": lambda classes, mixture, members: f"random pick, most likely {_named(classes, mixture)}",
}
