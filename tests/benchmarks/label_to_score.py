"""Seconds from the POST of a label until `POST /scores` answers with a model that has learned it.

    python -m tests.benchmarks.label_to_score [--url http://127.0.0.1:8000] --token TOKEN [--labels 20] [--pause 3]

Against any raybroker that runs, for instance `RAYBROKER_TOKENS=ann:word raybroker demo`. The labels are real answers to
its open questions (its first class, in turn with its second): do not point it at an archive that matters.
"""

from __future__ import annotations

import argparse
import time
import uuid
from typing import Any

import httpx
import numpy as np


def probe(api: httpx.Client, model: str) -> tuple[int, dict[str, float]]:
    """The snapshot that scores now, and what it says of an alert of which nothing is known."""
    found = api.post("/scores", json={"model": model, "features": {}}).raise_for_status().json()
    return found["snapshot"], found["classes"]


def learned(api: httpx.Client, model: str) -> int:
    """How many labels the newest snapshot has learned."""
    own = next(one for one in api.get("/models").json()["models"] if one["name"] == model)
    return int(own["snapshot"]["labels"])


def one(api: httpx.Client, model: dict[str, Any], turn: int) -> float:
    """Label what is asked first; the seconds until a snapshot scores that knows more."""
    query = api.get("/queries", params={"model": model["name"], "limit": 1}).json()["queries"][0]
    number, _ = probe(api, model["name"])
    body = {key: query[key] for key in ("alert_id", "model", "query_id", "snapshot")}
    body |= {"event_id": uuid.uuid4().hex, "label": model["classes"][turn % 2], "source": "oracle"}
    start = time.perf_counter()
    api.post("/labels", json=body).raise_for_status()
    while probe(api, model["name"])[0] == number:
        time.sleep(0.02)
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--token", required=True)
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between two labels")
    wish = parser.parse_args()
    headers = {"Authorization": f"Bearer {wish.token}"}
    with httpx.Client(base_url=wish.url, headers=headers, timeout=30.0) as api:
        model = api.get("/models").json()["models"][0]
        seconds = []
        for turn in range(wish.labels):
            seconds.append(one(api, model, turn))
            time.sleep(wish.pause)
        print(
            f"model {model['name']}, {learned(api, model['name'])} labels learned, members {model['members']}"
        )
    p50, p95 = np.percentile(seconds, [50, 95])
    print(
        f"{wish.labels} labels, {wish.pause:g} s apart: p50 {p50:.2f} s, p95 {p95:.2f} s, worst {max(seconds):.2f} s"
    )


if __name__ == "__main__":
    main()
