from __future__ import annotations

import pyarrow as pa

from raybroker.filters.examples import early_supernova, fast_fading, young_extragalactic


def test_young_extragalactic_wants_new_repeated_alerts_off_the_plane():
    early = [{"age": 1.0, "detections": 2}] * 3 + [
        {"age": 5.0, "detections": 2},
        {"age": 1.0, "detections": 1},
    ]
    columns = {
        "ra": pa.array([192.86, 266.4, 192.86, 192.86, 192.86]),  # the Galactic pole, the Galactic centre
        "dec": pa.array([27.13, -28.9, 27.13, 27.13, 27.13]),
        "early": pa.array(early),
        "ss_object_id": pa.array([None, None, "ztf:123", None, None], pa.string()),
    }
    assert young_extragalactic.run(columns, 5).to_pylist() == [True, False, False, False, False]


def test_what_is_not_known_is_not_sent():
    columns = {
        "ra": pa.array([192.86, None]),
        "dec": pa.array([27.13, 27.13]),
        "early": pa.array([{"age": None, "detections": 2}, {"age": 1.0, "detections": 2}]),
        "ss_object_id": pa.nulls(2, pa.string()),
    }
    assert young_extragalactic.run(columns, 2).to_pylist() == [None, None]
    assert fast_fading.run({"early": pa.array([{"rise_g": None, "rise_r": None}])}, 1).to_pylist() == [None]


def test_early_supernova_takes_the_cuts_of_fink():
    good = {"ndethist": 20, "drb": 0.9, "classtar": 0.9}
    ztf = [good, good | {"ndethist": 21}, good | {"drb": 0.5}, good | {"classtar": 0.4}, good | {"drb": None}]
    made = early_supernova.run({"ztf": pa.array(ztf)}, 5).to_pylist()
    assert made == [True, False, False, False, None]


def test_fast_fading_looks_at_either_band():
    early = [
        {"rise_g": -0.4, "rise_r": None},
        {"rise_g": 0.5, "rise_r": -0.1},
        {"rise_g": 0.1, "rise_r": -0.5},
    ]
    assert fast_fading.run({"early": pa.array(early)}, 3).to_pylist() == [True, False, True]
