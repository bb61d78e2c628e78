"""Several processes that train a pack together, where a model needs more than one GPU.

They hold the same lanes and share every batch (`models.data_parallel`), as the workers of a refit do. The pack's own
actor is the first of them: it alone asks the coordinator and reports, the others hear its verdicts.
"""

import socket
from collections.abc import Sequence
from datetime import timedelta

import ray
import torch
import torch.distributed as dist

from study.cluster.jobs import PackJob
from study.cluster.tasks import data_on_worker
from study.search.records import Lane
from study.training.loop import Judge

PATIENCE = timedelta(minutes=10)
"""How long a worker waits for the others before it gives up."""


def _join(rank: int, count: int, address: str, gpus: float) -> None:
    """Make this process one of the group's; return when all are there."""
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=count, timeout=PATIENCE)


def verdicts_of_first(judge: Judge, device: torch.device) -> Judge:
    """Return a judge whose verdicts are those of the first worker's judge; the others' own do not count."""

    def verdicts(epoch: int, scores: list[tuple[int, float]]) -> list[bool]:
        goes_on = torch.tensor(judge(epoch, scores), dtype=torch.int32, device=device)
        dist.broadcast(goes_on, src=0)
        return goes_on.bool().tolist()

    return verdicts


def _goes_on(epoch: int, scores: list[tuple[int, float]]) -> list[bool]:
    """Take part in a verdict without having one."""
    return [True] * len(scores)


@ray.remote
class Worker:
    """Any of a pack's workers but the first."""

    def __init__(self, job: PackJob) -> None:
        self._data = data_on_worker(ray.get(job.arrays), job.resources.cpus_per_pack, job.resources.gpus)

    def join(self, rank: int, count: int, address: str, gpus: float) -> None:
        """Join the group; return when all are there."""
        _join(rank, count, address, gpus)

    def train(self, job: PackJob, lanes: Sequence[Lane]) -> None:
        """Train the lanes with the others, to their end; the first worker reports the results."""
        try:
            training = job.begin(lanes, self._data, verdicts_of_first(_goes_on, self._data.source_labels_I.device))
            while not training.done:
                training.advance()
        except Exception:
            # a worker that is gone ends the others' waiting, one that is merely out of step would not
            ray.actor.exit_actor()


class WorkerGroup:
    """The other workers, as the first one knows them; they end with its actor."""

    def __init__(self, job: PackJob) -> None:
        """Start the other workers and join them."""
        resources, count = job.resources, job.resources.workers_per_pack
        # in the trial's placement group, as its children are
        options = {"num_cpus": resources.cpus_per_pack, "num_gpus": resources.gpus}
        self._others = [Worker.options(**options).remote(job) for _ in range(1, count)]  # type: ignore[attr-defined]
        ip = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((ip, 0))
            address = f"tcp://{ip}:{free.getsockname()[1]}"
        gpus = resources.gpus
        joining = [other.join.remote(i, count, address, gpus) for i, other in enumerate(self._others, start=1)]
        _join(0, count, address, gpus)
        ray.get(joining)

    def train(self, job: PackJob, lanes: Sequence[Lane]) -> None:
        """Let the other workers train these lanes, beside the first one."""
        for other in self._others:
            other.train.remote(job, lanes)

    def close(self) -> None:
        """End the other workers, and the group."""
        for other in self._others:
            ray.kill(other)
        dist.destroy_process_group()
