from __future__ import annotations

import ctypes
import itertools
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raybroker import alerts, checks, surveys
from raybroker.step import Step, discover, enrich

BUILT_IN = discover()


@pytest.fixture(scope="module")
def batch(ztf_packets, rubin_packets) -> pa.RecordBatch:
    """Real alerts, young and old, with the columns that other steps need, and Rubin's own struct of as many others."""
    packets = [*ztf_packets("public_20181129")[:25], *ztf_packets("selected_20231018")[:25]]
    found = surveys.load("ztf").decode(packets).batch
    step = BUILT_IN["early"]
    column = step.run({name: found.column(name) for name in step.needs}, found.num_rows)
    rubin = surveys.load("rubin").decode(rubin_packets[:50]).batch.column("rubin")
    return found.append_column("early", column).append_column("rubin", rubin)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_step_keeps_the_rules(name, batch):
    checks.check_step(BUILT_IN[name], batch)


def test_every_built_in_step_runs_in_a_fresh_process(batch):
    checks.check_fresh_process(list(BUILT_IN.values()), batch)


# One offender per rule.


@enrich(gives="float64")
def innocent(ra):
    return pc.multiply(ra, 2.0)


@enrich(gives="float64")
def forgetful(ra):
    return [random.random() for _ in ra]


@enrich(gives="float64")
def vandal(ra):
    if len(ra):
        ctypes.memset(ra.buffers()[1].address, 0, 8)
    return pa.nulls(len(ra), pa.float64())


@enrich(gives="float64")
def hungry(ra):
    ra[0].as_py()
    return ra


@enrich(gives="float64")
def blind_to_offsets(ra):
    return np.frombuffer(ra.buffers()[1])[: len(ra)]


@enrich(gives="float64")
def afraid_of_nulls(ra):
    return [value + 1 for value in ra.to_pylist()]


@enrich(gives="int64")
def numbering(ra):
    return np.arange(len(ra))


@enrich(gives="float64")
def normalising(ra):
    values = alerts.values(ra)
    return (values - np.nanmean(values)) / np.nanstd(values) if np.isfinite(values).any() else values


@enrich(gives="float64")
def matrix(ra):
    return alerts.values(ra) + 1e-12 * (len(ra) > 500)


@enrich(gives="float64")
def too_long(ra):
    return np.zeros(len(ra) + 1)


def strict(ra):
    return pc.fill_null(pc.greater(ra, 0), False)


STRICT = Step("strict", "cut", strict, ("ra",), pa.bool_())
LOCAL = Step("local", "enrich", lambda ra: ra, ("ra",), pa.float64())


@pytest.fixture
def sky() -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"ra": np.random.default_rng(0).random(40) * 360})


def test_an_innocent_step_passes(sky):
    checks.check_step(innocent, sky)


@pytest.mark.parametrize(
    ("step", "rule"),
    [
        (forgetful, "asked twice"),
        (vandal, "does not change its inputs"),
        (hungry, "an empty batch"),
        (blind_to_offsets, "a slice of a batch"),
        (afraid_of_nulls, "nothing but nulls"),
        (STRICT, "a cut keeps what it knows nothing of"),
        (normalising, "a slice of a batch"),
        (matrix, "same bits"),
        (LOCAL, "pickled"),
        (too_long, "raises"),
    ],
)
def test_each_rule_catches_its_offender(sky, step, rule):
    with pytest.raises(AssertionError, match=f"step '{step.name}'.*{rule}"):
        checks.check_step(step, sky)


@pytest.mark.parametrize(
    ("step", "rule"),
    [
        (numbering, "a row's answer does not depend on the order of the rows"),
        (numbering, "a batch of one alert repeated gives that alert's answer"),
        (normalising, "a batch of one alert repeated gives that alert's answer"),
        (normalising, f"an alert has the same bits in batches of 1, 7 and {checks.LARGE}"),
    ],
)
def test_rules_that_others_come_before_catch_their_offender_too(sky, step, rule):
    with np.errstate(invalid="ignore"):
        assert not checks.STEP_RULES[rule](step, {"ra": sky.column("ra")})


def test_a_batch_without_a_needed_column_is_said_so(sky):
    with pytest.raises(AssertionError, match="no column 'history', which step 'early' needs"):
        checks.check_step(BUILT_IN["early"], sky)


def test_a_step_that_cannot_travel_fails_in_a_fresh_process(sky):
    here_only = Step("here", "enrich", _FromHere(), ("ra",), pa.float64())
    with pytest.raises(AssertionError, match="step 'here' gives another answer"):
        checks.check_fresh_process([here_only], sky)


class _FromHere:
    """Answers with this process's secret, which does not travel."""

    def __reduce__(self):
        return _stay, ()

    def __call__(self, ra):
        return pc.multiply(ra, 3.0)


def _stay():
    return pc.abs


def test_bits_are_compared_not_values():
    def column(*values):
        return pa.array(values, pa.float64())

    assert checks.same_bits(column(1.0, None, float("nan")), column(1.0, None, float("nan")))
    assert not checks.same_bits(column(0.0), column(-0.0))
    assert not checks.same_bits(column(1.0), column(np.nextafter(1, 2)))
    assert not checks.same_bits(column(0.0), column(None))
    assert not checks.same_bits(column(1.0), pa.array([1.0], pa.float32()))
    structs = [pa.array([{"x": x, "y": [{"z": x}]}]) for x in (0.0, -0.0)]
    assert checks.same_bits(structs[0], structs[0])
    assert not checks.same_bits(*structs)


# Surveys: the real ones, and offenders made of one.


def test_the_surveys_keep_the_rules(ztf_packets, rubin_packets):
    nights = ("public_20181129", "public_20191231", "public_20231012", "selected_20231018")
    checks.check_survey(surveys.load("ztf"), [p for night in nights for p in ztf_packets(night)[:6]])
    checks.check_survey(surveys.load("rubin"), rubin_packets[:12])


@dataclass
class Tampered:
    """The ZTF decoder with one thing done to what it decodes."""

    tamper: Callable[[alerts.Decoded], alerts.Decoded]
    name: str = "ztf"

    def __getattr__(self, attribute):
        return getattr(surveys.load("ztf"), attribute)

    def decode(self, packets):
        return self.tamper(surveys.load("ztf").decode(packets))


def changed(name, change):
    def tamper(decoded):
        place = decoded.batch.schema.get_field_index(name)
        batch = decoded.batch.set_column(
            place, decoded.batch.schema.field(name), change(decoded.batch.column(name))
        )
        return replace(decoded, batch=batch)

    return tamper


def silent(decoded):
    return replace(decoded, bad=[])


def unexplained(decoded):
    return replace(decoded, bad=[bad._replace(reason="") for bad in decoded.bad])


def reversed_history(column):
    lists = [None if history is None else history[::-1] for history in column.to_pylist()]
    return pa.array(lists, column.type)


def doubled_history(column):
    lists = [history[:1] + history for history in column.to_pylist()]
    return pa.array(lists, column.type)


@pytest.mark.parametrize(
    ("tamper", "rule"),
    [
        (silent, "each packet is a row or is bad"),
        (unexplained, "each packet is a row or is bad"),
        (changed("offset", lambda c: pa.array(np.arange(len(c)))), "same bits alone"),
        (changed("alert_id", lambda c: pa.nulls(len(c), c.type)), "alerts have ids"),
        (changed("history", reversed_history), "a history ascends"),
        (changed("history", doubled_history), "each time, band and kind once"),
        (changed("healpix", lambda c: pc.add(c, 1)), "the HEALPix cell"),
    ],
)
def test_each_rule_for_surveys_catches_its_offender(ztf_packets, tamper, rule):
    with pytest.raises(AssertionError, match=rule):
        checks.check_survey(Tampered(tamper), ztf_packets("selected_20231018")[:6])


# Learners: a small honest one, and offenders made of it.

CLASSES = ("star", "galaxy")


@dataclass
class Centroids:
    """The nearest class mean, by the features that are known."""

    sums: np.ndarray = field(default_factory=lambda: np.zeros((2, 3)))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((2, 3)))

    def learn(self, features, labels):
        for row, label in zip(features.to_pylist(), labels, strict=True):
            for i, value in enumerate(row.values()):
                if value is not None:
                    self.sums[CLASSES.index(label), i] += value
                    self.counts[CLASSES.index(label), i] += 1
        return {}

    def predict(self, features):
        rows = [[np.nan if v is None else v for v in row.values()] for row in features.to_pylist()]
        means = self.sums / np.maximum(self.counts, 1)
        apart = [np.nansum((np.array(row) - means) ** 2, axis=1) for row in rows]
        weights = [np.exp(-each) / np.exp(-each).sum() for each in apart]
        mixture = np.array(weights).reshape(len(rows), 2)
        return SimpleNamespace(members=mixture[None], mixture=mixture)

    def snapshot(self):
        return pickle.dumps((self.sums, self.counts))

    @classmethod
    def restore(cls, state):
        return cls(*pickle.loads(state))


class Restless(Centroids):
    def predict(self, features):
        self.sums = self.sums + 0.01
        return super().predict(features)


class Amnesiac(Centroids):
    def snapshot(self):
        return pickle.dumps((np.zeros((2, 3)), np.zeros((2, 3))))


class Stubborn(Centroids):
    def learn(self, features, labels):
        return {}


class Forgetful(Centroids):
    """Fits what it is given anew, as scikit-learn's `fit` does."""

    def learn(self, features, labels):
        self.sums, self.counts = np.zeros((2, 3)), np.zeros((2, 3))
        return super().learn(features, labels)


class Uncertain(Centroids):
    def predict(self, features):
        made = super().predict(features)
        return SimpleNamespace(members=made.members, mixture=made.mixture * 0.9)


class Gregarious(Centroids):
    def predict(self, features):
        made = super().predict(features)
        shifted = made.mixture + (made.mixture.mean() if len(made.mixture) == 1 else 0) * 1e-9
        mixture = shifted / shifted.sum(axis=1, keepdims=True) if len(shifted) else shifted
        return SimpleNamespace(members=mixture[None], mixture=mixture)


def test_an_honest_learner_passes():
    checks.check_learner(Centroids, CLASSES)


@pytest.mark.parametrize(
    ("learner", "rule"),
    [
        (Restless, "predicting changes nothing"),
        (Amnesiac, "a restored snapshot"),
        (Stubborn, "it learns"),
        (Forgetful, "it remembers"),
        (Uncertain, "it predicts before|probabilities"),
        (Gregarious, "same bits"),
    ],
)
def test_each_rule_for_learners_catches_its_offender(learner, rule):
    with pytest.raises(AssertionError, match=rule):
        checks.check_learner(learner, CLASSES)


def test_a_learner_that_differs_from_run_to_run_is_caught():
    seeds = itertools.count()

    def make():
        return Centroids(np.full((2, 3), float(next(seeds))))

    with pytest.raises(AssertionError, match="the same lessons give the same learner"):
        checks.check_learner(make, CLASSES)
