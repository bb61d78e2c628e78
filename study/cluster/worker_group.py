"""`--workers-per-pack`: several processes that train a pack together, where a model needs more than one GPU.

They hold the same lanes and share every batch (`models.data_parallel`), as the workers of a refit do. The pack's own
actor is the first of them: it alone hears the board and reports, the others are told its verdicts.
"""

import socket
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist

from study.cluster.tasks import on_worker
from study.training.loop import Judge

PATIENCE = timedelta(minutes=10)
"""How long a worker waits for the others before it gives up."""


def _join(rank: int, count: int, address: str, gpus: float) -> None:
    """Make this process one of the group's; returns when all are there."""
    backend = "nccl" if gpus else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=count, timeout=PATIENCE)


def agreed(judge: Judge, device: torch.device) -> Judge:
    """A judge whose verdicts are those of the first worker's; the others' own do not count."""

    def verdicts(epoch: int, scores: list[tuple[int, float]]) -> list[bool]:
        goes_on = torch.tensor(judge(epoch, scores), dtype=torch.int32, device=device)
        dist.broadcast(goes_on, src=0)
        return goes_on.bool().tolist()

    return verdicts


@ray.remote
class Worker:
    """Any of a pack's workers but the first."""

    def __init__(self, arrays: Mapping[str, Any], cpus: float, gpus: float) -> None:
        self._data, self._gpus = on_worker(arrays, cpus=cpus, gpus=gpus), gpus

    def join(self, rank: int, count: int, address: str) -> None:
        _join(rank, count, address, self._gpus)

    def train(self, job: Any, lanes: Sequence[Mapping[str, Any]]) -> None:
        """Train the lanes with the others, to their end; what became of them the first worker tells."""
        try:
            for _ in job.training(lanes, self._data, judge=lambda epoch, scores: [True] * len(scores)):
                pass
        except Exception:
            # a worker that is gone ends the others' waiting, one that is merely out of step would not
            ray.actor.exit_actor()


class Workers:
    """The others, as the first worker knows them; they end with its actor."""

    def __init__(self, job: Any) -> None:
        """`job`: a `PackJob`."""
        options = {"num_cpus": job.cpus, "num_gpus": job.gpus}  # in the trial's placement group, as its children are
        self._others = [
            Worker.options(**options).remote(job.arrays, job.cpus, job.gpus)  # type: ignore[attr-defined]
            for _ in range(1, job.workers)
        ]
        ip = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((ip, 0))
            address = f"tcp://{ip}:{free.getsockname()[1]}"
        joining = [other.join.remote(i, job.workers, address) for i, other in enumerate(self._others, start=1)]
        _join(0, job.workers, address, job.gpus)
        ray.get(joining)

    def train(self, job: Any, lanes: Sequence[Mapping[str, Any]]) -> None:
        """Let them train these lanes, beside the first one."""
        for other in self._others:
            other.train.remote(job, lanes)

    def close(self) -> None:
        """End them, and the group."""
        for other in self._others:
            ray.kill(other)
        dist.destroy_process_group()
