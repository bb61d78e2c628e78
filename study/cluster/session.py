"""Ray itself: start it, ask it how much it has. The only file that touches Ray's private state."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]  # made when imported
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data_prep.errors import UserError
from data_prep.ray_session import draining_nodes, own_ray
from search_spaces.plugins import PLUGINS
from study.options import ResourceOptions

GCS_TIMEOUT_S = 10
"""Seconds within which the head must say how its autoscaler stands."""


def start_session(resources: ResourceOptions) -> str:
    """Connect to the cluster of `address` or RAY_ADDRESS, or start a Ray on this machine; do nothing if one runs.

    Returns the dashboard's address, "" where there is none. Raises `UserError` where that fails.
    """
    from data_prep.ray_session import start_ray

    if ray.is_initialized():
        _require_plugins()
        return ""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its coming change of default, and no warning
    modules = list(PLUGINS.values())
    if (address := _address(resources)) is not None:
        return start_ray(address, modules=modules)  # its nodes have the project, or get it with the job
    project = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")]))
    # not another cluster that happens to run on this machine
    return start_ray("local", modules=modules, dashboard=resources.dashboard)


def _require_plugins() -> None:
    """Check that the Ray that runs already brings the modules of `--plugin` to its workers. Raises `UserError`."""
    if PLUGINS and not ray.get_runtime_context().runtime_env.get("py_modules"):
        modules = ", ".join(PLUGINS)
        raise UserError(
            "must be known to the Ray that runs already: start it with "
            f"ray.init(runtime_env={{'py_modules': [{modules}]}}), or let the study start it",
            option="plugin",
        )


def single_node() -> bool:
    """Return whether this machine is the whole cluster, so that its processes see each other's files."""
    return own_ray() and len(ray.nodes()) == 1


def names_a_cluster(resources: ResourceOptions) -> bool:
    """Return whether a study would connect to a Ray that runs already."""
    return ray.is_initialized() or _address(resources) is not None


def has_gpu() -> bool:
    """Return whether this machine has a GPU that torch can use."""
    import torch

    return torch.cuda.is_available()


def _address(resources: ResourceOptions) -> str | None:
    return os.environ.get("RAY_ADDRESS") or None if resources.address is None else resources.address


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Return the strategy that keeps an actor on the driver's node: with any other node it would be lost."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def alive_nodes() -> dict[str, dict[str, float]]:
    """Return the resources of the cluster's nodes by their ids, without nodes that are dead or drained."""
    draining = draining_nodes()
    return {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"] and n["NodeID"] not in draining}


def concurrent_packs(resources: ResourceOptions) -> int:
    """Return the number of packs that the cluster's nodes hold at once, 0 if none fits."""
    needs = {"CPU": resources.cpus_per_pack, "GPU": resources.gpus}

    def workers_on(have: Mapping[str, float]) -> int:
        return min(int(have.get(name, 0) / need + 1e-9) for name, need in needs.items() if need > 0)

    return sum(map(workers_on, alive_nodes().values())) // resources.workers_per_pack


def autoscaler_verdict(group: PlacementGroup, since: int | None) -> tuple[bool | None, int | None]:
    """Return whether the autoscaler can start the nodes for a placement group that waits; None: it has not said yet.

    `since`: the second value of the call before, None in the first: the state of the cluster in which the group showed
    first. The autoscaler looks every five seconds. Of Ray's old autoscaler ("v1") nothing is known: always None.
    """
    reply = GetClusterStatusReply()  # no public function tells infeasible requests, or which state the autoscaler saw
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reply.ParseFromString(client.get_cluster_status(timeout_s=GCS_TIMEOUT_S))
    cluster, autoscaler, name = reply.cluster_resource_state, reply.autoscaling_state, group.id.hex()
    if any(name in gang.details for gang in autoscaler.infeasible_gang_resource_requests):
        return False, since
    if since is None and any(name in gang.details for gang in cluster.pending_gang_resource_requests):
        since = cluster.cluster_resource_state_version
    seen = since is not None and autoscaler.last_seen_cluster_resource_state_version >= since
    return (True if seen else None), since


def cpus_per_worker(resources: ResourceOptions) -> float:
    """Return the CPUs of a refit's worker: a Ray Train run has the cluster to itself, plain tasks are like packs."""
    workers = resources.workers_of_refits
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    fit = [r["CPU"] for r in nodes if r.get("CPU", 0) >= 1 and r.get("GPU", 0) >= resources.gpus]
    if not workers or not fit:
        return resources.cpus_per_pack
    on_a_node = math.ceil(workers / len(fit))
    return max(resources.cpus_per_pack, min(fit) // on_a_node)
