"""Ray itself: how many packs a cluster holds, and what a refit's worker gets."""

import math

import ray


def concurrent_packs(cpus_per_pack: float, gpus_per_pack: float, workers_per_pack: int = 1) -> int:
    """Packs that the cluster holds at once, with all workers its autoscaler may start; `ValueError` if none fits."""
    # no public name for the autoscaler's maximum; Ray's own Data and Train ask this way
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    now = ray.cluster_resources()
    have = {name: max(most.get(name, 0), now.get(name, 0)) for name in most.keys() | now.keys()}
    fits = [
        int(have.get(name, 0) / (need * workers_per_pack) + 1e-9)
        for name, need in (("CPU", cpus_per_pack), ("GPU", gpus_per_pack))
        if need > 0
    ]
    if not fits or min(fits) < 1:
        each = f"for each of {workers_per_pack} workers " if workers_per_pack > 1 else ""
        raise ValueError(
            f"--cpus-per-pack and --gpus-per-pack must fit the cluster, got {cpus_per_pack:g} and {gpus_per_pack:g} "
            f"{each}for {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs"
        )
    return min(fits)


def cpus_per_worker(workers: int, cpus_per_pack: float, gpus_per_pack: float) -> float:
    """CPUs of a refit's worker: a Ray Train run has the cluster to itself, plain tasks (0 workers) are like packs."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    fit = [r["CPU"] for r in nodes if r.get("CPU", 0) >= 1 and r.get("GPU", 0) >= gpus_per_pack]
    if not workers or not fit:
        return cpus_per_pack
    on_a_node = math.ceil(workers / len(fit))
    return max(cpus_per_pack, min(fit) // on_a_node)
