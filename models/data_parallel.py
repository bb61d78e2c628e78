"""Data-parallel training: torch.distributed workers hold the same lanes, and each takes its share of every batch.

Gradients are averaged over workers, so losses that are means over the batch need nothing else. A loss of a *batch
statistic* (the mean prediction, the number of trusted images) needs the statistic of the whole batch: `over_workers`
gives it. Its gradient passes to the worker's own part unchanged, which is exact once gradients are averaged. So N
workers train like one worker, to float tolerance. Without a process group everything here does nothing.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def workers() -> tuple[int, int]:
    """Return this worker's rank, and the number of workers."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def share(batch_KB: Tensor) -> Tensor:
    """Return this worker's part of a batch (second axis). Raises `ValueError` if a batch has no equal parts."""
    rank, count = workers()
    if batch_KB.shape[1] % count:
        raise ValueError(f"the batch size must be a multiple of {count} workers, got {batch_KB.shape[1]}")
    return batch_KB[:, rank::count]


def over_workers(statistic: Tensor) -> Tensor:
    """Return the mean over workers; the gradient goes to this worker's part."""
    _, count = workers()
    if count == 1:
        return statistic
    mean = statistic.detach().clone()
    dist.all_reduce(mean)
    return statistic + (mean / count - statistic.detach())


def average(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Average gradients over workers, in one message."""
    _, count = workers()
    if count == 1:
        return gradients
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    parts = (flat / count).split([g.numel() for g in gradients])
    return [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
