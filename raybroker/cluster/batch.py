"""Ray for work that ends: nights computed again as tasks. And what every driver asks of a cluster that it joins."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import raybroker
from raybroker.cluster import recompute
from raybroker.cluster.recompute import Done, Job, Piece, Wish
from raybroker.errors import RaybrokerError, SettingsError, StreamError
from raybroker.settings import Settings

AHEAD = 2  # pieces per CPU that are under way or wait
NODE_SECONDS = 60.0  # for a node to say which raybroker it has
ABSENT = "none"


def reprocess(settings: Settings, wish: Wish, tell: Callable[[Done], None] = lambda done: None) -> Done:
    """Compute steps of stored alerts again on the cluster at `ray.address`, or on a private Ray; `tell` hears how far it is.

    Killed at any time, it has lost nothing: what is stored already is not computed again. SettingsError before
    anything runs where something is wrong; what single packets do is counted in `Done.troubles`.
    """
    from raybroker.cluster import supervisor

    job = recompute.prepare(settings, wish)
    supervisor.start_ray(settings)
    try:
        return _all(job, tell)
    finally:
        supervisor.stop_ray()


def _all(job: Job, tell: Callable[[Done], None]) -> Done:
    total = Done()
    for done in _under_way(recompute.pieces(job), job):
        total.add(done)
        tell(total)
    return total


def _under_way(pieces: Iterable[Piece], job: Job) -> Iterator[Done]:
    """What the pieces give, as they end; a few more than the CPUs can hold are asked for at a time."""
    task = ray.remote(num_cpus=1, max_retries=3)(recompute.compute)
    shared, left = ray.put(job), iter(pieces)
    most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = [task.remote(shared, piece) for piece in islice(left, most)]
    while waiting:
        ready, waiting = ray.wait(waiting)
        waiting += [task.remote(shared, piece) for piece in islice(left, len(ready))]
        for answer in ready:
            yield _got(answer)


def _got(answer: Any) -> Done:
    """The answer, or the error of ours that it holds."""
    try:
        return ray.get(answer)
    except RayTaskError as error:
        if isinstance(error.cause, RaybrokerError):
            raise error.cause from None
        raise


# Joining a cluster.


def join(address: str) -> None:
    """Connect to the cluster at `address`; every node must have this raybroker.

    SettingsError says what to do where there is no cluster, where the token is wrong, or where versions differ.
    """
    try:
        ray.init(address=address, namespace="raybroker", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise SettingsError(_why_not(address, error)) from error
    found = versions()
    if wrong := differing(found, raybroker.__version__):
        ray.shutdown()
        raise SettingsError(wrong)


def _why_not(address: str, error: Exception) -> str:
    said = " ".join(str(error).split())
    if "Version mismatch" in said:
        return (
            f"--address {address}: Ray and Python must be the same here as on the cluster, to the patch. {said} "
            "Install requirements.lock on every machine, or run `raybroker run` on the cluster's head"
        )
    return (
        f"--address {address}: no Ray cluster answers there, or it does not accept this token: {said} The token is the "
        "cluster's own, in ~/.ray/auth_token or RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token; `ray status --address "
        f"{address}` must work. `ray up cluster.yaml` starts a cluster"
    )


def versions() -> dict[str, str]:
    """The raybroker of each node, by its address; of one without it, 'none'."""

    def installed() -> str:  # sent as code: it must run where there is no raybroker
        try:
            import raybroker
        except ImportError:
            return "none"
        return raybroker.__version__

    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(installed)
            asked[node["NodeManagerAddress"]] = task.remote()
    found = {}
    for address, answer in asked.items():
        try:
            found[address] = ray.get(answer, timeout=NODE_SECONDS)
        except RayError as error:
            raise StreamError(f"node {address} of the Ray cluster does not answer: {error}") from None
    return found


def differing(found: Mapping[str, str], own: str) -> str:
    """What is wrong with the nodes' versions, if anything.

    >>> differing({"10.0.0.1": "1.0", "10.0.0.2": "0.9"}, "1.0")
    'raybroker is 1.0 here, but on node 10.0.0.2 it is 0.9: install one version everywhere (`ray up cluster.yaml` does)'
    """
    others = [
        f"on node {address} it is {'not installed' if version == ABSENT else version}"
        for address, version in sorted(found.items())
        if version != own
    ]
    if not others:
        return ""
    return f"raybroker is {own} here, but {', '.join(others)}: install one version everywhere (`ray up cluster.yaml` does)"
