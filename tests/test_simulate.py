"""The synthetic sky: valid packets, a known truth, and classes that only many features together tell apart."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import tarfile
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from raybroker import alerts, simulate, surveys
from raybroker.alerts import Packet
from raybroker.errors import UnknownError
from raybroker.features.basic import basic
from raybroker.features.early import early
from raybroker.features.lightcurve import lightcurve
from raybroker.simulate import CLASSES, Exposure, Sky

DATE = "20260901"
LABELS = 100


def flat(exposures: list[Exposure]) -> tuple[list[Packet], list[dict[str, str]]]:
    packets = [packet for exposure in exposures for packet in exposure.packets]
    return packets, [row for exposure in exposures for row in exposure.truth.to_pylist()]


@pytest.fixture(scope="module", params=["ztf", "rubin"])
def one_night(request: pytest.FixtureRequest) -> tuple[str, Sky, list[Exposure]]:
    sky = Sky.for_night(seed=2, alerts=150)
    return request.param, sky, list(simulate.night(sky, 150, DATE, request.param))


def test_a_night_is_read_back_as_it_was_made(one_night: Any) -> None:
    survey, _, exposures = one_night
    packets, told = flat(exposures)
    decoded = surveys.load(survey).decode(packets)
    assert len(packets) == len(decoded.batch) == 150
    assert not decoded.bad
    assert not decoded.unknown_fields
    assert decoded.batch["alert_id"].to_pylist() == [row["alert_id"] for row in told]
    assert decoded.batch["object_id"].to_pylist() == [row["object_id"] for row in told]
    assert set(decoded.batch["night"].to_pylist()) == {int(DATE)}
    assert len({row["alert_id"] for row in told}) == 150


def test_the_truth_follows_from_any_id(one_night: Any) -> None:
    _, sky, exposures = one_night
    for row in flat(exposures)[1]:
        assert simulate.truth(sky, row["alert_id"]) == row["class"]
        assert simulate.truth(sky, row["object_id"]) == row["class"]
        assert simulate.truth(sky, row["object_id"].split(":")[1]) == row["class"]


@pytest.mark.parametrize(
    "name", ["ztf:2475433850015010009", "ZTF17aadcvhq", "rubin:169298432603193401", "ztf:", "x"]
)
def test_an_id_of_another_sky_is_unknown(name: str) -> None:
    with pytest.raises(UnknownError, match="synthetic sky"):
        simulate.truth(Sky(places=1000), name)


def test_alerts_are_this_detection_at_the_end_of_a_plausible_history(one_night: Any) -> None:
    survey, _, exposures = one_night
    batch = surveys.load(survey).decode(flat(exposures)[0]).batch
    magnitude = alerts.flux_to_magnitude(np.abs(alerts.values(batch["flux"])))
    assert 16 < np.percentile(magnitude, 1) < np.percentile(magnitude, 99) < (21.5 if survey == "ztf" else 25)
    for row in batch.to_pylist():
        last = row["history"][-1]
        assert (last["mjd"], last["kind"]) == (row["mjd"], "detection")
        assert row["mjd"] - row["history"][0]["mjd"] < 31.5
        assert len(row["history"]) > 5


def test_cutouts_are_fits_images(one_night: Any) -> None:
    survey, _, exposures = one_night
    decoded = surveys.load(survey).decode(flat(exposures)[0][:1])
    for place in decoded.batch["cutouts"][0].as_py().values():
        image = bytes(decoded.bodies[0][place["offset"] : place["offset"] + place["length"]])
        with fits.open(io.BytesIO(gzip.decompress(image) if survey == "ztf" else image)) as file:
            assert file[0].data.shape == (63, 63)
            assert np.isfinite(file[0].data).all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = (
        flat(list(simulate.night(Sky(seed, 800), 60, DATE, cutouts=False)))[0] for seed in (1, 1, 2)
    )
    assert first == again
    assert {p.value for p in first}.isdisjoint(p.value for p in other)


def test_later_nights_go_on_with_the_same_objects_and_agree_about_the_past() -> None:
    sky = Sky(3, 800)
    later = list(itertools.islice(simulate.visits(sky, DATE, cutouts=False), 400))
    tonight = list(simulate.night(sky, 10_000, DATE, cutouts=False))
    times = [exposure.mjd for exposure in [*tonight, *later]]
    assert times == sorted(times)
    old, new = (surveys.load("ztf").decode(flat(part)[0]).batch.to_pylist() for part in (tonight, later))
    by_object = {row["object_id"]: row for row in new}
    both = [(row, by_object[row["object_id"]]) for row in old if row["object_id"] in by_object]
    assert len(both) > 50
    for before, after in both:
        seen = {point["mjd"]: point["flux"] for point in after["history"]}
        shared = [point for point in before["history"] if point["mjd"] in seen]
        assert all(point["flux"] == seen[point["mjd"]] for point in shared)


def test_some_objects_are_seen_twice_in_a_night() -> None:
    told = flat(list(simulate.night(Sky(3, 800), 10_000, DATE, cutouts=False)))[1]
    assert len({row["object_id"] for row in told}) < 0.8 * len(told)


def test_broken_packets_come_as_often_as_asked_for() -> None:
    packets, told = flat(list(simulate.night(Sky(4, 4000), 400, DATE, cutouts=False, broken=0.2)))
    bad = surveys.load("ztf").decode(packets).bad
    assert 50 < len(bad) < 110
    assert len(told) == len(packets)


def test_a_night_is_written_as_the_survey_archives_it(tmp_path: Path) -> None:
    exposures = list(simulate.night(Sky(3, 800), 40, DATE, cutouts=False))
    archive, table = simulate.write_night(tmp_path, exposures)
    packets, told = flat(exposures)
    with tarfile.open(archive) as files:
        written = {member.name: files.extractfile(member).read() for member in files}  # type: ignore[union-attr]
    names = [row["alert_id"].removeprefix("ztf:") + ".avro" for row in told]
    assert written == dict(zip(names, (p.value for p in packets), strict=True))
    with table.open() as text:
        assert list(csv.DictReader(text)) == told


# --- what can be learned --------------------------------------------------------------------------------------


Kept = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def kept() -> Kept:
    """ZTF's, past its cuts."""
    return learnable("ztf", 5000)


def learnable(survey: str, count: int) -> Kept:
    """Features, classes and objects of the alerts of a night that pass the cuts, through the real decoder."""
    sky = Sky.for_night(seed=8, alerts=count)
    packets, told = flat(list(simulate.night(sky, count, DATE, survey=survey, cutouts=False)))
    batch = surveys.load(survey).decode(packets).batch
    own, good = batch[survey], np.ones(len(batch), bool)
    if survey == "ztf":
        good = (alerts.values(own, "rb") >= 0.55) & (alerts.values(own, "nbad") == 0)
    columns = {name: batch[name] for name in batch.schema.names}
    features: dict[str, np.ndarray] = {}
    for step in (basic, early, lightcurve):
        struct = step.run(columns, len(batch))
        for field in struct.type:
            if pa.types.is_floating(field.type) or pa.types.is_integer(field.type):
                features[f"{step.name}.{field.name}"] = alerts.values(struct, field.name)[good]
    classes = np.array([CLASSES.index(row["class"]) for row in told])[good]
    return features, classes, np.array([row["object_id"] for row in told])[good]


def test_every_class_passes_the_cuts_often_enough(kept: Any) -> None:
    shares = np.bincount(kept[1], minlength=len(CLASSES)) / len(kept[1])
    assert all(0.15 < share < 0.4 for share in shares)


@pytest.mark.parametrize("survey", ["ztf", "rubin"])
def test_no_single_feature_separates_two_classes(survey: str, request: pytest.FixtureRequest) -> None:
    features, classes, _ = request.getfixturevalue("kept") if survey == "ztf" else learnable(survey, 3000)
    too_good = {}
    for (name, values), (a, b) in itertools.product(
        features.items(), itertools.combinations(range(len(CLASSES)), 2)
    ):
        known = np.isfinite(values) & np.isin(classes, (a, b))
        if known.sum() > 300:
            auc = roc_auc_score(classes[known] == a, values[known])
            if max(auc, 1 - auc) > 0.8:
                too_good[name, CLASSES[a], CLASSES[b]] = round(max(auc, 1 - auc), 3)
    assert not too_good


def matrix(features: dict[str, np.ndarray]) -> np.ndarray:
    made = np.column_stack([values for name, values in features.items() if name.startswith("basic.")])
    return made[:, np.isfinite(made).mean(0) > 0.05]


def test_a_hundred_labels_are_enough_for_objects_never_labelled(kept: Any) -> None:
    features, classes, objects = kept
    inputs = matrix(features)
    scores = [auc_on_unseen(inputs, classes, objects, seed) for seed in range(5)]
    supernova, mean_of_classes = np.mean([s[0] for s in scores]), np.mean(scores)
    assert supernova > 0.88
    assert mean_of_classes > 0.85


def auc_on_unseen(inputs: np.ndarray, classes: np.ndarray, objects: np.ndarray, seed: int) -> list[float]:
    """AUC of each class against the rest, with a hundred labels of a hundred objects, on the other objects."""
    dice = np.random.default_rng(seed)
    _, first = np.unique(objects, return_index=True)
    learned = dice.permutation(first)[:LABELS]
    unseen = ~np.isin(objects, objects[learned])
    model = make_pipeline(
        SimpleImputer(strategy="median"), StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)
    )
    model.fit(inputs[learned], classes[learned])
    found = model.predict_proba(inputs[unseen])
    return [roc_auc_score(classes[unseen] == c, found[:, c]) for c in range(len(CLASSES))]


# --- many from few --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["public_20181129", "public_20231012", "selected_20231018"])
def test_real_packets_multiply_with_ids_and_noise_of_their_own(name: str, ztf_packets: Any) -> None:
    real = ztf_packets(name)[:10]
    made = list(simulate.multiply(real, 35, seed=1))
    before, after = (surveys.load("ztf").decode(packets).batch.to_pylist() for packets in (real, made))
    assert len(after) == 35
    assert len({row["alert_id"] for row in after}) == len({row["object_id"] for row in after}) == 35
    for old, new in zip(before, after[:10], strict=True):
        assert (old["mjd"], old["band"], old["ztf"]["rb"]) == (new["mjd"], new["band"], new["ztf"]["rb"])
        assert 0 < abs(old["ztf"]["magpsf"] - new["ztf"]["magpsf"]) < 1
        assert 0 < abs(old["dec"] - new["dec"]) < 10 / 3600
        assert len(old["history"]) == len(new["history"])
    first, second = (next(iter(fastavro.reader(io.BytesIO(p.value)))) for p in (real[3], made[13]))
    assert first["cutoutDifference"] == second["cutoutDifference"]
    assert list(first) == list(second)
