"""Ray itself: start it, ask it how much it has. The only file that touches Ray's private state."""

import math
import os
from collections.abc import Collection
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from study.options import ResourceOptions


def start_session(resources: ResourceOptions) -> None:
    """Connect to the cluster of `address` or RAY_ADDRESS, or start a Ray on this machine; do nothing if one runs.

    Raises `UserError` where that fails.
    """
    from data_prep.ray_session import start_ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its coming change of default, and no warning
    if (
        address := _address(resources)
    ) is not None:  # its nodes have the project, or get it with the job's working directory
        start_ray(address)
        return
    project = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")]))
    start_ray("local")  # another cluster that happens to run on this machine is not ours


def single_node(resources: ResourceOptions) -> bool:
    """Return whether this machine is the whole cluster, so that its processes see each other's files."""
    return _address(resources) is None and len(ray.nodes()) == 1


def _address(resources: ResourceOptions) -> str | None:
    return os.environ.get("RAY_ADDRESS") or None if resources.address is None else resources.address


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Return the strategy that keeps an actor on the driver's node: with any other node it would be lost."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def draining_nodes() -> Collection[str]:
    """Return the ids of the nodes that are about to leave the cluster."""
    return ray._private.state.state.get_draining_nodes()  # no public name; Ray's own Data and Train ask this way


def largest_cluster() -> dict[str, float]:
    """Return the resources of the cluster by name, with all workers that its autoscaler may start."""
    # no public name for the autoscaler's maximum; Ray's own Data and Train ask this way
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    now = ray.cluster_resources()
    return {name: max(most.get(name, 0), now.get(name, 0)) for name in most.keys() | now.keys()}


def concurrent_packs(resources: ResourceOptions) -> int:
    """Return the number of packs that the largest cluster holds at once, 0 if none fits."""
    have, workers = largest_cluster(), resources.workers_per_pack
    needs = {"CPU": resources.cpus_per_pack, "GPU": resources.gpus_per_pack}
    return min(
        (int(have.get(name, 0) / (need * workers) + 1e-9) for name, need in needs.items() if need > 0), default=0
    )


def cpus_per_worker(resources: ResourceOptions) -> float:
    """Return the CPUs of a refit's worker: a Ray Train run has the cluster to itself, plain tasks are like packs."""
    workers = resources.refit_workers
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    fit = [r["CPU"] for r in nodes if r.get("CPU", 0) >= 1 and r.get("GPU", 0) >= resources.gpus_per_pack]
    if not workers or not fit:
        return resources.cpus_per_pack
    on_a_node = math.ceil(workers / len(fit))
    return max(resources.cpus_per_pack, min(fit) // on_a_node)
