"""How many replicas of the service there are, and how many requests Serve hands to each: plain options, without Ray."""

from __future__ import annotations

from typing import Any

from raybroker.settings import ServiceSettings

STREAMS = 32  # of events, that a replica keeps open beside its requests (`service.feed.LISTENERS`)
REFUSALS = 256  # requests that a replica is just telling to come back
UP_SECONDS, DOWN_SECONDS = 10.0, 600.0


def options(own: ServiceSettings) -> dict[str, Any]:
    """How Serve runs the replicas. Autoscaling counts the requests under way, open streams of events too."""
    bounds: dict[str, Any] = {"num_replicas": own.replicas}
    if own.most > own.replicas:
        scaling = {
            "min_replicas": own.replicas,
            "max_replicas": own.most,
            "target_ongoing_requests": max(1, own.requests // 2),
            "upscale_delay_s": UP_SECONDS,
            "downscale_delay_s": DOWN_SECONDS,
        }
        bounds = {"autoscaling_config": scaling}
    return {
        **bounds,
        "max_ongoing_requests": own.requests + STREAMS + REFUSALS,
        "max_queued_requests": 1024,
        "ray_actor_options": {"num_cpus": 0.2},
    }
