"""Tables for the tests of the protocols: small, with a class that can be learned and objects of several alerts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raybroker.protocols.tables import Labelled, Names, labelled


def rows(objects: int = 60, alerts: int = 5, seed: int = 0, told: float = 1.5) -> pa.Table:
    """`rise` tells the class by `told` sigma, `noise` and `mood` tell nothing, `mood` is the same for all of an object."""
    rng = np.random.default_rng(seed)
    thing = np.repeat(np.arange(objects), alerts)
    kind = rng.integers(0, 2, objects)[thing]
    begin = rng.uniform(0, 200, objects)[thing]
    age = np.tile(np.arange(alerts) * 4.0, objects)
    return pa.table(
        {
            "kind": np.where(kind == 0, "SN", "AGN"),
            "name": [f"o{number:03}" for number in thing],
            "mjd": 59_000 + begin + age,
            "rise": rng.normal(told * kind, 1.0),
            "noise": rng.normal(0, 1, len(thing)),
            "mood": rng.normal(0, 1, objects)[thing],
        }
    )


NAMES = Names("kind", "name", "mjd")


def small(objects: int = 60, seed: int = 0, told: float = 1.5) -> Labelled:
    """The same, read."""
    return labelled(rows(objects, seed=seed, told=told), NAMES, ["SN"])
