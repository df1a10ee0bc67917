"""Rows of the `queries` log, as the trainer writes them."""

from __future__ import annotations

import datetime
from typing import Any

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
CLASSES = ["supernova", "AGN", "variable star"]


def row(name: str, state: str = "open", likely: str = "AGN", **changed: Any) -> dict[str, Any]:
    """A row of the `queries` log, as the trainer writes it."""
    mixture = [0.6 if one == likely else 0.2 for one in CLASSES]
    own = {
        "event_id": f"{name}-{state}",
        "query_id": name,
        "model": "transients",
        "survey": "ztf",
        "alert_id": f"ztf:{name}",
        "object_id": f"ztf:ZTF18{name}",
        "strategy": "margin",
        "reason": "margin 0.04 between AGN (0.41) and supernova (0.37), snapshot 7",
        "rank": 0,
        "snapshot": 7,
        "mjd": 60000.5,
        "classes": CLASSES,
        "probabilities": [{"member": "mixture", "probabilities": mixture}],
        "when": NOW,
        "state": state,
        "ra": 10.0,
        "dec": 20.0,
        "magnitude": 18.0,
    }
    return {**own, **changed}
