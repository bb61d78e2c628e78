"""Winners are trained once more, on all seen classes and with several seeds, and classify the target.

The refit sees no target labels either; what it returns are predicted classes, which only the driver compares.

Suffixes: K lanes, T target images.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from study.methods import static_fields
from study.protocol import TrialData
from study.trainer import Division, Pack, seen_classes, trainable_images


@dataclass(frozen=True, kw_only=True)
class Refit:
    """One configuration, refitted."""

    predictions_ST: Tensor
    """Predicted class of every target image, for every seed."""
    division: Division
    """The same images at any threshold between seen and unseen classes, a lane per seed."""
    train_seconds: float
    """Its share of the training time, all seeds."""
    diverged: bool
    """Whether the loss of any seed was not finite."""


def refit(
    configs: Sequence[Any],
    *,
    seeds: Sequence[int],
    arrays: Any,
    epochs: int,
    cpus_per_pack: float,
    gpus_per_pack: float,
) -> list[Refit]:
    """Refit every configuration with every seed on the cluster; configurations that share static knobs share a pack.

    `arrays`: object reference to `TrialData.to_arrays()`. Ctrl-C stops it like any Ray call.
    """
    packs: dict[tuple[Any, ...], list[int]] = {}
    for i, config in enumerate(configs):
        packs.setdefault(static_fields(config), []).append(i)
    task = ray.remote(_refit_pack).options(num_cpus=cpus_per_pack, num_gpus=gpus_per_pack)
    running = [
        task.remote(arrays, [configs[i] for i in members], list(seeds), epochs, max(1, int(cpus_per_pack)))
        for members in packs.values()
    ]
    refits: dict[int, Refit] = {}
    for members, done in zip(packs.values(), ray.get(running), strict=True):
        refits.update(zip(members, done, strict=True))
    return [refits[i] for i in range(len(configs))]


def _refit_pack(
    arrays: Mapping[str, Any], configs: Sequence[Any], seeds: Sequence[int], epochs: int, threads: int
) -> list[Refit]:
    """Train configurations x seeds as one pack on all seen classes and all labelled source images."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
    data = TrialData.from_arrays(arrays).to(device)
    return refit_pack(configs, seeds=seeds, data=data, epochs=epochs)


def refit_pack(configs: Sequence[Any], *, seeds: Sequence[int], data: TrialData, epochs: int) -> list[Refit]:
    """Refit configurations that share their static knobs, here and now: configurations x seeds are the lanes."""
    started = time.perf_counter()
    lanes = [(config, seed) for config in configs for seed in seeds]
    pack = Pack(
        [config for config, _ in lanes],
        seeds=[seed for _, seed in lanes],
        seen_KC=seen_classes(data, None).expand(len(lanes), -1),
        trainable_KI=trainable_images(data, None).expand(len(lanes), -1),
        data=data,
        epochs=epochs,
    )
    for _ in range(epochs):
        pack.train_epoch()
    predictions_KT, division = pack.classify(data.target_features_TD).cpu(), pack.divide(data.target_features_TD)
    seconds = (time.perf_counter() - started) / len(configs)
    of_config = [slice(i * len(seeds), (i + 1) * len(seeds)) for i in range(len(configs))]
    return [
        Refit(
            predictions_ST=predictions_KT[lanes_of],
            division=Division(
                lead_KI=division.lead_KI[lanes_of],
                seen_KI=division.seen_KI[lanes_of],
                unseen_KI=division.unseen_KI[lanes_of],
            ),
            train_seconds=seconds,
            diverged=bool(pack.diverged_K[lanes_of].any()),
        )
        for lanes_of in of_config
    ]
