"""What a driver is told by a cluster that it cannot join. How tasks run on one is tested in `tests/test_jobs.py`."""

from __future__ import annotations

import pytest

from raybroker.cluster import batch


def test_one_version_everywhere_is_well() -> None:
    assert batch.differing({"10.0.0.1": "1.0", "10.0.0.2": "1.0"}, "1.0") == ""


def test_each_node_with_another_version_or_none_is_named() -> None:
    said = batch.differing({"10.0.0.2": "none", "10.0.0.1": "1.0", "10.0.0.3": "0.9"}, "1.0")
    assert said == (
        "raybroker is 1.0 here, but on node 10.0.0.2 it is not installed, on node 10.0.0.3 it is 0.9: "
        "install one version everywhere (`ray up cluster.yaml` does)"
    )


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n"), "to the patch"),
        (RuntimeError("Authentication failed: invalid token"), "~/.ray/auth_token"),
        (
            ConnectionError("Could not find any running Ray instance."),
            "no Ray cluster answers there, or it does not accept",
        ),
    ],
)
def test_what_ray_says_is_told_with_what_to_do(error: Exception, advice: str) -> None:
    said = batch._why_not("10.0.0.1:6379", error)
    assert said.startswith("--address 10.0.0.1:6379: ")
    assert " ".join(str(error).split()) in said
    assert advice in said
